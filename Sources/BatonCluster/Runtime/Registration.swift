// A node's registration: its key under a lease, its place in the roster, and why it may not register.
import BatonControlPlane
import BatonCore
import BatonModel
import BatonRuntime
import BatonSpool
import Logging
import Synchronization

/// Why this node cannot be part of the cluster until somebody acts. One clear line each.
package struct RegistrationRefusal: Error, CustomStringConvertible {
    package let description: String
}

/// Bounds of the registration (docs/LIMITS.md, "The cluster's runtime").
package enum RegistrationLimits {
    /// Between two tries of whatever the control plane did not answer.
    package static let pause = TimeSpan.milliseconds(500)
}

/// Registers one incarnation, once: a lease that is lost ends the incarnation (PROTOCOL T2).
package final class Registration: Sendable {
    private let agent: ControlAgent
    private let entry: NodeEntry
    private let disk: UInt64
    private let lease: TimeSpan
    private let logger: Logger
    private let time: any TimeSource
    private let pause: TimeSpan
    private let state = Mutex(State())

    private struct State {
        var keeper: LeaseKeeper?
        var lease: ControlLeaseID?
        var stopped = false
        /// What the node key is to say: it only ever goes on from joining to drained.
        var announced = NodeEntry.State.joining
    }

    package init(
        agent: ControlAgent, entry: NodeEntry, disk: UInt64, lease: TimeSpan, time: any TimeSource, logger: Logger,
        pause: TimeSpan = RegistrationLimits.pause
    ) {
        self.agent = agent
        self.entry = entry
        self.disk = disk
        self.lease = lease
        self.time = time
        self.pause = pause
        self.logger = logger
    }

    private var plane: any ControlPlane { agent.plane }
    private var paths: ClusterPaths { agent.paths }

    /// Whether this node's id is free for this disk. Throws `RegistrationRefusal`; other failures mean that the control plane did
    /// not answer, and are no reason not to start.
    package func check() async throws(RegistrationRefusal) {
        guard let found = try? await plane.list(paths.all) else { return }
        let view = ClusterView(found, in: paths)
        try check(view)
    }

    private func check(_ view: ClusterView) throws(RegistrationRefusal) {
        let mine = EnsembleMember(node: entry.node, diskID: disk)
        // A node that left in order, or whose last segment has gone since, may come back with its disk.
        let isNamed = view.listing.keys.contains { key in
            key.ensemble.contains(mine) || key.former.contains(mine) || key.joining == mine
        }
        if view.listing.forgotten.contains(mine), isNamed, !view.drained.contains(mine) {
            throw RegistrationRefusal(
                description: "this disk of node \(entry.id) was declared lost (baton cluster forget \(entry.id)): "
                    + "move data_dir away and start with an empty one")
        }
        for other in view.nodes where other.id != entry.id && other.node == entry.node {
            throw RegistrationRefusal(
                description: "node.id \(entry.id) has the same number as \(other.id): choose another name")
        }
        guard let known = view.roster.first(where: { $0.id == entry.id }), known.disk != entry.disk else { return }
        throw RegistrationRefusal(
            description:
                "node \(entry.id) is registered with another disk (\(known.disk), this data_dir has \(entry.disk)): "
                + "if that disk is lost, run `baton cluster forget \(entry.id)` on another node, then start again; "
                + "else set node.data_dir back")
    }

    /// Tries until it is done or `stop` is called. `lost` is called when the lease is gone, on the lease's thread.
    package func run(registered: @Sendable () -> Void, lost: @escaping @Sendable () -> Void) async throws {
        while !state.withLock({ $0.stopped }) {
            do throws(ControlFailure) {
                if let refusal = try await attempt(lost: lost) { throw ControlFailure.refused(.invalid, refusal) }
                registered()
                return
            } catch {
                if case .refused(.invalid, let text) = error { throw RegistrationRefusal(description: text) }
                logger.warning("cluster: cannot register yet", metadata: ["why": "\(error)"])
                await rest()
            }
        }
    }

    private func attempt(lost: @escaping @Sendable () -> Void) async throws(ControlFailure) -> String? {
        let found = try await plane.list(paths.all)
        let view = ClusterView(found, in: paths)
        do throws(RegistrationRefusal) { try check(view) } catch { return error.description }
        let path = paths.node(entry.id)
        if let old = found.entries.first(where: { $0.key == path }) {
            // A former run of this very disk: its key goes first, so that the new one's creation names this registration.
            let gone = try await plane.commit(
                ControlTransaction(if: [.modified(path, at: old.modified)], [.delete(path)]))
            guard case .committed = gone else { throw .unknown("the node's key changes") }
        }
        // As it was when `check` looked: a loss that is declared meanwhile is not undone unread.
        let forgotten = paths.forgotten(entry.id, disk: disk)
        let asRead: ControlComparison =
            found.entries.first { $0.key == forgotten }.map { .modified(forgotten, at: $0.modified) }
            ?? .absent(forgotten)
        let sentAt = time.now()
        let granted = try await plane.grantLease(lease)
        let put = try await plane.commit(
            ControlTransaction(
                if: [.absent(path), asRead],
                [
                    .put(path, ClusterCodec.json(entry), lease: granted.id),
                    .put(paths.roster(entry.id), ClusterCodec.json(RosterEntry(id: entry.id, disk: disk))),
                    .delete(forgotten), .delete(paths.drain(entry.id)),
                ]))
        guard case .committed(let header) = put else {
            throw .unknown("the node's key is there again, or it was declared lost")
        }
        agent.registered(at: header.revision)
        let keeper = LeaseKeeper(granted, of: plane, sentAt: sentAt, time: time) { [logger] news in
            switch news {
            case .alive: break
            case .overdue: logger.warning("cluster: the lease is overdue; others may take this node for dead")
            case .gone: lost()
            }
        }
        state.withLock { state in
            state.keeper = keeper
            state.lease = granted.id
        }
        return nil
    }

    private func rest() async { try? await Task.sleep(nanoseconds: UInt64(max(0, pause.nanoseconds))) }

    /// Says what the node is doing now: joining, serving, draining, drained. Without it the others would go by what it said before,
    /// so it is tried until it is said, `stop` is called, the lease is gone, or `span` is over. What was said later stays: a node
    /// that drains is not serving again.
    package func announce(_ nodeState: NodeEntry.State, within span: TimeSpan? = nil) async {
        let end = span.map { time.now() + $0 }
        state.withLock { if $0.announced.step < nodeState.step { $0.announced = nodeState } }
        while await !isSaid() {
            if let end, time.now() >= end { return }
            await rest()
        }
    }

    /// Whether nothing is left to be tried.
    private func isSaid() async -> Bool {
        let (lease, announced, stopped) = state.withLock { ($0.lease, $0.announced, $0.stopped) }
        guard let lease, !stopped else { return true }
        let path = paths.node(entry.id)
        do throws(ControlFailure) {
            // Read anew each time: a try without an answer may have landed.
            guard let there = try await plane.get(path).entries.first, there.lease == lease else { return true }
            if let said: NodeEntry = ClusterCodec.decode(there.value), said.state == announced { return true }
            var wanted = entry
            wanted.state = announced
            let commit = try await plane.commit(
                ControlTransaction(
                    if: [.modified(path, at: there.modified)], [.put(path, ClusterCodec.json(wanted), lease: lease)]))
            guard case .committed = commit else { return false }
            return true
        } catch {
            logger.warning(
                "cluster: the others are not told yet what this node does",
                metadata: ["state": "\(announced.rawValue)", "why": "\(error)"])
            return false
        }
    }

    /// The node leaves: its key goes at once, so that nobody waits for the lease's end. `forGood`: out of the roster too.
    package func stop(forGood: Bool) async {
        let (keeper, lease) = state.withLock { state in
            state.stopped = true
            defer { state.keeper = nil }
            return (state.keeper, state.lease)
        }
        agent.registered(at: nil)
        if forGood {
            // This disk answers no more: finished segments need not wait for its word (PROTOCOL C3).
            _ = try? await plane.commit(
                ControlTransaction(
                    if: [],
                    [
                        .delete(paths.roster(entry.id)), .delete(paths.drain(entry.id)),
                        .put(
                            paths.forgotten(entry.id, disk: disk),
                            ClusterCodec.json(RosterEntry(id: entry.id, disk: disk, drained: true))),
                    ]))
        }
        if let lease { try? await plane.revoke(lease) }
        keeper?.stop()
    }
}

extension NodeEntry.State {
    /// A node goes through them in this order.
    fileprivate var step: Int {
        switch self {
        case .joining: 0
        case .serving: 1
        case .draining: 2
        case .drained: 3
        case .dead: 4
        }
    }
}
