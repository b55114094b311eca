// Operators' verbs: holds, retry, bounce, and what they see.
import BatonCore
import BatonModel
import Testing

@testable import BatonQueue

@Test func suspendedMailGoesOut() throws {
    let selectors: [QueueSelector] = [
        .message(messageID(1)), .domain(Domain("X.test")), .site(Array("big".utf8)), .sender(address("S@Sender.TEST")),
        .senderDomain(Domain("sender.test.")), .all,
    ]
    for selector in selectors {
        let harness = Harness()
        harness.state.nameSite(siteA, name: Array("big".utf8), retry: nil)
        harness.receive(message(1, to: ["u@x.test"], from: "S@sender.test"))
        #expect(try harness.suspend(selector).count == 1, "\(selector)")
        #expect(harness.totals.suspended == 1)
        // New mail is caught, other mail is not.
        if case .message = selector {
        } else {
            harness.receive(message(2, to: ["u@x.test"], from: "S@sender.test"))
        }
        if selector != .all, selector != .site(Array("big".utf8)) {
            harness.receive(message(3, to: ["u@y.test"], from: "t@other.test"))
        }
        let pulled = harness.pull(siteA, 10)
        #expect(pulled.map(\.message.record).allSatisfy { $0 == 3 }, "\(selector)")
        for transaction in pulled { harness.deliver(transaction) }
        #expect(try harness.resume(selector).done)
        harness.advance(by: .seconds(1))
        #expect(harness.totals.suspended == 0, "\(selector)")
        #expect(!harness.pull(siteA, 10).isEmpty)
        #expect(harness.violations() == [])
    }
}

@Test func holdBySenderCatchesALocalPartInOtherCase() throws {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"], from: "News@sender.test"), message(2, to: ["u@x.test"], from: nil))
    #expect(try harness.suspend(.sender(address("news@sender.test"))).count == 0)
    #expect(try harness.suspend(.sender(nil)).count == 1)
    #expect(harness.pull(siteA, 5).map(\.message.record) == [1])
}

@Test func suspendedMailLivesForEver() throws {
    let harness = Harness(QueueConfiguration(expireAfter: .hours(10), seed: 1))
    harness.receive(message(1, to: ["u@x.test"]))
    _ = try harness.suspend(.all)
    harness.advance(by: .hours(9))
    #expect(harness.finals.isEmpty)
    harness.advance(by: .hours(2))
    #expect(harness.finals.map(\.verdict) == [.expired])
    harness.settle(harness.finals.map(\.recipient.handle))
    #expect(harness.jobCount == 0)
    #expect(harness.violations() == [])
}

@Test func suspensionForATimeNeverEnds() throws {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]))
    _ = try harness.suspend(.domain(Domain("x.test")), for: .hours(1))
    harness.receive(message(2, to: ["u@x.test"]))
    harness.advance(by: .minutes(59))
    #expect(harness.totals.suspended == 2)
    harness.advance(by: .minutes(2))
    harness.advance(by: .minutes(1))
    #expect(harness.totals.suspended == 0)
    #expect(harness.pull(siteA, 5).count == 2)
    #expect(harness.state.holdList.isEmpty)
    // The same selector again sets a new end, and one timer.
    _ = try harness.suspend(.all, for: .hours(1))
    _ = try harness.suspend(.all, for: .hours(5))
    #expect(harness.state.holdList.count == 1)
    #expect(harness.state.wheel.count == 1)
    _ = try harness.resume(.all)
    #expect(harness.state.wheel.count == 0)
}

@Test func resumeReleasesWhatAnotherHoldKeeps() throws {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test", "u@y.test"]))
    _ = try harness.suspend(.domain(Domain("x.test")))
    _ = try harness.suspend(.senderDomain(Domain("sender.test")))
    #expect(harness.totals.suspended == 2)
    #expect(try harness.resume(.senderDomain(Domain("sender.test"))).count == 1)
    harness.advance(by: .seconds(1))
    #expect(harness.totals.suspended == 1)
    #expect(try harness.resume(.all).count == 1)
}

@Test func attemptUnderWayEscapesAHold() throws {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]))
    let transaction = harness.pull()[0]
    let progress = try harness.suspend(.all)
    #expect(progress.count == 0 && progress.inFlight == 1)
    _ = harness.decide(transaction, .temporary(tryLater))
    #expect(harness.totals.suspended == 1)
    harness.advance(by: .hours(1))
    #expect(harness.pull().isEmpty)
}

@Test func resumedFloodStartsAtOneMoment() throws {
    let harness = Harness()
    for number in 0..<10_000 { harness.receive(message(UInt32(number), to: ["u@x.test"], body: false)) }
    _ = try harness.suspend(.all)
    harness.work()
    #expect(harness.totals.suspended == 10_000)
    let progress = try harness.resume(.all)
    #expect(!progress.done, "more than a slice")
    harness.work()
    #expect(harness.state.operation(progress.id).map { $0.done && $0.count == 10_000 } == true)
    #expect(harness.totals.ready < 500)
    harness.advance(by: .seconds(5))
    let soon = harness.totals.ready
    #expect(soon > 1_000 && soon < 9_000, "\(soon)")
    harness.advance(by: .seconds(20))
    #expect(harness.totals.ready == 10_000)
    #expect(harness.violations() == [])
}

@Test func retryLeavesADestinationWaiting() throws {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]), message(2, to: ["u@x.test"]), message(3, to: ["u@y.test"]))
    let pulled = harness.pull(siteA, 3)
    for transaction in pulled where transaction.message.record != 2 {
        _ = harness.decide(transaction, .temporary(tryLater))
    }
    for transaction in pulled where transaction.message.record == 2 { _ = harness.decide(transaction, .returned) }
    harness.state.deferDestination(harness.routes[0].0, reply: unreachable, at: harness.now)
    harness.work()
    #expect(harness.totals.deferred == 3)
    #expect(try harness.retry(.domain(Domain("x.test"))).count == 2)
    harness.advance(by: .seconds(1))
    #expect(Set(harness.pull(siteA, 5).map(\.message.record)) == [1, 2])
    #expect(harness.totals.deferred == 1)
    // One message by its id, at once.
    #expect(try harness.retry(.message(messageID(3))).count == 1)
    #expect(harness.pull(siteA, 5).map(\.message.record) == [3])
    #expect(harness.violations() == [])
}

@Test func retryTouchesSuspendedMail() throws {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]))
    _ = try harness.suspend(.all)
    #expect(try harness.retry(.all).count == 0)
    #expect(harness.totals.suspended == 1)
}

@Test func bounceTakesOtherMailOrReportsUnasked() throws {
    let harness = Harness()
    for number in 0..<10 {
        harness.receive(message(UInt32(number), to: ["u@x.test", "u@y.test"], from: "s\(number % 2)@a.test"))
    }
    let inFlight = harness.pull(siteA, 1)[0]
    let progress = try harness.bounce(.sender(address("s0@a.test")))
    #expect(progress.count == 9 && progress.inFlight == 1 && progress.done)
    #expect(Set(harness.finals.map { $0.message.record % 2 }) == [0])
    #expect(harness.finals.allSatisfy { !$0.report && $0.verdict == .adminBounced })
    #expect(String(decoding: harness.finals[0].reply.text, as: UTF8.self).hasSuffix("removed by the operator: why"))
    harness.settle(harness.finals.map(\.recipient.handle))
    harness.deliver(inFlight)
    #expect(harness.jobCount == 10)
    #expect(try harness.bounce(.domain(Domain("x.test")), report: true).count == 5)
    #expect(harness.finals.suffix(5).allSatisfy { $0.report })
    #expect(harness.violations() == [])
}

@Test func bounceHitsMailFromAfterItsCutoff() throws {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]))
    let cutoff = harness.now
    harness.advance(by: .seconds(1))
    harness.receive(message(2, to: ["u@x.test"], arrival: harness.now))
    let progress = try harness.bounce(.all, cutoff: cutoff)
    #expect(progress.count == 1 && progress.done)
    #expect(harness.finals.map(\.message.record) == [1])
    #expect(try harness.bounce(.all, cutoff: cutoff - .seconds(1)).count == 0)
    #expect(try harness.bounce(.all).count == 1)
    #expect(harness.violations() == [])
}

@Test func bouncePassesAHeldCopy() throws {
    let harness = Harness()
    let mark = SubmitMark(
        ingress: NodeID(value: 1), ingressIncarnation: Incarnation(value: 2), counter: 3,
        held: SubmitMark.HeldFor(receiver: NodeID(value: 4), incarnation: Incarnation(value: 5)))
    _ = try harness.bounce(.domain(Domain("x.test")))
    harness.advance(by: .seconds(1))
    // Released since; mail that is new, or for somebody else, or came after the bounce, is not met.
    harness.receive(message(1, to: ["u@x.test", "u@y.test"], submit: mark))
    harness.receive(message(2, to: ["u@x.test"]))
    harness.receive(message(3, to: ["u@x.test"], arrival: harness.now, submit: mark))
    #expect(harness.finals.map(\.message.record) == [1] && harness.finals.allSatisfy { $0.verdict == .adminBounced })
    harness.settle(harness.finals.map(\.recipient.handle))
    #expect(harness.jobCount == 3)
    harness.advance(by: QueueLimits.lateBounceKept)
    harness.receive(message(4, to: ["u@x.test"], submit: mark))
    #expect(harness.jobCount == 4)
    for _ in 0...QueueLimits.lateBounces { _ = try harness.bounce(.domain(Domain("z.test"))) }
    #expect(harness.state.lateBounces.count == QueueLimits.lateBounces)
    #expect(harness.violations() == [])
}

@Test func verbReachesOnePartOfAMessage() throws {
    // A part for each of two nodes, and one of them is here by a fall-back.
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"], part: (1, [0])), message(1, to: ["v@x.test"], part: (7, [1])))
    #expect(harness.show(1).map { $0.ref.record }.sorted() == [1, 7])
    #expect(try harness.suspend(.message(messageID(1))).count == 2)
    #expect(try harness.resume(.message(messageID(1))).count == 2)
    harness.advance(by: .seconds(1))
    #expect(harness.totals.suspended == 0 && harness.totals.ready == 2)
    _ = try harness.suspend(.message(messageID(1)), for: .seconds(5))
    harness.advance(by: .seconds(7))
    #expect(harness.totals.suspended == 0)
    #expect(try harness.bounce(.message(messageID(1))).count == 2)
    #expect(Set(harness.finals.map(\.message.record)) == [1, 7])
    #expect(harness.violations() == [])
}

@Test func exactResumptionEndsOtherSuspensions() throws {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]))
    harness.receive(message(2, to: ["u@y.test"]))
    _ = try harness.suspend(.domain(Domain("x.test")))
    _ = try harness.suspend(.all)
    #expect(harness.totals.suspended == 2)
    #expect(try harness.resume(.all, exactly: true).count == 1)
    #expect(harness.totals.suspended == 1)
    #expect(harness.state.holdList.map(\.selector) == [.domain(Domain("x.test"))])
    #expect(try harness.resume(.all).count == 1)
    #expect(harness.violations() == [])
}

@Test func longBounceHitsMailThatCameLater() throws {
    let harness = Harness()
    for number in 0..<3_000 { harness.receive(message(UInt32(number), to: ["u@x.test"], body: false)) }
    let flying = harness.pull(siteA, 2_500)
    let progress = try harness.bounce(.all)
    #expect(!progress.done && progress.count == 0)
    for transaction in flying { harness.deliver(transaction) }
    // These get slots that the walk has yet to meet.
    for number in 5_000..<5_300 { harness.receive(message(UInt32(number), to: ["u@x.test"], body: false)) }
    let slots = harness.state.slab.highWater
    #expect(slots < 3_010, "slots are to be reused here")
    harness.work()
    #expect(harness.state.operation(progress.id).map { $0.done && $0.count == 500 } == true)
    harness.settle(harness.finals.map(\.recipient.handle))
    #expect(harness.totals.ready == 300)
    #expect(harness.violations() == [])
}

@Test func operationsOrHoldsPileUp() throws {
    let harness = Harness()
    for number in 0..<QueueLimits.holds {
        _ = try harness.suspend(.domain(Domain("d\(number).test")))
    }
    #expect(throws: OperationRefusal.self) { _ = try harness.suspend(.domain(Domain("more.test"))) }
    _ = try harness.suspend(.domain(Domain("d5.test")), for: .hours(1))
    let remembered = harness.state.operations.count
    #expect(remembered <= QueueLimits.operations)
}

@Test func runningOperationsPileUp() throws {
    let harness = Harness()
    for number in 0..<(QueueLimits.slice * 3) {
        harness.receive(message(UInt32(number), to: ["u@x.test"], body: false))
    }
    // Nothing is settled, so that bounces stand still at the bound of finals, and what follows them waits.
    harness.state.finalsOutstanding += QueueLimits.finalsOutstanding
    for _ in 0..<QueueLimits.operations {
        let done = try harness.bounce(.all).done
        #expect(!done)
    }
    #expect(throws: OperationRefusal.self) { _ = try harness.bounce(.all) }
}

// MARK: Views

@Test func pagesShowARecipientTwiceOrNever() {
    let harness = Harness()
    for number in 0..<250 { harness.receive(message(UInt32(number), to: ["u@x.test", "v@y.test"])) }
    var seen: [JobRef] = []
    var cursor: UInt64?
    repeat {
        let page = harness.list(limit: 7, cursor: cursor)
        #expect(page.rows.count <= 7)
        seen += page.rows.map { JobRef(message: $0.ref, recipient: $0.recipient) }
        cursor = page.next
    } while cursor != nil
    #expect(seen.count == 500 && Set(seen).count == 500)
    #expect(harness.list(QueueFilter(domain: Domain("y.test")), limit: 1_000).rows.count == 250)
    #expect(harness.list(QueueFilter(sender: address("s@SENDER.test"), state: .ready), limit: 1_000).rows.count == 500)
    #expect(harness.list(QueueFilter(senderDomain: Domain("other.test"))).rows.isEmpty)
    #expect(harness.list(QueueFilter(state: .suspended)).rows.isEmpty)
    #expect(harness.list(limit: 5, cursor: .max).rows.isEmpty)
}

@Test func summaryMiscounts() throws {
    let harness = Harness()
    harness.autoSite = nil
    harness.state.nameSite(siteA, name: Array("big".utf8), retry: nil)
    harness.receive(message(1, to: ["a@x.test", "a@y.test", "a@lost.test"]))
    harness.state.assign(harness.routes[0].0, to: siteA, until: .distantFuture, at: start)
    harness.state.assign(harness.routes[1].0, to: siteA, until: .distantFuture, at: start)
    harness.advance(by: .minutes(1))
    harness.receive(message(2, to: ["a@x.test"], arrival: harness.now))
    _ = harness.decide(harness.pull()[0], .temporary(tryLater))
    harness.state.deferDestination(harness.routes[2].0, reply: unreachable, at: harness.now)
    harness.work()
    let summary = harness.summary()
    #expect(summary.next == nil)
    #expect(summary.totals.ready == 2 && summary.totals.deferred == 2)
    #expect(summary.rows.map { String(decoding: $0.name, as: UTF8.self) } == ["big", "lost.test"])
    let big = summary.rows[0]
    #expect(big.domains == 2 && big.totals.ready == 2 && big.totals.deferred == 1)
    #expect(big.oldestArrival == start)
    #expect(big.lastReply == tryLater)
    #expect(summary.rows[1].lastReply == unreachable)
    #expect(summary.rows[1].totals.deferred == 1)
}

@Test func pullWadesThroughSuspendedMail() throws {
    let harness = Harness()
    let held = QueueLimits.slice + QueueLimits.heldPerPull + 500
    for number in 0..<held { harness.receive(message(UInt32(number), to: ["u@x.test"], body: false)) }
    harness.receive(message(900_000, to: ["u@x.test"], from: "t@other.test"))
    // The first slice of the walk is done; the rest is still on the board when somebody pulls.
    _ = try harness.suspend(.sender(address("s@sender.test")))
    harness.ready = [:]
    #expect(harness.pull().isEmpty)
    #expect(harness.totals.suspended == QueueLimits.slice + QueueLimits.heldPerPull)
    #expect(harness.ready[siteA] == 501, "somebody has to ask again")
    #expect(harness.pull().map(\.message.record) == [900_000])
    #expect(harness.violations() == [])
}

@Test func pageLooksAtEverySlot() {
    let harness = Harness()
    for number in 0..<(QueueLimits.listScan / 100 + 10) {
        let recipients = (0..<100).map { "u\($0)@x.test" }
        harness.receive(message(UInt32(number), to: recipients, body: false))
    }
    harness.receive(message(900_000, to: ["u@rare.test"]))
    let first = harness.list(QueueFilter(domain: Domain("rare.test")))
    #expect(first.rows.isEmpty && first.next == UInt64(QueueLimits.listScan))
    let second = harness.list(QueueFilter(domain: Domain("rare.test")), cursor: first.next)
    #expect(second.rows.map(\.message) == [messageID(900_000)])
    #expect(second.next == nil)
}

// MARK: Ended on another node (PROTOCOL T5)

private func ended(_ number: UInt32, recipient: UInt32 = 0, segment: UInt32 = 1) -> EndedElsewhere {
    EndedElsewhere(
        id: messageID(number),
        job: JobRef(message: StoredMessageRef(segment: segment, record: number), recipient: recipient))
}

@Test func recipientThatEndedOnAnotherNodeIsTriedAgain() throws {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test", "v@x.test"]), message(2, to: ["u@y.test"]))
    _ = try harness.suspend(.domain(Domain("y.test")))
    #expect(harness.drop(ended(1, recipient: 1)), "ready")
    #expect(harness.drop(ended(2)), "suspended")
    #expect(!harness.drop(ended(1, recipient: 1)), "twice")
    let pulled = harness.pull(siteA, 10)
    #expect(pulled.flatMap(\.recipients).map(\.recipient) == [0])
    #expect(harness.jobCount == 1)
    #expect(harness.violations() == [])
    harness.deliver(pulled[0])
    #expect(harness.jobCount == 0)
    #expect(harness.violations() == [])
}

@Test func deferredRecipientThatEndedOnAnotherNodeIsTriedAgain() {
    let harness = Harness()
    harness.receive(
        message(
            1, to: ["u@x.test"],
            progress: [
                RecipientProgress(
                    recipient: 0, attempts: 3, due: start + .hours(1), doubts: 0, delayNoticeSent: false,
                    lastReply: tryLater)
            ]))
    #expect(harness.totals.deferred == 1)
    #expect(harness.drop(ended(1)))
    #expect(harness.jobCount == 0)
    harness.advance(by: .hours(2))
    #expect(harness.pull(siteA, 10).isEmpty)
    #expect(harness.violations() == [])
}

/// The attempt decides; another message of that place, or one that came back under another reference, is not meant.
@Test func recipientThatIsBeingTriedIsTakenFromItsAttempt() {
    let harness = Harness()
    harness.receive(message(1, to: ["u@x.test"]), message(2, to: ["u@x.test"]))
    #expect(!harness.drop(ended(2, segment: 9)))
    #expect(!harness.drop(ended(2, recipient: 4)))
    #expect(!harness.drop(ended(3)))
    let pulled = harness.pull(siteA, 10)
    #expect(pulled.count == 2)
    #expect(!harness.drop(ended(1)))
    for transaction in pulled { harness.deliver(transaction) }
    #expect(harness.jobCount == 0)
    #expect(harness.violations() == [])
}

/// Parts of a message carry its id, and stand in several places.
@Test func partOfAMessageIsTakenForAnotherOne() {
    let harness = Harness()
    let first = message(1, to: ["u@x.test"])
    let other = AcceptedMessage(
        ref: StoredMessageRef(segment: 2, record: 5), envelope: message(1, to: ["v@x.test"]).envelope, body: nil,
        progress: nil, receptionRecorded: true)
    harness.receive(first, other)
    for ref in [other.ref, first.ref] {
        let part = EndedElsewhere(id: messageID(1), job: JobRef(message: ref, recipient: 0))
        #expect(harness.drop(part), "\(ref)")
        #expect(!harness.drop(part), "\(ref)")
    }
    #expect(harness.jobCount == 0)
    #expect(harness.violations() == [])
}
