// Programs under test and around them: started with a log, ended with the test.
import Foundation
import Testing

@testable import baton_bench

/// A started program that does not outlive its owner.
final class Program {
    private var child: ChildProcess
    let log: String

    init(_ command: [String], log: String) throws {
        self.log = log
        self.child = try ChildProcess(command, log: log)
    }

    deinit { child.stop(grace: 2_000_000_000) }

    var pid: pid_t { child.pid }
    var output: String { (try? String(contentsOfFile: log, encoding: .utf8)) ?? "" }
    func hasEnded() -> Bool { child.hasEnded() }
    var exitCode: Int? { child.exitCode }
    func kill9() { child.kill9() }
    func signal(_ number: Int32) { child.signal(number) }

    /// The exit code, once it ended by itself.
    func wait(_ seconds: Double = 30) throws -> Int {
        try eventually("the end of pid \(pid); its output:\n\(output)", within: seconds) { hasEnded() }
        return exitCode ?? -1
    }

    /// SIGTERM, and the exit code.
    func terminate(_ seconds: Double = 30) throws -> Int {
        signal(SIGTERM)
        return try wait(seconds)
    }

    /// Runs to its end; returns exit code and output.
    static func run(_ command: [String], in folder: TestFolder, seconds: Double = 60) throws -> (
        code: Int, output: String
    ) {
        let log = "\(folder.path)/run-\(UInt32.random(in: 0...UInt32.max)).log"
        let program = try Program(command, log: log)
        let code = try program.wait(seconds)
        return (code, program.output)
    }
}

/// A `baton serve` on ports of its own.
final class BatonProcess {
    let folder: TestFolder
    let port: Int
    let admin: Int
    let data: String
    private(set) var program: Program
    private let command: [String]
    private var sections: [String: String]
    /// Banners in the log so far: each start appends one.
    private var starts = 0

    /// `sections` replaces top-level keys of the configuration, written in YAML's flow form. `wrap` goes before the command.
    init(
        _ folder: TestFolder, sections: [String: String] = [:], wrap: [String] = [], data: String? = nil,
        ready: Double = 30
    ) throws {
        self.folder = folder
        port = try Ports.free()
        admin = try Ports.free()
        self.data = data ?? "\(folder.path)/data"
        var all = [
            "node": "{ id: test, hostname: relay.example, data_dir: \"\(self.data)\", shutdown_grace: 5s }",
            "listeners": "[{ address: \"127.0.0.1:\(port)\", service: relay }]",
            "admin": "{ address: \"127.0.0.1:\(admin)\" }",
            "spool": "{ min_free: 16MiB }",
            "queue": "{ retry: { first: 1s, factor: 1.5, max: 3s, jitter: 0.2 } }",
        ]
        all.merge(sections) { _, new in new }
        self.sections = all
        command = wrap + [Places.baton, "serve", "--config", "\(folder.path)/baton.yaml"]
        try Self.write(all, in: folder)
        program = try Program(command, log: "\(folder.path)/baton.log")
        try waitUntilServing(ready)
    }

    static func route(_ port: Int, protocol name: String = "smtp") -> String {
        "[{ domain: \"*\", next_hop: \"\(name)://127.0.0.1:\(port)\" }]"
    }

    private static func write(_ sections: [String: String], in folder: TestFolder) throws {
        let text = sections.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)\n" }.joined()
        try folder.write("baton.yaml", text)
    }

    private var banners: [String] {
        program.output.split(separator: "\n").map(String.init).filter { $0.contains(" serving: node=") }
    }
    /// The banner of the latest start.
    var banner: String { banners.last ?? "" }

    /// The banner comes last of all: listeners and admin HTTP are there.
    private func waitUntilServing(_ seconds: Double) throws {
        try eventually("baton's banner; its output:\n\(program.output)", within: seconds) {
            if program.hasEnded() {
                throw Waited(description: "baton ended, exit \(program.exitCode ?? -1): \(program.output)")
            }
            return banners.count > starts
        }
        starts = banners.count
    }

    func start() throws {
        program = try Program(command, log: "\(folder.path)/baton.log")
        try waitUntilServing(60)
    }

    /// Sections replaced in the file, SIGHUP, and what the log says of it; `line` is part of the last line to wait for.
    @discardableResult
    func reload(_ changed: [String: String], until line: String) throws -> String {
        sections.merge(changed) { _, new in new }
        try Self.write(sections, in: folder)
        let before = program.output.utf8.count
        program.signal(SIGHUP)
        func news() -> String { String(decoding: program.output.utf8.dropFirst(before), as: UTF8.self) }
        try eventually("\(line) in:\n\(news())") { news().contains(line) }
        return news()
    }

    func kill9() { program.kill9() }

    func client() throws -> Dialogue { try Dialogue(port: port) }

    /// Hands over one message; throws what was said if it was not accepted. Returns its id.
    @discardableResult
    func accept(from sender: String = "s@client.example", to recipients: [String], _ message: [UInt8]) throws -> String
    {
        let answer = try client().deliver(from: sender, to: recipients, message)
        guard answer.hasPrefix("250 2.0.0 Ok: queued as ") else { throw Waited(description: "not accepted: \(answer)") }
        return String(answer.dropFirst("250 2.0.0 Ok: queued as ".count))
    }

    /// What the admin address answers.
    func get(_ path: String) throws -> String {
        let token = (try? String(contentsOfFile: "\(data)/admin.token", encoding: .utf8))?.trimmingCharacters(
            in: .whitespacesAndNewlines)
        let header = token.map { ["-H", "Authorization: Bearer \($0)"] } ?? []
        return try Program.run(
            ["curl", "-sS", "--max-time", "10", "-w", "\nstatus %{http_code}\n"] + header + [
                "http://127.0.0.1:\(admin)\(path)"
            ], in: folder
        ).output
    }

    /// `baton WORDS` about this node; throws its output unless it ends with 0.
    @discardableResult
    func command(_ words: String...) throws -> String {
        let run = try Program.run(
            [Places.baton] + words + ["--config", "\(folder.path)/baton.yaml"], in: folder)
        guard run.code == 0 else { throw Waited(description: "\(words) ended with \(run.code): \(run.output)") }
        return run.output
    }

    /// The number of the thread whose name begins so.
    func thread(named name: String) throws -> Int? {
        let tasks = "/proc/\(program.pid)/task"
        for task in try FileManager.default.contentsOfDirectory(atPath: tasks) {
            let found = (try? String(contentsOfFile: "\(tasks)/\(task)/comm", encoding: .utf8)) ?? ""
            if found.hasPrefix(name) { return Int(task) }
        }
        return nil
    }

    /// The node's events of one type, oldest first.
    func events(_ type: String) throws -> [[String: Any]] {
        let folder = "\(data)/events"
        let files = ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).sorted()
        var found: [[String: Any]] = []
        for file in files {
            let text = (try? String(contentsOfFile: "\(folder)/\(file)", encoding: .utf8)) ?? ""
            for line in text.split(separator: "\n") {
                guard let event = try? JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any] else {
                    continue
                }
                if event["type"] as? String == type { found.append(event) }
            }
        }
        return found
    }
}

/// A message that the sink kept.
struct Received {
    let sender: String
    let recipients: [String]
    let bytes: [UInt8]
}

/// A `baton-bench sink` that keeps whole messages.
final class SinkProcess {
    let port: Int
    private let folder: TestFolder
    private let name: String
    let program: Program

    /// Listens on `host`, so that MX hosts of one port can be told apart: 127.0.0.2 and so on.
    init(
        _ folder: TestFolder, name: String = "sink", host: String = "127.0.0.1", port: Int? = nil,
        options: [String] = []
    ) throws {
        self.folder = folder
        self.name = name
        let port = try port ?? Ports.free()
        self.port = port
        let log = "\(folder.path)/\(name)-\(UInt32.random(in: 0...UInt32.max)).log"
        let program = try Program(
            [Places.bench, "sink", "--listen", "\(host):\(port)", "--keep", "\(folder.path)/\(name)"] + options,
            log: log)
        self.program = program
        try eventually("the sink; its output:\n\(program.output)") {
            if program.hasEnded() { throw Waited(description: "the sink ended: \(program.output)") }
            return program.output.contains("ready")
        }
    }

    /// All messages so far, in order of arrival.
    var messages: [Received] {
        let base = "\(folder.path)/\(name)"
        let names = ((try? FileManager.default.contentsOfDirectory(atPath: base)) ?? []).filter { $0.hasSuffix(".eml") }
        func number(_ name: String) -> Int { Int(name.prefix { $0.isNumber }) ?? 0 }
        return names.sorted { number($0) < number($1) }.compactMap { file in
            let stem = file.dropLast(4)
            guard let envelope = try? String(contentsOfFile: "\(base)/\(stem).env", encoding: .utf8),
                let bytes = FileManager.default.contents(atPath: "\(base)/\(file)")
            else { return nil }
            let lines = envelope.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
            return Received(sender: lines[0], recipients: lines.dropFirst().filter { !$0.isEmpty }, bytes: Array(bytes))
        }
    }

    func wait(for count: Int, within seconds: Double = 30) throws -> [Received] {
        try eventually("\(count) messages at the sink, there are \(messages.count)", within: seconds) {
            messages.count >= count
        }
        return messages
    }
}
