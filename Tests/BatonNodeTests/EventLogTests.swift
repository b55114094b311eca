// The event log: nothing dropped, nothing called synced that is not, bounded files.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Foundation
import Glibc
import Logging
import Synchronization
import Testing

@testable import BatonNode

private let start = Instant(secondsSinceEpoch: 1_767_225_600)

private func writer(
    _ disk: any Disk, at now: Instant = start, _ change: (inout EventSettings) -> Void = { _ in }
) throws -> EventWriter {
    var settings = EventSettings()
    change(&settings)
    return try EventWriter(
        directory: "data/events", disk: disk, settings: settings, nodeID: "n1", now: now, logger: Logger(label: "test"))
}

private func memoryDisk() throws -> MemoryDisk {
    let disk = MemoryDisk()
    try disk.makeDirectory("data")
    try disk.syncDirectory(".")
    return disk
}

private func events(_ range: Range<UInt64>) -> EventLog.Item {
    .events(range.map { sampleEvent(.reception, sampleEnvelope($0)) })
}

private func ids(_ range: Range<UInt64>) -> Set<String> {
    Set(range.map { sampleEvent(.reception, sampleEnvelope($0)).eventID.description })
}

/// Whole lines of all files, in order of their names.
private func lines(_ disk: MemoryDisk) -> [String] {
    disk.paths.filter { $0.hasSuffix(".jsonl") }.flatMap { path in
        String(decoding: disk.contents(path) ?? [], as: UTF8.self).split(separator: "\n").map(String.init)
    }
}

private func eventIDs(_ disk: MemoryDisk) -> [String] {
    lines(disk).compactMap { line in
        let object = try? JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
        return object?["event_id"] as? String
    }
}

@Test func eventCalledSyncedBeforeItsSync() throws {
    let disk = try memoryDisk()
    var log = try writer(disk)
    log.take([events(0..<3)])
    #expect(log.turn(at: start + .milliseconds(100), force: false) == 0)
    #expect(log.turn(at: start + .milliseconds(499), force: false) == 0)
    #expect(!log.isClean)
    #expect(log.turn(at: start + .milliseconds(500), force: false) == 3)
    #expect(log.isClean)
    #expect(Set(eventIDs(disk)) == ids(0..<3))
    log.take([events(3..<4)])
    #expect(log.turn(at: start + .milliseconds(501), force: true) == 4)
    let kinds = disk.journal.suffix(2).map { operation in
        switch operation {
        case .write: "write"
        case .sync: "sync"
        default: "other"
        }
    }
    #expect(kinds == ["write", "sync"])
}

@Test func fullDiskDropsEvents() throws {
    let disk = try memoryDisk()
    var log = try writer(disk)
    log.take([events(0..<2)])
    #expect(log.turn(at: start, force: true) == 2)
    disk.fail(DiskFault(call: "write", errno: ENOSPC, sticky: true))
    log.take([events(2..<5)])
    for second in 1...50 {
        log.take([events(UInt64(4 + second)..<UInt64(5 + second))])
        #expect(log.turn(at: start + .seconds(Int64(second * 2)), force: false) == 2)
        #expect(log.isFull)
    }
    // One file with what was synced, one to be tried again: not one for each try.
    #expect(disk.paths.filter { $0.hasSuffix(".jsonl") }.count == 2)
    disk.clearFaults()
    #expect(log.turn(at: start + .seconds(200), force: false) == 55)
    #expect(!log.isFull)
    #expect(Set(eventIDs(disk)) == ids(0..<55))
}

@Test(arguments: ["write", "sync", "open", "syncDirectory"])
func oneDiskErrorLosesEvents(call: String) throws {
    for after in 0..<4 {
        let disk = try memoryDisk()
        var log = try writer(disk) { $0.fileAge = .seconds(2) }
        disk.fail(DiskFault(call: call, errno: EIO, after: after))
        var synced: UInt64 = 0
        for round in UInt64(0)..<10 {
            log.take([events(round * 2..<round * 2 + 2)])
            let now = log.turn(at: start + .seconds(Int64(round) * 2 + 2), force: false)
            #expect(now >= synced)
            synced = now
            // What is called synced stands in a file, whatever failed.
            #expect(Set(eventIDs(disk)).isSuperset(of: ids(0..<synced)))
        }
        #expect(synced == 20 && !log.isFull)
        #expect(Set(eventIDs(disk)) == ids(0..<20))
    }
}

@Test func powerLossTakesSyncedEvents() throws {
    let disk = try memoryDisk()
    var log = try writer(disk) {
        $0.fileSize = 4096
        $0.writeSize = 512
    }
    var random = SplitMix64(seed: 0x5eed_000b)
    var made: UInt64 = 0
    for round in 0..<60 {
        let more = random.next() % 5
        log.take([events(made..<made + more)])
        made += more
        let synced = log.turn(
            at: start + .milliseconds(Int64(round) * 200), force: random.next() % 7 == 0)
        disk.mark(Int(synced))
    }
    let journal = disk.journal
    var promised = 0
    for cut in journal.indices {
        if case .mark(let synced) = journal[cut] { promised = synced }
        for seed in UInt64(0)..<2 {
            let after = DiskImage.afterPowerLoss(journal, cut: cut + 1, seed: seed)
            let found = Set(eventIDs(after))
            #expect(found.isSuperset(of: ids(0..<UInt64(promised))), "cut \(cut), seed \(seed)")
        }
    }
    #expect(promised > 50)
}

@Test func eventFilesGrowForEver() throws {
    let disk = try memoryDisk()
    var log = try writer(disk) {
        $0.fileSize = 2000
        $0.retention = .hours(2)
        $0.fileAge = .minutes(10)
    }
    var now = start
    for round in UInt64(0)..<200 {
        log.take([events(round..<round + 1)])
        now = now + .minutes(5)
        _ = log.turn(at: now, force: false)
    }
    let left = disk.paths.filter { $0.hasSuffix(".jsonl") }
    // Two hours of files of at most ten minutes, the current one, and the one that began before the two hours.
    #expect(left.count >= 12 && left.count <= 27)
    #expect(Set(eventIDs(disk)).isSuperset(of: ids(177..<200)))
    #expect(!eventIDs(disk).contains { ids(0..<150).contains($0) })
}

@Test func eventDirectoryOverItsSize() throws {
    let disk = try memoryDisk()
    var log = try writer(disk) {
        $0.fileSize = 2000
        $0.maxSize = 20_000
    }
    for round in UInt64(0)..<300 {
        log.take([events(round..<round + 1)])
        _ = log.turn(at: start + .minutes(Int64(round) * 2), force: true)
    }
    #expect(disk.bytes(under: "data/events") <= 24_000)
    #expect(Set(eventIDs(disk)).isSuperset(of: ids(290..<300)))
}

@Test func twoFilesOfOneSecondOutOfOrder() {
    #expect(EventFileName.precedes("20261124T003000Z-9.jsonl", "20261124T003000Z-10.jsonl"))
    #expect(EventFileName.precedes("20261124T003000Z-10.jsonl", "20261124T003001Z-1.jsonl"))
    #expect(!EventFileName.precedes("20261124T003000Z-9.jsonl", "20261124T003000Z-9.jsonl"))
}

/// Runs `body` with a log on a thread of its own.
private func withLog(
    _ disk: MemoryDisk, _ change: (inout EventSettings) -> Void = { _ in }, _ body: (EventLog) throws -> Void
) throws {
    var settings = EventSettings()
    settings.gatherInterval = .zero
    settings.syncInterval = .milliseconds(20)
    change(&settings)
    let log = try EventLog.open(
        directory: "data/events", disk: disk, configuration: settings, nodeID: "n1", time: SystemTimeSource(),
        logger: Logger(label: "test"))
    defer { log.stop() }
    try body(log)
}

@Test func eventsOfSeveralThreadsAreLost() throws {
    let disk = try memoryDisk()
    try withLog(disk) { log in
        let threads = (0..<4).map { number in
            DedicatedThread(name: "recorder") {
                for round in UInt64(0)..<100 {
                    log.record([sampleEvent(.reception, sampleEnvelope(UInt64(number) * 100 + round))])
                }
            }
        }
        for thread in threads { thread.join() }
        #expect(log.recorded == 400)
        log.stop()
        #expect(log.synced == 400 && !log.isFull)
    }
    #expect(Set(eventIDs(disk)) == ids(0..<400))
    #expect(eventIDs(disk).count == 400)
}

@Test func waitingEventsOverTheirBoundLeaveAdmissionOpen() throws {
    let disk = try memoryDisk()
    let settled = Mutex(false)
    try withLog(disk, { $0.waitingEvents = 10 }) { log in
        disk.fail(DiskFault(call: "sync", errno: EIO, sticky: true))
        log.record((0..<11).map { sampleEvent(.reception, sampleEnvelope($0)) })
        // Over the bound at once: nothing can be synced.
        #expect(log.isFull)
        // Refusals are counted and not kept then; events are kept.
        let before = log.recorded
        log.record(rejections: [
            RejectionEvent(at: .epoch, sender: [], recipient: [], client: [], sessionID: 1, reply: settlerlessReply)
        ])
        #expect(log.recorded == before)
        log.record([sampleEvent(.reception, sampleEnvelope(11))])
        #expect(log.recorded == before + 1)
        disk.clearFaults()
        log.stop()
        settled.withLock { $0 = log.synced == 12 }
    }
    #expect(settled.withLock { $0 })
    #expect(Set(eventIDs(disk)) == ids(0..<12))
}

private let settlerlessReply = SMTPReply(code: 554, status: nil, text: [], stage: .rcpt)

@Test func eventRecordedAgainAfterAKillIsANewOne() throws {
    let disk = try memoryDisk()
    var first = try writer(disk)
    first.take([events(0..<4)])
    _ = first.turn(at: start, force: true)
    // Killed with a line half written.
    first.take([events(4..<6)])
    disk.fail(DiskFault(call: "sync", errno: EIO, sticky: true))
    _ = first.turn(at: start + .seconds(1), force: true)
    let after = disk.reopened()
    var second = try writer(after, at: start + .seconds(2))
    second.take([events(2..<8)])
    #expect(second.turn(at: start + .seconds(3), force: true) == 6)
    #expect(Set(eventIDs(after)) == ids(0..<8))
}

@Test func messageNotFoundInItsEvents() async throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("events-\(UUID().uuidString)")
    defer { try? FileManager.default.removeItem(at: folder) }
    var writer = try EventWriter(
        directory: folder.path, disk: LinuxDisk(), settings: EventSettings(), nodeID: "n1", now: start,
        logger: Logger(label: "test"))
    let mine = sampleEnvelope(1, messageID: Array("<mine@example.org>".utf8), recipients: 2)
    writer.take([
        events(5..<50),
        .events([
            sampleEvent(.reception, mine), sampleEvent(.reception, mine, recipient: 1), sampleEvent(.delivery, mine),
            sampleEvent(.bounce, mine, recipient: 1),
        ]), events(50..<90),
    ])
    #expect(writer.turn(at: start, force: true) == 89)
    let search = EventSearch(directory: folder.path, workers: WorkerPool(name: "search", threads: 1, capacity: 4))
    let found = try await search.events(of: mine.id)
    #expect(found.map(\.type) == ["Reception", "Reception", "Delivery", "Bounce"])
    #expect(
        try await search.messages(matching: .messageID("mine@example.org"), limit: 10, before: nil).ids == [mine.id])
    #expect(
        try await search.messages(matching: .recipient("user1@example.com"), limit: 10, before: nil).ids == [mine.id])
    let all = try await search.messages(matching: .sender("sender@example.org"), limit: 20, before: nil)
    #expect(all.ids.count == 20)
    #expect(try await search.events(of: sampleEnvelope(1000).id).isEmpty)
}
