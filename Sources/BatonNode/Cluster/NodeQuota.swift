// Limits of the whole cluster, bound to the peer transport, the control plane and the node's own permits.
import BatonCluster
import BatonControlPlane
import BatonCore
import BatonDelivery
import BatonModel
import BatonPeer
import BatonRuntime
import BatonSpool
import Foundation
import Logging
import Synchronization

/// The quota's roster as JSON in the control plane.
struct QuotaRosterEntry: Codable, Sendable {
    struct Member: Codable, Sendable {
        var node: String
        var weight: UInt32
        var serving: Bool
        var withheld: UInt32
        var used: UInt32
    }

    var sequence: UInt64
    var members: [Member]

    init(_ roster: QuotaRoster) {
        sequence = roster.sequence
        members = roster.members.map {
            Member(
                node: ClusterStatusReport.Member.digits($0.node.value), weight: $0.weight, serving: $0.serving,
                withheld: $0.withheld, used: $0.used)
        }
    }

    /// Nil for anything that breaks the roster's own rules: the floors of everybody rest on it.
    var roster: QuotaRoster? {
        var found: [QuotaMember] = []
        for member in members {
            guard let node = UInt64(member.node, radix: 16) else { return nil }
            var entry = QuotaMember(node: NodeID(value: node), weight: member.weight, serving: member.serving)
            entry.withheld = member.withheld
            entry.used = member.used
            found.append(entry)
        }
        let roster = QuotaRoster(sequence: sequence, members: found)
        return roster.isSound ? roster : nil
    }
}

/// Reads the roster twice a second, proposes changes of it by compare-and-set, and marks who has no lease as not serving, so that
/// its sites get another home. Any thread.
final class NodeQuota: QuotaTransport {
    /// Between two reads of the roster: a home gives for 1.5 s after one.
    static let readInterval = TimeSpan.milliseconds(500)

    private struct Known {
        var roster = QuotaRoster(sequence: 0, members: [])
        var revision: ControlRevision?
        var readAt = Instant.epoch
        var reading = false
        var live: Set<NodeID> = []
        /// This node's weight, while it serves: one that drains must not come back into the roster it is removed from.
        var servingWeight: UInt32?
        var proposing = false
    }

    private let cluster: NodeCluster
    private let time: any TimeSource
    private let state = Mutex(Known())
    private let bound = Mutex<ClusterPermits?>(nil)

    init(_ cluster: NodeCluster, time: any TimeSource) {
        self.cluster = cluster
        self.time = time
    }

    private var runtime: ClusterRuntime { cluster.runtime }
    private var key: ControlKey { ControlKey(runtime.agent.paths.root + "quota") }

    /// Before the runtime starts. `permits`: the node's own.
    func permits(around permits: NodePermits, _ configuration: NodeConfiguration) -> ClusterPermits {
        let made = ClusterPermits(
            own: runtime.settings.me.node, seed: SystemRandom.uint64(), node: permits, transport: self, time: time)
        made.update(configuration.quotaSettings)
        bound.withLock { $0 = made }
        runtime.handlers { [self] handlers in
            handlers.quota = { quota, identity in made.received(quota, from: identity.run.node) }
            let tick = handlers.tick
            handlers.tick = {
                tick()
                made.tick()
                self.readIfDue()
            }
            let membership = handlers.membership
            handlers.membership = { view in
                membership(view)
                let me = self.runtime.settings.me.node
                let mine = view.nodes.first { $0.node == me && $0.state == .serving }
                self.state.withLock { state in
                    state.live = Set(view.nodes.map(\.node))
                    state.servingWeight = mine.map { UInt32(max(1, min(10_000, $0.weight * 100))) }
                }
            }
        }
        return made
    }

    // MARK: The roster

    private func readIfDue() {
        let now = time.now()
        let isDue = state.withLock { state in
            guard !state.reading, now - state.readAt >= Self.readInterval else { return false }
            state.reading = true
            state.readAt = now
            return true
        }
        guard isDue else { return }
        runtime.agent.plane.get(key) { [self] result in
            guard case .success(let found) = result else { return state.withLock { $0.reading = false } }
            let entry = found.entries.first
            let decoded: QuotaRosterEntry? = entry.flatMap { ClusterCodec.decode($0.value) }
            let roster = entry == nil ? QuotaRoster(sequence: 0, members: []) : decoded?.roster
            let change = state.withLock { state -> QuotaRoster? in
                state.reading = false
                guard let roster else { return nil }
                state.roster = roster
                state.revision = entry?.modified
                return self.joined(roster, state.servingWeight) ?? self.served(roster, state.live)
            }
            guard let roster else { return }
            bound.withLock { $0 }?.update(roster, askedAt: now)
            if let change { propose(change) }
        }
    }

    /// With this node in it, which has no part of anything yet, or all of it where there is no roster; nil if it is there, or does
    /// not serve.
    private func joined(_ roster: QuotaRoster, _ weight: UInt32?) -> QuotaRoster? {
        let me = runtime.settings.me.node
        guard let weight, roster[me] == nil else { return nil }
        if roster.sequence == 0 { return .first(me, weight: weight) }
        return QuotaRoster(
            sequence: roster.sequence + 1, members: roster.members + [QuotaMember(node: me, weight: weight)])
    }

    /// Whose lease is gone is no home; who is back is one again. The live node of the lowest number says so.
    private func served(_ roster: QuotaRoster, _ live: Set<NodeID>) -> QuotaRoster? {
        let me = runtime.settings.me.node
        guard live.contains(me), live.allSatisfy({ $0.value >= me.value }) else { return nil }
        var next = roster
        for index in next.members.indices {
            next.members[index].serving = live.contains(next.members[index].node)
        }
        guard next != roster else { return nil }
        next.sequence += 1
        return next
    }

    // MARK: QuotaTransport

    func send(_ message: Quota, to node: NodeID) { _ = cluster.transport.send([.quota(message)], to: node) }

    func propose(_ roster: QuotaRoster) {
        let comparison = state.withLock { state -> ControlComparison? in
            guard !state.proposing, roster.sequence == state.roster.sequence &+ 1, roster.isSound else { return nil }
            state.proposing = true
            return state.revision.map { .modified(key, at: $0) } ?? .absent(key)
        }
        guard let comparison else { return }
        let write = ControlWrite.put(key, ClusterCodec.json(QuotaRosterEntry(roster)))
        runtime.agent.plane.commit(ControlTransaction(if: [comparison], [write])) { [self] _ in
            // Its answer is the next read, whatever it was.
            state.withLock { state in
                state.proposing = false
                state.readAt = .epoch
            }
        }
    }

    /// A node has stopped for good: drained, or declared lost.
    static func remove(_ node: NodeID, from agent: ControlAgent) async {
        let key = ControlKey(agent.paths.root + "quota")
        for _ in 0..<5 {
            guard let found = try? await agent.plane.get(key), let entry = found.entries.first,
                let value: QuotaRosterEntry = ClusterCodec.decode(entry.value), var roster = value.roster,
                roster[node] != nil
            else { return }
            roster.members.removeAll { $0.node == node }
            roster.sequence += 1
            let commit = try? await agent.plane.commit(
                ControlTransaction(
                    if: [.modified(key, at: entry.modified)],
                    [.put(key, ClusterCodec.json(QuotaRosterEntry(roster)))]))
            if case .committed? = commit { return }
        }
    }
}
