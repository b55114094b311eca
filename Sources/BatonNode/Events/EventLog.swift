// The event log: JSON lines on a thread of their own, fdatasync'ed before they count as synced, never dropped.
import BatonCore
import BatonModel
import BatonRuntime
import Logging
import Metrics
import Synchronization

/// `events:` of the configuration, and the log's own bounds.
package struct EventSettings: Sendable {
    /// Files whose events are all older are removed.
    package var retention = TimeSpan.days(7)
    /// Bytes of all files; the oldest are removed above it.
    package var maxSize = Int64(20) * Int64(ByteCount.gibi)
    /// A file is rolled at this size or age.
    package var fileSize = Int64(256) * Int64(ByteCount.mebi)
    package var fileAge = TimeSpan.hours(1)
    /// Written events are fdatasync'ed within this time.
    package var syncInterval = TimeSpan.milliseconds(500)
    /// Formatted bytes that are written before a sync is due.
    package var writeSize = 256 * ByteCount.kibi
    /// How long the thread waits for more after few events came, so that a loop's every turn is not a wake of its own.
    package var gatherInterval = TimeSpan.milliseconds(20)
    /// Formatted bytes and waiting events that may be unsynced; past either the log is full and new mail gets 452.
    package var unsyncedBytes = 64 * ByteCount.mebi
    package var waitingEvents = 500_000

    package init() {}
}

/// `EventRecording` on disk. `record` is for any thread and never blocks; what it took is written and synced in order.
///
/// A write or fdatasync that fails is not retried in its file: everything since the last good sync is written again to a new
/// file, so that an event may stand twice (same `event_id`) and never not at all. Until that works `isFull` is true.
package final class EventLog: EventRecording {
    enum Item: Sendable {
        case events([MailEvent])
        case rejections([RejectionEvent])
    }

    /// Batches taken from the mailbox in one turn.
    private static let batchMax = 4096

    /// Without a bound of its own: `isFull` closes admission, and what is still queued then is bounded by the queue.
    private let mailbox = ThreadMailbox<Item>(capacity: .max)
    private let recordedCount = Atomic<UInt64>(0)
    private let syncedCount = Atomic<UInt64>(0)
    private let full = Atomic<Bool>(false)
    private let unloggedRejections = Counter(label: "baton_rejections_unlogged_total")
    private let settings: EventSettings
    private let thread: Mutex<DedicatedThread?> = Mutex(nil)
    package let directory: String

    /// Entered by the event thread alone.
    private let writer: Mutex<EventWriter>

    private init(directory: String, settings: EventSettings, writer: EventWriter) {
        self.directory = directory
        self.settings = settings
        self.writer = Mutex(writer)
    }

    /// Makes the directory and the first file. Blocking. Throws what the disk says.
    package static func open(
        directory: String, disk: any Disk, configuration: EventSettings, nodeID: String, time: any TimeSource,
        logger: Logger
    ) throws -> EventLog {
        let log = EventLog(
            directory: directory, settings: configuration,
            writer: try EventWriter(
                directory: directory, disk: disk, settings: configuration, nodeID: nodeID, now: time.now(),
                logger: logger))
        let started = DedicatedThread(name: "events") { [log] in
            var open = true
            while open { open = log.turn(time) }
        }
        log.thread.withLock { $0 = started }
        return log
    }

    /// Waits for events (without end while all is synced) and works on what came. False when the log is closed.
    private func turn(_ time: any TimeSource) -> Bool {
        let clean = writer.withLock { $0.isClean }
        let items = mailbox.take(
            limit: Self.batchMax, timeoutNanoseconds: clean ? nil : settings.syncInterval.nanoseconds,
            gathering: Gathering(count: Self.batchMax / 16, span: settings.gatherInterval))
        writer.withLock { writer in
            if let items { writer.take(items) }
            syncedCount.store(writer.turn(at: time.now(), force: items == nil), ordering: .releasing)
            full.store(writer.isFull, ordering: .releasing)
            if items == nil { writer.close() }
        }
        return items != nil
    }

    package func record(_ events: [MailEvent]) {
        guard !events.isEmpty else { return }
        // Counted before it is handed over: who reads `recorded` after this has every event before his own in it, so that
        // `synced` reaching that value covers his own.
        recordedCount.add(UInt64(events.count), ordering: .acquiringAndReleasing)
        mailbox.deliver(CollectionOfOne(.events(events)))
    }

    package func record(rejections: [RejectionEvent]) {
        guard !rejections.isEmpty else { return }
        // Nobody is owed a refusal's record, and refusals do not end when admission closes: past the bound they are counted
        // alone, or a full disk and one insistent client would fill the memory.
        guard !isFull else {
            unloggedRejections.increment(by: rejections.count)
            return
        }
        recordedCount.add(UInt64(rejections.count), ordering: .acquiringAndReleasing)
        mailbox.deliver(CollectionOfOne(.rejections(rejections)))
    }

    package var recorded: UInt64 { recordedCount.load(ordering: .acquiring) }
    package var synced: UInt64 { syncedCount.load(ordering: .acquiring) }

    package var isFull: Bool {
        if full.load(ordering: .acquiring) { return true }
        let recorded = recorded
        let synced = synced
        return recorded > synced && recorded - synced > UInt64(settings.waitingEvents)
    }

    /// Writes and syncs what was recorded, then ends the thread. Blocking, not on a loop. Idempotent.
    package func stop() {
        mailbox.close()
        let running = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        running?.join()
    }
}
