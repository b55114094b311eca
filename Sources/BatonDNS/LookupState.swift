// Which look-ups are under way, which wait, which are over time, and whether the resolver is there. A pure value.
import BatonCore
import DequeModule

/// The engine behind `UnboundThread`.
///
/// A SERVFAIL or time-out may be the domain's fault or our own. Where nothing was heard from any server for
/// `DNSLimits.probeInterval`, the answer is held back until the servers have been asked whether they are there
/// (`DNSLimits.probeTimeout`); if none is, every look-up fails as `resolverDown` until one answers again.
package struct LookupState: StateMachine {
    package enum Event: Sendable {
        /// `receiver` is the shell's number for who asks.
        case wanted([DNSQuestion], receiver: Int)
        case result(id: UInt64, DNSAnswer)
        /// Some server answered the probe, or none did in time.
        case probed(alive: Bool)
        /// Time has passed; see `deadline`.
        case tick
        /// Everything is answered as `resolverDown`; no look-ups any more.
        case stopped
    }

    package enum Action: Sendable {
        case begin(id: UInt64, DNSQuestion)
        case cancel(id: UInt64)
        case answer(receiver: Int, DNSReply)
        case probe
    }

    private enum Health: Sendable {
        case up
        /// A probe decides about the held answers.
        case suspected
        /// No server answers; the next probe is due then, or one is under way.
        case down(nextProbe: Instant, probing: Bool)
    }

    private let timeout: TimeSpan
    private let lookupsAtOnce: Int
    private let lookupsWaiting: Int
    private var health = Health.up
    private var lastHeard: Instant?
    private var nextID: UInt64 = 1
    private var underWay: [UInt64: DNSQuestion] = [:]
    /// In order of time, since every look-up has the same span; finished ones are skipped.
    private var deadlines = Deque<(id: UInt64, at: Instant)>()
    private var waiting = Deque<DNSQuestion>()
    private var held: [DNSReply] = []
    private var receivers: [DNSQuestion: [Int]] = [:]
    private var stopped = false

    package init(timeout: TimeSpan, lookupsAtOnce: Int, lookupsWaiting: Int) {
        self.timeout = timeout
        self.lookupsAtOnce = max(1, lookupsAtOnce)
        self.lookupsWaiting = max(0, lookupsWaiting)
    }

    package var underWayCount: Int { underWay.count }
    package var waitingCount: Int { waiting.count }
    package var isDown: Bool {
        switch health {
        case .down: true
        case .up, .suspected: false
        }
    }

    /// When `tick` is needed next.
    package var deadline: Instant? {
        var next = deadlines.first { underWay[$0.id] != nil }?.at
        if case .down(let due, false) = health { next = min(next ?? due, due) }
        return next
    }

    package mutating func receive(_ event: Event, at now: Instant, into actions: inout ActionBuffer<Action>) {
        switch event {
        case .wanted(let questions, let receiver):
            for question in questions { want(question, receiver, at: now, into: &actions) }
        case .result(let id, let answer):
            guard let question = underWay.removeValue(forKey: id) else { return }
            finish(DNSReply(question: question, answer: answer), at: now, into: &actions)
        case .probed(let alive): probed(alive, at: now, into: &actions)
        case .tick: tick(at: now, into: &actions)
        case .stopped:
            stopped = true
            for id in underWay.keys.sorted() { actions.append(.cancel(id: id)) }
            underWay = [:]
            deadlines = []
            waiting = []
            held = []
            for question in receivers.keys { reply(question, DNSAnswer(.failed(.resolverDown)), into: &actions) }
        }
        beginWaiting(at: now, into: &actions)
    }

    private mutating func want(
        _ question: DNSQuestion, _ receiver: Int, at now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        if receivers[question] != nil {
            receivers[question]?.append(receiver)
            return
        }
        let refusal: LookupFailure? =
            if stopped || isDown { .resolverDown } else if waiting.count > lookupsWaiting { .overloaded } else { nil }
        if let refusal {
            actions.append(
                .answer(receiver: receiver, DNSReply(question: question, answer: DNSAnswer(.failed(refusal)))))
            return
        }
        receivers[question] = [receiver]
        waiting.append(question)
        beginWaiting(at: now, into: &actions)
        if waiting.count > lookupsWaiting, let last = waiting.popLast() {
            reply(last, DNSAnswer(.failed(.overloaded)), into: &actions)
        }
    }

    private mutating func beginWaiting(at now: Instant, into actions: inout ActionBuffer<Action>) {
        while underWay.count + held.count < lookupsAtOnce, let question = waiting.popFirst() {
            let id = nextID
            nextID &+= 1
            underWay[id] = question
            deadlines.append((id, now + timeout))
            actions.append(.begin(id: id, question))
        }
    }

    private mutating func finish(
        _ reply: DNSReply, at now: Instant, into actions: inout ActionBuffer<Action>
    ) {
        guard Self.isDoubtful(reply.answer) else {
            heard(at: now, into: &actions)
            self.reply(reply.question, reply.answer, into: &actions)
            return
        }
        switch health {
        case .down: self.reply(reply.question, DNSAnswer(.failed(.resolverDown)), into: &actions)
        case .suspected: held.append(reply)
        case .up:
            if let lastHeard, now - lastHeard < DNSLimits.probeInterval {
                self.reply(reply.question, reply.answer, into: &actions)
            } else {
                held.append(reply)
                health = .suspected
                actions.append(.probe)
            }
        }
    }

    /// What libunbound also says where no server answers it.
    private static func isDoubtful(_ answer: DNSAnswer) -> Bool {
        switch answer.content {
        case .failed(.timeout), .failed(.refused(rcode: 2)): true
        case .failed, .addresses, .exchangers, .other, .noData, .noSuchName: false
        }
    }

    private mutating func heard(at now: Instant, into actions: inout ActionBuffer<Action>) {
        lastHeard = now
        health = .up
        let released = held
        held = []
        for reply in released { self.reply(reply.question, reply.answer, into: &actions) }
    }

    private mutating func probed(_ alive: Bool, at now: Instant, into actions: inout ActionBuffer<Action>) {
        if alive {
            heard(at: now, into: &actions)
            return
        }
        switch health {
        case .up: return
        case .suspected, .down: break
        }
        health = .down(nextProbe: now + DNSLimits.probeInterval, probing: false)
        let lost = held.map(\.question) + Array(waiting)
        held = []
        waiting = []
        for question in lost { reply(question, DNSAnswer(.failed(.resolverDown)), into: &actions) }
    }

    private mutating func tick(at now: Instant, into actions: inout ActionBuffer<Action>) {
        while let first = deadlines.first, first.at <= now || underWay[first.id] == nil {
            deadlines.removeFirst()
            guard let question = underWay.removeValue(forKey: first.id) else { continue }
            actions.append(.cancel(id: first.id))
            finish(DNSReply(question: question, answer: DNSAnswer(.failed(.timeout))), at: now, into: &actions)
        }
        if case .down(let due, false) = health, due <= now {
            health = .down(nextProbe: due, probing: true)
            actions.append(.probe)
        }
    }

    private mutating func reply(
        _ question: DNSQuestion, _ answer: DNSAnswer, into actions: inout ActionBuffer<Action>
    ) {
        for receiver in receivers.removeValue(forKey: question) ?? [] {
            actions.append(.answer(receiver: receiver, DNSReply(question: question, answer: answer)))
        }
    }
}
