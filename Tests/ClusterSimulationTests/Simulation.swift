// The simulator: many nodes in one thread under simulated time; performs exactly the actions that production would.
import BatonCore
import BatonModel
import BatonSpool
import Foundation

@testable import BatonCluster

/// One run: a seed, a set of guards, a plan of faults. Deterministic in its arguments.
struct Simulation {
    struct Host {
        let id: NodeID
        var disk: SimulatedDisk
        var state: ClusterState?
        var incarnation = Incarnation(value: 0)
        var starts = 0
        var pausedUntil = Instant.epoch
        var diskFreeAt = Instant.epoch
        var diskSlowUntil = Instant.epoch
        var clockOffset: Int64 = 0
        /// Parts per thousand.
        var clockRate: Int64 = 1000
        var gone = false
        var lastStart = Instant.epoch

        func clock(_ now: Instant) -> Instant {
            Instant(nanoseconds: now.nanoseconds / 1000 * clockRate + clockOffset)
        }

        var record: NodeRecord { NodeRecord(node: id, incarnation: incarnation, disk: disk.id) }
    }

    /// Behind a reference, so that the heap moves pointers.
    indirect enum Happening {
        case event(Int, Incarnation, ClusterState.Event)
        case tick(Int, Incarnation)
        case start(Int)
        case disk(Int, Incarnation, DiskOperation)
        case control(Int, NodeRecord, ControlRequest, answerAt: Instant?)
        case frame(Int, Incarnation, Frame, from: Drainer)
        case dot(Int, Incarnation, Dot)
        case client(MailRecord)
        case fault(Fault)
        case heal(Fault)
        case endOfFaults
    }

    let seed: UInt64
    let guards: Guards
    let plan: Plan
    var random: SplitMix64
    var now = Instant(nanoseconds: 1_000_000_000_000)
    let begin = Instant(nanoseconds: 1_000_000_000_000)
    var queue = EventHeap<Happening>()
    var order: UInt64 = 0
    var hosts: [Host] = []
    var controlPlane = SimulatedControlPlane()
    var controlDownUntil = Instant.epoch
    var controlFlakyUntil = Instant.epoch
    var controlCut: [Instant]
    /// Until when frames from the first to the second are lost.
    var cut: [[Instant]]
    var noisyUntil = Instant.epoch
    var faultsOver = false
    let checker = Checker()
    var coverage = Coverage()
    var trace: [String]?
    var steps = 0
    /// By step: what goes wrong there (systematic exploration).
    var deviations: [Int: Deviation] = [:]
    /// Faults that wait for a node to be in a state.
    var aims: [Aim]
    /// A deviation does not concern its step: the run is the same as another and was given up.
    private(set) var pointless = false

    init(plan: Plan, guards: Guards = .all, tracing: Bool = false) {
        self.seed = plan.seed
        self.plan = plan
        self.aims = plan.aims
        self.guards = guards
        self.random = SplitMix64(seed: plan.seed ^ 0x5eed)
        self.trace = tracing ? [] : nil
        controlPlane.oneLease = guards.contains(.newIncarnation)
        let room = plan.nodes + 1
        self.controlCut = Array(repeating: .epoch, count: room)
        self.cut = Array(repeating: Array(repeating: .epoch, count: room), count: room)
        for index in 0..<plan.nodes { addHost(index) }
        for (at, mail) in plan.mail { schedule(begin + at, .client(mail)) }
        for (at, fault) in plan.faults { schedule(begin + at, .fault(fault)) }
        schedule(begin + plan.faultSpan, .endOfFaults)
    }

    private mutating func addHost(_ index: Int) {
        let id = NodeID(value: UInt64(index + 1))
        var host = Host(id: id, disk: SimulatedDisk(id: UInt64(1000 + index)))
        host.clockOffset = Int64(random.next() % 2_000_000_000_000)
        host.clockRate = 930 + Int64(random.next() % 140)
        hosts.append(host)
        schedule(now + .milliseconds(Int64(random.next() % 500)), .start(index))
    }

    mutating func schedule(_ at: Instant, _ what: Happening) {
        order += 1
        queue.push(what, at: max(at, now), order: order)
    }

    mutating func chance(_ percent: UInt64) -> Bool { random.next() % 100 < percent }

    func index(_ node: NodeID) -> Int { Int(node.value) - 1 }

    // MARK: The run

    /// Until all is delivered and quiet after the faults, or the time is up.
    mutating func run() {
        let end = begin + plan.faultSpan + plan.settleSpan
        while let entry = queue.pop(), checker.violation == nil {
            if entry.at > end { break }
            now = entry.at
            steps += 1
            if !deviations.isEmpty, let deviation = deviations[steps] {
                guard concerns(deviation, entry.what) else {
                    pointless = true
                    return
                }
                if trace != nil { note("fault \(deviation)") }
                if deviate(deviation, from: entry.what) { perform(entry.what) }
            } else {
                perform(entry.what)
            }
            if faultsOver, steps % 64 == 0, quiet { break }
        }
        if checker.violation == nil { checker.conclude(self) }
    }

    /// Everything accepted is final, and no segment waits for anything.
    var quiet: Bool {
        checker.allFinal
            && controlPlane.keys.values.allSatisfy { key in
                (key.state == .open || waitsForItsWriter(key))
                    && controlPlane.nodes[key.drainer.node]?.record.incarnation == key.drainer.incarnation
            } && hosts.allSatisfy { $0.gone || ($0.state?.append.waiting.isEmpty ?? false) }
    }

    /// The key is kept while its writer lives, because a second registration may still land.
    private func waitsForItsWriter(_ key: ClusterKey) -> Bool {
        key.state == .finished && key.drainer.node == key.id.writer && key.drainer.incarnation == key.id.incarnation
            && hosts[index(key.id.writer)].state?.isRegisteredTwice(key.id) == true
    }

    private mutating func perform(_ what: Happening) {
        switch what {
        case .event(let index, let incarnation, let event): deliver(index, incarnation, event)
        case .tick(let index, let incarnation):
            guard hosts[index].state != nil, hosts[index].incarnation == incarnation else { return }
            deliver(index, incarnation, .tick)
            schedule(now + .milliseconds(100), .tick(index, incarnation))
        case .start(let index): start(index)
        case .disk(let index, let incarnation, let operation):
            guard hosts[index].state != nil, hosts[index].incarnation == incarnation else { return }
            let failing = hosts[index].disk.failing
            if failing { checker.losingPower(index, self) }
            let result = hosts[index].disk.perform(operation, &random)
            if failing { checker.lostPower(index, self) }
            checker.performed(operation, result, index, self)
            deliver(index, incarnation, .disk(operation, result))
        case .control(let index, let record, let request, let answerAt):
            let before = controlPlane
            let answer = controlPlane.perform(request, from: record, at: now)
            if case .committed = answer { checker.committed(request, before, self) }
            if let answerAt { schedule(answerAt, .event(index, record.incarnation, .control(request, answer))) }
        case .frame(let index, let incarnation, let frame, let sender):
            if case .late(let id, let records) = frame, hosts[index].incarnation == incarnation,
                hosts[index].pausedUntil <= now, let drain = hosts[index].state?.drains[id], case .ready = drain.phase
            {
                for record in records where record.outcome.isFinal {
                    if case .waiting? = drain.state(of: record.job) { checker.heardLate(id, drain.epoch, record.job) }
                }
            }
            deliver(index, incarnation, .frame(frame, from: sender))
        case .dot(let index, let incarnation, let dot): receive(dot, index, incarnation)
        case .client(let mail): submit(mail)
        case .fault(let fault): inject(fault)
        case .heal(let fault): heal(fault)
        case .endOfFaults: endFaults()
        }
    }

    private mutating func start(_ index: Int) {
        guard !hosts[index].gone, hosts[index].state == nil else { return }
        hosts[index].starts += 1
        // A5: random; its counter-example counts on from what the control plane remembers.
        let derived = (controlPlane.nodes[hosts[index].id]?.record.incarnation.value ?? 0) + 1
        // In the upper bits the count of starts, which is kept on disk, so that they are ordered.
        let fresh = UInt64(hosts[index].starts) << 40 | random.next() >> 24
        let incarnation = Incarnation(value: guards.contains(.freshIncarnation) ? fresh : derived)
        hosts[index].incarnation = incarnation
        hosts[index].lastStart = now
        hosts[index].pausedUntil = now
        hosts[index].diskFreeAt = now
        let me = Drainer(node: hosts[index].id, incarnation: incarnation)
        let state = ClusterState(
            me: me, disk: hosts[index].disk.id, timing: plan.timing, seed: random.next(), at: hosts[index].clock(now),
            guards: guards)
        hosts[index].state = state
        let files = hosts[index].disk.files
        let scans = files.keys.compactMap { files[$0]?.scan }
        deliver(index, incarnation, .started(files.keys, scans))
        schedule(now + .milliseconds(Int64(random.next() % 100)), .tick(index, incarnation))
    }

    mutating func deliver(_ index: Int, _ incarnation: Incarnation, _ event: ClusterState.Event) {
        guard hosts[index].state != nil, hosts[index].incarnation == incarnation else { return }
        if hosts[index].pausedUntil > now {
            // A stopped process sees everything later, in order.
            return schedule(hosts[index].pausedUntil, .event(index, incarnation, event))
        }
        if trace != nil, event != .tick { note("\(hosts[index].id.value) < \(event)") }
        var output = ActionBuffer<ClusterState.Action>()
        let clock = hosts[index].clock(now)
        hosts[index].state?.receive(event, at: clock, into: &output)
        for action in output.drain() { perform(action, index, incarnation) }
        if !aims.isEmpty { takeAim(at: index) }
    }

    private mutating func perform(_ action: ClusterState.Action, _ index: Int, _ incarnation: Incarnation) {
        if trace != nil {
            switch action {
            case .send(.askPromise, _), .send(.promise, _), .control(.keepAlive): break
            default: note("\(hosts[index].id.value)   > \(action)")
            }
        }
        checker.observe(action, index, self)
        switch action {
        case .disk(let operation):
            let slow = hosts[index].diskSlowUntil > now ? Int64(random.next() % 1_500_000) : 0
            let took = TimeSpan(nanoseconds: (100_000 + Int64(random.next() % 2_000_000)) + slow * 1000)
            let done = max(hosts[index].diskFreeAt, now) + took
            hosts[index].diskFreeAt = done
            schedule(done, .disk(index, incarnation, operation))
        case .control(let request): ask(request, index)
        case .send(let frame, let node): transmit(frame, index, self.index(node))
        case .reply, .final, .settled, .maybeDuplicate: break
        case .dot(let dot):
            let stored = hosts[index].disk.files[dot.segment]?.chunks.first {
                $0.chunk.start <= dot.job.index && dot.job.index < $0.chunk.end
            }
            // The body is read and its checksum verified before the dot.
            guard stored?.intact != false else {
                return schedule(now + .milliseconds(1), .event(index, incarnation, .answered(dot, .damaged)))
            }
            checker.sent(dot, index, self)
            schedule(now + .milliseconds(1 + Int64(random.next() % 40)), .dot(index, incarnation, dot))
        case .restart:
            coverage.count(.stepDown, hosts[index], self)
            stop(index, power: false)
            schedule(now + .milliseconds(200 + Int64(random.next() % 1000)), .start(index))
        }
    }

    mutating func note(_ line: String) {
        let stamp = Double((now - begin).nanoseconds) / 1e9
        var short = line
        for long in [
            "BatonCluster.", "BatonSpool.", "BatonCore.", "DiskOperation.", "ControlRequest.", "Frame.",
            "ControlAnswer.",
        ] {
            short = short.replacingOccurrences(of: long, with: "")
        }
        trace?.append("\(stamp) \(short)")
    }

    // MARK: Network

    private mutating func transmit(_ frame: Frame, _ from: Int, _ to: Int) {
        guard to < hosts.count, cut[from][to] <= now, hosts[to].state != nil else { return }
        let noisy = noisyUntil > now
        if chance(noisy ? 15 : 1) && !faultsOver { return }
        let sender = Drainer(node: hosts[from].id, incarnation: hosts[from].incarnation)
        let times = !faultsOver && chance(noisy ? 10 : 1) ? 2 : 1
        for _ in 0..<times {
            let delay =
                !faultsOver && chance(noisy ? 20 : 2) ? Int64(random.next() % 1_200_000) : Int64(random.next() % 2_000)
            schedule(
                now + TimeSpan(nanoseconds: 100_000 + delay * 1000),
                .frame(to, hosts[to].incarnation, frame, from: sender))
        }
    }

    private mutating func ask(_ request: ControlRequest, _ index: Int) {
        let record = hosts[index].record
        let out = now + TimeSpan(nanoseconds: 500_000 + Int64(random.next() % 5_000_000))
        let timeout = now + .milliseconds(1000)
        let unreachable = controlDownUntil > now || controlCut[index] > now
        let unknown = ClusterState.Event.control(request, .unknown)
        if unreachable { return schedule(timeout, .event(index, record.incarnation, unknown)) }
        if controlFlakyUntil > now, chance(40) {
            schedule(timeout, .event(index, record.incarnation, unknown))
            // Applied without an answer: at once, or long after the client gave up.
            switch random.next() % 3 {
            case 0: schedule(out, .control(index, record, request, answerAt: nil))
            case 1:
                schedule(
                    now + .milliseconds(1000 + Int64(random.next() % 4000)),
                    .control(index, record, request, answerAt: nil))
            default: break
            }
            return
        }
        let back = out + TimeSpan(nanoseconds: 500_000 + Int64(random.next() % 5_000_000))
        schedule(out, .control(index, record, request, answerAt: back))
    }

    // MARK: Clients and receivers

    private mutating func submit(_ mail: MailRecord) {
        let up = hosts.indices.filter { hosts[$0].state != nil && hosts[$0].pausedUntil <= now }
        guard !up.isEmpty else { return }
        let index = up[Int(random.next() % UInt64(up.count))]
        let place: NodeID? = chance(50) ? hosts[Int(random.next() % UInt64(hosts.count))].id : nil
        var stamped = MailRecord(
            id: MessageID(
                high: hosts[index].clock(now).millisecondsSinceEpoch << 16, low: mail.id.low),
            recipients: mail.recipients, digest: mail.digest)
        stamped.isReport = false
        let first = place.map { self.index($0) } ?? index
        let split = plan.split(stamped, on: hosts.map(\.id), from: first)
        let parts = split.isEmpty ? [MailPart(mail: stamped, node: place)] : split
        checker.offered(parts.map(\.mail))
        deliver(index, hosts[index].incarnation, .mail(parts))
    }

    private mutating func receive(_ dot: Dot, _ index: Int, _ incarnation: Incarnation) {
        var answer = plan.answer(to: dot, after: now - begin, &random)
        let arrived = answer == .accepted || answer == .refused
        if arrived { checker.arrived(dot, answer, index, self) }
        if !faultsOver, chance(4) { answer = .unknown }
        checker.answered(dot, answer)
        schedule(
            now + .milliseconds(1 + Int64(random.next() % 60)), .event(index, incarnation, .answered(dot, answer)))
    }

    // MARK: Hosts going down

    mutating func stop(_ index: Int, power: Bool) {
        guard hosts[index].state != nil else { return }
        checker.losingPower(index, self)
        hosts[index].state = nil
        if power { hosts[index].disk.losePower(&random) }
        // What the process had acknowledged and the disk had not seen yet is gone even without a loss of power.
        checker.lostPower(index, self)
    }

    private mutating func endFaults() {
        faultsOver = true
        controlDownUntil = .epoch
        controlFlakyUntil = .epoch
        noisyUntil = .epoch
        for index in controlCut.indices { controlCut[index] = .epoch }
        for from in cut.indices {
            for to in cut.indices { cut[from][to] = .epoch }
        }
        for index in hosts.indices {
            hosts[index].diskSlowUntil = .epoch
            hosts[index].disk.full = false
            hosts[index].disk.failing = false
            if hosts[index].gone {
                forget(index)
            } else if hosts[index].state == nil {
                schedule(now + .milliseconds(Int64(random.next() % 2000)), .start(index))
            }
        }
    }

    mutating func forget(_ index: Int) {
        let member = EnsembleMember(node: hosts[index].id, diskID: hosts[index].disk.id)
        if !controlPlane.forgotten.contains(member) { controlPlane.forgotten.append(member) }
    }
}
