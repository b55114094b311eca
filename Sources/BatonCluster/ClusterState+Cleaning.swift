// Moving the few live messages of an old segment into the open one (PROTOCOL C2).
import BatonCore
import BatonSpool

extension ClusterState {
    /// True when a change of the key was made or a cleaning is under way.
    mutating func tickCleaning(_ id: SegmentID, _ key: ClusterKey, _ length: Int64) -> Bool {
        guard let drain = drains[id], drain.length == length else { return false }
        guard let cleaning = drain.cleaning else { return beginCleaning(id, key, drain) }
        if now - cleaning.begunAt > .seconds(5) {
            voidCleaning(id)
        } else if key.target == cleaning.target, cleaning.moved.isEmpty {
            moveAll(id, drain, cleaning)
        } else if !cleaning.moved.isEmpty, Set(cleaning.landed).isSuperset(of: cleaning.moved) {
            // C2 iii: the only commit point, competing with takeover on the same key.
            if !guards.contains(.finishedCommitsMove) { releaseMoved(from: id) }
            change(id) { $0.finish() }
        }
        return true
    }

    private mutating func beginCleaning(_ id: SegmentID, _ key: ClusterKey, _ drain: Drain) -> Bool {
        // A moved message is attempted at its new place without regard to promises about the old one: permission is needed now.
        guard mayDot(id, drain), key.target == nil, !drain.open.isEmpty, drain.open.count * 4 <= drain.records.count,
            drain.inFlight == 0,
            let first = drain.records.first?.mail, now - first.id.madeAt >= timing.cleanAfter,
            drain.open.allSatisfy({ isMovable(drain.records[Int($0)]) }), drain.log.count == settledCount(id, drain),
            let target = append.current, target != id
        else { return false }
        // C2 i: the target stands in the source's key before anything is moved.
        drains[id]?.cleaning = Cleaning(target: target, begunAt: now)
        change(id) { $0.target = target }
        return true
    }

    private func isMovable(_ record: DrainRecord) -> Bool {
        !record.held
            && record.jobs.allSatisfy { state in
                switch state {
                case .waiting, .done: true
                case .inFlight, .reporting, .unreported: false
                }
            }
    }

    /// C2 ii: appended anew, held for the source at this epoch; the original is not attempted meanwhile.
    private mutating func moveAll(_ id: SegmentID, _ drain: Drain, _ cleaning: Cleaning) {
        guard append.current == cleaning.target else { return voidCleaning(id) }
        for index in drain.open {
            let record = drain.records[Int(index)]
            var moved = record.mail
            moved.hold = guards.contains(.heldWhileMoved) ? .moved(source: id, epoch: drain.epoch, index: index) : nil
            moved.settledBefore = record.jobs.indices.filter { record.jobs[$0] == .done }
            drains[id]?.cleaning?.moved.append(index)
            enqueue(moved, .moved(id, epoch: drain.epoch, index: index))
        }
    }

    /// A moved message is durable in `place`; only all of them in the target make a cleaning.
    mutating func landed(_ source: SegmentID, _ epoch: UInt64, _ index: Int64, in place: SegmentID) {
        guard drains[source]?.epoch == epoch, let cleaning = drains[source]?.cleaning else { return }
        guard cleaning.target == place else { return voidCleaning(source) }
        drains[source]?.cleaning?.landed.append(index)
        tickChanges(source)
    }

    /// What was moved at this epoch has to become void before the source goes on.
    mutating func voidCleaning(_ id: SegmentID) {
        drains[id]?.cleaning = nil
        if guards.contains(.epochVoidsMove) { drains[id]?.raise = true }
    }

    /// C2 iii's counter-example: live once it has landed, whoever drains the source by now.
    private mutating func releaseMoved(from source: SegmentID) {
        for id in drains.keys {
            for index in drains[id]?.open ?? [] {
                if case .moved(source, _, _)? = drains[id]?.records[Int(index)].mail.hold { release(id, index) }
            }
        }
    }

    /// C2 iv: what the source's key says about messages that were moved out of it.
    mutating func decideMoves(from source: ClusterKey) {
        for id in drains.keys {
            guard let drain = drains[id], case .ready = drain.phase else { continue }
            for index in drain.open {
                guard drain.records[Int(index)].held, let record = drains[id]?.records[Int(index)], record.held,
                    case .moved(source.id, let epoch, _)? = record.mail.hold
                else { continue }
                decide(id, index, source, epoch)
            }
        }
    }

    private mutating func decide(_ id: SegmentID, _ index: Int64, _ source: ClusterKey, _ epoch: UInt64) {
        let finished = source.state == .finished
        let reached = finished ? source.finishedEpoch : source.drainEpoch
        if reached > epoch, guards.contains(.epochVoidsMove) {
            withdraw(id, index)
        } else if finished {
            release(id, index)
        }
    }

    /// A source's key goes only after its target has decided (C2 v): an undecided message whose source is gone was never
    /// part of a finished cleaning.
    mutating func decideAbsent(_ listing: Listing) {
        let there = Set(listing.keys.map(\.id))
        for id in drains.keys {
            guard let drain = drains[id], case .ready = drain.phase else { continue }
            for index in drain.open {
                guard drain.records[Int(index)].held, let record = drains[id]?.records[Int(index)], record.held,
                    record.addedAt < listSentAt,
                    case .moved(let source, _, _)? = record.mail.hold
                else { continue }
                if !there.contains(source) {
                    withdraw(id, index)
                } else if let key = registry.keys[source], case .moved(_, let epoch, _)? = record.mail.hold {
                    decide(id, index, key, epoch)
                }
            }
        }
    }

    mutating func withdraw(_ id: SegmentID, _ index: Int64) {
        for recipient in 0..<(drains[id]?.records[Int(index)].jobs.count ?? 0) {
            recordFinal(id, JobID(index: index, recipient: recipient), .withdrawn)
        }
    }

    /// C2 v: the source's key goes only when the target's log holds every decision, or the target is gone.
    /// And not while a second registration of it may land, which the end of the writer's incarnation makes impossible.
    func mayRemove(_ key: ClusterKey) -> Bool {
        if guards.contains(.registrationSettled), isRegisteredTwice(key.id) { return false }
        guard guards.contains(.decisionBeforeTombstone), let target = key.target else { return true }
        // A finished target has decided everything.
        if registry.keys[target]?.state == .finished { return true }
        return registry.keys[target] == nil && registry.listedRevision >= key.revision
    }

    func isRegisteredTwice(_ id: SegmentID) -> Bool { append.registrations[id] ?? 0 > 1 }

    /// The target's drainer takes its own name out of the source's key once its decisions are synced on every member.
    mutating func tickTargets() {
        guard registry.keys.contains(where: { $0.target != nil }) else { return }
        for source in registry.keys.values {
            guard let target = source.target, let drain = drains[target], case .ready = drain.phase,
                let key = registry.keys[target], append.segments[target] != nil || key.sealedAt == drain.length,
                source.state == .finished || key.sealedAt != nil, !registry.isBusy(source.id)
            else { continue }
            let undecided = drain.records.contains { record in
                guard record.held, case .moved(source.id, _, _)? = record.mail.hold else { return false }
                return record.isOpen
            }
            let synced = copies[target].map { $0.logEpoch == drain.epoch ? $0.logSynced : 0 } ?? 0
            // A stale member, too: as the last copy it would take the source's absence for a void move.
            guard !undecided, synced >= drain.log.count, key.stale.isEmpty,
                key.partners(of: member).allSatisfy({ (drain.peers[$0]?.synced ?? 0) >= drain.log.count })
            else { continue }
            change(source.id) { $0.target = nil }
        }
    }
}
