// Small scopes explored exhaustively: one deviation at every step of a quiet run, and pairs of deviations, breadth first by their number.
import BatonCore
import BatonSpool

@testable import BatonCluster

/// What is done instead of, or before, the happening of one step.
enum Deviation: Hashable, CaseIterable {
    case dropIt
    case doubleIt
    case killFirst
    case killSecond
    case killThird
    case powerFirst
    case powerSecond
    case powerThird
    case pauseFirst
    case pauseSecond
    case revokeFirst
    /// The control plane does it and never answers; or the answer comes although it does nothing until later.
    case answerLost
    case appliedLate
}

extension Plan {
    /// Three nodes, a few messages, no faults of its own.
    static func small(messages: Int, copies: Int = 2) -> Plan {
        var plan = Plan(seed: 7, messages: messages, faults: 0)
        plan.nodes = 3
        plan.timing.copies = copies
        plan.timing.segmentRecords = 2
        plan.timing.window = 2
        plan.mail = plan.mail.enumerated().map { (.milliseconds(800 + Int64($0.offset) * 40), $0.element.1) }
        plan.faultSpan = .milliseconds(900)
        plan.settleSpan = .seconds(60)
        return plan
    }
}

extension Simulation {
    /// Performs one deviation; true when the step's own happening is still to be performed.
    mutating func deviate(_ deviation: Deviation, from what: Happening) -> Bool {
        switch deviation {
        case .dropIt:
            if case .frame = what { return false }
        case .doubleIt:
            if case .frame = what { schedule(now + .milliseconds(700), what) }
        case .killFirst: fell(0, power: false)
        case .killSecond: fell(1, power: false)
        case .killThird: fell(2, power: false)
        case .powerFirst: fell(0, power: true)
        case .powerSecond: fell(1, power: true)
        case .powerThird: fell(2, power: true)
        case .pauseFirst: hosts[0].pausedUntil = now + .seconds(5)
        case .pauseSecond: hosts[1].pausedUntil = now + .seconds(5)
        case .revokeFirst: controlPlane.revoke(hosts[0].id)
        case .answerLost:
            if case .control(let index, let record, let request, let answerAt?) = what {
                schedule(answerAt + .seconds(1), .event(index, record.incarnation, .control(request, .unknown)))
                schedule(now, .control(index, record, request, answerAt: nil))
                return false
            }
        case .appliedLate:
            if case .control(let index, let record, let request, let answerAt?) = what {
                schedule(answerAt + .seconds(1), .event(index, record.incarnation, .control(request, .unknown)))
                schedule(now + .seconds(3), .control(index, record, request, answerAt: nil))
                return false
            }
        }
        return true
    }

    private mutating func fell(_ index: Int, power: Bool) {
        guard hosts[index].state != nil else { return }
        stop(index, power: power)
        schedule(now + .seconds(4), .start(index))
    }

    /// Whether the deviation changes anything at this happening: other runs would be the same as without it.
    func concerns(_ deviation: Deviation, _ what: Happening) -> Bool {
        switch (deviation, what) {
        case (.dropIt, .frame), (.doubleIt, .frame): true
        case (.answerLost, .control(_, _, .store, .some)), (.appliedLate, .control(_, _, .store, .some)): true
        case (.dropIt, _), (.doubleIt, _), (.answerLost, _), (.appliedLate, _): false
        case (_, .tick): false
        default: true
        }
    }
}

/// Every run of the small scope with up to two deviations: all of one first, then pairs on a grid.
struct Exploration {
    let plan: Plan
    var guards = Guards.all
    private(set) var runs = 0
    private(set) var violations: [String] = []

    init(plan: Plan, guards: Guards = .all) {
        self.plan = plan
        self.guards = guards
    }

    private func run(_ deviations: [Int: Deviation]) -> Simulation {
        var simulation = Simulation(plan: plan, guards: guards)
        simulation.deviations = deviations
        simulation.run()
        return simulation
    }

    /// `first` and `stride` thin out the steps of the first and second deviation; at most `limit` runs.
    mutating func explore(pairs: Bool, first: Int = 1, stride: Int, limit: Int) {
        let length = run([:]).steps
        var frontier: [[Int: Deviation]] = [[:]]
        for depth in 1...(pairs ? 2 : 1) {
            var next: [[Int: Deviation]] = []
            for known in frontier {
                let from = (known.keys.max() ?? 0) + 1
                for step in Swift.stride(
                    from: from, through: min(length, from + (depth == 1 ? length : 400)),
                    by: depth == 1 ? first : stride)
                {
                    for deviation in Deviation.allCases {
                        guard runs < limit, violations.count < 5 else { return }
                        var deviations = known
                        deviations[step] = deviation
                        let simulation = run(deviations)
                        // A deviation that would change nothing is no run of its own.
                        guard !simulation.pointless else { continue }
                        runs += 1
                        if let violation = simulation.checker.violation {
                            violations.append("\(deviations.sorted { $0.key < $1.key }): \(violation)")
                        } else {
                            next.append(deviations)
                        }
                    }
                }
            }
            frontier = next
        }
    }
}
