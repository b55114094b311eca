// The order in which nodes are asked to take a name: weighted rendezvous hashing, the same on every node.
import BatonCore
import BatonPeer

/// A node as placement sees it.
package struct PlacementNode: Hashable, Sendable {
    package let run: NodeRun
    /// `cluster.weight`: a node of weight 2 gets twice the names of one of weight 1. At least 1.
    package let weight: UInt32

    package init(run: NodeRun, weight: UInt32 = 1) {
        self.run = run
        self.weight = max(1, weight)
    }
}

/// Each node draws a score for a name, by hash and weight, and the highest comes first. A node that joins takes only what goes
/// to it, one that leaves gives away only what was its own. Scores are made of IEEE additions, multiplications and divisions
/// alone, so they are equal on every machine.
package enum RendezvousOrder {
    /// Indices into `nodes`, best first, at most `count`.
    package static func order(of name: [UInt8], among nodes: [PlacementNode], count: Int = .max) -> [Int] {
        order(ofHash: StableHash.of(name), among: nodes, count: count)
    }

    package static func order(ofHash hash: UInt64, among nodes: [PlacementNode], count: Int = .max) -> [Int] {
        if nodes.count <= 1 || count <= 0 { return count <= 0 || nodes.isEmpty ? [] : [0] }
        let scores = nodes.map { score(hash, $0) }
        if count == 1 {
            var best = 0
            for index in 1..<nodes.count where precedes(index, best, scores, nodes) { best = index }
            return [best]
        }
        return Array(nodes.indices.sorted { precedes($0, $1, scores, nodes) }.prefix(count))
    }

    private static func precedes(_ left: Int, _ right: Int, _ scores: [Double], _ nodes: [PlacementNode]) -> Bool {
        if scores[left] != scores[right] { return scores[left] > scores[right] }
        return nodes[left].run.node.value < nodes[right].run.node.value
    }

    /// -w / ln(h) with h in (0, 1): of nodes of the weights w, each has the highest score with probability w / sum of w.
    /// The incarnation is no part of it: a restarted node gets the same names.
    static func score(_ name: UInt64, _ node: PlacementNode) -> Double {
        var hash = StableHash()
        hash.combine(name)
        hash.combine(node.run.node.value)
        let unit = (Double(hash.finish() >> 11) + 0.5) * 0x1p-53
        return -Double(node.weight) / naturalLogarithm(unit)
    }

    /// ln of a positive, normal number to about 1e-16 of its size, by ln m = 2 artanh((m - 1) / (m + 1)) on the significand.
    static func naturalLogarithm(_ value: Double) -> Double {
        var exponent = Double(value.exponent)
        var significand = value.significand
        if significand > 1.414_213_562_373_095_1 {
            significand *= 0.5
            exponent += 1
        }
        let ratio = (significand - 1) / (significand + 1)
        let square = ratio * ratio
        var sum = 0.0
        for odd in stride(from: 21.0, through: 1.0, by: -2.0) { sum = sum * square + 1 / odd }
        return exponent * 0.693_147_180_559_945_3 + 2 * ratio * sum
    }
}
