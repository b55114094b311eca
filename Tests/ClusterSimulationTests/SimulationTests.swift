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
        let count = setting("BATON_SEEDS", _isDebugAssertConfiguration() ? 12 : 300)
        // Those from 100,000 on tear messages into parts.
        let parts = setting("BATON_SEED", 0) == 0 ? 100_000..<(100_000 + count / 3) : 0..<0
        let progress = setting("BATON_PROGRESS", 1000)
        let file = ProcessInfo.processInfo.environment["BATON_COVERAGE_FILE"]
        var coverage = Coverage()
        var failed: [UInt64] = []
        var accepted = 0, duplicates = 0, dots = 0, steps = 0
        let begin = ContinuousClock.now
        for seed in Array(first..<(first + count)) + parts {
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
            if (seed &- first &+ 1) % progress == 0 {
                let seconds = (ContinuousClock.now - begin).components.seconds
                print(
                    "seeds \(first) to \(seed): \(failed.count) failed, \(steps) steps, \(accepted) accepted, \(dots) dots, \(duplicates) duplicates, \(seconds) s"
                )
                if let file { try? coverage.table.write(toFile: file, atomically: true, encoding: .utf8) }
                fflush(nil)
            }
        }
        let seconds = Double((ContinuousClock.now - begin).components.seconds) + 0.001
        print(
            "\(count + UInt64(parts.count)) seeds, \(steps) steps, \(accepted) accepted, \(dots) dots, \(duplicates) duplicates, \(Double(count + UInt64(parts.count)) / seconds) seeds/s"
        )
        if setting("BATON_COVERAGE", 0) == 1 { print(coverage.table) }
        #expect(failed.isEmpty, "seeds \(failed)")
    }
}

/// Seeds that once failed, each with what it showed. They stay.
@Suite(.serialized) struct KeptSeeds {
    @Test(
        arguments: [
            // A process restarted between "unlink" handed to the disk and done had confirmed it already; keys remembered as
            // stored from behind the sealed length.
            10,
            // A stale last copy waits for `forget` of the other.
            50,
            // A takeover of a finished segment raised its epoch, and what was moved out of it became void.
            80,
            // Cleaning moved and sent a message while the old drainer still held a promise.
            98,
            // The rest of a segment was on the joining member only.
            112,
            // An old drainer reset the outcome log of the new epoch on its own disk.
            146,
            // A "no" from before the answerer had taken over was counted as one of a taker.
            156,
            // Outcomes lost with a failing disk.
            192,
            // A registration that landed late revived an incarnation.
            301,
            // A taker of a held copy does not know who was there when the question arose.
            567,
            // Outcomes in a killed process behind a slow disk.
            698,
            // A held copy was withdrawn for a taker's only copy of an unacknowledged message, and that disk burned.
            781,
            // A late frame of an old incarnation made a node deaf to the new one.
            1659,
            // A late outcome of an incarnation that had ended was dropped.
            3582,
            // A last copy that had taken over stayed stale itself, and with the next silent member all were.
            6295,
            // A drainer that had unlinked a finished segment, and forgot, promised its old drainer that it sends nothing.
            17573,
            // As a last copy, a stale member took a message that had been moved to it for void, because the source was gone.
            15108,
            // A writer's backup that had lost its file kept the open segment's outcomes unsettled for ever.
            22928,
            // A tail that no living member has kept a segment for ever.
            22297,
            // A taker delivered from behind the length that a later taker sealed at.
            64281,
            // What all lost disks had taken with them kept a segment with a joining member for ever.
            8704,
            // A registration that landed after the segment was finished and its key removed brought the key back.
            1889,
            // A taker whose file was lost delivered without anybody's outcomes.
            2196,
            // A finished segment of two stale members, one of them burned, found no taker.
            2979,
            // An open segment without mail was not sealed when its backup's disk was declared lost, and what was moved into it
            // was never decided on all members.
            18218, 26970, 31318, 78246, 83445,
            // The drainer of a cleaning's target remembered a key of what had been moved there in vain, and said "have" for a message
            // that stood on one disk elsewhere.
            50547,
            // A receiver said "no" about a key that it had forgotten: the taker of the held copy had been slow to ask.
            42573, 42811,
            // The checker: a drainer that had lost a settled outcome with its power fell before it sent the message again; outcomes
            // that were lost where the message stood before it was moved.
            41689, 89045,
            // A last copy whose file was lost counted what it had at that time, which was nothing; a stale member brought the rest.
            115933,
            // Of a member's return from `stale` nobody knew whether it would land, and that member's disk burned.
            125612,
        ] as [UInt64]) func seedThatOnceFailed(_ seed: UInt64)
    {
        let run = runSeed(seed)
        if let violation = run.checker.violation { print("seed \(seed): \(violation)") }
        #expect(run.checker.violation == nil)
    }
}
