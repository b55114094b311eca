// Drives a client session by hand: bytes in, written text and results out, under a clock that stands still.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonSMTP

/// A session with everything it wrote and said. `offers` are EHLO keywords.
struct SessionRun {
    var session: ClientSession
    var now = Instant(secondsSinceEpoch: 1_000)
    var written: [UInt8] = []
    var greeted: PeerCapabilities?
    var refused: SMTPReply?
    var finished: [TransactionEnd] = []
    var wanted: [UInt32] = []
    var closes = 0
    /// Names of the actions, in order.
    var order: [String] = []

    init(isLMTP: Bool = false, chunkingFrom: Int = Limits.fragmentThreshold) {
        session = ClientSession(
            settings: ClientSettings(
                hostname: Array("relay.test".utf8), isLMTP: isLMTP, chunkingFrom: chunkingFrom))
        send(.connected)
    }

    static func ready(_ offers: [String], isLMTP: Bool = false, chunkingFrom: Int = Limits.fragmentThreshold) -> Self {
        var run = SessionRun(isLMTP: isLMTP, chunkingFrom: chunkingFrom)
        run.peer("220 mx.test ESMTP\r\n")
        let lines = ["mx.test"] + offers
        for (index, line) in lines.enumerated() { run.peer("250\(index == lines.count - 1 ? " " : "-")\(line)\r\n") }
        run.written = []
        return run
    }

    mutating func send(_ event: ClientEvent) {
        var actions = ActionBuffer<ClientAction>()
        session.receive(event, at: now, into: &actions)
        for action in actions.drain() {
            order.append("\(action)".prefix { $0 != "(" }.description)
            switch action {
            case .write(let bytes): written += Array(bytes.readableBytesView)
            case .wantFragment(let index): wanted.append(index)
            case .greeted(let found): greeted = found
            case .refused(let reply): refused = reply
            case .finished(let end): finished.append(end)
            case .close: closes += 1
            }
        }
    }

    /// What a peer says that answers a body when it has come: the text behind a 354 arrives apart.
    mutating func peer(_ text: String) {
        var rest = text[...]
        while let go = rest.firstRange(of: "354 "), let end = rest[go.upperBound...].firstRange(of: "\r\n") {
            atOnce(String(rest[..<end.upperBound]))
            rest = rest[end.upperBound...]
        }
        if !rest.isEmpty { atOnce(String(rest)) }
    }

    mutating func atOnce(_ text: String) { send(.received(ByteBuffer(string: text))) }

    mutating func pass(_ span: TimeSpan) {
        now = now + span
        send(.tick)
    }

    /// What was written since last asked, as text.
    mutating func takeWritten() -> String {
        defer { written = [] }
        return String(decoding: written, as: UTF8.self)
    }
}

func traits(
    _ bytes: [UInt8], eightBitBody: Bool? = nil, eightBitHeader: Bool = false, length: Int? = nil
) -> BodyTraits {
    var dots = 0
    for index in bytes.indices where bytes[index] == UInt8(ascii: ".") && (index == 0 || bytes[index - 1] == 0x0a) {
        dots += 1
    }
    return BodyTraits(
        length: length ?? bytes.count, crc32c: CRC32C.of(bytes), headerLength: bytes.count, leadingDots: dots,
        longestLine: 78, hasEightBitBody: eightBitBody ?? bytes.contains { $0 >= 0x80 },
        hasEightBitHeader: eightBitHeader, endsWithCRLF: bytes.suffix(2) == [0x0d, 0x0a])
}

func transaction(
    to recipients: [String] = ["a@example.test"], from sender: String? = "s@sender.test",
    body: String = "Subject: x\r\n\r\nhello\r\n", flags: EnvelopeFlags = [], traits given: BodyTraits? = nil,
    notify: NotifyFlags = [], orcpt: String = "", envid: String = "", ret: ReturnContent = .unspecified,
    fragments: UInt32? = nil
) -> ClientTransaction {
    let bytes = Array(body.utf8)
    let found = given ?? traits(bytes)
    let envelope = Envelope(
        id: MessageID(high: 1, low: 2), arrival: .epoch, sender: sender.flatMap { MailAddress($0) },
        envid: Array(envid.utf8), returnContent: ret, flags: flags,
        recipients: recipients.compactMap { text in
            MailAddress(text).map {
                EnvelopeRecipient(address: $0, notify: notify, originalRecipient: Array(orcpt.utf8))
            }
        }, traits: found)
    let stored: StoredBody =
        if let fragments {
            .fragmented(traits: found, count: fragments)
        } else {
            .whole(MessageBody(bytes: ByteBuffer(bytes: bytes), traits: found))
        }
    return ClientTransaction(
        envelope: envelope, recipients: envelope.recipients.indices.map { UInt32($0) }, body: stored)
}

/// `250`, `again`, `lost 421` and the like, for short expectations.
func shortly(_ ends: [RecipientEnd]?) -> [String] {
    (ends ?? []).map { end in
        switch end {
        case .reply(let reply): "\(reply.code)"
        case .again: "again"
        case .lost(let reply): "lost \(reply.code)"
        case .inDoubt: "doubt"
        case .incapable(let lack): "incapable \(lack)"
        case .damaged: "damaged"
        }
    }
}
