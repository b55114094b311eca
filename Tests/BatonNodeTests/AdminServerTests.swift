// The admin HTTP over a real loopback socket, asked by Baton's own client and by raw bytes; the commands on top.
import ArgumentParser
import BatonCore
import BatonModel
import Foundation
import Glibc
import Logging
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import BatonNode
@testable import baton

/// Runs a server on a free port around `body`, which gets the port and runs off the cooperative pool's loops.
func withServer(
    _ node: any NodeInspecting = FakeNode(), _ body: @escaping @Sendable (Int) throws -> Void
) async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let (ports, continuation) = AsyncStream.makeStream(of: Int.self)
    let server = AdminServer(
        address: SocketEndpoint(address: IPAddress("127.0.0.1"), port: 0), node: node, metrics: PrometheusText(),
        token: try #require(AdminToken(Array(sampleToken.utf8))), group: group,
        logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }, onListening: { continuation.yield($0) })
    try await withThrowingTaskGroup(of: Void.self) { tasks in
        tasks.addTask { try await server.run() }
        for await port in ports {
            // The client blocks: a thread of its own.
            let result = await withCheckedContinuation { done in
                Thread.detachNewThread { done.resume(returning: Result { try body(port) }) }
            }
            tasks.cancelAll()
            try result.get()
            break
        }
        do { try await tasks.waitForAll() } catch is CancellationError {}
    }
    try await group.shutdownGracefully()
}

private func client(_ port: Int, token: String = sampleToken) throws -> AdminClient {
    try AdminClient(url: "http://127.0.0.1:\(port)", token: AdminToken(Array(token.utf8)))
}

/// Sends bytes and reads until the server closes.
private func raw(_ port: Int, _ bytes: String) -> String {
    let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(descriptor) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = in_port_t(UInt16(port).bigEndian)
    address.sin_addr.s_addr = inet_addr("127.0.0.1")
    let connected = withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
        }
    }
    guard connected == 0 else { return "" }
    var wait = timeval(tv_sec: 20, tv_usec: 0)
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &wait, socklen_t(MemoryLayout<timeval>.size))
    _ = Array(bytes.utf8).withUnsafeBytes { send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
    var all: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = chunk.withUnsafeMutableBytes { recv(descriptor, $0.baseAddress, $0.count, 0) }
        if count <= 0 { return String(decoding: all, as: UTF8.self) }
        all.append(contentsOf: chunk[..<count])
    }
}

@Test func adminOverARealSocket() async throws {
    try await withServer { port in
        let client = try client(port)
        let health = try AdminClient.decode(HealthReport.self, from: try client.get("/health"))
        #expect(health.state == .serving)
        let queue = try AdminClient.decode(
            QueueReport.self, from: try client.get("/api/v1/queue", query: [("site", "a b&c=d+e")]))
        #expect(queue.total.inFlight == 3)
        #expect(queue.sites.first?.lastError == "451 try later")
        #expect(queue.next == nil)
        do {
            _ = try client.get("/api/v1/messages/\(MessageID(high: 1, low: 1))")
            Issue.record("a message that is not there was found")
        } catch AdminClient.Failure.problem(let problem) {
            #expect(problem.status == 404)
        }
        do {
            _ = try AdminClient(url: "http://127.0.0.1:\(port)/", token: nil).get("/api/v1/queue")
            Issue.record("answered without a token")
        } catch AdminClient.Failure.problem(let problem) {
            #expect(problem.status == 401)
        }
        let answer = raw(port, "GET /api/v1/queue HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        #expect(answer.hasPrefix("HTTP/1.1 401 "))
        #expect(answer.lowercased().contains("www-authenticate: bearer realm=\"baton\""))
        #expect(answer.lowercased().contains("content-type: application/problem+json"))
        let head = raw(port, "HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        #expect(head.hasPrefix("HTTP/1.1 200 "))
        #expect(head.hasSuffix("\r\n\r\n"))
    }
}

@Test func bodyOverItsBound() async throws {
    try await withServer { port in
        let client = try client(port)
        let fits = "{\"all\":true,\"reason\":\"r\"" + String(repeating: " ", count: AdminLimits.bodyOctets - 30) + "}"
        #expect(fits.utf8.count <= AdminLimits.bodyOctets)
        _ = try client.post("/api/v1/queue/bounce", json: Data(fits.utf8))
        let over = Data(repeating: 0x20, count: AdminLimits.bodyOctets + 1)
        do {
            _ = try client.post("/api/v1/queue/bounce", json: over)
            Issue.record("a body over the bound was taken")
        } catch AdminClient.Failure.problem(let problem) {
            #expect(problem.status == 413)
        }
    }
}

@Test func headersOverTheirBound() async throws {
    try await withServer { port in
        let long = String(repeating: "a", count: AdminLimits.headerOctets + 100)
        let answer = raw(port, "GET /health HTTP/1.1\r\nHost: x\r\nX: \(long)\r\nConnection: close\r\n\r\n")
        #expect(!answer.hasPrefix("HTTP/1.1 200"))
        let many = (0..<(AdminLimits.headerFields + 10)).map { "X\($0): y\r\n" }.joined()
        #expect(!raw(port, "GET /health HTTP/1.1\r\n\(many)Connection: close\r\n\r\n").hasPrefix("HTTP/1.1 200"))
    }
}

@Test func portInUseThatIsNotTold() async throws {
    try await withServer { port in
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let done = DispatchSemaphore(value: 0)
        Task {
            let server = AdminServer(
                address: SocketEndpoint(address: IPAddress("127.0.0.1"), port: port), node: FakeNode(),
                metrics: PrometheusText(), token: try #require(AdminToken(Array(sampleToken.utf8))), group: group,
                logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
            await #expect(throws: (any Error).self) { try await server.run() }
            try await group.shutdownGracefully()
            done.signal()
        }
        #expect(done.wait(timeout: .now() + 20) == .success)
    }
}

// MARK: The client's reading

@Test func answerCutAnywhere() throws {
    let plain = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello"
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
    for text in [plain, chunked] {
        let bytes = Array(text.utf8)
        #expect(String(decoding: try AdminClient.parse(bytes).body, as: UTF8.self) == "hello")
        let whole = text == plain ? bytes.count : bytes.count - 4
        for cut in 0..<whole {
            if let result = try? AdminClient.parse(Array(bytes[..<cut])) {
                Issue.record("cut at \(cut): \(result)")
            }
        }
    }
    for bad in [
        "HTTP/2 200\r\n\r\n", "HTTP/1.1 xx\r\n\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 200\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    ] {
        #expect(throws: AdminClient.Failure.self) { try AdminClient.parse(Array(bad.utf8)) }
    }
}

@Test(arguments: [
    "", "127.0.0.1:1", "https://x", "http://", "http://x:0", "http://x:99999", "http://x:y", "http://u@x",
    "http://x/y", "http://x y",
])
func urlThatIsNone(_ text: String) {
    #expect(throws: AdminClient.Failure.self) { try AdminClient(url: text, token: nil) }
}

@Test func urlThatIsRefused() throws {
    for text in [
        "http://127.0.0.1", "http://127.0.0.1:8025/", "http://[::1]", "http://[::1]:8025", "http://node.test:1",
    ] {
        _ = try AdminClient(url: text, token: nil)
    }
}

// MARK: The commands

@Test func commandsThatTakeTheWrongWords() throws {
    func refused(_ words: [String]) -> Bool { (try? Baton.parseAsRoot(words)) == nil }
    #expect(refused(["nonsense"]))
    #expect(refused(["queue", "retry"]))
    #expect(refused(["queue", "retry", "--all", "--domain", "x"]))
    #expect(refused(["queue", "suspend", "x", "--all"]))
    #expect(refused(["queue", "retry", "--all", "--reason", "x"]))
    #expect(refused(["queue", "list", "--limit", "0"]))
    #expect(refused(["trace"]))
    #expect(refused(["trace", "x", "--recipient", "a@b"]))
    #expect(refused(["check-config"]))
    #expect(refused(["spool", "inspect"]))
    #expect(refused(["serve", "--log-level", "loud"]))
    #expect(refused(["cluster", "forget"]))
    #expect(refused(["cluster", "drain", "n2", "n3"]))
    #expect(refused(["cluster", "drain", "--deadline", "soon"]))
    #expect(refused(["cluster", "drain", "--deadline", "25h"]))
    #expect(refused(["cluster", "recover-registry", "n2"]))
    for words in [
        ["queue", "retry", "--all"], ["queue", "bounce", "X", "--reason", "r", "--report"],
        ["queue", "suspend", "--site", "s", "--for", "1h"], ["queue", "resume", "--sender", "@d"],
        ["queue", "list", "--state", "deferred", "--json"], ["trace", "--recipient", "a@b"],
        ["trace", "--message-id", "<x>"], ["check-config", "f", "--explain", "d"], ["spool", "inspect", "d", "--json"],
        ["cluster", "status", "--json"], ["cluster", "drain"],
        ["cluster", "drain", "n2", "--deadline", "0s", "--exit"],
        ["cluster", "forget", "n2"], ["cluster", "recover-registry", "--json"],
        ["serve"], ["serve", "--config", "f", "--log-format", "json"], ["version"],
    ] {
        _ = try Baton.parseAsRoot(words)
    }
}

@Test func exitCodesOfTheContract() async throws {
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("b\(UInt64.random(in: 0 ... .max)).yaml")
    defer { try? FileManager.default.removeItem(at: file) }
    try Data("limits: { hops: 30 }\n".utf8).write(to: file)
    #expect(await Baton.run(arguments: []) == 0)
    #expect(await Baton.run(arguments: ["version"]) == 0)
    #expect(await Baton.run(arguments: ["nonsense"]) == 64)
    #expect(await Baton.run(arguments: ["check-config", file.path]) == 0)
    #expect(await Baton.run(arguments: ["check-config", file.path, "--explain", "example.test"]) == 0)
    #expect(await Baton.run(arguments: ["check-config", file.path, "--explain", "a b"]) == 64)
    #expect(await Baton.run(arguments: ["check-config", "/nowhere/baton.yaml"]) == 66)
    try Data("limits: { hop: 30 }\n".utf8).write(to: file)
    #expect(await Baton.run(arguments: ["check-config", file.path]) == 78)
    // Nobody listens on the discard port of loopback; without a token nothing is asked.
    #expect(await Baton.run(arguments: ["queue", "list", "--admin", "http://127.0.0.1:9"]) == 77)
}

@Test func commandAgainstANode() async throws {
    let node = FakeNode()
    node.state.withLock { $0.steps = 2 }
    let token = FileManager.default.temporaryDirectory.appendingPathComponent("t\(UInt64.random(in: 0 ... .max))")
    defer { try? FileManager.default.removeItem(at: token) }
    try Data(sampleToken.utf8).write(to: token)
    try await withServer(node) { port in
        let at = ["--admin", "http://127.0.0.1:\(port)", "--token-file", token.path]
        func code(_ words: [String]) -> Int32 { exitCode(words + at) }
        #expect(code(["queue", "list", "--state", "deferred"]) == 0)
        #expect(code(["queue", "list", "--json"]) == 0)
        #expect(code(["queue", "show", sampleID.description]) == 0)
        #expect(code(["queue", "show", "0"]) == 1)
        #expect(code(["queue", "retry", "--all"]) == 0)
        #expect(code(["queue", "suspend", "--site", "full"]) == 1)
        #expect(code(["trace", "--recipient", "a@example.test"]) == 0)
        #expect(code(["trace", sampleID.description, "--json"]) == 0)
    }
    let seen = node.state.withLock { $0 }
    #expect(seen.commands.first?.selector == .all)
    // The long operation was followed to its end.
    #expect(seen.steps <= 0)
}

/// A command blocks one thread of the default executor, of which the server that it asks needs another.
private let oneCommand = NSLock()

/// Runs a command from a thread that may block.
func exitCode(_ words: [String]) -> Int32 {
    oneCommand.lock()
    defer { oneCommand.unlock() }
    let result = DispatchSemaphore(value: 0)
    let box = CodeBox()
    Task {
        box.set(await Baton.run(arguments: words))
        result.signal()
    }
    result.wait()
    return box.value
}

/// A code from a task to a thread.
private final class CodeBox: @unchecked Sendable {
    // @unchecked: the semaphore orders the one write before the one read.
    private(set) var value: Int32 = -1
    func set(_ code: Int32) { value = code }
}

@Test func terminalThatAPeerWritesTo() async throws {
    let node = FakeNode()
    let list = AdminText.list(try await node.queuedMessages(AdminFilter()))
    #expect(list.contains("451 \\u{1b}[31mlater"))
    #expect(list.contains("<>"))
    let timeline = AdminText.timeline(node.report)
    #expect(
        timeline.contains(
            "2026-01-01T00:00:01.000Z  TransientFailure #1  451 4.7.1 try later  (RCPT TO)  at mx.example.test "
                + "[192.0.2.1]  to a@example.test"))
    #expect(timeline.hasSuffix("a@example.test: deferred, next 2026-01-01T00:05:00.000Z"))
    #expect(
        AdminText.queue(try await node.queue(AdminFilter())).hasPrefix("ready 1, deferred 2, suspended 0, in flight 3"))
    #expect(AdminText.age(119) == "119s")
    #expect(AdminText.age(7200) == "2h")
    let one = OperationReport(operation: "1", verb: "bounce", count: 1, inFlight: 0, done: true)
    #expect(AdminText.operation(one) == "1 recipient bounced")
}

@Test func listingsThatLoseEachOther() throws {
    let merged = try Queue.List.merged(
        Data("{\"total\":{\"ready\":1},\"sites\":[],\"next\":\"a\",\"incomplete\":[\"n2\"]}".utf8),
        Data("{\"messages\":[1],\"next\":null,\"incomplete\":[\"n3\",\"n2\"]}".utf8))
    #expect(
        merged == "{\"incomplete\":[\"n2\",\"n3\"],\"messages\":[1],\"next\":null,\"sites\":[],\"total\":{\"ready\":1}}"
    )
}
