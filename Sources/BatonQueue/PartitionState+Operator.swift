// Operators' verbs: retry, bounce, suspend, resume.
import BatonCore
import BatonModel

/// A verb at work on jobs.
struct VerbTask: Sendable {
    enum Verb: Sendable {
        case retry
        /// Mail that arrived after `cutoff` is left alone.
        case bounce(reply: SMTPReply, report: Bool, cutoff: Instant)
        case suspend
        case resume
    }

    let verb: Verb
    let match: SelectorMatch
    /// Number of its `OperationRecord`; 0 for a hold that ended by itself.
    let operation: UInt64
}

/// A bounce that is remembered for held copies, which are not in the queue yet.
struct LateBounce: Sendable {
    let task: VerbTask
    let until: Instant
}

struct OperationRecord: Sendable {
    let id: UInt64
    let verb: OperatorVerb
    var count = 0
    var inFlight = 0
    var done = false

    var progress: OperationProgress {
        OperationProgress(id: id, verb: verb, count: count, inFlight: inFlight, done: done)
    }
}

extension PartitionState {
    // MARK: Verbs

    /// Deferred mail goes out now, spread a little, under the same limits; backed-off destinations of it are tried again.
    /// Suspended mail stays.
    mutating func retry(_ selector: QueueSelector, at now: Instant) throws(OperationRefusal) -> OperationProgress {
        try begin(.retry, .retry, selector, at: now)
    }

    /// Mail that arrived by `cutoff` ends as `adminBounced`, without an NDR unless `report`. What is in flight is left alone and
    /// counted.
    mutating func bounce(
        _ selector: QueueSelector, reason: [UInt8], report: Bool, cutoff: Instant = .distantFuture, at now: Instant
    ) throws(OperationRefusal) -> OperationProgress {
        let text = Array("Baton internal: removed by the operator".utf8) + (reason.isEmpty ? [] : Array(": ".utf8))
        let reply = SMTPReply(code: 550, status: EnhancedStatus(5, 7, 1), text: text + reason, stage: .local).kept
        let progress = try begin(.bounce, .bounce(reply: reply, report: report, cutoff: cutoff), selector, at: now)
        if lateBounces.count >= QueueLimits.lateBounces { lateBounces.removeFirst() }
        let verb = VerbTask.Verb.bounce(reply: reply, report: report, cutoff: min(cutoff, now))
        lateBounces.append(
            LateBounce(
                task: VerbTask(verb: verb, match: SelectorMatch(selector), operation: 0),
                until: now + QueueLimits.lateBounceKept))
        return progress
    }

    /// Mail is set aside until `resume` or `until`, new mail too. It still expires. The same selector again sets a new end.
    mutating func suspend(
        _ selector: QueueSelector, until: Instant?, at now: Instant
    ) throws(OperationRefusal) -> OperationProgress {
        if holds.entries[selector] == nil, holds.isFull { throw .tooManyHolds }
        try makeRoomForOperation()
        dropHold(selector)
        let number = holds.takeNumber()
        var timer = none
        if let until {
            timer = slab.take(.timer)
            slab[timer].flags = .holdTimer
            slab[timer].recipient = number
            slab[timer].due = until.nanoseconds
            wheel.insert(timer, &slab)
        }
        holds.set(selector, until: until, timer: timer, number: number)
        return try begin(.suspend, .suspend, selector, at: now)
    }

    /// Ends the suspension of exactly this selector (`.all`: every one, unless `exactly`), and releases what no other one holds,
    /// spread.
    mutating func resume(
        _ selector: QueueSelector, exactly: Bool = false, at now: Instant
    ) throws(OperationRefusal) -> OperationProgress {
        try makeRoomForOperation()
        if selector == .all, !exactly {
            for held in Array(holds.entries.keys) { dropHold(held) }
        } else {
            dropHold(selector)
        }
        return try begin(.resume, .resume, selector, at: now)
    }

    /// The suspensions in force, for listing and for whoever keeps them over a restart.
    var holdList: [QueueHold] { holds.entries.map { QueueHold(selector: $0.key, until: $0.value.until) } }

    /// Nil for an operation that was never begun or is forgotten.
    func operation(_ id: UInt64) -> OperationProgress? { operations.first { $0.id == id }?.progress }

    private mutating func dropHold(_ selector: QueueSelector) {
        guard let entry = holds.remove(selector), entry.timer != none else { return }
        wheel.remove(entry.timer, &slab)
        slab.give(back: entry.timer)
    }

    /// `suspend --for` is over.
    mutating func holdEnded(_ timer: UInt32, at now: Instant) {
        let number = slab[timer].recipient
        slab.give(back: timer)
        guard let selector = holds.selector(number: number) else { return }
        holds.remove(selector)
        start(VerbTask(verb: .resume, match: SelectorMatch(selector), operation: 0), at: now)
    }

    // MARK: Operations

    /// Room for one more record: the oldest finished one is forgotten.
    private mutating func makeRoomForOperation() throws(OperationRefusal) {
        guard operations.count >= QueueLimits.operations else { return }
        guard let oldest = operations.firstIndex(where: \.done) else { throw .tooManyOperations }
        operations.remove(at: oldest)
    }

    private mutating func begin(
        _ name: OperatorVerb, _ verb: VerbTask.Verb, _ selector: QueueSelector, at now: Instant
    ) throws(OperationRefusal) -> OperationProgress {
        try makeRoomForOperation()
        let record = OperationRecord(id: nextOperation, verb: name)
        nextOperation += 1
        operations.append(record)
        start(VerbTask(verb: verb, match: SelectorMatch(selector), operation: record.id), at: now)
        // A first slice at once, so that small verbs answer with their whole count.
        _ = advance(to: now)
        return operation(record.id) ?? record.progress
    }

    private mutating func start(_ task: VerbTask, at now: Instant) {
        switch task.match.selector {
        case .message(let id):
            // One message is done in one go: its parts have at most `Limits.recipientsPerEnvelope` jobs together.
            for message in messages.all(id) { apply(task, toAllOf: message, at: now) }
            finishOperation(task)
        case .domain(let domain):
            guard let index = destinations.find(domain), destinations[index].counts.all > 0 else {
                return finishOperation(task)
            }
            startSweep(index, .verb(task))
        case .site, .sender, .senderDomain, .all:
            sweeps.append(Sweep(scope: .slots(next: 0, end: slab.highWater), task: .verb(task), serial: serial))
        }
    }

    mutating func finishOperation(_ task: VerbTask) {
        guard let position = operations.firstIndex(where: { $0.id == task.operation }) else { return }
        operations[position].done = true
    }

    private mutating func count(_ task: VerbTask, _ changed: Int, inFlight: Int = 0) -> Int {
        guard let position = operations.firstIndex(where: { $0.id == task.operation }) else { return 0 }
        operations[position].count += changed
        operations[position].inFlight += inFlight
        return operations[position].count
    }

    // MARK: One job

    private mutating func apply(_ task: VerbTask, toAllOf message: UInt32, at now: Instant) {
        var job = messages[message].firstJob
        while job != none {
            let next = slab[job].nextOfMessage
            apply(task, to: job, at: now)
            job = next
        }
    }

    /// A held copy (PROTOCOL S6) had its 250 before the bounce and comes into the queue after it. Only such: the clocks of nodes
    /// differ, and new mail of one that is behind must not be met.
    mutating func bounceLate(_ accepted: AcceptedMessage, at now: Instant) {
        lateBounces.removeAll { $0.until <= now }
        for bounce in lateBounces {
            // Each time anew: with its last job the message leaves the table.
            guard let message = messages.find(accepted.envelope.id, at: accepted.ref) else { return }
            apply(bounce.task, toAllOf: message, at: now)
        }
    }

    mutating func apply(_ task: VerbTask, to job: UInt32, at now: Instant) {
        let destination = slab[job].destination
        let domain = destinations[destination].domain
        guard task.match.matches(messages[slab[job].message], domain: domain, site: siteName(destination)) else {
            return
        }
        if case .bounce(_, _, let cutoff) = task.verb, messages[slab[job].message].arrival > cutoff { return }
        let state = slab[job].state
        if state == .inFlight {
            _ = count(task, 0, inFlight: 1)
            return
        }
        switch task.verb {
        case .retry: retry(task, job, at: now)
        case .bounce(let reply, let report, _):
            guard state == .ready || state == .waiting || state == .suspended || state == .damaged else { return }
            finish(job, .adminBounced, reply, report: report)
            _ = count(task, 1)
        case .suspend:
            guard state == .ready || state == .waiting else { return }
            leaveList(job)
            suspend(job, at: now)
            _ = count(task, 1)
        case .resume:
            guard state == .suspended, !isHeld(job) else { return }
            leaveList(job)
            release(job, after: count(task, 1), at: now)
        }
    }

    private mutating func retry(_ task: VerbTask, _ job: UInt32, at now: Instant) {
        let destination = slab[job].destination
        if slab[job].state == .waiting {
            leaveList(job)
            release(job, after: count(task, 1), at: now)
        } else if slab[job].state == .ready, destinations[destination].isBlocked {
            _ = count(task, 1)
        } else {
            return
        }
        // The destination is tried again as a whole; its back-off grows on if that fails.
        guard destinations[destination].isBlocked, !destinations[destination].reopenAfterSweep else { return }
        switch task.match.selector {
        case .domain, .site, .all:
            // Its other ready jobs go with it, and will be met as unblocked.
            _ = count(task, destinations[destination].counts.ready - (slab[job].state == .ready ? 1 : 0))
        case .message, .sender, .senderDomain: break
        }
        reopen(destination, at: now)
    }

    /// Ready now, or after a random wait that grows with the number released, so that a flood does not start at one moment.
    private mutating func release(_ job: UInt32, after released: Int, at now: Instant) {
        let spread = min(
            QueueLimits.releaseSpreadPerJob.multiplied(by: Double(max(released - 1, 0))),
            schedule(of: slab[job].destination).first)
        let due = now + spread.multiplied(by: random.unit())
        if due > now { wait(job, until: due) } else { enqueue(job, at: now) }
    }
}
