// Answers from a table, for plans without a network.
import BatonCore
import BatonDNS
import BatonModel
import BatonTestKit
import Synchronization

func name(_ text: String) -> [UInt8] { Array(text.utf8) }

func address(_ text: String) -> IPAddress {
    guard let made = IPAddress(text) else { preconditionFailure("no address: \(text)") }
    return made
}

/// Records by question. What is not in the table does not exist as a type, unless the name is in `missing`.
struct FakeZone: Sendable {
    var answers: [DNSQuestion: DNSAnswer] = [:]
    var missing: Set<[UInt8]> = []

    mutating func mx(_ owner: String, _ records: [(UInt16, String)], ttl: UInt32 = 300, secure: Bool = false) {
        let parsed = records.map { preference, target in
            MXRecord(
                preference: preference,
                exchange: target == "." ? .null : DomainName.host(name(target)).map { .host($0) } ?? .unusable)
        }
        answers[DNSQuestion(name: name(owner), type: .mx)] = DNSAnswer(.exchangers(parsed), ttl: ttl, secure: secure)
    }

    mutating func host(_ owner: String, _ addresses: [String], ttl: UInt32 = 300, secure: Bool = false) {
        let parsed = addresses.map { address($0) }
        let four = parsed.filter(\.isIPv4)
        let six = parsed.filter { !$0.isIPv4 }
        if !four.isEmpty {
            answers[DNSQuestion(name: name(owner), type: .a)] = DNSAnswer(.addresses(four), ttl: ttl, secure: secure)
        }
        if !six.isEmpty {
            answers[DNSQuestion(name: name(owner), type: .aaaa)] = DNSAnswer(.addresses(six), ttl: ttl, secure: secure)
        }
    }

    mutating func fail(_ owner: String, _ types: [RecordType], _ why: LookupFailure) {
        for type in types { answers[DNSQuestion(name: name(owner), type: type)] = DNSAnswer(.failed(why)) }
    }

    func answer(_ question: DNSQuestion) -> DNSAnswer {
        if let known = answers[question] { return known }
        return DNSAnswer(missing.contains(question.name) ? .noSuchName : .noData, ttl: 300)
    }
}

/// A `PlannerState` whose questions a zone answers at once.
struct ZonePlanner {
    var zone: FakeZone
    var state: PlannerState
    var now = Instant(secondsSinceEpoch: 1_767_225_600)
    var asked: [DNSQuestion] = []
    private var token: UInt64 = 0

    init(_ zone: FakeZone, _ settings: PlanSettings = PlanSettings(), seed: UInt64 = 1) {
        self.zone = zone
        self.state = PlannerState(settings: settings, seed: seed)
    }

    mutating func plan(_ domain: String, _ kind: PlanKey.Kind = .exchangers) -> MXPlan? {
        token += 1
        var actions = ActionBuffer<PlannerState.Action>()
        state.receive(.planWanted(Domain(domain), kind, token: token), at: now, into: &actions)
        var rounds = 0
        while rounds < 64 {
            rounds += 1
            var replies: [DNSReply] = []
            for action in actions.drain() {
                switch action {
                case .finished(let mine, let plan): if mine == token { return plan }
                case .ask(let questions):
                    asked += questions
                    replies += questions.map { DNSReply(question: $0, answer: zone.answer($0)) }
                }
            }
            if replies.isEmpty { return nil }
            state.receive(.answered(replies), at: now, into: &actions)
        }
        return nil
    }

    /// The verdict in one word and its hosts: `hosts 10 a.example 192.0.2.1; …`.
    mutating func text(_ domain: String, _ kind: PlanKey.Kind = .exchangers) -> String {
        plan(domain, kind).map { describe($0.verdict) } ?? "no plan"
    }
}

func describe(_ verdict: MXPlan.Verdict) -> String {
    switch verdict {
    case .hosts(let hosts):
        "hosts "
            + hosts.map { host in
                let addresses = host.addresses.map(\.description).joined(separator: " ")
                return "\(host.preference) \(String(decoding: host.name, as: UTF8.self)) \(addresses)"
            }.joined(separator: "; ")
    case .nullMX: "nullMX"
    case .noSuchDomain: "noSuchDomain"
    case .noAddress: "noAddress"
    case .mailLoop: "mailLoop"
    case .temporary(let reason): "temporary: \(reason)"
    case .resolverDown: "resolverDown"
    }
}

/// Counts questions, and answers them from a zone when told to.
final class FakeResolver: Resolving {
    private struct State {
        var open: [(DNSQuestion, any AnswerReceiving)] = []
        var total = 0
    }

    private let zone: FakeZone
    private let state = Mutex(State())

    init(_ zone: FakeZone) {
        self.zone = zone
    }

    func resolve(_ questions: [DNSQuestion], for receiver: any AnswerReceiving) {
        state.withLock { state in
            state.total += questions.count
            for question in questions { state.open.append((question, receiver)) }
        }
    }

    var total: Int { state.withLock { $0.total } }
    var open: Int { state.withLock { $0.open.count } }

    /// Answers everything open, one batch for each receiver.
    func answerAll() {
        let taken = state.withLock { state in
            defer { state.open = [] }
            return state.open
        }
        var done: Set<ObjectIdentifier> = []
        for (_, receiver) in taken where done.insert(ObjectIdentifier(receiver)).inserted {
            receiver.answered(
                taken.filter { $0.1 === receiver }.map { DNSReply(question: $0.0, answer: zone.answer($0.0)) })
        }
    }
}
