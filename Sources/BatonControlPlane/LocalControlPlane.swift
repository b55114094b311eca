// The control plane of a single node: one checksummed file in a locked folder.
import BatonCore
import BatonRuntime
import Glibc
import Synchronization

/// A `ControlStore` on a thread of its own, which replaces the file (write, fsync, rename, fsync of the folder) before a change is
/// answered; what waits together is written together. A crash leaves the old or the new file. Bounds: `ControlLimits`.
///
/// A failure before the rename refuses the changes; from the rename on memory and disk may differ, so the changes are unknown and
/// everything after them is refused until the folder is opened again. Leases begin anew, in full, at each opening.
package final class LocalControlPlane: ControlPlane {
    package enum DamagePolicy: Sendable {
        /// Opening fails as `damaged`.
        case refuse
        /// The file is renamed to `control.damaged` and a new store, with a new id, begins empty.
        case putAside
    }

    private enum Order: Sendable {
        case list(ControlKey, ControlRevision?, Answer<ControlListing>)
        case get(ControlKey, Answer<ControlListing>)
        case commit(ControlTransaction, Answer<ControlCommit>)
        case grant(TimeSpan, Answer<ControlLease>)
        case keepAlive(ControlLeaseID, Answer<TimeSpan?>)
        case revoke(ControlLeaseID, Answer<Void>)
        case look
    }

    private let mailbox = ThreadMailbox<Order>(capacity: ControlLimits.waiting)
    private let watches = Watches()
    private let thread: DedicatedThread
    private let stopped = Atomic<Bool>(false)
    /// The file was damaged and put aside.
    package let wasDamaged: Bool

    private final class Watches: Sendable {
        let state = Mutex(StoreWatches())
    }

    /// Makes the folder if it is missing, locks it, reads the file. Blocking.
    package static func open(
        _ folder: String, disk: any Disk, time: any TimeSource, ifDamaged policy: DamagePolicy = .refuse,
        fileBytesMax: Int = ControlStoreFormat.fileBytes,
        random: @escaping @Sendable () -> UInt64 = { SystemRandom.uint64() }
    ) throws(ControlFailure) -> LocalControlPlane {
        let file = ControlFile(folder: folder, disk: disk, bytesMax: fileBytesMax)
        let lock = try file.lock()
        do throws(ControlFailure) {
            let (content, damaged) = try file.read(ifDamaged: policy)
            let found = content ?? ControlStoreFormat.Content(id: random(), revision: 1)
            let store = ControlStore(
                id: found.id, revision: found.revision, entries: found.entries, leases: found.leases, at: time.now())
            // Before anything is answered, so that the id is the same at the next opening.
            if content == nil { try file.replace(ControlStoreFormat.encode(store)) }
            return LocalControlPlane(
                store, file: file, lock: lock, time: time, random: random, wasDamaged: damaged)
        } catch {
            file.unlock(lock)
            throw error
        }
    }

    private init(
        _ store: ControlStore, file: ControlFile, lock: DiskFile, time: any TimeSource,
        random: @escaping @Sendable () -> UInt64, wasDamaged: Bool
    ) {
        self.wasDamaged = wasDamaged
        self.thread = DedicatedThread(name: "control") { [mailbox, watches] in
            var worker = Worker(store: store, file: file, time: time, random: random)
            while let orders = mailbox.take(timeoutNanoseconds: worker.wait(watches.state.withLock { $0.nextDue })) {
                worker.perform(orders)
                let now = time.now()
                let seen = worker.store
                let deliveries = watches.state.withLock { $0.pending(seen, at: now) }
                for delivery in deliveries { delivery.perform() }
            }
            file.unlock(lock)
        }
    }

    deinit { mailbox.close() }

    // MARK: ControlPlane

    package func list(
        _ prefix: ControlKey, at revision: ControlRevision?, answer: @escaping Answer<ControlListing>
    ) {
        offer(.list(prefix, revision, answer), answer)
    }

    package func get(_ key: ControlKey, answer: @escaping Answer<ControlListing>) { offer(.get(key, answer), answer) }

    package func commit(_ transaction: ControlTransaction, answer: @escaping Answer<ControlCommit>) {
        offer(.commit(transaction, answer), answer)
    }

    package func grantLease(_ ttl: TimeSpan, answer: @escaping Answer<ControlLease>) {
        offer(.grant(ttl, answer), answer)
    }

    /// A stalled disk delays it: the lease's holder is on this disk anyway.
    package func keepAlive(
        _ lease: ControlLeaseID, within limit: TimeSpan, answer: @escaping Answer<TimeSpan?>
    ) {
        offer(.keepAlive(lease, answer), answer)
    }

    package func revoke(_ lease: ControlLeaseID, answer: @escaping Answer<Void>) {
        offer(.revoke(lease, answer), answer)
    }

    package func watch(
        _ prefix: ControlKey, after: ControlRevision?, resync: TimeSpan,
        receive: @escaping @Sendable (ControlWatchEvent) -> Void
    ) -> (any ControlWatch)? {
        guard !stopped.load(ordering: .acquiring) else { return nil }
        let handle = watches.state.withLock {
            $0.open(prefix, after: after, resync: resync, receive: receive)
        }
        mailbox.deliver(CollectionOfOne(.look))
        return handle
    }

    /// Waits for the change under way; what waits behind it is done too.
    package func stop() {
        stopped.store(true, ordering: .releasing)
        mailbox.close()
        thread.join()
        watches.state.withLock { $0.removeAll() }
    }

    private func offer<Value>(_ order: Order, _ answer: Answer<Value>) {
        if stopped.load(ordering: .acquiring) { return answer(.failure(.refused(.stopped, "stopped"))) }
        if !mailbox.offer(CollectionOfOne(order)) {
            answer(.failure(.refused(.overloaded, "too many operations wait")))
        }
    }

    // MARK: The thread

    /// Owned by the thread.
    private struct Worker {
        var store: ControlStore
        let file: ControlFile
        let time: any TimeSource
        let random: @Sendable () -> UInt64
        /// A change has an unknown outcome.
        var failed = false

        /// Until a lease ends or a watch is due; nil: for ever.
        func wait(_ due: Instant?) -> Int64? {
            let next = [due, failed ? nil : store.nextExpiry].compactMap { $0 }.min()
            return next.map { max(0, ($0 - time.now()).nanoseconds) }
        }

        mutating func perform(_ orders: [Order]) {
            let now = time.now()
            var next = store
            var answers: [(ControlFailure?) -> Void] = []
            var changed = next.expire(at: now)
            for order in orders { answers.append(apply(order, to: &next, &changed, at: now)) }
            var failure: ControlFailure?
            if failed {
                failure = .refused(.damaged, "the store's last change has an unknown outcome")
            } else if changed {
                do throws(ControlFailure) {
                    try file.replace(ControlStoreFormat.encode(next))
                } catch {
                    failure = error
                    if error.isUnknown { failed = true }
                }
            }
            if failure == nil { store = next }
            for answer in answers { answer(failure) }
        }

        /// What to say once it is known whether the batch is on disk.
        private func apply(
            _ order: Order, to store: inout ControlStore, _ changed: inout Bool, at now: Instant
        ) -> (ControlFailure?) -> Void {
            switch order {
            case .list(let prefix, let revision, let answer):
                return Self.reading(answer, store.list(prefix, at: revision))
            case .get(let key, let answer): return Self.reading(answer, .success(store.get(key)))
            case .keepAlive(let lease, let answer):
                return Self.reading(answer, .success(store.keepAlive(lease, at: now)))
            case .commit(let transaction, let answer):
                let before = store.revision
                let result = store.commit(transaction)
                if store.revision != before { changed = true }
                return Self.changing(answer, result)
            case .grant(let ttl, let answer):
                // 63 bits and not 0.
                let result = store.grant(ControlLeaseID(value: Int64(random() >> 2) + 1), ttl, at: now)
                if case .success = result { changed = true }
                return Self.changing(answer, result)
            case .revoke(let lease, let answer):
                if store.revoke(lease) { changed = true }
                return Self.changing(answer, .success(()))
            case .look: return { _ in }
            }
        }

        /// A read in a batch that could not be written has seen what is not there.
        private static func reading<Value>(
            _ answer: @escaping Answer<Value>, _ result: Result<Value, ControlFailure>
        ) -> (ControlFailure?) -> Void {
            { failure in
                guard let failure else { return answer(result) }
                answer(.failure(.refused(failure.refusal ?? .damaged, failure.description)))
            }
        }

        private static func changing<Value>(
            _ answer: @escaping Answer<Value>, _ result: Result<Value, ControlFailure>
        ) -> (ControlFailure?) -> Void {
            { failure in
                if case .failure = result { return answer(result) }
                answer(failure.map { .failure($0) } ?? result)
            }
        }
    }
}
