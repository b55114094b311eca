// A site's connections on one loop: the shell that performs what `PoolState` wants.
import BatonCore
import BatonModel
import BatonRuntime
import BatonSMTP
import DequeModule
import Glibc
import Logging
import NIOCore

/// A transaction on its way, with what its attempt has been through.
struct DeliveryJob {
    let message: StoredMessageRef
    let destination: DestinationID
    var recipients: [PulledRecipient]
    var envelope: Envelope?
    var body: StoredBody?
    /// Its part of the loop's `BodyBudget`, for a body that was read back.
    var lease: BodyLease?
    /// A place of the window is taken for it (PROTOCOL P5).
    var holdsPlace = false
    /// A part of its body is damaged here, and other copies are asked for it.
    var awaitsRepair = false
    var resent = false
    var sessions = 0
    var hostsWithout = 0
    /// Hosts that this attempt is not to meet again.
    var metHosts: [[UInt8]] = []
    /// How each recipient ends if the resend comes to nothing; empty before the first loss.
    var fallback: [AttemptResult] = []
    /// The peer that the fallback came from.
    var peer: PeerName?
    var sourceAddress: [UInt8] = []
}

/// An actor pinned to its loop, entered by `assumeIsolated` from the loop's code only. Survives no crash: what it holds is in
/// the spool, and what it pulled and did not decide is ready again after a restart.
package actor ConnectionPool {
    struct Link {
        let handler: NIOLoopBound<DeliveryHandler>
        let peer: PeerName
        var sourceAddress: [UInt8] = []
        var job: DeliveryJob?
        /// The job has been handed to the session (it may still be read back before).
        var began = false
        var greeted = false
        /// The job is the first that this connection carries.
        var fresh = true
        /// The read that the job waits for: an answer to an earlier one, of a job that has ended, is none for this one.
        var awaitedRead: UInt64?
    }

    nonisolated let context: DeliveryContext
    nonisolated let site: SiteID
    var plan: SitePlan
    var state: PoolState
    var links: [ConnectionID: Link] = [:]
    var works: [WorkID: DeliveryJob] = [:]
    private var nextWork: UInt32 = 0
    private var inbox = Deque<PoolState.Event>()
    private var isRunning = false
    private(set) var isDraining = false
    private var pullsBlockedUntil = Instant.epoch
    private var notPermittedInRow = 0
    private(set) var lastError: SMTPReply?
    /// Whose work may come here, and until when.
    private var destinations = Assignments<Void>()
    /// Until when the partition may still give work to this site.
    private(set) var assignedUntil = Instant.epoch
    /// The earliest deadline of a connection, or an instant before it.
    private let clock = PoolClock()
    /// What the schedule was told last.
    private var told = PoolStanding()
    private var idleSince: Instant?

    package nonisolated var unownedExecutor: UnownedSerialExecutor { context.home.unownedExecutor }

    init(site: SiteID, plan: SitePlan, context: DeliveryContext, seed: UInt64) {
        self.site = site
        self.plan = plan
        self.context = context
        self.state = PoolState(hosts: plan.hosts, limits: plan.limits, seed: seed)
    }

    /// Once, before anything else: the schedule knows it from here on.
    func enter() { report(exactly: true) }

    // MARK: From the dispatcher

    func update(_ plan: SitePlan) {
        self.plan = plan
        post(.hosts(plan.hosts, plan.limits))
    }

    func assigned(_ destination: DestinationID, until: Instant) {
        destinations.set(destination, (), until: until, at: context.time.now())
        assignedUntil = max(assignedUntil, until)
        if idleSince != nil { report() }
    }

    func unassigned(_ destination: DestinationID) { destinations.remove(destination) }

    /// Gives up its assignments, so that what comes for them is routed anew. Only while `isEvictable`.
    func release(at now: Instant) {
        for destination in destinations.all { context.source.assign(destination, to: site, until: now) }
        destinations = Assignments()
    }

    func pump(ready: Int) { if ready > 0 { post(.pump(ready: ready)) } }

    func yield() { post(.yield) }

    /// Its time has come, or a connection's deadline: see `PoolSchedule`.
    func tick(at now: Instant) {
        post(.tick)
        for id in Array(links.keys) { links[id]?.handler.value.checkDeadline(at: now) }
        clock.due = links.values.reduce(.distantFuture) { min($0, $1.handler.value.session.deadline) }
        let ready = context.source.ready(site)
        if ready > 0 || state.wantsWork { post(.pump(ready: ready)) }
        report(exactly: true)
    }

    /// A connection's deadline came nearer than all others.
    func deadlineMoved() { if !isRunning { report() } }

    func drain() {
        isDraining = true
        post(.drain)
    }

    func resume() { post(.resume) }

    func abortAll() {
        for id in Array(links.keys) { links[id]?.handler.value.abort() }
    }

    var isIdle: Bool { state.isIdle && works.isEmpty && links.isEmpty }
    var hasWorkInFlight: Bool { state.busyConnections > 0 || !works.isEmpty }

    /// Whether nothing is lost with it: no connection, no pause to keep, no ready work.
    func isEvictable(at now: Instant) -> Bool {
        isIdle && !state.throttle.isPaused(at: now) && context.source.ready(site) == 0
    }

    /// Whether it is also of no more use: no assignment in force.
    func isSpent(at now: Instant) -> Bool { isEvictable(at: now) && now >= assignedUntil }

    func status(at now: Instant) -> SiteStatus {
        SiteStatus(
            site: plan.name, connections: state.openConnections, busy: state.busyConnections,
            limit: state.throttle.adapted,
            pausedUntil: state.throttle.isPaused(at: now) ? state.throttle.pausedUntil : nil, lastError: lastError)
    }

    // MARK: Events and actions

    /// Events that come up while actions are performed wait their turn, so that no chain of immediate ends grows the stack.
    func post(_ event: PoolState.Event) {
        inbox.append(event)
        guard !isRunning else { return }
        isRunning = true
        var actions = ActionBuffer<PoolState.Action>()
        while let next = inbox.popFirst() {
            state.receive(next, at: context.time.now(), into: &actions)
            for action in actions.drain() { perform(action) }
        }
        isRunning = false
        report()
    }

    /// Tells the schedule where the pool stands. A due time that moved away is told with its visit, unless `exactly`: a pool
    /// at work would else move through the schedule with every message.
    private func report(exactly: Bool = false) {
        let now = context.time.now()
        var standing = PoolStanding(due: min(clock.due, state.wake(at: now)), spareSince: state.restingSince)
        if isIdle {
            let since = idleSince ?? now
            idleSince = since
            standing.idleSince = max(since, state.throttle.pausedUntil)
            if !state.wantsWork { standing.due = min(standing.due, max(assignedUntil, state.throttle.pausedUntil)) }
        } else {
            idleSince = nil
        }
        if !exactly {
            if standing.due > told.due, told.due > now { standing.due = told.due }
            if standing.spareSince != nil, told.spareSince != nil { standing.spareSince = told.spareSince }
        }
        guard standing != told else { return }
        told = standing
        context.shared.schedule.update(site, standing)
    }

    private func perform(_ action: PoolState.Action) {
        switch action {
        case .askPermit(let id):
            post(.permit(id, context.permits.takeConnection(site: plan.name, siteLimit: plan.limits.connections)))
        case .returnPermit: context.permits.returnConnection(site: plan.name)
        case .connect(let id, let host, let endpoint): connect(id, host, endpoint)
        case .pull(let id): pull(id)
        case .begin(let id, let work):
            guard let job = works.removeValue(forKey: work) else { return post(.starved(id)) }
            start(job, on: id)
        case .giveUp(let work): conclude(work, returned: false)
        case .giveBack(let work): conclude(work, returned: true)
        case .quit(let id):
            guard let handler = links[id]?.handler.value else { return post(.closed(id)) }
            handler.quit()
        case .deferSite(let reply):
            lastError = reply
            context.source.deferSite(site, reply: reply)
        case .failSite(let reply):
            lastError = reply
            let all = destinations.all
            destinations = Assignments()
            for destination in all { context.source.failDestination(destination, reply: reply) }
        case .paused(let until, let reply, let ownFault):
            lastError = reply
            let name = String(decoding: plan.name, as: UTF8.self)
            let text = String(decoding: reply.kept.text, as: UTF8.self)
            let seconds = Int((until - context.time.now()).seconds)
            if ownFault {
                context.shared.tally.ownFaults += 1
                context.logger.error(
                    "delivery paused by a fault of this host",
                    metadata: ["site": "\(name)", "reason": "\(text)", "seconds": "\(seconds)"])
            } else {
                context.shared.tally.pauses += 1
                context.logger.notice(
                    "site paused",
                    metadata: [
                        "site": "\(name)", "code": "\(reply.code)", "reply": "\(text)", "seconds": "\(seconds)",
                    ])
            }
        }
    }

    // MARK: Connecting

    private func connect(_ id: ConnectionID, _ host: [UInt8], _ endpoint: Endpoint) {
        let configuration = context.shared.configuration
        let address: SocketAddress
        do {
            switch endpoint {
            case .ip(let ip, let port):
                // The address connected to is what counts, whatever a resolver said before (smtp-cases 5e).
                guard plan.privateAllowed || !ip.isPrivate else {
                    let reply = SMTPReply(local: 0, EnhancedStatus(4, 4, 4), "private address \(ip)", stage: .connect)
                    return post(.failed(id, .unreachable(reply)))
                }
                address = try SocketAddress(packedIPAddress: ByteBuffer(bytes: ip.octets), port: Int(port))
            case .unix(let path): address = try SocketAddress(unixDomainSocketPath: path)
            }
        } catch {
            return post(.failed(id, .unreachable(ReplyClassifier.connectFailure("\(error)"))))
        }
        let settings = ClientSettings(
            hostname: configuration.hostname, isLMTP: plan.isLMTP, timeouts: configuration.timeouts.client)
        let handler = DeliveryHandler(
            session: ClientSession(settings: settings), pool: self, id: id, time: context.time, clock: clock)
        let bound = NIOLoopBound(handler, eventLoop: context.home.loop)
        links[id] = Link(handler: bound, peer: PeerName(name: host, address: Array(endpoint.text.utf8)))
        context.connector.connect(
            to: address, on: context.home.loop, timeout: configuration.timeouts.connect, handler: bound
        )
        .whenFailure { error in self.assumeIsolated { $0.connectFailed(id, error) } }
    }

    private func connectFailed(_ id: ConnectionID, _ error: any Error) {
        guard links[id]?.greeted == false else { return }
        links[id]?.handler.value.detach()
        links.removeValue(forKey: id)
        context.shared.tally.connectFailures += 1
        if let failure = error as? IOError, ReplyClassifier.isOwnFault(errno: failure.errnoCode) {
            post(.failed(id, .ownFault(ReplyClassifier.connectFailure("\(failure)"))))
        } else {
            post(.failed(id, .unreachable(ReplyClassifier.connectFailure(Self.text(of: error)))))
        }
    }

    private static func text(of error: any Error) -> String {
        if case ChannelError.connectTimeout(let limit)? = error as? ChannelError {
            return "connect timed out after \(limit.nanoseconds / 1_000_000_000) s"
        }
        return "\(error)"
    }

    func connectionRefused(_ id: ConnectionID, _ reply: SMTPReply) {
        guard links.removeValue(forKey: id) != nil else { return }
        context.shared.tally.connectFailures += 1
        post(.failed(id, .refused(reply)))
    }

    func connectionGreeted(_ id: ConnectionID) {
        guard let handler = links[id]?.handler.value else { return }
        links[id]?.greeted = true
        links[id]?.sourceAddress = Array((handler.localAddress?.ipAddress ?? "").utf8)
        context.shared.tally.connects += 1
        post(.greeted(id))
        pump(ready: context.source.ready(site))
    }

    // MARK: Work

    private func pull(_ id: ConnectionID) {
        let now = context.time.now()
        guard !isDraining, let handler = links[id]?.handler.value, handler.session.isReady else {
            return post(.starved(id))
        }
        if context.permits.claimSurplus(site: plan.name) { return post(.surplus(id)) }
        guard now >= pullsBlockedUntil else { return post(.blocked(id, until: pullsBlockedUntil)) }
        guard context.shared.budget.hasRoom(under: context.shared.configuration.bodyMemory) else {
            return post(.blocked(id, until: now + DeliveryLimits.tick))
        }
        if let rate = plan.limits.messagesPerSecond {
            let granted = context.permits.takeMessages(site: plan.name, perSecond: rate, wanted: 1, now: now)
            guard granted > 0 else { return post(.blocked(id, until: now + DeliveryLimits.tick)) }
        }
        if let dots = context.dots, !dots.reserve(site: plan.name, at: now) {
            context.shared.windowWaiting.insert(site)
            return post(.blocked(id, until: now))
        }
        var recipients = plan.limits.recipientsPerTransaction
        if let most = handler.session.capabilities.recipientsMax { recipients = min(recipients, most) }
        let pulled = context.source.pull(site, transactions: 1, recipients: max(1, recipients))
        guard let transaction = pulled.first else {
            context.dots?.ended(StoredMessageRef(segment: 0, record: 0), site: plan.name, outcomes: 0, at: now)
            return post(.starved(id))
        }
        var job = DeliveryJob(
            message: transaction.message, destination: transaction.destination, recipients: transaction.recipients,
            envelope: transaction.envelope, body: transaction.body.map { .whole($0) })
        job.holdsPlace = context.dots != nil
        start(job, on: id)
    }

    /// Whether the message's segment may send now (PROTOCOL P1).
    func mayDot(_ job: DeliveryJob) -> Bool {
        context.dots?.mayDot(job.message, at: context.time.now()) ?? true
    }

    private func start(_ job: DeliveryJob, on id: ConnectionID) {
        guard links[id] != nil else {
            decide(job, job.recipients.map { ($0, .returned) }, peerHasDSN: true)
            return post(.finished(id, reusable: false, trouble: nil, fresh: false, served: false))
        }
        guard mayDot(job) else { return abandon(id, job, .notPermitted) }
        links[id]?.job = job
        links[id]?.began = false
        if job.envelope != nil, job.body != nil {
            begin(id)
        } else {
            links[id]?.job?.lease = BodyLease(context.shared.budget)
            links[id]?.awaitedRead = context.read(job.message, .message, for: self, id)
        }
    }

    private func begin(_ id: ConnectionID) {
        guard let link = links[id], let job = link.job, let envelope = job.envelope, let body = job.body else { return }
        let handler = link.handler.value
        guard mayDot(job) else { return abandon(id, job, .notPermitted) }
        notPermittedInRow = 0
        links[id]?.began = true
        links[id]?.fresh = handler.session.transactions == 0
        links[id]?.job?.sessions += 1
        context.shared.tally.transactions += 1
        let (dots, message, time) = (context.dots, job.message, context.time)
        handler.begin(
            ClientTransaction(envelope: envelope, recipients: job.recipients.map(\.recipient), body: body),
            mayDot: dots.map { dots in { dots.mayDot(message, at: time.now()) } })
    }

    func bodyRead(_ id: ConnectionID, _ token: UInt64, _ outcome: BodyReadOutcome) {
        guard let link = links[id], let job = link.job, link.awaitedRead == token else { return }
        links[id]?.awaitedRead = nil
        let handler = link.handler.value
        switch outcome {
        case .message(let envelope, let body):
            guard !link.began else { return }
            if case .fragmented = body,
                !context.shared.budget.mayStream(under: context.shared.configuration.bodyMemory)
            {
                // Others stream: this one waits in the queue, at no cost to its attempts.
                pullsBlockedUntil = context.time.now() + DeliveryLimits.readPause
                return abandon(id, job, .returned)
            }
            links[id]?.job?.envelope = envelope
            links[id]?.job?.body = body
            links[id]?.job?.lease?.settle(body)
            begin(id)
        case .fragment(let bytes):
            guard link.began else { return }
            handler.give(.fragment(handler.session.fragmentWanted, bytes))
        case .damaged:
            context.shared.tally.damaged += 1
            context.logger.critical("a stored body is damaged", metadata: ["segment": "\(job.message.segment)"])
            if link.began { return handler.give(.bodyDamaged) }
            abandon(id, job, .damaged)
        case .beingRepaired:
            guard link.began else { return abandon(id, job, .beingRepaired) }
            // The connection goes before the dot; the next attempt finds the fragment repaired.
            links[id]?.job?.awaitsRepair = true
            handler.give(.bodyUnreadable)
        case .failed(let code):
            context.logger.warning("a stored body could not be read", metadata: ["errno": "\(code)"])
            // Too many reads at once is over soon; a disk that does not answer is a fault of our own, and each try costs the
            // receiver half a message.
            pullsBlockedUntil = context.time.now() + DeliveryLimits.readPause
            if code != EAGAIN {
                post(.ownFault(SMTPReply(local: 0, EnhancedStatus(4, 3, 0), "a stored message cannot be read")))
            }
            if link.began { return handler.give(.bodyUnreadable) }
            abandon(id, job, .returned)
        }
    }

    /// The job never reached the session; the connection is as good as before, and goes on unless pulling rests.
    private func abandon(_ id: ConnectionID, _ job: DeliveryJob, _ result: AttemptResult) {
        links[id]?.job = nil
        decide(job, job.recipients.map { ($0, result) }, peerHasDSN: true)
        if case .notPermitted = result {
            notPermittedInRow += 1
            if notPermittedInRow >= DeliveryLimits.notPermittedInRow {
                notPermittedInRow = 0
                pullsBlockedUntil = context.time.now() + DeliveryLimits.permissionPause
            }
        }
        if context.time.now() < pullsBlockedUntil {
            post(.blocked(id, until: pullsBlockedUntil))
        } else {
            post(.finished(id, reusable: true, trouble: nil, fresh: false, served: false))
        }
    }

    func fragmentWanted(_ id: ConnectionID, _ index: UInt32) {
        guard let job = links[id]?.job else { return }
        links[id]?.awaitedRead = context.read(job.message, .fragment(index), for: self, id)
    }

    func connectionClosed(_ id: ConnectionID) {
        guard let link = links.removeValue(forKey: id) else { return }
        if let job = link.job, !link.began {
            // It closed while its message was read back: nothing was sent.
            decide(job, job.recipients.map { ($0, .returned) }, peerHasDSN: true)
            post(.finished(id, reusable: false, trouble: nil, fresh: false, served: false))
        } else {
            post(.closed(id))
        }
        // Its place is free for a new one.
        pump(ready: context.source.ready(site))
    }

    func nextWorkID() -> WorkID {
        nextWork &+= 1
        return WorkID(value: nextWork)
    }
}
