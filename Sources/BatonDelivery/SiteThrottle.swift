// How many connections a site bears: halved by trouble, won back by success, paused with a single probe.
import BatonCore

/// The adaptive part of a pool's limit. A value.
///
/// Trouble halves the limit (not below 1) and pauses the site, 1 minute at first, doubled up to 15 while no transaction
/// succeeds; after the pause one transaction at a time probes. A success ends the probing; each `limit` successes in a row
/// win one connection back.
package struct SiteThrottle: Sendable {
    private var ceiling: Int
    private var current: Int
    private var successes = 0
    private var troubles = 0
    private var ownFaults = 0
    package private(set) var pausedUntil = Instant.epoch
    /// After a pause, until the first success: at most one connection works.
    package private(set) var isProbing = false

    package init(ceiling: Int) {
        self.ceiling = max(1, ceiling)
        self.current = self.ceiling
    }

    package func isPaused(at now: Instant) -> Bool { now < pausedUntil }

    /// Whether its pauses have grown to the longest and still no transaction went through.
    package var isDown: Bool { troubles > 4 }

    /// Connections that may be open now.
    package func limit(at now: Instant) -> Int {
        if isPaused(at: now) { return 0 }
        return isProbing ? 1 : current
    }

    /// The limit apart from pause and probe.
    package var adapted: Int { current }

    package mutating func setCeiling(_ ceiling: Int) {
        let ceiling = max(1, ceiling)
        if current == self.ceiling || current > ceiling { current = ceiling }
        self.ceiling = ceiling
    }

    /// The site throttled us or took nothing at all. False when it is paused already: connections opened before the pause
    /// bring the same news again.
    @discardableResult
    package mutating func trouble(at now: Instant) -> Bool {
        guard !isPaused(at: now) else { return false }
        current = max(1, current / 2)
        successes = 0
        let factor = Double(1 << min(troubles, 4))
        troubles += 1
        pausedUntil = now + min(DeliveryLimits.pauseMin.multiplied(by: factor), DeliveryLimits.pauseMax)
        isProbing = true
        return true
    }

    /// A fault of our own: pause, probe, but leave the site's limit alone.
    @discardableResult
    package mutating func ownFault(at now: Instant) -> Bool {
        guard !isPaused(at: now) else { return false }
        let factor = Double(1 << min(ownFaults, 3))
        ownFaults += 1
        pausedUntil = now + min(DeliveryLimits.ownFaultPauseMin.multiplied(by: factor), DeliveryLimits.ownFaultPauseMax)
        isProbing = true
        return true
    }

    /// A transaction went through MAIL without trouble.
    package mutating func success() {
        isProbing = false
        troubles = 0
        ownFaults = 0
        guard current < ceiling else { return }
        successes += 1
        if successes >= current {
            successes = 0
            current += 1
        }
    }

    /// An operator wants it tried now.
    package mutating func resume() { pausedUntil = .epoch }
}
