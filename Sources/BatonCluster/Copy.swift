// One file of a segment on this node's disk, as far as the protocol has to know it; the backup's rules.
import BatonCore
import BatonSpool

/// A local copy: what stands in it, what of that is synced, whom it obeys.
package struct Copy: Sendable {
    /// Created on disk, directory synced (A4).
    var created = false
    /// The valid prefix.
    var chunks: [Chunk] = []
    var synced: Int64 = 0
    var tailInvalid = false
    /// Made anew in place of a lost file: until it is whole, its outcome log proves nothing, and no length is taken from it.
    var rebuilt = false
    /// Epoch of the persisted seal; 0 when there is none.
    var sealEpoch: UInt64 = 0
    /// Of a seal on its way to the disk: it binds at once.
    var sealing: UInt64 = 0
    var finals = Table<JobID, Outcome>()
    var released = Table<JobID, Outcome>()
    /// The newest outcome log, and how much of it is in memory, handed to the disk, synced.
    var logEpoch: UInt64 = 0
    var logCount = 0
    var logSynced = 0
    var dirtySince: Instant?
    var syncUnderWay = false

    init() {}

    init(_ scan: CopyScan, at now: Instant) {
        created = true
        adopt(scan)
        logEpoch = scan.logEpoch
        logCount = scan.logCount
        // What the page cache gave back is not durable yet.
        dirtySince = scan.logCount > 0 ? now : nil
    }

    var end: Int64 { chunks.last?.end ?? 0 }

    /// Appends and outcomes of a lower epoch are refused.
    var fence: UInt64 { max(sealEpoch, sealing) }

    mutating func adopt(_ scan: CopyScan) {
        chunks = scan.chunks
        tailInvalid = scan.tailInvalid
        rebuilt = scan.rebuilt
        sealEpoch = max(sealEpoch, scan.sealEpoch)
        for record in scan.outcomes { note(record) }
    }

    mutating func note(_ record: JobOutcome) {
        if record.outcome.isFinal {
            if finals[record.job] == nil { finals[record.job] = record.outcome }
        } else {
            released[record.job] = record.outcome
        }
    }

    /// Every outcome of every epoch, in the order of the jobs: what a taker needs.
    var allOutcomes: [JobOutcome] {
        released.keys.map { JobOutcome(job: $0, outcome: .released) }
            + finals.keys.compactMap { job in finals[job].map { JobOutcome(job: job, outcome: $0) } }
    }

    /// What a taker is told.
    var report: CopyReport {
        CopyReport(end: end, tailInvalid: tailInvalid || rebuilt, outcomes: allOutcomes, rebuilt: rebuilt)
    }

    mutating func cut(at length: Int64) {
        chunks = chunks.compactMap { chunk in
            if chunk.end <= length { return chunk }
            guard chunk.start < length else { return nil }
            return Chunk(
                segment: chunk.segment, start: chunk.start,
                records: Array(chunk.records.prefix(Int(length - chunk.start))))
        }
        synced = min(synced, length)
        tailInvalid = false
    }

    enum AppendDecision { case refuse, ignore, repeatDurable, write }

    /// The backup's side of the append rule.
    func decide(_ chunk: Chunk, guards: Guards) -> AppendDecision {
        // F2: a sealed copy takes no append of an older epoch, and the writer's epoch is the oldest.
        if fence > 0 { return .refuse }
        // An invalid tail says nothing about what stood there: the writer has to replace this copy.
        guard created, !tailInvalid else { return .ignore }
        if chunk.start == end { return .write }
        if chunk.end <= end { return .repeatDurable }
        // The prefix rule: nothing is durable behind a hole.
        return guards.contains(.prefix) ? .ignore : .write
    }

    enum OutcomeDecision {
        case refuse, gap
        case take(fresh: ArraySlice<JobOutcome>)
    }

    /// The backup's side of the outcome log: records `from...` of the log of `epoch`.
    mutating func decide(
        epoch: UInt64, from: Int, _ records: [JobOutcome], guards: Guards
    ) -> OutcomeDecision {
        // The drain epoch: whoever was taken over writes no outcomes here any more.
        if guards.contains(.drainEpoch), epoch < max(fence, logEpoch) { return .refuse }
        if epoch != logEpoch {
            logEpoch = epoch
            logCount = 0
            logSynced = 0
        }
        guard from <= logCount else { return .gap }
        return .take(fresh: records.dropFirst(logCount - from))
    }
}
