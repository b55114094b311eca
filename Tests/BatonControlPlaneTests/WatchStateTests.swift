// When a watch lists, opens, tells and distrusts; when a lease is renewed.
import BatonCore
import Testing

@testable import BatonControlPlane

private let start = Instant(secondsSinceEpoch: 1_000)

/// Drives a watch and notes what it does.
private struct Watch {
    var machine: EtcdWatchState
    var now = start
    var told: [ControlWatchEvent] = []

    init(after: ControlRevision? = nil, resync: TimeSpan = .seconds(10)) {
        machine = EtcdWatchState(after: after, resync: resync)
    }

    mutating func receive(_ event: EtcdWatchState.Event) -> [String] {
        var actions = ActionBuffer<EtcdWatchState.Action>()
        machine.receive(event, at: now, into: &actions)
        return actions.drain().map { action in
            switch action {
            case .list: return "list"
            case .open(let revision): return "open \(revision)"
            case .close: return "close"
            case .leaveMember: return "leave"
            case .renewToken: return "token"
            case .tell(let event):
                told.append(event)
                switch event {
                case .snapshot(let listing, let wentBack):
                    return "snapshot \(listing.header.revision)\(wentBack ? " back" : "")"
                case .changes(let changes): return "changes \(changes.map(\.revision))"
                case .interrupted: return "interrupted"
                }
            }
        }
    }

    mutating func wait(_ span: TimeSpan) -> [String] {
        now = now + span
        return receive(.woke)
    }

    static func listing(_ revision: ControlRevision, store: UInt64 = 1, newest: ControlRevision? = nil)
        -> EtcdWatchState.Event
    {
        let entry = ControlEntry(key: "a", value: [], created: 1, modified: newest ?? revision)
        return .listed(
            .success(ControlListing(header: ControlHeader(store: store, revision: revision), entries: [entry])))
    }

    static func changes(_ revisions: ControlRevision...) -> EtcdWatchState.Event {
        .changes(revisions.map { .deleted("a", at: $0) })
    }

    static func opened(_ revision: ControlRevision, store: UInt64 = 1) -> EtcdWatchState.Event {
        .opened(ControlHeader(store: store, revision: revision))
    }
}

struct EtcdWatchStateTests {
    /// Listed at revision 5 and open.
    private func open() -> Watch {
        var watch = Watch()
        #expect(watch.receive(.begun) == ["list"])
        #expect(watch.receive(Watch.listing(5)) == ["snapshot 5", "open 5"])
        #expect(watch.receive(Watch.opened(5)) == [])
        return watch
    }

    @Test func changeIsToldTwice() {
        var watch = open()
        #expect(watch.receive(Watch.changes(6, 6, 7)) == ["changes [6, 6, 7]"])
        #expect(watch.receive(Watch.changes(6, 7, 8)) == ["changes [8]"])
        #expect(watch.receive(Watch.changes(8)) == [])
    }

    @Test func brokenStreamLosesItsPlace() {
        var watch = open()
        _ = watch.receive(Watch.changes(9))
        #expect(watch.receive(.ended("reset")) == ["close", "leave", "interrupted"])
        #expect(watch.machine.nextDue == watch.now + ControlLimits.watchRetryFirst)
        #expect(watch.wait(ControlLimits.watchRetryFirst) == ["open 9"])
        #expect(watch.receive(Watch.opened(9)) == [])
        #expect(watch.receive(Watch.changes(10)) == ["changes [10]"])
    }

    @Test func streamIsNeverOpened() {
        var watch = Watch(after: 3)
        #expect(watch.receive(.begun) == ["open 3"])
        #expect(watch.machine.nextDue == start + ControlLimits.watchOpening)
        #expect(watch.wait(ControlLimits.watchOpening) == ["close", "leave", "interrupted"])
        #expect(watch.wait(ControlLimits.watchRetryFirst) == ["open 3"])
        #expect(watch.receive(Watch.opened(3)) == [])
        // Opened in time: no longer waited for.
        #expect(watch.machine.nextDue == start + .seconds(10))
    }

    @Test func compactionLeavesAGap() {
        var watch = Watch(after: 3)
        #expect(watch.receive(.begun) == ["open 3"])
        #expect(watch.receive(Watch.opened(20)) == [])
        #expect(watch.receive(.compacted) == ["close", "list"])
        #expect(watch.receive(Watch.listing(20)) == ["snapshot 20", "open 20"])
    }

    @Test func listingIsNotRepeated() {
        var watch = open()
        #expect(watch.wait(.seconds(10)) == ["list"])
        #expect(watch.wait(.seconds(10)) == [])
        #expect(watch.receive(Watch.listing(5)) == ["snapshot 5"])
        #expect(watch.wait(.seconds(10)) == ["list"])
    }

    @Test func resyncOutOfItsBounds() {
        for (asked, used) in [
            (TimeSpan.zero, ControlLimits.resyncMin), (.days(9), ControlLimits.resyncMax), (.seconds(7), .seconds(7)),
        ] {
            var watch = Watch(after: 3, resync: asked)
            _ = watch.receive(.begun)
            _ = watch.receive(Watch.opened(3))
            #expect(watch.machine.nextDue == start + used)
        }
    }

    @Test func failedListingIsGivenUp() {
        var watch = Watch()
        _ = watch.receive(.begun)
        var pause = ControlLimits.watchRetryFirst
        for _ in 0..<10 {
            #expect(watch.receive(.listed(.failure(.refused(.unavailable, "")))) == ["interrupted"])
            #expect(watch.machine.nextDue == watch.now + pause)
            #expect(watch.wait(pause) == ["list"])
            pause = min(ControlLimits.watchRetryMax, pause + pause)
        }
        #expect(watch.receive(Watch.listing(5)) == ["snapshot 5", "open 5"])
    }

    /// A stream whose member is paused is silent; the listing shows what it misses.
    @Test func silentStreamIsTrusted() {
        var watch = open()
        _ = watch.wait(.seconds(10))
        #expect(watch.receive(Watch.listing(8)) == ["snapshot 8"])
        #expect(watch.machine.nextDue == watch.now + ControlLimits.watchGrace)
        #expect(watch.wait(ControlLimits.watchGrace) == ["close", "leave", "interrupted"])
        #expect(watch.wait(.seconds(1)) == ["open 8"])
        #expect(watch.receive(Watch.opened(8)) == [])
        #expect(watch.machine.nextDue.map { $0 > watch.now + ControlLimits.watchGrace } == true)
    }

    /// Behind by a moment only: what the listing has shown arrives in time, and is told once.
    @Test func lateStreamIsDistrusted() {
        var watch = open()
        _ = watch.wait(.seconds(10))
        _ = watch.receive(Watch.listing(8))
        #expect(watch.receive(Watch.changes(6, 8)) == [])
        #expect(watch.wait(ControlLimits.watchGrace) == [])
        #expect(watch.receive(Watch.changes(9)) == ["changes [9]"])
    }

    @Test func restoredStoreIsWatchedInTheFuture() {
        var watch = open()
        _ = watch.receive(Watch.changes(40))
        _ = watch.receive(.ended("restart"))
        _ = watch.wait(.seconds(1))
        // The store is at 7 now; a watch from 41 would be silent until then.
        #expect(watch.receive(Watch.opened(7)) == ["list"])
        #expect(watch.receive(Watch.listing(7)) == ["snapshot 7 back", "close", "open 7"])
        #expect(watch.receive(Watch.opened(7)) == [])
        #expect(watch.receive(Watch.changes(8)) == ["changes [8]"])
    }

    @Test func anotherStoreIsTakenForTheSame() {
        var watch = open()
        _ = watch.receive(.ended("reset"))
        _ = watch.wait(.seconds(1))
        #expect(watch.receive(Watch.opened(9, store: 2)) == ["close", "leave", "interrupted"])
        _ = watch.wait(.seconds(10))
        #expect(watch.receive(Watch.listing(9, store: 2)).first == "snapshot 9 back")
    }

    @Test func refusedWatchKeepsItsToken() {
        var watch = open()
        #expect(watch.receive(.cancelled("permission denied")) == ["token", "close", "leave", "interrupted"])
    }
}

struct LeaseStateTests {
    private func receive(_ state: inout LeaseState, _ event: LeaseState.Event, at now: Instant) -> [LeaseState.Action] {
        var actions = ActionBuffer<LeaseState.Action>()
        state.receive(event, at: now, into: &actions)
        return actions.drain()
    }

    private func renewal(_ actions: [LeaseState.Action]) -> TimeSpan? {
        for case .renew(let limit) in actions { return limit }
        return nil
    }

    private func news(_ actions: [LeaseState.Action]) -> [LeaseNews] {
        actions.compactMap { if case .tell(let news) = $0 { news } else { nil } }
    }

    private let lease = ControlLease(id: ControlLeaseID(value: 1), ttl: .seconds(12))

    @Test func deadlineCountsFromTheAnswer() {
        var state = LeaseState(lease, sentAt: start)
        #expect(state.aliveUntil == start + .seconds(9))
        #expect(state.nextDue == start + .seconds(4))
        let sent = start + .seconds(4)
        #expect(renewal(receive(&state, .woke, at: sent)) == .seconds(3))
        #expect(
            news(receive(&state, .renewed(.seconds(12)), at: sent + .seconds(2))) == [.alive(until: sent + .seconds(9))]
        )
        #expect(state.nextDue == sent + .seconds(4))
    }

    @Test func failedRenewalWaitsForTheNextThird() {
        var state = LeaseState(lease, sentAt: start)
        let sent = start + .seconds(4)
        _ = receive(&state, .woke, at: sent)
        // Late: the next try goes out at once. Refused at once: after a moment.
        #expect(renewal(receive(&state, .failed, at: sent + .seconds(3))) != nil)
        #expect(renewal(receive(&state, .failed, at: sent + .seconds(3))) == nil)
        #expect(state.nextDue == sent + .seconds(3) + ControlLimits.leaseRetry)
        #expect(renewal(receive(&state, .woke, at: sent + .seconds(3) + ControlLimits.leaseRetry)) != nil)
    }

    @Test func twoRenewalsAtOnce() {
        var state = LeaseState(lease, sentAt: start)
        #expect(renewal(receive(&state, .woke, at: start + .seconds(4))) != nil)
        #expect(renewal(receive(&state, .woke, at: start + .seconds(8))) == nil)
    }

    @Test func overdueLeaseIsCalledAlive() {
        var state = LeaseState(lease, sentAt: start)
        _ = receive(&state, .woke, at: start + .seconds(4))
        #expect(news(receive(&state, .woke, at: start + .seconds(9))) == [.overdue])
        #expect(news(receive(&state, .woke, at: start + .seconds(10))) == [])
        // A renewal that was sent too long ago promises nothing.
        #expect(news(receive(&state, .renewed(.seconds(12)), at: start + .seconds(14))) == [])
        #expect(renewal(receive(&state, .woke, at: start + .seconds(14))) == nil)
        #expect(
            news(receive(&state, .renewed(.seconds(12)), at: start + .seconds(14))) == [
                .alive(until: start + .seconds(23))
            ])
    }

    @Test func goneLeaseIsRenewed() {
        var state = LeaseState(lease, sentAt: start)
        _ = receive(&state, .woke, at: start + .seconds(4))
        #expect(news(receive(&state, .renewed(nil), at: start + .seconds(5))) == [.gone])
        #expect(state.nextDue == nil)
        #expect(receive(&state, .woke, at: start + .seconds(9)).isEmpty)
        #expect(receive(&state, .renewed(.seconds(12)), at: start + .seconds(9)).isEmpty)
    }
}
