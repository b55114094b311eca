// Which node takes which recipients of a message: a pure value.
import BatonCore
import BatonModel
import BatonPeer

/// Some recipients of a message and the node that is to store them.
package struct PlacedPart: Hashable, Sendable {
    /// Nil: this node.
    package let node: NodeRun?
    /// Indices into the envelope's recipients, strictly rising.
    package let recipients: [UInt32]

    package init(node: NodeRun?, recipients: [UInt32]) {
        self.node = node
        self.recipients = recipients
    }
}

/// A domain's mail is 1 + floor(rate / spreadRate) shares, at most as many as there are nodes; share k belongs to the k-th node
/// of the domain's rendezvous order. The rate is that of the destination: the domain, or the next hop that its route names. If
/// this node has one of several shares, mail stays here, as far as its intake is not above its part (`IntakeBalance`).
/// Placement is a preference: two nodes that see other nodes place differently and both store safely.
package struct PlacementState: Sendable {
    private let own: NodeID
    private let spreadRate: Double
    private var nodes: [PlacementNode] = []
    private var rates = DomainRates()
    private var balance = IntakeBalance()

    /// `spreadRate`: messages a second for which a domain gains one more share (`cluster.spread_rate`), at least 1.
    package init(own: NodeID, spreadRate: Double) {
        self.own = own
        self.spreadRate = max(1, spreadRate)
    }

    /// The nodes that new mail may go to, this one included unless it drains.
    package mutating func update(_ nodes: [PlacementNode]) {
        self.nodes = nodes
        balance.keep(nodes)
    }

    /// Another node's intake, in messages a second; of one that nothing is placed on it is ignored.
    package mutating func told(intake: Double, by node: NodeRun) {
        guard nodes.contains(where: { $0.run == node }) else { return }
        balance.told(intake, by: node)
    }

    /// Nodes whose intake is kept.
    var knownIntakes: Int { balance.known }

    /// Messages a second that this node takes in from clients.
    package func intake(at now: Instant) -> Double { balance.rate(at: now) }

    package var liveNodes: [PlacementNode] { nodes }

    /// Whether nothing can go to another node, so that nobody needs to look.
    package var isLocal: Bool { nodes.isEmpty || nodes.count == 1 && nodes[0].run.node == own }

    /// The parts, the local one first; one part for this node where the message stays whole: reports, what is fragmented or
    /// larger than a SUBMIT holds, and everything while no other node is there. `destination`: what a domain's mail goes to.
    package mutating func place(
        _ envelope: Envelope, bodyOctets: Int, fragmented: Bool, at now: Instant,
        destination: (Domain) -> UInt64 = { $0.stableHash }
    ) -> [PlacedPart] {
        balance.count(at: now)
        let whole = [PlacedPart(node: nil, recipients: (0..<UInt32(clamping: envelope.recipients.count)).map { $0 })]
        if isLocal || fragmented || bodyOctets > Limits.fragmentThreshold || envelope.flags.contains(.report) {
            return whole
        }
        var domains: [PlacedDomain] = []
        var known: [UInt64: Int] = [:]
        for (index, recipient) in envelope.recipients.enumerated() {
            let hash = recipient.address.domain.stableHash
            if let at = known[hash] {
                domains[at].recipients.append(UInt32(index))
            } else {
                known[hash] = domains.count
                let destination = destination(recipient.address.domain)
                domains.append(PlacedDomain(hash: hash, destination: destination, recipients: [UInt32(index)]))
            }
        }
        guard !domains.isEmpty else { return whole }
        let chosen = choose(domains, of: envelope.id, at: now)
        var byNode: [Int: [UInt32]] = [:]
        for (domain, node) in zip(domains, chosen) { byNode[node, default: []] += domain.recipients }
        return byNode.map { node, recipients in
            PlacedPart(
                node: nodes[node].run.node == own ? nil : nodes[node].run, recipients: recipients.sorted())
        }.sorted {
            ($0.node == nil ? 0 : 1, $0.node?.node.value ?? 0) < ($1.node == nil ? 0 : 1, $1.node?.node.value ?? 0)
        }
    }

    private struct PlacedDomain {
        let hash: UInt64
        let destination: UInt64
        var recipients: [UInt32]
    }

    /// A node for each domain, by index. Those of one share first; one of several shares goes where the message goes already,
    /// if that node has one of its shares, so that a message is on as few nodes as it needs. Else here, or by the message's id.
    private mutating func choose(_ domains: [PlacedDomain], of message: MessageID, at now: Instant) -> [Int] {
        var chosen = [Int](repeating: -1, count: domains.count)
        var used: Set<Int> = []
        var spread: [(index: Int, shares: Int)] = []
        // A message counts once for a next hop, however many of its domains it is for.
        var counted: [UInt64: Int] = [:]
        for (index, domain) in domains.enumerated() {
            let shares =
                counted[domain.destination]
                ?? Self.shares(rates.add(hash: domain.destination, at: now), spreadRate, nodes: nodes.count)
            counted[domain.destination] = shares
            guard shares == 1 else {
                spread.append((index, shares))
                continue
            }
            chosen[index] = RendezvousOrder.order(ofHash: domain.hash, among: nodes, count: 1)[0]
            used.insert(chosen[index])
        }
        for (index, shares) in spread {
            let hash = domains[index].hash
            let order = RendezvousOrder.order(ofHash: hash, among: nodes, count: shares)
            let draw = SplitMix64.mix(message.low ^ hash)
            if let at = order.first(where: { used.contains($0) }) {
                chosen[index] = at
            } else if let mine = order.first(where: { nodes[$0].run.node == own }) {
                chosen[index] = balance.choose(order, of: nodes, mine: mine, draw: draw, at: now)
            } else {
                chosen[index] = order[Int(draw % UInt64(order.count))]
            }
            used.insert(chosen[index])
        }
        return chosen
    }

    static func shares(_ rate: Double, _ spreadRate: Double, nodes: Int) -> Int {
        let wanted = (rate / spreadRate).rounded(.down)
        return 1 + Int(min(max(0, wanted), Double(max(0, nodes - 1))))
    }
}
