// What operators and the admin HTTP do with the cluster, bound to its runtime.
import BatonCluster
import BatonControlPlane
import BatonCore
import BatonModel
import BatonPeer
import BatonRuntime
import BatonSpool
import Foundation
import Logging
import NIOCore
import Synchronization

/// `ClusterAdministering` of a running node, and `HoldSharing` (ClusterAdministration+Holds.swift). Questions to other nodes are QUERY
/// frames on the control channel.
final class ClusterAdministration: ClusterAdministering {
    private struct Pending {
        var waiting: [UInt64: String] = [:]
        var answers: [PeerAnswer] = []
        var done: CheckedContinuation<Void, Never>?
    }

    private struct State {
        var questions: [UInt64: Pending] = [:]
        /// The question that a request number belongs to.
        var owners: [UInt64: UInt64] = [:]
        var next: UInt64 = 1
        var drain: (deadline: Instant, exit: Bool)?
        var drained = false
        var holdsRevision: UInt64 = 0
        var holdsSeen: [ControlEntry] = []
        var takeovers = 0
    }

    let relay: RelayNode
    private let cluster: NodeCluster
    private let state = Mutex(State())
    private let queries = Mutex<PeerQueries?>(nil)

    init(relay: RelayNode, cluster: NodeCluster) {
        self.relay = relay
        self.cluster = cluster
    }

    private var runtime: ClusterRuntime { cluster.runtime }
    var plane: any ControlPlane { runtime.agent.plane }
    var paths: ClusterPaths { runtime.agent.paths }

    var node: String { runtime.settings.nodeName }

    /// Once, before the admin HTTP serves: other nodes' questions are answered by `queries`.
    func bind(_ queries: PeerQueries) {
        self.queries.withLock { $0 = queries }
        runtime.handlers { [self] handlers in
            handlers.query = { query, identity in self.received(query, from: identity) }
            handlers.answer = { answer, identity in self.received(answer, from: identity) }
            let before = handlers.membership
            handlers.membership = { view in
                before(view)
                self.listed(view)
            }
        }
        runtime.refresh()
    }

    // MARK: Health

    var copies: Int { cluster.settings.minCopies }

    var acceptsMail: Bool {
        if case .refused(.noCopies) = relay.spool.admission { return false }
        return true
    }

    var isDraining: Bool { state.withLock { $0.drain != nil } }

    func reasons() -> [String] {
        var found: [String] = []
        if let obstacle = runtime.agent.obstacle { found.append(obstacle) }
        if !runtime.isRegistered { found.append("not registered in the control plane") }
        if !acceptsMail { found.append("not enough copies: mail is refused with 451") }
        if runtime.replicator.reachable < copies - 1 { found.append("fewer than \(copies) nodes can be reached") }
        return found
    }

    // MARK: Status

    func parts() -> (takeovers: [ClusterStatusReport.Takeover], limits: [ClusterStatusReport.Limit]) {
        guard let view = runtime.view else { return ([], []) }
        return (takeovers(view), limits(view))
    }

    func status() async -> ClusterStatusReport {
        var latest = runtime.view
        if let found = try? await plane.list(paths.all) { latest = ClusterView(found, in: paths) }
        guard let view = latest else {
            return ClusterStatusReport(
                name: cluster.settings.name, copies: copies,
                nodes: [ClusterStatusReport.Member(id: node, state: .joining)])
        }
        var nodes = view.nodes.map { entry in
            ClusterStatusReport.Member(
                id: entry.id, state: ClusterNodeState(rawValue: entry.state.rawValue) ?? .serving,
                incarnation: entry.run?.incarnation.value, address: entry.address, version: entry.version)
        }
        for entry in view.roster where !nodes.contains(where: { $0.id == entry.id }) {
            nodes.append(ClusterStatusReport.Member(id: entry.id, state: .dead))
        }
        var segments = ClusterStatusReport.Segments()
        let alive = Set(view.nodes.compactMap(\.member))
        for key in view.listing.keys {
            switch key.state {
            case .open: segments.open += 1
            case .sealed: segments.sealed += 1
            case .finished: continue
            }
            let live = key.ensemble.count { alive.contains($0) && !key.stale.contains($0) }
            if live < copies { segments.underReplicated += 1 }
        }
        return ClusterStatusReport(
            name: cluster.settings.name, copies: copies, nodes: nodes.sorted { $0.id < $1.id }, segments: segments,
            takeovers: takeovers(view), limits: limits(view))
    }

    private func limits(_ view: ClusterView) -> [ClusterStatusReport.Limit] {
        var names: [NodeID: String] = [:]
        for entry in view.roster { names[NodeID(name: entry.id)] = entry.id }
        return (relay.quota?.parts(atMost: ClusterAdminLimits.reportRows) ?? []).map { part in
            let kind =
                switch part.key.kind {
                case .connections: "connections"
                case .rate: "rate"
                }
            return ClusterStatusReport.Limit(
                site: String(decoding: part.key.site, as: UTF8.self), kind: kind, node: node,
                home: part.home.flatMap { names[$0] }, limit: Int(clamping: part.limit),
                share: Int(clamping: part.share),
                used: Int(clamping: part.used))
        }
    }

    private func takeovers(_ view: ClusterView) -> [ClusterStatusReport.Takeover] {
        var found: [NodeID: ClusterStatusReport.Takeover] = [:]
        for notice in runtime.takeoverNotices {
            let name = view.roster.first { NodeID(name: $0.id) == notice.from.node }?.id ?? "?"
            var row =
                found[notice.from.node]
                ?? ClusterStatusReport.Takeover(
                    node: name, incarnation: notice.from.incarnation.value, by: node, segments: 0, done: 0,
                    since: notice.at)
            row.segments += 1
            let key = view.listing.keys.first { $0.id == notice.segment }
            if relay.spool.ledger.handle(of: notice.segment) != nil || key == nil || key?.state == .finished {
                row.done += 1
            }
            found[notice.from.node] = row
        }
        return Array(found.values)
    }

    // MARK: Questions

    func ask(_ name: String, _ json: [UInt8], nodes: [String]?, within: TimeSpan) async -> PeerAnswers {
        let others = nodes ?? runtime.view?.nodes.map(\.id).filter { $0 != node } ?? []
        guard !others.isEmpty else { return PeerAnswers() }
        let question = state.withLock { state -> UInt64 in
            let question = state.next
            var pending = Pending()
            for other in others {
                pending.waiting[state.next] = other
                state.owners[state.next] = question
                state.next += 1
            }
            state.questions[question] = pending
            return question
        }
        let asked = state.withLock { $0.questions[question]?.waiting ?? [:] }
        for (request, other) in asked {
            let query = Query(request: request, name: Array(name.utf8), json: ByteBuffer(bytes: json))
            _ = runtime.transport.send([.query(query)], to: NodeID(name: other))
        }
        let timer = Task {
            try? await Task.sleep(nanoseconds: UInt64(max(0, within.nanoseconds)))
            self.finish(question)
        }
        await withCheckedContinuation { continuation in
            let isOver = state.withLock { state in
                guard state.questions[question]?.waiting.isEmpty == false else { return true }
                state.questions[question]?.done = continuation
                return false
            }
            if isOver { continuation.resume() }
        }
        timer.cancel()
        return state.withLock { state in
            guard let pending = state.questions.removeValue(forKey: question) else { return PeerAnswers() }
            for request in pending.waiting.keys { state.owners[request] = nil }
            return PeerAnswers(answers: pending.answers, missing: pending.waiting.values.sorted())
        }
    }

    private func finish(_ question: UInt64) {
        let done = state.withLock { state in
            defer { state.questions[question]?.done = nil }
            return state.questions[question]?.done
        }
        done?.resume()
    }

    private func received(_ answer: Answer, from identity: PeerIdentity) {
        let name = String(decoding: identity.name, as: UTF8.self)
        let question = state.withLock { state -> UInt64? in
            guard let question = state.owners[answer.request],
                state.questions[question]?.waiting[answer.request] == name
            else { return nil }
            state.owners[answer.request] = nil
            state.questions[question]?.waiting[answer.request] = nil
            state.questions[question]?.answers.append(
                PeerAnswer(node: name, status: Int(answer.status), json: Array(answer.json.readableBytesView)))
            return state.questions[question]?.waiting.isEmpty == true ? question : nil
        }
        if let question { finish(question) }
    }

    private func received(_ query: Query, from identity: PeerIdentity) {
        let (name, json) = (String(decoding: query.name, as: UTF8.self), Array(query.json.readableBytesView))
        let queries = queries.withLock { $0 }
        Task {
            let answer: (status: Int, json: [UInt8])
            if name == RegistryRecovery.question {
                answer = await RegistryRecovery.inventory(of: self.relay)
            } else if name == RegistryStanding.question {
                answer = RegistryRecovery.standing(json, agent: self.runtime.agent)
            } else {
                answer = await queries?.answer(name, json) ?? (503, [])
            }
            let frame = Answer(
                request: query.request, status: UInt16(clamping: answer.status), json: ByteBuffer(bytes: answer.json))
            _ = self.runtime.transport.send([.answer(frame)], to: identity.run.node)
        }
    }

    // MARK: News of the control plane

    /// On the cluster's thread.
    private func listed(_ view: ClusterView) {
        let count = runtime.takeoverNotices.count
        let (isNews, again) = state.withLock { state in
            let again = count != state.takeovers
            let isNews = view.holds != state.holdsSeen || again || state.holdsRevision == 0
            state.holdsSeen = view.holds
            state.takeovers = count
            state.holdsRevision = view.listing.revision
            return (isNews, again)
        }
        if isNews {
            let shared = SharedHolds(
                revision: view.listing.revision, holds: view.holds.compactMap { ClusterCodec.decode($0.value) })
            Task {
                do {
                    try await self.relay.follow(shared, again: again)
                } catch {
                    self.relay.logger.warning("cluster: holds cannot be followed", metadata: ["why": "\(error)"])
                }
            }
        }
        if let request = view.drains.first(where: { $0.node == node }) {
            beginDrain(until: Instant(nanoseconds: request.deadline), exit: request.exit)
        }
    }

    // MARK: Drain

    func drain(node: String, deadline: TimeSpan, exit: Bool) async throws -> ClusterDrainReport {
        // Its mail is nowhere but on its disk: a drain would end at once.
        if let obstacle = runtime.agent.obstacle { throw ProblemReport(503, "Service Unavailable", obstacle) }
        guard let view = runtime.view, view.nodes.contains(where: { $0.id == node }) else {
            throw ProblemReport(404, "Not Found", "no live node \(node)")
        }
        let until = relay.time.now() + deadline
        let request = DrainRequest(node: node, deadline: until, exit: exit)
        do {
            let put = ControlWrite.put(paths.drain(node), ClusterCodec.json(request))
            _ = try await plane.commit(ControlTransaction(if: [], [put]))
        } catch {
            throw ProblemReport(503, "Service Unavailable", "the control plane does not answer")
        }
        if node == self.node { beginDrain(until: until, exit: exit) }
        return try await drainProgress(node: node)
            ?? ClusterDrainReport(
                node: node, state: .draining, messages: 0, handedOver: 0, deadline: until, exit: exit, done: false)
    }

    func drainProgress(node: String) async throws -> ClusterDrainReport? {
        if node == self.node {
            guard let (deadline, exit) = state.withLock({ $0.drain }) else { return nil }
            let done = state.withLock { $0.drained }
            return ClusterDrainReport(
                node: node, state: done ? .drained : .draining, messages: relay.spool.stats.messages, handedOver: 0,
                deadline: deadline, exit: exit, done: done)
        }
        let request = runtime.view?.drains.first { $0.node == node }
        let entry = runtime.view?.nodes.first { $0.id == node }
        guard request != nil || entry?.state == .draining || entry?.state == .drained else {
            // Its key and its request went together: it has left.
            guard runtime.view != nil, entry == nil else { return nil }
            return ClusterDrainReport(
                node: node, state: .drained, messages: 0, handedOver: 0, deadline: nil, exit: false, done: true)
        }
        let found = await ask(
            "GET /api/v1/cluster", PeerQuery(path: "/api/v1/cluster").json ?? [], nodes: [node],
            within: ClusterAdminLimits.answerWait)
        let status = found.answers.first.flatMap {
            try? AdminClient.decode(ClusterStatusReport.self, from: Data($0.json))
        }
        let member = status?.nodes.first { $0.id == node }
        let isDone = entry?.state == .drained
        return ClusterDrainReport(
            node: node, state: isDone ? .drained : .draining, messages: member?.messages ?? 0, handedOver: 0,
            deadline: request.map { Instant(nanoseconds: $0.deadline) }, exit: request?.exit ?? false, done: isDone)
    }

    private func beginDrain(until deadline: Instant, exit: Bool) {
        let isFirst = state.withLock { state in
            defer { state.drain = (deadline, exit) }
            return state.drain == nil
        }
        if isFirst { Task { await self.runDrain() } }
    }

    /// No new mail, no new copies; delivers until nothing is left or the deadline; then the others take over what is left.
    private func runDrain() async {
        relay.logger.notice("cluster: this node is drained")
        relay.gate.stopAccepting()
        // A control plane that does not answer holds no mail up.
        let registration = runtime.registration
        Task { await registration.announce(.draining) }
        while relay.spool.stats.messages > 0 {
            guard let deadline = state.withLock({ $0.drain?.deadline }), relay.time.now() < deadline else { break }
            try? await Task.sleep(nanoseconds: 100_000_000)
        }
        runtime.leave()
        await relay.stopDelivering()
        await runtime.settle(within: DriverLimits.settleWait)
        await registration.announce(.drained, within: ClusterAdminLimits.announceWait)
        state.withLock { $0.drained = true }
        try? await Task.sleep(nanoseconds: UInt64(ClusterAdminLimits.drainedLinger.nanoseconds))
        await NodeQuota.remove(runtime.settings.me.node, from: runtime.agent)
        await registration.stop(forGood: true)
        relay.logger.notice("cluster: this node has left")
        if state.withLock({ $0.drain?.exit }) == true { kill(getpid(), SIGTERM) }
    }

    // MARK: Forget

    func forget(node: String) async throws -> ClusterForgetReport {
        let found: ControlListing
        do {
            found = try await plane.list(paths.all)
        } catch {
            throw ProblemReport(503, "Service Unavailable", "the control plane does not answer")
        }
        let view = ClusterView(found, in: paths)
        if view.nodes.contains(where: { $0.id == node }) {
            throw ProblemReport(409, "Conflict", "\(node) holds its lease: it is alive")
        }
        let id = NodeID(name: node)
        var disks = Set(view.roster.filter { $0.id == node }.compactMap { UInt64($0.disk, radix: 16) })
        for key in view.listing.keys {
            for member in key.ensemble + key.former where member.node == id { disks.insert(member.diskID) }
        }
        guard !disks.isEmpty else { throw ProblemReport(404, "Not Found", "no node \(node)") }
        var writes: [ControlWrite] = [.delete(paths.roster(node)), .delete(paths.drain(node))]
        writes += disks.map { disk in
            .put(paths.forgotten(node, disk: disk), ClusterCodec.json(RosterEntry(id: node, disk: disk)))
        }
        do {
            let commit = try await plane.commit(ControlTransaction(if: [.absent(paths.node(node))], writes))
            guard case .committed = commit else {
                throw ProblemReport(409, "Conflict", "\(node) has come back: it is alive")
            }
        } catch let problem as ProblemReport {
            throw problem
        } catch {
            throw ProblemReport(503, "Service Unavailable", "the control plane does not answer; ask again")
        }
        await NodeQuota.remove(id, from: runtime.agent)
        runtime.transport.forget(id)
        runtime.refresh()
        let gone = Set(view.listing.forgotten + disks.map { EnsembleMember(node: id, diskID: $0) })
        let touched = view.listing.keys.filter { key in
            key.state != .finished && key.ensemble.contains { $0.node == id && disks.contains($0.diskID) }
        }
        return ClusterForgetReport(
            node: node, segments: touched.count, lost: touched.count { $0.ensemble.allSatisfy(gone.contains) })
    }

    func recoverRegistry() async throws -> ClusterRecoveryReport {
        let report = try await RegistryRecovery.run(self, relay: relay, agent: runtime.agent)
        runtime.refresh()
        return report
    }
}
