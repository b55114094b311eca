// From the spool's commit to the queue: records Reception events and hands each message to the partitions concerned.
import BatonCore
import BatonModel
import BatonQueue
import BatonSpool
import Metrics
import Synchronization

/// The spool's `JobReceiving`. Runs on the writer's thread (and recovery's), once per commit; never blocks.
///
/// Reception events are recorded before any partition sees the message, so that a final event never comes first.
final class IntakeRelay: JobReceiving, UnreportedReceiving {
    private let events: any EventRecording
    private let partitions: [QueuePartition]
    private let time: any TimeSource
    private let received = Counter(label: "baton_messages_received_total")
    private let receivedRecipients = Counter(label: "baton_recipients_received_total")

    init(events: any EventRecording, partitions: [QueuePartition], time: any TimeSource) {
        self.events = events
        self.partitions = partitions
        self.time = time
    }

    func receive(_ messages: [AcceptedMessage]) {
        let now = time.now()
        var receptions: [MailEvent] = []
        receptions.reserveCapacity(messages.count)
        var fresh = 0
        for message in messages where !message.receptionRecorded {
            let envelope = message.envelope
            let at = message.progress == nil ? now : envelope.arrival
            for index in envelope.recipients.indices {
                receptions.append(
                    MailEvent(
                        type: .reception, at: at, envelope: envelope, recipient: UInt32(index), attempts: 0,
                        reply: Self.acceptance(of: envelope.id)))
            }
            if message.progress == nil { fresh += 1 }
        }
        if !receptions.isEmpty { events.record(receptions) }
        if fresh > 0 {
            received.increment(by: Int64(fresh))
            receivedRecipients.increment(by: Int64(receptions.count))
        }
        if partitions.count == 1 {
            partitions[0].receive(messages)
            return
        }
        // A partition takes only the recipients that hash to it; a message is shown to those that have one.
        for (index, partition) in partitions.enumerated() {
            let mine = messages.filter { message in
                message.envelope.recipients.contains {
                    $0.address.domain.stableHash % UInt64(partitions.count) == UInt64(index)
                }
            }
            if !mine.isEmpty { partition.receive(mine) }
        }
    }

    // MARK: Recovery

    func unreported(outcomes: [UnreportedOutcome]) {
        events.record(
            outcomes.compactMap { item in
                let outcome = item.outcome
                guard let type = Self.eventType(of: outcome.verdict) else { return nil }
                return MailEvent(
                    type: type, at: outcome.at, envelope: item.envelope, recipient: outcome.job.recipient,
                    attempts: outcome.attempts, reply: outcome.reply, peer: outcome.peer)
            })
    }

    func unreported(receptions: [Envelope]) {
        var missing: [MailEvent] = []
        for envelope in receptions {
            for index in envelope.recipients.indices {
                missing.append(
                    MailEvent(
                        type: .reception, at: envelope.arrival, envelope: envelope, recipient: UInt32(index),
                        attempts: 0, reply: Self.acceptance(of: envelope.id)))
            }
        }
        events.record(missing)
    }

    private static func eventType(of verdict: OutcomeVerdict) -> MailEventType? {
        switch verdict {
        case .delivered: .delivery
        case .deferred, .inDoubt: .transientFailure
        case .bounced: .bounce
        case .expired: .expiration
        case .adminBounced: .adminBounce
        case .delayNoticeSent: .delayNotice
        }
    }

    /// The reply that the client got, for the event's `response`.
    static func acceptance(of id: MessageID) -> SMTPReply {
        SMTPReply(
            code: 250, status: EnhancedStatus(2, 0, 0), text: Array("Ok: queued as ".utf8) + id.textBytes,
            stage: .finalDot)
    }
}
