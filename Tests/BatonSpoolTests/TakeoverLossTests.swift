// Ways in which a takeover could lose acknowledged mail: an adoption under way taken for a drained segment, a tail that rots.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

@Test func writerAndItsDiskAreGoneAndTheBackupHasEveryAcknowledgedMessage() throws {
    let pair = try TakeoverPair(messages: 5)
    let report = try pair.takeOver()
    #expect(report.messages == 5)
    #expect(Set(pair.taker.jobs.messages.map(\.envelope.id)) == Set((UInt64(1)...5).map(Mail.id)))
    pair.taker.stop()
}

@Test func adoptionThatReadsItsLogSlowlyIsNotTakenForADrainedSegment() throws {
    let pair = try TakeoverPair()
    let log = SegmentName(pair.id).outcomeFile(epoch: 2)
    let taker = pair.taker
    taker.disk.onOpen { path, mode in
        // Seconds go by while the log is read.
        if path.hasSuffix(log), case .read = mode { taker.ticks(4) }
    }
    let report = try pair.takeOver()
    #expect(report.messages == 3)
    taker.ticks(4)
    #expect(taker.news.drained.isEmpty, "finished with mail in it: every member would remove it")
    #expect(taker.jobs.messages.count == 3)
    taker.stop()
}

@Test func outcomeThreadKeepsItsHandsOffASegmentThatIsBeingAdopted() throws {
    let pair = try TakeoverPair()
    let taker = pair.taker
    let name = SegmentName(pair.id)
    // An outcome of the writer's time stands in the first epoch's log.
    let ref = try #require(pair.sink.ref(1))
    pair.writer.spool.record([
        Outcome(
            job: JobRef(message: ref, recipient: 0), at: pair.time.now(), verdict: .delivered, attempts: 1,
            reply: nil, peer: nil, report: nil)
    ])
    pair.writer.ticks(1)
    let file = pair.writer.path(name.outcomeFile)
    let octets = try #require(pair.writer.disk.inner.contents(file))
    taker.copies.recordOutcomes(pair.id, epoch: 1, from: 0, ByteBuffer(bytes: octets)) { _ in }
    taker.copies.pump()
    let before = taker.disk.inner.contents(taker.path(name.outcomeFile))
    let log = name.outcomeFile(epoch: 2)
    let isBusy = Atomic<Bool>(false)
    taker.disk.onOpen { path, mode in
        // From here on the segment is scanned, and a second goes by at each read.
        guard path.hasSuffix(log), case .read = mode else { return }
        taker.disk.onRead {
            guard !isBusy.exchange(true, ordering: .relaxed) else { return }
            taker.ticks(1)
            isBusy.store(false, ordering: .relaxed)
        }
    }
    _ = try pair.takeOver()
    taker.disk.onOpen { _, _ in }
    taker.disk.onRead(nil)
    taker.ticks(2)
    #expect(taker.disk.inner.contents(taker.path(name.outcomeFile)) == before, "the old epoch's log was written to")
    let epochs = taker.news.state.withLock { $0.epochs[pair.id] ?? [] }
    #expect(!epochs.isEmpty && epochs.allSatisfy { $0 == 2 }, "news of an epoch that is over")
    #expect(taker.jobs.messages.map(\.envelope.id) == [Mail.id(2), Mail.id(3)], "the outcome was final")
    taker.stop()
}

/// A message with nothing left to deliver is known as well, whatever the event log has, and before the queue has the others (S5, S7).
@Test func keysOfATakenSegmentAreToldLateOrNotAtAll() throws {
    let pair = try TakeoverPair(marked: true)
    let taker = pair.taker
    pair.writer.spool.record([
        Outcome(
            job: JobRef(message: try #require(pair.sink.ref(1)), recipient: 0), at: pair.time.now(),
            verdict: .delivered, attempts: 1, reply: nil, peer: nil, report: nil)
    ])
    pair.writer.ticks(1)
    let octets = try #require(pair.writer.disk.inner.contents(pair.writer.path(SegmentName(pair.id).outcomeFile)))
    taker.copies.recordOutcomes(pair.id, epoch: 1, from: 0, ByteBuffer(bytes: octets)) { _ in }
    taker.copies.pump()
    let report = try pair.takeOver()
    let submits = taker.jobs.state.withLock { $0.submits }
    #expect(submits.map(\.mark.counter) == [1, 2], "held copies ask, they do not answer")
    #expect(submits.map(\.isFinal) == [true, false])
    #expect(submits.allSatisfy { $0.ref.segment == report.handle })
    #expect(taker.jobs.state.withLock { $0.messagesBeforeSubmits } == 0)
    let (first, second) = (submits[0].ref, submits[1].ref)
    #expect(taker.spool.isFinal(first) && !taker.spool.isFinal(second))
    taker.spool.record([
        Outcome(
            job: JobRef(message: second, recipient: 0), at: pair.time.now(), verdict: .delivered, attempts: 1,
            reply: nil, peer: nil, report: nil)
    ])
    taker.ticks(1)
    #expect(taker.spool.isFinal(second))
    // Of what is not here any more nothing is said.
    #expect(!taker.spool.isFinal(StoredMessageRef(segment: report.handle + 7, record: 0)))
    taker.stop()
}

@Test func segmentIsNotAdoptedASecondTimeByTheSameProcess() throws {
    let pair = try TakeoverPair()
    _ = try pair.takeOver()
    let key = try #require(pair.registry.take(pair.id, for: pair.taker.drainer, sealedAt: 1 << 14))
    #expect(throws: SpoolError.self) {
        _ = try pair.taker.spool.adopt(Adoption(key: key, others: [], eventsMayBeLost: false))
    }
    #expect(pair.taker.jobs.messages.count == 3, "handed over twice")
    pair.taker.stop()
}

@Test func lastHeaderThatRotsIsNoCleanEnd() throws {
    let pair = try TakeoverPair()
    let path = pair.taker.path(SegmentName(pair.id).segmentFile)
    pair.taker.copies.stop()
    guard case .sealed(let intact)? = try reopened(pair).seal(pair.id, epoch: 2) else { throw Missing() }
    #expect(!intact.tailInvalid)
    // Chunks of one page each: the third's header.
    pair.disk.flip(path, at: Int(intact.end) - 4096 + 40)
    guard case .sealed(let rotten)? = try reopened(pair).seal(pair.id, epoch: 2) else { throw Missing() }
    #expect(rotten.end == intact.end - 4096)
    #expect(rotten.tailInvalid, "it would set n alone and cut the others' good copy (PROTOCOL T1)")
}

@Test func pageThatTurnsToZerosIsNoCleanEndWhereTheLogSaysAcknowledged() throws {
    let pair = try TakeoverPair()
    let name = SegmentName(pair.id)
    // The writer's marks say how far it has acknowledged, and are streamed like any outcome.
    pair.writer.ticks(2)
    let octets = try #require(pair.writer.disk.inner.contents(pair.writer.path(name.outcomeFile)))
    pair.taker.copies.recordOutcomes(pair.id, epoch: 1, from: 0, ByteBuffer(bytes: octets)) { _ in }
    pair.taker.copies.pump()
    pair.taker.copies.stop()
    pair.disk.overwrite(pair.taker.path(name.segmentFile), from: 8192, with: Array(repeating: 0, count: 4096))
    guard case .sealed(let report)? = try reopened(pair).seal(pair.id, epoch: 2) else { throw Missing() }
    #expect(report.end == 8192)
    #expect(report.tailInvalid)
}

@Test func oldOctetsInARecycledFileAreNoTailAndARottenHeaderIs() throws {
    let pair = try TakeoverPair()
    let path = pair.writer.path(SegmentName(pair.id).segmentFile)
    let disk = pair.writer.disk.inner
    func sealed() throws -> CopyReport {
        let found = try ClusterRig(
            "n1", on: disk.reopened(), registry: SharedRegistry(), time: pair.time, seed: 9)
        guard case .sealed(let report)? = found.seal(pair.id, epoch: 2) else { throw Missing() }
        return report
    }
    disk.overwrite(path, from: 12288, with: Array(repeating: 0x41, count: 4096))
    #expect(try sealed() == CopyReport(end: 12288, tailInvalid: false, outcomeOctets: 0))
    disk.flip(path, at: 8192 + 40)
    let rotten = try sealed()
    #expect(rotten.end == 8192)
    #expect(rotten.tailInvalid)
}

/// Another process finds the copies.
private func reopened(_ pair: TakeoverPair) throws -> ClusterRig {
    try ClusterRig("n2", on: pair.disk.reopened(), registry: SharedRegistry(), time: pair.time, seed: 9)
}

@Test func sealThatDidNotReachTheDiskIsNotSealedTheSecondTimeEither() throws {
    let pair = try TakeoverPair()
    let seal = pair.taker.path(SegmentName(pair.id).sealFile)
    pair.taker.disk.inner.fail(DiskFault(call: "rename", errno: ENOSPC))
    #expect(pair.taker.seal(pair.id, epoch: 2) == .failed)
    #expect(pair.taker.disk.inner.contents(seal) == nil)
    // Asked again, as the taker does.
    if case .sealed? = pair.taker.seal(pair.id, epoch: 2) {
        #expect(pair.taker.disk.inner.contents(seal) != nil, "called sealed, and forgotten at a restart")
    } else {
        Issue.record("a disk that was full for a moment seals no more")
    }
    pair.taker.stop()
}

@Test func copyWhoseDiskFailedIsNotSealedOnItsWord() throws {
    let pair = try TakeoverPair()
    // The seal's own file first, then the chunks.
    pair.taker.disk.inner.fail(DiskFault(call: "sync", errno: EIO, after: 1))
    #expect(pair.taker.seal(pair.id, epoch: 2) == .failed)
    // The kernel forgets a failed fdatasync: the next one says nothing about those octets.
    #expect(pair.taker.seal(pair.id, epoch: 2) == .failed)
    pair.taker.stop()
}

@Test func historyOfAnAdoptedMessageHasTheOutcomesOfBothDrainers() throws {
    let pair = try TakeoverPair()
    let name = SegmentName(pair.id)
    let until = Instant(secondsSinceEpoch: 1_800_000_000)
    func deferred(_ ref: StoredMessageRef, _ attempts: UInt16) -> Outcome {
        Outcome(
            job: JobRef(message: ref, recipient: 0), at: pair.time.now(), verdict: .deferred(until: until),
            attempts: attempts, reply: nil, peer: nil, report: nil)
    }
    pair.writer.spool.record([deferred(try #require(pair.sink.ref(1)), 1)])
    pair.writer.ticks(1)
    let octets = try #require(pair.writer.disk.inner.contents(pair.writer.path(name.outcomeFile)))
    pair.taker.copies.recordOutcomes(pair.id, epoch: 1, from: 0, ByteBuffer(bytes: octets)) { _ in }
    pair.taker.copies.pump()
    _ = try pair.takeOver()
    let spool = pair.taker.spool
    let ref = try #require(pair.taker.jobs.message(Mail.id(1))).ref
    spool.record([deferred(ref, 2)])
    spool.pump()
    #expect(spool.readHistory(of: ref)?.map(\.attempts) == [1, 2])
    pair.taker.stop()
}
