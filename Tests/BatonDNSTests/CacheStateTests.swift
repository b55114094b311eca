// The cache: times to live, one look-up for many, eviction.
import BatonCore
import BatonModel
import Testing

@testable import BatonDNS

private let now = Instant(secondsSinceEpoch: 1_767_225_600)
private let key = PlanKey(name: name("d.example"), kind: .exchangers)
private let question = DNSQuestion(name: name("a.example"), type: .a)

private func isHit(_ found: CacheState.Found) -> Bool {
    if case .hit = found { true } else { false }
}

private func found(_ content: DNSAnswer.Content, ttl: UInt32?, after span: TimeSpan) -> Bool {
    var cache = CacheState()
    _ = cache.find(question, for: key, at: now)
    _ = cache.receive(DNSReply(question: question, answer: DNSAnswer(content, ttl: ttl)), at: now)
    return isHit(cache.find(question, for: key, at: now + span))
}

@Test func answerOlderThanItsTTL() {
    let positive = DNSAnswer.Content.addresses([address("203.0.113.1")])
    #expect(found(positive, ttl: 300, after: .seconds(299)))
    #expect(!found(positive, ttl: 300, after: .seconds(300)))
    #expect(!found(positive, ttl: 0, after: .zero))
    #expect(found(positive, ttl: 1, after: .seconds(4)), "raised to ttlMin")
    #expect(!found(positive, ttl: .max, after: DNSLimits.ttlMax), "cut to ttlMax")
}

@Test func negativeAnswerOlderThanItsSOASays() {
    for content in [DNSAnswer.Content.noData, .noSuchName] {
        #expect(found(content, ttl: 30, after: .seconds(29)))
        #expect(!found(content, ttl: 30, after: .seconds(30)))
        #expect(!found(content, ttl: 86_400, after: DNSLimits.negativeMax), "cut to negativeMax")
        #expect(!found(content, ttl: nil, after: DNSLimits.negativeDefault))
        #expect(found(content, ttl: nil, after: .seconds(59)))
    }
}

@Test func failureIsRememberedShortlyAndOurOwnNotAtAll() {
    #expect(found(.failed(.timeout), ttl: nil, after: .seconds(29)))
    #expect(!found(.failed(.timeout), ttl: nil, after: DNSLimits.failureSpan))
    #expect(!found(.failed(.resolverDown), ttl: nil, after: .zero))
    #expect(!found(.failed(.overloaded), ttl: nil, after: .zero))
}

@Test func oneLookUpServesAllWaitersEvenWithTTLZero() {
    var cache = CacheState()
    let keys = (0..<5).map { PlanKey(name: name("d\($0).example"), kind: .exchangers) }
    var asks = 0
    for key in keys { if case .ask = cache.find(question, for: key, at: now) { asks += 1 } }
    #expect(asks == 1)
    let reply = DNSReply(question: question, answer: DNSAnswer(.addresses([address("203.0.113.1")]), ttl: 0))
    #expect(cache.receive(reply, at: now).waiters == keys)
    #expect(cache.lookupsUnderWay == 0)
    #expect(cache.count == 0)
}

@Test func answerThatNobodyAskedForIsNotKept() {
    var cache = CacheState()
    let reply = DNSReply(question: question, answer: DNSAnswer(.addresses([address("203.0.113.1")]), ttl: 300))
    #expect(cache.receive(reply, at: now).waiters.isEmpty)
    #expect(cache.count == 0)
}

@Test func cacheOverItsBoundDropsWhatIsNotUsed() {
    var cache = CacheState(capacity: 64 * 1024)
    func put(_ index: Int) {
        let question = DNSQuestion(name: name("h\(index).example"), type: .a)
        _ = cache.find(question, for: key, at: now)
        let answer = DNSAnswer(.addresses([address("203.0.113.1")]), ttl: 300)
        _ = cache.receive(DNSReply(question: question, answer: answer), at: now)
    }
    let favourite = DNSQuestion(name: name("h0.example"), type: .a)
    put(0)
    for index in 1..<5000 {
        put(index)
        #expect(isHit(cache.find(favourite, for: key, at: now)), "used answer dropped at \(index)")
        #expect(cache.cost <= 64 * 1024)
    }
    #expect(cache.count < 300)
    #expect(cache.evicted == UInt64(5000 - cache.count))
    #expect(!isHit(cache.find(DNSQuestion(name: name("h1.example"), type: .a), for: key, at: now)))
}
