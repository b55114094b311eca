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

    private let told = TakeoverAction.sendLateOutcomes(Rig.id, epoch: 4, to: Rig.other.node)
    private let gone = TakeoverAction.unlink(Rig.id)

    @Test func replacedCopyGoesBeforeItsOutcomesAreTold() {
        var (rig, _) = replaced()
        #expect(rig.actions.contains(told) && !rig.actions.contains(gone))
        rig.pass(.milliseconds(100))
        #expect(!rig.actions.contains(told), "asked for twice")
        rig.give(.lateOutcomesSent(Rig.id, sent: true))
        #expect(rig.actions.contains(gone))
        rig.give(.lateOutcomesSent(Rig.id, sent: true))
        #expect(!rig.actions.contains(gone), "removed twice")
    }

    @Test func drainerWithoutASessionIsToldOnce() {
        var (rig, _) = replaced()
        rig.give(.lateOutcomesSent(Rig.id, sent: false))
        #expect(!rig.actions.contains(gone))
        rig.pass(.milliseconds(100))
        #expect(!rig.actions.contains(told), "tried at each tick")
        rig.pass(.milliseconds(200))
        #expect(rig.actions.contains(told))
        rig.give(.lateOutcomesSent(Rig.id, sent: true))
        #expect(rig.actions.contains(gone))
    }

    /// Nor does a disk that gives no answer keep a copy for ever.
    @Test func drainerThatIsNeverReachedKeepsTheCopyForEver() {
        for answers in [true, false] {
            var (rig, _) = replaced()
            for _ in 0..<24 {
                if answers { rig.give(.lateOutcomesSent(Rig.id, sent: false)) }
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
        rig.give(.lateOutcomesSent(Rig.id, sent: false))
        key.drainer = Rig.thirdRun
        key.drainEpoch = 5
        key.revision = 10
        rig.list([key], alive: [Rig.thirdNode])
        rig.pass(.milliseconds(300))
        #expect(rig.actions.contains(.sendLateOutcomes(Rig.id, epoch: 5, to: Rig.third.node)))
        rig.give(.lateOutcomesSent(Rig.id, sent: false))
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

    @Test func fetchThatFailedIsNotTriedAgain() {
        var rig = returned()
        rig.give(report())
        rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.theirs, complete: false))
        rig.pass(.milliseconds(400))
        #expect(rig.actions.contains(.askSeal(Rig.id, epoch: 2, of: Rig.other.node)))
        rig.give(report())
        #expect(fetches(rig) == 1)
    }

    /// A backup that drained nothing has nothing of its own to tell.
    @Test func outcomesOfEveryMemberThatIsBackAreRead() {
        var rig = returned()
        var key = Rig.key(drainer: Rig.me, revision: 8)
        key.ensemble = [Rig.mine, Rig.third]
        key.former = [Rig.theirs]
        key.drainEpoch = 2
        key.state = .sealed(at: 8192)
        rig.list([key], alive: [Rig.otherNode, Rig.thirdNode])
        rig.give(report(of: Rig.thirdRun))
        #expect(fetches(rig) == 0)
        rig.give(report())
        #expect(fetches(rig) == 0, "it is no member any more: it tells them before its file goes")
    }
}
