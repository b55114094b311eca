// Any order of events: every recipient ends exactly once, and the counters are right all along.
import BatonCore
import BatonModel
import Testing

@testable import BatonQueue

@Test(arguments: [1, 2, 3, 4, 5, 6, 7, 8] as [UInt64])
func recipientIsLostOrEndsTwice(seed: UInt64) throws {
    print("seed \(seed)")
    var random = SplitMix64(seed: seed)
    func chance(_ percent: UInt64) -> Bool { random.next() % 100 < percent }
    func below(_ limit: Int) -> Int { Int(random.next() % UInt64(limit)) }

    let harness = Harness(
        QueueConfiguration(
            retry: RetrySchedule(first: .seconds(30), max: .minutes(20)), expireAfter: .hours(3),
            delayNoticeAfter: .minutes(5), residentBytes: 100_000, seed: seed))
    harness.autoSite = nil
    let domains = (0..<12).map { "d\($0).test" }
    let sites = [siteA, siteB, SiteID(value: 9)]
    let selectors: [QueueSelector] = [
        .all, .domain(Domain(domains[3])), .senderDomain(Domain("s1.test")), .site(Array("two".utf8)),
        .sender(address("a@s2.test")), .message(messageID(40)),
    ]
    harness.state.nameSite(siteB, name: Array("two".utf8), retry: nil)
    var number: UInt32 = 0
    var expected: Set<JobRef> = []
    var ended: Set<JobRef> = []
    var flying: [Transaction] = []
    var routed = 0
    var handledFinals = 0

    func end(_ ref: StoredMessageRef, _ recipient: PulledRecipient) {
        let job = JobRef(message: ref, recipient: recipient.recipient)
        #expect(expected.contains(job))
        #expect(ended.insert(job).inserted, "seed \(seed): \(job) ended twice")
        harness.settle([recipient.handle])
    }
    func answerRoutes() {
        while routed < harness.routes.count {
            let (id, _) = harness.routes[routed]
            routed += 1
            switch below(20) {
            case 0: harness.state.deferDestination(id, reply: unreachable, at: harness.now)
            case 1: harness.state.failDestination(id, reply: noUser)
            case 2: harness.state.holdDestination(id, until: harness.now + .seconds(20))
            default:
                harness.state.assign(
                    id, to: sites[below(3)], until: harness.now + .seconds(Int64(below(600))), at: harness.now)
            }
            harness.perform()
        }
    }
    func finishFinals() {
        while handledFinals < harness.finals.count {
            let item = harness.finals[handledFinals]
            handledFinals += 1
            end(item.message, item.recipient)
        }
    }
    func finish(_ transaction: Transaction) {
        let results = transaction.recipients.map { recipient -> (JobHandle, AttemptResult) in
            switch below(10) {
            case 0: (recipient.handle, .permanent(noUser))
            case 1: (recipient.handle, .inDoubt(unreachable))
            case 2: (recipient.handle, .returned)
            case 3, 4, 5: (recipient.handle, .temporary(tryLater))
            default: (recipient.handle, .delivered(accepted))
            }
        }
        for (decision, recipient) in zip(harness.decide(results), transaction.recipients) {
            switch decision {
            case .delivered, .bounced, .expired: end(transaction.message, recipient)
            case .deferred, .inDoubt, .returned: break
            case .unknown: Issue.record("a handle went stale")
            }
        }
    }
    func checkNow() {
        let violations = harness.violations()
        #expect(violations == [], "seed \(seed)")
    }

    for step in 0..<3_000 {
        if chance(30) {
            number += 1
            let recipients = (0...below(4)).map { "u\($0)@\(domains[below(12)])" }
            harness.receive(
                message(
                    number, to: recipients, from: "a@s\(below(3)).test", senderClass: UInt64(below(5)),
                    arrival: harness.now, size: 500))
            for index in recipients.indices {
                expected.insert(
                    JobRef(message: StoredMessageRef(segment: 1, record: number), recipient: UInt32(index)))
            }
        }
        answerRoutes()
        if chance(60) { flying += harness.pull(sites[below(3)], 1 + below(4), recipients: 1 + below(3)) }
        if !flying.isEmpty, chance(70) { finish(flying.remove(at: below(flying.count))) }
        finishFinals()
        if chance(2) { harness.state.deferSite(sites[below(3)], reply: unreachable, at: harness.now) }
        if chance(1) {
            let selector = selectors[below(selectors.count)]
            switch below(5) {
            case 0: _ = try harness.suspend(selector, for: .minutes(2))
            case 1: _ = try harness.suspend(selector)
            case 2: _ = try harness.retry(selector)
            case 3: if selector != .all { _ = try harness.bounce(selector) }
            default: _ = try harness.resume(.all)
            }
        }
        if chance(50) { harness.advance(by: .milliseconds(Int64(below(20_000)))) } else { harness.work() }
        if step % 25 == 0 { checkNow() }
    }
    _ = try harness.resume(.all)
    var rounds = 0
    while harness.jobCount > 0, rounds < 100_000 {
        rounds += 1
        answerRoutes()
        for site in sites { flying += harness.pull(site, 50, recipients: 100) }
        for transaction in flying { finish(transaction) }
        flying = []
        finishFinals()
        harness.advance(by: .seconds(30))
    }
    #expect(ended == expected, "seed \(seed): \(expected.subtracting(ended).count) lost")
    checkNow()
    #expect(harness.residentBytes == 0)
    let replies = harness.state.replies.count
    #expect(replies <= 4)
}
