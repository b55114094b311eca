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
/// One chunk, one write, one fdatasync, then the answers: the results to their sinks, the new messages to `jobs`. A failed
/// write or fdatasync is never retried: the lane is dead, what was unacknowledged is refused with `.storageFailed`. Only
/// ENOSPC and EDQUOT at the write are survivable: the chunk is refused with `.diskFull`; its place may be written again,
/// since nothing valid can stand there (the header's CRC covers lengths and the whole was never complete).
struct LaneWriter: Sendable {
    let disk: any Disk
    let configuration: SpoolConfiguration
    let shared: LaneShared
    let ledger: SegmentLedger
    let jobs: any JobReceiving
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
    private var actions = ActionBuffer<LaneState.Action>()
    private let metrics = LaneMetrics()

    /// What a message of the chunk being formed turns into once it is acknowledged.
    private enum ChunkItem: Sendable {
        case submission(Submission)
        case moved(MovedMessage)
    }

    init(
        disk: any Disk, configuration: SpoolConfiguration, shared: LaneShared, ledger: SegmentLedger,
        jobs: any JobReceiving, member: EnsembleMember, keeper: ThreadMailbox<KeeperWork>, logger: Logger,
        onFailure: @escaping @Sendable (SpoolFailure) -> Void
    ) {
        self.disk = disk
        self.configuration = configuration
        self.shared = shared
        self.ledger = ledger
        self.jobs = jobs
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
    }

    // MARK: Forming a chunk

    private mutating func formChunk(at now: Instant) {
        guard !shared.dead.load(ordering: .relaxed) else { return refuseAll(.storageFailed) }
        if open == nil { roll(at: now) }
        // A start on a full disk has no segment yet.
        guard open != nil else { return refuseAll(.diskFull) }
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
        case .moved(let message):
            guard enter(&target, size: message.body.readableBytes + 512, at: now) else { return false }
            if builder.addMessage(message.envelope, body: message.body, moved: message.from) {
                items.append(.moved(message))
            } else {
                message.batch.fail()
            }
            return true
        }
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
        builder.addCommit(submission.envelope, extents: stream.extents)
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
        let acked = shared.state.withLock { $0.acked(segment.id) }
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
        var allowed = false
        shared.state.withLock { state in
            actions.removeAll()
            state.receive(.appended(segment.id, end: header.end), at: now, into: &actions)
            state.receive(.durable(segment.id, member, upTo: header.end), at: now, into: &actions)
        }
        for action in actions.actions where action == .acknowledge(segment.id, upTo: header.end) { allowed = true }
        // In an ensemble of one the local fdatasync is all that is asked; the rule refuses only behind a seal.
        guard allowed else { return refuseChunk(.storageFailed) }
        acknowledge(segment, header, at: now)
    }

    /// The only place that says `durable`: past the fdatasync and the append rule.
    private mutating func acknowledge(_ segment: SegmentFile, _ header: ChunkHeader, at now: Instant) {
        let first = ledger.append(builder.placed, to: segment.handle, end: header.end)
        precondition(first == header.firstMessage, "the ledger and the segment count differently")
        var accepted: [AcceptedMessage] = []
        accepted.reserveCapacity(items.count)
        var record = first
        for item in items {
            let ref = StoredMessageRef(segment: segment.handle, record: record)
            record += 1
            switch item {
            case .submission(let submission):
                results.add(
                    SubmissionResult(token: submission.token, outcome: .durable(ref)), to: submission.sink)
                accepted.append(accept(submission, ref))
                if case .fragments(let id) = submission.body {
                    ledger.update(segment.handle) { $0.hasFragmented = true }
                    close(stream: id, at: now)
                }
            case .moved(let message): land(message, at: ref)
            }
        }
        for (id, extent) in builder.fragments {
            streams[id]?.extents.append(extent)
            guard let stream = streams[id], !stream.failed else { continue }
            results.add(
                FragmentResult(stream: id, written: stream.stored, refusal: nil), to: stream.sink)
        }
        count(header)
        results.deliver()
        if !accepted.isEmpty { jobs.receive(accepted) }
        if record > first { ledger.update(segment.handle) { $0.received = record } }
    }

    private func accept(_ submission: Submission, _ ref: StoredMessageRef) -> AcceptedMessage {
        var body: MessageBody?
        if case .whole(let bytes) = submission.body {
            body = MessageBody(bytes: bytes, traits: submission.envelope.traits)
        }
        return AcceptedMessage(
            ref: ref, envelope: submission.envelope, body: body, progress: nil, receptionRecorded: false)
    }

    private func land(_ message: MovedMessage, at ref: StoredMessageRef) {
        for outcome in message.from.outcomes where outcome.verdict.isFinal {
            _ = ledger.markFinal(ref, recipient: outcome.recipient)
        }
        message.batch.landed(message.source, at: ref)
    }

    private func count(_ header: ChunkHeader) {
        let bytes = header.end - header.offset
        shared.commits.add(1, ordering: .relaxed)
        shared.committedMessages.add(UInt64(header.messages), ordering: .relaxed)
        shared.committedBytes.add(UInt64(max(0, bytes)), ordering: .relaxed)
        metrics.commits.increment()
        metrics.messages.increment(by: Int64(header.messages))
        metrics.bytes.increment(by: bytes)
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
        shared.state.withLock { state in
            actions.removeAll()
            state.receive(.failed(segment.id), at: now, into: &actions)
        }
        logger.critical(
            "spool: the lane is dead; no mail is accepted until the disk is replaced and the node restarted",
            metadata: ["call": "\(error.call)", "errno": "\(error.errno)", "segment": "\(SegmentName(segment.id))"])
        metrics.failures.increment()
        refuseChunk(.storageFailed)
        for (id, stream) in streams where !stream.failed { refuse(id, .storageFailed) }
        refuseAll(.storageFailed)
        results.deliver()
        onFailure(.laneDead(error))
    }
}

/// The writer's counters, made once.
struct LaneMetrics: Sendable {
    let commits = Counter(label: "baton_spool_commits_total")
    let messages = Counter(label: "baton_spool_messages_total")
    let bytes = Counter(label: "baton_spool_written_bytes_total")
    let failures = Counter(label: "baton_spool_failures_total")
}
