// What the event thread does: formatting, files, syncs, retention. A value, so that tests drive it without a thread.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import Metrics

struct EventWriter: Sendable {
    private let directory: String
    private let disk: any Disk
    private let settings: EventSettings
    private let logger: Logger
    private var json: EventJSON
    private var file: DiskFile?
    private var path = ""
    private var fileStarted: Instant
    /// Octets of `json.bytes` since `syncedOffset` that are in the file.
    private var written = 0
    /// Octets in the file that are synced; `json.bytes` begins there.
    private var syncedOffset: Int64 = 0
    /// Events formatted, and of those synced.
    private var formatted: UInt64 = 0
    private var synced: UInt64 = 0
    private var lastSync: Instant
    private var lastCleanUp: Instant
    private var serial = 0
    private var failed = false
    private var counts: [Int] = Array(repeating: 0, count: 9)
    private let counters: [Counter]
    private let failures = Counter(label: "baton_events_write_failures_total")

    init(
        directory: String, disk: any Disk, settings: EventSettings, nodeID: String, now: Instant, logger: Logger
    ) throws(DiskError) {
        self.directory = directory
        self.disk = disk
        self.settings = settings
        self.logger = logger
        self.json = EventJSON(nodeID: nodeID)
        self.fileStarted = now
        self.lastSync = now
        self.lastCleanUp = now
        let types: [MailEventType] = [
            .reception, .delivery, .transientFailure, .bounce, .expiration, .adminBounce, .rejection, .delayNotice,
        ]
        self.counters = types.map { Counter(label: "baton_events_total", dimensions: [("type", $0.name)]) }
        do throws(DiskError) {
            try disk.makeDirectory(directory)
            let parent = directory.lastIndex(of: "/").map { String(directory[..<$0]) } ?? "."
            try disk.syncDirectory(parent.isEmpty ? "/" : parent)
        } catch {
            guard error.errno == EEXIST else { throw error }
        }
        try startFile(at: now)
        removeOld(at: now)
    }

    /// Nothing is waiting for a write or a sync.
    var isClean: Bool { json.bytes.isEmpty }
    var isFull: Bool { failed || json.bytes.count > settings.unsyncedBytes }

    mutating func take(_ items: [EventLog.Item]) {
        for item in items {
            switch item {
            case .events(let events):
                for event in events {
                    json.append(event)
                    counts[Int(event.type.rawValue)] += 1
                }
                formatted += UInt64(events.count)
            case .rejections(let rejections):
                for rejection in rejections { json.append(rejection) }
                counts[Int(MailEventType.rejection.rawValue)] += rejections.count
                formatted += UInt64(rejections.count)
            }
        }
    }

    /// Writes what is formatted; syncs when the interval is over (or `force`). Returns the events that are safe.
    mutating func turn(at now: Instant, force: Bool) -> UInt64 {
        for (index, counter) in counters.enumerated() where counts[index + 1] > 0 {
            counter.increment(by: counts[index + 1])
            counts[index + 1] = 0
        }
        if failed, !force, now - lastSync < .seconds(1) { return synced }
        let due = force || now - lastSync >= settings.syncInterval || json.bytes.count > settings.unsyncedBytes / 2
        do throws(DiskError) {
            if failed || file == nil { try startFile(at: now) }
            // What is not due gathers: many small writes would cost more than they save, for only a sync makes events safe.
            if due || json.bytes.count - written >= settings.writeSize { try write() }
            if due {
                try sync(at: now)
                if syncedOffset >= settings.fileSize || (syncedOffset > 0 && now - fileStarted >= settings.fileAge) {
                    try startFile(at: now)
                }
            }
            failed = false
        } catch {
            if !failed {
                logger.critical(
                    "Event log cannot be written: new mail is refused until it can",
                    metadata: ["call": "\(error.call)", "errno": "\(error.errno)", "file": "\(path)"])
            }
            failures.increment()
            failed = true
            lastSync = now
        }
        if now - lastCleanUp >= .minutes(1) { removeOld(at: now) }
        return synced
    }

    mutating func close() {
        if let file { try? disk.close(file) }
        file = nil
    }

    // MARK: Files

    private mutating func write() throws(DiskError) {
        guard let file, written < json.bytes.count else { return }
        let from = written
        let offset = syncedOffset + Int64(written)
        let disk = disk
        let result: Result<Void, DiskError> = json.bytes.withUnsafeBytes { all in
            do throws(DiskError) {
                return .success(try disk.write(file, UnsafeRawBufferPointer(rebasing: all[from...]), at: offset))
            } catch {
                return .failure(error)
            }
        }
        try result.get()
        written = json.bytes.count
    }

    private mutating func sync(at now: Instant) throws(DiskError) {
        guard let file else { return }
        lastSync = now
        guard written > 0 else { return }
        try disk.sync(file)
        syncedOffset += Int64(written)
        written = 0
        synced = formatted
        json.removeAll()
    }

    /// A new, empty file; what is not synced yet will be written to it again from the start.
    private mutating func startFile(at now: Instant) throws(DiskError) {
        if let file {
            try? disk.close(file)
            // Nothing in it counts, and a full disk tried for hours would leave one such file a second.
            if syncedOffset == 0 { try? disk.unlink(path) }
        }
        file = nil
        written = 0
        syncedOffset = 0
        let stamp = CivilTime(secondsSinceEpoch: now.secondsSinceEpoch).compact
        for _ in 0..<1000 {
            serial += 1
            path = "\(directory)/\(stamp)-\(serial).jsonl"
            file = try create(path)
            if file != nil { break }
        }
        guard file != nil else { throw DiskError(errno: EEXIST, call: "open") }
        try disk.syncDirectory(directory)
        fileStarted = now
    }

    /// Nil where the name is taken.
    private func create(_ path: String) throws(DiskError) -> DiskFile? {
        do throws(DiskError) {
            return try disk.open(path, .create)
        } catch {
            if error.errno == EEXIST { return nil }
            throw error
        }
    }

    /// Removes files past retention, and the oldest above `maxSize`; never the current one.
    private mutating func removeOld(at now: Instant) {
        lastCleanUp = now
        guard let names = try? disk.list(directory) else { return }
        let files = names.filter { $0.hasSuffix(".jsonl") }.sorted(by: EventFileName.precedes)
        let horizon = CivilTime(secondsSinceEpoch: (now - settings.retention).secondsSinceEpoch).compact
        var sizes: [Int64] = []
        for name in files {
            var size: Int64 = 0
            if let opened = try? disk.open("\(directory)/\(name)", .read) {
                size = (try? disk.size(opened)) ?? 0
                try? disk.close(opened)
            }
            sizes.append(size)
        }
        var total = sizes.reduce(0, +)
        for (index, name) in files.enumerated() where index + 1 < files.count {
            guard "\(directory)/\(name)" != path else { break }
            // All its events are older than the next file's name.
            let expired = files[index + 1].prefix(16) < horizon
            let oversized = total > settings.maxSize
            guard expired || oversized else { break }
            if oversized, !expired {
                logger.warning("Event file removed before its retention", metadata: ["file": "\(name)"])
            }
            try? disk.unlink("\(directory)/\(name)")
            total -= sizes[index]
        }
    }
}

/// `20261124T003000Z-7.jsonl`: sorts by time, then by number.
enum EventFileName {
    static func precedes(_ left: String, _ right: String) -> Bool {
        let a = left.prefix(16)
        let b = right.prefix(16)
        return a != b ? a < b : number(left) < number(right)
    }

    static func number(_ name: String) -> Int { Int(name.dropFirst(17).prefix { $0.isNumber }) ?? 0 }
}
