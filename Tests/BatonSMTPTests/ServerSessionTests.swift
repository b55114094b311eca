// The server session by dialogues: order of commands, limits, pipelining, refusals (notes 5a, 5d, 5e, 5f).
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonSMTP

@Test func greetingThenWholeTransaction() {
    var dialogue = ServerDialogue(greets: false)
    #expect(dialogue.send("").isEmpty)
    #expect(dialogue.advance(.milliseconds(1)) == "220 relay.test ESMTP Baton\r\n")
    let ehlo = dialogue.send("EHLO client.test\r\n")
    for word in [
        "250-relay.test", "PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING",
        "DSN",
    ] { #expect(ehlo.contains(word), "\(word) not offered") }
    #expect(ehlo.hasSuffix("250 LIMITS RCPTMAX=1000\r\n"))
    #expect(!ehlo.contains("STARTTLS") && !ehlo.contains("AUTH"))
    #expect(dialogue.send("MAIL FROM:<a@b.test>\r\n") == "250 2.1.0 Ok\r\n")
    #expect(dialogue.send("RCPT TO:<c@d.test>\r\n") == "250 2.1.5 Ok\r\n")
    #expect(dialogue.send("DATA\r\n") == "354 End data with <CR><LF>.<CR><LF>\r\n")
    let reply = dialogue.send(plainMessage + ".\r\n")
    #expect(dialogue.messages.count == 1)
    let id = dialogue.messages[0].message.id
    #expect(reply == "250 2.0.0 Ok: queued as \(id)\r\n" && id.description.count == 26)
    #expect(dialogue.messages[0].content == Array(plainMessage.utf8))
    #expect(dialogue.messages[0].message.traits.length == plainMessage.utf8.count)
    #expect(dialogue.send("QUIT\r\n") == "221 2.0.0 Bye\r\n")
    #expect(dialogue.isClosed && !dialogue.lingers)
}

/// The same dialogue with every group cut at every place gives the same replies and the same message.
@Test func dialogueSplitAtEveryByte() {
    let groups = [
        "EHLO client.test\r\n",
        "MAIL FROM:<a@b.test> SIZE=100 BODY=8BITMIME\r\nRCPT TO:<c@d.test>\r\nRCPT TO:<@x:\"q r\"@e.test> NOTIFY=NEVER\r\nDATA\r\n",
        "Subject: x\r\n\r\n..dot\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<f@g.test>\r\nRSET\r\n",
        "MAIL FROM:<>\r\nRCPT TO:<f@g.test>\r\nBDAT 5\r\nab\r\nc", "BDAT 6 LAST\r\ndef\r\n.QUIT\r\n",
    ]
    func run(_ cut: (Int, Int)?) -> (String, [[UInt8]]) {
        var dialogue = ServerDialogue()
        var replies = ""
        for (index, group) in groups.enumerated() {
            let octets = Array(group.utf8)
            if let cut, cut.0 == index {
                replies += dialogue.send(Array(octets[..<cut.1])) + dialogue.send(Array(octets[cut.1...]))
            } else {
                replies += dialogue.send(octets)
            }
        }
        #expect(dialogue.isClosed)
        return (replies, dialogue.messages.map(\.content))
    }
    let whole = run(nil)
    #expect(whole.1 == [Array("Subject: x\r\n\r\n.dot\r\n".utf8), Array("ab\r\ncdef\r\n.".utf8)])
    for (index, group) in groups.enumerated() {
        for place in 1..<group.utf8.count {
            let parts = run((index, place))
            #expect(parts.0 == whole.0 && parts.1 == whole.1, "group \(index) at \(place)")
        }
    }
}

@Test func wrongOrderOfCommands() {
    var dialogue = ServerDialogue()
    for command in ["MAIL FROM:<a@b.test>", "RCPT TO:<a@b.test>", "DATA"] {
        #expect(codes(dialogue.send(command + "\r\n")) == ["503"], "\(command) before EHLO")
    }
    dialogue.greet()
    #expect(codes(dialogue.send("RCPT TO:<a@b.test>\r\n")) == ["503"])
    #expect(codes(dialogue.send("DATA\r\n")) == ["503"])
    #expect(codes(dialogue.send("MAIL FROM:<a@b.test>\r\n")) == ["250"])
    #expect(codes(dialogue.send("MAIL FROM:<a@b.test>\r\n")) == ["503"])
    #expect(codes(dialogue.send("DATA\r\n")) == ["503"])
    #expect(codes(dialogue.send("RCPT TO:<c@d.test>\r\n")) == ["250"])
    #expect(codes(dialogue.send("DATA\r\n")) == ["354"])
}

@Test func heloAndSecondEhloResetTheTransaction() {
    var dialogue = ServerDialogue()
    #expect(dialogue.send("HELO client.test\r\n") == "250 relay.test\r\n")
    #expect(codes(dialogue.send("MAIL FROM:<a@b.test>\r\n")) == ["250"])
    #expect(dialogue.send("EHLO [192.0.2.7]\r\n").hasPrefix("250-relay.test"))
    #expect(codes(dialogue.send("RCPT TO:<c@d.test>\r\n")) == ["503"])
    #expect(codes(dialogue.send("EHLO\r\n")) == ["501"])
}

@Test func smallCommandsAlwaysAnswer() {
    var dialogue = ServerDialogue()
    #expect(codes(dialogue.send("NOOP\r\n")) == ["250"])
    #expect(codes(dialogue.send("RSET\r\n")) == ["250"])
    #expect(codes(dialogue.send("VRFY a@b.test\r\n")) == ["252"])
    #expect(codes(dialogue.send("EXPN list\r\n")) == ["502"])
    #expect(codes(dialogue.send("HELP\r\n")) == ["214"])
    #expect(codes(dialogue.send("TURN\r\n")) == ["502"])
    #expect(codes(dialogue.send("STARTTLS\r\n")) == ["502"])
    #expect(codes(dialogue.send("AUTH PLAIN x\r\n")) == ["502"])
    #expect(codes(dialogue.send("WHAT\r\n")) == ["500"])
    #expect(codes(dialogue.send("GET / HTTP/1.1\r\n")) == ["500"])
    #expect(!dialogue.isClosed)
}

@Test func httpVerbAsFirstLineCloses() {
    for verb in ["GET", "POST", "PUT", "OPTIONS", "CONNECT", "HEAD", "DELETE"] {
        var dialogue = ServerDialogue()
        _ = dialogue.send("\(verb) / HTTP/1.1\r\n")
        #expect(dialogue.isClosed, "\(verb)")
    }
}

@Test func bytesBeforeTheGreeting() {
    var dialogue = ServerDialogue(greets: false)
    #expect(codes(dialogue.send("EHLO early.test\r\n")) == ["554"])
    #expect(dialogue.isClosed)
}

@Test(arguments: [
    "EHLO x.test\r\nMAIL FROM:<a@b.test>\r\n", "NOOP\r\nNOOP\r\n", "VRFY a\r\nRSET\r\n", "EXPN a\r\nRSET\r\n",
    "QUIT\r\nNOOP\r\n",
    "HELO x.test\r\nN", "STARTTLS\r\nEHLO x\r\n", "AUTH PLAIN x\r\nMAIL FROM:<>\r\n",
    "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nSubject: x\r\n\r\nearly\r\n.\r\n",
])
func unsynchronisedPipeliningEndsTheConnection(group: String) {
    var dialogue = ServerDialogue()
    dialogue.greet()
    let reply = dialogue.send(group)
    #expect(codes(reply).last == "554", "\(reply)")
    #expect(dialogue.isClosed && dialogue.messages.isEmpty)
}

@Test func pipeliningWithoutEhloEndsTheConnection() {
    var dialogue = ServerDialogue()
    _ = dialogue.send("HELO x.test\r\n")
    #expect(codes(dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")) == ["554"])
    #expect(dialogue.isClosed)
}

@Test(arguments: [("MAIL FROM:<e@f.test>\r\n", "250"), ("RSET\r\n", "250"), ("QUIT\r\n", "221")])
func commandRightBehindTheFinalDot(command: String, code: String) {
    var dialogue = ServerDialogue()
    dialogue.openData()
    #expect(codes(dialogue.send(plainMessage + ".\r\n" + command)) == ["250", code])
    #expect(dialogue.messages.count == 1)
}

@Test func nothingIsReadWhileTheSpoolDecides() {
    var dialogue = ServerDialogue()
    dialogue.spool = nil
    dialogue.openData()
    #expect(dialogue.send(plainMessage + ".\r\nQUIT\r\n").isEmpty)
    #expect(dialogue.session.pendingID == dialogue.messages[0].message.id)
    #expect(dialogue.session.deadline == .distantFuture)
    dialogue.session.submissionFinished(
        .durable(StoredMessageRef(segment: 0, record: 0)), at: dialogue.now, into: &dialogue.output)
    dialogue.run()
    #expect(codes(dialogue.takeReplies()) == ["250", "221"])
}

@Test(arguments: ["NOOP\0\r\n", "NO\rOP\r\n", "NOOP\n", "MAIL FROM:<a\n@b.test>\r\n", "\n", "\0", "NOOP\r\r\n"])
func nulOrBareLineEndInACommand(line: String) {
    var dialogue = ServerDialogue()
    let reply = dialogue.sendByteByByte(Array(line.utf8))
    #expect(codes(reply) == ["500"], "\(reply)")
    #expect(dialogue.isClosed)
}

@Test func commandLineOverItsLimit() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    let fits = "NOOP " + String(repeating: "x", count: CommandParser.lineOctetsMax - 7) + "\r\n"
    #expect(codes(dialogue.send(fits)) == ["250"])
    #expect(
        codes(dialogue.send("NOOP " + String(repeating: "x", count: CommandParser.lineOctetsMax) + "\r\n")) == ["500"])
    // Octet by octet, and far beyond the limit: one answer, no growth, then the next command.
    var replies = ""
    for _ in 0..<100 {
        replies += dialogue.send(String(repeating: "y", count: 1_000))
        #expect(dialogue.input.readableBytes <= CommandParser.lineOctetsMax)
    }
    replies += dialogue.send("\r\n")
    #expect(codes(replies) == ["500"])
    #expect(codes(dialogue.send("NOOP\r\n")) == ["250"])
}

@Test func relayDeniedButPostmasterTaken() {
    var dialogue = ServerDialogue(mayRelay: false)
    dialogue.greet()
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\n")
    #expect(dialogue.send("RCPT TO:<c@d.test>\r\n") == "554 5.7.1 Relay access denied\r\n")
    #expect(codes(dialogue.send("RCPT TO:<postmaster@relay.test>\r\n")) == ["554"])
    #expect(codes(dialogue.send("DATA\r\n")) == ["554"])
    #expect(codes(dialogue.send("RCPT TO:<PostMaster>\r\n")) == ["250"])
    #expect(codes(dialogue.send("DATA\r\n")) == ["354"])
    _ = dialogue.send(plainMessage + ".\r\n")
    #expect(dialogue.messages[0].message.recipients.map(\.address.description) == ["boss@relay.test"])
    #expect(dialogue.rejections.count == 2)
    #expect(dialogue.rejections[0].recipient == Array("c@d.test".utf8))
    #expect(dialogue.rejections[0].reply.status == EnhancedStatus(5, 7, 1) && dialogue.rejections[0].reply.code == 554)
}

@Test func nullSenderAndDSNParametersReachTheMessage() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    _ = dialogue.send("MAIL FROM:<> RET=FULL ENVID=e1\r\nRCPT TO:<c@d.test> NOTIFY=SUCCESS ORCPT=rfc822;x@y.test\r\n")
    _ = dialogue.send("DATA\r\n")
    _ = dialogue.send(plainMessage + ".\r\n")
    let message = dialogue.messages[0].message
    #expect(message.sender == nil && message.parameters.returnContent == .full)
    #expect(message.recipients[0].notify == .success)
    #expect(message.recipients[0].originalRecipient == Array("rfc822;x@y.test".utf8))
}

@Test func tooManyRecipientsIs452AndNoError() {
    var limits = ServerLimits()
    limits.recipients = 3
    limits.errorsPerConnection = 2
    var dialogue = ServerDialogue(limits: limits)
    dialogue.greet()
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\n")
    var replies = ""
    for index in 0..<10 { replies += dialogue.send("RCPT TO:<r\(index)@d.test>\r\n") }
    #expect(codes(replies) == ["250", "250", "250"] + Array(repeating: "452", count: 7))
    #expect(replies.contains("452 4.5.3"))
    #expect(codes(dialogue.send("DATA\r\n")) == ["354"])
    _ = dialogue.send(plainMessage + ".\r\n")
    #expect(dialogue.messages[0].message.recipients.count == 3)
    #expect(!dialogue.isClosed)
}

@Test func errorTooManyIs421AndAnAcceptedMessageForgives() {
    var limits = ServerLimits()
    limits.errorsPerConnection = 3
    var dialogue = ServerDialogue(limits: limits)
    dialogue.greet()
    #expect(codes(dialogue.send("X\r\nX\r\n")) == ["500", "500"])
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    _ = dialogue.send("DATA\r\n")
    #expect(codes(dialogue.send(plainMessage + ".\r\n")) == ["250"])
    #expect(codes(dialogue.send("X\r\nX\r\n")) == ["500", "500"])
    #expect(codes(dialogue.send("X\r\n")) == ["421"])
    #expect(dialogue.isClosed && dialogue.lingers)
}

@Test func messagesPerConnection() {
    var limits = ServerLimits()
    limits.messagesPerConnection = 1
    var dialogue = ServerDialogue(limits: limits)
    #expect(dialogue.send("EHLO x.test\r\n").contains("MAILMAX=1"))
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    _ = dialogue.send("DATA\r\n")
    #expect(codes(dialogue.send(plainMessage + ".\r\n")) == ["250"])
    #expect(codes(dialogue.send("MAIL FROM:<a@b.test>\r\n")) == ["421"])
    #expect(dialogue.isClosed)
}

@Test func gateRefusesMail() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    dialogue.session.gate = .diskFull
    #expect(dialogue.send("MAIL FROM:<a@b.test>\r\n").hasPrefix("452 4.3.1"))
    #expect(codes(dialogue.send("RCPT TO:<c@d.test>\r\n")) == ["503"])
    dialogue.session.gate = nil
    #expect(codes(dialogue.send("MAIL FROM:<a@b.test>\r\n")) == ["250"])
    #expect(dialogue.rejections.count == 1)
}

@Test func addressBeyondASCIINeedsSMTPUTF8() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    #expect(dialogue.send("MAIL FROM:<é@b.test>\r\n").hasPrefix("553 5.6.7"))
    #expect(codes(dialogue.send("MAIL FROM:<a@b.test>\r\n")) == ["250"])
    #expect(dialogue.send("RCPT TO:<é@b.test>\r\n").hasPrefix("553 5.6.7"))
    #expect(codes(dialogue.send("RSET\r\n")) == ["250"])
    #expect(codes(dialogue.send("MAIL FROM:<é@b.test> SMTPUTF8\r\nRCPT TO:<é@bücher.test>\r\n")) == ["250", "250"])
}

@Test func originalRecipientBeyondASCIINeedsSMTPUTF8() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\n")
    #expect(dialogue.send("RCPT TO:<c@d.test> ORCPT=utf-8;\u{e9}@d.test\r\n").hasPrefix("553 5.6.7"))
    #expect(codes(dialogue.send("RCPT TO:<c@d.test> ORCPT=utf-8;\\x{E9}@d.test\r\n")) == ["250"])
    #expect(codes(dialogue.send("RSET\r\nMAIL FROM:<a@b.test> SMTPUTF8\r\n")) == ["250", "250"])
    #expect(codes(dialogue.send("RCPT TO:<c@d.test> ORCPT=utf-8;\u{e9}@d.test\r\n")) == ["250"])
}

@Test func refusedSyntaxHasItsCode() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    #expect(dialogue.send("MAIL FROM:a@b.test\r\n").hasPrefix("501 5.1.7"))
    #expect(dialogue.send("MAIL FROM:<a@b.test> XYZ\r\n").hasPrefix("555 5.5.4"))
    #expect(dialogue.send("MAIL FROM:<a@b.test> SIZE=1 SIZE=2\r\n").hasPrefix("501 5.5.4"))
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\n")
    #expect(dialogue.send("RCPT TO:<a@b..test>\r\n").hasPrefix("501 5.1.3"))
    #expect(dialogue.send("DATA\r\n").hasPrefix("554 5.5.1"))
}

@Test func commandTimeout() {
    var dialogue = ServerDialogue()
    dialogue.greet()
    #expect(dialogue.advance(.seconds(299)).isEmpty)
    // An octet a minute does not hold the slot: only a whole command moves the deadline.
    _ = dialogue.send("N")
    #expect(dialogue.advance(.seconds(1)).hasPrefix("421 4.4.2"))
    #expect(dialogue.isClosed)
}

@Test func stalledData() {
    var dialogue = ServerDialogue()
    dialogue.openData()
    let fast = String(repeating: "x", count: 300_000) + "\r\n"
    _ = dialogue.send("Subject: x\r\n\r\n" + fast.prefix(60_000) + "\r\n")
    #expect(dialogue.advance(.seconds(50)).isEmpty)
    #expect(dialogue.advance(.seconds(131)).hasPrefix("421 4.4.2"))
    #expect(dialogue.isClosed)
}

@Test func dataSlowerThanOneKibibytePerSecond() {
    var dialogue = ServerDialogue()
    dialogue.openData()
    var replies = ""
    var seconds = 0
    while replies.isEmpty, seconds < 200 {
        _ = dialogue.send(String(repeating: "y", count: 500) + "\r\n")
        replies = dialogue.advance(.seconds(1))
        seconds += 1
    }
    #expect(replies.hasPrefix("421 4.4.2") && seconds == 60, "cut after \(seconds) s")
    // A sender just above the rate goes on; time in which we did not read does not count.
    var steady = ServerDialogue()
    steady.openData()
    for _ in 0..<300 {
        _ = steady.send(String(repeating: "y", count: 1_100) + "\r\n")
        #expect(steady.advance(.seconds(1)).isEmpty)
    }
    steady.now = steady.now + .minutes(30)
    steady.session.readingResumed(after: .minutes(30))
    #expect(steady.advance(.seconds(1)).isEmpty)
}

@Test func shutdownLetsDataFinish() {
    var idle = ServerDialogue()
    idle.greet()
    _ = idle.send("MAIL FROM:<a@b.test>\r\n")
    idle.session.shutdown(into: &idle.output)
    _ = idle.perform()
    #expect(idle.takeReplies().hasPrefix("421 4.3.2") && idle.isClosed)

    var busy = ServerDialogue()
    busy.openData()
    _ = busy.send("Subject: x\r\n")
    busy.session.shutdown(into: &busy.output)
    #expect(busy.takeReplies().isEmpty && !busy.isClosed)
    #expect(codes(busy.send("\r\nbody\r\n.\r\nMAIL FROM:<a@b.test>\r\n")) == ["250", "421"])
    #expect(busy.isClosed && busy.messages.count == 1)

    var cut = ServerDialogue()
    cut.openData()
    cut.session.terminate(into: &cut.output)
    _ = cut.perform()
    #expect(cut.takeReplies().hasPrefix("421") && cut.isClosed)
}

@Test func endOfFileWhileTheSpoolDecidesStillGetsItsReply() {
    var dialogue = ServerDialogue()
    dialogue.spool = nil
    dialogue.openData()
    _ = dialogue.send(plainMessage + ".\r\n")
    dialogue.session.inputEnded(into: &dialogue.output)
    #expect(!dialogue.isClosed)
    dialogue.session.submissionFinished(
        .durable(StoredMessageRef(segment: 0, record: 0)), at: dialogue.now, into: &dialogue.output)
    dialogue.run()
    #expect(codes(dialogue.takeReplies()) == ["250"] && dialogue.isClosed)
}

/// Random octets, mutated dialogues: never a trap, never a 250 for data without the spool's word.
@Test func randomDialogues() {
    let seed: UInt64 = 0x5eed_0003
    var random = SplitMix64(seed: seed)
    let pieces = [
        "EHLO x\r\n", "MAIL FROM:<a@b.c>\r\n", "RCPT TO:<d@e.f>\r\n", "DATA\r\n", "BDAT 5\r\nabcde", "BDAT 0 LAST\r\n",
        "RSET\r\n",
        "QUIT\r\n", ".\r\n", "\r\n.\r\n", "text\r\n", "\n", "\0", "\r", "BDAT 99999999999999999999 LAST\r\n",
        "NOOP\r\n",
    ]
    for round in 0..<4_000 {
        var limits = ServerLimits()
        limits.errorsPerConnection = 1_000
        limits.messageSize = 64
        var dialogue = ServerDialogue(limits: limits)
        dialogue.spool = nil
        var decided = 0
        for _ in 0..<20 where !dialogue.isClosed {
            let replies = dialogue.send(pieces[Int(random.next() % UInt64(pieces.count))])
            #expect(!replies.contains("queued as"), "seed \(seed) round \(round)")
            if dialogue.session.awaitsVerdict, random.next() % 2 == 0 {
                let taken = random.next() % 2 == 0
                dialogue.session.submissionFinished(
                    taken ? .durable(StoredMessageRef(segment: 0, record: 0)) : .refused(.storageFailed),
                    at: dialogue.now,
                    into: &dialogue.output)
                _ = dialogue.perform()
                decided += 1
                #expect(dialogue.takeReplies().contains("queued as") == taken, "seed \(seed) round \(round)")
            }
        }
        #expect(dialogue.messages.count - decided <= 1, "seed \(seed) round \(round)")
    }
}
