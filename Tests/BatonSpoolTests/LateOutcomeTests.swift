// Outcomes of a former drainer that come after the takeover (PROTOCOL T5).
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

@Suite struct LateOutcomeTests {
    private let at = Instant(secondsSinceEpoch: 1_790_000_000)

    private func outcome(_ ref: StoredMessageRef, _ verdict: OutcomeVerdict, recipient: UInt32 = 0) -> Outcome {
        Outcome(
            job: JobRef(message: ref, recipient: recipient), at: at, verdict: verdict, attempts: 1, reply: nil,
            peer: nil)
    }

    /// What the writer recorded, as its copy would be read by whoever asks.
    private func entries(_ pair: TakeoverPair) throws -> ByteBuffer {
        pair.writer.ticks(1)
        let read = Mutex<ByteBuffer?>(nil)
        pair.writer.copies.read(pair.id, .outcomeEntries, from: 0, atMost: 1 << 20) { answer in
            if case .octets(let octets, _) = answer { read.withLock { $0 = octets } }
        }
        pair.writer.copies.pump()
        return try #require(read.withLock { $0 })
    }

    @Test func deliveredByTheFormerDrainerAndStillOpenHere() throws {
        let pair = try TakeoverPair()
        for (number, verdict) in [(UInt64(1), OutcomeVerdict.delivered), (2, .deferred(until: at)), (3, .bounced)] {
            pair.writer.spool.record([outcome(try #require(pair.sink.ref(number)), verdict)])
        }
        let entries = try entries(pair)
        _ = try pair.takeOver()
        pair.taker.spool.late(entries, of: pair.id)
        let late = pair.taker.jobs.late
        #expect(late.map(\.envelope.id) == [Mail.id(1), Mail.id(3)], "a deferral is not final")
        #expect(late.map(\.outcome.job.message) == [1, 3].compactMap { pair.taker.jobs.message(Mail.id($0))?.ref })
        #expect(late.map(\.outcome.verdict) == [.delivered, .bounced])
        // What was recorded here meanwhile is not news; and no dot of this node waits for it (P5).
        pair.taker.spool.record(late.map(\.outcome))
        pair.taker.spool.pump()
        let id = pair.id
        #expect(pair.taker.news.state.withLock { $0.taken[id] } == 0)
        pair.taker.spool.record([outcome(try #require(pair.taker.jobs.message(Mail.id(2))).ref, .delivered)])
        pair.taker.spool.pump()
        #expect(pair.taker.news.state.withLock { $0.taken[id] } == 1)
        pair.taker.spool.late(entries, of: pair.id)
        #expect(pair.taker.jobs.late.count == 2, "told twice")
        pair.taker.stop()
    }

    @Test func lateWordForASegmentThatIsNotDrainedHere() throws {
        let pair = try TakeoverPair()
        pair.writer.spool.record([outcome(try #require(pair.sink.ref(1)), .delivered)])
        pair.taker.spool.late(try entries(pair), of: pair.id)
        #expect(pair.taker.jobs.late.isEmpty)
        pair.taker.stop()
    }

    @Test func lateOctetsThatRotOrNameNobodyAreBelieved() throws {
        let pair = try TakeoverPair()
        let ref = try #require(pair.sink.ref(1))
        _ = try pair.takeOver()
        let seed = OutcomeFormat.header(pair.id).seed
        var octets = ByteBuffer()
        for (record, recipient) in [(UInt32(0), UInt32(7)), (900, 0), (ref.record, 0)] {
            let bad = OutcomeRecord(
                outcome(StoredMessageRef(segment: 1, record: record), .delivered, recipient: recipient), record: record)
            OutcomeFormat.write(.outcome(bad), seed: seed, into: &octets)
        }
        octets.setInteger(UInt8(0x55), at: octets.writerIndex - 3)
        pair.taker.spool.late(octets, of: pair.id)
        pair.taker.spool.late(ByteBuffer(repeating: 0xff, count: 300), of: pair.id)
        #expect(pair.taker.jobs.late.isEmpty)
        pair.taker.stop()
    }

    // MARK: Pieces

    @Test func piecesTearAnEntryOrCarryWhatIsNotFinal() {
        let id = SegmentID(writer: NodeID(name: "n1"), incarnation: Incarnation(value: 1), index: 4)
        let seed = OutcomeFormat.header(id).seed
        let verdicts: [OutcomeVerdict] = [
            .delivered, .deferred(until: at), .bounced, .expired, .adminBounced, .withdrawn, .inDoubt(until: at),
            .delayNoticeSent,
        ]
        var entries = ByteBuffer()
        OutcomeFormat.write(
            .drainer(Drainer(node: NodeID(name: "n1"), incarnation: Incarnation(value: 1)), epoch: 1), seed: seed,
            into: &entries)
        for record in UInt32(0)..<100 {
            let verdict = verdicts[Int(record) % verdicts.count]
            let made = OutcomeRecord(outcome(StoredMessageRef(segment: 1, record: record), verdict), record: record)
            OutcomeFormat.write(.outcome(made), seed: seed, into: &entries)
        }
        let finals = LateOutcomes.finals(in: entries, segment: id).map(\.record)
        #expect(finals == (0..<100).filter { [0, 2, 3, 4].contains($0 % 8) })
        for most in [1, 36, 72, 100, 1_000, 1 << 20] {
            let pieces = LateOutcomes.pieces(of: entries, segment: id, most: most)
            #expect(pieces.flatMap { LateOutcomes.finals(in: $0.octets, segment: id) }.map(\.record) == finals)
            #expect(pieces.allSatisfy { $0.octets.readableBytes <= most || $0.count == 1 }, "\(most)")
            #expect(pieces.map(\.count) == pieces.map { LateOutcomes.finals(in: $0.octets, segment: id).count })
        }
        #expect(LateOutcomes.pieces(of: ByteBuffer(), segment: id, most: 100).isEmpty)
    }
}
