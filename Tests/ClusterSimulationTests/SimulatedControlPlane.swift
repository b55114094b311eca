// An in-memory etcd: compare-and-set by mod revision, leases in true time, linearizable reads.
import BatonCluster
import BatonCore
import BatonModel
import BatonSpool

struct SimulatedControlPlane {
    struct Registered {
        var record: NodeRecord
        var until: Instant
    }

    var lease = TimeSpan.seconds(3)
    private(set) var revision: UInt64 = 1
    private(set) var keys = Table<SegmentID, ClusterKey>()
    private(set) var nodes = Table<NodeID, Registered>()
    var forgotten: [EnsembleMember] = []
    /// An incarnation has one lease: once it is over, a late or repeated registration fails (T2).
    var oneLease = true
    private(set) var ended: Set<Drainer> = []

    mutating func expire(at now: Instant) {
        for node in nodes.keys where (nodes[node]?.until ?? .epoch) < now { revoke(node) }
    }

    mutating func revoke(_ node: NodeID) {
        if let ending = nodes[node]?.record.drainer { ended.insert(ending) }
        nodes[node] = nil
    }

    func holds(_ condition: ControlRequest.Condition) -> Bool {
        switch condition {
        case .none: true
        case .registered(let drainer): nodes[drainer.node]?.record.incarnation == drainer.incarnation
        case .gone(let drainer): nodes[drainer.node]?.record.incarnation != drainer.incarnation
        }
    }

    mutating func perform(_ request: ControlRequest, from record: NodeRecord, at now: Instant) -> ControlAnswer {
        expire(at: now)
        switch request {
        case .register:
            if nodes[record.node]?.record.incarnation != record.incarnation { revoke(record.node) }
            if oneLease, ended.contains(record.drainer) { return .leaseLost }
            revision += 1
            nodes[record.node] = Registered(record: record, until: now + lease)
            return .done
        case .keepAlive:
            guard nodes[record.node]?.record.incarnation == record.incarnation else { return .leaseLost }
            nodes[record.node]?.until = now + lease
            return .done
        case .list:
            return .listed(
                Listing(
                    revision: revision, keys: keys.values, nodes: nodes.values.map(\.record), forgotten: forgotten))
        case .read(let id): return .key(keys[id])
        case .store(let key, let condition):
            let current = keys[key.id]
            guard current?.revision ?? 0 == key.revision else { return .refused(current, condition: false) }
            guard holds(condition) else { return .refused(current, condition: true) }
            revision += 1
            var stored = key
            stored.revision = revision
            keys[key.id] = stored
            return .committed(stored)
        case .remove(let key):
            guard keys[key.id]?.revision == key.revision else { return .refused(keys[key.id], condition: false) }
            revision += 1
            keys[key.id] = nil
            return .committed(nil)
        }
    }
}
