// Bodies through the server session: refusals that read to the end, sizes, BDAT, streams (notes 5b, 5d, 5e).
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonSMTP

@Test(arguments: [
    ("a\nb\r\n", "550 5.5.2"), ("a\rb\r\n", "550 5.5.2"), ("a\0b\r\n", "550 5.5.2"),
    ("\n.\r\nMAIL FROM:<x@y.test>\r\n", "550 5.5.2"),
])
func badOctetsInDataAreRefusedAtItsEndAndTheSessionGoesOn(text: String, reply: String) {
    var dialogue = ServerDialogue()
    dialogue.openData()
    #expect(dialogue.send("Subject: x\r\n\r\n" + text).isEmpty)
    #expect(dialogue.send(".\r\n").hasPrefix(reply))
    #expect(dialogue.messages.isEmpty && !dialogue.isClosed && dialogue.rejections.count == 1)
    #expect(codes(dialogue.send("MAIL FROM:<a@b.test>\r\n")) == ["250"])
}

@Test func bareLineFeedUnderNormalize() {
    var dialogue = ServerDialogue(normalize: true)
    dialogue.openData()
    #expect(codes(dialogue.send("Subject: x\n\nline\n.\r\nMAIL\r\n.\r\n")) == ["250"])
    #expect(dialogue.messages[0].content == Array("Subject: x\r\n\r\nline\r\n.\r\nMAIL\r\n".utf8))
}

@Test func sizeIsEnforcedAtMailAndAgainInData() {
    var limits = ServerLimits()
    limits.messageSize = 1_000
    var dialogue = ServerDialogue(limits: limits)
    dialogue.greet()
    #expect(dialogue.send("MAIL FROM:<a@b.test> SIZE=1001\r\n").hasPrefix("552 5.3.4"))
    // A lying SIZE changes nothing.
    _ = dialogue.send("MAIL FROM:<a@b.test> SIZE=10\r\nRCPT TO:<c@d.test>\r\n")
    _ = dialogue.send("DATA\r\n")
    let line = String(repeating: "z", count: 98) + "\r\n"
    let fits = "S: x\r\n\r\n" + String(repeating: line, count: 9)
    let exact = fits + String(repeating: "z", count: 1_000 - fits.utf8.count - 2) + "\r\n"
    #expect(codes(dialogue.send(exact + ".\r\n")) == ["250"])
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    _ = dialogue.send("DATA\r\n")
    #expect(dialogue.send("z" + exact).isEmpty)
    #expect(dialogue.session.heldBytes == 0)
    #expect(dialogue.send(".\r\n").hasPrefix("552 5.3.4"))
    #expect(!dialogue.isClosed && dialogue.messages.count == 1)
}

@Test func refusedDataThatNeverEndsIsCut() {
    var limits = ServerLimits()
    limits.messageSize = 100_000
    var dialogue = ServerDialogue(limits: limits)
    dialogue.openData()
    let block = String(repeating: String(repeating: "z", count: 98) + "\r\n", count: 640)
    var replies = ""
    var sent = 0
    while !dialogue.isClosed, sent < 10_000_000 {
        replies += dialogue.send(block)
        sent += block.utf8.count
    }
    #expect(replies.hasPrefix("552") && sent <= 1_048_576 + 2 * block.utf8.count, "cut after \(sent)")
}

@Test func lineOverTheLimit() {
    var limits = ServerLimits()
    limits.lineLength = 2_000
    var dialogue = ServerDialogue(limits: limits)
    dialogue.openData()
    #expect(codes(dialogue.send("S: x\r\n\r\n" + String(repeating: "l", count: 2_000) + "\r\n.\r\n")) == ["250"])
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    _ = dialogue.send("DATA\r\n")
    let reply = dialogue.send("S: x\r\n\r\n" + String(repeating: "l", count: 2_001) + "\r\n.\r\n")
    #expect(reply.hasPrefix("550 5.5.2") && dialogue.messages.count == 1)
}

@Test func headerSectionOverTheLimit() {
    var dialogue = ServerDialogue()
    dialogue.openData()
    let field = "X: " + String(repeating: "h", count: 995) + "\r\n"
    var text = String(repeating: field, count: IncomingBody.wholeMax / 1_000 + 2)
    text += "\r\nbody\r\n.\r\n"
    #expect(dialogue.send(text).hasPrefix("552 5.3.4"))
    #expect(dialogue.streamsOpened == 0)
}

@Test func hopLimit() {
    for (hops, code) in [(100, "250"), (101, "554")] {
        var dialogue = ServerDialogue()
        dialogue.openData()
        let trace = String(repeating: "Received: from x by y; now\r\n", count: hops)
        let reply = dialogue.send(trace + "Subject: x\r\n\r\nReceived: not a field\r\n.\r\n")
        #expect(codes(reply) == [code])
        if code == "554" { #expect(reply.hasPrefix("554 5.4.6")) }
    }
}

/// Mail that comes back to this node again and again is a loop long before its hundredth hop (RFC 5321 6.3).
@Test(arguments: [(8, "250"), (9, "554")]) func ownNameInTheTraceIsNoLoop(times: Int, code: String) {
    let own = "Received: from filter.test (filter.test [10.0.0.1])\r\n\tby RELAY.test with ESMTP id x;\r\n\tnow\r\n"
    // Named by others, or as part of a longer name: not ours.
    let others = "Received: from relay.test by relay.test.test; now\r\nReceived: from by; now\r\n"
    let trace = String(repeating: own, count: times) + String(repeating: others, count: 10)
    for size in [10, 400_000] {
        var dialogue = ServerDialogue()
        dialogue.openData()
        let body = String(repeating: "Received: by relay.test; not a field\r\n", count: size / 45 + 9)
        let reply = dialogue.send(trace + "Subject: x\r\n\r\n" + body + ".\r\n")
        #expect(codes(reply) == [code], "\(size)")
        if code == "554" { #expect(reply.hasPrefix("554 5.4.6")) }
    }
}

@Test func emptyMessageAndMessageWithoutHeader() {
    var dialogue = ServerDialogue()
    dialogue.openData()
    #expect(codes(dialogue.send(".\r\n")) == ["250"])
    #expect(dialogue.messages[0].content.isEmpty)
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    _ = dialogue.send("DATA\r\n")
    #expect(codes(dialogue.send("no header\r\n.\r\n")) == ["250"])
    #expect(dialogue.messages[1].message.traits.headerLength == 11)
}

@Test(arguments: [
    (SubmissionRefusal.diskFull, "452 4.3.1", false), (.storageFailed, "451 4.3.0", false),
    (.overloaded, "451 4.3.2", false),
    (.stopping, "421 4.3.2", true),
])
func refusalOfTheSpoolIsTemporary(refusal: SubmissionRefusal, reply: String, closes: Bool) {
    var dialogue = ServerDialogue()
    dialogue.spool = .refused(refusal)
    dialogue.openData()
    #expect(dialogue.send(plainMessage + ".\r\n").hasPrefix(reply))
    #expect(dialogue.isClosed == closes && dialogue.rejections.count == 1)
}

@Test func memoryRefusalMidDataFreesAndDrains() {
    var dialogue = ServerDialogue()
    dialogue.openData()
    _ = dialogue.send("Subject: x\r\n\r\n" + String(repeating: "m", count: 5_000) + "\r\n")
    #expect(dialogue.session.keepsBody && dialogue.session.heldBytes > 5_000)
    dialogue.session.refuseBody(.memory, into: &dialogue.output)
    #expect(dialogue.session.heldBytes == 0 && !dialogue.session.keepsBody)
    #expect(dialogue.send("more\r\n.\r\n").hasPrefix("452 4.3.1"))
    #expect(dialogue.messages.isEmpty && !dialogue.isClosed)
}

// MARK: BDAT

@Test func chunksMakeOneMessageOctetForOctet() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    #expect(dialogue.send("BDAT 13\r\nSubject: x\r\n\r") == "250 2.0.0 13 octets received\r\n")
    #expect(codes(dialogue.send("BDAT 6\r\n\n.\r\n..BDAT 0 LAST\r\n")) == ["250", "250"])
    #expect(dialogue.messages[0].content == Array("Subject: x\r\n\r\n.\r\n..".utf8))
    let traits = dialogue.messages[0].message.traits
    #expect(!traits.endsWithCRLF && traits.leadingDots == 2 && traits.headerLength == 14)
}

@Test func bdatOutOfOrderConsumesItsOctets() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    // Its octets look like commands and must not be taken for some.
    #expect(codes(dialogue.send("BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n")) == ["503", "250"])
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\n")
    #expect(codes(dialogue.send("BDAT 6\r\nQUIT\r\n")) == ["503"])
    #expect(codes(dialogue.send("RCPT TO:<bad\r\n")) == ["501"])
    #expect(codes(dialogue.send("BDAT 6 LAST\r\nQUIT\r\n")) == ["554"])
    #expect(!dialogue.isClosed)
}

@Test func dataMixedWithBdat() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nBDAT 3\r\nabc")
    #expect(codes(dialogue.send("DATA\r\n")) == ["503"])
    #expect(codes(dialogue.send("MAIL FROM:<a@b.test>\r\n")) == ["503"])
    #expect(codes(dialogue.send("RCPT TO:<e@f.test>\r\n")) == ["503"])
    #expect(codes(dialogue.send("RSET\r\n")) == ["250"])
    #expect(codes(dialogue.send("BDAT 3 LAST\r\nabc")) == ["503"])
    #expect(dialogue.messages.isEmpty)
}

@Test func failedChunkEndsTheTransactionAndPipelinedOnesAreConsumed() {
    var limits = ServerLimits()
    limits.messageSize = 10
    var dialogue = ServerDialogue(limits: limits)
    dialogue.greet()
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    #expect(
        codes(dialogue.send("BDAT 8\r\n12345678BDAT 8\r\n12345678BDAT 8 LAST\r\nQUIT\r\n..NOOP\r\n")) == [
            "250", "552", "503", "250",
        ])
    #expect(dialogue.messages.isEmpty && !dialogue.isClosed)
}

@Test func bdatWithBareLineEnds() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    #expect(dialogue.send("BDAT 4 LAST\r\nab\r\r").hasPrefix("550 5.5.2"))
}

@Test func bdatWhoseSizeCannotBeReadEndsTheConnection() {
    for line in ["BDAT x\r\n", "BDAT\r\n", "BDAT 1 2\r\n"] {
        var dialogue = ServerDialogue()
        dialogue.greet()
        #expect(codes(dialogue.send(line + "QUIT\r\n")) == ["501"])
        #expect(dialogue.isClosed)
    }
    var dialogue = ServerDialogue()
    dialogue.greet()
    #expect(codes(dialogue.send("BDAT 99999999999999999999 LAST\r\n")) == ["552"])
    #expect(dialogue.isClosed)
}

// MARK: Streams

@Test func largeMessageStreamsPieceByPiece() {
    var dialogue = ServerDialogue()
    dialogue.openData()
    let line = String(repeating: "s", count: 998) + "\r\n"
    var sent = Array("Message-ID: <big@x>\r\n\r\n".utf8)
    var replies = dialogue.send(sent)
    for _ in 0..<1_500 {
        replies += dialogue.send(line)
        sent += Array(line.utf8)
        #expect(dialogue.session.heldBytes <= 2 * Limits.fragmentSize + 1_024)
    }
    replies += dialogue.send(".\r\n")
    #expect(codes(replies) == ["250"] && dialogue.streamsOpened == 1)
    #expect(dialogue.messages[0].content == sent)
    #expect(dialogue.messages[0].message.isStreamed)
    #expect(dialogue.messages[0].message.traits.length == sent.count)
    #expect(dialogue.messages[0].message.header.messageID == Array("<big@x>".utf8))
    #expect(dialogue.abandoned == 0)
}

@Test func streamIsAbandonedWhenItsMessageFails() {
    let big = "Subject: x\r\n\r\n" + String(repeating: String(repeating: "s", count: 998) + "\r\n", count: 600)
    var bare = ServerDialogue()
    bare.openData()
    _ = bare.send(big)
    #expect(bare.streamsOpened == 1)
    #expect(bare.send("a\nb\r\n.\r\n").hasPrefix("550"))
    #expect(bare.abandoned == 1 && bare.messages.isEmpty)

    var lost = ServerDialogue()
    lost.openData()
    _ = lost.send(big)
    lost.session.connectionLost(into: &lost.output)
    _ = lost.perform()
    #expect(lost.abandoned == 1)

    var refused = ServerDialogue()
    refused.openData()
    _ = refused.send(big)
    refused.session.refuseBody(.storage(.diskFull), into: &refused.output)
    #expect(refused.send("more\r\n.\r\n").hasPrefix("452 4.3.1"))
    #expect(refused.abandoned == 1)
}

/// Many random messages, dot-stuffed and cut at random: as many as were sent arrive, octet for octet.
@Test func messagesInAreMessagesOut() {
    let seed: UInt64 = 0x5eed_0004
    var random = SplitMix64(seed: seed)
    let lines = ["", ".", "..", ".a", "a", "a.", "MAIL FROM:<x@y.test>", "DATA", ". ", "\u{e9}", "QUIT"]
    for round in 0..<300 {
        var dialogue = ServerDialogue()
        dialogue.greet()
        var expected: [[UInt8]] = []
        for _ in 0..<Int(random.next() % 4 + 1) {
            var content = "Subject: x\r\n"
            for _ in 0..<Int(random.next() % 12) { content += lines[Int(random.next() % UInt64(lines.count))] + "\r\n" }
            expected.append(Array(content.utf8))
            _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
            _ = dialogue.send("DATA\r\n")
            let stuffed = content.split(separator: "\r\n", omittingEmptySubsequences: false)
                .map { $0.hasPrefix(".") ? "." + $0 : String($0) }.joined(separator: "\r\n")
            let wire = Array((stuffed + ".\r\n").utf8)
            let place = Int(random.next() % UInt64(wire.count))
            let replies = dialogue.send(Array(wire[..<place])) + dialogue.send(Array(wire[place...]))
            #expect(codes(replies) == ["250"], "seed \(seed) round \(round)")
        }
        #expect(dialogue.messages.map(\.content) == expected, "seed \(seed) round \(round)")
    }
}
