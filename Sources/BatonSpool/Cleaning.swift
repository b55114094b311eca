// Moving the few live messages of an old segment into the open one, so that its space comes back (PROTOCOL C2).
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import NIOCore
import Synchronization

/// One cleaning under way; at most one at a time. Lives in the keeper.
struct CleaningRun: Sendable {
    let source: UInt32
    let key: SegmentKey
    let batch: MovedBatch
    let expected: Int
}

extension SegmentLedger {
    /// A sealed segment that is old (or whose spool is over budget), intact, without fragmented bodies, and less than a quarter
    /// alive; the least alive one first. Its live records come with it.
    func cleaningCandidate(
        olderThan born: Instant, anyAge: Bool
    ) -> (handle: UInt32, records: [UInt32])? {
        state.withLock { state in
            var best: (handle: UInt32, live: Int64)?
            for (handle, entry) in state.entries {
                guard entry.sealed, !entry.damaged, !entry.hasFragmented, !entry.closing, entry.pins == 0,
                    entry.liveRecipients > 0, entry.liveMessages <= SpoolLimits.cleaningMessages,
                    anyAge || entry.bornAt <= born,
                    entry.liveBytes * 100 < entry.length * Int64(SpoolLimits.cleaningLivePercent)
                else { continue }
                if best.map({ entry.liveBytes < $0.live }) ?? true { best = (handle, entry.liveBytes) }
            }
            guard let best, let entry = state.entries[best.handle] else { return nil }
            let records = entry.live.indices.filter { entry.live[$0] > 0 }.map { UInt32($0) }
            return (best.handle, records)
        }
    }

    var totalLength: Int64 { state.withLock { $0.entries.values.reduce(0) { $0 + $1.length } } }
}

extension Spool {
    /// One step, on the keeper's thread: begins a cleaning, or finishes the one under way once all has landed.
    func stepCleaning(at now: Instant) {
        if let run = keeper.withLock({ $0.cleaning }) { return finishCleaning(run, at: now) }
        guard closedForCleaning == false else { return }
        let overBudget = ledger.totalLength > configuration.cleaningBudget
        let last = keeper.withLock { $0.lastCleaning }
        guard overBudget || now - last >= TimeSpan.seconds(60) else { return }
        keeper.withLock { $0.lastCleaning = now }
        guard
            let (handle, records) = ledger.cleaningCandidate(
                olderThan: now - configuration.cleaningAge, anyAge: overBudget),
            let name = ledger.name(of: handle)
        else { return }
        do throws(SpoolError) {
            try beginCleaning(handle, name, records, at: now)
        } catch {
            logger.error("spool: a cleaning could not begin", metadata: ["error": "\(error)"])
        }
    }

    private var closedForCleaning: Bool {
        shared.stopping.load(ordering: .acquiring) || shared.dead.load(ordering: .relaxed)
            || shared.diskFull.load(ordering: .relaxed)
    }

    /// C2 (i): the target is named in the source's key; (ii): the live messages are appended anew, held for it.
    private func beginCleaning(
        _ handle: UInt32, _ name: SegmentName, _ records: [UInt32], at now: Instant
    ) throws(SpoolError) {
        guard let target = writer.withLock({ $0?.open?.id }), var key = try registry.read(name.id),
            case .sealed = key.state
        else { return }
        // A higher epoch voids what an earlier, failed cleaning left behind.
        key.drainEpoch &+= 1
        key.target = target
        guard case .committed(let stored?) = try registry.store(key),
            let progress = outcomes.withLock({ writer in
                writer.epochs[handle] = stored.drainEpoch
                return writer.beginMirror(handle, at: now)
            })
        else { return }
        let batch = MovedBatch()
        var work: [LaneWork] = []
        var reader = SegmentReader(disk: directory.disk, directory: directory.segmentsPath)
        defer { reader.close() }
        for record in records {
            let ref = StoredMessageRef(segment: handle, record: record)
            guard let location = ledger.location(of: ref),
                case .found(let message) = reader.message(at: location), case .whole(let body) = message.body
            else {
                // Damaged or unreadable: the segment stays as it is.
                return outcomes.withLock { $0.endMirror(handle) }
            }
            let from = MovedFrom(
                source: name.id, record: record, drainEpoch: stored.drainEpoch, outcomes: progress[record] ?? [])
            work.append(
                .moved(
                    MovedMessage(
                        source: ref, envelope: message.envelope, body: body.bytes, from: from, batch: batch)))
        }
        let bytes = work.reduce(0) { $0 + $1.bytes }
        shared.waitingBytes.add(bytes, ordering: .relaxed)
        guard laneMailbox.offer(work) else {
            shared.waitingBytes.subtract(bytes, ordering: .relaxed)
            return outcomes.withLock { $0.endMirror(handle) }
        }
        let run = CleaningRun(source: handle, key: stored, batch: batch, expected: work.count)
        keeper.withLock { $0.cleaning = run }
    }

    private func finishCleaning(_ run: CleaningRun, at now: Instant) {
        let (moves, failed) = run.batch.result
        guard failed || moves.count == run.expected else { return }
        let targets = Set(moves.values.map(\.segment))
        let target = targets.first
        keeper.withLock { $0.cleaning = nil }
        let complete = !failed && targets.count == 1 && target.flatMap { ledger.name(of: $0)?.id } == run.key.target
        guard complete, let target else { return voidCleaning(run, moves, at: now) }
        guard outcomes.withLock({ $0.landed(run.source, moves: moves, at: now) }) else {
            return voidCleaning(run, moves, at: now)
        }
        commitCleaning(run, moves, to: target, at: now)
    }

    /// C2 (iii): `finished` at the epoch of the move is the only commit point. Then the decision is durable in the target,
    /// then the source's files go, its key last.
    private func commitCleaning(
        _ run: CleaningRun, _ moves: [StoredMessageRef: StoredMessageRef], to target: UInt32, at now: Instant
    ) {
        var key = run.key
        key.state = .finished
        do throws(SpoolError) {
            guard case .committed(let finished?) = try registry.store(key) else {
                return voidCleaning(run, moves, at: now)
            }
            let durable = outcomes.withLock {
                $0.decide(
                    run.source, source: run.key.id, drainEpoch: run.key.drainEpoch, target: target, alive: true,
                    at: now)
            }
            ledger.update(run.source) { $0.closing = true }
            shared.segmentsCleaned.add(1, ordering: .relaxed)
            // Without a durable decision the finished key stays: a restart reads it.
            guard durable else { return }
            let removed: Result<Void, SpoolError> = keeper.withLock { keeper in
                do throws(SpoolError) {
                    try keeper.removeFiles(of: SegmentName(run.key.id))
                    return .success(())
                } catch {
                    return .failure(error)
                }
            }
            try removed.get()
            _ = try registry.remove(finished)
            ledger.remove(run.source)
            outcomes.withLock { $0.forget(run.source) }
        } catch {
            // Unknown outcome: nothing is decided here; both copies stay until a restart reads the registry.
            ledger.update(run.source) { $0.closing = true }
            for target in Set(moves.values.map(\.segment)) { ledger.update(target) { $0.closing = true } }
            logger.error("spool: a cleaning is undecided until the restart", metadata: ["error": "\(error)"])
        }
    }

    /// The copies do not count: the source's epoch goes up, which voids them for every later reader; then they are dead here.
    private func voidCleaning(
        _ run: CleaningRun, _ moves: [StoredMessageRef: StoredMessageRef], at now: Instant
    ) {
        var key = run.key
        key.drainEpoch &+= 1
        key.target = nil
        let voided = (try? registry.store(key)).map { answer in
            if case .committed = answer { return true }
            return false
        }
        outcomes.withLock { writer in
            for target in Set(moves.values.map(\.segment)) {
                _ = writer.decide(
                    run.source, source: run.key.id, drainEpoch: run.key.drainEpoch, target: target, alive: false,
                    at: now)
            }
            writer.endMirror(run.source)
            writer.epochs[run.source] = key.drainEpoch
        }
        for place in moves.values { ledger.kill(place) }
        if voided != true { ledger.update(run.source) { $0.closing = true } }
    }
}
