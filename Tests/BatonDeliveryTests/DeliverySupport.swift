// Stands in for partition, settler, planner and spool, and drives a dispatcher on a real loop under a simulated clock.
import BatonCore
import BatonDNS
import BatonModel
import BatonTestKit
import Dispatch
import Logging
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import BatonDelivery

/// Collects values from any thread and wakes tests that wait for them: no polling, no sleeps.
final class Collector<Element: Sendable>: Sendable {
    private struct State {
        var elements: [Element] = []
        var waiters: [(id: Int, count: Int, continuation: CheckedContinuation<[Element], Never>)] = []
        var nextID = 0
    }

    /// A wait that would never end ends here, so that the test fails instead of hanging.
    private static var patience: DispatchTimeInterval { .seconds(60) }

    private let state = Mutex(State())

    var all: [Element] { state.withLock { $0.elements } }

    func add(_ element: Element) {
        let due = state.withLock { state -> ([CheckedContinuation<[Element], Never>], [Element]) in
            state.elements.append(element)
            let count = state.elements.count
            let due = state.waiters.filter { $0.count <= count }.map(\.continuation)
            state.waiters.removeAll { $0.count <= count }
            return (due, state.elements)
        }
        for continuation in due.0 { continuation.resume(returning: due.1) }
    }

    /// Everything there is, once there are `count`; an issue and what there is after a minute.
    func wait(for count: Int) async -> [Element] {
        let all = await withCheckedContinuation { continuation in
            let (id, ready) = state.withLock { state -> (Int, [Element]?) in
                if state.elements.count >= count { return (0, state.elements) }
                state.nextID += 1
                state.waiters.append((state.nextID, count, continuation))
                return (state.nextID, nil)
            }
            if let ready { return continuation.resume(returning: ready) }
            DispatchQueue.global().asyncAfter(deadline: .now() + Self.patience) { [weak self] in self?.giveUp(id) }
        }
        if all.count < count { Issue.record("waited in vain for \(count), got \(all.count)") }
        return all
    }

    private func giveUp(_ id: Int) {
        let due = state.withLock { state -> (CheckedContinuation<[Element], Never>, [Element])? in
            guard let index = state.waiters.firstIndex(where: { $0.id == id }) else { return nil }
            return (state.waiters.remove(at: index).continuation, state.elements)
        }
        due?.0.resume(returning: due?.1 ?? [])
    }
}

/// A partition of one destination that hands out what it was given.
final class FakeSource: WorkSource {
    struct State {
        var ready: [Transaction] = []
        var site: SiteID?
        var out = 0
    }

    let state = Mutex(State())
    /// `delivered 250`, `temporary 451`, `returned` and the like, one per recipient.
    let results = Collector<String>()
    /// `assign`, `deferSite 421`, `fail 521` and the like.
    let verdicts = Collector<String>()
    private let time: SimulatedTime
    /// Whether returned work is handed out again.
    private let requeues: Bool

    init(time: SimulatedTime, requeues: Bool = true) {
        self.time = time
        self.requeues = requeues
    }

    func assign(_ destination: DestinationID, to site: SiteID, until: Instant) {
        if until <= time.now() { return verdicts.add("release") }
        state.withLock { $0.site = site }
        verdicts.add("assign")
    }

    func deferDestination(_ destination: DestinationID, reply: SMTPReply) {
        verdicts.add("defer \(reply.effectiveStatus)")
    }

    func deferSite(_ site: SiteID, reply: SMTPReply) {
        state.withLock { $0.ready = [] }
        verdicts.add("deferSite \(reply.code)")
    }

    func failDestination(_ destination: DestinationID, reply: SMTPReply) {
        state.withLock { $0.ready = [] }
        verdicts.add("fail \(reply.code) \(reply.effectiveStatus)")
    }

    func holdDestination(_ destination: DestinationID, until: Instant) { verdicts.add("hold") }

    func pull(_ site: SiteID, transactions: Int, recipients: Int) -> [Transaction] {
        state.withLock { state in
            guard !state.ready.isEmpty, state.site == site else { return [] }
            let first = state.ready.removeFirst()
            guard first.recipients.count > recipients else {
                state.out += first.recipients.count
                return [first]
            }
            state.ready.insert(
                Transaction(
                    message: first.message, destination: first.destination, envelope: first.envelope, body: first.body,
                    recipients: Array(first.recipients.dropFirst(recipients))), at: 0)
            state.out += recipients
            return [
                Transaction(
                    message: first.message, destination: first.destination, envelope: first.envelope, body: first.body,
                    recipients: Array(first.recipients.prefix(recipients)))
            ]
        }
    }

    func decide(_ found: [(JobHandle, AttemptResult)], envelope: Envelope, at now: Instant) -> [RecipientDecision] {
        state.withLock { $0.out -= found.count }
        return found.map { handle, result in
            switch result {
            case .delivered(let reply):
                results.add("delivered \(reply.code)")
                return .delivered
            case .temporary(let reply):
                results.add("temporary \(reply.code)")
                return .deferred(until: now + .minutes(5), delayNotice: false)
            case .permanent(let reply):
                results.add("permanent \(reply.code) \(reply.effectiveStatus)")
                return .bounced
            case .inDoubt:
                results.add("inDoubt")
                return .inDoubt(until: now + .minutes(5))
            case .returned:
                results.add("returned")
                return .returned
            case .notPermitted:
                results.add("notPermitted")
                return .returned
            case .beingRepaired:
                results.add("beingRepaired")
                return .returned
            case .damaged:
                results.add("damaged")
                return .unknown
            }
        }
    }

    func settle(_ handles: [JobHandle]) {}
    func ready(_ site: SiteID) -> Int { state.withLock { $0.site == site ? $0.ready.count : 0 } }
}

final class FakeSettler: Settling {
    let settlements = Collector<Settlement>()
    let calls = Mutex(0)
    func settle(_ settlements: [Settlement]) {
        calls.withLock { $0 += 1 }
        for settlement in settlements { self.settlements.add(settlement) }
    }
    func settle(_ finals: [FinalWithoutAttempt]) {}
    func settle(_ notices: [DelayNoticeDue]) {}
}

/// Answers every domain with the same hosts.
final class FakePlanning: MXPlanning {
    let verdict: MXPlan.Verdict
    init(_ verdict: MXPlan.Verdict) { self.verdict = verdict }
    func plan(_ domain: Domain, _ answer: @escaping @Sendable (MXPlan) -> Void) {
        answer(MXPlan(verdict: verdict, expires: Instant(secondsSinceEpoch: 4_000_000_000), secure: false))
    }
    func planHost(_ name: Domain, _ answer: @escaping @Sendable (MXPlan) -> Void) { plan(name, answer) }
}

/// A spool of bodies by record number; fragments of `fragmentSize`.
final class FakeReader: BodyReading {
    let messages: [UInt32: (Envelope, [UInt8])]
    let fragmentSize: Int
    let damagedFragment: UInt32?
    /// What is damaged is asked for elsewhere.
    let repairs: Bool
    init(
        messages: [UInt32: (Envelope, [UInt8])] = [:], fragmentSize: Int = .max, damagedFragment: UInt32? = nil,
        repairs: Bool = false
    ) {
        self.repairs = repairs
        self.messages = messages
        self.fragmentSize = fragmentSize
        self.damagedFragment = damagedFragment
    }

    func read(_ requests: [BodyRead], for receiver: any BodyReadReceiving) {
        receiver.bodiesRead(requests.map { BodyReadResult(token: $0.token, outcome: outcome($0)) })
    }

    private func outcome(_ request: BodyRead) -> BodyReadOutcome {
        guard let (envelope, bytes) = messages[request.ref.record] else {
            return repairs ? .beingRepaired : .damaged
        }
        switch request.part {
        case .message:
            if bytes.count <= fragmentSize {
                return .message(
                    envelope, .whole(MessageBody(bytes: ByteBuffer(bytes: bytes), traits: envelope.traits)))
            }
            let count = (bytes.count + fragmentSize - 1) / fragmentSize
            return .message(envelope, .fragmented(traits: envelope.traits, count: UInt32(count)))
        case .fragment(let index):
            if index == damagedFragment { return repairs ? .beingRepaired : .damaged }
            return .fragment(ByteBuffer(bytes: bytes.dropFirst(Int(index) * fragmentSize).prefix(fragmentSize)))
        }
    }
}

func makeEnvelope(_ recipients: [String], body: [UInt8], flags: EnvelopeFlags = []) -> Envelope {
    var dots = 0
    for index in body.indices where body[index] == UInt8(ascii: ".") && (index == 0 || body[index - 1] == 0x0a) {
        dots += 1
    }
    return Envelope(
        id: MessageID(high: 7, low: 7), arrival: .epoch, sender: MailAddress("s@sender.test"), flags: flags,
        recipients: recipients.compactMap { MailAddress($0).map { EnvelopeRecipient(address: $0) } },
        traits: BodyTraits(
            length: body.count, crc32c: CRC32C.of(body), headerLength: 2, leadingDots: dots, longestLine: 10,
            hasEightBitBody: body.contains { $0 >= 0x80 }, hasEightBitHeader: false,
            endsWithCRLF: body.suffix(2) == [0x0d, 0x0a]))
}

/// A dispatcher with everything around it.
struct Delivery {
    let loop: any EventLoop
    let time = SimulatedTime()
    let source: FakeSource
    let settler = FakeSettler()
    let permits: NodePermits
    let dispatcher: Dispatcher

    static func hosts(_ addresses: [String]) -> MXPlan.Verdict {
        .hosts(
            addresses.enumerated().compactMap { index, text in
                IPAddress(text).map {
                    MXHost(preference: UInt16(index), name: Array("mx\(index).test".utf8), addresses: [$0])
                }
            })
    }

    init(
        port: Int, verdict: MXPlan.Verdict = hosts(["127.0.0.1"]), reader: FakeReader = FakeReader(),
        bodies: (any BodyReading)? = nil,
        nodeConnections: Int = 100, shares: (any PermitLeasing)? = nil, requeues: Bool = true,
        poolsMax: Int = DeliveryLimits.poolsPerLoop,
        configure: (inout DeliveryConfiguration) -> Void = { _ in }
    ) {
        loop = MultiThreadedEventLoopGroup.singleton.next()
        source = FakeSource(time: time, requeues: requeues)
        permits = NodePermits(connections: nodeConnections)
        var configuration = DeliveryConfiguration(hostname: Array("relay.test".utf8))
        configuration.port = UInt16(port)
        configuration.allowPrivateAddresses = true
        configure(&configuration)
        dispatcher = Dispatcher(
            loop: loop, configuration: configuration, source: source, settler: settler, reader: bodies ?? reader,
            planning: FakePlanning(verdict), permits: shares ?? permits, time: time,
            logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }), seed: 1, naming: nil,
            connector: SocketConnector(), poolsMax: poolsMax)
    }

    func visits() async -> Int { await dispatcher.visits }
    func poolCount() async -> Int { await dispatcher.poolCount }
    func scheduled() async -> Int { await dispatcher.scheduledCount }

    /// Makes messages ready: each an array of recipients. `resident`: with envelope and body at hand.
    func add(
        _ messages: [[String]], body: String = "a: b\r\n\r\nhello\r\n.dot\r\n", flags: EnvelopeFlags = [],
        resident: Bool = true
    ) {
        let bytes = Array(body.utf8)
        source.state.withLock { state in
            for recipients in messages {
                let envelope = makeEnvelope(recipients, body: bytes, flags: flags)
                let record = UInt32(state.ready.count)
                state.ready.append(
                    Transaction(
                        message: StoredMessageRef(segment: 1, record: record), destination: DestinationID(value: 1),
                        envelope: resident ? envelope : nil,
                        body: resident ? MessageBody(bytes: ByteBuffer(bytes: bytes), traits: envelope.traits) : nil,
                        recipients: recipients.indices.map {
                            PulledRecipient(
                                handle: JobHandle(slot: record, generation: 0), recipient: UInt32($0), attempts: 0)
                        }))
            }
        }
    }

    func route(_ domain: String = "example.test", destination: Int = 1) async {
        let dispatcher = dispatcher
        let id = DestinationID(value: UInt32(destination))
        try? await loop.submit { dispatcher.routeNeeded(id, domain: Domain(domain)) }.get()
    }

    func signal() async {
        let dispatcher = dispatcher
        let source = source
        try? await loop.submit {
            if let site = source.state.withLock({ $0.site }) { dispatcher.workReady(site, ready: 1) }
        }.get()
    }

    func pass(_ span: TimeSpan) async {
        time.advance(by: span)
        let dispatcher = dispatcher
        try? await loop.submit { dispatcher.assumeIsolated { $0.tick() } }.get()
    }

    /// All turns scheduled so far have run.
    func settle() async { for _ in 0..<3 { try? await loop.submit {}.get() } }

    func status() async -> SiteStatus? { try? await dispatcher.siteStatus().get().first }
}
