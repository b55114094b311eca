// Performs the state's control requests against the control plane, and blocks for the spool's keeper.
import BatonControlPlane
import BatonCore
import BatonModel
import BatonSpool
import Synchronization

/// One cluster's keys in a control plane. Any thread; answers come on the plane's threads.
package final class ControlAgent: SegmentRegistry {
    package let plane: any ControlPlane
    package let paths: ClusterPaths
    private let me: Drainer
    private let state = Mutex(Known())

    private struct Known {
        /// When the own node key was created; nil while it is not registered.
        var registration: ControlRevision?
        var names: [NodeID: String] = [:]
        var created: [NodeID: (incarnation: Incarnation, revision: ControlRevision)] = [:]
    }

    package init(_ plane: any ControlPlane, paths: ClusterPaths, me: Drainer) {
        self.plane = plane
        self.paths = paths
        self.me = me
    }

    /// The own node key was put, at this revision of creation.
    package func registered(at revision: ControlRevision?) { state.withLock { $0.registration = revision } }

    // MARK: Requests of the state

    package func list(_ done: @escaping @Sendable (ClusterView?) -> Void) {
        plane.list(paths.all, at: nil) { [self] result in
            guard case .success(let found) = result else { return done(nil) }
            let view = ClusterView(found, in: paths)
            state.withLock { state in
                for entry in view.roster { state.names[NodeID(name: entry.id)] = entry.id }
                state.created = [:]
                for node in view.nodes {
                    state.names[node.node] = node.id
                    guard let run = node.run, let revision = view.created[node.node] else { continue }
                    state.created[node.node] = (run.incarnation, revision)
                }
            }
            done(view)
        }
    }

    package func perform(_ request: ControlRequest, _ done: @escaping @Sendable (ControlAnswer) -> Void) {
        switch request {
        case .read(let id):
            plane.get(paths.segment(id)) { [paths] result in
                guard case .success(let found) = result else { return done(.unknown) }
                done(.key(found.entries.first.flatMap { ClusterCodec.segment($0, in: paths) }))
            }
        case .store(let key, let condition):
            guard let comparisons = comparisons(key, condition) else {
                return done(.refused(nil, condition: true))
            }
            let path = paths.segment(key.id)
            let transaction = ControlTransaction(if: comparisons, [.put(path, ClusterCodec.encode(key))])
            plane.commit(transaction) { [paths] result in done(Self.answer(result, to: key, at: path, in: paths)) }
        case .remove(let key):
            let path = paths.segment(key.id)
            let transaction = ControlTransaction(
                if: [.modified(path, at: ControlRevision(clamping: key.revision))], [.delete(path)])
            plane.commit(transaction) { [paths] result in
                switch result {
                case .success(.committed): done(.committed(nil))
                case .success(.conflict(_, let current)):
                    let there = current.first { $0.key == path }.flatMap { ClusterCodec.segment($0, in: paths) }
                    done(.refused(there, condition: false))
                case .failure: done(.unknown)
                }
            }
        case .register, .keepAlive, .list: done(.unknown)
        }
    }

    private static func answer(
        _ result: Result<ControlCommit, ControlFailure>, to key: SegmentKey, at path: ControlKey,
        in paths: ClusterPaths
    ) -> ControlAnswer {
        switch result {
        case .success(.committed(let header)):
            var stored = key
            stored.revision = UInt64(max(0, header.revision))
            return .committed(stored)
        case .success(.conflict(_, let current)):
            let there = current.first { $0.key == path }.flatMap { ClusterCodec.segment($0, in: paths) }
            return .refused(there, condition: there?.revision == key.revision)
        // Nothing was done, and nothing was learned about the key: no conflict.
        case .failure(.refused): return .done
        case .failure(.unknown): return .unknown
        }
    }

    /// Nil where the condition is known not to hold.
    private func comparisons(
        _ key: SegmentKey, _ condition: ControlRequest.Condition
    ) -> [ControlComparison]? {
        let path = paths.segment(key.id)
        var found: [ControlComparison] = [
            key.revision == 0 ? .absent(path) : .modified(path, at: ControlRevision(clamping: key.revision))
        ]
        let known = state.withLock { $0 }
        switch condition {
        case .none: break
        case .registered:
            guard let revision = known.registration, let name = known.names[me.node] else { return nil }
            found.append(.created(paths.node(name), at: revision))
        case .gone(let drainer):
            // A name that nobody knows any more was forgotten: it cannot come back with that disk.
            guard let name = known.names[drainer.node] else { return found }
            if let present = known.created[drainer.node] {
                guard present.incarnation != drainer.incarnation else { return nil }
                found.append(.created(paths.node(name), at: present.revision))
            } else {
                found.append(.absent(paths.node(name)))
            }
        }
        return found
    }

    // MARK: SegmentRegistry, for the keeper's thread

    /// Waits on the calling thread, bounded by the plane.
    private func blocking<Value: Sendable>(
        _ begin: (@escaping @Sendable (Result<Value, ControlFailure>) -> Void) -> Void
    ) throws(SpoolError) -> Value {
        let mailbox = ThreadMailboxOfOne<Result<Value, ControlFailure>>()
        begin { mailbox.put($0) }
        switch mailbox.take() {
        case .success(let value): return value
        case .failure(let failure): throw SpoolError(.registryFailed, "the control plane did not answer: \(failure)")
        }
    }

    package func list() throws(SpoolError) -> [SegmentKey] {
        let found: ControlListing = try blocking { plane.list(paths.all, at: nil, answer: $0) }
        return ClusterView(found, in: paths).listing.keys
    }

    package func read(_ id: SegmentID) throws(SpoolError) -> SegmentKey? {
        let found: ControlListing = try blocking { plane.get(paths.segment(id), answer: $0) }
        return found.entries.first.flatMap { ClusterCodec.segment($0, in: paths) }
    }

    /// A new key is stored only while the own node key of this incarnation stands (docs/CLUSTER_MODEL.md, 1).
    package func store(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer {
        guard let comparisons = comparisons(key, key.revision == 0 ? .registered(me) : .none) else {
            throw SpoolError(.registryFailed, "this node is not registered")
        }
        let path = paths.segment(key.id)
        let transaction = ControlTransaction(if: comparisons, [.put(path, ClusterCodec.encode(key))])
        let result: ControlCommit = try blocking { plane.commit(transaction, answer: $0) }
        switch Self.answer(.success(result), to: key, at: path, in: paths) {
        case .committed(let stored): return .committed(stored)
        case .refused(let current, _):
            if current == nil, key.revision == 0 { throw SpoolError(.registryFailed, "this node is not registered") }
            return .conflict(current)
        case .done, .leaseLost, .listed, .key, .unknown:
            throw SpoolError(.registryFailed, "the control plane gave no answer")
        }
    }

    package func store(_ keys: [SegmentKey]) throws(SpoolError) -> [RegistryAnswer] {
        var answers: [RegistryAnswer] = []
        for key in keys { answers.append(try store(key)) }
        return answers
    }

    package func remove(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer {
        let path = paths.segment(key.id)
        let transaction = ControlTransaction(
            if: [.modified(path, at: ControlRevision(clamping: key.revision))], [.delete(path)])
        let result: ControlCommit = try blocking { plane.commit(transaction, answer: $0) }
        switch result {
        case .committed: return .committed(nil)
        case .conflict(_, let current):
            return .conflict(current.first { $0.key == path }.flatMap { ClusterCodec.segment($0, in: paths) })
        }
    }
}
