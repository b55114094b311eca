// Everything about a message but its octets.
import BatonCore

/// One forward path with its DSN wishes.
package struct EnvelopeRecipient: Hashable, Sendable {
    package let address: MailAddress
    package let notify: NotifyFlags
    /// ORCPT as received, `type;xtext` (RFC 3461 4.2); empty if the sender gave none.
    package let originalRecipient: [UInt8]

    package init(address: MailAddress, notify: NotifyFlags = [], originalRecipient: [UInt8] = []) {
        self.address = address
        self.notify = notify
        self.originalRecipient = originalRecipient
    }
}

/// What kind of message this is and what its transport needs.
package struct EnvelopeFlags: OptionSet, Hashable, Sendable {
    package let rawValue: UInt16

    package init(rawValue: UInt16) {
        self.rawValue = rawValue
    }

    /// MAIL had SMTPUTF8 (RFC 6531).
    package static let smtpUTF8 = EnvelopeFlags(rawValue: 1)
    /// MAIL had BODY=8BITMIME (RFC 6152).
    package static let eightBitMIME = EnvelopeFlags(rawValue: 2)
    /// Baton made it: an NDR, a delay notice or a success DSN. Never reported about in turn.
    package static let report = EnvelopeFlags(rawValue: 4)
    /// It came through a `submission` listener.
    package static let submission = EnvelopeFlags(rawValue: 8)
    /// MAIL had REQUIRETLS (RFC 8689).
    package static let requireTLS = EnvelopeFlags(rawValue: 16)
}

/// What a report tells of: with it the report is the durable proof that this recipient was reported (DESIGN section 3.7).
package struct ReportSubject: Hashable, Sendable {
    package enum Kind: UInt8, Sendable {
        case failure = 1
        case delay = 2
        case success = 3
    }

    package let message: MessageID
    package let recipient: UInt32
    package let kind: Kind

    package init(message: MessageID, recipient: UInt32, kind: Kind) {
        self.message = message
        self.recipient = recipient
        self.kind = kind
    }
}

/// A message's envelope: immutable and shared by reference between loops, writer and deliveries.
package final class Envelope: Sendable {
    package let id: MessageID
    package let arrival: Instant
    /// Nil is the null reverse-path.
    package let sender: MailAddress?
    /// ENVID as received (xtext, RFC 3461 4.4); empty if none.
    package let envid: [UInt8]
    package let returnContent: ReturnContent
    package let flags: EnvelopeFlags
    /// Fairness class: `StableHash` of the authenticated user, else the client's network, else the sender's domain.
    package let senderClass: UInt64
    /// Authenticated user; empty if none.
    package let user: [UInt8]
    /// The client's address in text; empty for reports.
    package let client: [UInt8]
    package let sessionID: UInt64
    /// The Message-ID field's value with its brackets, for events and look-ups; empty if none; at most 255 octets.
    package let messageIDField: [UInt8]
    package let recipients: [EnvelopeRecipient]
    /// What this message reports, if it is a report.
    package let subjects: [ReportSubject]
    package let traits: BodyTraits
    /// The SUBMIT of this copy; nil for a message that its ingress node kept from the start.
    package let submit: SubmitMark?
    /// For a part of a message: for each recipient the how many-th it was in the whole, strictly rising. Nil: the whole.
    package let numbers: [UInt32]?

    package init(
        id: MessageID, arrival: Instant, sender: MailAddress?, envid: [UInt8] = [],
        returnContent: ReturnContent = .unspecified, flags: EnvelopeFlags = [], senderClass: UInt64 = 0,
        user: [UInt8] = [], client: [UInt8] = [], sessionID: UInt64 = 0, messageIDField: [UInt8] = [],
        recipients: [EnvelopeRecipient], subjects: [ReportSubject] = [], traits: BodyTraits,
        submit: SubmitMark? = nil, numbers: [UInt32]? = nil
    ) {
        self.id = id
        self.arrival = arrival
        self.sender = sender
        self.envid = envid
        self.returnContent = returnContent
        self.flags = flags
        self.senderClass = senderClass
        self.user = user
        self.client = client
        self.sessionID = sessionID
        self.messageIDField = messageIDField
        self.recipients = recipients
        self.subjects = subjects
        self.traits = traits
        self.submit = submit
        self.numbers = numbers
    }
}
