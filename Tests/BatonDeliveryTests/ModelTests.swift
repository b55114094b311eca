// The whole delivery side of a loop (dispatcher, pools, sessions, partition, settler) against a world that lies, by seed.
import BatonCore
import BatonDNS
import BatonMail
import BatonModel
import BatonQueue
import BatonRuntime
import BatonTestKit
import Logging
import NIOCore
import NIOEmbedded
import Testing

@testable import BatonDelivery

/// One run. Everything is on an embedded loop under a simulated clock: a seed is a history.
private final class World {
    let embedded = EmbeddedEventLoop()
    let loop: ModelLoop
    let time = SimulatedTime()
    let spool = ModelSpool()
    let network: ModelNetwork
    let partition: QueuePartition
    let source: CheckedSource
    let permits = NodePermits(connections: 6)
    let dispatcher: Dispatcher
    let settler: Settler
    var random: SplitMix64
    var sent = 0
    private let logger = Logger(label: "model", factory: { _ in SwiftLogNoOpLogHandler() })

    init(seed: UInt64) {
        random = SplitMix64(seed: seed)
        loop = ModelLoop(embedded)
        network = ModelNetwork(embedded)
        var queue = QueueConfiguration(seed: seed)
        queue.retry = RetrySchedule(first: .seconds(5), factor: 2, max: .minutes(2), jitter: 0.2)
        queue.expireAfter = .hours(2)
        queue.delayNoticeAfter = .minutes(20)
        partition = QueuePartition(
            index: 0, count: 1, home: LoopHome(loop), time: time, configuration: queue, logger: logger)
        source = CheckedSource(partition)
        settler = Settler(
            loop: loop, name: "model", configuration: settlerHost, time: time, submitter: spool, reader: spool,
            events: spool, outcomes: spool, source: source, logger: logger)
        var configuration = DeliveryConfiguration(hostname: Array("relay.test".utf8))
        configuration.allowPrivateAddresses = true
        configuration.connectionsPerSite = 3
        configuration.messagesPerConnection = 5
        configuration.recipientsPerTransaction = 2
        configuration.timeouts.idle = .seconds(30)
        configuration.sites = [
            SiteRule(match: .mxSuffix([Array("rated.test".utf8)]), name: Array("rated".utf8), messagesPerSecond: 2)
        ]
        dispatcher = Dispatcher(
            loop: loop, configuration: configuration, source: source, settler: settler, reader: spool,
            planning: ModelPlanning(), permits: permits, time: time, logger: logger, seed: seed, naming: nil,
            connector: network, poolsMax: 4)
        partition.bind(signalling: dispatcher)
        let partition = partition
        spool.accept = { partition.receive([$0]) }
        dispatcher.start()
        embedded.run()
    }

    func send() {
        sent += 1
        let count = 1 + Int(random.next() % 4)
        let domain = random.next() % 7
        let text = "a: b\r\n\r\n" + String(repeating: ".line of text\r\n", count: Int(random.next() % 40))
        let body = ByteBuffer(string: text)
        let envelope = Envelope(
            id: MessageID(high: 1, low: UInt64(sent)), arrival: time.now(), sender: MailAddress("s@d\(domain).test"),
            recipients: (0..<count).compactMap { index in
                MailAddress("r\(index)@d\((domain + UInt64(index) / 3) % 7).test").map {
                    EnvelopeRecipient(address: $0)
                }
            }, traits: .measured(body))
        let fragments = random.next() % 5 == 0 ? 1 + UInt32(random.next() % 3) : 0
        spool.store(envelope, body, fragments: fragments, resident: random.next() % 3 != 0)
    }

    func pass(_ span: TimeSpan) {
        time.advance(by: span)
        embedded.advanceTime(by: .nanoseconds(span.nanoseconds))
    }

    func step(healthy: Bool) {
        network.step(&random, healthy: healthy)
        spool.answer(&random, healthy: healthy)
        embedded.run()
    }

    var violations: [String] { source.violations + spool.violations }
}

/// d0 to d5 have sites of one or two hosts; d6's is `rated`.
private final class ModelPlanning: MXPlanning {
    func plan(_ domain: Domain, _ answer: @escaping @Sendable (MXPlan) -> Void) {
        let number = domain.bytes.dropFirst().first.map { Int($0) - 48 } ?? 0
        let names =
            number == 6
            ? ["mx.rated.test"] : number % 2 == 0 ? ["mx\(number).test"] : ["a\(number).test", "b\(number).test"]
        let hosts = names.enumerated().compactMap { index, name in
            IPAddress("192.0.2.\(10 * number + index + 1)").map {
                MXHost(preference: UInt16(index), name: Array(name.utf8), addresses: [$0])
            }
        }
        answer(MXPlan(verdict: .hosts(hosts), expires: .distantFuture, secure: false))
    }
    func planHost(_ name: Domain, _ answer: @escaping @Sendable (MXPlan) -> Void) { plan(name, answer) }
}

@Suite struct DeliveryModelTests {
    /// After any history of faults, in a world that works again: everything accepted has exactly one final outcome, nothing
    /// that was pulled is forgotten, and no permit or connection is left.
    @Test(arguments: UInt64(1)...8)
    func workOrPermitLost(seed: UInt64) {
        let world = World(seed: seed)
        for _ in 0..<1_500 {
            switch world.random.next() % 16 {
            case 0 where world.sent < 60: world.send()
            case 1: world.pass(.milliseconds(500))
            case 2: if world.random.next() % 8 == 0 { world.pass(.seconds(Int64(world.random.next() % 400))) }
            default: world.step(healthy: false)
            }
        }
        #expect(world.violations.isEmpty, "seed \(seed)")
        var rounds = 0
        while rounds < 60_000, world.partition.jobCount > 0 || world.spool.pending > 0 || world.network.open > 0 {
            rounds += 1
            for _ in 0..<4 { world.step(healthy: true) }
            world.pass(.milliseconds(rounds % 20 == 0 ? 5_000 : 500))
        }
        #expect(world.violations.isEmpty, "seed \(seed): \(world.violations.prefix(5))")
        #expect(world.partition.jobCount == 0, "seed \(seed): jobs left after \(rounds) rounds")
        #expect(world.source.out.isEmpty, "seed \(seed): pulled and never decided")
        #expect(world.permits.openConnections == 0, "seed \(seed): permits left")
        #expect(world.settler.outstanding == 0, "seed \(seed)")
        let recipients = world.spool.stored.values.reduce(0) { $0 + $1.envelope.recipients.count }
        #expect(world.spool.finals.count == recipients, "seed \(seed)")
        #expect(world.source.pulled > 60, "seed \(seed): the model does nothing")
    }

    /// A stop at any moment is done within its grace, and leaves nothing pulled that is not decided.
    @Test(arguments: UInt64(1)...8)
    func stopForgetsWork(seed: UInt64) {
        let world = World(seed: seed)
        for _ in 0..<30 { world.send() }
        for _ in 0..<Int(world.random.next() % 600) {
            if world.random.next() % 12 == 0 { world.pass(.milliseconds(500)) } else { world.step(healthy: false) }
        }
        let done = Collector<Bool>()
        world.dispatcher.shutDown(grace: .seconds(10)).whenSuccess { done.add(true) }
        for _ in 0..<24 {
            for _ in 0..<6 { world.step(healthy: false) }
            world.pass(.milliseconds(500))
        }
        #expect(done.all == [true], "seed \(seed): the stop hangs")
        #expect(world.source.out.isEmpty, "seed \(seed): pulled and never decided")
        #expect(world.violations.isEmpty, "seed \(seed): \(world.violations.prefix(5))")
        _ = world.network.open
        #expect(world.permits.openConnections == 0, "seed \(seed): permits left")
    }
}
