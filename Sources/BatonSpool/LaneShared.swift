// What the lane's threads share: flags, counters, prepared segments, and the work that waits for the writer.
import BatonCore
import BatonModel
import BatonRuntime
import DequeModule
import NIOCore
import Synchronization

/// Work for the writer, in order of arrival.
enum LaneWork: Sendable {
    case submission(Submission)
    case open(FragmentStreamID, any SubmissionResultReceiving)
    case fragment(FragmentStreamID, ByteBuffer)
    case abandon(FragmentStreamID)
    case moved(MovedMessage)
    /// Nothing is acknowledged in the open segment any more: on to the next.
    case leave

    /// Bytes that count against `SpoolLimits.waitingBytes`.
    var bytes: Int {
        switch self {
        case .submission(let submission):
            guard case .whole(let body) = submission.body else { return 0 }
            return body.readableBytes
        case .fragment(_, let bytes): return bytes.readableBytes
        case .moved(let message): return message.body.readableBytes
        case .open, .abandon, .leave: return 0
        }
    }
}

/// A live message on its way from a segment that is being cleaned (PROTOCOL C2).
struct MovedMessage: Sendable {
    let source: StoredMessageRef
    let envelope: Envelope
    let body: ByteBuffer
    let from: MovedFrom
    let batch: MovedBatch
    /// In a cluster: the segment that the source's key names, and no other takes it.
    var target: SegmentID?
}

/// Collects where the messages of one cleaning landed. Each message lands or fails exactly once.
final class MovedBatch: Sendable {
    private let state = Mutex((moves: [StoredMessageRef: StoredMessageRef](), failed: 0))

    func landed(_ old: StoredMessageRef, at new: StoredMessageRef) { state.withLock { $0.moves[old] = new } }
    func fail() { state.withLock { $0.failed += 1 } }
    var result: (moves: [StoredMessageRef: StoredMessageRef], failed: Int) {
        state.withLock { ($0.moves, $0.failed) }
    }
}

/// A registered, empty segment, or the one being written. A value owned by whoever writes it.
struct SegmentFile: Sendable {
    let id: SegmentID
    let handle: UInt32
    let file: DiskFile
    let appendEpoch: UInt64
    var offset: Int64 = 0
    var messages: UInt32 = 0
    var chunks: UInt32 = 0
    var lastHeaderCRC: UInt32 = 0
    /// When its first chunk was written.
    var firstChunkAt: Instant?
    /// Unfinished fragment streams bound to it.
    var streams = 0
}

/// Flags and counters; any thread.
final class LaneShared: Sendable {
    let stopping = Atomic<Bool>(true)
    let dead = Atomic<Bool>(false)
    let diskFull = Atomic<Bool>(false)
    /// There is a segment whose chunks can be acknowledged. Always so in a single node, but on a full disk.
    let mayAppend = Atomic<Bool>(true)
    let waitingBytes = Atomic<Int>(0)
    let nextStream = Atomic<UInt64>(1)
    let commits = Atomic<UInt64>(0)
    let committedMessages = Atomic<UInt64>(0)
    let committedBytes = Atomic<UInt64>(0)
    let segmentsReclaimed = Atomic<UInt64>(0)
    let chunksRepaired = Atomic<UInt64>(0)
    /// Messages known to be damaged; while there are none a read that succeeds looks no further.
    let damagedMessages = Atomic<Int>(0)
    let segmentsCleaned = Atomic<UInt64>(0)
    let freeBytes = Atomic<UInt64>(0)
    let totalBytes = Atomic<UInt64>(0)
    let freeInodes = Atomic<UInt64>(.max)
    /// Registered ahead of need (PROTOCOL A4); at most one waits.
    let prepared = Mutex<SegmentFile?>(nil)
    /// Segments that lost a backup since the keeper began to prepare one; emptied by it each time.
    let lost = Mutex(Set<SegmentID>())
    let state = Mutex(LaneState())

    func take() -> SegmentFile? {
        prepared.withLock { slot in
            defer { slot = nil }
            return slot
        }
    }
}

/// Results of one commit, grouped by the sink that gets them in one call.
struct ResultGroups: Sendable {
    private var groups: [(sink: any SubmissionResultReceiving, results: [SubmissionResult])] = []
    private var fragments: [(sink: any SubmissionResultReceiving, results: [FragmentResult])] = []

    init() {}

    mutating func add(_ result: SubmissionResult, to sink: any SubmissionResultReceiving) {
        // A handful of loops: the one used last is the likely one.
        for index in groups.indices.reversed() where groups[index].sink === sink {
            groups[index].results.append(result)
            return
        }
        groups.append((sink, [result]))
    }

    mutating func add(_ result: FragmentResult, to sink: any SubmissionResultReceiving) {
        for index in fragments.indices.reversed() where fragments[index].sink === sink {
            fragments[index].results.append(result)
            return
        }
        fragments.append((sink, [result]))
    }

    mutating func deliver() {
        for (sink, results) in fragments { sink.fragmentsWritten(results) }
        for (sink, results) in groups { sink.submissionsFinished(results) }
        groups.removeAll(keepingCapacity: true)
        fragments.removeAll(keepingCapacity: true)
    }
}
