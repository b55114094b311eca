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
            if guards.contains(.staleMayNotTakeOver), key.stale.contains(member), !isLastCopy(key) { continue }
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

    /// Every member that is not stale was declared lost: only so does a stale one take over, and what it delivers counts (P2).
    func isLastCopy(_ key: ClusterKey) -> Bool {
        key.ensemble.allSatisfy { $0 == member || key.stale.contains($0) || registry.forgotten.contains($0) }
            && key.ensemble.contains { registry.forgotten.contains($0) && !key.stale.contains($0) }
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
            copies[key.id] = Copy()
            copies[key.id]?.created = true
            disk(.create(key.id))
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
            let report = CopyReport(
                end: scan.end, tailInvalid: scan.tailInvalid, outcomes: copies[id]?.allOutcomes ?? [])
            send(.reported(id, epoch: asked.epoch, report), to: asked.to)
        }
        guard var drain = drains[id] else { return }
        drain.tailInvalid = scan.tailInvalid || (copyWasMissing(id) && guards.contains(.missingIsDamage))
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

    /// A file that was made anew because there was none stays suspect until its length is known from elsewhere.
    private func copyWasMissing(_ id: SegmentID) -> Bool {
        guard let drain = drains[id], let copy = copies[id] else { return false }
        if case .asking = drain.phase { return drain.tailInvalid && copy.chunks.isEmpty }
        return drain.tailInvalid && copy.chunks.isEmpty && registry.keys[id]?.sealedAt == nil
    }

    /// Queue = envelopes minus outcomes; what is there already stays as it is.
    private mutating func load(_ id: SegmentID, from scan: CopyScan) {
        guard var drain = drains[id], append.segments[id] == nil else { return }
        let limit = registry.keys[id]?.sealedAt ?? .max
        for record in scan.chunks.flatMap(\.records).dropFirst(drain.records.count) where drain.length < limit {
            drain.add(record, due: now)
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
        for other in key.ensemble where other != member && drain.peers[other]?.reported == nil {
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
            if let key = registry.keys[id], key.drainEpoch >= epoch, key.ensemble.contains(member) {
                send(.reported(id, epoch: epoch, CopyReport(end: 0, tailInvalid: true, outcomes: [])), to: sender.node)
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
        if key.stale.contains(member) {
            for index in drains[id]?.open ?? [] {
                if let mail = drains[id]?.records[Int(index)].mail.id { actions.append(.maybeDuplicate(mail)) }
            }
        }
        tickChanges(id)
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

    // MARK: Repair

    /// Fetches what the local copy lacks before the sealed length.
    mutating func tickRepair(_ id: SegmentID) {
        guard let drain = drains[id], let key = registry.keys[id], case .ready = drain.phase else { return }
        let own = copies[id]?.end ?? 0
        let lacks = key.sealedAt.map { own < $0 } ?? false
        if lacks || drain.repairFrom != nil {
            if let at = drain.fetchedAt, now - at < timing.promiseRenewal { return }
            drains[id]?.fetchedAt = now
            let from = min(own, drain.repairFrom ?? own)
            for other in key.ensemble + (key.joining.map { [$0] } ?? []) where other != member {
                send(.fetch(id, epoch: drain.epoch, from: from), to: other.node)
            }
            return
        }
        guard let length = key.sealedAt else { return }
        // And gives to members what they lack.
        for other in key.ensemble where other != member {
            guard let report = drain.peers[other]?.reported, report.end < length else { continue }
            if let at = drain.peers[other]?.reportAskedAt, now - at < timing.promiseRenewal { continue }
            drains[id]?.peers[other]?.reportAskedAt = now
            give(id, from: report.end, to: other)
        }
    }

    mutating func give(_ id: SegmentID, from: Int64, to other: EnsembleMember) {
        guard let drain = drains[id], let copy = copies[id] else { return }
        send(.chunks(id, epoch: drain.epoch, copy.chunks.filter { $0.end > from }), to: other.node)
    }

    mutating func fetch(_ id: SegmentID, _ epoch: UInt64, _ from: Int64, for sender: Drainer) {
        guard let copy = copies[id] else { return }
        let chunks = copy.chunks.filter { $0.end > from }
        if !chunks.isEmpty { send(.chunks(id, epoch: epoch, chunks), to: sender.node) }
    }

    /// Chunks that this copy lacks: as drainer, as a member with damage, or as the joining member (C1).
    mutating func repair(_ id: SegmentID, _ epoch: UInt64, _ chunks: [Chunk], from sender: Drainer) {
        if drains[id]?.epoch == epoch {
            drains[id]?.repairFrom = nil
            return disk(.repair(id, limited(chunks, registry.keys[id]?.sealedAt)))
        }
        guard let key = registry.keys[id], key.drainer.node == sender.node, key.drainEpoch == epoch, isMember(of: key),
            key.state != .finished
        else { return control(.read(id)) }
        if copies[id] == nil {
            // C1: only who is named as joining begins a copy; the rule's counter-example copies to anybody.
            copies[id] = Copy()
            copies[id]?.created = true
            disk(.create(id))
        }
        if epoch > copies[id]?.sealing ?? 0 { copies[id]?.sealing = epoch }
        let wanted = limited(chunks, key.sealedAt)
        if !wanted.isEmpty { disk(.repair(id, wanted)) }
        reporting[id] = (to: sender.node, epoch: epoch)
        disk(.seal(id, epoch: epoch))
    }

    private func limited(_ chunks: [Chunk], _ length: Int64?) -> [Chunk] {
        guard let length else { return chunks }
        return chunks.compactMap { chunk in
            guard chunk.start < length else { return nil }
            guard chunk.end > length else { return chunk }
            return Chunk(
                segment: chunk.segment, start: chunk.start,
                records: Array(chunk.records.prefix(Int(length - chunk.start))))
        }
    }
}
