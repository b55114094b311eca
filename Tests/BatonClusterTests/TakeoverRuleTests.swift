// Single rules of TakeoverState, one at a time: who may claim, when a dot may go, what is settled, when a segment is finished.
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonCluster

/// One node's state with a clock and a control plane that answers what the test says.
private struct Rig {
    static let me = Drainer(node: NodeID(name: "n1"), incarnation: Incarnation(value: 11))
    static let other = Drainer(node: NodeID(name: "n2"), incarnation: Incarnation(value: 22))
    static let mine = EnsembleMember(node: me.node, diskID: 1)
    static let theirs = EnsembleMember(node: other.node, diskID: 2)
    static let id = SegmentID(writer: other.node, incarnation: other.incarnation, index: 0)
    static let own = SegmentID(writer: me.node, incarnation: me.incarnation, index: 0)

    var now = Instant(secondsSinceEpoch: 1_000)
    var state: TakeoverState
    var actions: [TakeoverAction] = []

    init() {
        state = TakeoverState(me: Self.me, disk: 1, seed: 1, at: now)
        give(.started(copies: [Self.id]))
        give(.registered)
        // T3 is over.
        now = now + .seconds(5)
    }

    mutating func give(_ event: TakeoverEvent) {
        var buffer = ActionBuffer<TakeoverAction>()
        state.receive(event, at: now, into: &buffer)
        actions = buffer.drain()
    }

    mutating func pass(_ span: TimeSpan) {
        now = now + span
        give(.tick)
    }

    mutating func list(_ keys: [SegmentKey], alive: [NodeRecord], forgotten: [EnsembleMember] = []) {
        let mine = NodeRecord(node: Self.me.node, incarnation: Self.me.incarnation, disk: 1)
        give(
            .control(
                .list,
                .listed(Listing(revision: 99, keys: keys, nodes: [mine] + alive, forgotten: forgotten))))
    }

    static var otherNode: NodeRecord {
        NodeRecord(node: other.node, incarnation: other.incarnation, disk: 2)
    }

    static func key(_ id: SegmentID = id, drainer: Drainer = other, revision: UInt64 = 5) -> SegmentKey {
        var key = SegmentKey(id: id, ensemble: [mine, theirs], drainer: drainer)
        key.revision = revision
        return key
    }

    /// The stores that the last event asked for.
    var stores: [SegmentKey] {
        actions.compactMap { action in
            if case .control(.store(let key, _)) = action { key } else { nil }
        }
    }

    var permits: [Instant?] {
        actions.compactMap { action in
            if case .permit(_, let until) = action { .some(until) } else { nil }
        }
    }

    mutating func commit(_ key: SegmentKey, revision: UInt64) {
        var stored = key
        stored.revision = revision
        give(.control(.store(key, .none), .committed(stored)))
    }
}

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

    @Test func strangerTakesOver() {
        var rig = Rig()
        var key = Rig.key()
        key.ensemble = [Rig.theirs, EnsembleMember(node: NodeID(name: "n3"), diskID: 3)]
        rig.list([key], alive: [])
        #expect(rig.stores.isEmpty)
    }

    /// Claims, seals, and returns once the sealed length is committed and the segment adopted.
    private func taken(_ rig: inout Rig, end: Int64 = 8192) {
        rig.list([Rig.key()], alive: [])
        guard let claim = rig.stores.first else { return }
        rig.commit(claim, revision: 6)
        let seals = rig.actions.contains(.seal(Rig.id, epoch: 2))
        #expect(seals, "the seal is not persisted first")
        rig.give(
            .copySealed(
                Rig.id, epoch: 2,
                .sealed(BatonSpool.CopyReport(end: end, tailInvalid: false, outcomeOctets: 0))))
        let fixed = rig.stores.first
        #expect(fixed?.sealedAt == end)
        if let fixed { rig.commit(fixed, revision: 7) }
        let adopts = rig.actions.contains { action in
            if case .adopt(let key) = action { key.sealedAt == end } else { false }
        }
        #expect(adopts)
        rig.give(.adopted(Rig.id, epoch: 2, success: true))
    }

    @Test func takenSegmentIsSentBeforeItIsReadAndPromised() {
        var rig = Rig()
        taken(&rig)
        // The dead member is no partner of a dot only once it is marked stale.
        #expect(rig.permits == [] || rig.permits == [nil])
        rig.pass(.milliseconds(600))
        rig.pass(.milliseconds(1_200))
        let stale = rig.stores.first
        #expect(stale?.stale == [Rig.theirs])
        if let stale { rig.commit(stale, revision: 8) }
        #expect(rig.permits.last == .some(.some(Instant(nanoseconds: .max))))
    }

    @Test func changeOfUnknownResultCountsAsDone() {
        var rig = Rig()
        taken(&rig)
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
        let third = EnsembleMember(node: NodeID(name: "n3"), diskID: 3)
        let run = Drainer(node: third.node, incarnation: Incarnation(value: 33))
        var key = Rig.key()
        key.ensemble.append(third)
        rig.list([key], alive: [NodeRecord(node: run.node, incarnation: run.incarnation, disk: 3)])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        #expect(rig.actions.contains(.askSeal(Rig.id, epoch: 2, of: run.node)))
        rig.give(
            .copySealed(
                Rig.id, epoch: 2,
                .sealed(BatonSpool.CopyReport(end: 4096, tailInvalid: false, outcomeOctets: 0))))
        #expect(rig.stores.isEmpty)
        rig.give(
            .reported(Rig.id, epoch: 2, .sealed(end: 4096, tailInvalid: false, outcomeOctets: 64), from: run))
        #expect(rig.actions.contains(.fetchOutcomes(Rig.id, epoch: 2, from: third, octets: 64)))
        #expect(rig.stores.isEmpty)
        rig.give(.outcomesFetched(Rig.id, epoch: 2, third, complete: true))
        #expect(rig.stores.first?.sealedAt == 4096)
    }

    @Test func memberThatAnswersBeforeTheOwnSealIsOnTheDiskIsWaitedForForEver() {
        var rig = Rig()
        let third = EnsembleMember(node: NodeID(name: "n3"), diskID: 3)
        let run = Drainer(node: third.node, incarnation: Incarnation(value: 33))
        var key = Rig.key()
        key.ensemble.append(third)
        rig.list([key], alive: [NodeRecord(node: run.node, incarnation: run.incarnation, disk: 3)])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(
            .reported(Rig.id, epoch: 2, .sealed(end: 4096, tailInvalid: false, outcomeOctets: 64), from: run))
        rig.give(
            .copySealed(
                Rig.id, epoch: 2,
                .sealed(BatonSpool.CopyReport(end: 4096, tailInvalid: false, outcomeOctets: 0))))
        #expect(rig.actions.contains(.fetchOutcomes(Rig.id, epoch: 2, from: third, octets: 64)))
        #expect(rig.stores.isEmpty)
        rig.give(.outcomesFetched(Rig.id, epoch: 2, third, complete: true))
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
        #expect(rig.actions.contains(.release(Rig.own)))
        rig.give(.unlinked(Rig.own, gone: true))
        #expect(rig.actions.contains(.askFinished(Rig.own, epoch: 1, of: Rig.other.node)))
        let early = rig.actions.contains { if case .control(.remove) = $0 { true } else { false } }
        #expect(!early, "the key goes before the backup's file")
        rig.give(.unlinkedElsewhere(Rig.own, disk: 2, from: Rig.other))
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
}
