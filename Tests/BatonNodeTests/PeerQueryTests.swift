// Questions between nodes: their bounds, what a node answers to a question it does not know, pages that have to fit.
import BatonCore
import BatonModel
import Foundation
import Synchronization
import Testing

@testable import BatonNode

private func ask(_ node: StubNode, _ query: PeerQuery, name: String? = nil) async throws -> (status: Int, json: [UInt8])
{
    await PeerQueries(node: node).answer(name ?? query.name, try #require(query.json))
}

@Test func questionOverItsBounds() async throws {
    let node = StubNode("n2") { $0.rows = [row("a")] }
    let good = PeerQuery(path: "/api/v1/queue/messages", query: [("limit", "5")])
    #expect(good.name == "GET /api/v1/queue/messages")
    #expect(try await ask(node, good).status == 200)
    #expect(try await ask(node, good, name: "POST /api/v1/queue/messages").status == 400)
    #expect(try await ask(node, good, name: "GET /api/v1/messages").status == 400)
    #expect(
        try await ask(node, good, name: String(repeating: "x", count: ClusterAdminLimits.nameOctets + 1)).status == 400)
    for json in ["", "{", "[]", "{\"path\":\"/api/v1/queue/messages\"}"] {
        #expect(await PeerQueries(node: node).answer(good.name, Array(json.utf8)).status == 400)
    }
    var long = PeerQuery(path: "/api/v1/queue", query: [])
    long.query = "site=" + String(repeating: "x", count: AdminLimits.targetOctets)
    #expect(try await ask(node, long).status == 400)
    long.query = String(repeating: "x", count: ClusterAdminLimits.queryOctets)
    #expect(long.json == nil, "not sent")
    let padded = Array(String(repeating: " ", count: ClusterAdminLimits.queryOctets).utf8) + (try #require(good.json))
    #expect(await PeerQueries(node: node).answer(good.name, padded).status == 400)
    // The same for a verb whose body is too large: this node does it, the others are named.
    let cluster = FakeCluster(StubNode("n1"), StubNode("n2"))
    let huge = AdminCommand(
        verb: .retry, selector: .site(String(repeating: "s", count: ClusterAdminLimits.queryOctets)), reason: "",
        report: false, duration: nil)
    #expect(try await inspector(cluster).perform(huge).incomplete == ["n2"])
}

@Test func questionThatIsNone() async throws {
    let node = StubNode("n2")
    for path in ["/api/v1/", "/api/v1/x", "/api/v1/queue/dance", "/api/v1/operations/9", "/api/v1/messages/x"] {
        #expect(try await ask(node, PeerQuery(path: path)).status == 404, "\(path)")
    }
    #expect(try await ask(node, PeerQuery(path: "/health")).status == 400)
    #expect(try await ask(node, PeerQuery(path: "/api/v1/queue", query: [("limit", "0")])).status == 400)
    // What acts on the whole cluster is not asked of one node.
    let body = AdminCommandBody(
        AdminCommand(verb: .retry, selector: .all, reason: "", report: false, duration: nil))
    for verb in ["drain", "forget", "recover-registry"] {
        #expect(try await ask(node, PeerQuery(path: "/api/v1/cluster/\(verb)", body: body)).status == 404)
    }
    #expect(try await ask(node, PeerQuery(path: "/api/v1/queue", body: body)).status == 405)
    #expect(node.state.withLock { $0.commands.isEmpty })
}

@Test func scopeThatAPeerWidens() async throws {
    // The stub traps when it is asked for more than itself.
    let node = StubNode("n2") { $0.rows = [row("a")] }
    #expect(try await ask(node, PeerQuery(path: "/api/v1/queue", query: [("scope", "cluster")])).status == 200)
    let answer = try await ask(node, PeerQuery(path: "/api/v1/cluster", query: [("scope", "cluster")]))
    #expect(answer.status == 200)
}

@Test func answerOverItsBound() async throws {
    let reply = String(repeating: "\u{1}", count: 500)
    let node = StubNode("n2") { $0.rows = (0..<1000).map { row("\($0)", reply: reply) } }
    var cursor: String?
    var seen: [String] = []
    repeat {
        let query = PeerQuery(
            path: "/api/v1/queue/messages", query: [("limit", "1000")] + (cursor.map { [("cursor", $0)] } ?? []))
        let answer = try await ask(node, query)
        #expect(answer.status == 200)
        #expect(answer.json.count <= ClusterAdminLimits.answerOctets)
        let page = try AdminClient.decode(QueueListReport.self, from: Data(answer.json))
        seen += page.messages.map(\.id)
        cursor = page.next
    } while cursor != nil && seen.count < 2000
    #expect(seen == (0..<1000).map { "\($0)" })
    #expect(node.state.withLock { $0.limits.count } < 20, "a few tries each")
    // One row that never fits.
    let huge = StubNode("n2") { $0.rows = [row("x", reply: String(repeating: "y", count: 2 << 20)), row("z")] }
    let answer = try await ask(huge, PeerQuery(path: "/api/v1/queue/messages"))
    #expect(answer.status == 413)
    #expect(huge.state.withLock { $0.limits.count } <= ClusterAdminLimits.fittingTries)
}

@Test func messageOverTheBoundOfAnAnswer() async throws {
    func message(_ recipients: Int, attempts: Int) -> MessageReport {
        let attempt = AttemptReport(
            time: "t", type: "TransientFailure", attempt: 1, code: 451, enhancedCode: nil,
            reply: String(repeating: "r", count: 400), command: "", peerName: nil, peerAddress: nil, site: nil)
        return MessageReport(
            id: sampleID.description, node: "n2", sender: "", messageId: "", size: 0, arrived: "", client: "", user: "",
            envid: "",
            recipients: (0..<recipients).map {
                .init(
                    recipient: "r\($0)@example.test", site: "", state: "deferred", attemptsMade: attempts, nextDue: nil,
                    attempts: Array(repeating: attempt, count: attempts))
            })
    }
    for (recipients, attempts, kept) in [(10, 3, 3), (1000, 10, 1), (5000, 3, 0)] {
        let node = StubNode("n2") { $0.messages = [message(recipients, attempts: attempts)] }
        let answer = try await ask(node, PeerQuery(path: "/api/v1/messages/\(sampleID)"))
        #expect(answer.status == 200)
        #expect(answer.json.count <= ClusterAdminLimits.answerOctets)
        let report = try AdminClient.decode(MessageReport.self, from: Data(answer.json))
        #expect(report.recipients.count == recipients && report.recipients[0].attempts.count == kept)
    }
    let node = StubNode("n2") { $0.messages = [message(20_000, attempts: 1)] }
    #expect(try await ask(node, PeerQuery(path: "/api/v1/messages/\(sampleID)")).status == 413)
}

@Test func verbThatLosesItsMeaningOnTheWay() async throws {
    let node = StubNode("n2")
    let address = try #require(MailAddress("a+b@c.test"))
    let selectors: [AdminSelector] = [
        .message(sampleID), .domain(Domain("example.test")), .site("g mail"), .sender(address), .nullSender,
        .senderDomain(Domain("c.test")), .all,
    ]
    for selector in selectors {
        for verb in AdminVerb.allCases {
            let command = AdminCommand(
                verb: verb, selector: selector, reason: verb == .bounce ? "gone" : "", report: verb == .bounce,
                duration: verb == .suspend ? .minutes(90) : nil)
            let query = PeerQuery(path: "/api/v1/queue/\(verb.rawValue)", body: AdminCommandBody(command))
            #expect(try await ask(node, query).status == 200)
            let seen = try #require(node.state.withLock { $0.commands.last })
            #expect(seen.verb == verb && seen.selector == selector && seen.reason == command.reason)
            #expect(seen.report == command.report && seen.duration == command.duration && seen.nodeOnly)
        }
    }
}
