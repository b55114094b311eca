// What became of a recipient: the value that the outcome log keeps.
import BatonCore

/// The verdict of an attempt, or of Baton where there was none.
package enum OutcomeVerdict: Hashable, Sendable {
    /// The next hop took responsibility. Final.
    case delivered
    /// To be tried again at `until`.
    case deferred(until: Instant)
    /// The connection was lost after the final dot: delivered or not, nobody knows; tried again at `until`.
    case inDoubt(until: Instant)
    /// Refused for good; reported, or nobody is to be told. Final.
    case bounced
    /// Too old after a failed attempt. Final.
    case expired
    /// An operator removed it. Final.
    case adminBounced
    /// Another node has the message (PROTOCOL S6): this copy never counted. Final; no event, nobody is told.
    case withdrawn
    /// A delay notice for this recipient is durable; the recipient stays queued.
    case delayNoticeSent

    package var isFinal: Bool {
        switch self {
        case .delivered, .bounced, .expired, .adminBounced, .withdrawn: true
        case .deferred, .inDoubt, .delayNoticeSent: false
        }
    }
}

/// One record of the outcome log.
package struct Outcome: Sendable {
    package let job: JobRef
    package let at: Instant
    package let verdict: OutcomeVerdict
    /// Attempts made so far, this one included.
    package let attempts: UInt16
    package let reply: SMTPReply?
    package let peer: PeerName?
    /// The stored report (NDR, delay notice, success DSN) that this outcome rests on: its segment stays until this outcome is
    /// fdatasync'ed, so that a crash in between finds either the outcome or the report.
    package let report: StoredMessageRef?
    /// A former drainer's (PROTOCOL T5): no dot of this node waits for it.
    package var isLate = false

    package init(
        job: JobRef, at: Instant, verdict: OutcomeVerdict, attempts: UInt16, reply: SMTPReply?, peer: PeerName?,
        report: StoredMessageRef? = nil
    ) {
        self.job = job
        self.at = at
        self.verdict = verdict
        self.attempts = attempts
        self.reply = reply?.kept
        self.peer = peer
        self.report = report
    }
}

/// How far a recipient had come when the process ended; what recovery gives the queue beside the envelope.
package struct RecipientProgress: Sendable {
    package let recipient: UInt32
    package let attempts: UInt16
    package let due: Instant
    /// Attempts that ended in doubt.
    package let doubts: UInt16
    package let delayNoticeSent: Bool
    package let lastReply: SMTPReply?

    package init(
        recipient: UInt32, attempts: UInt16, due: Instant, doubts: UInt16, delayNoticeSent: Bool, lastReply: SMTPReply?
    ) {
        self.recipient = recipient
        self.attempts = attempts
        self.due = due
        self.doubts = doubts
        self.delayNoticeSent = delayNoticeSent
        self.lastReply = lastReply
    }
}
