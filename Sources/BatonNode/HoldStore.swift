// Suspensions on disk: they survive a restart (CONTRACT "Command", `queue suspend`).
import BatonCore
import BatonModel
import BatonQueue
import BatonRuntime
import Foundation
import Glibc
import Logging
import Synchronization

/// Keeps the suspensions in force in `data_dir/holds.json`, written to a new file, fsync'ed and renamed into place.
///
/// Bounded by `QueueLimits.holds`. A damaged file is put aside with a warning: mail is then not held, and nothing is lost.
final class HoldStore: Sendable {
    private let path: String
    private let disk: any Disk
    private let logger: Logger
    /// Which of them are the cluster's.
    let book = Mutex(HoldBook())
    /// Verbs and what the control plane brings, one after the other: a slow one never undoes a later one.
    let turns = Turns()

    struct Entry: Codable {
        var kind: String
        var value: String
        /// Nanoseconds since the epoch; nil: until `resume`.
        var until: Int64?
        /// `SharedHold.id` of the cluster's suspension; nil: this node's own.
        var shared: String?
    }

    init(path: String, disk: any Disk, logger: Logger) {
        self.path = path
        self.disk = disk
        self.logger = logger
    }

    private var file: String { path + "/holds.json" }

    /// Before recovery hands mail in, so that held mail never gets out.
    func apply(to partitions: [QueuePartition], now: Instant) async throws {
        guard let data = FileManager.default.contents(atPath: file) else { return }
        guard let entries = try? JSONDecoder().decode([Entry].self, from: data) else {
            logger.error("Holds cannot be read; the file is put aside", metadata: ["file": "\(file)"])
            try? disk.rename(file, to: file + ".damaged")
            return
        }
        var marks: [AdminSelector: String] = [:]
        defer { book.withLock { $0 = HoldBook(marks: marks) } }
        for entry in entries {
            let until = entry.until.map { Instant(nanoseconds: $0) }
            if let until, until <= now { continue }
            guard let known = AdminSelector(entry.kind, entry.value) else { continue }
            if let id = entry.shared { marks[known] = id }
            let selector = NodeInspector.selector(known)
            for partition in partitions { _ = try? await partition.suspend(selector, until: until) }
        }
    }

    /// After each change. Blocking. Throws where it cannot be made durable: the operator must know.
    func save(_ holds: [QueueHold]) throws {
        let marks = book.withLock { $0.marks }
        let entries = holds.prefix(QueueLimits.holds).map { hold in
            let (kind, value) = Self.text(hold.selector)
            return Entry(
                kind: kind, value: value, until: hold.until?.nanoseconds,
                shared: AdminSelector(kind, value).flatMap { marks[$0] })
        }
        let data = try JSONEncoder().encode(Array(entries))
        let scratch = file + ".new"
        try? disk.unlink(scratch)
        let handle = try disk.open(scratch, .create)
        defer { try? disk.close(handle) }
        let disk = disk
        let result: Result<Void, DiskError> = Array(data).withUnsafeBytes { bytes in
            do throws(DiskError) { return .success(try disk.write(handle, bytes, at: 0)) } catch {
                return .failure(error)
            }
        }
        try result.get()
        try disk.sync(handle)
        try disk.rename(scratch, to: file)
        try disk.syncDirectory(path)
    }

    static func text(_ selector: QueueSelector) -> (kind: String, value: String) {
        switch selector {
        case .message(let id): ("message", id.description)
        case .domain(let domain): ("domain", domain.description)
        case .site(let name): ("site", String(decoding: name, as: UTF8.self))
        case .sender(let address): ("sender", address?.description ?? "")
        case .senderDomain(let domain): ("sender_domain", domain.description)
        case .all: ("all", "")
        }
    }
}
