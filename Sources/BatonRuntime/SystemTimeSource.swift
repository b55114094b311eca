// The process clock.
import BatonCore
import CBatonSystem
import Glibc

/// Wall time read once at start, advanced by a clock that never goes back and ignores later clock steps.
///
/// That clock counts the time for which the machine was suspended: promises and leases of others end meanwhile, and whoever slept
/// has to know. Waits of threads and loops do not count it (`ThreadMailbox`, NIO): after a suspension they end late, never early.
package struct SystemTimeSource: TimeSource {
    package static let clock = CLOCK_BOOTTIME
    private let offset: Int64

    package init() {
        self.offset = baton_clock_realtime() &- baton_clock_elapsed(Self.clock)
    }

    package func now() -> Instant { Instant(nanoseconds: baton_clock_elapsed(Self.clock) &+ offset) }
}

/// Randomness for ids, incarnations and seeds, from the kernel.
package enum SystemRandom {
    package static func uint64() -> UInt64 {
        var value: UInt64 = 0
        withUnsafeMutableBytes(of: &value) { baton_random($0.baseAddress, $0.count) }
        return value
    }
}
