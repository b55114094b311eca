// All plans of one loop: cache, look-ups under way, who waits for which plan. A pure value.
import BatonCore
import BatonModel

/// The engine behind `DNSCache`. The same input and seed give the same plans.
package struct PlannerState: StateMachine {
    package enum Event: Sendable {
        /// Somebody wants a domain's plan (or a route host's); answered by `finished` with its token, perhaps at once.
        case planWanted(Domain, PlanKey.Kind, token: UInt64)
        case answered([DNSReply])
        case reconfigured(PlanSettings)
    }

    package enum Action: Sendable {
        case ask([DNSQuestion])
        case finished(token: UInt64, MXPlan)
    }

    private struct Plan: Sendable {
        var builder: PlanBuilder
        var waiters: [UInt64]
    }

    package private(set) var cache: CacheState
    private var plans: [PlanKey: Plan] = [:]
    private var waiterCount = 0
    private var settings: PlanSettings
    private var random: SplitMix64

    /// Tallies since start: answers from the cache, look-ups asked, plans refused at a bound.
    package private(set) var hits: UInt64 = 0
    package private(set) var misses: UInt64 = 0
    package private(set) var refused: UInt64 = 0

    package init(settings: PlanSettings, seed: UInt64, cacheBytes: Int = DNSLimits.cacheBytes) {
        self.settings = settings
        self.random = SplitMix64(seed: seed)
        self.cache = CacheState(capacity: cacheBytes)
    }

    package var plansUnderWay: Int { plans.count }

    package mutating func receive(_ event: Event, at now: Instant, into actions: inout ActionBuffer<Action>) {
        switch event {
        case .planWanted(let domain, let kind, let token): want(domain, kind, token, at: now, into: &actions)
        case .answered(let replies):
            var questions: [DNSQuestion] = []
            for reply in replies {
                let (waiters, value) = cache.receive(reply, at: now)
                for key in waiters { advance(key, reply.question, value, at: now, &questions, into: &actions) }
            }
            if !questions.isEmpty { actions.append(.ask(questions)) }
        case .reconfigured(let settings): self.settings = settings
        }
    }

    private mutating func want(
        _ domain: Domain, _ kind: PlanKey.Kind, _ token: UInt64, at now: Instant,
        into actions: inout ActionBuffer<Action>
    ) {
        if domain.isLiteral || kind == .host, let address = DomainName.literal(domain.bytes) {
            let plan = literalPlan(domain, address, kind, at: now)
            actions.append(.finished(token: token, plan))
            return
        }
        guard let name = DomainName.lookup(domain) else {
            // No such name can exist in the DNS, so this is as good as NXDOMAIN.
            let plan = MXPlan(verdict: .noSuchDomain, expires: now + DNSLimits.negativeMax, secure: false)
            actions.append(.finished(token: token, plan))
            return
        }
        let key = PlanKey(name: name, kind: kind)
        let known = plans[key] != nil
        guard waiterCount < DNSLimits.planWaiters, known || plans.count < DNSLimits.plansAtOnce else {
            refused += 1
            let plan = MXPlan(verdict: .resolverDown, expires: now + DNSLimits.planMin, secure: false)
            actions.append(.finished(token: token, plan))
            return
        }
        waiterCount += 1
        if known {
            plans[key]?.waiters.append(token)
            return
        }
        var builder = PlanBuilder(key, settings: settings)
        let step = builder.start()
        plans[key] = Plan(builder: builder, waiters: [token])
        var questions: [DNSQuestion] = []
        take(step, of: key, at: now, &questions, into: &actions)
        if !questions.isEmpty { actions.append(.ask(questions)) }
    }

    private func literalPlan(_ domain: Domain, _ address: IPAddress, _ kind: PlanKey.Kind, at now: Instant) -> MXPlan {
        let verdict: MXPlan.Verdict
        if kind == .exchangers, settings.ownAddresses.contains(address) {
            verdict = .mailLoop
        } else if kind == .exchangers, address.isPrivate, !settings.allowPrivateAddresses {
            verdict = .noAddress
        } else {
            verdict = .hosts([MXHost(preference: 0, name: domain.bytes, addresses: [address])])
        }
        return MXPlan(verdict: verdict, expires: now + DNSLimits.ttlMax, secure: false)
    }

    private mutating func advance(
        _ key: PlanKey, _ question: DNSQuestion, _ value: CachedAnswer, at now: Instant,
        _ questions: inout [DNSQuestion], into actions: inout ActionBuffer<Action>
    ) {
        guard var plan = plans[key] else { return }
        let step = plan.builder.receive(question, value, at: now, using: &random)
        plans[key] = plan
        take(step, of: key, at: now, &questions, into: &actions)
    }

    /// Performs a step; answers from the cache lead to the next one at once. Each round asks for more hosts of a bounded set,
    /// so it ends.
    private mutating func take(
        _ step: PlanBuilder.Step, of key: PlanKey, at now: Instant, _ questions: inout [DNSQuestion],
        into actions: inout ActionBuffer<Action>
    ) {
        switch step {
        case .wait: break
        case .done(let made):
            guard let plan = plans.removeValue(forKey: key) else { return }
            waiterCount -= plan.waiters.count
            for token in plan.waiters { actions.append(.finished(token: token, made)) }
        case .ask(let wanted):
            var known: [(DNSQuestion, CachedAnswer)] = []
            for question in wanted {
                switch cache.find(question, for: key, at: now) {
                case .hit(let value):
                    hits += 1
                    known.append((question, value))
                case .ask:
                    misses += 1
                    questions.append(question)
                case .joined: misses += 1
                }
            }
            for (question, value) in known { advance(key, question, value, at: now, &questions, into: &actions) }
        }
    }
}
