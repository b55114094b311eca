// What TakeoverState makes of a control plane, a disk or a member that fails or answers late.
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonCluster

private typealias Rig = TakeoverRig

@Suite struct TakeoverFailureTests {
    // MARK: The control plane

    /// An overloaded control plane refuses a change: nothing was learned about the key, and the drain goes on.
    @Test func refusedChangeDropsTheDrain() {
        for answer in [ControlAnswer.done, .refused(nil, condition: true)] {
            var rig = Rig()
            rig.list([], alive: [Rig.otherNode])
            var key = Rig.key(Rig.own, drainer: Rig.me)
            key.state = .sealed(at: 4096)
            rig.give(.keyStored(key))
            rig.pass(.milliseconds(600))
            rig.pass(.milliseconds(1_200))
            guard let stale = rig.stores.first else {
                Issue.record("the silent member is not marked stale")
                return
            }
            rig.give(.control(.store(stale, .none), answer))
            #expect(rig.state.drains[Rig.own] != nil)
            #expect(!rig.actions.contains(.stopWriting(Rig.own)))
            rig.pass(.milliseconds(100))
            #expect(rig.stores.first?.stale == [Rig.theirs], "the change is not tried again")
        }
    }

    @Test func keyThatIsGoneKeepsItsDrain() {
        var rig = Rig()
        rig.list([], alive: [Rig.otherNode])
        rig.give(.keyStored(Rig.key(Rig.own, drainer: Rig.me)))
        rig.pass(.milliseconds(600))
        rig.pass(.milliseconds(1_200))
        guard let stale = rig.stores.first else { return }
        rig.give(.control(.store(stale, .none), .refused(nil, condition: false)))
        #expect(rig.state.drains[Rig.own] == nil)
    }

    @Test func slowControlPlaneIsAskedWithoutBound() {
        var rig = Rig()
        let keys = (0..<2_000).map { index in
            Rig.key(SegmentID(writer: Rig.other.node, incarnation: Rig.other.incarnation, index: UInt64(index)))
        }
        rig.list(keys, alive: [])
        #expect(rig.stores.count == rig.state.timing.requests)
        // The answers make room, the next listing uses it.
        for claim in rig.stores { rig.give(.control(.store(claim, .none), .done)) }
        rig.list(keys, alive: [])
        #expect(rig.stores.count == rig.state.timing.requests)
    }

    @Test func keyIsReadAgainBeforeTheAnswer() {
        var rig = Rig()
        rig.list([Rig.key()], alive: [Rig.otherNode])
        func reads() -> Int {
            rig.actions.count { if case .control(.read) = $0 { true } else { false } }
        }
        rig.give(.finishedAsked(Rig.id, from: Rig.other))
        #expect(reads() == 1)
        rig.pass(.milliseconds(100))
        #expect(reads() == 0)
        rig.give(.control(.read(Rig.id), .unknown))
        rig.pass(.milliseconds(100))
        #expect(reads() == 1)
    }

    // MARK: Members

    /// P2: it took over as the last copy and marked the lost one stale; its next run finds both stale.
    @Test func lastCopyTakesOverOnlyOnce() {
        var rig = Rig()
        var key = Rig.key()
        key.stale = [Rig.mine, Rig.theirs]
        rig.list([key], alive: [])
        #expect(rig.stores.isEmpty, "a stale member takes over although nobody was declared lost")
        rig.list([key], alive: [], forgotten: [Rig.theirs])
        #expect(rig.stores.first?.drainer == Rig.me)
    }

    @Test func drainerStaysStaleForEver() {
        var rig = Rig()
        var key = Rig.key()
        key.stale = [Rig.mine]
        key.state = .sealed(at: 4096)
        rig.list([key], alive: [], forgotten: [Rig.theirs])
        guard let claim = rig.stores.first else {
            Issue.record("the last copy does not take over")
            return
        }
        rig.commit(claim, revision: 6)
        rig.give(.copySealed(Rig.id, epoch: 2, .sealed(.init(end: 4096, tailInvalid: false, outcomeOctets: 0))))
        #expect(rig.state.mayRepeat(Rig.id), "what a stale last copy delivers is not counted")
        rig.give(.adopted(Rig.id, epoch: 2, success: true))
        rig.give(.outcomesAdvanced(Rig.id, epoch: 2, end: 64, synced: 0))
        rig.pass(.milliseconds(600))
        if let both = rig.stores.first { rig.commit(both, revision: 7) }
        rig.pass(.milliseconds(100))
        #expect(rig.stores.isEmpty, "it comes back before its outcomes are on the disk")
        rig.give(.outcomesAdvanced(Rig.id, epoch: 2, end: 64, synced: 64))
        rig.pass(.milliseconds(100))
        #expect(rig.stores.first?.stale == [Rig.theirs])
    }

    /// The node whose disk was lost is back with an empty one, and gets the new copy: what it says concerns that one.
    @Test func newDiskSpeaksForTheLostOne() {
        var rig = Rig()
        let anew = Drainer(node: Rig.other.node, incarnation: Incarnation(value: 23))
        let joiner = EnsembleMember(node: anew.node, diskID: 20)
        var key = Rig.key(Rig.own, drainer: Rig.me)
        key.state = .sealed(at: 4096)
        key.stale = [Rig.theirs]
        rig.list([], alive: [NodeRecord(node: anew.node, incarnation: anew.incarnation, disk: 20)])
        rig.give(.keyStored(key))
        rig.pass(.milliseconds(100))
        rig.pass(.seconds(6))
        guard let named = rig.stores.first else {
            Issue.record("no new copy is begun")
            return
        }
        #expect(named.joining == joiner)
        rig.commit(named, revision: 6)
        rig.pass(.milliseconds(100))
        rig.give(.reported(Rig.own, epoch: 1, .sealed(end: 4096, tailInvalid: false, outcomeOctets: 0), from: anew))
        #expect(rig.stores.first?.ensemble == [Rig.mine, joiner])
    }

    /// C3: a drainer that was overtaken still has the file, and says that it is gone only when it is.
    @Test func overtakenDrainerConfirmsAFileThatLiesThere() {
        var rig = Rig()
        rig.take()
        let later = Drainer(node: Rig.other.node, incarnation: Incarnation(value: 24))
        var key = Rig.key(drainer: later, revision: 20)
        key.drainEpoch = 3
        key.state = .sealed(at: 8192)
        rig.list([key], alive: [NodeRecord(node: later.node, incarnation: later.incarnation, disk: 2)])
        #expect(rig.state.drains[Rig.id] == nil)
        key.state = .finished
        key.revision = 21
        rig.give(.finishedAsked(Rig.id, from: later))
        rig.give(.control(.read(Rig.id), .key(key)))
        let said = rig.actions.contains { if case .answerUnlinked = $0 { true } else { false } }
        #expect(!said)
        #expect(rig.actions.contains(.unlink(Rig.id)))
        rig.give(.unlinked(Rig.id, gone: true))
        #expect(rig.actions.contains(.answerUnlinked(Rig.id, revision: 21, to: later.node)))
    }

    // MARK: Outcomes

    /// The member has everything in memory and says nothing of its sync: it is asked with octets, since an empty OUTCOME is no frame.
    @Test func emptyOutcomeIsSent() {
        var rig = Rig()
        rig.list([], alive: [Rig.otherNode])
        rig.give(.keyStored(Rig.key(Rig.own, drainer: Rig.me)))
        rig.give(.outcomesAdvanced(Rig.own, epoch: 1, end: 100, synced: 100))
        rig.give(.recorded(Rig.own, epoch: 1, memory: 100, synced: 0, from: Rig.other))
        rig.pass(.milliseconds(400))
        #expect(rig.actions.contains(.sendOutcomes(Rig.own, epoch: 1, to: Rig.theirs, from: 99, upTo: 100)))
        rig.give(.recorded(Rig.own, epoch: 1, memory: 100, synced: 100, from: Rig.other))
        rig.pass(.milliseconds(400))
        let again = rig.actions.contains { if case .sendOutcomes = $0 { true } else { false } }
        #expect(!again)
    }

    // MARK: Disks

    /// A partner that promises, and whose disk takes no outcomes: nothing would be settled, and the window would stay full.
    @Test func backupThatStoresNothingHoldsTheWindow() {
        var rig = Rig()
        rig.list([], alive: [Rig.otherNode])
        rig.give(.keyStored(Rig.key(Rig.own, drainer: Rig.me)))
        rig.give(.outcomesAdvanced(Rig.own, epoch: 1, end: 100, synced: 100))
        for round in 0..<30 {
            rig.give(.promised([PromiseItem(segment: Rig.own, epoch: 1)], sentAt: rig.now, from: Rig.other))
            rig.give(.reported(Rig.own, epoch: 1, .failed, from: Rig.other))
            rig.pass(.milliseconds(100))
            guard let stale = rig.stores.first else { continue }
            #expect(round >= 18, "after \(round) tenths of a second")
            #expect(stale.stale == [Rig.theirs])
            rig.commit(stale, revision: 6)
            #expect(rig.actions.contains(.settled(Rig.own, epoch: 1, upTo: 100)))
            return
        }
        Issue.record("never marked stale")
    }

    @Test func backupThatIsOnlyALittleBehindIsMarkedStale() {
        var rig = Rig()
        rig.list([], alive: [Rig.otherNode])
        rig.give(.keyStored(Rig.key(Rig.own, drainer: Rig.me)))
        for round in 1...60 {
            rig.give(.outcomesAdvanced(Rig.own, epoch: 1, end: Int64(round) * 100, synced: 0))
            rig.pass(.milliseconds(100))
            rig.give(.promised([PromiseItem(segment: Rig.own, epoch: 1)], sentAt: rig.now, from: Rig.other))
            rig.give(
                .recorded(Rig.own, epoch: 1, memory: Int64(round) * 100 - 50, synced: 0, from: Rig.other))
            #expect(rig.stores.isEmpty)
        }
    }

    @Test func failedCopyIsNeverReplaced() {
        for report in [MemberReport.failed, .missing] {
            var rig = Rig()
            rig.list([], alive: [Rig.otherNode, Rig.thirdNode])
            var key = Rig.key(Rig.own, drainer: Rig.me)
            key.state = .sealed(at: 4096)
            key.stale = [Rig.theirs]
            rig.give(.keyStored(key))
            var joining: EnsembleMember?
            for _ in 0..<150 where joining == nil {
                rig.pass(.milliseconds(100))
                joining = rig.stores.first?.joining
                rig.give(.reported(Rig.own, epoch: 1, report, from: Rig.other))
                joining = joining ?? rig.stores.first?.joining
            }
            #expect(joining == Rig.third, "\(report)")
        }
    }

    /// T1: as for a member that is down; nothing is cut, and what is valid here is drained.
    @Test func takeoverWaitsForAFailedCopyForEver() {
        var rig = Rig()
        var key = Rig.key()
        key.ensemble.append(Rig.third)
        rig.list([key], alive: [Rig.thirdNode])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(.copySealed(Rig.id, epoch: 2, .sealed(.init(end: 4096, tailInvalid: true, outcomeOctets: 0))))
        var adopted = false
        for _ in 0..<80 where !adopted {
            rig.pass(.milliseconds(100))
            rig.give(.reported(Rig.id, epoch: 2, .failed, from: Rig.thirdRun))
            adopted = rig.actions.contains { if case .adopt(let key) = $0 { key.state == .open } else { false } }
            if adopted { #expect(rig.now >= Instant(secondsSinceEpoch: 1_005) + rig.state.timing.recopyAfter) }
        }
        #expect(adopted)
    }

    @Test func takerWithAFailedDiskKeepsTheSegment() {
        func heir(_ report: MemberReport?) -> SegmentKey? {
            var rig = Rig()
            var key = Rig.key()
            key.ensemble.append(Rig.third)
            rig.list([key], alive: [Rig.thirdNode])
            if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
            if let report { rig.give(.reported(Rig.id, epoch: 2, report, from: Rig.thirdRun)) }
            rig.give(.copySealed(Rig.id, epoch: 2, .failed))
            for _ in 0..<100 {
                rig.pass(.milliseconds(100))
                let handed = rig.stores.first
                if rig.actions.contains(.seal(Rig.id, epoch: 2)) {
                    rig.give(.copySealed(Rig.id, epoch: 2, .failed))
                }
                if let handed {
                    rig.commit(handed, revision: 7)
                    #expect(rig.state.drains[Rig.id] == nil)
                    return handed
                }
            }
            return nil
        }
        let handed = heir(.sealed(end: 4096, tailInvalid: false, outcomeOctets: 0))
        #expect(handed?.drainer == Rig.thirdRun)
        #expect(handed?.drainEpoch == 3)
        #expect(handed?.stale == [Rig.mine], "it might take it over again")
        #expect(heir(.missing) == nil, "nobody else has it")
        #expect(heir(nil) == nil)
    }

    @Test func joinerWithAFullDiskIsCopiedToForEver() {
        var rig = Rig()
        rig.list([], alive: [Rig.thirdNode])
        var key = Rig.key(Rig.own, drainer: Rig.me)
        key.state = .sealed(at: 4096)
        key.stale = [Rig.theirs]
        rig.give(.keyStored(key))
        var copies = 0
        for _ in 0..<200 {
            rig.pass(.milliseconds(100))
            if let wanted = rig.stores.first {
                if wanted.former == [Rig.third], wanted.joining == nil {
                    #expect(copies == rig.state.timing.recopyTries)
                    return
                }
                rig.commit(wanted, revision: rig.state.registry.keys[Rig.own].map { $0.revision + 1 } ?? 6)
            }
            let begun = rig.actions.contains { if case .copy = $0 { true } else { false } }
            guard begun else { continue }
            copies += 1
            rig.give(.copied(Rig.own, epoch: 1, Rig.third, complete: true))
            rig.give(
                .reported(Rig.own, epoch: 1, .sealed(end: 0, tailInvalid: false, outcomeOctets: 0), from: Rig.thirdRun))
        }
        Issue.record("\(copies) copies")
    }
}
