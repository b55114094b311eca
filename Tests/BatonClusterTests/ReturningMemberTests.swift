// A member that was replaced, or given up while it joined, gets a copy again once its old file is gone.
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonCluster

@Suite struct ReturningMemberTests {
    private typealias Rig = TakeoverRig

    /// Its own sealed segment has lost a copy, and the only other node is given up while it joins: it restarts.
    private func givenUp() -> (rig: Rig, key: SegmentKey) {
        var rig = Rig()
        rig.list([], alive: [Rig.thirdNode])
        var key = Rig.key(Rig.own, drainer: Rig.me)
        key.state = .sealed(at: 4096)
        key.stale = [Rig.theirs]
        rig.give(.keyStored(key))
        rig.pass(.milliseconds(100))
        rig.pass(.seconds(6))
        #expect(rig.stores.first?.joining == Rig.third)
        if let named = rig.stores.first { rig.commit(named, revision: 6) }
        key.joining = Rig.third
        key.revision = 6
        rig.list([key], alive: [])
        rig.pass(.milliseconds(100))
        #expect(rig.stores.first?.former == [Rig.third])
        #expect(rig.stores.first?.joining == nil)
        if let dropped = rig.stores.first { rig.commit(dropped, revision: 7) }
        key.joining = nil
        key.former = [Rig.third]
        key.revision = 7
        rig.list([key], alive: [Rig.thirdNode])
        return (rig, key)
    }

    private func asks(_ rig: Rig) -> Int {
        rig.actions.count { $0 == .askFinished(Rig.own, epoch: 1, of: Rig.third.node) }
    }

    @Test func joinerThatRestartedNeverGetsACopyAgain() {
        var (rig, _) = givenUp()
        rig.pass(.milliseconds(100))
        #expect(rig.stores.isEmpty, "it may have a file that is on its way out")
        #expect(asks(rig) == 1)
        rig.pass(.milliseconds(100))
        #expect(asks(rig) == 0, "asked at each tick")
        rig.pass(.milliseconds(500))
        #expect(asks(rig) == 1, "asked once, whatever becomes of the answer")
        rig.give(.unlinkedElsewhere(Rig.own, disk: 3, revision: 7, from: Rig.thirdRun))
        #expect(rig.stores.first?.former == [])
        if let cleared = rig.stores.first { rig.commit(cleared, revision: 8) }
        rig.pass(.milliseconds(100))
        #expect(rig.stores.first?.joining == Rig.third)
    }

    /// Said before it joined: the file it was given since may be on its way out by now.
    @Test func oldWordThatAFileIsGoneCounts() {
        var (rig, _) = givenUp()
        for (disk, revision) in [(UInt64(3), UInt64(5)), (3, 6), (3, 8), (4, 7), (2, 7)] {
            rig.give(.unlinkedElsewhere(Rig.own, disk: disk, revision: revision, from: Rig.thirdRun))
            #expect(rig.stores.isEmpty, "disk \(disk), revision \(revision)")
        }
    }

    @Test func nodeThatIsAwayIsAskedForItsFile() {
        var (rig, key) = givenUp()
        rig.list([key], alive: [])
        rig.pass(.milliseconds(600))
        #expect(asks(rig) == 0)
        rig.list([key], alive: [Rig.thirdNode], forgotten: [Rig.third])
        rig.pass(.milliseconds(600))
        #expect(asks(rig) == 0, "declared lost")
    }

    // MARK: The replaced member

    private func replaced() -> SegmentKey {
        var key = Rig.key(revision: 9)
        key.ensemble = [Rig.theirs, Rig.third]
        key.former = [Rig.mine]
        key.state = .sealed(at: 4096)
        return key
    }

    private func answered(_ rig: Rig, at revision: UInt64) -> Bool {
        rig.actions.contains(.answerUnlinked(Rig.id, revision: revision, to: Rig.other.node))
    }

    @Test func replacedMemberSaysThatItsFileIsGoneWhileItIsThere() {
        var rig = Rig()
        let key = replaced()
        rig.list([key], alive: [Rig.otherNode, Rig.thirdNode])
        rig.give(.lateOutcomesSent(Rig.id, pieces: 1, all: true))
        #expect(rig.actions.contains(.unlink(Rig.id)))
        rig.give(.finishedAsked(Rig.id, from: Rig.other))
        rig.give(.control(.read(Rig.id), .key(key)))
        #expect(!answered(rig, at: 9))
        rig.give(.unlinked(Rig.id, gone: false))
        #expect(!answered(rig, at: 9))
        rig.give(.finishedAsked(Rig.id, from: Rig.other))
        rig.give(.control(.read(Rig.id), .key(key)))
        #expect(rig.actions.contains(.unlink(Rig.id)), "tried once")
        rig.give(.unlinked(Rig.id, gone: true))
        #expect(answered(rig, at: 9))
    }

    @Test func replacedMemberWithoutAFileNeverAnswers() {
        var rig = Rig()
        let key = replaced()
        rig.list([key], alive: [Rig.otherNode, Rig.thirdNode])
        rig.give(.lateOutcomesSent(Rig.id, pieces: 1, all: true))
        rig.give(.unlinked(Rig.id, gone: true))
        rig.give(.finishedAsked(Rig.id, from: Rig.other))
        #expect(!answered(rig, at: 9), "the key is read first")
        rig.give(.control(.read(Rig.id), .key(key)))
        #expect(answered(rig, at: 9))
    }

    /// It has registered before its disk was looked through.
    @Test func startingMemberSaysThatAFileIsGoneWhichItHasNotFoundYet() {
        var rig = Rig(lookedThrough: false)
        let key = replaced()
        rig.list([key], alive: [Rig.otherNode, Rig.thirdNode])
        rig.give(.finishedAsked(Rig.id, from: Rig.other))
        rig.give(.control(.read(Rig.id), .key(key)))
        #expect(!answered(rig, at: 9))
        rig.give(.started(copies: [Rig.id]))
        rig.pass(.milliseconds(100))
        rig.give(.control(.read(Rig.id), .key(key)))
        #expect(!answered(rig, at: 9))
        rig.give(.lateOutcomesSent(Rig.id, pieces: 1, all: true))
        #expect(!answered(rig, at: 9) && rig.actions.contains(.unlink(Rig.id)))
        rig.give(.unlinked(Rig.id, gone: true))
        #expect(answered(rig, at: 9))
    }

    /// It is joining again by what the control plane says: it may have been given octets already.
    @Test func joiningMemberSaysThatItHasNoFile() {
        var rig = Rig()
        var key = replaced()
        rig.list([key], alive: [Rig.otherNode, Rig.thirdNode])
        rig.give(.lateOutcomesSent(Rig.id, pieces: 1, all: true))
        rig.give(.unlinked(Rig.id, gone: true))
        rig.give(.finishedAsked(Rig.id, from: Rig.other))
        key.ensemble = [Rig.theirs]
        key.former = []
        key.joining = Rig.mine
        key.revision = 11
        rig.give(.control(.read(Rig.id), .key(key)))
        #expect(!answered(rig, at: 9) && !answered(rig, at: 11))
        rig.pass(.milliseconds(100))
        let reads = rig.actions.contains { if case .control(.read) = $0 { true } else { false } }
        #expect(!reads, "it reads the key for ever")
    }
}
