// What all pools of a loop share: ports, the outbox towards the settler, body reads in flight, tallies.
import BatonCore
import BatonModel
import BatonRuntime
import Logging
import Metrics
import NIOCore

/// Gets the reads of a loop's pools on a reader thread and crosses to the loop once per batch.
final class BodyReadRelay: BodyReadReceiving {
    private let mailbox: LoopMailbox<BodyReadResult>

    init(loop: any EventLoop, receive: @escaping @Sendable ([BodyReadResult]) -> Void) {
        // Bounded by its producer: each connection has at most one read out.
        mailbox = LoopMailbox(loop: loop, capacity: .max, receive: receive)
    }

    func bodiesRead(_ results: [BodyReadResult]) { mailbox.deliver(results) }
}

/// Counters kept by hand on the loop and handed to swift-metrics once per tick.
struct DeliveryTally {
    var connects = 0
    var connectFailures = 0
    var transactions = 0
    var delivered = 0
    var temporary = 0
    var permanent = 0
    var inDoubt = 0
    var resent = 0
    var pauses = 0
    var ownFaults = 0
    var damaged = 0
}

/// Created once per loop and held: labels are made here only.
struct DeliveryCounters: Sendable {
    private let connects = Counter(label: "baton_delivery_connections_total", dimensions: [("result", "greeted")])
    private let failures = Counter(label: "baton_delivery_connections_total", dimensions: [("result", "failed")])
    private let transactions = Counter(label: "baton_delivery_transactions_total")
    private let delivered = Counter(label: "baton_delivery_recipients_total", dimensions: [("result", "delivered")])
    private let temporary = Counter(label: "baton_delivery_recipients_total", dimensions: [("result", "temporary")])
    private let permanent = Counter(label: "baton_delivery_recipients_total", dimensions: [("result", "permanent")])
    private let inDoubt = Counter(label: "baton_delivery_recipients_total", dimensions: [("result", "in_doubt")])
    private let resent = Counter(label: "baton_delivery_resent_total")
    private let pauses = Counter(label: "baton_delivery_site_pauses_total")
    private let ownFaults = Counter(label: "baton_delivery_own_faults_total")
    private let damaged = Counter(label: "baton_delivery_damaged_bodies_total")

    func add(_ tally: DeliveryTally) {
        func add(_ counter: Counter, _ count: Int) { if count > 0 { counter.increment(by: count) } }
        add(connects, tally.connects)
        add(failures, tally.connectFailures)
        add(transactions, tally.transactions)
        add(delivered, tally.delivered)
        add(temporary, tally.temporary)
        add(permanent, tally.permanent)
        add(inDoubt, tally.inDoubt)
        add(resent, tally.resent)
        add(pauses, tally.pauses)
        add(ownFaults, tally.ownFaults)
        add(damaged, tally.damaged)
    }
}

/// The mutable part, touched on the loop only.
final class DeliveryShared {
    var settlements: [Settlement] = []
    var finals: [FinalWithoutAttempt] = []
    var notices: [DelayNoticeDue] = []
    var flushPending = false
    var reads: [UInt64: (pool: ConnectionPool, connection: ConnectionID)] = [:]
    var nextRead: UInt64 = 0
    /// Pools that found W dots out without a settled outcome (PROTOCOL P5).
    var windowWaiting: Set<SiteID> = []
    var tally = DeliveryTally()
    let budget = BodyBudget()
    var configuration: DeliveryConfiguration
    /// When which pool of the loop is due.
    var schedule = PoolSchedule()

    init(configuration: DeliveryConfiguration) { self.configuration = configuration }
}

/// The earliest deadline of a pool's connections, or an instant before it. Touched on the loop only.
final class PoolClock {
    var due = Instant.distantFuture
}

/// Shared by the dispatcher and the pools of one loop; every call on that loop.
final class DeliveryContext: Sendable {
    let home: LoopHome
    let source: any WorkSource
    let settler: any Settling
    let reader: any BodyReading
    let permits: any PermitLeasing
    /// Nil in a single node.
    let dots: (any DotPermitting)?
    let connector: any Connecting
    let time: any TimeSource
    let logger: Logger
    private let bound: NIOLoopBoundBox<DeliveryShared>
    private let relay: BodyReadRelay
    private let counters = DeliveryCounters()

    init(
        home: LoopHome, source: any WorkSource, settler: any Settling, reader: any BodyReading,
        permits: any PermitLeasing, connector: any Connecting, time: any TimeSource, logger: Logger,
        configuration: DeliveryConfiguration, dots: (any DotPermitting)? = nil
    ) {
        self.dots = dots
        self.home = home
        self.source = source
        self.settler = settler
        self.reader = reader
        self.permits = permits
        self.connector = connector
        self.time = time
        self.logger = logger
        let bound = NIOLoopBoundBox.makeBoxSendingValue(
            DeliveryShared(configuration: configuration), eventLoop: home.loop)
        self.bound = bound
        self.relay = BodyReadRelay(loop: home.loop) { results in
            let shared = bound.value
            for result in results {
                guard let target = shared.reads.removeValue(forKey: result.token) else { continue }
                let connection = target.connection
                target.pool.assumeIsolated { $0.bodyRead(connection, result.token, result.outcome) }
            }
        }
    }

    var shared: DeliveryShared { bound.value }

    /// Asks for a part of a message; `bodyRead` brings the answer under the token returned, never from within this call.
    func read(
        _ message: StoredMessageRef, _ part: BodyPart, for pool: ConnectionPool, _ connection: ConnectionID
    ) -> UInt64 {
        let shared = shared
        shared.nextRead += 1
        shared.reads[shared.nextRead] = (pool, connection)
        let token = shared.nextRead
        reader.read([BodyRead(ref: message, part: part, token: token)], for: relay)
        return token
    }

    /// Settlements of one turn of the loop go to the settler in one call.
    func collect(_ settlement: Settlement) {
        shared.settlements.append(settlement)
        scheduleFlush()
    }

    func collect(_ finals: [FinalWithoutAttempt]) {
        shared.finals.append(contentsOf: finals)
        scheduleFlush()
    }

    func collect(_ notices: [DelayNoticeDue]) {
        shared.notices.append(contentsOf: notices)
        scheduleFlush()
    }

    private func scheduleFlush() {
        let shared = shared
        guard !shared.flushPending else { return }
        shared.flushPending = true
        home.loop.execute { self.flush() }
    }

    func flush() {
        let shared = shared
        shared.flushPending = false
        var settlements: [Settlement] = []
        var finals: [FinalWithoutAttempt] = []
        var notices: [DelayNoticeDue] = []
        swap(&notices, &shared.notices)
        swap(&settlements, &shared.settlements)
        swap(&finals, &shared.finals)
        if !settlements.isEmpty { settler.settle(settlements) }
        if !finals.isEmpty { settler.settle(finals) }
        if !notices.isEmpty { settler.settle(notices) }
    }

    func publish() {
        let shared = shared
        counters.add(shared.tally)
        shared.tally = DeliveryTally()
    }
}
