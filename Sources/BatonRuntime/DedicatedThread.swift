// A named thread for work that blocks: disk writes, the resolver, event files.
import CBatonSystem
import Synchronization

/// Runs one body on a thread of its own. The body returns when its owner has told it to (through its mailbox).
package final class DedicatedThread: Sendable {
    private let thread: UInt64
    private let joined = Mutex(false)

    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    /// Starts at once. `name` is cut to 15 characters. Traps if the system has no more threads: nothing works then.
    package init(name: String, _ run: @escaping @Sendable () -> Void) {
        let context = Unmanaged.passRetained(Body(run)).toOpaque()
        var started: UInt64 = 0
        let result = baton_thread_start(name, dedicatedThreadMain, context, &started)
        precondition(result == 0, "cannot start thread \(name): errno \(result)")
        self.thread = started
    }

    fileprivate static func main(_ context: UnsafeMutableRawPointer?) {
        guard let context else { return }
        Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run()
    }

    /// Waits for the body to return. Idempotent. Not from the thread itself, and not from an event loop.
    package func join() {
        let first = joined.withLock { done in
            defer { done = true }
            return !done
        }
        if first { _ = baton_thread_join(thread) }
    }
}

/// A file-scope function, since a closure made in a main-actor context would trap on another thread.
private func dedicatedThreadMain(_ context: UnsafeMutableRawPointer?) {
    DedicatedThread.main(context)
}
