// The traits that ingress finds while a body arrives, against the body measured whole.
import BatonCore
import BatonMail
import BatonModel
import BatonSMTP
import NIOCore
import NIOEmbedded
import Synchronization
import Testing

@testable import BatonIngress

/// What the envelope says about a body is what the body is: delivery goes by it, octet for octet.
@Test(arguments: ListenerServices.all)
func traitsThatAreNotTheBodys(service: ListenerService) throws {
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1, service: service)
    let bodies = [
        "Subject: x\r\n\r\nHello\r\n", "\r\n", "\r\n.dot\r\n..\r\n", "Subject: \u{fc}\r\n\r\nx\r\n",
        "Subject: x\r\n\r\n\u{fc}\r\n", "Subject: x\r\n", "no header\r\n", "Date: d\r\nMessage-ID: <1@x>\r\n\r\n",
        "Subject: x\r\n\r\n" + String(repeating: "y", count: 5_000) + "\r\n", "",
    ]
    _ = try session.send("EHLO client.test\r\n")
    for body in bodies {
        for chunked in [false, true] {
            let begin = "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"
            if chunked {
                #expect(try session.send(begin + "BDAT \(body.utf8.count) LAST\r\n" + body).contains("queued as"))
            } else {
                _ = try session.send(begin + "DATA\r\n")
                let stuffed = body.replacing("\r\n.", with: "\r\n..")
                #expect(try session.send(stuffed + ".\r\n").hasPrefix("250"))
            }
        }
    }
    // And a body without its last CRLF, which only BDAT can bring.
    _ = try session.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nBDAT 6 LAST\r\n\r\nopen")
    #expect(ingress.spool.submissions.count == 2 * bodies.count + 1)
    for submission in ingress.spool.submissions {
        let octets = BatonIngressTests.body(of: submission)
        #expect(submission.envelope.traits == BodyTraits.measured(octets), "\(String(buffer: octets))")
    }
    #expect(ingress.spool.submissions.filter { !$0.envelope.traits.endsWithCRLF }.count == 1)
}

/// The same of a streamed body, whose pieces end anywhere: within a CRLF, before a dot, in the midst of a long line.
@Test(arguments: 0..<6)
func traitsThatAreNotTheStreamsWhole(round: Int) throws {
    let seed = UInt64(0x5eed_0020 + round)
    var random = SplitMix64(seed: seed)
    var content = "Subject: x\r\n\r\n"
    while content.utf8.count < 3 * Limits.fragmentSize {
        switch random.next() % 5 {
        case 0: content += String(repeating: "z", count: Int(random.next() % 3_000)) + "\r\n"
        case 1: content += String(repeating: ".\r\n", count: Int(random.next() % 50))
        case 2: content += "..x\r\n\r\n"
        case 3: content += String(repeating: "y", count: Int(random.next() % 60_000)) + "\r\n"
        default: content += round == 5 && content.utf8.count > 2 * Limits.fragmentSize ? "\u{fc}\r\n" : "u\r\n"
        }
    }
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1)
    _ = try session.send("EHLO client.test\r\n")
    let begin = "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"
    let wire: [UInt8]
    if round % 2 == 0 {
        _ = try session.send(begin + "DATA\r\n")
        wire = Array((content.replacing("\r\n.", with: "\r\n..") + ".\r\n").utf8)
    } else {
        wire = Array((begin + "BDAT \(content.utf8.count) LAST\r\n" + content).utf8)
    }
    var replies = ""
    var rest = wire[...]
    while !rest.isEmpty {
        let piece = rest.prefix(1 + Int(random.next() % 40_000))
        rest = rest.dropFirst(piece.count)
        try session.channel.writeInbound(ByteBuffer(bytes: piece))
        ingress.loop.run()
        replies += try session.replies()
    }
    #expect(replies.contains("queued as"), "seed \(seed)")
    let submission = try #require(ingress.spool.submissions.first)
    let stored = try #require(ingress.spool.state.withLock { $0.streams.values.first })
    #expect(String(buffer: stored).hasSuffix("\r\n" + content))
    #expect(submission.envelope.traits == BodyTraits.measured(stored), "seed \(seed)")
}

/// The only octet above 127 stands near a place where a piece ends or begins, where the header's length still means something.
@Test(arguments: [
    -2, -1, 0, 1, 13, 14, 300, 100_000, Limits.fragmentSize - 1, Limits.fragmentSize, Limits.fragmentSize + 5,
])
func loneEightBitOctetOverlookedNearAPiecesEdge(offset: Int) throws {
    let head = Array("Subject: x\r\n\r\n".utf8)
    let line = Array((String(repeating: "e", count: 998) + "\r\n").utf8)
    var content = head
    while content.count < IncomingBody.wholeMax + 3 * Limits.fragmentSize { content += line }
    var place = IncomingBody.wholeMax + offset
    if content[place] < 0x20 { place -= 4 }
    content[place] = 0xe9
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1)
    _ = try session.send("EHLO client.test\r\n")
    _ = try session.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
    var rest = (content + Array(".\r\n".utf8))[...]
    var replies = ""
    while !rest.isEmpty {
        let piece = rest.prefix(30_000)
        rest = rest.dropFirst(piece.count)
        try session.channel.writeInbound(ByteBuffer(bytes: piece))
        ingress.loop.run()
        replies += try session.replies()
    }
    #expect(replies.hasPrefix("250"))
    let stored = try #require(ingress.spool.state.withLock { $0.streams.values.first })
    let traits = try #require(ingress.spool.submissions.first?.envelope.traits)
    #expect(traits == BodyTraits.measured(stored))
    #expect(traits.hasEightBitBody && !traits.hasEightBitHeader)
}

private enum ListenerServices {
    static let all: [ListenerService] = [.relay, .submission]
}
