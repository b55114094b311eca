// A few threads for short blocking or heavy work that is neither disk lane nor resolver.

/// Runs closures on `threads` dedicated threads in order of arrival. Bounded: `submit` answers false past `capacity`.
package final class WorkerPool: Sendable {
    private let mailbox: ThreadMailbox<@Sendable () -> Void>
    private let threads: [DedicatedThread]

    package init(name: String, threads: Int, capacity: Int) {
        let mailbox = ThreadMailbox<@Sendable () -> Void>(capacity: capacity)
        self.mailbox = mailbox
        self.threads = (0..<threads).map { index in
            DedicatedThread(name: "\(name)-\(index)") {
                while let work = mailbox.take(limit: 1) {
                    for item in work { item() }
                }
            }
        }
    }

    package func submit(_ work: @escaping @Sendable () -> Void) -> Bool { mailbox.offer(CollectionOfOne(work)) }

    /// Finishes what is queued and ends the threads. Not from an event loop.
    package func stop() {
        mailbox.close()
        for thread in threads { thread.join() }
    }
}
