// The admin HTTP of a cluster: what is asked of which node, what is merged, who is named when an answer is missing.
import BatonCore
import BatonModel
import Foundation
import Synchronization
import Testing

@testable import BatonNode

private let id = MessageID(high: 0x0192_3456_789a_bcde, low: 7)

private func filter(limit: Int = 100, cursor: String? = nil, nodeOnly: Bool = false) -> AdminFilter {
    var filter = AdminFilter()
    filter.limit = limit
    filter.cursor = cursor
    filter.nodeOnly = nodeOnly
    return filter
}

private func message(
    _ node: String, _ state: String, id: MessageID = id, attempts: [AttemptReport] = [], client: String = ""
) -> MessageReport {
    MessageReport(
        id: id.description, node: node, sender: "s@example.net", messageId: "", size: 0, arrived: "", client: client,
        user: "", envid: "",
        recipients: [
            .init(
                recipient: "a@example.test", site: "", state: state, attemptsMade: attempts.count, nextDue: "later",
                attempts: attempts)
        ])
}

private func attempt(_ time: String, _ type: String, _ number: Int, code: Int = 250) -> AttemptReport {
    AttemptReport(
        time: time, type: type, attempt: number, code: code, enhancedCode: nil, reply: "", command: "", peerName: nil,
        peerAddress: nil, site: nil)
}

private func three(_ change: @escaping (String, inout StubNode.State) -> Void) -> FakeCluster {
    FakeCluster(
        StubNode("n1") { change("n1", &$0) }, StubNode("n2") { change("n2", &$0) }, StubNode("n3") { change("n3", &$0) }
    )
}

// MARK: Queue

@Test func siteOfTwoNodesThatStandsTwice() async throws {
    let cluster = FakeCluster(
        StubNode("n1") { $0.sites = [site("a", oldest: 5), site("b")] },
        StubNode("n2") { $0.sites = [site("c"), site("a", ready: 7, oldest: 9, error: "451 later")] })
    let report = try await inspector(cluster).queue(filter())
    #expect(report.sites.map(\.site) == ["a", "b", "c"])
    let merged = try #require(report.sites.first)
    #expect(merged.ready == 8 && merged.deferred == 4 && merged.suspended == 6 && merged.inFlight == 8)
    #expect(merged.domains == 2 && merged.connections == 10 && merged.oldestSeconds == 9)
    #expect(merged.lastError == "451 later")
    #expect(report.total.ready == 10 && report.total.inFlight == 2)
    #expect(report.next == nil && report.incomplete.isEmpty)
    let alone = try await inspector(cluster).queue(filter(nodeOnly: true))
    #expect(alone.sites.map(\.site) == ["a", "b"])
}

@Test func nodeThatDoesNotAnswerIsNotNamed() async throws {
    let cluster = three { name, state in
        state.sites = [site(name)]
        state.rows = [row(name)]
        state.messages = [message(name, "ready")]
    }
    cluster.state.withLock { $0.silent = ["n3"] }
    let inspector = inspector(cluster)
    #expect(try await inspector.queue(filter()).incomplete == ["n3"])
    #expect(try await inspector.queue(filter()).total.ready == 2)
    #expect(try await inspector.queuedMessages(filter()).incomplete == ["n3"])
    #expect(try await inspector.queuedMessages(filter()).messages.map(\.id) == ["n1", "n2"])
    #expect(try await inspector.message(id, nodeOnly: false)?.incomplete == ["n3"])
    #expect(
        try await inspector.messages(.sender(.null), limit: 10, cursor: nil, nodeOnly: false).incomplete == ["n3"])
    #expect(try await inspector.cluster(nodeOnly: false).incomplete == ["n3"])
    let command = AdminCommand(verb: .retry, selector: .all, reason: "", report: false, duration: nil)
    #expect(try await inspector.perform(command).incomplete == ["n3"])
    // A node whose lease is gone is not asked; while its mail is not all taken over, it is missing.
    cluster.state.withLock { state in
        state.dead = ["n3"]
        state.takeovers = [.init(node: "n3", incarnation: 1, by: "n2", segments: 2, done: 1, since: .epoch)]
    }
    #expect(try await inspector.queue(filter()).incomplete == ["n3"])
    cluster.state.withLock { $0.takeovers[0].done = 2 }
    #expect(try await inspector.queue(filter()).incomplete.isEmpty)
    let asked = cluster.state.withLock { $0.questions.last?.nodes }
    #expect(asked == ["n2"])
}

@Test(arguments: [1, 2, 3, 7, 100])
func pageOfSitesThatLosesOrRepeatsOne(_ limit: Int) async throws {
    let cluster = three { name, state in state.sites = (0..<5).map { site("\(name)-\($0)") } }
    var seen: [String] = []
    var cursor: String?
    var pages = 0
    repeat {
        let page = try await inspector(cluster).queue(filter(limit: limit, cursor: cursor))
        #expect(page.sites.count <= limit)
        #expect(page.total.ready == 15, "totals stand on every page")
        seen += page.sites.map(\.site)
        cursor = page.next
        pages += 1
    } while cursor != nil && pages < 50
    #expect(seen.count == 15 && Set(seen).count == 15, "\(seen)")
}

@Test(arguments: [1, 2, 3, 7, 100])
func pageOfRecipientsThatLosesOrRepeatsOne(_ limit: Int) async throws {
    let cluster = three { name, state in state.rows = (0..<5).map { row("\(name)-\($0)") } }
    var seen: [String] = []
    var cursor: String?
    repeat {
        let page = try await inspector(cluster).queuedMessages(filter(limit: limit, cursor: cursor))
        #expect(page.messages.count == min(limit, 15 - seen.count))
        seen += page.messages.map(\.id)
        cursor = page.next
    } while cursor != nil && seen.count < 50
    #expect(seen == ["n1", "n2", "n3"].flatMap { name in (0..<5).map { "\(name)-\($0)" } })
}

@Test func listingThatAsksForEver() async throws {
    let cluster = three { _, state in state.isEndless = true }
    let page = try await inspector(cluster).queuedMessages(filter())
    #expect(page.messages.isEmpty)
    #expect(page.next == "n1~\(ClusterAdminLimits.pageQuestions),n2~,n3~")
    // A clock that runs on ends the page too.
    let clock = Counted()
    let late = inspector(cluster) { Instant(nanoseconds: 0) + .seconds(Int64(clock.next()) * 9) }
    #expect(try await late.queuedMessages(filter()).next == "n1~2,n2~,n3~")
}

@Test(arguments: ["x", "n1", "n1~0,n1~1", "~1", "n1~%zz", "n1~1~2", ",", "n1~1,"])
func cursorOfAnotherListing(_ cursor: String) async throws {
    let cluster = three { name, state in state.rows = [row(name)] }
    await #expect(throws: ProblemReport.self) { try await inspector(cluster).queue(filter(cursor: cursor)) }
    await #expect(throws: ProblemReport.self) { try await inspector(cluster).queuedMessages(filter(cursor: cursor)) }
}

@Test func cursorOfANodeThatIsGone() async throws {
    let cluster = three { name, state in state.rows = [row(name)] }
    let page = try await inspector(cluster).queuedMessages(filter(cursor: "n0~4,n3~,n9~"))
    #expect(page.messages.map(\.id) == ["n3"])
    #expect(page.next == nil)
    let text = try #require(PageCursor([.init(node: "n1", inner: "20261124T003000Z-7.jsonl,~%")]).text)
    #expect(PageCursor(text: text)?.places.first?.inner == "20261124T003000Z-7.jsonl,~%")
}

@Test func nodeThatAnswersNonsense() async throws {
    let cluster = three { name, state in state.sites = [site(name)] }
    cluster.state.withLock { state in
        state.broken["n2"] = PeerAnswer(node: "n2", status: 200, json: Array("{\"total\":1}".utf8))
        state.broken["n3"] = PeerAnswer(node: "n9", status: 200, json: Array("{}".utf8))
    }
    let report = try await inspector(cluster).queue(filter())
    #expect(report.incomplete == ["n2", "n3"])
    #expect(report.sites.map(\.site) == ["n1"])
    // Where nobody answers, the reason is told.
    cluster.nodes["n1"]?.state.withLock { $0.refusal = ProblemReport(400, "Bad Request", "unknown state") }
    await #expect(throws: ProblemReport.self) { try await inspector(cluster).queue(filter()) }
}

// MARK: Messages

@Test func finalStateThatALiveOneHides() async throws {
    let reception = attempt("2026-01-01T00:00:00Z", "Reception", 0)
    let failure = attempt("2026-01-01T00:00:01Z", "TransientFailure", 1, code: 451)
    let end = attempt("2026-01-01T00:09:00Z", "Delivery", 2)
    let old = message("n1", "deferred", attempts: [reception, failure], client: "192.0.2.1")
    let new = message("n2", "delivered", attempts: [failure, end])
    for reports in [[old, new], [new, old]] {
        let merged = try #require(ClusterMerge.message(reports))
        let recipient = try #require(merged.recipients.first)
        #expect(recipient.state == "delivered" && recipient.nextDue == nil)
        #expect(recipient.attempts.map(\.type) == ["Reception", "TransientFailure", "Delivery"])
        #expect(merged.client == "192.0.2.1")
    }
    // Two ends: the earlier one, once.
    let other = message("n3", "bounced", attempts: [attempt("2026-01-01T00:10:00Z", "Bounce", 2, code: 550)])
    for reports in [[new, other], [other, new]] {
        let recipient = try #require(ClusterMerge.message(reports)?.recipients.first)
        #expect(recipient.state == "delivered")
        #expect(recipient.attempts.filter { $0.type != "TransientFailure" }.map(\.type) == ["Delivery"])
    }
    // Who only saw it come in knows less than who has it in the queue, and the queue's node is named.
    for reports in [[message("n1", ""), message("n2", "deferred")], [message("n2", "deferred"), message("n1", "")]] {
        let merged = try #require(ClusterMerge.message(reports))
        #expect(merged.recipients.first?.state == "deferred")
        #expect(merged.recipients.first?.nextDue == "later")
        #expect(merged.node == "n2")
    }
    // Recipients that only one of them knows.
    var wide = message("n2", "ready")
    wide.recipients[0].recipient = "b@example.test"
    #expect(ClusterMerge.message([old, wide])?.recipients.map(\.recipient) == ["a@example.test", "b@example.test"])
}

@Test func messageThatOnlyASilentNodeKnows() async throws {
    let cluster = three { _, _ in }
    #expect(try await inspector(cluster).message(id, nodeOnly: false) == nil, "404: every node answered")
    cluster.state.withLock { $0.silent = ["n2"] }
    do {
        _ = try await inspector(cluster).message(id, nodeOnly: false)
        Issue.record("said to be unknown while a node was silent")
    } catch let problem as ProblemReport {
        #expect(problem.status == 503)
        #expect(problem.detail.hasSuffix("no answer from n2"))
    }
}

@Test(arguments: [1, 2, 4, 100])
func searchThatLosesAMessage(_ limit: Int) async throws {
    let cluster = three { name, state in
        let number = UInt64(name.last.flatMap { Int(String($0)) } ?? 0)
        state.messages = (0..<4).map { message(name, "ready", id: MessageID(high: 100 - UInt64($0), low: number)) }
        // One that every node knows, at the same place.
        state.messages.insert(message(name, name == "n2" ? "delivered" : "", id: id), at: 0)
    }
    var seen: [MessageReport] = []
    var cursor: String?
    var pages = 0
    repeat {
        let page = try await inspector(cluster).messages(.sender(.null), limit: limit, cursor: cursor, nodeOnly: false)
        #expect(page.messages.count <= limit)
        #expect(page.messages.map(\.id) == page.messages.map(\.id).sorted(by: >), "newest first")
        seen += page.messages
        cursor = page.next
        pages += 1
    } while cursor != nil && pages < 50
    #expect(Set(seen.map(\.id)).count == 13)
    #expect(seen.contains { $0.id == id.description && $0.recipients.first?.state == "delivered" })
    if limit == 100 { #expect(seen.count == 13, "one page: the known one stands once") }
}

// MARK: The cluster

@Test func clusterReportWithoutTheOthersFigures() async throws {
    let cluster = three { name, state in state.rows = [row(name)] }
    cluster.state.withLock { $0.dead = ["n3"] }
    let routes = AdminResources(node: inspector(cluster))
    let answer = try await routes.answer("GET", ["cluster"], try AdminQuery(""), command: { _ in fatalError() })
    let text = String(decoding: answer.body, as: UTF8.self)
    #expect(text.hasPrefix("{\"copies\":2,\"incomplete\":[],\"limits\":[],\"name\":\"prod\",\"nodes\":[{"))
    let first =
        "{\"address\":\"10.0.0.1:7025\",\"disk_used_fraction\":0.75,\"id\":\"n1\",\"incarnation\":"
        + "\"fffffffffffffffe\",\"messages\":1,\"state\":\"serving\",\"version\":\"0.n1\"}"
    #expect(text.contains(first), "\(text)")
    #expect(text.contains("\"id\":\"n2\",\"incarnation\":\"fffffffffffffffe\",\"messages\":1,"))
    #expect(
        text.contains("\"id\":\"n3\",\"incarnation\":\"fffffffffffffffe\",\"messages\":null,\"state\":\"dead\""))
    #expect(text.contains("\"segments\":{\"open\":3,\"sealed\":4,\"under_replicated\":0}"))
}

@Test func clusterReportThatGrowsForEver() {
    let limits = (0..<(ClusterAdminLimits.reportRows + 5)).map {
        ClusterStatusReport.Limit(
            site: "s\($0)", kind: "connections", node: "n2", home: nil, limit: 1, share: 1, used: 0)
    }
    let takeovers = (0..<(ClusterAdminLimits.reportRows + 5)).map {
        ClusterStatusReport.Takeover(
            node: "n3", incarnation: UInt64($0), by: "n2", segments: 1, done: 0, since: .epoch)
    }
    let own = ClusterStatusReport(
        name: "p", copies: 2, nodes: [.init(id: "n1", state: .serving), .init(id: "n2", state: .serving)])
    var other = own
    other.limits = limits
    other.takeovers = takeovers
    // What a node says of others' parts is not believed.
    other.limits.append(.init(site: "x", kind: "rate", node: "n1", home: nil, limit: 1, share: 1, used: 0))
    let merged = ClusterMerge.cluster(own, [("n2", other), ("n9", other)], missing: ["n4", "n3"])
    #expect(merged.limits.count == ClusterAdminLimits.reportRows)
    #expect(merged.takeovers.count == ClusterAdminLimits.reportRows)
    #expect(!merged.limits.contains { $0.node == "n1" })
    #expect(merged.incomplete == ["n3", "n4"])
}

@Test func nodeOnItsOwnThatClaimsACluster() async throws {
    let routes = AdminResources(node: FakeNode())
    let answer = try await routes.answer("GET", ["cluster"], try AdminQuery(""), command: { _ in fatalError() })
    #expect(
        String(decoding: answer.body, as: UTF8.self)
            == """
            {"copies":1,"incomplete":[],"limits":[],"name":null,"nodes":[{"address":null,"disk_used_fraction":0.5,\
            "id":"n1","incarnation":null,"messages":12,"state":"serving","version":"0"}],\
            "segments":{"open":0,"sealed":0,"under_replicated":0},"takeovers":[]}

            """)
    for verb in ["drain", "forget", "recover-registry"] {
        let body = Array((verb == "forget" ? "{\"node\":\"n2\"}" : "{}").utf8)
        let refused = await routes.caught {
            try await routes.answer(
                "POST", ["cluster", verb], try AdminQuery(""), body: body, command: { _ in fatalError() })
        }
        #expect(refused.status == 409, "\(verb)")
    }
}

@Test(arguments: [
    ("drain", "{\"node\":\"a b\"}"), ("drain", "{\"nodes\":\"n2\"}"), ("drain", "{\"deadline\":\"25h\"}"),
    ("drain", "{\"deadline\":5}"), ("drain", "{\"exit\":\"yes\"}"), ("drain", "[]"), ("drain", "{"),
    ("forget", ""), ("forget", "{}"), ("forget", "{\"node\":\"\"}"),
    ("forget", "{\"node\":\"n2\",\"deadline\":\"1m\"}"),
    ("recover-registry", "{\"node\":\"n2\"}"),
])
func clusterCommandThatImpliesSomething(_ verb: String, _ body: String) async throws {
    let cluster = three { _, _ in }
    let routes = AdminResources(node: inspector(cluster))
    let answer = await routes.caught {
        try await routes.answer(
            "POST", ["cluster", verb], try AdminQuery(""), body: Array(body.utf8), command: { _ in fatalError() })
    }
    #expect(answer.status == 400)
    #expect(cluster.state.withLock { $0.drains.isEmpty && $0.forgotten.isEmpty })
}

@Test func drainOfAnotherNodeThanMeant() async throws {
    let cluster = three { _, _ in }
    let inspector = inspector(cluster)
    _ = try await inspector.drain(try ClusterCommandBody.drain([]))
    _ = try await inspector.drain(
        try ClusterCommandBody.drain(Array("{\"node\":\"n2\",\"deadline\":\"0s\",\"exit\":true}".utf8)))
    #expect(
        cluster.state.withLock { $0.drains } == [
            ClusterDrainCommand(node: "n1", deadline: .minutes(10), exit: false),
            ClusterDrainCommand(node: "n2", deadline: .zero, exit: true),
        ])
    #expect(try await inspector.drainProgress("n3") == nil)
    await #expect(throws: ProblemReport.self) { try await inspector.forget("n1") }
    #expect(try await inspector.forget("n3").lost == 1)
}
