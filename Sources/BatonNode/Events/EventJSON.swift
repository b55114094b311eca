// An event as one line of JSON (CONTRACT "Events"), written octet by octet without Foundation.
import BatonCore
import BatonMail
import BatonModel

/// Formats events into a byte array that its owner reuses. About a microsecond an event.
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
        let recipient =
            Int(event.recipient) < envelope.recipients.count ? envelope.recipients[Int(event.recipient)] : nil
        text("{\"type\":\"")
        text(event.type.name)
        text("\",\"event_id\":\"")
        event.eventID.forEachCharacter { bytes.append($0) }
        text("\",\"id\":\"")
        envelope.id.forEachCharacter { bytes.append($0) }
        string(",\"sender\":", envelope.sender?.bytes ?? [], closing: true)
        string(",\"recipient\":", recipient?.address.bytes ?? [])
        string(",\"message_id\":", envelope.messageIDField)
        string(",\"queue\":", recipient?.address.domain.bytes ?? [])
        string(",\"site\":", event.site)
        number(",\"size\":", Int64(envelope.traits.length))
        response(event.reply)
        peer(event.peer)
        time(event.at)
        number(",\"created\":", envelope.arrival.secondsSinceEpoch)
        number(",\"num_attempts\":", Int64(event.attempts))
        string(",\"egress_source\":", [])
        string(",\"source_address\":", event.sourceAddress)
        text(",\"bounce_classification\":\"")
        text(BounceClassification.of(event).rawValue)
        text("\",\"delivery_protocol\":\"")
        text(event.deliveryProtocol.name)
        string("\",\"user\":", envelope.user)
        session(envelope.sessionID)
    }

    /// A refusal at the door: no id, no size; the event's id comes from what was refused and when.
    mutating func append(_ rejection: RejectionEvent) {
        var hash = StableHash()
        hash.combine(rejection.sessionID)
        hash.combine(UInt64(bitPattern: rejection.at.nanoseconds))
        hash.combine(rejection.recipient)
        let first = hash.finish()
        hash.combine(UInt8(0x5a))
        text("{\"type\":\"Rejection\",\"event_id\":\"")
        MessageID(high: first, low: hash.finish()).forEachCharacter { bytes.append($0) }
        string("\",\"id\":\"\",\"sender\":", rejection.sender)
        string(",\"recipient\":", rejection.recipient)
        text(",\"message_id\":\"\",\"queue\":\"\",\"site\":\"\",\"size\":0")
        response(rejection.reply)
        peer(PeerName(name: [], address: rejection.client))
        time(rejection.at)
        number(",\"created\":", rejection.at.secondsSinceEpoch)
        text(",\"num_attempts\":0,\"egress_source\":\"\",\"source_address\":\"\",\"bounce_classification\":\"\"")
        text(",\"delivery_protocol\":\"ESMTP\",\"user\":\"\"")
        session(rejection.sessionID)
    }

    // MARK: Members

    private mutating func session(_ id: UInt64) {
        text(",\"session_id\":\"")
        for shift in stride(from: UInt64(60), through: 0, by: -4) { bytes.append(Self.hex(UInt8(id >> shift & 15))) }
        string("\",\"nodeid\":", nodeID)
        text(",\"tls_protocol_version\":null,\"tls_cipher\":null}\n")
    }

    private mutating func response(_ reply: SMTPReply?) {
        guard let reply else {
            text(",\"response\":null")
            return
        }
        number(",\"response\":{\"code\":", Int64(reply.code))
        if let status = reply.status {
            number(",\"enhanced_code\":{\"class\":", Int64(status.classDigit))
            number(",\"subject\":", Int64(status.subject))
            number(",\"detail\":", Int64(status.detail))
            text("}")
        } else {
            text(",\"enhanced_code\":null")
        }
        string(",\"content\":", reply.text)
        text(",\"command\":\"")
        text(reply.stage.name)
        text("\"}")
    }

    private mutating func peer(_ peer: PeerName?) {
        guard let peer else {
            text(",\"peer_address\":null")
            return
        }
        string(",\"peer_address\":{\"name\":", peer.name)
        string(",\"addr\":", peer.address)
        text("}")
    }

    private mutating func time(_ at: Instant) {
        let second = at.secondsSinceEpoch
        number(",\"timestamp\":", second)
        text(",\"event_time\":\"")
        if second != lastSecond {
            lastSecond = second
            lastSecondText = Array(CivilTime(secondsSinceEpoch: second).rfc3339Prefix.utf8)
        }
        bytes.append(contentsOf: lastSecondText)
        let micros = (at.nanoseconds - second * 1_000_000_000) / 1000
        bytes.append(UInt8(ascii: "."))
        var divisor: Int64 = 100_000
        while divisor > 0 {
            bytes.append(0x30 + UInt8(micros / divisor % 10))
            divisor /= 10
        }
        text("Z\"")
    }

    // MARK: Values

    private mutating func text(_ text: String) { bytes.append(contentsOf: text.utf8) }

    private mutating func number(_ key: String, _ value: Int64) {
        text(key)
        if value < 0 { bytes.append(UInt8(ascii: "-")) }
        var digits: UInt64 = value.magnitude
        let start = bytes.count
        repeat {
            bytes.append(0x30 + UInt8(digits % 10))
            digits /= 10
        } while digits > 0
        bytes[start...].reverse()
    }

    /// `closing`: the value before it still wants its quote.
    private mutating func string(_ key: String, _ value: [UInt8], closing: Bool = false) {
        if closing { bytes.append(UInt8(ascii: "\"")) }
        text(key)
        bytes.append(UInt8(ascii: "\""))
        var isPlain = true
        var isASCII = true
        for byte in value {
            if byte < 0x20 || byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "\\") || byte == 0x7f {
                isPlain = false
            }
            if byte >= 0x80 { isASCII = false }
        }
        if isPlain, isASCII {
            bytes.append(contentsOf: value)
        } else if isASCII {
            for byte in value { escape(byte) }
        } else {
            // Repaired: invalid UTF-8 becomes U+FFFD.
            for byte in String(decoding: value, as: UTF8.self).utf8 { escape(byte) }
        }
        bytes.append(UInt8(ascii: "\""))
    }

    private mutating func escape(_ byte: UInt8) {
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"):
            bytes.append(UInt8(ascii: "\\"))
            bytes.append(byte)
        case 0x0a: text("\\n")
        case 0x00..<0x20, 0x7f:
            text("\\u00")
            bytes.append(Self.hex(byte >> 4))
            bytes.append(Self.hex(byte & 15))
        default: bytes.append(byte)
        }
    }

    private static func hex(_ nibble: UInt8) -> UInt8 { nibble < 10 ? 0x30 + nibble : 0x57 + nibble }
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
