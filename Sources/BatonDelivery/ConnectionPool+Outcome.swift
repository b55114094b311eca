// The end of a transaction: who is decided, who is sent again, and what the settler gets.
import BatonCore
import BatonModel
import BatonSMTP
import NIOCore

extension ConnectionPool {
    func transactionEnded(_ id: ConnectionID, _ end: TransactionEnd) {
        guard let link = links[id], var job = link.job else { return }
        links[id]?.job = nil
        links[id]?.awaitedRead = nil
        job.peer = link.peer
        job.sourceAddress = link.sourceAddress
        if !job.metHosts.contains(link.peer.name) { job.metHosts.append(link.peer.name) }
        if case .incapable? = end.ends.first { job.hostsWithout += 1 }
        let attempt = AttemptContext(
            connectionReused: !link.fresh, resent: job.resent, sessions: job.sessions,
            hostsWithout: job.hostsWithout, otherHosts: state.hasHosts(besides: job.metHosts))

        var results: [(PulledRecipient, AttemptResult)] = []
        results.reserveCapacity(job.recipients.count)
        var again: [PulledRecipient] = []
        var fallback: [AttemptResult] = []
        var elsewhere = false
        var served = false
        for (recipient, recipientEnd) in zip(job.recipients, end.ends) {
            if case .reply = recipientEnd { served = true }
            switch ReplyClassifier.step(for: recipientEnd, attempt) {
            case .result(.returned) where job.awaitsRepair: results.append((recipient, .beingRepaired))
            case .result(let result): results.append((recipient, result))
            case .resendFresh:
                again.append(recipient)
                fallback.append(last(of: recipientEnd))
            case .resendElsewhere:
                elsewhere = true
                again.append(recipient)
                fallback.append(last(of: recipientEnd))
            }
        }
        if !results.isEmpty { decide(job, results, peerHasDSN: end.peerHasDSN, keepsPlace: !again.isEmpty) }
        if !end.reusable {
            // MAILMAX is used up: say goodbye. In every other case the session has closed already.
            link.handler.value.leave(within: context.shared.configuration.timeouts.client.quit)
            links.removeValue(forKey: id)
        }
        post(.finished(id, reusable: end.reusable, trouble: end.trouble, fresh: link.fresh, served: served))
        guard !again.isEmpty else {
            if !end.reusable { pump(ready: context.source.ready(site)) }
            return
        }
        job.recipients = again
        job.fallback = fallback
        if elsewhere {
            sendAgain(job, avoiding: job.metHosts)
        } else {
            // The same host may be met: it is the connection that was stale. It is no session of this attempt.
            job.resent = true
            job.sessions = 0
            job.metHosts = []
            sendAgain(job, avoiding: [])
        }
    }

    private func sendAgain(_ job: DeliveryJob, avoiding: [[UInt8]]) {
        let work = nextWorkID()
        works[work] = job
        context.shared.tally.resent += 1
        post(.resend(work, avoiding: avoiding))
    }

    /// The result if nothing better comes.
    private func last(of end: RecipientEnd) -> AttemptResult {
        let nowhere = AttemptContext(
            connectionReused: false, resent: true, sessions: .max, hostsWithout: .max, otherHosts: false)
        guard case .result(let result) = ReplyClassifier.step(for: end, nowhere) else { return .returned }
        return result
    }

    /// A resend that came to nothing (`returned: false`) or could not be tried.
    func conclude(_ work: WorkID, returned: Bool) {
        guard let job = works.removeValue(forKey: work) else { return }
        let results = zip(job.recipients, job.fallback).map { ($0, returned ? .returned : $1) }
        decide(job, results, peerHasDSN: true)
    }

    /// Lets the partition decide and hands what is to be made durable to the settler at the end of this turn.
    /// `keepsPlace`: others of the transaction are sent again, and hold its place of the window.
    func decide(
        _ job: DeliveryJob, _ results: [(PulledRecipient, AttemptResult)], peerHasDSN: Bool, keepsPlace: Bool = false
    ) {
        let now = context.time.now()
        let envelope = job.envelope ?? Self.unread
        let decisions = context.source.decide(
            results.map { ($0.0.handle, $0.1) }, envelope: envelope, at: now)
        if job.holdsPlace, !keepsPlace {
            context.dots?.ended(
                job.message, site: plan.name,
                outcomes: job.envelope == nil ? 0 : decisions.count(where: \.isRecorded), at: now)
        }
        var entries: [SettlementEntry] = []
        entries.reserveCapacity(results.count)
        let tally = context.shared
        for ((recipient, result), decision) in zip(results, decisions) {
            let reply: SMTPReply
            switch result {
            case .delivered(let found):
                tally.tally.delivered += 1
                reply = found
            case .temporary(let found):
                tally.tally.temporary += 1
                reply = found
            case .permanent(let found):
                tally.tally.permanent += 1
                reply = found
            case .inDoubt(let found):
                tally.tally.inDoubt += 1
                reply = found
            case .returned, .notPermitted, .beingRepaired, .damaged: continue
            }
            switch decision {
            case .returned, .unknown: continue
            case .delivered, .deferred, .inDoubt, .bounced, .expired: break
            }
            entries.append(
                SettlementEntry(recipient: recipient, decision: decision, reply: reply, relayedWithoutDSN: !peerHasDSN))
        }
        guard !entries.isEmpty, job.envelope != nil else { return }
        context.collect(
            Settlement(
                message: job.message, envelope: envelope, body: job.body, site: plan.name, peer: job.peer,
                sourceAddress: job.sourceAddress, deliveryProtocol: plan.isLMTP ? .lmtp : .esmtp, at: now,
                entries: entries))
    }

    /// Stands in where the envelope was never read; nothing that is recorded is decided with it.
    private static let unread = Envelope(
        id: MessageID(high: 0, low: 0), arrival: .epoch, sender: nil, recipients: [], traits: .empty)
}

extension RecipientDecision {
    /// Whether an outcome will be recorded for it.
    fileprivate var isRecorded: Bool {
        switch self {
        case .delivered, .deferred, .inDoubt, .bounced, .expired: true
        case .returned, .unknown: false
        }
    }
}
