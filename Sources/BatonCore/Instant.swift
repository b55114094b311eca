// A point in time as the state machines see it, and the port through which shells read the clock.

/// Nanoseconds since the Unix epoch. State machines get it as an argument and never read a clock themselves.
///
/// Within a process it never goes back: `SystemTimeSource` adds the time that has passed since to the wall clock read at start.
/// Arithmetic saturates, so that an absurd value from a disk cannot trap.
public struct Instant: Comparable, Hashable, Sendable, BitwiseCopyable {
    public var nanoseconds: Int64

    @inlinable
    public init(nanoseconds: Int64) {
        self.nanoseconds = nanoseconds
    }

    @inlinable
    public init(secondsSinceEpoch seconds: Int64) {
        let (product, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        self.nanoseconds = overflow ? (seconds < 0 ? .min : .max) : product
    }

    public static let distantFuture = Instant(nanoseconds: .max)
    public static let epoch = Instant(nanoseconds: 0)

    /// Whole seconds since the Unix epoch, rounded towards the past.
    @inlinable
    public var secondsSinceEpoch: Int64 {
        nanoseconds >= 0 ? nanoseconds / 1_000_000_000 : -((-(nanoseconds + 1)) / 1_000_000_000) - 1
    }

    /// Milliseconds since the Unix epoch, never negative.
    @inlinable
    public var millisecondsSinceEpoch: UInt64 { nanoseconds <= 0 ? 0 : UInt64(nanoseconds) / 1_000_000 }

    @inlinable
    public static func < (left: Instant, right: Instant) -> Bool { left.nanoseconds < right.nanoseconds }

    @inlinable
    public static func + (instant: Instant, span: TimeSpan) -> Instant {
        let (sum, overflow) = instant.nanoseconds.addingReportingOverflow(span.nanoseconds)
        return Instant(nanoseconds: overflow ? (span.nanoseconds < 0 ? .min : .max) : sum)
    }

    @inlinable
    public static func - (instant: Instant, span: TimeSpan) -> Instant {
        let (difference, overflow) = instant.nanoseconds.subtractingReportingOverflow(span.nanoseconds)
        return Instant(nanoseconds: overflow ? (span.nanoseconds < 0 ? .max : .min) : difference)
    }

    @inlinable
    public static func - (later: Instant, earlier: Instant) -> TimeSpan {
        let (difference, overflow) = later.nanoseconds.subtractingReportingOverflow(earlier.nanoseconds)
        return TimeSpan(nanoseconds: overflow ? (later < earlier ? .min : .max) : difference)
    }
}

/// A length of time in nanoseconds; `Swift.Duration` is 128 bits wide and slower, and nothing here needs attoseconds.
public struct TimeSpan: Comparable, Hashable, Sendable {
    public var nanoseconds: Int64

    @inlinable
    public init(nanoseconds: Int64) {
        self.nanoseconds = nanoseconds
    }

    public static let zero = TimeSpan(nanoseconds: 0)

    @inlinable
    public static func milliseconds(_ count: Int64) -> TimeSpan { scaled(count, by: 1_000_000) }

    @inlinable
    public static func seconds(_ count: Int64) -> TimeSpan { scaled(count, by: 1_000_000_000) }

    @inlinable
    public static func minutes(_ count: Int64) -> TimeSpan { scaled(count, by: 60_000_000_000) }

    @inlinable
    public static func hours(_ count: Int64) -> TimeSpan { scaled(count, by: 3_600_000_000_000) }

    @inlinable
    public static func days(_ count: Int64) -> TimeSpan { scaled(count, by: 86_400_000_000_000) }

    @usableFromInline
    static func scaled(_ count: Int64, by unit: Int64) -> TimeSpan {
        let (product, overflow) = count.multipliedReportingOverflow(by: unit)
        return TimeSpan(nanoseconds: overflow ? (count < 0 ? .min : .max) : product)
    }

    /// Seconds with their fraction, for printing and for ratios.
    @inlinable
    public var seconds: Double { Double(nanoseconds) / 1e9 }

    /// This span times a factor of at least 0, saturating.
    public func multiplied(by factor: Double) -> TimeSpan {
        let product = Double(nanoseconds) * factor
        guard product.isFinite, product < 9.2e18, product > -9.2e18 else {
            return TimeSpan(nanoseconds: product < 0 ? .min : .max)
        }
        return TimeSpan(nanoseconds: Int64(product))
    }

    @inlinable
    public static func < (left: TimeSpan, right: TimeSpan) -> Bool { left.nanoseconds < right.nanoseconds }

    @inlinable
    public static func + (left: TimeSpan, right: TimeSpan) -> TimeSpan {
        let (sum, overflow) = left.nanoseconds.addingReportingOverflow(right.nanoseconds)
        return TimeSpan(nanoseconds: overflow ? (right.nanoseconds < 0 ? .min : .max) : sum)
    }
}

/// Where shells read the time. Safe from any thread.
package protocol TimeSource: Sendable {
    func now() -> Instant
}
