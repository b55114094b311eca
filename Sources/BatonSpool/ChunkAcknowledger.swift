// Written chunks until the append rule lets them go: the only place that says `durable`.
import BatonCore
import BatonModel
import BatonRuntime
import DequeModule
import Metrics
import NIOCore
import Synchronization

/// What a message of a chunk turns into once it is acknowledged.
enum ChunkItem: Sendable {
    case submission(Submission)
    case moved(MovedMessage)
}

/// A chunk that stands on the local disk, or is about to be synced there.
struct WrittenChunk: Sendable {
    let segment: SegmentID
    let handle: UInt32
    let start: Int64
    let end: Int64
    let firstMessage: UInt32
    let messages: UInt32
    let items: [ChunkItem]
    let placed: [PlacedMessage]

    /// Bytes of bodies that wait, counted against `SpoolLimits.waitingBytes`.
    var bytes: Int {
        items.reduce(0) { sum, item in
            switch item {
            case .submission(let submission): sum + LaneWork.submission(submission).bytes
            case .moved(let message): sum + message.body.readableBytes
            }
        }
    }
}

/// Performs what `LaneState` decides. Called by whoever brought the news: the writer's thread for the local disk, the peer loop
/// for a backup, so that an ack from a backup never waits for the next local fdatasync. Nothing here blocks.
///
/// Chunks of a segment leave in the order of their offsets, under one lock, so that the ledger counts as the segment does.
final class ChunkAcknowledger: Sendable {
    private struct State: Sendable {
        /// In the order of writing; segments mixed.
        var waiting = Deque<WrittenChunk>()
        /// Rolled segments whose seal waits for chunks, and seals that wait for their segment to be rolled.
        var rolled: [SegmentID: (handle: UInt32, file: DiskFile)] = [:]
        var seals: [SegmentID: Int64] = [:]
        var results = ResultGroups()
    }

    private let state = Mutex(State())
    private let shared: LaneShared
    private let ledger: SegmentLedger
    private let jobs: any JobReceiving
    private let keeper: ThreadMailbox<KeeperWork>
    let metrics = LaneMetrics()

    init(shared: LaneShared, ledger: SegmentLedger, jobs: any JobReceiving, keeper: ThreadMailbox<KeeperWork>) {
        self.shared = shared
        self.ledger = ledger
        self.jobs = jobs
        self.keeper = keeper
    }

    /// Before the chunk is reported as appended.
    func park(_ chunk: WrittenChunk) {
        shared.waitingBytes.add(chunk.bytes, ordering: .relaxed)
        state.withLock { $0.waiting.append(chunk) }
    }

    /// Reports to the append rule and performs its answer.
    func report(_ events: [LaneState.Event], at now: Instant) {
        var actions = ActionBuffer<LaneState.Action>()
        shared.state.withLock { state in
            for event in events { state.receive(event, at: now, into: &actions) }
        }
        if !actions.isEmpty { perform(actions.actions) }
    }

    /// Nothing is appended to the segment any more; its file goes to the keeper with the seal.
    func roll(_ segment: SegmentFile, at now: Instant) {
        state.withLock { $0.rolled[segment.id] = (segment.handle, segment.file) }
        report([.rolled(segment.id)], at: now)
        state.withLock { state in
            if let end = state.seals.removeValue(forKey: segment.id) { seal(segment.id, at: end, &state) }
            // On a dead lane no seal follows; the next start finds where it ends.
            if shared.dead.load(ordering: .relaxed) { close(segment.id, &state) }
        }
    }

    /// The last act: what no backup has confirmed by now is unknown.
    func finish() {
        state.withLock { state in
            refuse(&state, .storageFailed) { _ in true }
            for id in Array(state.rolled.keys) { close(id, &state) }
        }
    }

    private func perform(_ actions: [LaneState.Action]) {
        state.withLock { state in
            for action in actions {
                switch action {
                case .acknowledge(let id, let upTo): acknowledge(id, upTo: upTo, &state)
                case .refuse(let id, let from):
                    refuse(&state, .storageFailed) { $0.segment == id && $0.start >= from }
                case .storeSeal(let id, let end):
                    if state.rolled[id] == nil { state.seals[id] = end } else { seal(id, at: end, &state) }
                case .laneDead: refuse(&state, .storageFailed) { _ in true }
                }
            }
        }
    }

    private func seal(_ id: SegmentID, at end: Int64, _ state: inout State) {
        guard let (handle, file) = state.rolled.removeValue(forKey: id) else { return }
        keeper.deliver(CollectionOfOne(.seal(id, handle, file, at: end)))
    }

    private func close(_ id: SegmentID, _ state: inout State) {
        guard let (_, file) = state.rolled.removeValue(forKey: id) else { return }
        keeper.deliver(CollectionOfOne(.close(file)))
    }

    // MARK: Answers

    private func acknowledge(_ id: SegmentID, upTo: Int64, _ state: inout State) {
        var left = Deque<WrittenChunk>()
        for chunk in state.waiting {
            if chunk.segment == id, chunk.end <= upTo { acknowledge(chunk, &state) } else { left.append(chunk) }
        }
        state.waiting = left
    }

    private func acknowledge(_ chunk: WrittenChunk, _ state: inout State) {
        let first = ledger.append(chunk.placed, to: chunk.handle, end: chunk.end)
        precondition(first == chunk.firstMessage, "the ledger and the segment count differently")
        var accepted: [AcceptedMessage] = []
        accepted.reserveCapacity(chunk.items.count)
        var record = first
        for item in chunk.items {
            let ref = StoredMessageRef(segment: chunk.handle, record: record)
            record += 1
            switch item {
            case .submission(let submission):
                state.results.add(
                    SubmissionResult(token: submission.token, outcome: .durable(ref)), to: submission.sink)
                accepted.append(accept(submission, ref))
                if case .fragments = submission.body { ledger.update(chunk.handle) { $0.hasFragmented = true } }
            case .moved(let message): land(message, at: ref)
            }
        }
        count(chunk)
        state.results.deliver()
        if !accepted.isEmpty { jobs.receive(accepted) }
        if record > first { ledger.update(chunk.handle) { $0.received = record } }
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

    private func refuse(
        _ state: inout State, _ reason: SubmissionRefusal, where isLost: (WrittenChunk) -> Bool
    ) {
        var left = Deque<WrittenChunk>()
        for chunk in state.waiting {
            guard isLost(chunk) else {
                left.append(chunk)
                continue
            }
            shared.waitingBytes.subtract(chunk.bytes, ordering: .relaxed)
            for item in chunk.items {
                switch item {
                case .submission(let submission):
                    state.results.add(
                        SubmissionResult(token: submission.token, outcome: .refused(reason)), to: submission.sink)
                case .moved(let message): message.batch.fail()
                }
            }
        }
        state.waiting = left
        state.results.deliver()
    }

    private func count(_ chunk: WrittenChunk) {
        let bytes = chunk.end - chunk.start
        shared.waitingBytes.subtract(chunk.bytes, ordering: .relaxed)
        shared.commits.add(1, ordering: .relaxed)
        shared.committedMessages.add(UInt64(chunk.messages), ordering: .relaxed)
        shared.committedBytes.add(UInt64(max(0, bytes)), ordering: .relaxed)
        metrics.commits.increment()
        metrics.messages.increment(by: Int64(chunk.messages))
        metrics.bytes.increment(by: bytes)
    }
}

/// Counters of the lane, made once.
struct LaneMetrics: Sendable {
    let commits = Counter(label: "baton_spool_commits_total")
    let messages = Counter(label: "baton_spool_messages_total")
    let bytes = Counter(label: "baton_spool_written_bytes_total")
    let failures = Counter(label: "baton_spool_failures_total")
}
