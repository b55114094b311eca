// The shape of every engine: events in, actions out, time as an argument.

/// A pure value that turns events into actions. It performs no I/O, reads no clock and draws randomness only from its own seed.
package protocol StateMachine: Sendable {
    associatedtype Event: Sendable
    associatedtype Action: Sendable

    mutating func receive(_ event: Event, at now: Instant, into actions: inout ActionBuffer<Action>)
}

/// Actions in the order in which the shell has to perform them. Reused between events, so that a step allocates nothing.
///
/// Inlinable, as all generics of the hot path: without their bodies other modules would run them unspecialized.
package struct ActionBuffer<Action: Sendable>: Sendable {
    @usableFromInline package internal(set) var actions: [Action] = []

    @inlinable package init() {}

    @inlinable @inline(__always)
    package mutating func append(_ action: Action) { actions.append(action) }

    @inlinable package var isEmpty: Bool { actions.isEmpty }

    /// Takes what is there and leaves an empty buffer.
    @inlinable package mutating func drain() -> [Action] {
        var taken: [Action] = []
        swap(&taken, &actions)
        return taken
    }

    @inlinable package mutating func removeAll() { actions.removeAll(keepingCapacity: true) }
}
