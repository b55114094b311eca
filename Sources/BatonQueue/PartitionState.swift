// The queue of one loop as a value: what comes in, where a job stands, and what becomes free.
import BatonCore
import BatonModel

/// What the shell has to tell the delivery side, in order.
enum QueueAction: Sendable {
    case routeNeeded(DestinationID, Domain)
    case workReady(SiteID, ready: Int)
    case finalWithoutAttempt([FinalWithoutAttempt])
    case delayNoticesDue([DelayNoticeDue])
}

/// All state of a partition. Pure: time is an argument, randomness comes from its seed, results are return values and actions.
/// Not copyable, since it owns pages of memory; used by one executor at a time.
///
/// A live recipient is one `JobSlot` in exactly one of: a queue of the ready board, the timer wheel, nowhere (in flight,
/// settling, damaged). Beside that it is a member of its message's and its destination's chain. Nothing here survives a
/// crash: the spool gives it all back by `receive`.
struct PartitionState: ~Copyable {
    let index: Int
    let count: Int
    var configuration: QueueConfiguration
    var random: SplitMix64
    var slab = JobSlab()
    var messages = MessageTable()
    var destinations = DestinationTable()
    var sites = SiteTable()
    var board = ReadyBoard()
    var wheel: TimerWheel
    var replies = ReplyTable()
    var holds = HoldTable()
    var sweeps: [Sweep] = []
    var operations: [OperationRecord] = []
    /// At most `QueueLimits.lateBounces`.
    var lateBounces: [LateBounce] = []
    var nextOperation: UInt64 = 1
    /// All jobs by state.
    var jobs = JobCounts()
    /// Ready jobs whose destination is blocked: deferred in an operator's eyes.
    var blockedReady = 0
    /// Handed out by `finalWithoutAttempt` and not settled.
    var finalsOutstanding = 0
    var serial: UInt32 = 0
    /// Bodies that came in memory and were let go for want of budget; for metrics.
    var bodiesNotKept = 0
    var received = 0

    private var actions = ActionBuffer<QueueAction>()
    private var finals: [FinalWithoutAttempt] = []
    private var notices: [DelayNoticeDue] = []
    private var dirtySites: [UInt32] = []

    init(index: Int, count: Int, configuration: QueueConfiguration, now: Instant) {
        precondition(count > 0 && index >= 0 && index < count, "a partition's index is below the count")
        self.index = index
        self.count = count
        self.configuration = configuration
        self.random = SplitMix64(seed: configuration.seed)
        self.wheel = TimerWheel(now: now)
    }

    // MARK: In

    /// Takes this partition's recipients of durable messages. Never refuses: they were promised with the 250; admission asks
    /// `isFull` before.
    mutating func receive(_ accepted: [AcceptedMessage], at now: Instant) {
        for message in accepted {
            if let progress = message.progress {
                takeRecovered(message, progress, at: now)
            } else {
                takeNew(message, at: now)
            }
            if !lateBounces.isEmpty, message.envelope.submit?.held != nil { bounceLate(message, at: now) }
        }
    }

    var isFull: Bool { load >= configuration.jobsMax }

    /// Jobs, with what destinations cost beside them: mail to a million domains is more than a million slots.
    var load: Int { jobs.all + (destinations.count - destinations.idleCount) * QueueLimits.jobsPerDestination }

    private func owns(_ domain: Domain) -> Bool {
        count == 1 || domain.stableHash % UInt64(count) == UInt64(index)
    }

    private mutating func takeNew(_ accepted: AcceptedMessage, at now: Instant) {
        var message = none
        for (number, recipient) in accepted.envelope.recipients.enumerated() {
            let domain = recipient.address.domain
            guard owns(domain) else { continue }
            if message == none { message = addMessage(accepted) }
            let job = addJob(UInt32(number), recipient, domain, to: message)
            slab[job].flags.insert(.untried)
            messages[message].untried += 1
            admit(job, at: now)
        }
        keepBody(accepted, message)
    }

    private mutating func takeRecovered(_ accepted: AcceptedMessage, _ progress: [RecipientProgress], at now: Instant) {
        var message = none
        for one in progress {
            guard Int(one.recipient) < accepted.envelope.recipients.count else { continue }
            let recipient = accepted.envelope.recipients[Int(one.recipient)]
            let domain = recipient.address.domain
            guard owns(domain) else { continue }
            if message == none { message = addMessage(accepted) }
            let job = addJob(one.recipient, recipient, domain, to: message)
            slab[job].attempts = one.attempts
            slab[job].doubts = UInt8(clamping: one.doubts)
            if one.delayNoticeSent { slab[job].flags.insert(.delayNoticeSent) }
            if let reply = one.lastReply { slab[job].reply = replies.keep(reply) }
            if one.attempts == 0 {
                slab[job].flags.insert(.untried)
                messages[message].untried += 1
            }
            if one.due > now, !isHeld(job) {
                wait(job, until: one.due)
            } else {
                admit(job, at: now)
            }
        }
        keepBody(accepted, message)
    }

    private mutating func addMessage(_ accepted: AcceptedMessage) -> UInt32 {
        let envelope = accepted.envelope
        serial &+= 1
        received += 1
        return messages.add(
            MessageEntry(
                ref: accepted.ref, id: envelope.id, arrival: envelope.arrival, senderClass: envelope.senderClass,
                senderHash: SenderHash.address(envelope.sender), senderDomainHash: SenderHash.domain(envelope.sender),
                serial: serial, size: UInt32(clamping: envelope.traits.length),
                isReport: envelope.flags.contains(.report),
                isSilent: envelope.sender == nil || envelope.flags.contains(.report)))
    }

    private mutating func keepBody(_ accepted: AcceptedMessage, _ message: UInt32) {
        guard message != none, let body = accepted.body else { return }
        let cost = MessageTable.cost(accepted.envelope, body)
        if messages[message].untried > 0, messages.residentBytes + cost <= configuration.residentBytes {
            messages.keep(Resident(envelope: accepted.envelope, body: body, bytes: cost), for: message)
        } else {
            bodiesNotKept += 1
        }
    }

    private mutating func addJob(
        _ number: UInt32, _ recipient: EnvelopeRecipient, _ domain: Domain, to message: UInt32
    ) -> UInt32 {
        let (destination, _) = destinations.intern(domain)
        destinations.leaveIdle(destination)
        let job = slab.take(.free)
        slab[job].message = message
        slab[job].recipient = number
        slab[job].destination = destination
        slab.link(job, intoMessage: &messages[message].firstJob)
        messages[message].live += 1
        slab.link(job, into: &destinations[destination])
        if recipient.notify.contains(.delay) {
            slab[job].flags.insert(.wantsDelayNotice)
        } else if messages[message].isSilent || !recipient.notify.isEmpty {
            slab[job].flags.insert(.noDelayNotice)
        }
        return job
    }

    // MARK: Where a job stands

    /// A job without a list becomes ready, or suspended where a hold catches it.
    mutating func admit(_ job: UInt32, at now: Instant, front: Bool = false) {
        if isHeld(job) { suspend(job, at: now) } else { enqueue(job, at: now, front: front) }
    }

    func isHeld(_ job: UInt32) -> Bool {
        guard !holds.isEmpty else { return false }
        let destination = slab[job].destination
        return holds.holds(
            messages[slab[job].message], domain: destinations[destination].domain, site: siteName(destination))
    }

    /// Nil without a site.
    func siteName(_ destination: UInt32) -> [UInt8]? {
        let site = destinations[destination].site
        return site == none ? nil : sites[site].name
    }

    mutating func setState(_ job: UInt32, _ state: JobState) {
        let old = slab[job].state
        let destination = slab[job].destination
        slab[job].state = state
        jobs.add(old, -1)
        jobs.add(state, 1)
        destinations[destination].counts.add(old, -1)
        destinations[destination].counts.add(state, 1)
        if destinations[destination].isBlocked {
            if old == .ready { blockedReady -= 1 }
            if state == .ready { blockedReady += 1 }
        }
    }

    /// Takes a job out of the list it waits in. Its state is to be set next.
    mutating func leaveList(_ job: UInt32) {
        switch slab[job].state {
        case .ready: board.remove(job, &slab, &destinations, &sites)
        case .waiting, .suspended, .timer: wheel.remove(job, &slab)
        case .free, .inFlight, .settling, .damaged: break
        }
    }

    mutating func enqueue(_ job: UInt32, at now: Instant, front: Bool = false) {
        let destination = slab[job].destination
        if destinations[destination].phase == .assigned, destinations[destination].assignedUntil <= now {
            board.detachAll(destinations[destination], &sites)
            setPhase(destination, .unrouted)
        }
        setState(job, .ready)
        board.push(
            job, senderClass: messages[slab[job].message].senderClass, front: front, &slab, &destinations, &sites)
        switch destinations[destination].phase {
        case .unrouted: requestRoute(destination, at: now)
        case .assigned: markDirty(destinations[destination].site)
        case .routing, .backedOff, .paused: break
        }
    }

    mutating func wait(_ job: UInt32, until due: Instant) {
        setState(job, .waiting)
        slab[job].due = due.nanoseconds
        wheel.insert(job, &slab)
    }

    /// Into the wheel until it expires: suspended mail still does.
    mutating func suspend(_ job: UInt32, at now: Instant) {
        setState(job, .suspended)
        slab[job].due = max(expiry(of: slab[job].message), now).nanoseconds
        wheel.insert(job, &slab)
    }

    func expiry(of message: UInt32) -> Instant {
        messages[message].arrival
            + (messages[message].isReport ? configuration.reportExpireAfter : configuration.expireAfter)
    }

    /// The recipient ends without an attempt: out of its list, to the delivery side, free once settled.
    mutating func finish(_ job: UInt32, _ verdict: OutcomeVerdict, _ reply: SMTPReply, report: Bool) {
        leaveList(job)
        setState(job, .settling)
        slab[job].flags.insert(.handedOut)
        finalsOutstanding += 1
        let message = slab[job].message
        finals.append(
            FinalWithoutAttempt(
                message: messages[message].ref, envelope: messages.resident(of: message)?.envelope,
                recipient: pulled(job), verdict: verdict, reply: reply, report: report))
        if finals.count >= QueueLimits.finalsPerCall { flushFinals() }
    }

    mutating func addNotice(_ job: UInt32, until: Instant, reply: SMTPReply) {
        let message = slab[job].message
        notices.append(
            DelayNoticeDue(
                message: messages[message].ref, envelope: messages.resident(of: message)?.envelope,
                recipient: pulled(job), until: until, reply: reply))
        if notices.count >= QueueLimits.finalsPerCall { flushFinals() }
    }

    func pulled(_ job: UInt32) -> PulledRecipient {
        PulledRecipient(handle: slab.handle(job), recipient: slab[job].recipient, attempts: slab[job].attempts)
    }

    /// An attempt took place: with the last untried recipient the body leaves memory.
    mutating func noteAttempt(_ job: UInt32) {
        guard slab[job].flags.contains(.untried) else { return }
        slab[job].flags.remove(.untried)
        let message = slab[job].message
        messages[message].untried -= 1
        if messages[message].untried == 0 { messages.dropResident(message) }
    }

    mutating func setReply(_ job: UInt32, _ reply: SMTPReply) {
        let number = replies.keep(reply)
        replies.release(slab[job].reply)
        slab[job].reply = number
    }

    // MARK: Out

    /// Final outcomes are recorded: the slots are free. Stale handles and recipients that are not final are left alone.
    mutating func settle(_ handles: [JobHandle]) {
        for handle in handles {
            guard let job = slab.slot(of: handle), slab[job].state == .settling else { continue }
            free(job)
        }
    }

    /// The recipient has its final outcome by another node's word (PROTOCOL T5): it leaves the queue, and its slot is free. False, and
    /// nothing changed, where it is not here, is being tried, or has its outcome.
    mutating func drop(_ ended: EndedElsewhere) -> Bool {
        guard let message = messages.find(ended.id, at: ended.job.message) else { return false }
        var job = messages[message].firstJob
        while job != none, slab[job].recipient != ended.job.recipient { job = slab[job].nextOfMessage }
        guard job != none else { return false }
        switch slab[job].state {
        case .ready, .waiting, .suspended, .damaged: break
        case .free, .inFlight, .settling, .timer: return false
        }
        leaveList(job)
        setState(job, .settling)
        free(job)
        return true
    }

    private mutating func free(_ job: UInt32) {
        noteAttempt(job)
        if slab[job].flags.contains(.handedOut) { finalsOutstanding -= 1 }
        replies.release(slab[job].reply)
        let message = slab[job].message
        slab.unlink(job, fromMessage: &messages[message].firstJob)
        messages[message].live -= 1
        if messages[message].live == 0 { messages.remove(message) }
        let destination = slab[job].destination
        if destinations[destination].sweeps > 0 { moveCursors(off: job) }
        slab.unlink(job, from: &destinations[destination])
        setState(job, .free)
        slab.give(back: job)
        if destinations[destination].counts.all == 0 { retire(destination) }
    }

    /// The spool moved a message (PROTOCOL C2): later transactions and outcomes name its new place.
    mutating func relocate(_ id: MessageID, from old: StoredMessageRef, to new: StoredMessageRef) {
        guard let message = messages.find(id, at: old) else { return }
        messages[message].ref = new
    }

    // MARK: Actions

    mutating func emit(_ action: QueueAction) { actions.append(action) }

    mutating func markDirty(_ site: UInt32) {
        guard !sites[site].isDirty else { return }
        sites[site].isDirty = true
        dirtySites.append(site)
    }

    private mutating func flushFinals() {
        if !finals.isEmpty {
            actions.append(.finalWithoutAttempt(finals))
            finals.removeAll(keepingCapacity: false)
        }
        if !notices.isEmpty {
            actions.append(.delayNoticesDue(notices))
            notices.removeAll(keepingCapacity: false)
        }
    }

    /// What the shell has to do now. One `workReady` for each site, however many jobs came.
    mutating func drain() -> [QueueAction] {
        flushFinals()
        for site in dirtySites {
            sites[site].isDirty = false
            if sites[site].ready > 0 { actions.append(.workReady(sites[site].id, ready: sites[site].ready)) }
        }
        dirtySites.removeAll(keepingCapacity: true)
        return actions.isEmpty ? [] : actions.drain()
    }
}
