// Restarts: what comes back, what is torn, what is damage, what reports prove.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Testing

@testable import BatonSpool

/// A stopped or killed process's disk with `count` messages of one segment, and the path of its segment.
private func populated(_ count: Int, size: Int = 3000, stop: Bool) throws -> (disk: MemoryDisk, path: String) {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    for number in 0..<count { rig.store(Mail(UInt64(number + 1), size: size), sink) }
    let first = try #require(sink.ref(1))
    let name = try rig.name(of: first)
    if stop { rig.stop() }
    return (disk.reopened(), "data/segments/\(name.segmentFile)")
}

@Test func restartBringsBackWhatIsNotFinal() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let two = Mail(1, recipients: 2)
    let ref = try #require(rig.store(two, sink))
    let other = try #require(rig.store(Mail(2), sink))
    let third = try #require(rig.store(Mail(3), sink))
    let due = rig.time.now() + .minutes(10)
    rig.record(ref, recipient: 0, .delivered)
    rig.record(ref, recipient: 1, .deferred(until: due))
    rig.record(ref, recipient: 1, .inDoubt(until: due + .minutes(1)))
    rig.record(ref, recipient: 1, .delayNoticeSent)
    rig.record(other, .bounced)
    let again = try Rig(on: disk.reopened(), seed: 2)
    #expect(again.jobs.messages.count == 2)
    let message = try #require(again.jobs.message(two.envelope.id))
    let progress = try #require(message.progress)
    #expect(progress.map(\.recipient) == [1])
    #expect(progress.first?.due == due + .minutes(1))
    #expect(progress.first?.doubts == 1)
    #expect(progress.first?.delayNoticeSent == true)
    #expect(progress.first?.lastReply?.text == Array("ok".utf8))
    #expect(again.read(message.ref)?.bytes == two.body)
    #expect(again.jobs.message(Mail.id(3))?.progress?.count == 1)
    #expect(third.record == 2)
    again.stop()
}

@Test func everyRestartTakesTheSegmentsOverAtAHigherEpoch() throws {
    var disk = MemoryDisk()
    let rig = try Rig(on: disk)
    rig.store(Mail(1), Sink())
    var epoch: UInt64 = 1
    for seed in UInt64(2)...5 {
        disk = disk.reopened()
        let again = try Rig(on: disk, seed: seed)
        #expect(again.jobs.messages.count == 1)
        let id = try again.name(of: again.jobs.messages.first?.ref).id
        let keys = try again.spool.registry.list()
        let key = try #require(keys.first { $0.id == id })
        epoch += 1
        #expect(key.drainEpoch == epoch)
        #expect(key.drainer.incarnation == again.directory.incarnation)
    }
}

@Test func tornTailIsNotDamageAtAnyOffset() throws {
    let (disk, path) = try populated(3, size: 700, stop: false)
    let bytes = try #require(disk.contents(path))
    // The third chunk stands at 8192 and was never marked acknowledged: it may be torn.
    for cut in stride(from: 8192, to: 12288, by: fullDepth ? 1 : 16) {
        let torn = disk.reopened()
        torn.overwrite(path, from: cut, with: [UInt8](repeating: 0, count: 12288 - cut))
        let rig = try Rig(on: torn, seed: 9)
        let count = rig.jobs.messages.count
        let same = torn.contents(path) == bytes
        #expect(count == 2 || (count == 3 && same), "cut at \(cut) gave \(count) messages")
        if count == 2 {
            #expect(rig.spool.recovery.damage.isEmpty, "cut at \(cut): \(rig.spool.recovery.damage)")
        }
        #expect(rig.jobs.messages.prefix(2).map(\.envelope.id) == [Mail.id(1), Mail.id(2)])
    }
}

@Test func tailThatWasAcknowledgedOnRecordIsDamageNotTorn() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...3 { rig.store(Mail(number, size: 700), sink) }
    rig.ticks(1)
    let first = try #require(sink.ref(1))
    let name = try rig.name(of: first)
    let copy = disk.reopened()
    copy.flip("data/segments/\(name.segmentFile)", at: 8192 + 200)
    let again = try Rig(on: copy, seed: 2)
    #expect(again.jobs.messages.count == 2)
    #expect(again.spool.recovery.quarantinedBytes >= 4096)
    #expect(again.spool.stats.degradedReasons.count == 1)
    again.ticks(5)
    #expect(again.segmentFiles.contains(name.segmentFile), "a damaged segment is kept")
    again.stop()
    let third = try Rig(on: copy.reopened(), seed: 3)
    #expect(third.spool.recovery.quarantinedBytes >= 4096, "still reported after another start")
}

@Test func outcomeOfADamagedLastMessageProvesThatItWasAcknowledged() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...2 { rig.store(Mail(number, size: 700), sink) }
    let last = try #require(sink.ref(2))
    rig.record(last, .deferred(until: rig.time.now() + .minutes(5)))
    let name = try rig.name(of: last)
    let copy = disk.reopened()
    copy.flip("data/segments/\(name.segmentFile)", at: 4096 + 20)
    let again = try Rig(on: copy, seed: 2)
    #expect(again.jobs.messages.count == 1)
    #expect(!again.spool.recovery.damage.isEmpty)
}

@Test func flippedByteAnywhereHurtsNoOtherMessage() throws {
    let (disk, path) = try populated(4, size: 700, stop: true)
    // Bytes of the second chunk: header, record, body.
    for offset in stride(from: 4096, to: 4096 + 128 + 400 + 700, by: fullDepth ? 1 : 7) {
        let copy = disk.reopened()
        copy.flip(path, at: offset)
        let rig = try Rig(on: copy, seed: 2)
        for number in [UInt64(1), 3, 4] {
            let message = try #require(rig.jobs.message(Mail.id(number)), "flip at \(offset) lost message \(number)")
            #expect(rig.read(message.ref)?.bytes == Mail(number, size: 700).body)
        }
        if let second = rig.jobs.message(Mail.id(2)) {
            let read = rig.read(second.ref)
            // Found when read: never sent, never absent; or the flip hit padding.
            #expect(read?.isDamaged == true || read?.bytes == Mail(2, size: 700).body, "flip at \(offset)")
            if read?.isDamaged == true { #expect(rig.spool.stats.quarantinedBytes > 0) }
        } else {
            #expect(rig.spool.recovery.quarantinedBytes > 0, "flip at \(offset): absent without an alarm")
        }
    }
}

@Test func laterMessagesKeepTheirNumbersBehindADamagedChunk() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...3 { rig.store(Mail(number, size: 700), sink) }
    let third = try #require(sink.ref(3))
    rig.record(third, .delivered)
    let name = try rig.name(of: third)
    rig.stop()
    let copy = disk.reopened()
    copy.flip("data/segments/\(name.segmentFile)", at: 4096 + 20)
    let again = try Rig(on: copy, seed: 2)
    #expect(again.jobs.messages.map(\.envelope.id) == [Mail.id(1)], "the outcome of message 3 is not message 2's")
}

@Test func damagedSmallFilesDoNotStopAStart() throws {
    let (disk, _) = try populated(3, stop: true)
    for name in ["identity", "incarnation", "registry"] {
        let size = try #require(disk.contents("data/\(name)")).count
        for offset in 0..<size {
            let copy = disk.reopened()
            copy.flip("data/\(name)", at: offset)
            let rig = try Rig(on: copy, seed: 2)
            #expect(rig.jobs.messages.count == 3, "\(name) flipped at \(offset)")
            if name != "incarnation" { #expect(!rig.spool.recovery.damage.isEmpty) }
        }
    }
}

@Test func flippedByteInAnOutcomeLogCostsAtMostThatOutcome() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...3 {
        let ref = try #require(rig.store(Mail(number, size: 700), sink))
        rig.record(ref, .delivered)
    }
    let first = try #require(sink.ref(1))
    let name = try rig.name(of: first)
    let path = "data/segments/\(name.outcomeFile)"
    let size = try #require(disk.contents(path)).count
    for offset in 0..<size {
        let copy = disk.reopened()
        copy.flip(path, at: offset)
        let again = try Rig(on: copy, seed: 2)
        #expect(again.jobs.messages.count <= 1, "flip at \(offset)")
    }
}

@Test func missingSegmentFileIsDamageNotEmptiness() throws {
    let (disk, path) = try populated(3, stop: true)
    disk.remove(path)
    let rig = try Rig(on: disk, seed: 2)
    #expect(rig.spool.recovery.damage.contains { $0.contains("has a key and no file") })
    #expect(rig.spool.stats.damagedSegments == 1)
}

@Test func storedFailureReportMakesItsSubjectFinalAfterACrash() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let mail = Mail(1, recipients: 3)
    rig.store(mail, sink)
    let subjects = [
        ReportSubject(message: mail.envelope.id, recipient: 0, kind: .failure),
        ReportSubject(message: mail.envelope.id, recipient: 1, kind: .delay),
        ReportSubject(message: mail.envelope.id, recipient: 2, kind: .success),
    ]
    rig.store(Mail(2, subjects: subjects), sink)
    // Killed here: the report is durable, its outcomes are not.
    let copy = disk.reopened()
    let again = try Rig(on: copy, seed: 2)
    let progress = try #require(again.jobs.message(mail.envelope.id)?.progress)
    #expect(progress.map(\.recipient) == [1])
    #expect(progress.first?.delayNoticeSent == true)
    let verdicts = again.jobs.outcomes.map(\.outcome.verdict)
    #expect(verdicts.contains(.bounced))
    #expect(verdicts.contains(.delivered))
    // Durable before it was handed over: another kill finds it without the report's help.
    let journal = copy.journal
    #expect(journal.contains { if case .sync = $0 { true } else { false } })
    let third = try Rig(on: copy.reopened(), seed: 3)
    #expect(third.jobs.message(mail.envelope.id)?.progress?.map(\.recipient) == [1])
}

@Test func eventsNotKnownToBeSyncedAreDerivedAgain() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let first = try #require(rig.store(Mail(1), sink))
    rig.events.add(1)
    rig.record(first, .delivered)
    rig.events.add(1)
    rig.store(Mail(2), sink)
    rig.events.add(1)
    rig.ticks(1)
    rig.events.sync()
    rig.ticks(1)
    let third = try #require(rig.store(Mail(3), sink))
    rig.record(third, .delivered)
    let again = try Rig(on: disk.reopened(), seed: 2)
    #expect(again.jobs.message(Mail.id(2))?.receptionRecorded == true)
    #expect(again.jobs.receptions.map(\.id) == [Mail.id(3)], "its Reception may be lost and it reaches no queue")
    #expect(again.jobs.outcomes.map(\.envelope.id) == [Mail.id(3)])
}

@Test func marksNeverClaimEventsThatAreNotSynced() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    rig.store(Mail(1), Sink())
    rig.events.add(1)
    // The event log never syncs: whatever the ticks, the Reception has to be derived again.
    rig.ticks(10)
    let again = try Rig(on: disk.reopened(), seed: 2)
    #expect(again.jobs.messages.first?.receptionRecorded == false)
}

@Test func recycledFileShowsNothingOfItsFormerLife() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let rig = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...60 {
        let ref = try #require(rig.store(Mail(number, size: 20_000), sink))
        rig.record(ref, .delivered)
    }
    rig.events.sync()
    rig.ticks(5)
    #expect(rig.spool.stats.segmentsReclaimed >= 4)
    // Segments made from spares now, each with one short chunk in front of old ones.
    for number in UInt64(100)...103 { rig.store(Mail(number, size: 500), sink) }
    let again = try Rig(on: disk.reopened(), seed: 2)
    let ids = Set(again.jobs.messages.map(\.envelope.id))
    #expect(ids == Set((UInt64(100)...103).map { Mail.id($0) }))
    #expect(again.spool.recovery.damage.isEmpty)
}

@Test func emptySegmentsOfEarlierStartsDisappear() throws {
    var disk = MemoryDisk(keepsJournal: false)
    for seed in UInt64(1)...6 {
        let rig = try Rig(on: disk, seed: seed)
        rig.ticks(3)
        #expect(rig.segmentFiles.count == 2, "the open one and the one ahead")
        disk = disk.reopened()
    }
}

@Test func fullDiskAtStartStillServesWhatIsQueued() throws {
    let (disk, _) = try populated(2, stop: true)
    disk.fail(DiskFault(call: "allocate", errno: ENOSPC, sticky: true))
    let rig = try Rig(on: disk, seed: 2)
    #expect(rig.jobs.messages.count == 2)
    guard case .refused(.diskFull) = rig.spool.admission else {
        Issue.record("mail is admitted without a segment")
        return
    }
    disk.clearFaults()
    rig.ticks(2)
    let sink = Sink()
    #expect(rig.store(Mail(10), sink) != nil)
}
