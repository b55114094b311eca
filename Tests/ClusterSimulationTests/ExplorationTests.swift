// The smallest scopes, explored exhaustively instead of by seeds.
import Testing

@testable import BatonCluster

@Suite(.serialized) struct ExplorationTests {
    /// Every single deviation at every step of a quiet run of three nodes and two messages; `BATON_PAIRS=1` adds pairs on a grid.
    @Test func deviationAtOneStepBreaksAnInvariant() {
        let pairs = setting("BATON_PAIRS", 0) == 1
        // An optimised build takes every step, a debug build every 23rd.
        let first = _isDebugAssertConfiguration() ? 23 : 1
        let limit = Int(setting("BATON_RUNS", 60000))
        var exploration = Exploration(plan: .small(messages: 2))
        exploration.explore(pairs: pairs, first: first, stride: 9, limit: limit)
        print("\(exploration.runs) runs")
        for violation in exploration.violations { print(violation) }
        #expect(exploration.violations.isEmpty)
        #expect(exploration.runs > 50)
    }
}
