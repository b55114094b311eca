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
/// of the domain's rendezvous order. Placement is a preference: two nodes that see other nodes place differently and both
/// store safely.
package struct PlacementState: Sendable {
    private let own: NodeID
    private let spreadRate: Double
    private var nodes: [PlacementNode] = []
    private var rates = DomainRates()

    /// `spreadRate`: messages a second for which a domain gains one more share (`cluster.spread_rate`), at least 1.
    package init(own: NodeID, spreadRate: Double) {
        self.own = own
        self.spreadRate = max(1, spreadRate)
    }

    /// The nodes that new mail may go to, this one included unless it drains.
    package mutating func update(_ nodes: [PlacementNode]) { self.nodes = nodes }

    package var liveNodes: [PlacementNode] { nodes }

    /// Whether nothing can go to another node, so that nobody needs to look.
    package var isLocal: Bool { nodes.isEmpty || nodes.count == 1 && nodes[0].run.node == own }

    /// The parts, the local one first; one part for this node where the message stays whole: reports, what is fragmented or
    /// larger than a SUBMIT holds, and everything while no other node is there.
    package mutating func place(
        _ envelope: Envelope, bodyOctets: Int, fragmented: Bool, at now: Instant
    ) -> [PlacedPart] {
        let whole = [PlacedPart(node: nil, recipients: (0..<UInt32(clamping: envelope.recipients.count)).map { $0 })]
        if isLocal || fragmented || bodyOctets > Limits.fragmentThreshold || envelope.flags.contains(.report) {
            return whole
        }
        var domains: [(hash: UInt64, recipients: [UInt32])] = []
        var known: [UInt64: Int] = [:]
        for (index, recipient) in envelope.recipients.enumerated() {
            let hash = recipient.address.domain.stableHash
            if let at = known[hash] {
                domains[at].recipients.append(UInt32(index))
            } else {
                known[hash] = domains.count
                domains.append((hash, [UInt32(index)]))
            }
        }
        guard !domains.isEmpty else { return whole }
        let chosen = choose(domains.map(\.hash), of: envelope.id, at: now)
        var byNode: [Int: [UInt32]] = [:]
        for (domain, node) in zip(domains, chosen) { byNode[node, default: []] += domain.recipients }
        return byNode.map { node, recipients in
            PlacedPart(
                node: nodes[node].run.node == own ? nil : nodes[node].run, recipients: recipients.sorted())
        }.sorted {
            ($0.node == nil ? 0 : 1, $0.node?.node.value ?? 0) < ($1.node == nil ? 0 : 1, $1.node?.node.value ?? 0)
        }
    }

    /// A node for each domain, by index. Domains of one share first; one of several shares goes where the message goes already,
    /// if that node has one of its shares, so that a message is on as few nodes as its domains need.
    private mutating func choose(_ domains: [UInt64], of message: MessageID, at now: Instant) -> [Int] {
        var chosen = [Int](repeating: -1, count: domains.count)
        var used: Set<Int> = []
        var spread: [(index: Int, shares: Int)] = []
        for (index, domain) in domains.enumerated() {
            let shares = Self.shares(rates.add(hash: domain, at: now), spreadRate, nodes: nodes.count)
            guard shares == 1 else {
                spread.append((index, shares))
                continue
            }
            chosen[index] = RendezvousOrder.order(ofHash: domain, among: nodes, count: 1)[0]
            used.insert(chosen[index])
        }
        for (index, shares) in spread {
            let order = RendezvousOrder.order(ofHash: domains[index], among: nodes, count: shares)
            let share = Int(SplitMix64.mix(message.low ^ domains[index]) % UInt64(order.count))
            chosen[index] = order.first(where: { used.contains($0) }) ?? order[share]
            used.insert(chosen[index])
        }
        return chosen
    }

    static func shares(_ rate: Double, _ spreadRate: Double, nodes: Int) -> Int {
        let wanted = (rate / spreadRate).rounded(.down)
        return 1 + Int(min(max(0, wanted), Double(max(0, nodes - 1))))
    }
}
