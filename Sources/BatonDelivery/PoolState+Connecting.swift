// A pool's way to a connection: permit, addresses in their order, greeting, and what follows when all fail.
import BatonCore
import BatonModel

extension PoolState {
    mutating func resend(
        _ work: WorkID, avoiding: [[UInt8]], at now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        guard !isDraining, !throttle.isPaused(at: now) else { return actions.append(.giveBack(work)) }
        guard hasHosts(besides: avoiding) else { return actions.append(.giveUp(work)) }
        open(for: work, avoiding: avoiding, at: now, into: &actions)
    }

    mutating func open(
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

    mutating func receivePermit(
        _ id: ConnectionID, _ granted: Bool, at now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        guard case .permitting = connections[id]?.stage else { return }
        guard granted else {
            permitDenied = true
            isHungry = true
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

    mutating func receiveGreeting(
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
            isHungry = true
            connections[id]?.stage = .idle(since: now)
            idle.append(id)
            if isDraining { quit(id, into: &actions) }
        }
    }

    mutating func receiveFailure(
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
            isHungry = true
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
        isHungry = true
        if alone {
            if throttle.trouble(at: now) {
                actions.append(.paused(until: throttle.pausedUntil, reply: reply, ownFault: false))
            }
            actions.append(.deferSite(ReplyClassifier.siteDeferral(reply)))
        } else if ReplyClassifier.isThrottling(reply) {
            receiveTrouble(reply, at: now, into: &actions)
        } else {
            growthBlockedUntil = now + DeliveryLimits.growthPause
        }
    }
}
