// Copies for other nodes: what is called durable, created or sealed is so after a crash; and a segment that is taken over.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

@Test func backupCallsDurableWhatACrashTakes() throws {
    let sent = try LaneChunks.make(3).sent
    let id = try #require(sent.first).segment
    // A crash at every call of the whole course; what was answered before it holds after it.
    for calls in 1..<80 {
        let disk = MemoryDisk()
        let rig = try CopyRig(on: disk)
        disk.crash(afterCalls: calls)
        let created = rig.create(id) == .created
        var durable: Int64 = 0
        for piece in sent {
            if case .durable(let upTo)? = rig.append(id, at: piece.offset, piece.chunk) { durable = upTo }
        }
        var sealed = false
        if case .sealed? = rig.seal(id, 4) { sealed = true }
        let after = try CopyRig(on: disk.reopened())
        if created { #expect(after.chunks(id) != nil, "crash after \(calls): the file is gone") }
        #expect(Int64(after.chunks(id)?.readableBytes ?? 0) >= durable, "crash after \(calls)")
        if sealed {
            #expect(after.append(id, at: durable, sent[0].chunk) == .sealed(epoch: 4), "crash after \(calls)")
            #expect(after.seal(id, 3) == .superseded(epoch: 4))
        }
    }
}

@Test func chunkBehindAHoleOrFromElsewhereIsTaken() throws {
    let sent = try LaneChunks.make(3).sent
    let id = sent[0].segment
    let rig = try CopyRig(on: MemoryDisk())
    #expect(rig.append(id, at: 0, sent[0].chunk) == .ignored, "no such copy")
    #expect(rig.create(id) == .created)
    #expect(rig.append(id, at: sent[1].offset, sent[1].chunk) == .ignored, "a hole before it")
    var bad = sent[0].chunk
    bad.setInteger(UInt8(0x55), at: bad.readerIndex + 600)
    #expect(rig.append(id, at: 0, bad) == .ignored, "a flipped octet")
    #expect(rig.append(id, at: 0, sent[1].chunk) == .ignored, "a chunk of another place")
    var other = id
    other = SegmentID(writer: id.writer, incarnation: id.incarnation, index: id.index + 1)
    #expect(rig.create(other) == .created)
    #expect(rig.append(other, at: 0, sent[0].chunk) == .ignored, "a chunk of another segment")
    #expect(rig.append(id, at: 0, sent[0].chunk) == .durable(upTo: sent[1].offset))
    #expect(rig.append(id, at: 0, sent[0].chunk) == .durable(upTo: sent[1].offset), "said again")
    #expect(rig.append(id, at: sent[1].offset, sent[1].chunk) == .durable(upTo: sent[2].offset))
    #expect(rig.create(id) == .refused, "a file with content")
}

@Test func failedSyncIsTriedAgain() throws {
    let sent = try LaneChunks.make(2).sent
    let id = sent[0].segment
    let disk = MemoryDisk()
    let rig = try CopyRig(on: disk)
    #expect(rig.create(id) == .created)
    disk.fail(DiskFault(call: "sync", errno: EIO))
    #expect(rig.append(id, at: 0, sent[0].chunk) == .failed(upTo: 0))
    disk.clearFaults()
    #expect(rig.append(id, at: 0, sent[0].chunk) == .failed(upTo: 0))
}

@Test func outcomesOfAnOldEpochOrBehindAGapAreTaken() throws {
    let id = try LaneChunks.make(1).sent[0].segment
    let rig = try CopyRig(on: MemoryDisk())
    let octets = ByteBuffer(repeating: 7, count: 100)
    #expect(rig.record(id, 1, from: 0, octets) == .missing)
    #expect(rig.create(id) == .created)
    #expect(rig.record(id, 1, from: 0, octets) == .recorded(memory: 100, synced: 0))
    #expect(rig.record(id, 1, from: 50, octets) == .recorded(memory: 150, synced: 0))
    #expect(rig.record(id, 1, from: 151, octets) == .gap(memory: 150, synced: 0))
    rig.store.tick()
    #expect(rig.synced.withLock { $0 } == [150])
    #expect(rig.record(id, 1, from: 150, ByteBuffer()) == .recorded(memory: 150, synced: 150))
    #expect(rig.record(id, 3, from: 0, octets) == .recorded(memory: 100, synced: 0))
    #expect(rig.record(id, 2, from: 0, octets) == .sealed(epoch: 3))
    if case .sealed? = rig.seal(id, 5) {} else { Issue.record("not sealed") }
    #expect(rig.record(id, 4, from: 0, octets) == .sealed(epoch: 5))
    #expect(rig.record(id, 5, from: 0, octets) == .recorded(memory: 100, synced: 0))
    #expect(rig.unlink(id) == true)
    #expect(rig.seal(id, 6) == .missing)
    #expect((try? rig.disk.list("copies/segments")) == [])
}

@Test func damagedSealLetsAnOldWriterIn() throws {
    let sent = try LaneChunks.make(1).sent
    let id = sent[0].segment
    let disk = MemoryDisk()
    let rig = try CopyRig(on: disk)
    #expect(rig.create(id) == .created)
    if case .sealed? = rig.seal(id, 2) {} else { Issue.record("not sealed") }
    rig.store.stop()
    rig.directory.close()
    disk.flip("copies/segments/\(SegmentName(id).sealFile)", at: 5)
    let again = try CopyRig(on: disk)
    #expect(again.append(id, at: 0, sent[0].chunk) == .failed(upTo: 0))
    #expect(again.record(id, 1, from: 0, ByteBuffer(repeating: 7, count: 100)) == .failed)
    #expect(again.create(id) == .refused)
}

@Test func copyWithARottenBeginningIsDroppedAsEmpty() throws {
    let sent = try LaneChunks.make(1).sent
    let id = sent[0].segment
    let empty = SegmentID(writer: id.writer, incarnation: id.incarnation, index: 9)
    let disk = MemoryDisk()
    let rig = try CopyRig(on: disk)
    for created in [id, empty] { #expect(rig.create(created) == .created) }
    _ = rig.append(id, at: 0, sent[0].chunk)
    rig.stop()
    disk.flip("copies/segments/\(SegmentName(id).segmentFile)", at: 1)
    let again = try CopyRig(on: disk)
    for dropped in [id, empty] { again.store.unlinkIfEmpty(dropped) }
    again.store.pump()
    #expect(try again.disk.list("copies/segments") == [SegmentName(id).segmentFile])
}

/// PROTOCOL T1: what is behind the first missing page is written first, so that the tail stays invalid until all of it is there.
@Test func halfARepairReadsLikeAWholeCopy() throws {
    let sent = try LaneChunks.make(3).sent
    let id = sent[0].segment
    let disk = MemoryDisk()
    let rig = try CopyRig(on: disk)
    #expect(rig.create(id) == .created)
    for piece in sent { _ = rig.append(id, at: piece.offset, piece.chunk) }
    rig.stop()
    disk.flip("copies/segments/\(SegmentName(id).segmentFile)", at: Int(sent[1].offset) + 1)
    disk.flip("copies/segments/\(SegmentName(id).segmentFile)", at: Int(sent[2].offset) + 1)
    let again = try CopyRig(on: disk)
    func report(_ epoch: UInt64) -> CopyReport? {
        if case .sealed(let report)? = again.seal(id, epoch) { report } else { nil }
    }
    let short = CopyReport(end: sent[1].offset, tailInvalid: true, outcomeOctets: 0)
    #expect(report(2) == short)
    let page = ChunkHeader.alignment
    var behind = sent[1].chunk
    let part = behind.readSlice(length: page)
    let head = try #require(part)
    behind.writeImmutableBuffer(sent[2].chunk)
    #expect(again.restore(id, .repair, at: sent[1].offset + Int64(page), behind) == true)
    #expect(report(2) == short)
    #expect(again.restore(id, .repair, at: sent[1].offset, head) == true)
    let end = sent[2].offset + Int64(sent[2].chunk.readableBytes)
    #expect(report(2) == CopyReport(end: end, tailInvalid: false, outcomeOctets: 0))
}

@Test func fullDiskIsCalledDurable() throws {
    let sent = try LaneChunks.make(1).sent
    let id = sent[0].segment
    let disk = MemoryDisk()
    let rig = try CopyRig(on: disk)
    #expect(rig.create(id) == .created)
    disk.fail(DiskFault(call: "write", errno: ENOSPC))
    #expect(rig.append(id, at: 0, sent[0].chunk) == .noRoom(upTo: 0))
    disk.setFree(1 << 18)
    let other = SegmentID(writer: id.writer, incarnation: id.incarnation, index: 9)
    #expect(rig.create(other) == .noRoom)
}

// MARK: Taking over

/// A spool of a cluster whose backups never answer: it only adopts.
private final class Heir: Sendable {
    private struct NoBackup: ChunkReplicating {
        func prepare(_ segment: SegmentID) -> [EnsembleMember]? { nil }
        func send(_ chunk: ByteBuffer, of segment: SegmentID, at offset: Int64, acked: Int64) {}
    }

    private struct NoRegistry: SegmentRegistry {
        func list() throws(SpoolError) -> [SegmentKey] { [] }
        func read(_ id: SegmentID) throws(SpoolError) -> SegmentKey? { nil }
        func store(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer { .conflict(nil) }
        func store(_ keys: [SegmentKey]) throws(SpoolError) -> [RegistryAnswer] { keys.map { _ in .conflict(nil) } }
        func remove(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer { .conflict(nil) }
    }

    final class News: SegmentNews {
        let drained = Mutex<[SegmentID]>([])
        func outcomesAdvanced(_ id: SegmentID, epoch: UInt64, end: Int64, synced: Int64, taken: Int) {}
        func keyChanged(_ key: SegmentKey) {}
        func drained(_ id: SegmentID) { drained.withLock { $0.append(id) } }
        func damaged(_ chunk: DamagedChunk) {}
        func cleanable(_ ids: [SegmentID], into target: SegmentID) {}
        func moved(_ id: SegmentID, epoch: UInt64, landed: Bool) {}
    }

    let spool: Spool
    let jobs = Jobs()
    let events = Events()
    let news = News()
    let time = SimulatedTime()

    init(_ directory: DataDirectory) throws {
        spool = try Spool.open(
            directory: directory, configuration: Rig.small, events: events, time: time, logger: quietLogger,
            threading: .manual,
            cluster: SpoolCluster(registry: NoRegistry(), replicator: NoBackup(), news: news)
        ) { _ in }
        try spool.start(jobs: jobs, unreported: jobs)
        spool.pump()
    }

    static func key(_ id: SegmentID, end: Int64, epoch: UInt64) -> SegmentKey {
        SegmentKey(
            id: id, ensemble: [EnsembleMember(node: NodeID(name: "n2"), diskID: 78)], appendEpoch: 1,
            state: .sealed(at: end), drainer: Drainer(node: NodeID(name: "n2"), incarnation: Incarnation(value: 3)),
            drainEpoch: epoch)
    }
}

@Test func mailOfADeadNodeIsLostOrSentTwice() throws {
    let (writer, sink, sent) = try LaneChunks.make(4)
    let id = sent[0].segment
    let copies = try CopyRig(on: MemoryDisk())
    #expect(copies.create(id) == .created)
    for piece in sent {
        guard case .durable(let upTo)? = copies.append(id, at: piece.offset, piece.chunk) else {
            Issue.record("not durable")
            return
        }
        writer.spool.durable(id, on: EnsembleMember(node: NodeID(name: "n2"), diskID: 78), upTo: upTo)
    }
    writer.spool.pump()
    // The second message is delivered, its outcome streamed; then the writer burns.
    writer.record(try #require(sink.ref(2)), .delivered)
    let log = try #require((writer.disk as? MemoryDisk)?.contents("data/segments/\(SegmentName(id).outcomeFile)"))
    #expect(copies.record(id, 1, from: 0, ByteBuffer(bytes: log)) == .recorded(memory: Int64(log.count), synced: 0))
    guard case .sealed(let report)? = copies.seal(id, 2) else {
        Issue.record("not sealed")
        return
    }
    #expect(!report.tailInvalid)
    let heir = try Heir(copies.directory)
    let key = Heir.key(id, end: report.end, epoch: 2)
    let adopted = try heir.spool.adopt(Adoption(key: key, others: [], eventsMayBeLost: true))
    #expect(adopted.messages == 4)
    #expect(adopted.liveRecipients == 3)
    #expect(Set(heir.jobs.messages.map(\.envelope.id)) == [Mail.id(1), Mail.id(3), Mail.id(4)])
    // Events may have burnt with the writer: the delivered one is told again.
    #expect(heir.jobs.outcomes.map(\.envelope.id) == [Mail.id(2)])
    #expect(heir.jobs.receptions.map(\.id) == [Mail.id(2)])
    // Bodies can be read, outcomes recorded; when all are final the segment may go, and not before.
    for message in heir.jobs.messages {
        #expect(heir.news.drained.withLock { $0.isEmpty })
        heir.spool.record([
            Outcome(
                job: JobRef(message: message.ref, recipient: 0), at: heir.time.now(), verdict: .delivered, attempts: 1,
                reply: nil, peer: nil)
        ])
        heir.spool.pump()
    }
    heir.events.add(10)
    heir.events.sync()
    for _ in 0..<6 {
        heir.time.advance(by: .seconds(1))
        heir.spool.tick()
        heir.events.sync()
    }
    #expect(heir.news.drained.withLock { $0.contains(id) })
    #expect(heir.spool.ledger.handle(of: id) != nil)
    #expect(heir.spool.release(id))
    #expect(heir.spool.ledger.handle(of: id) == nil)
    #expect(copies.unlink(id) == true)
}

@Test func whatStandsBehindTheSealIsDelivered() throws {
    let (_, _, sent) = try LaneChunks.make(3)
    let id = sent[0].segment
    let copies = try CopyRig(on: MemoryDisk())
    #expect(copies.create(id) == .created)
    for piece in sent { _ = copies.append(id, at: piece.offset, piece.chunk) }
    _ = copies.seal(id, 2)
    let heir = try Heir(copies.directory)
    let report = try heir.spool.adopt(
        Adoption(key: Heir.key(id, end: sent[1].offset, epoch: 2), others: [], eventsMayBeLost: false))
    #expect(report.messages == 1)
    #expect(heir.jobs.messages.map(\.envelope.id) == [Mail.id(1)])
}

@Test func outcomesOfAnotherMemberAreNotHeard() throws {
    let (writer, sink, sent) = try LaneChunks.make(2)
    let id = sent[0].segment
    let copies = try CopyRig(on: MemoryDisk())
    #expect(copies.create(id) == .created)
    for piece in sent {
        if case .durable(let upTo)? = copies.append(id, at: piece.offset, piece.chunk) {
            writer.spool.durable(id, on: EnsembleMember(node: NodeID(name: "n2"), diskID: 78), upTo: upTo)
        }
    }
    writer.spool.pump()
    writer.record(try #require(sink.ref(1)), .inDoubt(until: writer.time.now() + .seconds(60)))
    writer.record(try #require(sink.ref(2)), .delivered)
    let log = try #require((writer.disk as? MemoryDisk)?.contents("data/segments/\(SegmentName(id).outcomeFile)"))
    // Here and there the same entry stands: it counts once.
    let half = ByteBuffer(bytes: log)
    _ = copies.record(id, 1, from: 0, half)
    let files = SegmentFiles(disk: copies.disk, directory: "copies/segments", name: SegmentName(id))
    let entries = try files.entries()
    guard case .sealed(let report)? = copies.seal(id, 2) else { return }
    let heir = try Heir(copies.directory)
    _ = try heir.spool.adopt(
        Adoption(key: Heir.key(id, end: report.end, epoch: 2), others: [entries, entries], eventsMayBeLost: false))
    let message = try #require(heir.jobs.message(Mail.id(1)))
    #expect(message.progress?.first?.doubts == 1)
    #expect(heir.jobs.message(Mail.id(2)) == nil)
    // Once more at a higher epoch: nothing is forgotten.
    let again = try Heir(try reopened(copies.directory))
    _ = try again.spool.adopt(
        Adoption(key: Heir.key(id, end: report.end, epoch: 3), others: [], eventsMayBeLost: false))
    #expect(again.jobs.messages.map(\.envelope.id) == [Mail.id(1)])
    #expect(again.jobs.messages.first?.progress?.first?.doubts == 1)
}

private func reopened(_ directory: DataDirectory) throws -> DataDirectory {
    directory.close()
    var random = SplitMix64(seed: 10)
    return try DataDirectory.open(
        path: directory.path, disk: directory.disk, cluster: "c", nodeName: "n2", random: { random.next() })
}

@Test func nodeWithoutBackupTakesMail() throws {
    let copies = try CopyRig(on: MemoryDisk())
    let heir = try Heir(copies.directory)
    guard case .refused(.noCopies) = heir.spool.admission else {
        Issue.record("mail is taken without a second copy")
        return
    }
    let sink = Sink()
    heir.spool.submit([Mail(1).submission(token: 1, sink: sink)])
    heir.spool.pump()
    #expect(sink.refusal(1)?.isNoCopies == true)
}

@Test func recoveryIsToldOfCopiesAsIfTheyWereWhole() throws {
    let sent = try LaneChunks.make(3).sent
    let id = sent[0].segment
    let other = SegmentID(writer: id.writer, incarnation: id.incarnation, index: 9)
    let copies = try CopyRig(on: MemoryDisk())
    for created in [id, other] { #expect(copies.create(created) == .created) }
    for piece in sent { _ = copies.append(id, at: piece.offset, piece.chunk) }
    let end = try #require(copies.end(id, sealedAt: 3))
    _ = copies.record(other, 2, from: 0, ByteBuffer(repeating: 7, count: 100))
    let spool = try Heir(copies.directory).spool
    // Without the segments that the heir has made ready for its own mail.
    func told() throws -> Set<CopyOnDisk> { Set(try spool.copiesOnDisk().filter { $0.id.writer == id.writer }) }
    let empty = CopyOnDisk(id: other, epoch: 2, sealed: 0, end: 0)
    #expect(try told() == [CopyOnDisk(id: id, epoch: 3, sealed: 3, end: end), empty])
    // A chunk without its header, and a seal that is rotten.
    copies.disk.flip("copies/segments/\(SegmentName(id).segmentFile)", at: Int(sent[2].offset) + 20)
    copies.disk.flip("copies/segments/\(SegmentName(id).sealFile)", at: 5)
    #expect(try told() == [CopyOnDisk(id: id, epoch: 1, sealed: 0, end: sent[2].offset), empty])
    copies.disk.fail(DiskFault(call: "list", errno: EIO))
    #expect(throws: SpoolError.self) { try told() }
}
