// The loop of a curl thread: orders in, transfers driven, receivers told.
import BatonCore
import BatonRuntime
import CCurl
import Glibc

/// Made and run on the thread of one `CurlThread`; everything here belongs to that thread.
final class CurlWorker {
    private let shared: CurlShared
    private let time: any TimeSource
    private var transfers: [HTTPTransferID: CurlTransfer] = [:]
    private var byHandle: [UnsafeMutableRawPointer: HTTPTransferID] = [:]
    /// Few and short-lived: looked through at each turn.
    private var timers: [(at: Instant, body: @Sendable () -> Void)] = []

    init(_ shared: CurlShared, time: any TimeSource) {
        self.shared = shared
        self.time = time
        let connections = HTTPClientLimits.connections
        _ = baton_curl_multi_set_long(shared.handle, CURLMOPT_MAX_TOTAL_CONNECTIONS, connections)
        _ = baton_curl_multi_set_long(shared.handle, CURLMOPT_MAXCONNECTS, connections)
    }

    func run() {
        Self.blockBrokenPipeSignal()
        while true {
            let (orders, stopping) = shared.take()
            for order in orders { perform(order) }
            if stopping { break }
            var running: Int32 = 0
            let healthy = curl_multi_perform(shared.handle, &running) == CURLM_OK
            collect()
            endLate()
            runTimers()
            let failed = curl_multi_poll(shared.handle, nil, 0, waitMilliseconds(), nil) != CURLM_OK
            // A multi handle that is out of memory or files is tried again, gently.
            if failed || !healthy { usleep(10_000) }
        }
        // A receiver may submit more; it is refused, since the client is stopping.
        for id in Array(transfers.keys) { end(id) { $0.fail(.stopped, "the client was stopped") } }
        for case .start(_, _, let receiver) in shared.take().orders {
            let error = HTTPError(.stopped, mayHaveArrived: false, "the client was stopped")
            switch receiver {
            case .whole(let answer): answer(.failure(error))
            case .stream(let receive): receive(.end(error))
            }
        }
        shared.close()
    }

    /// A write to a closed connection must not end the process: libcurl leaves that to its caller when threads are about.
    private static func blockBrokenPipeSignal() {
        var set = sigset_t()
        sigemptyset(&set)
        sigaddset(&set, SIGPIPE)
        pthread_sigmask(SIG_BLOCK, &set, nil)
    }

    private func perform(_ order: CurlShared.Order) {
        switch order {
        case .start(let id, let request, let receiver): start(id, request, receiver)
        case .cancel(let id): end(id) { $0.fail(.cancelled, "cancelled") }
        case .timer(let delay, let body): timers.append((time.now() + delay, body))
        }
    }

    private func start(_ id: HTTPTransferID, _ request: HTTPRequest, _ receiver: TransferReceiver) {
        let time = time
        guard let transfer = CurlTransfer(id, request, receiver, now: { time.now() }) else {
            shared.transferEnded()
            let error = HTTPError(.overloaded, mayHaveArrived: false, "no memory for a transfer")
            switch receiver {
            case .whole(let answer): answer(.failure(error))
            case .stream(let receive): receive(.end(error))
            }
            return
        }
        var problem = transfer.prepare()
        if problem == nil, curl_multi_add_handle(shared.handle, transfer.handle) != CURLM_OK {
            problem = "curl takes no more transfers"
        }
        if let problem {
            shared.transferEnded()
            return transfer.fail(.invalidRequest, problem)
        }
        transfers[id] = transfer
        byHandle[transfer.handle] = id
    }

    private func collect() {
        var left: Int32 = 0
        while let message = curl_multi_info_read(shared.handle, &left) {
            guard message.pointee.msg == CURLMSG_DONE, let handle = message.pointee.easy_handle,
                let id = byHandle[handle]
            else { continue }
            let code = baton_curl_message_result(message)
            end(id) { $0.finish(code) }
        }
    }

    private func endLate() {
        let now = time.now()
        for (id, transfer) in transfers where transfer.deadline <= now {
            end(id) { $0.fail(.timeout, "no octets in time") }
        }
    }

    private func runTimers() {
        let now = time.now()
        let due = timers.filter { $0.at <= now }
        guard !due.isEmpty else { return }
        timers.removeAll { $0.at <= now }
        for timer in due.sorted(by: { $0.at < $1.at }) {
            shared.timerEnded()
            timer.body()
        }
    }

    private func end(_ id: HTTPTransferID, _ tell: (CurlTransfer) -> Void) {
        guard let transfer = transfers.removeValue(forKey: id) else { return }
        byHandle[transfer.handle] = nil
        curl_multi_remove_handle(shared.handle, transfer.handle)
        shared.transferEnded()
        tell(transfer)
    }

    /// Until the next deadline of ours, rounded up; curl adds its own, and orders wake the poll. At most a minute.
    private func waitMilliseconds() -> Int32 {
        let now = time.now()
        var next = Instant.distantFuture
        for transfer in transfers.values { next = min(next, transfer.deadline) }
        for timer in timers { next = min(next, timer.at) }
        let span = next - now
        guard span > .zero else { return 0 }
        return Int32(clamping: min(60_000, span.nanoseconds / 1_000_000 + 1))
    }
}
