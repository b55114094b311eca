// baton-bench sink: takes mail, misbehaves as told, records ids and digests.
import ArgumentParser
import BatonCore
import CBatonSystem
import Glibc
import NIOPosix
import Synchronization

struct SinkCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sink", abstract: "A receiving server that records what it got.",
        discussion:
            "Rates are stage=rate; stages: connect, ehlo, mail, rcpt, data, body, dot. Stops on SIGINT or SIGTERM.")

    @Option(help: "host:port (port 0 picks one) or unix:/path.") var listen = EndpointOption(
        argument: "127.0.0.1:2526")!
    @Option(help: "Event loops.") var loops = 1
    @Option(help: "Where to record every message and recipient.") var history: String?
    @Option(help: "Folder for whole messages (.eml) and envelopes (.env).") var keep: String?
    @Flag(help: "With --keep: only mail that `send` did not make.") var keepForeign = false
    @Option(help: "Where to write the counts as JSON at the end.") var json: String?
    @Option(help: "Name in the greeting.") var hostname = "sink.example"
    @Option(help: "Wait before every reply.") var latency = SpanOption.zero
    @Option(help: "Wait before the reply to the end of data.") var dotLatency: SpanOption?
    @Option(help: "Rate of 4xx replies at a stage.") var tempFail: [StageRateOption] = []
    @Option(help: "Rate of 5xx replies at a stage.") var permFail: [StageRateOption] = []
    @Option(help: "Rate of dropped connections at a stage: body is before the dot, dot after it.") var drop:
        [StageRateOption] = []
    @Option(help: "Rate of replies that are slow.") var slowRate = 0.0
    @Option(help: "How slow they are.") var slowBy = SpanOption(nanoseconds: 5_000_000_000)
    @Option(help: "More connections get 421.") var maxConnections = 100_000
    @Option(help: "421 after so many messages on a connection; 0: no limit.") var messagesPerConnection = 0
    @Option(help: "452 to more recipients in a message.") var recipientsPerMessage = 1000
    @Option(help: "Seed of all chances.") var seed: UInt64 = 1
    @Option(help: "Stop after so many accepted messages.") var messages: Int?
    @Flag(inversion: .prefixedNo, help: "Offer PIPELINING.") var pipelining = true
    @Flag(inversion: .prefixedNo, help: "Offer CHUNKING.") var chunking = true
    @Flag(name: .customLong("8bitmime"), inversion: .prefixedNo, help: "Offer 8BITMIME.") var eightBit = true
    @Flag(name: .customLong("smtputf8"), inversion: .prefixedNo, help: "Offer SMTPUTF8.") var smtpUTF8 = true
    @Flag(inversion: .prefixedNo, help: "Offer DSN.") var dsn = true
    @Flag(help: "Speak LMTP: a reply per recipient after the dot.") var lmtp = false

    func validate() throws {
        guard loops >= 1, loops <= 64 else { throw ValidationError("--loops is 1 to 64") }
        guard slowRate >= 0, slowRate <= 1 else { throw ValidationError("--slow-rate is 0 to 1") }
    }

    var behaviour: SinkBehaviour {
        var behaviour = SinkBehaviour()
        behaviour.hostname = hostname
        behaviour.pipelining = pipelining
        behaviour.chunking = chunking
        behaviour.eightBitMIME = eightBit
        behaviour.smtpUTF8 = smtpUTF8
        behaviour.dsn = dsn
        behaviour.lmtp = lmtp
        behaviour.latency = latency.nanoseconds
        behaviour.dotLatency = dotLatency?.nanoseconds
        behaviour.slowRate = slowRate
        behaviour.slowBy = slowBy.nanoseconds
        behaviour.messagesPerConnection = messagesPerConnection
        behaviour.recipientsPerMessage = recipientsPerMessage
        behaviour.seed = seed
        behaviour.keepsWhole = keep != nil
        behaviour.keepsForeignOnly = keepForeign
        for option in tempFail { behaviour.temporary[option.stage] = option.rate }
        for option in permFail { behaviour.permanent[option.stage] = option.rate }
        for option in drop { behaviour.drops[option.stage] = option.rate }
        return behaviour
    }

    func run() throws {
        let signals = StopSignals()
        _ = baton_raise_file_limit()
        if let keep, mkdir(keep, 0o755) != 0, errno != EEXIST { throw BenchError.system("mkdir \(keep)", errno) }
        let writer = try history.map { try HistoryWriter(path: $0) }
        let shared = SinkShared(behaviour, maxConnections: maxConnections, history: writer, keepFolder: keep)
        let server = try SinkServer(shared, endpoint: listen, loops: loops)
        let place = server.port.map { "port \($0)" } ?? listen.description
        say("baton-bench sink ready on \(place)")
        while !signals.wait(milliseconds: 20) {
            writer?.flush()
            shared.counts.withLock { $0.peak = max($0.peak, $0.open) }
            if let messages, shared.counts.withLock({ $0.messages }) >= messages { break }
        }
        try server.stop()
        try writer?.close()
        let counts = shared.counts.withLock { $0 }
        let seconds = Double(counts.last - counts.first) / 1e9
        let report = JSONValue.object([
            ("messages", .integer(counts.messages)), ("recipients", .integer(counts.recipients)),
            ("unanswered", .integer(counts.unanswered)), ("reports", .integer(counts.reports)),
            ("foreign", .integer(counts.foreign)), ("octets", .integer(Int(clamping: counts.octets))),
            ("connections", .integer(counts.connections)), ("connections_peak", .integer(counts.peak)),
            ("seconds", .number(seconds)),
            ("messages_per_second", .number(seconds > 0 ? Double(counts.messages) / seconds : 0)),
            ("cpu_seconds", .number(Double(baton_process_cpu_microseconds()) / 1e6)),
        ])
        try report.write(to: json)
        say(report.text)
    }
}

/// SIGINT and SIGTERM, blocked in every thread and waited for by the main one. Make it before any other thread.
struct StopSignals {
    private var set = sigset_t()

    init() {
        sigemptyset(&set)
        sigaddset(&set, SIGINT)
        sigaddset(&set, SIGTERM)
        pthread_sigmask(SIG_BLOCK, &set, nil)
        signal(SIGPIPE, SIG_IGN)
    }

    /// True when one of them came within the time.
    func wait(milliseconds: Int) -> Bool {
        var span = timespec(tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000)
        var copy = set
        return sigtimedwait(&copy, nil, &span) > 0
    }
}

/// A line on standard output, at once.
func say(_ text: String) {
    let bytes = Array(text.utf8) + [0x0a]
    _ = bytes.withUnsafeBytes { writeAll(1, $0) }
}
