// The bench's own wire code: framing and digest at every split, the sink's dialogue, the generator's dialogue.
import BatonCore
import NIOCore
import Testing

@testable import baton_bench

/// What a scanner hands over when `wire` arrives in pieces cut at `cuts`.
private func scanned(_ wire: [UInt8], cuts: [Int]) -> (text: [UInt8], used: Int, ended: Bool) {
    var scanner = BodyScanner()
    var text: [UInt8] = []
    var used = 0
    var start = 0
    for end in cuts + [wire.count] where end >= start {
        let piece = Array(wire[start..<end])
        start = end
        let result = piece.withUnsafeBytes { bytes in scanner.consume(bytes) { text.append(contentsOf: $0) } }
        used += result.used
        if result.ended { return (text, used, true) }
    }
    return (text, used, false)
}

@Suite struct BodyScannerTests {
    private static let cases: [(wire: String, text: String)] = [
        (".\r\n", ""), ("a\r\n.\r\n", "a\r\n"), ("..\r\n.\r\n", ".\r\n"), ("...x\r\n.\r\n", "..x\r\n"),
        ("a\r\n..b\r\nc\r\n.\r\n", "a\r\n.b\r\nc\r\n"), ("a\n.\nb\r\n.\r\n", "a\n.\nb\r\n"),
        ("a\r\n.\rb\r\n.\r\n", "a\r\n\rb\r\n"), ("a\r.\r\nb\r\n.\r\n", "a\r.\r\nb\r\n"),
        ("\r\r\n.\r\n", "\r\r\n"), ("x\r\n.\r\r\n.\r\n", "x\r\n\r\r\n"), ("a.\r\n.\r\n", "a.\r\n"),
    ]

    @Test(arguments: cases) func endOrDotLostAtASplit(_ wire: String, _ text: String) {
        let bytes = Array(wire.utf8) + Array("NEXT".utf8)
        for first in 0...bytes.count {
            for second in first...bytes.count {
                let result = scanned(bytes, cuts: [first, second])
                #expect(result.ended, "cut at \(first), \(second)")
                #expect(result.text == Array(text.utf8), "cut at \(first), \(second)")
                #expect(result.used == wire.utf8.count)
            }
        }
        let single = scanned(bytes, cuts: Array(0...bytes.count))
        #expect(single.ended && single.text == Array(text.utf8))
    }

    @Test func endFoundWhereThereIsNone() {
        for wire in ["a\n.\n", "a\r\n.\n", "a\n.\r\n", "a\r.\r", "a\r\n\0.\r\n", "a\r\n.\r"] {
            #expect(!scanned(Array(wire.utf8), cuts: []).ended, "\(wire.debugDescription)")
        }
    }

    @Test func stuffedBodyDoesNotComeBackAsItWas() {
        var random = SplitMix64(seed: 7)
        for _ in 0..<50 {
            let plain = TextBody.make(Int(random.next() % 4000), &random)
            let body = PooledBody(plain: plain)
            let wire = Array(body.wire.readableBytesView)
            let cut = Int(random.next() % UInt64(wire.count))
            let result = scanned(wire, cuts: [cut])
            #expect(result.ended && result.text == plain)
        }
    }
}

@Suite struct CollectorTests {
    private func finish(_ message: [UInt8], cut: Int, whole: Bool) -> (BenchID?, UInt32, Int, [UInt8]) {
        var collector = MessageCollector(keepsWhole: whole)
        Array(message[..<cut]).withUnsafeBytes { collector.append($0) }
        Array(message[cut...]).withUnsafeBytes { collector.append($0) }
        let done = collector.finish()
        return (done.id, done.checksum, done.length, collector.queueID)
    }

    @Test func traceFieldsOfARelayChangeTheDigest() {
        var factory = MessageFactory(
            run: 0xabcd, seed: 3, sender: "a@b.example", recipients: CountOption(1), domains: 1, zipf: 1,
            domain: "x.test",
            size: SizeOption(700), style: .text)
        let message = factory.make(99, due: 0)
        let plain = message.header + message.body.plain
        let trace = Array("Received: from a (b [127.0.0.1])\r\n\tby c with ESMTP id 0ABC; Mon\r\n".utf8)
        for whole in [false, true] {
            for cut in 0...(trace.count + 40) {
                let got = finish(trace + plain, cut: cut, whole: whole)
                #expect(got.0 == BenchID(run: 0xabcd, index: 99))
                #expect(got.1 == message.checksum && got.2 == message.length)
                #expect(got.3 == Array("0ABC".utf8))
            }
        }
        var flipped = plain
        flipped[plain.count - 5] ^= 1
        #expect(finish(flipped, cut: 10, whole: false).1 != message.checksum)
    }

    @Test func idInTheBodyIsTakenForTheMessages() {
        let text = Array("Subject: x\r\n\r\nX-Bench-Id: 0000abcd-0000000000000001\r\n".utf8)
        for cut in 0...text.count {
            let got = finish(text, cut: cut, whole: false)
            #expect(got.0 == nil)
            #expect(got.1 == CRC32C.of(text) && got.2 == text.count)
        }
    }
}

/// Drives a sink session with a script of octets cut into pieces of `size`; returns what it said.
private func dialogue(_ behaviour: SinkBehaviour, _ script: String, pieces size: Int) -> (
    said: String, records: [HistoryRecord], dropped: Bool
) {
    var session = SinkSession(behaviour, number: 1)
    var out = ByteBuffer()
    var input = ByteBuffer()
    var dropped = session.connected(refused: false, &out) == .drop
    let bytes = Array(script.utf8)
    var at = 0
    while at < bytes.count, !dropped {
        let end = min(bytes.count, at + size)
        input.writeBytes(bytes[at..<end])
        at = end
        pump: while true {
            switch session.step(&input, now: 5, &out) {
            case .needMore, .close: break pump
            case .progressed, .replied: continue
            case .drop:
                dropped = true
                break pump
            }
        }
    }
    return (String(buffer: out), session.records, dropped)
}

private func codes(_ said: String) -> [String] {
    said.split(separator: "\r\n").filter { $0.dropFirst(3).first == " " }.map { String($0.prefix(3)) }
}

@Suite struct SinkSessionTests {
    private static let script =
        "EHLO a\r\nMAIL FROM:<s@a>\r\nRCPT TO:<r0.7@x>\r\nRCPT TO:<r1.7@x>\r\nDATA\r\n"
        + "X-Bench-Id: 0000000a-0000000000000007\r\n\r\n..hi\r\n.\r\n"
        + "MAIL FROM:<>\r\nRCPT TO:<q@x>\r\nBDAT 4\r\nab\r\nBDAT 3 LAST\r\nc\r\nQUIT\r\n"

    @Test func dialogueThatDependsOnWhereItIsCut() {
        let whole = dialogue(SinkBehaviour(), Self.script, pieces: 10_000)
        #expect(
            codes(whole.said) == ["220", "250", "250", "250", "250", "354", "250", "250", "250", "250", "250", "221"])
        #expect(whole.records.count == 3)
        #expect(whole.records.map(\.recipient) == [0, 1, HistoryRecord.unknownRecipient])
        #expect(whole.records.first?.index == 7)
        #expect(whole.records.last?.checksum == CRC32C.of(Array("ab\r\nc\r\n".utf8)))
        for size in 1...60 {
            let cut = dialogue(SinkBehaviour(), Self.script, pieces: size)
            #expect(cut.said == whole.said && cut.records == whole.records, "pieces of \(size)")
        }
    }

    @Test func faultAtAStageThatDoesNotStrike() {
        func with(_ change: (inout SinkBehaviour) -> Void) -> (said: String, records: [HistoryRecord], dropped: Bool) {
            var behaviour = SinkBehaviour()
            change(&behaviour)
            return dialogue(behaviour, Self.script, pieces: 10_000)
        }
        #expect(codes(with { $0.temporary = [.connect: 1] }.said) == ["421"])
        #expect(codes(with { $0.temporary = [.rcpt: 1] }.said).contains("450"))
        #expect(codes(with { $0.permanent = [.mail: 1] }.said).contains("550"))
        #expect(codes(with { $0.temporary = [.data: 1] }.said).contains("451"))
        let refused = with { $0.permanent = [.dot: 1] }
        #expect(codes(refused.said).contains("554"))
        // The second message has the null sender, which permanent faults spare.
        #expect(refused.records.map(\.kind) == [.receivedUnanswered, .receivedUnanswered, .received])
        let before = with { $0.drops = [.body: 1] }
        #expect(before.dropped && before.records.isEmpty)
        let after = with { $0.drops = [.dot: 1] }
        #expect(
            after.dropped && after.records.count == 2 && after.records.allSatisfy { $0.kind == .receivedUnanswered })
        #expect(!with { $0.chunking = false }.said.contains("CHUNKING"))
        #expect(codes(with { $0.messagesPerConnection = 1 }.said).last == "421")
    }

    @Test func commandLineWithoutEnd() {
        let result = dialogue(SinkBehaviour(), String(repeating: "x", count: SinkSession.lineBound + 2), pieces: 100)
        #expect(codes(result.said).last == "500")
    }

    @Test func latencyThatIsNotAskedFor() {
        var behaviour = SinkBehaviour()
        behaviour.latency = 7
        behaviour.dotLatency = 9
        var session = SinkSession(behaviour, number: 1)
        var out = ByteBuffer()
        #expect(session.connected(refused: false, &out) == .replied(after: 7))
        var input = ByteBuffer(string: "EHLO a\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n.\r\n")
        var waits: [Int64] = []
        while true {
            let step = session.step(&input, now: 0, &out)
            if step == .needMore { break }
            if case .replied(let wait) = step { waits.append(wait) }
        }
        #expect(waits == [7, 7, 7, 7, 9])
    }
}

@Suite struct ReportReaderTests {
    @Test func reportThatIsNotUnderstood() {
        let text = """
            From: MAILER-DAEMON@relay\r\nContent-Type: multipart/report\r\n\r\n--b\r\n\r\nReporting-MTA: dns; relay\r\n\r
            Final-Recipient: rfc822; r3.9@x.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\r
            Final-Recipient: rfc822;r4.9@x.test\r\nAction: delayed\r\n\r\n--b\r\nContent-Type: text/rfc822-headers\r\n\r
            Received: from x\r\nX-Bench-Id: 0000000a-0000000000000009\r\n\r\n--b--\r\n
            """
        let id = BenchID(run: 10, index: 9)
        #expect(
            ReportReader.read(Array(text.utf8)) == [
                .init(id: id, recipient: 3, action: .failed), .init(id: id, recipient: 4, action: .delayed),
            ])
        #expect(ReportReader.read(Array("Final-Recipient: rfc822; r1@x\r\n\r\n".utf8)).isEmpty)
    }
}

/// Feeds a generator session with server lines; returns what it wrote for each, and the results of its message.
private func generated(_ lines: [String], pipelining: Bool, recipients: Int) -> (
    wrote: [String], results: [SendSession.Result]?, queueID: String
) {
    var factory = MessageFactory(
        run: 1, seed: 1, sender: "a@b", recipients: CountOption(recipients), domains: 1, zipf: 1, domain: "x",
        size: SizeOption(400),
        style: .text)
    var behaviour = SendBehaviour()
    behaviour.pipelining = pipelining
    var session = SendSession(behaviour)
    var wrote: [String] = []
    var results: [SendSession.Result]?
    var queueID = ""
    for line in lines {
        var input = ByteBuffer(string: line + "\r\n")
        var out = ByteBuffer()
        pump: while true {
            switch session.step(&input, &out) {
            case .needMore: break pump
            case .progressed: continue
            case .ready: session.begin(factory.make(1, due: 0), &out)
            case .ended(_, let all, let id):
                results = all
                queueID = String(decoding: id, as: UTF8.self)
                break pump
            case .close: break pump
            }
        }
        wrote.append(String(buffer: out))
    }
    return (wrote, results, queueID)
}

@Suite struct SendSessionTests {
    @Test func pipelinedMessageThatWaitsForEachReply() {
        let run = generated(
            [
                "220 x", "250-x\r\n250 PIPELINING", "250 ok", "550 no", "250 ok", "354 go",
                "250 2.0.0 Ok: queued as 0ABC",
            ],
            pipelining: true, recipients: 2)
        #expect(run.wrote[1].split(separator: "\r\n").map { $0.prefix(4) } == ["MAIL", "RCPT", "RCPT", "DATA"])
        #expect(run.wrote[5].hasSuffix("\r\n.\r\n"))
        #expect(run.results == [.init(kind: .refused, code: 550), .init(kind: .accepted, code: 250)])
        #expect(run.queueID == "0ABC")
    }

    @Test func serverWithoutPipeliningGetsSeveralCommands() {
        let run = generated(
            ["220 x", "250 x", "250 ok", "250 ok", "354 go", "451 later"], pipelining: true, recipients: 1)
        #expect(run.wrote[1].hasPrefix("MAIL") && !run.wrote[1].contains("RCPT"))
        #expect(run.wrote[2].hasPrefix("RCPT") && run.wrote[3] == "DATA\r\n")
        #expect(run.results == [.init(kind: .refused, code: 451)])
    }

    @Test func dataAcceptedThoughNobodyWas() {
        let run = generated(
            ["220 x", "250-x\r\n250 PIPELINING", "250 ok", "550 no", "354 go", "554 nothing"], pipelining: true,
            recipients: 1)
        #expect(run.wrote[4] == ".\r\n")
        #expect(run.results == [.init(kind: .refused, code: 550)])
    }

    @Test func replyWithoutEndOrCode() {
        var session = SendSession(SendBehaviour())
        var out = ByteBuffer()
        var long = ByteBuffer(string: String(repeating: "2", count: SendSession.lineBound + 1))
        if case .close = session.step(&long, &out) {} else { Issue.record("kept reading") }
        var odd = ByteBuffer(string: "hello\r\n")
        if case .close = session.step(&odd, &out) {} else { Issue.record("took it for a reply") }
        var many = ByteBuffer(string: String(repeating: "220-x\r\n", count: SendSession.replyLines + 2))
        var closed = false
        for _ in 0...(SendSession.replyLines + 1) {
            if case .close = session.step(&many, &out) {
                closed = true
                break
            }
        }
        #expect(closed)
    }
}
