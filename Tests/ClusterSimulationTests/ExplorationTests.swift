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

    struct Scope: CustomTestStringConvertible, Sendable {
        let nodes: Int
        let messages: Int
        let faults: Int

        var testDescription: String { "\(nodes) nodes, \(messages) messages, \(faults) faults" }
    }

    /// `BATON_STATES` is the cut-off for each scope; what was complete says so.
    @Test(
        arguments: [
            Scope(nodes: 2, messages: 0, faults: 0), Scope(nodes: 2, messages: 1, faults: 0),
            Scope(nodes: 2, messages: 1, faults: 1), Scope(nodes: 3, messages: 1, faults: 0),
            Scope(nodes: 3, messages: 1, faults: 1), Scope(nodes: 3, messages: 1, faults: 2),
        ]) func orderOrFaultBreaksAnInvariant(_ scope: Scope)
    {
        var explorer = Explorer(limit: Int(setting("BATON_STATES", _isDebugAssertConfiguration() ? 400 : 5000)))
        explorer.explore(World(nodes: scope.nodes, messages: scope.messages, faults: scope.faults))
        print(
            "\(scope.testDescription): \(explorer.states) states, \(explorer.transitions) transitions, depth \(explorer.depth), \(explorer.complete ? "complete" : "cut off")"
        )
        #expect(explorer.violation == nil)
        #expect(explorer.states > 100)
    }
}
