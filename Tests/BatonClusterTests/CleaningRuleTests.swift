// Rules of a cleaning in a cluster, one value each: when it begins, what commits it, what voids it, when the source may forget it.
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonCluster

/// This node writes a sealed segment and an open one, whose members are all there.
struct CleaningRig {
    static let source = TakeoverRig.own
    static let target = SegmentID(writer: TakeoverRig.me.node, incarnation: TakeoverRig.me.incarnation, index: 1)
    static let next = SegmentID(writer: TakeoverRig.me.node, incarnation: TakeoverRig.me.incarnation, index: 2)

    var rig = TakeoverRig()
    var revision: UInt64 = 20

    static var sourceKey: SegmentKey {
        var key = TakeoverRig.key(source, drainer: TakeoverRig.me, revision: 5)
        key.state = .sealed(at: 8192)
        return key
    }

    init(source: SegmentKey = Self.sourceKey, alive: [NodeRecord] = [TakeoverRig.otherNode], promised: Bool = true) {
        rig.list(
            [
                source, TakeoverRig.key(Self.target, drainer: TakeoverRig.me, revision: 6),
                TakeoverRig.key(Self.next, drainer: TakeoverRig.me, revision: 7),
            ], alive: alive)
        if promised { promise() }
        sync(Self.source, 100)
    }

    mutating func promise() {
        let items = [Self.source, Self.target, Self.next].map { PromiseItem(segment: $0, epoch: 1) }
        rig.give(.promised(items, sentAt: rig.now, from: TakeoverRig.other))
    }

    /// Both members have so much of the log on disk.
    mutating func sync(_ id: SegmentID, _ end: Int64) {
        rig.give(.outcomesAdvanced(id, epoch: 1, end: end, synced: end))
        rig.give(.recorded(id, epoch: 1, memory: end, synced: end, from: TakeoverRig.other))
    }

    mutating func offer(into target: SegmentID = Self.target) {
        rig.give(.cleanable([Self.source], into: target))
    }

    /// What the last event stored lands.
    @discardableResult
    mutating func commit() -> SegmentKey? {
        guard let key = stores.first else { return nil }
        revision += 1
        rig.commit(key, revision: revision)
        var stored = key
        stored.revision = revision
        return stored
    }

    /// Up to the moment at which the copies stand in the target.
    mutating func move() {
        offer()
        commit()
    }

    /// Of the source's key.
    var stores: [SegmentKey] { rig.stores.filter { $0.id == Self.source } }

    var moves: [SegmentKey] {
        rig.actions.compactMap { if case .move(let key) = $0 { key } else { nil } }
    }

    var settles: [Bool] {
        rig.actions.compactMap { if case .settleMove(_, _, _, let alive) = $0 { alive } else { nil } }
    }

    var removes: Int {
        rig.actions.count { if case .control(.remove) = $0 { true } else { false } }
    }

    var isPermitted: Bool { rig.state.drains[Self.source]?.permitted != nil }
}

@Suite struct CleaningRuleTests {
    @Test func cleaningNamesItsTargetMovesCommitsAndForgetsOnlyWhatEveryMemberKnows() throws {
        var clean = CleaningRig()
        #expect(clean.isPermitted)
        clean.offer()
        #expect(clean.stores.first?.target == CleaningRig.target, "C2 i")
        #expect(clean.moves.isEmpty, "moved before the key is known to name the target")
        #expect(!clean.isPermitted, "m is attempted while it moves")
        let named = clean.commit()
        #expect(clean.moves == [named].compactMap { $0 })
        clean.promise()
        clean.rig.pass(.milliseconds(100))
        #expect(clean.stores.isEmpty, "committed before anything has landed")
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: true))
        let finish = try #require(clean.stores.first)
        #expect(finish.state == .finished && finish.finishedEpoch == 1 && finish.target == CleaningRig.target)
        #expect(clean.settles.isEmpty, "decided before the commit is known")
        clean.commit()
        #expect(clean.settles == [true])
        func isUnlinked() -> Bool { clean.rig.actions.contains(.unlink(CleaningRig.source)) }
        // Key and files have to stay while the target's log does not say what became of the move.
        clean.promise()
        clean.rig.pass(.seconds(1))
        #expect(clean.removes == 0 && clean.stores.isEmpty && !isUnlinked())
        clean.rig.give(.moveSettled(CleaningRig.source, epoch: 1, end: 50))
        #expect(clean.stores.isEmpty)
        clean.rig.give(.outcomesAdvanced(CleaningRig.target, epoch: 1, end: 60, synced: 60))
        clean.rig.give(
            .recorded(CleaningRig.target, epoch: 1, memory: 60, synced: 40, from: TakeoverRig.other))
        clean.promise()
        clean.rig.pass(.seconds(1))
        #expect(clean.removes == 0 && clean.stores.isEmpty, "a member has the decision in memory only")
        clean.rig.give(
            .recorded(CleaningRig.target, epoch: 1, memory: 60, synced: 60, from: TakeoverRig.other))
        clean.promise()
        clean.rig.pass(.milliseconds(100))
        #expect(clean.stores.first?.target == nil && clean.stores.count == 1 && !isUnlinked())
        clean.commit()
        #expect(isUnlinked(), "the files stay for ever")
        clean.rig.give(.unlinked(CleaningRig.source, gone: true))
        #expect(clean.removes == 0)
        clean.rig.give(.unlinkedElsewhere(CleaningRig.source, disk: 2, revision: 9, from: TakeoverRig.other))
        #expect(clean.removes == 1, "the key stays for ever")
    }

    /// Behind a control plane that was set back its key may name this node although another one had taken it over.
    @Test func cleaningIsCommittedThoughNobodyPromisesAnyMore() {
        var clean = CleaningRig()
        clean.move()
        clean.rig.pass(.seconds(5))
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: true))
        #expect(clean.stores.isEmpty)
        clean.promise()
        clean.rig.pass(.milliseconds(100))
        #expect(clean.stores.first?.state == .finished)
    }

    /// It may have drained the segment in a registry that is lost, and distrusts the present one.
    @Test func runThatHasAcceptedNoListingPromises() {
        var rig = TakeoverRig()
        rig.give(.copyCreated(TakeoverRig.id))
        func promises() -> Int {
            rig.actions.count { if case .promise(let items, _, _, _) = $0 { !items.isEmpty } else { false } }
        }
        let ask = TakeoverEvent.promiseAsked(
            [PromiseItem(segment: TakeoverRig.id, epoch: 1)], number: 1, sentAt: 0, from: TakeoverRig.other)
        rig.give(ask)
        #expect(promises() == 0)
        rig.list([TakeoverRig.key()], alive: [TakeoverRig.otherNode])
        rig.give(ask)
        #expect(promises() == 1)
    }

    /// The control plane may come back from before the commit, and then the source has to be there.
    @Test func memberUnlinksTheSourceBeforeTheTargetSaysWhatBecameOfTheMove() {
        for targetIsFinished in [false, true] {
            var rig = TakeoverRig()
            var source = TakeoverRig.key()
            let next = SegmentID(writer: source.id.writer, incarnation: source.id.incarnation, index: 1)
            var target = TakeoverRig.key(next, revision: 15)
            (source.state, target.state) = (.sealed(at: 8192), .sealed(at: 4096))
            source.target = target.id
            source.finish()
            source.revision = 20
            rig.list([source, target], alive: [TakeoverRig.otherNode])
            #expect(!rig.actions.contains(.unlink(source.id)))
            rig.give(.finishedAsked(source.id, from: TakeoverRig.other))
            rig.pass(.seconds(3))
            #expect(!rig.actions.contains(.unlink(source.id)), "asked by one who may know less")
            if targetIsFinished {
                target.finish()
                target.revision = 30
            } else {
                source.target = nil
                source.revision = 30
            }
            rig.list([source, target], alive: [TakeoverRig.otherNode])
            #expect(rig.actions.contains(.unlink(source.id)), "the file stays for ever")
        }
    }

    @Test func segmentThatIsNotWholeSafeAndPermittedIsNotCleaned() {
        var silent = CleaningRig(promised: false)
        let items = [CleaningRig.target, CleaningRig.next].map { PromiseItem(segment: $0, epoch: 1) }
        silent.rig.give(.promised(items, sentAt: silent.rig.now, from: TakeoverRig.other))
        silent.offer()
        #expect(silent.rig.stores.isEmpty, "a former drainer may still send (11)")

        var key = CleaningRig.sourceKey
        key.stale = [TakeoverRig.theirs]
        var stale = CleaningRig(source: key)
        stale.offer()
        #expect(stale.rig.stores.allSatisfy { $0.target == nil })

        key = CleaningRig.sourceKey
        key.joining = TakeoverRig.third
        var joining = CleaningRig(source: key, alive: [TakeoverRig.otherNode, TakeoverRig.thirdNode])
        joining.offer()
        #expect(joining.rig.stores.allSatisfy { $0.target == nil })

        key = CleaningRig.sourceKey
        key.state = .open
        var open = CleaningRig(source: key)
        open.offer()
        #expect(open.rig.stores.allSatisfy { $0.target == nil })

        var dead = CleaningRig()
        dead.rig.list([], alive: [])
        dead.offer()
        #expect(dead.rig.stores.allSatisfy { $0.target == nil })

        var behind = CleaningRig()
        behind.rig.give(.outcomesAdvanced(CleaningRig.source, epoch: 1, end: 200, synced: 200))
        behind.offer()
        #expect(behind.rig.stores.isEmpty, "outcomes of other messages are not on every disk")

        key = CleaningRig.sourceKey
        key.target = TakeoverRig.id
        var undecided = CleaningRig(source: key)
        undecided.offer()
        #expect(
            undecided.rig.stores.allSatisfy { $0.target != CleaningRig.target }, "its former cleaning is not settled")

        var elsewhere = CleaningRig()
        elsewhere.offer(into: TakeoverRig.id)
        #expect(elsewhere.rig.stores.isEmpty, "a target that this run does not write")

        var leaving = CleaningRig()
        leaving.rig.give(.leaving)
        leaving.offer()
        #expect(leaving.rig.stores.isEmpty)
    }

    @Test func onlyOneCleaningIsUnderWay() {
        var clean = CleaningRig()
        clean.offer()
        clean.commit()
        clean.offer(into: CleaningRig.next)
        #expect(clean.rig.stores.isEmpty && clean.moves.isEmpty)
    }

    @Test func cleaningThatComesToNothingIsVoidOnTheKeyBeforeMailIsSentAgain() throws {
        var clean = CleaningRig()
        clean.move()
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: false))
        let void = try #require(clean.rig.stores.first)
        #expect(void.targetVoid && void.target == CleaningRig.target && void.sealedAt == 8192 && void.drainEpoch == 1)
        #expect(!clean.isPermitted, "sent before the copies are void")
        clean.commit()
        #expect(clean.settles == [false])
        #expect(clean.isPermitted)
        // What drains itself meanwhile is finished as any segment, and that makes no copy live.
        clean.rig.give(.moveSettled(CleaningRig.source, epoch: 1, end: 30))
        clean.rig.pass(.milliseconds(100))
        #expect(clean.rig.stores.isEmpty)
        clean.sync(CleaningRig.target, 30)
        clean.promise()
        clean.rig.pass(.milliseconds(100))
        let cleared = try #require(clean.rig.stores.first)
        #expect(cleared.target == nil && !cleared.targetVoid)
        clean.commit()
        // Both cleanings' copies would have the same name there.
        clean.offer()
        #expect(clean.rig.stores.isEmpty, "moved into the same target a second time")
        clean.offer(into: CleaningRig.next)
        #expect(clean.rig.stores.first?.target == CleaningRig.next)
    }

    @Test func segmentIsMovedAgainAndAgain() {
        var clean = CleaningRig()
        let tries = TakeoverTiming().cleanings
        for index in 0...tries {
            let target = SegmentID(
                writer: TakeoverRig.me.node, incarnation: TakeoverRig.me.incarnation, index: UInt64(100 + index))
            clean.rig.give(.keyStored(TakeoverRig.key(target, drainer: TakeoverRig.me, revision: 1)))
            clean.promise()
            clean.rig.give(
                .promised(
                    [PromiseItem(segment: target, epoch: 1)], sentAt: clean.rig.now, from: TakeoverRig.other))
            clean.offer(into: target)
            #expect(clean.stores.isEmpty == (index == tries), "try \(index)")
            clean.commit()
            clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: false))
            clean.commit()
            clean.rig.give(.moveSettled(CleaningRig.source, epoch: 1, end: 0))
            clean.commit()
        }
    }

    @Test func decisionThatFoundNoRoomIsForgotten() {
        var clean = CleaningRig()
        clean.move()
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: true))
        clean.commit()
        #expect(clean.settles == [true])
        clean.rig.give(.moveSettled(CleaningRig.source, epoch: 1, end: nil))
        clean.rig.pass(.milliseconds(100))
        #expect(clean.settles.isEmpty && clean.stores.isEmpty)
        clean.rig.pass(.seconds(2))
        #expect(clean.settles == [true])
    }

    @Test func cleaningThatTakesTooLongIsGivenUp() {
        var clean = CleaningRig()
        clean.move()
        clean.rig.pass(.seconds(11))
        clean.rig.pass(.milliseconds(100))
        #expect(clean.rig.stores.first?.targetVoid == true)
        // Late news of the copies change nothing.
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: true))
        #expect(clean.rig.stores.allSatisfy { $0.state != .finished })
    }

    @Test(arguments: [true, false]) func answerToTheCommitIsLost(_ landed: Bool) throws {
        var clean = CleaningRig()
        clean.move()
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: true))
        let finish = try #require(clean.rig.stores.first)
        clean.rig.give(.control(.store(finish, .none), .unknown))
        #expect(clean.settles.isEmpty && !clean.isPermitted, "decided without knowing")
        clean.rig.pass(.milliseconds(100))
        #expect(clean.rig.actions.contains(.control(.read(CleaningRig.source))))
        var there = finish
        if landed {
            there.revision = 30
        } else {
            there.state = .sealed(at: 8192)
            there.finishedEpoch = 0
        }
        clean.rig.give(.control(.read(CleaningRig.source), .key(there)))
        if landed {
            #expect(clean.settles == [true])
        } else {
            clean.rig.pass(.milliseconds(100))
            #expect(clean.rig.stores.first?.state == .finished, "asked once only")
            #expect(clean.settles.isEmpty)
        }
    }

    @Test(arguments: [true, false]) func answerToTheFirstChangeIsLost(_ landed: Bool) throws {
        var clean = CleaningRig()
        clean.offer()
        let naming = try #require(clean.rig.stores.first)
        clean.rig.give(.control(.store(naming, .none), .unknown))
        #expect(clean.moves.isEmpty)
        clean.rig.pass(.milliseconds(100))
        var there = naming
        if landed { there.revision = 30 } else { there.target = nil }
        clean.rig.give(.control(.read(CleaningRig.source), .key(there)))
        clean.rig.pass(.milliseconds(100))
        if landed {
            #expect(clean.rig.state.cleaning?.phase == .moving)
        } else {
            #expect(clean.rig.state.cleaning == nil)
            clean.promise()
            #expect(clean.isPermitted)
            // It lands all the same, much later: nothing was moved, and the key is as before.
            there = naming
            there.revision = 31
            clean.rig.give(.control(.read(CleaningRig.source), .key(there)))
            clean.rig.pass(.milliseconds(100))
            #expect(clean.moves.isEmpty)
            #expect(clean.rig.stores.first.map { $0.target == nil } == true, "the key names a target for ever")
        }
    }

    @Test func answerToTheVoidingIsLostAndTheCommitHadLanded() throws {
        var clean = CleaningRig()
        clean.move()
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: true))
        let finish = try #require(clean.rig.stores.first)
        clean.rig.give(.control(.store(finish, .none), .unknown))
        clean.rig.pass(.seconds(11))
        // Read at the old revision: the commit may land yet.
        var there = finish
        there.state = .sealed(at: 8192)
        there.finishedEpoch = 0
        clean.rig.give(.control(.read(CleaningRig.source), .key(there)))
        clean.rig.pass(.milliseconds(100))
        clean.rig.pass(.milliseconds(100))
        let void = clean.rig.state.registry.changes[CleaningRig.source]?.key
        #expect(void?.targetVoid == true && void?.state != .finished)
        var landed = finish
        landed.revision = 30
        clean.rig.give(.control(.store(try #require(void), .none), .refused(landed, condition: false)))
        #expect(clean.settles == [true], "committed, and taken for void")
    }

    @Test func takeoverOfTheSourceMakesTheMoveVoid() throws {
        var clean = CleaningRig()
        clean.move()
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: true))
        let finish = try #require(clean.rig.stores.first)
        var taken = CleaningRig.sourceKey
        taken.target = CleaningRig.target
        taken.drainer = TakeoverRig.other
        taken.drainEpoch = 2
        taken.revision = 30
        clean.rig.give(.control(.store(finish, .none), .refused(taken, condition: false)))
        #expect(clean.settles == [false])
        clean.rig.give(.moveSettled(CleaningRig.source, epoch: 1, end: 30))
        clean.sync(CleaningRig.target, 30)
        clean.rig.pass(.milliseconds(100))
        #expect(clean.rig.stores.first?.target == nil, "the target's drainer clears it, whoever drains the source")
    }

    @Test func takerOfTheTargetMakesTheMoveVoid() throws {
        var clean = CleaningRig()
        clean.move()
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: true))
        let finish = try #require(clean.rig.stores.first)
        var void = CleaningRig.sourceKey
        void.target = CleaningRig.target
        void.targetVoid = true
        void.revision = 30
        clean.rig.give(.control(.store(finish, .none), .refused(void, condition: false)))
        #expect(clean.settles == [false])
        clean.promise()
        #expect(clean.isPermitted)
    }

    @Test func sourceThatDrainsItselfWhileItMovesIsNotFinishedPastTheMove() {
        var clean = CleaningRig()
        clean.move()
        clean.rig.give(.drained(CleaningRig.source))
        #expect(clean.stores.isEmpty, "finished at the epoch of copies that have not landed")
        clean.rig.pass(.milliseconds(100))
        #expect(clean.rig.stores.isEmpty, "finished at the epoch of copies that have not landed")
    }

    @Test func targetThatIsNotWrittenHereAnyMoreCommitsNothing() throws {
        var clean = CleaningRig()
        clean.move()
        var taken = TakeoverRig.key(CleaningRig.target, drainer: TakeoverRig.other, revision: 40)
        taken.drainEpoch = 2
        taken.state = .sealed(at: 4096)
        clean.rig.give(.keyStored(taken))
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: true))
        clean.rig.pass(.milliseconds(100))
        #expect(clean.rig.stores.allSatisfy { $0.state != .finished })
        #expect(clean.rig.stores.contains { $0.targetVoid })
    }

    // MARK: The target's taker

    /// This node has taken the target over, in which another one moved something.
    private func taker(stale: [EnsembleMember] = []) -> TakeoverRig {
        var rig = TakeoverRig()
        rig.take()
        var source = TakeoverRig.key(
            SegmentID(writer: TakeoverRig.other.node, incarnation: TakeoverRig.other.incarnation, index: 9),
            drainer: TakeoverRig.thirdRun, revision: 50)
        source.state = .finished
        source.finishedEpoch = 1
        source.target = TakeoverRig.id
        var key = TakeoverRig.key(drainer: TakeoverRig.me, revision: 60)
        key.drainEpoch = 2
        key.state = .sealed(at: 8192)
        key.stale = stale
        rig.list([key, source], alive: [TakeoverRig.otherNode, TakeoverRig.thirdNode])
        return rig
    }

    private func clears(_ rig: TakeoverRig) -> Bool {
        rig.stores.contains { $0.state == .finished && $0.target == nil }
    }

    @Test func takerOfTheTargetClearsTheSourceOnlyOnceEveryMemberHasTheDecision() {
        var rig = taker()
        rig.pass(.milliseconds(100))
        #expect(!clears(rig), "nothing is known to be written yet")
        rig.give(.outcomesAdvanced(TakeoverRig.id, epoch: 2, end: 80, synced: 80))
        rig.pass(.milliseconds(100))
        #expect(!clears(rig), "the other member lacks it")
        let items = [PromiseItem(segment: TakeoverRig.id, epoch: 2)]
        rig.give(.promised(items, sentAt: rig.now, from: TakeoverRig.other))
        rig.give(.recorded(TakeoverRig.id, epoch: 2, memory: 80, synced: 80, from: TakeoverRig.other))
        rig.pass(.milliseconds(100))
        #expect(clears(rig))
    }

    @Test func staleMemberOfTheTargetKeepsTheSourcesKey() {
        var rig = taker(stale: [TakeoverRig.theirs])
        rig.give(.outcomesAdvanced(TakeoverRig.id, epoch: 2, end: 80, synced: 80))
        rig.give(.recorded(TakeoverRig.id, epoch: 2, memory: 80, synced: 80, from: TakeoverRig.other))
        rig.pass(.milliseconds(100))
        #expect(!clears(rig), "as the last copy it would not know what became of the move (24)")
    }

    @Test func keyOfAFinishedSourceIsRemovedWhereItsTargetIsGone() {
        var clean = CleaningRig()
        clean.move()
        clean.rig.give(.moved(CleaningRig.source, epoch: 1, landed: true))
        let finished = clean.commit()
        clean.rig.give(.unlinked(CleaningRig.source, gone: true))
        clean.rig.give(.unlinkedElsewhere(CleaningRig.source, disk: 2, revision: 9, from: TakeoverRig.other))
        clean.rig.give(.moveSettled(CleaningRig.source, epoch: 1, end: 30))
        var target = TakeoverRig.key(CleaningRig.target, drainer: TakeoverRig.me, revision: 70)
        target.state = .finished
        clean.rig.list([target] + [finished].compactMap { $0 }, alive: [TakeoverRig.otherNode])
        clean.rig.pass(.seconds(1))
        let cleared = clean.rig.stores.contains { $0.id == CleaningRig.source && $0.target == nil }
        #expect(clean.removes == 1 || cleared)
    }
}
