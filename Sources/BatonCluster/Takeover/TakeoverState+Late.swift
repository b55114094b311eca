// Outcomes that a former drainer has and nobody was told of reach the present one (PROTOCOL T5).
import BatonCore
import BatonModel
import BatonSpool

extension TakeoverState {
    // MARK: The drainer

    /// A former drainer that is back, and still a member, may have outcomes that nobody was told of.
    mutating func fetchLate(_ id: SegmentID, _ drain: DrainedSegment, _ key: SegmentKey) {
        guard !drain.isWritten else { return }
        for other in key.ensemble where other.node == id.writer || other.node == drain.former?.node {
            guard other != member, registry.isAlive(other), let peer = drain.peers[other], !peer.outcomesFetched,
                case .sealed(_, _, let octets) = peer.report, octets > 0, peer.late.tries < timing.lateTries,
                !peer.late.underWay, peer.late.at.map({ now - $0 >= timing.recopyRetry }) ?? true,
                lateFetches < timing.lateUnderWay
            else { continue }
            drains[id]?.peers[other]?.late = .init(tries: peer.late.tries + 1, at: now, underWay: true)
            actions.append(.fetchOutcomes(id, epoch: drain.epoch, from: other, octets: octets))
        }
    }

    private var lateFetches: Int {
        drains.values.reduce(0) { $0 + $1.peers.values.count(where: \.late.underWay) }
    }

    mutating func fetchedLate(_ id: SegmentID, _ other: EnsembleMember, _ complete: Bool) {
        drains[id]?.peers[other]?.late.underWay = false
        if complete { drains[id]?.peers[other]?.outcomesFetched = true }
    }

    // MARK: The member that was replaced

    /// It drained the segment once, perhaps: outcomes that only this copy has go to the drainer before the file does. True while they
    /// are on their way; a drainer that is not to be reached is given up after a while, since its attempts repeat nothing that was
    /// not in doubt.
    mutating func tellsOutcomes(_ id: SegmentID) -> Bool {
        guard let key = registry.keys[id], key.state != .finished, key.drainer != me, hasNoPart(in: key) else {
            return false
        }
        var copy = leavingCopies[id] ?? LeavingCopy()
        guard !copy.told, copy.since.map({ now - $0 < timing.lateOutcomes }) ?? true else { return false }
        let isDue = copy.triedAt.map { now - $0 >= timing.retransmit } ?? true
        if !copy.underWay, isDue, leavingCopies.values.count(where: \.underWay) < timing.lateUnderWay {
            if copy.drainer != key.drainer { (copy.drainer, copy.pieces) = (key.drainer, 0) }
            copy.since = copy.since ?? now
            copy.triedAt = now
            copy.underWay = true
            actions.append(
                .sendLateOutcomes(id, epoch: key.drainEpoch, to: key.drainer.node, after: copy.pieces))
        }
        leavingCopies[id] = copy
        return true
    }

    mutating func lateOutcomesSent(_ id: SegmentID, _ pieces: Int, _ all: Bool) {
        guard leavingCopies[id]?.underWay == true else { return }
        leavingCopies[id]?.underWay = false
        guard leavingCopies[id]?.drainer == registry.keys[id]?.drainer else { return }
        leavingCopies[id]?.pieces = pieces
        guard all else { return }
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
