// baton-bench run: starts relay, sink and generator of a scenario, kills the relay if asked, and reconciles.
import ArgumentParser
import BatonCore
import CBatonSystem
import Glibc

struct RunCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run", abstract: "Runs a scenario and reconciles every accepted message by id and digest.",
        discussion: "Exit 0 when all bounds of `expect` hold (nothing lost, nothing altered), else 1.")

    @Argument(help: "The scenario file.") var scenario: String
    @Option(help: "Folder for spool, histories and logs; default: a new one here, removed when all went well.") var dir:
        String?
    @Option(help: "Where to write the result as JSON.") var json: String?
    @Option(help: "Folder of the baton binary; default: where this one is.") var bin: String?
    @Option(help: "In place of the scenario's number of kills.") var kills: Int?
    @Option(help: "In place of the scenario's number of messages.") var messages: Int?

    func run() throws {
        let text = try readFile(scenario)
        let stem = scenario.split(separator: "/").last.map(String.init) ?? scenario
        var plan = try Scenario(yaml: text, name: stem)
        if let kills { plan.kill?.times = kills }
        if let messages { plan.send += ["--messages", String(messages)] }
        let own = dir == nil
        let folder = dir ?? "bench-run-\(getpid())"
        if mkdir(folder, 0o755) != 0, errno != EEXIST { throw BenchError.system("mkdir \(folder)", errno) }
        // Paths in a relay's configuration are relative to its own folder, so the placeholder is written in full.
        guard let resolved = realpath(folder, nil) else { throw BenchError.system("realpath \(folder)", errno) }
        defer { free(resolved) }
        let full = String(cString: resolved)
        var runner = try ScenarioRunner(plan, folder: full, bin: bin ?? ownFolder())
        let result = try runner.run()
        try result.json.write(to: json)
        say(result.text)
        if result.failures.isEmpty {
            if own { removeTree(folder) }
        } else {
            say("kept for inspection: \(folder)")
            throw ExitCode(1)
        }
    }

    private func ownFolder() -> String {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let length = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        guard length > 0 else { return "." }
        let path = String(decoding: buffer.prefix(length).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
    }
}

struct ReconcileCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "reconcile", abstract: "Joins the histories of a sender and a sink.")

    @Argument(help: "History of `send`.") var sent: String
    @Argument(help: "History of `sink`.") var received: String
    @Option(help: "Where to write the verdict as JSON.") var json: String?

    func run() throws {
        var reconciler = Reconciler()
        var sender = try HistoryReader(path: sent)
        try sender.forEachNew { reconciler.sent($0) }
        reconciler.sealSent()
        var sink = try HistoryReader(path: received)
        try sink.forEachNew { reconciler.got($0) }
        let verdict = reconciler.verdict()
        try verdict.json.write(to: json)
        say(verdict.text)
        if verdict.lost > 0 || verdict.altered > 0 { throw ExitCode(1) }
    }
}

/// What a scenario came to.
struct ScenarioResult {
    let name: String
    let verdict: Verdict
    let failures: [String]
    let kills: Int
    let account: KillAccount
    let relayCPU: Double
    let send: String
    let sink: String

    var json: JSONValue {
        var system = utsname()
        uname(&system)
        let kernel = withUnsafeBytes(of: &system.release) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        let perMessage = verdict.delivered > 0 ? relayCPU * 1e6 / Double(verdict.delivered) : 0
        return .object([
            ("scenario", .string(name)), ("ok", .boolean(failures.isEmpty)),
            ("failures", .array(failures.map { .string($0) })), ("verdict", verdict.json), ("kills", .integer(kills)),
            ("duplicates", account.json),
            ("relay_cpu_seconds", .number(relayCPU)), ("relay_cpu_microseconds_per_message", .number(perMessage)),
            ("send", .string(send)), ("sink", .string(sink)), ("kernel", .string(kernel)),
            ("cpus", .integer(Int(sysconf(Int32(_SC_NPROCESSORS_ONLN))))),
        ])
    }

    var text: String {
        var lines = ["\(name): \(failures.isEmpty ? "ok" : "FAILED")", verdict.text]
        if kills > 0 {
            lines.append("kills \(kills), duplicates " + account.json.text)
        }
        if relayCPU > 0, verdict.delivered > 0 {
            lines.append("relay CPU \(Int(relayCPU * 1e6 / Double(verdict.delivered))) us a message")
        }
        return (lines + failures).joined(separator: "\n")
    }
}

/// Runs one scenario in a folder.
struct ScenarioRunner {
    private let plan: Scenario
    private let folder: String
    private let bin: String
    private let relayPort: Int
    private let sinkPort: Int
    private let adminPort: Int
    private var random: SplitMix64

    init(_ plan: Scenario, folder: String, bin: String) throws {
        self.plan = plan
        self.folder = folder
        self.bin = bin
        self.relayPort = try Ports.free()
        self.sinkPort = try Ports.free()
        self.adminPort = try Ports.free()
        let seed = UInt64(bitPattern: baton_clock_realtime())
        say("seed of the kills: \(seed)")
        self.random = SplitMix64(seed: seed)
    }

    private func filled(_ text: String) -> String {
        var result = text
        let values = [
            ("{dir}", folder), ("{bin}", bin), ("{relay_port}", "\(relayPort)"), ("{sink_port}", "\(sinkPort)"),
            ("{admin_port}", "\(adminPort)"),
        ]
        for (mark, value) in values { result = result.replacing(mark, with: value) }
        return result
    }

    mutating func run() throws -> ScenarioResult {
        let signals = StopSignals()
        let sent = "\(folder)/sent.history"
        let received = "\(folder)/received.history"
        let target = plan.command.isEmpty ? sinkPort : relayPort
        let sinkWords =
            ["sink", "--listen", "127.0.0.1:\(sinkPort)", "--history", received, "--json", "\(folder)/sink.json"]
            + plan.sink.map(filled)
        let sendWords =
            ["send", "--to", "127.0.0.1:\(target)", "--history", sent, "--json", "\(folder)/send.json"]
            + plan.send.map(filled)
        // A misspelt option is found before anything is started.
        _ = try BatonBench.parseAsRoot(sinkWords)
        _ = try BatonBench.parseAsRoot(sendWords)
        if let configuration = plan.configuration {
            try writeFile("\(folder)/relay.yaml", filled(configuration))
        }
        let bench = "/proc/self/exe"
        var sink = try ChildProcess([bench] + sinkWords, log: "\(folder)/sink.log")
        defer { sink.stop(grace: 5_000_000_000) }
        try waitForGreeting(sinkPort, 10_000_000_000, "the sink")
        var cpu = 0.0
        var kills: [Int64] = []
        let command = plan.command.map(filled)
        var relay: Relay? =
            command.isEmpty ? nil : Relay(process: try ChildProcess(command, log: "\(folder)/relay.log"))
        if relay != nil {
            do { try waitForGreeting(relayPort, plan.ready, "the relay (see \(folder)/relay.log)") } catch {
                stop(&relay, &cpu)
                throw error
            }
        }
        var sender = try ChildProcess([bench] + sendWords, log: "\(folder)/send.log")
        var nextKill = relay == nil ? nil : killTime()
        while !sender.hasEnded() {
            if signals.wait(milliseconds: 10) {
                sender.kill9()
                stop(&relay, &cpu)
                throw BenchError("interrupted")
            }
            if let due = nextKill, baton_clock_monotonic() >= due, let wanted = plan.kill, kills.count < wanted.times {
                if wanted.gently { relay?.process.stop(grace: 30_000_000_000) } else { relay?.process.kill9() }
                kills.append(baton_clock_monotonic())
                cpu += relay?.process.cpuSeconds ?? 0
                relay = Relay(process: try ChildProcess(command, log: "\(folder)/relay.log"))
                nextKill = killTime()
            } else if relay?.process.hasEnded() == true {
                sender.kill9()
                throw BenchError(
                    "the relay ended by itself, exit \(relay?.process.exitCode ?? -1): see \(folder)/relay.log")
            }
        }
        var reconciler = Reconciler()
        var senderHistory = try HistoryReader(path: sent)
        try senderHistory.forEachNew { reconciler.sent($0) }
        reconciler.sealSent()
        var sinkHistory = try HistoryReader(path: received)
        let deadline = baton_clock_monotonic() + plan.settle
        repeat {
            try sinkHistory.forEachNew { reconciler.got($0) }
            if reconciler.outstanding == 0 || relay?.process.hasEnded() == true { break }
        } while baton_clock_monotonic() < deadline && !signals.wait(milliseconds: 50)
        stop(&relay, &cpu)
        sink.stop(grace: 5_000_000_000)
        try sinkHistory.forEachNew { reconciler.got($0) }
        let verdict = reconciler.verdict()
        let account = KillAccount(repeated: reconciler.repeated, kills: kills)
        var failures = Self.failures(verdict, plan.expect, account)
        if let code = sender.exitCode, code != 0 {
            failures.append("the generator ended with \(code): see \(folder)/send.log")
        }
        return ScenarioResult(
            name: plan.name, verdict: verdict, failures: failures, kills: kills.count,
            account: account, relayCPU: cpu,
            send: (try? readFile("\(folder)/send.json")) ?? "", sink: (try? readFile("\(folder)/sink.json")) ?? "")
    }

    /// A box, since an optional of a noncopyable cannot be changed in place.
    private final class Relay {
        var process: ChildProcess
        init(process: consuming ChildProcess) { self.process = process }
    }

    private func stop(_ relay: inout Relay?, _ cpu: inout Double) {
        relay?.process.stop(grace: 30_000_000_000)
        cpu += relay?.process.cpuSeconds ?? 0
        relay = nil
    }

    private mutating func killTime() -> Int64? {
        guard let kill = plan.kill else { return nil }
        return baton_clock_monotonic() + kill.low + Int64(Double(kill.high - kill.low) * random.unit())
    }

    private func waitForGreeting(_ port: Int, _ span: Int64, _ who: String) throws {
        let deadline = baton_clock_monotonic() + span
        while !Ports.greets(port) {
            if baton_clock_monotonic() > deadline { throw BenchError("\(who) does not greet on port \(port)") }
            usleep(20_000)
        }
    }

    /// Which bounds do not hold.
    static func failures(
        _ verdict: Verdict, _ expect: [String: Double],
        _ account: KillAccount = KillAccount(repeated: [], kills: [])
    ) -> [String] {
        var p99 = 0.0
        if case .object(let pairs) = verdict.latency,
            case .number(let value)? = pairs.first(where: { $0.0 == "p99" })?.1
        {
            p99 = value
        }
        return expect.sorted { $0.key < $1.key }.compactMap { name, bound in
            let (value, isFloor): (Double, Bool) =
                switch name {
                case "lost": (Double(verdict.lost), false)
                case "altered": (Double(verdict.altered), false)
                case "duplicated": (Double(verdict.duplicated), false)
                case "unexplained": (Double(account.unexplained), false)
                case "bounced": (Double(verdict.bounced), false)
                case "refused": (Double(verdict.refused), false)
                case "unexpected": (Double(verdict.unexpected), false)
                case "delivered_and_bounced": (Double(verdict.deliveredAndBounced), false)
                case "max_p99_ms": (p99, false)
                case "min_rate": (verdict.endToEndRate, true)
                default: (Double(verdict.delivered), true)
                }
            let holds = isFloor ? value >= bound : value <= bound
            return holds ? nil : "\(name): \(value), expected \(isFloor ? "at least" : "at most") \(bound)"
        }
    }
}

/// A whole small file; more than 16 MiB is refused.
func readFile(_ path: String) throws -> String {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw BenchError.system("open \(path)", errno) }
    defer { _ = close(descriptor) }
    var bytes: [UInt8] = []
    var block = [UInt8](repeating: 0, count: 64 * 1024)
    while true {
        let got = read(descriptor, &block, block.count)
        if got < 0 { throw BenchError.system("read \(path)", errno) }
        if got == 0 { break }
        bytes.append(contentsOf: block.prefix(got))
        if bytes.count > 16 * 1024 * 1024 { throw BenchError("\(path) is too large") }
    }
    return String(decoding: bytes, as: UTF8.self)
}

func writeFile(_ path: String, _ text: String) throws {
    let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    guard descriptor >= 0 else { throw BenchError.system("open \(path)", errno) }
    defer { _ = close(descriptor) }
    let failure = Array(text.utf8).withUnsafeBytes { writeAll(descriptor, $0) }
    if failure != 0 { throw BenchError.system("write \(path)", failure) }
}

/// Removes a folder that this process made.
func removeTree(_ path: String) {
    guard let folder = opendir(path) else {
        unlink(path)
        return
    }
    defer { closedir(folder) }
    while let entry = readdir(folder) {
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        if name == "." || name == ".." { continue }
        let full = "\(path)/\(name)"
        if entry.pointee.d_type == UInt8(DT_DIR) { removeTree(full) } else { unlink(full) }
    }
    rmdir(path)
}
