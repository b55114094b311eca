// Fetches and copies under way: whose answer is taken, and for which run.
import BatonCore
import BatonModel
import BatonPeer
import BatonSpool
import NIOCore
import Testing

@testable import BatonCluster

private let start = Instant(secondsSinceEpoch: 1_000)
private let id = SegmentID(writer: NodeID(name: "n1"), incarnation: Incarnation(value: 5), index: 3)
private let backup = EnsembleMember(node: NodeID(name: "n2"), diskID: 2)
private let joiner = EnsembleMember(node: NodeID(name: "n3"), diskID: 3)
private let octets = ByteBuffer(repeating: 1, count: 10)

@Suite struct FetchRunTests {
    private func run(at offset: Int64 = 40) -> FetchRun {
        FetchRun(segment: id, epoch: 4, member: backup, purpose: .repair(upTo: 90), offset: offset, askedAt: start)
    }

    private func piece(_ request: UInt64, _ segment: SegmentID = id, at offset: Int64 = 40) -> BatonPeer.CopyPart {
        BatonPeer.CopyPart(
            request: request, segment: segment, epoch: 4, offset: offset, part: .segment, status: .octets,
            isLast: false, octets: octets)
    }

    @Test func wrongAnswerEndsAFetchSilently() throws {
        var fetches = FetchRuns()
        let request = fetches.begin(run())
        let other = SegmentID(writer: id.writer, incarnation: id.incarnation, index: 4)
        var outcomes = piece(request)
        outcomes.part = .outcomes
        #expect(fetches.answered(by: piece(request), from: joiner.node) == nil)
        #expect(fetches.answered(by: piece(request, other), from: backup.node) == nil)
        #expect(fetches.answered(by: piece(request, at: 41), from: backup.node) == nil)
        #expect(fetches.answered(by: outcomes, from: backup.node) == nil)
        #expect(fetches.answered(by: piece(request + 1), from: backup.node) == nil)
        // The right one is still taken, once.
        #expect(fetches.answered(by: piece(request), from: backup.node)?.offset == 40)
        #expect(fetches.answered(by: piece(request), from: backup.node) == nil)
    }

    /// T1: a repair that breaks off leaves the tail as invalid as it was.
    @Test func firstPageOfARepairIsWrittenBeforeTheRest() {
        var run = run(at: 8192)
        let first = ByteBuffer(bytes: (0..<10_000).map { UInt8(truncatingIfNeeded: $0 / 4096) })
        let write = run.written(first, at: 8192)
        #expect(write.offset == 12_288)
        #expect(write.octets == first.getSlice(at: 4096, length: 5_904))
        #expect(run.head?.offset == 8192)
        #expect(run.head?.octets == ByteBuffer(repeating: 0, count: 4096))
        let second = ByteBuffer(repeating: 9, count: 100)
        let later = run.written(second, at: 18_192)
        #expect(later.offset == 18_192)
        #expect(later.octets == second)
        #expect(run.head?.offset == 8192)
    }

    @Test func repairWithinOnePage() {
        var run = run(at: 8192)
        let write = run.written(octets, at: 8192)
        #expect(write.octets.readableBytes == 0)
        #expect(run.head?.octets == octets)
    }

    @Test func fetchWithWrongAnswersOnlyIsNeverEnded() {
        var fetches = FetchRuns()
        let request = fetches.begin(run())
        let withdrawn = fetches.begin(run(at: 50))
        fetches.withdraw(withdrawn)
        _ = fetches.answered(by: piece(request, at: 0), from: backup.node)
        #expect(fetches.overdue(at: start + DriverLimits.fetchDeadline).isEmpty)
        #expect(fetches.overdue(at: start + DriverLimits.fetchDeadline + .milliseconds(1)).map(\.offset) == [40])
        #expect(fetches.overdue(at: start + .seconds(60)).isEmpty)
    }
}

@Suite struct CopyRunTests {
    private let piece = Int64(DriverLimits.pieceOctets)

    private func key() -> SegmentKey {
        SegmentKey(
            id: id, ensemble: [backup], appendEpoch: 1, state: .sealed(at: 6 * piece),
            drainer: Drainer(node: NodeID(name: "n2"), incarnation: Incarnation(value: 3)), drainEpoch: 4)
    }

    private func sent(_ copies: inout CopyRuns, most: Int = .max) -> [Int64] {
        var sent: [Int64] = []
        copies.send(id) { _, offset, _ in
            guard sent.count < most else { return false }
            sent.append(offset)
            return true
        }
        return sent
    }

    @Test func copyIsReadFasterThanItIsSent() throws {
        var copies = CopyRuns()
        copies.begin(key(), to: joiner, length: 5 * piece + 7)
        let number = try #require(copies[id]?.number)
        let first = copies.reads(id)
        #expect(first.map(\.offset) == [0, piece, 2 * piece, 3 * piece])
        for read in first {
            #expect(!(copies[id]?.isIdle ?? true), "\(read)"); _ = copies.read(id, run: number, at: read.offset, octets)
        }
        #expect(sent(&copies, most: 3) == [0, piece, 2 * piece])
        #expect(copies[id]?.isIdle == false)
        #expect(sent(&copies) == [3 * piece])
        #expect(copies[id]?.isIdle == true)
        let rest = copies.reads(id)
        #expect(rest.map(\.offset) == [4 * piece, 5 * piece] && rest.map(\.count) == [Int(piece), 7])
        #expect(copies.reads(id).isEmpty)
    }

    @Test func readOfAnEarlierRunIsTakenForThisOnes() throws {
        var copies = CopyRuns()
        copies.begin(key(), to: joiner, length: 6 * piece)
        let former = try #require(copies[id]?.number)
        #expect(copies.reads(id).count == DriverLimits.piecesPerTick)
        copies.end(id)
        guard case .late = copies.read(id, run: former, at: 0, octets) else { return #expect(Bool(false), "no run") }
        copies.begin(key(), to: joiner, length: 6 * piece)
        let present = try #require(copies[id]?.number)
        #expect(copies.reads(id).count == DriverLimits.piecesPerTick)
        // Neither octets nor a failure of the former run touch it.
        for answer in [octets, nil] {
            guard case .late = copies.read(id, run: former, at: piece, answer) else {
                return #expect(Bool(false), "taken for the present run's")
            }
        }
        #expect(sent(&copies).isEmpty)
        for index in 0..<Int64(DriverLimits.piecesPerTick) {
            #expect(copies[id]?.isIdle == false)
            guard case .taken = copies.read(id, run: present, at: index * piece, octets) else {
                return #expect(Bool(false), "not taken")
            }
        }
        #expect(sent(&copies) == [0, piece, 2 * piece, 3 * piece])
        #expect(copies[id]?.isIdle == true)
        guard case .failed(let run) = copies.read(id, run: present, at: 4 * piece, nil) else {
            return #expect(Bool(false), "not failed")
        }
        #expect(run.joiner == joiner && copies[id] == nil)
    }
}
