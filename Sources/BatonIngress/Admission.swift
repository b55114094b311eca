// The node-wide bounds at the door: connections, connections of a client, octets in flight.
import BatonCore
import BatonSMTP
import Synchronization

/// Connections counted by client network. A value, so that its rules are tested without sockets.
package struct ClientLimits: Sendable {
    package private(set) var connections = 0
    /// At most as many keys as there are connections.
    private var perClient: [[UInt8]: Int] = [:]

    package enum Verdict: Equatable, Sendable {
        case admitted
        /// `limits.connections` are open: 421 4.3.2.
        case tooManyConnections
        /// `limits.connections_per_client` are open: 421 4.7.0.
        case tooManyFromClient
    }

    package init() {}

    /// Counts the connection if it is admitted; then `release` is due exactly once.
    package mutating func admit(_ network: [UInt8], connectionsMax: Int, perClientMax: Int) -> Verdict {
        guard connections < connectionsMax else { return .tooManyConnections }
        let mine = perClient[network, default: 0]
        guard mine < perClientMax else { return .tooManyFromClient }
        connections += 1
        perClient[network] = mine + 1
        return .admitted
    }

    package mutating func release(_ network: [UInt8]) {
        guard let mine = perClient[network] else { return }
        connections -= 1
        perClient[network] = mine > 1 ? mine - 1 : nil
    }
}

/// Shared by all loops of the node; any thread. The lock is taken once per connection, the counter once or twice per message.
package final class Admission: Sendable {
    private struct State {
        var clients = ClientLimits()
        var limits: IngressLimits
    }

    private let state: Mutex<State>
    private let memoryMax: Atomic<Int>
    private let memory = Atomic<Int>(0)

    package init(limits: IngressLimits) {
        self.state = Mutex(State(limits: limits))
        self.memoryMax = Atomic(limits.memory)
    }

    package func update(limits: IngressLimits) {
        state.withLock { $0.limits = limits }
        memoryMax.store(limits.memory, ordering: .relaxed)
    }

    package func admit(_ network: [UInt8]) -> ClientLimits.Verdict {
        state.withLock { state in
            state.clients.admit(
                network, connectionsMax: state.limits.connections, perClientMax: state.limits.connectionsPerClient)
        }
    }

    package func release(_ network: [UInt8]) { state.withLock { $0.clients.release(network) } }

    package var connections: Int { state.withLock { $0.clients.connections } }

    /// Octets of bodies held for sessions.
    package var memoryInUse: Int { memory.load(ordering: .relaxed) }

    /// Whether a new message may begin: below seven eighths of the budget, so that those under way can end.
    package var hasMemoryForMessage: Bool {
        let bound = memoryMax.load(ordering: .relaxed)
        return memoryInUse < bound - bound / 8
    }

    /// Books `delta` octets. False when the budget is overdrawn; the octets are booked all the same.
    package func book(_ delta: Int) -> Bool {
        memory.add(delta, ordering: .relaxed).newValue <= memoryMax.load(ordering: .relaxed)
    }
}
