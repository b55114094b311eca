// Plans for rules whose case the general one hardly meets.
import BatonCore
import BatonSpool

@testable import BatonCluster

extension Plan {
    /// A drainer that is alone and does not learn that its lease is gone, while everybody else restarts at once: T3's case.
    static func forgottenPromises(seed: UInt64) -> Plan {
        var plan = Plan(seed: seed, faults: 0)
        // The new drainer gives up on the old one soon, so that only T3 keeps it waiting.
        plan.timing.silence = .milliseconds(200)
        var random = SplitMix64(seed: seed)
        for round in 0..<6 {
            let drainer = Int(random.next() % UInt64(plan.nodes))
            let at = Int64(5200 + round * 5000) + Int64(random.next() % 2000)
            plan.faults.append((.milliseconds(at), .isolate(drainer, .seconds(4))))
            plan.faults.append((.milliseconds(at + 5), .leaseRevoked(drainer)))
            for other in 0..<plan.nodes where other != drainer {
                plan.faults.append(
                    (.milliseconds(at + 10), .crash(other, power: false, downFor: .milliseconds(50))))
            }
        }
        return plan
    }

    /// An etcd that answers "unknown" all the time, and segments so short that their keys come and go.
    static func doubledRegistrations(seed: UInt64) -> Plan {
        var plan = Plan(seed: seed, faults: 0)
        plan.timing.segmentRecords = 2
        for second in 0..<4 { plan.faults.append((.seconds(Int64(1 + second * 9)), .controlFlaky(.seconds(9)))) }
        return plan
    }

    /// Incarnations that live for a moment, and frames of theirs that arrive long after.
    static func lateFramesOfTheDead(seed: UInt64) -> Plan {
        var plan = Plan(seed: seed, faults: 0)
        plan.faults.append((.milliseconds(500), .noisyNetwork(.seconds(38))))
        for round in 0..<5 {
            for host in 0..<plan.nodes {
                let at = Int64(4000 + round * 7600 + host * 900)
                for again in 0..<2 {
                    plan.faults.append(
                        (.milliseconds(at + Int64(again) * 150), .crash(host, power: false, downFor: .milliseconds(50)))
                    )
                }
            }
        }
        plan.faults.sort { $0.0 < $1.0 }
        return plan
    }
}
