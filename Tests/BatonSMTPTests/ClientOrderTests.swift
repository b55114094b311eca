// Replies that come before what they answer: the connection goes, nothing is taken for delivered.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonSMTP

private let pipelining = ["PIPELINING", "SIZE 1000000", "8BITMIME", "DSN"]

@Suite struct ClientOrderTests {
    /// A 250 that lies here before the body is written answers something else, and would be taken for the message's.
    @Test(arguments: 0...3)
    func replyAheadOfTheBodyTakenAsDelivery(octets: Int) {
        let early = String("250 x\r\n".prefix(octets == 3 ? 6 : octets + 1))
        for offers in [pipelining, [], pipelining + ["CHUNKING"]] {
            var run = SessionRun.ready(offers, chunkingFrom: 1)
            run.send(.begin(transaction()))
            let chunked = offers.contains("CHUNKING")
            if offers.isEmpty {
                run.peer("250 ok\r\n")
                run.peer("250 ok\r\n")
            }
            run.written = []
            run.atOnce((offers.isEmpty ? "" : "250 ok\r\n250 ok\r\n") + (chunked ? "" : "354 go\r\n") + early)
            #expect(run.takeWritten() == "", "\(offers)")
            #expect(shortly(run.finished.last?.ends) == ["lost 0"], "\(offers)")
            #expect(run.session.isClosed && run.closes == 1)
        }
    }

    @Test func replyAheadOfItsCommandTakenAsItsAnswer() {
        // To EHLO, MAIL, RCPT, DATA and between chunks.
        var banner = SessionRun()
        banner.atOnce("220 mx.test\r\n250 mx.test\r\n")
        #expect(banner.refused?.code == 0 && banner.session.isClosed && banner.takeWritten() == "")
        for ahead in 1...2 {
            var run = SessionRun.ready([])
            run.send(.begin(transaction()))
            for _ in 1..<ahead { run.atOnce("250 ok\r\n") }
            run.written = []
            run.atOnce("250 ok\r\n250 ok\r\n")
            #expect(run.takeWritten() == "" && shortly(run.finished.last?.ends) == ["lost 0"], "ahead \(ahead)")
        }
        var chunks = SessionRun.ready(pipelining + ["CHUNKING"], chunkingFrom: 1)
        chunks.send(.begin(transaction(fragments: 2)))
        chunks.atOnce("250 ok\r\n250 ok\r\n")
        chunks.send(.fragment(0, ByteBuffer(string: "Subject: x\r\n\r\n")))
        chunks.send(.fragment(1, ByteBuffer(string: "hello\r\n")))
        chunks.written = []
        chunks.atOnce("250 chunk\r\n250 last\r\n")
        #expect(chunks.takeWritten() == "" && shortly(chunks.finished.last?.ends) == ["lost 0"])
        var idle = SessionRun.ready(pipelining)
        idle.atOnce("2")
        idle.send(.begin(transaction()))
        #expect(idle.takeWritten() == "" && shortly(idle.finished.last?.ends) == ["again"])
        #expect(idle.session.isClosed && idle.closes == 1)
    }
}
