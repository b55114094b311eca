// The write path: group commit, rolling, fragments, refusals.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

@Test func acceptedMessageReadsBackByteByByte() throws {
    let rig = try Rig(on: MemoryDisk())
    let sink = Sink()
    for size in [0, 1, 100, 5000, 20_000, 262_144] {
        let mail = Mail(UInt64(size + 1), size: size)
        let ref = try #require(rig.store(mail, sink))
        #expect(rig.read(ref)?.bytes == mail.body)
    }
    #expect(rig.jobs.messages.count == 6)
    rig.stop()
}

@Test func manyWaitingMessagesShareOneSync() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let before = disk.journal.count
    rig.spool.submit((0..<20).map { Mail(UInt64($0 + 1)).submission(token: UInt64($0 + 1), sink: sink) })
    rig.spool.pump()
    let syncs = disk.journal[before...].filter { if case .sync = $0 { true } else { false } }
    let writes = disk.journal[before...].filter { if case .write = $0 { true } else { false } }
    #expect(syncs.count == 1)
    #expect(writes.count == 1)
    #expect((1...20).allSatisfy { sink.ref($0) != nil })
    #expect(sink.state.withLock { $0.calls } == 1, "one call to the sink for the whole commit")
    rig.stop()
}

@Test func chunkOfMoreThanItsBoundIsSplit() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let count = Limits.chunkMessages + 10
    rig.spool.submit((0..<count).map { Mail(UInt64($0), size: 100).submission(token: UInt64($0), sink: sink) })
    rig.spool.pump()
    #expect(rig.spool.stats.commits == 2)
    #expect((0..<count).allSatisfy { sink.ref(UInt64($0)) != nil })
    rig.stop()
}

@Test func nothingIsAcknowledgedBeforeItsSync() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink { token in disk.mark(Int(token)) }
    for number in 1...30 { rig.store(Mail(UInt64(number), size: 9000), sink) }
    var dirty: Set<Int> = []
    for operation in disk.journal {
        switch operation {
        case .write(let inode, _, _): dirty.insert(inode)
        case .sync(let inode): dirty.remove(inode)
        case .mark(let token): #expect(dirty.isEmpty, "message \(token) acknowledged with unsynced writes")
        default: break
        }
    }
    rig.stop()
}

@Test func segmentRollsWhenFull() throws {
    let rig = try Rig(on: MemoryDisk())
    let sink = Sink()
    for number in 1...60 { rig.store(Mail(UInt64(number), size: 20_000), sink) }
    #expect(rig.spool.stats.segmentsSealed >= 4)
    #expect((1...60).allSatisfy { sink.ref($0) != nil })
    for number in UInt64(1)...60 {
        let ref = try #require(sink.ref(number))
        #expect(rig.read(ref)?.bytes == Mail(number, size: 20_000).body)
    }
    rig.stop()
}

@Test func segmentRollsByAge() throws {
    let rig = try Rig(on: MemoryDisk())
    rig.store(Mail(1), Sink())
    #expect(rig.spool.stats.segmentsSealed == 0)
    rig.time.advance(by: .minutes(6))
    rig.spool.tick()
    #expect(rig.spool.stats.segmentsSealed == 1)
    rig.stop()
}

@Test func bodyThatIsNotWhatItsTraitsSayIsRefused() throws {
    let rig = try Rig(on: MemoryDisk())
    let sink = Sink()
    let mail = Mail(1)
    var wrong = mail.body
    wrong.setInteger(UInt8(0xaa), at: 0)
    wrong.setInteger(UInt8(0xbb), at: 1)
    rig.spool.submit([Submission(envelope: mail.envelope, body: .whole(wrong), token: 1, sink: sink)])
    rig.spool.pump()
    #expect(sink.refusal(1)?.isStorageFailed == true)
    #expect(rig.jobs.messages.isEmpty)
    rig.stop()
}

@Test func failedSyncKillsTheLaneAndIsNeverRetried() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    rig.store(Mail(1), sink)
    disk.fail(DiskFault(call: "sync", errno: EIO))
    rig.store(Mail(2), sink)
    rig.store(Mail(3), sink)
    #expect(sink.ref(1) != nil)
    #expect(sink.refusal(2)?.isStorageFailed == true)
    #expect(sink.refusal(3)?.isStorageFailed == true, "the second fdatasync would have succeeded and proved nothing")
    #expect(rig.spool.stats.laneDead)
    guard case .refused(.storageFailed) = rig.spool.admission else {
        Issue.record("mail is still admitted")
        return
    }
    #expect(rig.shared.list.withLock { $0.count } == 1)
    // What was acknowledged is served on.
    let ref = try #require(sink.ref(1))
    #expect(rig.read(ref)?.bytes == Mail(1).body)
    rig.stop()
}

@Test func failedWriteKillsTheLane() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    disk.fail(DiskFault(call: "write", errno: EIO))
    rig.store(Mail(1), sink)
    #expect(sink.refusal(1)?.isStorageFailed == true)
    #expect(rig.spool.stats.laneDead)
    rig.stop()
}

@Test func fullDiskAtTheWriteRefusesOneChunkAndGoesOn() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    disk.fail(DiskFault(call: "write", errno: ENOSPC))
    rig.store(Mail(1), sink)
    #expect(sink.refusal(1)?.isDiskFull == true)
    guard case .refused(.diskFull) = rig.spool.admission else {
        Issue.record("mail is still admitted")
        return
    }
    rig.store(Mail(2), sink)
    #expect(sink.ref(2) != nil, "a session that was past MAIL may still be stored")
    rig.stop()
    let again = try Rig(on: disk.reopened(), seed: 2)
    #expect(again.jobs.messages.map(\.envelope.id) == [Mail.id(2)])
    #expect(again.spool.recovery.damage.isEmpty)
    again.stop()
}

@Test func fullDiskAtPreallocationLetsTheOpenSegmentOutgrowItsSize() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    disk.fail(DiskFault(call: "allocate", errno: ENOSPC, sticky: true))
    for number in 1...60 { rig.store(Mail(UInt64(number), size: 20_000), sink) }
    #expect((1...60).allSatisfy { sink.ref($0) != nil })
    #expect(rig.spool.stats.diskFull)
    disk.clearFaults()
    rig.ticks(2)
    guard case .open = rig.spool.admission else {
        Issue.record("the disk has room and mail is still refused")
        return
    }
    rig.stop()
}

@Test func freeSpaceBelowTheMarkRefusesNewMail() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    disk.setFree(1000)
    rig.ticks(1)
    guard case .refused(.diskFull) = rig.spool.admission else {
        Issue.record("mail is admitted below min_free")
        return
    }
    disk.setFree(1 << 30)
    rig.ticks(1)
    guard case .open = rig.spool.admission else {
        Issue.record("mail is refused above min_free")
        return
    }
    rig.stop()
}

@Test func sparesOfASmallDiskKeepTheDoorShut() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...60 {
        let ref = try #require(rig.store(Mail(number, size: 20_000), sink))
        rig.record(ref, .delivered)
    }
    rig.events.sync()
    rig.ticks(5)
    func spares() -> [String] { disk.paths.filter { $0.contains("/spare-") } }
    #expect(!spares().isEmpty, "nothing to give up")
    disk.setFree(1000)
    rig.ticks(1)
    #expect(spares().isEmpty, "room that only looks taken")
    // And none is put aside while room is short.
    for number in UInt64(61)...90 {
        guard let ref = rig.store(Mail(number, size: 20_000), sink) else { continue }
        rig.record(ref, .delivered)
    }
    rig.events.sync()
    rig.ticks(5)
    #expect(spares().isEmpty)
    rig.stop()
}

@Test func fullEventLogRefusesNewMail() throws {
    let rig = try Rig(on: MemoryDisk())
    rig.events.counts.withLock { $0.full = true }
    guard case .refused(.diskFull) = rig.spool.admission else {
        Issue.record("mail is admitted with a full event log")
        return
    }
    rig.stop()
}

@Test func tooManyWaitingBytesAreOverload() throws {
    let rig = try Rig(on: MemoryDisk())
    let sink = Sink()
    let mail = Mail(1, size: 262_144)
    let count = SpoolLimits.waitingBytes / 262_144
    rig.spool.submit((0..<count).map { mail.submission(token: UInt64($0), sink: sink) })
    rig.spool.submit([mail.submission(token: 9999, sink: sink)])
    #expect(sink.refusal(9999)?.isOverloaded == true)
    guard case .refused(.overloaded) = rig.spool.admission else {
        Issue.record("mail is admitted with a full mailbox")
        return
    }
    rig.spool.pump()
    #expect(sink.ref(0) != nil)
    #expect(sink.ref(UInt64(count - 1)) != nil)
    rig.stop()
}

@Test func tooManyWaitingItemsAreOverload() throws {
    let rig = try Rig(on: MemoryDisk(keepsJournal: false))
    let sink = Sink()
    let mail = Mail(1, size: 10)
    rig.spool.submit((0..<SpoolLimits.waitingItems).map { mail.submission(token: UInt64($0), sink: sink) })
    rig.spool.submit([mail.submission(token: 99_999, sink: sink)])
    #expect(sink.refusal(99_999)?.isOverloaded == true)
    rig.stop()
}

@Test func submissionsAfterTheStopAreRefused() throws {
    let rig = try Rig(on: MemoryDisk())
    let sink = Sink()
    rig.spool.stopAccepting()
    rig.store(Mail(1), sink)
    #expect(sink.refusal(1)?.isStopping == true)
    rig.stop()
    rig.store(Mail(2), sink)
    #expect(sink.refusal(2)?.isStopping == true)
}

@Test func lockedDirectoryIsRefused() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    #expect(throws: SpoolError.self) { _ = try Rig(on: disk, seed: 2) }
    rig.stop()
}

@Test func directoryOfAnotherNodeIsRefusedAndNotWritten() throws {
    let disk = MemoryDisk()
    try Rig(on: disk).stop()
    let copy = disk.reopened()
    #expect(throws: SpoolError.self) {
        _ = try DataDirectory.open(path: "data", disk: copy, cluster: "c", nodeName: "n2") { 5 }
    }
    #expect(!copy.journal.contains { if case .write = $0 { true } else { false } })
}

@Test func oneBodyForThousandRecipientsOfSevenHundredDomainsIsStoredOnce() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let before = disk.journal.count
    let mail = Mail(1, size: 100 * 1024, recipients: 1000, domains: 700)
    let ref = try #require(rig.store(mail, sink))
    var written = 0
    for case .write(_, _, let bytes) in disk.journal[before...] { written += bytes.count }
    // The body, about 30 bytes for each recipient, one header, and the padding to 4 KiB.
    #expect(written >= 100 * 1024)
    #expect(written <= 100 * 1024 + 1000 * 40 + 8192, "\(written) bytes written")
    print("one body of 102400 bytes, 1000 recipients, 700 domains: \(written) bytes written")
    // A piece from the middle of the body stands in one place of one file.
    let piece = Array(mail.body.readableBytesView[50_000..<50_016])
    var copies = 0
    for path in disk.paths where path.hasPrefix("data/segments/") {
        guard let bytes = disk.contents(path), let first = piece.first else { continue }
        var index = 0
        while let found = bytes[index...].firstIndex(of: first) {
            if Array(bytes[found..<min(bytes.count, found + piece.count)]) == piece { copies += 1 }
            index = found + 1
        }
    }
    #expect(copies == 1, "the body stands \(copies) times on the disk")
    #expect(rig.read(ref)?.bytes == mail.body)
    rig.stop()
}

@Test func sampledCompressionShrinksTextAndLeavesSmallMailAlone() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...40 {
        let mail = Mail(number, size: 40_000, compressible: true)
        let ref = try #require(rig.store(mail, sink))
        #expect(rig.read(ref)?.bytes == mail.body)
    }
    #expect(rig.spool.stats.committedBytes < 40 * 40_000 * 9 / 10)
    let before = rig.spool.stats.committedBytes
    rig.store(Mail(100, size: 8000, compressible: true), sink)
    #expect(rig.spool.stats.committedBytes - before >= 8000)
    rig.stop()
}

@Test func unsyncedConfigurationSaysSo() throws {
    var configuration = Rig.small
    configuration.sync = false
    let disk = MemoryDisk()
    let rig = try Rig(on: disk, configuration: configuration)
    #expect(rig.spool.stats.syncs == false)
    let before = disk.journal.count
    rig.store(Mail(1), Sink())
    #expect(!disk.journal[before...].contains { if case .sync = $0 { true } else { false } })
    rig.stop()
}
