// What goes between a node's state and its disk, its peers and the control plane. Every request is echoed with its result.
import BatonCore
import BatonSpool

/// Disk work of a node, performed in the order of the actions.
package enum DiskOperation: Hashable, Sendable {
    /// Create, fsync the file, fsync its directory (A4).
    case create(SegmentID)
    /// As `create`, in place of a file that is gone or for a joining member: marked as rebuilt until `whole`.
    case recreate(SegmentID)
    /// Durably takes the mark off: data and outcomes are all here.
    case whole(SegmentID)
    case write(Chunk)
    /// fdatasync; afterwards everything before `upTo` is durable.
    case sync(SegmentID, upTo: Int64)
    /// Durable when done, and everything in the file with it.
    case seal(SegmentID, epoch: UInt64)
    /// Appends to the outcome log, unsynced: records `from...` of the log of `epoch`.
    case outcomes(SegmentID, epoch: UInt64, from: Int, [JobOutcome])
    /// Makes `count` records of the log of `epoch` durable.
    case syncOutcomes(SegmentID, epoch: UInt64, count: Int)
    case scan(SegmentID)
    /// Durable when done.
    case cut(SegmentID, at: Int64)
    /// Puts chunks of another copy in place; durable when done.
    case repair(SegmentID, [Chunk])
    case unlink(SegmentID)
}

package enum DiskResult: Hashable, Sendable {
    case done
    case scanned(CopyScan?)
    /// No space: nothing of it counts, though some bytes may stand there.
    case full
    /// The device failed; never retried.
    case failed
}

package enum ControlRequest: Hashable, Sendable {
    /// Puts the node's key with a fresh lease.
    case register
    case keepAlive
    case list
    case read(SegmentID)
    /// Stores the key if the stored revision is `key.revision` and the condition holds.
    case store(ClusterKey, Condition)
    case remove(ClusterKey)

    package enum Condition: Hashable, Sendable {
        case none
        /// The node's key is there with this very incarnation.
        case registered(Drainer)
        /// The node's key is absent or of another incarnation.
        case gone(Drainer)
    }
}

package enum ControlAnswer: Hashable, Sendable {
    case done
    /// The lease is gone.
    case leaseLost
    case listed(Listing)
    case key(ClusterKey?)
    case committed(ClusterKey?)
    /// Nothing was changed: what is there now, and whether the revision was right but the condition was not.
    case refused(ClusterKey?, condition: Bool)
    /// No answer in time: done, not done, or still to be done.
    case unknown
}

/// One peer frame. Every frame that touches a segment names it and an epoch.
package enum Frame: Hashable, Sendable {
    case create(SegmentID)
    case created(SegmentID)
    case append(Chunk)
    case durable(SegmentID, upTo: Int64)
    /// The segment is sealed here at `epoch`: the sender's epoch is over.
    case sealed(SegmentID, epoch: UInt64)
    case outcomes(SegmentID, epoch: UInt64, from: Int, [JobOutcome])
    /// Two offsets (P4): in memory, and synced.
    case outcomeAck(SegmentID, epoch: UInt64, memory: Int, synced: Int)
    /// Asks for promises; `sentAt` is the asker's clock and comes back.
    case askPromise([PromiseItem], sentAt: Instant)
    case promise([PromiseItem], sentAt: Instant)
    /// A taker seals this copy and asks what is in it (takeover steps 2 and 3).
    case report(SegmentID, epoch: UInt64)
    case reported(SegmentID, epoch: UInt64, CopyReport)
    case fetch(SegmentID, epoch: UInt64, from: Int64)
    /// Chunks for a copy that lacks them; for a joining member all of them (C1).
    case chunks(SegmentID, epoch: UInt64, [Chunk])
    /// To a rebuilt copy: it has everything once `count` outcomes of this epoch are synced there.
    case whole(SegmentID, epoch: UInt64, count: Int)
    /// A final outcome of an earlier drain epoch (T5).
    case late(SegmentID, [JobOutcome])
    /// The segment is finished: has your file gone? (C3)
    case confirm(SegmentID)
    case unlinked(SegmentID)
    case submit(MailRecord, SubmitKey, receiver: Incarnation)
    case submitted(SubmitKey, SubmitAnswer)
    case ask(SubmitKey, receiver: Drainer)
    /// With the segments of the receiver that the answerer has scanned as their drainer (S5).
    case answer(SubmitKey, SubmitAnswer, covers: [SegmentID])
}

package struct PromiseItem: Hashable, Sendable {
    package let segment: SegmentID
    package let epoch: UInt64

    package init(segment: SegmentID, epoch: UInt64) {
        self.segment = segment
        self.epoch = epoch
    }
}

package struct CopyReport: Hashable, Sendable {
    package let end: Int64
    package let tailInvalid: Bool
    package let outcomes: [JobOutcome]
    /// The file is gone, or was made anew and lacks something still: its outcomes are not all that there were.
    package let rebuilt: Bool

    /// Nothing is there although there should be.
    package var isMissing: Bool { rebuilt && end == 0 && outcomes.isEmpty }

    package static let missing = CopyReport(end: 0, tailInvalid: true, outcomes: [], rebuilt: true)

    package init(end: Int64, tailInvalid: Bool, outcomes: [JobOutcome], rebuilt: Bool) {
        self.end = end
        self.tailInvalid = tailInvalid
        self.outcomes = outcomes
        self.rebuilt = rebuilt
    }
}

package enum SubmitAnswer: Hashable, Sendable {
    case have
    /// Does not have it, and refuses it from now on (S1).
    case no
    /// Written, not yet acknowledged (S3).
    case pending
    /// Cannot tell (S4, S5).
    case unknown
}

/// Lengths of time and bounds of the state. The defaults are production's; the simulator shrinks some.
package struct ClusterTiming: Hashable, Sendable {
    package var copies = 2
    package var keepAlive = TimeSpan.seconds(1)
    /// T4: every key is listed at least this often.
    package var list = TimeSpan.seconds(10)
    /// A promise's length, counted by its giver from its giving.
    package var promise = TimeSpan.seconds(2)
    /// What the asker counts on, from its asking: the length less a quarter, for clocks that run unevenly.
    package var promiseTrusted = TimeSpan.milliseconds(1500)
    package var promiseRenewal = TimeSpan.milliseconds(500)
    /// A member without a promise for so long is marked stale when there is something to send.
    package var silence = TimeSpan.milliseconds(1000)
    /// A chunk without DURABLE for so long: the backup is replaced.
    package var appendDeadline = TimeSpan.milliseconds(800)
    package var retransmit = TimeSpan.milliseconds(250)
    /// An unacknowledged message is answered 451 after so long.
    package var replyDeadline = TimeSpan.seconds(5)
    package var outcomeSync = TimeSpan.milliseconds(700)
    /// T6: others than the old owner wait so long before they claim.
    package var ownerFirst = TimeSpan.seconds(2)
    package var retry = TimeSpan.seconds(2)
    package var recopyAfter = TimeSpan.seconds(1)
    package var submitDeadline = TimeSpan.seconds(1)
    /// The ingress node's own copy waits so long for an answer about the other.
    package var hold = TimeSpan.seconds(15)
    /// S7: longer than `hold`, plus every delay of a question on its way.
    package var remember = TimeSpan.seconds(40)
    package var cleanAfter = TimeSpan.seconds(20)
    package var segmentRecords: Int64 = 12
    package var chunkRecords = 4
    package var chunksInFlight = 4
    /// P5: dots without a settled outcome, of the node.
    package var window = 4
    /// Mail without a segment to go to; beyond it 451.
    package var waitingRecords = 64

    package init() {}
}
