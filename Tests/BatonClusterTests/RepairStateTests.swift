// Who is asked for a damaged chunk, what is taken, and how it ends.
import BatonCore
import BatonModel
import BatonSpool
import NIOCore
import Testing

@testable import BatonCluster
@testable import BatonSpool

private let id = SegmentID(writer: NodeID(name: "n1"), incarnation: Incarnation(value: 5), index: 3)
private let second = EnsembleMember(node: NodeID(name: "n2"), diskID: 2)
private let third = EnsembleMember(node: NodeID(name: "n3"), diskID: 3)

/// A chunk of fragments alone.
private func chunk(_ id: SegmentID = id, at offset: Int64 = 8192, octets: Int = 300) -> ByteBuffer {
    var builder = ChunkBuilder(compression: CompressionPolicy(.off))
    builder.begin()
    builder.addFragment(FragmentStreamID(value: 1), index: 0, body: ByteBuffer(repeating: 7, count: octets))
    let header = builder.finish(
        segment: id, appendEpoch: 1, offset: offset, ackedOffset: 0, number: 2, firstMessage: 0, previousHeaderCRC: 9,
        at: .epoch)
    _ = builder.seal(header)
    return builder.chunk
}

private struct Repairs {
    var state = RepairState()
    var now = Instant(secondsSinceEpoch: 1_000)
    var actions: [RepairAction] = []

    static func damaged(_ offset: Int64 = 8192, end: Int64? = 12_288) -> DamagedChunk {
        DamagedChunk(segment: id, offset: offset, end: end, acked: 1 << 20)
    }

    mutating func give(_ event: RepairEvent) {
        var buffer = ActionBuffer<RepairAction>()
        state.receive(event, at: now, into: &buffer)
        actions = buffer.drain()
    }

    mutating func begin(
        _ chunk: DamagedChunk = damaged(), _ members: [EnsembleMember] = [second, third], away: Bool = false
    ) {
        give(.damaged(chunk, members: members, away: away))
    }

    mutating func pass(_ span: TimeSpan) {
        now = now + span
        give(.tick)
    }

    /// The question that the last event brought.
    var asked: (request: UInt64, member: EnsembleMember)? {
        for case .ask(let request, _, let member) in actions { return (request, member) }
        return nil
    }

    var end: ChunkRepair? {
        for case .end(_, let repair) in actions { return repair }
        return nil
    }

    var writes: Int { actions.count { if case .write = $0 { true } else { false } } }

    mutating func answer(_ answer: RepairAnswer) throws {
        let asked = try #require(asked)
        give(.answered(request: asked.request, from: asked.member.node, answer))
    }
}

@Suite struct RepairStateTests {
    @Test func chunkIsGivenUpBeforeEveryMemberWasAsked() throws {
        var repairs = Repairs()
        repairs.begin()
        #expect(repairs.asked?.member == second)
        try repairs.answer(.none)
        #expect(repairs.end == nil)
        #expect(repairs.asked?.member == third)
        try repairs.answer(.none)
        #expect(repairs.end == .nowhere)
        #expect(repairs.state.underWay == 0)
    }

    @Test func intactChunkIsNotWritten() throws {
        var repairs = Repairs()
        repairs.begin()
        let first = repairs.actions
        repairs.begin(Repairs.damaged(end: nil))
        #expect(repairs.asked == nil && repairs.state.underWay == 1, "asked for twice at a time")
        repairs.actions = first
        try repairs.answer(.none)
        try repairs.answer(.octets(id, offset: 8192, chunk()))
        #expect(repairs.actions == [.write(Repairs.damaged(), chunk())])
        repairs.give(.written(Repairs.damaged(), .mended))
        #expect(repairs.end == .repaired)
        #expect(repairs.state.underWay == 0)
    }

    /// Only a clear no of all makes the message's quarantine final.
    @Test func silenceCountsAsANo() throws {
        for away in [false, true] {
            var repairs = Repairs()
            repairs.begin(away: away)
            if !away { repairs.pass(RepairLimits.answer) } else { try repairs.answer(.none) }
            #expect(repairs.asked?.member == third)
            try repairs.answer(.none)
            #expect(repairs.end == .unanswered)
        }
        var failing = Repairs()
        failing.begin()
        try failing.answer(.failed)
        try failing.answer(.none)
        #expect(failing.end == .unanswered)
        var unsent = Repairs()
        unsent.begin()
        unsent.give(.unsent(request: try #require(unsent.asked).request))
        #expect(unsent.asked?.member == third)
        try unsent.answer(.none)
        #expect(unsent.end == .unanswered)
        var alone = Repairs()
        alone.begin(Repairs.damaged(), [], away: true)
        #expect(alone.end == .unanswered)
        alone.begin(Repairs.damaged(), [])
        #expect(alone.end == .nowhere)
    }

    @Test func lateOrStrangeAnswerIsTaken() throws {
        var repairs = Repairs()
        repairs.begin()
        let first = try #require(repairs.asked)
        let right = RepairAnswer.octets(id, offset: 8192, chunk())
        repairs.give(.answered(request: first.request, from: third.node, right))
        #expect(repairs.actions.isEmpty, "of a member that was not asked")
        repairs.give(.answered(request: first.request + 9, from: second.node, right))
        #expect(repairs.actions.isEmpty)
        let other = SegmentID(writer: id.writer, incarnation: id.incarnation, index: 4)
        repairs.give(
            .answered(request: first.request, from: second.node, .octets(other, offset: 8192, chunk(other))))
        #expect(repairs.actions.isEmpty, "of another segment")
        repairs.give(
            .answered(request: first.request, from: second.node, .octets(id, offset: 4096, chunk(at: 4096))))
        #expect(repairs.actions.isEmpty, "of another place")
        repairs.pass(RepairLimits.answer)
        #expect(repairs.asked?.member == third)
        repairs.give(.answered(request: first.request, from: second.node, right))
        #expect(repairs.actions.isEmpty, "after its time")
    }

    @Test func octetsThatAreNotTheChunkAreWritten() throws {
        var flipped = chunk()
        flipped.setInteger(UInt8(0), at: 300)
        var long = chunk()
        long.writeRepeatingByte(0, count: 4096)
        let larger = chunk(octets: 5000)
        for (octets, what) in [
            (flipped, "damaged"), (long, "too long"), (larger, "of another length"), (ByteBuffer(), "empty"),
            (chunk(at: 4096), "of another place"),
        ] {
            var repairs = Repairs()
            repairs.begin()
            try repairs.answer(.octets(id, offset: 8192, octets))
            #expect(repairs.writes == 0, "\(what)")
            #expect(repairs.asked?.member == third, "\(what)")
        }
        // Where the own header is damaged the length cannot be compared; the file tells, and what is acknowledged bounds it.
        var repairs = Repairs()
        repairs.begin(Repairs.damaged(end: nil))
        try repairs.answer(.octets(id, offset: 8192, larger))
        #expect(repairs.writes == 1)
        let bounded = DamagedChunk(segment: id, offset: 8192, end: nil, acked: 12_288)
        #expect(!bounded.takes(larger))
        #expect(bounded.takes(chunk()))
    }

    @Test func chunkThatWasNotPromisedEndsTheSearch() throws {
        var repairs = Repairs()
        repairs.begin()
        try repairs.answer(.octets(id, offset: 8192, chunk()))
        repairs.give(.written(Repairs.damaged(), .other))
        #expect(repairs.asked?.member == third)
        try repairs.answer(.octets(id, offset: 8192, chunk()))
        repairs.give(.written(Repairs.damaged(), .failed))
        #expect(repairs.end == .unanswered, "the own disk failed: that says nothing of the copies")
    }

    @Test func repairsOverTheirBoundAreUnderWay() throws {
        var repairs = Repairs()
        for index in 0..<Int64(RepairLimits.underWay) {
            repairs.begin(Repairs.damaged(index * 4096, end: nil))
            #expect(repairs.asked != nil)
        }
        repairs.begin(Repairs.damaged(1 << 19, end: nil))
        #expect(repairs.asked == nil && repairs.end == .unanswered)
        #expect(repairs.state.underWay == RepairLimits.underWay)
        repairs.begin(Repairs.damaged(0, end: nil))
        #expect(repairs.asked == nil && repairs.end == .unanswered, "the same chunk twice")
        let other = SegmentID(writer: id.writer, incarnation: id.incarnation, index: 8)
        repairs.begin(DamagedChunk(segment: other, offset: 0, end: nil, acked: 4096))
        #expect(repairs.asked == nil && repairs.end == .unanswered)
    }

    @Test func repairWithoutEndHoldsItsPlace() throws {
        var repairs = Repairs()
        repairs.begin()
        try repairs.answer(.octets(id, offset: 8192, chunk()))
        #expect(repairs.writes == 1)
        repairs.pass(RepairLimits.answer)
        #expect(repairs.actions.isEmpty)
        repairs.pass(RepairLimits.total)
        #expect(repairs.end == .unanswered)
        #expect(repairs.state.underWay == 0)
        repairs.give(.written(Repairs.damaged(), .mended))
        #expect(repairs.actions.isEmpty, "it has ended")
        repairs.begin()
        #expect(repairs.asked != nil, "the next read begins anew")
        // Members that are silent one after the other.
        var silent = Repairs()
        silent.begin()
        silent.pass(RepairLimits.answer)
        silent.pass(RepairLimits.answer)
        #expect(silent.end == .unanswered)
    }
}
