// Which segments' final dots may go now (PROTOCOL P1): written by the cluster's thread, read by the pools before each dot.
import BatonCore
import BatonModel
import Synchronization

/// Any thread; each call is a short lock. A segment that is not named has no permission.
package final class DotPermission: DotPermitting {
    private let until = Mutex<[UInt32: Instant]>([:])

    package init() {}

    package func permit(_ handle: UInt32, until instant: Instant?) { until.withLock { $0[handle] = instant } }

    package func mayDot(_ messages: some Sequence<StoredMessageRef>, at now: Instant) -> Bool {
        until.withLock { until in
            messages.allSatisfy { message in until[message.segment].map { $0 > now } ?? false }
        }
    }
}
