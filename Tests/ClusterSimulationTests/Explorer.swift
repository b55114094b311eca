// The smallest scopes, breadth first: every order of what is under way, and every fault at every state, over the same ClusterState.
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

/// A cluster as an explicit state. Time passes only when nothing is under way; everything else happens in any order, but for
/// the frames of one connection and the operations of one disk.
struct World {
    struct Host {
        var state: ClusterState?
        var disk: SimulatedDisk
        var starts: UInt64 = 0
        var operations: [DiskOperation] = []
        var requests: [ControlRequest] = []
        var dots: [Dot] = []
    }

    struct Wire {
        var frames: [(frame: Frame, sender: Drainer)] = []
    }

    enum Step: Hashable {
        case disk(Int)
        case control(Int)
        case frame(from: Int, to: Int)
        case receiver(Int)
        case client
        case tick
        case start(Int)
        // Faults, each of which uses up one of the allowed.
        case kill(Int)
        case losePower(Int)
        case dropFrame(from: Int, to: Int)
        case answerLost(Int)
        case requestLost(Int)
        case revoke(Int)

        var isFault: Bool {
            switch self {
            case .kill, .losePower, .dropFrame, .answerLost, .requestLost, .revoke: true
            case .disk, .control, .frame, .receiver, .client, .tick, .start: false
            }
        }
    }

    static let timing: ClusterTiming = {
        var timing = ClusterTiming()
        timing.keepAlive = .seconds(1)
        timing.list = .seconds(2)
        timing.promise = .seconds(3)
        timing.promiseTrusted = .seconds(2)
        timing.promiseRenewal = .seconds(1)
        timing.silence = .seconds(2)
        timing.appendDeadline = .seconds(2)
        timing.retransmit = .seconds(1)
        timing.replyDeadline = .seconds(5)
        timing.outcomeSync = .seconds(1)
        timing.ownerFirst = .seconds(2)
        timing.retry = .seconds(2)
        timing.recopyAfter = .seconds(2)
        timing.submitDeadline = .seconds(2)
        timing.hold = .seconds(4)
        timing.remember = .seconds(8)
        timing.cleanAfter = .seconds(1_000_000)
        return timing
    }()

    var clock = Instant(nanoseconds: 1_000_000_000_000)
    var hosts: [Host] = []
    var wires: [[Wire]]
    var control = SimulatedControlPlane()
    var faultsLeft: Int
    var messagesLeft: Int
    var accepted: Set<MessageID> = []
    var arrivals: [JobID: Int] = [:]
    var highestDot = Table<SegmentID, UInt64>()
    var acked = Table<SegmentID, Int64>()
    /// Seconds since an accepted message has been without a final outcome.
    var openFor = 0
    var violation: String?

    init(nodes: Int, messages: Int, faults: Int) {
        faultsLeft = faults
        messagesLeft = messages
        wires = Array(repeating: Array(repeating: Wire(), count: nodes), count: nodes)
        for index in 0..<nodes { hosts.append(Host(disk: SimulatedDisk(id: UInt64(1000 + index)))) }
        for index in 0..<nodes { start(index) }
    }

    private func record(_ index: Int) -> NodeRecord? {
        hosts[index].state.map {
            NodeRecord(node: $0.me.node, incarnation: $0.me.incarnation, disk: hosts[index].disk.id)
        }
    }

    // MARK: What may happen next

    var steps: [Step] {
        guard violation == nil else { return [] }
        var found: [Step] = []
        for index in hosts.indices where hosts[index].state != nil {
            if !hosts[index].operations.isEmpty { found.append(.disk(index)) }
            if !hosts[index].requests.isEmpty { found.append(.control(index)) }
            if !hosts[index].dots.isEmpty { found.append(.receiver(index)) }
        }
        for from in hosts.indices {
            for to in hosts.indices where !wires[from][to].frames.isEmpty { found.append(.frame(from: from, to: to)) }
        }
        if found.isEmpty {
            found.append(.tick)
            for index in hosts.indices where hosts[index].state == nil { found.append(.start(index)) }
            if messagesLeft > 0, hosts[0].state?.append.current != nil { found.append(.client) }
        }
        guard faultsLeft > 0 else { return found }
        for index in hosts.indices where hosts[index].state != nil {
            found += [.kill(index), .losePower(index)]
            if control.nodes[NodeID(value: UInt64(index + 1))] != nil { found.append(.revoke(index)) }
            if case .store? = hosts[index].requests.first { found += [.answerLost(index), .requestLost(index)] }
        }
        for from in hosts.indices {
            for to in hosts.indices where !wires[from][to].frames.isEmpty {
                found.append(.dropFrame(from: from, to: to))
            }
        }
        return found
    }

    mutating func take(_ step: Step) {
        if step.isFault { faultsLeft -= 1 }
        switch step {
        case .disk(let index): work(index)
        case .control(let index): ask(index, answered: true)
        case .answerLost(let index): ask(index, answered: false)
        case .requestLost(let index):
            let request = hosts[index].requests.removeFirst()
            deliver(index, .control(request, .unknown))
        case .frame(let from, let to):
            let (frame, sender) = wires[from][to].frames.removeFirst()
            deliver(to, .frame(frame, from: sender))
        case .dropFrame(let from, let to): wires[from][to].frames.removeFirst()
        case .receiver(let index):
            let dot = hosts[index].dots.removeFirst()
            arrivals[dot.job, default: 0] += 1
            if arrivals[dot.job] ?? 0 > 2 { violation = "\(dot.job) arrived three times" }
            deliver(index, .answered(dot, .accepted))
        case .client:
            messagesLeft -= 1
            let mail = MailRecord(id: MessageID(high: 0, low: UInt64(messagesLeft + 1)), recipients: 1, digest: 7)
            deliver(0, .mail([MailPart(mail: mail, node: nil)]))
        case .tick: tick()
        case .start(let index): start(index)
        case .kill(let index): fell(index)
        case .losePower(let index):
            fell(index)
            hosts[index].disk.loseAllUnsynced()
        case .revoke(let index): control.revoke(NodeID(value: UInt64(index + 1)))
        }
    }

    private mutating func tick() {
        clock = clock + .seconds(1)
        control.expire(at: clock)
        for index in hosts.indices { deliver(index, .tick) }
        let open = accepted.contains { id in arrivals.isEmpty && id.low > 0 }
        openFor = open ? openFor + 1 : 0
        if openFor > 40 { violation = "invariant 12: an accepted message is open for 40 s without a fault" }
    }

    private mutating func start(_ index: Int) {
        hosts[index].starts += 1
        let me = Drainer(
            node: NodeID(value: UInt64(index + 1)),
            incarnation: Incarnation(value: hosts[index].starts << 40 | UInt64(index + 1)))
        hosts[index].state = ClusterState(me: me, disk: hosts[index].disk.id, timing: Self.timing, seed: 1, at: clock)
        let files = hosts[index].disk.files
        deliver(index, .started(files.keys, files.values.map(\.scan)))
    }

    private mutating func fell(_ index: Int) {
        hosts[index].state = nil
        hosts[index].operations = []
        hosts[index].requests = []
        hosts[index].dots = []
        openFor = 0
        for other in hosts.indices {
            wires[other][index].frames = []
            wires[index][other].frames = []
        }
    }

    /// Up to the next operation whose result matters; the page cache takes the others at once.
    private mutating func work(_ index: Int) {
        var random = SplitMix64(seed: 1)
        while !hosts[index].operations.isEmpty {
            let operation = hosts[index].operations.removeFirst()
            let result = hosts[index].disk.perform(operation, &random)
            deliver(index, .disk(operation, result))
            switch operation {
            case .write, .outcomes: continue
            default: return
            }
        }
    }

    private mutating func ask(_ index: Int, answered: Bool) {
        guard let record = record(index) else { return }
        let request = hosts[index].requests.removeFirst()
        let before = control
        let answer = control.perform(request, from: record, at: clock)
        if case .store(let wanted, _) = request, case .committed(let new?) = answer,
            before.keys[wanted.id]?.state == .open,
            let length = new.sealedAt, length < acked[wanted.id] ?? 0
        {
            violation = "invariant 5: \(wanted.id) sealed at \(length), acknowledged up to \(acked[wanted.id] ?? 0)"
        }
        deliver(index, .control(request, answered ? answer : .unknown))
    }

    private mutating func deliver(_ index: Int, _ event: ClusterState.Event) {
        guard hosts[index].state != nil else { return }
        var output = ActionBuffer<ClusterState.Action>()
        hosts[index].state?.receive(event, at: clock, into: &output)
        for action in output.drain() {
            switch action {
            case .disk(let operation): hosts[index].operations.append(operation)
            case .control(.keepAlive):
                guard let record = record(index) else { continue }
                deliver(index, .control(.keepAlive, control.perform(.keepAlive, from: record, at: clock)))
            case .control(let request): hosts[index].requests.append(request)
            case .send(let frame, let node):
                let to = Int(node.value) - 1
                guard hosts[to].state != nil, let me = hosts[index].state?.me else { continue }
                wires[index][to].frames.append((frame, me))
            case .reply(let id, let yes): if yes { acknowledged(id) }
            case .dot(let dot):
                if dot.epoch < highestDot[dot.segment] ?? 0 { violation = "invariant 3: \(dot) after a higher epoch" }
                highestDot[dot.segment] = max(highestDot[dot.segment] ?? 0, dot.epoch)
                hosts[index].dots.append(dot)
            case .final(_, _, _, let record, _):
                if record.outcome == .delivered, arrivals.isEmpty {
                    violation = "invariant 1: delivered on record, never arrived"
                }
            case .settled, .maybeDuplicate: break
            case .restart: fell(index)
            }
        }
    }

    /// Invariant 2, and how far the segment is acknowledged.
    private mutating func acknowledged(_ id: MessageID) {
        accepted.insert(id)
        let mail = MailRecord(id: id, recipients: 1, digest: 7)
        var best = 0
        for key in control.keys.values {
            best = max(best, hosts.count { $0.disk.files[key.id]?.holds(mail) == true })
            if let acked = hosts[0].state?.append.lane.acked(key.id), acked > 0 { self.acked[key.id] = acked }
        }
        if best < Self.timing.copies { violation = "invariant 2: 250 with \(best) synced copies" }
    }

    var fingerprint: Int {
        var print = Fingerprint(at: clock)
        for host in hosts {
            print.add(host.state == nil)
            if let state = host.state { print.add(state) }
            print.add(host.disk)
            print.add(host.starts)
            print.add(host.operations)
            print.add(host.requests)
            print.add(host.dots)
        }
        for row in wires {
            for wire in row {
                print.add(wire.frames.count)
                for (frame, sender) in wire.frames {
                    print.add(frame)
                    print.add(sender)
                }
            }
        }
        print.add(control)
        print.add([faultsLeft, messagesLeft, openFor])
        print.add(accepted)
        print.add(arrivals)
        print.add(highestDot)
        print.add(acked)
        return print.hasher.finalize()
    }
}

/// Breadth first over `World`: complete, or cut off at a number of states.
struct Explorer {
    let limit: Int
    private(set) var states = 0
    private(set) var transitions = 0
    private(set) var depth = 0
    private(set) var complete = false
    private(set) var violation: String?

    init(limit: Int) { self.limit = limit }

    mutating func explore(_ first: World) {
        var seen: Set<Int> = [first.fingerprint]
        var level = [first]
        states = 1
        while !level.isEmpty {
            depth += 1
            var next: [World] = []
            for world in level {
                for step in world.steps {
                    var after = world
                    after.take(step)
                    transitions += 1
                    if let found = after.violation {
                        violation = "\(found), at depth \(depth) by \(step)"
                        return
                    }
                    guard seen.insert(after.fingerprint).inserted else { continue }
                    states += 1
                    next.append(after)
                    if states >= limit { return }
                }
            }
            level = next
        }
        complete = true
    }
}
