// Outcomes of a segment that is being cleaned go to both places until the move is decided.
import BatonCore
import BatonModel
import BatonRuntime

/// While live messages are on their way, their outcomes are written in the old segment and in the new one: whichever side
/// the registry then names, its log is complete. So nothing has to be held back from delivery meanwhile (PROTOCOL C2).
struct CleaningMirror: Sendable {
    /// End of the source's log when the copies took its outcomes along: their events have to be synced before the log may go.
    let logEnd: Int64
    /// Old places to new ones; nil until all have landed.
    var moves: [StoredMessageRef: StoredMessageRef]?
    /// Outcomes that came before that: at most what the segment's live recipients bring in the time that a write takes.
    var waiting: [Outcome] = []
}

/// Whether the next step of a cleaning may be taken.
enum CleaningReadiness: Sendable {
    case ready
    case wait
    /// An outcome log failed for good.
    case failed
}

extension [OutcomeRecord] {
    /// Adds an outcome; earlier deferrals of the same recipient say nothing any more.
    mutating func supersede(by outcome: OutcomeRecord) {
        if case .delayNoticeSent = outcome.verdict {
            // Does not move the due time that the last deferral set.
        } else {
            removeAll { earlier in
                guard case .deferred = earlier.verdict else { return false }
                return earlier.recipient == outcome.recipient
            }
        }
        append(outcome)
    }
}

extension OutcomeWriter {
    mutating func mirror(_ outcome: Outcome, from place: StoredMessageRef) {
        guard let mirror = mirrors[place.segment] else { return }
        guard let moves = mirror.moves else {
            mirrors[place.segment]?.waiting.append(
                Outcome(
                    job: JobRef(message: place, recipient: outcome.job.recipient), at: outcome.at,
                    verdict: outcome.verdict, attempts: outcome.attempts, reply: outcome.reply, peer: outcome.peer))
            return
        }
        write(outcome, from: place, by: moves)
    }

    private mutating func write(
        _ outcome: Outcome, from place: StoredMessageRef, by moves: [StoredMessageRef: StoredMessageRef]
    ) {
        guard let target = moves[place] else { return }
        if outcome.verdict.isFinal, !ledger.markFinal(target, recipient: outcome.job.recipient) { return }
        append(.outcome(OutcomeRecord(outcome, record: target.record)), to: target.segment)
    }

    /// Begins to mirror and gives the outcomes on record by message, without those that a later deferral of the same recipient
    /// made idle; nil if the log cannot be read whole.
    mutating func beginMirror(_ handle: UInt32, at now: Instant) -> [UInt32: [OutcomeRecord]]? {
        flush(at: now)
        guard let name = ledger.name(of: handle), logs[handle]?.failed != true, logs[handle]?.waitingBytes ?? 0 == 0
        else { return nil }
        var found: [UInt32: [OutcomeRecord]] = [:]
        do throws(DiskError) {
            let read = try OutcomeLog.read(
                "\(directory)/\(name.outcomeFile(epoch: logEpoch(of: handle)))", segment: name.id, from: disk
            ) {
                entry, _ in
                if case .outcome(let record) = entry { found[record.record, default: []].supersede(by: record) }
            }
            guard read.damaged == 0 else { return nil }
        } catch {
            return nil
        }
        mirrors[handle] = CleaningMirror(logEnd: logs[handle]?.lastOutcomeEnd ?? 0)
        return found
    }

    /// All messages have landed: what came meanwhile is written there too.
    mutating func landed(_ handle: UInt32, moves: [StoredMessageRef: StoredMessageRef], at now: Instant) {
        guard let mirror = mirrors[handle] else { return }
        mirrors[handle]?.moves = moves
        mirrors[handle]?.waiting = []
        for outcome in mirror.waiting { write(outcome, from: outcome.job.message, by: moves) }
        flush(at: now)
    }

    /// Whether the source may be finished: the events of what only it holds are synced, and so are the outcomes in the target.
    mutating func readiness(of handle: UInt32, at now: Instant) -> CleaningReadiness {
        guard let mirror = mirrors[handle], let moves = mirror.moves,
            let messages = ledger.read(handle, { UInt32($0.offsets.count) })
        else { return .failed }
        let marks = logs[handle]?.marks ?? OutcomeMarks()
        guard logs[handle]?.failed != true else { return .failed }
        guard marks.receptions >= messages, marks.outcomeOffset >= mirror.logEnd else { return .wait }
        return decided(in: Set(moves.values.map(\.segment)), at: now)
    }

    /// Whether everything written in the targets' logs is fdatasync'ed. A target that is reclaimed needs no word.
    mutating func decided(in targets: Set<UInt32>, at now: Instant) -> CleaningReadiness {
        flush(at: now)
        sync()
        var answer = CleaningReadiness.ready
        for target in targets where ledger.name(of: target) != nil {
            guard let log = logs[target] else { continue }
            if log.failed { return .failed }
            if !log.isClean { answer = .wait }
        }
        return answer
    }

    /// Says in the target what has become of a move (PROTOCOL C2 iv); durable once `decided` says so.
    mutating func decide(_ source: SegmentID, _ drainEpoch: UInt64, in target: UInt32, alive: Bool) {
        append(.heldDecision(source: source, drainEpoch: drainEpoch, alive: alive), to: target)
    }

    /// The source is finished: from now on its messages are where they were moved to.
    mutating func adopt(_ handle: UInt32) {
        if let moves = mirrors[handle]?.moves { ledger.forward(moves) }
        mirrors[handle] = nil
    }

    mutating func endMirror(_ handle: UInt32) { mirrors[handle] = nil }
}
