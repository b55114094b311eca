// The keeper in a cluster: a control plane that takes no writes fills no disk, a backup lost before its key leaves no lane waiting.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

private func segments(_ disk: MemoryDisk) -> Int { disk.paths.count { $0.hasSuffix(".seg") } }

@Test func controlPlaneThatOnlyReadsFillsNoDisk() throws {
    let (time, registry) = (SimulatedTime(), SharedRegistry())
    let (own, other) = (MemoryDisk(), MemoryDisk())
    let backup = try ClusterRig("n2", on: other, registry: registry, time: time, seed: 2)
    registry.state.withLock { $0.refuses = true }
    let before = segments(other)
    let node = try ClusterRig(
        "n1", on: own, registry: registry, time: time, seed: 1, backup: WiredBackup(backup.copies, backup.member))
    #expect(node.spool.admission.isNoCopies)
    node.ticks(50)
    #expect(segments(own) <= 1, "a file for each attempt")
    #expect(segments(other) - before <= 1, "a file for each attempt, on every backup")
    #expect(node.disk.inner.openPaths.count { $0.hasSuffix(".seg") } <= 1)
    registry.state.withLock { $0.refuses = false }
    node.ticks(3)
    #expect(!node.spool.admission.isNoCopies, "opens when the control plane writes again")
    node.stop()
    backup.stop()
}

@Test func keyThatLandedWithoutAnAnswerIsSealedEmptyAndTheNextIsUsed() throws {
    let (time, registry) = (SimulatedTime(), SharedRegistry())
    let backup = try ClusterRig("n2", on: MemoryDisk(), registry: registry, time: time, seed: 2)
    let wired = WiredBackup(backup.copies, backup.member)
    let unanswered = Mutex<SegmentID?>(nil)
    registry.state.withLock { state in
        state.losesAnswer = true
        state.beforeStore = { key in
            guard key.id.writer == NodeID(name: "n1") else { return }
            unanswered.withLock { $0 = $0 ?? key.id }
        }
    }
    // The backup's own spool took the lost answer's turn if it registered first: only the writer's counts here.
    let node = try ClusterRig("n1", on: MemoryDisk(), registry: registry, time: time, seed: 1, backup: wired)
    wired.state.withLock { $0.receiver = node.spool }
    node.ticks(3)
    let id = try #require(unanswered.withLock { $0 })
    #expect(try registry.read(id)?.state == .sealed(at: 0), "its members are known to nobody: empty, and closed")
    let sink = Sink()
    node.spool.submit([Mail(1).submission(token: 1, sink: sink)])
    node.spool.pump()
    backup.copies.pump()
    let ref = try #require(sink.ref(1))
    #expect(node.spool.segment(of: ref.segment) != id)
    node.stop()
    backup.stop()
}

@Test func backupLostWhileItsKeyIsBeingStoredLeavesNoLaneWaiting() throws {
    let (time, registry) = (SimulatedTime(), SharedRegistry())
    let backup = try ClusterRig("n2", on: MemoryDisk(), registry: registry, time: time, seed: 2)
    let wired = WiredBackup(backup.copies, backup.member)
    let lane = try ClusterRig("n1", on: MemoryDisk(), registry: registry, time: time, seed: 1, backup: wired)
    wired.state.withLock { $0.receiver = lane.spool }
    // The open segment is left, the next one's backup dies while its key is on the way.
    let lost = Mutex<SegmentID?>(nil)
    registry.state.withLock { state in
        state.beforeStore = { key in
            guard key.state == .open, lost.withLock({ $0 }) == nil else { return }
            lost.withLock { $0 = key.id }
            lane.spool.lost(key.id, on: wired.member)
        }
    }
    let first = wired.state.withLock { $0.prepared }
    for id in first { lane.spool.lost(id, on: wired.member) }
    lane.spool.pump()
    lane.ticks(4)
    let dead = try #require(lost.withLock { $0 })
    let sink = Sink()
    lane.spool.submit([Mail(1).submission(token: 1, sink: sink)])
    lane.spool.pump()
    backup.copies.pump()
    lane.spool.pump()
    let ref = try #require(sink.ref(1), "waits for a backup that is gone, for ever")
    #expect(lane.spool.segment(of: ref.segment) != dead)
    #expect(try registry.read(dead)?.state == .sealed(at: 0))
    lane.stop()
    backup.stop()
}

@Test func segmentRegisteredAheadThatOthersSealedIsNotWrittenTo() throws {
    let (time, registry) = (SimulatedTime(), SharedRegistry())
    let node = try ClusterRig("n1", on: MemoryDisk(), registry: registry, time: time, seed: 1)
    let ahead = try #require(node.spool.shared.prepared.withLock { $0 })
    node.spool.stopWriting(ahead.id)
    node.ticks(2)
    #expect(node.spool.shared.prepared.withLock { $0 }.map { $0.id != ahead.id } == true)
    #expect(!node.disk.inner.openPaths.contains(node.path(SegmentName(ahead.id).segmentFile)), "its file stays open")
    #expect(!node.spool.admission.isNoCopies)
    node.stop()
}

@Test func copyWhoseLogCannotBeReadLeavesNoFileOpen() throws {
    let (time, registry, disk) = (SimulatedTime(), SharedRegistry(), MemoryDisk())
    let id = SegmentID(writer: NodeID(value: 5), incarnation: Incarnation(value: 6), index: 7)
    let first = try ClusterRig("n2", on: disk, registry: registry, time: time, seed: 2)
    first.copies.create(id, reserve: 1 << 16) { _ in }
    first.copies.recordOutcomes(id, epoch: 1, from: 0, OutcomeFormat.header(id).bytes) { _ in }
    first.copies.pump()
    first.copies.tick()
    let again = disk.reopened()
    let second = try ClusterRig("n2", on: again, registry: registry, time: time, seed: 3)
    let before = again.openPaths.count
    again.spoil(second.path(SegmentName(id).outcomeFile), 0..<40)
    for _ in 0..<5 { second.copies.append(id, at: 0, ByteBuffer(repeating: 0, count: 4096)) { _ in } }
    second.copies.pump()
    #expect(again.openPaths.count == before)
    second.stop()
}

extension StorageAdmission {
    fileprivate var isNoCopies: Bool {
        guard case .refused(let reason) = self else { return false }
        return reason.isNoCopies
    }
}
