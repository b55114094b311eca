// A watch of etcd: one chunked answer, read line by line, and what surrounds it.
import BatonCore
import BatonHTTPClient
import BatonRuntime
import Synchronization

/// Performs what `EtcdWatchState` says. Events are told on the curl thread, one after the other.
final class EtcdWatch: ControlWatch {
    private struct State: Sendable {
        var machine: EtcdWatchState
        var cancelled = false
        /// The stream in use; what comes from an older one is dropped.
        var stream: UInt64 = 0
        var transfer: HTTPTransferID?
        var member = 0
        var token: String?
        var renewsToken = false
        var line: [UInt8] = []
        var status = 0
        var timerAt: Instant?
        /// To be performed, by one thread at a time.
        var actions: [EtcdWatchState.Action] = []
        var performing = false
    }

    private let prefix: ControlKey
    private let end: ControlKey
    private let channel: EtcdChannel
    private let time: any TimeSource
    private let list: @Sendable (@escaping @Sendable (Result<ControlListing, ControlFailure>) -> Void) -> Void
    private let tell: @Sendable (ControlWatchEvent) -> Void
    private let state: Mutex<State>

    init(
        _ prefix: ControlKey, end: ControlKey, machine: EtcdWatchState, channel: EtcdChannel, time: any TimeSource,
        list: @escaping @Sendable (@escaping @Sendable (Result<ControlListing, ControlFailure>) -> Void) -> Void,
        tell: @escaping @Sendable (ControlWatchEvent) -> Void
    ) {
        self.prefix = prefix
        self.end = end
        self.channel = channel
        self.time = time
        self.list = list
        self.tell = tell
        self.state = Mutex(State(machine: machine))
    }

    /// Begins on the curl thread, so that nothing is told on the caller's.
    func begin() {
        if !channel.curl.after(.zero, { self.receive(.begun) }) { cancel() }
    }

    var isCancelled: Bool { state.withLock { $0.cancelled } }

    func cancel() {
        let transfer = state.withLock { state in
            state.cancelled = true
            state.actions.removeAll()
            defer { state.transfer = nil }
            return state.transfer
        }
        if let transfer { channel.curl.cancel(transfer) }
    }

    // MARK: The machine

    private func receive(_ event: EtcdWatchState.Event) {
        let now = time.now()
        state.withLock { state in
            guard !state.cancelled else { return }
            var actions = ActionBuffer<EtcdWatchState.Action>()
            state.machine.receive(event, at: now, into: &actions)
            state.actions += actions.drain()
        }
        // An action may lead to an event at once (a refused request): its actions go behind those that wait.
        while true {
            let next = state.withLock { state -> EtcdWatchState.Action? in
                guard !state.performing, !state.cancelled, !state.actions.isEmpty else { return nil }
                state.performing = true
                return state.actions.removeFirst()
            }
            guard let next else { break }
            perform(next)
            state.withLock { $0.performing = false }
        }
        armTimer()
    }

    private func perform(_ action: EtcdWatchState.Action) {
        switch action {
        case .list: list { self.receive(.listed($0)) }
        case .open(let revision): open(after: revision)
        case .close:
            let transfer = state.withLock { state in
                state.stream += 1
                defer { state.transfer = nil }
                return state.transfer
            }
            if let transfer { channel.curl.cancel(transfer) }
        case .leaveMember: channel.failed(state.withLock { $0.member })
        case .renewToken: state.withLock { $0.renewsToken = true }
        case .tell(let event): tell(event)
        }
    }

    private func armTimer() {
        let due: Instant? = state.withLock { state in
            guard !state.cancelled, let due = state.machine.nextDue, state.timerAt.map({ due < $0 }) ?? true else {
                return nil
            }
            state.timerAt = due
            return due
        }
        guard let due else { return }
        let taken = channel.curl.after(max(.zero, due - time.now())) {
            self.state.withLock { if $0.timerAt == due { $0.timerAt = nil } }
            self.receive(.woke)
        }
        if !taken { state.withLock { $0.timerAt = nil } }
    }

    // MARK: The stream

    private func open(after revision: ControlRevision) {
        let (stream, refused): (UInt64, String??) = state.withLock { state in
            state.stream += 1
            state.line.removeAll()
            state.status = 0
            defer { state.renewsToken = false }
            return (state.stream, state.renewsToken ? .some(state.token) : .none)
        }
        channel.token(insteadOf: refused) { result in
            switch result {
            case .success(let token): self.open(stream, after: revision, token: token)
            case .failure(let failure): self.end(stream, .ended("no token: \(failure)"))
            }
        }
    }

    private func open(_ stream: UInt64, after revision: ControlRevision, token: String?) {
        let member = channel.endpoint
        // No limits but one: a stream may be silent for long; the machine gives up one that is not opened, or is behind.
        var request = channel.request(
            .watch, EtcdRequest.watch(prefix, end: end, from: revision &+ 1), at: member, token: token,
            isRepeatable: true,
            timeouts: HTTPTimeouts(
                connect: channel.settings.connectLimit, firstOctet: .zero, stall: .zero,
                total: .zero))
        // Each line is bounded instead.
        request.responseBytesMax = .max
        let transfer = channel.curl.stream(request) { self.received($0, stream) }
        let isStale = state.withLock { state in
            guard state.stream == stream, !state.cancelled else { return true }
            state.transfer = transfer
            state.member = member
            state.token = token
            return false
        }
        if isStale { channel.curl.cancel(transfer) }
    }

    private func received(_ event: HTTPStreamEvent, _ stream: UInt64) {
        switch event {
        case .head(let status): state.withLock { if $0.stream == stream { $0.status = status } }
        case .bytes(let bytes): received(bytes, stream)
        case .end(let error): end(stream, .ended(error?.description ?? "the member ended the stream"))
        }
    }

    private func received(_ bytes: [UInt8], _ stream: UInt64) {
        var lines: [[UInt8]] = []
        var tooLong = false
        let current = state.withLock { state in
            guard state.stream == stream, !state.cancelled else { return false }
            for part in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false).enumerated() {
                if part.offset > 0 {
                    lines.append(state.line)
                    state.line.removeAll(keepingCapacity: false)
                }
                state.line += part.element
            }
            tooLong = state.line.count > ControlLimits.answerBytes
            return true
        }
        guard current else { return }
        for line in lines where !line.isEmpty {
            guard let json = JSONValue(line), let read = EtcdAnswer.watchLine(json) else {
                return end(stream, .ended("a line that is not of a watch"))
            }
            received(read, stream)
        }
        if tooLong { end(stream, .compacted) }
    }

    private func received(_ line: EtcdAnswer.WatchLine, _ stream: UInt64) {
        guard state.withLock({ $0.stream == stream }) else { return }
        switch line {
        case .created(let header):
            guard channel.accepts(header.store) else { return end(stream, .ended("another cluster answers")) }
            receive(.opened(header))
        case .changes(_, let changes): receive(.changes(changes))
        case .progress: break
        case .cancelled(let compacted, let text): end(stream, compacted ? .compacted : .cancelled(text))
        case .error(let error):
            end(stream, error.meaning == .tokenNeeded ? .cancelled(error.text) : .ended(error.text))
        }
    }

    /// An event after which this stream brings nothing more.
    private func end(_ stream: UInt64, _ event: EtcdWatchState.Event) {
        guard state.withLock({ $0.stream == stream }) else { return }
        receive(event)
    }
}
