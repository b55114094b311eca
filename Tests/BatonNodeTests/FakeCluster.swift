// A cluster of values for tests of the admin side: nodes that answer from lists, a runtime that loses answers, a control plane.
import BatonCore
import BatonModel
import Foundation
import Synchronization

@testable import BatonNode

/// A node with its own rows; cursors are numbers.
final class StubNode: NodeInspecting {
    struct State {
        var sites: [QueueReport.Site] = []
        var rows: [QueueListReport.Row] = []
        var messages: [MessageReport] = []
        var commands: [AdminCommand] = []
        var refusal: ProblemReport?
        /// Limits that listings were asked with.
        var limits: [Int] = []
        /// Every page goes on, without rows.
        var isEndless = false
        var isDone = true
    }

    let name: String
    let state: Mutex<State>

    init(_ name: String, _ change: (inout State) -> Void = { _ in }) {
        self.name = name
        var state = State()
        change(&state)
        self.state = Mutex(state)
    }

    func health() async -> HealthReport {
        HealthReport(
            state: .serving, node: name, version: "0.\(name)", copies: 2,
            disk: .init(freeBytes: 1, totalBytes: 4, minFreeBytes: 1))
    }

    func storedMessages() async -> Int { state.withLock { $0.rows.count } }

    private func page<Row>(_ rows: [Row], _ limit: Int, _ cursor: String?) throws -> ([Row], String?) {
        if let refusal = state.withLock({ $0.refusal }) { throw refusal }
        state.withLock { $0.limits.append(limit) }
        guard let start = cursor.map({ Int($0) }) ?? 0 else {
            throw ProblemReport(400, "Bad Request", "unknown cursor")
        }
        if state.withLock({ $0.isEndless }) { return ([], "\(start + 1)") }
        let end = min(start + limit, rows.count)
        return (Array(rows[min(start, end)..<end]), end < rows.count ? "\(end)" : nil)
    }

    func queue(_ filter: AdminFilter) async throws -> QueueReport {
        precondition(filter.nodeOnly, "asked for the cluster by the cluster")
        let sites = state.withLock { $0.sites }.filter { filter.site == nil || filter.site == $0.site }
        let (page, next) = try page(sites, filter.limit, filter.cursor)
        return QueueReport(
            total: QueueTotalReport(ready: sites.reduce(0) { $0 + $1.ready }, inFlight: 1), sites: page, next: next)
    }

    func queuedMessages(_ filter: AdminFilter) async throws -> QueueListReport {
        precondition(filter.nodeOnly, "asked for the cluster by the cluster")
        let (page, next) = try page(state.withLock { $0.rows }, filter.limit, filter.cursor)
        return QueueListReport(messages: page, next: next)
    }

    func message(_ id: MessageID, nodeOnly: Bool) async throws -> MessageReport? {
        precondition(nodeOnly, "asked for the cluster by the cluster")
        if let refusal = state.withLock({ $0.refusal }) { throw refusal }
        return state.withLock { $0.messages }.first { $0.id == id.description }
    }

    func messages(
        _ search: MessageSearch, limit: Int, cursor: String?, nodeOnly: Bool
    ) async throws -> MessageListReport {
        precondition(nodeOnly, "asked for the cluster by the cluster")
        let (page, next) = try page(state.withLock { $0.messages }, limit, cursor)
        return MessageListReport(messages: page, next: next)
    }

    func perform(_ command: AdminCommand) async throws -> OperationReport {
        precondition(command.nodeOnly || name == "n1", "a verb that goes round")
        return try state.withLock { state in
            if let refusal = state.refusal { throw refusal }
            state.commands.append(command)
            return OperationReport(
                operation: "0-\(state.commands.count)", verb: command.verb.rawValue, count: 3, inFlight: 1,
                done: state.isDone)
        }
    }

    func operation(_ id: String) async throws -> OperationReport? {
        state.withLock { state in
            id == "0-\(state.commands.count)"
                ? OperationReport(operation: id, verb: "retry", count: 5, inFlight: 0, done: state.isDone) : nil
        }
    }
}

/// n1 is asked; the others answer through `PeerQueries`, as over the wire.
final class FakeCluster: ClusterAdministering {
    struct State {
        /// Asked, and without an answer.
        var silent: Set<String> = []
        var dead: Set<String> = []
        var takeovers: [ClusterStatusReport.Takeover] = []
        var limits: [ClusterStatusReport.Limit] = []
        /// Answers in place of the node's own.
        var broken: [String: PeerAnswer] = [:]
        var questions: [(name: String, json: [UInt8], nodes: [String])] = []
        var drains: [ClusterDrainCommand] = []
        /// Progress calls until a drain is done.
        var steps = 0
        var drainProblem: String?
        var forgotten: [String] = []
    }

    let node = "n1"
    let nodes: [String: StubNode]
    let state = Mutex(State())

    init(_ nodes: StubNode...) {
        self.nodes = Dictionary(uniqueKeysWithValues: nodes.map { ($0.name, $0) })
    }

    var copies: Int { 2 }
    var acceptsMail: Bool { true }
    var isDraining: Bool { false }
    func reasons() -> [String] { [] }
    func parts() -> (takeovers: [ClusterStatusReport.Takeover], limits: [ClusterStatusReport.Limit]) { ([], []) }

    func status() async -> ClusterStatusReport {
        let state = state.withLock { $0 }
        return ClusterStatusReport(
            name: "prod", copies: 2,
            nodes: nodes.keys.sorted(by: >).map {
                .init(
                    id: $0, state: state.dead.contains($0) ? .dead : .serving, incarnation: .max - 1,
                    address: "10.0.0.1:7025")
            }, segments: .init(open: 3, sealed: 4), takeovers: state.takeovers, limits: state.limits)
    }

    private func progress(_ node: String) -> ClusterDrainReport {
        state.withLock { state in
            state.steps -= 1
            let done = state.steps <= 0
            return ClusterDrainReport(
                node: node, state: done && state.drainProblem == nil ? .drained : .draining,
                messages: max(0, state.steps),
                handedOver: 0, deadline: nil, exit: false, done: done, problem: done ? state.drainProblem : nil)
        }
    }

    func drain(node: String, deadline: TimeSpan, exit: Bool) async throws -> ClusterDrainReport {
        guard nodes[node] != nil else { throw ProblemReport(404, "Not Found", "no node \(node)") }
        state.withLock { $0.drains.append(ClusterDrainCommand(node: node, deadline: deadline, exit: exit)) }
        return progress(node)
    }

    func drainProgress(node: String) async throws -> ClusterDrainReport? {
        state.withLock { $0.drains.contains { $0.node == node } } ? progress(node) : nil
    }

    func forget(node: String) async throws -> ClusterForgetReport {
        state.withLock { $0.forgotten.append(node) }
        return ClusterForgetReport(node: node, segments: 4, lost: 1)
    }

    func recoverRegistry() async throws -> ClusterRecoveryReport { ClusterRecoveryReport(segments: 20, written: 3) }

    func ask(_ name: String, _ json: [UInt8], nodes asked: [String]?, within: TimeSpan) async -> PeerAnswers {
        let others = asked ?? nodes.keys.filter { $0 != node }
        let (silent, broken) = state.withLock { state in
            state.questions.append((name, json, others))
            return (state.silent, state.broken)
        }
        precondition(!others.contains(node), "a node asks itself over the wire")
        var result = PeerAnswers()
        for other in others {
            guard let stub = nodes[other], !silent.contains(other) else {
                result.missing.append(other)
                continue
            }
            let (status, body) = await PeerQueries(node: stub).answer(name, json)
            result.answers.append(broken[other] ?? PeerAnswer(node: other, status: status, json: body))
        }
        return result
    }
}

/// Holds as etcd would keep them.
final class FakeHolds: HoldSharing {
    struct State {
        var revision: UInt64 = 10
        var values: [String: SharedHold] = [:]
        var isDown = false
    }

    struct Down: Error {}

    let state = Mutex(State())

    func put(_ hold: SharedHold) async throws -> UInt64 {
        try state.withLock { state in
            if state.isDown { throw Down() }
            state.revision += 1
            state.values[hold.key] = hold
            return state.revision
        }
    }

    func remove(_ keys: [String]) async throws -> UInt64 {
        try state.withLock { state in
            if state.isDown { throw Down() }
            state.revision += 1
            for key in keys { state.values[key] = nil }
            return state.revision
        }
    }

    func removeOver(_ holds: [SharedHold]) async throws {
        try state.withLock { state in
            if state.isDown { throw Down() }
            for hold in holds where state.values[hold.key] == hold { state.values[hold.key] = nil }
        }
    }

    func all() async throws -> SharedHolds {
        try state.withLock { state in
            if state.isDown { throw Down() }
            return SharedHolds(revision: state.revision, holds: Array(state.values.values))
        }
    }
}

/// n1 of `cluster`, as its admin HTTP asks it.
func inspector(
    _ cluster: FakeCluster, holds: FakeHolds = FakeHolds(),
    now: @escaping @Sendable () -> Instant = { Instant(nanoseconds: 1000) }
) -> ClusterInspector {
    let count = Counted()
    return ClusterInspector(
        local: cluster.nodes["n1"] ?? StubNode("n1"), runtime: cluster, holds: holds, time: now,
        freshID: { "id\(count.next())" })
}

/// Counts up from 1.
final class Counted: Sendable {
    private let value = Mutex(0)
    func next() -> Int {
        value.withLock {
            $0 += 1
            return $0
        }
    }
}

func site(_ name: String, ready: Int = 1, oldest: Int = 1, error: String? = nil) -> QueueReport.Site {
    QueueReport.Site(
        site: name, domains: 1, ready: ready, deferred: 2, suspended: 3, inFlight: 4, oldestSeconds: oldest,
        connections: 5, lastError: error)
}

func row(_ name: String, reply: String? = nil) -> QueueListReport.Row {
    QueueListReport.Row(
        id: name, sender: "s@example.net", recipient: "\(name)@example.test", site: "example.test", state: "ready",
        attempts: 0, arrived: "2026-01-01T00:00:00.000Z", due: nil, lastReply: reply)
}
