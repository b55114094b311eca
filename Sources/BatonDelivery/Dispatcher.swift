// A loop's delivery side: routes destinations to sites and keeps their pools.
import BatonCore
import BatonDNS
import BatonModel
import BatonRuntime
import Logging
import NIOCore

/// What `/api/v1/queue` and `top` show of a site on one loop.
package struct SiteStatus: Sendable {
    package let site: [UInt8]
    package let connections: Int
    package let busy: Int
    /// Connections that the site is thought to bear now.
    package let limit: Int
    package let pausedUntil: Instant?
    package let lastError: SMTPReply?
}

/// Hears which sites a dispatcher works for, so that the queue can name them. Called on the loop.
package protocol SiteNaming: Sendable {
    func siteInUse(_ site: SiteID, name: [UInt8])
    func siteForgotten(_ site: SiteID)
}

/// An actor pinned to its loop. The partition's signals only leave a note: everything is done at the end of the loop's turn,
/// so that neither side is entered while it is in the middle of something.
package actor Dispatcher: WorkSignalling {
    nonisolated let context: DeliveryContext
    private var planner: SitePlanner
    private let naming: (any SiteNaming)?
    private var pools: [SiteID: ConnectionPool] = [:]
    private var siteByKey: [[UInt8]: SiteID] = [:]
    private var siteOf: [DestinationID: SiteID] = [:]
    private var nextSite: UInt32 = 0
    private var random: SplitMix64
    private var routesWaiting: [(DestinationID, Domain)] = []
    private var readySites: Set<SiteID> = []
    private var turnPending = false
    private var ticking: RepeatedTask?
    private var isDraining = false
    private var drained: [EventLoopPromise<Void>] = []
    private var drainDeadline = Instant.distantFuture

    package nonisolated var unownedExecutor: UnownedSerialExecutor { context.home.unownedExecutor }

    /// Any thread. `source`, `settler` and `planning` are those of `loop`.
    package init(
        loop: any EventLoop, configuration: DeliveryConfiguration, source: any WorkSource, settler: any Settling,
        reader: any BodyReading, planning: any MXPlanning, permits: any PermitLeasing, time: any TimeSource,
        logger: Logger, seed: UInt64, naming: (any SiteNaming)? = nil
    ) {
        self.naming = naming
        context = DeliveryContext(
            home: LoopHome(loop), source: source, settler: settler, reader: reader, permits: permits, time: time,
            logger: logger, configuration: configuration)
        planner = SitePlanner(configuration: configuration, planning: planning)
        random = SplitMix64(seed: seed)
    }

    // MARK: Life. Any thread

    /// Starts the clock for time-outs and pauses.
    package nonisolated func start() {
        onLoop { dispatcher in dispatcher.startTicking() }
    }

    /// A reload: new connections and new plans follow it; assignments in force run out within 15 minutes.
    package nonisolated func update(_ configuration: DeliveryConfiguration) {
        onLoop { dispatcher in
            dispatcher.planner.configuration = configuration
            dispatcher.context.shared.configuration = configuration
        }
    }

    /// No new work; what runs may end within `grace`, then its connections are closed. Done when every pool is empty and
    /// everything is with the settler.
    package nonisolated func shutDown(grace: TimeSpan) -> EventLoopFuture<Void> {
        let promise = context.home.loop.makePromise(of: Void.self)
        onLoop { dispatcher in dispatcher.beginDrain(grace, promise) }
        return promise.futureResult
    }

    /// An operator's retry: pauses end.
    package nonisolated func resumeSites() {
        onLoop { dispatcher in
            for pool in dispatcher.pools.values { pool.assumeIsolated { $0.resume() } }
            dispatcher.tick()
        }
    }

    package nonisolated func siteStatus() -> EventLoopFuture<[SiteStatus]> {
        context.home.loop.submit {
            self.assumeIsolated { dispatcher in
                let now = dispatcher.context.time.now()
                return dispatcher.pools.values.map { pool in pool.assumeIsolated { $0.status(at: now) } }
            }
        }
    }

    private nonisolated func onLoop(_ body: @escaping @Sendable (isolated Dispatcher) -> Void) {
        if context.home.loop.inEventLoop {
            assumeIsolated { body($0) }
        } else {
            context.home.loop.execute { self.assumeIsolated { body($0) } }
        }
    }

    // MARK: WorkSignalling. On the loop

    package nonisolated func routeNeeded(_ destination: DestinationID, domain: Domain) {
        assumeIsolated { dispatcher in
            dispatcher.routesWaiting.append((destination, domain))
            dispatcher.scheduleTurn()
        }
    }

    package nonisolated func workReady(_ site: SiteID, ready: Int) {
        guard ready > 0 else { return }
        assumeIsolated { dispatcher in
            dispatcher.readySites.insert(site)
            dispatcher.scheduleTurn()
        }
    }

    package nonisolated func finalWithoutAttempt(_ items: [FinalWithoutAttempt]) { context.collect(items) }

    package nonisolated func delayNoticesDue(_ items: [DelayNoticeDue]) {
        for item in items {
            // A notice needs sender and recipient; one whose envelope has left memory comes with its next attempt.
            guard let envelope = item.envelope else { continue }
            context.collect(
                Settlement(
                    message: item.message, envelope: envelope, body: nil, site: [], peer: nil, sourceAddress: [],
                    deliveryProtocol: .none, at: context.time.now(),
                    entries: [
                        SettlementEntry(
                            recipient: item.recipient, decision: .deferred(until: item.until, delayNotice: true),
                            reply: item.reply, relayedWithoutDSN: false)
                    ]))
        }
    }

    // MARK: Turns

    private func scheduleTurn() {
        guard !turnPending else { return }
        turnPending = true
        context.home.loop.execute { self.assumeIsolated { $0.turn() } }
    }

    private func turn() {
        turnPending = false
        var routes: [(DestinationID, Domain)] = []
        swap(&routes, &routesWaiting)
        let now = context.time.now()
        let planner = planner
        for (position, route) in routes.enumerated() {
            let destination = route.0
            guard position < DeliveryLimits.routesWaiting, !isDraining else {
                context.source.holdDestination(destination, until: now + DeliveryLimits.poolsFullHold)
                continue
            }
            planner.plan(route.1, at: now) { answer in self.assumeIsolated { $0.planned(destination, answer) } }
        }
        var sites: Set<SiteID> = []
        swap(&sites, &readySites)
        for site in sites {
            let ready = context.source.ready(site)
            pools[site]?.assumeIsolated { $0.pump(ready: ready) }
        }
    }

    private func planned(_ destination: DestinationID, _ answer: PlannedDestination) {
        if let old = siteOf.removeValue(forKey: destination) {
            pools[old]?.assumeIsolated { $0.unassigned(destination) }
        }
        let now = context.time.now()
        switch answer {
        case .hold(let until): context.source.holdDestination(destination, until: until)
        case .postpone(let reply): context.source.deferDestination(destination, reply: reply)
        case .fail(let reply): context.source.failDestination(destination, reply: reply)
        case .site(let plan):
            guard let (site, pool) = pool(for: plan, at: now) else {
                context.source.holdDestination(destination, until: now + DeliveryLimits.poolsFullHold)
                return
            }
            siteOf[destination] = site
            let until = plan.expires
            pool.assumeIsolated { $0.assigned(destination, until: until) }
            context.source.assign(destination, to: site, until: until)
            readySites.insert(site)
            scheduleTurn()
        }
    }

    private func pool(for plan: SitePlan, at now: Instant) -> (SiteID, ConnectionPool)? {
        if let site = siteByKey[plan.key], let pool = pools[site] {
            pool.assumeIsolated { $0.update(plan) }
            naming?.siteInUse(site, name: plan.name)
            return (site, pool)
        }
        if pools.count >= DeliveryLimits.poolsPerLoop { evict(at: now) }
        guard pools.count < DeliveryLimits.poolsPerLoop else { return nil }
        let site = SiteID(value: nextSite)
        nextSite &+= 1
        let pool = ConnectionPool(site: site, plan: plan, context: context, seed: random.next())
        pools[site] = pool
        siteByKey[plan.key] = site
        naming?.siteInUse(site, name: plan.name)
        return (site, pool)
    }

    private func evict(at now: Instant) {
        var evicted = false
        for (site, pool) in pools where pool.assumeIsolated({ $0.isEvictable(at: now) }) {
            pools.removeValue(forKey: site)
            let key = pool.assumeIsolated { $0.plan.key }
            siteByKey.removeValue(forKey: key)
            naming?.siteForgotten(site)
            evicted = true
        }
        if evicted { siteOf = siteOf.filter { pools[$0.value] != nil } }
    }

    // MARK: Clock

    private func startTicking() {
        guard ticking == nil else { return }
        let span = TimeAmount.nanoseconds(DeliveryLimits.tick.nanoseconds)
        ticking = context.home.loop.scheduleRepeatedTask(initialDelay: span, delay: span) { _ in
            self.assumeIsolated { $0.tick() }
        }
    }

    /// Time-outs, pauses, idle connections; the repeated task calls it, and so do tests with a clock of their own.
    package func tick() {
        let now = context.time.now()
        for pool in pools.values { pool.assumeIsolated { $0.tick(at: now) } }
        context.publish()
        evict(at: now)
        checkDrained(at: now)
    }

    private func beginDrain(_ grace: TimeSpan, _ promise: EventLoopPromise<Void>) {
        isDraining = true
        drained.append(promise)
        drainDeadline = context.time.now() + grace
        for pool in pools.values { pool.assumeIsolated { $0.drain() } }
        startTicking()
        tick()
    }

    private func checkDrained(at now: Instant) {
        guard !drained.isEmpty else { return }
        if now >= drainDeadline {
            for pool in pools.values { pool.assumeIsolated { $0.abortAll() } }
        }
        let busy = pools.values.contains { pool in pool.assumeIsolated { $0.hasWorkInFlight } }
        guard !busy else { return }
        // QUIT's answer is not worth the grace: what is left is idle.
        for pool in pools.values { pool.assumeIsolated { $0.abortAll() } }
        ticking?.cancel()
        ticking = nil
        context.flush()
        context.publish()
        let promises = drained
        drained = []
        for promise in promises { promise.succeed() }
    }
}
