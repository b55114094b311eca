// Faults that wait for their moment: some states of the protocol last for a millisecond, and a fault at random hardly meets them.
import BatonCore
import BatonSpool

@testable import BatonCluster

/// A fault that happens as soon as a node is in a state, after a time.
struct Aim {
    let at: TimeSpan
    let state: ProtocolState
    /// The fault, made for the node that is in the state.
    let fault: @Sendable (Int) -> Fault
    /// Only this node's state counts.
    var host: Int?
}

extension Plan {
    /// Every fourth seed from 1000 on aims three more faults at states that are rare or short.
    mutating func aim(losesDisk: Bool) {
        guard seed >= 1000, seed % 4 == 1 else { return }
        var random = SplitMix64(seed: seed ^ 0xa17)
        func below(_ bound: Int) -> Int { Int(random.next() % UInt64(bound)) }
        let states: [ProtocolState] = [
            .tailUnknown, .tailUnknown, .tailUnknown, .claiming, .takingOver, .waitingForReports, .joining, .cleaning,
            .sealing,
        ]
        // Lost or rotten files and a lost disk in one run may take both copies of a message.
        var lost = losesDisk
        let mayRot = !faults.contains { if case .diskLost = $0.1 { true } else { false } }
        var rots = faults.contains { $0.1.rots }
        for _ in 0..<3 {
            let state = states[below(states.count)]
            let at = Int64(2000 + below(33000))
            let host = below(nodes)
            let span = TimeSpan.milliseconds(Int64(300 + below(4000)))
            let other = (host + 1 + below(nodes - 1)) % nodes
            let nodes = nodes
            var burns = false
            var aim: Aim
            switch below(19) {
            case 0: aim = Aim(at: .milliseconds(at), state: state) { .crash($0, power: false, downFor: span) }
            case 1: aim = Aim(at: .milliseconds(at), state: state) { .crash($0, power: true, downFor: span) }
            case 2: aim = Aim(at: .milliseconds(at), state: state) { _ in .wholePowerLoss(downFor: span) }
            case 3: aim = Aim(at: .milliseconds(at), state: state) { .pause($0, span) }
            case 4:
                aim = Aim(at: .milliseconds(at), state: state) { host in
                    .partition(from: host, to: other == host ? (host + 1) % nodes : other, bothWays: true, span)
                }
            case 5:
                aim = Aim(at: .milliseconds(at), state: state) { host in
                    .partition(from: host, to: other == host ? (host + 1) % nodes : other, bothWays: false, span)
                }
            case 6: aim = Aim(at: .milliseconds(at), state: state) { .isolate($0, span) }
            case 7: aim = Aim(at: .milliseconds(at), state: state) { .controlCut($0, span) }
            case 8: aim = Aim(at: .milliseconds(at), state: state) { _ in .controlDown(span) }
            case 9: aim = Aim(at: .milliseconds(at), state: state) { _ in .controlFlaky(span) }
            case 10: aim = Aim(at: .milliseconds(at), state: state) { .leaseRevoked($0) }
            case 11: aim = Aim(at: .milliseconds(at), state: state) { _ in .noisyNetwork(span) }
            case 12: aim = Aim(at: .milliseconds(at), state: state) { .diskFull($0, span) }
            case 13: aim = Aim(at: .milliseconds(at), state: state) { .diskSlow($0, span) }
            case 14: aim = Aim(at: .milliseconds(at), state: state) { .diskError($0) }
            case 15, 16:
                guard mayRot, !lost else { continue }
                rots = true
                // Hardly any file can rot in a node that is in the middle of nothing.
                let quiet = state != .tailUnknown && below(3) == 0
                aim = Aim(at: .milliseconds(at), state: quiet ? .idle : state) { .bitFlip($0) }
            case 17:
                guard mayRot, !lost else { continue }
                rots = true
                aim = Aim(at: .milliseconds(at), state: state) { .fileLost($0) }
            default:
                guard mayRot, !lost, !rots else { continue }
                lost = true
                burns = true
                self.nodes = max(nodes, timing.copies + 1)
                aim = Aim(at: .milliseconds(at), state: state) { .diskLost($0) }
            }
            if state == .tailUnknown, mayRot, !lost || burns {
                // A node whose file is gone, and that cannot ask the others for a while. If its disk burns, it is the same node.
                aim.host = host
                faults.append((.milliseconds(at), .fileLost(host)))
                rots = true
                for peer in 0..<self.nodes where peer != host {
                    faults.append(
                        (.milliseconds(at + 1000), .partition(from: host, to: peer, bothWays: true, .seconds(4))))
                }
            }
            aims.append(aim)
        }
        faults.sort { $0.0 < $1.0 }
    }
}

extension Fault {
    var rots: Bool {
        switch self {
        case .bitFlip, .fileLost: true
        default: false
        }
    }
}

extension Simulation {
    /// Injects what waits for this node's state.
    mutating func takeAim(at host: Int) {
        guard !faultsOver, !hosts[host].gone else { return }
        for index in aims.indices.reversed() where begin + aims[index].at <= now {
            let aim = aims[index]
            guard aim.host ?? host == host, aim.state.holds(in: hosts[host].state) else { continue }
            aims.remove(at: index)
            inject(aim.fault(host))
        }
    }
}
