// Disks that fail for a moment: nothing goes missing unsaid, and what can go on goes on.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

@Test func chunkThatCannotBeReadAtAStartIsNeverAbsentUnsaid() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let first = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...6 { first.store(Mail(number, size: 700), sink) }
    first.record(try #require(sink.ref(1)), .delivered)
    first.stop()
    var noted = 0
    for reads in 0..<60 {
        let copy = disk.reopened()
        copy.fail(DiskFault(call: "read", errno: EIO, after: reads))
        guard let rig = try? Rig(on: copy, seed: 2) else { continue }
        let missing = (UInt64(2)...6).filter { rig.jobs.message(Mail.id($0)) == nil }
        if !missing.isEmpty {
            noted += 1
            #expect(!rig.spool.recovery.damage.isEmpty, "read \(reads): \(missing) are absent without a word")
            #expect(rig.spool.stats.damagedSegments > 0, "read \(reads)")
            #expect(!rig.spool.stats.degradedReasons.isEmpty)
        }
        for message in rig.jobs.messages { rig.record(message.ref, .delivered) }
        rig.events.add(10)
        for _ in 0..<4 {
            rig.events.sync()
            rig.ticks(1)
        }
        // The next start reads again: nothing of what was missing was given up.
        let again = try Rig(on: copy.reopened(), seed: 3)
        let back = Set(again.jobs.messages.map(\.envelope.id))
        #expect(back.isSuperset(of: missing.map { Mail.id($0) }), "read \(reads): lost \(missing)")
    }
    #expect(noted > 5, "the fault never met a chunk")
}

@Test func registryRecoversFromAChangeOfUnknownOutcome() throws {
    for call in ["open", "write", "sync", "close", "rename", "syncDirectory"] {
        let disk = MemoryDisk()
        let directory = try DataDirectory.open(path: "data", disk: disk, cluster: "c", nodeName: "n1") { 7 }
        let registry = try LocalSegmentRegistry.open(directory)
        let member = EnsembleMember(node: directory.identity.node, diskID: directory.identity.diskID)
        let drainer = Drainer(node: directory.identity.node, incarnation: directory.incarnation)
        func key(_ index: UInt64) -> SegmentKey {
            SegmentKey(
                id: SegmentID(writer: member.node, incarnation: directory.incarnation, index: index),
                ensemble: [member], appendEpoch: 1, state: .open, drainer: drainer, drainEpoch: 1)
        }
        guard case .committed(let stored?) = try registry.store(key(0)) else { return }
        disk.fail(DiskFault(call: call, errno: EIO))
        var sealed = stored
        sealed.state = .sealed(at: 4096)
        #expect(throws: SpoolError.self, "\(call)") { _ = try registry.store(sealed) }
        // Reading again tells which of both holds, and from here on it does.
        let found = try #require(try registry.read(stored.id), "\(call)")
        #expect(found.state == .open || found.state == .sealed(at: 4096))
        if call == "rename" { #expect(found.state == .open) }
        if call == "syncDirectory" { #expect(found.state == .sealed(at: 4096), "the rename had been done") }
        for seed in UInt64(0)..<8 {
            let image = DiskImage.afterPowerLoss(disk.journal, cut: disk.journal.count, seed: seed)
            guard case .payload(let content) = LocalSegmentRegistry.content(in: "data", disk: image) else {
                Issue.record("\(call): no registry after a power cut, seed \(seed)")
                continue
            }
            #expect(content.keys.first?.state == found.state, "\(call): what was read is taken back, seed \(seed)")
        }
        guard case .committed = try registry.store(key(1)) else {
            Issue.record("\(call): refuses later changes")
            continue
        }
        var next = found
        next.state = .finished
        guard case .committed = try registry.store(next) else {
            Issue.record("\(call): the revision read is not the stored one")
            continue
        }
        #expect(try registry.list().count == 2)
    }
}

@Test(arguments: ["rename", "syncDirectory"])
func failedRegistryChangeNeitherStopsRollingNorLeavesAKeyWithoutItsFile(call: String) throws {
    for after in 0..<8 {
        let disk = MemoryDisk(keepsJournal: false)
        let rig = try Rig(on: disk)
        let sink = Sink()
        disk.fail(DiskFault(call: call, errno: EIO, after: after))
        for number in UInt64(1)...14 { rig.store(Mail(number, size: 60_000), sink) }
        rig.ticks(2)
        for number in UInt64(15)...24 { rig.store(Mail(number, size: 60_000), sink) }
        rig.ticks(1)
        #expect((UInt64(1)...24).allSatisfy { sink.ref($0) != nil }, "\(call) \(after)")
        #expect(rig.spool.stats.segmentsSealed >= 4, "\(call) \(after): nothing is sealed after the failure")
        let again = try Rig(on: disk.reopened(), seed: 2)
        #expect(again.jobs.messages.count == 24)
        #expect(again.spool.recovery.damage.isEmpty, "\(call) \(after): \(again.spool.recovery.damage)")
    }
}

@Test func compressionSamplesFromTheFirstBody() throws {
    let rig = try Rig(on: MemoryDisk())
    let sink = Sink()
    for number in UInt64(1)...4 { rig.store(Mail(number, size: 40_000, compressible: true), sink) }
    #expect(rig.spool.stats.committedBytes < 40_000, "four bodies that shrink to nothing")
    var policy = CompressionPolicy(.auto)
    let first = policy.wants(length: 40_000)
    #expect(first)
    policy.observed(raw: 40_000, stored: 39_000)
    let tried = (0..<32).count { _ in policy.wants(length: 40_000) }
    #expect(tried == 2, "one in 16 of what does not shrink")
    rig.stop()
}

@Test func badSectorHidesNoOtherChunk() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let first = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...6 { first.store(Mail(number, size: 700), sink) }
    let name = try first.name(of: sink.ref(1))
    let path = "data/segments/\(name.segmentFile)"
    for lost in UInt64(1)...6 {
        let copy = disk.reopened()
        let at = Int(lost - 1) * 4096
        copy.spoil(path, at..<at + 512)
        let rig = try Rig(on: copy, seed: 2)
        let found = Set(rig.jobs.messages.map(\.envelope.id))
        #expect(found == Set((UInt64(1)...6).filter { $0 != lost }.map { Mail.id($0) }), "chunk \(lost) is bad")
        #expect(rig.spool.recovery.damage.contains { $0.contains("at \(at)..<") }, "\(rig.spool.recovery.damage)")
        #expect(rig.spool.stats.damagedSegments == 1)
        #expect(!(try SpoolInspector.inspect("data", disk: copy)).healthy)
        // A disk that gives it back at last: nothing was cut.
        let healed = copy.reopened()
        healed.spoil(path, 0..<0)
        let again = try Rig(on: healed, seed: 3)
        #expect(again.jobs.messages.count == 6, "chunk \(lost) was given up")
    }
}

@Test func recordThatNoStartCouldReadIsRefused() {
    var builder = ChunkBuilder(compression: CompressionPolicy(.off))
    builder.begin()
    let mail = Mail(1, size: 100)
    let long = [UInt8](repeating: 0x61, count: 1024)
    let outcome = OutcomeRecord(
        record: 0, recipient: 0, at: .epoch, verdict: .inDoubt(until: .epoch), attempts: 1, reply: nil,
        peer: PeerName(name: long, address: long))
    let source = SegmentID(writer: NodeID(value: 1), incarnation: Incarnation(value: 2), index: 3)
    let count = SpoolLimits.envelopeBlockBytes / 2080 + 1
    let huge = MovedFrom(
        source: source, record: 0, drainEpoch: 1, outcomes: [OutcomeRecord](repeating: outcome, count: count))
    let taken = builder.addMessage(mail.envelope, body: mail.body, moved: huge)
    #expect(!taken, "an envelope block that no reader takes")
    #expect(builder.isEmpty)
    let next = builder.addMessage(mail.envelope, body: mail.body)
    #expect(next)
}
