// Single rules of TakeoverState, one at a time: who may claim, when a dot may go, what is settled, when a segment is finished.
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonCluster

private typealias Rig = TakeoverRig

@Suite struct TakeoverRuleTests {
    @Test func segmentOfALivingDrainerIsClaimed() {
        var rig = Rig()
        rig.list([Rig.key()], alive: [Rig.otherNode])
        #expect(rig.stores.isEmpty)
        rig.list([Rig.key()], alive: [])
        let claim = rig.stores.first
        #expect(claim?.drainer == Rig.me)
        #expect(claim?.drainEpoch == 2)
        let hasCondition = rig.actions.contains { action in
            if case .control(.store(_, .gone(Rig.other))) = action { true } else { false }
        }
        #expect(hasCondition, "the claim does not compare that the old drainer is gone")
    }

    @Test func staleMemberTakesOver() {
        var rig = Rig()
        var key = Rig.key()
        key.stale = [Rig.mine]
        rig.list([key], alive: [])
        #expect(rig.stores.isEmpty)
        rig.list([key], alive: [], forgotten: [Rig.theirs])
        #expect(rig.stores.first?.drainer == Rig.me)
    }

    @Test func emptyFileOfAFormerRunStaysForEver() {
        var rig = Rig()
        let former = SegmentID(writer: Rig.me.node, incarnation: Incarnation(value: 10), index: 0)
        let living = SegmentID(writer: Rig.other.node, incarnation: Rig.other.incarnation, index: 7)
        for id in [former, living, Rig.own] { rig.give(.copyCreated(id)) }
        rig.list([], alive: [Rig.otherNode])
        // What a run that lives has made may be registered at this moment, this node's own too.
        #expect(rig.actions.filter { if case .dropIfEmpty = $0 { true } else { false } } == [.dropIfEmpty(former)])
    }

    @Test func strangerTakesOver() {
        var rig = Rig()
        var key = Rig.key()
        key.ensemble = [Rig.theirs, EnsembleMember(node: NodeID(name: "n3"), diskID: 3)]
        rig.list([key], alive: [])
        #expect(rig.stores.isEmpty)
    }

    @Test func takenSegmentIsSentBeforeItIsReadAndPromised() {
        var rig = Rig()
        rig.take()
        // The dead member became stale together with the sealed length: it is no partner of a dot.
        #expect(rig.state.registry.keys[Rig.id]?.stale == [Rig.theirs])
        #expect(rig.permits.last == .some(.some(Instant(nanoseconds: .max))))
    }

    /// Else a held copy is withdrawn for the only one that is left (CLUSTER_MODEL 21).
    @Test func segmentWithOneCopyIsCalledWhole() {
        var rig = Rig()
        rig.take()
        rig.list([rig.state.registry.keys[Rig.id]].compactMap { $0 }, alive: [Rig.thirdNode])
        var saidAt = rig.nameThird()
        rig.pass(.milliseconds(100))
        saidAt += rig.actions
        rig.give(.copied(Rig.id, epoch: 2, Rig.third, complete: true))
        rig.pass(.milliseconds(100))
        saidAt += rig.actions
        #expect(!saidAt.contains(.whole(Rig.id)), "before the new member has said that it has it")
        rig.give(
            .reported(Rig.id, epoch: 2, .sealed(end: 8192, tailInvalid: false, outcomeOctets: 0), from: Rig.thirdRun))
        let joined = rig.stores.first
        #expect(joined?.ensemble == [Rig.mine, Rig.third])
        if let joined { rig.commit(joined, revision: 9) }
        rig.pass(.milliseconds(100))
        #expect(rig.actions.contains(.whole(Rig.id)))
        rig.pass(.milliseconds(100))
        #expect(!rig.actions.contains(.whole(Rig.id)), "said again and again")
    }

    /// A key that `recover-registry` made of the only disk that has a copy.
    @Test func segmentThatWasRebuiltFromOneDiskStaysThere() {
        var rig = Rig()
        var key = Rig.key()
        key.ensemble = [Rig.mine]
        rig.list([key], alive: [Rig.thirdNode])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(
            .copySealed(
                Rig.id, epoch: 2, .sealed(BatonSpool.CopyReport(end: 8192, tailInvalid: false, outcomeOctets: 0))))
        if let fixed = rig.stores.first { rig.commit(fixed, revision: 7) }
        rig.give(.adopted(Rig.id, epoch: 2, success: true))
        let said = rig.nameThird()
        rig.pass(.milliseconds(100))
        rig.give(.copied(Rig.id, epoch: 2, Rig.third, complete: true))
        rig.give(
            .reported(Rig.id, epoch: 2, .sealed(end: 8192, tailInvalid: false, outcomeOctets: 0), from: Rig.thirdRun))
        let joined = rig.stores.first
        #expect(joined?.ensemble == [Rig.mine, Rig.third] && joined?.joining == nil && joined?.former == [])
        #expect(!said.contains(.whole(Rig.id)), "one disk is not enough")
        if let joined { rig.commit(joined, revision: 9) }
        rig.pass(.milliseconds(100))
        #expect(rig.actions.contains(.whole(Rig.id)))
    }

    @Test func segmentIsCalledWholeWithAMemberThatIsShort() {
        for (end, isWhole) in [(Int64(2048), false), (4096, true)] {
            var rig = Rig()
            var key = Rig.key()
            key.state = .sealed(at: 4096)
            key.ensemble = [Rig.mine, Rig.third]
            rig.list([key], alive: [Rig.thirdNode])
            if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
            let report = BatonSpool.CopyReport(end: 4096, tailInvalid: false, outcomeOctets: 0)
            rig.give(.copySealed(Rig.id, epoch: 2, .sealed(report)))
            rig.give(
                .reported(
                    Rig.id, epoch: 2, .sealed(end: end, tailInvalid: false, outcomeOctets: 0), from: Rig.thirdRun))
            rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.third, complete: true))
            rig.give(.adopted(Rig.id, epoch: 2, success: true))
            rig.pass(.milliseconds(100))
            #expect(rig.actions.contains(.whole(Rig.id)) == isWhole, "\(end)")
        }
    }

    /// Nothing of it is left: what was asked about it was delivered.
    @Test func finishedSegmentIsNeverCalledWhole() {
        var rig = Rig()
        rig.take()
        rig.give(.drained(Rig.id))
        guard let finished = rig.stores.first, finished.state == .finished else {
            Issue.record("not finished")
            return
        }
        rig.commit(finished, revision: 8)
        #expect(rig.actions.contains(.whole(Rig.id)))
    }

    /// A member that lives is waited for: its promise, or a second of silence.
    @Test func livingMemberIsMarkedStaleAtOnce() {
        var rig = Rig()
        var key = Rig.key()
        key.ensemble.append(Rig.third)
        rig.list([key], alive: [Rig.thirdNode])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        let report = BatonSpool.CopyReport(end: 4096, tailInvalid: false, outcomeOctets: 0)
        rig.give(.copySealed(Rig.id, epoch: 2, .sealed(report)))
        rig.give(
            .reported(Rig.id, epoch: 2, .sealed(end: 4096, tailInvalid: false, outcomeOctets: 0), from: Rig.thirdRun))
        rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.third, complete: true))
        #expect(rig.stores.first?.stale == [Rig.theirs])
        if let fixed = rig.stores.first { rig.commit(fixed, revision: 7) }
        rig.give(.adopted(Rig.id, epoch: 2, success: true))
        #expect(rig.permits.allSatisfy { $0 == nil }, "without the third's promise")
        rig.pass(.milliseconds(600))
        rig.pass(.milliseconds(900))
        #expect(rig.stores.isEmpty)
        rig.pass(.milliseconds(200))
        #expect(rig.stores.first?.stale == [Rig.theirs, Rig.third])
    }

    @Test func changeOfUnknownResultCountsAsDone() {
        var rig = Rig()
        rig.list([], alive: [Rig.otherNode])
        rig.give(.keyStored(Rig.key(Rig.own, drainer: Rig.me)))
        rig.pass(.milliseconds(600))
        rig.pass(.milliseconds(1_200))
        guard let stale = rig.stores.first else {
            Issue.record("the silent member is not marked stale")
            return
        }
        rig.give(.control(.store(stale, .none), .unknown))
        rig.pass(.milliseconds(100))
        #expect(rig.permits.allSatisfy { $0 == nil }, "a dot is permitted on an unknown result")
    }

    /// It is gone, and whether it left `stale` before nobody knows; there is no node to take its place, and so no other change is due.
    @Test func memberThatMayHaveReturnedAndIsGoneIsWaitedForForEver() {
        var rig = Rig()
        rig.list([], alive: [Rig.otherNode])
        var key = Rig.key(Rig.own, drainer: Rig.me)
        key.state = .sealed(at: 4096)
        key.stale = [Rig.theirs]
        rig.give(.keyStored(key))
        func promised() {
            rig.give(.promised([PromiseItem(segment: Rig.own, epoch: 1)], sentAt: rig.now, from: Rig.other))
        }
        var back: SegmentKey?
        for _ in 0..<20 where back == nil {
            rig.pass(.milliseconds(100))
            back = rig.stores.first { $0.stale.isEmpty }
            promised()
            back = back ?? rig.stores.first { $0.stale.isEmpty }
        }
        guard let back else {
            Issue.record("the member does not return")
            return
        }
        rig.give(.control(.store(back, .none), .unknown))
        rig.give(.control(.read(Rig.own), .key(key)))
        rig.list([key], alive: [])
        var fence: SegmentKey?
        for _ in 0..<50 where fence == nil {
            rig.pass(.milliseconds(100))
            #expect(rig.permits.allSatisfy { $0 == nil }, "a dot is permitted on an unknown result")
            fence = rig.stores.first
        }
        #expect(fence?.stale == [Rig.theirs])
        if let fence { rig.commit(fence, revision: 6) }
        #expect(rig.permits.contains { $0 != nil }, "the segment waits for ever")
    }

    @Test func promiseGivenIsNotWaitedOut() {
        var rig = Rig()
        rig.list([Rig.key()], alive: [Rig.otherNode])
        rig.give(
            .promiseAsked([PromiseItem(segment: Rig.id, epoch: 1)], number: 1, sentAt: 0, from: Rig.other))
        let given = rig.actions.contains { action in
            if case .promise(let items, _, _, _) = action { items.count == 1 } else { false }
        }
        #expect(given)
        rig.list([Rig.key()], alive: [])
        guard let claim = rig.stores.first else { return }
        rig.commit(claim, revision: 6)
        rig.give(
            .copySealed(
                Rig.id, epoch: 2,
                .sealed(BatonSpool.CopyReport(end: 0, tailInvalid: false, outcomeOctets: 0))))
        if let fixed = rig.stores.first { rig.commit(fixed, revision: 7) }
        let early = rig.actions.contains { if case .adopt = $0 { true } else { false } }
        #expect(!early, "the segment is read before the promise has run out")
        rig.pass(.seconds(2))
        let late = rig.actions.contains { if case .adopt = $0 { true } else { false } }
        #expect(late)
        // And no other promise is given for a segment that is drained here.
        rig.give(
            .promiseAsked([PromiseItem(segment: Rig.id, epoch: 1)], number: 2, sentAt: 0, from: Rig.other))
        let again = rig.actions.contains { action in
            if case .promise(let items, _, _, _) = action { !items.isEmpty } else { false }
        }
        #expect(!again)
    }

    @Test func invalidTailSetsTheLength() {
        var rig = Rig()
        rig.list([Rig.key()], alive: [])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(
            .copySealed(
                Rig.id, epoch: 2,
                .sealed(BatonSpool.CopyReport(end: 4096, tailInvalid: true, outcomeOctets: 0))))
        #expect(rig.stores.isEmpty, "the sealed length comes from a copy with an invalid tail alone")
        // What is valid is delivered meanwhile, and nothing is cut.
        let adopts = rig.actions.contains { action in
            if case .adopt(let key) = action { key.state == .open } else { false }
        }
        #expect(adopts)
    }

    @Test func livingMembersOutcomesAreNotWaitedFor() {
        var rig = Rig()
        var key = Rig.key()
        key.ensemble.append(Rig.third)
        rig.list([key], alive: [Rig.thirdNode])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        #expect(rig.actions.contains(.askSeal(Rig.id, epoch: 2, of: Rig.thirdRun.node)))
        rig.give(
            .copySealed(
                Rig.id, epoch: 2,
                .sealed(BatonSpool.CopyReport(end: 4096, tailInvalid: false, outcomeOctets: 0))))
        #expect(rig.stores.isEmpty)
        rig.give(
            .reported(Rig.id, epoch: 2, .sealed(end: 4096, tailInvalid: false, outcomeOctets: 64), from: Rig.thirdRun))
        #expect(rig.actions.contains(.fetchOutcomes(Rig.id, epoch: 2, from: Rig.third, octets: 64)))
        #expect(rig.stores.isEmpty)
        rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.third, complete: true))
        #expect(rig.stores.first?.sealedAt == 4096)
    }

    /// A lost file may have held outcomes that nobody else has: of a member that is stale, not all are known.
    @Test func lostFileIsDeliveredFromAStaleCopyUncounted() {
        for stale in [false, true] {
            var rig = Rig()
            var key = Rig.key()
            key.ensemble.append(Rig.third)
            if stale { key.stale = [Rig.third] }
            key.state = .sealed(at: 4096)
            rig.list([key], alive: [Rig.thirdNode])
            if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
            rig.give(.copySealed(Rig.id, epoch: 2, .missing))
            rig.give(
                .reported(
                    Rig.id, epoch: 2, .sealed(end: 4096, tailInvalid: false, outcomeOctets: 64), from: Rig.thirdRun))
            rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.third, complete: true))
            #expect(rig.state.mayRepeat(Rig.id) == stale)
        }
        // A file that is there is enough.
        var rig = Rig()
        rig.take()
        #expect(!rig.state.mayRepeat(Rig.id))
    }

    @Test func memberThatAnswersBeforeTheOwnSealIsOnTheDiskIsWaitedForForEver() {
        var rig = Rig()
        var key = Rig.key()
        key.ensemble.append(Rig.third)
        rig.list([key], alive: [Rig.thirdNode])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(
            .reported(Rig.id, epoch: 2, .sealed(end: 4096, tailInvalid: false, outcomeOctets: 64), from: Rig.thirdRun))
        rig.give(
            .copySealed(
                Rig.id, epoch: 2,
                .sealed(BatonSpool.CopyReport(end: 4096, tailInvalid: false, outcomeOctets: 0))))
        #expect(rig.actions.contains(.fetchOutcomes(Rig.id, epoch: 2, from: Rig.third, octets: 64)))
        #expect(rig.stores.isEmpty)
        rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.third, complete: true))
        #expect(rig.stores.first?.sealedAt == 4096)
    }

    @Test func ownMailIsSentWithoutItsBackupsPromise() {
        var rig = Rig()
        rig.list([], alive: [Rig.otherNode])
        rig.give(.keyStored(Rig.key(Rig.own, drainer: Rig.me)))
        #expect(rig.permits.allSatisfy { $0 == nil })
        rig.pass(.milliseconds(600))
        let asks = rig.actions.contains { if case .askPromises(_, Rig.other.node) = $0 { true } else { false } }
        #expect(asks)
        let asked = rig.now
        rig.now = rig.now + .milliseconds(20)
        rig.give(.promised([PromiseItem(segment: Rig.own, epoch: 1)], sentAt: asked, from: Rig.other))
        #expect(rig.permits == [.some(asked + .milliseconds(1_500))])
    }

    @Test func outcomeIsSettledBeforeTheBackupHasIt() {
        var rig = Rig()
        rig.list([], alive: [Rig.otherNode])
        rig.give(.keyStored(Rig.key(Rig.own, drainer: Rig.me)))
        rig.give(.outcomesAdvanced(Rig.own, epoch: 1, end: 100, synced: 100))
        #expect(!rig.actions.contains(.settled(Rig.own, epoch: 1, upTo: 100)))
        #expect(rig.actions.contains(.sendOutcomes(Rig.own, epoch: 1, to: Rig.theirs, from: 0, upTo: 100)))
        rig.give(.recorded(Rig.own, epoch: 1, memory: 100, synced: 0, from: Rig.other))
        #expect(rig.actions.contains(.settled(Rig.own, epoch: 1, upTo: 100)))
        // P4: its new run may have lost what it had in memory.
        let anew = Drainer(node: Rig.other.node, incarnation: Incarnation(value: 23))
        rig.give(.met(anew))
        #expect(rig.actions.contains(.settled(Rig.own, epoch: 1, upTo: 0)))
        rig.pass(.milliseconds(100))
        #expect(rig.actions.contains(.sendOutcomes(Rig.own, epoch: 1, to: Rig.theirs, from: 0, upTo: 100)))
    }

    @Test func segmentIsFinishedBeforeItsBackupHasSynced() {
        var rig = Rig()
        rig.list([], alive: [Rig.otherNode])
        var key = Rig.key(Rig.own, drainer: Rig.me)
        key.state = .sealed(at: 4096)
        rig.give(.keyStored(key))
        rig.give(.outcomesAdvanced(Rig.own, epoch: 1, end: 100, synced: 100))
        rig.give(.recorded(Rig.own, epoch: 1, memory: 100, synced: 0, from: Rig.other))
        rig.give(.drained(Rig.own))
        #expect(rig.stores.isEmpty)
        rig.give(.recorded(Rig.own, epoch: 1, memory: 100, synced: 100, from: Rig.other))
        guard let finished = rig.stores.first else {
            Issue.record("never finished")
            return
        }
        #expect(finished.state == .finished)
        rig.commit(finished, revision: 9)
        #expect(rig.actions.contains(.unlink(Rig.own)))
        rig.give(.unlinked(Rig.own, gone: true))
        #expect(rig.actions.contains(.askFinished(Rig.own, epoch: 1, of: Rig.other.node)))
        let early = rig.actions.contains { if case .control(.remove) = $0 { true } else { false } }
        #expect(!early, "the key goes before the backup's file")
        rig.give(.unlinkedElsewhere(Rig.own, disk: 2, revision: 9, from: Rig.other))
        let goes = rig.actions.contains { if case .control(.remove) = $0 { true } else { false } }
        #expect(goes)
    }

    @Test func lostLeaseIsSurvived() {
        var rig = Rig()
        rig.give(.leaseLost)
        #expect(rig.actions == [.restart(.leaseLost)])
        rig.give(.tick)
        #expect(rig.actions.isEmpty)
    }

    @Test func anotherRegistryIsSurvived() {
        var rig = Rig()
        rig.give(.registryChanged)
        #expect(rig.actions == [.restart(.registryChanged)])
        rig.give(.tick)
        #expect(rig.actions.isEmpty)
    }
}
