// Takeover: claim, seal, ask the others, fix the sealed length, adopt (PROTOCOL "Takeover", T1-T6).
import BatonCore
import BatonModel
import BatonSpool

extension TakeoverState {
    // MARK: 1. Claim

    /// After a listing: segments of drainers that are gone, where this node may take over.
    mutating func claimOrphans() {
        guard !leaving else { return }
        for id in registry.keys.keys {
            guard let key = registry.keys[id], key.drainer != me else { continue }
            guard !registry.isAlive(key.drainer) else {
                orphanedSince[id] = nil
                continue
            }
            let since = orphanedSince[id] ?? now
            orphanedSince[id] = since
            guard key.ensemble.contains(member) else { continue }
            // P2: a stale member may not take over.
            // One that is finished has nothing left to send.
            if key.stale.contains(member), !isLastCopy(key), key.state != .finished { continue }
            // T6: the old owner, started again, has outcomes that nobody else has.
            if key.drainer.node != me.node, ownerIsBack(key), now - since < timing.ownerFirst {
                listWanted = true
                continue
            }
            let taker = me
            // Compared in the control plane, too: the old drainer's node key is absent or of another incarnation.
            change(id, if: .gone(key.drainer)) { wanted in
                wanted.drainer = taker
                wanted.drainEpoch &+= 1
            }
        }
    }

    /// Every other member is stale or was declared lost, one at least lost: only so does a stale one take over (P2). Whoever took
    /// over so may have put the lost one into `stale` since.
    private func isLastCopy(_ key: SegmentKey) -> Bool {
        key.ensemble.allSatisfy { $0 == member || key.stale.contains($0) || registry.isDeclaredLost($0) }
            && key.ensemble.contains { $0 != member && registry.isDeclaredLost($0) }
    }

    private func ownerIsBack(_ key: SegmentKey) -> Bool {
        key.ensemble.contains { other in
            other.node == key.drainer.node && registry.isAlive(other) && !key.stale.contains(other)
        }
    }

    // MARK: 2. Seal

    /// The key names this node as drainer.
    mutating func beginDrain(_ key: SegmentKey, former: Drainer?) {
        guard key.state != .finished, (fences[key.id] ?? 0) <= key.drainEpoch else { return }
        orphanedSince[key.id] = nil
        if key.id.writer == me.node, key.id.incarnation == me.incarnation, key.drainEpoch == 1 {
            // Own mail: nobody else has ever drained it.
            drains[key.id] = DrainedSegment(
                epoch: key.drainEpoch, isWritten: true, former: nil, phase: .ready, notBefore: .epoch)
            return
        }
        drains[key.id] = DrainedSegment(
            epoch: key.drainEpoch, isWritten: false, former: former, phase: .sealing,
            notBefore: promises.earliestDot(key.id))
        fences[key.id] = key.drainEpoch
        actions.append(.seal(key.id, epoch: key.drainEpoch))
    }

    mutating func sealed(_ id: SegmentID, _ epoch: UInt64, _ seal: CopySeal) {
        answerRequests(id, epoch, seal)
        guard let drain = drains[id], drain.epoch == epoch, drain.phase == .sealing || drain.phase == .repairing else {
            return
        }
        switch seal {
        case .sealed(let report):
            drains[id]?.own = report
            // What was fetched made it no longer: the member that gave it is asked anew what it has, after a pause.
            if drain.phase == .repairing, let former = drain.own, report.end <= former.end {
                return putOff(id, drain)
            }
        // A4: a missing file is damage, never emptiness; the others have to say what was there.
        case .missing:
            drains[id]?.own = BatonSpool.CopyReport(end: 0, tailInvalid: true, outcomeOctets: 0)
            drains[id]?.fileWasLost = true
        // Nothing is read before the seal is on the disk.
        case .failed:
            drains[id]?.phase = .sealing
            drains[id]?.retryAt = now + timing.recopyRetry
            drains[id]?.failing = .init(drain.failing, at: now)
            return
        case .superseded(let higher): return overtaken(id, by: higher)
        }
        drains[id]?.phase = .asking
        fetchReported(id, drain)
        tickTakeover(id)
    }

    /// Who answered before the own seal was on the disk is waited for, and not asked again: its outcomes are fetched now.
    private mutating func fetchReported(_ id: SegmentID, _ drain: DrainedSegment) {
        for other in drain.peers.keys {
            guard let progress = drain.peers[other], !progress.outcomesFetched,
                case .sealed(_, _, let octets) = progress.report
            else { continue }
            actions.append(.fetchOutcomes(id, epoch: drain.epoch, from: other, octets: octets))
        }
    }

    // MARK: 3. The other members

    mutating func sealAsked(_ id: SegmentID, _ epoch: UInt64, by peer: Drainer) {
        if let fence = fences[id], fence > epoch {
            return actions.append(.answerSeal(id, epoch: epoch, .superseded(epoch: fence), to: peer.node))
        }
        if let key = registry.keys[id], key.drainEpoch > epoch {
            return actions.append(.answerSeal(id, epoch: epoch, .superseded(epoch: key.drainEpoch), to: peer.node))
        }
        fences[id] = epoch
        overtaken(id, by: epoch)
        if registry.keys[id].map({ $0.drainEpoch < epoch }) ?? true { read(id) }
        sealingFor[id] =
            (sealingFor[id] ?? []).filter { $0.from != peer.node } + [
                SealRequest(epoch: epoch, from: peer.node)
            ]
        actions.append(.seal(id, epoch: epoch))
    }

    private mutating func answerRequests(_ id: SegmentID, _ epoch: UInt64, _ seal: CopySeal) {
        guard let requests = sealingFor[id] else { return }
        for request in requests where request.epoch == epoch {
            actions.append(.answerSeal(id, epoch: epoch, seal, to: request.from))
        }
        let left = requests.filter { $0.epoch != epoch }
        sealingFor[id] = left.isEmpty ? nil : left
    }

    mutating func reported(_ id: SegmentID, _ epoch: UInt64, _ report: MemberReport, by peer: Drainer) {
        if case .superseded(let higher) = report { return overtaken(id, by: higher) }
        guard drains[id]?.epoch == epoch, let other = member(of: peer.node, in: id) else { return }
        var progress = drains[id]?.peers[other] ?? MemberProgress()
        if case .failed = report {
            // What it said before still holds; it is asked again.
            progress.failing = .init(progress.failing, at: now)
        } else {
            progress.report = report
            progress.failing = nil
            // Even what it had synced is gone with its file.
            if case .missing = report { (progress.memory, progress.synced, progress.sent) = (0, 0, 0) }
        }
        drains[id]?.peers[other] = progress
        if case .sealed(_, _, let octets) = report, drains[id]?.phase == .asking, !progress.outcomesFetched {
            actions.append(.fetchOutcomes(id, epoch: epoch, from: other, octets: octets))
        }
        tickTakeover(id)
        tickChanges(id)
    }

    mutating func fetched(_ id: SegmentID, _ epoch: UInt64, _ other: EnsembleMember, _ complete: Bool) {
        guard drains[id]?.epoch == epoch else { return }
        switch drains[id]?.phase {
        // It was begun for an adoption that did not wait for it any more.
        case .adopting, nil: break
        case .ready: fetchedLate(id, other, complete)
        case .sealing, .asking, .repairing, .fixing:
            if complete {
                drains[id]?.peers[other]?.outcomesFetched = true
            } else {
                // Asked anew from the beginning.
                drains[id]?.peers[other]?.report = nil
            }
        }
        tickTakeover(id)
    }

    /// Asks every other member to seal its copy and to say what is in it; of a written segment only those that were stale.
    private mutating func askReports(_ id: SegmentID, _ drain: DrainedSegment, _ key: SegmentKey) {
        guard !drain.isWritten || (key.state != .open && !key.stale.isEmpty) else { return }
        for other in key.ensemble where other != member && registry.isAlive(other) {
            let progress = drain.peers[other] ?? MemberProgress()
            guard progress.report == nil else { continue }
            if let asked = progress.reportAskedAt, now - asked < timing.retransmit { continue }
            var fresh = progress
            fresh.reportAskedAt = now
            drains[id]?.peers[other] = fresh
            actions.append(.askSeal(id, epoch: drain.epoch, of: other.node))
        }
    }

    mutating func tickTakeover(_ id: SegmentID) {
        guard let drain = drains[id], let key = registry.keys[id], key.drainer == me, key.drainEpoch == drain.epoch
        else { return }
        askReports(id, drain, key)
        switch drain.phase {
        case .sealing:
            guard drain.retryAt > .epoch, now >= drain.retryAt else { return }
            drains[id]?.retryAt = .epoch
            if drain.failing?.lasts(timing.recopyAfter) == true { handOver(id, drain, key, beyond: -1) }
            actions.append(.seal(id, epoch: drain.epoch))
        case .repairing, .adopting: break
        case .ready: fetchLate(id, drain, key)
        case .asking:
            guard !waits(for: drain, key), now >= drain.retryAt else { return }
            drains[id]?.phase = .fixing
            fix(id, key)
        case .fixing: fix(id, key)
        }
    }

    /// A living member, not stale, that has sealed more than `end`.
    func heir(_ drain: DrainedSegment, _ key: SegmentKey, beyond end: Int64) -> EnsembleMember? {
        key.partners(of: member).first { other in
            guard let peer = drain.peers[other], case .sealed(let length, _, _) = peer.report else { return false }
            return length > end && peer.failing == nil && registry.isAlive(other)
        }
    }

    /// The own copy fails or is short, and a member has a better one: that one drains it, and this one is stale. Nothing is sent in
    /// this epoch any more, so that whoever the key names next begins as any taker does (T4). It learns of it by its next listing.
    mutating func handOver(_ id: SegmentID, _ drain: DrainedSegment, _ key: SegmentKey, beyond end: Int64) {
        guard let heir = heir(drain, key, beyond: end), let node = registry.nodes.first(where: { $0.member == heir })
        else { return }
        let failed = member
        change(id) { key in
            key.drainer = Drainer(node: node.node, incarnation: node.incarnation)
            key.drainEpoch &+= 1
            if !key.stale.contains(failed) { key.stale.append(failed) }
        }
    }

    /// A member whose lease lives is waited for, and its outcomes too. One whose copy fails for long is as one that is down (T1).
    private func waits(for drain: DrainedSegment, _ key: SegmentKey) -> Bool {
        key.ensemble.contains { other in
            guard other != member, !registry.forgotten.contains(other) else { return false }
            let progress = drain.peers[other] ?? MemberProgress()
            switch progress.report {
            case .sealed: return !progress.outcomesFetched && registry.isAlive(other)
            case .missing: return false
            case .superseded, .failed, nil:
                return registry.isAlive(other) && progress.failing?.lasts(timing.recopyAfter) != true
            }
        }
    }

    // MARK: 4. The sealed length, 5. adoption

    private mutating func fix(_ id: SegmentID, _ key: SegmentKey) {
        guard let drain = drains[id], let own = drain.own, !registry.isBusy(id) else { return }
        if mendEnd(id, drain, own, key) { return }
        guard let length = key.sealedAt ?? sealedLength(key, drain, own) else {
            // T1: not to be known before the others answer; what is valid is drained, and nothing is cut.
            return adopt(id, key)
        }
        if own.end < length {
            if let source = longest(key, drain, beyond: own.end) {
                drains[id]?.phase = .repairing
                return actions.append(
                    .repair(
                        id, epoch: drain.epoch, from: source.member, start: own.end, upTo: min(length, source.end)))
            }
            // Whoever has it is down, or nobody has it: as above.
            return adopt(id, key)
        }
        guard key.state == .open else { return adopt(id, key) }
        // Who is gone gives no promise: stale in the same change, so that the first dot waits for nothing more (P1).
        let gone = key.partners(of: member).filter { !registry.isAlive($0) }
        change(id) {
            $0.state = .sealed(at: length)
            $0.stale += gone
        }
    }

    private mutating func adopt(_ id: SegmentID, _ key: SegmentKey) {
        // What cannot be sent yet would only be in the way of other mail.
        guard let drain = drains[id], now >= drain.notBefore,
            drains.values.count(where: { $0.phase == .adopting }) < timing.takeovers
        else { return }
        drains[id]?.phase = .adopting
        actions.append(.adopt(key))
    }

    /// n, or nil while it cannot be known (T1).
    private func sealedLength(_ key: SegmentKey, _ drain: DrainedSegment, _ own: BatonSpool.CopyReport) -> Int64? {
        var longest = own.end
        for other in key.ensemble where other != member && !registry.isDeclaredLost(other) {
            if let end = drain.peers[other]?.end {
                // More than this copy has was never acknowledged, if this copy is whole. It is kept all the same.
                longest = max(longest, end)
            } else if own.tailInvalid {
                return nil
            }
        }
        return longest
    }

    /// The living member with the longest valid prefix, if that is longer than this.
    private func longest(
        _ key: SegmentKey, _ drain: DrainedSegment, beyond end: Int64
    ) -> (member: EnsembleMember, end: Int64)? {
        var best: (member: EnsembleMember, end: Int64)?
        for other in key.ensemble where other != member && registry.isAlive(other) {
            let reach = drain.peers[other]?.end ?? 0
            if reach > best?.end ?? end { best = (other, reach) }
        }
        return best
    }

    /// A report ends at the first damage: a member that reports no more than this copy may still have the very chunk that is damaged here,
    /// with its own damage before it. It is asked for that chunk before the segment is cut or read where this copy ends. True while
    /// the answer is waited for.
    private mutating func mendEnd(
        _ id: SegmentID, _ drain: DrainedSegment, _ own: BatonSpool.CopyReport, _ key: SegmentKey
    ) -> Bool {
        guard own.tailInvalid, own.end < key.sealedAt ?? .max, drain.mendTriedAt != own.end,
            longest(key, drain, beyond: own.end) == nil
        else { return false }
        let others = key.ensemble.filter { other in
            guard other != member, registry.isAlive(other),
                case .sealed(_, tailInvalid: true, _) = drain.peers[other]?.report
            else { return false }
            return true
        }
        guard !others.isEmpty else { return false }
        drains[id]?.mendTriedAt = own.end
        drains[id]?.phase = .repairing
        actions.append(.mend(id, epoch: drain.epoch, at: own.end, upTo: key.sealedAt ?? .max, of: others))
        return true
    }

    /// The copy is looked at anew, and its next damage is asked for in turn; or what it has is all that can be had. A living member that
    /// does not answer is waited for (T1), and a disk that fails shows at the next seal.
    mutating func mended(_ id: SegmentID, _ epoch: UInt64, _ repair: ChunkRepair) {
        guard let drain = drains[id], drain.epoch == epoch, drain.phase == .repairing else { return }
        switch repair {
        case .repaired: actions.append(.seal(id, epoch: epoch))
        case .nowhere:
            drains[id]?.phase = .asking
            tickTakeover(id)
        case .unanswered:
            drains[id]?.mendTriedAt = nil
            drains[id]?.phase = .sealing
            drains[id]?.retryAt = now + timing.recopyRetry
        }
    }

    mutating func repaired(_ id: SegmentID, _ epoch: UInt64, _ complete: Bool) {
        guard let drain = drains[id], drain.epoch == epoch, drain.phase == .repairing else { return }
        if complete { actions.append(.seal(id, epoch: epoch)) } else { putOff(id, drain) }
    }

    private mutating func putOff(_ id: SegmentID, _ drain: DrainedSegment) {
        drains[id]?.phase = .asking
        drains[id]?.retryAt = now + timing.recopyRetry
        for other in drain.peers.keys { drains[id]?.peers[other]?.report = nil }
    }

    mutating func adopted(_ id: SegmentID, _ epoch: UInt64, _ success: Bool) {
        guard let drain = drains[id], drain.epoch == epoch, drain.phase == .adopting else { return }
        if success {
            drains[id]?.phase = .ready
            copies[id] = nil
        } else {
            // What lies here is looked at anew: it may be short, or damaged, by now.
            drains[id]?.phase = .sealing
            drains[id]?.retryAt = now + timing.recopyRetry
        }
        tell(id)
    }

    /// A taker answers for a SUBMIT's message only once every member of the ensemble, the new one too, has it
    /// (docs/CLUSTER_MODEL.md, 21).
    mutating func tellWhole(_ id: SegmentID) {
        guard let drain = drains[id], !drain.wholeSaid, drain.phase == .ready, let key = registry.keys[id],
            let length = key.sealedAt, drain.own?.end ?? 0 >= length, key.ensemble.count >= wantedCopies
        else { return }
        let isWhole = key.ensemble.allSatisfy { other in
            if other == member { return true }
            guard let peer = drain.peers[other], peer.failing == nil, case .sealed(let end, _, _) = peer.report else {
                return false
            }
            return end >= length
        }
        if isWhole { sayWhole(id) }
    }

    mutating func sayWhole(_ id: SegmentID) {
        guard let drain = drains[id], !drain.isWritten, drain.phase == .ready, !drain.wholeSaid else { return }
        drains[id]?.wholeSaid = true
        actions.append(.whole(id))
    }

    /// A frame of a higher epoch: this node drains the segment no more, whatever its own view of the key is.
    mutating func overtaken(_ id: SegmentID, by epoch: UInt64) {
        guard let drain = drains[id], drain.epoch < epoch else { return }
        dropDrain(id)
        read(id)
    }

    /// Somebody else drains it now: no dot any more.
    mutating func dropDrain(_ id: SegmentID) {
        guard let drain = drains[id] else { return }
        drains[id] = nil
        // Its file lies here, whether the spool holds it or not: it is unlinked, and said to be gone, as any copy.
        copies[id] = true
        actions.append(.permit(id, until: nil))
        if drain.isWritten { actions.append(.stopWriting(id)) }
    }
}
