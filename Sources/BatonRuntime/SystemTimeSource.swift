// The process clock.
import BatonCore
import CBatonSystem

/// Wall time read once at start, advanced by the monotonic clock: it never goes back and ignores later clock steps.
package struct SystemTimeSource: TimeSource {
    private let offset: Int64

    package init() {
        self.offset = baton_clock_realtime() &- baton_clock_monotonic()
    }

    package func now() -> Instant { Instant(nanoseconds: baton_clock_monotonic() &+ offset) }
}

/// Randomness for ids, incarnations and seeds, from the kernel.
package enum SystemRandom {
    package static func uint64() -> UInt64 {
        var value: UInt64 = 0
        withUnsafeMutableBytes(of: &value) { baton_random($0.baseAddress, $0.count) }
        return value
    }
}
