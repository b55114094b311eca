// Attempts: jobs handed out in fair order, and what is decided when they end.
import BatonCore
import BatonModel

extension PartitionState {
    /// Up to `limit` transactions of the site's ready jobs, each of one message and one destination, with at most
    /// `recipients` recipients. Consecutive jobs of a message go together, so those that failed together share a due time.
    mutating func pull(_ site: SiteID, transactions limit: Int, recipients: Int, at now: Instant) -> [Transaction] {
        guard let siteIndex = sites.find(site), limit > 0, recipients > 0 else { return [] }
        var result: [Transaction] = []
        var setAside = 0
        while result.count < limit, let queue = board.turn(siteIndex, &sites) {
            let (destination, senderClass) = (board.queue(queue).destination, board.queue(queue).senderClass)
            if destinations[destination].assignedUntil <= now {
                board.detachAll(destinations[destination], &sites)
                requestRoute(destination, at: now)
                continue
            }
            let first = board.queue(queue).jobs.head
            if isHeld(first) {
                guard setAside < QueueLimits.heldPerPull else {
                    // The rest is asked for again in another turn.
                    markDirty(siteIndex)
                    break
                }
                leaveList(first)
                suspend(first, at: now)
                setAside += 1
                continue
            }
            let taken = takeOut(first, limit: recipients)
            let message = slab[first].message
            board.charge(
                queue, site: siteIndex, senderClass: senderClass,
                cost: ReadyBoard.cost(recipients: taken.count, size: messages[message].size))
            let resident = messages.resident(of: message)
            result.append(
                Transaction(
                    message: messages[message].ref, destination: id(destination), envelope: resident?.envelope,
                    body: resident?.body, recipients: taken))
        }
        return result
    }

    /// The first job of a queue and those right behind it of the same message.
    private mutating func takeOut(_ first: UInt32, limit: Int) -> [PulledRecipient] {
        let message = slab[first].message
        var taken: [PulledRecipient] = []
        var job = first
        while job != none, taken.count < limit, slab[job].message == message {
            let next = slab[job].next
            leaveList(job)
            setState(job, .inFlight)
            taken.append(pulled(job))
            job = next
        }
        return taken
    }

    func ready(_ site: SiteID) -> Int {
        guard let index = sites.find(site) else { return 0 }
        return sites[index].ready
    }

    // MARK: Decisions

    /// One decision for each result, in order. Recipients to be tried again are in the wheel when it returns; final ones wait
    /// for `settle`.
    mutating func decide(_ results: [(JobHandle, AttemptResult)], at now: Instant) -> [RecipientDecision] {
        var shared = SharedWait()
        return results.map { handle, result in
            guard let job = slab.slot(of: handle), slab[job].state == .inFlight else { return .unknown }
            return decide(job, result, &shared, at: now)
        }
    }

    /// Recipients of a message that failed together draw one jitter, so that they are tried together again.
    struct SharedWait {
        var message = none
        var attempts: UInt16 = 0
        var long = false
        var due = Instant.epoch
    }

    private mutating func decide(
        _ job: UInt32, _ result: AttemptResult, _ shared: inout SharedWait, at now: Instant
    ) -> RecipientDecision {
        let destination = slab[job].destination
        switch result {
        case .delivered:
            noteAnswer(destination)
            noteAttempt(job)
            setState(job, .settling)
            return .delivered
        case .permanent(let reply):
            noteAnswer(destination)
            noteSiteReply(destination, reply)
            noteAttempt(job)
            setState(job, .settling)
            return .bounced
        case .temporary(let reply):
            noteAnswer(destination)
            return failed(job, reply, inDoubt: false, &shared, at: now)
        case .inDoubt(let reply):
            return failed(job, reply, inDoubt: true, &shared, at: now)
        case .returned:
            setState(job, .free)
            admit(job, at: now, front: true)
            return .returned
        case .notPermitted: return putOff(job, by: QueueLimits.permissionPause, at: now)
        case .beingRepaired: return putOff(job, by: QueueLimits.repairPause, at: now)
        case .damaged:
            noteAttempt(job)
            setState(job, .damaged)
            return .returned
        }
    }

    /// No attempt took place, and none is worth while before this span is over.
    private mutating func putOff(_ job: UInt32, by span: TimeSpan, at now: Instant) -> RecipientDecision {
        if isHeld(job) { suspend(job, at: now) } else { wait(job, until: now + span) }
        return .returned
    }

    private mutating func failed(
        _ job: UInt32, _ reply: SMTPReply, inDoubt: Bool, _ shared: inout SharedWait, at now: Instant
    ) -> RecipientDecision {
        noteAttempt(job)
        slab[job].attempts = slab[job].attempts == .max ? .max : slab[job].attempts + 1
        if inDoubt { slab[job].doubts = slab[job].doubts == .max ? .max : slab[job].doubts + 1 }
        setReply(job, reply)
        noteSiteReply(slab[job].destination, reply)
        guard now < expiry(of: slab[job].message) else {
            setState(job, .settling)
            return .expired
        }
        let due = nextDue(job, long: inDoubt && slab[job].doubts >= QueueLimits.doubtsBeforeLongWait, &shared, now)
        let notice = !inDoubt && takeDelayNotice(job, at: now)
        if isHeld(job) { suspend(job, at: now) } else { wait(job, until: due) }
        return inDoubt ? .inDoubt(until: due) : .deferred(until: due, delayNotice: notice)
    }

    private mutating func nextDue(_ job: UInt32, long: Bool, _ shared: inout SharedWait, _ now: Instant) -> Instant {
        let (message, attempts) = (slab[job].message, slab[job].attempts)
        if shared.message == message, shared.attempts == attempts, shared.long == long { return shared.due }
        let schedule = schedule(of: slab[job].destination)
        let wait =
            long ? schedule.longest(random: &random) : schedule.jittered(after: Int(attempts), random: &random)
        shared = SharedWait(message: message, attempts: attempts, long: long, due: now + wait)
        return shared.due
    }

    /// Whether the recipient's one delay notice is due; it is then counted as sent.
    mutating func takeDelayNotice(_ job: UInt32, at now: Instant) -> Bool {
        let flags = slab[job].flags
        guard !flags.contains(.delayNoticeSent), !flags.contains(.noDelayNotice) else { return false }
        let asked = flags.contains(.wantsDelayNotice)
        guard let after = configuration.delayNoticeAfter ?? (asked ? QueueLimits.delayNoticeOnRequest : nil),
            now >= messages[slab[job].message].arrival + after
        else { return false }
        slab[job].flags.insert(.delayNoticeSent)
        return true
    }
}
