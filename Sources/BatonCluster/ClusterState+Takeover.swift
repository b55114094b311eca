// Takeover: claim, seal, scan, ask the others, fix the sealed length, deliver (PROTOCOL "Takeover").
import BatonCore
import BatonModel
import BatonSpool

extension ClusterState {
    // MARK: 1. Claim

    /// After a listing: segments of drainers that are gone, where this node may take over.
    mutating func claimOrphans() {
        for id in registry.keys.keys {
            guard let key = registry.keys[id], key.drainer != me else { continue }
            // Step 1 compares that the old drainer is gone; it is compared again in the control plane.
            if guards.contains(.oldDrainerGone), registry.isAlive(key.drainer) {
                orphanedSince[id] = nil
                continue
            }
            if !guards.contains(.oldDrainerGone), incarnations[key.drainer.node]?.last == key.drainer.incarnation,
                registry.isAlive(key.drainer), copies[id]?.chunks.isEmpty ?? true
            {
                continue
            }
            let since = orphanedSince[id] ?? now
            orphanedSince[id] = since
            guard key.ensemble.contains(member) else { continue }
            // P2: a stale member may not take over.
            if guards.contains(.staleMayNotTakeOver), key.stale.contains(member), key.state != .finished,
                !isLastCopy(key)
            {
                continue
            }
            // T6: the old owner, started again, has outcomes that nobody else has.
            if guards.contains(.preferOwner), key.drainer.node != me.node, ownerIsBack(key),
                now - since < timing.ownerFirst
            {
                listSoon = true
                continue
            }
            claim(key)
        }
    }

    /// Every other member is stale or was declared lost, one at least lost: only so does a stale one take over, and what it
    /// delivers counts (P2). Whoever took over so may have put the lost one into `stale` since.
    func isLastCopy(_ key: ClusterKey) -> Bool {
        key.ensemble.allSatisfy { $0 == member || key.stale.contains($0) || registry.forgotten.contains($0) }
            && key.ensemble.contains { $0 != member && registry.forgotten.contains($0) }
    }

    private func ownerIsBack(_ key: ClusterKey) -> Bool {
        key.ensemble.contains { member in
            member.node == key.drainer.node && registry.isAlive(member) && !key.stale.contains(member)
        }
    }

    private mutating func claim(_ key: ClusterKey) {
        if !guards.contains(.claimBeforeSeal), !registry.isBusy(key.id), key.state == .open {
            copies[key.id]?.sealing = key.drainEpoch + 1
            disk(.seal(key.id, epoch: key.drainEpoch + 1))
        }
        let condition: ControlRequest.Condition = guards.contains(.oldDrainerGone) ? .gone(key.drainer) : .none
        let taker = me
        change(key.id, if: condition) { wanted in
            wanted.drainer = taker
            wanted.drainEpoch += 1
        }
    }

    // MARK: 2. Seal, 3. scan

    /// The key names this node as drainer.
    mutating func beginDrain(_ key: ClusterKey) {
        // A copy that was sealed at a higher epoch knows better than this view of the key.
        guard key.state != .finished, (copies[key.id]?.fence ?? 0) <= key.drainEpoch else { return }
        orphanedSince[key.id] = nil
        if append.segments[key.id] != nil {
            drains[key.id] = Drain(epoch: key.drainEpoch, phase: .ready, notBefore: .epoch)
            return
        }
        var drain = Drain(epoch: key.drainEpoch, phase: .sealing, notBefore: promises.earliestDot(key.id))
        if copies[key.id]?.created != true {
            // A4: a missing file is damage, never emptiness; the others have to say what was there.
            drain.tailInvalid = guards.contains(.missingIsDamage)
            drain.phase = .asking
            recreate(key.id)
        }
        drains[key.id] = drain
        copies[key.id]?.sealing = key.drainEpoch
        if guards.contains(.persistedSeal) {
            disk(.seal(key.id, epoch: key.drainEpoch))
        } else {
            disk(.sync(key.id, upTo: 0))
            disk(.scan(key.id))
        }
    }

    /// The seal is on disk, and everything in the file with it.
    mutating func sealed(_ id: SegmentID, _ epoch: UInt64) {
        guard var copy = copies[id] else { return }
        copy.sealEpoch = max(copy.sealEpoch, epoch)
        copies[id] = copy
        if drains[id]?.epoch == epoch || reporting[id]?.epoch == epoch { disk(.scan(id)) }
    }

    mutating func scanned(_ id: SegmentID, _ scan: CopyScan?) {
        guard let scan, copies[id] != nil else { return }
        copies[id]?.adopt(scan)
        // Scans follow a seal or a repair, both of which sync.
        copies[id]?.synced = scan.end
        if let asked = reporting[id] {
            reporting[id] = nil
            if let report = copies[id]?.report { send(.reported(id, epoch: asked.epoch, report), to: asked.to) }
        }
        guard var drain = drains[id] else { return }
        drain.tailInvalid = scan.tailInvalid || (copies[id]?.rebuilt ?? false)
        drains[id] = drain
        load(id, from: scan)
        switch drain.phase {
        case .sealing, .scanning:
            drains[id]?.phase = .asking
            askReports(id)
            tickTakeover(id)
        case .asking, .ready: saySettled(id)
        }
    }

    /// Queue = envelopes minus outcomes; what is there already stays as it is.
    private mutating func load(_ id: SegmentID, from scan: CopyScan) {
        guard var drain = drains[id], append.segments[id] == nil else { return }
        let limit = registry.keys[id]?.sealedAt ?? .max
        for record in scan.chunks.flatMap(\.records).dropFirst(drain.records.count) where drain.length < limit {
            drain.add(record, due: now)
            if drain.mayRepeat { actions.append(.maybeDuplicate(record)) }
        }
        drains[id] = drain
        if case .ready = drain.phase { applyOutcomes(id, copies[id]?.allOutcomes ?? [], late: false) }
    }

    /// The segment is sealed at `length`: nothing behind it counts.
    mutating func trim(_ id: SegmentID, to length: Int64) {
        guard var drain = drains[id], drain.length > length else { return }
        for record in drain.records.dropFirst(Int(length)) {
            drain.inFlight -= record.jobs.filter { $0 == .inFlight }.count
        }
        drain.records.removeLast(Int(drain.length - length))
        drain.open.removeAll { $0 >= length }
        drains[id] = drain
    }

    // MARK: 3. The other members

    /// Asks every other member to seal its copy and to say what is in it.
    private mutating func askReports(_ id: SegmentID) {
        // A report seals the copy: never of a segment that is written here.
        guard let key = registry.keys[id], let drain = drains[id], append.segments[id] == nil,
            drain.epoch > 1 || !key.stale.isEmpty
        else { return }
        for other in key.everybody where other != member && drain.peers[other]?.reported == nil {
            var peer = drain.peers[other] ?? PeerProgress()
            if let asked = peer.reportAskedAt, now - asked < timing.retransmit { continue }
            peer.reportAskedAt = now
            drains[id]?.peers[other] = peer
            send(.report(id, epoch: drain.epoch), to: other.node)
        }
    }

    mutating func report(_ id: SegmentID, _ epoch: UInt64, to sender: Drainer) {
        guard let copy = copies[id] else {
            // No file, or none any more: damage, not emptiness. Only a member whose key was read may say so.
            if let key = registry.keys[id], key.drainEpoch >= epoch, isMember(of: key) {
                send(.reported(id, epoch: epoch, .missing), to: sender.node)
            } else {
                control(.read(id))
            }
            return
        }
        guard epoch >= copy.fence else { return send(.sealed(id, epoch: copy.fence), to: sender.node) }
        overtaken(id, by: epoch)
        if append.segments[id] != nil { lose(id) }
        if let key = registry.keys[id], key.drainEpoch < epoch { control(.read(id)) }
        reporting[id] = (to: sender.node, epoch: epoch)
        if copy.sealEpoch >= epoch {
            disk(.scan(id))
        } else {
            copies[id]?.sealing = epoch
            disk(.seal(id, epoch: epoch))
        }
    }

    mutating func reported(_ id: SegmentID, _ epoch: UInt64, _ report: CopyReport, by sender: Drainer) {
        guard drains[id]?.epoch == epoch, let peer = memberOf(sender.node, id) else { return }
        var progress = drains[id]?.peers[peer] ?? PeerProgress()
        progress.reported = report
        if report.isMissing {
            // Even what it had synced is gone with its file.
            progress.memory = 0
            progress.synced = 0
            progress.probing = false
            // A backup without its file: what is to be repaired has to be sealed first (A1).
            if case .open? = append.segments[id]?.phase { replace(id) }
        }
        drains[id]?.peers[peer] = progress
        // Kept for records that are not here yet: a repair brings them, and they are final then.
        if guards.contains(.unionOfOutcomes) {
            for record in report.outcomes { copies[id]?.note(record) }
        }
        if case .ready? = drains[id]?.phase {
            applyOutcomes(id, report.outcomes, late: true)
        }
        tickTakeover(id)
        tickChanges(id)
    }

    mutating func tickTakeover() {
        for id in drains.keys {
            askReports(id)
            tickTakeover(id)
        }
    }

    /// Step 3 ends when all that can answer have answered; a member whose lease lives is waited for.
    private mutating func tickTakeover(_ id: SegmentID) {
        guard let drain = drains[id], case .asking = drain.phase, let key = registry.keys[id] else { return }
        let waits = key.ensemble.contains { other in
            other != member && drain.peers[other]?.reported == nil && !registry.forgotten.contains(other)
                && registry.isAlive(other)
        }
        if waits, guards.contains(.unionOfOutcomes) { return }
        if lacksOutcomes(id, drain, key) { return }
        drains[id]?.phase = .ready
        // The new epoch's log begins with everything that is final by now, so that a backup of it has it all.
        let union = copies[id]?.allOutcomes ?? []
        drains[id]?.log = union
        copies[id]?.logEpoch = drain.epoch
        copies[id]?.logCount = union.count
        copies[id]?.logSynced = 0
        if !union.isEmpty {
            copies[id]?.dirtySince = now
            disk(.outcomes(id, epoch: drain.epoch, from: 0, union))
        }
        for record in union { settle(id, record) }
        if key.stale.contains(member) || copies[id]?.rebuilt == true {
            drains[id]?.mayRepeat = true
            for index in drains[id]?.open ?? [] {
                if let mail = drains[id]?.records[Int(index)].mail { actions.append(.maybeDuplicate(mail)) }
            }
        }
        tickChanges(id)
    }

    /// The own file was lost: whoever has the outcomes is waited for, unless all of them were declared lost.
    private func lacksOutcomes(_ id: SegmentID, _ drain: Drain, _ key: ClusterKey) -> Bool {
        guard copies[id]?.rebuilt == true else { return false }
        let holders = key.ensemble.filter { key.isPartner($0, of: member) && !registry.forgotten.contains($0) }
        return !holders.isEmpty && !holders.contains { drain.peers[$0]?.reported?.rebuilt == false }
    }

    // MARK: 4. The sealed length

    /// n, or nil while it cannot be known (T1).
    func sealedLength(_ id: SegmentID) -> Int64? {
        guard let drain = drains[id], let key = registry.keys[id], case .ready = drain.phase else { return nil }
        let own = copies[id]?.end ?? 0
        guard drain.tailInvalid, guards.contains(.invalidTailNeverAlone) else { return own }
        // T1: the longest valid prefix over all members; one that is down is waited for, or declared lost.
        var longest = own
        for other in key.ensemble where other != member && !registry.forgotten.contains(other) {
            guard let report = drain.peers[other]?.reported else { return nil }
            longest = max(longest, report.end)
        }
        return longest
    }
}
