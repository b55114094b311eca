// Performs the state's control requests against the control plane, and blocks for the spool's keeper.
import BatonControlPlane
import BatonCore
import BatonModel
import BatonSpool
import Synchronization

/// A listing, as far as it may be believed.
package enum RegistryListing: Sendable {
    case view(ClusterView)
    /// The registry was set back: good for nothing but to find the other nodes.
    case setBack(ClusterView)
    case nothing
}

/// One cluster's keys in a control plane. Any thread; answers come on the plane's threads. Nothing of a registry that was set back
/// gets through (docs/decisions/0010): it is as if the control plane did not answer.
package final class ControlAgent: SegmentRegistry {
    /// Without that judgement: for what has to work in a registry that was set back, too.
    package let plane: any ControlPlane
    package let paths: ClusterPaths
    private let me: Drainer
    /// This disk's tally; nil: none is kept.
    private let tally: ControlKey?
    private let state = Mutex(Known())
    private let judge: Mutex<RegistryTrust>
    private let counting = Mutex((tally: RegistryTally(), revision: ControlRevision(0)))
    private let changed = Mutex<(@Sendable (String) -> Void)?>(nil)

    private struct Known {
        /// When the own node key was created; nil while it is not registered.
        var registration: ControlRevision?
        var names: [NodeID: String] = [:]
        var created: [NodeID: (incarnation: Incarnation, revision: ControlRevision)] = [:]
        /// Another store than the one that answered first has answered the last listing.
        var isForeign = false
    }

    /// `mark`: what this disk remembers.
    package init(
        _ plane: any ControlPlane, paths: ClusterPaths, me: Drainer, tally: ControlKey? = nil,
        mark: RegistryMark? = nil
    ) {
        self.tally = tally
        self.plane = plane
        self.paths = paths
        self.me = me
        self.judge = Mutex(RegistryTrust(mark))
    }

    /// What has been made of the registry so far.
    package var trust: RegistryTrust { judge.withLock { $0 } }

    /// Called once, on a thread of the plane, when the registry is not the one any more that this run has gone by.
    package func onChange(_ call: @escaping @Sendable (String) -> Void) { changed.withLock { $0 = call } }

    /// By a recovery: another disk distrusts what is there.
    package func refuse(recovery: UInt64) { report(judge.withLock { $0.refuse(recovery: recovery) }) }

    /// Counts on, where it is due: `extent` is that of the keys as known now. `counted` on a thread of the plane.
    func count(
        _ extent: @autoclosure () -> RegistryTally.Extent, at now: Instant, counted: @escaping @Sendable () -> Void
    ) {
        let trust = trust
        guard let tally, trust.isTrusted, let mark = trust.mark,
            let revision = counting.withLock({ $0.tally.isDue(extent(), at: now) ? $0.revision : nil })
        else { return }
        let next = mark.tally &+ 1
        let asRead: ControlComparison = revision == 0 ? .absent(tally) : .modified(tally, at: revision)
        let put = ControlWrite.put(tally, ClusterCodec.json(TallyEntry(count: next)))
        plane.commit(ControlTransaction(if: [asRead], [put])) { [self] result in
            guard case .success(.committed(let header)) = result, believes(header, since: mark) else {
                // The next listing says what stands there.
                return counting.withLock { $0.tally.ended(false) }
            }
            judge.withLock { $0.tallied(next) }
            counting.withLock { counting in
                counting.revision = max(counting.revision, header.revision)
                counting.tally.ended(true)
            }
            counted()
        }
    }

    private func report(_ verdict: RegistryTrust.Verdict) {
        guard case .changed(let why) = verdict,
            let call = changed.withLock({ call in
                defer { call = nil }
                return call
            })
        else { return }
        call(why)
    }

    /// Whether the answer to a request that was sent when `floor` was known is of the registry that this run goes by.
    private func believes(_ header: ControlHeader, since floor: RegistryMark?) -> Bool {
        let verdict = judge.withLock { $0.judge(header, since: floor) }
        report(verdict)
        return verdict == .trusted
    }

    private func believed(_ listing: ControlListing, since floor: RegistryMark?) -> RegistryListing {
        let (view, header) = (ClusterView(listing, in: paths), listing.header)
        let found = tally.flatMap { view.tallies[$0] } ?? (0, 0)
        let verdict = judge.withLock {
            $0.judge(listing: header, recovery: view.recovery, tally: found.count, since: floor)
        }
        if verdict == .trusted { counting.withLock { $0.revision = max($0.revision, found.revision) } }
        report(verdict)
        return switch verdict {
        case .trusted: .view(view)
        case .setBack: .setBack(view)
        case .changed: .nothing
        }
    }

    /// The own node key was put, at this revision of creation.
    package func registered(at revision: ControlRevision?) { state.withLock { $0.registration = revision } }

    // MARK: Requests of the state

    package func list(_ done: @escaping @Sendable (RegistryListing) -> Void) {
        let floor = trust.mark
        plane.list(paths.all, at: nil) { [self] result in
            switch result {
            case .failure(let failure):
                if failure.refusal == .foreignStore { state.withLock { $0.isForeign = true } }
                done(.nothing)
            case .success(let found):
                let listing = believed(found, since: floor)
                if case .view(let view) = listing { note(view) }
                done(listing)
            }
        }
    }

    private func note(_ view: ClusterView) {
        state.withLock { state in
            state.isForeign = false
            for entry in view.roster { state.names[NodeID(name: entry.id)] = entry.id }
            state.created = [:]
            for node in view.nodes {
                state.names[node.node] = node.id
                guard let run = node.run, let revision = view.created[node.node] else { continue }
                state.created[node.node] = (run.incarnation, revision)
            }
        }
    }

    /// What keeps this node from going by the registry, for operators; nil while nothing does.
    package var obstacle: String? {
        if let why = trust.setBack {
            return "the control plane was set back (\(why)): run `baton cluster recover-registry`"
        }
        return state.withLock { $0.isForeign }
            ? "another etcd cluster answers than when this node started: start it again" : nil
    }

    package func perform(_ request: ControlRequest, _ done: @escaping @Sendable (ControlAnswer) -> Void) {
        let trust = trust
        guard trust.isTrusted else { return done(.unknown) }
        switch request {
        case .read(let id):
            plane.get(paths.segment(id)) { [self] result in
                guard case .success(let found) = result, believes(found.header, since: trust.mark) else {
                    return done(.unknown)
                }
                done(.key(found.entries.first.flatMap { ClusterCodec.segment($0, in: paths) }))
            }
        case .store(let key, let condition):
            guard let comparisons = comparisons(key, condition) else {
                return done(.refused(nil, condition: true))
            }
            let path = paths.segment(key.id)
            let transaction = ControlTransaction(if: comparisons, [.put(path, ClusterCodec.encode(key))])
            plane.commit(transaction) { [self] result in
                guard believes(result, since: trust.mark) else { return done(.unknown) }
                done(Self.answer(result, to: key, at: path, in: paths))
            }
        case .remove(let key):
            let path = paths.segment(key.id)
            let transaction = ControlTransaction(
                if: [.modified(path, at: ControlRevision(clamping: key.revision))], [.delete(path)])
            plane.commit(transaction) { [self] result in
                guard believes(result, since: trust.mark) else { return done(.unknown) }
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

    /// A failure says nothing of the registry.
    private func believes(_ result: Result<ControlCommit, ControlFailure>, since floor: RegistryMark?) -> Bool {
        switch result {
        case .success(.committed(let header)), .success(.conflict(let header, _)): believes(header, since: floor)
        case .failure: true
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

    private static let notBelieved = SpoolError(
        .registryFailed, "the control plane was set back, or was not listed yet")

    /// Throws where no listing was accepted yet.
    private func floor() throws(SpoolError) -> RegistryMark? {
        let trust = trust
        guard trust.isTrusted else { throw Self.notBelieved }
        return trust.mark
    }

    private func blockingCommit(_ transaction: ControlTransaction) throws(SpoolError) -> ControlCommit {
        let floor = try floor()
        let result: ControlCommit = try blocking { plane.commit(transaction, answer: $0) }
        guard believes(.success(result), since: floor) else { throw Self.notBelieved }
        return result
    }

    package func list() throws(SpoolError) -> [SegmentKey] {
        let floor = trust.mark
        let found: ControlListing = try blocking { plane.list(paths.all, at: nil, answer: $0) }
        guard case .view(let view) = believed(found, since: floor) else { throw Self.notBelieved }
        return view.listing.keys
    }

    package func read(_ id: SegmentID) throws(SpoolError) -> SegmentKey? {
        let floor = try floor()
        let found: ControlListing = try blocking { plane.get(paths.segment(id), answer: $0) }
        guard believes(found.header, since: floor) else { throw Self.notBelieved }
        return found.entries.first.flatMap { ClusterCodec.segment($0, in: paths) }
    }

    /// A new key is stored only while the own node key of this incarnation stands (docs/CLUSTER_MODEL.md, 1).
    package func store(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer {
        guard let comparisons = comparisons(key, key.revision == 0 ? .registered(me) : .none) else {
            throw SpoolError(.registryFailed, "this node is not registered")
        }
        let path = paths.segment(key.id)
        let result = try blockingCommit(
            ControlTransaction(if: comparisons, [.put(path, ClusterCodec.encode(key))]))
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
        let result = try blockingCommit(
            ControlTransaction(
                if: [.modified(path, at: ControlRevision(clamping: key.revision))], [.delete(path)]))
        switch result {
        case .committed: return .committed(nil)
        case .conflict(_, let current):
            return .conflict(current.first { $0.key == path }.flatMap { ClusterCodec.segment($0, in: paths) })
        }
    }
}
