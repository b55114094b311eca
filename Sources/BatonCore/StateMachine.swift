// The shape of every engine: events in, actions out, time as an argument.

/// A pure value that turns events into actions. It performs no I/O, reads no clock and draws randomness only from its own seed.
package protocol StateMachine: Sendable {
    associatedtype Event: Sendable
    associatedtype Action: Sendable

    mutating func receive(_ event: Event, at now: Instant, into actions: inout ActionBuffer<Action>)
}

/// Actions in the order in which the shell has to perform them. Reused between events, so that a step allocates nothing.
///
/// Public and inlinable, as all generics of the hot path: without their bodies other modules run them unspecialized, and of
/// declarations at package level the compiler gives none away, inlinable or not (docs/decisions/0009).
public struct ActionBuffer<Action: Sendable>: Sendable {
    @usableFromInline var stored: [Action] = []

    @inlinable public var actions: [Action] { stored }

    @inlinable public init() {}

    @inlinable @inline(__always)
    public mutating func append(_ action: Action) { stored.append(action) }

    @inlinable public var isEmpty: Bool { stored.isEmpty }

    /// Takes what is there and leaves an empty buffer.
    @inlinable public mutating func drain() -> [Action] {
        var taken: [Action] = []
        swap(&taken, &stored)
        return taken
    }

    @inlinable public mutating func removeAll() { stored.removeAll(keepingCapacity: true) }
}
