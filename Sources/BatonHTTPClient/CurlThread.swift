// The HTTP client: libcurl's multi interface on a thread of its own.
import BatonCore
import BatonRuntime
import CCurl
import Synchronization

/// Performs many requests at once on one thread.
///
/// Every receiver is called there, must not block, and may submit further requests; a refusal (`overloaded`, `stopped`) comes at
/// once, on the caller's thread. Bounds: `HTTPClientLimits`, the time-outs and sizes of each request. Idle connections are kept
/// and used again. Nothing survives a crash; `HTTPError.mayHaveArrived` says whether a failed request can have had an effect.
package final class CurlThread: Sendable {
    private let shared: CurlShared
    private let thread: DedicatedThread

    /// - Parameter time: for time-outs between octets; curl's own time-outs follow the system's monotonic clock.
    package init(
        name: String, time: any TimeSource = SystemTimeSource(), transfersMax: Int = HTTPClientLimits.transfers
    ) {
        let shared = CurlShared(transfersMax: transfersMax)
        self.shared = shared
        self.thread = DedicatedThread(name: name) {
            CurlWorker(shared, time: time).run()
        }
    }

    deinit {
        // Without waiting: the last reference may have been dropped on the thread itself.
        shared.stop()
    }

    /// Begins a request; `receive` is called exactly once.
    @discardableResult
    package func submit(
        _ request: HTTPRequest, receive: @escaping @Sendable (Result<HTTPResponse, HTTPError>) -> Void
    ) -> HTTPTransferID {
        begin(request, .whole(receive))
    }

    /// Begins a request whose answer comes in pieces; `receive` gets one `end`, after which nothing follows.
    package func stream(_ request: HTTPRequest, receive: @escaping @Sendable (HTTPStreamEvent) -> Void)
        -> HTTPTransferID
    {
        begin(request, .stream(receive))
    }

    /// Ends a transfer with `cancelled`, if it is still under way.
    package func cancel(_ id: HTTPTransferID) {
        shared.offer(.cancel(id))
    }

    /// Runs `body` on the thread after `delay`. False where `HTTPClientLimits.timers` wait already or the client is stopped; a
    /// timer that waits when the client stops is dropped.
    @discardableResult
    package func after(_ delay: TimeSpan, _ body: @escaping @Sendable () -> Void) -> Bool {
        shared.offerTimer(delay, body)
    }

    /// The same as `submit`, for tasks. Cancelling the task cancels the request.
    package func perform(_ request: HTTPRequest) async throws(HTTPError) -> HTTPResponse {
        let id = shared.newID()
        let result = await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                begin(request, .whole { continuation.resume(returning: $0) }, id: id)
                // The handler may have run before there was anything to cancel.
                if Task.isCancelled { cancel(id) }
            }
        } onCancel: {
            cancel(id)
        }
        return try result.get()
    }

    /// Ends what is under way with `stopped`, and the thread. Idempotent; not from the thread itself.
    package func stop() {
        shared.stop()
        thread.join()
    }

    @discardableResult
    private func begin(_ request: HTTPRequest, _ receiver: TransferReceiver, id given: HTTPTransferID? = nil)
        -> HTTPTransferID
    {
        let id = given ?? shared.newID()
        if let refusal = shared.admit(.start(id, request, receiver)) {
            let error = HTTPError(refusal, mayHaveArrived: false, "not begun")
            switch receiver {
            case .whole(let answer): answer(.failure(error))
            case .stream(let receive): receive(.end(error))
            }
        }
        return id
    }
}

/// What the front and the thread share: the inbox, and the multi handle for waking the thread.
final class CurlShared: Sendable {
    enum Order: Sendable {
        case start(HTTPTransferID, HTTPRequest, TransferReceiver)
        case cancel(HTTPTransferID)
        case timer(TimeSpan, @Sendable () -> Void)
    }

    /// `curl_multi_wakeup` is the one call that any thread may make.
    private struct Multi: @unchecked Sendable {
        // @unchecked: other threads use it under `inbox`'s lock only, and only while `isOpen`.
        let handle: UnsafeMutableRawPointer
    }

    private struct Inbox {
        var orders: [Order] = []
        var transfers = 0
        var timers = 0
        var wakePending = false
        var stopping = false
        var isOpen = true
    }

    private let inbox = Mutex(Inbox())
    private let ids = Atomic<UInt64>(1)
    private let multi: Multi
    private let transfersMax: Int

    init(transfersMax: Int) {
        _ = curlIsReady
        guard let handle = curl_multi_init() else { preconditionFailure("curl has no memory for a multi handle") }
        self.multi = Multi(handle: handle)
        self.transfersMax = transfersMax
    }

    /// For the thread alone.
    var handle: UnsafeMutableRawPointer { multi.handle }

    func newID() -> HTTPTransferID {
        HTTPTransferID(value: ids.wrappingAdd(1, ordering: .relaxed).newValue)
    }

    func admit(_ order: Order) -> HTTPError.Kind? {
        inbox.withLock { inbox in
            guard !inbox.stopping else { return .stopped }
            guard inbox.transfers < transfersMax else { return .overloaded }
            inbox.transfers += 1
            add(order, to: &inbox)
            return nil
        }
    }

    func offerTimer(_ delay: TimeSpan, _ body: @escaping @Sendable () -> Void) -> Bool {
        inbox.withLock { inbox in
            guard !inbox.stopping, inbox.timers < HTTPClientLimits.timers else { return false }
            inbox.timers += 1
            add(.timer(delay, body), to: &inbox)
            return true
        }
    }

    func offer(_ order: Order) {
        inbox.withLock { inbox in
            // A cancel may be offered for each transfer once or twice; those of ended ones are dropped by the thread.
            if !inbox.stopping { add(order, to: &inbox) }
        }
    }

    func stop() {
        inbox.withLock { inbox in
            inbox.stopping = true
            if inbox.isOpen { curl_multi_wakeup(multi.handle) }
        }
    }

    private func add(_ order: Order, to inbox: inout Inbox) {
        inbox.orders.append(order)
        guard !inbox.wakePending, inbox.isOpen else { return }
        inbox.wakePending = true
        curl_multi_wakeup(multi.handle)
    }

    /// The orders since the last call, and whether the thread is to end.
    func take() -> (orders: [Order], stopping: Bool) {
        inbox.withLock { inbox in
            var orders: [Order] = []
            swap(&orders, &inbox.orders)
            inbox.wakePending = false
            return (orders, inbox.stopping)
        }
    }

    func transferEnded() { inbox.withLock { $0.transfers -= 1 } }
    func timerEnded() { inbox.withLock { $0.timers -= 1 } }

    /// The thread's last act.
    func close() {
        inbox.withLock { $0.isOpen = false }
        curl_multi_cleanup(multi.handle)
    }
}

/// libcurl's global state, set up once in a process.
private let curlIsReady: Bool = curl_global_init(Int(CURL_GLOBAL_DEFAULT)) == CURLE_OK
