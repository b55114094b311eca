// A segment that this node drains, as its key, its copies and its outcome log concern the cluster.
import BatonCore
import BatonModel
import BatonSpool

/// What the drainer knows of one other member.
struct MemberProgress: Hashable, Sendable {
    /// Offsets in this epoch's outcome log (PROTOCOL P4).
    var memory: Int64 = 0
    var synced: Int64 = 0
    /// Handed to the transport up to here.
    var sent: Int64 = 0
    var sentAt: Instant?
    var incarnation: Incarnation?
    /// Dots may go until then, as far as this member is concerned (P1).
    var promiseUntil = Instant.epoch
    /// Since when there has been no promise although one was asked for.
    var silentSince: Instant?
    /// Since when it has not taken an outcome that it lacks.
    var behindSince: Instant?
    /// The first and the last time that it said "failed", without anything else between.
    var failing: Failing?
    var report: MemberReport?
    var reportAskedAt: Instant?
    var outcomesFetched = false
    /// Fetches after the takeover, where it may have drained the segment before (T5).
    var late = LateFetch()

    struct LateFetch: Hashable, Sendable {
        var tries = 0
        var at: Instant?
        var underWay = false
    }

    struct Failing: Hashable, Sendable {
        let first: Instant
        var last: Instant

        init(_ former: Failing?, at now: Instant) {
            first = former?.first ?? now
            last = now
        }

        func lasts(_ span: TimeSpan) -> Bool { last - first >= span }
    }

    /// The length of its valid prefix, once it has said so.
    var end: Int64? {
        switch report {
        case .sealed(let end, _, _): end
        case .missing: 0
        case .superseded, .failed, nil: nil
        }
    }
}

struct DrainedSegment: Hashable, Sendable {
    enum Phase: Hashable, Sendable {
        /// The seal is on its way to the disk (takeover 2).
        case sealing
        /// The other members are asked to seal, and for their outcomes (takeover 3).
        case asking
        /// What the own copy lacks is fetched from another.
        case repairing
        /// n is being committed (takeover 4).
        case fixing
        /// The spool reads it.
        case adopting
        case ready
    }

    let epoch: UInt64
    /// Written by this very incarnation.
    let isWritten: Bool
    /// Who drained it before; nil for own mail.
    let former: Drainer?
    var phase: Phase
    /// Own promises and T3: no dot before.
    var notBefore: Instant
    var own: BatonSpool.CopyReport?
    /// There was no file when it was taken over (A4).
    var fileWasLost = false
    var peers = Table<EnsembleMember, MemberProgress>()
    var logEnd: Int64 = 0
    var logSynced: Int64 = 0
    /// Where the own copy's valid prefix ended when the others were asked for the chunk there.
    var mendTriedAt: Int64?
    /// Nothing is open in it, by the spool's word.
    var drained = false
    /// The shell was told that it has all its copies.
    var wholeSaid = false
    var permitted: Instant?
    var settledSaid: Int64 = 0
    var lostSince: Instant?
    /// Another member has more than was read here: no dot is permitted since, and the segment goes to it.
    var endingSince: Instant?
    /// The own copy cannot be sealed.
    var failing: MemberProgress.Failing?
    var copyUnderWay: EnsembleMember?
    var copiedAt: Instant?
    /// How often the present joiner was given everything, or could not be.
    var copyTries = 0
    /// When replaced members were asked whether their files are gone.
    var askedFormerAt: Instant?
    var retryAt = Instant.epoch
    /// Targets of its cleanings in this epoch. None is taken twice: the copies of both would have the same name.
    var cleanedInto: [SegmentID] = []

    init(epoch: UInt64, isWritten: Bool, former: Drainer?, phase: Phase, notBefore: Instant) {
        self.epoch = epoch
        self.isWritten = isWritten
        self.former = former
        self.phase = phase
        self.notBefore = notBefore
    }
}
