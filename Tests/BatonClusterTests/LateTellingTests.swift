// A replaced copy's outcomes on their way to the drainer: pages in, pieces out (PROTOCOL T5).
import BatonCore
import BatonModel
import BatonPeer
import NIOCore
import Synchronization
import Testing

@testable import BatonCluster
@testable import BatonSpool

@Suite struct LateTellingTests {
    fileprivate static let id = SegmentID(writer: NodeID(name: "n1"), incarnation: Incarnation(value: 1), index: 4)

    /// Outcomes of `count` recipients, every second one final.
    private static func entries(_ count: UInt32) -> ByteBuffer {
        let seed = OutcomeFormat.header(id).seed
        let at = Instant(secondsSinceEpoch: 1_790_000_000)
        let reply = SMTPReply(
            code: 250, status: nil, text: Array(repeating: UInt8(ascii: "x"), count: 100), stage: .finalDot)
        var entries = ByteBuffer()
        for record in 0..<count {
            let outcome = OutcomeRecord(
                record: record, recipient: 0, at: at, verdict: record % 2 == 0 ? .delivered : .deferred(until: at),
                attempts: 1, reply: reply, peer: nil)
            OutcomeFormat.write(.outcome(outcome), seed: seed, into: &entries)
        }
        return entries
    }

    private final class Session: Sendable {
        let records = Mutex<[UInt32]>([])
        let room = Mutex(Int.max)
        let answer = Mutex<(pieces: Int, all: Bool)?>(nil)

        /// One try from `sent` on; `fails`: which page cannot be read.
        func tell(_ entries: ByteBuffer, after sent: Int, failing fails: Int? = nil) -> (pieces: Int, all: Bool)? {
            let pages = Mutex(0)
            let telling = LateTelling(segment: LateTellingTests.id, epoch: 3, sent: sent) { offset, done in
                let page = pages.withLock { pages in
                    defer { pages += 1 }
                    return pages
                }
                if page == fails { return done(.failed) }
                let count = min(DriverLimits.pieceOctets, entries.readableBytes - Int(offset))
                let octets = entries.getSlice(at: Int(offset), length: count) ?? ByteBuffer()
                done(.octets(octets, last: Int(offset) + count >= entries.readableBytes))
            } send: { [self] found in
                let taken = room.withLock { room in
                    defer { room = max(0, room - 1) }
                    return room > 0
                }
                guard taken, found.isLate, found.records.readableBytes <= PeerLimits.outcomeOctets else { return false }
                let more = LateOutcomes.finals(in: found.records, segment: LateTellingTests.id).map(\.record)
                records.withLock { $0 += more }
                return found.count == more.count
            } answer: { [self] pieces, all in
                answer.withLock { $0 = (pieces, all) }
            }
            telling.begin()
            return answer.withLock { $0 }
        }
    }

    /// More than one page, and than one try takes.
    @Test func onlyTheFirstOutcomesAreTold() throws {
        let entries = Self.entries(40_000)
        #expect(entries.readableBytes > 4 * DriverLimits.pieceOctets)
        let session = Session()
        var sent = 0
        var tries = 0
        while tries < 100 {
            tries += 1
            let answer = try #require(session.tell(entries, after: sent))
            #expect(answer.pieces <= sent + DriverLimits.piecesPerTick)
            sent = answer.pieces
            if answer.all { break }
        }
        #expect(tries > 1 && tries < 10)
        let told = session.records.withLock { $0 }
        #expect(told == (0..<40_000).filter { $0 % 2 == 0 }, "each once, in order")
    }

    @Test func pieceThatWasRefusedIsCountedAsTold() throws {
        let entries = Self.entries(20_000)
        let session = Session()
        session.room.withLock { $0 = 2 }
        let first = try #require(session.tell(entries, after: 0))
        #expect(first.pieces == 2 && !first.all)
        session.room.withLock { $0 = .max }
        var sent = first.pieces
        for _ in 0..<10 { sent = session.tell(entries, after: sent)?.pieces ?? sent }
        #expect(session.records.withLock { $0.count } == 10_000)
        #expect(try #require(session.tell(entries, after: sent)).all)
    }

    @Test func copyThatCannotBeReadCountsAsTold() throws {
        let entries = Self.entries(20_000)
        let session = Session()
        for page in 0...1 {
            let answer = try #require(session.tell(entries, after: 1, failing: page))
            #expect(answer.pieces == 1 && !answer.all)
        }
        #expect(session.records.withLock { $0.isEmpty })
        #expect(try #require(session.tell(ByteBuffer(), after: 0)).all, "nothing to tell is told")
    }
}
