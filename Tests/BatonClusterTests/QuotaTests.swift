// Cluster-wide limits: the sum over all nodes, what a calm cluster gets of it, and every rule taken out.
import BatonCore
import BatonPeer
import Foundation
import Testing

@testable import BatonCluster

private func seeds(_ usual: UInt64) -> Range<UInt64> {
    let asked = ProcessInfo.processInfo.environment["BATON_SEEDS"].flatMap(UInt64.init)
    return 1..<(asked ?? usual) + 1
}

@Test func sumExceedsTheLimit() {
    var grants = 0
    var lent = 0
    var full = 0
    for seed in seeds(60) {
        var world = QuotaWorld(seed: seed, kind: seed % 3 == 0 ? .rate : .connections)
        world.churn = seed % 2 == 0
        world.founds = seed % 5 == 0
        world.play()
        #expect(world.violation == nil, "seed \(seed): \(world.violation ?? "")")
        grants += world.grants
        lent += world.lent
        if world.most == world.limit { full += 1 }
    }
    // The runs deal out shares, lend floors and come up to the limit, or they prove nothing.
    #expect(grants > 1_000 && lent > 300 && full > 20, "\(grants) \(lent) \(full)")
}

@Test(arguments: [
    QuotaGuards.freshView, .newHomeWaits, .withholdFloors, .spanMargin, .lenderForgotNothing, .joinerWaits,
    .lentIsNotUsed, .latestAnswerOnly, .countsWhatIsGiven, .unbrokenChain,
])
func sumDoesNotNoticeThatARuleIsGone(_ rule: QuotaGuards) {
    for seed in UInt64(1)...4_000 {
        var world = QuotaWorld(seed: seed, guards: QuotaGuards.all.subtracting(rule))
        world.churn = rule == .unbrokenChain
        world.play()
        if world.violation != nil {
            print("rule \(rule.rawValue): seed \(seed)")
            return
        }
    }
    Issue.record("no seed of 4000 goes red")
}

/// In the runs above its absence shows in one seed of 1,000 or so: what is lent has to be in use while the roster grows.
@Test(arguments: [QuotaGuards.all, QuotaGuards.all.subtracting(.lowersBeforeSaying)])
func nodeSaysThatItUsesLessBeforeItDoes(_ guards: QuotaGuards) {
    var members = (1...3).map { QuotaMember(node: NodeID(value: $0)) }
    for index in 0..<2 { (members[index].withheld, members[index].used) = (2, 2) }
    let key = QuotaKey(site: QuotaWorld.site, kind: .connections)
    var state = QuotaState(own: NodeID(value: 1), seed: 1, startedAt: .epoch, guards: guards)
    var actions = ActionBuffer<QuotaAction>()
    func see(_ roster: QuotaRoster, at second: Int64) -> [QuotaMember?] {
        let now = Instant(secondsSinceEpoch: second)
        state.receive(.roster(roster, askedAt: now), at: now, into: &actions)
        return actions.drain().compactMap { if case .propose(let roster) = $0 { roster.members[0] } else { nil } }
    }
    #expect(see(QuotaRoster(sequence: 1, members: Array(members.prefix(2))), at: 10).isEmpty)
    #expect(state.allowance(of: key, limit: 12, at: Instant(secondsSinceEpoch: 10)) == 6)
    let grown = QuotaRoster(sequence: 2, members: members)
    let early = see(grown, at: 11)
    let uses = state.allowance(of: key, limit: 12, at: Instant(secondsSinceEpoch: 11))
    guard guards == .all else {
        #expect(!early.isEmpty && uses == 6, "without the rule it says 4 and uses 6")
        return
    }
    #expect(early.isEmpty && uses == 4)
    #expect(see(grown, at: 13).isEmpty, "what it lent of its six may be in use")
    #expect(see(grown, at: 14).map { $0?.withheld } == [3])
}

// MARK: A calm cluster

private func calm(_ limit: UInt64, _ demand: [Int: UInt64], nodes: Int = 4, kind: Quota.Kind = .connections)
    -> QuotaWorld
{
    var world = QuotaWorld(seed: 5, kind: kind, limit: limit, nodes: nodes, members: nodes)
    world.calm = true
    world.fixedDemand = demand
    return world
}

@Test func siteOnOneNodeGetsAPartOfItsLimitOnly() {
    for node in 0..<4 {
        var world = calm(20, [node: 20])
        world.play(milliseconds: 60_000)
        #expect(world.use(node) == 20, "node \(node): \((0..<4).map { world.use($0) })")
    }
}

@Test func limitIsNotSharedOut() {
    var world = calm(20, [0: 20, 1: 20, 2: 20, 3: 20])
    world.play(milliseconds: 60_000)
    #expect((0..<4).map { world.use($0) } == [5, 5, 5, 5])
}

@Test func limitBelowTheNodesStaysWithOne() {
    for limit in UInt64(1)...3 {
        var world = calm(limit, [0: 1, 1: 1, 2: 1, 3: 1, 4: 1], nodes: 5)
        var lost: [Int: Int64] = [:]
        var worst: Int64 = 0
        world.play(milliseconds: 30_000)
        // From here on each node has something again within a bounded time, and nobody keeps it for more than 30 s.
        for second in 31...150 {
            world.play(untilSecond: second)
            for node in 0..<5 {
                if world.use(node) > 0 { lost[node] = Int64(second) }
                worst = max(worst, Int64(second) - (lost[node] ?? 30))
                if let since = world.longest[node] {
                    #expect(world.now - since < 30_000_000_000, "node \(node) keeps it")
                }
            }
        }
        #expect(worst < 100 / Int64(limit), "limit \(limit): a node waited \(worst) s")
    }
}

@Test func homeDiesAndTheOthersGetNothing() {
    var world = calm(21, [0: 21, 1: 21, 2: 21], nodes: 3)
    world.play(milliseconds: 30_000)
    guard let home = world.roster.home(of: QuotaWorld.site) else {
        Issue.record("no home")
        return
    }
    world.crash(Int(home.value) - 1)
    for second in 31...60 {
        world.play(untilSecond: second)
        for node in 0..<3 where node != Int(home.value) - 1 { #expect(world.use(node) >= 7) }
    }
    #expect(world.violation == nil)
}

@Test func memberThatGrowsIsHandedAPart() {
    var members = (1...4).map { QuotaMember(node: NodeID(value: $0)) }
    (members[0].withheld, members[0].used) = (2, 2)
    (members[1].withheld, members[1].used) = (2, 2)
    func handed(_ used: UInt32, _ others: [QuotaMember]) -> QuotaRoster {
        var after = others[0]
        (after.withheld, after.used) = (used, used)
        var roster = QuotaRoster(sequence: 2, members: [after] + others.dropFirst())
        roster.handOn(others[0], after)
        return roster
    }
    // A half becomes a quarter: the other quarter is shared by the two that have nothing.
    #expect(handed(4, members).members.map(\.used) == [4, 2, 8, 8])
    #expect(handed(3, members).members.map(\.used) == [3, 2, 12, 12])
    members[2].withheld = 8
    #expect(handed(4, members).members.map(\.used) == [4, 2, 0, 4])
    #expect(handed(2, members).members.map(\.used) == [2, 2, 0, 0], "nothing was given up")
    for limit in UInt64(1)...200 {
        let key = QuotaKey(site: QuotaWorld.site, kind: .connections)
        for used in UInt32(3)...9 {
            let after = handed(used, members).members
            let sum = key.floor(of: limit, by: after[0].used) + key.floor(of: limit, by: after[3].used)
            #expect(sum <= key.floor(of: limit, by: 2))
        }
    }
}

@Test func firstNodesOfAClusterWaitForEachOther() {
    var world = calm(20, [0: 4, 1: 6, 2: 6], nodes: 3)
    world.founds = true
    world.play(milliseconds: 7_000)
    #expect((0..<3).map { world.use($0) >= [4, 6, 6][$0] } == [true, true, true], "\((0..<3).map { world.use($0) })")
    world.play(untilSecond: 40)
    #expect(world.roster.members.allSatisfy { $0.used == 3 && $0.withheld == 3 }, "\(world.roster)")
    #expect(world.violation == nil, "\(world.violation ?? "")")
}

@Test func joiningNodeGetsNoFloor() {
    var world = calm(30, [0: 30, 1: 30, 2: 30, 3: 30], nodes: 4)
    world.roster.members.removeLast()
    world.play(milliseconds: 40_000)
    #expect((0..<3).map { world.use($0) } == [10, 10, 10])
    world.add(.join(3), after: 0)
    world.play(untilSecond: 90)
    // 30 = 4 x 7 + 2, and the two go to whoever asks first.
    #expect(world.roster.members.allSatisfy { $0.used == 4 && $0.withheld == 4 }, "\(world.roster)")
    #expect((0..<4).map { world.use($0) }.reduce(0, +) == 30 && (0..<4).allSatisfy { world.use($0) >= 7 })
    #expect(world.violation == nil, "\(world.violation ?? "")")
}

@Test func limitsPileUp() {
    var state = QuotaState(own: NodeID(value: 1), seed: 1, startedAt: .epoch)
    var actions = ActionBuffer<QuotaAction>()
    let roster = QuotaRoster(
        sequence: 1, members: [QuotaMember(node: NodeID(value: 1)), QuotaMember(node: NodeID(value: 2))])
    state.receive(.settings(QuotaSettings(connections: 20)), at: .epoch, into: &actions)
    state.receive(.roster(roster, askedAt: .epoch), at: .epoch, into: &actions)
    func key(_ index: Int) -> QuotaKey { QuotaKey(site: Array("s\(index)".utf8), kind: .connections) }
    for index in 0..<QuotaLimits.keys + 100 {
        state.receive(.demand(key(index), limit: 20, wanted: 1), at: .epoch, into: &actions)
    }
    #expect(state.keys == QuotaLimits.keys)
    actions.removeAll()
    // Each tick sends so much and no more, and comes to all keys in the end.
    var now = Instant.epoch
    var asked: Set<[UInt8]> = []
    for _ in 0..<200 {
        now = now + .milliseconds(250)
        state.receive(.roster(roster, askedAt: now), at: now, into: &actions)
        state.receive(.tick, at: now, into: &actions)
        let sent = actions.drain().compactMap { if case .send(let message, _) = $0 { message.site } else { nil } }
        #expect(sent.count <= QuotaLimits.sendsPerTick)
        asked.formUnion(sent)
    }
    #expect(asked.count > QuotaLimits.keys / 3)
    for index in 0..<QuotaLimits.keys {
        state.receive(.demand(key(index), limit: 20, wanted: 0), at: now, into: &actions)
    }
    for _ in 0..<400 {
        now = now + .milliseconds(250)
        state.receive(.tick, at: now, into: &actions)
    }
    #expect(state.keys == 0)
}

@Test func rosterThatIsNoRosterIsBelieved() {
    var members = (1...3).map { QuotaMember(node: NodeID(value: $0)) }
    #expect(QuotaRoster(sequence: 1, members: members).isSound)
    for index in members.indices { members[index].withheld = 2 }
    #expect(!QuotaRoster(sequence: 1, members: members).isSound, "three halves")
    for index in members.indices { members[index].withheld = 3 }
    members[0].used = 2
    #expect(!QuotaRoster(sequence: 1, members: members).isSound, "uses more than is withheld")
    members[0].used = 3
    #expect(QuotaRoster(sequence: 1, members: members).isSound)
    let crowd = (0...UInt64(QuotaLimits.members)).map { QuotaMember(node: NodeID(value: $0)) }
    #expect(!QuotaRoster(sequence: 1, members: crowd).isSound)
}

@Test func rosterThatChangesTooOftenProvesTooMuch() {
    let members = [QuotaMember(node: NodeID(value: 1))]
    var state = QuotaState(own: NodeID(value: 1), seed: 1, startedAt: .epoch)
    var actions = ActionBuffer<QuotaAction>()
    let key = QuotaKey(site: QuotaWorld.site, kind: .connections)
    // A change every 100 ms: the changes that are remembered cover less than the wait, so nothing is given.
    for number in 1...200 {
        state.receive(
            .roster(QuotaRoster(sequence: UInt64(number), members: members), askedAt: state.now + .milliseconds(100)),
            at: state.now + .milliseconds(100), into: &actions)
        #expect(state.history.count <= QuotaLimits.history)
        #expect(state.poolAsHome(of: key, limit: 5) == nil)
    }
    let calm = QuotaRoster(sequence: 200, members: members)
    state.receive(.roster(calm, askedAt: state.now + .seconds(10)), at: state.now + .seconds(10), into: &actions)
    #expect(state.poolAsHome(of: key, limit: 5) == 5)
}
