// Outcomes that a former drainer has and nobody was told of reach the present one (PROTOCOL T5).
import BatonCore
import BatonModel
import BatonSpool

extension TakeoverState {
    // MARK: The drainer

    /// A takeover needs them. Later on the former drainer's are of use, which may be back with outcomes that nobody was told of (T5).
    func wantsOutcomes(_ id: SegmentID, of other: EnsembleMember) -> Bool {
        guard let drain = drains[id], drain.peers[other]?.outcomesFetched != true else { return false }
        switch drain.phase {
        case .asking: return true
        case .ready:
            return !drain.isWritten && (other.node == id.writer || other.node == drain.former?.node)
                && registry.keys[id]?.ensemble.contains(other) == true
        case .sealing, .fixing, .repairing, .adopting: return false
        }
    }

    // MARK: The member that was replaced

    /// T5: this node was replaced in a segment that it drained, perhaps: outcomes that only this copy has go to the drainer before the
    /// file does. True while they are on their way; a drainer that is not to be reached is given up after a while, since its
    /// attempts repeat nothing that was not in doubt.
    mutating func tellsOutcomes(_ id: SegmentID) -> Bool {
        guard let key = registry.keys[id], key.state != .finished, key.drainer != me, hasNoPart(in: key) else {
            return false
        }
        var copy = leavingCopies[id] ?? LeavingCopy(since: now)
        guard !copy.told, now - copy.since < timing.lateOutcomes else { return false }
        if !copy.underWay, copy.triedAt.map({ now - $0 >= timing.retransmit }) ?? true {
            copy.triedAt = now
            copy.underWay = true
            actions.append(.sendLateOutcomes(id, epoch: key.drainEpoch, to: key.drainer.node))
        }
        leavingCopies[id] = copy
        return true
    }

    mutating func lateOutcomesSent(_ id: SegmentID, _ sent: Bool) {
        leavingCopies[id]?.underWay = false
        guard sent, leavingCopies[id] != nil else { return }
        leavingCopies[id]?.told = true
        unlinkCopy(id)
    }

    mutating func tickLeaving() {
        for id in leavingCopies.keys {
            guard copies[id] != nil, registry.keys[id].map({ hasNoPart(in: $0) }) == true else {
                leavingCopies[id] = nil
                continue
            }
            // One that was told of, and whose file could not be removed, waits until it is asked for (`confirm`).
            if leavingCopies[id]?.told == false { unlinkCopy(id) }
        }
    }
}
