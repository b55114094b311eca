// The backup's side, and what the disk says: files, appends, outcome logs, promises, reports to a taker.
import BatonCore
import BatonModel
import BatonSpool

extension ClusterState {
    // MARK: Disk

    mutating func finished(_ operation: DiskOperation, _ result: DiskResult) {
        switch result {
        case .failed:
            // Never retried: the lane is dead, the node steps down and starts anew.
            if case .sync(let id, _) = operation { perform(lane: .failed(id)) }
            return restart(.diskFailed)
        case .full: return full(operation)
        case .done, .scanned: break
        }
        switch operation {
        case .create(let id):
            guard copies[id] != nil else { return }
            copies[id]?.created = true
            if id.writer == me.node, id.incarnation == me.incarnation {
                created(id, by: member)
            } else {
                send(.created(id), to: id.writer)
            }
        case .recreate(let id): copies[id]?.created = true
        case .whole(let id): whole(id)
        case .write(let chunk):
            // Without the rule a write counts as durable.
            if !guards.contains(.syncBeforeAck) { synced(chunk.segment, upTo: chunk.end) }
        case .sync(let id, let upTo): synced(id, upTo: upTo)
        case .seal(let id, let epoch): sealed(id, epoch)
        case .outcomes: break
        case .syncOutcomes(let id, let epoch, let count): syncedOutcomes(id, epoch, count)
        case .scan(let id):
            if case .scanned(let scan) = result { scanned(id, scan) }
        case .cut: break
        case .repair(let id, _): disk(.scan(id))
        case .unlink(let id): unlinked(id)
        }
    }

    private mutating func full(_ operation: DiskOperation) {
        switch operation {
        case .create(let id):
            append.segments[id] = nil
            unlink(id)
        case .recreate(let id):
            // Tried again with the next listing, or when the drainer gives again.
            copies[id] = nil
            drains[id] = nil
        case .write(let chunk):
            append.fullUntil = now + .seconds(2)
            // What stands there is of no use: the copy says no more than what it has synced.
            let kept = min(chunk.start, copies[chunk.segment]?.end ?? 0)
            copies[chunk.segment]?.cut(at: kept)
            copies[chunk.segment]?.tailInvalid = true
            if append.segments[chunk.segment] != nil { replace(chunk.segment) }
        default: break
        }
    }

    private mutating func synced(_ id: SegmentID, upTo: Int64) {
        guard let copy = copies[id], !copy.tailInvalid else { return }
        let durableEnd = guards.contains(.prefix) ? min(upTo, copy.end) : upTo
        copies[id]?.synced = max(copy.synced, durableEnd)
        let end = copies[id]?.synced ?? 0
        if id.writer == me.node, id.incarnation == me.incarnation {
            durable(id, member, upTo: end)
        } else if copy.fence == 0 {
            send(.durable(id, upTo: end), to: id.writer)
        } else {
            // Sealed meanwhile: a DURABLE now could acknowledge what the taker did not scan. The seal followed the write, so
            // that the scan has it; the writer learns that it is over.
            send(.sealed(id, epoch: copy.fence), to: id.writer)
        }
    }

    // MARK: Frames

    mutating func received(_ frame: Frame, from sender: Drainer) {
        // What a receiver took stays true, whatever became of the sender since (T5).
        if case .late(let id, let records) = frame { lateOutcomes(id, records) }
        guard meet(sender) else { return }
        switch frame {
        case .create(let id): create(id, for: sender)
        case .created(let id): if let peer = memberOf(sender.node, id) { created(id, by: peer) }
        case .append(let chunk): appended(chunk, from: sender)
        case .durable(let id, let upTo): if let peer = memberOf(sender.node, id) { durable(id, peer, upTo: upTo) }
        case .sealed(let id, let epoch): sealedElsewhere(id, epoch)
        case .outcomes(let id, let epoch, let from, let records): tookOutcomes(id, epoch, from, records, sender)
        case .outcomeAck(let id, let epoch, let memory, let synced):
            acknowledged(id, epoch, memory: memory, synced: synced, by: sender)
        case .askPromise(let items, let sentAt): promise(items, sentAt, to: sender)
        case .promise(let items, let sentAt): promised(items, sentAt, by: sender)
        case .report(let id, let epoch): report(id, epoch, to: sender)
        case .reported(let id, let epoch, let report): reported(id, epoch, report, by: sender)
        case .fetch(let id, let epoch, let from): fetch(id, epoch, from, for: sender)
        case .chunks(let id, let epoch, let chunks): repair(id, epoch, chunks, from: sender)
        case .whole(let id, let epoch, let count): becomeWhole(id, epoch, count)
        case .late: break
        case .confirm(let id): confirm(id, to: sender)
        case .unlinked(let id): confirmed(id, by: sender)
        case .submit(let mail, let key, let receiver): submitted(mail, key, receiver, from: sender)
        case .submitted(let key, let answer): submitAnswered(key, answer, by: sender)
        case .ask(let key, let receiver): asked(key, receiver, by: sender)
        case .answer(let key, let answer, let covers): heard(key, answer, covers, from: sender)
        }
    }

    /// Notes the sender's incarnation; false for one that another has followed. Incarnations of a node are in the order of its
    /// starts: a frame of an old one may come first after one of the new.
    private mutating func meet(_ sender: Drainer) -> Bool {
        var met = incarnations[sender.node] ?? []
        if met.last == sender.incarnation { return true }
        if met.contains(sender.incarnation) { return false }
        if guards.contains(.orderedIncarnations), let last = met.last, sender.incarnation < last { return false }
        met.append(sender.incarnation)
        incarnations[sender.node] = met
        for id in drains.keys { peerRestarted(sender, in: id) }
        return true
    }

    /// The member of the segment's ensemble (or the joining one) that lives on this node.
    func memberOf(_ node: NodeID, _ id: SegmentID) -> EnsembleMember? {
        if let segment = append.segments[id], let found = segment.ensemble.first(where: { $0.node == node }) {
            return found
        }
        guard let key = registry.keys[id] else { return nil }
        if let found = key.ensemble.first(where: { $0.node == node }) { return found }
        return key.joining?.node == node ? key.joining : nil
    }

    private mutating func create(_ id: SegmentID, for writer: Drainer) {
        guard id.writer == writer.node, id.incarnation == writer.incarnation, registry.keys[id] == nil else { return }
        if let copy = copies[id] {
            if copy.created { send(.created(id), to: writer.node) }
            return
        }
        guard now >= append.fullUntil else { return }
        copies[id] = Copy()
        disk(.create(id))
    }

    private mutating func appended(_ chunk: Chunk, from sender: Drainer) {
        let id = chunk.segment
        guard id.writer == sender.node, id.incarnation == sender.incarnation, let copy = copies[id] else { return }
        switch copy.decide(chunk, guards: guards) {
        case .refuse: send(.sealed(id, epoch: copy.fence), to: sender.node)
        case .ignore: break
        case .repeatDurable:
            if chunk.end <= copy.synced {
                send(.durable(id, upTo: copy.synced), to: sender.node)
            } else {
                // Read back after a restart, or its sync is still under way: durable only once it was synced.
                disk(.sync(id, upTo: copy.end))
            }
        case .write:
            copies[id]?.chunks.append(chunk)
            disk(.write(chunk))
            if guards.contains(.syncBeforeAck) { disk(.sync(id, upTo: chunk.end)) }
        }
    }

    private mutating func sealedElsewhere(_ id: SegmentID, _ epoch: UInt64) {
        guard let key = registry.keys[id], epoch > key.drainEpoch else { return }
        // F3, F6: stop at once, and read what happened.
        lose(id)
        control(.read(id))
    }

    /// F3: a frame of a higher epoch says that this node drains the segment no more, whatever its own view of the key is.
    mutating func overtaken(_ id: SegmentID, by epoch: UInt64) {
        guard let drain = drains[id], drain.epoch < epoch else { return }
        lose(id)
        drains[id] = nil
        control(.read(id))
    }

    // MARK: Outcome logs

    private mutating func tookOutcomes(
        _ id: SegmentID, _ epoch: UInt64, _ from: Int, _ records: [JobOutcome], _ sender: Drainer
    ) {
        overtaken(id, by: epoch)
        guard var copy = copies[id], copy.created else {
            // A member without its file says so, and gets it again: damage, never emptiness (A4).
            if let key = registry.keys[id], isMember(of: key), copies[id] == nil, key.state != .finished {
                send(.reported(id, epoch: epoch, .missing), to: sender.node)
            }
            return
        }
        switch copy.decide(epoch: epoch, from: from, records, guards: guards) {
        case .refuse: return send(.sealed(id, epoch: copy.fence), to: sender.node)
        case .gap: break
        case .take(let fresh):
            if !fresh.isEmpty {
                for record in fresh { copy.note(record) }
                disk(.outcomes(id, epoch: epoch, from: copy.logCount, Array(fresh)))
                copy.logCount += fresh.count
                if copy.dirtySince == nil { copy.dirtySince = now }
            }
        }
        copies[id] = copy
        send(.outcomeAck(id, epoch: epoch, memory: copy.logCount, synced: copy.logSynced), to: sender.node)
    }

    private mutating func syncedOutcomes(_ id: SegmentID, _ epoch: UInt64, _ count: Int) {
        guard var copy = copies[id] else { return }
        copy.syncUnderWay = false
        if copy.logEpoch == epoch {
            copy.logSynced = max(copy.logSynced, count)
            copy.dirtySince = copy.logSynced < copy.logCount ? now : nil
        }
        copies[id] = copy
        guard let key = registry.keys[id] else { return }
        if key.drainer == me {
            saySettled(id)
            pump(id)
        } else if copy.logEpoch == epoch {
            send(.outcomeAck(id, epoch: epoch, memory: copy.logCount, synced: copy.logSynced), to: key.drainer.node)
        }
    }

    /// Nobody waits for the sync of outcomes, but it comes within a second.
    mutating func tickCopies() {
        for id in copies.keys {
            guard let copy = copies[id], let since = copy.dirtySince, !copy.syncUnderWay else { continue }
            guard now - since >= timing.outcomeSync else { continue }
            copies[id]?.syncUnderWay = true
            disk(.syncOutcomes(id, epoch: copy.logEpoch, count: copy.logCount))
        }
    }

    // MARK: Promises

    /// P1: "I send no dot for this segment before now + length." Not for a segment that this node drains.
    private mutating func promise(_ items: [PromiseItem], _ sentAt: Instant, to sender: Drainer) {
        var given: [PromiseItem] = []
        for item in items {
            // Only with the file, whose seal remembers later epochs: whoever unlinked it, or lost it, knows nothing.
            guard drains[item.segment] == nil, let copy = copies[item.segment], copy.created, copy.fence <= item.epoch
            else { continue }
            if let key = registry.keys[item.segment], key.drainEpoch > item.epoch { continue }
            promises.give(item.segment, until: now + timing.promise)
            given.append(item)
        }
        if !given.isEmpty { send(.promise(given, sentAt: sentAt), to: sender.node) }
    }

    // MARK: Leaving and going

    mutating func cut(_ id: SegmentID, at length: Int64) {
        guard let copy = copies[id] else { return }
        if copy.end > length || (copy.tailInvalid && copy.end == length) {
            copies[id]?.cut(at: length)
            disk(.cut(id, at: length))
        }
        trim(id, to: length)
    }

    mutating func unlink(_ id: SegmentID) {
        guard copies[id] != nil else { return }
        copies[id] = nil
        unlinking[id] = true
        disk(.unlink(id))
    }

    private mutating func unlinked(_ id: SegmentID) {
        confirming[id] = nil
        unlinking[id] = nil
        if finishing[id] == nil, let key = registry.keys[id] { send(.unlinked(id), to: key.drainer.node) }
        finishing[id]?.selfGone = true
    }

    /// Replaced by another member: the outcomes that only this copy may have go to the drainer, then the file (C3 by `former`).
    mutating func leaveCopy(_ key: ClusterKey) {
        guard key.former.contains(member), let copy = copies[key.id], key.drainer != me else { return }
        let finals = copy.allOutcomes.filter { $0.outcome.isFinal }
        if !finals.isEmpty { send(.late(key.id, finals), to: key.drainer.node) }
        unlink(key.id)
    }

    /// Own or others' empty files whose key was never written, and can never be: the writer is gone (A4).
    mutating func dropUnregistered(_ listing: Listing) {
        for id in copies.keys {
            guard let copy = copies[id], copy.created, copy.chunks.isEmpty, !copy.tailInvalid, registry.keys[id] == nil,
                !listing.nodes.contains(where: { $0.node == id.writer && $0.incarnation == id.incarnation }),
                !(id.writer == me.node && id.incarnation == me.incarnation)
            else { continue }
            unlink(id)
        }
    }

    // MARK: Confirming that a finished segment's file has gone

    private mutating func confirm(_ id: SegmentID, to sender: Drainer) {
        confirming[id] = sender.node
        if registry.keys[id]?.state == .finished {
            confirmRead(id)
        } else {
            control(.read(id))
        }
    }

    mutating func confirmRead(_ id: SegmentID) {
        guard let asker = confirming[id], registry.keys[id]?.state == .finished || registry.keys[id] == nil else {
            return
        }
        // Asked for, but not yet done: the answer comes when the disk has done it.
        guard unlinking[id] == nil else { return }
        if copies[id] == nil {
            confirming[id] = nil
            send(.unlinked(id), to: asker)
        } else if registry.keys[id] != nil {
            unlink(id)
        }
    }
}
