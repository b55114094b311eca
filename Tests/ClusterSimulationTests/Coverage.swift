// Which fault met which state of the protocol, counted.
import BatonCore
import BatonSpool

@testable import BatonCluster

struct Coverage {
    enum Extra: String { case stepDown = "step down" }

    private(set) var met: [String: Int] = [:]
    private(set) var faults: [String: Int] = [:]

    static let states = [
        "down", "idle", "appending", "sealing", "backup", "claiming", "taking over", "waiting for reports",
        "tail unknown", "draining", "dots out", "stale member", "joining", "cleaning", "held", "finishing",
    ]

    static func states(of state: ClusterState?) -> [String] {
        guard let state else { return ["down"] }
        var found: [String] = []
        let drains = state.drains.values
        let keys = state.registry.keys.values
        if state.append.segments.values.contains(where: { !$0.unacked.isEmpty }) { found.append("appending") }
        if state.append.segments.values.contains(where: { $0.sealSent }) { found.append("sealing") }
        if state.copies.keys.contains(where: { $0.writer != state.me.node }) { found.append("backup") }
        if keys.contains(where: { key in
            state.registry.views(key.id).contains { $0.drainer == state.me } && key.drainer != state.me
        }) {
            found.append("claiming")
        }
        if drains.contains(where: { if case .sealing = $0.phase { true } else { false } }) {
            found.append("taking over")
        }
        if drains.contains(where: { if case .asking = $0.phase { true } else { false } }) {
            found.append("waiting for reports")
        }
        if drains.contains(where: \.tailInvalid) { found.append("tail unknown") }
        if drains.contains(where: { !$0.open.isEmpty }) { found.append("draining") }
        if drains.contains(where: { $0.inFlight > 0 }) { found.append("dots out") }
        if keys.contains(where: { $0.drainer == state.me && !$0.stale.isEmpty }) { found.append("stale member") }
        if keys.contains(where: { $0.drainer == state.me && $0.joining != nil }) { found.append("joining") }
        if drains.contains(where: { $0.cleaning != nil }) { found.append("cleaning") }
        if drains.contains(where: { drain in drain.open.contains { drain.records[Int($0)].held } }) {
            found.append("held")
        }
        if !state.finishing.isEmpty { found.append("finishing") }
        return found.isEmpty ? ["idle"] : found
    }

    mutating func inject(_ fault: Fault, _ simulation: Simulation) {
        faults[fault.kind, default: 0] += 1
        let hosts = fault.host.map { [$0] } ?? Array(simulation.hosts.indices)
        for host in hosts {
            for state in Self.states(of: simulation.hosts[host].state) {
                met["\(fault.kind)|\(state)", default: 0] += 1
            }
        }
    }

    mutating func count(_ extra: Extra, _ host: Simulation.Host, _ simulation: Simulation) {
        faults[extra.rawValue, default: 0] += 1
        for state in Self.states(of: host.state) { met["\(extra.rawValue)|\(state)", default: 0] += 1 }
    }

    mutating func merge(_ other: Coverage) {
        met.merge(other.met) { $0 + $1 }
        faults.merge(other.faults) { $0 + $1 }
    }

    var table: String {
        let kinds = faults.keys.sorted()
        var lines = ["fault | met | " + Self.states.joined(separator: " | ")]
        for kind in kinds {
            let counts = Self.states.map { String(met["\(kind)|\($0)"] ?? 0) }
            lines.append("\(kind) | \(faults[kind] ?? 0) | " + counts.joined(separator: " | "))
        }
        return lines.joined(separator: "\n")
    }
}
