// Dialogues of the client session: pipelined and step by step, refused, lost and out of step at every point.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonSMTP

private let pipelining = ["PIPELINING", "8BITMIME", "SIZE 1000000", "DSN", "ENHANCEDSTATUSCODES"]

@Suite struct ClientGreetingTests {
    @Test func greetingOutOfOrder() {
        var run = SessionRun()
        #expect(run.takeWritten() == "")
        run.peer("220-mx\r\n220 ready\r\n")
        #expect(run.takeWritten() == "EHLO relay.test\r\n")
        run.peer("250 mx\r\n")
        #expect(run.greeted != nil)
        #expect(run.session.isReady)
    }

    @Test func ehloRefusedAndHeloNotTried() {
        var run = SessionRun()
        run.peer("220 mx\r\n")
        run.peer("502 what\r\n")
        #expect(run.takeWritten() == "EHLO relay.test\r\nHELO relay.test\r\n")
        run.peer("250 mx\r\n")
        #expect(run.greeted == PeerCapabilities())
    }

    @Test func heloRefusedTwice() {
        var run = SessionRun()
        run.peer("220 mx\r\n")
        run.peer("502 what\r\n")
        run.peer("554 go away\r\n")
        #expect(run.refused?.code == 554)
        #expect(run.closes == 1)
    }

    @Test(arguments: [("421 busy\r\n", 421), ("554 no\r\n", 554), ("521 never\r\n", 521), ("354 odd\r\n", 354)])
    func bannerRefusalTaken(text: String, code: UInt16) {
        var run = SessionRun()
        run.peer(text)
        #expect(run.refused?.code == code)
        #expect(run.refused?.stage == .banner)
        #expect(run.takeWritten() == "")
    }

    @Test func ehloTemporaryRefusalFallsBackToHelo() {
        var run = SessionRun()
        run.peer("220 mx\r\n")
        run.peer("421 busy\r\n")
        #expect(run.refused?.code == 421)
    }

    @Test func bannerNeverComes() {
        var run = SessionRun()
        run.pass(.minutes(4))
        #expect(run.refused == nil)
        run.pass(.minutes(1))
        #expect(run.refused?.code == 0)
        #expect(run.closes == 1)
    }

    @Test func lmtpGreetsWithEhlo() {
        var run = SessionRun(isLMTP: true)
        run.peer("220 lmtp\r\n")
        #expect(run.takeWritten() == "LHLO relay.test\r\n")
        run.peer("500 no\r\n")
        #expect(run.refused?.code == 500)
    }

    @Test func farewellWhileIdleKeepsConnection() {
        var run = SessionRun.ready(pipelining)
        run.peer("421 timeout\r\n")
        #expect(run.session.isClosed)
        #expect(run.finished.isEmpty)
    }

    @Test func quitWithoutAnswerHangs() {
        var run = SessionRun.ready(pipelining)
        run.send(.quit)
        #expect(run.takeWritten() == "QUIT\r\n")
        run.pass(.seconds(5))
        #expect(run.session.isClosed)
        #expect(run.closes == 1)
    }
}

@Suite struct ClientTransactionTests {
    /// Once the transport is closed nobody listens: work whose end came behind the close hung for ever.
    @Test func endToldBehindTheClose() {
        var run = SessionRun.ready(pipelining)
        run.order = []
        run.send(.begin(transaction()))
        run.peer("421 4.4.5 enough for this connection\r\n")
        #expect(run.order == ["write", "finished", "close"])
        var refused = SessionRun()
        refused.peer("554 no\r\n")
        #expect(refused.order == ["refused", "close"])
    }

    @Test func pipelinedTransactionTakesMoreThanTwoWrites() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction(to: ["a@example.test", "b@example.test"])))
        #expect(
            run.takeWritten()
                == "MAIL FROM:<s@sender.test> SIZE=21\r\nRCPT TO:<a@example.test>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"
        )
        run.peer("250 ok\r\n250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
        #expect(run.takeWritten() == "Subject: x\r\n\r\nhello\r\n.\r\n")
        #expect(run.session.isPastDot)
        run.peer("250 2.0.0 taken\r\n")
        #expect(shortly(run.finished.last?.ends) == ["250", "550"])
        #expect(run.finished.last?.reusable == true)
        #expect(run.session.isReady)
    }

    @Test func stepByStepSendsAhead() {
        var run = SessionRun.ready(["SIZE"])
        run.send(.begin(transaction(to: ["a@example.test", "b@example.test"])))
        #expect(run.takeWritten() == "MAIL FROM:<s@sender.test> SIZE=21\r\n")
        run.peer("250 ok\r\n")
        #expect(run.takeWritten() == "RCPT TO:<a@example.test>\r\n")
        run.peer("250 ok\r\n")
        #expect(run.takeWritten() == "RCPT TO:<b@example.test>\r\n")
        run.peer("450 later\r\n")
        #expect(run.takeWritten() == "DATA\r\n")
        run.peer("354 go\r\n")
        #expect(run.takeWritten() == "Subject: x\r\n\r\nhello\r\n.\r\n")
        run.peer("250 taken\r\n")
        #expect(shortly(run.finished.last?.ends) == ["250", "450"])
    }

    @Test func wholeDialogueDiffersWhenSplit() {
        let group = Array("250 ok\r\n250 ok\r\n550-5.1.1 no\r\n550 5.1.1 never\r\n354 go\r\n".utf8)
        let final = Array("250 2.0.0 taken\r\n".utf8)
        for split in 0...(group.count + final.count) {
            var run = SessionRun.ready(pipelining)
            run.send(.begin(transaction(to: ["a@example.test", "b@example.test"])))
            for (part, place) in [(group, min(split, group.count)), (final, max(0, split - group.count))] {
                run.send(.received(ByteBuffer(bytes: part[..<place])))
                run.send(.received(ByteBuffer(bytes: part[place...])))
            }
            #expect(shortly(run.finished.last?.ends) == ["250", "550"], "split at \(split)")
            #expect(run.takeWritten().hasSuffix("hello\r\n.\r\n"))
        }
    }

    @Test func nullSenderAndParametersLost() {
        var run = SessionRun.ready(pipelining + ["SMTPUTF8"])
        run.send(
            .begin(
                transaction(
                    to: ["ü@example.test"], from: nil, body: "Subject: ü\r\n\r\nü\r\n",
                    flags: [.smtpUTF8, .eightBitMIME],
                    notify: [.success, .failure], orcpt: "utf-8;x", envid: "Q+2B", ret: .headers)))
        #expect(
            run.takeWritten()
                == "MAIL FROM:<> SIZE=19 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=Q+2B\r\n"
                + "RCPT TO:<ü@example.test> NOTIFY=SUCCESS,FAILURE ORCPT=utf-8;x\r\nDATA\r\n")
    }

    /// An ORCPT in UTF-8 goes as it is only in a transaction with SMTPUTF8 (RFC 6533 3).
    @Test func originalRecipientInUTF8SentWithoutSMTPUTF8() {
        let orcpt = "utf-8;j\u{f6}\u{1f600}+2Bx@d.test"
        for (offers, to, expected) in [
            (["DSN"], "a@d.test", "utf-8;j\\x{F6}\\x{1F600}+2Bx@d.test"),
            (["DSN", "SMTPUTF8"], "a@d.test", "utf-8;j\\x{F6}\\x{1F600}+2Bx@d.test"),
            (["DSN", "SMTPUTF8"], "\u{fc}@d.test", orcpt),
        ] {
            var run = SessionRun.ready(["PIPELINING"] + offers)
            run.send(.begin(transaction(to: [to], flags: .smtpUTF8, orcpt: orcpt)))
            #expect(run.takeWritten().contains(" ORCPT=\(expected)\r\n"), "\(offers) \(to)")
        }
        var long = SessionRun.ready(["PIPELINING", "DSN"])
        long.send(.begin(transaction(flags: .smtpUTF8, orcpt: "utf-8;" + String(repeating: "\u{fc}", count: 200))))
        #expect(long.takeWritten().contains("RCPT TO:<a@example.test>\r\n"))
    }

    @Test func parametersSentToPeerWithoutExtension() {
        var run = SessionRun.ready(["PIPELINING"])
        run.send(
            .begin(
                transaction(notify: [.never], orcpt: "rfc822;x", envid: "Q", ret: .full)))
        #expect(run.takeWritten() == "MAIL FROM:<s@sender.test>\r\nRCPT TO:<a@example.test>\r\nDATA\r\n")
        run.peer("250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n")
        #expect(run.finished.last?.peerHasDSN == false)
    }

    @Test func mailRefusedLeavesRepliesUnread() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction(to: ["a@example.test", "b@example.test"])))
        run.peer("451 4.7.1 slow down\r\n503 no mail\r\n503 no mail\r\n503 no rcpt\r\n")
        #expect(shortly(run.finished.last?.ends) == ["451", "451"])
        #expect(run.finished.last?.trouble?.status == EnhancedStatus(4, 7, 1))
        #expect(run.session.isReady)
        run.written = []
        run.send(.begin(transaction()))
        #expect(run.takeWritten().hasPrefix("MAIL "))
    }

    @Test func allRecipientsRefusedAndBodySent() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction()))
        run.written = []
        run.peer("250 ok\r\n550 5.1.1 no\r\n")
        #expect(run.finished.isEmpty)
        run.peer("354 go on\r\n")
        #expect(run.takeWritten() == ".\r\n")
        run.peer("250 accepted an empty message\r\n")
        #expect(shortly(run.finished.last?.ends) == ["550"])
        #expect(run.session.isReady)
    }

    @Test func allRecipientsRefusedThenDataRefusedLeavesMailOpen() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction()))
        run.peer("250 ok\r\n550 no\r\n554 no valid recipients\r\n")
        #expect(shortly(run.finished.last?.ends) == ["550"])
        run.written = []
        run.send(.begin(transaction()))
        #expect(
            run.takeWritten() == "RSET\r\nMAIL FROM:<s@sender.test> SIZE=21\r\nRCPT TO:<a@example.test>\r\nDATA\r\n")
        run.peer("250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n")
        #expect(shortly(run.finished.last?.ends) == ["250"])
    }

    @Test func stepByStepBodySentThoughAllRefused() {
        var run = SessionRun.ready([])
        run.send(.begin(transaction()))
        run.peer("250 ok\r\n")
        run.written = []
        run.peer("550 no\r\n")
        #expect(run.takeWritten() == "")
        #expect(shortly(run.finished.last?.ends) == ["550"])
        run.send(.begin(transaction()))
        #expect(run.takeWritten() == "RSET\r\n")
        run.peer("250 ok\r\n")
        #expect(run.takeWritten() == "MAIL FROM:<s@sender.test>\r\n")
    }

    @Test func dataRefusalForgotten() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction(to: ["a@example.test", "b@example.test"])))
        run.peer("250 ok\r\n250 ok\r\n550 no\r\n451 4.3.0 later\r\n")
        #expect(shortly(run.finished.last?.ends) == ["451", "550"])
        #expect(run.session.isReady)
    }

    @Test func refusalAfterDotForgotten() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction(to: ["a@example.test", "b@example.test"])))
        run.peer("250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n554 5.7.1 spam\r\n")
        #expect(shortly(run.finished.last?.ends) == ["554", "554"])
        #expect(run.finished.last?.reusable == true)
    }

    @Test(arguments: 0..<4)
    func loss421BeforeDotBouncesSomebody(after: Int) {
        let replies = ["250 ok\r\n", "250 ok\r\n", "550 5.1.1 no\r\n"]
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction(to: ["a@example.test", "b@example.test"])))
        for reply in replies.prefix(after) { run.peer(reply) }
        run.peer("421 4.3.2 closing\r\n")
        let refused = after > 2 ? "550" : "lost 421"
        #expect(shortly(run.finished.last?.ends) == ["lost 421", refused])
        #expect(run.finished.last?.reusable == false)
        #expect(run.finished.last?.trouble?.code == 421)
        #expect(run.session.isClosed)
    }

    @Test func loss421AfterDotTakenAsDoubt() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction()))
        run.peer("250 ok\r\n250 ok\r\n354 go\r\n421 4.3.2 closing\r\n")
        #expect(shortly(run.finished.last?.ends) == ["421"])
        #expect(run.session.isClosed)
    }

    @Test func connectionLostJudgedWrongly() {
        let replies = ["250 ok\r\n", "250 ok\r\n", "354 go\r\n"]
        for after in 0...3 {
            var run = SessionRun.ready(pipelining)
            run.send(.begin(transaction()))
            for reply in replies.prefix(after) { run.peer(reply) }
            run.send(.closed)
            #expect(shortly(run.finished.last?.ends) == [after == 3 ? "doubt" : "lost 0"], "after \(after)")
            run.send(.closed)
            #expect(run.finished.count == 1)
        }
    }

    @Test func timeoutJudgedWrongly() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction()))
        run.pass(.minutes(5))
        #expect(shortly(run.finished.last?.ends) == ["lost 0"])

        var data = SessionRun.ready(pipelining)
        data.send(.begin(transaction()))
        data.peer("250 ok\r\n250 ok\r\n")
        data.pass(.minutes(2))
        #expect(shortly(data.finished.last?.ends) == ["lost 0"])

        var dot = SessionRun.ready(pipelining)
        dot.send(.begin(transaction()))
        dot.peer("250 ok\r\n250 ok\r\n354 go\r\n")
        dot.pass(.minutes(9))
        #expect(dot.finished.isEmpty)
        dot.pass(.minutes(1))
        #expect(shortly(dot.finished.last?.ends) == ["doubt"])
    }

    @Test func dripOfRepliesOutlivesAttempt() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction(to: (0..<20).map { "u\($0)@example.test" })))
        run.peer("250 ok\r\n")
        for _ in 0..<3 where run.finished.isEmpty {
            run.pass(.minutes(4))
            run.peer("250 ok\r\n")
        }
        #expect(run.finished.count == 1)
        #expect(run.finished.last?.reusable == false)
    }

    @Test(arguments: ["150 x\r\n", "354 x\r\n", "650 x\r\n", "garbage\r\n", "25\r\n", "250\0\r\n"])
    func nonsenseToMailTakenAsAnswer(text: String) {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction()))
        run.peer(text)
        #expect(run.finished.count == 1)
        #expect(run.finished.last?.reusable == false)
        #expect(shortly(run.finished.last?.ends).first?.hasPrefix("lost") == true)
    }

    @Test func dataAnsweredWith250() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction()))
        run.written = []
        run.peer("250 ok\r\n250 ok\r\n250 what\r\n")
        #expect(run.takeWritten() == "")
        #expect(run.finished.last?.reusable == false)
    }

    @Test func tooManyRecipientsBounced() {
        var run = SessionRun.ready(pipelining)
        run.send(.begin(transaction(to: ["a@x.test", "b@x.test", "c@x.test"])))
        run.peer("250 ok\r\n250 ok\r\n552 too many\r\n452 4.5.3 too many\r\n354 go\r\n250 ok\r\n")
        #expect(shortly(run.finished.last?.ends) == ["250", "again", "again"])
        var alone = SessionRun.ready(pipelining)
        alone.send(.begin(transaction()))
        alone.peer("250 ok\r\n452 4.5.3 too many\r\n554 none\r\n")
        #expect(shortly(alone.finished.last?.ends) == ["452"])
        var full = SessionRun.ready(pipelining)
        full.send(.begin(transaction(to: ["a@x.test", "b@x.test"])))
        full.peer("250 ok\r\n250 ok\r\n552 5.2.2 mailbox full\r\n354 go\r\n250 ok\r\n")
        #expect(shortly(full.finished.last?.ends) == ["250", "552"])
    }

    @Test func announcedLimitsDisobeyed() {
        var run = SessionRun.ready(pipelining + ["LIMITS RCPTMAX=1 MAILMAX=1"])
        run.send(.begin(transaction(to: ["a@x.test", "b@x.test"])))
        #expect(run.takeWritten() == "MAIL FROM:<s@sender.test> SIZE=21\r\nRCPT TO:<a@x.test>\r\nDATA\r\n")
        run.peer("250 ok\r\n250 ok\r\n354 go\r\n250 ok\r\n")
        #expect(shortly(run.finished.last?.ends) == ["250", "again"])
        #expect(run.finished.last?.reusable == false)
        #expect(run.session.isExhausted)
    }

    @Test func incapablePeerGetsTheMessage() {
        func lack(_ offers: [String], _ transaction: ClientTransaction) -> [String] {
            var run = SessionRun.ready(offers)
            run.send(.begin(transaction))
            #expect(run.takeWritten() == "")
            #expect(run.session.isReady)
            return shortly(run.finished.last?.ends)
        }
        #expect(lack([], transaction(body: "a: b\r\n\r\nü\r\n")) == ["incapable eightBitMIME"])
        #expect(
            lack(["8BITMIME"], transaction(to: ["ü@x.test"], flags: .smtpUTF8)) == ["incapable smtpUTF8"])
        #expect(lack(["SIZE 10"], transaction()) == ["incapable size(limit: 10)"])
        #expect(lack([], transaction(flags: .requireTLS)) == ["incapable requireTLS"])
        var unlimited = SessionRun.ready(["SIZE 0"])
        unlimited.send(.begin(transaction()))
        #expect(unlimited.takeWritten() != "")
    }

    /// Octets above 127 in a header that nobody declared: old mail, which travels as 8BITMIME, never as SMTPUTF8.
    @Test func undeclaredEightBitHeaderNeedsSMTPUTF8() {
        let mail = transaction(body: "Subject: \u{fc}\r\n\r\nx\r\n")
        var body = mail.body.traits
        body.hasEightBitBody = false
        body.hasEightBitHeader = true
        var run = SessionRun.ready(["8BITMIME", "SMTPUTF8"])
        run.send(.begin(transaction(body: "Subject: \u{fc}\r\n\r\nx\r\n", traits: body)))
        #expect(run.takeWritten() == "MAIL FROM:<s@sender.test> BODY=8BITMIME\r\n")
        var seven = SessionRun.ready(["SMTPUTF8"])
        seven.send(.begin(transaction(body: "Subject: \u{fc}\r\n\r\nx\r\n", traits: body)))
        #expect(shortly(seven.finished.last?.ends) == ["incapable eightBitMIME"])
        // Declared, the header needs SMTPUTF8, and no other offer makes up for it.
        var declared = SessionRun.ready(["8BITMIME"])
        declared.send(.begin(transaction(flags: .smtpUTF8, traits: body)))
        #expect(shortly(declared.finished.last?.ends) == ["incapable smtpUTF8"])
    }

    @Test func lmtpOneReplyForAll() {
        var run = SessionRun.ready(["PIPELINING"], isLMTP: true)
        run.send(.begin(transaction(to: ["a@x.test", "b@x.test", "c@x.test"])))
        run.peer("250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n")
        run.peer("250 a\r\n")
        #expect(run.finished.isEmpty)
        run.peer("452 4.2.2 c full\r\n")
        #expect(shortly(run.finished.last?.ends) == ["250", "550", "452"])
        #expect(run.session.isReady)
    }

    @Test func lmtpLostBetweenRepliesForgetsTheFirst() {
        var run = SessionRun.ready(["PIPELINING"], isLMTP: true)
        run.send(.begin(transaction(to: ["a@x.test", "b@x.test"])))
        run.peer("250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 a\r\n")
        run.send(.closed)
        #expect(shortly(run.finished.last?.ends) == ["250", "doubt"])
    }
}
