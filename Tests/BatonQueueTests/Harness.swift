// A partition's state with a clock, messages to feed it, and a check of everything it believes about itself.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonQueue

/// 2026-01-01T00:00:00Z.
let start = Instant(secondsSinceEpoch: 1_767_225_600)

let siteA = SiteID(value: 7)
let siteB = SiteID(value: 8)
let tryLater = SMTPReply(code: 451, status: EnhancedStatus(4, 3, 0), text: Array("later".utf8), stage: .rcpt)
let noUser = SMTPReply(code: 550, status: EnhancedStatus(5, 1, 1), text: Array("no such user".utf8), stage: .rcpt)
let accepted = SMTPReply(code: 250, status: nil, text: Array("ok".utf8), stage: .finalDot)
let unreachable = SMTPReply(code: 0, status: nil, text: Array("time-out".utf8), stage: .connect)

func address(_ text: String) -> MailAddress {
    guard let address = MailAddress(text) else { preconditionFailure("bad address \(text) in a test") }
    return address
}

/// A message with body; `number` makes its id and its place.
func message(
    _ number: UInt32, to recipients: [String], from sender: String? = "s@sender.test", senderClass: UInt64 = 1,
    arrival: Instant = start, notify: NotifyFlags = [], flags: EnvelopeFlags = [], size: Int = 100, body: Bool = true,
    progress: [RecipientProgress]? = nil, submit: SubmitMark? = nil, part: (ref: UInt32, numbers: [UInt32])? = nil
) -> AcceptedMessage {
    var traits = BodyTraits.empty
    traits.length = size
    let envelope = Envelope(
        id: messageID(number), arrival: arrival, sender: sender.map { address($0) }, flags: flags,
        senderClass: senderClass,
        recipients: recipients.map { EnvelopeRecipient(address: address($0), notify: notify) },
        traits: traits, submit: submit, numbers: part?.numbers)
    let octets = body ? MessageBody(bytes: ByteBuffer(repeating: 0x61, count: size), traits: traits) : nil
    return AcceptedMessage(
        ref: StoredMessageRef(segment: 1, record: part?.ref ?? number), envelope: envelope, body: octets,
        progress: progress,
        receptionRecorded: true)
}

func messageID(_ number: UInt32) -> MessageID { MessageID(high: 77, low: UInt64(number)) }

final class Harness {
    var state: PartitionState
    var now = start
    var routes: [(DestinationID, Domain)] = []
    var ready: [SiteID: Int] = [:]
    var finals: [FinalWithoutAttempt] = []
    var notices: [DelayNoticeDue] = []
    /// Domains are assigned to this site as soon as they ask; nil: the test does it.
    var autoSite: SiteID? = siteA

    init(
        index: Int = 0, count: Int = 1, _ configuration: QueueConfiguration = QueueConfiguration(seed: 1)
    ) {
        state = PartitionState(index: index, count: count, configuration: configuration, now: start)
    }

    func drop(_ ended: EndedElsewhere) -> Bool { state.drop(ended) }

    func receive(_ messages: AcceptedMessage...) {
        state.receive(messages, at: now)
        perform()
    }

    func perform() {
        while true {
            let actions = state.drain()
            if actions.isEmpty { return }
            for action in actions {
                switch action {
                case .routeNeeded(let id, let domain):
                    routes.append((id, domain))
                    if let autoSite { state.assign(id, to: autoSite, until: .distantFuture, at: now) }
                case .workReady(let site, let count): ready[site] = count
                case .finalWithoutAttempt(let items): finals += items
                case .delayNoticesDue(let items): notices += items
                }
            }
        }
    }

    /// Moves the clock and does everything that came due.
    func advance(by span: TimeSpan) {
        now = now + span
        work()
    }

    func work() {
        var rounds = 0
        while state.advance(to: now), rounds < 100_000 { rounds += 1 }
        perform()
    }

    /// Goes to the next wake of the wheel; false if there is none.
    func advanceToNextWake() -> Bool {
        guard let wake = state.wheel.nextWake else { return false }
        if wake > now { now = wake }
        work()
        return true
    }

    func pull(_ site: SiteID = siteA, _ transactions: Int = 1, recipients: Int = 100) -> [Transaction] {
        let pulled = state.pull(site, transactions: transactions, recipients: recipients, at: now)
        perform()
        return pulled
    }

    func decide(_ transaction: Transaction, _ result: AttemptResult) -> [RecipientDecision] {
        let decisions = state.decide(transaction.recipients.map { ($0.handle, result) }, at: now)
        perform()
        return decisions
    }

    func settle(_ handles: [JobHandle]) {
        state.settle(handles)
        perform()
    }

    func settle(_ transaction: Transaction) { settle(transaction.recipients.map(\.handle)) }

    func deliver(_ transaction: Transaction) {
        _ = decide(transaction, .delivered(accepted))
        settle(transaction)
    }

    func decide(_ results: [(JobHandle, AttemptResult)]) -> [RecipientDecision] {
        let decisions = state.decide(results, at: now)
        perform()
        return decisions
    }

    var isFull: Bool { state.isFull }
    func takesDelayNotice(_ handle: JobHandle) -> Bool { state.takeDelayNotice(handle.slot, at: now) }

    var totals: QueueTotals { state.totals }
    var jobCount: Int { state.jobs.all }
    var residentBytes: Int { state.messages.residentBytes }
    func show(_ number: UInt32) -> [QueueRow] { state.show(messageID(number)) }
    func list(_ filter: QueueFilter = QueueFilter(), limit: Int = 100, cursor: UInt64? = nil) -> QueuePage {
        state.list(filter, limit: limit, cursor: cursor)
    }
    func summary() -> QueueSummary { state.summary(cursor: nil, limit: 100) }

    func suspend(_ selector: QueueSelector, for span: TimeSpan? = nil) throws -> OperationProgress {
        let progress = try state.suspend(selector, until: span.map { now + $0 }, at: now)
        perform()
        return progress
    }

    func resume(_ selector: QueueSelector, exactly: Bool = false) throws -> OperationProgress {
        let progress = try state.resume(selector, exactly: exactly, at: now)
        perform()
        return progress
    }

    func retry(_ selector: QueueSelector) throws -> OperationProgress {
        let progress = try state.retry(selector, at: now)
        perform()
        return progress
    }

    func bounce(
        _ selector: QueueSelector, report: Bool = false, cutoff: Instant = .distantFuture
    ) throws -> OperationProgress {
        let progress = try state.bounce(selector, reason: Array("why".utf8), report: report, cutoff: cutoff, at: now)
        perform()
        return progress
    }

    // MARK: Everything counted again from the slots

    /// What is wrong with the state; empty if nothing is.
    func violations() -> [String] {
        var found: [String] = []
        var counts = JobCounts()
        var blocked = 0
        var outstanding = 0
        var inWheel = 0
        var readyOf: [UInt32: Int] = [:]
        var countsOf: [UInt32: JobCounts] = [:]
        var untriedOf: [UInt32: UInt32] = [:]
        var liveOf: [UInt32: UInt32] = [:]
        for slot in 0..<state.slab.highWater {
            let job = state.slab[slot]
            if job.state == .timer { inWheel += 1 }
            if job.state == .free || job.state == .timer { continue }
            counts.add(job.state, 1)
            countsOf[job.destination, default: JobCounts()].add(job.state, 1)
            liveOf[job.message, default: 0] += 1
            if job.flags.contains(.untried) { untriedOf[job.message, default: 0] += 1 }
            if job.flags.contains(.handedOut) { outstanding += 1 }
            if job.state == .waiting || job.state == .suspended { inWheel += 1 }
            let destination = state.destinations[job.destination]
            if job.state == .ready {
                if destination.isBlocked { blocked += 1 }
                let attached = state.board.queue(job.home).classQueue != none
                if attached != (destination.phase == .assigned) { found.append("slot \(slot): board and phase differ") }
                if attached { readyOf[destination.site, default: 0] += 1 }
            }
        }
        if counts.all != state.jobs.all || counts.ready != state.jobs.ready || counts.waiting != state.jobs.waiting
            || counts.suspended != state.jobs.suspended || counts.inFlight != state.jobs.inFlight
        {
            found.append("totals \(state.jobs), counted \(counts)")
        }
        if blocked != state.blockedReady { found.append("blocked \(state.blockedReady), counted \(blocked)") }
        if outstanding != state.finalsOutstanding {
            found.append("finals \(state.finalsOutstanding) vs \(outstanding)")
        }
        if inWheel != state.wheel.count { found.append("wheel \(state.wheel.count), counted \(inWheel)") }
        for index in 0..<state.sites.highWater where state.sites.exists(index) {
            if state.sites[index].ready != readyOf[index, default: 0] {
                found.append("site \(index): ready \(state.sites[index].ready) vs \(readyOf[index, default: 0])")
            }
        }
        for index in 0..<state.destinations.highWater where state.destinations.exists(index) {
            if state.destinations[index].counts.all != countsOf[index, default: JobCounts()].all {
                found.append("destination \(index) counts")
            }
        }
        var resident = 0
        for (message, live) in liveOf {
            if state.messages[message].live != live { found.append("message \(message) live") }
            if state.messages[message].untried != untriedOf[message, default: 0] {
                found.append("message \(message) untried")
            }
            if let kept = state.messages.resident(of: message) {
                resident += kept.bytes
                if state.messages[message].untried == 0 {
                    found.append("message \(message) resident after its attempt")
                }
            }
        }
        if resident != state.messages.residentBytes {
            found.append("resident \(state.messages.residentBytes), counted \(resident)")
        }
        if liveOf.count != state.messages.live { found.append("messages \(state.messages.live) vs \(liveOf.count)") }
        return found
    }
}
