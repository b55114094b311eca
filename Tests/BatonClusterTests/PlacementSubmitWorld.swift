// A small cluster of SubmitStates with disks, late and lost frames, crashes and takeovers, watched from outside.
import BatonCore
import BatonModel
import BatonPeer
import NIOCore

@testable import BatonCluster

/// One seeded run. Four nodes; at most one is down at a time, and what it had stored is taken over, soon or late.
struct SubmitWorld {
    enum Step {
        case frame(from: NodeRun, PeerMessage, to: NodeID)
        case event(NodeRun, SubmitEvent)
        case write(NodeRun, counter: UInt64?, key: MessageKey?, message: UInt64, heldFor: NodeRun?)
        case mail(UInt64)
        case tick
        case crash(Int)
        case notice(NodeRun)
        case adopt(NodeRun, by: Int)
        case restart(Int)
        /// The segments that this run took over then have all their copies again.
        case whole(NodeRun, segment: UInt32)
        case deliver(NodeRun, StoredMessageRef)
    }

    struct Copy {
        let message: UInt64
        let key: MessageKey?
        let heldFor: NodeRun?
        let ref: StoredMessageRef
        var final: Bool
        /// On this disk only.
        var isAlone = false
    }

    struct Node {
        var run: NodeRun
        var isUp = true
        var state: SubmitState
        var disk: [Copy] = []
    }

    var random: SplitMix64
    var now = Instant.epoch
    var steps: [(at: Instant, number: Int, step: Step)] = []
    var number = 0
    var nodes: [Node] = []
    let guards: SubmitGuards
    var accepted: Set<UInt64> = []
    var answered: [UInt64: Int] = [:]
    var deliveries: [UInt64: Int] = [:]
    var counted: [SubmitCount: Int] = [:]
    var messageOf: [MessageKey: UInt64] = [:]
    var refs: UInt32 = 0
    /// Handles of segments that were taken over are behind those of own ones.
    var adoptions: UInt32 = 4
    var quiet = false
    var down: Int?
    var violations: [String] = []

    init(seed: UInt64, guards: SubmitGuards) {
        random = SplitMix64(seed: seed)
        self.guards = guards
        for index in 0..<4 {
            let run = NodeRun(node: NodeID(value: UInt64(index) + 1), incarnation: Incarnation(value: random.next()))
            nodes.append(Node(run: run, state: SubmitState(own: run, guards: guards)))
        }
        tellNodes()
    }

    mutating func chance(_ part: Double) -> Bool { random.unit() < part }
    mutating func below(_ bound: Int) -> Int { Int(random.next() % UInt64(bound)) }
    mutating func span(_ low: Int, _ high: Int) -> TimeSpan { .milliseconds(Int64(low + below(high - low + 1))) }

    /// Mail and faults for 60 s, then quiet until everything has come to rest.
    mutating func play() {
        for index in 0..<120 { add(.mail(UInt64(index)), after: span(0, 60_000)) }
        for _ in 0..<3 { add(.crash(below(4)), after: span(500, 60_000)) }
        var clock = 0
        while clock < 180_000 {
            add(.tick, after: .milliseconds(Int64(clock)))
            clock += clock < 80_000 ? 200 : 1_000
        }
        while let next = takeFirst() {
            now = next.at
            quiet = now > .epoch + .seconds(62)
            perform(next.step)
        }
        judge()
    }

    // MARK: Steps

    mutating func add(_ step: Step, after span: TimeSpan) {
        number += 1
        steps.append((now + span, number, step))
        var child = steps.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard Self.precedes(steps[child], steps[parent]) else { break }
            steps.swapAt(child, parent)
            child = parent
        }
    }

    private static func precedes(
        _ left: (at: Instant, number: Int, step: Step), _ right: (at: Instant, number: Int, step: Step)
    ) -> Bool { (left.at, left.number) < (right.at, right.number) }

    private mutating func takeFirst() -> (at: Instant, number: Int, step: Step)? {
        guard let first = steps.first, let last = steps.popLast() else { return nil }
        guard !steps.isEmpty else { return first }
        steps[0] = last
        var parent = 0
        while true {
            var least = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < steps.count {
                if Self.precedes(steps[child], steps[least]) { least = child }
            }
            guard least != parent else { return first }
            steps.swapAt(least, parent)
            parent = least
        }
    }

    func index(of run: NodeRun) -> Int? { nodes.firstIndex { $0.run == run && $0.isUp } }

    mutating func perform(_ step: Step) {
        switch step {
        case .tick: for index in nodes.indices where nodes[index].isUp { post(.tick, index) }
        case .mail(let message): mail(message)
        case .event(let run, let event): if let index = index(of: run) { post(event, index) }
        case .frame(let from, let message, let to): arrive(message, from: from, at: to)
        case .write(let run, let counter, let key, let message, let heldFor):
            write(run, counter, key, message, heldFor)
        case .crash(let index): crash(index)
        case .notice(let run):
            tellNodes()
            for index in nodes.indices where nodes[index].isUp { post(.lost(run.node), index) }
        case .adopt(let run, let by): adopt(run, by)
        case .restart(let index): restart(index)
        case .whole(let run, let segment): whole(run, segment)
        case .deliver(let run, let ref):
            if let index = index(of: run) { settle(ref, index, delivered: true) }
        }
    }

    mutating func mail(_ message: UInt64) {
        let from = nodes.indices.filter { nodes[$0].isUp }[below(nodes.filter(\.isUp).count)]
        let to = below(4)
        let part = OutgoingPart(message: message, envelope: envelope(message, to: ["a@b.example"]), body: ByteBuffer())
        post(to == from ? .keep(part) : .place(part, on: nodes[to].run), from)
    }

    mutating func post(_ event: SubmitEvent, _ index: Int) {
        var actions = ActionBuffer<SubmitAction>()
        nodes[index].state.receive(event, at: now, into: &actions)
        for action in actions.actions { perform(action, index) }
    }

    mutating func perform(_ action: SubmitAction, _ index: Int) {
        let own = nodes[index].run
        switch action {
        case .submit(let key, let part, let receiver):
            messageOf[key] = part.message
            if chance(0.03) { return add(.event(own, .notSent(counter: key.counter)), after: .zero) }
            let submit = Submit(
                key: key, receiver: receiver.incarnation, envelope: ByteBuffer(), body: ByteBuffer(), bodyOctets: 0,
                isCompressed: false)
            send(.submit(submit), from: own, to: receiver.node)
        case .answer(let answer, let node): if node != own.node { send(.submitted(answer), from: own, to: node) }
        case .ask(let question, let node): send(.ask(question), from: own, to: node)
        case .store(let counter, let part, let mark):
            let held = mark?.held.map { NodeRun(node: $0.receiver, incarnation: $0.incarnation) }
            let key = mark.map { MessageKey($0) }
            add(
                .write(own, counter: counter, key: key, message: part.message, heldFor: held),
                after: chance(0.1) ? span(500, 4_000) : span(1, 20))
        case .storeIncoming(let key):
            add(
                .write(own, counter: nil, key: key, message: messageOf[key] ?? 0, heldFor: nil),
                after: chance(0.15) ? span(500, 4_000) : span(1, 20))
        case .finished(let message, let outcome):
            answered[message, default: 0] += 1
            if case .durable = outcome { accepted.insert(message) }
        case .look(let ref, let key):
            if nodes[index].disk.contains(where: { $0.ref == ref && $0.final }) { post(.final(key), index) }
        case .release(let ref): settle(ref, index, delivered: true)
        case .withdraw(let ref): settle(ref, index, delivered: false)
        case .count(let count): counted[count, default: 0] += 1
        }
    }

    mutating func settle(_ ref: StoredMessageRef, _ index: Int, delivered: Bool) {
        guard let at = nodes[index].disk.firstIndex(where: { $0.ref == ref }), !nodes[index].disk[at].final else {
            violations.append("decided twice about a held copy")
            return
        }
        nodes[index].disk[at].final = true
        let message = nodes[index].disk[at].message
        if !delivered, deliveries[message, default: 0] == 0 {
            let others = nodes.flatMap(\.disk).filter { $0.message == message && $0.heldFor == nil }
            if !others.isEmpty, others.allSatisfy(\.isAlone) {
                violations.append("message \(message) withdrawn for a copy on one disk")
            }
        }
        if delivered { deliveries[nodes[index].disk[at].message, default: 0] += 1 }
    }

    mutating func send(_ message: PeerMessage, from: NodeRun, to: NodeID) {
        if !quiet, chance(0.08) { return }
        let slow = !quiet && chance(0.15)
        add(.frame(from: from, message, to: to), after: slow ? span(500, chance(0.3) ? 9_000 : 3_000) : span(0, 5))
    }

    mutating func arrive(_ message: PeerMessage, from: NodeRun, at node: NodeID) {
        guard let index = nodes.firstIndex(where: { $0.run.node == node && $0.isUp }) else { return }
        switch message {
        case .submit(let submit):
            post(.arrived(submit.key, receiver: NodeRun(node: node, incarnation: submit.receiver), from: from), index)
        case .submitted(let answer): post(.submitted(answer, from: from), index)
        case .ask(let question): post(.asked(question, from: from), index)
        default: break
        }
    }

    mutating func write(
        _ run: NodeRun, _ counter: UInt64?, _ key: MessageKey?, _ message: UInt64, _ heldFor: NodeRun?
    ) {
        // Of a node that died meanwhile: the octets may have reached the disk.
        guard let index = index(of: run) else {
            if let down, nodes[down].run == run, chance(0.5) { append(down, message, key, heldFor) }
            return
        }
        let fails = !quiet && chance(0.12)
        var outcome = SubmissionOutcome.refused(chance(0.5) ? .diskFull : .storageFailed)
        var stored: Copy?
        if !fails {
            stored = append(index, message, key, heldFor)
            outcome = .durable(.elsewhere)
        } else if case .refused(.storageFailed) = outcome, chance(0.5) {
            // A ghost: found only when somebody scans the disk.
            append(index, message, key, heldFor)
        }
        if let counter {
            post(.stored(counter: counter, outcome), index)
        } else if let key {
            post(.incomingStored(key, outcome), index)
        }
        guard let stored else { return }
        if let heldFor, let key {
            post(.held(stored.ref, key, receiver: heldFor), index)
        } else {
            settle(stored.ref, index, delivered: true)
        }
    }

    @discardableResult
    mutating func append(
        _ index: Int, _ message: UInt64, _ key: MessageKey?, _ heldFor: NodeRun?, in segment: UInt32? = nil
    ) -> Copy {
        refs += 1
        let copy = Copy(
            message: message, key: key, heldFor: heldFor,
            ref: StoredMessageRef(segment: segment ?? UInt32(index), record: refs), final: false)
        nodes[index].disk.append(copy)
        return copy
    }

    // MARK: Crash and takeover

    mutating func crash(_ index: Int) {
        guard down == nil else { return }
        down = index
        nodes[index].isUp = false
        let run = nodes[index].run
        add(.notice(run), after: span(200, 1_500))
        let taker = (index + 1 + below(3)) % 4
        add(
            .adopt(run, by: chance(0.3) ? index : taker), after: chance(0.3) ? span(45_000, 70_000) : span(2_000, 5_000)
        )
    }

    mutating func adopt(_ old: NodeRun, _ by: Int) {
        guard let down else { return }
        if by == down { start(down) }
        let found = nodes[down].disk
        nodes[down].disk = []
        let own = nodes[by].run
        adoptions += 1
        let segment = adoptions
        for copy in found {
            let mine = append(by, copy.message, copy.key, copy.heldFor, in: segment)
            nodes[by].disk[nodes[by].disk.count - 1].final = copy.final
            nodes[by].disk[nodes[by].disk.count - 1].isAlone = true
            if copy.heldFor == nil, let key = copy.key {
                post(.adopted([AdoptedKey(key: key, ref: mine.ref, isFinal: copy.final)]), by)
            }
            guard !copy.final else { continue }
            if let heldFor = copy.heldFor, let key = copy.key {
                post(.held(mine.ref, key, receiver: heldFor), by)
            } else {
                // Its receiver may be away for long.
                add(.deliver(own, mine.ref), after: chance(0.5) ? span(1, 500) : span(1_000, 30_000))
            }
        }
        add(.whole(own, segment: segment), after: chance(0.7) ? span(3_000, 8_000) : span(8_000, 30_000))
        for index in nodes.indices where nodes[index].isUp { post(.scanned(old, complete: true), index) }
        if by != down { add(.restart(down), after: span(500, 5_000)) } else { self.down = nil }
    }

    mutating func whole(_ run: NodeRun, _ segment: UInt32) {
        guard let index = index(of: run) else { return }
        for place in nodes[index].disk.indices where nodes[index].disk[place].ref.segment == segment {
            nodes[index].disk[place].isAlone = false
        }
        post(.whole(segment: segment), index)
    }

    mutating func start(_ index: Int) {
        let run = NodeRun(node: nodes[index].run.node, incarnation: Incarnation(value: random.next()))
        nodes[index].run = run
        nodes[index].state = SubmitState(own: run, guards: guards)
        nodes[index].isUp = true
        tellNodes()
    }

    mutating func restart(_ index: Int) {
        start(index)
        down = nil
    }

    mutating func tellNodes() {
        let live = nodes.filter(\.isUp).map(\.run)
        for index in nodes.indices where nodes[index].isUp { post(.nodes(live), index) }
    }

    // MARK: Judgement

    mutating func judge() {
        for message in accepted where deliveries[message, default: 0] == 0 {
            violations.append("message \(message) lost")
        }
        if answered.values.contains(where: { $0 > 1 }) { violations.append("two results for one part") }
        let doubled = deliveries.values.reduce(0) { $0 + max(0, $1 - 1) }
        let known = counted[.maybeDuplicate, default: 0]
        if doubled > known { violations.append("\(doubled) duplicates, \(known) counted") }
        for node in nodes where node.state.unfinished > 0 || node.state.openQuestions > 0 || !node.state.open.isEmpty {
            violations.append(
                "\(node.state.unfinished) parts, \(node.state.openQuestions) questions, \(node.state.open) left over")
        }
    }
}
