// Each rule of the protocol, taken out, turns the checker red: otherwise the checker would not notice if the rule were broken.
import BatonCore
import Foundation
import Testing

@testable import BatonCluster

extension RemovedGuard: CustomTestStringConvertible {
    var testDescription: String { name }
}

extension RemovedGuard {
    /// What the checker says about one seed without this rule.
    func violation(_ seed: UInt64, without: Bool = true) -> String? {
        var run = Simulation(plan: plan(seed), guards: without ? Guards.all.subtracting(bit) : .all)
        run.run()
        return run.checker.violation
    }
}

@Suite(.serialized) struct GuardTests {
    @Test(arguments: redGuards) func removedRuleStaysUnnoticed(_ removed: RemovedGuard) {
        // The seed is known to go red; a change of the model may move it a little.
        let red = (removed.seed..<(removed.seed + setting("BATON_GUARD_SEEDS", 20))).first { seed in
            removed.violation(seed) != nil
        }
        #expect(red != nil, "\(removed.name) taken out, and no violation")
        // And it is the rule that makes the difference; an optimised build has time to look.
        if let red, !_isDebugAssertConfiguration() || setting("BATON_GUARD_CLEAN", 0) == 1 {
            #expect(removed.violation(red, without: false) == nil, "seed \(red) is red with \(removed.name)")
        }
    }

    /// `BATON_FIND_GUARDS=600` looks through so many seeds for each rule and prints the first red ones, for `GuardList`.
    @Test(.enabled(if: setting("BATON_FIND_GUARDS", 0) > 0)) func ruleThatNoSeedShows() {
        let only = ProcessInfo.processInfo.environment["BATON_GUARD"].map { $0.split(separator: ",").map(String.init) }
        let first = setting("BATON_SEED", 1)
        for removed in redGuards where only?.contains(removed.name) ?? true {
            var found: [String] = []
            for seed in first..<(first + setting("BATON_FIND_GUARDS", 0)) {
                guard let violation = removed.violation(seed) else { continue }
                found.append("\(seed): \(violation.prefix(110))")
                if found.count == setting("BATON_FIND_COUNT", 1) { break }
            }
            print("guard \(removed.name) \(found.isEmpty ? "NOT RED" : found.joined(separator: " | "))")
            fflush(nil)
        }
    }
}
