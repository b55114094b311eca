// Drives the spool's bounds to their limit (docs/LIMITS.md, "Spool").
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

/// Each message of 60 KB fills a segment of 64 KiB.
private let tiny: SpoolConfiguration = {
    var configuration = Rig.small
    configuration.segmentSize = 64 * 1024
    return configuration
}()

private func spares(_ disk: MemoryDisk) -> Int { disk.paths.count { $0.hasPrefix("data/segments/spare-") } }

@Test func chunkOverItsBytesIsSplit() throws {
    let disk = MemoryDisk()
    var configuration = Rig.small
    configuration.segmentSize = 16 << 20
    let rig = try Rig(on: disk, configuration: configuration)
    let sink = Sink()
    let before = disk.journal.count
    rig.spool.submit((0..<12).map { Mail($0, size: 200_000).submission(token: $0, sink: sink) })
    rig.spool.pump()
    #expect((UInt64(0)..<12).allSatisfy { sink.ref($0) != nil })
    let sizes = disk.journal[before...].compactMap { if case .write(_, _, let bytes) = $0 { bytes.count } else { nil } }
    #expect(sizes.count >= 3)
    #expect(sizes.allSatisfy { $0 <= Limits.chunkBytes + 2 * ChunkHeader.alignment }, "\(sizes)")
    rig.stop()
}

@Test func segmentWithoutASuccessorRefusesAtItsLargestSize() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    rig.store(Mail(1), sink)
    disk.fail(DiskFault(call: "allocate", errno: ENOSPC, sticky: true))
    _ = rig.spool.shared.take()
    rig.spool.writer.withLock { $0?.open?.offset = SpoolLimits.segmentBytesMax }
    rig.store(Mail(2), sink)
    #expect(sink.refusal(2)?.isOverloaded == true)
    #expect(!rig.spool.stats.laneDead)
}

@Test func reserveIsGivenUpForOutcomesAndMadeAgain() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    let ref = try #require(rig.store(Mail(1), sink))
    #expect(disk.contents("data/reserve")?.count == Int(SpoolLimits.reserveBytes))
    disk.fail(DiskFault(call: "write", errno: ENOSPC))
    rig.record(ref, .delivered)
    #expect(disk.contents("data/reserve") == nil, "the reserve was not given up")
    #expect(rig.shared.list.withLock { $0.isEmpty })
    let copy = disk.reopened()
    #expect(try Rig(on: copy, seed: 2).jobs.messages.isEmpty, "the outcome was not written")
    rig.ticks(1)
    #expect(disk.contents("data/reserve")?.count == Int(SpoolLimits.reserveBytes), "no reserve for the next time")
}

@Test func reserveThatACrashLeftShortIsMadeWhole() throws {
    let disk = MemoryDisk(keepsJournal: false)
    try Rig(on: disk).stop()
    let copy = disk.reopened()
    let file = try copy.open("data/reserve", .readWrite)
    try copy.truncate(file, length: 0)
    try copy.close(file)
    let rig = try Rig(on: copy, seed: 2)
    #expect(copy.contents("data/reserve")?.count == Int(SpoolLimits.reserveBytes))
    rig.stop()
}

@Test func outcomesThatNoDiskTakesAreDroppedPastTheirBound() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    let ref = try #require(rig.store(Mail(1), sink))
    let name = try rig.name(of: ref)
    let long = [UInt8](repeating: 0x61, count: 1024)
    let outcome = Outcome(
        job: JobRef(message: ref, recipient: 0), at: rig.time.now(), verdict: .deferred(until: rig.time.now()),
        attempts: 1, reply: nil, peer: PeerName(name: long, address: long))
    disk.fail(DiskFault(call: "write", errno: ENOSPC, sticky: true))
    let each = SpoolLimits.refusedOutcomeBytes / 2100
    rig.spool.record([Outcome](repeating: outcome, count: each - 2000))
    rig.spool.pump()
    #expect(rig.shared.list.withLock { $0.isEmpty }, "dropped below the bound")
    rig.spool.record([Outcome](repeating: outcome, count: 4000))
    rig.spool.pump()
    guard case .outcomeLogFailed(let failed, _)? = rig.shared.list.withLock({ $0.first }) else {
        Issue.record("outcomes were dropped in silence, or grow without bound")
        return
    }
    #expect(failed == name)
    #expect(rig.spool.outcomes.withLock { $0.logs.values.reduce(0) { $0 + $1.waitingBytes } } == 0)
    disk.clearFaults()
    rig.record(ref, .delivered)
    rig.time.advance(by: .minutes(6))
    rig.events.add(10)
    rig.events.sync()
    rig.ticks(6)
    #expect(rig.segmentFiles.contains(name.segmentFile), "a segment whose outcomes are missing on disk was reclaimed")
}

@Test func manyDirtyOutcomeLogsShareOneSyncfs() throws {
    for (count, shares) in [(SpoolLimits.dirtyOutcomeFiles - 1, false), (SpoolLimits.dirtyOutcomeFiles + 1, true)] {
        let disk = MemoryDisk()
        let rig = try Rig(on: disk, configuration: tiny)
        let sink = Sink()
        for number in UInt64(1)...UInt64(count) { rig.store(Mail(number, size: 60_000), sink) }
        let before = disk.journal.count
        for number in UInt64(1)...UInt64(count) { rig.record(try #require(sink.ref(number)), .delivered) }
        rig.ticks(1)
        let shared = disk.journal[before...].contains { if case .syncAll = $0 { true } else { false } }
        #expect(shared == shares, "\(count) dirty logs")
        #expect(rig.spool.stats.dirtyOutcomeLogs == 0)
        rig.stop()
    }
}

@Test func filesBeyondTheirBoundAreClosed() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk, configuration: tiny)
    let sink = Sink()
    let count = UInt64(SpoolLimits.openOutcomeFiles + 20)
    for number in 1...count { rig.store(Mail(number, size: 60_000, recipients: 2), sink) }
    for number in 1...count { rig.record(try #require(sink.ref(number)), recipient: 1, .delivered) }
    rig.ticks(2)
    rig.record(try #require(sink.ref(1)), .deferred(until: rig.time.now()))
    #expect(disk.openPaths.count { $0.hasSuffix(".out") } <= SpoolLimits.openOutcomeFiles)
    for number in 1...count { #expect(rig.read(try #require(sink.ref(number)))?.bytes != nil) }
    // The reader's, the open segment and the one ahead.
    #expect(disk.openPaths.count { $0.hasSuffix(".seg") } <= SpoolLimits.openReadFiles + 2)
    #expect(rig.read(try #require(sink.ref(1)))?.bytes == Mail(1, size: 60_000).body, "read from a file opened again")
    rig.stop()
}

@Test func filesOfReclaimedSegmentsAreLetGo() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk, configuration: tiny)
    let sink = Sink()
    for number in UInt64(1)...10 { rig.store(Mail(number, size: 60_000), sink) }
    for number in UInt64(1)...9 {
        #expect(rig.read(try #require(sink.ref(number)))?.bytes != nil)
        rig.record(try #require(sink.ref(number)), .delivered)
    }
    for _ in 0..<4 {
        rig.events.add(10)
        rig.events.sync()
        rig.ticks(1)
    }
    #expect(rig.spool.stats.segmentsReclaimed >= 8)
    #expect(!disk.openPaths.contains("(unlinked)"), "unlinked files hold their space")
    #expect(disk.openPaths.count { $0.contains("/spare-") } == 0)
    rig.stop()
}

@Test func readsBeyondTheirBoundAreToldToComeBack() throws {
    let rig = try Rig(on: MemoryDisk(keepsJournal: false))
    let ref = try #require(rig.store(Mail(1), Sink()))
    let (first, late) = (Reads(), Reads())
    rig.spool.read(
        (0..<UInt64(SpoolLimits.waitingReads)).map { BodyRead(ref: ref, part: .message, token: $0) }, for: first)
    rig.spool.read([BodyRead(ref: ref, part: .message, token: 1)], for: late)
    guard case .failed(let errno)? = late.results.withLock({ $0[1] }) else {
        Issue.record("a read beyond the bound waits")
        return
    }
    #expect(errno == EAGAIN)
    rig.spool.pump()
    #expect(first.results.withLock { $0.count } == SpoolLimits.waitingReads)
    rig.stop()
}

@Test func spareFilesBeyondTheirBoundAreUnlinked() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk, configuration: tiny)
    let sink = Sink()
    for number in UInt64(1)...12 { rig.store(Mail(number, size: 60_000), sink) }
    for number in UInt64(1)...11 { rig.record(try #require(sink.ref(number)), .delivered) }
    for _ in 0..<5 {
        rig.events.add(12)
        rig.events.sync()
        rig.ticks(1)
    }
    #expect(rig.spool.stats.segmentsReclaimed >= 8)
    #expect(spares(disk) == SpoolLimits.spareSegments)
    // More of them, left by whoever: a start keeps as many as it may.
    let copy = disk.reopened()
    for number in 0..<5 { try copy.close(try copy.open("data/segments/spare-x-\(number)", .create)) }
    let again = try Rig(on: copy, configuration: tiny, seed: 2)
    #expect(spares(copy) <= SpoolLimits.spareSegments)
    again.stop()
}

@Test func backlogIsHandedOverInBatches() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    let count = UInt64(3 * SpoolLimits.recoveryBatch)
    rig.spool.submit((1...count).map { Mail($0, size: 50).submission(token: $0, sink: sink) })
    rig.spool.pump()
    rig.stop()
    let again = try Rig(on: disk.reopened(), seed: 2)
    #expect(again.jobs.messages.count == Int(count))
    let batches = again.jobs.state.withLock { $0.batches }
    #expect(batches.count >= 2)
    #expect(batches.allSatisfy { $0 < SpoolLimits.recoveryBatch + Limits.chunkMessages }, "\(batches)")
    again.stop()
}

@Test func segmentThatIsTooFullToBeCleaned() {
    func candidate(live: Int, of all: Int, messages: Int = 1) -> Bool {
        let ledger = SegmentLedger()
        let id = SegmentID(writer: NodeID(value: 1), incarnation: Incarnation(value: 2), index: 3)
        let handle = ledger.add(id, sealed: true, at: .epoch)
        let dead = PlacedMessage(offset: 0, storedBytes: UInt32(all - live), recipients: 0)
        let each = PlacedMessage(offset: 8, storedBytes: UInt32(live / messages), recipients: 1)
        _ = ledger.append([dead] + Array(repeating: each, count: messages), to: handle, end: Int64(all))
        return ledger.cleaningCandidate(olderThan: .epoch) != nil
    }
    let percent = SpoolLimits.cleaningLivePercent
    #expect(candidate(live: (percent - 1) * 10_000, of: 1_000_000))
    #expect(!candidate(live: percent * 10_000, of: 1_000_000))
    #expect(candidate(live: 81_920, of: 1_000_000, messages: SpoolLimits.cleaningMessages))
    #expect(!candidate(live: 81_920, of: 1_000_000, messages: SpoolLimits.cleaningMessages + 1))
}

@Test func headerThatClaimsMoreThanAChunkHolds() {
    func parses(envelope: Int, body: Int) -> Bool {
        let header = ChunkHeader(
            segment: SegmentID(writer: NodeID(value: 1), incarnation: Incarnation(value: 2), index: 3), appendEpoch: 1,
            offset: 0, ackedOffset: 0, number: 0, records: 1, firstMessage: 0, messages: 1,
            envelopeLength: UInt32(envelope), bodyLength: UInt32(body), envelopeCRC: 0, bodyCRC: 0,
            previousHeaderCRC: 0, writtenAt: .epoch)
        var buffer = ByteBuffer(repeating: 0, count: ChunkHeader.length)
        header.write(over: &buffer)
        return ChunkHeader.parse(buffer) != nil
    }
    let (envelopes, bodies) = (SpoolLimits.envelopeBlockBytes, SpoolLimits.bodyBlockBytes)
    #expect(parses(envelope: envelopes, body: bodies))
    #expect(!parses(envelope: envelopes + 1, body: bodies))
    #expect(!parses(envelope: envelopes, body: bodies + 1))
}

@Test func messageOfTooManyFragmentsIsRefused() throws {
    let rig = try Rig(on: MemoryDisk(keepsJournal: false))
    let sink = Sink()
    for (number, count) in [(UInt64(1), SpoolLimits.fragmentsPerMessage), (2, SpoolLimits.fragmentsPerMessage + 1)] {
        let mail = Mail(number, size: count)
        let stream = rig.spool.openStream(sink: sink)
        for index in 0..<count {
            guard let piece = mail.body.getSlice(at: index, length: 1) else { continue }
            rig.spool.append(piece, to: stream)
            if index % 4096 == 0 { rig.spool.pump() }
        }
        rig.spool.submit([
            Submission(envelope: mail.envelope, body: .fragments(stream), token: number, sink: sink)
        ])
        rig.spool.pump()
    }
    #expect(sink.ref(1) != nil)
    #expect(sink.refusal(2)?.isStorageFailed == true, "it could not be read back")
    rig.stop()
}

@Test func registryThatClaimsTooManySegmentsIsDamaged() {
    let key = SegmentKey(
        id: SegmentID(writer: NodeID(value: 1), incarnation: Incarnation(value: 2), index: 3), ensemble: [],
        appendEpoch: 1, state: .open, drainer: Drainer(node: NodeID(value: 1), incarnation: Incarnation(value: 2)),
        drainEpoch: 1)
    let one = RegistryFormat.encode(id: 1, revision: 1, keys: [key])
    let none = RegistryFormat.encode(id: 1, revision: 1, keys: [])
    var keys = Array(one.readableBytesView.dropFirst(none.readableBytes))
    let each = keys.count
    let wanted = SpoolLimits.registrySegments + 1
    while keys.count < wanted * each { keys += keys }
    var payload = none
    payload.setInteger(UInt32(wanted), at: none.readableBytes - 4, endianness: .little)
    payload.writeBytes(keys.prefix(wanted * each))
    #expect(RegistryFormat.decode(payload) == nil)
    // Three of them are read.
    var three = none
    three.setInteger(UInt32(3), at: none.readableBytes - 4, endianness: .little)
    three.writeBytes(keys.prefix(3 * each))
    #expect(RegistryFormat.decode(three)?.keys.count == 3)
}
