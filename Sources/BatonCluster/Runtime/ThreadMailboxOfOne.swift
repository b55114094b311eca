// Waiting for one answer on a thread that may block.
import BatonCore
import BatonRuntime

/// Holds one value until it is taken. The answer is bound to come: the control plane bounds every operation.
final class ThreadMailboxOfOne<Value: Sendable>: Sendable {
    private let mailbox = ThreadMailbox<Value>(capacity: 1)

    func put(_ value: Value) { mailbox.deliver(CollectionOfOne(value)) }

    /// Blocking; never on a loop.
    func take() -> Value {
        while true {
            if let value = mailbox.take(limit: 1)?.first { return value }
        }
    }

    /// Nil when the time is over.
    func take(within span: TimeSpan) -> Value? {
        mailbox.take(limit: 1, timeoutNanoseconds: max(0, span.nanoseconds))?.first
    }
}
