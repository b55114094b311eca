// Replies from peers that cannot be trusted: bounded, resumable at every byte, dropped when out of step.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonSMTP

private func parse(_ text: String, splitAt split: Int? = nil) -> ([String], ReplyParser) {
    var parser = ReplyParser()
    var buffer = ByteBuffer()
    var found: [String] = []
    let bytes = Array(text.utf8)
    let cut = split ?? bytes.count
    for piece in [bytes[..<cut], bytes[cut...]] {
        buffer.writeBytes(piece)
        reading: while true {
            switch parser.next(from: &buffer) {
            case .needMore: break reading
            case .reply(let code): found.append("\(code) \(String(decoding: parser.text, as: UTF8.self))")
            case .violation(let violation):
                found.append("\(violation)")
                return (found, parser)
            }
        }
    }
    return (found, parser)
}

@Suite struct ClientReplyTests {
    @Test(arguments: [
        ("250 ok\r\n", ["250 ok"]),
        ("250\r\n", ["250 "]),
        ("250-one\r\n250-two\r\n250 three\r\n", ["250 one\ntwo\nthree"]),
        ("250 a\r\n451 b\r\n", ["250 a", "451 b"]),
        ("250 bare line feed\n", ["250 bare line feed"]),
        ("250-a\r\n251 b\r\n", ["251 a\nb"]),
        ("150 preliminary\r\n", ["150 preliminary"]),
        ("250-a\r\n550 b\r\n", ["codesDiffer"]),
        ("25\r\n", ["malformed"]),
        ("2x0 no\r\n", ["malformed"]),
        ("650 no such class\r\n", ["malformed"]),
        ("099 no such class\r\n", ["malformed"]),
        ("250/a\r\n", ["malformed"]),
        ("\r\n", ["malformed"]),
        ("250 a\0b\r\n", ["nul"]),
    ])
    func replyReadWronglyAtSomeSplit(text: String, expected: [String]) {
        for split in 0...text.utf8.count { #expect(parse(text, splitAt: split).0 == expected, "split at \(split)") }
    }

    @Test func lineWithoutEndGrowsForEver() {
        let line = String(repeating: "2", count: ReplyParser.lineOctets)
        #expect(parse(line).0 == ["overlong"])
        #expect(parse("250 " + String(repeating: "x", count: ReplyParser.lineOctets) + "\r\n").0 == ["overlong"])
    }

    @Test func replyWithoutEndGrowsForEver() {
        let line = "250-" + String(repeating: "x", count: 996) + "\r\n"
        let (found, parser) = parse(String(repeating: line, count: 100))
        #expect(found == ["overlong"])
        #expect(parser.text.count <= ReplyParser.textOctets)
    }

    @Test func enhancedStatusLeftInText() {
        let (_, parser) = parse("550-5.1.1 no such\r\n550 5.1.1 user\r\n")
        let reply = parser.reply(stage: .rcpt)
        #expect(reply.status == EnhancedStatus(5, 1, 1))
        #expect(reply.text == Array("no such\nuser".utf8))
        let (_, bare) = parse("550 5.1.1\r\n")
        #expect(bare.reply(stage: .rcpt).status == EnhancedStatus(5, 1, 1))
        #expect(bare.reply(stage: .rcpt).text.isEmpty)
    }

    @Test func statusOfAnotherClassBelieved() {
        let (_, parser) = parse("550 2.0.0 odd\r\n")
        #expect(parser.reply(stage: .rcpt).status == nil)
        #expect(parser.reply(stage: .rcpt).text == Array("2.0.0 odd".utf8))
    }

    @Test func randomBytesTrapTheParser() {
        let seed: UInt64 = 0x5eed
        var random = SplitMix64(seed: seed)
        for round in 0..<2_000 {
            var parser = ReplyParser()
            var buffer = ByteBuffer()
            let alphabet = Array("0123456789- \r\n\0.x".utf8)
            for _ in 0..<40 { buffer.writeInteger(alphabet[Int(random.next() % UInt64(alphabet.count))]) }
            var steps = 0
            stepping: while steps < 50 {
                steps += 1
                switch parser.next(from: &buffer) {
                case .needMore, .violation: break stepping
                case .reply(let code):
                    _ = parser.reply(stage: .mail)
                    #expect(code >= 100 && code < 600, "seed \(seed) round \(round)")
                }
            }
            #expect(steps < 50, "seed \(seed) round \(round)")
        }
    }

    @Test func capabilityMissed() {
        let run = SessionRun.ready([
            "pipelining", "8BITMIME", "SIZE 1000", "SMTPUTF8", "DSN", "CHUNKING", "STARTTLS",
            "LIMITS RCPTMAX=5 MAILMAX=2 X=1", "AUTH plain LOGIN",
        ])
        var expected = PeerCapabilities()
        expected.pipelining = true
        expected.eightBitMIME = true
        expected.size = true
        expected.sizeLimit = 1000
        expected.smtpUTF8 = true
        expected.dsn = true
        expected.chunking = true
        expected.startTLS = true
        expected.recipientsMax = 5
        expected.transactionsMax = 2
        expected.authMechanisms = [Array("PLAIN".utf8), Array("LOGIN".utf8)]
        #expect(run.greeted == expected)
    }

    @Test func hostileCapabilityValueTraps() {
        let run = SessionRun.ready(["SIZE 99999999999999999999999", "LIMITS RCPTMAX=0 MAILMAX=-1 =", "SIZE"])
        #expect(run.greeted?.sizeLimit == 0)
        #expect(run.greeted?.recipientsMax == nil)
        #expect(run.greeted?.transactionsMax == nil)
    }
}

@Suite struct ClientDotStufferTests {
    private func reference(_ bytes: [UInt8]) -> [UInt8] {
        var result: [UInt8] = []
        for index in bytes.indices {
            if bytes[index] == UInt8(ascii: "."), index == 0 || bytes[index - 1] == 0x0a { result.append(bytes[index]) }
            result.append(bytes[index])
        }
        return result
    }

    @Test(arguments: [
        "", ".", "..", "a.b\r\n", ".\r\n", "..\r\n.\r\n", "a\r\n.b\r\n..c\r\n", "a\r\n.", "\r\n.\r\n.\r\n", "x.\r\n.",
    ])
    func dotLostAtSomeSplit(text: String) {
        let bytes = Array(text.utf8)
        for split in 0...bytes.count {
            var stuffer = DotStuffer()
            var result = Array(stuffer.stuff(ByteBuffer(bytes: bytes[..<split])).readableBytesView)
            result += Array(stuffer.stuff(ByteBuffer(bytes: bytes[split...])).readableBytesView)
            #expect(result == reference(bytes), "split at \(split)")
        }
    }
}
