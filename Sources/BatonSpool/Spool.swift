// The spool's facade: what ingress, queue, delivery and the composition root hold.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import NIOCore
import Synchronization

/// One data directory's spool with one lane. Its engines are values behind mutexes (`LaneWriter`, `OutcomeWriter`, `Keeper`,
/// `SegmentReader`), each run by a thread of its own; with `Threading.manual` a test runs them by `pump`.
package final class Spool: MessageSubmitting, OutcomeRecording, BodyReading, ReplicationReceiving, Sendable {
    package enum Threading: Sendable {
        case dedicated
        /// No threads: `pump` does their work on the caller's. For deterministic tests.
        case manual
    }

    let directory: DataDirectory
    let configuration: SpoolConfiguration
    package let registry: any SegmentRegistry
    package let ledger = SegmentLedger()
    let shared = LaneShared()
    let events: any EventRecording
    let time: any TimeSource
    let logger: Logger
    let onFailure: @Sendable (SpoolFailure) -> Void
    let replicator: (any ChunkReplicating)?
    /// Nil in a single node.
    let cluster: SpoolCluster?
    let threading: Threading
    let writer = Mutex<LaneWriter?>(nil)
    let outcomes: Mutex<OutcomeWriter>
    let keeper: Mutex<Keeper>
    let manualReader: Mutex<SegmentReader>
    let laneMailbox = ThreadMailbox<LaneWork>(capacity: SpoolLimits.waitingItems)
    let outcomeMailbox = ThreadMailbox<Outcome>(capacity: .max)
    let keeperMailbox = ThreadMailbox<KeeperWork>(capacity: .max)
    let readMailbox = ThreadMailbox<ReadWork>(capacity: SpoolLimits.waitingReads)
    let writers = Mutex<[DedicatedThread]>([])
    let others = Mutex<[DedicatedThread]>([])
    let acknowledger = Mutex<ChunkAcknowledger?>(nil)
    /// Whom adopted segments are handed to.
    let receivers = Mutex<Receivers?>(nil)
    /// One segment is adopted at a time.
    let adopting = Mutex(AdoptedSubjects())
    private let recovered: Mutex<Recovered?>
    private let summary: Mutex<RecoverySummary>
    private let stopped = Atomic<Bool>(false)

    /// Reads identity and registry, takes the old incarnations' segments over, scans them, decides cleanings. The lock stays
    /// with `directory`, which the caller closes after `stop`. Blocking; not on a loop. Throws only where the directory cannot
    /// be written: damage is served around and stands in `recovery`.
    package static func open(
        directory: DataDirectory, configuration: SpoolConfiguration, events: any EventRecording, time: any TimeSource,
        logger: Logger, threading: Threading = .dedicated, replicator: (any ChunkReplicating)? = nil,
        cluster: SpoolCluster? = nil, onFailure: @escaping @Sendable (SpoolFailure) -> Void
    ) throws(SpoolError) -> Spool {
        if let cluster {
            for note in directory.notes { logger.error("spool: \(note)") }
            return try Spool(
                directory: directory, configuration: configuration, registry: cluster.registry, events: events,
                time: time, logger: logger, threading: threading, replicator: cluster.replicator, cluster: cluster,
                onFailure: onFailure, notes: directory.notes)
        }
        let registry = try LocalSegmentRegistry.open(directory)
        for note in directory.notes { logger.error("spool: \(note)") }
        if registry.wasDamaged { logger.error("spool: the registry was damaged: segments are adopted from the disk") }
        return try Spool(
            directory: directory, configuration: configuration, registry: registry, events: events, time: time,
            logger: logger, threading: threading, replicator: replicator, cluster: nil, onFailure: onFailure,
            notes: directory.notes + (registry.wasDamaged ? ["registry was damaged"] : []))
    }

    private init(
        directory: DataDirectory, configuration: SpoolConfiguration, registry: any SegmentRegistry,
        events: any EventRecording, time: any TimeSource, logger: Logger, threading: Threading,
        replicator: (any ChunkReplicating)?, cluster: SpoolCluster?,
        onFailure: @escaping @Sendable (SpoolFailure) -> Void, notes: [String]
    ) throws(SpoolError) {
        var recovery = Recovery(
            directory: directory, registry: registry, ledger: ledger, logger: logger, now: time.now())
        // In a cluster every old segment, own ones too, is adopted when its key names this node.
        var found = cluster == nil ? try recovery.run() : try recovery.spares()
        found.summary.damage = notes + found.summary.damage
        self.directory = directory
        self.configuration = configuration
        self.registry = registry
        self.events = events
        self.time = time
        self.logger = logger
        self.onFailure = onFailure
        self.threading = threading
        self.replicator = replicator
        self.cluster = cluster
        var outcomes = OutcomeWriter(
            disk: directory.disk, directory: directory, configuration: configuration, ledger: ledger, events: events,
            logger: logger, onFailure: onFailure)
        outcomes.logs = found.logs
        outcomes.epochs = found.epochs
        outcomes.news = cluster?.news
        self.outcomes = Mutex(outcomes)
        self.keeper = Mutex(
            Keeper(
                directory: directory, configuration: configuration, registry: registry, shared: shared, ledger: ledger,
                spares: found.spares, replicator: replicator, news: cluster?.news, logger: logger))
        self.manualReader = Mutex(SegmentReader(disk: directory.disk, directory: directory.segmentsPath))
        self.summary = Mutex(found.summary)
        self.recovered = Mutex(found)
    }

    /// What the start found. Live counts are there after `start`.
    package var recovery: RecoverySummary { summary.withLock { $0 } }

    /// Hands over what survived (missing events to `unreported`, messages to `jobs`, in batches on the calling thread), then
    /// opens the lane and starts the threads. Once. Blocking; not on a loop. Submissions before it are refused. Events that
    /// `unreported` and `jobs` are to record must be recorded when they return.
    package func start(jobs: any JobReceiving, unreported: any UnreportedReceiving) throws(SpoolError) {
        let found = recovered.withLock { recovered in
            defer { recovered = nil }
            return recovered
        }
        guard let found else { return }
        let now = time.now()
        receivers.withLock { $0 = Receivers(jobs: jobs, unreported: unreported) }
        settleMoves(found, at: now)
        var stream = RecoveryStream(
            disk: directory.disk, path: directory.segmentsPath, ledger: ledger, jobs: jobs, unreported: unreported,
            now: now)
        stream.hand(over: found, outcomes: outcomes)
        let (messages, recipients, damage) = (stream.liveMessages, stream.liveRecipients, stream.damage)
        for note in damage { logger.error("spool: \(note)") }
        summary.withLock {
            $0.damage += damage
            $0.liveMessages = messages
            $0.liveRecipients = recipients
        }
        try openLane(jobs, at: now)
        shared.stopping.store(false, ordering: .releasing)
        if threading == .dedicated { startThreads() }
    }

    /// Decisions about moved messages first, durably; then finished segments may go, their keys last (PROTOCOL C2, C3).
    private func settleMoves(_ found: Recovered, at now: Instant) {
        let safe = outcomes.withLock { writer in
            for decision in found.decisions {
                writer.append(
                    .heldDecision(
                        source: decision.source, drainEpoch: decision.drainEpoch, alive: decision.alive),
                    to: decision.target)
            }
            writer.flush(at: now)
            writer.sync()
            return found.decisions.allSatisfy { writer.logs[$0.target]?.isClean ?? false }
        }
        guard safe else {
            // Were a source's key gone before its target says "void", the copies would count: it stays until a start can say so.
            for decision in found.decisions where !decision.alive {
                if let handle = ledger.handle(of: decision.source) { ledger.update(handle) { $0.closing = true } }
            }
            return
        }
        for key in found.finished {
            do throws(SpoolError) {
                let result: Result<Void, SpoolError> = keeper.withLock { keeper in
                    do throws(SpoolError) {
                        try keeper.removeFiles(of: SegmentName(key.id))
                        return .success(())
                    } catch {
                        return .failure(error)
                    }
                }
                try result.get()
                _ = try registry.remove(key)
            } catch {
                logger.error("spool: a finished segment cannot be removed", metadata: ["error": "\(error)"])
            }
        }
    }

    private func openLane(_ jobs: any JobReceiving, at now: Instant) throws(SpoolError) {
        let result: Result<SegmentFile?, SpoolError> = keeper.withLock { keeper in
            keeper.watchSpace()
            do throws(SpoolError) {
                return .success(try keeper.prepare(at: now))
            } catch {
                guard let errno = error.underlying?.errno, errno == ENOSPC || errno == EDQUOT else {
                    // A node of a cluster waits for its control plane and its backups; 451 meanwhile.
                    return cluster == nil ? .failure(error) : .success(nil)
                }
                // A full disk still delivers what is queued; the lane opens when there is room.
                shared.diskFull.store(true, ordering: .relaxed)
                return .success(nil)
            }
        }
        let acknowledger = ChunkAcknowledger(shared: shared, ledger: ledger, jobs: jobs, keeper: keeperMailbox)
        var lane = LaneWriter(
            disk: directory.disk, configuration: configuration, shared: shared, acknowledger: acknowledger,
            replicator: replicator,
            member: EnsembleMember(node: directory.identity.node, diskID: directory.identity.diskID),
            keeper: keeperMailbox, logger: logger, onFailure: onFailure)
        lane.open = try result.get()
        if cluster != nil { shared.mayAppend.store(lane.open != nil, ordering: .relaxed) }
        self.acknowledger.withLock { $0 = acknowledger }
        let made = lane
        writer.withLock { $0 = made }
        keeperMailbox.deliver(CollectionOfOne(.needSegment))
    }

    /// New submissions and streams get `.stopping`; what is queued is still written. Any thread.
    package func stopAccepting() {
        shared.stopping.store(true, ordering: .releasing)
    }

    /// Writes what is queued, seals, syncs outcomes, ends the threads. Blocking; not on a loop. Idempotent.
    package func stop() {
        guard !stopped.exchange(true, ordering: .acquiringAndReleasing) else { return }
        stopAccepting()
        laneMailbox.close()
        for thread in writers.withLock({ $0 }) { thread.join() }
        if threading == .manual { pump() }
        let now = time.now()
        writer.withLock { $0?.finish(at: now) }
        outcomeMailbox.close()
        keeperMailbox.close()
        readMailbox.close()
        for thread in others.withLock({ $0 }) { thread.join() }
        drainOutcomes()
        outcomes.withLock { $0.finish(at: now) }
        drainKeeper()
        if let prepared = shared.take() { try? directory.disk.close(prepared.file) }
        manualReader.withLock { $0.close() }
    }

    // MARK: MessageSubmitting

    /// Any thread; never blocks. Results come on the writer's thread, or at once on the caller's for what is refused here.
    package func submit(_ batch: [Submission]) {
        if let refusal = refusal(of: batch.reduce(0) { $0 + LaneWork.submission($1).bytes }, items: batch) {
            var results = ResultGroups()
            for submission in batch {
                results.add(SubmissionResult(token: submission.token, outcome: .refused(refusal)), to: submission.sink)
            }
            results.deliver()
        }
    }

    /// Nil when the batch was taken.
    private func refusal(of bytes: Int, items: [Submission]) -> SubmissionRefusal? {
        if let refusal = closed { return refusal }
        let waiting = shared.waitingBytes.add(bytes, ordering: .relaxed).newValue
        if waiting <= SpoolLimits.waitingBytes, laneMailbox.offer(items.map { .submission($0) }) { return nil }
        shared.waitingBytes.subtract(bytes, ordering: .relaxed)
        return shared.stopping.load(ordering: .acquiring) ? .stopping : .overloaded
    }

    private var closed: SubmissionRefusal? {
        if shared.stopping.load(ordering: .acquiring) { return .stopping }
        if shared.dead.load(ordering: .relaxed) { return .storageFailed }
        return nil
    }

    package func openStream(sink: any SubmissionResultReceiving) -> FragmentStreamID {
        let id = FragmentStreamID(value: shared.nextStream.add(1, ordering: .relaxed).oldValue)
        if closed != nil || !laneMailbox.deliver(CollectionOfOne(.open(id, sink))) {
            sink.fragmentsWritten([FragmentResult(stream: id, written: 0, refusal: closed ?? .stopping)])
        }
        return id
    }

    /// Bounded by `Limits.unwrittenPerSession` for each stream, so that it is always taken.
    package func append(_ bytes: ByteBuffer, to stream: FragmentStreamID) {
        var rest = bytes
        while rest.readableBytes > 0 {
            guard let piece = rest.readSlice(length: min(rest.readableBytes, Limits.fragmentSize)) else { return }
            shared.waitingBytes.add(piece.readableBytes, ordering: .relaxed)
            if !laneMailbox.deliver(CollectionOfOne(.fragment(stream, piece))) {
                shared.waitingBytes.subtract(piece.readableBytes, ordering: .relaxed)
                return
            }
        }
    }

    package func abandon(_ stream: FragmentStreamID) {
        laneMailbox.deliver(CollectionOfOne(.abandon(stream)))
    }

    package var admission: StorageAdmission {
        if let refusal = closed { return .refused(refusal) }
        if shared.diskFull.load(ordering: .relaxed) || events.isFull { return .refused(.diskFull) }
        if !shared.mayAppend.load(ordering: .relaxed) { return .refused(.noCopies) }
        if shared.waitingBytes.load(ordering: .relaxed) >= SpoolLimits.waitingBytes { return .refused(.overloaded) }
        return .open
    }

    // MARK: ReplicationReceiving

    package func durable(_ segment: SegmentID, on member: EnsembleMember, upTo: Int64) {
        acknowledger.withLock { $0 }?.report([.durable(segment, member, upTo: upTo)], at: time.now())
    }

    package func lost(_ segment: SegmentID, on member: EnsembleMember) {
        let now = time.now()
        let acknowledger = acknowledger.withLock { $0 }
        // First, for the keeper: the append rule does not know a segment whose key is being stored.
        shared.lost.withLock { _ = $0.insert(segment) }
        acknowledger?.report([.lost(segment, member)], at: now)
        // One that was registered ahead is of no use any more: sealed, empty, and another is prepared.
        if let ahead = takePrepared(segment) {
            acknowledger?.roll(ahead, at: now)
            // The open one has its own backups: mail goes on in it.
            keeperMailbox.deliver(CollectionOfOne(.needSegment))
            return
        }
        leave()
    }

    func takePrepared(_ segment: SegmentID) -> SegmentFile? {
        shared.prepared.withLock { slot in
            guard slot?.id == segment else { return nil }
            defer { slot = nil }
            return slot
        }
    }

    /// The writer looks for a segment that can be acknowledged; until it has one no mail is taken.
    func leave() {
        if cluster != nil, shared.prepared.withLock({ $0 == nil }) { shared.mayAppend.store(false, ordering: .relaxed) }
        laneMailbox.deliver(CollectionOfOne(.leave))
    }

    // MARK: OutcomeRecording

    /// Any thread; never blocks. Bounded by the jobs in flight.
    package func record(_ batch: [Outcome]) {
        guard !batch.isEmpty else { return }
        outcomeMailbox.deliver(batch)
    }

    // MARK: BodyReading

    package func read(_ requests: [BodyRead], for receiver: any BodyReadReceiving) {
        let taken = readMailbox.offer(requests.map { .body($0, receiver) })
        if !taken {
            receiver.bodiesRead(
                requests.map { BodyReadResult(token: $0.token, outcome: .failed(errno: EAGAIN)) })
        }
    }

    /// Outcomes on record of a message of a segment that still exists, oldest first; nil if it is unknown or the log cannot be
    /// read. Reads the whole log of the segment on a reader thread: for admin, not for delivery.
    package func history(of message: StoredMessageRef) async -> [Outcome]? {
        await withCheckedContinuation { continuation in
            if !readMailbox.offer(CollectionOfOne(.history(message, continuation))) {
                continuation.resume(returning: nil)
            }
        }
    }
}
