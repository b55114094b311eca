// Where the tests find binaries and tools, folders of their own, and how they wait: by polling, with a bound.
import Foundation
import Testing

@testable import baton_bench

enum Places {
    /// The checkout this test was compiled from.
    static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent().path

    /// A built product: beside the test binary, wherever SwiftPM put it.
    static func product(_ name: String) -> String {
        let own =
            (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
        var folder = URL(fileURLWithPath: own).deletingLastPathComponent()
        for _ in 0..<4 {
            let candidate = folder.appendingPathComponent(name).path
            if FileManager.default.isExecutableFile(atPath: candidate) { return candidate }
            folder.deleteLastPathComponent()
        }
        return "\(root)/.build/debug/\(name)"
    }

    static let baton = product("baton")
    /// Where the products are.
    static let folder = URL(fileURLWithPath: bench).deletingLastPathComponent().path
    static let bench = product("baton-bench")

    /// A program on PATH or in the places of administrators.
    static func tool(_ name: String) -> String? {
        let path = ProcessInfo.processInfo.environment["PATH"] ?? ""
        for folder in path.split(separator: ":").map(String.init) + ["/usr/sbin", "/sbin", "/usr/bin"] {
            let candidate = "\(folder)/\(name)"
            if FileManager.default.isExecutableFile(atPath: candidate) { return candidate }
        }
        return nil
    }

    static var isRoot: Bool { geteuid() == 0 }

    /// Set by `make test`, which installs what is missing: a program that is not there fails its tests instead of skipping them.
    static let wantsAllPeers = ProcessInfo.processInfo.environment["BATON_REQUIRE_PEERS"] == "1"

    /// Whether a test that speaks with a program of others runs: where it is there, or where it has to be.
    static func runs(_ name: String) -> Bool { wantsAllPeers || tool(name) != nil }

    /// Whether this user may make mount namespaces; containers may forbid it, and no package helps against that.
    static let canMount: Bool = {
        guard isRoot, let program = tool("unshare") else { return false }
        guard var child = try? ChildProcess([program, "-m", "true"], log: "/dev/null") else { return false }
        while !child.hasEnded() { usleep(2_000) }
        return child.exitCode == 0
    }()

    /// Whether this user, and this kernel, can make networks of their own: a bridge in a network namespace.
    static let canMakeNetworks: Bool = {
        guard canMount, let program = tool("unshare"), tool("ip") != nil else { return false }
        let command = [
            program, "-n", "sh", "-c",
            "ip link add probe type bridge && ip netns add baton-probe && ip netns del baton-probe",
        ]
        guard var child = try? ChildProcess(command, log: "/dev/null") else { return false }
        while !child.hasEnded() { usleep(2_000) }
        return child.exitCode == 0
    }()

    /// Whether this user may trace a program of its own.
    static let canTrace: Bool = {
        guard let program = tool("strace") else { return wantsAllPeers }
        guard var child = try? ChildProcess([program, "-o", "/dev/null", "true"], log: "/dev/null") else {
            return false
        }
        while !child.hasEnded() { usleep(2_000) }
        return child.exitCode == 0
    }()

    /// The folder of unpacked peers, if there is one (`.ci/peers`; `make test` makes it).
    static let peers: String? = {
        let named = ProcessInfo.processInfo.environment["BATON_PEERS"] ?? "\(root)/.build/peers"
        return FileManager.default.fileExists(atPath: "\(named)/done") ? named : nil
    }()

    /// As `runs`, for the peers that are unpacked and run in namespaces of their own.
    static func runsPeer(_ program: String) -> Bool {
        guard canMount else { return false }
        guard let peers else { return wantsAllPeers }
        return wantsAllPeers || FileManager.default.fileExists(atPath: "\(peers)/root/usr/sbin/\(program)")
    }

    static let runsPostfix =
        isRoot && (wantsAllPeers || FileManager.default.fileExists(atPath: "/usr/lib/postfix/sbin/master"))
}

/// A folder of its own for a test, gone when the last user lets go of it, unless BATON_KEEP_TESTS is set.
final class TestFolder: Sendable {
    let path: String

    init(_ name: String = #function) throws {
        let stem = name.prefix { $0.isLetter || $0.isNumber }
        // Receivers of their own users have to get through, so not below a private folder, and with 755.
        path = "\(NSTemporaryDirectory())/baton-test-\(stem)-\(UInt32.random(in: 0...UInt32.max))"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o755])
    }

    deinit {
        if ProcessInfo.processInfo.environment["BATON_KEEP_TESTS"] == nil {
            try? FileManager.default.removeItem(atPath: path)
        }
    }

    func make(_ name: String, permissions: Int = 0o755) throws -> String {
        let folder = "\(path)/\(name)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try FileManager.default.setAttributes([.posixPermissions: permissions], ofItemAtPath: folder)
        return folder
    }

    @discardableResult
    func write(_ name: String, _ text: String) throws -> String {
        let file = "\(path)/\(name)"
        try Data(text.utf8).write(to: URL(fileURLWithPath: file))
        return file
    }

    func read(_ name: String) -> String { (try? String(contentsOfFile: "\(path)/\(name)", encoding: .utf8)) ?? "" }
}

struct Waited: Error, CustomStringConvertible {
    let description: String
}

/// Polls until the condition holds; throws after `seconds`.
func eventually(_ what: String, within seconds: Double = 30, _ condition: () throws -> Bool) throws {
    let end = Date().addingTimeInterval(seconds)
    while try !condition() {
        if Date() > end { throw Waited(description: "waited \(seconds) s for: \(what)") }
        usleep(10_000)
    }
}
