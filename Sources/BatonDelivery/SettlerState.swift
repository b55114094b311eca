// What the settler decides: which reports are made, and in which order reports, events, outcomes and slots follow.
import BatonCore
import BatonMail
import BatonModel
import DequeModule
import NIOCore

/// Bounds of a settler; one settler per data loop.
package enum SettlerLimits {
    /// Reports and read-backs under way at a time, each with at most two bodies of `Limits.fragmentThreshold` octets. What is
    /// beyond waits without its body, one small entry for a job whose slot is still taken: so the queue's bound holds for it.
    package static let inFlight = 32
    /// Wait after the spool refused a report or a read, doubled each time it does so again.
    package static let retryFirst = TimeSpan.seconds(1)
    package static let retryMax = TimeSpan.seconds(60)
    /// Failed reads of the original after which a report goes out without its headers.
    package static let readsMax = 5
}

/// Counts since the last action; the shell adds them to its metrics.
struct SettlerTally: Sendable, Equatable {
    var failureReports = 0
    var delayReports = 0
    var successReports = 0
    /// Reports, and mail of the null sender, that failed: nobody can be told.
    var undeliverable = 0
    var refusals = 0
    /// Finals whose message cannot be read: their jobs stay where they are.
    var damaged = 0
}

/// Pure. Guards invariant 1: no final outcome before its report is durable, no outcome before its event, no slot freed before
/// its outcome; and a report that the spool refuses is kept and tried again.
///
/// Lives on its partition's loop. Nothing survives a crash: a recipient without a recorded outcome is attempted again, and a
/// report that became durable is found by its `ReportSubject`.
struct SettlerState: StateMachine {
    enum Event: Sendable {
        case settled([Settlement])
        case finals([FinalWithoutAttempt])
        case notices([DelayNoticeDue])
        case submitted([SubmissionResult])
        case read([BodyReadResult])
        case retryDue
    }

    enum Action: Sendable {
        case record([MailEvent])
        case outcomes([Outcome])
        case release([JobHandle])
        case submit([ReportSubmission])
        case read([BodyRead])
        case wake(at: Instant)
        case tally(SettlerTally)
    }

    /// One report to be, or one message to be read back.
    private struct Work: Sendable {
        let message: StoredMessageRef
        var envelope: Envelope?
        var items: [PendingRecipient]
        /// Nil as long as the envelope is not known.
        var kind: ReportSubject.Kind?
        let origin: AttemptOrigin
        let at: Instant
        var body: StoredBody?
        var returned: DeliveryReport.Returned?
        var failedReads = 0

        /// Without what can be read back again.
        var lean: Work {
            var copy = self
            copy.body = nil
            copy.returned = nil
            return copy
        }
    }

    private let configuration: ReportConfiguration
    private var waiting = Deque<Work>()
    private var underWay: [UInt64: Work] = [:]
    private var nextToken: UInt64 = 0
    /// Apart, since a disk that reads may yet refuse to write, and its reads must not shorten the wait for the other.
    private var refusalsInARow = 0
    private var failedReadsInARow = 0
    private var isPaused = false

    // One call's harvest, in the order in which it has to be made durable.
    private var events: [MailEvent] = []
    private var outcomes: [Outcome] = []
    private var handles: [JobHandle] = []
    private var submissions: [ReportSubmission] = []
    private var reads: [BodyRead] = []
    private var tally = SettlerTally()
    private var wake: Instant?

    init(configuration: ReportConfiguration) {
        self.configuration = configuration
    }

    /// Reports and read-backs not finished, those waiting included.
    var outstanding: Int { waiting.count + underWay.count }
    var inFlight: Int { underWay.count }

    mutating func receive(_ event: Event, at now: Instant, into actions: inout ActionBuffer<Action>) {
        switch event {
        case .settled(let settlements): for settlement in settlements { settle(settlement, at: now) }
        case .finals(let finals): settle(finals, at: now)
        case .notices(let notices): settle(notices, at: now)
        case .submitted(let results): for result in results { finish(result, at: now) }
        case .read(let results): for result in results { finish(result, at: now) }
        case .retryDue: isPaused = false
        }
        pump(at: now)
        flush(into: &actions)
    }

    // MARK: Attempts

    private mutating func settle(_ settlement: Settlement, at now: Instant) {
        let envelope = settlement.envelope
        let origin = AttemptOrigin(
            site: settlement.site, peer: settlement.peer, sourceAddress: settlement.sourceAddress,
            deliveryProtocol: settlement.deliveryProtocol)
        var failures: [PendingRecipient] = []
        var delays: [PendingRecipient] = []
        var successes: [PendingRecipient] = []
        // Without a protocol there was no attempt: only a notice is due.
        let attempted = settlement.deliveryProtocol != .none
        for entry in settlement.entries {
            let index = entry.recipient.recipient
            let (sum, overflow) = entry.recipient.attempts.addingReportingOverflow(attempted ? 1 : 0)
            let attempts = overflow ? UInt16.max : sum
            func item(_ verdict: OutcomeVerdict) -> PendingRecipient {
                PendingRecipient(
                    recipient: entry.recipient, verdict: verdict, attempts: attempts, reply: entry.reply)
            }
            switch entry.decision {
            case .delivered:
                if entry.relayedWithoutDSN, ReportPolicy.wantsSuccess(envelope, index) {
                    successes.append(item(.delivered))
                } else {
                    complete(item(.delivered), settlement.message, envelope, origin, at: settlement.at, report: nil)
                }
            case .deferred(let until, let delayNotice):
                if attempted {
                    complete(
                        item(.deferred(until: until)), settlement.message, envelope, origin, at: settlement.at,
                        report: nil)
                }
                if delayNotice, ReportPolicy.wantsDelay(envelope, index) {
                    delays.append(item(.delayNoticeSent))
                }
            case .inDoubt(let until):
                complete(
                    item(.inDoubt(until: until)), settlement.message, envelope, origin, at: settlement.at, report: nil)
            case .bounced, .expired:
                var verdict = OutcomeVerdict.bounced
                if case .expired = entry.decision { verdict = .expired }
                failures.append(item(verdict))
            case .returned, .unknown: continue
            }
        }
        let base = Work(
            message: settlement.message, envelope: envelope, items: [], kind: nil, origin: origin, at: settlement.at,
            body: settlement.body, returned: nil)
        fail(failures, base)
        enqueue(delays, .delay, base)
        enqueue(successes, .success, base)
    }

    // MARK: Finals without an attempt

    private mutating func settle(_ finals: [FinalWithoutAttempt], at now: Instant) {
        // Those of one message share its reports and its one read-back.
        var order: [StoredMessageRef] = []
        var groups: [StoredMessageRef: [FinalWithoutAttempt]] = [:]
        for final in finals {
            if groups[final.message] == nil { order.append(final.message) }
            groups[final.message, default: []].append(final)
        }
        for message in order {
            guard let group = groups[message] else { continue }
            let items = group.map {
                PendingRecipient(
                    recipient: $0.recipient, verdict: $0.verdict, attempts: $0.recipient.attempts, reply: $0.reply,
                    mayReport: $0.report)
            }
            let base = Work(
                message: message, envelope: group.lazy.compactMap(\.envelope).first, items: [], kind: nil,
                origin: AttemptOrigin(), at: now, body: nil, returned: nil)
            if base.envelope != nil {
                fail(items, base)
            } else {
                var work = base
                work.items = items
                waiting.append(work)
            }
        }
    }

    /// Recipients that wait long though their destination, not they, failed. Those of one message share a report.
    private mutating func settle(_ notices: [DelayNoticeDue], at now: Instant) {
        var order: [StoredMessageRef] = []
        var groups: [StoredMessageRef: [DelayNoticeDue]] = [:]
        for notice in notices {
            if groups[notice.message] == nil { order.append(notice.message) }
            groups[notice.message, default: []].append(notice)
        }
        for message in order {
            guard let group = groups[message] else { continue }
            var work = Work(
                message: message, envelope: group.lazy.compactMap(\.envelope).first, items: [], kind: .delay,
                origin: AttemptOrigin(), at: now, body: nil, returned: nil)
            work.items = group.map {
                PendingRecipient(
                    recipient: $0.recipient, verdict: .delayNoticeSent, attempts: $0.recipient.attempts,
                    reply: $0.reply)
            }
            if work.envelope == nil { waiting.append(work) } else { giveNotice(work) }
        }
    }

    private mutating func giveNotice(_ work: Work) {
        guard let envelope = work.envelope else { return }
        enqueue(work.items.filter { ReportPolicy.wantsDelay(envelope, $0.recipient.recipient) }, .delay, work)
    }

    /// Ends failed recipients: at once where nobody is to be told, by a report where somebody is.
    private mutating func fail(_ items: [PendingRecipient], _ base: Work) {
        guard let envelope = base.envelope, !items.isEmpty else { return }
        var told: [PendingRecipient] = []
        for item in items {
            if item.mayReport, ReportPolicy.wantsFailure(envelope, item.recipient.recipient) {
                told.append(item)
            } else {
                if !ReportPolicy.mayReport(envelope) { tally.undeliverable += 1 }
                complete(item, base.message, envelope, base.origin, at: base.at, report: nil)
            }
        }
        enqueue(told, .failure, base)
    }

    // MARK: Reports

    private mutating func enqueue(_ items: [PendingRecipient], _ kind: ReportSubject.Kind, _ base: Work) {
        var rest = items[...]
        while !rest.isEmpty {
            var work = base
            work.kind = kind
            work.items = Array(rest.prefix(DeliveryReport.recipientsMax))
            rest = rest.dropFirst(DeliveryReport.recipientsMax)
            if isPaused || underWay.count >= SettlerLimits.inFlight || !waiting.isEmpty {
                waiting.append(work.lean)
            } else {
                start(work, at: base.at)
            }
        }
    }

    private mutating func pump(at now: Instant) {
        while !isPaused, underWay.count < SettlerLimits.inFlight, let work = waiting.popFirst() {
            start(work, at: now)
        }
    }

    private mutating func start(_ work: Work, at now: Instant) {
        let token = nextToken
        nextToken &+= 1
        advance(work, token, at: now)
    }

    /// Reads what is missing, else submits. Takes the place `token` in `underWay`.
    private mutating func advance(_ work: Work, _ token: UInt64, at now: Instant) {
        guard let envelope = work.envelope, let kind = work.kind else {
            underWay[token] = work
            reads.append(BodyRead(ref: work.message, part: .message, token: token))
            return
        }
        var work = work
        if work.returned == nil {
            switch work.body {
            case .whole(let body):
                let full = kind == .failure && envelope.returnContent == .full
                work.returned = full ? .full(body.bytes) : .headers(body.bytes)
            case .fragmented:
                // Too large to return whole; its header section begins in the first fragment.
                underWay[token] = work
                reads.append(BodyRead(ref: work.message, part: .fragment(0), token: token))
                return
            case nil:
                underWay[token] = work
                reads.append(BodyRead(ref: work.message, part: .message, token: token))
                return
            }
        }
        let report = ReportPlan.make(
            kind: kind, about: work.items, of: envelope, origin: work.origin, attemptAt: work.at,
            returned: work.returned ?? .nothing, token: token, configuration: configuration, at: now)
        guard let report else {
            // Nobody to tell: cannot be after `ReportPolicy`, and must not keep the job for ever.
            underWay[token] = nil
            finish(work, report: nil)
            return
        }
        underWay[token] = work
        submissions.append(report)
    }

    private mutating func finish(_ result: SubmissionResult, at now: Instant) {
        guard let work = underWay.removeValue(forKey: result.token) else { return }
        switch result.outcome {
        case .durable(let ref):
            refusalsInARow = 0
            switch work.kind {
            case .failure: tally.failureReports += 1
            case .delay: tally.delayReports += 1
            case .success: tally.successReports += 1
            case nil: break
            }
            finish(work, report: ref)
        case .refused:
            tally.refusals += 1
            putBack(work, failures: \.refusalsInARow, at: now)
        }
    }

    private mutating func finish(_ work: Work, report: StoredMessageRef?) {
        guard let envelope = work.envelope else { return }
        for item in work.items {
            complete(item, work.message, envelope, work.origin, at: work.at, report: report)
        }
    }

    private mutating func finish(_ result: BodyReadResult, at now: Instant) {
        guard var work = underWay.removeValue(forKey: result.token) else { return }
        switch result.outcome {
        case .message(let envelope, let body):
            failedReadsInARow = 0
            if work.envelope == nil {
                work.envelope = envelope
                work.body = body
                // Now it can be said who is to be told; what is told goes on, the rest is recorded.
                if work.kind == .delay { giveNotice(work) } else { fail(work.items, work) }
            } else {
                work.body = body
                advance(work, result.token, at: now)
            }
        case .fragment(let octets):
            failedReadsInARow = 0
            work.returned = .headers(octets)
            advance(work, result.token, at: now)
        case .damaged:
            if work.envelope == nil, work.kind == .delay { return }
            if work.envelope == nil {
                // Quarantined by the spool: without its envelope nothing can be recorded. The job keeps its slot.
                tally.damaged += work.items.count
            } else {
                work.returned = .nothing
                advance(work, result.token, at: now)
            }
        case .failed, .beingRepaired:
            work.failedReads += 1
            // A notice is a courtesy: it is given up where a final outcome waits.
            if work.envelope == nil, work.kind == .delay, work.failedReads >= SettlerLimits.readsMax { return }
            if work.envelope != nil, work.failedReads >= SettlerLimits.readsMax {
                work.returned = .nothing
                advance(work, result.token, at: now)
            } else {
                putBack(work, failures: \.failedReadsInARow, at: now)
            }
        }
    }

    /// Keeps refused work at the front, and lets the spool rest.
    private mutating func putBack(_ work: Work, failures: WritableKeyPath<SettlerState, Int>, at now: Instant) {
        waiting.prepend(work.lean)
        guard !isPaused else { return }
        isPaused = true
        let span = SettlerLimits.retryFirst.multiplied(by: Double(1 << min(self[keyPath: failures], 16)))
        self[keyPath: failures] = min(self[keyPath: failures] + 1, 16)
        wake = now + min(span, SettlerLimits.retryMax)
    }

    // MARK: Recording

    private mutating func complete(
        _ item: PendingRecipient, _ message: StoredMessageRef, _ envelope: Envelope, _ origin: AttemptOrigin,
        at instant: Instant, report: StoredMessageRef?
    ) {
        let index = item.recipient.recipient
        let type: MailEventType?
        switch item.verdict {
        case .delivered: type = .delivery
        case .deferred, .inDoubt: type = .transientFailure
        case .bounced: type = .bounce
        case .expired: type = .expiration
        case .adminBounced: type = .adminBounce
        case .delayNoticeSent: type = .delayNotice
        case .withdrawn: type = nil
        }
        if let type, envelope.recipients.indices.contains(Int(index)) {
            events.append(
                MailEvent(
                    type: type, at: instant, envelope: envelope, recipient: index, attempts: item.attempts,
                    reply: item.reply.kept, peer: origin.peer, site: origin.site,
                    sourceAddress: origin.sourceAddress, deliveryProtocol: origin.deliveryProtocol))
        }
        outcomes.append(
            Outcome(
                job: JobRef(message: message, recipient: index), at: instant, verdict: item.verdict,
                attempts: item.attempts, reply: item.reply, peer: origin.peer, report: report))
        if item.verdict.isFinal { handles.append(item.recipient.handle) }
    }

    private mutating func flush(into actions: inout ActionBuffer<Action>) {
        if !events.isEmpty { actions.append(.record(Self.taken(&events))) }
        if !outcomes.isEmpty { actions.append(.outcomes(Self.taken(&outcomes))) }
        if !handles.isEmpty { actions.append(.release(Self.taken(&handles))) }
        if !reads.isEmpty { actions.append(.read(Self.taken(&reads))) }
        if !submissions.isEmpty { actions.append(.submit(Self.taken(&submissions))) }
        if tally != SettlerTally() {
            actions.append(.tally(tally))
            tally = SettlerTally()
        }
        if let at = wake {
            actions.append(.wake(at: at))
            wake = nil
        }
    }

    private static func taken<Element>(_ array: inout [Element]) -> [Element] {
        var out: [Element] = []
        swap(&out, &array)
        return out
    }
}
