// The seam between the connection pools and the settler: finished attempts in, durable outcomes out.
import BatonCore
import BatonModel

/// A finished attempt of one transaction, decided by the partition, to be made durable.
package struct Settlement: Sendable {
    package let message: StoredMessageRef
    package let envelope: Envelope
    /// For RET=FULL; nil when it is no longer at hand: it is read back where a report needs it.
    package let body: StoredBody?
    /// Site name as in events.
    package let site: [UInt8]
    package let peer: PeerName?
    /// Local address of the connection, in text; empty if none.
    package let sourceAddress: [UInt8]
    package let deliveryProtocol: DeliveryProtocol
    package let at: Instant
    package let entries: [SettlementEntry]

    package init(
        message: StoredMessageRef, envelope: Envelope, body: StoredBody?, site: [UInt8], peer: PeerName?,
        sourceAddress: [UInt8], deliveryProtocol: DeliveryProtocol, at: Instant, entries: [SettlementEntry]
    ) {
        self.message = message
        self.envelope = envelope
        self.body = body
        self.site = site
        self.peer = peer
        self.sourceAddress = sourceAddress
        self.deliveryProtocol = deliveryProtocol
        self.at = at
        self.entries = entries
    }
}

/// What the partition decided about one recipient of a settlement, and the reply it rests on.
package struct SettlementEntry: Sendable {
    package let recipient: PulledRecipient
    package let decision: RecipientDecision
    package let reply: SMTPReply
    /// Delivered to a peer without DSN: where NOTIFY=SUCCESS was asked, Baton itself says `relayed` (RFC 3461 5.2.2).
    package let relayedWithoutDSN: Bool

    package init(recipient: PulledRecipient, decision: RecipientDecision, reply: SMTPReply, relayedWithoutDSN: Bool) {
        self.recipient = recipient
        self.decision = decision
        self.reply = reply
        self.relayedWithoutDSN = relayedWithoutDSN
    }
}

/// Makes decisions durable: report first where one is due, then events, then outcomes, then the slots are freed.
/// All calls on the loop of its partition; they never block, and what they take is never lost.
package protocol Settling: AnyObject, Sendable {
    func settle(_ settlements: [Settlement])
    func settle(_ finals: [FinalWithoutAttempt])
    /// Delay notices due without an attempt: nothing but the notice is made durable.
    func settle(_ notices: [DelayNoticeDue])
}
