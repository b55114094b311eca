// The lane's writer: forms chunks, writes and syncs them, answers what the append rule allows.
import BatonCore
import BatonModel
import BatonRuntime
import DequeModule
import Logging
import Metrics
import NIOCore
import Synchronization

/// Everything that the writer thread does, as a value behind one mutex, so that tests can drive it without a thread.
///
/// One chunk, one write, one fdatasync; then `ChunkAcknowledger` gives the answers, at once in an ensemble of one. A failed
/// write or fdatasync is never retried: the lane is dead, what was unacknowledged is refused with `.storageFailed`. Only
/// ENOSPC and EDQUOT at the write are survivable: the chunk is refused with `.diskFull`; its place may be written again,
/// since nothing valid can stand there (the header's CRC covers lengths and the whole was never complete).
struct LaneWriter: Sendable {
    let disk: any Disk
    let configuration: SpoolConfiguration
    let shared: LaneShared
    let acknowledger: ChunkAcknowledger
    /// Nil in a lane of a single node.
    let replicator: (any ChunkReplicating)?
    let member: EnsembleMember
    let keeper: ThreadMailbox<KeeperWork>
    let logger: Logger
    let onFailure: @Sendable (SpoolFailure) -> Void

    var open: SegmentFile?
    /// Rolled segments with unfinished streams, oldest first.
    var lingering: [SegmentFile] = []
    var streams: [FragmentStreamID: FragmentStream] = [:]
    private var pending = Deque<LaneWork>()
    private var builder: ChunkBuilder
    private var items: [ChunkItem] = []
    var results = ResultGroups()

    init(
        disk: any Disk, configuration: SpoolConfiguration, shared: LaneShared, acknowledger: ChunkAcknowledger,
        replicator: (any ChunkReplicating)?, member: EnsembleMember, keeper: ThreadMailbox<KeeperWork>, logger: Logger,
        onFailure: @escaping @Sendable (SpoolFailure) -> Void
    ) {
        self.disk = disk
        self.configuration = configuration
        self.shared = shared
        self.acknowledger = acknowledger
        self.replicator = replicator
        self.member = member
        self.keeper = keeper
        self.logger = logger
        self.onFailure = onFailure
        self.builder = ChunkBuilder(compression: CompressionPolicy(configuration.compression))
    }

    // MARK: The thread's verbs

    /// Nanoseconds until the open segment is to be rolled by age; nil when nothing is to be waited for.
    func rollTimeout(at now: Instant) -> Int64? {
        guard let first = open?.firstChunkAt else { return nil }
        return max(1_000_000, ((first + configuration.segmentAge) - now).nanoseconds)
    }

    /// Writes all of the batch, chunk by chunk, and answers it.
    mutating func process(_ batch: [LaneWork], at now: Instant) {
        var bytes = 0
        for work in batch {
            bytes += work.bytes
            pending.append(work)
        }
        rollIfDue(at: now)
        while !pending.isEmpty { formChunk(at: now) }
        results.deliver()
        if bytes > 0 { shared.waitingBytes.subtract(bytes, ordering: .relaxed) }
    }

    /// The last act: streams are lost, segments are given to the keeper to be sealed.
    mutating func finish(at now: Instant) {
        for (id, stream) in streams where !stream.failed { refuse(id, .stopping) }
        streams.removeAll()
        results.deliver()
        for segment in lingering { retire(segment, at: now) }
        lingering.removeAll()
        if let open { retire(open, at: now) }
        open = nil
        acknowledger.finish()
    }

    // MARK: Forming a chunk

    private mutating func formChunk(at now: Instant) {
        guard !shared.dead.load(ordering: .relaxed) else { return refuseAll(.storageFailed) }
        if open == nil { roll(at: now) }
        // A start on a full disk has no segment yet, nor one without a backup.
        guard open != nil else {
            let isFull = replicator == nil || shared.diskFull.load(ordering: .relaxed)
            return refuseAll(isFull ? .diskFull : .noCopies)
        }
        leaveIfClosed(at: now)
        builder.begin()
        items.removeAll(keepingCapacity: true)
        var target: UInt32?
        let before = pending.count
        while let work = pending.first {
            guard admit(work, to: &target, at: now) else { break }
            pending.removeFirst()
        }
        guard !builder.isEmpty, let target else {
            // Work that no chunk can take must not stop the thread.
            if pending.count == before { refuseAll(.storageFailed) }
            return
        }
        commit(to: target, at: now)
    }

    /// Adds one piece of work to the chunk; false leaves it for the next chunk.
    private mutating func admit(_ work: LaneWork, to target: inout UInt32?, at now: Instant) -> Bool {
        switch work {
        case .open(let id, let sink):
            streams[id] = FragmentStream(sink: sink)
            return true
        case .abandon(let id):
            close(stream: id, at: now)
            return true
        case .fragment(let id, let bytes):
            guard let stream = streams[id], !stream.failed else { return true }
            guard bind(id, bytes.readableBytes, &target, at: now) else { return false }
            streams[id]?.fragments += 1
            streams[id]?.length += bytes.readableBytes
            streams[id]?.crc = bytes.withUnsafeReadableBytes { CRC32C.of($0, seed: stream.crc) }
            builder.addFragment(id, index: stream.fragments, body: bytes)
            return true
        case .submission(let submission):
            switch submission.body {
            case .whole(let body):
                guard enter(&target, size: body.readableBytes + 512, at: now) else { return false }
                guard builder.addMessage(submission.envelope, body: body) else {
                    // Not what the ingress says it is: memory went wrong somewhere. Refused, never stored.
                    refuse(submission, .storageFailed)
                    return true
                }
                items.append(.submission(submission))
                return true
            case .fragments(let id): return admitCommit(submission, of: id, to: &target, at: now)
            }
        case .leave:
            // Done where the chunk was begun.
            return true
        case .moved(let message):
            return admitMoved(message, to: &target, at: now)
        }
    }

    private mutating func admitMoved(_ message: MovedMessage, to target: inout UInt32?, at now: Instant) -> Bool {
        func isElsewhere() -> Bool { message.target.map { $0 != open?.id } ?? false }
        if !isElsewhere() {
            guard enter(&target, size: message.body.readableBytes + 512, at: now) else { return false }
        }
        // Perhaps that was rolled a moment ago.
        if isElsewhere() || !builder.addMessage(message.envelope, body: message.body, moved: message.from) {
            message.batch.fail()
        } else {
            items.append(.moved(message))
        }
        return true
    }

    private mutating func admitCommit(
        _ submission: Submission, of id: FragmentStreamID, to target: inout UInt32?, at now: Instant
    ) -> Bool {
        guard let stream = streams[id], !stream.failed else {
            refuse(submission, streams[id]?.refusal ?? .storageFailed)
            close(stream: id, at: now)
            return true
        }
        // Its fragments' places are known once their chunk is written.
        guard stream.fragments == UInt32(stream.extents.count) else { return false }
        let traits = submission.envelope.traits
        guard stream.length == traits.length, stream.crc == traits.crc32c,
            stream.extents.count <= SpoolLimits.fragmentsPerMessage
        else {
            refuse(submission, .storageFailed)
            close(stream: id, at: now)
            return true
        }
        guard bind(id, 512, &target, at: now) else { return false }
        guard builder.addCommit(submission.envelope, extents: stream.extents) else {
            refuse(submission, .storageFailed)
            close(stream: id, at: now)
            return true
        }
        items.append(.submission(submission))
        return true
    }

    /// Whether the chunk may take `size` more bytes for the open segment; rolls where it would overflow.
    private mutating func enter(_ target: inout UInt32?, size: Int, at now: Instant) -> Bool {
        if target == nil, let segment = open, segment.offset > 0,
            segment.offset + Int64(size) > Int64(configuration.segmentSize)
        {
            roll(at: now)
        }
        guard let segment = open else { return false }
        return fits(segment, target: &target, size: size)
    }

    /// As `enter`, for the segment that the stream is bound to; binds it if it is not yet.
    private mutating func bind(
        _ id: FragmentStreamID, _ size: Int, _ target: inout UInt32?, at now: Instant
    ) -> Bool {
        if let handle = streams[id]?.segment {
            guard let segment = segment(handle) else { return false }
            return fits(segment, target: &target, size: size)
        }
        guard enter(&target, size: size, at: now), let handle = target else { return false }
        streams[id]?.segment = handle
        if open?.handle == handle { open?.streams += 1 }
        return true
    }

    private func fits(_ segment: SegmentFile, target: inout UInt32?, size: Int) -> Bool {
        guard let chosen = target else {
            target = segment.handle
            return true
        }
        guard chosen == segment.handle else { return false }
        if builder.isEmpty { return true }
        guard builder.bytes + size <= Limits.chunkBytes, items.count < Limits.chunkMessages else { return false }
        return segment.offset + Int64(builder.bytes + size) <= Int64(configuration.segmentSize)
            || segment.offset == 0
    }

    private func segment(_ handle: UInt32) -> SegmentFile? {
        if let open, open.handle == handle { return open }
        return lingering.first { $0.handle == handle }
    }

    // MARK: Committing a chunk

    private mutating func commit(to handle: UInt32, at now: Instant) {
        guard var segment = segment(handle) else { return }
        guard segment.offset < SpoolLimits.segmentBytesMax else { return refuseChunk(.overloaded) }
        let (acked, open) = shared.state.withLock { ($0.acked(segment.id), $0.acknowledges(segment.id)) }
        // A backup is gone and there is no next segment yet: the answer could only be "unknown".
        guard open else { return refuseChunk(replicator == nil ? .storageFailed : .noCopies) }
        let header = builder.finish(
            segment: segment.id, appendEpoch: segment.appendEpoch, offset: segment.offset, ackedOffset: acked,
            number: segment.chunks, firstMessage: segment.messages, previousHeaderCRC: segment.lastHeaderCRC, at: now)
        let headerCRC = builder.seal(header)
        do throws(DiskError) {
            try builder.chunk.writeAll(to: segment.file, at: segment.offset, on: disk)
        } catch {
            if error.errno == DiskError.noSpace || error.errno == DiskError.quota {
                shared.diskFull.store(true, ordering: .relaxed)
                logger.warning("spool: no space for a chunk", metadata: ["segment": "\(SegmentName(segment.id))"])
                return refuseChunk(.diskFull)
            }
            return die(error, segment, at: now)
        }
        acknowledger.park(
            WrittenChunk(
                segment: segment.id, handle: segment.handle, start: header.offset, end: header.end,
                firstMessage: header.firstMessage, messages: header.messages, items: items, placed: builder.placed))
        let commits = items
        items.removeAll(keepingCapacity: true)
        // Behind the write: a chunk that found no room here must not stand elsewhere in the place of the next one.
        replicator?.send(builder.chunk, of: segment.id, at: header.offset, acked: acked)
        do throws(DiskError) {
            if configuration.sync { try disk.sync(segment.file) }
        } catch {
            return die(error, segment, at: now)
        }
        segment.offset = header.end
        segment.messages += header.messages
        segment.chunks += 1
        segment.lastHeaderCRC = headerCRC
        if segment.firstChunkAt == nil { segment.firstChunkAt = now }
        store(segment)
        // Before a stream is closed, whose segment may then be sealed.
        acknowledger.report(
            [.appended(segment.id, end: header.end), .durable(segment.id, member, upTo: header.end)], at: now)
        settleFragments(commits, at: now)
    }

    /// Fragments are written and need no memory any more, which is no promise; the streams committed by this chunk are over.
    private mutating func settleFragments(_ commits: [ChunkItem], at now: Instant) {
        for (id, extent) in builder.fragments {
            streams[id]?.written(extent)
            guard let stream = streams[id], !stream.failed else { continue }
            results.add(FragmentResult(stream: id, written: stream.stored, refusal: nil), to: stream.sink)
        }
        for case .submission(let submission) in commits {
            if case .fragments(let id) = submission.body { close(stream: id, at: now) }
        }
        results.deliver()
    }

    mutating func store(_ segment: SegmentFile) {
        if open?.handle == segment.handle {
            open = segment
        } else if let index = lingering.firstIndex(where: { $0.handle == segment.handle }) {
            lingering[index] = segment
        }
    }

    // MARK: Refusing

    /// The chunk just formed was not stored.
    private mutating func refuseChunk(_ reason: SubmissionRefusal) {
        for item in items {
            switch item {
            case .submission(let submission):
                refuse(submission, reason)
                if case .fragments(let id) = submission.body { close(stream: id, at: .epoch) }
            case .moved(let message): message.batch.fail()
            }
        }
        for (id, _) in builder.fragments { refuse(id, reason) }
        items.removeAll(keepingCapacity: true)
        results.deliver()
    }

    private mutating func refuseAll(_ reason: SubmissionRefusal) {
        for work in pending {
            switch work {
            case .submission(let submission): refuse(submission, reason)
            case .open(let id, let sink):
                streams[id] = FragmentStream(sink: sink)
                refuse(id, reason)
            case .fragment(let id, _): refuse(id, reason)
            case .abandon(let id): streams[id] = nil
            case .moved(let message): message.batch.fail()
            case .leave: break
            }
        }
        pending.removeAll()
    }

    private mutating func refuse(_ submission: Submission, _ reason: SubmissionRefusal) {
        results.add(SubmissionResult(token: submission.token, outcome: .refused(reason)), to: submission.sink)
    }

    /// The disk failed under us: the result of this chunk is unknown and is not asked for again.
    private mutating func die(_ error: DiskError, _ segment: SegmentFile, at now: Instant) {
        shared.dead.store(true, ordering: .relaxed)
        logger.critical(
            "spool: the lane is dead; no mail is accepted until the disk is replaced and the node restarted",
            metadata: ["call": "\(error.call)", "errno": "\(error.errno)", "segment": "\(SegmentName(segment.id))"])
        // The operator is told before the clients are.
        acknowledger.report([.failed(segment.id)], at: now)
        acknowledger.metrics.failures.increment()
        refuseChunk(.storageFailed)
        for (id, stream) in streams where !stream.failed { refuse(id, .storageFailed) }
        refuseAll(.storageFailed)
        results.deliver()
        onFailure(.laneDead(error))
    }
}
