// The writer: segments registered ahead, chunks, the acknowledgement, the seal, and what becomes of unacknowledged mail.
import BatonCore
import BatonModel
import BatonSpool

extension ClusterState {
    mutating func enqueue(_ mail: MailRecord, _ origin: Origin) {
        guard !append.dead, append.waiting.count < timing.waitingRecords, now >= append.fullUntil else {
            return refused(Submission(mail: mail, origin: origin, since: now))
        }
        append.waiting.append(Submission(mail: mail, origin: origin, since: now))
    }

    mutating func tickAppend() {
        keepSegmentsReady()
        for id in append.segments.keys { tickSegment(id) }
        // Whoever waits too long gets 451. What was written may still be kept, so that it counts.
        let (late, rest) = append.waiting.partitioned { now - $0.since >= timing.replyDeadline }
        append.waiting = rest
        for submission in late { refused(submission) }
        for id in append.segments.keys { abandonLate(id) }
    }

    private mutating func abandonLate(_ id: SegmentID) {
        guard let segment = append.segments[id] else { return }
        for (place, submission) in segment.unacked.enumerated()
        where submission.origin == .client && now - submission.since >= timing.replyDeadline {
            append.segments[id]?.unacked[place].origin = .abandoned
            actions.append(.maybeDuplicate(submission.mail))
            partAnswered(submission.mail, durable: false)
        }
    }

    /// One segment takes mail and one is registered ahead of need, with another backup.
    private mutating func keepSegmentsReady() {
        guard registered, registry.listedAt != nil, !append.dead, append.usable < 2 else { return }
        let others = registry.nodes.filter { $0.node != me.node && !registry.forgotten.contains($0.member) }
        guard others.count >= timing.copies - 1 else { return }
        let id = SegmentID(writer: me.node, incarnation: me.incarnation, index: append.nextIndex)
        let first = Int(append.nextIndex % UInt64(max(others.count, 1)))
        let backups = (0..<(timing.copies - 1)).map { others[(first + $0) % others.count].member }
        append.nextIndex += 1
        var segment = WriterSegment(
            ensemble: [member] + backups, backups: backups, phase: .creating(missing: [member] + backups), begunAt: now,
            askedAt: now)
        copies[id] = Copy()
        disk(.create(id))
        for backup in backups { send(.create(id), to: backup.node) }
        // A4: without this rule the key would be written at once.
        if !guards.contains(.filesBeforeKey) { segment.phase = .registering }
        append.segments[id] = segment
        if !guards.contains(.filesBeforeKey) { register(id) }
    }

    /// A member has created its file.
    mutating func created(_ id: SegmentID, by member: EnsembleMember) {
        guard case .creating(var missing)? = append.segments[id]?.phase else { return }
        missing.removeAll { $0 == member }
        append.segments[id]?.phase = missing.isEmpty ? .registering : .creating(missing: missing)
        if missing.isEmpty { register(id) }
    }

    private mutating func register(_ id: SegmentID) {
        guard let segment = append.segments[id], !registry.isBusy(id) else { return }
        let key = ClusterKey(id: id, ensemble: segment.ensemble, drainer: me)
        guard registry.begin(key) else { return }
        append.registrations[id] = (append.registrations[id] ?? 0) + 1
        control(.store(key, guards.contains(.registeredWriter) ? .registered(me) : .none))
    }

    private mutating func tickSegment(_ id: SegmentID) {
        guard let segment = append.segments[id] else { return }
        switch segment.phase {
        case .creating(let missing):
            if now - segment.begunAt > .seconds(3) {
                // Own empty file without a key: it may go (A4).
                append.segments[id] = nil
                return unlink(id)
            }
            guard now - segment.askedAt >= timing.retransmit else { return }
            append.segments[id]?.askedAt = now
            for other in missing { send(.create(id), to: other.node) }
        case .registering: register(id)
        case .open:
            guard let since = segment.waitingSince else {
                // Nothing waits, but outcomes and moves in it need all its members (seed 18218).
                let isShort = segment.backups.contains { registry.forgotten.contains($0) }
                if isShort, segment.end > 0, segment.sealAt == nil, !segment.sealSent { replace(id) }
                return
            }
            if now - since >= timing.appendDeadline, segment.sealAt == nil, !segment.sealSent { return replace(id) }
            if segment.sealAt == nil, now - segment.sentAt >= timing.retransmit {
                append.segments[id]?.sentAt = now
                for chunk in segment.chunks {
                    for backup in segment.backups { send(.append(chunk), to: backup.node) }
                }
            }
        }
    }

    /// A slow or silent backup is replaced: seal where all is acknowledged, go on in the next (A1).
    mutating func replace(_ id: SegmentID) {
        guard let segment = append.segments[id], segment.sealAt == nil else { return }
        if !guards.contains(.ensembleFixed) { return shrink(id) }
        append.segments[id]?.sealAt = append.lane.acked(id)
        if guards.contains(.sealStopsAcks) {
            append.segments[id]?.sealSent = true
            perform(lane: .sealSent(id))
        }
        // A3's counter-example: the old place may still be kept by a taker.
        if !guards.contains(.reappendAfterSeal) {
            append.waiting.insert(contentsOf: segment.unacked, at: 0)
            append.segments[id]?.unacked = []
            append.segments[id]?.chunks = []
            append.segments[id]?.waitingSince = nil
        }
        tickChanges(id)
    }

    /// A1's counter-example: going on without the silent backup, as an in-sync set would.
    private mutating func shrink(_ id: SegmentID) {
        guard let segment = append.segments[id] else { return }
        for backup in segment.backups { perform(lane: .durable(id, backup, upTo: segment.end)) }
    }

    // MARK: Chunks

    /// Forms chunks of what is waiting while the current segment takes them.
    mutating func flush() {
        guard !append.dead else { return }
        while !append.waiting.isEmpty, let id = append.current, var segment = append.segments[id],
            segment.chunks.count < timing.chunksInFlight
        {
            var taken = Array(append.waiting.prefix(timing.chunkRecords))
            append.waiting.removeFirst(taken.count)
            for index in taken.indices { taken[index].touched = true }
            let chunk = Chunk(segment: id, start: segment.end, records: taken.map(\.mail))
            segment.chunks.append(chunk)
            segment.unacked.append(contentsOf: taken)
            segment.end = chunk.end
            segment.waitingSince = segment.waitingSince ?? now
            segment.sentAt = now
            append.segments[id] = segment
            copies[id]?.chunks.append(chunk)
            disk(.write(chunk))
            if guards.contains(.syncBeforeAck) { disk(.sync(id, upTo: chunk.end)) }
            for backup in segment.backups { send(.append(chunk), to: backup.node) }
            perform(lane: .appended(id, end: chunk.end))
            if chunk.end >= timing.segmentRecords {
                append.segments[id]?.rolled = true
                perform(lane: .rolled(id))
            }
        }
    }

    /// A member has everything before `upTo` on its disk.
    mutating func durable(_ id: SegmentID, _ member: EnsembleMember, upTo: Int64) {
        guard let segment = append.segments[id], case .open = segment.phase else { return }
        perform(lane: .durable(id, member, upTo: upTo))
        if !guards.contains(.everyMember) {
            for other in segment.ensemble { perform(lane: .durable(id, other, upTo: upTo)) }
        }
    }

    mutating func perform(lane event: LaneState.Event) {
        var output = ActionBuffer<LaneState.Action>()
        append.lane.receive(event, at: now, into: &output)
        for action in output.actions {
            switch action {
            case .acknowledge(let id, let upTo): acknowledge(id, upTo: upTo)
            // What is not acknowledged waits for the seal's fate (A3).
            case .refuse: break
            case .storeSeal(let id, let length):
                append.segments[id]?.sealAt = length
                append.segments[id]?.sealSent = true
                if guards.contains(.sealStopsAcks) { perform(lane: .sealSent(id)) }
                tickChanges(id)
            case .laneDead: append.dead = true
            }
        }
    }

    private mutating func acknowledge(_ id: SegmentID, upTo: Int64) {
        guard var segment = append.segments[id] else { return }
        let count = Int(upTo - segment.acked)
        let acked = Array(segment.unacked.prefix(count))
        segment.unacked.removeFirst(min(count, segment.unacked.count))
        segment.acked = upTo
        segment.chunks.removeAll { $0.end <= upTo }
        segment.waitingSince = segment.unacked.isEmpty ? nil : now
        append.segments[id] = segment
        for submission in acked {
            drains[id]?.add(submission.mail, due: now)
            stored(submission, in: id)
        }
        pump(id)
    }

    /// The message is durable on the ensemble.
    private mutating func stored(_ submission: Submission, in id: SegmentID) {
        switch submission.origin {
        case .client: partAnswered(submission.mail, durable: true)
        case .abandoned: break
        case .report(let segment, let epoch, let job):
            if drains[segment]?.epoch == epoch { recordFinal(segment, job, .bounced) }
        case .submitted(let key, let ingress):
            submits.incoming[key] = .have(now)
            send(.submitted(key, .have), to: ingress)
        case .moved(let source, let epoch, let index):
            landed(source, epoch, index, in: id)
        }
    }

    /// The message is not durable here, and will not be acknowledged.
    mutating func refused(_ submission: Submission) {
        switch submission.origin {
        case .client:
            // Its receiver may have it all the same.
            if case .submit? = submission.mail.hold { actions.append(.maybeDuplicate(submission.mail)) }
            partAnswered(submission.mail, durable: false)
        case .abandoned: break
        case .report(let segment, _, let job): drains[segment]?.set(job, .unreported(now + timing.retry))
        case .submitted(let key, let ingress):
            // S4: bytes that reached a disk or a peer may be kept by a taker.
            let known = !submission.touched || !guards.contains(.failedIsUnknown)
            submits.incoming[key] = known ? .refused(now) : .unknown(now)
            send(.submitted(key, known ? .no : .unknown), to: ingress)
        case .moved(let source, let epoch, _):
            if drains[source]?.epoch == epoch { voidCleaning(source) }
        }
        if submission.touched, guards.contains(.failedIsUnknown) {
            actions.append(.maybeDuplicate(submission.mail))
        }
    }

    // MARK: News of a written segment

    mutating func learnWritten(_ key: ClusterKey) {
        guard let segment = append.segments[key.id] else { return }
        guard key.drainer == me else { return lose(key.id) }
        switch key.state {
        case .open:
            if case .registering = segment.phase {
                append.segments[key.id]?.phase = .open
                perform(lane: .opened(key.id, ensemble: segment.ensemble))
            }
        case .sealed:
            perform(lane: .sealCommitted(key.id))
            append.segments[key.id] = nil
            // A3: only now is it certain that the old place will not be kept; the key and the order stay.
            append.waiting.insert(contentsOf: segment.unacked.filter { $0.origin != .abandoned }, at: 0)
        case .finished: append.segments[key.id] = nil
        }
    }

    /// Somebody else drains it, or a member has sealed it: nothing is acknowledged here any more (F3).
    mutating func lose(_ id: SegmentID) {
        guard let segment = append.segments[id] else { return }
        perform(lane: .sealSent(id))
        append.segments[id] = nil
        for submission in segment.unacked { refused(submission) }
    }
}

extension Array {
    func partitioned(_ belongs: (Element) -> Bool) -> (in: [Element], out: [Element]) {
        (filter(belongs), filter { !belongs($0) })
    }
}
