// Permission to send, and settled outcomes (PROTOCOL P1-P6).
import BatonCore
import BatonModel
import BatonSpool

extension TakeoverState {
    /// Who has to promise and to hold outcomes: members that are not stale in any view that may be the stored one (P1).
    func partners(_ id: SegmentID) -> [EnsembleMember] {
        var found: [EnsembleMember] = []
        for view in registry.views(id) {
            for partner in view.partners(of: member) where !found.contains(partner) { found.append(partner) }
        }
        return found
    }

    // MARK: Promises

    mutating func tickPromises() {
        guard now - promiseAskedAt >= timing.promiseRenewal else { return }
        promiseAskedAt = now
        var asks = Table<NodeID, [PromiseItem]>()
        for id in drains.keys {
            guard let drain = drains[id], drain.phase == .ready, let key = registry.keys[id] else { continue }
            // Stale members are asked too: their answer shows that they are back.
            for other in key.ensemble + [key.joining].compactMap({ $0 }) where other != member {
                asks[other.node] = (asks[other.node] ?? []) + [PromiseItem(segment: id, epoch: drain.epoch)]
                var peer = drain.peers[other] ?? MemberProgress()
                if peer.silentSince == nil { peer.silentSince = now }
                drains[id]?.peers[other] = peer
            }
        }
        for node in asks.keys {
            if let items = asks[node] { actions.append(.askPromises(items, of: node)) }
        }
    }

    /// P1: "I send no dot for this segment before now + length." Not for a segment that this node drains, nor for one that it does
    /// not know by its key. A run that has not accepted a listing gives none: it may have drained the segment in a registry that is
    /// lost (docs/decisions/0010).
    mutating func promise(_ items: [PromiseItem], _ number: UInt64, _ sentAt: Int64, to peer: Drainer) {
        meet(peer)
        guard registry.listedRevision > 0 else { return }
        var given: [PromiseItem] = []
        for item in items {
            guard drains[item.segment] == nil, (fences[item.segment] ?? 0) <= item.epoch else { continue }
            // Who has unlinked a finished segment and started anew knows nothing of it (docs/CLUSTER_MODEL.md, 23).
            guard copies[item.segment] != nil else { continue }
            if let key = registry.keys[item.segment], key.drainEpoch > item.epoch || key.drainer == me { continue }
            promises.give(item.segment, until: now + timing.promise)
            given.append(item)
        }
        actions.append(.promise(given, number: number, sentAt: sentAt, to: peer.node))
    }

    mutating func promised(_ items: [PromiseItem], _ sentAt: Instant, by peer: Drainer) {
        meet(peer)
        for item in items {
            guard drains[item.segment]?.epoch == item.epoch, let other = member(of: peer.node, in: item.segment) else {
                continue
            }
            var progress = drains[item.segment]?.peers[other] ?? MemberProgress()
            // Counted from the asking, less a quarter for uneven clocks. Never from the future.
            progress.promiseUntil = max(progress.promiseUntil, min(sentAt, now) + timing.promiseTrusted)
            progress.silentSince = nil
            drains[item.segment]?.peers[other] = progress
            tell(item.segment)
        }
    }

    /// Until when a dot may go: every partner's promise; the own lease plays no part.
    func permission(_ id: SegmentID, _ drain: DrainedSegment) -> Instant? {
        guard drain.phase == .ready, now >= drain.notBefore, drain.endingSince == nil, !isMoving(id) else { return nil }
        let until = promisedUntil(id, drain)
        return until > now ? until : nil
    }

    /// Until when every partner has promised to send nothing; `distantFuture` where there is none.
    func promisedUntil(_ id: SegmentID, _ drain: DrainedSegment) -> Instant {
        var until = Instant.distantFuture
        for other in partners(id) { until = min(until, drain.peers[other]?.promiseUntil ?? .epoch) }
        return until
    }

    /// Tells the shell what has changed about permission and settled outcomes.
    mutating func tell(_ id: SegmentID) {
        guard let drain = drains[id] else { return }
        let until = permission(id, drain)
        if until != drain.permitted {
            drains[id]?.permitted = until
            actions.append(.permit(id, until: until))
        }
        let settled = settledEnd(id, drain)
        if settled != drain.settledSaid {
            drains[id]?.settledSaid = settled
            actions.append(.settled(id, epoch: drain.epoch, upTo: settled))
        }
    }

    // MARK: Outcomes

    /// P3: every non-stale backup has it, or, when there is none, it is synced here; in every view that may be true.
    func settledEnd(_ id: SegmentID, _ drain: DrainedSegment) -> Int64 {
        var end = drain.logEnd
        for view in registry.views(id) {
            let partners = view.partners(of: member)
            if partners.isEmpty { end = min(end, drain.logSynced) }
            for partner in partners { end = min(end, drain.peers[partner]?.memory ?? 0) }
        }
        return end
    }

    mutating func advanced(_ id: SegmentID, _ epoch: UInt64, _ end: Int64, _ synced: Int64) {
        guard let drain = drains[id], drain.epoch == epoch else { return }
        drains[id]?.logEnd = max(drain.logEnd, end)
        drains[id]?.logSynced = max(drain.logSynced, synced)
        stream(id, fresh: true)
        tell(id)
        if drain.drained { tickChanges(id) }
    }

    mutating func tickOutcomes(_ id: SegmentID) { stream(id, fresh: false) }

    private mutating func stream(_ id: SegmentID, fresh: Bool) {
        guard let drain = drains[id], drain.phase == .ready, let key = registry.keys[id] else { return }
        for other in key.ensemble + [key.joining].compactMap({ $0 }) where other != member {
            var peer = drain.peers[other] ?? MemberProgress()
            let isBehind = peer.memory < drain.logEnd
            if isBehind != (peer.behindSince != nil) {
                peer.behindSince = isBehind ? now : nil
                drains[id]?.peers[other] = peer
            }
            // The acknowledgement may have been lost, or the frame: from what it has on.
            let late = peer.sentAt.map { now - $0 >= timing.retransmit } ?? true
            if late, peer.sent > peer.memory || peer.synced < drain.logEnd { peer.sent = peer.memory }
            guard peer.sent < drain.logEnd || (late && peer.synced < drain.logEnd && peer.memory == drain.logEnd) else {
                continue
            }
            guard fresh || late else { continue }
            // With nothing new to send, the last octet again asks how much of it the member has synced.
            let from = max(0, min(peer.sent, drain.logEnd - 1))
            peer.sent = drain.logEnd
            peer.sentAt = now
            drains[id]?.peers[other] = peer
            actions.append(.sendOutcomes(id, epoch: drain.epoch, to: other, from: from, upTo: drain.logEnd))
        }
    }

    mutating func recorded(_ id: SegmentID, _ epoch: UInt64, _ memory: Int64, _ synced: Int64, by peer: Drainer) {
        meet(peer)
        guard let drain = drains[id], drain.epoch == epoch, let other = member(of: peer.node, in: id) else { return }
        var progress = drain.peers[other] ?? MemberProgress()
        progress.incarnation = peer.incarnation
        progress.failing = nil
        if memory > progress.memory { progress.behindSince = nil }
        progress.memory = max(progress.memory, min(memory, drain.logEnd))
        progress.synced = max(progress.synced, min(synced, drain.logEnd))
        // It has less than was sent: a gap. Again from there.
        if memory < progress.sent, let at = progress.sentAt, now - at >= timing.retransmit { progress.sent = memory }
        drains[id]?.peers[other] = progress
        tell(id)
        if drain.drained || !(registry.keys[id]?.stale.isEmpty ?? true) || registry.keys[id]?.joining != nil {
            tickChanges(id)
        }
    }

    /// P4: a new incarnation may have lost what it had only in memory: again from the synced offset, before the next dot.
    mutating func meet(_ peer: Drainer) {
        let known = incarnations[peer.node]
        guard known != peer.incarnation else { return }
        incarnations[peer.node] = peer.incarnation
        for id in drains.keys {
            guard let other = member(of: peer.node, in: id), var progress = drains[id]?.peers[other] else { continue }
            if progress.incarnation != peer.incarnation, known != nil {
                progress.memory = progress.synced
                progress.sent = progress.synced
                progress.sentAt = nil
                progress.report = nil
                progress.outcomesFetched = false
                progress.late = .init()
                progress.behindSince = nil
                progress.failing = nil
                // What the old run promised binds the new one (T3), but it is asked again.
                progress.incarnation = peer.incarnation
            }
            drains[id]?.peers[other] = progress
            tell(id)
        }
    }

    /// Outcomes may be missing that were settled, so that what is delivered counts: of a stale last copy (P2), and where the own file was
    /// lost and no member that is not stale has told its outcomes.
    func mayRepeat(_ id: SegmentID) -> Bool {
        guard let drain = drains[id], let key = registry.keys[id] else { return false }
        if key.stale.contains(member) { return true }
        guard drain.fileWasLost else { return false }
        return !key.partners(of: member).contains { drain.peers[$0]?.outcomesFetched == true }
    }
}
