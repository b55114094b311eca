// Cleanings in the simulation of takeovers: copies on disks, decisions in logs, and a checker that knows what the key committed.
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

/// All copies of one cleaning.
struct MovedCopies: Hashable {
    let source: SegmentID
    let epoch: UInt64
    let target: SegmentID
}

extension TakeoverWorld {
    struct Moves {
        /// Where they stand in their target.
        var places: [MovedCopies: Int64] = [:]
        /// Every member of the target has them.
        var landed: Set<MovedCopies> = []
        /// By the source's key: the only truth.
        var committed: Set<MovedCopies> = []
        var void: Set<MovedCopies> = []
        /// Decisions in the log of a segment's drain epoch, behind its offset.
        var decisions: [SegmentID: [(epoch: UInt64, end: Int64, copies: MovedCopies, alive: Bool)]] = [:]
        var begun = 0
        /// By takers of the target, from the source's key.
        var decidedLive = 0
        var decidedVoid = 0
        var madeVoid = 0

        var counts: String {
            "begun \(begun), committed \(committed.count), void \(void.count), takers decided live \(decidedLive), "
                + "void \(decidedVoid), made void \(madeVoid)"
        }

        mutating func add(_ other: Moves) {
            committed.formUnion(other.committed)
            void.formUnion(other.void)
            begun += other.begun
            decidedLive += other.decidedLive
            decidedVoid += other.decidedVoid
            madeVoid += other.madeVoid
        }
    }

    // MARK: The cleaner

    mutating func offer(_ node: NodeID) {
        guard let machine = machines[node], let target = machine.writing, machine.nextIndex < 1 << 40,
            chance(history.aims ? 8 : 2)
        else {
            return
        }
        let mine = machine.state.drains.keys.filter { $0 != target }
        guard !mine.isEmpty else { return }
        let first = Int(random.next() % UInt64(mine.count))
        give(node, .cleanable(Array(mine[first...] + mine[..<first]), into: target))
    }

    /// The copies are one chunk of the open segment. Sometimes a backup, or its answer, is not to be had.
    mutating func move(_ key: SegmentKey, by node: NodeID) {
        moves.begun += 1
        aimAtCleaning(key, isCommitted: false)
        guard let machine = machines[node], let target = key.target, machine.writing == target,
            let there = keys[target], there.state == .open, there.drainer == machine.run,
            let backup = there.ensemble.first(where: { $0.node != node }), machine.copies[target]?.sealEpoch == 0,
            let end = machine.copies[target]?.end
        else { return answer(.moved(key.id, epoch: key.drainEpoch, landed: false), to: node) }
        let copies = MovedCopies(source: key.id, epoch: key.drainEpoch, target: target)
        moves.places[copies] = end + 1
        machines[node]?.copies[target]?.end = end + 1
        let other = machines[backup.node]
        let takes =
            other?.isUp == true && other?.disk == backup.diskID && !cut.contains([node, backup.node])
            && other?.copies[target]?.sealEpoch == 0 && other?.copies[target]?.end == end && !chance(10)
        if takes { machines[backup.node]?.copies[target]?.end = end + 1 }
        let isAcknowledged = takes && !cut.contains([backup.node, node]) && !chance(10)
        if isAcknowledged {
            acked[target] = end + 1
            moves.landed.insert(copies)
        } else {
            // A backup is lost: the segment is left.
            sealOwn(target, node)
        }
        if aims, chance(5) {
            faults.append("cleaner dies with its copies under way")
            kill(node)
        }
        let late = TimeSpan.milliseconds(Int64(random.next() % (chance(5) ? 15_000 : 1_500)))
        post(
            .event(node, machine.run, .moved(key.id, epoch: key.drainEpoch, landed: isAcknowledged)), after: late)
    }

    mutating func settle(_ id: SegmentID, _ epoch: UInt64, into target: SegmentID, alive: Bool, by node: NodeID) {
        let copies = MovedCopies(source: id, epoch: epoch, target: target)
        check(copies, alive: alive, "its cleaner")
        guard let run = machines[node]?.state.drains[target]?.epoch, machines[node]?.copies[target] != nil else {
            // Another node drains it by now, or it is finished.
            return answer(.moveSettled(id, epoch: epoch, end: 0), to: node)
        }
        guard !chance(history.aims ? 50 : 10) else {
            return answer(.moveSettled(id, epoch: epoch, end: nil), to: node)
        }
        var log = machines[node]?.copies[target]?.logs[run] ?? (0, 0)
        log.memory += 4
        if chance(30) { log.synced = log.memory }
        machines[node]?.copies[target]?.logs[run] = log
        moves.decisions[target, default: []].append((run, log.memory, copies, alive))
        answer(.outcomesAdvanced(target, epoch: run, end: log.memory, synced: log.synced), to: node)
        answer(.moveSettled(id, epoch: epoch, end: log.memory), to: node)
    }

    // MARK: Takers

    private func known(_ id: SegmentID, at node: NodeID) -> [MovedCopies: Bool] {
        var found: [MovedCopies: Bool] = [:]
        guard let logs = machines[node]?.copies[id]?.logs else { return found }
        for entry in moves.decisions[id] ?? [] where logs[entry.epoch]?.memory ?? 0 >= entry.end {
            found[entry.copies] = entry.alive
        }
        return found
    }

    mutating func gather(_ id: SegmentID, from member: NodeID, at node: NodeID) {
        let said = known(id, at: member)
        machines[node]?.gathered[id, default: [:]].merge(said) { $0 || $1 }
    }

    mutating func adopt(_ key: SegmentKey, at node: NodeID) {
        let id = key.id
        let read = machines[node]?.copies[id]?.end ?? 0
        guard let decisions = decide(key, upTo: min(read, key.sealedAt ?? read), at: node) else {
            return answer(.adopted(id, epoch: key.drainEpoch, success: false), to: node)
        }
        let end = 8 + 4 * Int64(decisions.count)
        machines[node]?.adopted[id] = key.drainEpoch
        machines[node]?.read[id] = read
        machines[node]?.copies[id, default: Copy()].logs[key.drainEpoch] = (end, end)
        for (copies, alive) in decisions {
            moves.decisions[id, default: []].append((key.drainEpoch, end, copies, alive))
        }
        takeovers += 1
        if let end = key.sealedAt, end < acked[id] ?? 0, !history.finished.contains(id) {
            violations.append("\(id) sealed at \(end), acknowledged \(acked[id] ?? 0)")
        }
        answer(.adopted(id, epoch: key.drainEpoch, success: true), to: node)
        answer(.outcomesAdvanced(id, epoch: key.drainEpoch, end: end, synced: end), to: node)
    }

    /// As the spool does: by the logs, else by the sources' keys, and an open move is made void. Nil where a key cannot be read.
    private mutating func decide(_ key: SegmentKey, upTo end: Int64, at node: NodeID) -> [MovedCopies: Bool]? {
        var known = machines[node]?.gathered[key.id] ?? [:]
        known.merge(self.known(key.id, at: node)) { $0 || $1 }
        let here = moves.places.filter { $0.key.target == key.id && $0.value <= end }.keys
        for copies in here.sorted(by: { ($0.source, $0.epoch) < ($1.source, $1.epoch) }) {
            if known[copies] == nil {
                guard now >= planeDownUntil, !cut.contains([node]), believes(node) else { return nil }
                switch MoveFate(of: keys[copies.source], epoch: copies.epoch, target: copies.target) {
                case .live:
                    known[copies] = true
                    moves.decidedLive += 1
                case .void:
                    known[copies] = false
                    moves.decidedVoid += 1
                case .gone where history.setBacks > 0:
                    known[copies] = true
                    history.decidedGone += 1
                case .gone:
                    violations.append("\(copies): the source is gone, and nobody says what became of the move")
                    return nil
                case .open:
                    guard var void = keys[copies.source] else { return nil }
                    void.targetVoid = true
                    guard case .committed = apply(.store(void, .none)) else { return nil }
                    known[copies] = false
                    moves.madeVoid += 1
                    // The answer may be lost: the next try reads it.
                    if chance(20) { return nil }
                }
            }
            check(copies, alive: known[copies] ?? true, "a taker of the target")
        }
        return known
    }

    // MARK: The checker

    /// After a set-back: a finished segment whose mail is sent again, all of it.
    private func livesAgain(_ id: SegmentID) -> Bool {
        guard history.setBacks > 0, let key = keys[id] else { return false }
        let whole = acked[id] ?? 0
        if key.state == .finished { return history.readAgain[id] ?? 0 >= whole }
        return key.ensemble.contains { member in
            guard let machine = machines[member.node], machine.disk == member.diskID else { return false }
            return machine.copies[id].map { $0.end >= whole && !$0.hasFailed } ?? false
        }
    }

    /// What the source's key committed, or made impossible.
    mutating func noteCommit(of key: SegmentKey, over former: SegmentKey?) {
        for copies in moves.places.keys where copies.source == key.id {
            if former?.state != .finished, MoveFate(of: key, epoch: copies.epoch, target: copies.target) == .live {
                moves.committed.insert(copies)
                aimAtCleaning(key, isCommitted: true)
                if !moves.landed.contains(copies) { violations.append("\(copies) committed, and not everywhere") }
                if aims, chance(15) {
                    faults.append("cleaner dies as its cleaning is committed")
                    kill(key.drainer.node)
                }
                if moves.void.contains(copies) { violations.append("\(copies) committed after it was void") }
            }
        }
    }

    private mutating func check(_ copies: MovedCopies, alive: Bool, _ who: String) {
        if alive, !moves.committed.contains(copies) {
            // A registry from before the commit makes the source live again: twice, rather than never.
            if history.setBacks == 0 { violations.append("\(copies): live twice, by \(who)") }
        } else if !alive, moves.committed.contains(copies) {
            if livesAgain(copies.source) {
                history.revived += 1
            } else {
                violations.append("\(copies): lost, by \(who)")
            }
        }
        if !alive { moves.void.insert(copies) }
    }
}
