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

@Test func octetsThatWaitForTheCopiesFillTheMemory() throws {
    let rig = try CopyRig(on: MemoryDisk())
    #expect(rig.create(segment(0)) == .created)
    let chunk = ByteBuffer(repeating: 0, count: CopyLimits.waitingOctets / 2)
    let answers = Mutex<[CopyAppend]>([])
    for _ in 0..<3 {
        rig.store.append(segment(0), at: 1 << 20, chunk) { answer in answers.withLock { $0.append(answer) } }
    }
    #expect(answers.withLock { $0 } == [.failed(upTo: 0)])
    rig.store.pump()
    #expect(answers.withLock { $0.count } == 3)
    // There is room again.
    rig.store.append(segment(0), at: 1 << 20, chunk) { answer in answers.withLock { $0.append(answer) } }
    #expect(answers.withLock { $0.count } == 3)
    rig.store.pump()
}

@Test func requestsThatWaitForTheCopiesPileUp() throws {
    let rig = try CopyRig(on: MemoryDisk())
    let refused = Mutex(0)
    for _ in 0...CopyLimits.waitingRequests {
        rig.store.seal(segment(0), epoch: 2) { answer in if answer == .failed { refused.withLock { $0 += 1 } } }
    }
    #expect(refused.withLock { $0 } == 1)
    rig.store.pump()
    #expect(refused.withLock { $0 } == 1)
}

@Test func filesOfCopiesStayOpenForEver() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try CopyRig(on: disk)
    for index in 0..<UInt64(CopyLimits.openCopies + 20) { #expect(rig.create(segment(index)) == .created) }
    #expect(disk.openPaths.count { $0.hasSuffix(".seg") } == CopyLimits.openCopies)
    // A closed one is opened again.
    for index in [0, UInt64(CopyLimits.openCopies + 19)] { #expect(rig.end(segment(index), sealedAt: 2) == 0) }
}

@Test func copyIsReadInPiecesWithoutBound() throws {
    let rig = try CopyRig(on: MemoryDisk(keepsJournal: false))
    #expect(rig.create(segment(0)) == .created)
    let log = ByteBuffer(repeating: 7, count: CopyLimits.readOctets + 10)
    #expect(rig.record(segment(0), 1, from: 0, log) == .recorded(memory: Int64(log.readableBytes), synced: 0))
    let counts = Mutex<[Int]>([])
    for offset in [0, Int64(CopyLimits.readOctets)] {
        rig.store.read(segment(0), .outcomeLog(epoch: 1), from: offset, atMost: .max) { read in
            if case .octets(let octets, _) = read { counts.withLock { $0.append(octets.readableBytes) } }
        }
    }
    rig.store.pump()
    #expect(counts.withLock { $0 } == [CopyLimits.readOctets, 10])
}

@Test func outcomesOfOneCopyFillTheMemory() {
    let most = ByteBuffer(repeating: 0, count: CopyLimits.entryOctets)
    guard case .octets(let octets, true) = CopyWorker.piece(of: most, from: Int64(most.readableBytes) - 3, atMost: 9)
    else {
        Issue.record("refused below the bound")
        return
    }
    #expect(octets.readableBytes == 3)
    var more = most
    more.writeInteger(UInt8(0))
    guard case .failed = CopyWorker.piece(of: more, from: 0, atMost: 9) else {
        Issue.record("taken into memory")
        return
    }
}
