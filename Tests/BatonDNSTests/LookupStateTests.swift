// The resolver's book-keeping: bounds, time-outs, and telling a dead resolver from a broken domain.
import BatonCore
import BatonDNS
import Testing

private struct Harness {
    var state: LookupState
    var now = Instant(secondsSinceEpoch: 1_767_225_600)
    var begun: [UInt64] = []
    var cancelled: [UInt64] = []
    var answers: [(receiver: Int, DNSReply)] = []
    var probes = 0

    init(atOnce: Int = 4, waiting: Int = 4) {
        state = LookupState(timeout: .seconds(5), lookupsAtOnce: atOnce, lookupsWaiting: waiting)
    }

    mutating func send(_ event: LookupState.Event) {
        var actions = ActionBuffer<LookupState.Action>()
        state.receive(event, at: now, into: &actions)
        for action in actions.drain() {
            switch action {
            case .begin(let id, _): begun.append(id)
            case .cancel(let id): cancelled.append(id)
            case .answer(let receiver, let reply): answers.append((receiver, reply))
            case .probe: probes += 1
            }
        }
    }

    mutating func want(_ text: String, receiver: Int = 0) {
        send(.wanted([DNSQuestion(name: name(text), type: .a)], receiver: receiver))
    }

    mutating func pass(_ span: TimeSpan) {
        now = now + span
        send(.tick)
    }

    var last: DNSAnswer.Content? { answers.last?.1.answer.content }
}

private let good = DNSAnswer(.addresses([address("203.0.113.1")]), ttl: 300)
private let servfail = DNSAnswer(.failed(.refused(rcode: 2)))

@Test func sameQuestionOfTwoLoopsIsOneLookUp() {
    var harness = Harness()
    harness.want("a.example", receiver: 0)
    harness.want("a.example", receiver: 1)
    #expect(harness.begun == [1])
    harness.send(.result(id: 1, good))
    #expect(harness.answers.map(\.receiver) == [0, 1])
    harness.send(.result(id: 1, good))
    #expect(harness.answers.count == 2, "a second result is nobody's")
}

@Test func lookUpsOverTheBoundsWaitAndThenFail() {
    var harness = Harness(atOnce: 4, waiting: 4)
    for index in 0..<9 { harness.want("d\(index).example") }
    #expect(harness.begun.count == 4)
    #expect(harness.state.waitingCount == 4)
    #expect(harness.answers.count == 1)
    #expect(harness.last == .failed(.overloaded))
    harness.send(.result(id: 1, good))
    #expect(harness.begun.count == 5)
    #expect(harness.state.underWayCount == 4)
}

@Test func silentServerOfOneDomainIsThatDomainsTimeOut() {
    var harness = Harness()
    harness.want("a.example")
    harness.send(.result(id: 1, good))
    harness.want("b.example")
    harness.pass(.seconds(4))
    #expect(harness.cancelled.isEmpty)
    // Others are answered meanwhile, so that the resolver is known to be there.
    harness.want("c.example")
    harness.send(.result(id: 3, DNSAnswer(.noSuchName)))
    harness.pass(.seconds(1))
    #expect(harness.cancelled == [2])
    #expect(harness.last == .failed(.timeout))
    #expect(harness.probes == 0)
}

@Test func doubtfulAnswerWaitsUntilTheServersWereAsked() {
    var harness = Harness()
    harness.want("a.example")
    harness.send(.result(id: 1, servfail))
    #expect(harness.answers.isEmpty)
    #expect(harness.probes == 1)
    harness.send(.probed(alive: true))
    #expect(harness.last == .failed(.refused(rcode: 2)))
    #expect(!harness.state.isDown)
}

@Test func noServerAnswersSoNothingIsTheDomainsFault() {
    var harness = Harness()
    for index in 0..<6 { harness.want("d\(index).example") }
    harness.pass(.seconds(5))
    #expect(harness.probes == 1)
    harness.send(.probed(alive: false))
    #expect(harness.state.isDown)
    #expect(harness.answers.count == 6)
    #expect(harness.answers.allSatisfy { $0.1.answer.content == .failed(.resolverDown) })
    // While down: refused at once, and the servers are asked every few seconds.
    harness.want("more.example")
    #expect(harness.last == .failed(.resolverDown))
    #expect(harness.state.deadline == harness.now + DNSLimits.probeInterval)
    harness.pass(DNSLimits.probeInterval)
    #expect(harness.probes == 2)
    harness.pass(.seconds(60))
    #expect(harness.probes == 2, "one probe at a time")
    harness.send(.probed(alive: false))
    harness.pass(DNSLimits.probeInterval)
    #expect(harness.probes == 3)
    harness.send(.probed(alive: true))
    #expect(!harness.state.isDown)
    let begun = harness.begun.count
    harness.want("again.example")
    #expect(harness.begun.count == begun + 1)
}

@Test func answerWhileSuspectedReleasesWhatWasHeld() {
    var harness = Harness()
    harness.want("a.example")
    harness.want("b.example")
    harness.send(.result(id: 1, servfail))
    harness.send(.result(id: 2, good))
    #expect(harness.answers.count == 2)
    harness.send(.probed(alive: false))
    #expect(!harness.state.isDown, "the late verdict of the probe is out of date")
}

@Test func heldAnswersCountAgainstTheBound() {
    var harness = Harness(atOnce: 2, waiting: 10)
    for index in 0..<6 { harness.want("d\(index).example") }
    harness.send(.result(id: 1, servfail))
    harness.send(.result(id: 2, servfail))
    #expect(harness.begun.count == 2)
    harness.send(.probed(alive: true))
    #expect(harness.begun.count == 4)
}

@Test func stopAnswersEverybody() {
    var harness = Harness(atOnce: 2, waiting: 10)
    for index in 0..<5 { harness.want("d\(index).example") }
    harness.send(.stopped)
    #expect(harness.answers.count == 5)
    #expect(harness.cancelled == [1, 2])
    harness.want("late.example")
    #expect(harness.answers.count == 6)
    #expect(harness.answers.allSatisfy { $0.1.answer.content == .failed(.resolverDown) })
    #expect(harness.state.deadline == nil)
}

@Test func everyQuestionIsAnsweredOnceWhateverHappens() {
    for seed in UInt64(1)...40 {
        var random = SplitMix64(seed: seed)
        var harness = Harness(atOnce: 3, waiting: 5)
        var wanted = 0
        for _ in 0..<400 {
            switch Int.random(in: 0..<6, using: &random) {
            case 0, 1:
                harness.want("d\(Int.random(in: 0..<12, using: &random)).example")
                wanted += 1
            case 2:
                if let id = harness.begun.randomElement(using: &random) {
                    harness.send(.result(id: id, Bool.random(using: &random) ? good : servfail))
                }
            case 3: harness.pass(.milliseconds(Int64.random(in: 0..<3000, using: &random)))
            case 4: harness.send(.probed(alive: Bool.random(using: &random)))
            default: harness.send(.tick)
            }
            #expect(harness.state.underWayCount <= 3 && harness.state.waitingCount <= 5, "seed \(seed)")
        }
        harness.send(.stopped)
        #expect(harness.answers.count == wanted, "seed \(seed)")
    }
}
