// When a lost connection is dialed again.
import BatonCore

/// Waits before a peer is dialed again: doubling, bounded, and scattered by a seed, so that the nodes of a cluster that lost one
/// peer together do not come back to it together. Never gives up: a dead node may return at any time. Owned by the dialing shell.
package struct Backoff: Sendable {
    private var base = PeerLimits.retryFirst
    private var openedAt: Instant?
    private var random: SplitMix64

    package init(seed: UInt64) {
        self.random = SplitMix64(seed: seed)
    }

    /// The session's handshake succeeded.
    package mutating func opened(at now: Instant) { openedAt = now }

    /// The session ended, or never came about (`reason` nil: the connection was refused). Returns how long to wait.
    ///
    /// Only a session that stood for `stableAfter` sets the wait back: one that opens and falls at once is a failure.
    package mutating func wait(after reason: CloseReason?, at now: Instant) -> TimeSpan {
        if let openedAt, now - openedAt >= PeerLimits.stableAfter { base = PeerLimits.retryFirst }
        openedAt = nil
        if let reason, reason.isMisconfiguration { return scattered(PeerLimits.retryMisconfigured) }
        let wait = scattered(base)
        base = min(base.multiplied(by: 2), PeerLimits.retryMax)
        return wait
    }

    private mutating func scattered(_ span: TimeSpan) -> TimeSpan {
        span.multiplied(by: 1 + PeerLimits.retryJitter * (2 * random.unit() - 1))
    }
}
