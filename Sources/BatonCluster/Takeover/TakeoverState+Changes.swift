// Which change of a drained segment's key is due next: stale, finished, joining; and how files go (PROTOCOL P1, P2, C1, C3).
import BatonCore
import BatonModel
import BatonSpool

extension TakeoverState {
    /// At most one change per segment is under way; each is decided anew from the key as it is known.
    mutating func tickChanges(_ id: SegmentID) {
        guard let drain = drains[id], drain.phase == .ready, let key = registry.keys[id], key.drainer == me,
            !registry.isBusy(id), !isMoving(id)
        else { return }
        if let silent = dueStale(drain, key) {
            return change(id) { $0.stale.append(silent) }
        }
        if let back = dueReturn(drain, key) {
            return change(id) { $0.stale.removeAll { $0 == back } }
        }
        if dueFence(id, drain) {
            return change(id) { _ in }
        }
        if handOverToLonger(id, drain, key) { return }
        if key.state == .open, !drain.isWritten, let own = drain.own,
            let length = lateLength(key, drain, own)
        {
            // T1: adopted without a sealed length; the others have answered, or were declared lost.
            return change(id) { $0.state = .sealed(at: length) }
        }
        guard let length = key.sealedAt else { return }
        if mayFinish(drain, key, length) {
            return change(id) { $0.finish() }
        }
        tickJoining(id, drain, key, length)
    }

    /// T1: adopted without what another member has, which is back now. True while nothing else is to be done.
    private mutating func handOverToLonger(_ id: SegmentID, _ drain: DrainedSegment, _ key: SegmentKey) -> Bool {
        guard !drain.isWritten, let own = drain.own, own.end < key.sealedAt ?? .max,
            heir(drain, key, beyond: own.end) != nil
        else {
            if drain.endingSince != nil {
                drains[id]?.endingSince = nil
                tell(id)
            }
            return false
        }
        guard let since = drain.endingSince else {
            drains[id]?.endingSince = now
            tell(id)
            return true
        }
        if now - since >= timing.ending, drain.logSynced >= drain.logEnd, settledEnd(id, drain) >= drain.logEnd {
            handOver(id, drain, key, beyond: own.end)
        }
        return true
    }

    private func lateLength(_ key: SegmentKey, _ drain: DrainedSegment, _ own: BatonSpool.CopyReport) -> Int64? {
        var longest = own.end
        for other in key.ensemble where other != member && !registry.isDeclaredLost(other) {
            guard let end = drain.peers[other]?.end else { return nil }
            longest = max(longest, end)
        }
        // A longer copy elsewhere has to be read first, by whoever has it (`handOverToLonger`).
        return longest == own.end ? longest : nil
    }

    /// P1: a silent partner, or one that is gone, is put into `stale` before the next dot; so is one that promises and takes no
    /// outcomes, since nothing would ever be settled (P3).
    private func dueStale(_ drain: DrainedSegment, _ key: SegmentKey) -> EnsembleMember? {
        key.partners(of: member).first { isSilent($0, drain) }
    }

    private func isSilent(_ other: EnsembleMember, _ drain: DrainedSegment) -> Bool {
        guard let peer = drain.peers[other] else { return false }
        // Its lease is gone: it is not waited for, once its last promise has run out.
        if !registry.isAlive(other), peer.promiseUntil <= now { return true }
        if let since = peer.behindSince, now - since >= timing.behind { return true }
        guard peer.promiseUntil <= now, let since = peer.silentSince else { return false }
        return now - since >= timing.silence
    }

    /// A change of unknown result may still make a member a partner that has fallen silent since, and P1 waits for it: the key is stored as
    /// it is, at a new revision, behind which that change can never land.
    private func dueFence(_ id: SegmentID, _ drain: DrainedSegment) -> Bool {
        registry.possible[id]?.contains { view in
            view.partners(of: member).contains { isSilent($0, drain) }
        } ?? false
    }

    /// P2: back out of `stale` once its outcome log has caught up and is synced.
    private func dueReturn(_ drain: DrainedSegment, _ key: SegmentKey) -> EnsembleMember? {
        key.stale.first { other in
            // A stale one that took over as the last copy: what it has is now all there is.
            if other == member { return key.sealedAt != nil && drain.logSynced >= drain.logEnd }
            guard key.ensemble.contains(other), registry.isAlive(other), let peer = drain.peers[other],
                peer.promiseUntil > now, peer.synced >= drain.logEnd, peer.failing == nil, peer.report != .missing
            else { return false }
            if drain.isWritten { return true }
            return (peer.end ?? -1) >= (key.sealedAt ?? drain.own?.end ?? .max)
        }
    }

    // MARK: Finished (C3)

    private func mayFinish(_ drain: DrainedSegment, _ key: SegmentKey, _ length: Int64) -> Bool {
        guard drain.drained, drain.copyUnderWay == nil, drain.logSynced >= drain.logEnd else { return false }
        // What was not read here may still stand in a copy that is not lost.
        if !drain.isWritten, (drain.own?.end ?? 0) < length {
            let others = key.ensemble.filter { $0 != member && !registry.isDeclaredLost($0) }
            guard others.allSatisfy({ (drain.peers[$0]?.end ?? .max) < length }) else { return false }
        }
        return key.partners(of: member).allSatisfy { (drain.peers[$0]?.synced ?? 0) >= drain.logEnd }
    }

    mutating func beginFinishing(_ key: SegmentKey) {
        let state = finishing[key.id] ?? Finished()
        finishing[key.id] = state
        // One with a target is looked at by the next tick, when a listing has been learned whole.
        if key.target == nil { unlinkOwn(key.id, state) }
    }

    private mutating func unlinkOwn(_ id: SegmentID, _ state: Finished) {
        guard !state.selfGone, unlinking[id] == nil else { return }
        unlinking[id] = true
        actions.append(.unlink(id))
    }

    /// C3: the key goes last, when all have confirmed or are forgotten.
    mutating func tickFinishing() {
        for id in finishing.keys {
            guard var state = finishing[id], let key = registry.keys[id], key.drainer == me else {
                finishing[id] = nil
                continue
            }
            guard now - state.askedAt >= timing.finishRetry else { continue }
            state.askedAt = now
            finishing[id] = state
            finish(id, state, key)
        }
    }

    private mutating func finish(_ id: SegmentID, _ state: Finished, _ key: SegmentKey) {
        let others = (key.ensemble + key.former + [key.joining].compactMap { $0 }).filter {
            $0 != member && !registry.forgotten.contains($0)
        }
        let missing = others.filter { !state.confirmed.contains($0) }
        if !state.selfGone {
            if mayRemove(key) { unlinkOwn(id, state) }
        } else if missing.isEmpty {
            if !registry.isBusy(id), mayRemove(key) { remove(key) }
        } else {
            for other in missing { actions.append(.askFinished(id, epoch: key.drainEpoch, of: other.node)) }
        }
    }

    /// `revision`: of the key, as the other one read it when it had no file.
    mutating func confirmed(_ id: SegmentID, _ disk: UInt64, at revision: UInt64, by peer: Drainer) {
        let other = EnsembleMember(node: peer.node, diskID: disk)
        guard let key = registry.keys[id] else { return }
        guard var state = finishing[id] else { return hasLeft(other, key, at: revision) }
        if !state.confirmed.contains(other) { state.confirmed.append(other) }
        finishing[id] = state
        if state.selfGone { finish(id, state, key) }
    }

    // MARK: Files that go

    mutating func unlinkCopy(_ id: SegmentID) {
        guard copies[id] != nil, unlinking[id] == nil, !tellsOutcomes(id) else { return }
        if let key = registry.keys[id], key.state == .finished, !mayRemove(key) { return }
        leavingCopies[id]?.told = true
        leavingCopies[id]?.underWay = false
        unlinking[id] = true
        actions.append(.unlink(id))
    }

    mutating func unlinked(_ id: SegmentID, _ gone: Bool) {
        unlinking[id] = nil
        guard gone else { return }
        copies[id] = nil
        leavingCopies[id] = nil
        fences[id] = nil
        if var state = finishing[id], let key = registry.keys[id] {
            state.selfGone = true
            state.askedAt = now
            finishing[id] = state
            finish(id, state, key)
        } else if let key = registry.keys[id] {
            actions.append(.answerUnlinked(id, revision: key.revision, to: key.drainer.node))
        }
        if confirming[id] != nil { confirmRead(id) }
    }

    mutating func confirm(_ id: SegmentID, to peer: Drainer) {
        confirming[id] = peer.node
        if registry.keys[id]?.state == .finished { confirmRead(id) } else { read(id) }
    }

    mutating func confirmRead(_ id: SegmentID) {
        guard let asker = confirming[id] else { return }
        let key = registry.keys[id]
        guard key.map({ $0.state == .finished || hasNoPart(in: $0) }) ?? true else {
            // It is to have a copy: whoever asked was wrong, or the answer is old, and the question comes again.
            confirming[id] = nil
            return
        }
        // Not before what lies here is known, nor while a file is on its way out, the own drainer's included.
        guard knowsCopies, unlinking[id] == nil, drains[id] == nil, finishing[id] == nil else { return }
        if copies[id] == nil {
            confirming[id] = nil
            actions.append(.answerUnlinked(id, revision: key?.revision ?? 0, to: asker))
        } else if key != nil {
            unlinkCopy(id)
        } else {
            confirming[id] = nil
        }
    }

    // MARK: New copies (C1)

    private mutating func tickJoining(
        _ id: SegmentID, _ drain: DrainedSegment, _ key: SegmentKey, _ length: Int64
    ) {
        // Who lacks a part of it gives no copy.
        guard drain.isWritten || (drain.own?.end ?? 0) >= length else { return }
        let lost = key.ensemble.first { $0 != member && isLost($0, drain, length) }
        // A key that was rebuilt from the disks may name one alone.
        guard lost != nil || key.ensemble.count < wantedCopies else {
            drains[id]?.lostSince = nil
            if key.joining != nil { change(id, Self.dropJoining) }
            return
        }
        let since = drain.lostSince ?? now
        drains[id]?.lostSince = since
        guard now - since >= timing.recopyAfter else { return }
        guard let joiner = key.joining else {
            guard drains.values.count(where: { $0.copyUnderWay != nil }) < timing.copies else { return }
            let candidates = registry.nodes.map(\.member).filter { other in
                !key.ensemble.contains(other) && !key.former.contains(other) && other.node != me.node
                    && !registry.forgotten.contains(other)
            }
            guard !candidates.isEmpty else { return askFormer(id, key) }
            let chosen = candidates[Int(random.next() % UInt64(candidates.count))]
            drains[id]?.copyTries = 0
            return change(id) { $0.joining = chosen }
        }
        guard registry.isAlive(joiner) else { return change(id, Self.dropJoining) }
        let peer = drain.peers[joiner]
        if (peer?.end ?? -1) >= length, (peer?.synced ?? 0) >= drain.logEnd {
            drains[id]?.copyUnderWay = nil
            return change(id) { key in
                if let lost {
                    key.ensemble = key.ensemble.map { $0 == lost ? joiner : $0 }
                    if !key.former.contains(lost) { key.former.append(lost) }
                } else {
                    key.ensemble.append(joiner)
                }
                key.stale.removeAll { $0 == lost || $0 == joiner }
                key.joining = nil
            }
        }
        guard drain.copyUnderWay == nil, (peer?.end ?? -1) < length else { return }
        if let at = drain.copiedAt, now - at < timing.recopyRetry { return }
        guard drain.copyTries < timing.recopyTries else { return change(id, Self.dropJoining) }
        guard drains.values.count(where: { $0.copyUnderWay != nil }) < timing.copies else { return }
        drains[id]?.copyUnderWay = joiner
        drains[id]?.copiedAt = now
        actions.append(.copy(key, to: joiner))
    }

    /// Only those are left that had a copy of it, or part of one, and were replaced: each is asked whether its file is gone. A node
    /// that restarts while it gets a copy would else never get one, and the mail stay on one disk.
    private mutating func askFormer(_ id: SegmentID, _ key: SegmentKey) {
        if let at = drains[id]?.askedFormerAt, now - at < timing.finishRetry { return }
        drains[id]?.askedFormerAt = now
        for other in key.former where registry.isAlive(other) && !registry.forgotten.contains(other) {
            guard !key.ensemble.contains(other), other.node != me.node else { continue }
            actions.append(.askFinished(id, epoch: key.drainEpoch, of: other.node))
        }
    }

    /// A member that was replaced has no file of it any more, and may be given one again. Only at the very revision at which it said
    /// so: said before it joined another time, it would be told of a file that is there, and may be on its way out.
    private mutating func hasLeft(_ other: EnsembleMember, _ key: SegmentKey, at revision: UInt64) {
        guard let drain = drains[key.id], drain.phase == .ready, key.drainer == me, key.revision == revision,
            key.former.contains(other), !key.ensemble.contains(other), key.joining != other
        else { return }
        change(key.id) { $0.former.removeAll { $0 == other } }
    }

    /// Its node is gone, or lives without a copy that is of use.
    private func isLost(_ other: EnsembleMember, _ drain: DrainedSegment, _ length: Int64) -> Bool {
        guard registry.isAlive(other) else { return true }
        guard let peer = drain.peers[other] else { return false }
        if case .sealed(let end, _, _) = peer.report, end < length { return true }
        return peer.report == .missing || peer.failing?.lasts(timing.recopyAfter) == true
    }

    private static func dropJoining(_ key: inout SegmentKey) {
        if let joiner = key.joining, !key.former.contains(joiner) { key.former.append(joiner) }
        key.joining = nil
    }

    /// The chunks are there; the joining member seals its copy and reports, as every member does.
    mutating func copied(_ id: SegmentID, _ epoch: UInt64, _ other: EnsembleMember, _ complete: Bool) {
        guard let drain = drains[id], drain.epoch == epoch, drain.copyUnderWay == other else { return }
        drains[id]?.copyUnderWay = nil
        drains[id]?.copiedAt = now
        drains[id]?.copyTries += 1
        if complete, registry.keys[id]?.joining == other {
            actions.append(.askSeal(id, epoch: epoch, of: other.node))
        }
    }
}
