// One node's TakeoverState with a clock and a control plane that answers what the test says.
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonCluster

/// One node's state with a clock and a control plane that answers what the test says.
struct TakeoverRig {
    static let me = Drainer(node: NodeID(name: "n1"), incarnation: Incarnation(value: 11))
    static let other = Drainer(node: NodeID(name: "n2"), incarnation: Incarnation(value: 22))
    static let mine = EnsembleMember(node: me.node, diskID: 1)
    static let theirs = EnsembleMember(node: other.node, diskID: 2)
    static let third = EnsembleMember(node: NodeID(name: "n3"), diskID: 3)
    static let thirdRun = Drainer(node: third.node, incarnation: Incarnation(value: 33))
    static let id = SegmentID(writer: other.node, incarnation: other.incarnation, index: 0)
    static let own = SegmentID(writer: me.node, incarnation: me.incarnation, index: 0)

    var now = Instant(secondsSinceEpoch: 1_000)
    var state: TakeoverState
    var actions: [TakeoverAction] = []

    init(lookedThrough: Bool = true) {
        state = TakeoverState(me: Self.me, disk: 1, seed: 1, at: now)
        if lookedThrough { give(.started(copies: [Self.id])) }
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

    mutating func list(
        _ keys: [SegmentKey], alive: [NodeRecord], forgotten: [EnsembleMember] = [], departed: [EnsembleMember] = []
    ) {
        let mine = NodeRecord(node: Self.me.node, incarnation: Self.me.incarnation, disk: 1)
        give(
            .control(
                .list,
                .listed(
                    Listing(
                        revision: 99, keys: keys, nodes: [mine] + alive, forgotten: forgotten + departed,
                        departed: departed))))
    }

    static var otherNode: NodeRecord {
        NodeRecord(node: other.node, incarnation: other.incarnation, disk: 2)
    }

    static var thirdNode: NodeRecord { NodeRecord(node: third.node, incarnation: thirdRun.incarnation, disk: 3) }

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

    /// Claims, seals, and returns once the sealed length is committed and the segment adopted.
    mutating func take(end: Int64 = 8192) {
        list([Self.key()], alive: [])
        guard let claim = stores.first else { return }
        commit(claim, revision: 6)
        let seals = actions.contains(.seal(Self.id, epoch: 2))
        #expect(seals, "the seal is not persisted first")
        give(
            .copySealed(
                Self.id, epoch: 2,
                .sealed(BatonSpool.CopyReport(end: end, tailInvalid: false, outcomeOctets: 0))))
        let fixed = stores.first
        #expect(fixed?.sealedAt == end)
        if let fixed { commit(fixed, revision: 7) }
        let adopts = actions.contains { action in
            if case .adopt(let key) = action { key.sealedAt == end } else { false }
        }
        #expect(adopts)
        #expect(permits.allSatisfy { $0 == nil }, "a dot is permitted before the segment is read")
        give(.adopted(Self.id, epoch: 2, success: true))
    }

    /// Passes time until the third node is named as joining, and commits that; what was said meanwhile.
    mutating func nameThird() -> [TakeoverAction] {
        var said: [TakeoverAction] = []
        for _ in 0..<80 {
            pass(.milliseconds(100))
            said += actions
            guard let named = stores.first(where: { $0.joining == Self.third }) else { continue }
            commit(named, revision: 8)
            return said
        }
        Issue.record("no new copy is begun")
        return said
    }
}
