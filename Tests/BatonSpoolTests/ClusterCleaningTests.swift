// Cleaning in a cluster on two disks: space comes back on both, and whoever takes source and target over has every message once.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

/// A node that writes and cleans, and its backup. The keys' changes are made by hand, in the order of `TakeoverState`.
private final class CleaningPair {
    static let alive: [UInt64] = [1, 2, 3]
    static let due = Instant(secondsSinceEpoch: 1_900_000_000)

    let time = SimulatedTime()
    let registry = SharedRegistry()
    let writer: ClusterRig
    let taker: ClusterRig
    let backup: WiredBackup
    let sink = Sink()
    var source: SegmentID
    var target: SegmentID

    /// Twelve messages in a sealed segment, three of them alive, known to both; and an open one with mail.
    init() throws {
        taker = try ClusterRig("n2", on: MemoryDisk(), registry: registry, time: time, seed: 2)
        backup = WiredBackup(taker.copies, taker.member)
        writer = try ClusterRig("n1", on: MemoryDisk(), registry: registry, time: time, seed: 1, backup: backup)
        source = SegmentID(writer: writer.directory.identity.node, incarnation: Incarnation(value: 0), index: 0)
        target = source
        let spool = writer.spool
        backup.state.withLock { $0.receiver = spool }
        for number in UInt64(1)...12 { store(Mail(number, size: 18_000, recipients: number <= 3 ? 3 : 1)) }
        source = try #require(spool.segment(of: try ref(1).segment))
        for number in UInt64(4)...12 { record(number, 0, .delivered) }
        record(1, 0, .delivered)
        record(1, 1, .deferred(until: Self.due))
        record(1, 1, .delayNoticeSent)
        record(2, 0, .delivered)
        record(2, 1, .bounced)
        // A new segment is begun, the old one is sealed.
        time.advance(by: .minutes(5 * 60))
        store(Mail(20, size: 60_000))
        target = try #require(spool.segment(of: try ref(20).segment))
        settle()
        stream(source)
    }

    func ref(_ number: UInt64) throws -> StoredMessageRef { try #require(sink.ref(number)) }

    func store(_ mail: Mail) {
        writer.spool.submit([mail.submission(token: mail.number, sink: sink)])
        pump()
    }

    func pump() {
        writer.spool.pump()
        taker.copies.pump()
        writer.spool.pump()
    }

    func record(_ number: UInt64, _ recipient: UInt32, _ verdict: OutcomeVerdict) {
        guard let ref = sink.ref(number) else { return }
        writer.spool.record([
            Outcome(
                job: JobRef(message: ref, recipient: recipient), at: time.now(), verdict: verdict, attempts: 1,
                reply: nil, peer: nil, report: nil)
        ])
        writer.spool.pump()
    }

    /// Events and outcomes are synced.
    func settle() {
        for _ in 0..<4 {
            writer.events.sync()
            writer.ticks(1)
            taker.copies.pump()
        }
    }

    /// What the writer's log says is on the backup's disk.
    func stream(_ id: SegmentID) {
        guard let octets = writer.disk.inner.contents(writer.path(SegmentName(id).outcomeFile)) else { return }
        taker.copies.recordOutcomes(id, epoch: 1, from: 0, ByteBuffer(bytes: octets)) { _ in }
        taker.copies.pump()
    }

    // MARK: Steps of a cleaning

    func edit(_ id: SegmentID, _ change: (inout SegmentKey) -> Void) throws -> SegmentKey {
        var key = try #require(try registry.read(id))
        change(&key)
        guard case .committed(let stored?) = try registry.store(key) else { throw Missing() }
        return stored
    }

    func name() throws -> SegmentKey {
        let target = target
        return try edit(source) { $0.target = target }
    }

    func finish() throws {
        _ = try edit(source) { key in
            key.finishedEpoch = key.drainEpoch
            key.state = .finished
        }
    }

    func decide(alive: Bool = true) -> Int64? {
        writer.spool.settleMove(of: source, epoch: 1, into: target, alive: alive)
    }

    /// One step after the other, as far as asked.
    func clean(through last: Int) throws {
        guard last >= 1 else { return }
        let key = try name()
        guard last >= 2 else { return }
        #expect(writer.spool.move(key))
        if last == 2 {
            // The copies stand here, and on the backup without its answer.
            writer.spool.pump()
            taker.copies.pump()
            return
        }
        pump()
        writer.ticks(1)
        let moved = try #require(writer.news.state.withLock { $0.moved }.last)
        #expect(moved.id == source && moved.epoch == 1 && moved.landed)
        guard last >= 4 else { return }
        try finish()
        guard last >= 5 else { return }
        #expect(decide() != nil)
        guard last >= 6 else { return }
        writer.ticks(1)
        stream(target)
        guard last >= 7 else { return }
        _ = try edit(source) { $0.target = nil }
        guard last >= 8 else { return }
        #expect(writer.spool.release(source))
        unlinkBackup(source)
        _ = try registry.remove(try #require(try registry.read(source)))
    }

    func unlinkBackup(_ id: SegmentID) {
        taker.copies.unlink(id) { #expect($0) }
        taker.copies.pump()
    }

    // MARK: Takers

    /// What the cluster does with a segment of the dead writer, up to the adoption.
    func takeOver(_ id: SegmentID, others: [ByteBuffer] = []) throws {
        guard let key = try registry.read(id), key.state != .finished else { return }
        guard case .sealed(let report)? = taker.seal(id, epoch: key.drainEpoch + 1) else { throw Missing() }
        var end = report.end
        if case .sealed(let length) = key.state { end = length }
        let taken = try #require(registry.take(id, for: taker.drainer, sealedAt: end))
        _ = try taker.spool.adopt(Adoption(key: taken, others: others, eventsMayBeLost: true))
    }

    /// Recipients by message that the taker's queue has, each as often as it has it.
    func handedOver() -> [UInt64: [UInt32]] {
        var found: [UInt64: [UInt32]] = [:]
        for message in taker.jobs.messages {
            let live = message.progress?.map(\.recipient) ?? Array(0..<UInt32(message.envelope.recipients.count))
            found[message.envelope.id.low, default: []] += live
        }
        return found
    }

    static let expected: [UInt64: [UInt32]] = [1: [1, 2], 2: [2], 3: [0, 1, 2], 20: [0]]
}

@Test func cleaningInAClusterGivesTheSpaceBackOnBothDisks() throws {
    let pair = try CleaningPair()
    let (writer, taker) = (pair.writer, pair.taker)
    writer.ticks(1)
    let offer = try #require(writer.news.state.withLock { $0.offers }.last)
    #expect(offer.ids == [pair.source] && offer.target == pair.target)
    try pair.clean(through: 8)
    for rig in [writer, taker] {
        let files = try rig.disk.inner.list(rig.directory.segmentsPath)
        #expect(!files.contains { $0.hasPrefix("\(SegmentName(pair.source))") }, "the source's files are still there")
    }
    #expect(writer.spool.stats.segmentsCleaned == 1)
    #expect(writer.news.drained.isEmpty)
    // Old references lead to the copies: bodies, and outcomes to the new place.
    for number in CleaningPair.alive {
        let reads = Reads()
        writer.spool.read([BodyRead(ref: try pair.ref(number), part: .message, token: 1)], for: reads)
        writer.spool.pump()
        #expect(reads.results.withLock { $0[1] }?.bytes == Mail(number, size: 18_000).body)
    }
    pair.record(1, 1, .delivered)
    pair.settle()
    pair.stream(pair.target)
    try pair.takeOver(pair.target)
    #expect(pair.handedOver() == [1: [2], 2: [2], 3: [0, 1, 2], 20: [0]])
}

@Test(arguments: 0...8, [false, true])
func cleanerDiesAfterAnyStepAndItsTakerHasEachMessageOnce(_ step: Int, _ targetFirst: Bool) throws {
    let pair = try CleaningPair()
    try pair.clean(through: step)
    let order = targetFirst ? [pair.target, pair.source] : [pair.source, pair.target]
    for id in order { try pair.takeOver(id) }
    #expect(pair.handedOver() == CleaningPair.expected, "after step \(step)")
    let deferred = pair.taker.jobs.message(Mail.id(1))?.progress?.first { $0.recipient == 1 }
    #expect(
        deferred?.due == CleaningPair.due && deferred?.delayNoticeSent == true, "what was known before the move is lost"
    )
    for message in pair.taker.jobs.messages where CleaningPair.alive.contains(message.envelope.id.low) {
        let reads = Reads()
        pair.taker.spool.read([BodyRead(ref: message.ref, part: .message, token: 1)], for: reads)
        pair.taker.spool.pump()
        #expect(reads.results.withLock { $0[1] }?.bytes == Mail(message.envelope.id.low, size: 18_000).body)
    }
    if step >= 2 {
        // For the next taker, when the source's key is gone.
        let files = SegmentFiles(
            disk: pair.taker.disk, directory: pair.taker.directory.segmentsPath, name: SegmentName(pair.target))
        pair.taker.ticks(1)
        #expect(try files.union(with: []).decisions == [MoveName(source: pair.source, epoch: 1): step >= 4])
    }
    if let key = try pair.registry.read(pair.source), key.state != .finished, step >= 2, targetFirst {
        #expect(key.targetVoid, "the taker left the move open, and decided without the key")
    }
}

@Test func takerOfTheTargetVoidsAnOpenMoveAndTheCommitIsRefused() throws {
    let pair = try CleaningPair()
    try pair.clean(through: 3)
    let before = try #require(try pair.registry.read(pair.source))
    try pair.takeOver(pair.target)
    #expect(pair.handedOver() == [20: [0]])
    // The cleaner, cut off until now, tries to commit on what it knew.
    var finish = before
    finish.state = .finished
    finish.finishedEpoch = 1
    if case .committed = try pair.registry.store(finish) { Issue.record("committed, and void already") }
    #expect(try pair.registry.read(pair.source)?.targetVoid == true)
}

@Test(arguments: [true, false]) func answerToTheTakersVoidIsLost(_ lands: Bool) throws {
    let pair = try CleaningPair()
    try pair.clean(through: 3)
    pair.registry.state.withLock {
        $0.refuses = !lands; $0.losesAnswer = lands
    }
    #expect(throws: SpoolError.self) { try pair.takeOver(pair.target) }
    #expect(pair.handedOver().isEmpty, "handed over without a decision")
    pair.registry.state.withLock { $0.refuses = false }
    // Tried again at the same epoch, as the cluster does.
    let key = try #require(try pair.registry.read(pair.target))
    _ = try pair.taker.spool.adopt(Adoption(key: key, others: [], eventsMayBeLost: true))
    try pair.takeOver(pair.source)
    #expect(pair.handedOver() == CleaningPair.expected)
}

@Test func decisionOutlivesTheSourcesKeyFromTakerToTaker() throws {
    let pair = try CleaningPair()
    try pair.clean(through: 3)
    _ = try pair.edit(pair.source) { $0.targetVoid = true }
    #expect(pair.decide(alive: false) != nil)
    pair.writer.ticks(1)
    pair.stream(pair.target)
    // Later the source drains itself, and all of it goes.
    _ = try pair.registry.remove(try #require(try pair.registry.read(pair.source)))
    pair.unlinkBackup(pair.source)
    try pair.takeOver(pair.target)
    #expect(pair.handedOver() == [20: [0]], "void copies came back to life")
    let octets = Mutex<ByteBuffer?>(nil)
    pair.taker.copies.read(pair.target, .outcomeEntries, from: 0, atMost: 1 << 20) { read in
        if case .octets(let bytes, _) = read { octets.withLock { $0 = bytes } }
    }
    pair.taker.copies.pump()
    // A third node gets the chunks, and knows the outcomes from what the second one reports.
    let files = SegmentFiles(
        disk: MemoryDisk(), directory: "nowhere", name: SegmentName(pair.target))
    let entries = files.decode(try #require(octets.withLock { $0 }))
    let void = entries.contains { entry in
        if case .heldDecision(pair.source, 1, false) = entry { true } else { false }
    }
    #expect(void, "the next taker does not hear of it")
}

@Test func sourceThatIsGoneWithoutADecisionMakesItsCopiesCount() throws {
    let pair = try CleaningPair()
    try pair.clean(through: 3)
    _ = try pair.registry.remove(try #require(try pair.registry.read(pair.source)))
    try pair.takeOver(pair.target)
    #expect(pair.handedOver() == CleaningPair.expected, "lost where the log was damaged")
}

@Test func outcomesThatArriveWhileMailMovesAreOnRecordOnBothSides() throws {
    for commits in [true, false] {
        let pair = try CleaningPair()
        let key = try pair.name()
        #expect(pair.writer.spool.move(key))
        // Under way, and not written yet.
        pair.record(2, 2, .delivered)
        pair.pump()
        pair.writer.ticks(1)
        // Landed.
        pair.record(3, 0, .delivered)
        if commits {
            try pair.finish()
            #expect(pair.decide() != nil)
            // It is over: the old reference leads to the new place.
            pair.record(3, 1, .delivered)
        } else {
            _ = try pair.edit(pair.source) { $0.targetVoid = true }
            #expect(pair.decide(alive: false) != nil)
            pair.record(3, 1, .delivered)
        }
        pair.settle()
        pair.stream(pair.source)
        pair.stream(pair.target)
        for id in [pair.target, pair.source] { try pair.takeOver(id) }
        #expect(pair.handedOver() == [1: [1, 2], 3: [2], 20: [0]], "committed \(commits)")
    }
}

@Test func copiesLandInNoOtherSegmentThanTheKeyNames() throws {
    let pair = try CleaningPair()
    let key = try pair.name()
    #expect(pair.writer.spool.move(key))
    // Mail that arrived before fills the segment.
    let sink = pair.sink
    let first = pair.writer.spool.laneMailbox.take(limit: 100, timeoutNanoseconds: 0) ?? []
    pair.writer.spool.submit([Mail(30, size: 220_000).submission(token: 30, sink: sink)])
    let spool = pair.writer.spool
    _ = spool.laneMailbox.offer(first)
    pair.pump()
    pair.writer.ticks(1)
    let moved = try #require(pair.writer.news.state.withLock { $0.moved }.last)
    #expect(!moved.landed)
    let next = try #require(spool.segment(of: try pair.ref(30).segment))
    #expect(next != pair.target)
    let messages = spool.ledger.read(try pair.ref(30).segment) { $0.liveMessages }
    #expect(messages == 1, "copies stand where their source's key does not say")
    _ = try pair.edit(pair.source) { $0.targetVoid = true }
    #expect(pair.decide(alive: false) != nil)
    for id in [next, pair.target, pair.source] { try pair.takeOver(id) }
    #expect(pair.handedOver() == CleaningPair.expected.merging([30: [0]]) { first, _ in first })
}

@Test func copiesThatLandAfterTheMoveIsVoidKeepNothingAlive() throws {
    let pair = try CleaningPair()
    let key = try pair.name()
    #expect(pair.writer.spool.move(key))
    // Given up, since it takes too long.
    _ = try pair.edit(pair.source) { $0.targetVoid = true }
    #expect(pair.decide(alive: false) != nil)
    #expect(!pair.writer.spool.move(key), "a second one while the first is under way")
    pair.pump()
    pair.writer.ticks(1)
    let place = try #require(pair.writer.spool.ledger.handle(of: pair.target))
    #expect(pair.writer.spool.ledger.read(place) { $0.liveMessages } == 1, "the target never drains")
    #expect(pair.writer.spool.keeper.withLock { $0.moving == nil })
    for number in CleaningPair.alive { #expect(pair.writer.spool.ledger.live(try pair.ref(number)) > 0) }
}

@Test func backupThatIsLostWhileMailMovesMakesTheCleaningFail() throws {
    let pair = try CleaningPair()
    let key = try pair.name()
    #expect(pair.writer.spool.move(key))
    pair.writer.spool.pump()
    pair.writer.spool.lost(pair.target, on: pair.taker.member)
    pair.pump()
    pair.writer.ticks(1)
    let moved = try #require(pair.writer.news.state.withLock { $0.moved }.last)
    #expect(!moved.landed, "with one copy")
}

@Test func cleanerThatStartsAgainFindsEachMessageOnce() throws {
    for step in 1...6 {
        let pair = try CleaningPair()
        try pair.clean(through: step)
        // The same disk, a new incarnation: own segments are taken over like any other's.
        let again = try ClusterRig(
            "n1", on: pair.writer.disk.inner.reopened(), registry: pair.registry, time: pair.time, seed: 77)
        for id in [pair.target, pair.source] {
            guard let key = try pair.registry.read(id), key.state != .finished else { continue }
            guard case .sealed(let report)? = again.seal(id, epoch: key.drainEpoch + 1) else { throw Missing() }
            let taken = try #require(pair.registry.take(id, for: again.drainer, sealedAt: report.end))
            _ = try again.spool.adopt(Adoption(key: taken, others: [], eventsMayBeLost: false))
        }
        var found: [UInt64: Int] = [:]
        for message in again.jobs.messages where CleaningPair.alive.contains(message.envelope.id.low) {
            found[message.envelope.id.low, default: 0] += message.progress?.count ?? 0
        }
        #expect(found == [1: 2, 2: 1, 3: 3], "after step \(step)")
    }
}

@Test func segmentsBeyondTheBoundAreOffered() {
    let ledger = SegmentLedger()
    let born = Instant(secondsSinceEpoch: 1_000)
    for index in 0..<UInt64(SpoolLimits.cleaningOffers + 4) {
        let id = SegmentID(writer: NodeID(name: "n1"), incarnation: Incarnation(value: 1), index: index)
        ledger.update(ledger.add(id, sealed: true, at: born)) { entry in
            entry.add(PlacedMessage(offset: 0, storedBytes: UInt32(100 - index), recipients: 1))
            entry.length = 100_000
        }
    }
    let found = ledger.cleaningCandidates(olderThan: born, limit: SpoolLimits.cleaningOffers)
    #expect(found.count == SpoolLimits.cleaningOffers)
    #expect(found.map(\.bytes) == found.map(\.bytes).sorted() && found.first?.bytes == 81, "not the emptiest first")
}

@Test func keyThatChangesAllTheTimeIsAskedForEver() throws {
    let pair = try CleaningPair()
    try pair.clean(through: 3)
    let (registry, source) = (pair.registry, pair.source)
    registry.state.withLock { state in
        state.beforeStore = { key in
            guard key.id == source else { return }
            registry.state.withLock { $0.keys[source]?.revision += 1 }
        }
    }
    #expect(throws: SpoolError.self) { try pair.takeOver(pair.target) }
    #expect(pair.handedOver().isEmpty)
    #expect(pair.taker.spool.ledger.handle(of: pair.target) == nil, "the next try finds it drained already")
}

@Test func decisionThatADiskHasNoRoomForIsNotCalledWritten() throws {
    let pair = try CleaningPair()
    try pair.clean(through: 4)
    let disk = pair.writer.disk.inner
    disk.fail(DiskFault(call: "write", errno: ENOSPC, sticky: true))
    for _ in 0..<2 { #expect(pair.decide() == nil) }
    disk.clearFaults()
    let end = try #require(pair.decide())
    let log = try #require(disk.contents(pair.writer.path(SegmentName(pair.target).outcomeFile)))
    #expect(end > 0 && end <= Int64(log.count), "the source's key would go before the decision is written")
}
