// A registry that was set back: which answers are believed, and what reaches the rules of one that is not (docs/decisions/0010).
import BatonControlPlane
import BatonCore
import BatonModel
import BatonSpool
import BatonTestKit
import Synchronization
import Testing

@testable import BatonCluster

private func header(_ revision: Int64, store: UInt64 = 7) -> ControlHeader {
    ControlHeader(store: store, revision: revision)
}

private let mark = RegistryMark(store: 7, revision: 40, recovery: 1, tally: 3)

/// A judge whose answers can be expected.
private final class Judge {
    var trust: RegistryTrust

    init(_ mark: RegistryMark?) { trust = RegistryTrust(mark) }

    /// A listing that was asked for just before.
    func listing(
        _ revision: Int64, store: UInt64 = 7, recovery: UInt64 = 1, tally: UInt64 = 3
    ) -> RegistryTrust.Verdict {
        listing(revision, store: store, recovery: recovery, tally: tally, since: trust.mark)
    }

    func listing(
        _ revision: Int64, store: UInt64 = 7, recovery: UInt64 = 1, tally: UInt64 = 3, since floor: RegistryMark?
    ) -> RegistryTrust.Verdict {
        trust.judge(listing: header(revision, store: store), recovery: recovery, tally: tally, since: floor)
    }

    func other(_ header: ControlHeader) -> RegistryTrust.Verdict { other(header, since: trust.mark) }
    func other(_ header: ControlHeader, since floor: RegistryMark?) -> RegistryTrust.Verdict {
        trust.judge(header, since: floor)
    }

    func refuse(_ recovery: UInt64) -> RegistryTrust.Verdict { trust.refuse(recovery: recovery) }
    func tallied(_ tally: UInt64) { trust.tallied(tally) }
}

extension RegistryTrust.Verdict {
    fileprivate var isSetBack: Bool { if case .setBack = self { true } else { false } }
    fileprivate var isChanged: Bool { if case .changed = self { true } else { false } }
}

@Suite struct RegistryTrustTests {
    private let judge = Judge(mark)

    @Test func registryOfAnEarlierDayIsBelieved() {
        let earlier: [(String, (Judge) -> RegistryTrust.Verdict)] = [
            ("a lower revision", { $0.listing(39) }), ("another store", { $0.listing(400, store: 8) }),
            ("before a recovery", { $0.listing(400, recovery: 0) }),
            ("revisions that were raised when it was restored", { $0.listing(400, tally: 2) }),
        ]
        for (why, listing) in earlier {
            let judge = Judge(mark)
            #expect(listing(judge).isSetBack, "\(why)")
            #expect(judge.trust.setBack != nil && !judge.trust.isTrusted)
            #expect(judge.other(header(400)) != .trusted, "\(why): and what is no listing")
        }
    }

    /// The nodes' own registrations raise its revision.
    @Test func setBackRegistryIsBelievedOnceItHasGrown() {
        #expect(judge.listing(39).isSetBack)
        #expect(judge.listing(41).isSetBack)
        #expect(Judge(judge.trust.mark).listing(41).isSetBack, "by the next run")
        let running = Judge(mark)
        #expect(running.listing(40) == .trusted)
        #expect(running.listing(38).isChanged)
        #expect(Judge(running.trust.mark).listing(41).isSetBack, "by the run after one that went by it")
        // One endpoint of another cluster's etcd is no reason to stand still for ever.
        let astray = Judge(mark)
        #expect(astray.listing(400, store: 8).isSetBack)
        #expect(Judge(astray.trust.mark).listing(41) == .trusted)
    }

    @Test func recoveryIsNotNoticed() {
        #expect(judge.listing(3, store: 8, recovery: 0).isSetBack)
        #expect(judge.listing(5, store: 8, recovery: 2) == .trusted)
        // A backup's tally begins anew with it.
        let accepted = RegistryMark(store: 8, revision: 5, recovery: 2, tally: 3)
        #expect(judge.trust.mark == accepted && judge.trust.setBack == nil)
        #expect(judge.other(header(6, store: 8)) == .trusted)
        #expect(judge.trust.mark?.revision == 6)
    }

    @Test func sameRegistryIsDistrusted() {
        #expect(judge.listing(40) == .trusted)
        #expect(judge.listing(41) == .trusted)
        let fresh = Judge(nil)
        #expect(fresh.listing(1, recovery: 0, since: nil) == .trusted)
        // The second was asked for before there was a mark.
        #expect(fresh.listing(1, recovery: 0, since: nil) == .trusted)
        #expect(fresh.trust.mark == RegistryMark(store: 7, revision: 1, recovery: 0, tally: 3))
    }

    @Test func answersThatOvertakeEachOtherEndTheRun() {
        #expect(judge.listing(50) == .trusted)
        #expect(judge.listing(45, since: mark) == .trusted)
        #expect(judge.other(header(44), since: mark) == .trusted)
        #expect(judge.trust.mark?.revision == 50, "and take nothing back")
        let early = judge.trust.mark
        judge.tallied(4)
        #expect(judge.listing(51, tally: 3, since: early) == .trusted)
        #expect(judge.trust.mark?.tally == 4)
        #expect(judge.listing(52, tally: 3).isChanged)
    }

    @Test func runGoesOnWithAnotherRegistry() {
        for seen in [header(39), header(400, store: 8)] {
            for isListing in [true, false] {
                let judge = Judge(mark)
                #expect(judge.listing(40) == .trusted)
                let verdict = isListing ? judge.listing(seen.revision, store: seen.store) : judge.other(seen)
                #expect(verdict.isChanged, "\(seen), \(isListing)")
                // The next run knows what this one knew, and this one believes nothing more.
                #expect(judge.trust.mark?.revision == 40 && !judge.trust.isTrusted)
                #expect(judge.listing(41) != .trusted)
            }
        }
    }

    /// Several listings are under way when the recovery ends.
    @Test func answerFromBeforeARecoveryEndsTheRunThatHasSeenIt() {
        #expect(judge.listing(39).isSetBack)
        let early = judge.trust.mark
        #expect(judge.listing(45, recovery: 2) == .trusted)
        #expect(judge.listing(46, recovery: 2, since: early) == .trusted)
        #expect(judge.listing(44, recovery: 1, since: early).isSetBack)
        #expect(judge.other(header(44), since: early).isSetBack)
        #expect(judge.trust.isTrusted && judge.trust.mark?.isRefused == false && judge.trust.setBack == nil)
        #expect(judge.trust.mark?.revision == 46)
        #expect(judge.listing(47, recovery: 2) == .trusted)
        let fresh = Judge(nil)
        #expect(fresh.listing(50, recovery: 2, since: nil) == .trusted)
        #expect(fresh.listing(49, recovery: 1, since: nil).isSetBack)
        #expect(fresh.trust.mark?.recovery == 2)
    }

    @Test func runGoesOnAfterARecovery() {
        #expect(judge.listing(40) == .trusted)
        #expect(judge.listing(41, recovery: 2).isChanged)
    }

    @Test func diskThatKnowsLessGoesByARegistryThatOthersDistrust() {
        let judge = Judge(RegistryMark(store: 7, revision: 20, recovery: 1))
        #expect(judge.listing(21) == .trusted)
        #expect(judge.refuse(0) == .trusted, "it was rebuilt since")
        #expect(judge.refuse(2).isChanged)
        // Its next run.
        let next = Judge(judge.trust.mark)
        #expect(next.listing(900, recovery: 2).isSetBack)
        #expect(next.refuse(2) == .trusted, "it goes by none")
        // One that has not looked yet.
        let early = Judge(nil)
        #expect(early.refuse(2) == .trusted)
        #expect(early.listing(900, recovery: 2).isSetBack)
        #expect(next.listing(901, recovery: 3) == .trusted)
        #expect(next.listing(902, recovery: 3) == .trusted, "for ever")
    }

    @Test func nodeCountsOnForEveryListing() {
        var tally = RegistryTally()
        var now = Instant(secondsSinceEpoch: 1_000)
        let (none, one) = (RegistryTally.Extent(keys: 0, newest: 0), RegistryTally.Extent(keys: 1, newest: 9))
        func due(_ extent: RegistryTally.Extent) -> Bool { tally.isDue(extent, at: now) }
        let first = due(none)
        #expect(first)
        now = now + DriverLimits.tallyPause
        let second = due(one)
        #expect(!second, "one is under way")
        tally.ended(true)
        let third = due(one)
        #expect(third)
        tally.ended(true)
        let soon = due(none)
        #expect(!soon, "within the pause")
        now = now + DriverLimits.tallyPause
        let back = due(none)
        #expect(back)
        tally.ended(true)
        now = now + DriverLimits.tallyPause
        let same = due(none)
        #expect(!same, "nothing has changed")
        let changed = due(one)
        #expect(changed)
        tally.ended(false)
        now = now + DriverLimits.tallyPause
        let again = due(one)
        #expect(again, "it was not written")
        tally.ended(true)
        now = now + DriverLimits.tallyPause
        let settled = due(one)
        #expect(!settled)
    }

    @Test func registryThatIsNotBelievedIsListedWithoutEnd() {
        var pause = DistrustPause()
        let now = Instant(secondsSinceEpoch: 1_000)
        let times = [TimeSpan.zero, .milliseconds(999), DriverLimits.distrustPause, .seconds(100)]
        let idle = pause.isOver(at: now)
        pause.begin(at: now)
        #expect(!idle && times.map { pause.isOver(at: now + $0) } == [false, false, true, false])
    }

    @Test func markIsWrittenForEveryListing() {
        var marking = ClusterRuntime.Marking()
        let now = Instant(secondsSinceEpoch: 1_000)
        let times = [TimeSpan.zero, .milliseconds(999), DriverLimits.markPause]
        #expect(times.map { marking.isDue(mark, at: now + $0) } == [true, false, true])
        marking.saved = mark
        let later = marking.isDue(mark, at: now + .seconds(100))
        #expect(!later)
    }
}

@Suite struct DistrustingAgentTests {
    private let plane = InMemoryControlPlane(seed: 3, time: SimulatedTime())
    private let paths = ClusterPaths(cluster: "t")
    private let me = Drainer(node: NodeID(name: "n1"), incarnation: Incarnation(value: 5))
    private let id = SegmentID(writer: NodeID(name: "n2"), incarnation: Incarnation(value: 6), index: 0)

    private func key() -> SegmentKey {
        SegmentKey(
            id: id, ensemble: [EnsembleMember(node: me.node, diskID: 1)],
            drainer: Drainer(node: id.writer, incarnation: id.incarnation))
    }

    private func listing(_ agent: ControlAgent) -> RegistryListing {
        let found = Mutex(RegistryListing.nothing)
        agent.list { listing in found.withLock { $0 = listing } }
        return found.withLock { $0 }
    }

    private func answer(_ agent: ControlAgent, _ request: ControlRequest) -> ControlAnswer? {
        let found = Mutex<ControlAnswer?>(nil)
        agent.perform(request) { answer in found.withLock { $0 = answer } }
        return found.withLock { $0 }
    }

    @Test func setBackRegistryReachesTheRules() async throws {
        _ = try await plane.commit(
            ControlTransaction(if: [], [.put(paths.segment(id), ClusterCodec.encode(key()))]))
        let found = try await plane.list(paths.all)
        let ahead = RegistryMark(
            store: found.header.store, revision: found.header.revision + 1, recovery: 0)
        let agent = ControlAgent(plane, paths: paths, me: me, mark: ahead)
        #expect(answer(agent, .read(id)) == .unknown, "before any listing")
        guard case .setBack = listing(agent) else { return #expect(Bool(false), "a listing is believed") }
        #expect(agent.obstacle?.contains("recover-registry") == true)
        var wanted = try #require(found.entries.first.flatMap { ClusterCodec.segment($0, in: paths) })
        wanted.drainer = me
        #expect(answer(agent, .read(id)) == .unknown)
        #expect(answer(agent, .store(wanted, .none)) == .unknown)
        #expect(answer(agent, .remove(wanted)) == .unknown)
        #expect(throws: SpoolError.self) { try agent.list() }
        #expect(throws: SpoolError.self) { try agent.read(id) }
        #expect(throws: SpoolError.self) { _ = try agent.store(wanted) }
        #expect(throws: SpoolError.self) { _ = try agent.remove(wanted) }
        #expect(try await plane.list(paths.all).header.revision == found.header.revision, "it was changed")

        let rebuilt = ClusterCodec.json(RegistryEntry(recovery: 1))
        _ = try await plane.commit(ControlTransaction(if: [], [.put(paths.registry, rebuilt)]))
        guard case .view(let view) = listing(agent) else { return #expect(Bool(false), "a recovery is not noticed") }
        #expect(view.recovery == 1 && view.listing.keys.count == 1 && agent.obstacle == nil)
        guard case .key(let read?) = answer(agent, .read(id)) else { return #expect(Bool(false), "no answer") }
        #expect(read.id == id)
    }

    @Test func runIsNotToldThatTheRegistryIsAnother() async throws {
        let agent = ControlAgent(plane, paths: paths, me: me)
        guard case .view = listing(agent) else { return #expect(Bool(false), "a first listing is not believed") }
        let told = Mutex<[String]>([])
        agent.onChange { why in told.withLock { $0.append(why) } }
        _ = try await plane.commit(
            ControlTransaction(if: [], [.put(paths.registry, ClusterCodec.json(RegistryEntry(recovery: 1)))]))
        guard case .nothing = listing(agent) else { return #expect(Bool(false), "a listing is believed") }
        guard case .nothing = listing(agent) else { return #expect(Bool(false), "a second one is believed") }
        #expect(told.withLock { $0.count } == 1)
        #expect(answer(agent, .read(id)) == .unknown)
    }

    /// etcd restored with its revisions raised, as its manual advises.
    @Test func backupWithRaisedRevisionsReachesTheRules() async throws {
        let own = paths.tally("n1", disk: 1)
        let agent = ControlAgent(plane, paths: paths, me: me, tally: own)
        let counted = Mutex(0)
        let now = Instant(secondsSinceEpoch: 1_000)
        func count(_ keys: Int, at now: Instant) {
            agent.count(.init(keys: keys, newest: 0), at: now) { counted.withLock { $0 += 1 } }
        }
        count(0, at: now)
        #expect(counted.withLock { $0 } == 0, "before a listing")
        guard case .view = listing(agent) else { return #expect(Bool(false), "not believed") }
        count(0, at: now)
        let backup = try #require(try await plane.get(own).entries.first)
        _ = try await plane.commit(
            ControlTransaction(if: [], [.put(paths.segment(id), ClusterCodec.encode(key()))]))
        count(1, at: now + DriverLimits.tallyPause)
        #expect(counted.withLock { $0 } == 2)
        guard case .view = listing(agent) else { return #expect(Bool(false), "not believed") }
        let mark = try #require(agent.trust.mark)
        #expect(mark.tally == 2)
        // As the backup had it; the revision only grows.
        _ = try await plane.commit(
            ControlTransaction(if: [], [.put(own, backup.value), .delete(paths.segment(id))]))
        guard case .nothing = listing(agent) else { return #expect(Bool(false), "a listing is believed") }
        let next = ControlAgent(plane, paths: paths, me: me, tally: own, mark: mark)
        guard case .setBack = listing(next) else { return #expect(Bool(false), "the next run believes it") }
        // Another disk of that name has a count of its own.
        let other = ControlAgent(plane, paths: paths, me: me, tally: paths.tally("n1", disk: 2))
        guard case .view = listing(other) else { return #expect(Bool(false), "not believed") }
        other.count(.init(keys: 1, newest: 0), at: now) {}
        #expect(other.trust.mark?.tally == 1)
    }

    /// Another run's count landed late, or the answer to the own one was lost.
    @Test func tallyThatWasWrittenOtherwiseIsNeverCountedOn() async throws {
        let own = paths.tally("n1", disk: 1)
        let agent = ControlAgent(plane, paths: paths, me: me, tally: own)
        let now = Instant(secondsSinceEpoch: 1_000)
        guard case .view = listing(agent) else { return #expect(Bool(false), "not believed") }
        _ = try await plane.commit(
            ControlTransaction(if: [], [.put(own, ClusterCodec.json(TallyEntry(count: 7)))]))
        agent.count(.init(keys: 1, newest: 0), at: now) {}
        #expect(agent.trust.mark?.tally == 0, "compared with what was listed")
        guard case .view = listing(agent) else { return #expect(Bool(false), "not believed") }
        agent.count(.init(keys: 1, newest: 0), at: now + DriverLimits.tallyPause) {}
        #expect(agent.trust.mark?.tally == 8)
    }
}
