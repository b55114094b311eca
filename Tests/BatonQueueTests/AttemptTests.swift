// Attempts and decisions: retry, expiry, doubt, delay notices, bodies in memory, stale handles, restart.
import BatonCore
import BatonModel
import Testing

@testable import BatonQueue

private func deferredUntil(_ decision: RecipientDecision?) -> Instant? {
    if case .deferred(let until, _) = decision { return until }
    if case .inDoubt(let until) = decision { return until }
    return nil
}

private func isExpired(_ decision: RecipientDecision?) -> Bool {
    if case .expired = decision { return true }
    return false
}

private func isUnknown(_ decision: RecipientDecision?) -> Bool {
    if case .unknown = decision { return true }
    return false
}

private func asksNotice(_ decision: RecipientDecision?) -> Bool {
    if case .deferred(_, let notice) = decision { return notice }
    return false
}

@Test func deliveredRecipientStaysQueued() {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test", "b@x.test", "c@y.test"]))
    #expect(harness.routes.map(\.1.description) == ["x.test", "y.test"])
    #expect(harness.ready[siteA] == 3)
    let pulled = harness.pull(siteA, 10)
    #expect(pulled.map(\.recipients.count) == [2, 1])
    #expect(pulled[0].recipients.map(\.recipient) == [0, 1])
    #expect(pulled[0].message == StoredMessageRef(segment: 1, record: 1))
    #expect(harness.totals.inFlight == 3)
    for transaction in pulled { harness.deliver(transaction) }
    #expect(harness.jobCount == 0)
    #expect(harness.show(1).isEmpty)
    #expect(harness.violations() == [])
}

@Test func refusedRecipientDragsTheOthers() {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test", "b@x.test", "c@x.test"]))
    let pulled = harness.pull()[0]
    let handles = pulled.recipients.map(\.handle)
    let decisions = harness.state.decide(
        [(handles[0], .delivered(accepted)), (handles[1], .temporary(tryLater)), (handles[2], .permanent(noUser))],
        at: start)
    guard case .delivered = decisions[0], case .bounced = decisions[2] else {
        Issue.record("wrong decisions \(decisions)")
        return
    }
    let due = deferredUntil(decisions[1])
    #expect(due.map { $0 >= start + .minutes(4) && $0 <= start + .minutes(6) } == true)
    harness.settle([handles[0], handles[2]])
    #expect(harness.jobCount == 1)
    #expect(harness.show(1).map(\.attempts) == [1])
    #expect(harness.show(1).first?.lastReply == tryLater)
    harness.advance(by: .minutes(3))
    #expect(harness.pull().isEmpty)
    harness.advance(by: .minutes(4))
    let again = harness.pull()
    #expect(again.first?.recipients.map(\.recipient) == [1])
    #expect(again.first?.recipients.map(\.attempts) == [1])
    #expect(harness.violations() == [])
}

@Test func recipientsThatFailedTogetherAreTriedApart() {
    let harness = Harness()
    harness.receive(message(1, to: (0..<50).map { "u\($0)@x.test" }))
    _ = harness.decide(harness.pull()[0], .temporary(tryLater))
    #expect(Set(harness.show(1).map(\.due)).count == 1)
    harness.advance(by: .minutes(7))
    #expect(harness.pull(siteA, 50).map(\.recipients.count) == [50])
}

@Test func transactionGrowsOverItsRecipients() {
    let harness = Harness()
    harness.receive(message(1, to: (0..<250).map { "u\($0)@x.test" }))
    #expect(harness.pull(siteA, 10, recipients: 100).map(\.recipients.count) == [100, 100, 50])
}

@Test func recipientExpiresWithoutAFailedAttemptPastItsAge() {
    let harness = Harness(QueueConfiguration(expireAfter: .hours(1), seed: 5))
    harness.receive(message(1, to: ["a@x.test"]))
    // Past its age without an attempt: still there to be tried.
    harness.advance(by: .hours(2))
    let first = harness.pull()
    #expect(first.count == 1)
    #expect(isExpired(harness.decide(first[0], .temporary(tryLater)).first))
    #expect(harness.totals.inFlight == 1)
    harness.settle(first[0])
    #expect(harness.jobCount == 0)
    // Delivered past its age is delivered.
    harness.receive(message(2, to: ["a@x.test"], arrival: start))
    let second = harness.pull()
    if case .delivered = harness.decide(second[0], .delivered(accepted))[0] {} else { Issue.record("not delivered") }
}

@Test func reportKeepsTheAgeOfMail() {
    let harness = Harness(QueueConfiguration(expireAfter: .days(5), reportExpireAfter: .days(2), seed: 5))
    harness.receive(
        message(1, to: ["a@x.test"], from: nil, flags: .report), message(2, to: ["a@x.test"]))
    harness.advance(by: .days(3))
    let decisions = harness.pull(siteA, 2).map { harness.decide($0, .temporary(tryLater))[0] }
    #expect(isExpired(decisions[0]))
    #expect(deferredUntil(decisions[1]) != nil)
}

@Test func doubtIsTriedAgainSoonForEver() {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test"]))
    var waits: [TimeSpan] = []
    for _ in 0..<4 {
        guard let transaction = harness.pull().first,
            let until = deferredUntil(harness.decide(transaction, .inDoubt(unreachable)).first)
        else {
            Issue.record("not in doubt")
            return
        }
        waits.append(until - harness.now)
        harness.advance(by: waits[waits.count - 1] + .seconds(1))
    }
    #expect(waits[0] < .minutes(7) && waits[1] < .minutes(13))
    // The third and every later one: retry.max, 4 h, with jitter.
    #expect(waits[2] >= .minutes(192) && waits[3] >= .minutes(192))
}

@Test func delayNoticeComesTwiceOrUnasked() {
    let harness = Harness(QueueConfiguration(delayNoticeAfter: nil, seed: 9))
    harness.receive(
        message(1, to: ["a@x.test"]), message(2, to: ["a@x.test"], notify: .delay),
        message(3, to: ["a@x.test"], notify: .failure), message(4, to: ["a@x.test"], notify: .never))
    var notices: [UInt32: [TimeSpan]] = [:]
    for _ in 0..<40 {
        for transaction in harness.pull(siteA, 10)
        where asksNotice(harness.decide(transaction, .temporary(tryLater))[0]) {
            notices[transaction.message.record, default: []].append(harness.now - start)
        }
        harness.advance(by: .minutes(30))
    }
    // After `never`, NOTIFY=DELAY alone gets one, after 4 hours, once.
    #expect(notices.keys.sorted() == [2])
    #expect(notices[2]?.count == 1)
    #expect(notices[2]?.first.map { $0 >= .hours(4) } == true)
}

@Test func configuredDelayNoticeIgnoresNotify() {
    let harness = Harness(QueueConfiguration(delayNoticeAfter: .hours(1), seed: 9))
    harness.receive(
        message(1, to: ["a@x.test"]), message(2, to: ["a@x.test"], notify: .failure),
        message(3, to: ["a@x.test"], from: nil), message(4, to: ["a@x.test"], notify: [.delay, .failure]))
    harness.advance(by: .hours(2))
    let asked = harness.pull(siteA, 10).filter { asksNotice(harness.decide($0, .temporary(tryLater))[0]) }
    #expect(asked.map(\.message.record) == [1, 4])
}

@Test func returnedWorkCountsAsAnAttempt() {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test"]), message(2, to: ["a@x.test"]))
    let first = harness.pull()[0]
    harness.ready = [:]
    _ = harness.decide(first, .returned)
    #expect(harness.ready[siteA] == 2, "nobody is told that the work is back")
    #expect(harness.residentBytes > 0)
    // It keeps its place at the front.
    let again = harness.pull()[0]
    #expect(again.message.record == 1)
    #expect(again.recipients[0].attempts == 0)
    #expect(again.body != nil)
    #expect(harness.violations() == [])
}

@Test func damagedBodyIsSentOrForgotten() throws {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test"]))
    _ = harness.decide(harness.pull()[0], .damaged)
    harness.advance(by: .days(10))
    #expect(harness.pull().isEmpty)
    #expect(harness.totals.damaged == 1)
    #expect(harness.show(1).map(\.state) == [.damaged])
    #expect(try harness.bounce(.message(messageID(1))).count == 1)
    #expect(harness.finals.map(\.verdict) == [.adminBounced])
}

@Test func messageThatIsBeingRepairedCostsAnAttemptOrIsForgotten() {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test"]))
    for _ in 0..<50 {
        _ = harness.decide(harness.pull()[0], .beingRepaired)
        harness.advance(by: .milliseconds(900))
        #expect(harness.pull().isEmpty, "read again without a pause")
        harness.advance(by: .milliseconds(200))
        #expect(harness.totals.all == 1)
    }
    let again = harness.pull()
    #expect(again.first?.recipients.map(\.attempts) == [0])
    #expect(harness.violations() == [])
}

@Test func staleHandleHitsAReusedSlot() {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test"]))
    let old = harness.pull()[0]
    harness.deliver(old)
    harness.receive(message(2, to: ["b@x.test"]))
    let new = harness.pull()[0]
    #expect(new.recipients[0].handle.slot == old.recipients[0].handle.slot, "the slot is to be reused here")
    #expect(isUnknown(harness.decide(old, .permanent(noUser))[0]))
    harness.settle(old)
    #expect(harness.totals.inFlight == 1)
    #expect(isUnknown(harness.decide([(JobHandle(slot: .max, generation: 1), .returned)])[0]))
    #expect(isUnknown(harness.decide([(JobHandle(slot: 9_999, generation: 0), .returned)])[0]))
    harness.deliver(new)
    #expect(harness.jobCount == 0)
}

@Test func recipientIsDecidedTwice() {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test"]))
    let transaction = harness.pull()[0]
    _ = harness.decide(transaction, .temporary(tryLater))
    #expect(isUnknown(harness.decide(transaction, .delivered(accepted))[0]))
    // Deferred is not final: settling it must not lose it.
    harness.settle(transaction)
    #expect(harness.totals.deferred == 1)
}

// MARK: Bodies in memory

@Test func bodyStaysPastTheFirstAttemptOrTheBudget() {
    let one = MessageTable.cost(message(1, to: ["a@x.test"]).envelope, message(1, to: ["a@x.test"]).body!)
    let harness = Harness(QueueConfiguration(residentBytes: one * 2, seed: 1))
    harness.receive(
        message(1, to: ["a@x.test"]), message(2, to: ["a@x.test"]), message(3, to: ["a@x.test"]))
    #expect(harness.residentBytes == one * 2)
    #expect(harness.state.bodiesNotKept == 1)
    let pulled = harness.pull(siteA, 3)
    #expect(pulled.map { $0.body != nil } == [true, true, false])
    #expect(pulled.map { $0.envelope != nil } == [true, true, false])
    _ = harness.decide(pulled[0], .temporary(tryLater))
    #expect(harness.residentBytes == one)
    _ = harness.decide(pulled[1], .delivered(accepted))
    #expect(harness.residentBytes == 0)
    harness.advance(by: .hours(1))
    #expect(harness.pull()[0].body == nil)
    #expect(harness.violations() == [])
}

@Test func bodyLeavesBeforeItsLastDomainWasTried() {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test", "b@y.test"]))
    let pulled = harness.pull(siteA, 2)
    _ = harness.decide(pulled[0], .temporary(tryLater))
    #expect(harness.residentBytes > 0)
    _ = harness.decide(pulled[1], .temporary(tryLater))
    #expect(harness.residentBytes == 0)
}

// MARK: Partitions and restart

@Test func partitionsShareOrDropARecipient() {
    let recipients = (0..<200).map { "u@d\($0).test" }
    var seen: [UInt32] = []
    for index in 0..<3 {
        let harness = Harness(index: index, count: 3)
        harness.receive(message(1, to: recipients))
        seen += harness.show(1).map(\.recipient)
        #expect(harness.jobCount > 20)
    }
    #expect(seen.sorted() == (0..<200).map { UInt32($0) })
}

@Test func restartForgetsProgress() {
    let harness = Harness()
    let progress = [
        RecipientProgress(
            recipient: 1, attempts: 3, due: start + .hours(1), doubts: 2, delayNoticeSent: true, lastReply: tryLater),
        RecipientProgress(recipient: 2, attempts: 1, due: start, doubts: 0, delayNoticeSent: false, lastReply: nil),
        // A record that the envelope does not have.
        RecipientProgress(recipient: 9, attempts: 1, due: start, doubts: 0, delayNoticeSent: false, lastReply: nil),
    ]
    harness.receive(
        message(1, to: ["a@x.test", "b@x.test", "c@x.test"], notify: .delay, body: false, progress: progress))
    #expect(harness.jobCount == 2)
    #expect(harness.totals.ready == 1 && harness.totals.deferred == 1)
    #expect(harness.show(1).map(\.attempts) == [3, 1])
    #expect(harness.show(1)[0].lastReply == tryLater)
    harness.advance(by: .hours(5))
    let pulled = harness.pull(siteA, 2)
    guard let later = pulled.flatMap(\.recipients).first(where: { $0.recipient == 1 }) else {
        Issue.record("recipient 1 is gone")
        return
    }
    #expect(later.attempts == 3)
    // Third doubt over the restart: the long wait; and no second delay notice.
    let until = deferredUntil(harness.decide([(later.handle, .inDoubt(unreachable))]).first)
    #expect(until.map { $0 - harness.now >= .minutes(192) } == true)
    #expect(!harness.takesDelayNotice(later.handle))
    #expect(harness.violations() == [])
}

@Test func partitionAcceptsForEver() {
    // The one destination counts too.
    let harness = Harness(QueueConfiguration(jobsMax: 3 + QueueLimits.jobsPerDestination, seed: 1))
    harness.receive(message(1, to: ["a@x.test", "b@x.test"]))
    #expect(!harness.isFull)
    // What was promised is taken, and then admission is told.
    harness.receive(message(2, to: ["a@x.test", "b@x.test"]))
    #expect(harness.jobCount == 4)
    #expect(harness.isFull)
    for transaction in harness.pull(siteA, 2) { harness.deliver(transaction) }
    #expect(!harness.isFull)
}

@Test func movedMessageIsHandedOutAtItsOldPlace() {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test"]))
    let (old, new) = (StoredMessageRef(segment: 1, record: 1), StoredMessageRef(segment: 5, record: 0))
    harness.state.relocate(messageID(1), from: new, to: old)
    #expect(harness.show(1)[0].ref == old)
    harness.state.relocate(messageID(1), from: old, to: new)
    #expect(harness.pull()[0].message == new)
}

@Test func destinationsPileUpBesideTheJobs() {
    // As many recipients as in `partitionAcceptsForEver`, each with a domain of its own.
    let harness = Harness(QueueConfiguration(jobsMax: 3 + QueueLimits.jobsPerDestination, seed: 1))
    harness.receive(message(1, to: ["a@x.test", "b@y.test"]))
    #expect(harness.isFull)
    #expect(harness.state.load == 2 + 2 * QueueLimits.jobsPerDestination)
}

@Test func nullSenderListsEverybody() {
    let harness = Harness()
    harness.receive(message(1, to: ["a@x.test"]))
    let envelope = Envelope(
        id: messageID(2), arrival: start, sender: nil,
        recipients: [EnvelopeRecipient(address: address("b@x.test"))], traits: .empty)
    harness.receive(
        AcceptedMessage(
            ref: StoredMessageRef(segment: 0, record: 2), envelope: envelope, body: nil, progress: nil,
            receptionRecorded: true))
    let all = harness.state.list(QueueFilter(), limit: 10, cursor: nil).rows.map(\.message)
    let none = harness.state.list(QueueFilter(nullSender: true), limit: 10, cursor: nil).rows.map(\.message)
    #expect(Set(all) == [messageID(1), messageID(2)])
    #expect(none == [messageID(2)])
}
