// Bounds of the copies' store: room, memory, open files, answers.
import BatonCore
import BatonModel
import BatonTestKit
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

private func segment(_ index: UInt64) -> SegmentID {
    SegmentID(writer: NodeID(name: "n1"), incarnation: Incarnation(value: 5), index: index)
}

@Test func copyForAJoiningMemberFillsTheDisk() throws {
    let sent = try LaneChunks.make(2).sent
    let id = try #require(sent.first).segment
    let disk = MemoryDisk()
    let rig = try CopyRig(on: disk)
    #expect(rig.restore(id, .newCopy, at: 0, sent[0].chunk) == true)
    disk.setFree(Rig.small.minFree / 2 - 1)
    #expect(rig.restore(id, .newCopy, at: sent[1].offset, sent[1].chunk) == false)
    #expect(rig.restore(segment(9), .newCopy, at: 0, sent[0].chunk) == false)
    #expect(!disk.paths.contains("copies/segments/\(SegmentName(segment(9)).segmentFile)"))
    #expect(rig.end(of: id) == sent[1].offset)
    // Acknowledged mail that only this copy lacks is not held up by it.
    #expect(rig.restore(id, .repair, at: sent[1].offset, sent[1].chunk) == true)
    disk.setFree(Rig.small.minFree / 2)
    #expect(rig.restore(id, .newCopy, at: sent[1].offset, sent[1].chunk) == true)
}
