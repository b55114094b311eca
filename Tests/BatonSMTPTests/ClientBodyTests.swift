// Bodies on their way out: dots, missing line ends, BDAT, and large ones fragment by fragment.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonSMTP

@Suite struct ClientBodyTests {
    private func sent(_ body: String, _ offers: [String], chunkingFrom: Int = Limits.fragmentThreshold) -> String {
        var run = SessionRun.ready(offers + ["PIPELINING"], chunkingFrom: chunkingFrom)
        run.send(.begin(transaction(body: body)))
        run.written = []
        run.peer("250 ok\r\n250 ok\r\n")
        if !offers.contains("CHUNKING") { run.peer("354 go\r\n") }
        return run.takeWritten()
    }

    @Test(arguments: [
        ("a: b\r\n\r\nx\r\n", "a: b\r\n\r\nx\r\n.\r\n"),
        (".\r\n", "..\r\n.\r\n"),
        ("a\r\n..\r\n.b\r\n", "a\r\n...\r\n..b\r\n.\r\n"),
        ("a\r\nno end", "a\r\nno end\r\n.\r\n"),
        ("a\r\n.", "a\r\n..\r\n.\r\n"),
        ("", ".\r\n"),
    ])
    func dataBodyAltered(body: String, wire: String) {
        // The traits of an empty body say that it ends a line.
        if body.isEmpty {
            var run = SessionRun.ready(["PIPELINING"])
            run.send(.begin(transaction(body: "", traits: .empty)))
            run.written = []
            run.peer("250 ok\r\n250 ok\r\n354 go\r\n")
            #expect(run.takeWritten() == wire)
        } else {
            #expect(sent(body, []) == wire)
        }
    }

    @Test func chunkedBodyStuffed() {
        #expect(sent(".a\r\nno end", ["CHUNKING"]) == "BDAT 10 LAST\r\n.a\r\nno end")
        #expect(sent(".a\r\n.b\r\n", ["CHUNKING"], chunkingFrom: 1) == "BDAT 8 LAST\r\n.a\r\n.b\r\n")
    }

    @Test func chunkRefusedBlamedOnConnection() {
        var run = SessionRun.ready(["CHUNKING", "PIPELINING"], chunkingFrom: 1)
        run.send(.begin(transaction(to: ["a@x.test", "b@x.test"])))
        run.peer("250 ok\r\n250 ok\r\n550 no\r\n")
        #expect(run.session.isPastDot)
        run.peer("554 5.6.0 no\r\n")
        #expect(shortly(run.finished.last?.ends) == ["554", "550"])
        #expect(run.session.isReady)
    }

    private func streamed(_ offers: [String], fragments: [String]) -> SessionRun {
        let whole = fragments.joined()
        var run = SessionRun.ready(offers, chunkingFrom: 1)
        run.send(
            .begin(
                transaction(traits: traits(Array(whole.utf8)), fragments: UInt32(fragments.count))))
        run.peer("250 ok\r\n250 ok\r\n")
        if !offers.contains("CHUNKING") { run.peer("354 go\r\n") }
        run.written = []
        return run
    }

    @Test func streamedDataAltered() {
        let fragments = ["a\r\n.b\r\n", ".c\r", "\n.d", "\r\n."]
        var run = streamed(["PIPELINING"], fragments: fragments)
        for (index, fragment) in fragments.enumerated() {
            #expect(run.wanted.last == UInt32(index))
            run.send(.fragment(UInt32(index), ByteBuffer(string: fragment)))
            run.send(.writable)
        }
        #expect(run.takeWritten() == "a\r\n..b\r\n..c\r\n..d\r\n..\r\n.\r\n")
        #expect(run.session.isPastDot)
        run.peer("250 ok\r\n")
        #expect(shortly(run.finished.last?.ends) == ["250"])
    }

    @Test func streamRunsAheadOfTransport() {
        var run = streamed(["PIPELINING"], fragments: ["a\r\n", "b\r\n", "c\r\n"])
        run.send(.fragment(0, ByteBuffer(string: "a\r\n")))
        #expect(run.wanted == [0, 1])
        run.send(.fragment(1, ByteBuffer(string: "b\r\n")))
        #expect(run.takeWritten() == "a\r\n")
        #expect(run.wanted == [0, 1])
        run.send(.writable)
        #expect(run.takeWritten() == "b\r\n")
        #expect(run.wanted == [0, 1, 2])
    }

    @Test func chunksRunAheadOfReplies() {
        var run = streamed(["PIPELINING", "CHUNKING"], fragments: ["a\r\n", "b"])
        #expect(run.wanted == [0])
        run.send(.fragment(0, ByteBuffer(string: "a\r\n")))
        #expect(run.takeWritten() == "BDAT 3\r\na\r\n")
        run.send(.fragment(1, ByteBuffer(string: "b")))
        #expect(run.takeWritten() == "")
        run.peer("250 ok\r\n")
        #expect(run.takeWritten() == "BDAT 1 LAST\r\nb")
        run.send(.closed)
        #expect(shortly(run.finished.last?.ends) == ["doubt"])
    }

    @Test func damageWhileSendingReachesTheDot() {
        var run = streamed(["PIPELINING"], fragments: ["a\r\n", "b\r\n"])
        run.send(.fragment(0, ByteBuffer(string: "a\r\n")))
        run.send(.bodyDamaged)
        #expect(shortly(run.finished.last?.ends) == ["damaged"])
        #expect(run.takeWritten() == "a\r\n")
        #expect(run.session.isClosed)
        #expect(run.closes == 1)
    }

    @Test func earlyRefusalOfStreamLost() {
        var run = streamed(["PIPELINING"], fragments: ["a\r\n", "b\r\n"])
        run.send(.fragment(0, ByteBuffer(string: "a\r\n")))
        run.peer("552 5.3.4 too big\r\n")
        #expect(shortly(run.finished.last?.ends) == ["552"])
        #expect(run.session.isClosed)
    }

    @Test func stalledStreamHangs() {
        var run = streamed(["PIPELINING"], fragments: ["a\r\n", "b\r\n"])
        run.send(.fragment(0, ByteBuffer(string: "a\r\n")))
        run.pass(.minutes(3))
        #expect(shortly(run.finished.last?.ends) == ["lost 0"])
    }

    @Test func messagesBecomeMoreOrFewer() {
        // Whatever the bodies, a strict receiver sees as many messages as were sent, octet for octet.
        let seed: UInt64 = 42
        var random = SplitMix64(seed: seed)
        let pieces = [".", "..", "\r\n", "a", "MAIL FROM:<x@y.test>", "\r\n.\r\n", "\r\n.\r\nDATA\r\n"]
        for round in 0..<300 {
            var body = ""
            for _ in 0..<(random.next() % 9) { body += pieces[Int(random.next() % UInt64(pieces.count))] }
            if !body.hasSuffix("\r\n") { body += "\r\n" }
            let wire = Array(sent(body, []).utf8)
            #expect(strictlyReceived(wire) == Array(body.utf8), "seed \(seed) round \(round)")
        }
    }

    /// What CRLF.CRLF ends, un-stuffed; nil unless the end is the last of the octets.
    private func strictlyReceived(_ wire: [UInt8]) -> [UInt8]? {
        var result: [UInt8] = []
        var rest = wire[...]
        while let end = rest.indices.first(where: { rest[$0] == 0x0a }) {
            let line = rest[...end]
            rest = rest[(end + 1)...]
            if Array(line) == Array(".\r\n".utf8) { return rest.isEmpty ? result : nil }
            result += line.first == UInt8(ascii: ".") ? line.dropFirst() : line
        }
        return nil
    }
}
