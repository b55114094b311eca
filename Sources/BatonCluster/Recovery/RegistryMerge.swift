// What the disks say of one segment each, put together into keys (`recover-registry`).
import BatonCore
import BatonModel
import BatonSpool

/// What one disk says of one segment. Nothing is sealed or changed by asking.
package struct CopyClaim: Codable, Sendable, Hashable {
    var writer: String
    var incarnation: String
    var index: String
    var disk: String
    /// The highest epoch of a seal or an outcome log here.
    var epoch: UInt64
    /// The epoch of the seal; 0 for none.
    var sealed: UInt64
    /// Up to where chunk follows chunk.
    var end: Int64

    package init(_ copy: CopyOnDisk, disk: UInt64) {
        self.writer = SegmentName.hex(copy.id.writer.value)
        self.incarnation = SegmentName.hex(copy.id.incarnation.value)
        self.index = SegmentName.hex(copy.id.index)
        self.disk = SegmentName.hex(disk)
        self.epoch = copy.epoch
        self.sealed = copy.sealed
        self.end = copy.end
    }

    var id: SegmentID? {
        guard let writer = UInt64(writer, radix: 16), let run = UInt64(incarnation, radix: 16),
            let index = UInt64(index, radix: 16)
        else { return nil }
        return SegmentID(writer: NodeID(value: writer), incarnation: Incarnation(value: run), index: index)
    }
}

/// The copies of all disks by segment. Pure.
package struct RegistryMerge: Sendable {
    private struct Copy: Sendable {
        let node: String
        let member: EnsembleMember
        let claim: CopyClaim
    }

    private var copies: [SegmentID: [Copy]] = [:]

    package init() {}

    package var segments: [SegmentID] { copies.keys.sorted() }

    /// Who holds copies.
    package var nodes: Set<String> { Set(copies.values.lazy.joined().map(\.node)) }

    package mutating func add(_ claims: [CopyClaim], of node: String) {
        for claim in claims {
            guard let id = claim.id, let disk = UInt64(claim.disk, radix: 16) else { continue }
            let member = EnsembleMember(node: NodeID(name: node), diskID: disk)
            guard copies[id]?.contains(where: { $0.member == member }) != true else { continue }
            copies[id, default: []].append(Copy(node: node, member: member, claim: claim))
        }
    }

    /// The segment's key: drained by its writer's old run, at the highest epoch that any disk knows. A member then takes it over
    /// by the ordinary steps, which fix its length and gather its outcomes. A taker goes by its own copy, so that stale is
    /// - a copy sealed at a lower epoch than another: it may lack outcomes (PROTOCOL P2);
    /// - a copy that ends before the longest one of the highest seal: it was being made (C1), its rest is rotten, or the other has a
    ///   rest that was never acknowledged. Its drainer has it replaced.
    ///
    /// - Parameter there: what stands in the registry. A length at which it was sealed is final.
    /// - Returns: nil of a segment that no disk has told of.
    package func key(of id: SegmentID, there: SegmentKey? = nil) -> SegmentKey? {
        guard let found = copies[id]?.sorted(by: { $0.member < $1.member }) else { return nil }
        let sealedAt = there?.sealedAt
        func end(_ copy: Copy) -> Int64 { min(copy.claim.end, sealedAt ?? .max) }
        let seal = found.map(\.claim.sealed).max() ?? 0
        let length = found.filter { $0.claim.sealed == seal }.map(end).max() ?? 0
        var key = SegmentKey(
            id: id, ensemble: found.map(\.member), drainer: Drainer(node: id.writer, incarnation: id.incarnation))
        if let sealedAt { key.state = .sealed(at: sealedAt) }
        key.drainEpoch = max(1, there?.drainEpoch ?? 1, found.map(\.claim.epoch).max() ?? 1)
        key.stale = found.filter { $0.claim.sealed < seal || end($0) < length }.map(\.member)
        return key
    }
}
