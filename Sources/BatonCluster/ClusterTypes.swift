// The values that nodes, disks and the control plane exchange in the model: keys, records, chunks, outcomes, scans.
import BatonCore
import BatonModel
import BatonSpool

/// A segment's record in the control plane, changed by compare-and-set on `revision` only (DESIGN section 5).
package typealias ClusterKey = SegmentKey

extension SegmentKey {
    package init(id: SegmentID, ensemble: [EnsembleMember], drainer: Drainer) {
        self.init(id: id, ensemble: ensemble, appendEpoch: 1, state: .open, drainer: drainer, drainEpoch: 1)
    }

    package mutating func finish() {
        guard case .sealed(let length) = state else { return }
        finishedLength = length
        finishedEpoch = drainEpoch
        state = .finished
    }

    package var sealedAt: Int64? {
        if case .sealed(let length) = state { length } else { nil }
    }

    /// The ensemble, and the joining member.
    package var everybody: [EnsembleMember] { joining.map { ensemble + [$0] } ?? ensemble }

    /// Whether `other` has to promise `member` something and to hold its outcomes.
    @inline(__always)
    package func isPartner(_ other: EnsembleMember, of member: EnsembleMember) -> Bool {
        other != member && (stale.isEmpty || !stale.contains(other))
    }

    /// Who has to promise and to hold outcomes, besides `member` itself.
    package func partners(of member: EnsembleMember) -> [EnsembleMember] {
        ensemble.filter { isPartner($0, of: member) }
    }
}

/// A SUBMIT's name, the same in every retry and in every copy that it leads to.
package struct SubmitKey: Hashable, Comparable, Sendable {
    package let ingress: Drainer
    package let counter: UInt64

    package init(ingress: Drainer, counter: UInt64) {
        self.ingress = ingress
        self.counter = counter
    }

    package static func < (left: SubmitKey, right: SubmitKey) -> Bool {
        (left.ingress.node, left.ingress.incarnation, left.counter)
            < (right.ingress.node, right.ingress.incarnation, right.counter)
    }
}

/// Why a stored message is not attempted yet.
package enum Hold: Hashable, Sendable {
    /// The ingress node's own copy, while it does not know whether `receiver` has the message (S6).
    case submit(SubmitKey, receiver: Drainer)
    /// Moved out of `source` by its drainer at `epoch`; live once that segment is finished at this epoch (C2 ii).
    case moved(source: SegmentID, epoch: UInt64, index: Int64)
}

/// A message as the protocol sees it: no bytes, only what must not be lost, doubled or altered.
package struct MailRecord: Hashable, Sendable {
    package let id: MessageID
    package let recipients: Int
    package let digest: UInt64
    /// Non-delivery report: never answered by another one.
    package var isReport = false
    package var submit: SubmitKey?
    package var hold: Hold?
    /// Recipients that were final where the message was moved from.
    package var settledBefore: [Int] = []
    /// A part of a message keeps its id, and its recipients their numbers in the whole: this is the first one's, the others follow
    /// (docs/decisions/0005).
    package var firstNumber = 0

    package init(id: MessageID, recipients: Int, digest: UInt64) {
        self.id = id
        self.recipients = recipients
        self.digest = digest
    }
}

/// What one node gets of a client's message.
package struct MailPart: Hashable, Sendable {
    package let mail: MailRecord
    /// Nil for the ingress node.
    package let node: NodeID?

    package init(mail: MailRecord, node: NodeID?) {
        self.mail = mail
        self.node = node
    }
}

/// The unit of write, fdatasync and replication. Offsets count records.
package struct Chunk: Hashable, Sendable {
    package let segment: SegmentID
    package let start: Int64
    package let records: [MailRecord]

    package init(segment: SegmentID, start: Int64, records: [MailRecord]) {
        self.segment = segment
        self.start = start
        self.records = records
    }

    package var end: Int64 { start + Int64(records.count) }
}

/// One recipient of one record.
package struct JobID: Hashable, Comparable, Sendable {
    package let index: Int64
    package let recipient: Int

    package init(index: Int64, recipient: Int) {
        self.index = index
        self.recipient = recipient
    }

    package static func < (left: JobID, right: JobID) -> Bool {
        (left.index, left.recipient) < (right.index, right.recipient)
    }
}

package enum Outcome: Hashable, Sendable {
    case delivered
    /// Its report is durable.
    case bounced
    /// Another copy of the message is the one that counts: a moved one (C2) or the receiver's (S6).
    case withdrawn
    /// The decision about a held copy: it is live from here on (C2 iv, S6). Not final, and recorded once per message.
    case released

    package var isFinal: Bool { self != .released }
}

package struct JobOutcome: Hashable, Sendable {
    package let job: JobID
    package let outcome: Outcome

    package init(job: JobID, outcome: Outcome) {
        self.job = job
        self.outcome = outcome
    }
}

/// What a scan of one file found.
package struct CopyScan: Hashable, Sendable {
    /// The valid prefix.
    package var chunks: [Chunk]
    /// Something stands behind the valid prefix that is not valid: torn or rotten, the copy alone cannot tell.
    package var tailInvalid: Bool
    package var sealEpoch: UInt64
    /// Made anew in place of a lost file, and not whole yet.
    package var rebuilt: Bool
    /// In the order of the log, of all epochs.
    package var outcomes: [JobOutcome]
    /// Epoch of the newest outcome log and how many of its records are there.
    package var logEpoch: UInt64
    package var logCount: Int

    package init(
        chunks: [Chunk], tailInvalid: Bool, sealEpoch: UInt64, rebuilt: Bool, outcomes: [JobOutcome],
        logEpoch: UInt64, logCount: Int
    ) {
        self.chunks = chunks
        self.tailInvalid = tailInvalid
        self.sealEpoch = sealEpoch
        self.rebuilt = rebuilt
        self.outcomes = outcomes
        self.logEpoch = logEpoch
        self.logCount = logCount
    }

    package var end: Int64 { chunks.last?.end ?? 0 }
}

/// A final dot on its way to a receiver.
package struct Dot: Hashable, Sendable {
    package let segment: SegmentID
    package let epoch: UInt64
    package let job: JobID
    package let mail: MailRecord

    package init(segment: SegmentID, epoch: UInt64, job: JobID, mail: MailRecord) {
        self.segment = segment
        self.epoch = epoch
        self.job = job
        self.mail = mail
    }
}

package enum ReceiverAnswer: Hashable, Sendable {
    case accepted
    case refused
    case later
    /// The connection was lost after the dot.
    case unknown
    /// The body's checksum failed before the dot: nothing was sent.
    case damaged
}

/// A node as the registry lists it.
package struct NodeRecord: Hashable, Sendable {
    package let node: NodeID
    package let incarnation: Incarnation
    package let disk: UInt64

    package init(node: NodeID, incarnation: Incarnation, disk: UInt64) {
        self.node = node
        self.incarnation = incarnation
        self.disk = disk
    }

    package var member: EnsembleMember { EnsembleMember(node: node, diskID: disk) }
    package var drainer: Drainer { Drainer(node: node, incarnation: incarnation) }
}

/// A linearizable read of everything.
package struct Listing: Hashable, Sendable {
    package let revision: UInt64
    package let keys: [ClusterKey]
    package let nodes: [NodeRecord]
    /// Members whose word nobody waits for: an operator has declared them lost (`baton cluster forget`), or they have left in order.
    package let forgotten: [EnsembleMember]
    /// Of these, the ones that have left: their copies are not lost, and may be needed (PROTOCOL T1, P2).
    package let departed: [EnsembleMember]

    package init(
        revision: UInt64, keys: [ClusterKey], nodes: [NodeRecord], forgotten: [EnsembleMember],
        departed: [EnsembleMember] = []
    ) {
        self.revision = revision
        self.keys = keys
        self.nodes = nodes
        self.forgotten = forgotten
        self.departed = departed
    }
}
