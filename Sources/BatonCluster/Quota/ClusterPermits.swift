// The limits of sites for the whole cluster, in front of the node's own: the shell of the quota.
import BatonCore
import BatonModel
import BatonPeer
import Synchronization

/// How QUOTA frames and proposals for the roster leave. Any thread; never blocks.
package protocol QuotaTransport: Sendable {
    /// What is not sent is lost: it is asked again.
    func send(_ message: Quota, to node: NodeID)
    /// Compare-and-set on the roster's sequence; its answer is the next read.
    func propose(_ roster: QuotaRoster)
}

/// `PermitLeasing` around that of the node: a connection needs a permit of both, a message of a rated site one of a share. The
/// pools of one node draw from the same shares. Any thread; one lock for a few microseconds; nothing is called while it is held.
///
/// A connection in use when its share ends is not cut: from `QuotaLimits.lead` before that moment each one beyond the shares
/// closes at the end of its transaction, idle ones at once, and no new one is opened. Bounded: a site for each that has a
/// connection, a rate or somebody waiting, at most `QuotaLimits.keys`; past that a new site gets none until another has neither.
package final class ClusterPermits: PermitLeasing {
    struct Site {
        var open = 0
        var limit = 0
        /// Refusals in this half of `demandSpan` and in the one before: what waits beside `open`.
        var refused = 0
        var refusedBefore = 0
    }

    struct Rate {
        var perHour: UInt64 = 0
        var windows: [ShareName: RateWindow] = [:]
        var taken = 0
        var takenBefore = 0
        var short = false

        /// Shares as they are now; what is new or larger counts later. Seen at each tick too: a floor may be lent and come back
        /// while this node sends nothing, and its borrower, who warms up first, keeps it for more than a tick.
        mutating func see(_ shares: [(name: ShareName, amount: UInt64)], at now: Instant) {
            for share in shares {
                if windows[share.name] == nil { windows[share.name] = RateWindow(amount: share.amount, at: now) }
                windows[share.name]?.set(amount: share.amount, at: now)
            }
            guard windows.count > shares.count else { return }
            let alive = Set(shares.map(\.name))
            windows = windows.filter { alive.contains($0.key) }
        }
    }

    struct State {
        var quota: QuotaState
        var sites: [[UInt8]: Site] = [:]
        var rates: [[UInt8]: Rate] = [:]
        var turnedAt = Instant.epoch
        /// Sites that a share refused.
        var waiting: Set<[UInt8]> = []
        /// Connections beyond the shares, as the last tick saw them, less those that pools have been asked to give up.
        var over: [[UInt8]: Int] = [:]
    }

    /// Demand is what the last one to two of these saw.
    static let demandSpan = TimeSpan.seconds(1)

    let state: Mutex<State>
    /// Whether `over` has anything: looked at before every transaction.
    private let hasSurplus = Atomic(false)
    private let node: any PermitLeasing
    private let transport: any QuotaTransport
    let time: any TimeSource

    /// `node`: the node's own permits, which keep its limit on all connections. `seed`: random per run.
    package init(
        own: NodeID, seed: UInt64, node: any PermitLeasing, transport: any QuotaTransport, time: any TimeSource,
        guards: QuotaGuards = .all
    ) {
        state = Mutex(State(quota: QuotaState(own: own, seed: seed, startedAt: time.now(), guards: guards)))
        self.node = node
        self.transport = transport
        self.time = time
    }

    // MARK: From the cluster

    package func update(_ settings: QuotaSettings) { post(.settings(settings)) }

    /// A linearizable read of the roster, and the instant before which it was not asked for.
    package func update(_ roster: QuotaRoster, askedAt: Instant) { post(.roster(roster, askedAt: askedAt)) }

    package func received(_ message: Quota, from peer: NodeID) { post(.received(message, from: peer)) }

    /// Every 100 to 250 ms.
    package func tick() {
        let now = time.now()
        perform(
            state.withLock { state in
                var actions = ActionBuffer<QuotaAction>()
                if now - state.turnedAt >= Self.demandSpan {
                    state.turnedAt = now
                    turn(&state, now, &actions)
                }
                state.quota.receive(.tick, at: now, into: &actions)
                for (name, rate) in state.rates {
                    let key = QuotaKey(site: name, kind: .rate)
                    state.rates[name]?.see(state.quota.shares(of: key, limit: rate.perHour, at: now), at: now)
                }
                state.over = [:]
                for (name, site) in state.sites where site.open > 0 {
                    let over = max(
                        Self.over(site, name, state.quota, now),
                        Self.over(site, name, state.quota, now + QuotaLimits.lead))
                    if over > 0 { state.over[name] = over }
                }
                hasSurplus.store(!state.over.isEmpty, ordering: .relaxed)
                return actions
            })
    }

    private func post(_ event: QuotaEvent) {
        let now = time.now()
        perform(
            state.withLock { state in
                var actions = ActionBuffer<QuotaAction>()
                state.quota.receive(event, at: now, into: &actions)
                return actions
            })
    }

    private func perform(_ actions: ActionBuffer<QuotaAction>) {
        for action in actions.actions {
            switch action {
            case .send(let message, let node): transport.send(message, to: node)
            case .propose(let roster): transport.propose(roster)
            }
        }
    }

    /// Tells the quota what is needed by what the last span saw, and forgets sites that need nothing.
    private func turn(_ state: inout State, _ now: Instant, _ actions: inout ActionBuffer<QuotaAction>) {
        for (name, site) in state.sites {
            let key = QuotaKey(site: name, kind: .connections)
            let wanted = site.open + max(site.refused, site.refusedBefore)
            state.quota.receive(
                .demand(key, limit: UInt64(max(1, site.limit)), wanted: UInt64(wanted)), at: now, into: &actions)
            var next = site
            next.refusedBefore = site.refused
            next.refused = 0
            if next.refusedBefore == 0 { state.waiting.remove(name) }
            state.sites[name] = wanted == 0 ? nil : next
        }
        for (name, rate) in state.rates {
            let key = QuotaKey(site: name, kind: .rate)
            let busy = max(rate.taken, rate.takenBefore)
            var wanted = UInt64(busy) * QuotaLimits.rateQuantum * 5 / 4
            if rate.short { wanted = max(wanted, 2 * state.quota.allowance(of: key, limit: rate.perHour, at: now), 1) }
            state.quota.receive(.demand(key, limit: rate.perHour, wanted: wanted), at: now, into: &actions)
            var next = rate
            next.takenBefore = rate.taken
            next.taken = 0
            next.short = false
            let idle = busy == 0 && !rate.short
            // Its windows are kept while they matter; a small rate's for as long as the span between two messages.
            let left = state.quota.allowance(of: key, limit: rate.perHour, at: now) == 0
            state.rates[name] = idle && left ? nil : next
        }
    }

    // MARK: Connections

    package func takeConnection(site: [UInt8], siteLimit: Int) -> Bool {
        let now = time.now()
        let limit = max(1, siteLimit)
        let key = QuotaKey(site: site, kind: .connections)
        let (permitted, actions) = state.withLock { state -> (Bool, ActionBuffer<QuotaAction>) in
            var actions = ActionBuffer<QuotaAction>()
            guard var entry = state.sites[site] ?? (state.sites.count < QuotaLimits.keys ? Site() : nil) else {
                return (false, actions)
            }
            entry.limit = limit
            var permitted = UInt64(entry.open) < state.quota.allowance(of: key, limit: UInt64(limit), at: now)
            if !permitted {
                entry.refused = min(entry.refused + 1, limit)
                let wanted = entry.open + max(entry.refused, entry.refusedBefore)
                state.quota.receive(
                    .demand(key, limit: UInt64(limit), wanted: UInt64(wanted)), at: now, into: &actions)
                // The home may be this node.
                permitted = UInt64(entry.open) < state.quota.allowance(of: key, limit: UInt64(limit), at: now)
            }
            if permitted { entry.open += 1 } else { state.waiting.insert(site) }
            state.sites[site] = entry
            return (permitted, actions)
        }
        perform(actions)
        guard permitted else { return false }
        if node.takeConnection(site: site, siteLimit: siteLimit) { return true }
        state.withLock { state in
            if let open = state.sites[site]?.open, open > 0 { state.sites[site]?.open = open - 1 }
        }
        return false
    }

    package func returnConnection(site: [UInt8]) {
        node.returnConnection(site: site)
        state.withLock { state in
            if let open = state.sites[site]?.open, open > 0 { state.sites[site]?.open = open - 1 }
        }
    }

    // MARK: Rates

    package func takeMessages(site: [UInt8], perSecond: Double?, wanted: Int, now: Instant) -> Int {
        guard let perSecond, wanted > 0 else { return wanted }
        guard perSecond > 0 else { return 0 }
        let perHour = UInt64(min(max(1, perSecond * 3_600), 1e15).rounded())
        let key = QuotaKey(site: site, kind: .rate)
        let (granted, actions) = state.withLock { state -> (Int, ActionBuffer<QuotaAction>) in
            var actions = ActionBuffer<QuotaAction>()
            guard var rate = state.rates[site] ?? (state.rates.count < QuotaLimits.keys ? Rate() : nil) else {
                return (0, actions)
            }
            rate.perHour = perHour
            var granted = 0
            let shares = state.quota.shares(of: key, limit: perHour, at: now)
            rate.see(shares, at: now)
            for share in shares where granted < wanted {
                granted += rate.windows[share.name]?.take(wanted - granted, at: now) ?? 0
            }
            rate.taken += granted
            if granted < wanted, !rate.short {
                rate.short = true
                let have = shares.reduce(UInt64(0)) { $0 + $1.amount }
                state.quota.receive(.demand(key, limit: perHour, wanted: max(1, 2 * have)), at: now, into: &actions)
            }
            state.rates[site] = rate
            return (granted, actions)
        }
        perform(actions)
        return granted
    }

    // MARK: Waiting

    package func claimSurplus(site: [UInt8]) -> Bool {
        hasSurplus.load(ordering: .relaxed) && state.withLock { Self.takeSurplus(of: site, from: &$0) }
    }

    private static func takeSurplus(of site: [UInt8], from state: inout State) -> Bool {
        guard let over = state.over[site], over > 0 else { return false }
        state.over[site] = over == 1 ? nil : over - 1
        return true
    }

    /// One idle connection for each that is held beyond what the shares allow, and for each that waits.
    package func claimWaiter(site: [UInt8]) -> Bool {
        let isOurs = state.withLock { state in
            Self.takeSurplus(of: site, from: &state) || state.waiting.remove(site) != nil
        }
        return isOurs || node.claimWaiter(site: site)
    }

    private static func over(_ site: Site, _ name: [UInt8], _ quota: QuotaState, _ now: Instant) -> Int {
        guard site.open > 0 else { return 0 }
        let allowed = quota.allowance(
            of: QuotaKey(site: name, kind: .connections), limit: UInt64(max(1, site.limit)), at: now)
        return max(0, site.open - Int(clamping: allowed))
    }

    package var hasWaiters: Bool {
        state.withLock { !$0.waiting.isEmpty || !$0.over.isEmpty } || node.hasWaiters
    }

    package var waitingSites: [[UInt8]] {
        let own = state.withLock { $0.waiting.union($0.over.keys) }
        return Array(own) + node.waitingSites.filter { !own.contains($0) }
    }

    /// Connections that are open beyond what the shares allow now.
    package var overdrawn: Int {
        let now = time.now()
        return state.withLock { state in
            state.sites.reduce(0) { $0 + Self.over($1.value, $1.key, state.quota, now) }
        }
    }
}
