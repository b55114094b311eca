// Takeover by several nodes under faults: nobody sends in two epochs, nothing acknowledged is cut, everything comes to rest.
import BatonCore
import BatonModel
import BatonSpool
import Foundation
import Testing

@testable import BatonCluster

@Suite struct TakeoverTests {
    /// Faults drawn from the seed within 20 simulated seconds, then time without any.
    ///
    /// - Parameter setsBack: the control plane is set back among them, and an operator recovers it in the end.
    private func run(_ seed: UInt64, setsBack: Bool = false) -> TakeoverWorld {
        var world = TakeoverWorld(seed: seed)
        world.history.aims = setsBack && seed % 2 == 0
        for _ in 0..<200 { world.step() }
        for number in 0..<8 {
            if setsBack, number % 4 == 0 { world.backUp() }
            if setsBack, number % 4 == 3 {
                for _ in 0..<2_000 where !world.isTold { world.step() }
                world.setBack(raised: world.chance(30))
            } else {
                fault(&world)
            }
            for _ in 0..<(50 + Int(world.random.next() % 300)) { world.step() }
        }
        world.aims = false
        world.history.aims = false
        world.cut = []
        world.planeDownUntil = .epoch
        for node in world.names where world.machines[node]?.isUp == false {
            world.boot(node, disk: world.machines[node]?.disk ?? 1, keeping: world.machines[node]?.copies ?? [:])
        }
        var isRecovered = !setsBack
        for number in 0..<6_000 {
            world.step()
            if !isRecovered, number % 200 == 199 { isRecovered = world.recover() }
            for node in world.names where world.machines[node]?.writing == nil {
                // No new mail: what is there has to come to rest.
                world.machines[node]?.nextIndex = 1 << 40
            }
            if isRecovered, world.keys.allSatisfy({ $0.value.id.index >= 1 << 40 }) { break }
        }
        for (id, end) in world.acked.sorted(by: { $0.key < $1.key }) where end > 0 && world.keys[id] == nil {
            if !world.history.finished.contains(id) { world.violations.append("\(id) is gone, and never finished") }
        }
        return world
    }

    private func fault(_ world: inout TakeoverWorld) {
        let node = world.pick(world.names)
        let other = world.pick(world.names.filter { $0 != node })
        switch world.random.next() % 10 {
        case 0:
            world.faults.append("kill")
            world.kill(node)
        case 1:
            world.faults.append("restart")
            world.kill(node)
            let machine = world.machines[node]
            world.boot(node, disk: machine?.disk ?? 1, keeping: machine?.copies ?? [:])
        case 2:
            world.faults.append("pause")
            world.machines[node]?.pausedUntil = world.now + .seconds(Int64(world.random.next() % 8) + 1)
        case 3:
            world.faults.append("partition")
            world.cut.formUnion([[node, other], [other, node]])
        case 4:
            world.faults.append("one way")
            world.cut.insert([node, other])
        case 5:
            world.faults.append("no control plane")
            world.cut.insert([node])
        case 6:
            world.faults.append("control plane down")
            world.planeDownUntil = world.now + .seconds(Int64(world.random.next() % 6) + 1)
        case 7:
            // A copy of another's segment fails where the other one is good.
            let failing = world.keys.values.filter { key in
                key.ensemble.contains { $0.node == node } && key.id.writer != node && key.state != .finished
                    && key.ensemble.allSatisfy { member in
                        let copy = world.machines[member.node]?.copies[key.id]
                        return copy?.hasFailed == false && copy?.tailInvalid == false
                    }
            }.sorted { $0.id < $1.id }
            guard !failing.isEmpty else { return }
            world.faults.append("copy fails")
            let chosen = world.pick(failing).id
            world.machines[node]?.copies[chosen]?.hasFailed = true
        case 8:
            // The last octets of a copy rot where the other one is good, before this one is sealed.
            let good = world.keys.values.filter { key in
                key.ensemble.contains { $0.node == node } && key.state != .finished
                    && world.machines[node]?.writing != key.id && world.machines[node]?.copies[key.id]?.end ?? 0 > 1
                    && key.ensemble.allSatisfy { member in
                        let copy = world.machines[member.node]?.copies[key.id]
                        return copy?.hasFailed == false && copy?.tailInvalid == false
                            && (member.node != node || copy?.sealEpoch ?? 0 < key.drainEpoch)
                    }
            }.sorted { $0.id < $1.id }
            guard !good.isEmpty else { return }
            world.faults.append("tail rots")
            let chosen = world.pick(good).id
            world.machines[node]?.copies[chosen]?.end -= 1
            world.machines[node]?.copies[chosen]?.tailInvalid = true
        default:
            world.faults.append("heal")
            world.cut = []
            for node in world.names where world.machines[node]?.isUp == false {
                let machine = world.machines[node]
                world.boot(node, disk: machine?.disk ?? 1, keeping: machine?.copies ?? [:])
            }
        }
    }

    @Test func nobodySendsInTwoEpochsAndNothingAcknowledgedIsCut() {
        let environment = ProcessInfo.processInfo.environment
        let first = environment["BATON_SEED"].flatMap { UInt64($0) } ?? 1
        let count = environment["BATON_SEEDS"].flatMap { UInt64($0) } ?? 12
        var (takeovers, dots, returns, wholes) = (0, 0, 0, 0)
        var moves = TakeoverWorld.Moves()
        for seed in first..<(first + count) {
            let world = run(seed)
            takeovers += world.takeovers
            dots += world.dots
            returns += world.returns
            wholes += world.wholes
            moves.add(world.moves)
            #expect(world.violations.isEmpty, "seed \(seed): \(world.faults) \(world.violations.prefix(3))")
            let left = world.keys.values.filter { $0.id.index < 1 << 40 && !world.waitsForAnOperator($0) }
            #expect(
                left.isEmpty,
                "seed \(seed): \(world.faults) \(left.count) segments never finish, first \(String(describing: left.first))"
            )
        }
        // A run that takes nothing over, or sends nothing, checks nothing.
        #expect(takeovers > Int(count))
        #expect(dots > 100 * Int(count))
        #expect(wholes > Int(count), "no segment ever has its copies again")
        if environment["BATON_COVERAGE"] != nil { print("cleanings: \(moves.counts), returns: \(returns)") }
        #expect(moves.committed.count > Int(count), "nothing is ever cleaned")
        #expect(moves.decidedVoid > 0 && moves.decidedLive > 0, "no taker ever decides about a move")
    }

    /// Backups of the control plane come back at any time: what was acknowledged is finished in the end, and nobody sends in two epochs.
    @Test func registryThatWasSetBackIsGoneBy() {
        let environment = ProcessInfo.processInfo.environment
        let first = environment["BATON_SEED"].flatMap { UInt64($0) } ?? 1
        let count = environment["BATON_SEEDS"].flatMap { UInt64($0) } ?? 12
        var sum = TakeoverWorld.History()
        var moves = TakeoverWorld.Moves()
        // 588: a node that was cut off commits a cleaning behind the set-back.
        for seed in Array(first..<(first + count)) + [588] {
            let world = run(seed, setsBack: true)
            let history = world.history
            sum.setBacks += history.setBacks
            sum.distrusted += history.distrusted
            sum.told += history.told
            sum.recoveries += history.recoveries
            sum.rewritten += history.rewritten
            sum.removed += history.removed
            sum.revived += history.revived
            sum.decidedGone += history.decidedGone
            moves.add(world.moves)
            #expect(world.violations.isEmpty, "seed \(seed): \(world.faults) \(world.violations.prefix(3))")
            #expect(!history.isSetBack, "seed \(seed): \(world.faults) the recovery never ends")
            let left = world.keys.values.filter { $0.id.index < 1 << 40 && !world.waitsForAnOperator($0) }
            #expect(
                left.isEmpty,
                "seed \(seed): \(world.faults) \(left.count) segments never finish, first \(String(describing: left.first))"
            )
        }
        if environment["BATON_COVERAGE"] != nil {
            print(
                "set back \(sum.setBacks), listings distrusted \(sum.distrusted), nodes told \(sum.told), recoveries "
                    + "\(sum.recoveries), keys written \(sum.rewritten), removed \(sum.removed)")
            print("cleanings: \(moves.counts), their sources gone \(sum.decidedGone), sent again \(sum.revived)")
        }
        #expect(sum.setBacks > 0 && sum.distrusted > sum.setBacks && sum.recoveries > 0)
        #expect(sum.rewritten > 0 && sum.removed > 0)
        #expect(moves.committed.count > Int(count) / 2, "nothing is ever cleaned")
    }
}
