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
        let text = all.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)\n" }.joined()
        let file = try folder.write("baton.yaml", text)
        command = wrap + [Places.baton, "serve", "--config", file]
        program = try Program(command, log: "\(folder.path)/baton.log")
        try waitUntilServing(ready)
    }

    static func route(_ port: Int, protocol name: String = "smtp") -> String {
        "[{ domain: \"*\", next_hop: \"\(name)://127.0.0.1:\(port)\" }]"
    }

    private func waitUntilServing(_ seconds: Double) throws {
        try eventually("baton's greeting; its output:\n\(program.output)", within: seconds) {
            if program.hasEnded() {
                throw Waited(description: "baton ended, exit \(program.exitCode ?? -1): \(program.output)")
            }
            return Ports.greets(port)
        }
    }

    func start() throws {
        program = try Program(command, log: "\(folder.path)/baton.log")
        try waitUntilServing(60)
    }

    func kill9() { program.kill9() }

    func client() throws -> Dialogue { try Dialogue(port: port) }

    /// Prometheus text, or what else the admin address answers.
    func get(_ path: String) throws -> String {
        let token = (try? String(contentsOfFile: "\(data)/admin.token", encoding: .utf8))?.trimmingCharacters(
            in: .whitespacesAndNewlines)
        let header = token.map { ["-H", "Authorization: Bearer \($0)"] } ?? []
        return try Program.run(
            ["curl", "-sS", "--max-time", "10"] + header + ["http://127.0.0.1:\(admin)\(path)"], in: folder
        ).output
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

    init(_ folder: TestFolder, name: String = "sink", port: Int? = nil, options: [String] = []) throws {
        self.folder = folder
        self.name = name
        let port = try port ?? Ports.free()
        self.port = port
        program = try Program(
            [Places.bench, "sink", "--listen", "127.0.0.1:\(port)", "--keep", "\(folder.path)/\(name)"] + options,
            log: "\(folder.path)/\(name).log")
        try eventually("the sink") { Ports.greets(port) }
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
