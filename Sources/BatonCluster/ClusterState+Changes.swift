// Which change of a drained segment's key is due next: seal, finished, stale, joining (PROTOCOL T(4), P1, P2, C1-C3).
import BatonCore
import BatonModel
import BatonSpool

/// A finished segment whose key waits for everybody's file to go (C3).
struct Finishing: Sendable {
    var selfGone = false
    var confirmed: [NodeID] = []
    var askedAt = Instant.epoch
}

extension ClusterState {
    mutating func tickChanges() {
        for id in drains.keys { tickChanges(id) }
    }

    /// At most one change per segment is under way; each is decided anew from the key as it is known.
    mutating func tickChanges(_ id: SegmentID) {
        guard let drain = drains[id], let key = registry.keys[id], key.drainer == me, !registry.isBusy(id) else {
            return
        }
        if let length = dueSeal(id, key) {
            return change(id) { $0.state = .sealed(at: length) }
        }
        guard case .ready = drain.phase else { return }
        if drain.raise {
            return change(id) { $0.drainEpoch += 1 }
        }
        if let silent = dueStale(id, drain, key) {
            return change(id) { $0.stale.append(silent) }
        }
        if let back = dueReturn(id, drain, key) {
            return change(id) { $0.stale.removeAll { $0 == back } }
        }
        if guards.contains(.unknownIsFenced), dueFence(id, drain) {
            return change(id) { _ in }
        }
        guard let length = key.sealedAt else { return }
        if mayFinish(id, drain, key, length) {
            return change(id) { $0.finish() }
        }
        if tickCleaning(id, key, length) { return }
        tickJoining(id, drain, key, length)
    }

    /// The writer's seal (A2: always the same), or the taker's (step 4).
    private func dueSeal(_ id: SegmentID, _ key: ClusterKey) -> Int64? {
        guard key.state == .open else { return nil }
        if let segment = append.segments[id] { return segment.sealAt }
        return sealedLength(id)
    }

    /// P1: a silent partner is put into `stale` before the next dot, when there is something to send.
    private func dueStale(_ id: SegmentID, _ drain: Drain, _ key: ClusterKey) -> EnsembleMember? {
        guard guards.contains(.staleByCompareAndSet) else { return nil }
        return key.ensemble.first { other in
            guard key.isPartner(other, of: member), let peer = drain.peers[other], isSilent(peer) else { return false }
            return peer.synced < drain.log.count || !drain.open.isEmpty || drain.log.count > settledCount(id, drain)
        }
    }

    /// A change of unknown result may still make a member a partner that has fallen silent since, and P1 waits for it (seed 125612): the key
    /// is stored as it is, at a new revision, behind which that change can never land.
    private func dueFence(_ id: SegmentID, _ drain: Drain) -> Bool {
        registry.possible[id]?.contains { view in
            view.partners(of: member).contains { drain.peers[$0].map(isSilent) ?? false }
        } ?? false
    }

    private func isSilent(_ peer: PeerProgress) -> Bool {
        guard peer.promiseUntil <= now, let since = peer.silentSince else { return false }
        return now - since >= timing.silence
    }

    /// P2: back out of `stale` once its outcome log has caught up and is synced, and its own outcomes are known here.
    private func dueReturn(_ id: SegmentID, _ drain: Drain, _ key: ClusterKey) -> EnsembleMember? {
        key.stale.first { other in
            if other == member {
                // It took over as the last copy: from this epoch on its log is the one that counts.
                return drain.log.isEmpty
                    || copies[id].map { $0.logEpoch == drain.epoch && $0.logSynced >= drain.log.count } ?? false
            }
            guard key.ensemble.contains(other), registry.isAlive(other), let peer = drain.peers[other],
                peer.promiseUntil > now
            else { return false }
            if !guards.contains(.catchUpBeforeLeavingStale) { return true }
            guard peer.synced >= drain.log.count else { return false }
            if append.segments[id] != nil { return true }
            return peer.reported.map { $0.end >= key.sealedAt ?? 0 && !$0.rebuilt } ?? false
        }
    }

    // MARK: Finished (C3)

    private func mayFinish(_ id: SegmentID, _ drain: Drain, _ key: ClusterKey, _ length: Int64) -> Bool {
        guard drain.open.isEmpty, drain.length == length || isBeyondReach(drain, key), drain.cleaning == nil,
            !drain.raise
        else { return false }
        // A segment that a cleaning moves into is not finished before its moves are decided; open jobs say so.
        guard guards.contains(.syncedBeforeFinished) else { return true }
        let synced = copies[id].map { $0.logEpoch == drain.epoch ? $0.logSynced : 0 } ?? 0
        guard synced >= drain.log.count || drain.log.isEmpty else { return false }
        return key.partners(of: member).allSatisfy { (drain.peers[$0]?.synced ?? 0) >= drain.log.count }
    }

    /// The rest of the segment was on copies that were declared lost only: what was acknowledged is here, or gone with them.
    private func isBeyondReach(_ drain: Drain, _ key: ClusterKey) -> Bool {
        let others = key.everybody.filter { $0 != member }
        // A joining member may have got it before they were lost; whoever lives has to say that it has no more than this copy.
        return others.contains(where: registry.forgotten.contains)
            && others.allSatisfy { other in
                registry.forgotten.contains(other)
                    || drain.peers[other]?.reported.map { $0.end <= drain.length } ?? false
            }
    }

    mutating func beginFinishing(_ key: ClusterKey) {
        guard finishing[key.id] == nil else { return }
        finishing[key.id] = Finishing(selfGone: copies[key.id] == nil && unlinking[key.id] == nil)
        unlink(key.id)
    }

    /// C3: the key goes last, when all have confirmed or are forgotten.
    mutating func tickFinishing() {
        for id in finishing.keys {
            guard var state = finishing[id], let key = registry.keys[id], key.drainer == me else {
                finishing[id] = nil
                continue
            }
            let others = (key.ensemble + key.former + (key.joining.map { [$0] } ?? [])).filter {
                $0 != member && !registry.forgotten.contains($0)
            }
            let missing = others.filter { !state.confirmed.contains($0.node) }
            if state.selfGone, missing.isEmpty || !guards.contains(.keyGoesLast) {
                if mayRemove(key), !registry.isBusy(id) { control(.remove(key)) }
            } else if now - state.askedAt >= timing.promiseRenewal {
                state.askedAt = now
                finishing[id] = state
                for other in missing { send(.confirm(id), to: other.node) }
            }
        }
    }

    mutating func confirmed(_ id: SegmentID, by sender: Drainer) {
        if finishing[id]?.confirmed.contains(sender.node) == false { finishing[id]?.confirmed.append(sender.node) }
    }

    // MARK: New copies (C1)

    private mutating func tickJoining(_ id: SegmentID, _ drain: Drain, _ key: ClusterKey, _ length: Int64) {
        guard copies[id]?.end == length, drain.repairFrom == nil else { return }
        let lost = key.ensemble.first { other in
            other != member && !registry.isAlive(other)
                && (drain.peers[other]?.promiseUntil ?? .epoch) + timing.recopyAfter < now
        }
        guard let lost else {
            if key.joining != nil { change(id, Self.dropJoining) }
            return
        }
        guard let joiner = key.joining else {
            let candidates = registry.nodes.map(\.member).filter { other in
                !key.ensemble.contains(other) && !key.former.contains(other) && other != member
                    && !registry.forgotten.contains(other)
            }
            guard !candidates.isEmpty else { return }
            let chosen = candidates[Int(random.next() % UInt64(candidates.count))]
            guard guards.contains(.joiningFirst) else { return copyUnnamed(id, chosen, lost, length) }
            return change(id) { $0.joining = chosen }
        }
        guard registry.isAlive(joiner) else { return change(id, Self.dropJoining) }
        let peer = drain.peers[joiner]
        let complete =
            (peer?.reported?.end ?? -1) >= length && (peer?.synced ?? 0) >= drain.log.count
            && peer?.reported?.rebuilt == false
        if complete || !guards.contains(.syncedBeforeJoining) {
            return change(id) { key in
                key.ensemble = key.ensemble.map { $0 == lost ? joiner : $0 }
                key.stale.removeAll { $0 == lost || $0 == joiner }
                if !key.former.contains(lost) { key.former.append(lost) }
                key.joining = nil
            }
        }
        if let at = drain.copiedAt, now - at < timing.promiseRenewal { return }
        drains[id]?.copiedAt = now
        if (peer?.reported?.end ?? -1) < length { give(id, from: 0, to: joiner) }
    }

    private static func dropJoining(_ key: inout ClusterKey) {
        if let joiner = key.joining, !key.former.contains(joiner) { key.former.append(joiner) }
        key.joining = nil
    }

    /// C1's counter-example: a copy for somebody whom the key does not name, without outcomes, then straight into the ensemble.
    private mutating func copyUnnamed(
        _ id: SegmentID, _ chosen: EnsembleMember, _ lost: EnsembleMember, _ length: Int64
    ) {
        change(id) { key in
            key.ensemble = key.ensemble.map { $0 == lost ? chosen : $0 }
            key.stale.removeAll { $0 == lost }
            if !key.former.contains(lost) { key.former.append(lost) }
        }
    }
}
