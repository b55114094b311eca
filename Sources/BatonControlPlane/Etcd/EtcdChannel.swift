// Requests to etcd over one curl thread: members, tokens, failover.
import BatonCore
import BatonHTTPClient
import BatonRuntime
import Synchronization

/// Every call is answered exactly once, on the curl thread (or at once on the caller's, where it is refused). Bound: `waiting`.
final class EtcdChannel: Sendable {
    typealias TokenReceiver = @Sendable (Result<String?, ControlFailure>) -> Void

    struct Call: Sendable {
        let path: EtcdPath
        let body: String
        let kind: EtcdCallState.Kind
        /// From now on.
        let limit: TimeSpan
        var isOnlyOneTry = false
        var needsToken = true
        let answer: @Sendable (EtcdOutcome) -> Void
    }

    private struct Open: Sendable {
        let call: Call
        var state: EtcdCallState
    }

    private struct State: Sendable {
        var open: [UInt64: Open] = [:]
        var lastID: UInt64 = 0
        var endpoints: EtcdEndpoints
        var token: String?
        var isAuthenticating = false
        var isAuthenticationOff = false
        var tokenReceivers: [TokenReceiver] = []
        /// The cluster that answered first.
        var store: UInt64?
        var stopped = false
    }

    let settings: EtcdSettings
    let curl: CurlThread
    private let time: any TimeSource
    private let state: Mutex<State>

    init(_ settings: EtcdSettings, name: String, time: any TimeSource, first: UInt64) {
        self.settings = settings
        self.curl = CurlThread(name: name, time: time)
        self.time = time
        self.state = Mutex(State(endpoints: EtcdEndpoints(count: settings.endpoints.count, first: first)))
    }

    /// Answers what is open, and ends the thread.
    func stop() {
        let receivers = state.withLock { state in
            state.stopped = true
            defer { state.tokenReceivers.removeAll() }
            return state.tokenReceivers
        }
        curl.stop()
        for receiver in receivers { receiver(.failure(.refused(.stopped, "stopped"))) }
        // Calls that waited for a pause or a token have no transfer that would end them.
        for id in state.withLock({ Array($0.open.keys) }) { finish(id) { $0.end(.stopped, "stopped") } }
    }

    // MARK: Calls

    func perform(_ call: Call) {
        let deadline = time.now() + call.limit
        let id: UInt64? = state.withLock { state in
            guard !state.stopped, state.open.count < ControlLimits.waiting else { return nil }
            state.lastID += 1
            let attempts = EtcdCallState(
                kind: call.kind, deadline: deadline, isOnlyOneTry: call.isOnlyOneTry, members: settings.endpoints.count,
                hasCredentials: settings.credentials != nil && call.needsToken)
            state.open[state.lastID] = Open(call: call, state: attempts)
            return state.lastID
        }
        guard let id else {
            let stopped = state.withLock { $0.stopped }
            let refusal: ControlRefusal = stopped ? .stopped : .overloaded
            return call.answer(.failure(.refused(refusal, "the request was not begun")))
        }
        guard call.needsToken else { return attempt(id, token: nil) }
        token { self.receivedToken($0, for: id) }
    }

    private func receivedToken(_ token: Result<String?, ControlFailure>, for id: UInt64) {
        switch token {
        case .success(let token): attempt(id, token: token)
        case .failure(let failure): finish(id) { $0.end(failure.refusal ?? .unavailable, failure.description) }
        }
    }

    private func attempt(_ id: UInt64, token: String?) {
        let now = time.now()
        guard let (open, endpoint) = state.withLock({ state in state.open[id].map { ($0, state.endpoints.current) } })
        else { return }
        let left = open.state.deadline - now
        guard left > .zero else { return finish(id) { $0.end(.unavailable, "no time is left") } }
        let limit = open.state.kind == .read ? min(left, settings.tryLimit) : left
        let request = request(
            open.call.path, open.call.body, at: endpoint, token: token, isRepeatable: open.state.kind == .read,
            timeouts: HTTPTimeouts(
                connect: min(limit, settings.connectLimit), firstOctet: .zero, stall: .zero, total: limit))
        curl.submit(request) { result in self.received(result, for: id, from: endpoint, token: token) }
    }

    func request(
        _ path: EtcdPath, _ body: String, at endpoint: Int, token: String?, isRepeatable: Bool, timeouts: HTTPTimeouts
    ) -> HTTPRequest {
        var headers = [HTTPHeader("Content-Type", "application/json")]
        if let token { headers.append(HTTPHeader("Authorization", token)) }
        return HTTPRequest(
            .post, settings.endpoints[endpoint] + path.rawValue, headers: headers, body: Array(body.utf8),
            responseBytesMax: ControlLimits.answerBytes, timeouts: timeouts, tls: settings.tls,
            isRepeatable: isRepeatable)
    }

    private func received(
        _ result: Result<HTTPResponse, HTTPError>, for id: UInt64, from endpoint: Int, token: String?
    ) {
        let event: EtcdCallState.Event
        switch result {
        case .failure(let error): event = .failed(error)
        case .success(let response):
            let json = JSONValue(response.body)
            let isForeign = response.status == 200 && json.map(self.isForeign) ?? false
            event = isForeign ? .foreign : .answered(status: response.status, json)
        }
        let now = time.now()
        let action = state.withLock { state -> EtcdCallState.Action? in
            guard let action = state.open[id]?.state.receive(event, at: now) else { return nil }
            switch action {
            case .tryAgain: state.endpoints.failed(endpoint)
            case .end(.failure): state.endpoints.failed(endpoint)
            case .end, .renewToken: break
            }
            return action
        }
        guard let action else { return }
        switch action {
        case .end: finish(id) { _ in action }
        case .renewToken: self.token(insteadOf: .some(token)) { self.receivedToken($0, for: id) }
        case .tryAgain(let pause):
            guard pause > .zero else { return again(id) }
            // Without a timer the client is stopping, which ends the call, or is full.
            if !curl.after(pause, { self.again(id) }) {
                let refusal: ControlRefusal = state.withLock { $0.stopped } ? .stopped : .overloaded
                finish(id) { $0.end(refusal, "no timer") }
            }
        }
    }

    private func again(_ id: UInt64) {
        let needsToken = state.withLock { $0.open[id]?.call.needsToken ?? false }
        guard needsToken else { return attempt(id, token: nil) }
        token { self.receivedToken($0, for: id) }
    }

    private func finish(_ id: UInt64, _ decide: (EtcdCallState) -> EtcdCallState.Action) {
        guard let open = state.withLock({ $0.open.removeValue(forKey: id) }) else { return }
        guard case .end(let outcome) = decide(open.state) else { preconditionFailure("a call ends without an outcome") }
        open.call.answer(outcome)
    }

    // MARK: Members

    /// Whether an answer with a header names another cluster than the first one did.
    private func isForeign(_ json: JSONValue) -> Bool {
        guard let header = EtcdAnswer.header(json) ?? json["result"].flatMap(EtcdAnswer.header) else { return false }
        return !accepts(header.store)
    }

    func accepts(_ store: UInt64) -> Bool {
        state.withLock { state in
            if state.store == nil { state.store = store }
            return state.store == store
        }
    }

    var endpoint: Int { state.withLock { $0.endpoints.current } }
    func failed(_ endpoint: Int) { state.withLock { $0.endpoints.failed(endpoint) } }

    // MARK: Tokens

    /// Hands over a token, asking etcd for one where there is none. Nil without credentials, or where etcd's authentication is
    /// off. At most one request for a token is under way.
    ///
    /// - Parameter refused: the token (or none) that etcd has just refused; another one is needed.
    func token(insteadOf refused: String?? = .none, _ ready: @escaping TokenReceiver) {
        guard let credentials = settings.credentials else { return ready(.success(nil)) }
        enum Step {
            case ready(String?)
            case ask
            case wait
        }
        let step: Step = state.withLock { state in
            if let token = state.token, .some(token) != refused { return .ready(token) }
            if state.isAuthenticationOff, refused == .none { return .ready(nil) }
            state.tokenReceivers.append(ready)
            if state.isAuthenticating { return .wait }
            state.isAuthenticating = true
            return .ask
        }
        switch step {
        case .ready(let token): ready(.success(token))
        case .wait: break
        case .ask:
            let body = EtcdRequest.authenticate(credentials.user, credentials.password)
            perform(
                Call(path: .authenticate, body: body, kind: .read, limit: settings.operationLimit, needsToken: false) {
                    self.authenticated($0)
                })
        }
    }

    private func authenticated(_ outcome: EtcdOutcome) {
        let result: Result<String?, ControlFailure> =
            switch outcome {
            case .answer(let json):
                EtcdAnswer.token(json).map { .success($0) } ?? .failure(.refused(.denied, "no token in the answer"))
            case .refused(_, let error) where error.isAuthenticationOff: .success(nil)
            case .refused(let refusal, let error): .failure(.refused(refusal, error.text))
            case .tooLarge: .failure(.refused(.denied, "no token in the answer"))
            case .failure(let failure): .failure(failure)
            }
        let receivers = state.withLock { state in
            state.isAuthenticating = false
            if case .success(let token) = result {
                state.token = token
                state.isAuthenticationOff = token == nil
            }
            defer { state.tokenReceivers.removeAll() }
            return state.tokenReceivers
        }
        for receiver in receivers { receiver(result) }
    }
}
