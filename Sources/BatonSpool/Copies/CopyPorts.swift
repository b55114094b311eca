// The seam between the spool's disks and the cluster: copies of segments, taking a segment over, and outcome logs as they grow.
import BatonCore
import BatonModel
import NIOCore

// MARK: Copies of segments on this disk

/// What became of a new, empty copy (PROTOCOL A4).
package enum CopyCreation: Hashable, Sendable {
    /// Made, fsync'ed, its name too.
    case created
    /// Below half of `spool.min_free`, or ENOSPC.
    case noRoom
    /// A file of this name with content, or a seal, is there.
    case refused
    case failed
}

/// The backup's answer to a chunk.
package enum CopyAppend: Hashable, Sendable {
    /// Everything before this offset is fdatasync'ed. Also for a chunk that was there already.
    case durable(upTo: Int64)
    /// The copy obeys a higher epoch: the writer's time is over.
    case sealed(epoch: UInt64)
    /// Nothing beyond `upTo` will be durable here: no room.
    case noRoom(upTo: Int64)
    /// The disk failed; never retried.
    case failed(upTo: Int64)
    /// A hole before it, or no such copy (PROTOCOL: the prefix rule). Nothing was written.
    case ignored
}

/// How far a copy has an epoch's outcome log (PROTOCOL P4).
package enum CopyLog: Hashable, Sendable {
    case recorded(memory: Int64, synced: Int64)
    /// The copy obeys a higher epoch.
    case sealed(epoch: UInt64)
    /// The octets begin behind what is here; nothing was taken.
    case gap(memory: Int64, synced: Int64)
    /// There is no copy: damage, not emptiness.
    case missing
    case failed
}

/// A copy's content, once its seal is fsync'ed.
package struct CopyReport: Hashable, Sendable {
    /// Length of the valid prefix of chunks.
    package var end: Int64
    /// Something stands behind it that is not valid; the copy alone cannot tell what stood there (PROTOCOL T1).
    package var tailInvalid: Bool
    /// Octets of `outcomeEntries`: every entry of every epoch's log.
    package var outcomeOctets: Int64

    package init(end: Int64, tailInvalid: Bool, outcomeOctets: Int64) {
        self.end = end
        self.tailInvalid = tailInvalid
        self.outcomeOctets = outcomeOctets
    }
}

package enum CopySeal: Hashable, Sendable {
    /// Sealed at the epoch asked for (or at it already); the report was taken afterwards.
    case sealed(CopyReport)
    /// A higher epoch has sealed it.
    case superseded(epoch: UInt64)
    /// No file: damage, never emptiness (PROTOCOL A4).
    case missing
    case failed
}

package enum CopyContent: Hashable, Sendable {
    /// The valid prefix of chunks, as it stands in the file.
    case chunks
    /// The entries of all outcome logs of the copy, oldest epoch first, without file headers.
    case outcomeEntries
    /// The outcome log of one epoch as it stands in its file, header included.
    case outcomeLog(epoch: UInt64)
    /// The one chunk that begins at the offset, whole, and only if it has its checksums.
    case chunk
}

package enum CopyRead: Sendable {
    /// At most what was asked for; `last` when nothing follows.
    case octets(ByteBuffer, last: Bool)
    case missing
    /// Only of `CopyContent.chunk`: something is there, and it is not a chunk with its checksums.
    case damaged
    case failed
}

/// What became of a chunk that was to be put in the place of a damaged one.
package enum CopyMend: Hashable, Sendable {
    /// It stands there, fdatasync'ed.
    case mended
    /// It is not the chunk that was promised there. Nothing was written.
    case other
    case failed
}

/// Why octets are put into a copy.
package enum RestorePurpose: Hashable, Sendable {
    /// A joining member gets its copy (PROTOCOL C1): refused below half of `spool.min_free`, another node has more room.
    case newCopy
    /// A member's own copy lacks something: nobody else can take the segment over, so it may use what room there is.
    case repair
}

/// Copies of segments that other nodes write, or earlier incarnations of this one wrote. Their own thread writes and syncs.
///
/// Every call: any thread, never blocks; `done` is called exactly once on the store's thread (on the caller's where it is refused
/// at a bound, as `failed`) and must not block. What `done` reports as durable, created or sealed survives a crash.
package protocol CopyKeeping: Sendable {
    func create(_ id: SegmentID, reserve: Int64, done: @escaping @Sendable (CopyCreation) -> Void)
    /// `append` epoch 1 is the writer's; chunks of one batch share one fdatasync.
    func append(_ id: SegmentID, at offset: Int64, _ chunk: ByteBuffer, done: @escaping @Sendable (CopyAppend) -> Void)
    /// Octets `from offset` of the outcome log of `epoch`, as they stand in the drainer's file. Written at once, fdatasync'ed
    /// within `SpoolConfiguration.outcomeSyncInterval`; then `logSynced` of the handler is called.
    func recordOutcomes(
        _ id: SegmentID, epoch: UInt64, from offset: Int64, _ octets: ByteBuffer,
        done: @escaping @Sendable (CopyLog) -> Void)
    /// Persists the epoch: appends and outcomes of lower ones are refused from the call on, restarts included (PROTOCOL
    /// "Takeover" 2). Works on any segment file of the directory, one that this node writes included.
    func seal(_ id: SegmentID, epoch: UInt64, done: @escaping @Sendable (CopySeal) -> Void)
    func read(
        _ id: SegmentID, _ content: CopyContent, from offset: Int64, atMost: Int,
        done: @escaping @Sendable (CopyRead) -> Void)
    /// Octets of the segment file at their place. Makes the file where there is none. Durable when done.
    func restore(
        _ id: SegmentID, _ purpose: RestorePurpose, at offset: Int64, _ octets: ByteBuffer,
        done: @escaping @Sendable (Bool) -> Void)
    /// Puts a chunk in the place of a damaged one, in whatever segment's file. Durable when done.
    func mend(_ chunk: DamagedChunk, _ octets: ByteBuffer, done: @escaping @Sendable (CopyMend) -> Void)
    /// Removes the segment's file, logs and seal; true when they are gone, durably.
    func unlink(_ id: SegmentID, done: @escaping @Sendable (Bool) -> Void)
    /// `unlink` of a file in which nothing was ever written. One whose beginning cannot be read is damage, never emptiness: it
    /// stays (PROTOCOL A4).
    func unlinkIfEmpty(_ id: SegmentID)
    /// Every segment of which something lies here.
    func inventory(done: @escaping @Sendable ([SegmentID]) -> Void)
}

/// News that nobody asked for. On the store's thread; must not block.
package protocol CopyNews: AnyObject, Sendable {
    /// The copy's log of this epoch is fdatasync'ed up to here.
    func logSynced(_ id: SegmentID, epoch: UInt64, memory: Int64, synced: Int64)
}

// MARK: Segments that this node drains

/// A segment to be delivered by this node from now on.
package struct Adoption: Sendable {
    /// As committed: this node is its drainer, and it is sealed.
    package let key: SegmentKey
    /// Outcome entries that other members reported (`CopyContent.outcomeEntries`), in any order.
    package let others: [ByteBuffer]
    /// Events of the segment's former drainer may be lost with its disk: all are emitted again (their `event_id` stays).
    package let eventsMayBeLost: Bool
    /// Settled outcomes may be missing: its live messages count as possibly delivered twice (PROTOCOL P2).
    package let mayRepeat: Bool

    package init(key: SegmentKey, others: [ByteBuffer], eventsMayBeLost: Bool, mayRepeat: Bool = false) {
        self.key = key
        self.others = others
        self.eventsMayBeLost = eventsMayBeLost
        self.mayRepeat = mayRepeat
    }
}

package struct AdoptionReport: Hashable, Sendable {
    package let handle: UInt32
    package let messages: Int
    package let liveMessages: Int
    package let liveRecipients: Int

    package init(handle: UInt32, messages: Int, liveMessages: Int, liveRecipients: Int) {
        self.handle = handle
        self.messages = messages
        self.liveMessages = liveMessages
        self.liveRecipients = liveRecipients
    }
}

/// What the cluster hears from the spool about segments that this node drains. Any thread of the spool; must not block.
package protocol SegmentNews: AnyObject, Sendable {
    /// The outcome log of the segment's present epoch has grown in memory and file to `end`, and is fdatasync'ed to `synced`.
    /// `taken`: outcomes recorded for the segment by this process so far, those that said nothing new included.
    func outcomesAdvanced(_ id: SegmentID, epoch: UInt64, end: Int64, synced: Int64, taken: Int)
    /// Registered by this node's keeper, or sealed by it: the key as committed.
    func keyChanged(_ key: SegmentKey)
    /// No recipient is open, all outcomes are fdatasync'ed here and all events synced: it may be finished (PROTOCOL C3).
    /// Said again from time to time until `release`.
    func drained(_ id: SegmentID)
    /// A chunk of a drained segment is damaged here: the other members are to be asked for it. Said again at each read of it, until
    /// `SegmentDraining.ended` tells how that went.
    func damaged(_ chunk: DamagedChunk)
    /// Old segments with little mail in them, the least first, each of which has room in the open one (PROTOCOL C2). Said again from
    /// time to time while there are such and none is being cleaned.
    func cleanable(_ ids: [SegmentID], into target: SegmentID)
    /// The messages that `move` began to copy stand in the target, acknowledged by all its members, and everything else of the
    /// source may go; or not all of them, and the cleaning has to be given up. Once for each `move` that answered true.
    func moved(_ id: SegmentID, epoch: UInt64, landed: Bool)
}

/// The spool as the cluster uses it.
package protocol SegmentDraining: Sendable {
    /// Takes a sealed segment over whose copy lies here: writes the union of all outcomes to the log of `key.drainEpoch` and
    /// fdatasyncs it, rebuilds the queue from envelopes minus outcomes, hands the messages to the queue. Blocking; on the
    /// takeover thread. Throws where the copy cannot be read.
    func adopt(_ adoption: Adoption) throws(SpoolError) -> AdoptionReport
    /// Outcome entries (`CopyContent.outcomeEntries`) that a former drainer of an adopted segment had recorded and nobody was told of
    /// (PROTOCOL T5): the final ones of recipients that are open here go to `UnreportedReceiving.late`. Reads their envelopes:
    /// blocking; on the takeover thread.
    func late(_ entries: ByteBuffer, of id: SegmentID)
    /// Finished in the control plane: files and ledger entry go. Blocking; not on a loop. True when the files are gone.
    func release(_ id: SegmentID) -> Bool
    /// Nothing more is acknowledged in an own open segment: another node has sealed it.
    func stopWriting(_ id: SegmentID)
    /// Copies what is alive in a segment of this node into `key.target`, its open one, held for the key's drain epoch; `moved` tells
    /// the end. False where nothing of it was begun. Reads up to a quarter of the segment: blocking; on the takeover thread.
    func move(_ key: SegmentKey) -> Bool
    /// What the source's key has decided of a move (PROTOCOL C2 iv): it goes into the target's log; references lead to the copies, or
    /// the copies are dead. May be repeated. The end of the target's log behind the decision, 0 where there is nothing to decide, nil
    /// if it is to be asked again. Blocking; on the takeover thread.
    func settleMove(of id: SegmentID, epoch: UInt64, into target: SegmentID, alive: Bool) -> Int64?
    /// The segment behind a message reference, as given in `AdoptionReport.handle` or by the lane.
    func segment(of handle: UInt32) -> SegmentID?
    /// The answer to `SegmentNews.damaged`. Any thread.
    func ended(_ repair: ChunkRepair, of chunk: DamagedChunk)
}
