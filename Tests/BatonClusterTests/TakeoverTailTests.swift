// Copies of different lengths (PROTOCOL T1): what stands in the longer one is read by somebody, and is never finished unread.
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonCluster

private typealias Rig = TakeoverRig

@Suite struct TakeoverTailTests {
    private func report(_ end: Int64, torn: Bool = false) -> CopySeal {
        .sealed(BatonSpool.CopyReport(end: end, tailInvalid: torn, outcomeOctets: 0))
    }

    /// The other member is down; the own tail is not valid: what is valid is drained, nothing is cut.
    private func shortDrain(sealedAt: Int64? = nil) -> Rig {
        var rig = Rig()
        var key = Rig.key()
        if let sealedAt { key.state = .sealed(at: sealedAt) }
        rig.list([key], alive: [])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(.copySealed(Rig.id, epoch: 2, report(4096, torn: true)))
        rig.give(.adopted(Rig.id, epoch: 2, success: true))
        rig.give(.outcomesAdvanced(Rig.id, epoch: 2, end: 64, synced: 64))
        rig.pass(.milliseconds(600))
        #expect(rig.stores.first?.stale == [Rig.theirs])
        if let stale = rig.stores.first { rig.commit(stale, revision: 7) }
        #expect(rig.permits.last == .some(.some(Instant(nanoseconds: .max))))
        return rig
    }

    @Test func longerCopyElsewhereIsCut() {
        var rig = Rig()
        var key = Rig.key()
        key.ensemble.append(Rig.third)
        rig.list([key], alive: [Rig.thirdNode])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(.copySealed(Rig.id, epoch: 2, report(4096)))
        rig.give(
            .reported(Rig.id, epoch: 2, .sealed(end: 8192, tailInvalid: false, outcomeOctets: 0), from: Rig.thirdRun))
        rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.third, complete: true))
        #expect(rig.actions.contains(.repair(Rig.id, epoch: 2, from: Rig.third, start: 4096, upTo: 8192)))
        rig.give(.repaired(Rig.id, epoch: 2, complete: true))
        rig.give(.copySealed(Rig.id, epoch: 2, report(8192)))
        #expect(rig.stores.first?.sealedAt == 8192)
    }

    /// Each copy is damaged somewhere else: together they have everything.
    @Test func chunksThatAnotherCopyHasAreCut() {
        for sealedAt: Int64? in [nil, 40_960] {
            var rig = Rig()
            var key = Rig.key()
            if let sealedAt { key.state = .sealed(at: sealedAt) }
            key.ensemble.append(Rig.third)
            rig.list([key], alive: [Rig.thirdNode])
            if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
            rig.give(.copySealed(Rig.id, epoch: 2, report(8192, torn: true)))
            rig.give(
                .reported(
                    Rig.id, epoch: 2, .sealed(end: 20_480, tailInvalid: true, outcomeOctets: 0), from: Rig.thirdRun))
            rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.third, complete: true))
            if sealedAt == nil {
                // The member that is down is waited for (T1); what can be read is read.
                #expect(rig.stores.isEmpty)
                continue
            }
            // First what its report covers, then what stands behind its damage.
            #expect(rig.actions.contains(.repair(Rig.id, epoch: 2, from: Rig.third, start: 8192, upTo: 20_480)))
            rig.give(.repaired(Rig.id, epoch: 2, complete: true))
            rig.give(.copySealed(Rig.id, epoch: 2, report(28_672, torn: true)))
            #expect(
                rig.actions.contains(.mend(Rig.id, epoch: 2, at: 28_672, upTo: 40_960, of: [Rig.third])))
            rig.give(.mended(Rig.id, epoch: 2, .repaired))
            #expect(rig.actions.contains(.seal(Rig.id, epoch: 2)))
            rig.give(.copySealed(Rig.id, epoch: 2, report(40_960)))
            #expect(rig.actions.contains { if case .adopt = $0 { true } else { false } })
        }
    }

    @Test func segmentIsCutWhereBothCopiesAreDamagedButElsewhere() {
        var rig = Rig()
        let next = Drainer(node: Rig.other.node, incarnation: Incarnation(value: 23))
        rig.list([Rig.key()], alive: [NodeRecord(node: next.node, incarnation: next.incarnation, disk: 2)])
        rig.pass(.seconds(3))
        rig.list([Rig.key()], alive: [NodeRecord(node: next.node, incarnation: next.incarnation, disk: 2)])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(.copySealed(Rig.id, epoch: 2, report(20_480, torn: true)))
        rig.give(.reported(Rig.id, epoch: 2, .sealed(end: 8192, tailInvalid: true, outcomeOctets: 0), from: next))
        rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.theirs, complete: true))
        #expect(rig.stores.isEmpty, "n is set where this copy is damaged")
        #expect(rig.actions.contains(.mend(Rig.id, epoch: 2, at: 20_480, upTo: .max, of: [Rig.theirs])))
        rig.give(.mended(Rig.id, epoch: 2, .repaired))
        rig.give(.copySealed(Rig.id, epoch: 2, report(40_960)))
        #expect(rig.stores.first?.sealedAt == 40_960)
    }

    @Test func repairThatBringsNothingIsBegunWithoutPause() {
        var rig = Rig()
        var key = Rig.key()
        key.ensemble.append(Rig.third)
        rig.list([key], alive: [Rig.thirdNode])
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(.copySealed(Rig.id, epoch: 2, report(4096)))
        let longer = TakeoverEvent.reported(
            Rig.id, epoch: 2, .sealed(end: 8192, tailInvalid: false, outcomeOctets: 0), from: Rig.thirdRun)
        rig.give(longer)
        rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.third, complete: true))
        let repair = TakeoverAction.repair(Rig.id, epoch: 2, from: Rig.third, start: 4096, upTo: 8192)
        #expect(rig.actions.contains(repair))
        rig.give(.repaired(Rig.id, epoch: 2, complete: true))
        rig.give(.copySealed(Rig.id, epoch: 2, report(4096)))
        #expect(rig.actions.isEmpty)
        rig.pass(.seconds(1))
        #expect(rig.actions.contains(.askSeal(Rig.id, epoch: 2, of: Rig.third.node)))
        rig.give(longer)
        #expect(!rig.actions.contains(repair))
        rig.pass(.seconds(2))
        #expect(rig.actions.contains(repair))
    }

    @Test func tornTailOfBothCopiesIsAskedForForEver() {
        var rig = Rig()
        let next = Drainer(node: Rig.other.node, incarnation: Incarnation(value: 23))
        let alive = [NodeRecord(node: next.node, incarnation: next.incarnation, disk: 2)]
        rig.list([Rig.key()], alive: alive)
        rig.pass(.seconds(3))
        rig.list([Rig.key()], alive: alive)
        if let claim = rig.stores.first { rig.commit(claim, revision: 6) }
        rig.give(.copySealed(Rig.id, epoch: 2, report(8192, torn: true)))
        rig.give(.reported(Rig.id, epoch: 2, .sealed(end: 8192, tailInvalid: true, outcomeOctets: 0), from: next))
        rig.give(.outcomesFetched(Rig.id, epoch: 2, Rig.theirs, complete: true))
        #expect(rig.actions.contains(.mend(Rig.id, epoch: 2, at: 8192, upTo: .max, of: [Rig.theirs])))
        // A member that lives and does not answer is waited for.
        rig.give(.mended(Rig.id, epoch: 2, .unanswered))
        #expect(rig.stores.isEmpty, "cut without its word")
        rig.pass(.seconds(2))
        #expect(rig.actions.contains(.seal(Rig.id, epoch: 2)))
        rig.give(.copySealed(Rig.id, epoch: 2, report(8192, torn: true)))
        #expect(rig.actions.contains(.mend(Rig.id, epoch: 2, at: 8192, upTo: .max, of: [Rig.theirs])))
        rig.give(.mended(Rig.id, epoch: 2, .nowhere))
        #expect(rig.stores.first?.sealedAt == 8192)
    }

    /// Its node is back, with what this one could not read: it drains the segment from then on.
    @Test func lateTailWaitsForTheNextTakeover() {
        var rig = shortDrain()
        let back = Drainer(node: Rig.other.node, incarnation: Incarnation(value: 23))
        rig.list(
            [rig.state.registry.keys[Rig.id]].compactMap { $0 },
            alive: [NodeRecord(node: back.node, incarnation: back.incarnation, disk: 2)])
        rig.give(.met(back))
        rig.pass(.milliseconds(400))
        #expect(rig.actions.contains(.askSeal(Rig.id, epoch: 2, of: back.node)))
        rig.give(.reported(Rig.id, epoch: 2, .sealed(end: 8192, tailInvalid: false, outcomeOctets: 0), from: back))
        rig.give(.promised([PromiseItem(segment: Rig.id, epoch: 2)], sentAt: rig.now, from: back))
        rig.give(.recorded(Rig.id, epoch: 2, memory: 64, synced: 64, from: back))
        guard let returned = rig.stores.first else {
            Issue.record("it stays stale")
            return
        }
        #expect(returned.stale == [])
        rig.commit(returned, revision: 8)
        rig.pass(.milliseconds(100))
        #expect(rig.permits.last == .some(nil), "dots go on while the segment is handed over")
        #expect(rig.stores.isEmpty, "handed over before the open dots have ended")
        var handed: SegmentKey?
        for _ in 0..<30 where handed == nil {
            rig.give(.promised([PromiseItem(segment: Rig.id, epoch: 2)], sentAt: rig.now, from: back))
            rig.pass(.milliseconds(100))
            handed = rig.stores.first
        }
        #expect(handed?.drainer == back)
        #expect(handed?.drainEpoch == 3)
        #expect(handed?.stale == [Rig.mine])
    }

    @Test func segmentIsFinishedWithItsTailUnread() {
        var rig = shortDrain(sealedAt: 8192)
        rig.give(.drained(Rig.id))
        rig.pass(.seconds(1))
        #expect(rig.stores.isEmpty)
        rig.list([rig.state.registry.keys[Rig.id]].compactMap { $0 }, alive: [], forgotten: [Rig.theirs])
        rig.pass(.seconds(1))
        #expect(rig.stores.first?.state == .finished, "nobody has it any more")
    }

    /// A node that left in order took its copy with it: it is neither lost (T1), nor does it unlock a stale one (P2).
    @Test func copyOfANodeThatLeftCountsAsLost() {
        var rig = shortDrain(sealedAt: 8192)
        rig.give(.drained(Rig.id))
        rig.list([rig.state.registry.keys[Rig.id]].compactMap { $0 }, alive: [], departed: [Rig.theirs])
        rig.pass(.seconds(1))
        #expect(rig.stores.isEmpty)
        var stale = Rig()
        var key = Rig.key()
        key.stale = [Rig.mine]
        stale.list([key], alive: [], departed: [Rig.theirs])
        #expect(stale.stores.isEmpty)
        var open = Rig()
        open.list([Rig.key()], alive: [], departed: [Rig.theirs])
        if let claim = open.stores.first { open.commit(claim, revision: 6) }
        open.give(.copySealed(Rig.id, epoch: 2, report(4096, torn: true)))
        #expect(open.stores.isEmpty, "the length is set without it")
    }

    @Test func leavingNodeClaims() {
        var rig = Rig()
        rig.give(.leaving)
        rig.list([Rig.key()], alive: [])
        #expect(rig.stores.isEmpty)
    }

    @Test func shortCopyIsCopiedOn() {
        var rig = shortDrain(sealedAt: 8192)
        let joiner = Rig.thirdNode
        rig.list([rig.state.registry.keys[Rig.id]].compactMap { $0 }, alive: [joiner])
        rig.pass(.milliseconds(100))
        rig.pass(.seconds(6))
        #expect(rig.stores.isEmpty)
    }

    @Test func shortMemberIsNeverReplaced() {
        var rig = Rig()
        var key = Rig.key(Rig.own, drainer: Rig.me)
        key.state = .sealed(at: 8192)
        key.stale = [Rig.theirs]
        rig.list(
            [], alive: [Rig.otherNode, Rig.thirdNode])
        rig.give(.keyStored(key))
        rig.give(.reported(Rig.own, epoch: 1, .sealed(end: 4096, tailInvalid: true, outcomeOctets: 0), from: Rig.other))
        rig.pass(.milliseconds(100))
        rig.pass(.seconds(6))
        #expect(rig.stores.first?.joining == Rig.third)
    }
}
