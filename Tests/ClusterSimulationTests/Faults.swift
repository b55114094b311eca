// What goes wrong in a run, drawn from its seed, and how it is done to the simulated cluster.
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

enum Fault: Hashable {
    case crash(Int, power: Bool, downFor: TimeSpan)
    case wholePowerLoss(downFor: TimeSpan)
    case pause(Int, TimeSpan)
    case partition(from: Int, to: Int, bothWays: Bool, TimeSpan)
    case isolate(Int, TimeSpan)
    case controlCut(Int, TimeSpan)
    case controlDown(TimeSpan)
    case controlFlaky(TimeSpan)
    case leaseRevoked(Int)
    case noisyNetwork(TimeSpan)
    case diskFull(Int, TimeSpan)
    case diskSlow(Int, TimeSpan)
    case diskError(Int)
    case bitFlip(Int)
    case diskLost(Int)
    case fileLost(Int)

    var kind: String {
        switch self {
        case .crash(_, let power, _): power ? "power loss" : "kill"
        case .wholePowerLoss: "whole power loss"
        case .pause: "pause"
        case .partition(_, _, let both, _): both ? "partition" : "one-way partition"
        case .isolate: "isolation"
        case .controlCut: "cut from etcd"
        case .controlDown: "etcd down"
        case .controlFlaky: "etcd unknown results"
        case .leaseRevoked: "lease revoked"
        case .noisyNetwork: "frames lost, late, doubled"
        case .diskFull: "disk full"
        case .diskSlow: "disk slow"
        case .diskError: "disk error"
        case .bitFlip: "bit flip"
        case .diskLost: "disk lost"
        case .fileLost: "file lost"
        }
    }

    var host: Int? {
        switch self {
        case .crash(let host, _, _), .pause(let host, _), .partition(let host, _, _, _), .isolate(let host, _),
            .controlCut(let host, _), .leaseRevoked(let host), .diskFull(let host, _), .diskSlow(let host, _),
            .diskError(let host), .bitFlip(let host), .diskLost(let host), .fileLost(let host):
            host
        case .wholePowerLoss, .controlDown, .controlFlaky, .noisyNetwork: nil
        }
    }
}

/// Everything that a run is made of, besides its guards.
struct Plan {
    let seed: UInt64
    var nodes = 3
    var timing = ClusterTiming()
    var mail: [(TimeSpan, MailRecord)] = []
    var faults: [(TimeSpan, Fault)] = []
    var aims: [Aim] = []
    var faultSpan = TimeSpan.seconds(40)
    var settleSpan = TimeSpan.seconds(150)

    init(seed: UInt64, messages: Int = 200, faults count: Int? = nil) {
        self.seed = seed
        var random = SplitMix64(seed: seed)
        func below(_ bound: UInt64) -> Int { Int(random.next() % bound) }
        nodes = 3 + below(3)
        timing.list = .seconds(2)
        timing.copies = below(4) == 0 ? 3 : 2
        for number in 0..<messages {
            var mailRandom = SplitMix64(seed: seed &+ UInt64(number) &* 7919)
            let record = MailRecord(
                id: MessageID(high: 0, low: UInt64(number + 1)), recipients: 1 + Int(mailRandom.next() % 3),
                digest: mailRandom.next())
            // In bursts, so that chunks are in flight together.
            let at = Int64(below(8)) * 5000 + Int64(below(2200))
            mail.append((.milliseconds(at), record))
        }
        mail.sort { $0.0 < $1.0 }
        let faultCount = count ?? 5 + below(9)
        let losesDisk = below(3) == 0
        var lost = false
        for _ in 0..<faultCount {
            let host = below(UInt64(nodes))
            let other = (host + 1 + below(UInt64(nodes - 1))) % nodes
            let span = TimeSpan.milliseconds(Int64(200 + below(9000)))
            let short = TimeSpan.milliseconds(Int64(300 + below(3000)))
            let at = TimeSpan.milliseconds(Int64(1500 + below(37000)))
            let fault: Fault =
                switch below(22) {
                case 0, 1, 2: .crash(host, power: false, downFor: span)
                case 3, 4, 5: .crash(host, power: true, downFor: span)
                case 6: .wholePowerLoss(downFor: short)
                case 7, 8: .pause(host, span)
                case 9, 10: .partition(from: host, to: other, bothWays: below(2) == 0, span)
                case 11: .isolate(host, span)
                case 12, 13: .controlCut(host, span)
                case 14: .controlDown(span)
                case 15, 16: .controlFlaky(span)
                case 17: .leaseRevoked(host)
                case 18: .noisyNetwork(span)
                case 19: below(2) == 0 ? .diskFull(host, short) : .diskSlow(host, short)
                case 20: .diskError(host)
                default: losesDisk && !lost ? .diskLost(host) : (below(3) == 0 ? .fileLost(host) : .bitFlip(host))
                }
            if case .diskLost = fault { lost = true }
            faults.append((at, fault))
        }
        // Rotten bits and a lost disk together may take both copies of a message: that is more than was promised.
        if lost {
            faults = faults.map { at, fault in
                if case .fileLost(let host) = fault { return (at, .crash(host, power: true, downFor: .seconds(1))) }
                if case .bitFlip(let host) = fault { return (at, .crash(host, power: true, downFor: .seconds(1))) }
                return (at, fault)
            }
        }
        faults.sort { $0.0 < $1.0 }
        // With a node burned there still have to be as many as a message has copies, and one to copy to.
        if lost { nodes = max(nodes, timing.copies + 1) }
        aim(losesDisk: lost)
    }

    /// What `PlacementState` does with recipients of several nodes' domains, from seed 100,000 on: about half of the messages with more
    /// than one recipient go to several nodes.
    func split(_ mail: MailRecord, on nodes: [NodeID], from first: Int) -> [MailPart] {
        var random = SplitMix64(seed: seed &* 31 &+ mail.id.low)
        guard seed >= 100_000, mail.recipients > 1, random.next() % 2 == 0 else { return [] }
        let sizes = mail.recipients == 2 ? [1, 1] : [[1, 2], [2, 1], [1, 1, 1]][Int(random.next() % 3)]
        var next = 0
        return sizes.enumerated().map { place, size in
            var part = MailRecord(id: mail.id, recipients: size, digest: mail.digest)
            part.firstNumber = next
            next += size
            return MailPart(mail: part, node: nodes[(first + place) % nodes.count])
        }
    }

    /// A receiver's answer: mostly the same for a recipient, whoever asks.
    func answer(to dot: Dot, after: TimeSpan, _ random: inout SplitMix64) -> ReceiverAnswer {
        let hash = SplitMix64.mix(dot.mail.id.low &* 31 &+ UInt64(dot.mail.firstNumber + dot.job.recipient) &+ seed)
        if dot.mail.isReport { return random.next() % 10 == 0 ? .later : .accepted }
        if hash % 16 == 0 { return .refused }
        // Some receivers are down for long, so that their segments are cleaned.
        if hash % 16 == 1, after < .seconds(45) { return .later }
        return random.next() % 12 == 0 ? .later : .accepted
    }
}

extension Simulation {
    mutating func inject(_ fault: Fault) {
        if let host = fault.host, hosts[host].gone { return }
        switch fault {
        case .bitFlip(let host): return flip(host, fault)
        case .fileLost(let host): return loseFile(host, fault)
        default: break
        }
        coverage.inject(fault, self)
        if trace != nil { note("fault \(fault)") }
        switch fault {
        case .crash(let host, let power, let span):
            stop(host, power: power)
            schedule(now + span, .heal(fault))
        case .wholePowerLoss(let span):
            for host in hosts.indices {
                stop(host, power: true)
                schedule(now + span + .milliseconds(Int64(random.next() % 3000)), .start(host))
            }
        case .pause(let host, let span): hosts[host].pausedUntil = now + span
        case .partition(let from, let to, let both, let span):
            cut[from][to] = max(cut[from][to], now + span)
            if both { cut[to][from] = max(cut[to][from], now + span) }
        case .isolate(let host, let span):
            for other in hosts.indices where other != host {
                cut[host][other] = max(cut[host][other], now + span)
                cut[other][host] = max(cut[other][host], now + span)
            }
            controlCut[host] = max(controlCut[host], now + span)
        case .controlCut(let host, let span): controlCut[host] = max(controlCut[host], now + span)
        case .controlDown(let span): controlDownUntil = max(controlDownUntil, now + span)
        case .controlFlaky(let span): controlFlakyUntil = max(controlFlakyUntil, now + span)
        case .leaseRevoked(let host): controlPlane.revoke(hosts[host].id)
        case .noisyNetwork(let span): noisyUntil = max(noisyUntil, now + span)
        case .diskFull(let host, let span):
            hosts[host].disk.full = true
            schedule(now + span, .heal(fault))
        case .diskSlow(let host, let span): hosts[host].diskSlowUntil = now + span
        case .diskError(let host): hosts[host].disk.failing = true
        case .bitFlip, .fileLost: break
        case .diskLost(let host):
            stop(host, power: true)
            hosts[host].disk.lost = true
            hosts[host].disk.files = Table()
            hosts[host].gone = true
            checker.lostDisk(host)
            schedule(now + .seconds(6), .heal(fault))
        }
    }

    mutating func heal(_ fault: Fault) {
        switch fault {
        case .crash(let host, _, _): start(again: host)
        case .diskFull(let host, _): hosts[host].disk.full = false
        // An operator declares its copies lost.
        case .diskLost(let host): forget(host)
        default: break
        }
    }

    private mutating func start(again host: Int) { schedule(now, .start(host)) }

    /// Removes one file, of which another member has an intact and synced copy.
    private mutating func loseFile(_ host: Int, _ fault: Fault) {
        let member = EnsembleMember(node: hosts[host].id, diskID: hosts[host].disk.id)
        let ids = hosts[host].disk.files.keys.filter { id in
            guard let file = hosts[host].disk.files[id], let key = controlPlane.keys[id], !checker.rotten.contains(id)
            else { return false }
            let chunks = file.chunks.map(\.chunk)
            return key.ensemble.contains { other in
                other != member && !key.stale.contains(other)
                    && hosts[index(other.node)].disk.files[id].map { copy in
                        chunks.allSatisfy { chunk in
                            copy.chunks.contains { $0.chunk == chunk && $0.synced && $0.intact }
                        }
                            && Set(file.log.map(\.record)).isSubset(of: Set(copy.log.filter(\.synced).map(\.record)))
                    } == true
            }
        }
        guard !ids.isEmpty else { return }
        let id = ids[Int(random.next() % UInt64(ids.count))]
        coverage.inject(fault, self)
        if trace != nil { note("fault \(fault) \(id)") }
        checker.rotten.insert(id)
        checker.lostFiles.insert(Checker.Scanned(host: host, segment: id))
        stop(host, power: false)
        hosts[host].disk.files[id] = nil
        schedule(now + .seconds(1), .start(host))
    }

    /// Rots one synced chunk of which another intact, synced copy exists.
    private mutating func flip(_ host: Int, _ fault: Fault) {
        let ids = hosts[host].disk.files.keys.filter { !checker.rotten.contains($0) }
        guard !ids.isEmpty else { return }
        let id = ids[Int(random.next() % UInt64(ids.count))]
        guard let file = hosts[host].disk.files[id], !file.chunks.isEmpty else { return }
        let place = random.next() % 2 == 0 ? file.chunks.count - 1 : Int(random.next() % UInt64(file.chunks.count))
        let chunk = file.chunks[place]
        let elsewhere = hosts.indices.filter { other in
            other != host
                && hosts[other].disk.files[id]?.chunks.contains { $0.chunk == chunk.chunk && $0.synced && $0.intact }
                    == true
        }
        guard chunk.synced, !elsewhere.isEmpty else { return }
        coverage.inject(fault, self)
        if trace != nil { note("fault \(fault) \(id)") }
        checker.rotten.insert(id)
        hosts[host].disk.files[id]?.chunks[place].intact = false
    }
}
