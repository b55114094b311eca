// What time and long walks bring: due jobs, expiries, and sweeps in slices.
import BatonCore
import BatonModel

/// A walk over many jobs, done in slices so that no loop turn stands still for it.
struct Sweep: Sendable {
    enum Scope: Sendable {
        /// Along a destination's chain, from its newest job at the start to the oldest. Later jobs are not met.
        case destination(UInt32, id: UInt32, cursor: UInt32)
        /// Over all slots up to those in use at the start.
        case slots(next: UInt32, end: UInt32)
    }

    enum Task: Sendable {
        case countAttempt(reply: SMTPReply, until: Instant)
        case fail(reply: SMTPReply)
        case verb(VerbTask)
    }

    var scope: Scope
    let task: Task
    /// Messages that came later are left alone.
    let serial: UInt32

    func countsAttempts(of index: UInt32) -> Bool {
        guard case .destination(index, _, _) = scope, case .countAttempt = task else { return false }
        return true
    }
}

extension PartitionState {
    /// Handles what is due, at most about `QueueLimits.slice` steps. True when there is more to do at once.
    mutating func advance(to now: Instant) -> Bool {
        var budget = QueueLimits.slice
        while budget > 0, let slot = wheel.next(at: now, budget: &budget, &slab) {
            switch slab[slot].state {
            case .waiting:
                admit(slot, at: now)
            case .suspended:
                expireSuspended(slot, at: now)
            case .timer where slab[slot].flags.contains(.holdTimer):
                holdEnded(slot, at: now)
            case .timer:
                timerFired(slot, at: now)
            case .free, .ready, .inFlight, .settling, .damaged:
                preconditionFailure("slot in the wheel in a state that never waits")
            }
        }
        while budget > 0, !sweeps.isEmpty, canStep { step(&budget, at: now) }
        return hasWork(at: now)
    }

    /// Whether `advance` has something to do at `now`.
    func hasWork(at now: Instant) -> Bool {
        if !sweeps.isEmpty, canStep { return true }
        guard let wake = wheel.nextWake else { return false }
        return wake <= now
    }

    /// A suspended recipient's time is up: it expires without an attempt, unless settings have changed or too many finals
    /// are out; then it waits on.
    private mutating func expireSuspended(_ job: UInt32, at now: Instant) {
        let expiry = expiry(of: slab[job].message)
        guard expiry <= now, finalsOutstanding < QueueLimits.finalsOutstanding else {
            slab[job].due = max(expiry, now + .seconds(1)).nanoseconds
            wheel.insert(job, &slab)
            return
        }
        // Already out of the wheel: `finish` must not take it out again.
        setState(job, .free)
        let last = replies[slab[job].reply]
        finish(job, .expired, last ?? Self.suspendedReply, report: true)
    }

    private static let suspendedReply = SMTPReply(
        local: 451, EnhancedStatus(4, 4, 7), "Baton internal: suspended by the operator until it expired")

    // MARK: Sweeps

    private var canStep: Bool { finalsOutstanding < QueueLimits.finalsOutstanding }

    mutating func startSweep(_ index: UInt32, _ task: Sweep.Task) {
        let cursor = destinations[index].firstJob
        guard cursor != none else { return }
        // A failure that comes again starts over; those met already are not touched twice.
        if case .fail = task { endSweeps(of: index) }
        destinations[index].sweeps += 1
        sweeps.append(
            Sweep(
                scope: .destination(index, id: destinations[index].id, cursor: cursor), task: task, serial: serial))
    }

    /// One slice of the oldest sweep.
    private mutating func step(_ budget: inout Int, at now: Instant) {
        guard var sweep = sweeps.first else { return }
        // Its place is taken while it works, so that `moveCursors` sees the cursor that counts.
        while budget > 0, canStep {
            budget -= 1
            switch sweep.scope {
            case .destination(let index, let id, let cursor):
                guard cursor != none else {
                    endSweep(0, at: now)
                    return
                }
                sweep.scope = .destination(index, id: id, cursor: slab[cursor].nextOfDestination)
                sweeps[0].scope = sweep.scope
                visit(cursor, sweep, at: now)
            case .slots(let next, let end):
                guard next < end else {
                    endSweep(0, at: now)
                    return
                }
                sweep.scope = .slots(next: next + 1, end: end)
                sweeps[0].scope = sweep.scope
                switch slab[next].state {
                case .ready, .waiting, .suspended, .inFlight, .damaged: visit(next, sweep, at: now)
                case .free, .settling, .timer: break
                }
            }
        }
    }

    private mutating func visit(_ job: UInt32, _ sweep: borrowing Sweep, at now: Instant) {
        guard Int32(truncatingIfNeeded: messages[slab[job].message].serial &- sweep.serial) <= 0 else { return }
        switch sweep.task {
        case .countAttempt(let reply, let until): countAttempt(job, reply, until, at: now)
        case .fail(let reply):
            if slab[job].state == .ready || slab[job].state == .waiting { finish(job, .bounced, reply, report: true) }
        case .verb(let task): apply(task, to: job, at: now)
        }
    }

    private mutating func countAttempt(_ job: UInt32, _ reply: SMTPReply, _ until: Instant, at now: Instant) {
        guard slab[job].state == .ready else { return }
        noteAttempt(job)
        slab[job].attempts = slab[job].attempts == .max ? .max : slab[job].attempts + 1
        setReply(job, reply)
        if now >= expiry(of: slab[job].message) {
            finish(job, .expired, reply, report: true)
        } else if takeDelayNotice(job, at: now) {
            addNotice(job, until: until, reply: reply)
        }
    }

    /// A job is about to leave its destination's chain: walks that stand on it go on to the next.
    mutating func moveCursors(off job: UInt32) {
        for position in sweeps.indices {
            if case .destination(let index, let id, job) = sweeps[position].scope {
                sweeps[position].scope = .destination(index, id: id, cursor: slab[job].nextOfDestination)
            }
        }
    }

    private mutating func endSweep(_ position: Int, at now: Instant) {
        let sweep = sweeps.remove(at: position)
        if case .verb(let task) = sweep.task { finishOperation(task) }
        guard case .destination(let index, _, _) = sweep.scope else { return }
        destinations[index].sweeps -= 1
        if destinations[index].reopenAfterSweep, destinations[index].sweeps == 0 { reopen(index, at: now) }
    }

    /// The destination's own walks end where they are (operators' verbs are told that they are done).
    mutating func endSweeps(of destination: UInt32) {
        for position in sweeps.indices.reversed() {
            guard case .destination(destination, _, _) = sweeps[position].scope else { continue }
            if case .verb(let task) = sweeps[position].task {
                if destinations[destination].counts.all > 0 { continue }
                finishOperation(task)
            }
            sweeps.remove(at: position)
            destinations[destination].sweeps -= 1
        }
    }
}
