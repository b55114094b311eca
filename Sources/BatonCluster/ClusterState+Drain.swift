// Delivery of a segment: permission, dots, outcomes, what is settled (PROTOCOL P1-P6, T5).
import BatonCore
import BatonModel
import BatonSpool

extension ClusterState {
    // MARK: Promises

    /// Who has to promise and to hold outcomes: members that are not stale in any view that may be the stored one (P1).
    func partners(_ id: SegmentID) -> [EnsembleMember] {
        if !guards.contains(.unknownIsNotStale), let believed = optimism[id] { return believed.partners(of: member) }
        var found: [EnsembleMember] = []
        for view in registry.views(id) {
            for partner in view.partners(of: member) where !found.contains(partner) { found.append(partner) }
        }
        return found
    }

    mutating func tickPromises() {
        guard now - promiseAskedAt >= timing.promiseRenewal else { return }
        promiseAskedAt = now
        var asks = Table<NodeID, [PromiseItem]>()
        for id in drains.keys {
            guard let drain = drains[id], case .ready = drain.phase, let key = registry.keys[id] else { continue }
            // Stale members are asked too: their answer shows that they are back.
            for other in key.everybody where other != member {
                asks[other.node] = (asks[other.node] ?? []) + [PromiseItem(segment: id, epoch: drain.epoch)]
                var peer = drain.peers[other] ?? PeerProgress()
                if peer.silentSince == nil { peer.silentSince = now }
                drains[id]?.peers[other] = peer
            }
        }
        for node in asks.keys {
            if let items = asks[node] { send(.askPromise(items, sentAt: now), to: node) }
        }
    }

    mutating func promised(_ items: [PromiseItem], _ sentAt: Instant, by sender: Drainer) {
        for item in items {
            guard drains[item.segment]?.epoch == item.epoch, let peer = memberOf(sender.node, item.segment) else {
                continue
            }
            var progress = drains[item.segment]?.peers[peer] ?? PeerProgress()
            // Counted from the asking, less a quarter for uneven clocks.
            progress.promiseUntil = max(progress.promiseUntil, sentAt + timing.promiseTrusted)
            progress.silentSince = nil
            drains[item.segment]?.peers[peer] = progress
            pump(item.segment)
        }
    }

    /// P1: a dot needs a fresh promise of every partner; the own lease plays no part.
    func mayDot(_ id: SegmentID, _ drain: Drain) -> Bool {
        guard case .ready = drain.phase, now >= drain.notBefore, isSealed(id) || drain.tailInvalid else { return false }
        guard guards.contains(.freshPromise) else { return true }
        func mayPass(_ other: EnsembleMember) -> Bool {
            let peer = drain.peers[other]
            if (peer?.promiseUntil ?? .epoch) > now { return true }
            guard !guards.contains(.staleByCompareAndSet), let since = peer?.silentSince else { return false }
            return now - since >= timing.silence
        }
        if !guards.contains(.unknownIsNotStale) { return partners(id).allSatisfy(mayPass) }
        return registry.allViews(id) { view in
            view.ensemble.allSatisfy { !view.isPartner($0, of: member) || mayPass($0) }
        }
    }

    /// Step 4 comes before step 5; the writer's own segment needs no seal.
    private func isSealed(_ id: SegmentID) -> Bool {
        append.segments.contains(id) || registry.keys[id]?.sealedAt != nil
    }

    // MARK: Dots

    /// P5: dots of this node whose outcome is not settled.
    var unsettled: Int {
        var sum = 0
        for id in drains.keys {
            guard let drain = drains[id] else { continue }
            sum += drain.inFlight
            if !drain.dotted.isEmpty { sum += drain.dotted(from: settledCount(id, drain)) }
        }
        return sum
    }

    mutating func pump(_ id: SegmentID) {
        guard let drain = drains[id], drain.hasDue(at: now), drain.cleaning == nil, !drain.raise, mayDot(id, drain)
        else { return }
        var room = guards.contains(.window) ? timing.window - unsettled : .max
        for index in drain.open {
            guard let record = drains[id]?.records[Int(index)], !record.held else { continue }
            for (recipient, state) in record.jobs.enumerated() {
                guard case .waiting(let due) = state, due <= now else { continue }
                guard room > 0 else { return }
                room -= 1
                let job = JobID(index: index, recipient: recipient)
                drains[id]?.set(job, .inFlight)
                // T1: the length is not known yet, and what is behind it will not count.
                if !isSealed(id) { actions.append(.maybeDuplicate(record.mail)) }
                actions.append(.dot(Dot(segment: id, epoch: drain.epoch, job: job, mail: record.mail)))
            }
        }
    }

    mutating func answered(_ dot: Dot, _ answer: ReceiverAnswer) {
        let id = dot.segment
        guard let drain = drains[id], drain.epoch == dot.epoch, drain.state(of: dot.job) == .inFlight else {
            return orphan(dot, answer)
        }
        switch answer {
        case .accepted: recordFinal(id, dot.job, .delivered)
        case .refused:
            guard !dot.mail.isReport else { return recordFinal(id, dot.job, .bounced) }
            // The report is durable before the outcome is recorded; its id is the same whoever makes it (C2).
            drains[id]?.set(dot.job, .reporting(now))
            enqueue(report(about: dot.mail, dot.job.recipient), .report(id, epoch: dot.epoch, dot.job))
            if !guards.contains(.reportBeforeOutcome) { recordFinal(id, dot.job, .bounced) }
        case .later, .unknown:
            let due = now + timing.retry + jitter()
            drains[id]?.set(dot.job, .waiting(due))
        case .damaged:
            drains[id]?.set(dot.job, .waiting(now + timing.promiseRenewal))
            drains[id]?.repairFrom = min(drain.repairFrom ?? dot.job.index, dot.job.index)
        }
        pump(id)
    }

    private mutating func jitter() -> TimeSpan { .milliseconds(Int64(random.next() % 500)) }

    /// Reports that found no place are offered again.
    mutating func tickReports() {
        for id in drains.keys {
            guard let drain = drains[id] else { continue }
            for index in drain.open {
                for (recipient, state) in drain.records[Int(index)].jobs.enumerated() {
                    guard case .unreported(let due) = state, due <= now else { continue }
                    let job = JobID(index: index, recipient: recipient)
                    drains[id]?.set(job, .reporting(now))
                    let report = report(about: drain.records[Int(index)].mail, recipient)
                    enqueue(report, .report(id, epoch: drain.epoch, job))
                }
            }
        }
    }

    /// T5: the dot was sent in an epoch that is over; a final answer still helps the taker.
    private mutating func orphan(_ dot: Dot, _ answer: ReceiverAnswer) {
        guard answer == .accepted, let key = registry.keys[dot.segment] else { return }
        let record = JobOutcome(job: dot.job, outcome: .delivered)
        if drains[dot.segment] != nil { return applyOutcomes(dot.segment, [record], late: true) }
        guard key.state != .finished, key.drainer != me else { return }
        late[dot.segment] = (late[dot.segment] ?? []) + [record]
        send(.late(dot.segment, [record]), to: key.drainer.node)
    }

    private func report(about mail: MailRecord, _ recipient: Int) -> MailRecord {
        Self.report(about: mail.id, number: recipient + (guards.contains(.numbersKept) ? mail.firstNumber : 0))
    }

    /// A non-delivery report's id is made of the message and the recipient's number in the whole of it, so that it cannot double (C2).
    package static func report(about mail: MessageID, number: Int) -> MailRecord {
        var hash = StableHash()
        hash.combine(mail.low)
        hash.combine(UInt64(number))
        var record = MailRecord(
            id: MessageID(high: mail.high | 1 << 63, low: hash.finish()), recipients: 1, digest: hash.finish())
        record.isReport = true
        return record
    }

    // MARK: Outcomes

    /// A final outcome of this drainer: into the log, to the backups at once.
    mutating func recordFinal(_ id: SegmentID, _ job: JobID, _ outcome: Outcome) {
        guard let state = drains[id]?.state(of: job), state != .done else { return }
        record(id, JobOutcome(job: job, outcome: outcome))
    }

    mutating func record(_ id: SegmentID, _ record: JobOutcome) {
        guard let drain = drains[id] else { return }
        let from = drain.log.count
        switch drain.state(of: record.job) {
        case .inFlight, .reporting, .unreported: drains[id]?.dotted.append(from)
        case .waiting, .done, nil: break
        }
        drains[id]?.log.append(record)
        copies[id]?.note(record)
        copies[id]?.logEpoch = drain.epoch
        copies[id]?.logCount = from + 1
        if copies[id]?.dirtySince == nil { copies[id]?.dirtySince = now }
        disk(.outcomes(id, epoch: drain.epoch, from: from, [record]))
        settle(id, record)
        if record.outcome.isFinal {
            let index = Int(record.job.index)
            if index < drain.records.count {
                actions.append(
                    .final(id, epoch: drain.epoch, position: from, record, drain.records[index].mail))
            }
        }
        stream(id, fresh: true)
    }

    /// The job is over, or its hold is.
    mutating func settle(_ id: SegmentID, _ record: JobOutcome) {
        guard record.job.index < drains[id]?.length ?? 0 else { return }
        if record.outcome.isFinal {
            drains[id]?.set(record.job, .done)
        } else {
            drains[id]?.records[Int(record.job.index)].held = false
        }
    }

    /// Outcomes that other members know; only for what has not started here (T5).
    mutating func applyOutcomes(_ id: SegmentID, _ records: [JobOutcome], late: Bool) {
        if late, !guards.contains(.lateOutcomes) { return }
        for record in records {
            guard let drain = drains[id], record.job.index < drain.length else { continue }
            if record.outcome.isFinal {
                guard case .waiting? = drain.state(of: record.job) else { continue }
                self.record(id, record)
            } else if drain.records[Int(record.job.index)].held {
                self.record(id, record)
            }
        }
    }

    mutating func lateOutcomes(_ id: SegmentID, _ records: [JobOutcome]) {
        guard let drain = drains[id] else { return }
        if case .ready = drain.phase {
            applyOutcomes(id, records, late: true)
        } else if guards.contains(.lateOutcomes) {
            for record in records { copies[id]?.note(record) }
        }
    }

    // MARK: Streaming to the backups

    mutating func tickOutcomes() {
        for id in drains.keys {
            stream(id, fresh: false)
            tickRepair(id)
            saySettled(id)
        }
        for id in late.keys {
            guard let key = registry.keys[id], key.state != .finished, key.drainer != me, let records = late[id] else {
                late[id] = nil
                continue
            }
            if now - listSentAt < .milliseconds(150) { send(.late(id, records), to: key.drainer.node) }
        }
    }

    private mutating func stream(_ id: SegmentID, fresh: Bool) {
        guard let drain = drains[id], case .ready = drain.phase,
            fresh || !drain.log.isEmpty || drain.peers.contains(where: \.probing), let key = registry.keys[id]
        else { return }
        for other in key.everybody where other != member {
            var peer = drain.peers[other] ?? PeerProgress()
            let behind = peer.memory < drain.log.count
            let recently = peer.sentAt.map { now - $0 < timing.retransmit } ?? false
            // Said again while the synced offset lags, too: the acknowledgement may have been lost.
            let asks = peer.synced < drain.log.count || peer.probing
            guard behind ? (fresh || !recently) : (!fresh && !recently && asks) else { continue }
            peer.sentAt = now
            drains[id]?.peers[other] = peer
            send(
                .outcomes(id, epoch: drain.epoch, from: peer.memory, Array(drain.log[peer.memory...])), to: other.node)
            if !guards.contains(.settledByBackups) { drains[id]?.peers[other]?.memory = drain.log.count }
        }
    }

    mutating func acknowledged(_ id: SegmentID, _ epoch: UInt64, memory: Int, synced: Int, by sender: Drainer) {
        guard let drain = drains[id], drain.epoch == epoch, let other = memberOf(sender.node, id) else { return }
        var peer = drain.peers[other] ?? PeerProgress()
        if peer.incarnation == nil { peer.incarnation = sender.incarnation }
        peer.probing = false
        peer.memory = max(peer.memory, min(memory, drain.log.count))
        peer.synced = max(peer.synced, min(synced, drain.log.count))
        drains[id]?.peers[other] = peer
        saySettled(id)
        pump(id)
    }

    /// P4: a new incarnation may have lost what it had only in memory: again from the synced offset.
    mutating func peerRestarted(_ sender: Drainer, in id: SegmentID) {
        guard let drain = drains[id], let other = memberOf(sender.node, id), var peer = drain.peers[other] else {
            return
        }
        if peer.incarnation != nil, peer.incarnation != sender.incarnation, guards.contains(.resendToNewIncarnation) {
            peer.memory = peer.synced
            peer.sentAt = nil
        }
        peer.incarnation = sender.incarnation
        peer.reported = nil
        peer.probing = true
        drains[id]?.peers[other] = peer
        saySettled(id)
    }

    /// P3: every non-stale backup has it, or, when there is none, it is synced here; in every view that may be true.
    func settledCount(_ id: SegmentID, _ drain: Drain) -> Int {
        var count = drain.log.count
        let synced = copies[id].map { $0.logEpoch == drain.epoch ? $0.logSynced : 0 } ?? 0
        func limit(_ view: ClusterKey) -> Bool {
            var alone = true
            for partner in view.ensemble where view.isPartner(partner, of: member) {
                alone = false
                count = min(count, drain.peers[partner]?.memory ?? 0)
            }
            if alone { count = min(count, synced) }
            return true
        }
        if !guards.contains(.unknownIsNotStale), let believed = optimism[id] {
            _ = limit(believed)
        } else {
            _ = registry.allViews(id, satisfy: limit)
        }
        return guards.contains(.doubtAfterLeaving) ? count : max(count, drain.settledHigh)
    }

    mutating func saySettled(_ id: SegmentID) {
        guard let drain = drains[id], !drain.log.isEmpty || drain.settledSaid > 0 else { return }
        let count = settledCount(id, drain)
        guard count != drain.settledSaid else { return }
        drains[id]?.settledSaid = count
        drains[id]?.settledHigh = max(drain.settledHigh, count)
        actions.append(.settled(id, epoch: drain.epoch, count))
    }

    /// Somebody else drains it now: no dot any more; answers to those under way become late outcomes.
    mutating func dropDrain(_ id: SegmentID) {
        guard let drain = drains[id] else { return }
        drains[id] = nil
        // What is recorded here and nowhere else helps the taker (T5).
        if let key = registry.keys[id], key.drainer != me, drain.log.count > drain.settledSaid {
            late[id] = drain.log.filter { $0.outcome.isFinal }
            send(.late(id, drain.log.filter { $0.outcome.isFinal }), to: key.drainer.node)
        }
    }
}
