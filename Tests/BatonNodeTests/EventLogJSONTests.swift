// Event lines: what Python's json module makes of them.
import BatonCore
import BatonModel
import Foundation
import NIOCore
import Testing

@testable import BatonNode

func sampleEnvelope(
    _ number: UInt64 = 1, sender: String? = "sender@example.org", user: [UInt8] = [], messageID: [UInt8] = [],
    recipients: Int = 1
) -> Envelope {
    var traits = BodyTraits.empty
    traits.length = 5120
    return Envelope(
        id: MessageID(at: Instant(secondsSinceEpoch: 1_767_225_600), random: (7, number)),
        arrival: Instant(secondsSinceEpoch: 1_767_225_600), sender: sender.flatMap { MailAddress($0) }, user: user,
        sessionID: 0xabc, messageIDField: messageID,
        recipients: (0..<recipients).compactMap { MailAddress("user\($0)@example.com") }.map {
            EnvelopeRecipient(address: $0)
        }, traits: traits)
}

func sampleEvent(
    _ type: MailEventType, _ envelope: Envelope = sampleEnvelope(), recipient: UInt32 = 0, attempts: UInt16 = 1,
    reply: SMTPReply? = nil
) -> MailEvent {
    MailEvent(
        type: type, at: Instant(nanoseconds: 1_767_229_200_123_456_789), envelope: envelope, recipient: recipient,
        attempts: attempts, reply: reply,
        peer: PeerName(name: Array("mx.example.com".utf8), address: Array("192.0.2.9".utf8)),
        site: Array("example.com".utf8), sourceAddress: Array("192.0.2.1".utf8), deliveryProtocol: .esmtp)
}

private func line(_ event: MailEvent) -> Data {
    var json = EventJSON(nodeID: "n1")
    json.append(event)
    return Data(json.bytes)
}

private func object(_ data: Data) throws -> [String: Any] {
    try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
}

@Test func eventLineLosesAField() throws {
    let reply = SMTPReply(code: 451, status: EnhancedStatus(4, 3, 2), text: Array("busy\nlater".utf8), stage: .rcpt)
    let envelope = sampleEnvelope(user: Array("billing".utf8), messageID: Array("<a@b>".utf8))
    let data = line(sampleEvent(.transientFailure, envelope, attempts: 3, reply: reply))
    #expect(data.last == 0x0a && data.dropLast().firstIndex(of: 0x0a) == nil)
    let found = try object(data)
    #expect(
        Set(found.keys) == [
            "type", "event_id", "id", "sender", "recipient", "message_id", "queue", "site", "size", "response",
            "peer_address", "timestamp", "event_time", "created", "num_attempts", "egress_source", "source_address",
            "bounce_classification", "delivery_protocol", "user", "session_id", "nodeid", "tls_protocol_version",
            "tls_cipher",
        ])
    #expect(found["type"] as? String == "TransientFailure")
    #expect(found["id"] as? String == envelope.id.description)
    #expect(found["sender"] as? String == "sender@example.org")
    #expect(found["recipient"] as? String == "user0@example.com")
    #expect(found["message_id"] as? String == "<a@b>")
    #expect(found["queue"] as? String == "example.com")
    #expect(found["size"] as? Int == 5120)
    #expect(found["timestamp"] as? Int == 1_767_229_200)
    #expect(found["event_time"] as? String == "2026-01-01T01:00:00.123456Z")
    #expect(found["created"] as? Int == 1_767_225_600)
    #expect(found["num_attempts"] as? Int == 3)
    #expect(found["user"] as? String == "billing")
    #expect(found["delivery_protocol"] as? String == "ESMTP")
    #expect(found["source_address"] as? String == "192.0.2.1")
    let response = try #require(found["response"] as? [String: Any])
    #expect(response["code"] as? Int == 451)
    #expect(response["content"] as? String == "busy\nlater")
    #expect(response["command"] as? String == "RCPT TO")
    #expect(response["enhanced_code"] as? [String: Int] == ["class": 4, "subject": 3, "detail": 2])
    #expect(found["peer_address"] as? [String: String] == ["name": "mx.example.com", "addr": "192.0.2.9"])
}

@Test func nullSenderAndNoReplyBreakTheLine() throws {
    let event = MailEvent(
        type: .expiration, at: Instant(nanoseconds: -1), envelope: sampleEnvelope(sender: nil), recipient: 9,
        attempts: 0)
    let found = try object(line(event))
    #expect(found["sender"] as? String == "")
    #expect(found["recipient"] as? String == "")
    #expect(found["response"] is NSNull && found["peer_address"] is NSNull)
    #expect(found["event_time"] as? String == "1969-12-31T23:59:59.999999Z")
    #expect(found["bounce_classification"] as? String == "MessageExpired")
}

@Test func hostileTextBreaksAnEventLine() throws {
    let seed: UInt64 = 0x5eed_0009
    var random = SplitMix64(seed: seed)
    var json = EventJSON(nodeID: "n\"1\\\n")
    var texts: [[UInt8]] = []
    for _ in 0..<400 {
        let text = (0..<Int.random(in: 0...40, using: &random)).map { _ -> UInt8 in
            [0x22, 0x5c, 0x0a, 0x0d, 0, 0x7f, 0x1f, 0x2f, 0xc3, 0xbc, 0xff, 0xe2, 0x80, 0xa8, 0x41, 0x20]
                .randomElement(using: &random) ?? 0
        }
        texts.append(text)
        let reply = SMTPReply(code: 550, status: nil, text: text, stage: .finalDot)
        json.append(sampleEvent(.bounce, sampleEnvelope(user: text, messageID: text), reply: reply))
        json.append(
            RejectionEvent(
                at: .epoch, sender: text, recipient: text, client: text, sessionID: random.next(), reply: reply))
    }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [
        "python3", "-c",
        """
        import sys, json
        out = []
        for raw in sys.stdin.buffer.read().split(b"\\n")[:-1]:
            out.append(json.loads(raw.decode("utf-8", "strict"), parse_constant=lambda c: 1 / 0))
        print(json.dumps([[o["type"], o["response"]["content"], o["user"], o["nodeid"], o["sender"]] for o in out]))
        """,
    ]
    let input = Pipe()
    let output = Pipe()
    process.standardInput = input
    process.standardOutput = output
    try process.run()
    let bytes = json.bytes
    let writer = Thread { [handle = input.fileHandleForWriting] in
        handle.write(Data(bytes))
        try? handle.close()
    }
    writer.start()
    let read = try JSONDecoder().decode([[String]].self, from: output.fileHandleForReading.readDataToEndOfFile())
    process.waitUntilExit()
    try #require(read.count == texts.count * 2, "seed \(seed)")
    for (index, text) in texts.enumerated() {
        let repaired = String(decoding: text, as: UTF8.self)
        #expect(read[index * 2] == ["Bounce", repaired, repaired, "n\"1\\\n", "sender@example.org"], "seed \(seed)")
        #expect(read[index * 2 + 1] == ["Rejection", repaired, "", "n\"1\\\n", repaired], "seed \(seed)")
    }
}

@Test func finalEventsOfOneRecipientHaveTwoIDs() throws {
    let ids = try [MailEventType.delivery, .bounce, .expiration, .adminBounce].map {
        try object(line(sampleEvent($0, attempts: 4)))["event_id"] as? String
    }
    #expect(Set(ids).count == 1)
    let first = try object(line(sampleEvent(.transientFailure, attempts: 1)))["event_id"] as? String
    let second = try object(line(sampleEvent(.transientFailure, attempts: 2)))["event_id"] as? String
    #expect(first != second && first != ids[0])
}

@Test(arguments: [
    (550, "5.1.1", "User unknown", "InvalidRecipient"), (550, "5.1.2", "", "BadDomain"),
    (556, "5.1.10", "", "BadDomain"), (550, "5.2.1", "", "InactiveMailbox"), (452, "4.2.2", "", "QuotaIssues"),
    (552, "5.3.4", "", "MessageTooLarge"), (451, "4.4.1", "", "NoAnswerFromHost"), (550, "5.4.4", "", "RoutingErrors"),
    (501, "5.5.4", "", "ProtocolErrors"), (554, "5.6.3", "", "ContentRelated"), (550, "5.7.26", "", "PolicyRelated"),
    (550, "5.7.1", "listed by an RBL", "SpamBlock"), (554, "5.7.1", "no", "PolicyRelated"),
    (0, "", "timed out", "NoAnswerFromHost"), (550, "", "no such user", "InvalidRecipient"),
    (554, "", "Spam message", "SpamBlock"), (552, "", "", "QuotaIssues"), (599, "", "", "Uncategorized"),
])
func bounceClassifiedWrongly(code: UInt16, status: String, text: String, expected: String) {
    let reply = SMTPReply(
        code: code, status: EnhancedStatus.parse(Array(status.utf8))?.status, text: Array(text.utf8), stage: .rcpt)
    #expect(BounceClassification.of(sampleEvent(.bounce, reply: reply)).rawValue == expected)
    #expect(BounceClassification.of(sampleEvent(.delivery, reply: reply)).rawValue == "")
}
