// The rules of the protocol as switches: production has all of them on, a test takes one out and must see a checker go red.

/// Every rule that `ClusterState` obeys, one bit each, named for the rule of the protocol that it guards.
///
/// Only the simulator's tests build a set other than `.all`. A rule without a bit is structural: there is no branch to take out.
package struct Guards: OptionSet, Hashable, Sendable {
    package let rawValue: UInt64

    package init(rawValue: UInt64) { self.rawValue = rawValue }

    private init(_ bit: Int) { self.rawValue = 1 << UInt64(bit) }

    package static let all = Guards(rawValue: .max)

    // MARK: Append and seal

    /// A member answers DURABLE after its fdatasync, not after its write.
    package static let syncBeforeAck = Guards(0)
    /// A backup takes a chunk only where its copy ends: what it calls durable has no hole.
    package static let prefix = Guards(1)
    /// Every member of the ensemble has to be durable, not only the writer.
    package static let everyMember = Guards(2)
    /// A1: the ensemble of an open segment never changes.
    package static let ensembleFixed = Guards(3)
    /// A2: once a seal was sent, nothing is acknowledged there again.
    package static let sealStopsAcks = Guards(4)
    /// A3: unacknowledged mail waits until the seal is known to be committed.
    package static let reappendAfterSeal = Guards(5)
    /// A4: all members have created their file before the key is written.
    package static let filesBeforeKey = Guards(6)
    /// A4: a missing file is damage, not emptiness.
    package static let missingIsDamage = Guards(7)
    /// A5: incarnations are random, not derived from the control plane. Honoured by whoever starts the process.
    package static let freshIncarnation = Guards(8)
    /// A segment is registered only while the writer's own node key stands (found with the simulator; see CLUSTER_MODEL).
    package static let registeredWriter = Guards(9)

    // MARK: Takeover

    /// The control plane first, then the seal: no seal carries an epoch that nobody won.
    package static let claimBeforeSeal = Guards(10)
    /// Takeover step 1: the old drainer's node key is absent or of another incarnation.
    package static let oldDrainerGone = Guards(11)
    /// Takeover step 2: the seal is on disk before anything is read.
    package static let persistedSeal = Guards(12)
    /// Takeover step 3: the union of all outcome logs that can be had.
    package static let unionOfOutcomes = Guards(13)
    /// T1: a copy with an invalid tail never sets the sealed length alone.
    package static let invalidTailNeverAlone = Guards(14)
    /// T2: a node that lost its lease comes back as a new incarnation only.
    package static let newIncarnation = Guards(15)
    /// T3: a started node drains nothing taken over until one promise length has passed.
    package static let quietAfterStart = Guards(16)
    /// T4: a segment that names this node as drainer is resumed, however late the takeover landed.
    package static let resumeLateTakeover = Guards(17)
    /// T5: a late final outcome of the old drainer counts for a message that has not started.
    package static let lateOutcomes = Guards(18)
    /// T6: after a whole restart the old owner is preferred as taker.
    package static let preferOwner = Guards(19)
    /// A backup refuses outcomes of a lower drain epoch than it has sealed at.
    package static let drainEpoch = Guards(20)

    // MARK: Permission and outcomes

    /// P1: no dot without a fresh promise of every member that is not stale.
    package static let freshPromise = Guards(21)
    /// P1: a silent member is marked stale in the control plane before the next dot, not just passed over.
    package static let staleByCompareAndSet = Guards(22)
    /// P1: a change whose result is unknown counts as "not stale".
    package static let unknownIsNotStale = Guards(23)
    /// P2: a stale member may not take over.
    package static let staleMayNotTakeOver = Guards(24)
    /// P2: a member leaves `stale` only with its outcome log caught up and synced.
    package static let catchUpBeforeLeavingStale = Guards(25)
    /// P3: an outcome is settled when the backups have it, not when it was sent.
    package static let settledByBackups = Guards(26)
    /// P3: when a backup leaves, what is not synced locally is in doubt again.
    package static let doubtAfterLeaving = Guards(27)
    /// P4: a backup's new incarnation gets everything from its synced offset on.
    package static let resendToNewIncarnation = Guards(28)
    /// P5: at most W dots without a settled outcome.
    package static let window = Guards(29)
    /// An NDR is durable before the outcome `bounced` is recorded.
    package static let reportBeforeOutcome = Guards(30)

    // MARK: Copies, deletion, cleaning

    /// C1: the new member is named as joining, and fed with outcomes, before it is copied to.
    package static let joiningFirst = Guards(31)
    /// C1: the new member has everything on its disk before it enters the ensemble.
    package static let syncedBeforeJoining = Guards(32)
    /// C3: outcomes are synced on every non-stale member before `finished`.
    package static let syncedBeforeFinished = Guards(33)
    /// C3: the key goes last, when every member has confirmed.
    package static let keyGoesLast = Guards(34)
    /// C2 i and iii: `finished` at the epoch of the move is the only commit point, competing with takeover on the same key.
    package static let finishedCommitsMove = Guards(35)
    /// C2 ii: a moved message is held until its source is decided.
    package static let heldWhileMoved = Guards(36)
    /// C2 iv: a higher epoch of the source makes the moved copy void.
    package static let epochVoidsMove = Guards(37)
    /// C2 v: the source's key goes only after the decision is durable in the target.
    package static let decisionBeforeTombstone = Guards(38)

    // MARK: Submit

    /// S1: after "don't have it" the receiver refuses that key.
    package static let refuseAfterNo = Guards(39)
    /// S2: a SUBMIT is for one incarnation of its receiver.
    package static let submitNamesIncarnation = Guards(40)
    /// S3: written and not yet acknowledged is "pending".
    package static let pendingIsNotNo = Guards(41)
    /// S4: a failed append whose bytes reached a disk or a peer is "unknown".
    package static let failedIsUnknown = Guards(42)
    /// S5: a taker says no only when all segments of the receiver are scanned.
    package static let noOnlyWhenScanned = Guards(43)
    /// S6: the ingress node's own copy is stored as held.
    package static let heldIsStored = Guards(44)
    /// S7: keys of finished messages are remembered beyond the hold time.
    package static let rememberFinished = Guards(45)

    // MARK: Found with the simulator (CLUSTER_MODEL)

    /// A key is not removed while another attempt to register it may still land: it would come to life again.
    package static let registrationSettled = Guards(46)
    /// A file that was made anew in place of a lost one says so on disk until it has everything again.
    package static let rebuiltIsMarked = Guards(47)
    /// A taker says "have" about a key only when every member of the segment's ensemble has the message.
    package static let haveWhenCopied = Guards(48)
    /// A frame of an older incarnation is not taken for one of a newer, in whatever order they are met.
    package static let orderedIncarnations = Guards(49)
    /// The key of a message that a cleaning moved in vain is not remembered as one that is here.
    package static let voidIsNotHad = Guards(50)
    /// A key that was remembered and is not any more is "unknown", never "no".
    package static let forgottenIsUnknown = Guards(51)

    /// A change of unknown result that P1 waits for is made impossible by storing the key as it is.
    package static let unknownIsFenced = Guards(55)

    // MARK: Parts of a message (docs/decisions/0005)

    /// The 250 waits until every part is durable.
    package static let everyPart = Guards(52)
    /// A part's recipients keep their numbers in what is derived from them.
    package static let numbersKept = Guards(53)
    /// What is durable of a message that gets 451 is counted: the client sends it again.
    package static let refusedIsCounted = Guards(54)
}
