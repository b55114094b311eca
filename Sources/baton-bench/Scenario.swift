// Scenario files: which relay to start, how the sink behaves, what is sent, what must hold.
import Yams

/// A parsed scenario. `{dir}`, `{bin}`, `{relay_port}`, `{sink_port}` and `{admin_port}` in commands, configuration and options
/// are filled in by the runner.
struct Scenario {
    struct Kill: Equatable {
        /// Random time between two kills, from and to (nanoseconds).
        var low: Int64
        var high: Int64
        var times: Int
        /// SIGTERM in place of SIGKILL.
        var gently: Bool
    }

    var name: String
    /// Empty: the generator sends straight into the sink.
    var command: [String] = []
    var configuration: String?
    /// How long the relay may take until it greets.
    var ready: Int64 = 30_000_000_000
    var kill: Kill?
    /// Options of `sink` and `send` as command-line words.
    var sink: [String] = []
    var send: [String] = []
    /// How long after the last accepted message everything may take to arrive.
    var settle: Int64 = 60_000_000_000
    /// Bounds of the verdict, by the names of the JSON; `min_rate` and `max_p99_ms` beside them.
    var expect: [String: Double] = ["lost": 0, "altered": 0]

    static let keys: Set<String> = ["name", "about", "relay", "sink", "send", "settle", "expect"]
    static let relayKeys: Set<String> = ["command", "config", "ready", "kill"]
    static let expectKeys: Set<String> = [
        "lost", "altered", "duplicated", "unexplained", "bounced", "refused", "unexpected", "delivered_and_bounced",
        "min_rate",
        "max_p99_ms", "min_delivered",
    ]

    init(yaml: String, name fallback: String) throws {
        guard let root = try Yams.compose(yaml: yaml)?.mapping else { throw BenchError("a scenario is a mapping") }
        name = fallback
        for (key, value) in root {
            let word = key.string ?? ""
            guard Self.keys.contains(word) else { throw BenchError("unknown key \(word)") }
            switch word {
            case "name": name = try Self.text(value, word)
            case "relay": try relay(value)
            case "sink": sink = try Self.words(value, word)
            case "send": send = try Self.words(value, word)
            case "settle": settle = try Self.span(value, word)
            case "expect":
                expect = ["lost": 0, "altered": 0]
                for (key, bound) in value.mapping ?? [:] {
                    guard let name = key.string, Self.expectKeys.contains(name), let number = bound.float else {
                        throw BenchError("expect: \(key.string ?? "?") is no bound")
                    }
                    expect[name] = number
                }
            default: break
            }
        }
        guard !send.isEmpty else { throw BenchError("a scenario needs send:") }
    }

    private mutating func relay(_ node: Node) throws {
        guard let mapping = node.mapping else { throw BenchError("relay: a mapping") }
        for (key, value) in mapping {
            let word = key.string ?? ""
            guard Self.relayKeys.contains(word) else { throw BenchError("relay: unknown key \(word)") }
            switch word {
            case "command":
                guard let list = value.sequence else { throw BenchError("relay: command is a list of words") }
                command = try list.map { try Self.text($0, word) }
            case "config": configuration = try Self.text(value, word)
            case "ready": ready = try Self.span(value, word)
            default: kill = try Self.kill(value)
            }
        }
    }

    private static func kill(_ node: Node) throws -> Kill {
        var kill = Kill(low: 1_000_000_000, high: 3_000_000_000, times: 10, gently: false)
        for (key, value) in node.mapping ?? [:] {
            let written = try text(value, "kill")
            switch key.string ?? "" {
            case "every":
                let parts = written.split(separator: "-").compactMap { SpanOption(argument: String($0)) }
                guard let first = parts.first, let last = parts.last, last.nanoseconds >= first.nanoseconds else {
                    throw BenchError("kill: every is 1s or 1s-3s")
                }
                kill.low = first.nanoseconds
                kill.high = last.nanoseconds
            case "times":
                guard let times = Int(written), times >= 1, times <= 10_000 else { throw BenchError("kill: times") }
                kill.times = times
            case "signal":
                guard written == "KILL" || written == "TERM" else { throw BenchError("kill: signal is KILL or TERM") }
                kill.gently = written == "TERM"
            default: throw BenchError("kill: unknown key \(key.string ?? "?")")
            }
        }
        return kill
    }

    /// `{latency: 5ms, temp-fail: [rcpt=0.1]}` as `--latency 5ms --temp-fail rcpt=0.1`; `true` is a bare flag, `false` its `--no-` form.
    private static func words(_ node: Node, _ name: String) throws -> [String] {
        if node.null != nil { return [] }
        guard let mapping = node.mapping else { throw BenchError("\(name): a mapping") }
        var words: [String] = []
        for (key, value) in mapping {
            let option = try text(key, name)
            for item in value.sequence.map(Array.init) ?? [value] {
                let written = try text(item, option)
                switch written {
                case "true": words.append("--\(option)")
                case "false": words.append("--no-\(option)")
                default: words += ["--\(option)", written]
                }
            }
        }
        return words
    }

    private static func text(_ node: Node, _ name: String) throws -> String {
        guard let text = node.scalar?.string else { throw BenchError("\(name): a word") }
        return text
    }

    private static func span(_ node: Node, _ name: String) throws -> Int64 {
        guard let span = SpanOption(argument: try text(node, name)) else {
            throw BenchError("\(name): a time such as 30s")
        }
        return span.nanoseconds
    }
}
