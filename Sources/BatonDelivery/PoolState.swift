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
        /// The pull that was asked for brought nothing.
        case starved(ConnectionID)
        /// A transaction ended. `trouble`: the reply to MAIL, or the 421, if it failed that way. `fresh`: it was the connection's first.
        case finished(ConnectionID, reusable: Bool, trouble: SMTPReply?, fresh: Bool)
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

    private enum Stage {
        case permitting
        case connecting
        case idle(since: Instant)
        case busy
        case quitting
    }

    private struct Candidate {
        let host: [UInt8]
        let endpoint: Endpoint
    }

    private struct Connection {
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

    private var hosts: [SiteHost]
    private var limits: SiteLimits
    package private(set) var throttle: SiteThrottle
    private var connections: [ConnectionID: Connection] = [:]
    /// Idle connections, the one used last at the end.
    private var idle: [ConnectionID] = []
    private var busyCount = 0
    private var connectingCount = 0
    private var nextID: UInt32 = 0
    private var random: SplitMix64
    private var avoided: [Endpoint: Instant] = [:]
    private var growthBlockedUntil = Instant.epoch
    /// No permit was to be had in this tick.
    private var permitDenied = false
    private var isDraining = false

    package init(hosts: [SiteHost], limits: SiteLimits, seed: UInt64) {
        self.hosts = hosts
        self.limits = limits
        self.throttle = SiteThrottle(ceiling: limits.connections)
        self.random = SplitMix64(seed: seed)
    }

    package var openConnections: Int { connections.count }
    package var busyConnections: Int { busyCount }
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
            rest(id, at: now, into: &actions)
        case .finished(let id, let reusable, let trouble, let fresh):
            receiveEnd(id, reusable, trouble, fresh, at: now, into: &actions)
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
    }

    // MARK: Work

    private mutating func pump(_ ready: Int, at now: Instant, into actions: inout ActionBuffer<Action>) {
        guard !isDraining, ready > 0 else { return }
        let limit = throttle.limit(at: now)
        var left = ready
        while left > 0, busyCount < limit, let id = idle.popLast() {
            occupy(id)
            actions.append(.pull(id))
            left -= 1
        }
        // Growth: what still waits, up to the limit, at most doubling what works.
        guard left > 0, !permitDenied, now >= growthBlockedUntil, !hosts.isEmpty else { return }
        let room = min(limit - connections.count, max(1, busyCount) - connectingCount, left - connectingCount)
        for _ in 0..<max(0, room) { open(for: nil, avoiding: [], at: now, into: &actions) }
    }

    private mutating func occupy(_ id: ConnectionID) {
        connections[id]?.stage = .busy
        connections[id]?.transactions += 1
        busyCount += 1
    }

    /// After a transaction, or when there was none: the next one, or idle, or out.
    private mutating func receiveEnd(
        _ id: ConnectionID, _ reusable: Bool, _ trouble: SMTPReply?, _ fresh: Bool, at now: Instant,
        into actions: inout ActionBuffer<Action>
    ) {
        guard case .busy = connections[id]?.stage else { return }
        if let trouble, ReplyClassifier.isThrottling(trouble), reusable || fresh {
            // A 421 on a reused connection may mean that connection alone: its message goes to a fresh one first.
            if throttle.trouble(at: now) {
                actions.append(.paused(until: throttle.pausedUntil, reply: trouble, ownFault: false))
            }
        } else if reusable, trouble == nil {
            throttle.success()
        }
        guard reusable else {
            busyCount -= 1
            remove(id, into: &actions)
            return
        }
        let count = connections[id]?.transactions ?? 0
        let used = limits.messagesPerConnection > 0 && count >= limits.messagesPerConnection
        let surplus = connections.count > throttle.limit(at: now) && !throttle.isPaused(at: now)
        if isDraining || used || surplus {
            busyCount -= 1
            idle.append(id)
            quit(id, into: &actions)
        } else if throttle.limit(at: now) >= busyCount {
            connections[id]?.transactions += 1
            actions.append(.pull(id))
        } else {
            rest(id, at: now, into: &actions)
        }
    }

    private mutating func rest(_ id: ConnectionID, at now: Instant, into actions: inout ActionBuffer<Action>) {
        busyCount -= 1
        connections[id]?.stage = .idle(since: now)
        idle.append(id)
        if isDraining { quit(id, into: &actions) }
    }

    // MARK: Connecting

    private mutating func resend(
        _ work: WorkID, avoiding: [[UInt8]], at now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        guard !isDraining, !throttle.isPaused(at: now) else { return actions.append(.giveBack(work)) }
        guard hasHosts(besides: avoiding) else { return actions.append(.giveUp(work)) }
        open(for: work, avoiding: avoiding, at: now, into: &actions)
    }

    private mutating func open(
        for work: WorkID?, avoiding: [[UInt8]], at now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        let id = ConnectionID(value: nextID)
        nextID &+= 1
        var connection = Connection(stage: .permitting)
        connection.work = work
        (connection.candidates, connection.partial) = chain(avoiding: avoiding, at: now)
        connections[id] = connection
        connectingCount += 1
        actions.append(.askPermit(id))
    }

    /// Addresses in the order of trying, reversed: ranks in order, equals at random (RFC 5321 5.1), a host's addresses in
    /// theirs, those that lately did not answer last; at most `addressesPerAttempt`.
    private mutating func chain(avoiding: [[UInt8]], at now: Instant) -> ([Candidate], Bool) {
        let left = hosts.filter { !avoiding.contains($0.name) }
        let keyed = left.map { (host: $0, key: random.next()) }
        let ordered = keyed.sorted { ($0.host.rank, $0.key) < ($1.host.rank, $1.key) }
        var good: [Candidate] = []
        var bad: [Candidate] = []
        for (host, _) in ordered {
            for endpoint in host.endpoints {
                if let until = avoided[endpoint], now < until {
                    bad.append(Candidate(host: host.name, endpoint: endpoint))
                } else {
                    good.append(Candidate(host: host.name, endpoint: endpoint))
                }
            }
        }
        let all = (good + bad).prefix(DeliveryLimits.addressesPerAttempt)
        let names = Set(all.map(\.host))
        return (Array(all.reversed()), left.count < hosts.count || left.contains { !names.contains($0.name) })
    }

    private mutating func receivePermit(
        _ id: ConnectionID, _ granted: Bool, at now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        guard case .permitting = connections[id]?.stage else { return }
        guard granted else {
            permitDenied = true
            connectingCount -= 1
            if let work = connections.removeValue(forKey: id)?.work { actions.append(.giveBack(work)) }
            return
        }
        connections[id]?.stage = .connecting
        tryNext(id, at: now, into: &actions)
    }

    private mutating func tryNext(_ id: ConnectionID, at now: Instant, into actions: inout ActionBuffer<Action>) {
        guard let candidate = connections[id]?.candidates.popLast() else {
            return fail(id, at: now, into: &actions)
        }
        connections[id]?.current = candidate
        connections[id]?.addressesTried += 1
        actions.append(.connect(id, host: candidate.host, candidate.endpoint))
    }

    private mutating func receiveGreeting(
        _ id: ConnectionID, at now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        guard case .connecting = connections[id]?.stage else { return }
        connectingCount -= 1
        connections[id]?.candidates = []
        if let endpoint = connections[id]?.current?.endpoint { avoided.removeValue(forKey: endpoint) }
        if let work = connections[id]?.work {
            connections[id]?.work = nil
            occupy(id)
            actions.append(.begin(id, work))
        } else if throttle.limit(at: now) > busyCount {
            occupy(id)
            actions.append(.pull(id))
        } else {
            connections[id]?.stage = .idle(since: now)
            idle.append(id)
            if isDraining { quit(id, into: &actions) }
        }
    }

    private mutating func receiveFailure(
        _ id: ConnectionID, _ failure: ConnectFailure, at now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        guard case .connecting = connections[id]?.stage, let current = connections[id]?.current else { return }
        switch failure {
        case .ownFault(let reply): connections[id]?.ownFailure = reply
        case .unreachable(let reply):
            avoided[current.endpoint] = now + DeliveryLimits.addressAvoidance
            connections[id]?.remoteFailure = reply
        case .refused(let reply):
            connections[id]?.refusals += 1
            if reply.code == 521 { connections[id]?.neverRefusals += 1 }
            connections[id]?.remoteFailure = reply
            // A host that turned us away speaks for all its addresses: the next MX is asked.
            connections[id]?.candidates.removeAll { $0.host == current.host }
        }
        if isDraining { connections[id]?.candidates = [] }
        tryNext(id, at: now, into: &actions)
    }

    /// Every candidate failed.
    private mutating func fail(_ id: ConnectionID, at now: Instant, into actions: inout ActionBuffer<Action>) {
        guard let failed = connections.removeValue(forKey: id) else { return }
        connectingCount -= 1
        actions.append(.returnPermit)
        guard let reply = failed.remoteFailure else {
            // Nothing was tried, or nothing failed but ourselves.
            if let work = failed.work { actions.append(.giveBack(work)) }
            if let own = failed.ownFailure, throttle.ownFault(at: now) {
                actions.append(.paused(until: throttle.pausedUntil, reply: own, ownFault: true))
            }
            return
        }
        if let work = failed.work { actions.append(.giveUp(work)) }
        if isDraining { return }
        let never = failed.neverRefusals > 0 && failed.neverRefusals == failed.addressesTried && !failed.partial
        if never { return actions.append(.failSite(reply)) }
        let alone = busyCount == 0 && idle.isEmpty && connectingCount == 0
        if alone || ReplyClassifier.isThrottling(reply) {
            if throttle.trouble(at: now) {
                actions.append(.paused(until: throttle.pausedUntil, reply: reply, ownFault: false))
            }
        } else {
            growthBlockedUntil = now + DeliveryLimits.growthPause
        }
        if alone { actions.append(.deferSite(ReplyClassifier.siteDeferral(reply))) }
    }

    // MARK: Leaving

    private mutating func quit(_ id: ConnectionID, into actions: inout ActionBuffer<Action>) {
        idle.removeAll { $0 == id }
        connections[id]?.stage = .quitting
        actions.append(.quit(id))
    }

    private mutating func remove(_ id: ConnectionID, into actions: inout ActionBuffer<Action>) {
        guard let gone = connections[id] else { return }
        switch gone.stage {
        case .permitting, .connecting: return
        case .busy, .quitting: break
        case .idle: idle.removeAll { $0 == id }
        }
        connections.removeValue(forKey: id)
        actions.append(.returnPermit)
    }

    private mutating func tick(at now: Instant, into actions: inout ActionBuffer<Action>) {
        permitDenied = false
        while let oldest = idle.first, case .idle(let since) = connections[oldest]?.stage, now - since >= limits.idle {
            quit(oldest, into: &actions)
        }
        if !avoided.isEmpty { avoided = avoided.filter { now < $0.value } }
    }
}
