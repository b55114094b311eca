// Events, actions and lengths of time of a node's production state: segments by their keys, copies and epochs, without messages.
import BatonCore
import BatonModel
import BatonSpool

/// What another member says of its copy (SEALED).
package enum MemberReport: Hashable, Sendable {
    case sealed(end: Int64, tailInvalid: Bool, outcomeOctets: Int64)
    /// It has no file, or cannot read it: damage, never emptiness.
    case missing
    /// A higher epoch has sealed it.
    case superseded(epoch: UInt64)
    /// It cannot seal, read or store: its disk failed, or is full.
    case failed
}

package enum TakeoverEvent: Hashable, Sendable {
    /// The first event: segments of which something lies on this disk.
    case started(copies: [SegmentID])
    /// The node's key stands in the control plane, under its lease.
    case registered
    /// The lease is gone (PROTOCOL T2).
    case leaseLost
    /// The registry is another one than this run has gone by (docs/decisions/0010).
    case registryChanged
    /// This node has delivered what it could and leaves: it claims nothing more.
    case leaving
    case tick
    /// Somebody's key changed: list soon.
    case hint
    case control(ControlRequest, ControlAnswer)
    /// A session with this run of a node was opened.
    case met(Drainer)
    /// A copy was created for its writer.
    case copyCreated(SegmentID)
    case promiseAsked([PromiseItem], number: UInt64, sentAt: Int64, from: Drainer)
    case promised([PromiseItem], sentAt: Instant, from: Drainer)
    case sealAsked(SegmentID, epoch: UInt64, from: Drainer)
    case reported(SegmentID, epoch: UInt64, MemberReport, from: Drainer)
    case copySealed(SegmentID, epoch: UInt64, CopySeal)
    case outcomesFetched(SegmentID, epoch: UInt64, EnsembleMember, complete: Bool)
    /// What the own copy lacked was fetched, or could not be.
    case repaired(SegmentID, epoch: UInt64, complete: Bool)
    /// The answer to `mend`.
    case mended(SegmentID, epoch: UInt64, ChunkRepair)
    case adopted(SegmentID, epoch: UInt64, success: Bool)
    /// This node's outcome log of the epoch.
    case outcomesAdvanced(SegmentID, epoch: UInt64, end: Int64, synced: Int64)
    case recorded(SegmentID, epoch: UInt64, memory: Int64, synced: Int64, from: Drainer)
    /// A member obeys a higher epoch.
    case superseded(SegmentID, epoch: UInt64)
    /// The spool's keeper registered or sealed an own segment.
    case keyStored(SegmentKey)
    /// Nothing is open in it, everything synced here (C3).
    case drained(SegmentID)
    /// Segments of the spool that a cleaning would make room of, and its open one (C2).
    case cleanable([SegmentID], into: SegmentID)
    /// What was moved stands in the target, on all its members; or not all of it.
    case moved(SegmentID, epoch: UInt64, landed: Bool)
    /// The target's log says what became of the move, up to `end`; nil: not yet.
    case moveSettled(SegmentID, epoch: UInt64, end: Int64?)
    case finishedAsked(SegmentID, from: Drainer)
    case unlinked(SegmentID, gone: Bool)
    /// The answer to `sendLateOutcomes`: how many pieces, from the first on, the drainer's session has taken by now, and whether
    /// those are all.
    case lateOutcomesSent(SegmentID, pieces: Int, all: Bool)
    case unlinkedElsewhere(SegmentID, disk: UInt64, revision: UInt64, from: Drainer)
    /// The joining member was given everything, or could not be.
    case copied(SegmentID, epoch: UInt64, EnsembleMember, complete: Bool)
}

package enum TakeoverAction: Hashable, Sendable {
    case control(ControlRequest)
    case askPromises([PromiseItem], of: NodeID)
    case promise([PromiseItem], number: UInt64, sentAt: Int64, to: NodeID)
    /// Persist the seal of the own copy; answered by `copySealed`.
    case seal(SegmentID, epoch: UInt64)
    case askSeal(SegmentID, epoch: UInt64, of: NodeID)
    case answerSeal(SegmentID, epoch: UInt64, CopySeal, to: NodeID)
    case fetchOutcomes(SegmentID, epoch: UInt64, from: EnsembleMember, octets: Int64)
    /// Fetch chunks `from ..< upTo` of another member into the own copy.
    case repair(SegmentID, epoch: UInt64, from: EnsembleMember, start: Int64, upTo: Int64)
    /// Ask these members, one after another, for the one chunk that begins here, and put it into the own copy; answered by `mended`.
    /// Nothing behind `upTo` is wanted.
    case mend(SegmentID, epoch: UInt64, at: Int64, upTo: Int64, of: [EnsembleMember])
    case adopt(SegmentKey)
    /// Final dots of the segment may go until then; nil: none (PROTOCOL P1). `Instant.distantFuture` without partners.
    case permit(SegmentID, until: Instant?)
    /// Send the outcome log of the epoch from this offset on.
    case sendOutcomes(SegmentID, epoch: UInt64, to: EnsembleMember, from: Int64, upTo: Int64)
    case settled(SegmentID, epoch: UInt64, upTo: Int64)
    /// Send the final outcomes of the own copy, which is about to go, to the segment's drainer (PROTOCOL T5), but for those pieces that
    /// it has; answered by `lateOutcomesSent`.
    case sendLateOutcomes(SegmentID, epoch: UInt64, to: NodeID, after: Int)
    /// Give the joining member the segment's chunks (C1).
    case copy(SegmentKey, to: EnsembleMember)
    /// Copy what is alive in it to the key's target, held for the key's epoch; answered by `moved`.
    case move(SegmentKey)
    /// Write the decision into the target's log; answered by `moveSettled`.
    case settleMove(SegmentID, epoch: UInt64, into: SegmentID, alive: Bool)
    case askFinished(SegmentID, epoch: UInt64, of: NodeID)
    case answerUnlinked(SegmentID, revision: UInt64, to: NodeID)
    /// The file and its logs go, the spool's hold on it too where it has one; answered by `unlinked`.
    case unlink(SegmentID)
    case stopWriting(SegmentID)
    /// A copy without a key whose writer is gone: it may go if there is nothing in it (A4).
    case dropIfEmpty(SegmentID)
    case tookOver(SegmentID, from: Drainer)
    /// A segment taken over has all its copies again, or nothing of it is left to be delivered. Once for each takeover.
    case whole(SegmentID)
    case restart(ClusterState.RestartReason)
}

/// Lengths of time. The defaults are production's (docs/LIMITS.md, "Cluster").
package struct TakeoverTiming: Hashable, Sendable {
    /// T4: every key is listed at least this often.
    package var list = TimeSpan.seconds(10)
    /// After a hint or a refused change.
    package var listSoon = TimeSpan.milliseconds(100)
    /// A promise's length, counted by its giver from its giving.
    package var promise = TimeSpan.seconds(2)
    /// What the asker counts on, from its asking: the length less a quarter, for clocks that run unevenly.
    package var promiseTrusted = TimeSpan.milliseconds(1500)
    package var promiseRenewal = TimeSpan.milliseconds(500)
    /// A partner without a promise for so long is marked stale where there is something to send.
    package var silence = TimeSpan.milliseconds(1000)
    /// So is one that promises, but takes no outcomes.
    package var behind = TimeSpan.seconds(2)
    package var retransmit = TimeSpan.milliseconds(300)
    /// A drainer whose copy is short sends nothing for so long before it hands the segment over: outcomes of open dots arrive.
    package var ending = TimeSpan.seconds(2)
    /// T6: others than the old owner wait so long before they claim, if it is back.
    package var ownerFirst = TimeSpan.seconds(2)
    /// A member is not replaced before it was gone, or its copy failing, for so long. A taker whose own copy fails for so long hands
    /// the segment over to a member that has it.
    package var recopyAfter = TimeSpan.seconds(5)
    package var recopyRetry = TimeSpan.seconds(2)
    /// Who does not have it after so many copies joins no more: its disk may be full.
    package var recopyTries = 3
    package var finishRetry = TimeSpan.milliseconds(500)
    /// A copy that was replaced stays no longer than this, from the first try, because its outcomes reach no drainer (T5).
    package var lateOutcomes = TimeSpan.seconds(10)
    /// Copies whose outcomes are told, and fetches from former drainers that are back, under way at a time, each; and how often the
    /// latter are tried, `recopyRetry` apart.
    package var lateUnderWay = 4
    package var lateTries = 3
    /// Takeovers under way at a time: each reads a segment.
    package var takeovers = 4
    /// Copies under way at a time.
    package var copies = 1
    /// A cleaning that is not committed by then is given up: its source's mail waits meanwhile.
    package var cleaning = TimeSpan.seconds(10)
    /// Cleanings of a segment that may come to nothing; each needs another target.
    package var cleanings = 3
    package var settleRetry = TimeSpan.seconds(2)
    /// Changes, reads and removals of keys under way at a time, each: all three together are below what one channel to the
    /// control plane holds (1,024), so that listings and the lease always find a place.
    package var requests = 256

    package init() {}
}

extension Instant {
    /// No end that anybody waits for.
    package static let distantFuture = Instant(nanoseconds: .max)
}
