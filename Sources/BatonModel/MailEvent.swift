// The records of the event log (CONTRACT "Events"): the sender's billing and list hygiene.
import BatonCore

/// Names as in the event log's `type`.
package enum MailEventType: UInt8, Sendable {
    case reception = 1
    case delivery = 2
    case transientFailure = 3
    case bounce = 4
    case expiration = 5
    case adminBounce = 6
    case rejection = 7
    case delayNotice = 8

    package var name: String {
        switch self {
        case .reception: "Reception"
        case .delivery: "Delivery"
        case .transientFailure: "TransientFailure"
        case .bounce: "Bounce"
        case .expiration: "Expiration"
        case .adminBounce: "AdminBounce"
        case .rejection: "Rejection"
        case .delayNotice: "DelayNotice"
        }
    }

    package var isFinal: Bool {
        switch self {
        case .delivery, .bounce, .expiration, .adminBounce: true
        case .reception, .transientFailure, .rejection, .delayNotice: false
        }
    }
}

/// Which protocol carried it out.
package enum DeliveryProtocol: UInt8, Sendable {
    case none = 0
    case esmtp = 1
    case lmtp = 2

    package var name: String {
        switch self {
        case .none: ""
        case .esmtp: "ESMTP"
        case .lmtp: "LMTP"
        }
    }
}

/// One event of one recipient. Cheap to make: it refers to the envelope, and the event thread does the formatting.
package struct MailEvent: Sendable {
    package let type: MailEventType
    package let at: Instant
    package let envelope: Envelope
    /// Index in `envelope.recipients`.
    package let recipient: UInt32
    package let attempts: UInt16
    package let reply: SMTPReply?
    package let peer: PeerName?
    /// Site name for an outgoing event; empty otherwise.
    package let site: [UInt8]
    /// Local address of the delivery's connection; empty if none.
    package let sourceAddress: [UInt8]
    package let deliveryProtocol: DeliveryProtocol

    package init(
        type: MailEventType, at: Instant, envelope: Envelope, recipient: UInt32, attempts: UInt16,
        reply: SMTPReply? = nil, peer: PeerName? = nil, site: [UInt8] = [], sourceAddress: [UInt8] = [],
        deliveryProtocol: DeliveryProtocol = .none
    ) {
        self.type = type
        self.at = at
        self.envelope = envelope
        self.recipient = recipient
        self.attempts = attempts
        self.reply = reply
        self.peer = peer
        self.site = site
        self.sourceAddress = sourceAddress
        self.deliveryProtocol = deliveryProtocol
    }

    /// The same for the same fact, so that an event derived again after a crash can be told from a new one. Final events of
    /// a recipient share one id whatever their type: a recipient has exactly one.
    package var eventID: MessageID {
        var hash = StableHash()
        hash.combine(envelope.id.high)
        hash.combine(envelope.id.low)
        hash.combine(UInt64(envelope.number(of: recipient)))
        hash.combine(type.isFinal ? UInt8(0xff) : type.rawValue)
        if !type.isFinal { hash.combine(UInt64(attempts)) }
        let first = hash.finish()
        hash.combine(UInt8(0x5a))
        return MessageID(high: first, low: hash.finish())
    }
}

/// A refusal at the door, before there is an envelope; the event log writes it as `Rejection`.
package struct RejectionEvent: Sendable {
    package let at: Instant
    package let sender: [UInt8]
    package let recipient: [UInt8]
    package let client: [UInt8]
    package let sessionID: UInt64
    package let reply: SMTPReply

    package init(
        at: Instant, sender: [UInt8], recipient: [UInt8], client: [UInt8], sessionID: UInt64, reply: SMTPReply
    ) {
        self.at = at
        self.sender = sender
        self.recipient = recipient
        self.client = client
        self.sessionID = sessionID
        self.reply = reply
    }
}
