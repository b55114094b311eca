// Suspensions on disk: they survive a restart (CONTRACT "Command", `queue suspend`).
import BatonCore
import BatonModel
import BatonQueue
import BatonRuntime
import Foundation
import Glibc
import Logging

/// Keeps the suspensions in force in `data_dir/holds.json`, written to a new file, fsync'ed and renamed into place.
///
/// Bounded by `QueueLimits.holds`. A damaged file is put aside with a warning: mail is then not held, and nothing is lost.
final class HoldStore: Sendable {
    private let path: String
    private let disk: any Disk
    private let logger: Logger

    struct Entry: Codable {
        var kind: String
        var value: String
        /// Nanoseconds since the epoch; nil: until `resume`.
        var until: Int64?
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
        for entry in entries {
            let until = entry.until.map { Instant(nanoseconds: $0) }
            if let until, until <= now { continue }
            guard let selector = Self.selector(entry) else { continue }
            for partition in partitions { _ = try? await partition.suspend(selector, until: until) }
        }
    }

    /// After each change. Blocking. Throws where it cannot be made durable: the operator must know.
    func save(_ holds: [QueueHold]) throws {
        let entries = holds.prefix(QueueLimits.holds).map { hold in
            let (kind, value) = Self.text(hold.selector)
            return Entry(kind: kind, value: value, until: hold.until?.nanoseconds)
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

    static func selector(_ entry: Entry) -> QueueSelector? {
        switch entry.kind {
        case "message": MessageID(text: Array(entry.value.utf8)).map { .message($0) }
        case "domain": .domain(Domain(entry.value))
        case "site": .site(Array(entry.value.utf8))
        case "sender": entry.value.isEmpty ? .sender(nil) : MailAddress(entry.value).map { .sender($0) }
        case "sender_domain": .senderDomain(Domain(entry.value))
        case "all": .all
        default: nil
        }
    }
}
