// An event as one line of JSON (CONTRACT "Events"), written octet by octet without Foundation.
import BatonCore
import BatonMail
import BatonModel

/// Formats events into a byte array that its owner reuses: one bounded scratch line, one copy.
struct EventJSON {
    private(set) var bytes: [UInt8] = []
    private let nodeID: [UInt8]
    private var lastSecond: Int64 = .min
    private var lastSecondText: [UInt8] = []

    init(nodeID: String) {
        self.nodeID = Array(nodeID.utf8)
        bytes.reserveCapacity(1 << 20)
    }

    mutating func removeAll() { bytes.removeAll(keepingCapacity: true) }

    /// One line with its LF.
    mutating func append(_ event: MailEvent) {
        let envelope = event.envelope
        let index = Int(event.recipient)
        let recipient = index < envelope.recipients.count ? envelope.recipients[index].address : nil
        let sender = envelope.sender?.bytes ?? []
        let address = recipient?.bytes ?? []
        let reply = event.reply
        let peer = event.peer
        remember(event.at)
        let variable =
            sender.count + address.count * 2 + envelope.messageIDField.count + event.site.count
            + (reply?.text.count ?? 0) + (peer?.name.count ?? 0) + (peer?.address.count ?? 0)
            + event.sourceAddress.count + envelope.user.count + nodeID.count
        let second = lastSecondText
        let node = nodeID
        withLine(variable: variable) { line in
            line.text("{\"type\":\"")
            line.text(event.type.name)
            line.text("\",\"event_id\":\"")
            line.id(event.eventID)
            line.text("\",\"id\":\"")
            line.id(envelope.id)
            line.text("\",\"sender\":")
            line.string(sender)
            line.text(",\"recipient\":")
            line.string(address)
            line.text(",\"message_id\":")
            line.string(envelope.messageIDField)
            line.text(",\"queue\":")
            if let recipient { line.domain(recipient) } else { line.text("\"\"") }
            line.text(",\"site\":")
            line.string(event.site)
            line.text(",\"size\":")
            line.number(Int64(envelope.traits.length))
            line.response(reply)
            line.peer(name: peer?.name ?? [], address: peer?.address ?? [], isKnown: peer != nil)
            line.time(event.at, second: second)
            line.text(",\"created\":")
            line.number(envelope.arrival.secondsSinceEpoch)
            line.text(",\"num_attempts\":")
            line.number(Int64(event.attempts))
            line.text(",\"egress_source\":\"\",\"source_address\":")
            line.string(event.sourceAddress)
            line.text(",\"bounce_classification\":\"")
            line.text(BounceClassification.of(event).rawValue)
            line.text("\",\"delivery_protocol\":\"")
            line.text(event.deliveryProtocol.name)
            line.text("\",\"user\":")
            line.string(envelope.user)
            line.session(envelope.sessionID, nodeID: node)
        }
    }

    /// A refusal at the door: no id, no size; the event's id comes from what was refused and when.
    mutating func append(_ rejection: RejectionEvent) {
        var hash = StableHash()
        hash.combine(rejection.sessionID)
        hash.combine(UInt64(bitPattern: rejection.at.nanoseconds))
        hash.combine(rejection.recipient)
        let first = hash.finish()
        hash.combine(UInt8(0x5a))
        let id = MessageID(high: first, low: hash.finish())
        remember(rejection.at)
        let variable =
            rejection.sender.count + rejection.recipient.count + rejection.client.count + rejection.reply.text.count
            + nodeID.count
        let second = lastSecondText
        let node = nodeID
        withLine(variable: variable) { line in
            line.text("{\"type\":\"Rejection\",\"event_id\":\"")
            line.id(id)
            line.text("\",\"id\":\"\",\"sender\":")
            line.string(rejection.sender)
            line.text(",\"recipient\":")
            line.string(rejection.recipient)
            line.text(",\"message_id\":\"\",\"queue\":\"\",\"site\":\"\",\"size\":0")
            line.response(rejection.reply)
            line.peer(name: [], address: rejection.client, isKnown: true)
            line.time(rejection.at, second: second)
            line.text(",\"created\":")
            line.number(rejection.at.secondsSinceEpoch)
            line.text(",\"num_attempts\":0,\"egress_source\":\"\",\"source_address\":\"\"")
            line.text(",\"bounce_classification\":\"\",\"delivery_protocol\":\"ESMTP\",\"user\":\"\"")
            line.session(rejection.sessionID, nodeID: node)
        }
    }

    /// Text of the current second, made once a second.
    private mutating func remember(_ at: Instant) {
        let second = at.secondsSinceEpoch
        guard second != lastSecond else { return }
        lastSecond = second
        lastSecondText = Array(CivilTime(secondsSinceEpoch: second).rfc3339Prefix.utf8)
    }

    /// `variable`: octets of all values of free length. Escaped, each becomes six at most.
    private mutating func withLine(variable: Int, _ write: (inout EventLine) -> Void) {
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: EventLine.fixedMax + variable * 6) { scratch in
            var line = EventLine(scratch)
            write(&line)
            bytes.append(contentsOf: line.written)
        }
    }
}

/// A moment as event lines and file names write it, in UTC.
struct CivilTime {
    private let time: CalendarTime

    init(secondsSinceEpoch seconds: Int64) {
        self.time = CalendarTime(Instant(secondsSinceEpoch: seconds))
    }

    private static func two(_ value: Int) -> String { value < 10 ? "0\(value)" : "\(value)" }

    /// `2026-11-24T00:30:00`, without fraction and zone.
    var rfc3339Prefix: String {
        "\(time.year)-\(Self.two(time.month))-\(Self.two(time.day))T\(Self.two(time.hour)):"
            + "\(Self.two(time.minute)):\(Self.two(time.second))"
    }

    /// `20261124T003000Z`, as in the names of event files: it sorts by time.
    var compact: String {
        "\(time.year)\(Self.two(time.month))\(Self.two(time.day))T\(Self.two(time.hour))"
            + "\(Self.two(time.minute))\(Self.two(time.second))Z"
    }
}

/// Why mail failed, in KumoMTA's words where the meaning is the same; from the enhanced status first, else from the code.
enum BounceClassification: String {
    case none = ""
    case invalidRecipient = "InvalidRecipient"
    case inactiveMailbox = "InactiveMailbox"
    case quotaIssues = "QuotaIssues"
    case badDomain = "BadDomain"
    case routingErrors = "RoutingErrors"
    case relaying = "RelayDenied"
    case noAnswerFromHost = "NoAnswerFromHost"
    case protocolErrors = "ProtocolErrors"
    case messageTooLarge = "MessageTooLarge"
    case contentRelated = "ContentRelated"
    case policyRelated = "PolicyRelated"
    case spamBlock = "SpamBlock"
    case messageExpired = "MessageExpired"
    case uncategorized = "Uncategorized"

    static func of(_ event: MailEvent) -> BounceClassification {
        switch event.type {
        case .reception, .delivery, .rejection, .delayNotice, .adminBounce: return .none
        case .expiration: return .messageExpired
        case .bounce, .transientFailure: break
        }
        guard let reply = event.reply else { return .uncategorized }
        if let status = reply.status {
            switch (status.subject, status.detail) {
            case (1, 1), (1, 3), (1, 6): return .invalidRecipient
            case (1, 2), (1, 10): return .badDomain
            case (2, 1): return .inactiveMailbox
            case (2, 2): return .quotaIssues
            case (2, 3), (3, 4): return .messageTooLarge
            case (4, 1), (4, 2): return .noAnswerFromHost
            case (4, _): return .routingErrors
            case (5, _): return .protocolErrors
            case (6, _): return .contentRelated
            case (7, 1): return mentionsSpam(reply.text) ? .spamBlock : .policyRelated
            case (7, _): return .policyRelated
            default: break
            }
        }
        switch reply.code {
        case 0: return .noAnswerFromHost
        case 552, 452: return .quotaIssues
        case 550, 553: return mentionsSpam(reply.text) ? .spamBlock : .invalidRecipient
        case 500...504: return .protocolErrors
        case 554: return mentionsSpam(reply.text) ? .spamBlock : .policyRelated
        default: return .uncategorized
        }
    }

    private static func mentionsSpam(_ text: [UInt8]) -> Bool {
        let lowered = String(decoding: text.prefix(256), as: UTF8.self).lowercased()
        return ["spam", "blocklist", "blacklist", "reputation", "rbl"].contains { lowered.contains($0) }
    }
}
