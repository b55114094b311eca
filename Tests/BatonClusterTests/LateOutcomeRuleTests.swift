// A former drainer's outcomes reach the present one before they are gone (PROTOCOL T5).
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonCluster

@Suite struct LateOutcomeRuleTests {
    private typealias Rig = TakeoverRig

    // MARK: The former drainer, replaced while it was away

    private func replaced() -> (rig: Rig, key: SegmentKey) {
        var rig = Rig()
        var key = Rig.key(revision: 9)
        key.ensemble = [Rig.theirs, Rig.third]
        key.former = [Rig.mine]
        key.drainEpoch = 4
        key.state = .sealed(at: 4096)
        rig.list([key], alive: [Rig.otherNode, Rig.thirdNode])
        return (rig, key)
    }

    private let told = TakeoverAction.sendLateOutcomes(Rig.id, epoch: 4, to: Rig.other.node, after: 0)
    private let gone = TakeoverAction.unlink(Rig.id)

    @Test func replacedCopyGoesBeforeItsOutcomesAreTold() {
        var (rig, _) = replaced()
        #expect(rig.actions.contains(told) && !rig.actions.contains(gone))
        rig.pass(.milliseconds(100))
        #expect(!rig.actions.contains(told), "asked for twice")
        rig.give(.lateOutcomesSent(Rig.id, pieces: 1, all: true))
        #expect(rig.actions.contains(gone))
        rig.give(.lateOutcomesSent(Rig.id, pieces: 1, all: true))
        #expect(!rig.actions.contains(gone), "removed twice")
    }

    @Test func drainerWithoutASessionIsToldOnce() {
        var (rig, _) = replaced()
        rig.give(.lateOutcomesSent(Rig.id, pieces: 0, all: false))
        #expect(!rig.actions.contains(gone))
        rig.pass(.milliseconds(100))
        #expect(!rig.actions.contains(told), "tried at each tick")
        rig.pass(.milliseconds(200))
        #expect(rig.actions.contains(told))
        rig.give(.lateOutcomesSent(Rig.id, pieces: 1, all: true))
        #expect(rig.actions.contains(gone))
    }

    /// Nor does a disk that gives no answer keep a copy for ever.
    @Test func drainerThatIsNeverReachedKeepsTheCopyForEver() {
        for answers in [true, false] {
            var (rig, _) = replaced()
            for _ in 0..<24 {
                if answers { rig.give(.lateOutcomesSent(Rig.id, pieces: 0, all: false)) }
                rig.pass(.milliseconds(400))
                #expect(!rig.actions.contains(gone))
            }
            rig.pass(.milliseconds(400))
            #expect(rig.actions.contains(gone), "answers: \(answers)")
        }
    }

    /// Whoever drains it when they are sent is told, and a finished segment has no use for them.
    @Test func outcomesGoToADrainerOfEarlierTimes() {
        var (rig, key) = replaced()
        rig.give(.lateOutcomesSent(Rig.id, pieces: 0, all: false))
        key.drainer = Rig.thirdRun
        key.drainEpoch = 5
        key.revision = 10
        rig.list([key], alive: [Rig.thirdNode])
        rig.pass(.milliseconds(300))
        #expect(rig.actions.contains(.sendLateOutcomes(Rig.id, epoch: 5, to: Rig.third.node, after: 0)))
        rig.give(.lateOutcomesSent(Rig.id, pieces: 0, all: false))
        key.state = .finished
        key.revision = 11
        rig.list([key], alive: [Rig.thirdNode])
        #expect(rig.actions.contains(gone))
    }

    // MARK: The drainer, when a member is back

    private func fetches(_ rig: Rig) -> Int {
        rig.actions.count { if case .fetchOutcomes = $0 { true } else { false } }
    }

    /// Taken over while the writer was away; it is back, and still a member.
    private func returned() -> Rig {
        var rig = Rig()
        rig.take()
        var key = Rig.key(drainer: Rig.me, revision: 7)
        key.drainEpoch = 2
        key.state = .sealed(at: 8192)
        key.stale = [Rig.theirs]
        rig.list([key], alive: [Rig.otherNode])
        rig.pass(.milliseconds(100))
        #expect(rig.actions.contains(.askSeal(Rig.id, epoch: 2, of: Rig.other.node)))
        return rig
    }

    private func report(of run: Drainer = Rig.other) -> TakeoverEvent {
        .reported(Rig.id, epoch: 2, .sealed(end: 8192, tailInvalid: false, outcomeOctets: 90), from: run)
    }

    @Test func outcomesOfAWriterThatIsBackAreNeverRead() {
        var rig = returned()
        rig.give(report())
        #expect(rig.actions.contains(.fetchOutcomes(Rig.id, epoch: 2, from: Rig.theirs, octets: 90)))
        rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.theirs, complete: true))
        rig.give(report())
        #expect(fetches(rig) == 0, "read twice")
    }

    @Test func fetchThatFailsIsTriedForEverOrNotAgain() {
        var rig = returned()
        rig.give(report())
        var tries = fetches(rig)
        for _ in 0..<10 {
            rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.theirs, complete: false))
            rig.pass(.milliseconds(1_900))
            #expect(fetches(rig) == 0)
            rig.pass(.milliseconds(200))
            tries += fetches(rig)
        }
        #expect(tries == 3)
        // Another run of it is another chance.
        rig.give(.met(Rig.other))
        rig.give(.met(Drainer(node: Rig.other.node, incarnation: Incarnation(value: 23))))
        rig.give(report())
        #expect(fetches(rig) == 1)
    }

    /// It answers while the segment is being read, too late for the adoption.
    @Test func wordThatComesDuringTheAdoptionIsForgotten() {
        var rig = Rig()
        rig.list([Rig.key()], alive: [])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(
            .copySealed(
                Rig.id, epoch: 2, .sealed(BatonSpool.CopyReport(end: 8192, tailInvalid: false, outcomeOctets: 0))))
        if let fixed = rig.stores.first { rig.commit(fixed, revision: 7) }
        var key = Rig.key(drainer: Rig.me, revision: 7)
        key.drainEpoch = 2
        key.state = .sealed(at: 8192)
        key.stale = [Rig.theirs]
        rig.list([key], alive: [Rig.otherNode])
        rig.give(report())
        #expect(fetches(rig) == 0)
        rig.give(.adopted(Rig.id, epoch: 2, success: true))
        rig.pass(.milliseconds(100))
        #expect(fetches(rig) == 1)
    }

    /// A backup that drained nothing has nothing of its own to tell, and one that was replaced tells it before its file goes.
    @Test func outcomesOfEveryMemberThatIsBackAreRead() {
        var rig = returned()
        var key = Rig.key(drainer: Rig.me, revision: 8)
        key.ensemble = [Rig.mine, Rig.third, Rig.theirs]
        key.drainEpoch = 2
        key.state = .sealed(at: 8192)
        rig.list([key], alive: [Rig.otherNode, Rig.thirdNode])
        rig.give(report(of: Rig.thirdRun))
        #expect(fetches(rig) == 0)
        rig.give(report())
        #expect(fetches(rig) == 1)
    }

    // MARK: Many at once

    @Test func replacedCopiesAreAllReadAtOnce() {
        var rig = Rig(lookedThrough: false)
        let ids = (UInt64(0)..<10).map {
            SegmentID(writer: Rig.other.node, incarnation: Rig.other.incarnation, index: $0)
        }
        rig.give(.started(copies: ids))
        let keys = ids.map { id in
            var key = Rig.key(id, revision: 9)
            key.ensemble = [Rig.theirs, Rig.third]
            key.former = [Rig.mine]
            key.state = .sealed(at: 4096)
            return key
        }
        rig.list(keys, alive: [Rig.otherNode, Rig.thirdNode])
        var asked: [SegmentID] = []
        func tellings() -> [SegmentID] {
            rig.actions.compactMap { if case .sendLateOutcomes(let id, _, _, _) = $0 { id } else { nil } }
        }
        asked += tellings()
        #expect(asked.count == 4)
        // Those that wait for their turn do not lose it by waiting: each has its 10 s from its first try.
        for _ in 0..<110 {
            rig.pass(.milliseconds(100))
            asked += tellings()
        }
        #expect(asked.count == 8, "the first four never answered, and went")
        for id in asked.suffix(4) { rig.give(.lateOutcomesSent(id, pieces: 1, all: true)) }
        rig.pass(.milliseconds(100))
        #expect(tellings().count == 2)
    }

    /// A writer is back after this node has taken over all its segments.
    @Test func outcomesOfAllSegmentsAreFetchedAtOnce() {
        var rig = Rig(lookedThrough: false)
        let ids = (UInt64(0)..<6).map {
            SegmentID(writer: Rig.other.node, incarnation: Rig.other.incarnation, index: $0)
        }
        rig.give(.started(copies: ids))
        rig.list(ids.map { Rig.key($0) }, alive: [])
        let claims = rig.stores
        #expect(claims.count == 6)
        for claim in claims {
            rig.commit(claim, revision: 6)
            rig.give(
                .copySealed(
                    claim.id, epoch: 2,
                    .sealed(BatonSpool.CopyReport(end: 8192, tailInvalid: false, outcomeOctets: 0))))
            if let fixed = rig.stores.first { rig.commit(fixed, revision: 7) }
            rig.give(.adopted(claim.id, epoch: 2, success: true))
        }
        let taken = ids.map { id in
            var key = Rig.key(id, drainer: Rig.me, revision: 7)
            key.drainEpoch = 2
            key.state = .sealed(at: 8192)
            key.stale = [Rig.theirs]
            return key
        }
        rig.list(taken, alive: [Rig.otherNode])
        var fetched: [SegmentID] = []
        func note() {
            fetched += rig.actions.compactMap { if case .fetchOutcomes(let id, _, _, _) = $0 { id } else { nil } }
        }
        for id in ids {
            rig.give(
                .reported(id, epoch: 2, .sealed(end: 8192, tailInvalid: false, outcomeOctets: 90), from: Rig.other))
            note()
        }
        #expect(fetched.count == 4)
        for id in fetched { rig.give(.outcomesFetched(id, epoch: 2, Rig.theirs, complete: true)) }
        rig.pass(.milliseconds(100))
        note()
        #expect(Set(fetched) == Set(ids))
    }

    @Test func piecesThatWereTakenAreSentAgain() {
        var (rig, key) = replaced()
        rig.give(.lateOutcomesSent(Rig.id, pieces: 4, all: false))
        rig.pass(.milliseconds(300))
        #expect(rig.actions.contains(.sendLateOutcomes(Rig.id, epoch: 4, to: Rig.other.node, after: 4)))
        // Another drainer has none of them.
        key.drainer = Rig.thirdRun
        key.drainEpoch = 5
        key.revision = 10
        rig.list([key], alive: [Rig.thirdNode])
        rig.give(.lateOutcomesSent(Rig.id, pieces: 8, all: true))
        #expect(!rig.actions.contains(gone), "told to one that drains it no more")
        rig.pass(.milliseconds(300))
        #expect(rig.actions.contains(.sendLateOutcomes(Rig.id, epoch: 5, to: Rig.third.node, after: 0)))
    }

    @Test func lateOutcomesFillTheMemory() {
        var room = LateRoom()
        var taken = 0
        while taken < 1_000, room.take(256 * ByteCount.kibi) { taken += 1 }
        #expect(taken == DriverLimits.lateOctets / (256 * ByteCount.kibi))
        room.free(256 * ByteCount.kibi)
        #expect(room.take(256 * ByteCount.kibi) && !room.take(1))
    }
}
