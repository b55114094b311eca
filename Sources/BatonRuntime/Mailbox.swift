// Bounded hand-over between threads and loops: one wake per batch.
import BatonCore
import DequeModule
import Glibc
import NIOCore
import Synchronization

/// A bounded queue into an event loop. Producers offer from any thread; the loop gets everything waiting in one call.
///
/// At most one wake is outstanding, so a burst of offers costs one loop crossing.
public final class LoopMailbox<Element: Sendable>: Sendable {
    @usableFromInline struct State {
        @usableFromInline var waiting: [Element] = []
        @usableFromInline var wakePending = false

        @usableFromInline init() {}

        /// Whether the caller has to wake the loop.
        @inlinable mutating func add(_ elements: [Element]) -> Bool {
            waiting.append(contentsOf: elements)
            let wake = !wakePending
            wakePending = true
            return wake
        }
    }

    @usableFromInline let state = Mutex(State())
    @usableFromInline let loop: any EventLoop
    @usableFromInline let capacity: Int
    @usableFromInline let receive: @Sendable ([Element]) -> Void

    /// `receive` runs on `loop` with at most `capacity` elements.
    @inlinable public init(loop: any EventLoop, capacity: Int, receive: @escaping @Sendable ([Element]) -> Void) {
        self.loop = loop
        self.capacity = capacity
        self.receive = receive
    }

    /// False, and nothing taken, when the elements do not fit under the capacity.
    @inlinable public func offer(_ elements: [Element]) -> Bool {
        guard !elements.isEmpty else { return true }
        let (taken, wake) = state.withLock { state in
            guard state.waiting.count + elements.count <= capacity else { return (false, false) }
            return (true, state.add(elements))
        }
        if wake { wakeLoop() }
        return taken
    }

    /// Takes the elements whatever the bound; for what is bounded by its producer (results of bounded requests).
    @inlinable public func deliver(_ elements: [Element]) {
        guard !elements.isEmpty else { return }
        if state.withLock({ $0.add(elements) }) { wakeLoop() }
    }

    @inlinable func wakeLoop() {
        loop.execute {
            let batch = self.state.withLock { state in
                state.wakePending = false
                var batch: [Element] = []
                swap(&batch, &state.waiting)
                return batch
            }
            self.receive(batch)
        }
    }
}

/// How long a thread that nobody waits for lets more gather once something has come, so that it is woken for many at once.
public struct Gathering: Sendable {
    /// From so many elements on it waits no longer; at least 1.
    public let count: Int
    public let span: TimeSpan

    public init(count: Int, span: TimeSpan) {
        self.count = count
        self.span = span
    }
}

/// A bounded queue into a dedicated thread, which waits for it.
///
/// Uses a pthread mutex and condition, since `Mutex` has no condition variable.
public final class ThreadMailbox<Element: Sendable>: @unchecked Sendable {
    // @unchecked: every access to `waiting`, `closed`, `wanted` and `sleeping` is under `mutex`.
    @usableFromInline let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    @usableFromInline let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    @usableFromInline var waiting = Deque<Element>()
    @usableFromInline var closed = false
    /// How many elements the thread sleeps for; nil while none sleeps.
    @usableFromInline var wanted: Int?
    /// Threads in `wait`. Where several take, none of them gathers, so that all sleep for one element.
    @usableFromInline var sleeping = 0
    @usableFromInline let capacity: Int

    @inlinable public init(capacity: Int) {
        self.capacity = capacity
        pthread_mutex_init(mutex, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    /// False, and nothing taken, when the elements do not fit under the capacity or the mailbox is closed.
    @inlinable public func offer(_ elements: some Collection<Element>) -> Bool {
        guard !elements.isEmpty else { return true }
        pthread_mutex_lock(mutex)
        guard !closed, waiting.count + elements.count <= capacity else {
            pthread_mutex_unlock(mutex)
            return false
        }
        appendAndUnlock(elements)
        return true
    }

    /// Takes the elements whatever the bound (but not when closed: false); for what is bounded by its producer.
    @discardableResult @inlinable
    public func deliver(_ elements: some Collection<Element>) -> Bool {
        pthread_mutex_lock(mutex)
        guard !closed else {
            pthread_mutex_unlock(mutex)
            return false
        }
        appendAndUnlock(elements)
        return true
    }

    /// Under the mutex, which it gives back before it wakes a thread: one that met the mutex would sleep again, two switches for one.
    @inlinable func appendAndUnlock(_ elements: some Collection<Element>) {
        waiting.append(contentsOf: elements)
        let wakes = wanted.map { waiting.count >= $0 } ?? false
        pthread_mutex_unlock(mutex)
        if wakes { pthread_cond_signal(condition) }
    }

    /// Everything waiting, at most `limit`. Waits until there is something, at most `timeout` nanoseconds (nil: for ever); with
    /// `gathering` then for more. An empty array means the time is over; nil that the mailbox is closed and empty.
    @inlinable public func take(
        limit: Int = .max, timeoutNanoseconds timeout: Int64? = nil, gathering: Gathering? = nil
    ) -> [Element]? {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        wait(for: 1, atMost: timeout)
        if waiting.isEmpty { return closed ? nil : [] }
        if let gathering { wait(for: gathering.count, atMost: gathering.span.nanoseconds) }
        let count = min(limit, waiting.count)
        let batch = Array(waiting.prefix(count))
        waiting.removeFirst(count)
        return batch
    }

    /// Under the mutex.
    @inlinable func wait(for count: Int, atMost timeout: Int64?) {
        guard waiting.count < count, !closed else { return }
        var deadline = timespec()
        if let timeout {
            clock_gettime(CLOCK_MONOTONIC, &deadline)
            let total = Int64(deadline.tv_nsec) + max(0, timeout)
            deadline.tv_sec += Int(total / 1_000_000_000)
            deadline.tv_nsec = Int(total % 1_000_000_000)
        }
        wanted = count
        sleeping += 1
        while waiting.count < count, !closed {
            if timeout != nil {
                if pthread_cond_timedwait(condition, mutex, &deadline) == ETIMEDOUT { break }
            } else {
                pthread_cond_wait(condition, mutex)
            }
        }
        sleeping -= 1
        if sleeping == 0 { wanted = nil }
    }

    public var count: Int {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return waiting.count
    }

    /// No more offers; the thread gets what is waiting, then nil.
    public func close() {
        pthread_mutex_lock(mutex)
        closed = true
        pthread_cond_broadcast(condition)
        pthread_mutex_unlock(mutex)
    }
}
