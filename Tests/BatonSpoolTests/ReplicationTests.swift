// The lane with a backup: 250 only behind its fdatasync too, and what a refusal or a late word comes to.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

/// Takes chunks and says nothing until the test lets it.
private final class FakeBackup: ChunkReplicating {
    struct State {
        var sent: [(segment: SegmentID, offset: Int64, chunk: ByteBuffer)] = []
        var prepared: [SegmentID] = []
        var refuses = false
    }

    let state = Mutex(State())
    let member = EnsembleMember(node: NodeID(value: 77), diskID: 78)

    func prepare(_ segment: SegmentID) -> [EnsembleMember]? {
        state.withLock { state in
            if state.refuses { return nil }
            state.prepared.append(segment)
            return [member]
        }
    }

    func send(_ chunk: ByteBuffer, of segment: SegmentID, at offset: Int64, acked: Int64) {
        state.withLock { $0.sent.append((segment, offset, chunk)) }
    }

    var sent: [(segment: SegmentID, offset: Int64, chunk: ByteBuffer)] { state.withLock { $0.sent } }

    /// Says that everything sent so far is durable.
    func confirm(_ rig: Rig) {
        for (segment, offset, chunk) in sent {
            rig.spool.durable(segment, on: member, upTo: offset + Int64(chunk.readableBytes))
        }
        rig.spool.pump()
    }
}

@Test func backupThatHasNotSyncedHoldsThe250Back() throws {
    let disk = MemoryDisk()
    let backup = FakeBackup()
    let rig = try Rig(on: disk, replicator: backup)
    let sink = Sink()
    for number in UInt64(1)...3 { rig.store(Mail(number), sink) }
    #expect((UInt64(1)...3).allSatisfy { sink.ref($0) == nil }, "250 with one copy")
    #expect(rig.jobs.messages.isEmpty, "scheduled before it is accepted")
    #expect(rig.spool.stats.messages == 0)
    let sent = backup.sent
    #expect(sent.count == 3)
    // The same octets in the same place.
    let name = SegmentName(try #require(sent.first).segment)
    let file = try #require(disk.contents("data/segments/\(name.segmentFile)"))
    for (_, offset, chunk) in sent {
        #expect(Array(chunk.readableBytesView) == Array(file[Int(offset)..<Int(offset) + chunk.readableBytes]))
    }
    // Of the first alone: a prefix goes.
    rig.spool.durable(name.id, on: backup.member, upTo: 4096)
    #expect(sink.ref(1) != nil)
    #expect(sink.ref(2) == nil)
    backup.confirm(rig)
    #expect((UInt64(1)...3).allSatisfy { sink.ref($0) != nil })
    #expect(rig.jobs.messages.count == 3)
    #expect(rig.read(try #require(sink.ref(3)))?.bytes == Mail(3).body)
    #expect(rig.spool.shared.waitingBytes.load(ordering: .relaxed) == 0)
    let key = try #require(try rig.spool.registry.read(name.id))
    #expect(key.ensemble.count == 2)
    rig.stop()
}

@Test func wordOfAStrangerIsNoSecondCopy() throws {
    let backup = FakeBackup()
    let rig = try Rig(on: MemoryDisk(), replicator: backup)
    let sink = Sink()
    rig.store(Mail(1), sink)
    let segment = try #require(backup.sent.first).segment
    rig.spool.durable(segment, on: EnsembleMember(node: backup.member.node, diskID: 1), upTo: 1 << 40)
    #expect(sink.ref(1) == nil, "another disk of the same node is not a member")
    rig.stop()
    #expect(sink.refusal(1)?.isStorageFailed == true, "unknown at the stop")
}

@Test func backupThatSyncedBeforeTheLocalDiskGivesNo250() throws {
    let disk = MemoryDisk()
    let backup = FakeBackup()
    let rig = try Rig(on: disk, replicator: backup)
    let sink = Sink()
    disk.fail(DiskFault(call: "sync", errno: EIO))
    rig.store(Mail(1), sink)
    backup.confirm(rig)
    #expect(sink.ref(1) == nil, "the local fdatasync failed")
    #expect(sink.refusal(1)?.isStorageFailed == true)
    #expect(rig.spool.stats.laneDead)
    rig.stop()
}

@Test func backupThatRefusesGivesNo250AndTheLaneGoesOn() throws {
    let disk = MemoryDisk()
    let backup = FakeBackup()
    let rig = try Rig(on: disk, replicator: backup)
    let sink = Sink()
    rig.store(Mail(1), sink)
    backup.confirm(rig)
    rig.store(Mail(2), sink)
    let segment = try #require(backup.sent.first).segment
    rig.spool.lost(segment, on: backup.member)
    rig.spool.pump()
    #expect(sink.refusal(2)?.isStorageFailed == true)
    // Its late word changes nothing (PROTOCOL A2).
    rig.spool.durable(segment, on: backup.member, upTo: 1 << 40)
    #expect(sink.ref(2) == nil)
    #expect(rig.jobs.messages.map(\.envelope.id) == [Mail.id(1)])
    guard case .sealed(let end)? = try rig.spool.registry.read(segment)?.state else {
        Issue.record("the segment of a lost backup is not sealed")
        return
    }
    #expect(end == 4096, "sealed where it is acknowledged")
    // In the next segment mail is taken again.
    rig.store(Mail(3), sink)
    backup.confirm(rig)
    #expect(sink.ref(3) != nil)
    #expect(sink.ref(3)?.segment != sink.ref(1)?.segment)
    // What stands behind the seal was refused and does not come back.
    let again = try Rig(on: disk.reopened(), seed: 2)
    #expect(Set(again.jobs.messages.map(\.envelope.id)) == [Mail.id(1), Mail.id(3)])
    #expect(again.spool.recovery.damage.isEmpty)
}

@Test func backupOfTheSegmentAheadDiesAndMailIsRefused() throws {
    let backup = FakeBackup()
    let rig = try Rig(on: MemoryDisk(), replicator: backup)
    let sink = Sink()
    rig.store(Mail(1), sink)
    backup.confirm(rig)
    let prepared = { rig.spool.shared.prepared.withLock { $0?.id } }
    let mayAppend = { rig.spool.shared.mayAppend.load(ordering: .relaxed) }
    let ahead = try #require(prepared())
    rig.spool.lost(ahead, on: backup.member)
    #expect(mayAppend(), "the open segment has all its copies")
    rig.spool.pump()
    #expect(prepared() != ahead, "it would acknowledge nothing")
    // A door that was shut for a segment that is left already opens again.
    rig.spool.shared.mayAppend.store(false, ordering: .relaxed)
    rig.ticks(1)
    #expect(mayAppend())
    rig.store(Mail(2), sink)
    backup.confirm(rig)
    #expect(sink.ref(2)?.segment == sink.ref(1)?.segment)
    rig.stop()
}

@Test func withoutAnyBackupNothingIsAcknowledged() throws {
    let backup = FakeBackup()
    let rig = try Rig(on: MemoryDisk(), replicator: backup)
    let sink = Sink()
    backup.state.withLock { $0.refuses = true }
    rig.store(Mail(1), sink)
    let segment = try #require(backup.sent.first).segment
    rig.spool.lost(segment, on: backup.member)
    rig.spool.pump()
    // The one registered ahead has a backup that is lost as well.
    rig.store(Mail(2), sink)
    let next = try #require(backup.sent.last).segment
    #expect(next != segment)
    rig.spool.lost(next, on: backup.member)
    rig.spool.pump()
    rig.store(Mail(3), sink)
    // Two chunks reached a disk, and nobody says whether they count; the third found no segment.
    for number in UInt64(1)...2 { #expect(sink.refusal(number)?.isStorageFailed == true, "message \(number)") }
    #expect(sink.refusal(3)?.isNoCopies == true)
    backup.state.withLock { $0.refuses = false }
    rig.ticks(2)
    rig.store(Mail(4), sink)
    backup.confirm(rig)
    #expect(sink.ref(4) != nil, "a backup is there again")
    rig.stop()
}

@Test func rolledSegmentIsSealedOnlyBehindItsLastAck() throws {
    let backup = FakeBackup()
    let rig = try Rig(on: MemoryDisk(), replicator: backup)
    let sink = Sink()
    for number in UInt64(1)...20 { rig.store(Mail(number, size: 20_000), sink) }
    #expect(rig.spool.stats.segmentsSealed == 0, "a seal before the ack cuts mail")
    #expect(Set(backup.sent.map(\.segment)).count == 2)
    backup.confirm(rig)
    #expect((UInt64(1)...20).allSatisfy { sink.ref($0) != nil })
    #expect(rig.spool.stats.segmentsSealed == 1)
    rig.stop()
}

@Test func unansweredChunksCountAsWaiting() throws {
    let backup = FakeBackup()
    var configuration = Rig.small
    configuration.segmentSize = 256 << 20
    let rig = try Rig(on: MemoryDisk(keepsJournal: false), configuration: configuration, replicator: backup)
    let sink = Sink()
    let mail = Mail(1, size: 262_144)
    let count = SpoolLimits.waitingBytes / 262_144
    for number in 0..<count { rig.store(mail, sink, token: UInt64(number)) }
    rig.store(mail, sink, token: 9999)
    #expect(sink.refusal(9999)?.isOverloaded == true, "a silent backup lets memory grow")
    backup.confirm(rig)
    rig.store(mail, sink, token: 10_000)
    backup.confirm(rig)
    #expect(sink.ref(10_000) != nil)
    rig.stop()
}

@Test func ackBehindALostBackup() {
    let id = SegmentID(writer: NodeID(value: 1), incarnation: Incarnation(value: 2), index: 3)
    let local = EnsembleMember(node: NodeID(value: 1), diskID: 1)
    let backup = EnsembleMember(node: NodeID(value: 2), diskID: 2)
    var state = LaneState()
    func actions(_ events: LaneState.Event...) -> [LaneState.Action] {
        var buffer = ActionBuffer<LaneState.Action>()
        for event in events { state.receive(event, at: .epoch, into: &buffer) }
        return buffer.actions
    }
    #expect(actions(.opened(id, ensemble: [local, backup]), .appended(id, end: 4096)).isEmpty)
    #expect(actions(.durable(id, local, upTo: 4096)).isEmpty)
    #expect(actions(.durable(id, backup, upTo: 4096)) == [.acknowledge(id, upTo: 4096)])
    #expect(actions(.appended(id, end: 8192), .durable(id, local, upTo: 8192)).isEmpty)
    #expect(actions(.lost(id, backup)) == [.refuse(id, from: 4096), .storeSeal(id, at: 4096)])
    // The seal is on its way: its late word, and what is appended before the lane has moved on, get no 250 (A2).
    #expect(actions(.durable(id, backup, upTo: 8192)).isEmpty)
    #expect(actions(.appended(id, end: 12_288)) == [.refuse(id, from: 4096)])
    #expect(actions(.durable(id, local, upTo: 12_288), .durable(id, backup, upTo: 12_288)).isEmpty)
    #expect(!state.acknowledges(id))
}
