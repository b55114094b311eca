// Each rule of the protocol, taken out, turns the checker red: otherwise the checker would not notice if the rule were broken.
import BatonCore
import Testing

@testable import BatonCluster

extension RemovedGuard: CustomTestStringConvertible {
    var testDescription: String { name }
}

@Suite(.serialized) struct GuardTests {
    @Test(arguments: redGuards) func removedRuleStaysUnnoticed(_ removed: RemovedGuard) {
        var red: String?
        // The seed is known to go red; a change of the model may move it a little.
        for seed in removed.seed..<(removed.seed + setting("BATON_GUARD_SEEDS", 20)) where red == nil {
            var run = Simulation(plan: removed.plan(seed), guards: Guards.all.subtracting(removed.bit))
            run.run()
            red = run.checker.violation
        }
        var clean = Simulation(plan: removed.plan(removed.seed))
        clean.run()
        #expect(clean.checker.violation == nil)
        #expect(red != nil, "\(removed.name) taken out, and no violation")
    }
}
