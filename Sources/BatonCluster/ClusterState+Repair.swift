// Copies that lack something: chunks from other members, files made anew in place of lost ones, and when such a file is whole.
import BatonCore
import BatonModel
import BatonSpool

extension ClusterState {
    // MARK: Files made anew

    /// A file that is gone, or one for a joining member (C1): marked on disk, so that a restart does not take it for all there was.
    mutating func recreate(_ id: SegmentID) {
        copies[id] = Copy()
        copies[id]?.created = true
        if guards.contains(.rebuiltIsMarked), guards.contains(.missingIsDamage) {
            copies[id]?.rebuilt = true
            disk(.recreate(id))
        } else {
            disk(.create(id))
        }
    }

    /// The drainer's own copy: it has the data, and every outcome of this epoch, which began with all that was known.
    private mutating func whenSynced(_ id: SegmentID, _ drain: Drain) {
        guard let copy = copies[id], copy.logEpoch == drain.epoch || drain.log.isEmpty,
            copy.logSynced >= drain.log.count, drain.fetchedAt.map({ now - $0 >= timing.promiseRenewal }) ?? true
        else { return }
        drains[id]?.fetchedAt = now
        disk(.whole(id))
    }

    /// The drainer says what a copy has to have.
    mutating func becomeWhole(_ id: SegmentID, _ epoch: UInt64, _ count: Int) {
        guard let copy = copies[id], let key = registry.keys[id], key.drainEpoch == epoch, let length = key.sealedAt
        else { return }
        guard copy.rebuilt else { return whole(id) }
        guard !copy.tailInvalid, copy.end >= length, count == 0 || copy.logEpoch == epoch, copy.logSynced >= count
        else { return }
        disk(.whole(id))
    }

    mutating func whole(_ id: SegmentID) {
        copies[id]?.rebuilt = false
        guard let key = registry.keys[id], key.drainer != me, let report = copies[id]?.report else { return }
        send(.reported(id, epoch: key.drainEpoch, report), to: key.drainer.node)
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
            for other in key.everybody where other != member {
                send(.fetch(id, epoch: drain.epoch, from: from), to: other.node)
            }
            return
        }
        guard let length = key.sealedAt else { return }
        if copies[id]?.rebuilt == true, own >= length { whenSynced(id, drain) }
        // And gives to members what they lack.
        for other in key.everybody where other != member {
            guard let peer = drain.peers[other], let report = peer.reported, report.end < length || report.rebuilt,
                peer.reportAskedAt.map({ now - $0 >= timing.promiseRenewal }) ?? true
            else { continue }
            if report.end < length {
                guard other != key.joining else { continue }
                give(id, from: report.end, to: other)
            } else {
                guard peer.synced >= drain.log.count else { continue }
                send(.whole(id, epoch: drain.epoch, count: drain.log.count), to: other.node)
            }
            drains[id]?.peers[other]?.reportAskedAt = now
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
            recreate(id)
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
