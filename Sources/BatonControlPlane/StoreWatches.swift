// The watches of a `ControlStore`: who has been told what.
import BatonCore
import Synchronization

/// Used under its owner's lock; `pending` gives what to call after unlock, in order.
struct StoreWatches: Sendable {
    /// A receiver and the switch that its `cancel` turns.
    final class Handle: ControlWatch {
        let receive: @Sendable (ControlWatchEvent) -> Void
        private let cancelled = Atomic<Bool>(false)

        init(_ receive: @escaping @Sendable (ControlWatchEvent) -> Void) { self.receive = receive }

        func cancel() { cancelled.store(true, ordering: .releasing) }
        var isCancelled: Bool { cancelled.load(ordering: .acquiring) }
    }

    struct Delivery: Sendable {
        let handle: Handle
        let event: ControlWatchEvent

        func perform() { if !handle.isCancelled { handle.receive(event) } }
    }

    private struct Watch: Sendable {
        let handle: Handle
        let prefix: ControlKey
        let resync: TimeSpan
        /// Everything up to this revision has been told; nil: nothing yet.
        var seen: ControlRevision?
        /// Nil until it has been told something.
        var nextResync: Instant?
        /// A broken stream tells nothing until a time.
        var brokenUntil: Instant?
    }

    private var watches: [Watch] = []

    mutating func open(
        _ prefix: ControlKey, after: ControlRevision?, resync: TimeSpan,
        receive: @escaping @Sendable (ControlWatchEvent) -> Void
    ) -> Handle? {
        watches.removeAll { $0.handle.isCancelled }
        guard watches.count < ControlLimits.watches, !prefix.bytes.isEmpty else { return nil }
        let handle = Handle(receive)
        watches.append(Watch(handle: handle, prefix: prefix, resync: resync, seen: after, nextResync: nil))
        return handle
    }

    /// What the watches have not been told yet.
    mutating func pending(_ store: ControlStore, at now: Instant) -> [Delivery] {
        watches.removeAll { $0.handle.isCancelled }
        var deliveries: [Delivery] = []
        for index in watches.indices {
            let watch = watches[index]
            if let until = watch.brokenUntil {
                guard until <= now else { continue }
                watches[index].brokenUntil = nil
            }
            let wentBack = watch.seen.map { $0 > store.revision } ?? false
            if let seen = watch.seen, !wentBack, watch.nextResync.map({ now < $0 }) ?? true,
                let changes = store.changes(under: watch.prefix, after: seen)
            {
                if watch.nextResync == nil { watches[index].nextResync = now + watch.resync }
                if !changes.isEmpty { deliveries.append(Delivery(handle: watch.handle, event: .changes(changes))) }
            } else if case .success(let listing) = store.list(watch.prefix) {
                watches[index].nextResync = now + watch.resync
                deliveries.append(
                    Delivery(handle: watch.handle, event: .snapshot(listing, wentBack: wentBack)))
            } else {
                continue
            }
            watches[index].seen = store.revision
        }
        return deliveries
    }

    /// Breaks every stream until a time, for tests.
    mutating func interrupt(until: Instant) -> [Delivery] {
        watches.removeAll { $0.handle.isCancelled }
        return watches.indices.map { index in
            watches[index].brokenUntil = until
            return Delivery(handle: watches[index].handle, event: .interrupted("the stream is broken"))
        }
    }

    mutating func removeAll() { watches.removeAll() }

    /// When the next snapshot is due.
    var nextDue: Instant? { watches.compactMap(\.nextResync).min() }
}
