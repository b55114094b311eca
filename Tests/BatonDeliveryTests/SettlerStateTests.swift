// The settler's order of things: report, event, outcome, slot.
import BatonCore
import BatonMail
import BatonModel
import NIOCore
import Testing

@testable import BatonDelivery

@Test func deliveredRecipientRecordedOutOfOrder() {
    var run = SettlerRun()
    run.send(.settled([settlement(settlerEnvelope(), [.delivered])]))
    #expect(run.order == "eor")
    #expect(run.events.map(\.type) == [.delivery])
    #expect(run.events.first?.attempts == 1)
    #expect(run.outcomes.map(\.verdict) == [.delivered])
    #expect(run.released == [pulled(0).handle])
    #expect(run.submissions.isEmpty && run.state.outstanding == 0)
}

@Test func bounceRecordedBeforeItsReportIsDurable() throws {
    var run = SettlerRun()
    run.send(.settled([settlement(settlerEnvelope(), [.bounced])]))
    #expect(run.order.isEmpty)
    #expect(run.submissions.count == 1)
    let report = try run.answer(.durable(storedReport))
    #expect(run.order == "eor")
    #expect(run.events.map(\.type) == [.bounce])
    #expect(run.outcomes.first?.verdict == .bounced)
    #expect(run.outcomes.first?.report == storedReport)
    #expect(report.envelope.sender == nil)
    #expect(report.envelope.flags.contains(.report))
    #expect(report.envelope.recipients.map(\.address.description) == ["sender@example.org"])
    #expect(report.envelope.recipients.first?.notify == .never)
    #expect(report.envelope.subjects.map(\.kind) == [.failure])
    #expect(report.envelope.senderClass == 77)
    let text = String(buffer: report.body)
    #expect(text.contains("Subject: Hello") && !text.contains("Body text"))
    #expect(report.envelope.traits == .measured(report.body))
    #expect(run.tally.failureReports == 1 && run.state.outstanding == 0)
}

@Test(arguments: [
    settlerEnvelope(sender: nil), settlerEnvelope(flags: .report), settlerEnvelope(notify: [.never]),
    settlerEnvelope(notify: [[.success, .delay]]),
])
func reportToNobodyWhoAskedForOne(envelope: Envelope) {
    for decision in [RecipientDecision.bounced, .expired] {
        var run = SettlerRun()
        run.send(.settled([settlement(envelope, [decision])]))
        #expect(run.submissions.isEmpty && run.reads.isEmpty)
        #expect(run.order == "eor")
        let untold = envelope.sender == nil || envelope.flags.contains(.report)
        #expect(run.tally.undeliverable == (untold ? 1 : 0))
    }
}

@Test func oneReportForEachRecipientThatFailsTogether() throws {
    var run = SettlerRun()
    run.send(
        .settled([
            settlement(
                settlerEnvelope(notify: Array(repeating: [], count: 4)), [.bounced, .delivered, .expired, .bounced])
        ]))
    #expect(run.events.map(\.type) == [.delivery])
    #expect(run.submissions.count == 1)
    let report = try run.answer(.durable(storedReport))
    #expect(report.envelope.subjects.map(\.recipient) == [0, 2, 3])
    #expect(run.events.map(\.type) == [.delivery, .bounce, .expiration, .bounce])
    #expect(run.outcomes.dropFirst().allSatisfy { $0.report == storedReport })
    let text = String(buffer: report.body)
    #expect(text.contains("Status: 4.4.7\r\n") && text.contains("Status: 5.1.1\r\n"))
}

@Test func reportWithMoreRecipientsThanItHolds() {
    var run = SettlerRun()
    let many = DeliveryReport.recipientsMax * 2 + 1
    run.send(
        .settled([
            settlement(
                settlerEnvelope(notify: Array(repeating: [], count: many)), Array(repeating: .bounced, count: many))
        ]))
    #expect(run.submissions.map(\.envelope.subjects.count) == [50, 50, 1])
    #expect(Set(run.submissions.map(\.envelope.id)).count == 3)
}

@Test func reportMadeTwiceHasTwoIDs() throws {
    var first = SettlerRun()
    first.send(.settled([settlement(settlerEnvelope(), [.bounced])]))
    var second = SettlerRun()
    second.now = settlerStart + .hours(3)
    second.send(.settled([settlement(settlerEnvelope(), [.bounced])]))
    #expect(first.submissions.first?.envelope.id == second.submissions.first?.envelope.id)
    let id = MessageID(high: 0x019b_0000_0000_0000, low: 1)
    let ids = [
        ReportPlan.id(of: id, recipient: 0, kind: .failure), ReportPlan.id(of: id, recipient: 1, kind: .failure),
        ReportPlan.id(of: id, recipient: 0, kind: .delay), id,
    ]
    #expect(Set(ids).count == 4)
    #expect(ids.allSatisfy { $0.madeAt == id.madeAt })
}

@Test func refusedReportIsLost() throws {
    var run = SettlerRun()
    run.send(.settled([settlement(settlerEnvelope(), [.bounced])]))
    let first = try run.answer(.refused(.diskFull))
    #expect(run.order.isEmpty)
    #expect(run.wakes == [settlerStart + .seconds(1)])
    #expect(run.state.outstanding == 1)
    // Another failure waits with it.
    run.send(.settled([settlement(settlerEnvelope(number: 2), [.bounced], record: 1)]))
    #expect(run.submissions.isEmpty)
    for wait in [2, 4, 8, 16, 32, 60, 60] {
        run.send(.retryDue)
        // Bodies were let go meanwhile.
        while !run.reads.isEmpty {
            let number: UInt64 = run.reads.first?.ref.record == 0 ? 1 : 2
            try run.answerRead(.message(settlerEnvelope(number: number), settlerBody()))
        }
        while !run.submissions.isEmpty { try run.answer(.refused(.storageFailed)) }
        #expect(run.wakes.last == settlerStart + .seconds(Int64(wait)))
    }
    run.send(.retryDue)
    try run.answerRead(.message(settlerEnvelope(), settlerBody()))
    try run.answerRead(.message(settlerEnvelope(number: 2), settlerBody()))
    #expect(run.submissions.contains { $0.envelope.id == first.envelope.id })
    try run.answer(.durable(storedReport))
    try run.answer(.durable(storedReport))
    #expect(run.outcomes.count == 2 && run.released.count == 2 && run.state.outstanding == 0)
    #expect(run.tally.refusals > 10)
}

@Test func moreReportsUnderWayThanTheBound() throws {
    var run = SettlerRun()
    for number in 0..<100 {
        run.send(.settled([settlement(settlerEnvelope(number: UInt64(number)), [.bounced], record: UInt32(number))]))
        #expect(run.state.inFlight <= SettlerLimits.inFlight)
    }
    #expect(run.submissions.count == SettlerLimits.inFlight)
    #expect(run.state.outstanding == 100)
    var rounds = 0
    while run.state.outstanding > 0, rounds < 1000 {
        rounds += 1
        if let read = run.reads.first {
            try run.answerRead(.message(settlerEnvelope(number: UInt64(read.ref.record)), settlerBody()))
        } else {
            try run.answer(.durable(storedReport))
        }
        #expect(run.state.inFlight <= SettlerLimits.inFlight)
    }
    #expect(run.outcomes.count == 100)
    #expect(Set(run.outcomes.map(\.job)).count == 100)
}

@Test func delayNoticeWithoutItsOrder() throws {
    var run = SettlerRun()
    let until = settlerStart + .hours(2)
    run.send(.settled([settlement(settlerEnvelope(), [.deferred(until: until, delayNotice: true)])]))
    #expect(run.order == "eo")
    #expect(run.events.map(\.type) == [.transientFailure])
    #expect(run.outcomes.map(\.verdict) == [.deferred(until: until)])
    let report = try run.answer(.durable(storedReport))
    #expect(run.events.map(\.type) == [.transientFailure, .delayNotice])
    #expect(run.outcomes.map(\.verdict) == [.deferred(until: until), .delayNoticeSent])
    #expect(run.outcomes.last?.report == storedReport)
    #expect(run.released.isEmpty)
    #expect(report.envelope.subjects.map(\.kind) == [.delay])
    #expect(String(buffer: report.body).contains("Action: delayed\r\nStatus: 4.1.1\r\n"))
    // Until it is given up, five days after it came; not until the next try in two hours.
    #expect(String(buffer: report.body).contains("\r\nWill-Retry-Until: Mon, 05 Jan 2026 23:00:00 +0000\r\n"))
    // Nobody who did not want it gets one.
    for notify in [NotifyFlags.never, .failure] {
        var other = SettlerRun()
        other.send(
            .settled([settlement(settlerEnvelope(notify: [notify]), [.deferred(until: until, delayNotice: true)])]))
        #expect(other.submissions.isEmpty && other.outcomes.count == 1)
    }
    // A notice that came due without an attempt counts none.
    var due = SettlerRun()
    due.send(.settled([settlement(settlerEnvelope(), [.deferred(until: until, delayNotice: true)], proto: .none)]))
    #expect(due.order.isEmpty && due.submissions.count == 1)
}

private func notice(_ recipient: Int, _ envelope: Envelope?) -> DelayNoticeDue {
    DelayNoticeDue(
        message: StoredMessageRef(segment: 1, record: 4), envelope: envelope, recipient: pulled(recipient, attempts: 3),
        until: settlerStart + .hours(1), reply: settlerRefusal)
}

/// After its first attempt a message is no longer in memory: just those wait long.
@Test func delayNoticeOfAMessageOutOfMemoryIsForgotten() throws {
    var run = SettlerRun()
    run.send(.notices([notice(0, nil), notice(1, nil), notice(2, nil)]))
    #expect(run.reads.count == 1 && run.submissions.isEmpty)
    try run.answerRead(.failed(errno: 5))
    run.now = run.wakes.last ?? run.now
    run.send(.retryDue)
    // The second of them wants none.
    try run.answerRead(.message(settlerEnvelope(notify: [[], .never, .delay]), settlerBody()))
    #expect(run.submissions.count == 1)
    #expect(run.order.isEmpty)
    let report = try run.answer(.durable(storedReport))
    #expect(report.envelope.subjects.map(\.kind) == [.delay, .delay])
    #expect(report.envelope.subjects.map(\.recipient) == [0, 2])
    // The slots stay taken: the recipients are still queued.
    #expect(run.order == "eo" && run.released.isEmpty)
    #expect(run.outcomes.map(\.verdict) == [.delayNoticeSent, .delayNoticeSent])
    #expect(run.outcomes.map(\.attempts) == [3, 3])
    #expect(run.state.outstanding == 0)
}

@Test func delayNoticeOfADamagedMessageIsTriedForEver() throws {
    var run = SettlerRun()
    run.send(.notices([notice(0, nil)]))
    try run.answerRead(.damaged)
    #expect(run.state.outstanding == 0 && run.tally.damaged == 0 && run.order.isEmpty)
    run.send(.notices([notice(0, nil)]))
    for _ in 0..<SettlerLimits.readsMax {
        try run.answerRead(.failed(errno: 5))
        run.send(.retryDue)
    }
    #expect(run.state.outstanding == 0 && run.order.isEmpty)
}

@Test func successReportFollowsItsOutcome() throws {
    let envelope = settlerEnvelope(notify: [.success])
    var run = SettlerRun()
    run.send(.settled([settlement(envelope, [.delivered])]))
    #expect(run.order.isEmpty)
    let report = try run.answer(.durable(storedReport))
    #expect(run.order == "eor")
    #expect(run.outcomes.first?.report == storedReport)
    #expect(String(buffer: report.body).contains("Action: relayed\r\nStatus: 2.0.0\r\n"))
    var passedOn = SettlerRun()
    passedOn.send(.settled([settlement(envelope, [.delivered], withoutDSN: false)]))
    #expect(passedOn.order == "eor" && passedOn.submissions.isEmpty)
    var local = SettlerRun()
    local.send(.settled([settlement(envelope, [.delivered], proto: .lmtp)]))
    #expect(String(buffer: try local.answer(.durable(storedReport)).body).contains("Action: delivered\r\n"))
}

@Test func inDoubtAndReturnedRecipients() {
    var run = SettlerRun()
    let until = settlerStart + .minutes(5)
    run.send(
        .settled([
            settlement(settlerEnvelope(notify: [[], [], []]), [.inDoubt(until: until), .returned, .unknown])
        ]))
    #expect(run.events.map(\.type) == [.transientFailure])
    #expect(run.outcomes.map(\.verdict) == [.inDoubt(until: until)])
    #expect(run.released.isEmpty)
}

@Test func fullReturnWithoutItsBody() throws {
    let envelope = settlerEnvelope(content: .full)
    var run = SettlerRun()
    run.send(.settled([settlement(envelope, [.bounced], body: nil)]))
    #expect(run.submissions.isEmpty && run.reads.count == 1)
    try run.answerRead(.message(envelope, settlerBody()))
    #expect(String(buffer: try run.answer(.durable(storedReport)).body).contains("Body text"))
    // A fragmented body gives its headers only.
    let traits = settlerBody().traits
    var large = SettlerRun()
    large.send(.settled([settlement(envelope, [.bounced], body: .fragmented(traits: traits, count: 3))]))
    guard case .fragment(0)? = large.reads.first?.part else {
        Issue.record("the first fragment is not read")
        return
    }
    try large.answerRead(.fragment(ByteBuffer(string: "From: a@example.org\r\nSubject: Hello\r\n\r\nBody text\r\n")))
    let text = String(buffer: try large.answer(.durable(storedReport)).body)
    #expect(text.contains("Subject: Hello") && !text.contains("Body text"))
}

@Test func unreadableOriginalKeepsItsReportBack() throws {
    var damaged = SettlerRun()
    damaged.send(.settled([settlement(settlerEnvelope(), [.bounced], body: nil)]))
    try damaged.answerRead(.damaged)
    #expect(!String(buffer: try damaged.answer(.durable(storedReport)).body).contains("rfc822-headers"))
    #expect(damaged.released.count == 1)
    var failing = SettlerRun()
    failing.send(.settled([settlement(settlerEnvelope(), [.bounced], body: nil)]))
    for _ in 1..<SettlerLimits.readsMax {
        try failing.answerRead(.failed(errno: 5))
        #expect(failing.submissions.isEmpty)
        failing.send(.retryDue)
    }
    try failing.answerRead(.failed(errno: 5))
    #expect(failing.submissions.count == 1)
}

@Test func finalWithoutAttemptOrEnvelope() throws {
    func final(_ recipient: Int, _ verdict: OutcomeVerdict, report: Bool, envelope: Envelope?) -> FinalWithoutAttempt {
        FinalWithoutAttempt(
            message: StoredMessageRef(segment: 1, record: 5), envelope: envelope,
            recipient: pulled(recipient, attempts: 3), verdict: verdict, reply: settlerRefusal, report: report)
    }
    let envelope = settlerEnvelope(notify: [[], [], []])
    var run = SettlerRun()
    run.send(
        .finals([
            final(0, .expired, report: true, envelope: nil), final(1, .adminBounced, report: false, envelope: nil),
            final(2, .bounced, report: true, envelope: nil),
        ]))
    #expect(run.reads.count == 1 && run.order.isEmpty)
    try run.answerRead(.message(envelope, settlerBody()))
    #expect(run.events.map(\.type) == [.adminBounce])
    let report = try run.answer(.durable(storedReport))
    #expect(report.envelope.subjects.map(\.recipient) == [0, 2])
    #expect(run.events.map(\.type) == [.adminBounce, .expiration, .bounce])
    #expect(run.events.allSatisfy { $0.attempts == 3 })
    // Read back from a disk that does not answer: kept for as long as it takes.
    var slow = SettlerRun()
    slow.send(.finals([final(0, .adminBounced, report: false, envelope: nil)]))
    for _ in 0..<(SettlerLimits.readsMax * 2) {
        try slow.answerRead(.failed(errno: 11))
        slow.send(.retryDue)
    }
    #expect(slow.order.isEmpty && slow.state.outstanding == 1)
    try slow.answerRead(.message(envelope, settlerBody()))
    #expect(slow.order == "eor")
    // Quarantined: never ended, never dropped in silence.
    var damaged = SettlerRun()
    damaged.send(.finals([final(0, .expired, report: true, envelope: nil)]))
    try damaged.answerRead(.damaged)
    #expect(damaged.order.isEmpty && damaged.tally.damaged == 1)
    // An operator's bounce with a report asked for.
    var asked = SettlerRun()
    asked.send(.finals([final(1, .adminBounced, report: true, envelope: envelope)]))
    try asked.answerRead(.message(envelope, settlerBody()))
    try asked.answer(.durable(storedReport))
    #expect(asked.events.map(\.type) == [.adminBounce])
}

/// Random attempts, refusals and unreadable bodies in random order: each recipient ends once, and never before its report.
@Test func recipientEndedTwiceOrBeforeItsReport() throws {
    for seed in UInt64(1)...60 {
        var random = SplitMix64(seed: seed)
        var run = SettlerRun()
        var durable: Set<MessageID> = []
        var expected: Set<JobRef> = []
        var envelopes: [UInt32: Envelope] = [:]
        for record in UInt32(0)..<80 {
            let count = Int.random(in: 1...5, using: &random)
            let envelope = settlerEnvelope(
                number: UInt64(record), sender: random.next() % 8 == 0 ? nil : "sender@example.org",
                content: random.next() % 3 == 0 ? .full : .unspecified,
                notify: (0..<count).map { _ in
                    [[], .never, .success, [.failure, .success]].randomElement(using: &random) ?? []
                })
            envelopes[record] = envelope
            let decisions: [RecipientDecision] = (0..<count).map { _ in
                [.delivered, .bounced, .expired].randomElement(using: &random) ?? .delivered
            }
            for index in 0..<count {
                expected.insert(JobRef(message: StoredMessageRef(segment: 1, record: record), recipient: UInt32(index)))
            }
            let body: StoredBody? = random.next() % 4 == 0 ? nil : settlerBody()
            run.send(.settled([settlement(envelope, decisions, record: record, body: body)]))
        }
        var steps = 0
        while run.state.outstanding > 0, steps < 20_000 {
            steps += 1
            if !run.reads.isEmpty, random.next() % 2 == 0 {
                run.reads.swapAt(0, Int.random(in: run.reads.indices, using: &random))
                let envelope = try #require(run.reads.first.flatMap { envelopes[$0.ref.record] })
                let roll = random.next() % 10
                try run.answerRead(
                    roll == 0 ? .failed(errno: 5) : roll == 1 ? .damaged : .message(envelope, settlerBody()))
            } else if !run.submissions.isEmpty {
                run.submissions.swapAt(0, Int.random(in: run.submissions.indices, using: &random))
                if random.next() % 4 == 0 {
                    try run.answer(.refused(.overloaded))
                } else {
                    let id = try #require(run.submissions.first).envelope.id
                    durable.insert(id)
                    try run.answer(.durable(StoredMessageRef(segment: 2, record: UInt32(durable.count))))
                }
            } else if run.reads.isEmpty {
                run.send(.retryDue)
            }
        }
        let jobs = run.outcomes.map(\.job)
        #expect(Set(jobs) == expected && jobs.count == expected.count, "seed \(seed)")
        #expect(run.released.count == expected.count && run.events.count == expected.count, "seed \(seed)")
        for outcome in run.outcomes {
            let envelope = try #require(envelopes[outcome.job.message.record])
            let told =
                outcome.verdict == .delivered
                ? ReportPolicy.wantsSuccess(envelope, outcome.job.recipient)
                : ReportPolicy.wantsFailure(envelope, outcome.job.recipient)
            #expect((outcome.report != nil) == told, "seed \(seed)")
        }
    }
}
