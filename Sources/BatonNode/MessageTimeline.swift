// One message's report for the admin API, from its queue rows and its events.
import BatonCore
import BatonModel
import BatonQueue

/// Joins what the queue knows of the live recipients with what the event log has of all of them.
struct MessageTimeline {
    let id: MessageID
    let node: String
    let rows: [QueueRow]
    /// Of the rows, by where they are stored: a message may have several parts.
    let envelopes: [StoredMessageRef: Envelope]
    /// Oldest first; several with one `event_id` are one.
    let events: [EventRecord]

    func report() -> MessageReport {
        let first = events.first
        let envelope = rows.lazy.compactMap { envelopes[$0.ref] }.first
        var order: [String] = []
        var recipients: [String: MessageReport.Recipient] = [:]
        func entry(_ address: String, _ change: (inout MessageReport.Recipient) -> Void) {
            if recipients[address] == nil {
                order.append(address)
                recipients[address] = MessageReport.Recipient(
                    recipient: address, site: "", state: "", attemptsMade: 0, nextDue: nil, attempts: [])
            }
            if var value = recipients[address] {
                change(&value)
                recipients[address] = value
            }
        }
        var seen: Set<String> = []
        for event in events where seen.insert(event.eventID).inserted {
            entry(event.recipient) { recipient in
                recipient.attempts.append(event.attempt)
                recipient.attemptsMade = max(recipient.attemptsMade, event.attempt.attempt)
                if let site = event.attempt.site, !site.isEmpty { recipient.site = site }
                if let state = Self.finalStates[event.type] { recipient.state = state }
            }
        }
        for row in rows {
            let index = Int(row.recipient)
            guard let part = envelopes[row.ref], index < part.recipients.count else { continue }
            entry(part.recipients[index].address.description) { recipient in
                recipient.state = row.state.name
                recipient.site = String(decoding: row.site, as: UTF8.self)
                recipient.attemptsMade = Int(row.attempts)
                recipient.nextDue = row.due.map { TimeText.rfc3339($0) }
            }
        }
        return MessageReport(
            id: id.description, node: node, sender: envelope?.sender?.description ?? first?.sender ?? "",
            messageId: envelope.map { String(decoding: $0.messageIDField, as: UTF8.self) } ?? first?.messageID ?? "",
            size: envelope?.traits.length ?? first?.size ?? 0,
            arrived: TimeText.rfc3339(envelope?.arrival ?? id.madeAt),
            client: envelope.map { String(decoding: $0.client, as: UTF8.self) } ?? "",
            user: envelope.map { String(decoding: $0.user, as: UTF8.self) } ?? first?.user ?? "",
            envid: envelope.map { String(decoding: $0.envid, as: UTF8.self) } ?? "",
            recipients: order.compactMap { recipients[$0] })
    }

    private static let finalStates = [
        "Delivery": "delivered", "Bounce": "bounced", "Expiration": "expired", "AdminBounce": "admin_bounced",
    ]
}
