// Moving the few live messages of an old segment into the open one, so that its space comes back (PROTOCOL C2).
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import NIOCore
import Synchronization

/// One cleaning under way; at most one at a time. Lives in the keeper, goes one phase further at each of its ticks. Whatever the
/// registry does not answer is asked again at the next; a crash in any phase is settled by the next start.
struct CleaningRun: Sendable {
    enum Phase: Sendable {
        /// Copies are on their way through the writer.
        case moving
        /// All stand in the target; what is known of the source has to become durable, then it is finished.
        case landed
        /// The source is finished: files and key go once the decision is durable in the target.
        case removing(SegmentKey)
        /// The copies are not to count: the source's epoch has to rise.
        case voiding
        /// It has risen; the source stays until every target says so durably.
        case voided
    }

    let source: UInt32
    /// The source's key at the epoch that the copies name.
    let key: SegmentKey
    let batch: MovedBatch
    let expected: Int
    var phase = Phase.moving
    var complained = false
}

/// A segment that is worth cleaning, with its live records.
struct CleaningCandidate: Sendable {
    let handle: UInt32
    let records: [UInt32]
    let bytes: Int64
}

extension SegmentLedger {
    /// A sealed segment that is old (or whose spool is over budget), intact, without fragmented bodies, and less than a quarter
    /// alive; the least alive one first.
    func cleaningCandidate(olderThan born: Instant) -> CleaningCandidate? {
        cleaningCandidates(olderThan: born, limit: 1).first
    }

    /// Several of them, the least alive ones first.
    func cleaningCandidates(olderThan born: Instant, limit: Int) -> [CleaningCandidate] {
        let found = state.withLock { state in
            var found: [(handle: UInt32, live: Int64)] = []
            for (handle, entry) in state.entries where entry.isWorthCleaning && entry.bornAt <= born {
                found.append((handle, entry.liveBytes))
            }
            return found
        }
        let best = found.sorted { ($0.live, $0.handle) < ($1.live, $1.handle) }.prefix(limit)
        return best.compactMap { cleaningCandidate($0.handle) }
    }

    /// The segment, if it is worth cleaning now.
    func cleaningCandidate(_ handle: UInt32) -> CleaningCandidate? {
        state.withLock { state in
            guard let entry = state.entries[handle], entry.isWorthCleaning else { return nil }
            let records = entry.live.indices.filter { entry.live[$0] > 0 }.map { UInt32($0) }
            return CleaningCandidate(handle: handle, records: records, bytes: entry.liveBytes)
        }
    }

    var totalLength: Int64 { state.withLock { $0.entries.values.reduce(0) { $0 + $1.length } } }
}

extension SegmentLedger.Entry {
    /// Whatever its age.
    fileprivate var isWorthCleaning: Bool {
        sealed && !isDamaged && !hasFragmented && !closing && !adopting && pins == 0 && liveRecipients > 0
            && liveMessages <= SpoolLimits.cleaningMessages && cleaningsFailed < SpoolLimits.cleaningAttempts
            && liveBytes * 100 < length * Int64(SpoolLimits.cleaningLivePercent)
    }
}

extension Spool {
    /// One step, on the keeper's thread.
    func stepCleaning(at now: Instant) {
        guard var run = keeper.withLock({ $0.cleaning }) else { return beginCleaning(at: now) }
        do throws(SpoolError) {
            let done = try advance(&run, at: now)
            run.complained = false
            keeper.withLock { $0.cleaning = done ? nil : run }
        } catch {
            // Unknown outcome: nothing is decided here; the registry is read again at the next tick.
            if !run.complained {
                logger.error("spool: a cleaning waits for the registry", metadata: ["error": "\(error)"])
            }
            run.complained = true
            keeper.withLock { $0.cleaning = run }
        }
    }

    // MARK: Beginning

    private func beginCleaning(at now: Instant) {
        guard !shared.stopping.load(ordering: .acquiring), !shared.dead.load(ordering: .relaxed),
            !shared.diskFull.load(ordering: .relaxed)
        else { return }
        guard now >= keeper.withLock({ $0.nextCleaning }) else { return }
        let overBudget = ledger.totalLength > configuration.cleaningBudget
        // Even over budget not at once: the outcome that a report rests on comes a moment after the report.
        let age = overBudget ? SpoolLimits.cleaningAgeMin : max(configuration.cleaningAge, SpoolLimits.cleaningAgeMin)
        guard let candidate = ledger.cleaningCandidate(olderThan: now - age),
            let name = ledger.name(of: candidate.handle)
        else { return }
        let pause = overBudget ? .seconds(0) : SpoolLimits.cleaningPause
        keeper.withLock { $0.nextCleaning = now + pause }
        do throws(SpoolError) {
            if let run = try begin(candidate, name, at: now) { return keeper.withLock { $0.cleaning = run } }
        } catch {
            logger.error("spool: a cleaning could not begin", metadata: ["error": "\(error)"])
        }
        cameToNothing(candidate.handle, at: now)
    }

    private func cameToNothing(_ handle: UInt32, at now: Instant) {
        ledger.update(handle) { $0.cleaningsFailed += 1 }
        keeper.withLock { $0.nextCleaning = now + SpoolLimits.cleaningPause }
    }

    /// C2 (i): the target is named in the source's key; (ii): the live messages are appended anew, held for it. Nil where the
    /// segment cannot be cleaned now.
    private func begin(
        _ candidate: CleaningCandidate, _ name: SegmentName, at now: Instant
    ) throws(SpoolError) -> CleaningRun? {
        let target = writer.withLock { $0?.segment(withRoomFor: candidate.bytes, at: now) }
        guard let target, var key = try registry.read(name.id), case .sealed = key.state else { return nil }
        // A higher epoch voids what an earlier, failed cleaning left behind.
        key.drainEpoch &+= 1
        key.target = target
        guard case .committed(let stored?) = try registry.store(key) else { return nil }
        let progress = outcomes.withLock { writer in
            writer.epochs[candidate.handle] = stored.drainEpoch
            return writer.beginMirror(candidate.handle, at: now)
        }
        guard let progress else { return nil }
        let batch = MovedBatch()
        guard let work = copies(of: candidate, stored, progress, batch) else {
            outcomes.withLock { $0.endMirror(candidate.handle) }
            return nil
        }
        let bytes = work.reduce(0) { $0 + $1.bytes }
        shared.waitingBytes.add(bytes, ordering: .relaxed)
        guard laneMailbox.offer(work) else {
            shared.waitingBytes.subtract(bytes, ordering: .relaxed)
            outcomes.withLock { $0.endMirror(candidate.handle) }
            return nil
        }
        return CleaningRun(source: candidate.handle, key: stored, batch: batch, expected: work.count)
    }

    /// Nil where one of them is damaged or unreadable: the segment then stays as it is.
    func copies(
        of candidate: CleaningCandidate, _ key: SegmentKey, _ progress: [UInt32: [OutcomeRecord]], _ batch: MovedBatch,
        into target: SegmentID? = nil
    ) -> [LaneWork]? {
        var work: [LaneWork] = []
        var reader = SegmentReader(disk: directory.disk, directory: directory.segmentsPath)
        defer { reader.close() }
        for record in candidate.records {
            let ref = StoredMessageRef(segment: candidate.handle, record: record)
            guard let location = ledger.location(of: ref), case .found(let stored) = reader.record(at: location),
                case .found(let message) = reader.message(at: location), case .whole(let body) = message.body
            else { return nil }
            // A message that was moved before brings along what it knew then.
            var known = stored.moved?.outcomes ?? []
            for outcome in progress[record] ?? [] { known.supersede(by: outcome) }
            let from = MovedFrom(source: key.id, record: record, drainEpoch: key.drainEpoch, outcomes: known)
            work.append(
                .moved(
                    MovedMessage(
                        source: ref, envelope: message.envelope, body: body.bytes, from: from, batch: batch,
                        target: target)))
        }
        return work
    }

    // MARK: Going on

    /// True once nothing is left to do.
    private func advance(_ run: inout CleaningRun, at now: Instant) throws(SpoolError) -> Bool {
        switch run.phase {
        case .moving:
            let (moves, failed) = run.batch.result
            guard moves.count + failed == run.expected else { return false }
            let targets = Set(moves.values.map(\.segment))
            let landed =
                failed == 0 && targets.count == 1 && targets.allSatisfy { ledger.name(of: $0)?.id == run.key.target }
            run.phase = landed ? .landed : .voiding
            if landed { outcomes.withLock { $0.landed(run.source, moves: moves, at: now) } }
            return try advance(&run, at: now)
        case .landed:
            switch outcomes.withLock({ $0.readiness(of: run.source, at: now) }) {
            case .wait: return false
            case .failed:
                run.phase = .voiding
                return try advance(&run, at: now)
            case .ready: return try finish(&run, at: now)
            }
        case .removing(let finished): return try remove(run, finished, at: now)
        case .voiding: return try void(&run, at: now)
        case .voided: return settleVoid(run, at: now)
        }
    }

    /// C2 (iii): `finished` at the epoch of the move is the only commit point; it competes with a takeover on the same key.
    private func finish(_ run: inout CleaningRun, at now: Instant) throws(SpoolError) -> Bool {
        guard var key = try registry.read(run.key.id), key.drainEpoch == run.key.drainEpoch else {
            run.phase = .voiding
            return try void(&run, at: now)
        }
        if key.state != .finished {
            key.state = .finished
            guard case .committed(let stored?) = try registry.store(key) else { return false }
            key = stored
        }
        ledger.update(run.source) { $0.closing = true }
        let target = run.batch.result.moves.values.first?.segment
        outcomes.withLock { writer in
            if let target { writer.decide(run.key.id, run.key.drainEpoch, in: target, alive: true) }
            writer.adopt(run.source)
        }
        shared.segmentsCleaned.add(1, ordering: .relaxed)
        run.phase = .removing(key)
        return try remove(run, key, at: now)
    }

    /// C2 (v): behind the durable decision the files go, then the key.
    private func remove(_ run: CleaningRun, _ finished: SegmentKey, at now: Instant) throws(SpoolError) -> Bool {
        let targets = Set(run.batch.result.moves.values.map(\.segment))
        switch outcomes.withLock({ $0.decided(in: targets, at: now) }) {
        case .wait: return false
        // The finished key stays: a start reads it.
        case .failed: return true
        case .ready: break
        }
        let removed: Result<Void, SpoolError> = keeper.withLock { keeper in
            do throws(SpoolError) {
                try keeper.removeFiles(of: SegmentName(run.key.id))
                return .success(())
            } catch {
                return .failure(error)
            }
        }
        try removed.get()
        if case .conflict(let other?) = try registry.remove(finished), other.state != .finished { return false }
        ledger.remove(run.source)
        outcomes.withLock { $0.forget(run.source) }
        trimReaders()
        return true
    }

    /// C2 (iv): an epoch of the source above the move's makes the copies void for every later reader; then they are dead here.
    private func void(_ run: inout CleaningRun, at now: Instant) throws(SpoolError) -> Bool {
        guard var key = try registry.read(run.key.id) else {
            outcomes.withLock { $0.endMirror(run.source) }
            return true
        }
        if key.drainEpoch == run.key.drainEpoch {
            key.drainEpoch &+= 1
            key.target = nil
            guard case .committed = try registry.store(key) else { return false }
        }
        let moves = run.batch.result.moves
        let epoch = key.drainEpoch
        outcomes.withLock { writer in
            for target in Set(moves.values.map(\.segment)) {
                writer.decide(run.key.id, run.key.drainEpoch, in: target, alive: false)
            }
            writer.endMirror(run.source)
            writer.epochs[run.source] = epoch
        }
        for place in moves.values { ledger.kill(place) }
        // Were its key gone before a target says "void", the copies would count.
        ledger.update(run.source) { $0.closing = true }
        cameToNothing(run.source, at: now)
        run.phase = .voided
        return settleVoid(run, at: now)
    }

    private func settleVoid(_ run: CleaningRun, at now: Instant) -> Bool {
        let targets = Set(run.batch.result.moves.values.map(\.segment))
        switch outcomes.withLock({ $0.decided(in: targets, at: now) }) {
        case .wait: return false
        case .failed: return true
        case .ready:
            ledger.update(run.source) { $0.closing = false }
            return true
        }
    }
}
