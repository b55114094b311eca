// Who is told what: which recipients are reported about, and the message that does it.
import BatonCore
import BatonMail
import BatonModel
import NIOCore

/// The rules of RFC 3461 4.1, 5.2 and RFC 5321 4.5.5 about who may be sent a report.
enum ReportPolicy {
    /// Whether anybody may be told about this message at all: never the null sender, never about a report.
    static func mayReport(_ envelope: Envelope) -> Bool {
        envelope.sender != nil && !envelope.flags.contains(.report)
    }

    static func wantsFailure(_ envelope: Envelope, _ recipient: UInt32) -> Bool {
        mayReport(envelope) && (notify(envelope, recipient)?.wantsFailure ?? false)
    }

    /// Without NOTIFY the partition's own rule (`queue.delay_notice_after`) has decided already.
    static func wantsDelay(_ envelope: Envelope, _ recipient: UInt32) -> Bool {
        guard mayReport(envelope), let notify = notify(envelope, recipient) else { return false }
        return notify.isEmpty || notify.wantsDelay
    }

    static func wantsSuccess(_ envelope: Envelope, _ recipient: UInt32) -> Bool {
        mayReport(envelope) && (notify(envelope, recipient)?.wantsSuccess ?? false)
    }

    private static func notify(_ envelope: Envelope, _ recipient: UInt32) -> NotifyFlags? {
        let index = Int(recipient)
        return envelope.recipients.indices.contains(index) ? envelope.recipients[index].notify : nil
    }
}

/// A recipient on its way through the settler: what is recorded once its report, if it needs one, is durable.
struct PendingRecipient: Sendable {
    let recipient: PulledRecipient
    let verdict: OutcomeVerdict
    /// Attempts made, the one that is settled included.
    let attempts: UInt16
    let reply: SMTPReply
    /// An operator's bounce reports only when asked to.
    var mayReport = true
}

/// Where an attempt went; empty for recipients that ended without one.
struct AttemptOrigin: Sendable {
    var site: [UInt8] = []
    var peer: PeerName?
    var sourceAddress: [UInt8] = []
    var deliveryProtocol = DeliveryProtocol.none
}

/// A report as it goes into the spool.
struct ReportSubmission: Sendable {
    let token: UInt64
    let envelope: Envelope
    let body: ByteBuffer
}

enum ReportPlan {
    /// The id of a report: a function of the message, its first recipient told of and the kind, so that a report made again
    /// after a crash is the same message (PROTOCOL C2). Keeps the original's time, by which ids sort and are found.
    static func id(of message: MessageID, recipient: UInt32, kind: ReportSubject.Kind) -> MessageID {
        var hash = StableHash()
        hash.combine(message.high)
        hash.combine(message.low)
        hash.combine(UInt64(recipient))
        hash.combine(kind.rawValue)
        let first = hash.finish()
        hash.combine(UInt8(0x52))
        return MessageID(high: (message.high & ~0xffff) | (first & 0xffff), low: hash.finish())
    }

    /// Writes the report about `items` (1 to `DeliveryReport.recipientsMax`), which go back to the sender of `envelope`.
    /// Nil where there is nobody to send it to; callers have asked `ReportPolicy` before.
    static func make(
        kind: ReportSubject.Kind, about items: [PendingRecipient], of envelope: Envelope, origin: AttemptOrigin,
        attemptAt: Instant, returned: DeliveryReport.Returned, token: UInt64, configuration: ReportConfiguration,
        at now: Instant
    ) -> ReportSubmission? {
        guard let sender = envelope.sender, let first = items.first else { return nil }
        let id = id(of: envelope.id, recipient: envelope.number(of: first.recipient.recipient), kind: kind)
        let told = items.compactMap { item -> DeliveryReport.Recipient? in
            let index = Int(item.recipient.recipient)
            guard envelope.recipients.indices.contains(index) else { return nil }
            return DeliveryReport.Recipient(
                recipient: envelope.recipients[index], action: action(kind, origin), status: status(kind, item),
                reply: item.reply, remote: origin.peer, lastAttempt: item.attempts > 0 ? attemptAt : nil,
                willRetryUntil: kind == .delay ? configuration.expireAfter.map { envelope.arrival + $0 } : nil)
        }
        let report = DeliveryReport(
            id: id, kind: kind, at: now, original: envelope, recipients: told, returned: returned)
        let body = report.compose(configuration)
        let traits = BodyTraits.measured(body)
        var flags: EnvelopeFlags = .report
        if report.needsUTF8 { flags.insert(.smtpUTF8) }
        if traits.hasEightBitBody || traits.hasEightBitHeader { flags.insert(.eightBitMIME) }
        let made = Envelope(
            id: id, arrival: now, sender: nil, returnContent: .headers, flags: flags,
            senderClass: envelope.senderClass,
            messageIDField: MessageIDField.value(id, hostname: configuration.hostname),
            recipients: [EnvelopeRecipient(address: sender, notify: .never)],
            subjects: items.map {
                ReportSubject(
                    message: envelope.id, recipient: envelope.number(of: $0.recipient.recipient), kind: kind)
            }, traits: traits)
        return ReportSubmission(token: token, envelope: made, body: body)
    }

    private static func action(_ kind: ReportSubject.Kind, _ origin: AttemptOrigin) -> DeliveryReport.Action {
        switch kind {
        case .failure: .failed
        case .delay: .delayed
        // LMTP hands a message to its final mailbox: that is a delivery, not a relay (RFC 3464 2.3.3).
        case .success: origin.deliveryProtocol == .lmtp ? .delivered : .relayed
        }
    }

    /// The class agrees with the action, whatever the remote's enhanced code said (RFC 2034 4); 4.4.7 for what grew too old.
    private static func status(_ kind: ReportSubject.Kind, _ item: PendingRecipient) -> EnhancedStatus {
        let found = item.reply.effectiveStatus
        switch kind {
        case .failure:
            if item.verdict == .expired { return EnhancedStatus(4, 4, 7) }
            return EnhancedStatus(5, found.subject, found.detail)
        case .delay: return EnhancedStatus(4, found.subject, found.detail)
        case .success: return EnhancedStatus(2, found.subject, found.detail)
        }
    }
}
