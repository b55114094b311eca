// Suspensions and bounces of a whole cluster: what goes into the control plane, and how a node follows it.
import BatonCore
import BatonModel
import BatonQueue
import BatonRuntime
import Foundation
import Logging
import Synchronization
import Testing

@testable import BatonNode

private let domain = AdminSelector.domain(Domain("example.test"))
private let now = Instant(nanoseconds: 0) + .days(20_000)

private func suspension(
    _ id: String, _ selector: AdminSelector = domain, made: Instant = now, until: Instant? = nil
) -> SharedHold {
    SharedHold(id: id, kind: .suspend, selector: selector, made: made, until: until)
}

private func bounce(_ id: String, made: Instant = now) -> SharedHold {
    SharedHold(id: id, kind: .bounce, selector: .all, made: made, reason: "r", report: true)
}

private func command(
    _ verb: AdminVerb, _ selector: AdminSelector = domain, duration: TimeSpan? = nil
) -> AdminCommand {
    AdminCommand(verb: verb, selector: selector, reason: verb == .bounce ? "r" : "", report: false, duration: duration)
}

private func cluster() -> FakeCluster { FakeCluster(StubNode("n1"), StubNode("n2"), StubNode("n3")) }

private func last(_ cluster: FakeCluster, _ name: String) throws -> AdminCommand {
    try #require(cluster.nodes[name]?.state.withLock { $0.commands.last })
}

// MARK: Verbs

@Test func suspensionThatEndsDifferentlyOnEachNode() async throws {
    let cluster = cluster()
    let holds = FakeHolds()
    let report = try await inspector(cluster, holds: holds, now: { now }).perform(
        command(.suspend, duration: .hours(1)))
    #expect(report.count == 9 && report.inFlight == 3 && report.done && report.incomplete.isEmpty)
    #expect(report.verb == "suspend")
    let stored = try #require(holds.state.withLock { $0.values.values.first })
    #expect(stored.until == now + .hours(1))
    for name in ["n1", "n2", "n3"] {
        let seen = try last(cluster, name)
        #expect(seen.shared == stored, "\(name): the instant, not a time of its own")
        #expect(seen.revision == 11)
        #expect(seen.selector == domain)
    }
}

@Test func bounceThatMeetsNewerMailElsewhere() async throws {
    let cluster = cluster()
    let holds = FakeHolds()
    _ = try await inspector(cluster, holds: holds, now: { now }).perform(command(.bounce, .all))
    let seen = try last(cluster, "n3")
    #expect(seen.shared?.cutoff == now)
    #expect(seen.shared?.kind == .bounce)
    #expect(seen.reason == "r" && !seen.report && seen.duration == nil)
    #expect(holds.state.withLock { $0.values.keys.first } == "bounce/id1")
}

@Test func verbForOneNodeThatReachesAll() async throws {
    let cluster = cluster()
    let holds = FakeHolds()
    var one = command(.suspend)
    one.nodeOnly = true
    _ = try await inspector(cluster, holds: holds).perform(one)
    #expect(try last(cluster, "n1").shared == nil)
    #expect(cluster.nodes["n2"]?.state.withLock { $0.commands.isEmpty } == true)
    #expect(holds.state.withLock { $0.values.isEmpty })
    _ = try await inspector(cluster, holds: holds).perform(command(.retry))
    #expect(try last(cluster, "n2").verb == .retry)
    #expect(try last(cluster, "n2").nodeOnly)
    #expect(holds.state.withLock { $0.values.isEmpty }, "a retry is over at once")
}

@Test func controlPlaneThatIsAway() async throws {
    let cluster = cluster()
    let holds = FakeHolds()
    let inspector = inspector(cluster, holds: holds)
    _ = try await inspector.perform(command(.suspend))
    holds.state.withLock { $0.isDown = true }
    let report = try await inspector.perform(command(.suspend, .all))
    #expect(report.incomplete == ["(control plane)"])
    #expect(report.count == 9, "the nodes that answer hold all the same")
    #expect(try last(cluster, "n2").revision == nil)
    // A resumption that would come undone changes nothing.
    do {
        _ = try await inspector.perform(command(.resume))
        Issue.record("resumed without the control plane")
    } catch let problem as ProblemReport { #expect(problem.status == 503) }
    #expect(try last(cluster, "n1").verb == .suspend)
    #expect(try last(cluster, "n2").verb == .suspend)
    holds.state.withLock { $0.isDown = false }
    _ = try await inspector.perform(command(.resume, .site("x")))
    #expect(holds.state.withLock { $0.values.count } == 1, "exactly this selector's")
    _ = try await inspector.perform(command(.resume, .all))
    #expect(holds.state.withLock { $0.values.isEmpty })
    #expect(try last(cluster, "n3").verb == .resume)
    #expect(try last(cluster, "n3").revision == 13)
}

@Test func holdsPileUpInTheControlPlane() async throws {
    let cluster = cluster()
    let holds = FakeHolds()
    holds.state.withLock { state in
        for number in 0..<SharedHoldLimits.holds {
            let hold = suspension("h\(number)", .site("s\(number)"), until: number == 0 ? now : nil)
            state.values[hold.key] = hold
        }
    }
    let inspector = inspector(cluster, holds: holds, now: { now })
    _ = try await inspector.perform(command(.suspend))
    #expect(holds.state.withLock { $0.values.count } == SharedHoldLimits.holds, "one of them is over, and stays")
    #expect(holds.state.withLock { $0.values[suspension("h0", .site("s0")).key] } == nil)
    await #expect(throws: ProblemReport.self) { try await inspector.perform(command(.bounce)) }
    #expect(try last(cluster, "n1").verb == .suspend)
}

@Test func operationThatIsDoneOnOneNodeOnly() async throws {
    let cluster = cluster()
    cluster.nodes["n2"]?.state.withLock { $0.isDone = false }
    let inspector = inspector(cluster)
    let begun = try await inspector.perform(command(.retry, .all))
    #expect(!begun.done)
    #expect(begun.operation == "n1~0-1,n2~0-1,n3~0-1")
    var goingOn = try #require(try await inspector.operation(begun.operation))
    #expect(!goingOn.done && goingOn.count == 15 && goingOn.operation == begun.operation && goingOn.verb == "retry")
    // A node that is gone does not keep the operator waiting.
    cluster.state.withLock { $0.silent = ["n2"] }
    goingOn = try #require(try await inspector.operation(begun.operation))
    #expect(goingOn.done && goingOn.count == 10 && goingOn.incomplete == ["n2"])
    #expect(try await inspector.operation("n1~0-9,n3~0-9") == nil)
    #expect(try await inspector.operation("0-1")?.count == 5, "this node's own, of scope=node")
}

// MARK: Following

@Test func nodeThatWasAway() {
    var book = HoldBook(marks: [domain: "gone", .site("s"): "kept"])
    let shared = SharedHolds(
        revision: 5,
        holds: [
            suspension("kept", .site("s")), suspension("new", .senderDomain(Domain("b.test")), until: now + .hours(1)),
            suspension("over", .nullSender, until: now), bounce("b1"), bounce("b0", made: now - .seconds(1)),
        ])
    #expect(
        book.steps(toward: shared, at: now, again: false) == [
            .bounce(bounce("b0", made: now - .seconds(1))), .bounce(bounce("b1")), .suspend(shared.holds[1]),
            .resume(domain),
        ])
    for hold in shared.holds where !hold.isOver(at: now) { book.applied(hold, at: nil) }
    book.forgotten(domain)
    book.followed(shared)
    #expect(book.steps(toward: shared, at: now, again: false).isEmpty, "once")
    // A take-over brings mail that no bounce has met.
    #expect(book.steps(toward: shared, at: now, again: true).count == 2)
    // The same selector suspended anew: the new end counts.
    let anew = SharedHolds(revision: 6, holds: [suspension("anew", .site("s"), until: now + .hours(2))])
    #expect(
        book.steps(toward: anew, at: now, again: false)
            == [.suspend(anew.holds[0]), .resume(.senderDomain(Domain("b.test")))])
    book.followed(anew)
    #expect(book.bounced.isEmpty, "forgotten with their keys")
}

@Test func slowReadThatUndoesALaterVerb() {
    var book = HoldBook()
    let old = SharedHolds(revision: 7, holds: [])
    book.applied(suspension("a"), at: 8)
    #expect(book.steps(toward: old, at: now, again: true).isEmpty, "it would end what has just begun")
    let between = SharedHolds(revision: 8, holds: [suspension("a")])
    book.forgotten(domain, at: 9)
    #expect(book.steps(toward: between, at: now, again: true).isEmpty, "it would bring back what has just ended")
    #expect(book.marks.isEmpty)
    let after = SharedHolds(revision: 9, holds: [suspension("a")])
    #expect(book.steps(toward: after, at: now, again: false) == [.suspend(suspension("a"))])
}

@Test func suspensionOfOneNodeThatTheClusterEnds() {
    var book = HoldBook()
    book.forgotten(domain)
    #expect(book.steps(toward: SharedHolds(revision: 1, holds: []), at: now, again: true).isEmpty)
    // One that could not be put into the control plane is this node's own.
    #expect(book.marks.isEmpty)
}

@Test func bounceThatIsKeptForEver() {
    let hold = bounce("b")
    #expect(!hold.isOver(at: now + SharedHoldLimits.bounceKept - .seconds(1)))
    #expect(hold.isOver(at: now + SharedHoldLimits.bounceKept))
    let late = HoldBook().steps(
        toward: SharedHolds(revision: 1, holds: [hold]), at: now + SharedHoldLimits.bounceKept, again: true)
    #expect(late.isEmpty)
}

@Test func holdThatMeansOtherMailAfterItsWay() throws {
    let selectors: [AdminSelector] = [
        .message(sampleID), domain, .site("a b"), .sender(try #require(MailAddress("a@b.test"))), .nullSender,
        .senderDomain(Domain("b.test")), .all,
    ]
    var keys: Set<String> = []
    for selector in selectors {
        let hold = suspension("x", selector, until: now)
        let back = try JSONDecoder().decode(SharedHold.self, from: JSONEncoder().encode(hold))
        #expect(back == hold)
        #expect(back.selector == selector)
        #expect(hold.key.utf8.count <= 40)
        keys.insert(hold.key)
    }
    #expect(keys.count == selectors.count)
    #expect(suspension("y").key == suspension("x").key, "a second one for a selector replaces the first")
    #expect(
        AdminSelector("message", "x") == nil && AdminSelector("colour", "") == nil && AdminSelector("all", "x") == nil)
}

@Test func followingWithoutRoomForOperations() async throws {
    let clock = Counted()
    struct Clock: TimeSource {
        let count: Counted
        func now() -> Instant { Instant(nanoseconds: 0) + .seconds(Int64(count.next())) }
    }
    let tries = Counted()
    await #expect(throws: OperationRefusal.self) {
        try await RelayNode.patiently(for: .seconds(3), Clock(count: clock)) {
            _ = tries.next()
            throw OperationRefusal.tooManyOperations
        }
    }
    #expect(tries.next() == 4, "the first, and again while there is time")
    await #expect(throws: OperationRefusal.self) {
        try await RelayNode.patiently(for: .hours(1), Clock(count: clock)) { throw OperationRefusal.tooManyHolds }
    }
}

// MARK: A node

/// A whole node in this process, on a folder of its own.
private func withNode(_ body: (RelayNode, String) async throws -> Void) async throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("h-\(UInt64.random(in: 0 ... .max))")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    let file = folder.path + "/b.yaml"
    try Data("node: { data_dir: data, shutdown_grace: 1s }\nspool: { min_free: 0B, segment_size: 1MiB }".utf8).write(
        to: URL(fileURLWithPath: file))
    let node = try await RelayNode.start(
        try ConfigurationLoader.load(path: file), logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
    do {
        try await body(node, file)
    } catch {
        await node.stop()
        throw error
    }
    await node.stop()
}

private func inForce(_ node: RelayNode) async -> Set<QueueSelector> {
    Set(await node.loops[0].partition.holds().map(\.selector))
}

@Test func suspensionOfTheClusterAfterARestart() async throws {
    try await withNode { node, file in
        var own = command(.suspend, .site("own"))
        own.nodeOnly = true
        _ = try await node.perform(own)
        let all = suspension("a", .all)
        let site = suspension("s", .site("s"))
        try await node.follow(SharedHolds(revision: 3, holds: [all, site, bounce("b")]), again: true)
        #expect(await inForce(node) == [.all, .site(Array("s".utf8)), .site(Array("own".utf8))])
        await node.stop()
        let again = try await RelayNode.start(
            try ConfigurationLoader.load(path: file), logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
        #expect(again.holds.book.withLock { $0.marks } == [.all: "a", .site("s"): "s"])
        #expect(await inForce(again) == [.all, .site(Array("s".utf8)), .site(Array("own".utf8))])
        // While it was away `all` was resumed: that one alone goes, and this node's own stays.
        try await again.follow(SharedHolds(revision: 9, holds: [site]), again: true)
        #expect(await inForce(again) == [.site(Array("s".utf8)), .site(Array("own".utf8))])
        // A verb of the cluster that came meanwhile is not undone by an older read.
        var late = command(.suspend)
        late.shared = suspension("late")
        late.revision = 12
        _ = try await again.perform(late)
        try await again.follow(SharedHolds(revision: 11, holds: [site]), again: true)
        #expect(await inForce(again).contains(.domain(Domain("example.test"))))
        var resumed = command(.resume, .all)
        resumed.revision = 13
        _ = try await again.perform(resumed)
        #expect(await inForce(again).isEmpty)
        #expect(again.holds.book.withLock { $0.marks.isEmpty })
        await again.stop()
    }
}

@Test func healthOfANodeThatIsCutOff() async throws {
    struct Fake: ClusterHealth {
        var copies = 2
        var acceptsMail = true
        var isDraining = false
        func reasons() -> [String] { ["a segment has one copy"] }
        func parts() -> (takeovers: [ClusterStatusReport.Takeover], limits: [ClusterStatusReport.Limit]) {
            let limit = ClusterStatusReport.Limit(
                site: "a.test", kind: "connections", node: "n1", home: nil, limit: 20, share: 8, used: 5)
            return ([], [limit])
        }
    }
    try await withNode { node, _ in
        try await node.listen()
        var health = await NodeInspector(node: node, cluster: Fake()).health()
        #expect(health.state == .degraded && health.isServing && health.copies == 2)
        #expect(health.reasons.contains("a segment has one copy"))
        health = await NodeInspector(node: node, cluster: Fake(acceptsMail: false)).health()
        #expect(health.state == .cutOff && !health.isServing)
        health = await NodeInspector(node: node, cluster: Fake(isDraining: true)).health()
        #expect(health.state == .draining && !health.isServing)
        #expect(await NodeInspector(node: node).health().copies == 1)
        // What other nodes hear of it, and put beside their own.
        let question = PeerQuery(path: "/api/v1/cluster")
        let (status, json) = await PeerQueries(node: NodeInspector(node: node, cluster: Fake())).answer(
            question.name, try #require(question.json))
        #expect(status == 200 && String(decoding: json, as: UTF8.self).contains("\"site\":\"a.test\""))
    }
}
