// The queue of one event loop: an actor pinned on it around `PartitionState`.
import BatonCore
import BatonModel
import BatonRuntime
import Logging
import NIOCore
import Synchronization

/// Schedules the recipients of its part of the domains (`StableHash(domain) % count == index`).
///
/// Runs on one event loop, its executor. Mail comes from any thread through a mailbox; the delivery side of the same loop calls
/// `WorkSource`; operators `await` the isolated functions. It owns one timer. Bounds: `QueueLimits` and
/// `QueueConfiguration`. Nothing survives a crash: recovery hands every live recipient in again.
package actor QueuePartition {
    package nonisolated let index: Int
    nonisolated let home: LoopHome
    nonisolated let time: any TimeSource
    nonisolated let gauges: PartitionGauges
    private nonisolated let intake: LoopMailbox<AcceptedMessage>
    private nonisolated let relay: Relay

    var state: PartitionState
    private weak var signalling: (any WorkSignalling)?
    private let logger: Logger
    private var performing = false
    private var turnPending = false
    private var timer: Scheduled<Void>?
    private var timerAt = Instant.distantFuture
    private var stopped = false
    private var reportPending = false

    package nonisolated var unownedExecutor: UnownedSerialExecutor { home.unownedExecutor }

    /// Rounds of actions in one turn before the loop gets its say.
    private static let rounds = 64
    /// Activity is followed by one report to the metrics after this.
    private static let reportDelay = TimeAmount.seconds(1)

    /// The mailbox exists before the actor does.
    private final class Relay: Sendable {
        private struct Target: Sendable {
            weak var partition: QueuePartition?
        }

        private let target = Mutex(Target())

        func bind(_ partition: QueuePartition) { target.withLock { $0.partition = partition } }
        func take(_ messages: [AcceptedMessage]) { target.withLock { $0.partition }?.take(messages) }
    }

    /// `index` is below `count`, the number of partitions of the node.
    package init(
        index: Int, count: Int, home: LoopHome, time: any TimeSource, configuration: QueueConfiguration, logger: Logger
    ) {
        self.index = index
        self.home = home
        self.time = time
        self.logger = logger
        let relay = Relay()
        self.relay = relay
        self.gauges = PartitionGauges(index: index, configuration)
        self.intake = LoopMailbox(loop: home.loop, capacity: QueueLimits.mailboxMessages) { relay.take($0) }
        self.state = PartitionState(index: index, count: count, configuration: configuration, now: time.now())
        relay.bind(self)
    }

    /// Names the delivery side of the loop, held weakly. Once, on the loop, before mail comes.
    package nonisolated func bind(signalling: any WorkSignalling) {
        home.loop.preconditionInEventLoop()
        assumeIsolated { $0.signalling = signalling }
    }

    /// Cancels the timer; no more signals. On the loop.
    package nonisolated func stop() {
        home.loop.preconditionInEventLoop()
        assumeIsolated { partition in
            partition.stopped = true
            partition.timer?.cancel()
            partition.timer = nil
        }
    }

    // MARK: Mail in, from any thread

    /// Past `jobsMax`: admission is to refuse new mail (452). Cheap, any thread.
    package nonisolated var isFull: Bool { gauges.isFull }
    /// Recipients here and on the way in. Any thread.
    package nonisolated var jobCount: Int { gauges.jobCount }

    /// Durable mail after its 250: always taken. Bounded by who sends: sessions stop where `isFull`, and the writer hands over
    /// one commit at a time. Any thread.
    package nonisolated func receive(_ messages: [AcceptedMessage]) {
        intake.deliver(gauges.admit(messages))
    }

    /// For recovery: false, and nothing taken, when `QueueLimits.mailboxMessages` messages or recipients wait already; try again
    /// later. Any thread.
    package nonisolated func offer(_ messages: [AcceptedMessage]) -> Bool {
        guard gauges.hasRoom(for: messages, max: QueueLimits.mailboxMessages) else { return false }
        let admitted = gauges.admit(messages)
        if intake.offer(admitted) { return true }
        gauges.taken(admitted)
        return false
    }

    /// Takes these recipients out of the queue where they are not being tried; `then` gets, for each, whether it was. Any thread;
    /// `then` runs on the loop, once.
    package nonisolated func drop(_ ended: [EndedElsewhere], then: @escaping @Sendable ([Bool]) -> Void) {
        home.loop.execute {
            let dropped = self.onLoop { partition in ended.map { partition.state.drop($0) } }
            then(dropped)
        }
    }

    private nonisolated func take(_ messages: [AcceptedMessage]) {
        gauges.taken(messages)
        let now = time.now()
        onLoop { $0.state.receive(messages, at: now) }
    }

    // MARK: Turns

    /// Changes the state on the loop, then tells the delivery side and sets the timer.
    nonisolated func onLoop<Result: Sendable>(
        _ change: @Sendable (isolated QueuePartition) -> Result
    ) -> Result {
        home.loop.preconditionInEventLoop()
        return assumeIsolated { partition in
            let result = change(partition)
            partition.perform()
            return result
        }
    }

    /// Performs actions until there are none. The delivery side may call back meanwhile: then the outer call goes on with what
    /// that brought, so that calls do not nest without end.
    func perform() {
        guard !performing else { return }
        performing = true
        var rounds = 0
        while rounds < Self.rounds {
            let actions = state.drain()
            if actions.isEmpty { break }
            rounds += 1
            guard !stopped, let signalling else { continue }
            for action in actions {
                switch action {
                case .routeNeeded(let destination, let domain): signalling.routeNeeded(destination, domain: domain)
                case .workReady(let site, let ready): signalling.workReady(site, ready: ready)
                case .finalWithoutAttempt(let items): signalling.finalWithoutAttempt(items)
                case .delayNoticesDue(let items): signalling.delayNoticesDue(items)
                }
            }
        }
        performing = false
        gauges.publish(jobs: state.jobs.all, load: state.load, residentBytes: state.messages.residentBytes)
        arm(again: rounds == Self.rounds)
    }

    private func arm(again: Bool) {
        guard !stopped else { return }
        if !reportPending {
            reportPending = true
            home.loop.scheduleTask(in: Self.reportDelay) { self.report() }
        }
        let now = time.now()
        if again || state.hasWork(at: now) {
            guard !turnPending else { return }
            turnPending = true
            home.loop.execute { self.turn() }
            return
        }
        guard let wake = state.wheel.nextWake, wake < timerAt else { return }
        timer?.cancel()
        timerAt = wake
        timer = home.loop.scheduleTask(in: .nanoseconds(max(0, (wake - now).nanoseconds))) { self.timerFired() }
    }

    private nonisolated func turn() {
        let now = time.now()
        onLoop { partition in
            partition.turnPending = false
            partition.step(now)
        }
    }

    private nonisolated func timerFired() {
        let now = time.now()
        onLoop { partition in
            partition.timer = nil
            partition.timerAt = .distantFuture
            partition.step(now)
        }
    }

    private nonisolated func report() {
        assumeIsolated { partition in
            partition.reportPending = false
            partition.gauges.report(
                partition.state.totals, residentBytes: partition.state.messages.residentBytes,
                received: partition.state.received, notKept: partition.state.bodiesNotKept)
            partition.state.received = 0
            partition.state.bodiesNotKept = 0
        }
    }

    private func step(_ now: Instant) {
        guard !stopped else { return }
        _ = state.advance(to: now)
    }
}
