// The actor that plans domains for one loop: a thin shell around `PlannerState`.
import BatonCore
import BatonModel
import BatonRuntime
import Logging
import Metrics
import NIOCore

/// MX plans and cached answers of one loop. Pinned on the loop, entered by `assumeIsolated`, once per batch of answers.
///
/// Nothing survives a crash. Bounds: `DNSLimits.cacheBytes`, `plansAtOnce`, `planWaiters`.
package actor DNSCache: MXPlanning, AnswerReceiving {
    private let home: LoopHome
    private let resolver: any Resolving
    private let time: any TimeSource
    private var state: PlannerState
    private var actions = ActionBuffer<PlannerState.Action>()
    private var waiting: [UInt64: @Sendable (MXPlan) -> Void] = [:]
    private var nextToken: UInt64 = 0
    private var reported = Tallies()
    private let counters = Counters()

    private struct Tallies {
        var hits: UInt64 = 0
        var misses: UInt64 = 0
        var refused: UInt64 = 0
        var evicted: UInt64 = 0
    }

    private struct Counters {
        let hits = Counter(label: "baton_dns_cache_hits_total")
        let misses = Counter(label: "baton_dns_cache_misses_total")
        let refused = Counter(label: "baton_dns_plans_refused_total")
        let evicted = Counter(label: "baton_dns_cache_evictions_total")
    }

    package nonisolated var unownedExecutor: UnownedSerialExecutor { home.unownedExecutor }

    package init(
        home: LoopHome, resolver: any Resolving, settings: PlanSettings, time: any TimeSource, seed: UInt64,
        cacheBytes: Int = DNSLimits.cacheBytes
    ) {
        self.home = home
        self.resolver = resolver
        self.time = time
        self.state = PlannerState(settings: settings, seed: seed, cacheBytes: cacheBytes)
    }

    package nonisolated func plan(_ domain: Domain, _ answer: @escaping @Sendable (MXPlan) -> Void) {
        assumeIsolated { $0.want(domain, .exchangers, answer) }
    }

    package nonisolated func planHost(_ name: Domain, _ answer: @escaping @Sendable (MXPlan) -> Void) {
        assumeIsolated { $0.want(name, .host, answer) }
    }

    /// After SIGHUP. Any thread; plans under way keep the settings that they began with.
    package nonisolated func reconfigure(_ settings: PlanSettings) {
        home.loop.execute { self.assumeIsolated { $0.perform(.reconfigured(settings)) } }
    }

    /// From the resolver's thread: one crossing for the batch.
    package nonisolated func answered(_ replies: [DNSReply]) {
        home.loop.execute { self.assumeIsolated { $0.perform(.answered(replies)) } }
    }

    private func want(
        _ domain: Domain, _ kind: PlanKey.Kind, _ answer: @escaping @Sendable (MXPlan) -> Void
    ) {
        nextToken &+= 1
        waiting[nextToken] = answer
        perform(.planWanted(domain, kind, token: nextToken))
    }

    private func perform(_ event: PlannerState.Event) {
        state.receive(event, at: time.now(), into: &actions)
        // Taken out first: an answer's receiver may ask for the next plan from within.
        for action in actions.drain() {
            switch action {
            case .ask(let questions): resolver.resolve(questions, for: self)
            case .finished(let token, let plan): waiting.removeValue(forKey: token)?(plan)
            }
        }
        report()
    }

    private func report() {
        let now = Tallies(
            hits: state.hits, misses: state.misses, refused: state.refused, evicted: state.cache.evicted)
        if now.hits != reported.hits { counters.hits.increment(by: now.hits - reported.hits) }
        if now.misses != reported.misses { counters.misses.increment(by: now.misses - reported.misses) }
        if now.refused != reported.refused { counters.refused.increment(by: now.refused - reported.refused) }
        if now.evicted != reported.evicted { counters.evicted.increment(by: now.evicted - reported.evicted) }
        reported = now
    }
}
