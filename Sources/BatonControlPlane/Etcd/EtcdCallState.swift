// What to do with each answer to a request, or without one: the rules of failover. Pure.
import BatonCore
import BatonHTTPClient

/// One operation's tries at the members.
struct EtcdCallState: Sendable {
    enum Kind: Hashable, Sendable {
        /// No effect: tried again at will.
        case read
        /// The same effect once or twice: tried again at will; without an answer it is unknown.
        case idempotent
        /// Never sent again once it may have arrived.
        case change
    }

    enum Event: Sendable {
        /// Nil: the body is no JSON.
        case answered(status: Int, JSONValue?)
        case failed(HTTPError)
        /// Another cluster answered than at first.
        case foreign
    }

    enum Action: Sendable {
        case end(EtcdOutcome)
        case tryAgain(after: TimeSpan)
        case renewToken
    }

    let kind: Kind
    let deadline: Instant
    private let isOnlyOneTry: Bool
    private let members: Int
    private let hasCredentials: Bool
    private var tries = 0
    private var renewals = 0
    /// A change may have arrived at some member.
    private var mayHaveArrived = false

    init(kind: Kind, deadline: Instant, isOnlyOneTry: Bool, members: Int, hasCredentials: Bool) {
        self.kind = kind
        self.deadline = deadline
        self.isOnlyOneTry = isOnlyOneTry
        self.members = members
        self.hasCredentials = hasCredentials
    }

    mutating func receive(_ event: Event, at now: Instant) -> Action {
        switch event {
        case .failed(let error): return failed(error, at: now)
        case .foreign:
            guard kind != .read else { return next("another cluster answers", .foreignStore, at: now) }
            return .end(.failure(.unknown("another cluster took the request")))
        case .answered(let status, let json):
            if status == 200, let json { return .end(.answer(json)) }
            guard status != 200, let error = json.flatMap({ EtcdError($0) }) else {
                return troubled("status \(status), not from etcd's gateway", at: now)
            }
            switch error.meaning {
            case .trouble: return troubled(error.text, at: now)
            case .refused(let refusal): return .end(.refused(refusal, error))
            case .tokenNeeded:
                guard hasCredentials, renewals < 2 else { return .end(.refused(.denied, error)) }
                renewals += 1
                return .renewToken
            }
        }
    }

    private mutating func failed(_ error: HTTPError, at now: Instant) -> Action {
        if error.mayHaveArrived { mayHaveArrived = true }
        switch error.kind {
        case .stopped, .cancelled: return end(.stopped, error.text)
        case .overloaded: return end(.overloaded, error.text)
        case .invalidRequest: return end(.invalid, error.text)
        case .tooLarge where kind == .read: return .end(.tooLarge)
        case .resolve, .connect, .tls, .timeout, .interrupted, .tooLarge:
            return error.mayHaveArrived
                ? troubled(error.description, at: now) : next(error.description, .unavailable, at: now)
        }
    }

    /// The request arrived, and what came of it is not known.
    private mutating func troubled(_ text: String, at now: Instant) -> Action {
        mayHaveArrived = true
        guard kind != .change else { return .end(.failure(.unknown(text))) }
        return next(text, .unavailable, at: now)
    }

    /// At once at the next member; a pause after each round through all.
    private mutating func next(_ text: String, _ refusal: ControlRefusal, at now: Instant) -> Action {
        tries += 1
        let pause = tries % members == 0 ? ControlLimits.roundPause : .zero
        guard !isOnlyOneTry, now + pause < deadline else { return end(refusal, text) }
        return .tryAgain(after: pause)
    }

    /// Without an answer: refused, unless some try may have had its effect.
    func end(_ refusal: ControlRefusal, _ text: String) -> Action {
        guard kind == .read || !mayHaveArrived else { return .end(.failure(.unknown(text))) }
        return .end(.failure(.refused(refusal, text)))
    }
}

enum EtcdOutcome: Sendable {
    case answer(JSONValue)
    case refused(ControlRefusal, EtcdError)
    /// The answer to a read is longer than `ControlLimits.answerBytes`.
    case tooLarge
    case failure(ControlFailure)
}
