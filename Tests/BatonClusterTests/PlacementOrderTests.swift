// Rendezvous order, measured rates, and which node takes which recipients.
import BatonCore
import BatonModel
import BatonPeer
import Testing

@testable import BatonCluster

func run(_ node: UInt64, _ incarnation: UInt64 = 1) -> NodeRun {
    NodeRun(node: NodeID(value: SplitMix64.mix(node)), incarnation: Incarnation(value: incarnation))
}

private func domain(_ index: Int) -> [UInt8] { Array("d\(index).example".utf8) }

private func mail(_ text: String) -> MailAddress {
    guard let made = MailAddress(text) else { preconditionFailure(text) }
    return made
}

func envelope(_ id: UInt64, to recipients: [String], flags: EnvelopeFlags = []) -> Envelope {
    Envelope(
        id: MessageID(high: 7, low: id), arrival: .epoch, sender: mail("s@example.org"), flags: flags,
        senderClass: 5, client: Array("192.0.2.1".utf8),
        recipients: recipients.map { EnvelopeRecipient(address: mail($0)) },
        traits: .empty)
}

private let hundredThousand = 100_000

@Test func weightsAreNotKept() {
    let weights: [UInt32] = [1, 2, 3, 4]
    let nodes = weights.enumerated().map { PlacementNode(run: run(UInt64($0.offset)), weight: $0.element) }
    var counts = [Int](repeating: 0, count: 4)
    for index in 0..<hundredThousand {
        counts[RendezvousOrder.order(of: domain(index), among: nodes, count: 1)[0]] += 1
    }
    for (count, weight) in zip(counts, weights) {
        let expected = Double(hundredThousand) * Double(weight) / 10
        #expect(abs(Double(count) - expected) < 0.02 * Double(hundredThousand), "\(counts)")
        #expect(abs(Double(count) - expected) < 0.05 * expected, "\(counts)")
    }
}

@Test func joiningOrLeavingNodeMovesWhatIsNotItsOwn() {
    var nodes = (0..<6).map { PlacementNode(run: run($0), weight: UInt32($0 % 3) + 1) }
    let first = (0..<20_000).map { nodes[RendezvousOrder.order(of: domain($0), among: nodes, count: 1)[0]].run }
    let joined = PlacementNode(run: run(77), weight: 2)
    nodes.insert(joined, at: 2)
    var moved = 0
    for (index, before) in first.enumerated() {
        let order = RendezvousOrder.order(of: domain(index), among: nodes)
        let after = nodes[order[0]].run
        if after != before {
            moved += 1
            #expect(after == joined.run)
        }
        // The rest of the order is what it was.
        #expect(nodes[order.first { nodes[$0].run != joined.run } ?? 0].run == before)
    }
    #expect(moved > 1_000)
    let left = nodes.remove(at: 4).run
    for (index, before) in first.enumerated() where before != left && index % 7 == 0 {
        let after = nodes[RendezvousOrder.order(of: domain(index), among: nodes, count: 1)[0]].run
        #expect(after == before || after == joined.run)
    }
}

@Test func orderDependsOnTheIncarnationOrTheListing() {
    let nodes = (0..<5).map { PlacementNode(run: run($0)) }
    let again = (0..<5).reversed().map { PlacementNode(run: run($0, 99)) }
    for index in 0..<500 {
        let one = RendezvousOrder.order(of: domain(index), among: nodes).map { nodes[$0].run.node }
        let other = RendezvousOrder.order(of: domain(index), among: again).map { again[$0].run.node }
        #expect(one == other)
        #expect(one[0] == nodes[RendezvousOrder.order(of: domain(index), among: nodes, count: 1)[0]].run.node)
    }
}

/// The order is a promise between nodes of different releases and machines.
@Test func orderChangesFromReleaseToRelease() {
    let nodes = (0..<4).map { PlacementNode(run: run($0), weight: UInt32($0) + 1) }
    let orders = (0..<6).map { RendezvousOrder.order(of: domain($0), among: nodes) }
    #expect(orders == keptOrders, "\(orders)")
    #expect(abs(RendezvousOrder.naturalLogarithm(0.5) + 0.693_147_180_559_945_3) < 1e-15)
    #expect(abs(RendezvousOrder.naturalLogarithm(1e-10) + 23.025_850_929_940_457) < 1e-13)
}

private let keptOrders = [[3, 2, 1, 0], [3, 0, 1, 2], [3, 2, 0, 1], [3, 0, 1, 2], [1, 3, 2, 0], [0, 3, 1, 2]]

@Test func ratesGrowWithoutEndOrNeverDecay() {
    var rates = DomainRates(bound: 64)
    var now = Instant.epoch
    for _ in 0..<2_000 {
        _ = rates.add(hash: 1, at: now)
        now = now + .milliseconds(20)
    }
    #expect(abs(rates.rate(ofHash: 1, at: now) - 50) < 2)
    #expect(rates.rate(ofHash: 1, at: now + .seconds(10)) < 20)
    #expect(rates.rate(ofHash: 1, at: now + .seconds(500)) == 0)
    for other in 2..<UInt64(10_000) { _ = rates.add(hash: other, at: now) }
    #expect(rates.count <= 64)
    #expect(rates.rate(ofHash: 1, at: now) > 45, "the busy one stays")
}

private func placement(_ count: UInt64, spreadRate: Double = 100) -> PlacementState {
    var state = PlacementState(own: run(0).node, spreadRate: spreadRate)
    state.update((0..<count).map { PlacementNode(run: run($0)) })
    return state
}

@Test func messageIsTornApartOrLosesARecipient() {
    var state = placement(5)
    for index in 0..<300 {
        let recipients = (0..<20).map { "u\($0)@D\(($0 * 7 + index) % 9).example" }
        let parts = state.place(envelope(UInt64(index), to: recipients), bodyOctets: 10, fragmented: false, at: .epoch)
        let all = parts.flatMap(\.recipients)
        #expect(all.sorted() == (0..<20).map { UInt32($0) })
        #expect(Set(parts.map(\.node)).count == parts.count)
        #expect(parts.count <= 5 && parts.dropFirst().allSatisfy { $0.node != nil })
        var nodeOf: [String: NodeRun?] = [:]
        for part in parts {
            #expect(part.recipients == part.recipients.sorted())
            for recipient in part.recipients {
                let name = recipients[Int(recipient)].split(separator: "@")[1].lowercased()
                if let before = nodeOf.updateValue(part.node, forKey: name) { #expect(before == part.node) }
            }
        }
    }
}

@Test func largeFragmentedAndReportsLeaveTheNode() {
    var state = placement(5)
    for index in 0..<50 {
        let made = envelope(UInt64(index), to: ["a@d\(index).example"])
        let whole = [PlacedPart(node: nil, recipients: [0])]
        #expect(state.place(made, bodyOctets: 10, fragmented: true, at: .epoch) == whole)
        #expect(state.place(made, bodyOctets: Limits.fragmentThreshold + 1, fragmented: false, at: .epoch) == whole)
        let report = envelope(UInt64(index), to: ["a@d\(index).example"], flags: .report)
        #expect(state.place(report, bodyOctets: 10, fragmented: false, at: .epoch) == whole)
    }
    #expect(placement(1).isLocal && !placement(2).isLocal)
}

@Test func giantStaysOnOneNodeOrSmallDomainsSpread() {
    var state = placement(4, spreadRate: 100)
    var now = Instant.epoch
    var giant: [NodeRun?: Int] = [:]
    var small: Set<NodeRun?> = []
    for index in 0..<20_000 {
        now = now + .milliseconds(4)
        let part = state.place(
            envelope(SplitMix64.mix(UInt64(index)), to: ["a@giant.example"]), bodyOctets: 1, fragmented: false, at: now)
        if index > 10_000 { giant[part[0].node, default: 0] += 1 }
        if index % 50 == 0 {
            small.insert(
                state.place(
                    envelope(UInt64(index), to: ["a@small.example"]), bodyOctets: 1, fragmented: false, at: now)[0].node
            )
        }
    }
    // 250 a second are three shares of four nodes, about equal.
    #expect(giant.count == 3, "\(giant)")
    #expect(giant.values.allSatisfy { $0 > 2_800 }, "\(giant)")
    #expect(small.count == 1)
    #expect(PlacementState.shares(1e18, 1, nodes: 4) == 4 && PlacementState.shares(0, 1, nodes: 4) == 1)
}

@Test func spreadDomainMakesAMessageVisitOneNodeMore() {
    var state = placement(4, spreadRate: 1)
    var now = Instant.epoch
    for index in 0..<400 {
        now = now + .milliseconds(10)
        _ = state.place(envelope(UInt64(index), to: ["a@giant.example"]), bodyOctets: 1, fragmented: false, at: now)
    }
    for index in 0..<100 {
        let both = ["a@giant.example", "b@calm\(index).example", "c@giant.example"]
        let parts = state.place(
            envelope(SplitMix64.mix(UInt64(index)), to: both), bodyOctets: 1, fragmented: false, at: now)
        #expect(parts.count == 1, "every node has a share of the giant")
    }
}
