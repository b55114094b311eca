// What the spool says about itself: counts for metrics, /health and the banner.
import BatonCore
import BatonModel

/// A cheap snapshot; taken from any thread.
package struct SpoolStats: Sendable {
    /// `spool.sync`; false is said in the banner and in metrics.
    package var syncs = true
    package var segmentsOpen = 0
    package var segmentsSealed = 0
    /// Bytes of all segments, and of those that hold live mail.
    package var bytes: Int64 = 0
    package var liveBytes: Int64 = 0
    package var messages = 0
    package var liveRecipients = 0
    /// Bytes that damage has put aside; above 0 `/health` says degraded.
    package var quarantinedBytes: Int64 = 0
    package var damagedSegments = 0
    /// Damaged chunks that were put right with the octets of another copy.
    package var chunksRepaired: UInt64 = 0
    package var dirtyOutcomeLogs = 0
    package var commits: UInt64 = 0
    package var committedMessages: UInt64 = 0
    package var committedBytes: UInt64 = 0
    package var segmentsReclaimed: UInt64 = 0
    package var segmentsCleaned: UInt64 = 0
    package var laneDead = false
    package var diskFull = false
    package var freeBytes: UInt64 = 0
    package var totalBytes: UInt64 = 0
    /// Free inodes of the data directory's file system.
    package var freeInodes: UInt64 = 0

    package init() {}

    /// Why `/health` says degraded; empty when all is well.
    package var degradedReasons: [String] {
        var reasons: [String] = []
        if laneDead { reasons.append("spool lane is dead after a failed write") }
        if diskFull { reasons.append("disk below spool.min_free") }
        if quarantinedBytes > 0 || damagedSegments > 0 {
            reasons.append("\(quarantinedBytes) bytes of the spool are quarantined in \(damagedSegments) segments")
        }
        return reasons
    }
}

/// What a start found on the disk.
package struct RecoverySummary: Sendable {
    package var segments = 0
    package var emptySegments = 0
    package var messages = 0
    package var liveMessages = 0
    package var liveRecipients = 0
    /// Bytes of chunks that a crash left unfinished; never acknowledged.
    package var tornBytes: Int64 = 0
    package var quarantinedBytes: Int64 = 0
    package var damage: [String] = []

    package init() {}
}

/// An outcome on record whose event may have been lost in a crash.
package struct UnreportedOutcome: Sendable {
    package let envelope: Envelope
    package let outcome: Outcome

    package init(envelope: Envelope, outcome: Outcome) {
        self.envelope = envelope
        self.outcome = outcome
    }
}

/// A message of another node's SUBMIT, not a held one, that recovery found (PROTOCOL S5, S7).
package struct FoundSubmit: Sendable {
    package let mark: SubmitMark
    package let ref: StoredMessageRef
    /// Every recipient has a final outcome.
    package let isFinal: Bool

    package init(mark: SubmitMark, ref: StoredMessageRef, isFinal: Bool) {
        self.mark = mark
        self.ref = ref
        self.isFinal = isFinal
    }
}

/// Gets from recovery what the event log may lack. Events derived again have the ids of the lost ones, so that telling
/// them twice is harmless. Called on the thread of `Spool.start`, in batches, before the messages of the same segment.
package protocol UnreportedReceiving: Sendable {
    /// Outcomes beyond what was known to be synced in the event log. Not only final ones.
    func unreported(outcomes: [UnreportedOutcome])
    /// Messages that are final in all recipients, so that they reach no queue, and whose Reception may be lost.
    func unreported(receptions: [Envelope])
    /// Final outcomes of a former drainer, of recipients that are open here: each is to be recorded, with its event, unless its
    /// recipient is being tried just now (PROTOCOL T5). On the takeover thread.
    func late(outcomes: [UnreportedOutcome])
    /// Every message with a SUBMIT's key, whatever the event log has.
    func found(submits: [FoundSubmit])
}

extension UnreportedReceiving {
    package func found(submits: [FoundSubmit]) {}
}
