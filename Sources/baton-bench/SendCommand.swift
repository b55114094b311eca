// baton-bench send: the load generator.
import ArgumentParser
import BatonCore
import CBatonSystem
import Glibc
import Histogram
import NIOCore
import NIOPosix
import Synchronization

extension BodyStyle: ExpressibleByArgument {}

struct SendCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "send", abstract: "Sends generated mail, and records what the relay answered for it.",
        discussion: """
            Without --rate each session sends as fast as it is answered (closed loop); with it messages are due at even \
            intervals and latency counts from the due time (open loop). A connection lost before the final dot sends its \
            message again; after it the message is in doubt and is not sent again.
            """)

    @Option(help: "The relay: host:port or unix:/path.") var to = EndpointOption(argument: "127.0.0.1:2525")!
    @Option(help: "Messages to send.") var messages: Int?
    @Option(help: "Time to send for, if not a number of messages.") var duration: SpanOption?
    @Option(help: "Connections at most.") var sessions = 20
    @Option(help: "Messages a second (open loop).") var rate: Double?
    @Option(help: "Octets of a message: 5KiB, or a range 1KiB-100KiB.") var size = SizeOption(5120)
    @Option(help: "Kind of bodies: text or base64.") var body = BodyStyle.text
    @Option(help: "Recipients of a message, 1 or 1-10.") var recipients = CountOption(1)
    @Option(help: "The domain, or what all domains end in.") var domain = "example.test"
    @Option(help: "How many domains: d0.<domain>, d1.<domain> and so on.") var domains = 1
    @Option(help: "Exponent of Zipf's law over the domains.") var zipf = 1.0
    @Option(help: "Envelope sender and From.") var from = "bench@bench.example"
    @Option(help: "Name in EHLO.") var hostname = "bench.example"
    @Option(help: "QUIT after so many messages; 0: keep the connection.") var messagesPerConnection = 0
    @Option(help: "Seed of all chances.") var seed: UInt64 = 1
    @Option(name: .customLong("run"), help: "Number of the run, in every id; default: from the clock.") var runNumber:
        UInt32?
    @Option(help: "Event loops.") var loops = 1
    @Option(help: "Longest wait for a reply.") var timeout = SpanOption(nanoseconds: 60_000_000_000)
    @Option(help: "End when connections have failed for so long.") var giveUp = SpanOption(nanoseconds: 10_000_000_000)
    @Option(help: "Where to record every message and recipient.") var history: String?
    @Option(help: "Where to write the counts as JSON at the end.") var json: String?
    @Flag(inversion: .prefixedNo, help: "Use PIPELINING where offered.") var pipelining = true

    func validate() throws {
        guard loops >= 1, loops <= 64 else { throw ValidationError("--loops is 1 to 64") }
        guard sessions >= 1, sessions <= 50_000 else { throw ValidationError("--sessions is 1 to 50000") }
        guard domains >= 1, domains <= 1_000_000 else { throw ValidationError("--domains is 1 to 1000000") }
        if let rate, !(rate > 0) { throw ValidationError("--rate is above 0") }
        if let messages, messages < 1 || messages > 1_000_000_000 { throw ValidationError("--messages is 1 to 10^9") }
        guard messages != nil || duration != nil else { throw ValidationError("say --messages or --duration") }
    }

    func run() throws {
        let signals = StopSignals()
        _ = baton_raise_file_limit()
        let writer = try history.map { try HistoryWriter(path: $0) }
        let shared = SendShared(history: writer)
        var behaviour = SendBehaviour()
        behaviour.hostname = hostname
        behaviour.sender = from
        behaviour.pipelining = pipelining
        behaviour.messagesPerConnection = messagesPerConnection
        let plan = SendPlan(
            endpoint: to, sessions: sessions, messages: messages, duration: duration?.nanoseconds, rate: rate,
            timeout: timeout.nanoseconds, giveUp: giveUp.nanoseconds, behaviour: behaviour)
        let count = max(1, min(loops, sessions, messages ?? Int.max))
        let group = MultiThreadedEventLoopGroup(numberOfThreads: count)
        let run = runNumber ?? UInt32(truncatingIfNeeded: baton_clock_realtime() / 1_000_000)
        shared.state.withLock { $0.running = count }
        for (number, loop) in group.makeIterator().enumerated() {
            let factory = MessageFactory(
                run: run, seed: SplitMix64.mix(seed) ^ UInt64(number), sender: from, recipients: recipients,
                domains: domains,
                zipf: zipf, domain: domain, size: size, style: body)
            loop.execute {
                SendLoop(plan, shared, loop, number: number, of: count, factory: factory).start()
            }
        }
        while shared.state.withLock({ $0.running }) > 0 {
            if signals.wait(milliseconds: 10) { shared.stop.store(true, ordering: .relaxed) }
            writer?.flush()
        }
        try writer?.close()
        let totals = shared.state.withLock { $0.totals }
        let report = totals.json(run: run)
        try report.write(to: json)
        say(report.text)
        try group.syncShutdownGracefully()
        if totals.unsent > 0 { throw ExitCode(1) }
    }
}

extension SendTotals {
    func json(run: UInt32) -> JSONValue {
        let seconds = Double(max(last - first, 1)) / 1e9
        return .object([
            ("run", .integer(Int(run))), ("accepted_messages", .integer(acceptedMessages)),
            ("accepted_recipients", .integer(accepted)), ("refused_recipients", .integer(refused)),
            ("in_doubt_recipients", .integer(inDoubt)), ("unsent_messages", .integer(unsent)),
            ("octets", .integer(Int(clamping: octets))), ("seconds", .number(seconds)),
            ("messages_per_second", .number(Double(acceptedMessages) / seconds)),
            ("accept_latency", latency.json), ("connections", .integer(connections)),
            ("connect_failures", .integer(connectFailures)), ("lost_connections", .integer(lostConnections)),
            ("refusals", .object(codes.sorted { $0.key < $1.key }.map { (String($0.key), .integer($0.value)) })),
            ("last_error", .string(lastError)),
            ("cpu_seconds", .number(Double(baton_process_cpu_microseconds()) / 1e6)),
        ])
    }
}

extension Histogram {
    /// Milliseconds of a histogram of microseconds.
    var json: JSONValue {
        guard totalCount > 0 else { return .null }
        func at(_ percentile: Double) -> JSONValue { .number(Double(valueAtPercentile(percentile)) / 1000) }
        return .object([
            ("unit", .string("ms")), ("count", .integer(Int(clamping: totalCount))), ("mean", .number(mean / 1000)),
            ("p50", at(50)), ("p90", at(90)), ("p99", at(99)), ("p99_9", at(99.9)),
            ("max", .number(Double(max) / 1000)),
        ])
    }
}
