// Copies of segments on this disk: a thread that writes chunks and outcome logs for other nodes, seals, reads and removes them.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import Metrics
import NIOCore
import Synchronization

/// Bounds of the store (docs/LIMITS.md, "Copies").
package enum CopyLimits {
    /// Octets of chunks and outcomes that wait for the thread; past it `failed`, and the writer replaces this backup.
    package static let waitingOctets = 128 * ByteCount.mebi
    /// Requests that wait for the thread.
    package static let waitingRequests = 65_536
    /// Copies whose files are kept open; the ones used longest ago are closed.
    package static let openCopies = 128
    /// Octets of one read.
    package static let readOctets = 2 * ByteCount.mebi
    /// Outcome entries that one copy gives to a taker (octets).
    package static let entryOctets = 64 * ByteCount.mebi
}

/// `CopyKeeping` on one thread. `Threading.manual`: a test runs it by `pump` and `tick`.
package final class CopyStore: CopyKeeping, Sendable {
    enum Work: Sendable {
        case create(SegmentID, Int64, @Sendable (CopyCreation) -> Void)
        case append(SegmentID, Int64, ByteBuffer, @Sendable (CopyAppend) -> Void)
        case record(SegmentID, UInt64, Int64, ByteBuffer, @Sendable (CopyLog) -> Void)
        case seal(SegmentID, UInt64, @Sendable (CopySeal) -> Void)
        case read(SegmentID, CopyContent, Int64, Int, @Sendable (CopyRead) -> Void)
        case restore(SegmentID, RestorePurpose, Int64, ByteBuffer, @Sendable (Bool) -> Void)
        case mend(DamagedChunk, ByteBuffer, @Sendable (CopyMend) -> Void)
        case unlink(SegmentID, @Sendable (Bool) -> Void)
        case unlinkIfEmpty(SegmentID)
        case inventory(@Sendable ([SegmentID]) -> Void)

        var octets: Int {
            switch self {
            case .append(_, _, let bytes, _), .record(_, _, _, let bytes, _), .restore(_, _, _, let bytes, _):
                bytes.readableBytes
            case .mend(_, let bytes, _): bytes.readableBytes
            case .create, .seal, .read, .unlink, .unlinkIfEmpty, .inventory: 0
            }
        }

        /// Answered at a bound, or after the end.
        func refuse() {
            switch self {
            case .create(_, _, let done): done(.failed)
            case .append(_, _, _, let done): done(.failed(upTo: 0))
            case .record(_, _, _, _, let done): done(.failed)
            case .seal(_, _, let done): done(.failed)
            case .read(_, _, _, _, let done): done(.failed)
            case .restore(_, _, _, _, let done): done(false)
            case .mend(_, _, let done): done(.failed)
            case .unlink(_, let done): done(false)
            case .unlinkIfEmpty: break
            case .inventory(let done): done([])
            }
        }
    }

    private let mailbox = ThreadMailbox<Work>(capacity: CopyLimits.waitingRequests)
    private let waiting = Atomic<Int>(0)
    private let worker: Mutex<CopyWorker>
    private let thread = Mutex<DedicatedThread?>(nil)
    private let time: any TimeSource
    private let interval: TimeSpan
    private let threading: Spool.Threading

    package init(
        directory: DataDirectory, configuration: SpoolConfiguration, news: any CopyNews, time: any TimeSource,
        logger: Logger, threading: Spool.Threading = .dedicated
    ) {
        self.time = time
        self.interval = min(configuration.outcomeSyncInterval, .seconds(1))
        self.threading = threading
        self.worker = Mutex(
            CopyWorker(
                disk: directory.disk, node: directory.identity.node, root: directory.path,
                directory: directory.segmentsPath, configuration: configuration, news: news, logger: logger))
    }

    package func start() {
        guard threading == .dedicated else { return }
        thread.withLock { $0 = DedicatedThread(name: "copies") { self.run() } }
    }

    /// Writes and syncs what waits. Blocking; not on a loop. Idempotent.
    package func stop() {
        mailbox.close()
        thread.withLock { $0 }?.join()
        worker.withLock { $0.finish(at: time.now()) }
    }

    private func run() {
        var last = time.now()
        while true {
            let wait = max(1_000_000, interval.nanoseconds - (time.now() - last).nanoseconds)
            guard let batch = mailbox.take(limit: 256, timeoutNanoseconds: wait) else { return }
            process(batch)
            let now = time.now()
            if now - last >= interval {
                last = now
                worker.withLock { $0.tick(at: now) }
            }
        }
    }

    private func process(_ batch: [Work]) {
        guard !batch.isEmpty else { return }
        let octets = batch.reduce(0) { $0 + $1.octets }
        let now = time.now()
        worker.withLock { $0.process(batch, at: now) }
        waiting.subtract(octets, ordering: .relaxed)
    }

    /// Everything that waits, on the caller's thread. Only with `Threading.manual`.
    package func pump() {
        while let batch = mailbox.take(limit: 256, timeoutNanoseconds: 0), !batch.isEmpty { process(batch) }
    }

    /// The sync of outcome logs. Only with `Threading.manual`.
    package func tick() { worker.withLock { $0.tick(at: time.now()) } }

    private func offer(_ work: Work) {
        let octets = work.octets
        let now = waiting.add(octets, ordering: .relaxed).newValue
        if now <= CopyLimits.waitingOctets, mailbox.offer(CollectionOfOne(work)) { return }
        waiting.subtract(octets, ordering: .relaxed)
        work.refuse()
    }

    // MARK: CopyKeeping

    package func create(_ id: SegmentID, reserve: Int64, done: @escaping @Sendable (CopyCreation) -> Void) {
        offer(.create(id, reserve, done))
    }

    package func append(
        _ id: SegmentID, at offset: Int64, _ chunk: ByteBuffer, done: @escaping @Sendable (CopyAppend) -> Void
    ) {
        offer(.append(id, offset, chunk, done))
    }

    package func recordOutcomes(
        _ id: SegmentID, epoch: UInt64, from offset: Int64, _ octets: ByteBuffer,
        done: @escaping @Sendable (CopyLog) -> Void
    ) {
        offer(.record(id, epoch, offset, octets, done))
    }

    package func seal(_ id: SegmentID, epoch: UInt64, done: @escaping @Sendable (CopySeal) -> Void) {
        offer(.seal(id, epoch, done))
    }

    package func read(
        _ id: SegmentID, _ content: CopyContent, from offset: Int64, atMost: Int,
        done: @escaping @Sendable (CopyRead) -> Void
    ) {
        offer(.read(id, content, offset, min(atMost, CopyLimits.readOctets), done))
    }

    package func restore(
        _ id: SegmentID, _ purpose: RestorePurpose, at offset: Int64, _ octets: ByteBuffer,
        done: @escaping @Sendable (Bool) -> Void
    ) {
        offer(.restore(id, purpose, offset, octets, done))
    }

    package func mend(_ chunk: DamagedChunk, _ octets: ByteBuffer, done: @escaping @Sendable (CopyMend) -> Void) {
        offer(.mend(chunk, octets, done))
    }

    package func unlink(_ id: SegmentID, done: @escaping @Sendable (Bool) -> Void) { offer(.unlink(id, done)) }

    package func unlinkIfEmpty(_ id: SegmentID) { offer(.unlinkIfEmpty(id)) }

    package func inventory(done: @escaping @Sendable ([SegmentID]) -> Void) { offer(.inventory(done)) }
}
