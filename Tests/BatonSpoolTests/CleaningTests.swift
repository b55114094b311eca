// Cleaning (PROTOCOL C2): a crash after every disk call, power cuts, void moves, and outcomes that arrive meanwhile.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

/// One segment of twelve messages, three of them alive, is cleaned while outcomes of those three come in.
///
/// Marks: `recipient * 100 + message` for a final outcome that is recorded, `done` once the cleaning is over.
private struct CleaningScenario {
    static let alive: [UInt64] = [1, 2, 3]
    static let others: [UInt64] = [13, 14]
    static let due = Instant(secondsSinceEpoch: 1_767_300_000)

    static var configuration: SpoolConfiguration {
        var configuration = Rig.small
        configuration.cleaningAge = .seconds(0)
        return configuration
    }

    static func mail(_ number: UInt64) -> Mail {
        switch number {
        case 1...3: Mail(number, size: 18_000, recipients: 3)
        case 13...: Mail(number, size: 3000)
        default: Mail(number, size: 18_000)
        }
    }

    let rig: Rig
    let sink = Sink()
    private let disk: MemoryDisk

    /// Everything up to the moment before the cleaning, all of it synced.
    init(on disk: MemoryDisk) throws {
        self.disk = disk
        rig = try Rig(on: disk, configuration: Self.configuration)
        for number in UInt64(1)...12 { rig.store(Self.mail(number), sink) }
        for number in UInt64(4)...12 { rig.record(try ref(number), .delivered) }
        rig.record(try ref(1), recipient: 0, .delivered)
        rig.record(try ref(1), recipient: 1, .deferred(until: Self.due))
        rig.record(try ref(1), recipient: 1, .delayNoticeSent)
        rig.record(try ref(2), recipient: 0, .delivered)
        rig.record(try ref(2), recipient: 1, .bounced)
        // Does not fit: a new segment is begun, the old one is sealed.
        rig.store(Mail(15, size: 100_000), sink)
        rig.record(try ref(15), .delivered)
        for number in Self.others { rig.store(Self.mail(number), sink) }
        rig.events.add(40)
        rig.events.sync()
        rig.ticks(3)
        rig.events.sync()
        rig.ticks(1)
        rig.time.advance(by: .seconds(120))
    }

    func ref(_ number: UInt64) throws -> StoredMessageRef { try #require(sink.ref(number)) }

    private func deliver(_ number: UInt64, _ recipient: UInt32) throws {
        rig.record(try ref(number), recipient: recipient, .delivered)
        disk.mark(Int(recipient) * 100 + Int(number))
    }

    /// The cleaning, with an outcome between each two of its steps.
    func clean() throws {
        let now = rig.time.now()
        // An event that is not synced holds the commit back for a while.
        rig.record(try ref(1), recipient: 1, .deferred(until: Self.due))
        rig.events.add(1)
        rig.spool.stepCleaning(at: now)
        // The copies are on their way and not written yet.
        rig.spool.record([rig.outcome(try ref(2), recipient: 2, .delivered)])
        rig.spool.drainOutcomes()
        disk.mark(202)
        rig.spool.pump()
        try deliver(3, 0)
        rig.ticks(1)
        // Landed, and not committed yet.
        try deliver(3, 1)
        rig.events.sync()
        rig.ticks(3)
        // It is over: outcomes under the old reference go to the new place.
        rig.record(try ref(1), recipient: 1, .deferred(until: Self.due + .minutes(5)))
        rig.ticks(2)
    }

    /// What a start must find: recipients by message that are not final for sure, and those that may be.
    struct Expected {
        /// Outcomes before the cleaning were synced; those during it count if all writes survived.
        static func live(_ marks: Set<Int>, strict: Bool) -> (must: [UInt64: Set<UInt32>], may: [UInt64: Set<UInt32>]) {
            let before: [UInt64: Set<UInt32>] = [1: [1, 2], 2: [2], 3: [0, 1, 2], 13: [0], 14: [0]]
            let after = Dictionary(
                uniqueKeysWithValues: before.map { number, recipients in
                    (number, recipients.filter { !marks.contains(Int($0) * 100 + Int(number)) })
                })
            return (after, strict ? after : before)
        }
    }

    /// Starts on the disk, compares, delivers everything, and starts again: nothing may come back.
    static func check(_ disk: MemoryDisk, marks: Set<Int>, strict: Bool, _ what: String) throws {
        let rig = try Rig(on: disk, configuration: configuration, seed: 4242)
        let damage = rig.spool.recovery.damage.filter { strict || !$0.hasPrefix("outcome log of") }
        #expect(damage.isEmpty, "\(what): \(damage)")
        compare(rig, marks: marks, strict: strict, what)
        // Killed at once and started again: the decision is the same.
        let second = try Rig(on: disk.reopened(), configuration: configuration, seed: 4243)
        compare(second, marks: marks, strict: strict, "\(what), second start")
        for message in second.jobs.messages {
            for progress in message.progress ?? [] {
                second.record(message.ref, recipient: progress.recipient, .delivered)
            }
        }
        second.events.add(20)
        for _ in 0..<4 {
            second.events.sync()
            second.ticks(1)
        }
        guard let copy = second.disk as? MemoryDisk else { return }
        #expect(second.segmentFiles.count <= 2, "\(what): \(second.segmentFiles) left when all is delivered")
        let third = try Rig(on: copy.reopened(), configuration: configuration, seed: 4244)
        #expect(third.jobs.messages.isEmpty, "\(what): delivered mail came back")
        #expect(third.spool.recovery.damage.isEmpty, "\(what): \(third.spool.recovery.damage)")
    }

    private static func compare(_ rig: Rig, marks: Set<Int>, strict: Bool, _ what: String) {
        let (must, may) = Expected.live(marks, strict: strict)
        for number in alive + others {
            let found = rig.jobs.messages.filter { $0.envelope.id == Mail.id(number) }
            #expect(found.count <= 1, "\(what): message \(number) stands \(found.count) times")
            let live = Set((found.first?.progress ?? []).map(\.recipient))
            let (least, most) = (must[number] ?? [], may[number] ?? [])
            #expect(live.isSuperset(of: least), "\(what): message \(number) lost \(least.subtracting(live))")
            #expect(live.isSubset(of: most), "\(what): message \(number) doubled \(live.subtracting(most))")
            if let message = found.first {
                #expect(rig.read(message.ref)?.bytes == mail(number).body, "\(what): message \(number) altered")
            }
            if number == 1, let deferred = found.first?.progress?.first(where: { $0.recipient == 1 }) {
                let dues = [due, due + .minutes(5)]
                #expect(dues.contains(deferred.due), "\(what): the due time is lost")
                #expect(deferred.delayNoticeSent, "\(what): the delay notice would be sent twice")
            }
        }
        let known = Set((alive + others).map { Mail.id($0) })
        #expect(rig.jobs.messages.allSatisfy { known.contains($0.envelope.id) }, "\(what): finished mail came back")
    }

    static func marks(_ journal: [DiskOperation]) -> Set<Int> {
        Set(journal.compactMap { if case .mark(let value) = $0 { value } else { nil } })
    }
}

@Test func cleaningGivesTheSpaceBackAndKeepsEveryReference() throws {
    let disk = MemoryDisk(keepsJournal: false)
    let scenario = try CleaningScenario(on: disk)
    let rig = scenario.rig
    let source = try rig.name(of: try scenario.ref(1))
    try scenario.clean()
    #expect(rig.spool.stats.segmentsCleaned == 1)
    #expect(!rig.segmentFiles.contains(source.segmentFile), "the source's file is still there")
    #expect(try rig.spool.registry.read(source.id) == nil, "the source's key is still there")
    for number in CleaningScenario.alive where number != 2 {
        #expect(rig.read(try scenario.ref(number))?.bytes == CleaningScenario.mail(number).body)
    }
    #expect(rig.spool.stats.liveRecipients == 2 + 1 + 2, "1 and 3 in the new place, 13 and 14")
    // The last outcomes under the old references: nothing is left of the messages, and their new place goes too.
    for recipient in UInt32(1)...2 { rig.record(try scenario.ref(1), recipient: recipient, .delivered) }
    rig.record(try scenario.ref(3), recipient: 2, .delivered)
    #expect(rig.spool.stats.liveRecipients == 2)
}

@Test func crashAfterAnyCallOfACleaningLosesAndDoublesNothing() throws {
    let probe = MemoryDisk()
    let whole = try CleaningScenario(on: probe)
    let first = probe.calls
    try whole.clean()
    #expect(whole.rig.spool.stats.segmentsCleaned == 1)
    let calls = probe.calls - first
    #expect(calls > 40)
    for after in stride(from: 0, through: calls, by: fullDepth ? 1 : 3) {
        let disk = MemoryDisk()
        let scenario = try CleaningScenario(on: disk)
        disk.crash(afterCalls: after)
        try scenario.clean()
        let journal = disk.journal
        let marks = CleaningScenario.marks(journal)
        try CleaningScenario.check(disk.reopened(), marks: marks, strict: true, "kill after call \(after)")
        for seed in UInt64(0)..<(fullDepth ? 8 : 2) {
            let image = DiskImage.afterPowerLoss(journal, cut: journal.count, seed: seed &* 7919 &+ UInt64(after))
            try CleaningScenario.check(image, marks: marks, strict: false, "power cut \(seed) after call \(after)")
        }
    }
}

@Test func takeoverBetweenCopyAndCommitMakesTheCopiesVoid() throws {
    let disk = MemoryDisk()
    let scenario = try CleaningScenario(on: disk)
    let rig = scenario.rig
    let source = try rig.name(of: try scenario.ref(1)).id
    rig.spool.stepCleaning(at: rig.time.now())
    let key = try #require(try rig.spool.registry.read(source))
    #expect(key.target != nil, "the target has to be named before anything is copied")
    rig.spool.pump()
    // Somebody else takes the source over.
    var taken = key
    taken.drainEpoch += 1
    guard case .committed = try rig.spool.registry.store(taken) else {
        Issue.record("the epoch did not rise")
        return
    }
    rig.events.sync()
    rig.ticks(4)
    #expect(rig.spool.stats.segmentsCleaned == 0)
    #expect(try rig.spool.registry.read(source)?.state != .finished, "finished against a higher epoch")
    #expect(rig.spool.stats.liveRecipients == 2 + 1 + 3 + 2, "the copies are dead, their sources alive")
    try CleaningScenario.check(disk.reopened(), marks: [], strict: true, "void by a takeover")
}

@Test func copyThatFindsNoRoomMakesTheMoveVoid() throws {
    let disk = MemoryDisk()
    let scenario = try CleaningScenario(on: disk)
    let rig = scenario.rig
    rig.spool.stepCleaning(at: rig.time.now())
    // One chunk with all copies is refused; the mail behind it is not.
    disk.fail(DiskFault(call: "write", errno: ENOSPC))
    rig.spool.pump()
    rig.events.sync()
    rig.ticks(3)
    #expect(rig.spool.stats.segmentsCleaned == 0)
    #expect(rig.spool.stats.liveRecipients == 8)
    try CleaningScenario.check(disk.reopened(), marks: [], strict: true, "void by a full disk")
    // A minute later it is tried again.
    rig.time.advance(by: .seconds(70))
    rig.ticks(1)
    rig.events.sync()
    rig.ticks(4)
    #expect(rig.spool.stats.segmentsCleaned == 1)
    try CleaningScenario.check(disk.reopened(), marks: [], strict: true, "cleaned at the second try")
}

@Test func voidCopiesStayVoidWhenTheirSourceIsGone() throws {
    let disk = MemoryDisk()
    let scenario = try CleaningScenario(on: disk)
    let rig = scenario.rig
    rig.spool.stepCleaning(at: rig.time.now())
    rig.spool.pump()
    // The process dies with the copies written; the next one takes the source over and finishes it by delivering.
    try CleaningScenario.check(disk.reopened(), marks: [], strict: true, "killed with the copies written")
    // The same without a second kill in between.
    let full = disk.reopened()
    let again = try Rig(on: full, configuration: CleaningScenario.configuration, seed: 99)
    for message in again.jobs.messages {
        for progress in message.progress ?? [] { again.record(message.ref, recipient: progress.recipient, .delivered) }
    }
    again.events.add(20)
    for _ in 0..<4 {
        again.events.sync()
        again.ticks(1)
    }
    let last = try Rig(on: full.reopened(), configuration: CleaningScenario.configuration, seed: 100)
    #expect(last.jobs.messages.isEmpty, "void copies came back")
}

@Test func targetThatCannotSayVoidKeepsItsSource() throws {
    let disk = MemoryDisk()
    let scenario = try CleaningScenario(on: disk)
    let rig = scenario.rig
    let source = try rig.name(of: try scenario.ref(1))
    rig.spool.stepCleaning(at: rig.time.now())
    let key = try #require(try rig.spool.registry.read(source.id))
    rig.spool.pump()
    var taken = key
    taken.drainEpoch += 1
    _ = try rig.spool.registry.store(taken)
    // From here on no outcome log takes a byte.
    for handle in rig.spool.ledger.progress().map(\.handle) {
        let name = try #require(rig.spool.ledger.name(of: handle))
        if name.id == key.target { rig.spool.outcomes.withLock { $0.logs[handle]?.fail() } }
    }
    for number in UInt64(1)...3 {
        for recipient in UInt32(0)...2 { rig.record(try scenario.ref(number), recipient: recipient, .delivered) }
    }
    rig.events.sync()
    rig.ticks(6)
    #expect(rig.segmentFiles.contains(source.segmentFile), "the source went before its target said void")
    let again = try Rig(on: disk.reopened(), configuration: CleaningScenario.configuration, seed: 5)
    let ids = again.jobs.messages.map(\.envelope.id)
    #expect(!ids.contains(Mail.id(1)) && !ids.contains(Mail.id(3)), "void copies came back: \(ids)")
}

@Test func messageThatIsMovedTwiceKeepsItsFirstOutcomes() throws {
    let disk = MemoryDisk()
    let scenario = try CleaningScenario(on: disk)
    let rig = scenario.rig
    try scenario.clean()
    #expect(rig.spool.stats.segmentsCleaned == 1)
    let first = try #require(rig.spool.ledger.location(of: try scenario.ref(1)))
    // The new place is filled, sealed and emptied but for the moved ones.
    for number in UInt64(20)...31 { rig.store(Mail(number, size: 18_000), scenario.sink) }
    for number in CleaningScenario.others { rig.record(try scenario.ref(number), .delivered) }
    for number in UInt64(20)...31 { rig.record(try scenario.ref(number), .delivered) }
    rig.record(try scenario.ref(3), recipient: 2, .deferred(until: CleaningScenario.due))
    for _ in 0..<3 {
        rig.events.add(20)
        rig.events.sync()
        rig.ticks(1)
    }
    for _ in 0..<4 {
        rig.time.advance(by: .seconds(70))
        rig.ticks(2)
        rig.events.sync()
        rig.ticks(3)
    }
    #expect(rig.spool.stats.segmentsCleaned >= 2)
    let second = try #require(rig.spool.ledger.location(of: try scenario.ref(1)))
    #expect(second.segment != first.segment, "it was not moved again")
    #expect(rig.read(try scenario.ref(1))?.bytes == CleaningScenario.mail(1).body)
    let again = try Rig(on: disk.reopened(), configuration: CleaningScenario.configuration, seed: 7)
    let one = try #require(again.jobs.message(Mail.id(1)))
    #expect(one.progress?.map(\.recipient) == [1, 2], "recipient 0 had its copy before the first move")
    #expect(one.progress?.first?.due == CleaningScenario.due + .minutes(5))
    #expect(one.progress?.first?.delayNoticeSent == true)
    let three = try #require(again.jobs.message(Mail.id(3)))
    #expect(three.progress?.map(\.recipient) == [2])
    #expect(Set(again.jobs.messages.map(\.envelope.id)).count == again.jobs.messages.count)
}

@Test func eventsThatAreNotSyncedKeepTheSource() throws {
    let disk = MemoryDisk()
    let scenario = try CleaningScenario(on: disk)
    let rig = scenario.rig
    // An outcome that only the source's log holds, its event not synced yet.
    rig.record(try scenario.ref(2), recipient: 2, .delivered)
    rig.events.add(1)
    rig.ticks(6)
    #expect(rig.spool.stats.segmentsCleaned == 0, "a crash now would lose the event")
    let again = try Rig(on: disk.reopened(), configuration: CleaningScenario.configuration, seed: 3)
    #expect(again.jobs.outcomes.contains { $0.envelope.id == Mail.id(2) && $0.outcome.job.recipient == 2 })
    rig.events.sync()
    rig.ticks(4)
    #expect(rig.spool.stats.segmentsCleaned == 1)
}

@Test func startThatCannotSayVoidKeepsTheSource() throws {
    let disk = MemoryDisk()
    let scenario = try CleaningScenario(on: disk)
    scenario.rig.spool.stepCleaning(at: scenario.rig.time.now())
    scenario.rig.spool.pump()
    var tried = 0
    for (writes, errno) in (0..<12).flatMap({ [($0, ENOSPC), ($0, EIO)] }) {
        let full = disk.reopened()
        full.fail(DiskFault(call: "write", errno: errno, after: writes, sticky: errno == ENOSPC))
        guard let again = try? Rig(on: full, configuration: CleaningScenario.configuration, seed: 9) else { continue }
        tried += 1
        full.clearFaults()
        for message in again.jobs.messages {
            for progress in message.progress ?? [] {
                again.record(message.ref, recipient: progress.recipient, .delivered)
            }
        }
        again.events.add(20)
        for _ in 0..<5 {
            again.events.sync()
            again.ticks(1)
        }
        let last = try Rig(on: full.reopened(), configuration: CleaningScenario.configuration, seed: 10)
        // Of a log that failed the outcomes are lost, which is told; the copies must not count.
        let back = last.jobs.messages.filter { message in
            CleaningScenario.alive.contains { Mail.id($0) == message.envelope.id }
        }
        #expect(back.isEmpty, "void copies came back after a start with errno \(errno) at write \(writes)")
    }
    #expect(tried > 0)
}
