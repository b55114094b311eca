// What goes into and comes out of the SUBMIT state.
import BatonCore
import BatonModel
import BatonPeer
import NIOCore

/// One part of a message on its way to a node's disk.
package struct OutgoingPart: Sendable {
    /// The shell's name of the message that it is a part of.
    package let message: UInt64
    /// With the recipients of this part only, without a mark.
    package let envelope: Envelope
    package let body: ByteBuffer

    package init(message: UInt64, envelope: Envelope, body: ByteBuffer) {
        self.message = message
        self.envelope = envelope
        self.body = body
    }

    /// What it counts in `PlacementLimits.unansweredOctets`.
    var octets: Int { body.readableBytes + 512 + 64 * envelope.recipients.count }
}

/// The key of a message in a segment that this node drains now.
package struct AdoptedKey: Hashable, Sendable {
    package let key: MessageKey
    package let ref: StoredMessageRef
    /// Nothing of it is left to be delivered.
    package let isFinal: Bool

    package init(key: MessageKey, ref: StoredMessageRef, isFinal: Bool) {
        self.key = key
        self.ref = ref
        self.isFinal = isFinal
    }
}

package enum SubmitEvent: Sendable {
    /// The live runs, this one included, from the control plane.
    case nodes([NodeRun])
    /// A part for another node.
    case place(OutgoingPart, on: NodeRun)
    /// A part for this node.
    case keep(OutgoingPart)
    /// The transport did not take the SUBMIT: it never left.
    case notSent(counter: UInt64)
    /// The session to this node is gone: what is unanswered there is not waited for.
    case lost(NodeID)
    case submitted(BatonPeer.Submitted, from: NodeRun)
    case asked(BatonPeer.Ask, from: NodeRun)
    /// A SUBMIT whose envelope and body can be read.
    case arrived(MessageKey, receiver: NodeRun, from: NodeRun)
    /// The spool's answer about an incoming SUBMIT, and about an own part.
    case incomingStored(MessageKey, SubmissionOutcome)
    case stored(counter: UInt64, SubmissionOutcome)
    /// A held copy is durable here: a fresh one, or one that was found on disk.
    case held(StoredMessageRef, MessageKey, receiver: NodeRun)
    /// Keys of copies found in segments that this node drains now, finished messages included (S5, S7).
    case adopted([AdoptedKey])
    /// Every member of the segment's ensemble has all of it, or nothing of it is left to be delivered. Not said: no. After its keys.
    case whole(segment: UInt32)
    /// Asked for by `look`: nothing of the message is left to be delivered.
    case final(MessageKey)
    /// Whether all segments of this run have drainers that live, and those that this node drains are scanned and their keys
    /// given by `adopted`. Not said: no (S5).
    case scanned(NodeRun, complete: Bool)
    case tick
}

package enum SubmitAction: Sendable {
    /// Send it as SUBMIT under this key; if the transport does not take it, say `notSent`.
    case submit(MessageKey, OutgoingPart, to: NodeRun)
    case answer(BatonPeer.Submitted, to: NodeID)
    case ask(BatonPeer.Ask, to: NodeID)
    /// Store here and answer with `stored`; with a mark as a held copy.
    case store(counter: UInt64, OutgoingPart, SubmitMark?)
    case storeIncoming(MessageKey)
    /// Exactly once for each part.
    case finished(message: UInt64, SubmissionOutcome)
    /// Say `final` if this message, found in a segment taken over, has a final outcome for every recipient by now.
    case look(StoredMessageRef, MessageKey)
    case release(StoredMessageRef)
    case withdraw(StoredMessageRef)
    case count(SubmitCount)
}

/// What is counted; metrics in the shell.
package enum SubmitCount: Hashable, CaseIterable, Sendable {
    /// Stored by the node that it was placed on.
    case placed
    /// Kept here because the other node refused, had no session, or had too much unanswered.
    case fellBack
    /// Not answered in time: an own copy is held.
    case held
    case withdrawn
    case released
    /// Delivered, or refused with 451, though another node may have it too.
    case maybeDuplicate
}

extension MessageKey {
    package init(_ mark: SubmitMark) {
        self.init(
            ingress: NodeRun(node: mark.ingress, incarnation: mark.ingressIncarnation), counter: mark.counter)
    }

    func mark(heldFor receiver: NodeRun? = nil) -> SubmitMark {
        SubmitMark(
            ingress: ingress.node, ingressIncarnation: ingress.incarnation, counter: counter,
            held: receiver.map { SubmitMark.HeldFor(receiver: $0.node, incarnation: $0.incarnation) })
    }
}
