// A control plane without a disk, for tests and the simulator: it answers at once, and fails as it is told.
import BatonCore
import Synchronization

/// How often, as a share of the operations, something goes wrong.
package struct ControlFaults: Sendable {
    /// A change's request is lost: unknown, never applied.
    package var lostRequests = 0.0
    /// A change's answer is lost: unknown, applied.
    package var lostAnswers = 0.0
    /// A change is applied only after one to eight further operations: unknown.
    package var lateRequests = 0.0
    /// A read finds no member.
    package var failedReads = 0.0
    /// Every watch breaks, and tells nothing for a second.
    package var brokenWatches = 0.0
    /// The whole history is compacted.
    package var compactions = 0.0

    package init() {}
}

/// What the next change meets, instead of chance.
package enum ControlFault: Sendable {
    case lostRequest
    case lostAnswer
    /// Applied when that many further operations have begun, or at `applyLate`.
    case lateRequest(operations: Int)
}

package enum ControlReachability: Sendable {
    case reachable
    /// Connections are refused: everything is refused as unavailable.
    case refusing
    /// Requests vanish: reads are unavailable, changes unknown and never applied.
    case silent
}

/// Every call is answered on the caller's thread before it returns. Watches are told there too, one call at a time.
/// All randomness comes from the seed, all time from `time`; leases end at the first operation, or `tick`, after their time.
package final class InMemoryControlPlane: ControlPlane {
    private struct State {
        var store: ControlStore
        var watches = StoreWatches()
        var random: SplitMix64
        var faults: ControlFaults
        var scripted: [ControlFault] = []
        var reachability = ControlReachability.reachable
        var late: [(after: Int, change: Change)] = []
        var outbox: [StoreWatches.Delivery] = []
        var delivering = false
        var stopped = false

        mutating func chance(_ share: Double) -> Bool { share > 0 && random.unit() < share }
    }

    private enum Change: Sendable {
        case commit(ControlTransaction)
        case grant(ControlLeaseID, TimeSpan)
        case revoke(ControlLeaseID)
    }

    private enum Effect {
        case commit(Result<ControlCommit, ControlFailure>)
        case grant(Result<ControlLease, ControlFailure>)
        case revoked
        case failed(ControlFailure)
    }

    private let state: Mutex<State>
    private let time: any TimeSource

    package init(seed: UInt64, time: any TimeSource, faults: ControlFaults = ControlFaults()) {
        var random = SplitMix64(seed: seed)
        let store = ControlStore(id: random.next(), at: time.now())
        self.state = Mutex(State(store: store, random: random, faults: faults))
        self.time = time
    }

    // MARK: Faults

    package func set(_ faults: ControlFaults) { state.withLock { $0.faults = faults } }
    package func set(_ reachability: ControlReachability) {
        state.withLock { $0.reachability = reachability }
        tick()
    }
    package func injectNext(_ fault: ControlFault) { state.withLock { $0.scripted.append(fault) } }
    package func compact() { state.withLock { $0.store.compact($0.store.revision) } }

    /// Every watch is broken for `span`.
    package func interruptWatches(for span: TimeSpan) {
        withDeliveries { state, now in state.outbox += state.watches.interrupt(until: now + span) }
    }

    /// Every request under way arrives now.
    package func applyLate() {
        withDeliveries { state, now in
            for index in state.late.indices { state.late[index].after = 0 }
            Self.applyDue(&state, at: now)
        }
    }

    /// The store as it was in a backup, as an operator restores it.
    package func restore(_ backup: ControlStore) {
        withDeliveries { state, _ in state.store = backup }
    }

    package var snapshot: ControlStore { state.withLock { $0.store } }

    /// Ends leases whose time is over and tells watches what is due.
    package func tick() { withDeliveries { _, _ in } }

    // MARK: Operations

    package func list(
        _ prefix: ControlKey, at revision: ControlRevision?, answer: @escaping Answer<ControlListing>
    ) {
        answer(read { $0.list(prefix, at: revision) })
    }

    package func get(_ key: ControlKey, answer: @escaping Answer<ControlListing>) {
        answer(read { .success($0.get(key)) })
    }

    package func commit(_ transaction: ControlTransaction, answer: @escaping Answer<ControlCommit>) {
        switch change(.commit(transaction)) {
        case .commit(let result): answer(result)
        case .failed(let failure): answer(.failure(failure))
        case .grant, .revoked: preconditionFailure("a commit was answered as a lease")
        }
    }

    package func grantLease(_ ttl: TimeSpan, answer: @escaping Answer<ControlLease>) {
        let id = state.withLock { ControlLeaseID(value: Int64($0.random.next() >> 2) + 1) }
        switch change(.grant(id, ttl)) {
        case .grant(let result): answer(result)
        case .failed(let failure): answer(.failure(failure))
        case .commit, .revoked: preconditionFailure("a grant was answered as something else")
        }
    }

    package func keepAlive(
        _ lease: ControlLeaseID, within limit: TimeSpan, answer: @escaping Answer<TimeSpan?>
    ) {
        let now = time.now()
        answer(read { .success($0.keepAlive(lease, at: now)) })
    }

    package func revoke(_ lease: ControlLeaseID, answer: @escaping Answer<Void>) {
        switch change(.revoke(lease)) {
        case .revoked: answer(.success(()))
        case .failed(let failure): answer(.failure(failure))
        case .commit, .grant: preconditionFailure("a revocation was answered as something else")
        }
    }

    package func watch(
        _ prefix: ControlKey, after: ControlRevision?, resync: TimeSpan,
        receive: @escaping @Sendable (ControlWatchEvent) -> Void
    ) -> (any ControlWatch)? {
        let handle = state.withLock { state in
            state.stopped
                ? nil : state.watches.open(prefix, after: after, resync: resync, receive: receive)
        }
        tick()
        return handle
    }

    package func stop() {
        state.withLock { state in
            state.stopped = true
            state.watches.removeAll()
            state.outbox.removeAll()
        }
    }

    // MARK: Faults at work

    private func read<Value: Sendable>(
        _ body: @Sendable (inout ControlStore) -> Result<Value, ControlFailure>
    ) -> Result<Value, ControlFailure> {
        withDeliveries { state, now in
            if state.stopped { return .failure(.refused(.stopped, "stopped")) }
            guard case .reachable = state.reachability, !state.chance(state.faults.failedReads) else {
                return .failure(.refused(.unavailable, "no member answers"))
            }
            return body(&state.store)
        }
    }

    private func change(_ change: Change) -> Effect {
        withDeliveries { state, now in
            if state.stopped { return .failed(.refused(.stopped, "stopped")) }
            switch state.reachability {
            case .reachable: break
            case .refusing: return .failed(.refused(.unavailable, "connection refused"))
            case .silent: return .failed(.unknown("no answer"))
            }
            guard let fault = Self.fault(&state) else { return Self.apply(change, to: &state.store, at: now) }
            switch fault {
            case .lostRequest: break
            case .lostAnswer: _ = Self.apply(change, to: &state.store, at: now)
            case .lateRequest(let operations): state.late.append((operations, change))
            }
            return .failed(.unknown("no answer"))
        }
    }

    private static func fault(_ state: inout State) -> ControlFault? {
        if !state.scripted.isEmpty { return state.scripted.removeFirst() }
        if state.chance(state.faults.lostRequests) { return .lostRequest }
        if state.chance(state.faults.lostAnswers) { return .lostAnswer }
        guard state.chance(state.faults.lateRequests) else { return nil }
        return .lateRequest(operations: Int(state.random.next() % 8) + 1)
    }

    private static func apply(_ change: Change, to store: inout ControlStore, at now: Instant) -> Effect {
        switch change {
        case .commit(let transaction): return .commit(store.commit(transaction))
        case .grant(let id, let ttl): return .grant(store.grant(id, ttl, at: now))
        case .revoke(let id):
            store.revoke(id)
            return .revoked
        }
    }

    private static func applyDue(_ state: inout State, at now: Instant) {
        let due = state.late.filter { $0.after <= 0 }
        state.late.removeAll { $0.after <= 0 }
        for item in due { _ = apply(item.change, to: &state.store, at: now) }
    }

    /// Runs `body` under the lock, then tells the watches: in order, by one caller at a time, a nested or concurrent call leaving its
    /// events to the one that is at it.
    private func withDeliveries<Value: Sendable>(_ body: @Sendable (inout State, Instant) -> Value) -> Value {
        let now = time.now()
        let value = state.withLock { state in
            for index in state.late.indices { state.late[index].after -= 1 }
            Self.applyDue(&state, at: now)
            _ = state.store.expire(at: now)
            if state.chance(state.faults.compactions) { state.store.compact(state.store.revision) }
            if state.chance(state.faults.brokenWatches) {
                state.outbox += state.watches.interrupt(until: now + .seconds(1))
            }
            let value = body(&state, now)
            if case .reachable = state.reachability, !state.stopped {
                state.outbox += state.watches.pending(state.store, at: now)
            }
            return value
        }
        while true {
            let next = state.withLock { state -> StoreWatches.Delivery? in
                guard !state.delivering, !state.outbox.isEmpty else { return nil }
                state.delivering = true
                return state.outbox.removeFirst()
            }
            guard let next else { return value }
            next.perform()
            state.withLock { $0.delivering = false }
        }
    }
}
