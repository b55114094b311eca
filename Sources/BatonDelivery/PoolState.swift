// One site's connections on one loop: growth, reuse, attempt limits, throttling. Pure; its shell is `ConnectionPool`.
import BatonCore
import BatonModel

/// A connection of a pool, or the attempt to get one.
package struct ConnectionID: Hashable, Sendable {
    package let value: UInt32
}

/// A transaction that its shell keeps to be sent again at once.
package struct WorkID: Hashable, Sendable {
    package let value: UInt32
}

/// How a connection attempt failed at one address.
package enum ConnectFailure: Sendable {
    /// Not connected: refused, timed out, reset.
    case unreachable(SMTPReply)
    /// Connected, and turned away by the greeting, EHLO or HELO; or lost there.
    case refused(SMTPReply)
    /// Our own fault.
    case ownFault(SMTPReply)
}

/// The pool's pure half. Bounded: connections by the site's limit and the permits; resends by the connections they were lost
/// on, since each holds one. Randomness (the order of equal hosts) from its own seed.
package struct PoolState: StateMachine {
    package enum Event: Sendable {
        case hosts([SiteHost], SiteLimits)
        /// Look for something to do; `ready` transactions (at least) wait in the partition.
        case pump(ready: Int)
        /// The answer to `.askPermit`.
        case permit(ConnectionID, Bool)
        case failed(ConnectionID, ConnectFailure)
        case greeted(ConnectionID)
        /// The pull that was asked for brought nothing: no work is ready.
        case starved(ConnectionID)
        /// Nothing was pulled: the site's connections are more than this node may have, and this one closes.
        case surplus(ConnectionID)
        /// The pull that was asked for may not be made before `until`: the site's rate, or a spool that did not answer.
        case blocked(ConnectionID, until: Instant)
        /// A transaction ended. `trouble`: the reply to MAIL, or the 421, if it failed that way. `fresh`: it was the
        /// connection's first. `served`: the peer gave its verdict.
        case finished(ConnectionID, reusable: Bool, trouble: SMTPReply?, fresh: Bool, served: Bool)
        /// The transport is gone while nothing ran on it.
        case closed(ConnectionID)
        /// To be sent again on a new connection, not on the hosts named.
        case resend(WorkID, avoiding: [[UInt8]])
        /// The spool or the like did not do its part: pause as for every fault of our own.
        case ownFault(SMTPReply)
        /// Another pool wants the permit of an idle connection.
        case yield
        case tick
        /// No new work; connections close as they become idle.
        case drain
        case resume
    }

    package enum Action: Sendable {
        case askPermit(ConnectionID)
        case connect(ConnectionID, host: [UInt8], Endpoint)
        /// Pull one transaction and begin it on this connection; answer `.starved` if there is none.
        case pull(ConnectionID)
        case begin(ConnectionID, WorkID)
        /// The resend came to nothing: its recipients end by their last result.
        case giveUp(WorkID)
        /// The resend could not be tried: its recipients go back uncounted.
        case giveBack(WorkID)
        case quit(ConnectionID)
        case returnPermit
        case deferSite(SMTPReply)
        /// Every MX said that it never takes mail (521).
        case failSite(SMTPReply)
        /// Paused by the site's trouble, or by our own fault.
        case paused(until: Instant, reply: SMTPReply, ownFault: Bool)
    }

    enum Stage {
        case permitting
        case connecting
        case idle(since: Instant)
        case busy
        case quitting
    }

    struct Candidate {
        let host: [UInt8]
        let endpoint: Endpoint
    }

    struct Connection {
        var stage: Stage
        /// What remains to be tried, best last.
        var candidates: [Candidate] = []
        var current: Candidate?
        var addressesTried = 0
        /// Whether hosts of the site were left out of the candidates.
        var partial = false
        var transactions = 0
        var work: WorkID?
        /// A greeting turned us away; the rest of that host's addresses is passed over.
        var refusals = 0
        var neverRefusals = 0
        var remoteFailure: SMTPReply?
        var ownFailure: SMTPReply?
    }

    var hosts: [SiteHost]
    var limits: SiteLimits
    package internal(set) var throttle: SiteThrottle
    var connections: [ConnectionID: Connection] = [:]
    /// Idle connections, the one used last at the end.
    var idle: [ConnectionID] = []
    var busyCount = 0
    var connectingCount = 0
    var nextID: UInt32 = 0
    var random: SplitMix64
    var avoided: [Endpoint: Instant] = [:]
    var growthBlockedUntil = Instant.epoch
    private var pullsBlockedUntil = Instant.epoch
    /// No permit was to be had in this tick.
    var permitDenied = false
    var isDraining = false
    /// More work waits than the connections serve, as far as is known.
    var isHungry = false
    /// When a hungry pool looks again, though nothing happened to it.
    private var lookAt: Instant?

    package init(hosts: [SiteHost], limits: SiteLimits, seed: UInt64) {
        self.hosts = hosts
        self.limits = limits
        self.throttle = SiteThrottle(ceiling: limits.connections)
        self.random = SplitMix64(seed: seed)
    }

    package var openConnections: Int { connections.count }
    package var busyConnections: Int { busyCount }
    /// Since when the connection that rests longest has rested; nil if none does.
    package var restingSince: Instant? {
        guard let oldest = idle.first, case .idle(let since) = connections[oldest]?.stage else { return nil }
        return since
    }
    /// Whether work waits that nobody works on, as far as is known.
    package var wantsWork: Bool { isHungry }

    /// When `.tick` and a look for work are due: an idle connection's end, a pause's end, work that could not be served.
    /// `distantFuture` when only events can bring something to do.
    package func wake(at now: Instant) -> Instant {
        var due = restingSince.map { $0 + limits.idle } ?? .distantFuture
        guard isHungry, !isDraining else { return due }
        if throttle.isPaused(at: now) { return min(due, throttle.pausedUntil) }
        if let lookAt { due = min(due, lookAt) }
        return due
    }
    package var hostCount: Int { hosts.count }
    package var isIdle: Bool { connections.isEmpty }

    package func transactions(on id: ConnectionID) -> Int { connections[id]?.transactions ?? 0 }
    package func hasHosts(besides names: [[UInt8]]) -> Bool { hosts.contains { !names.contains($0.name) } }

    package mutating func receive(_ event: Event, at now: Instant, into actions: inout ActionBuffer<Action>) {
        switch event {
        case .hosts(let hosts, let limits):
            self.hosts = hosts
            if limits != self.limits { throttle.setCeiling(limits.connections) }
            self.limits = limits
            if avoided.count > 256 { avoided.removeAll() }
        case .pump(let ready): pump(ready, at: now, into: &actions)
        case .permit(let id, let granted): receivePermit(id, granted, at: now, into: &actions)
        case .failed(let id, let failure): receiveFailure(id, failure, at: now, into: &actions)
        case .greeted(let id): receiveGreeting(id, at: now, into: &actions)
        case .starved(let id):
            guard case .busy = connections[id]?.stage else { return }
            connections[id]?.transactions -= 1
            isHungry = false
            rest(id, at: now, into: &actions)
        case .surplus(let id):
            guard case .busy = connections[id]?.stage else { return }
            connections[id]?.transactions -= 1
            isHungry = true
            busyCount -= 1
            quit(id, into: &actions)
        case .blocked(let id, let until):
            guard case .busy = connections[id]?.stage else { return }
            connections[id]?.transactions -= 1
            isHungry = true
            pullsBlockedUntil = max(pullsBlockedUntil, until)
            rest(id, at: now, into: &actions)
        case .finished(let id, let reusable, let trouble, let fresh, let served):
            receiveEnd(id, reusable, trouble, fresh, served, at: now, into: &actions)
        case .closed(let id): remove(id, into: &actions)
        case .resend(let work, let avoiding): resend(work, avoiding: avoiding, at: now, into: &actions)
        case .ownFault(let reply):
            if throttle.ownFault(at: now) {
                actions.append(.paused(until: throttle.pausedUntil, reply: reply, ownFault: true))
            }
        case .yield: if let id = idle.first { quit(id, into: &actions) }
        case .tick: tick(at: now, into: &actions)
        case .drain:
            isDraining = true
            for id in idle { quit(id, into: &actions) }
        case .resume: throttle.resume()
        }
        noteHunger(at: now)
    }

    /// A hungry pool that has room looks again: at the next tick, or when what holds it back is over. A paused one wakes with
    /// the pause, one whose connections all work with their ends.
    private mutating func noteHunger(at now: Instant) {
        guard isHungry, !isDraining, connections.count < throttle.limit(at: now) || !idle.isEmpty else {
            lookAt = nil
            return
        }
        guard lookAt == nil else { return }
        lookAt = max(now + DeliveryLimits.tick, pullsBlockedUntil)
        if idle.isEmpty, let soonest = lookAt { lookAt = max(soonest, growthBlockedUntil) }
    }

    // MARK: Work

    private mutating func pump(_ ready: Int, at now: Instant, into actions: inout ActionBuffer<Action>) {
        isHungry = ready > 0
        guard !isDraining, ready > 0, now >= pullsBlockedUntil else { return }
        let limit = throttle.limit(at: now)
        var left = ready
        while left > 0, busyCount < limit, let id = idle.popLast() {
            occupy(id)
            actions.append(.pull(id))
            left -= 1
        }
        isHungry = left > 0
        // Growth: what still waits, up to the limit, at most doubling what works.
        guard left > 0, !permitDenied, now >= growthBlockedUntil, !hosts.isEmpty else { return }
        let room = min(limit - connections.count, max(1, busyCount) - connectingCount, left - connectingCount)
        for _ in 0..<max(0, room) { open(for: nil, avoiding: [], at: now, into: &actions) }
    }

    mutating func occupy(_ id: ConnectionID) {
        connections[id]?.stage = .busy
        connections[id]?.transactions += 1
        busyCount += 1
    }

    /// After a transaction, or when there was none: the next one, or idle, or out.
    private mutating func receiveEnd(
        _ id: ConnectionID, _ reusable: Bool, _ trouble: SMTPReply?, _ fresh: Bool, _ served: Bool, at now: Instant,
        into actions: inout ActionBuffer<Action>
    ) {
        guard case .busy = connections[id]?.stage else { return }
        if let trouble, ReplyClassifier.isThrottling(trouble), reusable || fresh {
            // A 421 on a reused connection may mean that connection alone: its message goes to a fresh one first.
            receiveTrouble(trouble, at: now, into: &actions)
        } else if served, trouble == nil {
            throttle.success()
        }
        guard reusable else { return remove(id, into: &actions) }
        let count = connections[id]?.transactions ?? 0
        let used = limits.messagesPerConnection > 0 && count >= limits.messagesPerConnection
        let surplus = connections.count > throttle.limit(at: now) && !throttle.isPaused(at: now)
        if isDraining || used || surplus {
            isHungry = true
            busyCount -= 1
            idle.append(id)
            quit(id, into: &actions)
        } else if throttle.limit(at: now) >= busyCount {
            connections[id]?.transactions += 1
            actions.append(.pull(id))
        } else {
            isHungry = true
            rest(id, at: now, into: &actions)
        }
    }

    /// The site asks us to slow down. A site that goes on so after its longest pauses is down for all that waits for it: else
    /// one recipient a pause would be tried, and the others neither counted nor ever expired.
    mutating func receiveTrouble(
        _ reply: SMTPReply, at now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        guard throttle.trouble(at: now) else { return }
        actions.append(.paused(until: throttle.pausedUntil, reply: reply, ownFault: false))
        if throttle.isDown { actions.append(.deferSite(ReplyClassifier.siteDeferral(reply))) }
    }

    private mutating func rest(_ id: ConnectionID, at now: Instant, into actions: inout ActionBuffer<Action>) {
        busyCount -= 1
        connections[id]?.stage = .idle(since: now)
        idle.append(id)
        if isDraining { quit(id, into: &actions) }
    }

    // MARK: Leaving

    mutating func quit(_ id: ConnectionID, into actions: inout ActionBuffer<Action>) {
        idle.removeAll { $0 == id }
        connections[id]?.stage = .quitting
        actions.append(.quit(id))
    }

    private mutating func remove(_ id: ConnectionID, into actions: inout ActionBuffer<Action>) {
        guard let gone = connections[id] else { return }
        switch gone.stage {
        case .permitting, .connecting: return
        case .busy:
            // Its place is free, however it went: else the pool would believe itself at its limit for ever.
            busyCount -= 1
            isHungry = true
        case .quitting: break
        case .idle: idle.removeAll { $0 == id }
        }
        connections.removeValue(forKey: id)
        actions.append(.returnPermit)
    }

    private mutating func tick(at now: Instant, into actions: inout ActionBuffer<Action>) {
        permitDenied = false
        lookAt = nil
        while let oldest = idle.first, case .idle(let since) = connections[oldest]?.stage, now - since >= limits.idle {
            quit(oldest, into: &actions)
        }
        if !avoided.isEmpty { avoided = avoided.filter { now < $0.value } }
    }
}
