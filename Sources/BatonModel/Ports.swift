// The seams between modules of one floor: small protocols over values, batched, bound together in BatonNode.
import BatonCore
import NIOCore

// MARK: Ingress and reports → spool

/// A body on its way into the spool.
package enum SubmittedBody: Sendable {
    /// All octets, at most `Limits.fragmentThreshold`.
    case whole(ByteBuffer)
    /// The fragments appended to this stream so far are the body.
    case fragments(FragmentStreamID)
}

/// An open stream of fragments (a body above `Limits.fragmentThreshold`), unique within the process.
package struct FragmentStreamID: Hashable, Sendable {
    package let value: UInt64

    package init(value: UInt64) {
        self.value = value
    }
}

/// A message to be made durable. Envelope traits describe the body; the spool checks length and CRC32C against them.
package struct Submission: Sendable {
    package let envelope: Envelope
    package let body: SubmittedBody
    /// Given back in the result.
    package let token: UInt64
    package let sink: any SubmissionResultReceiving

    package init(envelope: Envelope, body: SubmittedBody, token: UInt64, sink: any SubmissionResultReceiving) {
        self.envelope = envelope
        self.body = body
        self.token = token
        self.sink = sink
    }
}

/// Why the spool did not take a message. Every one becomes a 4xx reply.
package enum SubmissionRefusal: Sendable {
    /// Below `spool.min_free`, or ENOSPC (452 4.3.1).
    case diskFull
    /// Fewer than `min_copies` disks can be had (451 4.3.0).
    case noCopies
    /// The lane is dead after a failed write or fdatasync, or the result is unknown (451 4.3.0).
    case storageFailed
    /// A bounded queue before the disk is full (451 4.3.2).
    case overloaded
    /// The node is stopping (421 4.3.2).
    case stopping
}

package enum SubmissionOutcome: Sendable {
    /// fdatasync'ed on `min_copies` disks: 250 is allowed now and never before.
    case durable(StoredMessageRef)
    case refused(SubmissionRefusal)
}

package struct SubmissionResult: Sendable {
    package let token: UInt64
    package let outcome: SubmissionOutcome

    package init(token: UInt64, outcome: SubmissionOutcome) {
        self.token = token
        self.outcome = outcome
    }
}

package struct FragmentResult: Sendable {
    package let stream: FragmentStreamID
    /// Octets of the stream that need no memory any more. Not a promise of durability.
    package let written: Int
    /// Set when the stream is lost; what follows on it is ignored.
    package let refusal: SubmissionRefusal?

    package init(stream: FragmentStreamID, written: Int, refusal: SubmissionRefusal?) {
        self.stream = stream
        self.written = written
        self.refusal = refusal
    }
}

/// Gets results in batches, on the lane's threads: an implementation crosses to its own loop, once per call.
package protocol SubmissionResultReceiving: AnyObject, Sendable {
    func submissionsFinished(_ results: [SubmissionResult])
    func fragmentsWritten(_ results: [FragmentResult])
}

/// Where accepted messages go: the lane here, the placer in a cluster. Any thread; never blocks.
package protocol MessageSubmitting: Sendable {
    /// Every submission gets exactly one result through its sink, refusals too.
    func submit(_ batch: [Submission])
    /// A new stream, bound to the sink that gets its results.
    func openStream(sink: any SubmissionResultReceiving) -> FragmentStreamID
    /// Appends octets, at most `Limits.fragmentSize` a call; the caller keeps at most `Limits.unwrittenPerSession` unanswered.
    func append(_ bytes: ByteBuffer, to stream: FragmentStreamID)
    /// The session ended before its dot: the fragments are dead bytes.
    func abandon(_ stream: FragmentStreamID)
    /// Whether MAIL may be accepted now. Cheap: read for each MAIL.
    var admission: StorageAdmission { get }
}

package enum StorageAdmission: Sendable {
    case open
    case refused(SubmissionRefusal)
}

// MARK: Spool ↔ replicator

/// One member of a segment's ensemble: identity is per disk (PROTOCOL "Around it").
package struct EnsembleMember: Hashable, Sendable {
    package let node: NodeID
    package let diskID: UInt64

    package init(node: NodeID, diskID: UInt64) {
        self.node = node
        self.diskID = diskID
    }
}

/// Keeps a lane's chunks on other disks. A lane of a single node has none, and its ensembles are its own disk alone.
package protocol ChunkReplicating: Sendable {
    /// Makes and fsyncs the segment's file on every backup and returns them; nil where none can be had now, so that the segment
    /// is not registered (PROTOCOL A4). Blocking; on the keeper's thread.
    func prepare(_ segment: SegmentID) -> [EnsembleMember]?
    /// Sends a chunk to every backup of the segment, in the order of offsets. `acked`: everything before it is acknowledged. On
    /// the writer's thread, between local write and fdatasync; never blocks. Bounded by the lane's waiting bytes.
    func send(_ chunk: ByteBuffer, of segment: SegmentID, at offset: Int64, acked: Int64)
}

/// What backups answer. Any thread; never blocks.
package protocol ReplicationReceiving: AnyObject, Sendable {
    /// The member has fdatasync'ed everything before `upTo`.
    func durable(_ segment: SegmentID, on member: EnsembleMember, upTo: Int64)
    /// The member refuses, or is given up: the segment is sealed where it is acknowledged, and the lane goes on in the next one
    /// (PROTOCOL A1). Nothing of it is acknowledged any more.
    func lost(_ segment: SegmentID, on member: EnsembleMember)
}

// MARK: Spool → queue

/// A durable message whose live recipients are to be scheduled.
package struct AcceptedMessage: Sendable {
    package let ref: StoredMessageRef
    package let envelope: Envelope
    /// The body while it is still in memory; nil once it has to be read back.
    package let body: MessageBody?
    /// Nil for a new message: all recipients are due now. After a restart: the recipients without a final outcome.
    package let progress: [RecipientProgress]?
    /// False when its Reception events are to be recorded (always so for a new message).
    package let receptionRecorded: Bool

    package init(
        ref: StoredMessageRef, envelope: Envelope, body: MessageBody?, progress: [RecipientProgress]?,
        receptionRecorded: Bool
    ) {
        self.ref = ref
        self.envelope = envelope
        self.body = body
        self.progress = progress
        self.receptionRecorded = receptionRecorded
    }
}

/// Gets durable messages on the writer's thread (or recovery's), one call per commit.
package protocol JobReceiving: Sendable {
    func receive(_ messages: [AcceptedMessage])
}

// MARK: Queue and delivery → spool

/// Keeps outcomes. Any thread; never blocks; nobody waits for the sync (within 1 s).
package protocol OutcomeRecording: Sendable {
    func record(_ outcomes: [Outcome])
}

/// Which part of a stored message to read.
package enum BodyPart: Sendable {
    /// Envelope, and the body unless it is fragmented.
    case message
    case fragment(UInt32)
}

package struct BodyRead: Sendable {
    package let ref: StoredMessageRef
    package let part: BodyPart
    package let token: UInt64

    package init(ref: StoredMessageRef, part: BodyPart, token: UInt64) {
        self.ref = ref
        self.part = part
        self.token = token
    }
}

package enum BodyReadOutcome: Sendable {
    case message(Envelope, StoredBody)
    case fragment(ByteBuffer)
    /// Its CRC32C or structure is wrong: quarantined; never sent, never treated as absent.
    case damaged
    /// As `damaged`, and another node may have it intact: it is asked. Try later; nothing is counted.
    case beingRepaired
    /// The disk did not answer; try later.
    case failed(errno: Int32)
}

package struct BodyReadResult: Sendable {
    package let token: UInt64
    package let outcome: BodyReadOutcome

    package init(token: UInt64, outcome: BodyReadOutcome) {
        self.token = token
        self.outcome = outcome
    }
}

/// Gets results on a reader thread, in batches.
package protocol BodyReadReceiving: AnyObject, Sendable {
    func bodiesRead(_ results: [BodyReadResult])
}

/// Reads stored messages. Any thread; never blocks. Bounded: past the bound a read answers `.failed(errno: EAGAIN)`.
package protocol BodyReading: Sendable {
    func read(_ requests: [BodyRead], for receiver: any BodyReadReceiving)
}

// MARK: Permission to send

/// Whether final dots may go: fresh promises of the segment's members (PROTOCOL P1), and at most W dots without a settled
/// outcome (P5). Any thread, never blocks; asked for every transaction. A single node has none.
package protocol DotPermitting: Sendable {
    /// Takes a place for one transaction of the site; false when W are taken: `woken` tells when there is room again.
    func reserve(site: [UInt8], at now: Instant) -> Bool
    /// Whether the message's segment may send now. Asked at the beginning, and again until the dot is out.
    func mayDot(_ message: StoredMessageRef, at now: Instant) -> Bool
    /// The transaction is over. Its place is free at once without outcomes, else when so many of them are settled.
    func ended(_ message: StoredMessageRef, site: [UInt8], outcomes: Int, at now: Instant)
    /// `wake` is called, on any thread, when places become free after `reserve` has refused one.
    func onRoom(_ wake: @escaping @Sendable () -> Void)
}

// MARK: Events

/// The event log. Any thread; never blocks; never drops. Finals are recorded here before their outcome is recorded.
package protocol EventRecording: Sendable {
    func record(_ events: [MailEvent])
    func record(rejections: [RejectionEvent])
    /// Events recorded so far, and how many of them are fdatasync'ed: an event recorded before `recorded` was read is safe
    /// once `synced` has reached that value.
    var recorded: UInt64 { get }
    var synced: UInt64 { get }
    /// The event disk is full: new mail is refused with 452.
    var isFull: Bool { get }
}

// MARK: Limits shared by pools

/// Leases connections of a site and of the node to pools (DESIGN "Cluster-wide limits"). Any thread.
package protocol PermitLeasing: Sendable {
    /// Whether one more connection to the site may be opened; the caller gives it back exactly once.
    func takeConnection(site: [UInt8], siteLimit: Int) -> Bool
    func returnConnection(site: [UInt8])
    /// How many messages may start now for the site under `perSecond` (nil: unlimited), at most `wanted`.
    func takeMessages(site: [UInt8], perSecond: Double?, wanted: Int, now: Instant) -> Int
    /// Whether somebody was refused a connection to the site, or any connection, and this caller should give up an idle one
    /// for it. Asking takes the claim: one waiter gets one connection. The default knows no waiters.
    func claimWaiter(site: [UInt8]) -> Bool
    /// Whether this caller has to close a connection of the site before it begins anything else on it: a share of the site's limit has
    /// ended, or is about to. Asking takes the claim, as `claimWaiter`; asked before every transaction, and cheap while there is none.
    func claimSurplus(site: [UInt8]) -> Bool
    /// Whether anybody was refused and not served since. Cheap: asked at each tick.
    var hasWaiters: Bool { get }
    /// Sites that were refused a connection by their own limit, so that pools with an idle one can be found.
    var waitingSites: [[UInt8]] { get }
}

extension PermitLeasing {
    package var hasWaiters: Bool { false }
    package var waitingSites: [[UInt8]] { [] }
    package func claimWaiter(site: [UInt8]) -> Bool { false }
    package func claimSurplus(site: [UInt8]) -> Bool { false }
}
