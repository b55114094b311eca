// A clock that moves only when a test moves it.
import BatonCore
import Synchronization

/// `TimeSource` under a test's control. Starts at 2026-01-01T00:00:00Z.
package final class SimulatedTime: TimeSource {
    private let current: Mutex<Instant>

    package init(_ start: Instant = Instant(secondsSinceEpoch: 1_767_225_600)) {
        self.current = Mutex(start)
    }

    package func now() -> Instant { current.withLock { $0 } }

    package func advance(by span: TimeSpan) {
        current.withLock { $0 = $0 + span }
    }
}
