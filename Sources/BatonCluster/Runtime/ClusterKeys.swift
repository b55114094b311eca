// Names and values of a cluster's keys in the control plane: nodes, roster, segments, declared losses. JSON, for operators' eyes.
import BatonControlPlane
import BatonCore
import BatonModel
import BatonSpool
import Foundation

/// Where a cluster's keys lie: `/baton/<cluster>/…` (DESIGN section 5).
package struct ClusterPaths: Sendable {
    package let root: String

    package init(cluster: String) { self.root = "/baton/\(cluster)/" }

    package var all: ControlKey { ControlKey(root) }
    package var nodes: ControlKey { ControlKey(root + "nodes/") }
    package func node(_ name: String) -> ControlKey { ControlKey(root + "nodes/" + name) }
    /// Who ever registered and was neither drained nor forgotten; without a lease.
    package func roster(_ name: String) -> ControlKey { ControlKey(root + "roster/" + name) }
    package func forgotten(_ name: String, disk: UInt64) -> ControlKey {
        ControlKey(root + "forgotten/\(name)/\(SegmentName.hex(disk))")
    }
    package func segment(_ id: SegmentID) -> ControlKey {
        let parts = [id.writer.value, id.incarnation.value, id.index].map(SegmentName.hex)
        return ControlKey(root + "segments/" + parts.joined(separator: "/"))
    }
    /// How often the registry was rebuilt (docs/decisions/0010); absent: never.
    package var registry: ControlKey { ControlKey(root + "registry") }
    /// A disk's own count (docs/decisions/0010).
    package func tally(_ name: String, disk: UInt64) -> ControlKey {
        ControlKey(root + "tallies/\(name)/\(SegmentName.hex(disk))")
    }
    package var holds: ControlKey { ControlKey(root + "holds/") }
    package func hold(_ name: String) -> ControlKey { ControlKey(root + "holds/" + name) }
    package var drains: ControlKey { ControlKey(root + "drains/") }
    package func drain(_ name: String) -> ControlKey { ControlKey(root + "drains/" + name) }
}

/// What a node says of itself, under its lease.
package struct NodeEntry: Codable, Hashable, Sendable {
    package enum State: String, Codable, Sendable { case joining, serving, draining, drained, dead }

    package var id: String
    /// 16 hexadecimal digits.
    package var incarnation: String
    package var disk: String
    package var address: String
    package var failureDomain: String
    package var weight: Double
    package var version: String
    package var state: State

    package init(
        id: String, incarnation: Incarnation, disk: UInt64, address: String, failureDomain: String, weight: Double,
        version: String, state: State
    ) {
        self.id = id
        self.incarnation = SegmentName.hex(incarnation.value)
        self.disk = SegmentName.hex(disk)
        self.address = address
        self.failureDomain = failureDomain
        self.weight = weight
        self.version = version
        self.state = state
    }

    package var node: NodeID { NodeID(name: id) }
    package var run: Drainer? {
        UInt64(incarnation, radix: 16).map { Drainer(node: node, incarnation: Incarnation(value: $0)) }
    }
    package var member: EnsembleMember? {
        UInt64(disk, radix: 16).map { EnsembleMember(node: node, diskID: $0) }
    }
    package var record: NodeRecord? {
        guard let run, let member else { return nil }
        return NodeRecord(node: node, incarnation: run.incarnation, disk: member.diskID)
    }
}

package struct RosterEntry: Codable, Hashable, Sendable {
    package var id: String
    package var disk: String
    /// Of a forgotten disk: its node left in order, and may come back with it.
    package var drained: Bool?

    package init(id: String, disk: UInt64, drained: Bool? = nil) {
        self.id = id
        self.disk = SegmentName.hex(disk)
        self.drained = drained
    }
}

/// `/baton/<cluster>/registry`.
package struct RegistryEntry: Codable, Hashable, Sendable {
    /// 16 hexadecimal digits.
    package var recovery: String

    package init(recovery: UInt64) { self.recovery = SegmentName.hex(recovery) }

    package var number: UInt64? { UInt64(recovery, radix: 16) }
}

/// `/baton/<cluster>/tallies/<node>/<disk>`: only ever counts on.
package struct TallyEntry: Codable, Hashable, Sendable {
    /// 16 hexadecimal digits.
    package var count: String

    package init(count: UInt64) { self.count = SegmentName.hex(count) }

    package var number: UInt64? { UInt64(count, radix: 16) }
}

/// An operator's wish that a node leaves in order.
package struct DrainRequest: Codable, Hashable, Sendable {
    package var node: String
    /// Nanoseconds since the epoch.
    package var deadline: Int64
    package var exit: Bool

    package init(node: String, deadline: Instant, exit: Bool) {
        self.node = node
        self.deadline = deadline.nanoseconds
        self.exit = exit
    }
}

/// A segment's key as JSON. Numbers of 64 bits are 16 hexadecimal digits: other readers of JSON round them.
private struct SegmentValue: Codable {
    struct Member: Codable {
        var node: String
        var disk: String

        init(_ member: EnsembleMember) {
            self.node = SegmentName.hex(member.node.value)
            self.disk = SegmentName.hex(member.diskID)
        }

        var member: EnsembleMember? {
            guard let node = UInt64(node, radix: 16), let disk = UInt64(disk, radix: 16) else { return nil }
            return EnsembleMember(node: NodeID(value: node), diskID: disk)
        }
    }

    var ensemble: [Member]
    var appendEpoch: UInt64
    var state: String
    var length: Int64
    var drainerNode: String
    var drainerIncarnation: String
    var drainEpoch: UInt64
    var stale: [Member]
    var joining: Member?
    var target: [String]?
    /// Absent unless true.
    var targetVoid: Bool?
    var former: [Member]
    var finishedEpoch: UInt64
}

package enum ClusterCodec {
    package static func encode(_ key: SegmentKey) -> [UInt8] {
        let (state, length): (String, Int64) =
            switch key.state {
            case .open: ("open", 0)
            case .sealed(let end): ("sealed", end)
            case .finished: ("finished", key.finishedLength)
            }
        return json(
            SegmentValue(
                ensemble: key.ensemble.map(SegmentValue.Member.init), appendEpoch: key.appendEpoch, state: state,
                length: length, drainerNode: SegmentName.hex(key.drainer.node.value),
                drainerIncarnation: SegmentName.hex(key.drainer.incarnation.value), drainEpoch: key.drainEpoch,
                stale: key.stale.map(SegmentValue.Member.init), joining: key.joining.map(SegmentValue.Member.init),
                target: key.target.map { [$0.writer.value, $0.incarnation.value, $0.index].map(SegmentName.hex) },
                targetVoid: key.targetVoid ? true : nil, former: key.former.map(SegmentValue.Member.init),
                finishedEpoch: key.finishedEpoch))
    }

    /// Nil for anything that `encode` cannot have written.
    package static func segment(_ entry: ControlEntry, in paths: ClusterPaths) -> SegmentKey? {
        guard let id = segmentID(entry.key, in: paths), let value: SegmentValue = decode(entry.value),
            let node = UInt64(value.drainerNode, radix: 16), let run = UInt64(value.drainerIncarnation, radix: 16),
            entry.modified > 0
        else { return nil }
        let state: SegmentState
        switch value.state {
        case "open": state = .open
        case "sealed" where value.length >= 0: state = .sealed(at: value.length)
        case "finished": state = .finished
        default: return nil
        }
        var key = SegmentKey(
            id: id, ensemble: value.ensemble.compactMap(\.member), appendEpoch: value.appendEpoch, state: state,
            drainer: Drainer(node: NodeID(value: node), incarnation: Incarnation(value: run)),
            drainEpoch: value.drainEpoch)
        key.stale = value.stale.compactMap(\.member)
        key.joining = value.joining?.member
        key.former = value.former.compactMap(\.member)
        key.target = value.target.flatMap { segmentID(of: $0) }
        key.targetVoid = value.targetVoid ?? false
        key.finishedLength = state == .finished ? value.length : 0
        key.finishedEpoch = value.finishedEpoch
        key.revision = UInt64(entry.modified)
        guard key.ensemble.count == value.ensemble.count, !key.ensemble.isEmpty else { return nil }
        return key
    }

    private static func segmentID(_ key: ControlKey, in paths: ClusterPaths) -> SegmentID? {
        let text = key.description
        let prefix = paths.root + "segments/"
        guard text.hasPrefix(prefix) else { return nil }
        return segmentID(of: text.dropFirst(prefix.count).split(separator: "/").map(String.init))
    }

    private static func segmentID(of parts: [String]) -> SegmentID? {
        guard parts.count == 3, let writer = UInt64(parts[0], radix: 16), let run = UInt64(parts[1], radix: 16),
            let index = UInt64(parts[2], radix: 16)
        else { return nil }
        return SegmentID(writer: NodeID(value: writer), incarnation: Incarnation(value: run), index: index)
    }

    package static func json(_ value: some Encodable) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys]
        // Only strings and numbers: encoding them cannot fail.
        return (try? encoder.encode(value)).map(Array.init) ?? []
    }

    package static func decode<Value: Decodable>(_ bytes: [UInt8]) -> Value? {
        try? JSONDecoder().decode(Value.self, from: Data(bytes))
    }
}

/// Everything of a cluster, at one revision.
package struct ClusterView: Sendable {
    package var listing: Listing
    package var nodes: [NodeEntry] = []
    /// Of the node's key: when it was created, which names one registration.
    package var created: [NodeID: ControlRevision] = [:]
    package var revisions: [NodeID: ControlRevision] = [:]
    package var roster: [RosterEntry] = []
    package var drains: [DrainRequest] = []
    /// Of the forgotten disks, those whose nodes left in order.
    package var drained: Set<EnsembleMember> = []
    /// Operators' holds, for who reads them.
    package var holds: [ControlEntry] = []
    /// How often the registry was rebuilt, and the revision of the key that says so (0: there is none).
    package var recovery: UInt64 = 0
    package var recoveryRevision: ControlRevision = 0
    /// With the revision of the key.
    package var tallies: [ControlKey: (count: UInt64, revision: ControlRevision)] = [:]

    /// What cannot be read is left out: it is somebody else's, or of a later version.
    package init(_ found: ControlListing, in paths: ClusterPaths) {
        var keys: [SegmentKey] = []
        var forgotten: [EnsembleMember] = []
        var records: [NodeRecord] = []
        for entry in found.entries {
            let text = entry.key.description.dropFirst(paths.root.count)
            if text.hasPrefix("segments/") {
                if let key = ClusterCodec.segment(entry, in: paths) { keys.append(key) }
            } else if text.hasPrefix("nodes/") {
                guard let node: NodeEntry = ClusterCodec.decode(entry.value), let record = node.record else { continue }
                nodes.append(node)
                records.append(record)
                created[record.node] = entry.created
                revisions[record.node] = entry.modified
            } else if text.hasPrefix("roster/") {
                if let member: RosterEntry = ClusterCodec.decode(entry.value) { roster.append(member) }
            } else if text.hasPrefix("drains/") {
                if let request: DrainRequest = ClusterCodec.decode(entry.value) { drains.append(request) }
            } else if text.hasPrefix("holds/") {
                holds.append(entry)
            } else if entry.key == paths.registry {
                let value: RegistryEntry? = ClusterCodec.decode(entry.value)
                recovery = value?.number ?? 0
                recoveryRevision = entry.modified
            } else if text.hasPrefix("tallies/") {
                let value: TallyEntry? = ClusterCodec.decode(entry.value)
                tallies[entry.key] = (value?.number ?? 0, entry.modified)
            } else if text.hasPrefix("forgotten/") {
                let parts = text.split(separator: "/")
                guard parts.count == 3, let disk = UInt64(parts[2], radix: 16) else { continue }
                let member = EnsembleMember(node: NodeID(name: String(parts[1])), diskID: disk)
                forgotten.append(member)
                let value: RosterEntry? = ClusterCodec.decode(entry.value)
                if value?.drained == true { drained.insert(member) }
            }
        }
        listing = Listing(
            revision: UInt64(max(0, found.header.revision)), keys: keys.sorted { $0.id < $1.id },
            nodes: records.sorted { $0.node < $1.node }, forgotten: forgotten,
            departed: drained.sorted())
    }
}
