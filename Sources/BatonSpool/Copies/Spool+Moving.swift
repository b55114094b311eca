// The spool's side of a cleaning in a cluster: it offers segments, copies their live messages, and does what was decided (PROTOCOL C2).
import BatonCore
import BatonModel
import BatonRuntime
import Logging
import NIOCore
import Synchronization

/// One cleaning as the spool sees it; at most one at a time. The keys are the cluster's: it decides, here bytes are moved.
struct MoveRun: Sendable {
    enum Phase: Sendable {
        /// Copies are on their way through the writer and the backups.
        case moving
        /// All stand in the target; what is known of the source has to become durable.
        case landed
        /// The cluster knows how it ended.
        case told
        /// The decision is taken, and not known to be in the target's log.
        case decided
        /// It is there: the copies are dead, and some of them have not landed yet.
        case void
    }

    let source: UInt32
    /// The source's key, whose target and epoch the copies are for.
    let key: SegmentKey
    let batch: MovedBatch
    let expected: Int
    var phase = Phase.moving

    /// Every copy has landed or failed.
    var isComplete: Bool {
        let (moves, failed) = batch.result
        return moves.count + failed == expected
    }
}

extension Spool {
    // MARK: Offering

    /// One step, on the keeper's thread.
    func stepMoving(at now: Instant) {
        guard let run = keeper.withLock({ $0.moving }) else { return offerCleaning(at: now) }
        guard run.isComplete else { return }
        switch run.phase {
        case .moving:
            let (moves, failed) = run.batch.result
            guard failed == 0 else { return tell(run, landed: false) }
            outcomes.withLock { $0.landed(run.source, moves: moves, at: now) }
            keeper.withLock { $0.moving?.phase = .landed }
            conclude(run, at: now)
        case .landed: conclude(run, at: now)
        case .told, .decided: break
        case .void: endVoid(run)
        }
    }

    private func offerCleaning(at now: Instant) {
        guard canMove, now >= keeper.withLock({ $0.nextCleaning }) else { return }
        let overBudget = ledger.totalLength > configuration.cleaningBudget
        let age = overBudget ? SpoolLimits.cleaningAgeMin : max(configuration.cleaningAge, SpoolLimits.cleaningAgeMin)
        let found = ledger.cleaningCandidates(olderThan: now - age, limit: SpoolLimits.cleaningOffers)
        guard !found.isEmpty, let (target, fitting) = writer.withLock({ $0?.target(for: found, at: now) }) else {
            return
        }
        let pause = overBudget ? .seconds(0) : SpoolLimits.cleaningPause
        keeper.withLock { $0.nextCleaning = now + pause }
        cluster?.news.cleanable(fitting.compactMap { ledger.name(of: $0.handle)?.id }, into: target)
    }

    private var canMove: Bool {
        !shared.stopping.load(ordering: .acquiring) && !shared.dead.load(ordering: .relaxed)
            && !shared.diskFull.load(ordering: .relaxed)
    }

    /// The copies have landed: may the source be finished?
    private func conclude(_ run: MoveRun, at now: Instant) {
        switch outcomes.withLock({ $0.readiness(of: run.source, at: now) }) {
        case .wait: break
        case .failed: tell(run, landed: false)
        case .ready: tell(run, landed: true)
        }
    }

    private func tell(_ run: MoveRun, landed: Bool) {
        keeper.withLock { $0.moving?.phase = .told }
        cluster?.news.moved(run.key.id, epoch: run.key.drainEpoch, landed: landed)
    }

    // MARK: Moving

    package func move(_ key: SegmentKey) -> Bool {
        let now = time.now()
        guard canMove, keeper.withLock({ $0.moving == nil }), let target = key.target,
            let source = ledger.handle(of: key.id), let candidate = ledger.cleaningCandidate(source),
            writer.withLock({ $0?.hasRoom(for: candidate.bytes, in: target) ?? false })
        else { return false }
        guard let progress = outcomes.withLock({ $0.beginMirror(source, at: now) }) else { return false }
        let batch = MovedBatch()
        guard let work = copies(of: candidate, key, progress, batch, into: target) else {
            outcomes.withLock { $0.endMirror(source) }
            return false
        }
        let bytes = work.reduce(0) { $0 + $1.bytes }
        let run = MoveRun(source: source, key: key, batch: batch, expected: work.count)
        keeper.withLock { $0.moving = run }
        shared.waitingBytes.add(bytes, ordering: .relaxed)
        guard laneMailbox.offer(work) else {
            shared.waitingBytes.subtract(bytes, ordering: .relaxed)
            outcomes.withLock { $0.endMirror(source) }
            keeper.withLock { $0.moving = nil }
            return false
        }
        return true
    }

    // MARK: The decision

    package func settleMove(of id: SegmentID, epoch: UInt64, into target: SegmentID, alive: Bool) -> Int64? {
        // Nothing of it was ever moved.
        guard let run = keeper.withLock({ $0.moving }), run.key.id == id, run.key.drainEpoch == epoch else { return 0 }
        guard let place = ledger.handle(of: target) else {
            // The target is finished: nothing of it can be taken over any more.
            outcomes.withLock { $0.endMirror(run.source) }
            keeper.withLock { $0.moving = nil }
            return 0
        }
        let now = time.now()
        if case .decided = run.phase {
            // It did not reach the file at the first time.
        } else {
            outcomes.withLock { writer in
                writer.decide(id, epoch, in: place, alive: alive)
                if alive { writer.adopt(run.source) } else { writer.endMirror(run.source) }
            }
            keeper.withLock { $0.moving?.phase = .decided }
            if alive {
                shared.segmentsCleaned.add(1, ordering: .relaxed)
            } else {
                ledger.update(run.source) { $0.cleaningsFailed += 1 }
                keeper.withLock { $0.nextCleaning = now + SpoolLimits.cleaningPause }
            }
        }
        let end = outcomes.withLock { writer -> Int64? in
            writer.flush(at: now)
            guard let log = writer.logs[place], !log.failed, log.waitingBytes == 0 else { return nil }
            return log.offset
        }
        guard end != nil else { return nil }
        if alive {
            keeper.withLock { $0.moving = nil }
        } else if run.isComplete {
            endVoid(run)
        } else {
            keeper.withLock { $0.moving?.phase = .void }
        }
        return end
    }

    /// The copies are dead here, those too that landed late.
    private func endVoid(_ run: MoveRun) {
        for place in run.batch.result.moves.values { ledger.kill(place) }
        keeper.withLock { $0.moving = nil }
    }
}

extension LaneWriter {
    /// Whether the segment is the open one, and `bytes` fit into it as it stands. Not sure: other mail may come between.
    func hasRoom(for bytes: Int64, in segment: SegmentID) -> Bool {
        guard let open, open.id == segment else { return false }
        return open.offset == 0 || open.offset + Self.room(for: bytes) <= Int64(configuration.segmentSize)
    }

    /// The open segment, and which of the candidates fit into it; rolled only where not even the emptiest one does.
    mutating func target(for candidates: [CleaningCandidate], at now: Instant) -> (SegmentID, [CleaningCandidate])? {
        guard let emptiest = candidates.first, let target = segment(withRoomFor: emptiest.bytes, at: now) else {
            return nil
        }
        return (target, candidates.filter { hasRoom(for: $0.bytes, in: target) })
    }

    /// What a cleaning's messages may take, heads and padding included.
    static func room(for bytes: Int64) -> Int64 { bytes + bytes / 8 + Int64(16 * ByteCount.kibi) }
}
