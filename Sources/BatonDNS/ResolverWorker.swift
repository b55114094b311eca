// What the resolver's thread does: waits, feeds `LookupState`, performs its actions.
import BatonCore
import BatonRuntime
import Glibc
import Logging
import Metrics

/// Owned by the resolver's thread from `run` on.
final class ResolverWorker: @unchecked Sendable {
    // @unchecked: made by one thread, then used by the resolver's thread alone.
    typealias Request = (questions: [DNSQuestion], receiver: any AnswerReceiving)

    private let servers: [ResolverServer]
    private let plain: UnboundContext
    private let validating: UnboundContext?
    private let anchorOwner: [UInt8]
    private let wakeRead: Int32
    private let timeout: TimeSpan
    private let time: any TimeSource
    private let logger: Logger
    private var state: LookupState
    private var actions = ActionBuffer<LookupState.Action>()
    private var status: ResolverStatus
    /// One for each loop that has asked; they live as long as the process.
    private var receivers: [any AnswerReceiving] = []
    private var outgoing: [[DNSReply]] = []
    private var inValidating: Set<UInt64> = []
    private var probe: ServerProbe?
    private var probeDeadline = Instant.distantFuture
    private var random: SplitMix64
    /// When DNSSEC is asked about, or the question under way is given up.
    private var dnssecDue: Instant
    private var dnssecUnderWay = false
    private let metrics = ResolverMetrics()

    /// Ids of `LookupState` begin at 1.
    private static let dnssecID: UInt64 = 0

    init(
        _ configuration: ResolverConfiguration, servers: [ResolverServer], plain: UnboundContext,
        candidate: (context: UnboundContext, owner: [UInt8])?, wakeRead: Int32, status: ResolverStatus,
        time: any TimeSource, logger: Logger
    ) {
        self.servers = servers
        self.plain = plain
        self.validating = candidate?.context
        self.anchorOwner = candidate?.owner ?? []
        self.wakeRead = wakeRead
        self.timeout = configuration.timeout
        self.time = time
        self.logger = logger
        self.state = LookupState(
            timeout: configuration.timeout, lookupsAtOnce: configuration.lookupsAtOnce,
            lookupsWaiting: configuration.lookupsWaiting)
        self.status = status
        self.random = SplitMix64(seed: SystemRandom.uint64())
        self.dnssecDue = candidate == nil ? .distantFuture : time.now()
    }

    func run(take: () -> [Request]?, publish: (ResolverStatus) -> Void) {
        while true {
            wait()
            guard let requests = take() else { break }
            for request in requests {
                step(.wanted(request.questions, receiver: number(of: request.receiver)))
            }
            for context in [plain, validating].compactMap({ $0 }) {
                for result in context.process() { received(result.id, result.answer) }
            }
            checkProbe()
            step(.tick)
            askAboutDNSSEC()
            deliver()
            update(publish)
        }
        step(.stopped)
        deliver()
    }

    private func wait() {
        var descriptors = [pollfd(fd: wakeRead, events: Int16(POLLIN), revents: 0)]
        descriptors.append(pollfd(fd: plain.descriptor, events: Int16(POLLIN), revents: 0))
        if let validating { descriptors.append(pollfd(fd: validating.descriptor, events: Int16(POLLIN), revents: 0)) }
        for descriptor in probeDescriptors() {
            descriptors.append(pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0))
        }
        var next = min(dnssecDue, probeDeadline)
        if let deadline = state.deadline { next = min(next, deadline) }
        var milliseconds: Int32 = -1
        if next != .distantFuture {
            let left = max(0, (next - time.now()).nanoseconds)
            // Rounded up, so that the thread does not spin through the last millisecond; at most a minute.
            milliseconds = Int32(min(60_000, left / 1_000_000 + 1))
        }
        _ = poll(&descriptors, nfds_t(descriptors.count), milliseconds)
        if let first = descriptors.first, first.revents != 0 { drainWake() }
    }

    private func probeDescriptors() -> [Int32] {
        switch probe {
        case .some(let running): running.descriptors
        case .none: []
        }
    }

    private func drainWake() {
        var bytes = [UInt8](repeating: 0, count: 64)
        _ = bytes.withUnsafeMutableBytes { read(wakeRead, $0.baseAddress, $0.count) }
    }

    private func number(of receiver: any AnswerReceiving) -> Int {
        if let known = receivers.firstIndex(where: { $0 === receiver }) { return known }
        receivers.append(receiver)
        outgoing.append([])
        return receivers.count - 1
    }

    private func step(_ event: LookupState.Event) {
        state.receive(event, at: time.now(), into: &actions)
        var refused: [UInt64] = []
        for action in actions.drain() {
            switch action {
            case .begin(let id, let question): if !begin(id, question) { refused.append(id) }
            case .cancel(let id): cancel(id)
            case .answer(let receiver, let reply):
                metrics.count(reply.answer)
                guard outgoing.indices.contains(receiver) else { continue }
                outgoing[receiver].append(reply)
            case .probe:
                probe = ServerProbe(servers, id: UInt16(truncatingIfNeeded: random.next()))
                probeDeadline = time.now() + min(DNSLimits.probeTimeout, timeout)
            }
        }
        // libunbound is out of memory or threads: as if our own bound were reached.
        for id in refused { step(.result(id: id, DNSAnswer(.failed(.overloaded)))) }
    }

    private func begin(_ id: UInt64, _ question: DNSQuestion) -> Bool {
        if status.dnssec == .validating, let validating {
            inValidating.insert(id)
            return validating.begin(question, id: id)
        }
        return plain.begin(question, id: id)
    }

    private func cancel(_ id: UInt64) {
        if inValidating.remove(id) != nil { validating?.cancel(id) } else { plain.cancel(id) }
    }

    private func received(_ id: UInt64, _ answer: DNSAnswer) {
        if id == Self.dnssecID {
            dnssecAnswered(answer)
        } else {
            inValidating.remove(id)
            step(.result(id: id, answer))
        }
    }

    private func checkProbe() {
        let alive: Bool
        switch probe {
        case .some(let running): alive = running.answered()
        case .none: return
        }
        guard alive || probeDeadline <= time.now() else { return }
        probe = nil
        probeDeadline = .distantFuture
        step(.probed(alive: alive))
    }

    private func askAboutDNSSEC() {
        guard let validating, dnssecDue <= time.now() else { return }
        if dnssecUnderWay {
            validating.cancel(Self.dnssecID)
            dnssecAnswered(DNSAnswer(.failed(.timeout)))
            return
        }
        let question = DNSQuestion(name: anchorOwner, type: .soa)
        dnssecUnderWay = validating.begin(question, id: Self.dnssecID)
        dnssecDue = time.now() + (dnssecUnderWay ? timeout : DNSLimits.dnssecInterval)
    }

    private func dnssecAnswered(_ answer: DNSAnswer) {
        dnssecUnderWay = false
        dnssecDue = .distantFuture
        switch answer.content {
        case .failed(.bogus): status.dnssec = .stripped("the trust anchor's own records do not validate")
        case .failed: dnssecDue = time.now() + DNSLimits.dnssecInterval
        case .addresses, .exchangers, .other, .noData, .noSuchName:
            status.dnssec = answer.secure ? .validating : .stripped("answers come without signatures")
        }
    }

    private func deliver() {
        for (index, receiver) in receivers.enumerated() where !outgoing[index].isEmpty {
            var batch: [DNSReply] = []
            swap(&batch, &outgoing[index])
            receiver.answered(batch)
        }
        metrics.flush(underWay: state.underWayCount, waiting: state.waitingCount, isDown: state.isDown)
    }

    private var published: ResolverStatus?

    private func update(_ publish: (ResolverStatus) -> Void) {
        status.isDown = state.isDown
        guard published != status else { return }
        let names = servers.map(\.description).joined(separator: ", ")
        if status.isDown, published?.isDown != true {
            logger.error("no resolver answers; delivery by MX pauses", metadata: ["servers": "\(names)"])
        } else if !status.isDown, published?.isDown == true {
            logger.notice("the resolver answers again", metadata: ["servers": "\(names)"])
        }
        if case .stripped(let reason) = status.dnssec, published?.dnssec != status.dnssec {
            logger.warning(
                "the resolver does not pass DNSSEC on; answers are not validated",
                metadata: ["servers": "\(names)", "reason": "\(reason)"])
        }
        published = status
        publish(status)
    }
}

/// Counters of the resolver's thread, flushed once a round.
struct ResolverMetrics {
    private let answered = Counter(label: "baton_dns_lookups_total", dimensions: [("result", "answered")])
    private let negative = Counter(label: "baton_dns_lookups_total", dimensions: [("result", "negative")])
    private let failed = Counter(label: "baton_dns_lookups_total", dimensions: [("result", "failed")])
    private let timedOut = Counter(label: "baton_dns_lookups_total", dimensions: [("result", "timeout")])
    private let bogus = Counter(label: "baton_dns_lookups_total", dimensions: [("result", "bogus")])
    private let refused = Counter(label: "baton_dns_lookups_total", dimensions: [("result", "refused")])
    private let underWay = Gauge(label: "baton_dns_lookups_under_way")
    private let waiting = Gauge(label: "baton_dns_lookups_waiting")
    private let down = Gauge(label: "baton_dns_resolver_down")

    func count(_ answer: DNSAnswer) {
        switch answer.content {
        case .addresses, .exchangers, .other: answered.increment()
        case .noData, .noSuchName: negative.increment()
        case .failed(.timeout): timedOut.increment()
        case .failed(.bogus): bogus.increment()
        case .failed(.resolverDown), .failed(.overloaded): refused.increment()
        case .failed(.refused), .failed(.malformed): failed.increment()
        }
    }

    func flush(underWay: Int, waiting: Int, isDown: Bool) {
        self.underWay.record(underWay)
        self.waiting.record(waiting)
        down.record(isDown ? 1 : 0)
    }
}
