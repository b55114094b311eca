// Which session stays, which run of a node is the present one, and when a lost connection is dialed again.
import BatonCore
import Testing

@testable import BatonPeer

private let low = NodeID(value: 10)
private let high = NodeID(value: 20)

private func identity(
    _ node: NodeID, incarnation: UInt64 = 1, _ channel: PeerChannel = .bulk, dialer: NodeID, nonce: UInt64
) -> PeerIdentity {
    PeerIdentity(
        run: NodeRun(node: node, incarnation: Incarnation(value: incarnation)), name: [], channel: channel,
        dialer: dialer, nonce: nonce, version: 1, features: [])
}

extension PeerRoster {
    fileprivate mutating func place(_ identity: PeerIdentity) throws -> (PeerSessionID, Admission) {
        let id = try #require(begin())
        return (id, admit(id, identity))
    }
}

@Test func bothDialAndNeitherSessionStays() throws {
    // Each side sees the two sessions in either order; both keep the one that the lower id dialed.
    for (me, peer) in [(low, high), (high, low)] {
        var roster = PeerRoster(me: me)
        let (kept, first) = try roster.place(identity(peer, dialer: low, nonce: 1))
        let (_, second) = try roster.place(identity(peer, dialer: high, nonce: 2))
        #expect(first == .admitted(replacing: []) && second == .refused(.duplicateSession))
        #expect(roster.session(to: peer, .bulk) == kept)
        var other = PeerRoster(me: me)
        let (loser, early) = try other.place(identity(peer, dialer: high, nonce: 2))
        let (winner, late) = try other.place(identity(peer, dialer: low, nonce: 1))
        #expect(early == .admitted(replacing: []) && late == .admitted(replacing: [loser]))
        #expect(other.session(to: peer, .bulk) == winner)
    }
}

@Test func redialedSessionIsRefused() throws {
    var roster = PeerRoster(me: low)
    let (old, _) = try roster.place(identity(high, dialer: high, nonce: 1))
    let (new, admission) = try roster.place(identity(high, dialer: high, nonce: 2))
    #expect(admission == .admitted(replacing: [old]))
    // The old one's end does not take the new one's place away.
    roster.ended(old)
    #expect(roster.session(to: high, .bulk) == new)
    roster.ended(new)
    #expect(roster.session(to: high, .bulk) == nil)
}

@Test func secondSessionOfTheSameNonceReplacesTheFirst() throws {
    var roster = PeerRoster(me: low)
    _ = try roster.place(identity(high, dialer: high, nonce: 1))
    #expect(try roster.place(identity(high, dialer: high, nonce: 1)).1 == .refused(.duplicateSession))
}

@Test func channelsOfAPairDisplaceEachOther() throws {
    var roster = PeerRoster(me: low)
    let (bulk, _) = try roster.place(identity(high, .bulk, dialer: high, nonce: 1))
    let (control, admission) = try roster.place(identity(high, .control, dialer: high, nonce: 2))
    #expect(admission == .admitted(replacing: []))
    #expect(roster.session(to: high, .bulk) == bulk && roster.session(to: high, .control) == control)
}

@Test func formerRunComesBack() throws {
    var roster = PeerRoster(me: low)
    let (old, _) = try roster.place(identity(high, incarnation: 1, dialer: high, nonce: 1))
    // While the old run's session lives, an unknown run does not displace it.
    #expect(try roster.place(identity(high, incarnation: 2, dialer: high, nonce: 2)).1 == .refused(.duplicateSession))
    #expect(
        try roster.place(identity(high, incarnation: 2, .control, dialer: high, nonce: 3)).1
            == .refused(.duplicateSession))
    roster.ended(old)
    #expect(try roster.place(identity(high, incarnation: 2, dialer: high, nonce: 4)).1 == .admitted(replacing: []))
    #expect(roster.incarnation(of: high) == Incarnation(value: 2))
    #expect(try roster.place(identity(high, incarnation: 1, dialer: high, nonce: 5)).1 == .refused(.staleIncarnation))
    #expect(
        try roster.place(identity(high, incarnation: 1, .control, dialer: low, nonce: 6)).1
            == .refused(.staleIncarnation))
}

@Test func controlPlanesWordIsOverruledBySessions() throws {
    var roster = PeerRoster(me: low)
    let (bulk, _) = try roster.place(identity(high, incarnation: 1, .bulk, dialer: high, nonce: 1))
    let (control, _) = try roster.place(identity(high, incarnation: 1, .control, dialer: high, nonce: 2))
    func run(_ value: UInt64) -> NodeRun { NodeRun(node: high, incarnation: Incarnation(value: value)) }
    #expect(roster.registered(run(1), revision: 5).isEmpty)
    #expect(roster.registered(run(2), revision: 9) == [control, bulk])
    #expect(roster.session(to: high, .bulk) == nil)
    #expect(try roster.place(identity(high, incarnation: 1, dialer: high, nonce: 3)).1 == .refused(.staleIncarnation))
    // An older word, read late, changes nothing.
    #expect(roster.registered(run(1), revision: 5).isEmpty)
    #expect(roster.incarnation(of: high) == Incarnation(value: 2))
    let (present, admission) = try roster.place(identity(high, incarnation: 2, dialer: high, nonce: 4))
    #expect(admission == .admitted(replacing: []))
    // A newer one lets a run back in that was taken for superseded.
    #expect(roster.registered(run(1), revision: 10) == [present])
    #expect(try roster.place(identity(high, incarnation: 1, dialer: high, nonce: 5)).1 == .admitted(replacing: []))
    #expect(try roster.place(identity(high, incarnation: 2, dialer: high, nonce: 6)).1 == .refused(.staleIncarnation))
    // A late end of a session that has lost its place takes nothing away.
    roster.ended(bulk)
    #expect(roster.session(to: high, .bulk) != nil)
}

@Test func ownIdOrUnknownSessionIsAdmitted() throws {
    var roster = PeerRoster(me: low)
    #expect(try roster.place(identity(low, dialer: low, nonce: 1)).1 == .refused(.ownNode))
    #expect(
        roster.admit(PeerSessionID(value: 99), identity(high, dialer: high, nonce: 1)) == .refused(.unexpected))
    let (id, _) = try roster.place(identity(high, dialer: high, nonce: 1))
    #expect(roster.admit(id, identity(high, dialer: high, nonce: 2)) == .refused(.unexpected), "admitted twice")
}

@Test func handshakesWithoutBound() throws {
    var roster = PeerRoster(me: low)
    var ids: [PeerSessionID] = []
    while let id = roster.begin(), ids.count < 10_000 { ids.append(id) }
    #expect(ids.count == PeerLimits.handshakes)
    #expect(Set(ids).count == ids.count)
    roster.ended(ids[0])
    #expect(roster.begin() != nil)
    #expect(roster.admit(ids[1], identity(high, dialer: high, nonce: 1)) == .admitted(replacing: []))
    #expect(roster.begin() != nil, "a session that opened still counts as a handshake")
    #expect(roster.counts.handshakes == PeerLimits.handshakes)
}

@Test func nodesWithoutBound() throws {
    var roster = PeerRoster(me: low)
    for value in 0..<UInt64(PeerLimits.nodes) {
        let node = NodeID(value: 1000 + value)
        #expect(try roster.place(identity(node, dialer: node, nonce: 1)).1 == .admitted(replacing: []))
    }
    #expect(try roster.place(identity(high, dialer: high, nonce: 1)).1 == .refused(.tooManySessions))
    // Of the nodes without sessions, the one that changed longest ago makes room.
    for value in [1500, 1400] {
        let id = try #require(roster.session(to: NodeID(value: UInt64(value)), .bulk))
        roster.ended(id)
    }
    #expect(try roster.place(identity(high, dialer: high, nonce: 1)).1 == .admitted(replacing: []))
    #expect(roster.incarnation(of: NodeID(value: 1500)) == nil)
    #expect(roster.incarnation(of: NodeID(value: 1400)) != nil)
    #expect(roster.counts.nodes == PeerLimits.nodes)
}

@Test func formerRunsWithoutBound() throws {
    var roster = PeerRoster(me: low)
    let count = UInt64(PeerLimits.formerIncarnations)
    for value in 1...(count + 2) {
        let (id, admission) = try roster.place(identity(high, incarnation: value, dialer: high, nonce: value))
        #expect(admission == .admitted(replacing: []))
        roster.ended(id)
    }
    // Of count + 1 former runs the first is forgotten, the others are not.
    for value in 2...(count + 1) {
        #expect(
            try roster.place(identity(high, incarnation: value, dialer: high, nonce: 99)).1
                == .refused(.staleIncarnation))
    }
    #expect(try roster.place(identity(high, incarnation: 1, dialer: high, nonce: 99)).1 == .admitted(replacing: []))
}

@Test func forgottenNodeKeepsItsSessions() throws {
    var roster = PeerRoster(me: low)
    let (bulk, _) = try roster.place(identity(high, dialer: high, nonce: 1))
    #expect(roster.forget(high) == [bulk])
    #expect(roster.session(to: high, .bulk) == nil && roster.incarnation(of: high) == nil)
    #expect(roster.forget(high).isEmpty)
    roster.ended(bulk)
}

// MARK: Back-off

@Test func lostPeerIsDialedWithoutPause() {
    for seed in UInt64(0)..<50 {
        var backoff = Backoff(seed: seed)
        var now = Instant.epoch
        var expected = PeerLimits.retryFirst
        for round in 0..<12 {
            let wait = backoff.wait(after: round % 2 == 0 ? nil : .lost(midFrame: false), at: now)
            #expect(wait >= expected.multiplied(by: 0.5) && wait <= expected.multiplied(by: 1.5), "seed \(seed)")
            expected = min(expected.multiplied(by: 2), PeerLimits.retryMax)
            now = now + wait
        }
        #expect(expected == PeerLimits.retryMax)
    }
    let waits = Set(
        (UInt64(0)..<50).map { seed -> Int64 in
            var backoff = Backoff(seed: seed)
            return backoff.wait(after: nil, at: .epoch).nanoseconds
        })
    #expect(waits.count > 40, "all nodes come back at once")
}

@Test func sessionThatFallsAtOnceSetsTheWaitBack() {
    var backoff = Backoff(seed: 1)
    var now = Instant.epoch
    for _ in 0..<8 {
        backoff.opened(at: now)
        now = now + PeerLimits.stableAfter - .milliseconds(1)
        _ = backoff.wait(after: .lost(midFrame: true), at: now)
    }
    #expect(backoff.wait(after: nil, at: now) >= PeerLimits.retryMax.multiplied(by: 0.5))
    backoff.opened(at: now)
    now = now + PeerLimits.stableAfter
    #expect(backoff.wait(after: .lost(midFrame: true), at: now) <= PeerLimits.retryFirst.multiplied(by: 1.5))
}

@Test func misconfiguredPeerIsDialedAsOftenAsALostOne() {
    var backoff = Backoff(seed: 1)
    for reason in [
        CloseReason.violation(.wrongCluster), .error(code: PeerViolation.versionMismatch.rawValue, text: []),
    ] {
        #expect(backoff.wait(after: reason, at: .epoch) >= PeerLimits.retryMisconfigured.multiplied(by: 0.5))
    }
    #expect(backoff.wait(after: .error(code: 9999, text: []), at: .epoch) < .seconds(1))
    #expect(backoff.wait(after: .left, at: .epoch) < .seconds(1))
}
