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
    /// Pools whose connections are counted under one name.
    private var sitesByName: [[UInt8]: Set<SiteID>] = [:]
    private var siteOf = Assignments<SiteID>()
    /// Bound of `pools`, and the pools that ticks and evictions have visited: for tests.
    private let poolsMax: Int
    private(set) var visits = 0
    var poolCount: Int { pools.count }
    var scheduledCount: Int { context.shared.schedule.count }
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
        logger: Logger, seed: UInt64, naming: (any SiteNaming)? = nil, dots: (any DotPermitting)? = nil
    ) {
        self.init(
            loop: loop, configuration: configuration, source: source, settler: settler, reader: reader,
            planning: planning, permits: permits, time: time, logger: logger, seed: seed, naming: naming,
            connector: SocketConnector(), dots: dots)
    }

    /// With a transport of the caller's, and fewer pools.
    init(
        loop: any EventLoop, configuration: DeliveryConfiguration, source: any WorkSource, settler: any Settling,
        reader: any BodyReading, planning: any MXPlanning, permits: any PermitLeasing, time: any TimeSource,
        logger: Logger, seed: UInt64, naming: (any SiteNaming)?, connector: any Connecting,
        poolsMax: Int = DeliveryLimits.poolsPerLoop, dots: (any DotPermitting)? = nil
    ) {
        self.naming = naming
        self.poolsMax = poolsMax
        context = DeliveryContext(
            home: LoopHome(loop), source: source, settler: settler, reader: reader, permits: permits,
            connector: connector, time: time, logger: logger, configuration: configuration, dots: dots)
        planner = SitePlanner(configuration: configuration, planning: planning)
        random = SplitMix64(seed: seed)
    }

    // MARK: Life. Any thread

    /// Starts the clock for time-outs and pauses.
    package nonisolated func start() {
        onLoop { dispatcher in dispatcher.startTicking() }
        context.dots?.onRoom { [weak self] in self?.onLoop { $0.roomForDots() } }
    }

    /// Places of the window are free: whoever waited for one looks again.
    private func roomForDots() {
        var waiting: Set<SiteID> = []
        swap(&waiting, &context.shared.windowWaiting)
        for site in waiting {
            let ready = context.source.ready(site)
            pools[site]?.assumeIsolated { $0.pump(ready: ready) }
        }
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
            let now = dispatcher.context.time.now()
            for pool in dispatcher.pools.values {
                pool.assumeIsolated {
                    $0.resume()
                    $0.tick(at: now)
                }
            }
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

    package nonisolated func delayNoticesDue(_ items: [DelayNoticeDue]) { context.collect(items) }

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
        if let old = siteOf.remove(destination) {
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
            let until = plan.expires
            siteOf.set(destination, site, until: until, at: now)
            pool.assumeIsolated { $0.assigned(destination, until: until) }
            context.source.assign(destination, to: site, until: until)
            readySites.insert(site)
            scheduleTurn()
        }
    }

    private func pool(for plan: SitePlan, at now: Instant) -> (SiteID, ConnectionPool)? {
        if let site = siteByKey[plan.key], let pool = pools[site] {
            let old = pool.assumeIsolated { $0.plan.name }
            if old != plan.name { rename(site, from: old, to: plan.name) }
            pool.assumeIsolated { $0.update(plan) }
            naming?.siteInUse(site, name: plan.name)
            return (site, pool)
        }
        if pools.count >= poolsMax { makeRoom(at: now) }
        guard pools.count < poolsMax else { return nil }
        let site = SiteID(value: nextSite)
        nextSite &+= 1
        let pool = ConnectionPool(site: site, plan: plan, context: context, seed: random.next())
        pools[site] = pool
        siteByKey[plan.key] = site
        rename(site, from: nil, to: plan.name)
        pool.assumeIsolated { $0.enter() }
        naming?.siteInUse(site, name: plan.name)
        return (site, pool)
    }

    private func rename(_ site: SiteID, from old: [UInt8]?, to new: [UInt8]?) {
        if let old {
            sitesByName[old]?.remove(site)
            if sitesByName[old]?.isEmpty == true { sitesByName.removeValue(forKey: old) }
        }
        if let new { sitesByName[new, default: []].insert(site) }
    }

    /// The pool that has been idle longest goes, its destinations are routed anew when they have mail. One that turns out to
    /// have work gets it instead; few are looked at.
    private func makeRoom(at now: Instant) {
        for _ in 0..<DeliveryLimits.evictionLooks {
            guard let site = context.shared.schedule.longestIdle, let pool = pools[site] else { return }
            visits += 1
            if pool.assumeIsolated({ $0.isEvictable(at: now) }) { return evict(site, pool, at: now) }
            pool.assumeIsolated { $0.tick(at: now) }
        }
    }

    private func evict(_ site: SiteID, _ pool: ConnectionPool, at now: Instant) {
        pools.removeValue(forKey: site)
        context.shared.schedule.remove(site)
        let (key, name) = pool.assumeIsolated { pool in
            pool.release(at: now)
            return (pool.plan.key, pool.plan.name)
        }
        siteByKey.removeValue(forKey: key)
        rename(site, from: name, to: nil)
        naming?.siteForgotten(site)
    }

    // MARK: Clock

    private func startTicking() {
        guard ticking == nil else { return }
        let span = TimeAmount.nanoseconds(DeliveryLimits.tick.nanoseconds)
        ticking = context.home.loop.scheduleRepeatedTask(initialDelay: span, delay: span) { _ in
            self.assumeIsolated { $0.tick() }
        }
    }

    /// Time-outs, pauses, idle connections, for the pools that are due; the repeated task calls it, and so do tests with a
    /// clock of their own.
    package func tick() {
        let now = context.time.now()
        var due: [SiteID] = []
        while let site = context.shared.schedule.popDue(at: now) { due.append(site) }
        for site in due {
            guard let pool = pools[site] else { continue }
            visits += 1
            if pool.assumeIsolated({ $0.isSpent(at: now) }) {
                evict(site, pool, at: now)
            } else {
                pool.assumeIsolated { $0.tick(at: now) }
            }
        }
        serveWaiters()
        context.publish()
        checkDrained(at: now)
    }

    /// Where a limit turned a pool away, idle connections are given up for it: of any site for the node's limit, of the same
    /// site's pools for the site's. Costs nothing while nobody waits.
    private func serveWaiters() {
        let permits = context.permits
        guard permits.hasWaiters else { return }
        for _ in 0..<DeliveryLimits.yieldsPerTick {
            guard let site = context.shared.schedule.longestSpare, let pool = pools[site],
                permits.claimWaiter(site: pool.assumeIsolated({ $0.plan.name }))
            else { break }
            visits += 1
            pool.assumeIsolated { $0.yield() }
        }
        for name in permits.waitingSites {
            for site in sitesByName[name] ?? [] where context.shared.schedule.hasSpare(site) {
                guard permits.claimWaiter(site: name) else { break }
                visits += 1
                pools[site]?.assumeIsolated { $0.yield() }
            }
        }
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
