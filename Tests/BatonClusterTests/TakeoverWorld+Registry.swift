// Control planes restored from a backup, in the simulation of takeovers: who distrusts them, and the operator's recovery.
import BatonControlPlane
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

extension TakeoverWorld {
    /// The registry's history, and what nodes know of it.
    struct History {
        /// What a backup holds.
        struct State {
            var keys: [SegmentID: SegmentKey]
            var registered: [NodeID: (run: Drainer, disk: UInt64, until: Instant)]
            var revision: UInt64
            var recovery: UInt64
            var tallies: [NodeID: UInt64]
        }

        var recovery: UInt64 = 0
        var tallies: [NodeID: UInt64] = [:]
        var trusts: [NodeID: RegistryTrust] = [:]
        var counting: [NodeID: RegistryTally] = [:]
        /// `registry-seen` on each disk: behind what its node knows.
        var marks: [NodeID: RegistryMark] = [:]
        var backup: State?
        /// Backups are made as cleanings begin, and come back, with a death, as they are committed.
        var aims = false
        var aimed: (at: Instant, dies: NodeID)?
        /// Between a set-back and the end of its recovery.
        var isSetBack = false
        /// A node's `registry-seen` was damaged since.
        var hasDamage = false
        /// By any registry that was ever the true one.
        var finished: Set<SegmentID> = []
        /// Up to where a segment was read that was finished for the second time.
        var readAgain: [SegmentID: Int64] = [:]
        var setBacks = 0
        var distrusted = 0
        var told = 0
        var recoveries = 0
        var rewritten = 0
        var removed = 0
        /// Moves whose source is gone: they count.
        var decidedGone = 0
        /// Committed moves that are void, since their source is sent again.
        var revived = 0
    }

    private var header: ControlHeader { ControlHeader(store: 1, revision: Int64(revision)) }

    // MARK: The nodes

    mutating func bootTrust(_ node: NodeID) {
        // Its file is damaged at times; were all of them, nobody could notice.
        let isDamaged = history.isSetBack && !history.hasDamage && chance(10)
        if isDamaged { history.hasDamage = true }
        history.trusts[node] = RegistryTrust(isDamaged ? nil : history.marks[node])
        history.counting[node] = RegistryTally()
    }

    /// What the node makes of an answer; the run may end by it.
    mutating func believes(_ node: NodeID, isListing: Bool, since floor: RegistryMark?) -> Bool {
        guard var trust = history.trusts[node] else { return false }
        let tally = history.tallies[node] ?? 0
        let verdict =
            isListing
            ? trust.judge(listing: header, recovery: history.recovery, tally: tally, since: floor)
            : trust.judge(header, since: floor)
        history.trusts[node] = trust
        switch verdict {
        case .trusted:
            if isListing { count(node) }
            if chance(50) { history.marks[node] = history.trusts[node]?.mark }
            return true
        case .setBack:
            if chance(50) { history.marks[node] = history.trusts[node]?.mark }
            history.distrusted += 1
            return false
        case .changed:
            give(node, .registryChanged)
            return false
        }
    }

    /// Before a change that the spool makes by itself.
    mutating func believes(_ node: NodeID) -> Bool {
        guard let trust = history.trusts[node], trust.isTrusted else { return false }
        return believes(node, isListing: false, since: trust.mark)
    }

    private mutating func count(_ node: NodeID) {
        let all = keys.values.sorted { $0.id < $1.id }
        let extent = RegistryTally.Extent(keys: all.count, newest: all.map(\.revision).max() ?? 0)
        guard history.counting[node]?.isDue(extent, at: now) == true else { return }
        let next = max(history.trusts[node]?.mark?.tally ?? 0, history.tallies[node] ?? 0) + 1
        history.tallies[node] = next
        revision += 1
        history.trusts[node]?.tallied(next)
        history.counting[node]?.ended(true)
    }

    // MARK: The control plane

    mutating func backUp() {
        history.backup = History.State(
            keys: keys, registered: registered, revision: revision, recovery: history.recovery,
            tallies: history.tallies)
    }

    /// Every node can tell the backup from the present: that one cannot is stated, and not caught.
    var isTold: Bool {
        guard let backup = history.backup else { return false }
        return names.allSatisfy { history.tallies[$0] ?? 0 > backup.tallies[$0] ?? 0 }
    }

    /// What a cleaning is in the middle of may be in the backup or behind it.
    mutating func aimAtCleaning(_ key: SegmentKey, isCommitted: Bool) {
        guard history.aims, !history.isSetBack, chance(40) else { return }
        if !isCommitted {
            backUp()
        } else if history.aimed == nil {
            history.aimed = (now + .milliseconds(Int64(random.next() % 1_500)), key.drainer.node)
        }
    }

    mutating func aimed() {
        guard let aim = history.aimed, now >= aim.at else { return }
        history.aimed = nil
        let believed = names.allSatisfy { machines[$0]?.isUp == true && history.trusts[$0]?.isTrusted == true }
        guard history.aims, !history.isSetBack, believed else { return }
        // The tallies are just written: the others are told from the backup by it, however young that is.
        for node in names {
            let next = max(history.trusts[node]?.mark?.tally ?? 0, history.tallies[node] ?? 0) + 1
            history.tallies[node] = next
            revision += 1
            history.trusts[node]?.tallied(next)
            history.marks[node] = history.trusts[node]?.mark
        }
        faults.append("dies in a cleaning")
        kill(aim.dies)
        setBack(raised: chance(30))
    }

    mutating func setBack(raised: Bool) {
        guard let backup = history.backup, !history.isSetBack, isTold else { return }
        faults.append(raised ? "set back, raised" : "set back")
        history.setBacks += 1
        history.isSetBack = true
        history.hasDamage = false
        // What was under way to the former store does not reach this one.
        for item in queue {
            guard case .request(let node, let run, let request, _) = item.delivery else { continue }
            post(.event(node, run, .control(request, .unknown)))
        }
        queue.removeAll { if case .request = $0.delivery { true } else { false } }
        keys = backup.keys
        // Leases begin anew; who did not have one then loses it now.
        registered = backup.registered.mapValues { ($0.run, $0.disk, now + .seconds(3)) }
        revision = raised ? revision + 100 : backup.revision
        history.recovery = backup.recovery
        history.tallies = backup.tallies
    }

    // MARK: The operator

    /// One try of `recover-registry`; true when it has ended with 0.
    mutating func recover() -> Bool {
        let up = names.allSatisfy { node in
            machines[node]?.isUp == true && now >= machines[node]?.pausedUntil ?? .epoch
                && registered[node]?.run == machines[node]?.run
        }
        guard up, cut.isEmpty, now >= planeDownUntil else { return false }
        let trusts = history.trusts
        guard names.contains(where: { trusts[$0]?.setBack != nil }) else {
            guard names.allSatisfy({ trusts[$0]?.isTrusted == true }) else { return false }
            history.isSetBack = false
            return true
        }
        let number = names.map { trusts[$0]?.mark?.recovery ?? 0 }.max() ?? 0
        let known = max(number, history.recovery)
        let unaware = names.filter { trusts[$0]?.setBack == nil && machines[$0]?.copies.isEmpty == false }
        for node in unaware {
            history.told += 1
            if history.trusts[node]?.refuse(recovery: known) != .trusted { give(node, .registryChanged) }
        }
        guard unaware.isEmpty else { return false }
        rebuild()
        history.recovery = known + 1
        revision += 1
        history.recoveries += 1
        history.isSetBack = false
        return true
    }

    private mutating func rebuild() {
        var merge = RegistryMerge()
        for (number, node) in names.enumerated() {
            guard let machine = machines[node] else { continue }
            let claims = machine.copies.map { id, copy in
                let epoch = max(1, copy.sealEpoch, copy.logs.keys.max() ?? 1)
                return CopyClaim(
                    CopyOnDisk(id: id, epoch: epoch, sealed: copy.sealEpoch, end: copy.end), disk: machine.disk)
            }
            merge.add(claims, of: nodeNames[number])
        }
        let live = Set(registered.values.map(\.run))
        let there = keys.values.sorted { $0.id < $1.id }
        for step in RegistryRebuild.steps(merge, over: there, live: live, isSetBack: true) {
            guard keys[step.id]?.revision ?? 0 == step.replaces else { continue }
            revision += 1
            switch step {
            case .write(let key, _):
                history.rewritten += 1
                keys[key.id] = key
                keys[key.id]?.revision = revision
            case .remove(let id, _):
                history.removed += 1
                keys[id] = nil
                if acked[id] ?? 0 > 0, !history.finished.contains(id) {
                    violations.append("\(id) is removed, and its mail is not finished")
                }
            }
        }
    }
}
