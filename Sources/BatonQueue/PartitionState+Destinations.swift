// Destinations as a whole: routing, back-off, pauses, failure; sites.
import BatonCore
import BatonModel

extension PartitionState {
    // MARK: Routing

    mutating func requestRoute(_ destination: UInt32, at now: Instant) {
        setPhase(destination, .routing)
        setTimer(destination, at: now + QueueLimits.routeTimeout)
        emit(.routeNeeded(id(destination), destinations[destination].domain))
    }

    /// The destination belongs to `site` until `until`. In back-off it stays there, with the site known for later.
    mutating func assign(_ destination: DestinationID, to site: SiteID, until: Instant, at now: Instant) {
        guard let index = destinations.find(destination) else { return }
        let siteIndex = sites.intern(site)
        if destinations[index].site != siteIndex {
            board.detachAll(destinations[index], &sites)
            leaveSite(index)
            joinSite(index, siteIndex)
        }
        destinations[index].assignedUntil = until
        guard !destinations[index].isBlocked else { return }
        clearTimer(index)
        open(index)
    }

    private mutating func open(_ index: UInt32) {
        setPhase(index, .assigned)
        board.attachAll(destinations[index], &sites)
        if destinations[index].counts.ready > 0 { markDirty(destinations[index].site) }
    }

    private mutating func joinSite(_ index: UInt32, _ site: UInt32) {
        let first = sites[site].firstDestination
        destinations[index].site = site
        destinations[index].nextOfSite = first
        destinations[index].previousOfSite = none
        if first != none { destinations[first].previousOfSite = index }
        sites[site].firstDestination = index
        sites[site].destinations += 1
        if sites[site].destinations == 1 { sites.inUse += 1 }
    }

    mutating func leaveSite(_ index: UInt32) {
        let site = destinations[index].site
        guard site != none else { return }
        let (previous, next) = (destinations[index].previousOfSite, destinations[index].nextOfSite)
        if previous == none { sites[site].firstDestination = next } else { destinations[previous].nextOfSite = next }
        if next != none { destinations[next].previousOfSite = previous }
        destinations[index].site = none
        sites[site].destinations -= 1
        guard sites[site].destinations == 0 else { return }
        sites.inUse -= 1
        replies.release(sites[site].lastReply)
        sites[site].lastReply = 0
    }

    /// The site's name for operators and holds, and its own retry schedule.
    mutating func nameSite(_ site: SiteID, name: [UInt8], retry: RetrySchedule?) {
        let index = sites.intern(site)
        sites[index].name = name
        sites[index].retry = retry
    }

    mutating func forgetSite(_ site: SiteID) { sites.forget(site) }

    // MARK: Trouble

    /// Every ready job counts one attempt, the too old ones expire, and the destination waits as one wheel entry. While it
    /// waits already, a late report of the same trouble changes nothing, so that no attempt counts twice.
    mutating func deferDestination(_ destination: DestinationID, reply: SMTPReply, at now: Instant) {
        guard let index = destinations.find(destination) else { return }
        deferDestination(index, reply: reply, at: now)
    }

    private mutating func deferDestination(_ index: UInt32, reply: SMTPReply, at now: Instant) {
        guard destinations[index].phase != .backedOff else { return }
        block(index, .backedOff)
        destinations[index].failures += 1
        let wait = schedule(of: index).jittered(after: destinations[index].failures, random: &random)
        setTimer(index, at: now + wait)
        let number = replies.keep(reply)
        replies.release(destinations[index].reply)
        destinations[index].reply = number
        noteSiteReply(index, reply)
        startSweep(index, .countAttempt(reply: reply, until: now + wait))
    }

    /// The site's destinations that have ready jobs; the others learn of it when they have some.
    mutating func deferSite(_ site: SiteID, reply: SMTPReply, at now: Instant) {
        guard let siteIndex = sites.find(site) else { return }
        var index = sites[siteIndex].firstDestination
        while index != none {
            if destinations[index].counts.ready > 0 { deferDestination(index, reply: reply, at: now) }
            index = destinations[index].nextOfSite
        }
    }

    /// Every job of it that is ready or deferred bounces; suspended ones are left to the operator who suspended them.
    mutating func failDestination(_ destination: DestinationID, reply: SMTPReply) {
        guard let index = destinations.find(destination) else { return }
        block(index, .unrouted)
        destinations[index].reopenAfterSweep = false
        clearTimer(index)
        leaveSite(index)
        startSweep(index, .fail(reply: reply))
    }

    /// Our own fault: nothing is counted, and it is asked for again at `until`.
    mutating func holdDestination(_ destination: DestinationID, until: Instant) {
        guard let index = destinations.find(destination), destinations[index].phase != .backedOff else { return }
        block(index, .paused)
        setTimer(index, at: until)
    }

    private mutating func block(_ index: UInt32, _ phase: DestinationPhase) {
        board.detachAll(destinations[index], &sites)
        setPhase(index, phase)
    }

    /// The wait of the destination as a whole is over (or an operator ended it).
    mutating func reopen(_ index: UInt32, at now: Instant) {
        clearTimer(index)
        // Jobs are counted first, else they would be pulled with the attempt still to be added.
        if destinations[index].phase == .backedOff, sweeps.contains(where: { $0.countsAttempts(of: index) }) {
            destinations[index].reopenAfterSweep = true
            return
        }
        destinations[index].reopenAfterSweep = false
        if destinations[index].site != none, destinations[index].assignedUntil > now {
            open(index)
        } else {
            setPhase(index, .unrouted)
            if destinations[index].counts.ready > 0 { requestRoute(index, at: now) }
        }
    }

    /// The remote answered for a recipient: the destination works.
    mutating func noteAnswer(_ destination: UInt32) {
        destinations[destination].failures = 0
        if destinations[destination].reply != 0 {
            replies.release(destinations[destination].reply)
            destinations[destination].reply = 0
        }
    }

    mutating func noteSiteReply(_ destination: UInt32, _ reply: SMTPReply) {
        let site = destinations[destination].site
        guard site != none else { return }
        let number = replies.keep(reply)
        replies.release(sites[site].lastReply)
        sites[site].lastReply = number
    }

    func schedule(of destination: UInt32) -> RetrySchedule {
        let site = destinations[destination].site
        guard site != none, let own = sites[site].retry else { return configuration.retry }
        return own
    }

    // MARK: Phase and timer

    func id(_ index: UInt32) -> DestinationID { DestinationID(value: destinations[index].id) }

    mutating func setPhase(_ index: UInt32, _ phase: DestinationPhase) {
        let wasBlocked = destinations[index].isBlocked
        destinations[index].phase = phase
        let isBlocked = destinations[index].isBlocked
        if wasBlocked != isBlocked {
            blockedReady += isBlocked ? destinations[index].counts.ready : -destinations[index].counts.ready
        }
    }

    private mutating func setTimer(_ index: UInt32, at due: Instant) {
        var timer = destinations[index].timer
        if timer == none {
            timer = slab.take(.timer)
            slab[timer].destination = index
            destinations[index].timer = timer
        } else {
            wheel.remove(timer, &slab)
        }
        slab[timer].due = due.nanoseconds
        wheel.insert(timer, &slab)
    }

    private mutating func clearTimer(_ index: UInt32) {
        let timer = destinations[index].timer
        guard timer != none else { return }
        wheel.remove(timer, &slab)
        slab.give(back: timer)
        destinations[index].timer = none
    }

    /// The destination's timer came out of the wheel.
    mutating func timerFired(_ timer: UInt32, at now: Instant) {
        let index = slab[timer].destination
        slab.give(back: timer)
        destinations[index].timer = none
        switch destinations[index].phase {
        case .routing:
            // No answer from the planner: ask again.
            if destinations[index].counts.ready > 0 {
                requestRoute(index, at: now)
            } else {
                setPhase(index, .unrouted)
            }
        case .backedOff, .paused: reopen(index, at: now)
        case .unrouted, .assigned: break
        }
    }

    // MARK: Destinations without jobs

    /// Keeps site and back-off for the next mail, up to `QueueLimits.idleDestinations`; the longest idle goes first.
    mutating func retire(_ index: UInt32) {
        destinations.enterIdle(index)
        while destinations.idleCount > QueueLimits.idleDestinations {
            let oldest = destinations.firstIdle
            if destinations[oldest].sweeps > 0 { endSweeps(of: oldest) }
            clearTimer(oldest)
            leaveSite(oldest)
            replies.release(destinations[oldest].reply)
            if destinations[oldest].isBlocked { setPhase(oldest, .unrouted) }
            destinations.release(oldest)
        }
    }
}
