// Wire cases of the server session, each whole and cut at every octet; smuggling seen from the session; messages in and out.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonSMTP

/// What a client sends in one write, and then waits; with the codes it has to get.
private struct WireCase: Sendable, CustomTestStringConvertible {
    let name: String
    let groups: [String]
    let codes: [String]
    var messages = 0
    var closes = false
    var mayRelay = true
    var normalize = false

    var testDescription: String { name }
}

private let begin = "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n"
private let ehlo = Array(repeating: "250", count: 9)

private let wireCases: [WireCase] = [
    WireCase(name: "HELO", groups: ["HELO x.test\r\n"], codes: ["250"]),
    WireCase(name: "EHLO without argument", groups: ["EHLO\r\n", "EHLO \r\n"], codes: ["501", "501"]),
    WireCase(name: "EHLO with literals", groups: ["EHLO [IPv6:2001:db8::1]\r\n"], codes: ehlo),
    WireCase(
        name: "EHLO again resets", groups: [begin, "EHLO x\r\n", "DATA\r\n"], codes: ["250", "250"] + ehlo + ["503"]),
    WireCase(name: "MAIL before EHLO", groups: ["RSET\r\n"], codes: ["250"]),
    WireCase(name: "unknown verb", groups: ["XYZZY a b\r\n", "\r\n", "E\r\n"], codes: ["500", "500", "500"]),
    WireCase(
        name: "known and not served", groups: ["TURN\r\n", "ETRN x\r\n", "SOML x\r\n"], codes: ["502", "502", "502"]),
    WireCase(
        name: "blanks behind the colon", groups: ["mail from: <a@b.test>\r\nrCPT tO: \t<c@d.test> \r\n"],
        codes: ["250", "250"]),
    WireCase(
        name: "parameters",
        groups: ["MAIL FROM:<a@b.test> X=1\r\nMAIL FROM:<a@b.test> SIZE=1 SIZE=1\r\nMAIL FROM:<> ENVID=+\r\n"],
        codes: ["555", "501", "501"]),
    WireCase(
        name: "source route, % and !", groups: ["MAIL FROM:<@x,@y:a@b.test>\r\nRCPT TO:<@x:c%d!e@f.test>\r\n"],
        codes: ["250", "250"]),
    WireCase(name: "null recipient", groups: ["MAIL FROM:<>\r\nRCPT TO:<>\r\n"], codes: ["250", "501"]),
    WireCase(name: "stranger", groups: [begin, "DATA\r\n"], codes: ["250", "554", "554"], mayRelay: false),
    WireCase(
        name: "stranger to the postmaster",
        groups: ["MAIL FROM:<>\r\nRCPT TO:<pOSTMASTER>\r\nDATA\r\n", "a: b\r\n\r\n.\r\n"],
        codes: ["250", "250", "354", "250"], messages: 1, mayRelay: false),
    WireCase(name: "QUIT in a transaction", groups: [begin + "QUIT\r\n"], codes: ["250", "250", "221"], closes: true),
    WireCase(
        name: "empty DATA", groups: [begin + "DATA\r\n", ".\r\n"], codes: ["250", "250", "354", "250"], messages: 1),
    WireCase(
        name: "two messages", groups: [begin + "DATA\r\n", "a: b\r\n\r\n..\r\n.\r\n" + begin + "DATA\r\n", ".\r\n"],
        codes: ["250", "250", "354", "250", "250", "250", "354", "250"], messages: 2),
    WireCase(
        name: "QUIT behind the dot", groups: [begin + "DATA\r\n", "x\r\n.\r\nQUIT\r\n"],
        codes: ["250", "250", "354", "250", "221"], messages: 1, closes: true),
    WireCase(
        name: "NUL in data", groups: [begin + "DATA\r\n", "a\0b\r\n.\r\nNOOP\r\n"],
        codes: ["250", "250", "354", "550", "250"]),
    WireCase(name: "NUL in a command", groups: ["NO\0OP\r\n"], codes: ["500"], closes: true),
    WireCase(name: "bare LF in a command", groups: ["NOOP\n"], codes: ["500"], closes: true),
    WireCase(name: "bare CR in a command", groups: ["NOOP\rX\r\n"], codes: ["500"], closes: true),
    WireCase(
        name: "BDAT 0 LAST alone", groups: [begin + "BDAT 0 LAST\r\n"], codes: ["250", "250", "250"], messages: 1),
    WireCase(
        name: "BDAT in pieces", groups: [begin + "BDAT 4\r\na: bBDAT 2\r\n\r\nBDAT 5 LAST\r\n\r\n.\r\nRSET\r\n"],
        codes: ["250", "250", "250", "250", "250", "250"], messages: 1),
    WireCase(
        name: "RSET between chunks", groups: [begin + "BDAT 3\r\nx\r\nRSET\r\nBDAT 4 LAST\r\nQUITNOOP\r\n"],
        codes: ["250", "250", "250", "250", "503", "250"]),
    WireCase(
        name: "BDAT after all RCPT failed", groups: ["MAIL FROM:<>\r\nRCPT TO:<x>\r\nBDAT 6 LAST\r\nQUIT\r\nRSET\r\n"],
        codes: ["250", "501", "554", "250"]),
    WireCase(
        name: "DATA between chunks", groups: [begin + "BDAT 3\r\nx\r\n", "DATA\r\n", "BDAT 2 LAST\r\n\r\n"],
        codes: ["250", "250", "250", "503", "250"], messages: 1),
    WireCase(
        name: "BDAT with a bare LF", groups: [begin + "BDAT 3 LAST\r\nx\nyNOOP\r\n"],
        codes: ["250", "250", "550", "250"]),
    WireCase(
        name: "BDAT of no size", groups: [begin + "BDAT x\r\nQUIT\r\n"], codes: ["250", "250", "501"], closes: true),
    WireCase(
        name: "normalised", groups: [begin + "DATA\r\n", "a: b\n\n..x\n.\ny\r\n.\r\n"],
        codes: ["250", "250", "354", "250"], messages: 1, normalize: true),
]

@Test(arguments: wireCases)
private func wireCaseDiffersWhenSplit(wire: WireCase) {
    func run(_ cut: (group: Int, place: Int)?) -> ([String], [[UInt8]], Bool) {
        var dialogue = ServerDialogue(mayRelay: wire.mayRelay, normalize: wire.normalize)
        if !wire.name.hasPrefix("EHLO with") { dialogue.greet() }
        var replies = ""
        for (index, group) in wire.groups.enumerated() {
            let octets = Array(group.utf8)
            let place = cut.map { $0.group == index ? $0.place : 0 } ?? 0
            replies += dialogue.send(Array(octets[..<place]))
            replies += dialogue.send(Array(octets[place...]))
        }
        return (codes(replies), dialogue.messages.map(\.content), dialogue.isClosed)
    }
    let whole = run(nil)
    #expect(whole.0 == wire.codes && whole.1.count == wire.messages && whole.2 == wire.closes)
    for (index, group) in wire.groups.enumerated() {
        for place in 1..<max(2, group.utf8.count) {
            let parts = run((index, min(place, group.utf8.count)))
            #expect(parts.0 == whole.0 && parts.1 == whole.1 && parts.2 == whole.2, "group \(index) at \(place)")
        }
    }
}

/// The ends of data that are none (notes 5b, after The-Login's scanner), as an attacker uses them: behind each stands a
/// whole transaction that must stay text.
private let falseEnds = [
    "\n.\n", "\n.\r", "\r.\n", "\r.\r", "\n.\r\n", "\r.\r\n", "\r\n\0.\r\n", "\r\n.\r\r\n", "\r\r\n.\r\r\n", "\r\n.\n",
    "\r\n.\r", "\r\n\0.\n", "\r\n.\0\r\n", "\r\n\r.\r\n",
]

@Test(arguments: falseEnds, [false, true])
func smuggledMessageBecomesASecondOne(falseEnd: String, normalize: Bool) {
    let inner = "MAIL FROM:<admin@b.test>\r\nRCPT TO:<victim@d.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
    let wire = Array(("Subject: x\r\n\r\ntext" + falseEnd + inner + "\r\n.\r\n").utf8)
    for place in 0..<wire.count {
        var dialogue = ServerDialogue(normalize: normalize)
        dialogue.openData()
        let replies = dialogue.send(Array(wire[..<place])) + dialogue.send(Array(wire[place...]))
        #expect(codes(replies).count == 1 && !dialogue.isClosed, "at \(place): \(replies)")
        guard normalize, codes(replies) == ["250"] else {
            #expect(codes(replies) == ["550"] && dialogue.messages.isEmpty, "at \(place)")
            continue
        }
        // Tolerated as text of the one message, whose line ends are CRLF.
        #expect(dialogue.messages.count == 1 && dialogue.messages[0].message.recipients.count == 1)
        #expect(outgoing(dialogue.messages[0].content, offers: []).map { received($0).count } == 1, "at \(place)")
    }
}

/// What a delivery of `content` writes behind the 354.
private func outgoing(_ content: [UInt8], offers: [String]) -> [UInt8]? {
    var run = SessionRun.ready(["PIPELINING", "8BITMIME"] + offers)
    let text = String(decoding: content, as: UTF8.self)
    guard Array(text.utf8) == content else { return nil }
    run.send(.begin(transaction(body: text)))
    run.written = []
    run.peer("250 ok\r\n250 ok\r\n354 go\r\n")
    return run.written
}

/// The messages that a strict server sees in what was written after its 354.
private func received(_ wire: [UInt8]) -> [[UInt8]] {
    var next = ServerDialogue()
    next.openData()
    let replies = next.send(wire)
    #expect(codes(replies) == ["250"], "\(replies)")
    return next.messages.map(\.content)
}

/// Any octets in; each message that got its 250 goes out, and the next server sees exactly that one.
@Test func acceptedMessagesComeOutAsOtherOnes() {
    let seed: UInt64 = 0x5eed_0011
    var random = SplitMix64(seed: seed)
    let pieces = [
        "\r\n", "\r\n.\r\n", ".", "..", "\n", "\r", "\0", "\n.\n", "a", "MAIL FROM:<x@y.test>\r\n", "DATA\r\n", "\r\n.",
        "\u{fc}", "\r\n.\r", " ",
    ]
    var accepted = 0
    for round in 0..<3_000 {
        var dialogue = ServerDialogue(normalize: round % 2 == 0)
        dialogue.openData()
        var input = ""
        for _ in 0..<Int(random.next() % 14) { input += pieces[Int(random.next() % UInt64(pieces.count))] }
        _ = dialogue.send(input + "\r\n.\r\n")
        for (message, content) in dialogue.messages {
            accepted += 1
            #expect(message.traits.endsWithCRLF)
            // An empty one always has a Received field in front before it goes anywhere.
            guard !content.isEmpty, let wire = outgoing(content, offers: []) else { continue }
            #expect(received(wire) == [content], "seed \(seed) round \(round)")
        }
    }
    #expect(accepted > 300)
}

@Test func smallCommandInEveryState() {
    let states = [
        "", "EHLO x\r\n", "EHLO x\r\n|MAIL FROM:<>\r\n", "EHLO x\r\n|" + begin,
        "EHLO x\r\n|" + begin + "BDAT 2\r\n\r\n",
    ]
    let answers = [
        "RSET": "250", "NOOP": "250", "NOOP x": "250", "VRFY x": "252", "HELP": "214", "HELP MAIL": "214",
        "EXPN x": "502",
        "QUIT": "221",
    ]
    for state in states {
        for (command, code) in answers {
            var dialogue = ServerDialogue()
            for group in state.split(separator: "|") { _ = dialogue.send(String(group)) }
            #expect(codes(dialogue.send(command + "\r\n")) == [code], "\(command) in \(state)")
            #expect(dialogue.isClosed == (command == "QUIT"))
        }
    }
}

/// Every part at its longest: nothing is cut, nothing is too long.
@Test func longestLegitimateCommandRefused() {
    let label = String(repeating: "d", count: 63)
    let local = String(repeating: "l", count: 64)
    let domain = [label, label, String(repeating: "e", count: 61)].joined(separator: ".")
    let path = "\(local)@\(domain)"
    #expect(path.utf8.count + 2 == Limits.pathOctets)
    let mail =
        "MAIL FROM:<\(path)> SIZE=00000000000000001000 BODY=8BITMIME SMTPUTF8 RET=FULL ENVID="
        + String(repeating: "e", count: 100)
    let orcpt = "rfc822;" + String(repeating: "o", count: 493)
    let rcpt = "RCPT TO:<@route.test:\(path)> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=" + orcpt
    #expect(max(mail.utf8.count, rcpt.utf8.count) + 2 < CommandParser.lineOctetsMax)
    var dialogue = ServerDialogue()
    dialogue.greet()
    #expect(codes(dialogue.send(mail + "\r\n" + rcpt + "\r\n")) == ["250", "250"])
    _ = dialogue.send("DATA\r\n")
    _ = dialogue.send(".\r\n")
    let message = dialogue.messages[0].message
    #expect(message.sender?.description == path && message.parameters.envid.count == 100)
    #expect(message.recipients[0].address.description == path && message.recipients[0].originalRecipient.count == 500)
}

@Test func lineBeyond998IsFolded() {
    let long =
        "a: b\r\n\r\n" + String(repeating: "x y ", count: 16_384) + "\r\n" + String(repeating: "\u{fc}", count: 700)
        + "\r\n"
    var dialogue = ServerDialogue()
    dialogue.openData()
    #expect(codes(dialogue.send(long + ".\r\n")) == ["250"])
    #expect(dialogue.messages[0].content == Array(long.utf8))
    #expect(outgoing(dialogue.messages[0].content, offers: []) == Array((long + ".\r\n").utf8))
}

@Test func chunkSlowerThanOneKibibytePerSecond() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    _ = dialogue.send(begin + "BDAT 1000000 LAST\r\n")
    var seconds = 0
    var replies = ""
    while replies.isEmpty, seconds < 200 {
        _ = dialogue.send("y")
        replies = dialogue.advance(.seconds(1))
        seconds += 1
    }
    #expect(replies.hasPrefix("421 4.4.2") && seconds == 60 && dialogue.isClosed)
    // Refused octets are waited for no longer than others.
    var refused = ServerDialogue()
    refused.greet()
    _ = refused.send("BDAT 1000000 LAST\r\n")
    #expect(refused.advance(.seconds(59)).isEmpty)
    #expect(refused.advance(.seconds(1)).hasPrefix("421 4.4.2"))
}

/// A command that drips in octet by octet, and one that never ends, get the same five minutes.
@Test func drippingCommandHoldsTheConnection() {
    for octet in ["N", "x"] {
        var dialogue = ServerDialogue()
        dialogue.greet()
        var seconds = 0
        var replies = ""
        while replies.isEmpty, seconds < 1_000 {
            replies = dialogue.send(octet == "x" ? String(repeating: "x", count: 100) : octet)
            replies += dialogue.advance(.seconds(1))
            seconds += 1
        }
        #expect(replies.hasPrefix("421 4.4.2") && seconds == 300 && dialogue.isClosed)
    }
}
