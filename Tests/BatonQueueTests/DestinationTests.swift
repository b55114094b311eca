// Destinations as a whole: back-off, failure, pauses, sites, and the walks that go with them.
import BatonCore
import BatonModel
import Testing

@testable import BatonQueue

private func id(_ harness: Harness, _ domain: String) -> DestinationID {
    harness.routes.last { $0.1 == Domain(domain) }?.0 ?? DestinationID(value: 0)
}

private func deferAll(_ harness: Harness, _ domain: String = "x.test") {
    harness.state.deferDestination(id(harness, domain), reply: unreachable, at: harness.now)
    harness.work()
}

@Test func failingDestinationIsManyWheelEntries() {
    let harness = Harness()
    for number in 0..<1_000 { harness.receive(message(UInt32(number), to: ["u@x.test"])) }
    deferAll(harness)
    let entries = harness.state.wheel.count
    #expect(entries == 1)
    #expect(harness.totals.deferred == 1_000 && harness.totals.ready == 0)
    #expect(harness.show(5).map(\.attempts) == [1])
    #expect(harness.show(5)[0].lastReply == unreachable)
    #expect(harness.show(5)[0].due.map { $0 > harness.now + .minutes(3) } == true)
    #expect(harness.pull().isEmpty)
    // Nothing stays in memory past its first attempt.
    #expect(harness.residentBytes == 0)
    harness.advance(by: .minutes(7))
    #expect(harness.pull(siteA, 2_000).count == 1_000)
    #expect(harness.violations() == [])
}

@Test func backOffOfADestinationStaysShort() {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]))
    var waits: [TimeSpan] = []
    for _ in 0..<8 {
        let from = harness.now
        deferAll(harness)
        harness.ready = [:]
        while harness.ready.isEmpty, harness.advanceToNextWake() {}
        waits.append(harness.now - from)
    }
    #expect(waits[0] < .minutes(7))
    #expect(waits[7] > .minutes(190))
    #expect(harness.show(1).map(\.attempts) == [8])
    // An answer for a recipient ends the row of failures.
    let transaction = harness.pull()[0]
    _ = harness.decide(transaction, .temporary(tryLater))
    harness.advance(by: .hours(30))
    let from = harness.now
    deferAll(harness)
    while harness.totals.deferred > 0, harness.advanceToNextWake() {}
    #expect(harness.now - from < .minutes(7))
}

@Test func oneTroubleCountsTwice() {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]))
    deferAll(harness)
    deferAll(harness)
    #expect(harness.show(1).map(\.attempts) == [1])
}

@Test func newMailSkipsTheBackOff() {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]))
    deferAll(harness)
    harness.receive(message(2, to: ["u@x.test"]))
    #expect(harness.pull(siteA, 5).isEmpty)
    #expect(harness.totals.deferred == 2)
    #expect(harness.show(2).map(\.attempts) == [0])
    harness.advance(by: .minutes(7))
    #expect(harness.pull(siteA, 5).count == 2)
    #expect(harness.violations() == [])
}

@Test func oldMailOutlivesAFailingDestination() {
    let harness = Harness(QueueConfiguration(expireAfter: .hours(1), delayNoticeAfter: .minutes(10), seed: 1))
    harness.receive(message(1, to: ["u@x.test"]))
    harness.advance(by: .minutes(30))
    harness.receive(message(2, to: ["u@x.test"], arrival: harness.now))
    harness.advance(by: .minutes(31))
    deferAll(harness)
    #expect(harness.finals.map(\.message.record) == [1])
    #expect(harness.finals.map(\.verdict) == [.expired])
    #expect(harness.finals[0].report)
    #expect(harness.finals[0].recipient.attempts == 1)
    #expect(harness.notices.map(\.message.record) == [2])
    #expect(harness.totals.inFlight == 1)
    harness.settle(harness.finals.map(\.recipient.handle))
    #expect(harness.jobCount == 1)
    deferAll(harness)
    #expect(harness.notices.count == 1, "one notice for a recipient")
    #expect(harness.violations() == [])
}

@Test func domainWithoutMailKeepsItsJobs() throws {
    let harness = Harness()
    for number in 0..<600 { harness.receive(message(UInt32(number), to: ["u@x.test", "v@y.test"])) }
    let pulled = harness.pull(siteA, 2)
    #expect(pulled.map(\.destination.value).count == 2)
    for transaction in pulled { _ = harness.decide(transaction, .temporary(tryLater)) }
    _ = try harness.suspend(.message(messageID(7)))
    harness.state.failDestination(id(harness, "x.test"), reply: noUser)
    harness.work()
    #expect(harness.finals.count == 599, "all but the suspended one")
    #expect(harness.finals.allSatisfy { $0.verdict == .bounced && $0.reply == noUser && $0.report })
    #expect(Set(harness.finals.map(\.recipient.handle)).count == 599)
    harness.settle(harness.finals.map(\.recipient.handle))
    #expect(harness.jobCount == 601)
    #expect(harness.show(3).map(\.domain.description) == ["y.test"])
    #expect(harness.violations() == [])
    // Later mail asks for a route again.
    let asked = harness.routes.count
    harness.receive(message(10_000, to: ["u@x.test"]))
    #expect(harness.routes.count == asked + 1)
}

@Test func finalsFloodTheDeliverySide() {
    let harness = Harness()
    let total = QueueLimits.finalsOutstanding + 3_000
    for number in 0..<total { harness.receive(message(UInt32(number), to: ["u@x.test"], body: false)) }
    harness.state.failDestination(id(harness, "x.test"), reply: noUser)
    harness.work()
    #expect(harness.finals.count == QueueLimits.finalsOutstanding)
    harness.settle(harness.finals.prefix(2_000).map(\.recipient.handle))
    harness.work()
    #expect(harness.finals.count == QueueLimits.finalsOutstanding + 2_000)
    // The walk's own place survives the slots that were freed under it.
    harness.settle(harness.finals.dropFirst(2_000).map(\.recipient.handle))
    harness.work()
    #expect(harness.finals.count == total)
    harness.settle(harness.finals.suffix(1_000).map(\.recipient.handle))
    #expect(harness.jobCount == 0)
    #expect(harness.violations() == [])
}

@Test func walkLosesItsPlaceWhenItsNextJobGoes() {
    let harness = Harness()
    for number in 0..<3_000 { harness.receive(message(UInt32(number), to: ["u@x.test"], body: false)) }
    // The walk goes from the newest to the oldest and pauses after a slice; those around its place are in flight.
    let next = UInt32(3_000 - QueueLimits.slice - 1)
    var flying: [Transaction] = []
    for transaction in harness.pull(siteA, 3_000).reversed() {
        if transaction.message.record.distance(to: next).magnitude < 50 {
            flying.append(transaction)
        } else {
            _ = harness.decide(transaction, .returned)
        }
    }
    harness.state.deferDestination(id(harness, "x.test"), reply: unreachable, at: harness.now)
    _ = harness.state.advance(to: harness.now)
    #expect(harness.show(next + 60).map(\.attempts) == [1] && harness.show(next - 60).map(\.attempts) == [0])
    for transaction in flying { harness.deliver(transaction) }
    // Their slots, the walk's next one among them, now belong to another destination.
    for number in 3_000..<3_099 { harness.receive(message(UInt32(number), to: ["u@y.test"], body: false)) }
    harness.work()
    #expect(harness.show(2_999).map(\.attempts) == [1])
    #expect(harness.show(next - 60).map(\.attempts) == [1])
    #expect(harness.show(0).map(\.attempts) == [1])
    #expect(harness.list(QueueFilter(domain: Domain("y.test"))).rows.allSatisfy { $0.attempts == 0 })
    #expect(harness.violations() == [])
}

@Test func destinationReopensBeforeItsJobsAreCounted() {
    let harness = Harness(
        QueueConfiguration(retry: RetrySchedule(first: .milliseconds(10), jitter: 0), seed: 1))
    for number in 0..<5_000 { harness.receive(message(UInt32(number), to: ["u@x.test"], body: false)) }
    harness.state.deferDestination(id(harness, "x.test"), reply: unreachable, at: harness.now)
    // One slice only, then its time is up.
    _ = harness.state.advance(to: harness.now)
    harness.now = harness.now + .seconds(1)
    _ = harness.state.advance(to: harness.now)
    harness.perform()
    let early = harness.pull(siteA, 1)
    #expect(early.isEmpty)
    harness.work()
    let pulled = harness.pull(siteA, 5_000)
    #expect(pulled.count == 5_000)
    #expect(pulled.allSatisfy { $0.recipients[0].attempts == 1 })
    #expect(harness.violations() == [])
}

@Test func ourOwnFaultCountsAsAnAttempt() {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]))
    harness.state.holdDestination(id(harness, "x.test"), until: harness.now + .minutes(1))
    harness.work()
    #expect(harness.pull().isEmpty)
    #expect(harness.totals.deferred == 1)
    harness.advance(by: .seconds(61))
    let pulled = harness.pull()
    #expect(pulled.first?.recipients[0].attempts == 0)
    #expect(pulled.first?.body != nil)
    #expect(harness.violations() == [])
}

@Test func failingSiteSparesADestination() {
    let harness = Harness()
    harness.receive(message(1, to: ["u@a.test", "u@b.test", "u@c.test"]))
    for transaction in harness.pull(siteA, 1) { harness.deliver(transaction) }
    harness.state.deferSite(siteA, reply: unreachable, at: harness.now)
    harness.work()
    #expect(harness.totals.deferred == 2 && harness.totals.ready == 0)
    #expect(harness.state.wheel.count == 2, "a.test has nothing to wait for")
    // Each by its own jitter.
    #expect(Set(harness.show(1).compactMap(\.due)).count == 2)
    #expect(harness.violations() == [])
}

@Test func siteScheduleIsIgnored() {
    let harness = Harness()
    harness.state.nameSite(
        siteA, name: Array("slow".utf8), retry: RetrySchedule(first: .minutes(30), max: .hours(1), jitter: 0))
    harness.receive(message(1, to: ["u@x.test"]))
    guard case .deferred(let until, _) = harness.decide(harness.pull()[0], .temporary(tryLater))[0] else {
        Issue.record("not deferred")
        return
    }
    #expect(until == start + .minutes(30))
}

@Test func idleDestinationsPileUp() {
    let harness = Harness()
    let extra = 100
    for number in 0..<(QueueLimits.idleDestinations + extra) {
        harness.receive(message(UInt32(number), to: ["u@d\(number).test"], body: false))
        harness.deliver(harness.pull()[0])
    }
    let count = harness.state.destinations.count
    #expect(count == QueueLimits.idleDestinations)
    let first = harness.routes[0].0
    let asked = harness.routes.count
    // One that is still known is not asked for again; a forgotten one is, under a new id.
    harness.receive(message(1, to: ["u@d\(extra + 5).test"]))
    #expect(harness.routes.count == asked)
    harness.receive(message(2, to: ["u@d0.test"]))
    #expect(harness.routes.count == asked + 1)
    #expect(harness.routes.last.map { $0.0 != first } == true)
    // The old id is nobody's now.
    harness.state.failDestination(first, reply: noUser)
    harness.work()
    #expect(harness.finals.isEmpty)
    #expect(harness.violations() == [])
}

@Test func repliesPileUp() {
    var table = ReplyTable(limit: 100)
    var numbers: [UInt32] = []
    for number in 0..<1_000 {
        let reply = SMTPReply(
            code: UInt16(400 + number % 50), status: nil, text: Array("id \(number)".utf8), stage: .rcpt)
        numbers.append(table.keep(reply))
    }
    #expect(table.count <= 100)
    #expect(table[numbers[0]]?.text == Array("id 0".utf8))
    #expect(table[numbers[80]]?.code == 430 && table[numbers[80]]?.text == [])
    for number in numbers { table.release(number) }
    #expect(table.count == 0)
    let long = SMTPReply(code: 450, status: nil, text: [UInt8](repeating: 0x61, count: 5_000), stage: .rcpt)
    let kept = table.keep(long)
    #expect(table[kept]?.text.count == Limits.keptReplyOctets)
}

@Test func idleSitesPileUp() {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]))
    harness.state.nameSite(siteA, name: Array("kept".utf8), retry: nil)
    for number in 0..<(QueueLimits.idleSites * 3) {
        harness.state.nameSite(SiteID(value: UInt32(1_000 + number)), name: Array("s".utf8), retry: nil)
    }
    let records = harness.state.sites.records.compactMap { $0 }.count
    #expect(records <= QueueLimits.idleSites + 1)
    #expect(harness.summary().rows.map(\.name) == [Array("kept".utf8)])
    harness.state.forgetSite(siteA)
    #expect(harness.pull().count == 1, "a site with mail is not forgotten")
}
