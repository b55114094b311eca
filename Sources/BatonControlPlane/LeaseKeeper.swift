// Keeps a lease alive from a thread of its own.
import BatonCore
import BatonRuntime
import Glibc
import Synchronization

/// Performs `LeaseState`. With the plane's own thread and connections for leases, neither bulk operations nor a busy default
/// executor delay a renewal. A lease is a hint: that it is alive is no permission by itself (DESIGN section 5).
package final class LeaseKeeper: Sendable {
    private let mailbox = ThreadMailbox<LeaseState.Event>(capacity: 16)
    private let thread: DedicatedThread
    private let shared: Shared
    package let lease: ControlLeaseID

    private final class Shared: Sendable {
        let aliveUntil = Atomic<Int64>(0)
    }

    /// - Parameter sentAt: when the grant was asked for, by `time`.
    /// - Parameter time: counts time of suspension too, as the store does while this machine sleeps (`SystemTimeSource`).
    /// - Parameter tell: called on the keeper's thread; must not block.
    package init(
        _ lease: ControlLease, of plane: any ControlPlane, sentAt: Instant, time: any TimeSource,
        tell: @escaping @Sendable (LeaseNews) -> Void
    ) {
        self.lease = lease.id
        let shared = Shared()
        self.shared = shared
        let first = LeaseState(lease, sentAt: sentAt)
        shared.aliveUntil.store(first.aliveUntil.nanoseconds, ordering: .releasing)
        self.thread = DedicatedThread(name: "lease") { [mailbox] in
            var state = first
            var events: [LeaseState.Event] = [.woke]
            while true {
                var actions = ActionBuffer<LeaseState.Action>()
                for event in events { state.receive(event, at: time.now(), into: &actions) }
                let until = state.isGone ? Instant.epoch : state.aliveUntil
                shared.aliveUntil.store(until.nanoseconds, ordering: .releasing)
                for action in actions.drain() {
                    switch action {
                    case .tell(let news): tell(news)
                    case .renew(let limit):
                        plane.keepAlive(lease.id, within: limit) { result in
                            let event: LeaseState.Event =
                                if case .success(let ttl) = result { .renewed(ttl) } else { .failed }
                            mailbox.deliver(CollectionOfOne(event))
                        }
                    }
                }
                let wait = state.nextDue.map { max(0, ($0 - time.now()).nanoseconds) }
                guard let received = mailbox.take(timeoutNanoseconds: wait.map { min($0, 60_000_000_000) }) else {
                    return
                }
                events = received.isEmpty ? [.woke] : received
            }
        }
    }

    deinit { mailbox.close() }

    /// Whether the lease can be relied on at `now`, by the keeper's clock.
    package func isAlive(at now: Instant) -> Bool {
        now.nanoseconds < shared.aliveUntil.load(ordering: .acquiring)
    }

    /// Renews no more; the lease ends by itself, or by `revoke`. Idempotent; not from `tell`.
    package func stop() {
        mailbox.close()
        thread.join()
    }
}
