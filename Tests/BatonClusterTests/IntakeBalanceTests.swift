// Mail of a spread destination stays where it came in, until a node takes in more than its part.
import BatonCore
import BatonModel
import BatonPeer
import Testing

@testable import BatonCluster

/// Where `count` messages of one destination go that come in at `rate` a second, others having said `told`.
private func placed(
    rate: Int, told: [UInt64: Double], weights: [UInt32] = [1, 1, 1], count: Int = 6_000, domains: Int = 1
) -> [Int] {
    var state = PlacementState(own: run(0).node, spreadRate: 1)
    let nodes = weights.enumerated().map { PlacementNode(run: run(UInt64($0.offset)), weight: $0.element) }
    state.update(nodes)
    for (node, intake) in told { state.told(intake: intake, by: run(node)) }
    var now = Instant.epoch
    var counts = [Int](repeating: 0, count: weights.count)
    let warm = 20 * rate
    for index in 0..<(warm + count) {
        now = now + TimeSpan(nanoseconds: 1_000_000_000 / Int64(rate))
        let made = envelope(SplitMix64.mix(UInt64(index)), to: ["a@d\(index % domains).example"])
        let parts = state.place(made, bodyOctets: 1, fragmented: false, at: now)
        guard index >= warm else { continue }
        let node = parts[0].node.flatMap { there in nodes.firstIndex { $0.run == there } } ?? 0
        counts[node] += 1
    }
    return counts
}

@Test func mailMovesThoughAllNodesTakeInTheSame() {
    #expect(placed(rate: 100, told: [1: 100, 2: 100]) == [6_000, 0, 0])
    #expect(placed(rate: 100, told: [1: 80, 2: 85]) == [6_000, 0, 0], "within the slack")
    #expect(placed(rate: 100, told: [1: 1_000, 2: 1_000], domains: 5) == [6_000, 0, 0], "takes in less than its part")
}

@Test func nodeThatTakesInEverythingKeepsIt() {
    let counts = placed(rate: 100, told: [:])
    #expect(counts.allSatisfy { abs($0 - 2_000) < 200 }, "\(counts)")
    let told = placed(rate: 100, told: [1: 0, 2: 0])
    #expect(told == counts, "who has not told counts as idle")
}

@Test func surplusGoesToANodeThatHasItsPart() {
    // The part of each is 100: the second has it, the third lacks all of it.
    let counts = placed(rate: 200, told: [1: 100, 2: 0])
    #expect(counts[1] == 0, "\(counts)")
    #expect(abs(counts[0] - 3_000) < 250 && abs(counts[2] - 3_000) < 250, "\(counts)")
    // 360 in all: 240 of them here, the second lacks 20 of its 120, the third 100.
    let both = placed(rate: 240, told: [1: 100, 2: 20])
    #expect(abs(both[0] - 3_000) < 250 && abs(both[1] - 500) < 150 && abs(both[2] - 2_500) < 250, "\(both)")
}

@Test func weightsDoNotCount() {
    let counts = placed(rate: 100, told: [:], weights: [1, 2, 1])
    #expect(abs(counts[0] - 1_500) < 200 && abs(counts[1] - 3_000) < 250, "\(counts)")
    #expect(placed(rate: 300, told: [1: 100, 2: 100], weights: [3, 1, 1]) == [6_000, 0, 0])
}

@Test func nodeThatIsGoneIsRememberedOrCounts() {
    var state = PlacementState(own: run(0).node, spreadRate: 1)
    state.update([PlacementNode(run: run(0)), PlacementNode(run: run(1))])
    state.told(intake: 1_000_000, by: run(9))
    state.told(intake: 100, by: run(1))
    var now = Instant.epoch
    func node(_ index: UInt64) -> NodeRun? {
        now = now + .milliseconds(10)
        let made = envelope(SplitMix64.mix(index), to: ["a@d.example"])
        return state.place(made, bodyOctets: 1, fragmented: false, at: now)[0].node
    }
    for index in 0..<3_000 { _ = node(UInt64(index)) }
    #expect((3_000..<3_500).allSatisfy { node($0) == nil })
    #expect(state.knownIntakes == 1)
    // Its next run has told nothing.
    state.update([PlacementNode(run: run(0)), PlacementNode(run: run(1, 2))])
    #expect(state.knownIntakes == 0)
    #expect((4_000..<4_500).contains { node($0) == run(1, 2) })
}

@Test func rateOfANextHopIsCountedForEachOfItsDomains() {
    var state = PlacementState(own: run(0).node, spreadRate: 40)
    state.update((0..<3).map { PlacementNode(run: run($0)) })
    for other: UInt64 in [1, 2] { state.told(intake: 100, by: run(other)) }
    var now = Instant.epoch
    var moved = 0
    for index in 0..<4_000 {
        now = now + .milliseconds(10)
        let made = envelope(
            SplitMix64.mix(UInt64(index)), to: ["a@d\(index % 50).example", "b@d\(index % 49).example"])
        let parts = state.place(made, bodyOctets: 1, fragmented: false, at: now) { _ in 77 }
        guard index > 2_000 else { continue }
        #expect(parts.count == 1)
        if parts[0].node != nil { moved += 1 }
    }
    #expect(moved == 0, "its rate is that of all its domains, so every node has a share")
}

@Test func smartHostWithLittleMailFallsToOneNode() {
    var state = PlacementState(own: run(0).node, spreadRate: 100)
    state.update((0..<3).map { PlacementNode(run: run($0)) })
    var now = Instant.epoch
    var found: [NodeRun?: Int] = [:]
    for index in 0..<600 {
        now = now + .milliseconds(20)
        let made = envelope(SplitMix64.mix(UInt64(index)), to: ["a@d\(index % 60).example"])
        found[state.place(made, bodyOctets: 1, fragmented: false, at: now) { _ in 77 }[0].node, default: 0] += 1
    }
    #expect(found.count == 3 && found.values.allSatisfy { $0 > 100 }, "\(found)")
}

@Test func messageCountsForEachDomainOfItsNextHop() {
    var state = PlacementState(own: run(0).node, spreadRate: 20)
    state.update((0..<3).map { PlacementNode(run: run($0)) })
    var now = Instant.epoch
    // Ten messages a second of five domains: one share each, by the domain.
    for index in 0..<400 {
        now = now + .milliseconds(100)
        let made = envelope(
            SplitMix64.mix(UInt64(index)), to: (0..<5).map { "a@d\($0 * 3).example" })
        let parts = state.place(made, bodyOctets: 1, fragmented: false, at: now) { _ in 77 }
        #expect(parts.count > 1, "\(index)")
    }
}
