// The seam between a loop's queue partition and the delivery side of the same loop.
import BatonCore

/// A destination's handle in its partition: one domain of one share.
package struct DestinationID: Hashable, Sendable {
    package let value: UInt32

    package init(value: UInt32) {
        self.value = value
    }
}

/// A site's handle on its loop, given by the delivery side; the partition groups destinations under it.
package struct SiteID: Hashable, Sendable {
    package let value: UInt32

    package init(value: UInt32) {
        self.value = value
    }
}

/// A job's slot in its partition, with a generation so that a late answer cannot hit a reused slot.
package struct JobHandle: Hashable, Sendable {
    package let slot: UInt32
    package let generation: UInt32

    package init(slot: UInt32, generation: UInt32) {
        self.slot = slot
        self.generation = generation
    }
}

/// A recipient handed out for an attempt.
package struct PulledRecipient: Sendable {
    package let handle: JobHandle
    /// Index in `Envelope.recipients`.
    package let recipient: UInt32
    /// Attempts made before this one.
    package let attempts: UInt16

    package init(handle: JobHandle, recipient: UInt32, attempts: UInt16) {
        self.handle = handle
        self.recipient = recipient
        self.attempts = attempts
    }
}

/// Recipients of one message and one destination, for one mail transaction.
package struct Transaction: Sendable {
    package let message: StoredMessageRef
    package let destination: DestinationID
    /// Nil when envelope and body have left memory and are to be read back through `BodyReading`.
    package let envelope: Envelope?
    package let body: MessageBody?
    package let recipients: [PulledRecipient]

    package init(
        message: StoredMessageRef, destination: DestinationID, envelope: Envelope?, body: MessageBody?,
        recipients: [PulledRecipient]
    ) {
        self.message = message
        self.destination = destination
        self.envelope = envelope
        self.body = body
        self.recipients = recipients
    }
}

/// How an attempt ended for one recipient, in the words of the wire.
package enum AttemptResult: Sendable {
    case delivered(SMTPReply)
    case temporary(SMTPReply)
    case permanent(SMTPReply)
    /// Connection lost after the final dot.
    case inDoubt(SMTPReply)
    /// No attempt took place (our own fault, or work given back): ready again, nothing counted.
    case returned
    /// The message's segment has no permission to send now (PROTOCOL P1): again in a moment, nothing counted.
    case notPermitted
    /// The stored body is damaged here, and other copies are asked for it: again in a moment, nothing counted.
    case beingRepaired
    /// The stored body is damaged: held out of the queue, alarmed, never sent.
    case damaged
}

/// What the partition decided about a finished attempt; the delivery side makes it durable and then calls `settle`.
package enum RecipientDecision: Sendable {
    case delivered
    /// Tried again at `until`. `delayNotice`: send one now (once per message and recipient).
    case deferred(until: Instant, delayNotice: Bool)
    case inDoubt(until: Instant)
    case bounced
    case expired
    case returned
    /// The handle is stale: nothing is to be recorded.
    case unknown
}

/// A partition tells the delivery side of its loop that there is work. Called on the loop.
package protocol WorkSignalling: AnyObject, Sendable {
    /// The destination has ready jobs and no site: find one, then call `assign`, `deferDestination` or `failDestination`.
    func routeNeeded(_ destination: DestinationID, domain: Domain)
    /// The site has ready jobs (`ready` of them now).
    func workReady(_ site: SiteID, ready: Int)
    /// These recipients were found too old when their destination failed as a whole (or an operator bounced them): report
    /// and record them, then `settle`.
    func finalWithoutAttempt(_ items: [FinalWithoutAttempt])
    /// These recipients have waited long while their destination failed as a whole: send a delay notice for each and record
    /// `.delayNoticeSent`. They stay queued; nothing is to be settled.
    func delayNoticesDue(_ items: [DelayNoticeDue])
}

extension WorkSignalling {
    /// Notices are a courtesy: a delivery side that sends none is still right.
    package func delayNoticesDue(_ items: [DelayNoticeDue]) {}
}

/// A recipient whose delay notice came due without an attempt of its own (RFC 3461 4.1, RFC 5321 4.5.4.1).
package struct DelayNoticeDue: Sendable {
    package let message: StoredMessageRef
    package let envelope: Envelope?
    package let recipient: PulledRecipient
    /// When its destination is tried again.
    package let until: Instant
    package let reply: SMTPReply

    package init(
        message: StoredMessageRef, envelope: Envelope?, recipient: PulledRecipient, until: Instant, reply: SMTPReply
    ) {
        self.message = message
        self.envelope = envelope
        self.recipient = recipient
        self.until = until
        self.reply = reply
    }
}

/// A recipient that ends without an attempt of its own.
package struct FinalWithoutAttempt: Sendable {
    package let message: StoredMessageRef
    package let envelope: Envelope?
    package let recipient: PulledRecipient
    /// `.bounced` (the domain cannot take mail), `.expired` or `.adminBounced`.
    package let verdict: OutcomeVerdict
    package let reply: SMTPReply
    /// Whether an NDR may be sent (an operator's bounce sends none unless asked).
    package let report: Bool

    package init(
        message: StoredMessageRef, envelope: Envelope?, recipient: PulledRecipient, verdict: OutcomeVerdict,
        reply: SMTPReply, report: Bool
    ) {
        self.message = message
        self.envelope = envelope
        self.recipient = recipient
        self.verdict = verdict
        self.reply = reply
        self.report = report
    }
}

/// The delivery side's view of the partition of its loop. All calls on the loop.
package protocol WorkSource: AnyObject, Sendable {
    /// The destination belongs to this site until `until`; then `routeNeeded` is asked again when it has work.
    func assign(_ destination: DestinationID, to site: SiteID, until: Instant)
    /// The destination cannot be tried now (DNS trouble, every host down): one attempt counts for each of its ready jobs,
    /// too old ones expire, and the destination waits as a whole by its own back-off. `reply` is kept as their last reply.
    func deferDestination(_ destination: DestinationID, reply: SMTPReply)
    /// As above for every destination of the site.
    func deferSite(_ site: SiteID, reply: SMTPReply)
    /// The domain takes no mail (NXDOMAIN, null MX …): all its jobs bounce through `finalWithoutAttempt`.
    func failDestination(_ destination: DestinationID, reply: SMTPReply)
    /// Our own fault (no resolver, out of descriptors): ask again at `until`; nothing is counted.
    func holdDestination(_ destination: DestinationID, until: Instant)
    /// Up to `transactions` transactions of ready jobs of the site, in fair order, each of at most `recipients` recipients.
    func pull(_ site: SiteID, transactions: Int, recipients: Int) -> [Transaction]
    /// Decides each recipient of an attempt; `deferred`, `inDoubt` and `returned` are rescheduled at once.
    func decide(_ results: [(JobHandle, AttemptResult)], envelope: Envelope, at now: Instant) -> [RecipientDecision]
    /// Final outcomes are recorded: the slots are free.
    func settle(_ handles: [JobHandle])
    /// Ready jobs of the site now.
    func ready(_ site: SiteID) -> Int
}
