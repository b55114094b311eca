// The writer's side: the segments that this incarnation writes, and the mail that waits for one. `LaneState` holds the append rule.
import BatonCore
import BatonModel
import BatonSpool

/// Whom a message's durability is reported to.
enum Origin: Hashable, Sendable {
    case client
    /// A report about a refused recipient; the outcome `bounced` waits for it.
    case report(SegmentID, epoch: UInt64, JobID)
    case submitted(SubmitKey, from: NodeID)
    /// Cleaning of that segment's record at that epoch (C2 ii).
    case moved(SegmentID, epoch: UInt64, index: Int64)
    /// The client has had its 451.
    case abandoned
}

struct Submission: Sendable {
    let mail: MailRecord
    var origin: Origin
    let since: Instant
    /// Its bytes reached a disk or a peer: a failure is "unknown" from then on (S4).
    var touched = false
}

/// A segment of this incarnation that is not sealed yet.
struct WriterSegment: Sendable {
    enum Phase: Sendable {
        /// Members have yet to create their file (A4).
        case creating(missing: [EnsembleMember])
        case registering
        case open
    }

    let ensemble: [EnsembleMember]
    let backups: [EnsembleMember]
    var phase: Phase
    var begunAt: Instant
    var askedAt: Instant
    /// Not acknowledged yet, in order: the chunk, and its messages.
    var chunks: [Chunk] = []
    var unacked: [Submission] = []
    var end: Int64 = 0
    var acked: Int64 = 0
    var waitingSince: Instant?
    var sentAt = Instant.epoch
    /// Where it is to be sealed: decided once (A2).
    var sealAt: Int64?
    var sealSent = false
    /// Takes nothing new; sealed when all is acknowledged.
    var rolled = false

    var takesMail: Bool { sealAt == nil && !sealSent && !rolled }
}

struct AppendRole: Sendable {
    var lane = LaneState()
    var segments = Table<SegmentID, WriterSegment>()
    var waiting: [Submission] = []
    var nextIndex: UInt64 = 0
    /// Registrations of a segment that were applied or may still be. With two of them, one may land after the key is gone.
    var registrations = Table<SegmentID, Int>()
    /// The disk had no room lately: no new mail until then.
    var fullUntil = Instant.epoch
    var dead = false

    /// The segment that takes new mail.
    var current: SegmentID? {
        segments.keys.first { id in
            guard let segment = segments[id], case .open = segment.phase else { return false }
            return segment.takesMail
        }
    }

    /// Segments that take mail or will.
    var usable: Int {
        segments.keys.filter { id in segments[id]?.takesMail ?? false }.count
    }
}
