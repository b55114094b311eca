// The seeded runs: each a cluster of three to five nodes, 200 messages, five faults or more.
import BatonCore
import Foundation
import Testing

@testable import BatonCluster

/// `BATON_SEEDS` sets how many seeds are run, `BATON_SEED` the first one.
func setting(_ name: String, _ otherwise: UInt64) -> UInt64 {
    ProcessInfo.processInfo.environment[name].flatMap(UInt64.init) ?? otherwise
}

/// Runs a seed; a violation is printed with its seed and the end of its trace.
func runSeed(_ seed: UInt64, guards: Guards = .all) -> Simulation {
    var simulation = Simulation(plan: Plan(seed: seed), guards: guards)
    simulation.run()
    return simulation
}

func trace(_ seed: UInt64, guards: Guards = .all) -> String {
    var simulation = Simulation(plan: Plan(seed: seed), guards: guards, tracing: true)
    simulation.run()
    let faults = simulation.plan.faults.map { "\($0.0.seconds) \($0.1)" }.joined(separator: "\n")
    let filter = ProcessInfo.processInfo.environment["BATON_GREP"] ?? ""
    let lines = (simulation.trace ?? []).filter { line in
        line.contains("fault") || filter.split(separator: "|").contains { line.contains($0) } || filter.isEmpty
    }
    return faults + "\n" + lines.suffix(Int(setting("BATON_TRACE", 60))).joined(separator: "\n")
}

@Suite(.serialized) struct SeededRuns {
    @Test func seedBreaksAnInvariant() {
        let first = setting("BATON_SEED", 1)
        let count = setting("BATON_SEEDS", _isDebugAssertConfiguration() ? 30 : 300)
        var coverage = Coverage()
        var failed: [UInt64] = []
        var accepted = 0, duplicates = 0, dots = 0, steps = 0
        let begin = ContinuousClock.now
        for seed in first..<(first + count) {
            let run = runSeed(seed)
            coverage.merge(run.coverage)
            accepted += run.checker.acceptedCount
            duplicates += run.checker.duplicates
            dots += run.checker.dots
            steps += run.steps
            if let violation = run.checker.violation {
                failed.append(seed)
                print("seed \(seed): \(violation)")
                if failed.count <= Int(setting("BATON_TRACES", 1)) { print(trace(seed)) }
                if failed.count >= 20 { break }
            }
        }
        let seconds = Double((ContinuousClock.now - begin).components.seconds) + 0.001
        print(
            "\(count) seeds, \(steps) steps, \(accepted) accepted, \(dots) dots, \(duplicates) duplicates, \(Double(count) / seconds) seeds/s"
        )
        if setting("BATON_COVERAGE", 0) == 1 { print(coverage.table) }
        #expect(failed.isEmpty, "seeds \(failed)")
    }
}
