// From the spool's commit to the queue: records Reception events and hands each message to the partitions concerned.
import BatonCore
import BatonModel
import BatonQueue
import BatonSpool
import Glibc
import Metrics
import Synchronization

/// A partition as durable mail comes to it. Any thread.
protocol MailTaking: Sendable {
    /// Takes fresh mail whatever waits already.
    func receive(_ messages: [AcceptedMessage])
    /// False, and nothing taken, while too much waits already.
    func offer(_ messages: [AcceptedMessage]) -> Bool
    /// Takes recipients out that are not being tried; `then` gets, for each, whether it was.
    func drop(_ ended: [EndedElsewhere], then: @escaping @Sendable ([Bool]) -> Void)
}

extension QueuePartition: MailTaking {}

/// The spool's `JobReceiving`. Runs on the writer's thread, once per commit, and never blocks there. On recovery's thread it
/// waits while a partition's mailbox is full, so that a restart with millions of queued messages holds no more of them on the
/// way than the mailbox may.
///
/// Reception events are recorded before any partition sees the message, so that a final event never comes first.
final class IntakeRelay: JobReceiving, UnreportedReceiving {
    /// Recovered messages that are offered at once.
    static let recoveredBatch = 1_024
    /// How long recovery waits before it offers again.
    private static let pause: UInt32 = 500

    private let events: any EventRecording
    private let partitions: [any MailTaking]
    private let outcomes: any OutcomeRecording
    private let time: any TimeSource
    private let received = Counter(label: "baton_messages_received_total")
    private let receivedRecipients = Counter(label: "baton_recipients_received_total")
    private let lateOutcomes = Counter(label: "baton_takeover_late_outcomes_total")

    init(
        events: any EventRecording, partitions: [any MailTaking], outcomes: any OutcomeRecording, time: any TimeSource
    ) {
        self.events = events
        self.partitions = partitions
        self.outcomes = outcomes
        self.time = time
    }

    func receive(_ messages: [AcceptedMessage]) {
        guard messages.contains(where: { $0.progress != nil }) else { return take(messages, waits: false) }
        var start = 0
        while start < messages.count {
            let end = min(start + Self.recoveredBatch, messages.count)
            take(Array(messages[start..<end]), waits: true)
            start = end
        }
    }

    /// `waits`: on recovery's thread, which may block.
    private func take(_ messages: [AcceptedMessage], waits: Bool) {
        let now = time.now()
        var receptions: [MailEvent] = []
        receptions.reserveCapacity(messages.count)
        var fresh = 0, freshRecipients = 0
        for message in messages where !message.receptionRecorded {
            let envelope = message.envelope
            let at = message.progress == nil ? now : envelope.arrival
            if message.progress == nil { freshRecipients += envelope.recipients.count }
            for index in envelope.recipients.indices {
                receptions.append(
                    MailEvent(
                        type: .reception, at: at, envelope: envelope, recipient: UInt32(index), attempts: 0,
                        reply: Self.acceptance(of: envelope.id), peer: Self.client(of: envelope)))
            }
            // Of several parts one counts for the message.
            if message.progress == nil, envelope.numbers?.first ?? 0 == 0 { fresh += 1 }
        }
        if !receptions.isEmpty { events.record(receptions) }
        if fresh > 0 { received.increment(by: Int64(fresh)) }
        if freshRecipients > 0 { receivedRecipients.increment(by: Int64(freshRecipients)) }
        if partitions.count == 1 {
            hand(messages, to: partitions[0], waits: waits)
            return
        }
        // A partition takes only the recipients that hash to it; a message is shown to those that have one.
        for (index, partition) in partitions.enumerated() {
            let mine = messages.filter { $0.envelope.recipients.contains { owns($0, index) } }
            if !mine.isEmpty { hand(mine, to: partition, waits: waits) }
        }
    }

    private func owns(_ recipient: EnvelopeRecipient, _ index: Int) -> Bool {
        partitions.count == 1 || recipient.address.domain.stableHash % UInt64(partitions.count) == UInt64(index)
    }

    private func hand(_ messages: [AcceptedMessage], to partition: any MailTaking, waits: Bool) {
        guard waits else { return partition.receive(messages) }
        while !partition.offer(messages) { usleep(Self.pause) }
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

    /// Event first, then the outcome, as every final one; and both only for what has left the queue, so that an attempt under way has
    /// its own outcome.
    func late(outcomes found: [UnreportedOutcome]) {
        for (index, partition) in partitions.enumerated() {
            let mine = found.filter { item in
                let number = Int(item.outcome.job.recipient)
                return item.envelope.recipients.indices.contains(number)
                    && owns(item.envelope.recipients[number], index)
            }
            guard !mine.isEmpty else { continue }
            partition.drop(mine.map { EndedElsewhere(id: $0.envelope.id, job: $0.outcome.job) }) { [self] dropped in
                let ended = zip(mine, dropped).filter(\.1).map(\.0)
                guard !ended.isEmpty else { return }
                lateOutcomes.increment(by: Int64(ended.count))
                unreported(outcomes: ended)
                outcomes.record(ended.map(\.outcome))
            }
        }
    }

    func unreported(receptions: [Envelope]) {
        var missing: [MailEvent] = []
        for envelope in receptions {
            for index in envelope.recipients.indices {
                missing.append(
                    MailEvent(
                        type: .reception, at: envelope.arrival, envelope: envelope, recipient: UInt32(index),
                        attempts: 0, reply: Self.acceptance(of: envelope.id), peer: Self.client(of: envelope)))
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
        case .withdrawn: nil
        }
    }

    /// Who handed the message in; nil for Baton's own reports.
    private static func client(of envelope: Envelope) -> PeerName? {
        envelope.client.isEmpty ? nil : PeerName(name: [], address: envelope.client)
    }

    /// The reply that the client got, for the event's `response`.
    static func acceptance(of id: MessageID) -> SMTPReply {
        SMTPReply(
            code: 250, status: EnhancedStatus(2, 0, 0), text: Array("Ok: queued as ".utf8) + id.textBytes,
            stage: .finalDot)
    }
}
