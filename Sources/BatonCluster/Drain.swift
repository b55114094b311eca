// A segment that this node delivers: its jobs, its outcome log, the promises it holds, what is settled.
import BatonCore
import BatonModel
import BatonSpool

/// What the drainer knows of one other member.
struct PeerProgress: Sendable {
    /// Offsets in this epoch's outcome log (P4).
    var memory = 0
    var synced = 0
    var incarnation: Incarnation?
    /// It started anew: asked what it has, even when it had everything.
    var probing = false
    var sentAt: Instant?
    /// Dots may go until then, as far as this member is concerned (P1).
    var promiseUntil = Instant.epoch
    /// Since when there has been no promise although one was asked for.
    var silentSince: Instant?
    var askedAt: Instant?
    /// It has sealed its copy and said what is in it (takeover 3).
    var reported: CopyReport?
    var reportAskedAt: Instant?
}

enum JobState: Hashable, Sendable {
    case waiting(Instant)
    case inFlight
    /// Refused for good: its report is being made durable.
    case reporting(Instant)
    /// Its report found no place; again at that time.
    case unreported(Instant)
    case done
}

struct DrainRecord: Sendable {
    let mail: MailRecord
    let addedAt: Instant
    var jobs: [JobState]
    /// Not attempted until its hold is decided.
    var held: Bool

    var isOpen: Bool { jobs.contains { $0 != .done } }
}

struct Drain: Sendable {
    enum Phase: Sendable {
        /// The seal is on its way to the disk (takeover 2).
        case sealing
        case scanning
        /// The other members' outcomes are awaited (takeover 3).
        case asking
        case ready
    }

    let epoch: UInt64
    var phase: Phase
    /// Own promises and T3: no dot before.
    var notBefore: Instant
    var records: [DrainRecord] = []
    /// Indices of records with open jobs.
    var open: [Int64] = []
    var tailInvalid = false
    /// It does not know every outcome (P2, a lost file): what it delivers counts, what a repair brings later as well (seed 115933).
    var mayRepeat = false
    var log: [JobOutcome] = []
    /// Positions in the log of outcomes of own dots, ascending; others are decisions, or were there before.
    var dotted: [Int] = []
    var inFlight = 0
    var peers = Table<EnsembleMember, PeerProgress>()
    var settledHigh = 0
    var settledSaid = 0
    var repairFrom: Int64?
    var fetchedAt: Instant?
    /// Whoever asked first for a copy on the joining member.
    var copiedAt: Instant?
    var cleaning: Cleaning?
    /// A cleaning failed: what it left behind has to become void, so the epoch rises before anything else (C2 iv).
    var raise = false

    init(epoch: UInt64, phase: Phase, notBefore: Instant) {
        self.epoch = epoch
        self.phase = phase
        self.notBefore = notBefore
    }

    var length: Int64 { Int64(records.count) }

    /// A dot is due, if it is allowed.
    func hasDue(at now: Instant) -> Bool {
        open.contains { index in
            let record = records[Int(index)]
            return !record.held
                && record.jobs.contains { if case .waiting(let due) = $0 { due <= now } else { false } }
        }
    }

    /// Outcomes of own dots at `position` of the log or behind it.
    func dotted(from position: Int) -> Int {
        var count = 0
        while count < dotted.count, dotted[dotted.count - 1 - count] >= position { count += 1 }
        return count
    }

    mutating func add(_ mail: MailRecord, due: Instant) {
        let index = length
        var jobs = [JobState](repeating: .waiting(due), count: mail.recipients)
        for recipient in mail.settledBefore where recipient < jobs.count { jobs[recipient] = .done }
        let record = DrainRecord(mail: mail, addedAt: due, jobs: jobs, held: mail.hold != nil)
        if record.isOpen { open.append(index) }
        records.append(record)
    }

    func state(of job: JobID) -> JobState? {
        guard job.index >= 0, job.index < length, job.recipient < records[Int(job.index)].jobs.count else { return nil }
        return records[Int(job.index)].jobs[job.recipient]
    }

    mutating func set(_ job: JobID, _ state: JobState) {
        guard self.state(of: job) != nil else { return }
        if records[Int(job.index)].jobs[job.recipient] == .inFlight { inFlight -= 1 }
        if state == .inFlight { inFlight += 1 }
        records[Int(job.index)].jobs[job.recipient] = state
        if state == .done, !records[Int(job.index)].isOpen { open.removeAll { $0 == job.index } }
    }
}

/// A cleaning under way at the source's drainer (C2).
struct Cleaning: Sendable {
    var target: SegmentID
    var moved: [Int64] = []
    var landed: [Int64] = []
    var begunAt: Instant
}

/// The promises that this node gave: "no dot of mine for that segment before then" (P1, T3).
struct PromiseBook: Sendable {
    private(set) var until = Table<SegmentID, Instant>()
    /// T3: a started node acts as if it had just promised to everybody.
    let quietUntil: Instant

    init(quietUntil: Instant) { self.quietUntil = quietUntil }

    mutating func give(_ id: SegmentID, until instant: Instant) { until[id] = max(until[id] ?? .epoch, instant) }

    func earliestDot(_ id: SegmentID) -> Instant { max(until[id] ?? .epoch, quietUntil) }

    mutating func prune(before now: Instant) {
        for id in until.keys where (until[id] ?? .epoch) < now { until[id] = nil }
    }
}
