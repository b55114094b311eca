// Whether mail that several nodes may store stays where it came in: a pure value.
import BatonCore
import BatonPeer

/// Mail of a spread domain that stays where it came in saves a hop; one node that takes in more than its part gives the rest away.
/// A node's fair part is that of its weight, of what all placeable nodes take in from clients; each tells the others its own
/// **intake** once a second. A node that has not told counts as one that takes in nothing. Wrong or old figures cost hops or
/// balance, never mail. See `docs/decisions/0008`.
struct IntakeBalance: Sendable {
    private var own = DecayingRate()
    private var told: [NodeRun: Double] = [:]

    /// Messages a second that this node takes in.
    func rate(at now: Instant) -> Double { own.rate(at: now) }

    /// One more message from a client.
    mutating func count(at now: Instant) { _ = own.add(at: now) }

    /// What another node says of itself. Kept only for the nodes of the last `keep`, so it is bounded by them.
    mutating func told(_ rate: Double, by node: NodeRun) { told[node] = rate }

    var known: Int { told.count }

    mutating func keep(_ nodes: [PlacementNode]) {
        let runs = Set(nodes.map(\.run))
        told = told.filter { runs.contains($0.key) }
    }

    /// One of `shares` (indices into `nodes`, `mine` among them) for a message of the given draw.
    func choose(
        _ shares: [Int], of nodes: [PlacementNode], mine: Int, draw: UInt64, at now: Instant
    ) -> Int {
        let rates = nodes.indices.map { $0 == mine ? own.rate(at: now) : told[nodes[$0].run] ?? 0 }
        let weight = nodes.reduce(0) { $0 + Double($1.weight) }
        let whole = rates.reduce(0, +)
        let fair = nodes.map { whole * Double($0.weight) / weight }
        guard rates[mine] > fair[mine] * PlacementLimits.intakeSlack else { return mine }
        // Of what comes in here, the fair part stays; the rest goes to those that lack something, by how much they lack.
        var left = Self.unit(draw) * rates[mine] - fair[mine]
        guard left >= 0 else { return mine }
        let others = shares.filter { $0 != mine && rates[$0] < fair[$0] }
        let lack = others.reduce(0) { $0 + fair[$1] - rates[$1] }
        guard lack > 0 else { return mine }
        left *= lack / (rates[mine] - fair[mine])
        for other in others {
            left -= fair[other] - rates[other]
            if left < 0 { return other }
        }
        return others.last ?? mine
    }

    /// In 0 ..< 1.
    private static func unit(_ draw: UInt64) -> Double { Double(draw >> 11) * 0x1p-53 }
}
