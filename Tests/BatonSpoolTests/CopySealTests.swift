// A copy whose seal is rotten, or cannot be read: what it takes, and how it comes back.
import BatonCore
import BatonModel
import BatonTestKit
import NIOCore
import Testing

@testable import BatonSpool

private let octets = ByteBuffer(repeating: 7, count: 100)

/// A copy of three chunks, sealed at epoch 5 and, if wanted, with outcomes of that epoch; then the process ends.
private func sealed(outcomes: Bool = false) throws -> (disk: MemoryDisk, sent: [LaneChunks.Sent], id: SegmentID) {
    let sent = try LaneChunks.make(3).sent
    let id = try #require(sent.first).segment
    let disk = MemoryDisk()
    let rig = try CopyRig(on: disk)
    #expect(rig.create(id) == .created)
    for piece in sent { _ = rig.append(id, at: piece.offset, piece.chunk) }
    #expect(rig.end(id, sealedAt: 5) != nil)
    if outcomes { #expect(rig.record(id, 5, from: 0, octets) == .recorded(memory: 100, synced: 0)) }
    rig.stop()
    return (disk, sent, id)
}

private func sealPath(_ id: SegmentID) -> String { "copies/segments/\(SegmentName(id).sealFile)" }

@Test func rottenSealBlocksItsSegmentForEver() throws {
    let (disk, sent, id) = try sealed()
    disk.flip(sealPath(id), at: 5)
    let rig = try CopyRig(on: disk)
    #expect(rig.append(id, at: 0, sent[0].chunk) == .failed(upTo: try #require(rig.end(of: id))))
    #expect(rig.record(id, 5, from: 0, octets) == .failed)
    // A drainer that has claimed epoch 6 goes on with it, and with all of its chunks.
    #expect(rig.end(id, sealedAt: 6) == sent.last.map { $0.offset + Int64($0.chunk.readableBytes) })
    #expect(rig.record(id, 6, from: 0, octets) == .recorded(memory: 100, synced: 0))
    #expect(rig.record(id, 5, from: 0, octets) == .sealed(epoch: 6))
    rig.stop()
    // The new seal survives.
    let again = try CopyRig(on: disk.reopened())
    #expect(again.append(id, at: 0, sent[0].chunk) == .sealed(epoch: 6))
    #expect(again.seal(id, 5) == .superseded(epoch: 6))
}

@Test func rottenSealLetsAnEpochInThatWasRefusedBefore() throws {
    let (disk, _, id) = try sealed(outcomes: true)
    disk.flip(sealPath(id), at: 5)
    let rig = try CopyRig(on: disk)
    // The log of epoch 5 shows that it was obeyed.
    #expect(rig.seal(id, 4) == .superseded(epoch: 5))
    #expect(rig.record(id, 4, from: 0, octets) == .sealed(epoch: 5))
    #expect(rig.end(id, sealedAt: 5) != nil)
}

@Test func newSealThatDidNotReachTheDiskIsObeyed() throws {
    let (disk, _, id) = try sealed()
    disk.flip(sealPath(id), at: 5)
    let rig = try CopyRig(on: disk)
    _ = rig.chunks(id)
    disk.fail(DiskFault(call: "rename", errno: 28))
    #expect(rig.seal(id, 6) == .failed)
    #expect(rig.record(id, 6, from: 0, octets) == .failed)
    #expect(rig.record(id, 5, from: 0, octets) == .sealed(epoch: 6))
    disk.clearFaults()
    #expect(rig.end(id, sealedAt: 6) != nil)
    #expect(rig.record(id, 6, from: 0, octets) == .recorded(memory: 100, synced: 0))
}

@Test func sealThatTheDiskDoesNotGiveBackIsGuessed() throws {
    let (disk, sent, id) = try sealed()
    disk.spoil(sealPath(id), 0..<8)
    let rig = try CopyRig(on: disk)
    #expect(rig.seal(id, 6) == .failed)
    #expect(rig.append(id, at: 0, sent[0].chunk) == .failed(upTo: 0))
    #expect(rig.record(id, 6, from: 0, octets) == .failed)
    #expect(rig.create(id) == .failed)
    // It was no rot: what stands there counts once it can be read.
    disk.spoil(sealPath(id), 0..<0)
    rig.stop()
    let again = try CopyRig(on: disk.reopened())
    #expect(again.seal(id, 4) == .superseded(epoch: 5))
}
