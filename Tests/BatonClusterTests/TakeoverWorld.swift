// Several TakeoverStates in one thread: a control plane, disks, a network with faults, and a checker of permissions and lengths.
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

/// A run is a seed. Segments hold only lengths; outcomes are octets of a log.
struct TakeoverWorld {
    struct Copy {
        var end: Int64 = 0
        /// Its disk takes and gives nothing any more.
        var hasFailed = false
        /// Something that is not valid stands behind the end.
        var tailInvalid = false
        var sealEpoch: UInt64 = 0
        /// By epoch: in memory, on disk.
        var logs: [UInt64: (memory: Int64, synced: Int64)] = [:]
    }

    struct Machine {
        var run: Drainer
        var disk: UInt64
        var state: TakeoverState
        var copies: [SegmentID: Copy] = [:]
        var permits: [SegmentID: Instant] = [:]
        var adopted: [SegmentID: UInt64] = [:]
        /// How far a segment was read when it was adopted.
        var read: [SegmentID: Int64] = [:]
        var lease: Instant
        var isUp = true
        var pausedUntil = Instant.epoch
        var nextIndex: UInt64 = 0
        var writing: SegmentID?
        /// What other members said of moves into a segment that is being taken over.
        var gathered: [SegmentID: [MovedCopies: Bool]] = [:]
    }

    enum Delivery {
        case event(NodeID, Drainer, TakeoverEvent)
        /// With what was known of the registry when it was sent.
        case request(NodeID, Drainer, ControlRequest, RegistryMark?)
        /// Files go on a thread of their own.
        case unlink(NodeID, Drainer, SegmentID)
    }

    var random: SplitMix64
    var now = Instant(secondsSinceEpoch: 1_000)
    var machines: [NodeID: Machine] = [:]
    var keys: [SegmentID: SegmentKey] = [:]
    var registered: [NodeID: (run: Drainer, disk: UInt64, until: Instant)] = [:]
    var forgotten: [EnsembleMember] = []
    var revision: UInt64 = 1
    var acked: [SegmentID: Int64] = [:]
    var queue: [(at: Instant, delivery: Delivery)] = []
    var cut: Set<[NodeID]> = []
    var planeDownUntil = Instant.epoch
    var dots = 0
    var takeovers = 0
    /// Replaced members that may be given a copy again.
    var returns = 0
    /// Segments that were called whole.
    var wholes = 0
    var faults: [String] = []
    var violations: [String] = []
    var moves = Moves()
    var history = History()
    /// Nodes die at moments that are rare.
    var aims = true
    let names: [NodeID]
    /// Of `names`, in their order.
    let nodeNames: [String]

    init(seed: UInt64, nodes: Int = 3) {
        random = SplitMix64(seed: seed)
        nodeNames = (1...nodes).map { "n\($0)" }.sorted { NodeID(name: $0) < NodeID(name: $1) }
        names = nodeNames.map { NodeID(name: $0) }
        for name in names { boot(name, disk: random.next() | 1) }
    }

    mutating func chance(_ percent: UInt64) -> Bool { random.next() % 100 < percent }

    mutating func pick<T>(_ items: [T]) -> T { items[Int(random.next() % UInt64(items.count))] }

    // MARK: Machines

    mutating func boot(_ node: NodeID, disk: UInt64, keeping copies: [SegmentID: Copy] = [:]) {
        let run = Drainer(node: node, incarnation: Incarnation(value: random.next()))
        var machine = Machine(
            run: run, disk: disk, state: TakeoverState(me: run, disk: disk, seed: random.next(), at: now),
            lease: now + .seconds(3))
        machine.copies = copies
        machines[node] = machine
        bootTrust(node)
        registered[node] = (run, disk, now + .seconds(3))
        give(node, .started(copies: copies.keys.sorted()))
        give(node, .registered)
    }

    mutating func kill(_ node: NodeID) {
        machines[node]?.isUp = false
        machines[node]?.permits = [:]
        guard let copies = machines[node]?.copies else { return }
        for (id, copy) in copies {
            for (epoch, log) in copy.logs {
                machines[node]?.copies[id]?.logs[epoch] = (min(log.memory, log.synced), log.synced)
            }
        }
    }

    mutating func give(_ node: NodeID, _ event: TakeoverEvent) {
        guard var machine = machines[node], machine.isUp else { return }
        var actions = ActionBuffer<TakeoverAction>()
        machine.state.receive(event, at: now, into: &actions)
        machines[node] = machine
        for action in actions.drain() { perform(action, by: node) }
    }

    mutating func post(_ delivery: Delivery, after: TimeSpan? = nil) {
        let wait = after ?? .milliseconds(Int64(random.next() % 20) + 1)
        queue.append((now + wait, delivery))
    }

    /// A frame: lost, late or doubled at times.
    mutating func send(_ event: TakeoverEvent, from: NodeID, to: NodeID) {
        guard from != to, let target = machines[to], !cut.contains([from, to]), !chance(1) else { return }
        post(.event(to, target.run, event))
        if chance(1) { post(.event(to, target.run, event), after: .milliseconds(Int64(random.next() % 3_000))) }
    }

    mutating func answer(_ event: TakeoverEvent, to node: NodeID) {
        guard let run = machines[node]?.run else { return }
        post(.event(node, run, event))
    }

    // MARK: Actions

    mutating func perform(_ action: TakeoverAction, by node: NodeID) {
        guard let machine = machines[node] else { return }
        let run = machine.run
        switch action {
        case .control(let request): post(.request(node, run, request, history.trusts[node]?.mark))
        case .askPromises(let items, let other):
            send(.promiseAsked(items, number: 1, sentAt: now.nanoseconds, from: run), from: node, to: other)
        case .promise(let items, _, let sentAt, let other):
            send(.promised(items, sentAt: Instant(nanoseconds: sentAt), from: run), from: node, to: other)
        case .seal(let id, let epoch): seal(id, epoch, at: node)
        case .askSeal(let id, let epoch, let other):
            send(.sealAsked(id, epoch: epoch, from: run), from: node, to: other)
        case .answerSeal(let id, let epoch, let seal, let other):
            let report: MemberReport
            var said = epoch
            switch seal {
            case .sealed(let found):
                report = .sealed(end: found.end, tailInvalid: found.tailInvalid, outcomeOctets: found.outcomeOctets)
            case .superseded(let higher):
                report = .superseded(epoch: higher)
                said = higher
            case .missing: report = .missing
            case .failed: report = .failed
            }
            send(.reported(id, epoch: said, report, from: run), from: node, to: other)
        case .fetchOutcomes(let id, let epoch, let member, _):
            let there = machines[member.node]?.isUp == true && !cut.contains([member.node, node])
            if there { gather(id, from: member.node, at: node) }
            answer(.outcomesFetched(id, epoch: epoch, member, complete: there), to: node)
        case .repair(let id, let epoch, let member, _, let upTo):
            let source = machines[member.node]?.copies[id]?.end ?? 0
            if source >= upTo {
                machines[node]?.copies[id, default: Copy()].end = upTo
                machines[node]?.copies[id]?.tailInvalid = false
            }
            answer(.repaired(id, epoch: epoch, complete: source >= upTo), to: node)
        case .mend(let id, let epoch, _, _, _): answer(.mended(id, epoch: epoch, .nowhere), to: node)
        case .adopt(let key): adopt(key, at: node)
        case .move(let key): move(key, by: node)
        case .settleMove(let id, let epoch, let target, let alive):
            settle(id, epoch, into: target, alive: alive, by: node)
        case .permit(let id, let until): machines[node]?.permits[id] = until
        case .sendOutcomes(let id, let epoch, let member, let from, let upTo):
            send(outcomes: id, epoch, from, upTo, of: node, to: member.node)
        case .settled, .tookOver: break
        case .sendLateOutcomes(let id, _, _, let pieces):
            answer(.lateOutcomesSent(id, pieces: pieces + 1, all: !chance(3)), to: node)
        case .whole(let id):
            if let wrong = wholeTooSoon(id, by: node) { violations.append(wrong) }
            wholes += 1
        case .copy(let key, let joiner):
            let length = key.sealedAt ?? 0
            // Only who knows that it is to have a copy takes one.
            let known = machines[joiner.node]?.state.registry.keys[key.id]
            let takes =
                known?.drainEpoch == key.drainEpoch
                && (known?.joining == joiner || known?.ensemble.contains(joiner) == true)
            if machines[joiner.node]?.isUp == true, takes, !cut.contains([node, joiner.node]) {
                if machine.copies[key.id]?.end ?? 0 < length { violations.append("a short copy of \(key.id) is given") }
                machines[joiner.node]?.copies[key.id, default: Copy()].end = length
                give(joiner.node, .copyCreated(key.id))
            }
            answer(.copied(key.id, epoch: key.drainEpoch, joiner, complete: true), to: node)
        case .askFinished(let id, _, let other): send(.finishedAsked(id, from: run), from: node, to: other)
        case .answerUnlinked(let id, let revision, let other):
            send(.unlinkedElsewhere(id, disk: machine.disk, revision: revision, from: run), from: node, to: other)
        case .unlink(let id): post(.unlink(node, run, id))
        case .stopWriting(let id): if machine.writing == id { machines[node]?.writing = nil }
        case .dropIfEmpty(let id): if machine.copies[id]?.end == 0 { machines[node]?.copies[id] = nil }
        case .restart:
            let (disk, copies) = (machine.disk, machine.copies)
            history.marks[node] = history.trusts[node]?.mark
            kill(node)
            boot(node, disk: disk, keeping: machines[node]?.copies ?? copies)
        }
    }

    private mutating func seal(_ id: SegmentID, _ epoch: UInt64, at node: NodeID) {
        guard let copy = machines[node]?.copies[id] else {
            return answer(.copySealed(id, epoch: epoch, .missing), to: node)
        }
        guard !copy.hasFailed else { return answer(.copySealed(id, epoch: epoch, .failed), to: node) }
        guard copy.sealEpoch <= epoch else {
            return answer(.copySealed(id, epoch: epoch, .superseded(epoch: copy.sealEpoch)), to: node)
        }
        machines[node]?.copies[id]?.sealEpoch = epoch
        let report = BatonSpool.CopyReport(end: copy.end, tailInvalid: copy.tailInvalid, outcomeOctets: 0)
        answer(.copySealed(id, epoch: epoch, .sealed(report)), to: node)
    }

    private mutating func send(
        outcomes id: SegmentID, _ epoch: UInt64, _ from: Int64, _ upTo: Int64, of node: NodeID, to other: NodeID
    ) {
        guard let machine = machines[other], machine.isUp, !cut.contains([node, other]), !chance(1) else { return }
        guard let copy = machine.copies[id], copy.sealEpoch <= epoch else {
            if let higher = machine.copies[id]?.sealEpoch {
                send(.superseded(id, epoch: higher), from: other, to: node)
            }
            return
        }
        if copy.hasFailed {
            return send(.reported(id, epoch: epoch, .failed, from: machine.run), from: other, to: node)
        }
        var log = copy.logs[epoch] ?? (0, 0)
        if from <= log.memory { log.memory = max(log.memory, upTo) }
        if chance(50) { log.synced = log.memory }
        machines[other]?.copies[id]?.logs[epoch] = log
        send(
            .recorded(id, epoch: epoch, memory: log.memory, synced: log.synced, from: machine.run), from: other,
            to: node)
    }

    // MARK: The control plane

    mutating func serve(_ node: NodeID, _ run: Drainer, _ request: ControlRequest, _ floor: RegistryMark?) {
        guard machines[node]?.run == run else { return }
        let isListing = request == .list
        guard isListing || history.trusts[node]?.isTrusted == true else {
            return answer(.control(request, .unknown), to: node)
        }
        let lost = now < planeDownUntil || cut.contains([node])
        if lost, !chance(30) { return answer(.control(request, .unknown), to: node) }
        let result = apply(request)
        guard believes(node, isListing: isListing, since: floor) else {
            return answer(.control(request, .unknown), to: node)
        }
        answer(.control(request, lost || chance(2) ? .unknown : result), to: node)
    }

    mutating func apply(_ request: ControlRequest) -> ControlAnswer {
        switch request {
        case .list:
            let nodes = registered.map { NodeRecord(node: $0, incarnation: $1.run.incarnation, disk: $1.disk) }
            return .listed(
                Listing(
                    revision: revision, keys: keys.values.sorted { $0.id < $1.id },
                    nodes: nodes.sorted { $0.node < $1.node }, forgotten: forgotten))
        case .read(let id): return .key(keys[id])
        case .store(let key, let condition):
            let current = keys[key.id]
            guard (current?.revision ?? 0) == key.revision else { return .refused(current, condition: false) }
            if case .gone(let drainer) = condition, registered[drainer.node]?.run == drainer {
                return .refused(current, condition: true)
            }
            if key.state == .finished, current?.state != .finished, let read = machines[key.drainer.node]?.read[key.id],
                machines[key.drainer.node]?.adopted[key.id] == key.drainEpoch, read < acked[key.id] ?? 0,
                !history.finished.contains(key.id)
            {
                violations.append("\(key.id) finished, read up to \(read), acknowledged \(acked[key.id] ?? 0)")
            }
            if key.state == .finished, current?.state != .finished, history.finished.contains(key.id) {
                history.readAgain[key.id] = machines[key.drainer.node]?.read[key.id]
            }
            if key.state == .finished { history.finished.insert(key.id) }
            revision += 1
            var stored = key
            stored.revision = revision
            keys[key.id] = stored
            if stored.former.count < current?.former.count ?? 0 { returns += 1 }
            noteCommit(of: stored, over: current)
            return .committed(stored)
        case .remove(let key):
            guard keys[key.id]?.revision == key.revision else { return .refused(keys[key.id], condition: false) }
            keys[key.id] = nil
            return .committed(nil)
        case .register, .keepAlive: return .unknown
        }
    }

    // MARK: Time

    mutating func step() {
        now = now + .milliseconds(10)
        var due: [Delivery] = []
        queue.removeAll { item in
            if item.at <= now { due.append(item.delivery) }
            return item.at <= now
        }
        for delivery in due {
            switch delivery {
            case .event(let node, let run, let event):
                guard let machine = machines[node], machine.run == run else { continue }
                // A stopped process hears it later.
                if now < machine.pausedUntil {
                    queue.append((machine.pausedUntil, delivery))
                } else {
                    give(node, event)
                }
            case .request(let node, let run, let request, let floor): serve(node, run, request, floor)
            case .unlink(let node, let run, let id): unlink(id, of: node, run)
            }
        }
        for node in names { run(node) }
        aimed()
        for (node, entry) in registered where entry.until < now { registered[node] = nil }
        check()
    }

    private mutating func run(_ node: NodeID) {
        guard let machine = machines[node], machine.isUp, now >= machine.pausedUntil else { return }
        if !cut.contains([node]), now >= planeDownUntil {
            if registered[node]?.run == machine.run {
                registered[node]?.until = now + .seconds(3)
            } else {
                return give(node, .leaseLost)
            }
        }
        if now.nanoseconds / 10_000_000 % 10 == Int64(node.value % 10) { give(node, .tick) }
        write(node)
        deliver(node)
        offer(node)
    }

    /// A writer: a segment registered with the next node as backup, acknowledged while both may take it, sealed after a while.
    private mutating func write(_ node: NodeID) {
        guard let machine = machines[node] else { return }
        if let id = machine.writing, let key = keys[id], key.drainer == machine.run, key.state == .open {
            guard let backup = key.ensemble.first(where: { $0.node != node }), let other = machines[backup.node],
                other.isUp, other.disk == backup.diskID, now >= other.pausedUntil, other.copies[id]?.sealEpoch == 0,
                machine.copies[id]?.sealEpoch == 0, !cut.contains([node, backup.node])
            else { return sealOwn(id, node) }
            let end = (machine.copies[id]?.end ?? 0) + 1
            machines[node]?.copies[id]?.end = end
            machines[backup.node]?.copies[id]?.end = end
            if !cut.contains([backup.node, node]) { acked[id] = end }
            if end >= 30 { sealOwn(id, node) }
        } else if !cut.contains([node]), now >= planeDownUntil, registered[node]?.run == machine.run, chance(5),
            believes(node), machines[node]?.run == machine.run
        {
            let others = names.filter { other in
                other != node && machines[other]?.isUp == true && !cut.contains([node, other])
                    && now >= machines[other]?.pausedUntil ?? .epoch
            }
            guard !others.isEmpty else { return }
            let backup = pick(others)
            guard let disk = machines[backup]?.disk else { return }
            let id = SegmentID(writer: node, incarnation: machine.run.incarnation, index: machine.nextIndex)
            machines[node]?.nextIndex += 1
            let ensemble = [
                EnsembleMember(node: node, diskID: machine.disk), EnsembleMember(node: backup, diskID: disk),
            ]
            machines[node]?.copies[id] = Copy()
            machines[backup]?.copies[id] = Copy()
            give(backup, .copyCreated(id))
            revision += 1
            var key = SegmentKey(id: id, ensemble: ensemble, drainer: machine.run)
            key.revision = revision
            keys[id] = key
            machines[node]?.writing = id
            give(node, .keyStored(key))
        } else if machine.writing.map({ keys[$0]?.state != .open }) ?? false {
            machines[node]?.writing = nil
        }
    }

    mutating func sealOwn(_ id: SegmentID, _ node: NodeID) {
        guard var key = keys[id], !cut.contains([node]), now >= planeDownUntil, let run = machines[node]?.run,
            key.drainer == run, believes(node)
        else { return }
        revision += 1
        key.state = .sealed(at: acked[id] ?? 0)
        key.revision = revision
        keys[id] = key
        machines[node]?.copies[id]?.end = acked[id] ?? 0
        machines[node]?.writing = nil
        give(node, .keyStored(key))
    }

    /// Dots where there is permission; outcomes grow the log; a sealed segment is over after some of them.
    private mutating func deliver(_ node: NodeID) {
        guard let machine = machines[node] else { return }
        for (id, until) in machine.permits.sorted(by: { $0.key < $1.key }) where until > now {
            guard chance(20), let epoch = machine.state.drains[id]?.epoch else { continue }
            dots += 1
            var log = machines[node]?.copies[id]?.logs[epoch] ?? (0, 0)
            if log.memory < 200 { log.memory += 4 }
            if chance(30) { log.synced = log.memory }
            machines[node]?.copies[id, default: Copy()].logs[epoch] = log
            give(node, .outcomesAdvanced(id, epoch: epoch, end: log.memory, synced: log.synced))
            if log.memory >= 200, keys[id]?.sealedAt != nil, machine.state.cleaning?.target != id {
                machines[node]?.copies[id]?.logs[epoch]?.synced = log.memory
                give(node, .outcomesAdvanced(id, epoch: epoch, end: log.memory, synced: log.memory))
                give(node, .drained(id))
            }
        }
    }

    private mutating func unlink(_ id: SegmentID, of node: NodeID, _ run: Drainer) {
        guard let machine = machines[node], machine.run == run else { return }
        let member = EnsembleMember(node: node, diskID: machine.disk)
        // A stale member's copy is none that counts.
        if let key = keys[id], key.state != .finished, key.ensemble.contains(member), !key.stale.contains(member),
            !history.isSetBack, !history.finished.contains(id)
        {
            violations.append("\(now.nanoseconds): the copy of \(id) that \(node) is to keep goes")
        }
        machines[node]?.copies[id] = nil
        machines[node]?.adopted[id] = nil
        answer(.unlinked(id, gone: true), to: node)
    }

    // MARK: The checker

    /// P2: the drainer's copy failed or is short, and every other is stale: only `forget` unlocks it.
    func waitsForAnOperator(_ key: SegmentKey) -> Bool {
        // What was moved into such a segment is not settled.
        if let target = key.target.flatMap({ keys[$0] }), waitsForAnOperator(target) { return true }
        guard let copy = machines[key.drainer.node]?.copies[key.id] else { return false }
        return copy.hasFailed && key.ensemble.allSatisfy { $0.node == key.drainer.node || key.stale.contains($0) }
    }

    /// Said only when every member of the ensemble has the segment, or nothing is left of it.
    func wholeTooSoon(_ id: SegmentID, by node: NodeID) -> String? {
        guard let key = machines[node]?.state.registry.keys[id], key.state != .finished else { return nil }
        guard let length = key.sealedAt else { return "\(id) is called whole before it is sealed" }
        for other in key.ensemble where other.node != node && machines[other.node]?.disk == other.diskID {
            let copy = machines[other.node]?.copies[id] ?? Copy()
            // It has sealed for this drainer, and said what it had. It may have died or rotted since.
            if copy.sealEpoch < key.drainEpoch || copy.end < length && !copy.tailInvalid {
                return "\(id) is called whole, \(other.node) has \(copy.end) of \(length), seal \(copy.sealEpoch)"
            }
        }
        return nil
    }

    /// Invariant 3: permission in two epochs of a segment at the same instant, a paused machine's included.
    private mutating func check() {
        var holders: [SegmentID: (NodeID, UInt64)] = [:]
        for node in names {
            guard let machine = machines[node], machine.isUp else { continue }
            for (id, until) in machine.permits where until > now {
                guard let epoch = machine.state.drains[id]?.epoch ?? machine.adopted[id] else { continue }
                if let (other, held) = holders[id], other != node, held != epoch {
                    violations.append("\(now.nanoseconds): \(id) may be sent by two nodes in epochs \(held), \(epoch)")
                }
                holders[id] = (node, epoch)
            }
        }
    }
}
