// One loop of the generator: which message goes when, over which connection, and what came of it.
import BatonCore
import CBatonSystem
import DequeModule
import Histogram
import NIOCore
import NIOPosix
import Synchronization

/// What a run of the generator asks for, split over its loops.
struct SendPlan: Sendable {
    var endpoint: EndpointOption
    var sessions: Int
    /// Messages in all; nil: until `duration` is over.
    var messages: Int?
    var duration: Int64?
    /// Messages a second in all (open loop); nil: each session sends as fast as it is answered (closed loop).
    var rate: Double?
    var timeout: Int64
    /// How long connections may fail in a row before the run ends.
    var giveUp: Int64
    var behaviour: SendBehaviour
}

/// Counts of a loop, merged at the end.
struct SendTotals: Sendable {
    var acceptedMessages = 0
    var accepted = 0
    var refused = 0
    var inDoubt = 0
    var unsent = 0
    var octets: UInt64 = 0
    var connections = 0
    var connectFailures = 0
    var lostConnections = 0
    var codes: [UInt16: Int] = [:]
    var first: Int64 = 0
    var last: Int64 = 0
    /// Microseconds from due (open loop) or begun (closed loop) to the reply to the dot.
    var latency = Histogram<UInt32>(highestTrackableValue: 3_600_000_000, numberOfSignificantValueDigits: .three)
    var lastError = ""

    mutating func add(_ other: SendTotals) {
        acceptedMessages += other.acceptedMessages
        accepted += other.accepted
        refused += other.refused
        inDoubt += other.inDoubt
        unsent += other.unsent
        octets += other.octets
        connections += other.connections
        connectFailures += other.connectFailures
        lostConnections += other.lostConnections
        codes.merge(other.codes, uniquingKeysWith: +)
        if first == 0 || (other.first != 0 && other.first < first) { first = other.first }
        last = max(last, other.last)
        latency.add(other.latency)
        if !other.lastError.isEmpty { lastError = other.lastError }
    }
}

/// Shared by the loops of a generator; safe from any thread.
final class SendShared: Sendable {
    struct State {
        var totals = SendTotals()
        var running = 0
        var accepted = 0
    }
    let state = Mutex(State())
    let stop = Atomic<Bool>(false)
    let history: HistoryWriter?

    init(history: HistoryWriter?) { self.history = history }
}

/// The sessions of one event loop; touched on that loop only. Bounds: `sessions` connections; messages to be sent again are at
/// most one per session.
final class SendLoop {
    private let plan: SendPlan
    private let shared: SendShared
    private let loop: any EventLoop
    private let number: Int
    private let step: Int
    private var factory: MessageFactory
    private var nextOrdinal = 0
    private let quota: Int?
    private let rate: Double?
    private let sessions: Int
    private var again = Deque<BenchMessage>()
    private var idle: [SendHandler] = []
    private var handlers: [ObjectIdentifier: SendHandler] = [:]
    private var connecting = 0
    private var begun: Int64 = 0
    private var failingSince: Int64?
    private var totals = SendTotals()
    private var finished = false
    private var ticking: Scheduled<Void>?
    private var wake: Scheduled<Void>?

    static let reconnectWait = TimeAmount.milliseconds(50)

    init(
        _ plan: SendPlan, _ shared: SendShared, _ loop: any EventLoop, number: Int, of count: Int,
        factory: MessageFactory
    ) {
        self.plan = plan
        self.shared = shared
        self.loop = loop
        self.number = number
        self.step = count
        self.factory = factory
        func share(_ all: Int) -> Int { all / count + (number < all % count ? 1 : 0) }
        self.quota = plan.messages.map(share)
        self.sessions = max(share(plan.sessions), 1)
        self.rate = plan.rate.map { $0 / Double(count) }
    }

    func start() {
        begun = baton_clock_monotonic()
        let first = rate == nil ? min(sessions, quota ?? sessions) : 1
        for _ in 0..<first { connect() }
        scheduleTick()
        if rate != nil { pace() }
    }

    // MARK: Which message next

    private enum Next {
        case message(BenchMessage)
        case later
        case none
    }

    private var isExhausted: Bool {
        if shared.stop.load(ordering: .relaxed) { return true }
        if let quota, nextOrdinal >= quota { return true }
        if let duration = plan.duration, baton_clock_monotonic() - begun >= duration { return true }
        return false
    }

    /// When the ordinal-th message is due (open loop).
    private func due(_ ordinal: Int) -> Int64 {
        guard let rate, rate > 0 else { return begun }
        return begun + Int64(Double(ordinal) / rate * 1e9)
    }

    private func next(_ now: Int64) -> Next {
        if let message = again.popFirst() { return .message(message) }
        if isExhausted { return .none }
        if rate != nil, due(nextOrdinal) > now { return .later }
        let ordinal = nextOrdinal
        nextOrdinal += 1
        let index = UInt64(ordinal * step + number)
        return .message(factory.make(index, due: rate == nil ? now : due(ordinal)))
    }

    // MARK: Connections

    private func connect() {
        guard !finished else { return }
        connecting += 1
        let bootstrap = ClientBootstrap(group: loop)
            .connectTimeout(.nanoseconds(plan.timeout))
            .channelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 4096))
        let behaviour = plan.behaviour
        let bound = NIOLoopBound(self, eventLoop: loop)
        let initialized = bootstrap.channelInitializer { channel in
            channel.eventLoop.makeCompletedFuture {
                let handler = SendHandler(bound.value, behaviour)
                try channel.pipeline.syncOperations.addHandler(handler)
            }
        }
        let future: EventLoopFuture<any Channel>
        switch plan.endpoint.kind {
        case .tcp(let host, let port):
            future = initialized.channelOption(.tcpOption(.tcp_nodelay), value: 1).connect(host: host, port: port)
        case .unix(let path): future = initialized.connect(unixDomainSocketPath: path)
        }
        future.assumeIsolated().whenComplete { result in
            self.connecting -= 1
            switch result {
            case .success: self.totals.connections += 1
            case .failure(let error):
                self.totals.connectFailures += 1
                self.totals.lastError = "\(error)"
                self.failed()
            }
        }
    }

    /// A connection could not be used at all: try again after a wait, and end the run after `giveUp` of nothing else.
    private func failed() {
        let now = baton_clock_monotonic()
        let since = failingSince ?? now
        failingSince = since
        if now - since > plan.giveUp {
            finish(unsent: true)
            return
        }
        reconnectLater()
    }

    private func reconnectLater() {
        connecting += 1
        loop.assumeIsolated().scheduleTask(in: Self.reconnectWait) {
            self.connecting -= 1
            if self.wantsConnection { self.connect() }
            self.checkEnd()
        }
    }

    private var wantsConnection: Bool {
        !finished && handlers.count + connecting < sessions && (!again.isEmpty || !isExhausted)
    }

    func opened(_ handler: SendHandler) { handlers[ObjectIdentifier(handler)] = handler }

    /// A session is ready for a message.
    func ready(_ handler: SendHandler) {
        failingSince = nil
        feed(handler)
    }

    private func feed(_ handler: SendHandler) {
        if finished || handler.isSpent {
            handler.quit()
            return
        }
        switch next(baton_clock_monotonic()) {
        case .message(let message): handler.begin(message)
        case .later: idle.append(handler)
        case .none:
            // Another session may still give its message back, but that one reconnects by itself.
            handler.quit()
        }
    }

    func closed(_ handler: SendHandler, why: String, orderly: Bool) {
        handlers.removeValue(forKey: ObjectIdentifier(handler))
        idle.removeAll { $0 === handler }
        if finished { return }
        if !orderly {
            totals.lostConnections += 1
            totals.lastError = why
            if handler.wasReady { failingSince = nil }
            failed()
        } else if wantsConnection {
            connect()
        }
        checkEnd()
    }

    func giveBack(_ message: BenchMessage) {
        var copy = message
        copy.attempts += 1
        again.append(copy)
    }

    // MARK: Pace, time-outs, the end

    /// Open loop: hands due messages to idle sessions, opens another session when none is idle, and sleeps until the next is due.
    private func pace() {
        wake = nil
        guard !finished else { return }
        let now = baton_clock_monotonic()
        while !isExhausted, due(nextOrdinal) <= now, let handler = idle.popLast() { feed(handler) }
        if isExhausted {
            let waiting = idle
            idle.removeAll()
            for handler in waiting { feed(handler) }
            checkEnd()
            return
        }
        if due(nextOrdinal) <= now, wantsConnection, connecting == 0 { connect() }
        let wait = max(200_000, min(due(nextOrdinal) - now, 50_000_000))
        wake = loop.assumeIsolated().scheduleTask(in: .nanoseconds(wait)) { self.pace() }
    }

    private func scheduleTick() {
        ticking = loop.assumeIsolated().scheduleTask(in: .milliseconds(200)) { self.tick() }
    }

    private func tick() {
        guard !finished else { return }
        defer { if !finished { scheduleTick() } }
        let now = baton_clock_monotonic()
        for handler in Array(handlers.values) where handler.isOverdue(now, plan.timeout) { handler.abort("timed out") }
        if isExhausted {
            let waiting = idle
            idle.removeAll()
            for handler in waiting { feed(handler) }
        }
        let accepted = totals.acceptedMessages
        shared.state.withLock { $0.accepted = max($0.accepted, accepted) }
        checkEnd()
    }

    private func checkEnd() {
        if !finished, handlers.isEmpty, connecting == 0, again.isEmpty, isExhausted { finish(unsent: false) }
    }

    private func finish(unsent: Bool) {
        guard !finished else { return }
        finished = true
        ticking?.cancel()
        wake?.cancel()
        if unsent { totals.unsent = again.count + max(0, (quota ?? nextOrdinal) - nextOrdinal) }
        for handler in Array(handlers.values) { handler.abort("run over") }
        let mine = totals
        shared.state.withLock { state in
            state.totals.add(mine)
            state.running -= 1
        }
    }

    // MARK: Results

    func ended(_ message: BenchMessage, _ results: [SendSession.Result], queueID: [UInt8]) {
        let now = baton_clock_monotonic()
        if totals.first == 0 { totals.first = message.due }
        totals.last = now
        var taken = false
        for (number, result) in results.enumerated() {
            switch result.kind {
            case .accepted:
                totals.accepted += 1
                taken = true
            case .inDoubt: totals.inDoubt += 1
            default:
                totals.refused += 1
                totals.codes[result.code, default: 0] += 1
            }
            shared.history?.append(
                HistoryRecord(
                    kind: result.kind, run: message.id.run, index: message.id.index,
                    recipient: UInt16(clamping: number),
                    code: result.code, checksum: message.checksum, length: UInt32(clamping: message.length),
                    begun: message.due, finished: now, queueID: queueID))
        }
        if taken {
            totals.acceptedMessages += 1
            totals.octets += UInt64(message.length)
            totals.latency.record(UInt64(max(1, (now - message.due) / 1000)))
        }
    }
}
