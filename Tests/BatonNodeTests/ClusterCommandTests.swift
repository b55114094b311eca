// `baton cluster …` against a node over a real loopback socket: exit codes, progress, and what a terminal shows.
import ArgumentParser
import BatonCore
import BatonModel
import Foundation
import Synchronization
import Testing

@testable import BatonNode
@testable import baton

/// Runs commands against n1 of `cluster`, or a node on its own; the exit codes in order.
private func codes(_ node: any NodeInspecting, _ commands: [[String]]) async throws -> [Int32] {
    let token = FileManager.default.temporaryDirectory.appendingPathComponent("t\(UInt64.random(in: 0 ... .max))")
    defer { try? FileManager.default.removeItem(at: token) }
    try Data(sampleToken.utf8).write(to: token)
    let box = Mutex<[Int32]>([])
    try await withServer(node) { port in
        let at = ["--admin", "http://127.0.0.1:\(port)", "--token-file", token.path]
        for words in commands {
            let code = exitCode(words + at)
            box.withLock { $0.append(code) }
        }
    }
    return box.withLock { $0 }
}

@Test func clusterCommandThatFailsWithZero() async throws {
    let cluster = FakeCluster(StubNode("n1"), StubNode("n2"))
    #expect(
        try await codes(
            inspector(cluster),
            [
                ["cluster", "status"], ["cluster", "status", "--json"], ["cluster", "forget", "n1"],
                ["cluster", "forget", "n3", "--json"], ["cluster", "forget", "a b"], ["cluster", "recover-registry"],
                ["cluster", "drain", "n9"], ["queue", "suspend", "--all"], ["queue", "list"],
            ]) == [0, 0, 1, 0, 1, 0, 1, 0, 0])
    #expect(cluster.state.withLock { $0.forgotten } == ["n3"])
    #expect(
        try await codes(
            FakeNode(), [["cluster", "status"], ["cluster", "drain"], ["cluster", "recover-registry"]]) == [0, 1, 1])
}

@Test func drainThatIsNotFollowedToItsEnd() async throws {
    let cluster = FakeCluster(StubNode("n1"), StubNode("n2"))
    cluster.state.withLock { $0.steps = 3 }
    let words = ["cluster", "drain", "n2", "--deadline", "0s", "--exit"]
    #expect(try await codes(inspector(cluster), [words]) == [0])
    #expect(cluster.state.withLock { $0.steps } == 0)
    #expect(
        cluster.state.withLock { $0.drains } == [ClusterDrainCommand(node: "n2", deadline: .zero, exit: true)])
    cluster.state.withLock { state in
        state.steps = 2
        state.drainProblem = "no other node is alive"
    }
    #expect(try await codes(inspector(cluster), [["cluster", "drain"]]) == [1])
}

@Test func topThatReadsForEver() async throws {
    // Each page is an empty one with a cursor.
    let node = StubNode("n1") { $0.isEndless = true }
    #expect(try await codes(inspector(FakeCluster(node)), [["top", "--once"], ["top", "--json"]]) == [0, 0])
    #expect(node.state.withLock { $0.limits.count } == 2 * Top.pages)
    #expect((try? Baton.parseAsRoot(["top", "--interval", "0"])) == nil)
    #expect((try? Baton.parseAsRoot(["top", "--limit", "0"])) == nil)
    #expect(await Baton.run(arguments: ["top", "--once", "--admin", "http://127.0.0.1:9"]) == 77)
}

@Test func topThatHidesTheBusySite() {
    func busy(_ name: String, inFlight: Int, ready: Int) -> QueueReport.Site {
        var site = site(name, ready: ready)
        site.inFlight = inFlight
        return site
    }
    let first = QueueReport(
        total: QueueTotalReport(ready: 1),
        sites: [busy("c", inFlight: 1, ready: 1), busy("b", inFlight: 1, ready: 1), busy("d", inFlight: 1, ready: 9)],
        next: "x", incomplete: ["n2"])
    let second = QueueReport(
        total: QueueTotalReport(ready: 2), sites: [busy("b", inFlight: 1, ready: 1), busy("a", inFlight: 9, ready: 0)],
        next: nil, incomplete: ["n3"])
    let joined = QueueReport.joined(first, second)
    #expect(joined.total.ready == 2 && joined.incomplete == ["n2", "n3"] && joined.next == nil)
    #expect(joined.sites.map(\.site) == ["c", "b", "d", "a"])
    let all = Top.busiest(joined, limit: 10)
    // b has two nodes' connections.
    #expect(all.sites.map(\.site) == ["a", "b", "d", "c"])
    #expect(all.next == nil)
    let cut = Top.busiest(joined, limit: 2)
    #expect(cut.sites.map(\.site) == ["a", "b"])
    #expect(AdminText.queue(cut).contains("(more sites)"))
    #expect(Top.room(rows: 0) == 1 && Top.room(rows: 30) == 22)
}

@Test func clusterTextThatAPeerWrites() throws {
    var report = ClusterStatusReport(
        name: "prod", copies: 2,
        nodes: [
            .init(
                id: "n1", state: .serving, incarnation: 0x12, address: "10.0.0.1:7025", version: "0.1.0",
                messages: 1204,
                diskUsedFraction: 0.314),
            .init(id: "n2", state: .dead, incarnation: 0x13, address: "10.0.0.2:7025", version: "\u{1b}[31m"),
        ], segments: .init(open: 6, sealed: 14, underReplicated: 2),
        takeovers: [.init(node: "n2", incarnation: 0x13, by: "n1", segments: 4, done: 2, since: .epoch)],
        limits: [
            .init(
                site: "example.test", kind: "connections", node: "n1", home: nil, limit: 20, share: 8, used: 5)
        ], incomplete: ["n2"])
    #expect(
        ClusterText.status(report)
            == """
            cluster prod, 2 nodes, copies 2

            NODE  STATE    MESSAGES  DISK  ADDRESS        VERSION     INCARNATION
            n1    serving  1204      31%   10.0.0.1:7025  0.1.0       0000000000000012
            n2    dead     ?         ?     10.0.0.2:7025  \\u{1b}[31m  0000000000000013

            segments: 6 open, 14 sealed, 2 under-replicated

            TAKE-OVER OF  BY  SEGMENTS  SINCE
            n2            n1  2 of 4    1970-01-01T00:00:00.000Z

            SITE          LIMIT        OF  NODE  SHARE  USED  HOME
            example.test  connections  20  n1    8      5     -
            (no answer from: n2)
            """)
    report = ClusterStatusReport(name: nil, copies: 1, nodes: [.init(id: "n1", state: .serving)])
    #expect(ClusterText.status(report).hasPrefix("no cluster, 1 node, copies 1\n"))
    let drain = ClusterDrainReport(
        node: "n2", state: .draining, messages: 7, handedOver: 3, deadline: .epoch, exit: false, done: false)
    #expect(
        ClusterText.drain(drain)
            == "n2: draining, 7 messages left, 3 handed over, hands over the rest at 1970-01-01T00:00:00.000Z")
    let end = ClusterDrainReport(
        node: "n2", state: .draining, messages: 7, handedOver: 0, deadline: nil, exit: false, done: true,
        problem: "disk full")
    #expect(ClusterText.drain(end) == "n2: draining, 7 messages left: disk full")
}
