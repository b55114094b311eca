// A share of a rate as a bucket: never more in any second than the share says.
import BatonCore

/// At most amount / 3600 messages in any window of a second; of a share below one a second, one message at a time with the
/// whole span between two. Counted in buckets of 50 ms, of which the last 21 cover any second, so at most a twentieth is lost.
///
/// What a share gains counts after `warmUp`: whoever had it before may have sent a moment ago. So the windows of all holders
/// together stay within the limit, also while shares move. A value of 120 octets or so.
package struct RateWindow: Sendable {
    private static let buckets = 21
    private static let bucket: Int64 = 50_000_000

    private var counts = [UInt32](repeating: 0, count: Self.buckets)
    private var latest: Int64 = .min
    private var sum: UInt32 = 0
    private var lastAt: Instant?
    /// Messages per hour that count now, and those that will.
    private var usable: UInt64
    private var gained: UInt64
    private var gainedAt: Instant

    /// A new share: nothing of it counts yet.
    package init(amount: UInt64, at now: Instant) {
        usable = 0
        gained = amount
        gainedAt = now
    }

    /// A smaller amount counts at once, a larger one later.
    package mutating func set(amount: UInt64, at now: Instant) {
        settle(at: now)
        if amount == gained { return }
        if amount > gained { gainedAt = now }
        gained = amount
        usable = min(usable, amount)
    }

    private mutating func settle(at now: Instant) {
        guard usable < gained else { return }
        let perMessage = TimeSpan.seconds(3_600).multiplied(by: 1 / Double(max(1, gained)))
        if now - gainedAt >= max(QuotaLimits.warmUp, perMessage) { usable = gained }
    }

    /// How many of `wanted` may start now.
    package mutating func take(_ wanted: Int, at now: Instant) -> Int {
        settle(at: now)
        guard wanted > 0, usable > 0 else { return 0 }
        turn(to: now.nanoseconds / Self.bucket)
        var most = Int(clamping: usable / QuotaLimits.rateQuantum)
        if usable < QuotaLimits.rateQuantum {
            let span = TimeSpan.seconds(3_600).multiplied(by: 1 / Double(usable))
            if let lastAt, now - lastAt < span { return 0 }
            most = 1
        }
        let granted = min(wanted, max(0, most - Int(sum)))
        counts[Self.index(latest)] += UInt32(clamping: granted)
        sum += UInt32(clamping: granted)
        if granted > 0 { lastAt = now }
        return granted
    }

    private static func index(_ bucket: Int64) -> Int {
        let size = Int64(buckets)
        return Int((bucket % size + size) % size)
    }

    private mutating func turn(to bucket: Int64) {
        guard bucket > latest else { return }
        if latest == .min || bucket - latest >= Int64(Self.buckets) {
            for index in counts.indices { counts[index] = 0 }
            sum = 0
        } else {
            for passed in (latest + 1)...bucket {
                let index = Self.index(passed)
                sum -= counts[index]
                counts[index] = 0
            }
        }
        latest = bucket
    }
}
