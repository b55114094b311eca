// Outcomes of a segment that is being cleaned go to both places until the move is decided.
import BatonCore
import BatonModel
import BatonRuntime

/// While live messages are on their way, their outcomes are written in the old segment and in the new one: whichever side
/// the registry then names, its log is complete. So nothing has to be held back from delivery meanwhile (PROTOCOL C2).
struct CleaningMirror: Sendable {
    /// Old places to new ones; nil until all have landed.
    var moves: [StoredMessageRef: StoredMessageRef]?
    /// Outcomes that came before that.
    var waiting: [Outcome] = []
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
            let read = try OutcomeLog.read("\(directory)/\(name.outcomeFile)", segment: name.id, from: disk) {
                entry, _ in
                guard case .outcome(let record) = entry else { return }
                found[record.record, default: []].removeAll { earlier in
                    guard case .deferred = earlier.verdict, case .delayNoticeSent = record.verdict else {
                        if case .deferred = earlier.verdict { return earlier.recipient == record.recipient }
                        return false
                    }
                    return false
                }
                found[record.record, default: []].append(record)
            }
            guard read.damaged == 0 else { return nil }
        } catch {
            return nil
        }
        mirrors[handle] = CleaningMirror()
        return found
    }

    /// All messages have landed: what came meanwhile is written there too, and synced. False if the disk refused.
    mutating func landed(
        _ handle: UInt32, moves: [StoredMessageRef: StoredMessageRef], at now: Instant
    ) -> Bool {
        guard let mirror = mirrors[handle], eventsSafe(handle) else { return false }
        mirrors[handle]?.moves = moves
        mirrors[handle]?.waiting = []
        for outcome in mirror.waiting { write(outcome, from: outcome.job.message, by: moves) }
        flush(at: now)
        sync()
        return moves.values.allSatisfy { logs[$0.segment]?.failed != true }
    }

    /// The source is finished (`alive`) or the move is void: the decision is durable in the target's log before the source's
    /// key may go (PROTOCOL C2 iv, v). False if it could not be made durable.
    mutating func decide(
        _ handle: UInt32, source: SegmentID, drainEpoch: UInt64, target: UInt32, alive: Bool, at now: Instant
    ) -> Bool {
        append(.heldDecision(source: source, drainEpoch: drainEpoch, alive: alive), to: target)
        flush(at: now)
        sync()
        if alive, let moves = mirrors[handle]?.moves { ledger.forward(moves) }
        mirrors[handle] = nil
        return logs[target]?.isClean ?? false
    }

    mutating func endMirror(_ handle: UInt32) { mirrors[handle] = nil }
}
