// When a lease is renewed, and how long it can be relied on. Pure.
import BatonCore

/// Keeps one granted lease. It is never granted anew: a node whose lease is gone comes back as a new incarnation (PROTOCOL T2).
///
/// A renewal each third of the TTL, given up after a quarter of it; after a failure another try at once, which the plane sends to
/// the next member. One renewal is under way at most.
package struct LeaseState: StateMachine {
    package enum Event: Sendable {
        case woke
        /// Nil: the store does not know the lease.
        case renewed(TimeSpan?)
        case failed
    }

    package enum Action: Sendable {
        case renew(within: TimeSpan)
        case tell(LeaseNews)
    }

    private var ttl: TimeSpan
    private var sentAt: Instant
    private var isRenewing = false
    private var nextRenewal: Instant
    /// The lease can be relied on until here: counted from the sending of the last renewal that was answered, less a quarter.
    package private(set) var aliveUntil: Instant
    private var toldOverdue = false
    package private(set) var isGone = false

    /// - Parameter sentAt: when the grant was asked for, not when it was answered.
    package init(_ lease: ControlLease, sentAt: Instant) {
        self.ttl = lease.ttl
        self.sentAt = sentAt
        self.nextRenewal = sentAt + Self.part(lease.ttl, 3)
        self.aliveUntil = Self.deadline(lease.ttl, from: sentAt)
    }

    private static func part(_ span: TimeSpan, _ divisor: Int64) -> TimeSpan {
        TimeSpan(nanoseconds: span.nanoseconds / divisor)
    }

    private static func deadline(_ ttl: TimeSpan, from sentAt: Instant) -> Instant { sentAt + ttl - part(ttl, 4) }

    /// When to wake it; nil once the lease is gone.
    package var nextDue: Instant? {
        if isGone { return nil }
        let renewal = isRenewing ? nil : nextRenewal
        let overdue = toldOverdue ? nil : aliveUntil
        return [renewal, overdue].compactMap { $0 }.min() ?? .distantFuture
    }

    package mutating func receive(_ event: Event, at now: Instant, into actions: inout ActionBuffer<Action>) {
        guard !isGone else { return }
        switch event {
        case .woke: break
        case .renewed(nil):
            isGone = true
            actions.append(.tell(.gone))
            return
        case .renewed(let granted?):
            isRenewing = false
            ttl = granted
            aliveUntil = max(aliveUntil, Self.deadline(granted, from: sentAt))
            nextRenewal = sentAt + Self.part(granted, 3)
            if aliveUntil > now {
                toldOverdue = false
                actions.append(.tell(.alive(until: aliveUntil)))
            }
        case .failed:
            isRenewing = false
            // A refused connection fails at once: not in a tight loop.
            nextRenewal = max(now, sentAt + ControlLimits.leaseRetry)
        }
        if aliveUntil <= now, !toldOverdue {
            toldOverdue = true
            actions.append(.tell(.overdue))
        }
        guard !isRenewing, nextRenewal <= now else { return }
        isRenewing = true
        sentAt = now
        actions.append(.renew(within: Self.part(ttl, 4)))
    }
}

package enum LeaseNews: Hashable, Sendable {
    /// By the keeper's clock.
    case alive(until: Instant)
    /// Not renewed in time: others may count this node as dead by now. It may become alive again.
    case overdue
    /// The store does not know the lease any more; final.
    case gone
}
