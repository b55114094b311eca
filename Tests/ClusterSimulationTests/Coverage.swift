// Which fault met which state of the protocol, counted.
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

/// What a node is in the middle of, as far as a fault may matter; several at once.
enum ProtocolState: String, CaseIterable {
    case down
    /// Nothing of all the others.
    case idle
    case appending
    case sealing
    case backup
    /// A takeover was sent to the control plane.
    case claiming
    /// Its seal is on its way to the disk.
    case takingOver = "taking over"
    case waitingForReports = "waiting for reports"
    case tailUnknown = "tail unknown"
    case draining
    case dotsOut = "dots out"
    case staleMember = "stale member"
    case joining
    case cleaning
    case held
    case finishing

    func holds(in state: ClusterState?) -> Bool {
        guard let state else { return self == .down }
        return switch self {
        case .down: false
        case .idle: Self.allCases.allSatisfy { $0 == .idle || !$0.holds(in: state) }
        case .appending: state.append.segments.contains { !$0.unacked.isEmpty }
        case .sealing: state.append.segments.contains { $0.sealSent }
        case .backup: state.copies.keys.contains { $0.writer != state.me.node }
        case .claiming:
            state.registry.keys.contains { key in
                key.drainer != state.me && !state.registry.allViews(key.id) { $0.drainer != state.me }
            }
        case .takingOver: state.drains.contains { if case .sealing = $0.phase { true } else { false } }
        case .waitingForReports: state.drains.contains { if case .asking = $0.phase { true } else { false } }
        case .tailUnknown: state.drains.contains(where: \.tailInvalid)
        case .draining: state.drains.contains { !$0.open.isEmpty }
        case .dotsOut: state.drains.contains { $0.inFlight > 0 }
        case .staleMember: state.registry.keys.contains { $0.drainer == state.me && !$0.stale.isEmpty }
        case .joining: state.registry.keys.contains { $0.drainer == state.me && $0.joining != nil }
        case .cleaning: state.drains.contains { $0.cleaning != nil }
        case .held: state.drains.contains { drain in drain.open.contains { drain.records[Int($0)].held } }
        case .finishing: !state.finishing.isEmpty
        }
    }
}

struct Coverage {
    enum Extra: String { case stepDown = "step down" }

    private(set) var met: [String: Int] = [:]
    private(set) var faults: [String: Int] = [:]

    static func states(of state: ClusterState?) -> [ProtocolState] {
        ProtocolState.allCases.filter { $0.holds(in: state) }
    }

    mutating func inject(_ fault: Fault, _ simulation: Simulation) {
        faults[fault.kind, default: 0] += 1
        let hosts = fault.host.map { [$0] } ?? simulation.hosts.indices.filter { !simulation.hosts[$0].gone }
        for host in hosts {
            for state in Self.states(of: simulation.hosts[host].state) {
                met["\(fault.kind)|\(state.rawValue)", default: 0] += 1
            }
        }
    }

    mutating func count(_ extra: Extra, _ host: Simulation.Host, _ simulation: Simulation) {
        faults[extra.rawValue, default: 0] += 1
        for state in Self.states(of: host.state) { met["\(extra.rawValue)|\(state.rawValue)", default: 0] += 1 }
    }

    mutating func merge(_ other: Coverage) {
        met.merge(other.met) { $0 + $1 }
        faults.merge(other.faults) { $0 + $1 }
    }

    /// A Markdown table.
    var table: String {
        let states = ProtocolState.allCases.map(\.rawValue)
        var lines = ["| fault | injected | " + states.joined(separator: " | ") + " |"]
        lines.append("|" + String(repeating: "---|", count: states.count + 2))
        for kind in faults.keys.sorted() {
            let counts = states.map { String(met["\(kind)|\($0)"] ?? 0) }
            lines.append("| \(kind) | \(faults[kind] ?? 0) | " + counts.joined(separator: " | ") + " |")
        }
        return lines.joined(separator: "\n")
    }
}
