// The admin HTTP's routes against a node of values: who may ask, what is refused, and the shapes of docs/HTTP.md.
import BatonCore
import BatonModel
import Foundation
import Synchronization
import Testing

@testable import BatonNode

let sampleID = MessageID(high: 0x0192_3456_789a_bcde, low: 0x1122_3344_5566_7788)
let sampleToken = "0123456789abcdef0123456789abcdef"

/// Remembers what it was asked and answers from values.
final class FakeNode: NodeInspecting {
    struct State {
        var filters: [AdminFilter] = []
        var commands: [AdminCommand] = []
        var searches: [MessageSearch] = []
        var state = HealthReport.State.serving
        /// Progress calls until an operation is done.
        var steps = 0
    }

    let state = Mutex(State())

    func health() async -> HealthReport {
        HealthReport(
            state: state.withLock { $0.state }, node: "n1", version: "0", copies: 1,
            disk: .init(freeBytes: 5, totalBytes: 10, minFreeBytes: 1))
    }

    func storedMessages() async -> Int { 12 }

    func queue(_ filter: AdminFilter) async throws -> QueueReport {
        state.withLock { $0.filters.append(filter) }
        return QueueReport(
            total: QueueTotalReport(ready: 1, deferred: 2, inFlight: 3),
            sites: [
                .init(
                    site: "example.test", domains: 1, ready: 1, deferred: 2, suspended: 0, inFlight: 3,
                    oldestSeconds: 7,
                    connections: 4, lastError: "451 try later")
            ], next: nil)
    }

    func queuedMessages(_ filter: AdminFilter) async throws -> QueueListReport {
        state.withLock { $0.filters.append(filter) }
        return QueueListReport(
            messages: [
                .init(
                    id: sampleID.description, sender: "", recipient: "a@example.test", site: "example.test",
                    state: "deferred", attempts: 2, arrived: "2026-01-01T00:00:00.000Z", due: nil,
                    lastReply: "451 \u{1b}[31mlater")
            ], next: "0:9")
    }

    func message(_ id: MessageID, nodeOnly: Bool) async throws -> MessageReport? {
        id == sampleID ? report : nil
    }

    var report: MessageReport {
        MessageReport(
            id: sampleID.description, node: "n1", sender: "s@example.net", messageId: "<m@x>", size: 10,
            arrived: "2026-01-01T00:00:00.000Z", client: "127.0.0.1", user: "", envid: "",
            recipients: [
                .init(
                    recipient: "a@example.test", site: "example.test", state: "deferred", attemptsMade: 1,
                    nextDue: "2026-01-01T00:05:00.000Z",
                    attempts: [
                        AttemptReport(
                            time: "2026-01-01T00:00:01.000Z", type: "TransientFailure", attempt: 1, code: 451,
                            enhancedCode: "4.7.1", reply: "try later", command: "RCPT TO", peerName: "mx.example.test",
                            peerAddress: "192.0.2.1", site: "example.test")
                    ])
            ])
    }

    func messages(
        _ search: MessageSearch, limit: Int, cursor: String?, nodeOnly: Bool
    ) async throws -> MessageListReport {
        state.withLock { $0.searches.append(search) }
        return MessageListReport(messages: [report], next: nil)
    }

    func perform(_ command: AdminCommand) async throws -> OperationReport {
        state.withLock { $0.commands.append(command) }
        if case .site("full") = command.selector { throw ProblemReport(409, "Conflict", "too many suspensions") }
        let done = state.withLock { $0.steps == 0 }
        return OperationReport(operation: "17", verb: command.verb.rawValue, count: 3, inFlight: 1, done: done)
    }

    func operation(_ id: String) async throws -> OperationReport? {
        guard id == "17" else { return nil }
        let done = state.withLock { state in
            state.steps -= 1
            return state.steps <= 0
        }
        return OperationReport(operation: id, verb: "retry", count: 9, inFlight: 0, done: done)
    }
}

private let node = FakeNode()

private func routes(_ node: FakeNode = FakeNode()) throws -> AdminRoutes {
    AdminRoutes(
        node: node, metrics: PrometheusText(), token: try #require(AdminToken(Array(sampleToken.utf8))))
}

private func ask(
    _ routes: AdminRoutes, _ method: String, _ path: String, query: String = "", body: String = "",
    authorization: String? = "Bearer \(sampleToken)"
) async -> (status: Int, text: String, answer: AdminAnswer) {
    let answer = await routes.answer(
        AdminRequest(method: method, path: path, query: query, authorization: authorization, body: Array(body.utf8)))
    return (answer.status, String(decoding: answer.body, as: UTF8.self), answer)
}

@Test(arguments: [
    nil, "", "Bearer", "Bearer ", "Bearer x", "Basic \(sampleToken)", "Bearer \(sampleToken)0",
    "Bearer 0123456789abcdef0123456789abcdeX",
])
func strangerWhoIsAnswered(_ authorization: String?) async throws {
    let routes = try routes()
    for (method, path) in [
        ("GET", "/api/v1/queue"), ("GET", "/api/v1/messages/\(sampleID)"), ("POST", "/api/v1/queue/retry"),
        ("GET", "/anything"), ("GET", "/api/v1/operations/17"), ("GET", "/"),
    ] {
        let result = await ask(routes, method, path, authorization: authorization)
        #expect(result.status == 401, "\(method) \(path)")
        #expect(result.answer.challenge)
        #expect(result.answer.contentType == "application/problem+json")
    }
    #expect(await ask(routes, "GET", "/health", authorization: authorization).status == 200)
    #expect(await ask(routes, "GET", "/metrics", authorization: authorization).status == 200)
}

@Test func healthOfANodeThatDoesNotServe() async throws {
    let node = FakeNode()
    let routes = try routes(node)
    let expected: [(HealthReport.State, Int)] = [
        (.starting, 503), (.serving, 200), (.degraded, 200), (.draining, 503), (.failed, 503),
    ]
    for (state, status) in expected {
        node.state.withLock { $0.state = state }
        let result = await ask(routes, "GET", "/health", authorization: nil)
        #expect(result.status == status)
        #expect(result.text.contains("\"state\":\"\(state.rawValue)\""))
    }
}

@Test func shapesThatOthersCannotRead() async throws {
    let routes = try routes()
    #expect(
        await ask(routes, "GET", "/api/v1/queue").text
            == """
            {"incomplete":[],"next":null,"sites":[{"connections":4,"deferred":2,"domains":1,"in_flight":3,\
            "last_error":"451 try later","oldest_seconds":7,"ready":1,"site":"example.test","suspended":0}],\
            "total":{"damaged":0,"deferred":2,"in_flight":3,"ready":1,"suspended":0}}

            """)
    #expect(
        await ask(routes, "POST", "/api/v1/queue/retry", body: "{\"all\":true}").text
            == """
            {"count":3,"done":true,"in_flight":1,"incomplete":[],"operation":"17","verb":"retry"}

            """)
    let message = await ask(routes, "GET", "/api/v1/messages/\(sampleID.description.lowercased())")
    #expect(message.status == 200)
    #expect(message.text.contains("\"message_id\":\"<m@x>\""))
    #expect(message.text.contains("\"next_due\":\"2026-01-01T00:05:00.000Z\""))
    #expect(message.text.contains("\"enhanced_code\":\"4.7.1\""))
}

@Test(arguments: [
    ("GET", "/api/v1/queue", "limit=0"), ("GET", "/api/v1/queue", "limit=1001"), ("GET", "/api/v1/queue", "limit=x"),
    ("GET", "/api/v1/queue", "state=lost"), ("GET", "/api/v1/queue", "colour=red"),
    ("GET", "/api/v1/queue", "domain=a&domain=b"), ("GET", "/api/v1/queue", "domain=a%20b"),
    ("GET", "/api/v1/queue", "sender=x"), ("GET", "/api/v1/queue", "scope=world"), ("GET", "/api/v1/queue", "site=%ff"),
    ("GET", "/api/v1/messages", ""), ("GET", "/api/v1/messages", "recipient=a@b&sender=@b"),
    ("GET", "/api/v1/messages", "recipient=nobody"), ("GET", "/api/v1/messages", "message_id="),
    ("POST", "/api/v1/queue/retry", "x=1"),
])
func queryThatIsTaken(_ method: String, _ path: String, _ query: String) async throws {
    let result = await ask(try routes(), method, path, query: query, body: "{\"all\":true}")
    #expect(result.status == 400, "\(query)")
    #expect(result.answer.contentType == "application/problem+json")
}

@Test(arguments: [
    "", "[]", "null", "{", "{}", "{\"all\":false}", "{\"all\":true,\"domain\":\"x\"}", "{\"id\":\"short\"}",
    "{\"domain\":\"a b\"}", "{\"sender\":\"x\"}", "{\"all\":true,\"colour\":1}", "{\"all\":1}",
    "{\"all\":true,\"for\":\"1h\"}", "{\"all\":true,\"reason\":\"x\\ny\"}",
])
func commandThatImpliesSomething(_ body: String) async throws {
    let node = FakeNode()
    let result = await ask(try routes(node), "POST", "/api/v1/queue/bounce", body: body)
    #expect(result.status == 400, "\(body)")
    #expect(node.state.withLock { $0.commands.isEmpty })
}

@Test func reasonOverItsBound() async throws {
    let routes = try routes()
    let fits = String(repeating: "r", count: AdminLimits.reasonOctets)
    #expect(
        await ask(routes, "POST", "/api/v1/queue/bounce", body: "{\"all\":true,\"reason\":\"\(fits)\"}").status == 200)
    #expect(
        await ask(routes, "POST", "/api/v1/queue/bounce", body: "{\"all\":true,\"reason\":\"\(fits)r\"}").status == 400)
}

@Test func pageOverItsBound() async throws {
    let routes = try routes()
    #expect(await ask(routes, "GET", "/api/v1/queue", query: "limit=\(AdminLimits.pageRows)").status == 200)
    #expect(await ask(routes, "GET", "/api/v1/queue", query: "limit=\(AdminLimits.pageRows + 1)").status == 400)
}

@Test func targetOverItsBound() async throws {
    let long = String(repeating: "a", count: AdminLimits.targetOctets + 1)
    #expect(await ask(try routes(), "GET", "/api/v1/queue", query: "site=\(long)").status == 414)
}

@Test func commandThatMeansOtherMail() async throws {
    let node = FakeNode()
    let routes = try routes(node)
    let bodies: [(String, String, AdminSelector)] = [
        ("retry", "{\"id\":\"\(sampleID)\"}", .message(sampleID)),
        (
            "bounce", "{\"domain\":\"Example.TEST\",\"report\":true,\"reason\":\"gone\"}",
            .domain(Domain("example.test"))
        ),
        ("suspend", "{\"site\":\"google\",\"for\":\"1h\"}", .site("google")),
        ("resume", "{\"sender\":\"@Example.net\"}", .senderDomain(Domain("example.net"))),
        ("retry", "{\"sender\":\"<>\"}", .nullSender),
        ("retry", "{\"all\":true}", .all),
    ]
    for (verb, body, selector) in bodies {
        #expect(await ask(routes, "POST", "/api/v1/queue/\(verb)", body: body).status == 200, "\(body)")
        let last = try #require(node.state.withLock { $0.commands.last })
        #expect(last.verb.rawValue == verb)
        #expect(last.selector == selector)
        #expect(last.report == (verb == "bounce"))
        #expect(last.duration == (verb == "suspend" ? .hours(1) : nil))
        #expect(last.reason == (verb == "bounce" ? "gone" : ""))
    }
    #expect(await ask(routes, "POST", "/api/v1/queue/suspend", body: "{\"site\":\"full\"}").status == 409)
}

@Test func filterThatIsLost() async throws {
    let node = FakeNode()
    let query = "domain=Example.test&site=g+mail&sender=a%40b.test&state=deferred&limit=7&cursor=0%3A9&scope=node"
    #expect(await ask(try routes(node), "GET", "/api/v1/queue/messages", query: query).status == 200)
    let filter = try #require(node.state.withLock { $0.filters.last })
    #expect(filter.domain == Domain("example.test"))
    #expect(filter.site == "g mail")
    #expect(filter.sender == MailAddress("a@b.test").map { .address($0) })
    #expect(filter.state == "deferred")
    #expect(filter.limit == 7)
    #expect(filter.cursor == "0:9")
    #expect(filter.nodeOnly)
    for none in ["sender=", "sender=%3C%3E"] {
        #expect(await ask(try routes(node), "GET", "/api/v1/queue/messages", query: none).status == 200)
        #expect(node.state.withLock { $0.filters.last?.sender } == .null)
    }
}

@Test func resourceThatIsNotThere() async throws {
    let routes = try routes()
    for path in [
        "/api/v1/messages/\(MessageID(high: 1, low: 1))", "/api/v1/messages/x", "/api/v1/operations/18", "/api/v1/x",
        "/api/v2/queue", "/", "/api/v1/queue/dance", "/api/v1/queue/retry/x", "/api/v1/cluster/x",
        "/api/v1/cluster/drain/x",
    ] {
        #expect(await ask(routes, "GET", path).status == 404, "\(path)")
    }
    let wrong = await ask(routes, "GET", "/api/v1/queue/retry")
    #expect(wrong.status == 405)
    #expect(wrong.answer.allow == "POST")
    #expect(await ask(routes, "DELETE", "/api/v1/queue").answer.allow == "GET")
}

// MARK: The token

private func temporaryDirectory() throws -> String {
    let url = FileManager.default.temporaryDirectory.appendingPathComponent("baton-\(UInt64.random(in: 0 ... .max))")
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    return url.path
}

@Test func tokenThatChangesAtEachStart() throws {
    let directory = try temporaryDirectory()
    defer { try? FileManager.default.removeItem(atPath: directory) }
    let first = try AdminToken.openOrCreate(dataDirectory: directory)
    let second = try AdminToken.openOrCreate(dataDirectory: directory)
    #expect(first.header == second.header)
    #expect(first.header.count == 64)
    #expect(first.matches(Array(second.header.utf8)))
    let mode = try FileManager.default.attributesOfItem(atPath: directory + "/admin.token")[.posixPermissions] as? Int
    #expect(mode == 0o600)
    #expect("\(first)" == "***")
    #expect(String(reflecting: first) == "***")
    let other = try AdminToken.openOrCreate(dataDirectory: try temporaryDirectory())
    #expect(!first.matches(Array(other.header.utf8)))
}

@Test func tokenFileThatOthersRead() throws {
    let directory = try temporaryDirectory()
    defer { try? FileManager.default.removeItem(atPath: directory) }
    let path = directory + "/admin.token"
    try Data((sampleToken + "\n").utf8).write(to: URL(fileURLWithPath: path))
    try FileManager.default.setAttributes([.posixPermissions: 0o644], ofItemAtPath: path)
    #expect(throws: AdminToken.FileError.self) { try AdminToken.openOrCreate(dataDirectory: directory) }
    try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: path)
    #expect(try AdminToken.openOrCreate(dataDirectory: directory).header == sampleToken)
    try Data("short\n".utf8).write(to: URL(fileURLWithPath: path))
    try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: path)
    #expect(throws: AdminToken.FileError.self) { try AdminToken.read(path) }
}
