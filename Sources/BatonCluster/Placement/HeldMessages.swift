// Durable copies that wait until it is known whether another node has the message: in front of the queue.
import BatonCore
import BatonModel
import BatonPeer
import Synchronization

/// What `HeldMessages` tells about copies with a SUBMIT's mark. Any thread; called without a lock held.
package protocol HeldReporting: AnyObject, Sendable {
    func found(held: [(ref: StoredMessageRef, key: MessageKey, receiver: NodeRun)])
}

/// `JobReceiving` between spool and queue: passes everything on but held copies (PROTOCOL S6), which it keeps until `release` or
/// `withdraw`. Envelopes only; bodies are read back. Any thread; never blocks longer than what it passes on to.
///
/// Bounded: fresh held copies by the SUBMITs without answer, those found on disk by `PlacementLimits.held`; past that they go
/// on at once, and are counted as possible duplicates.
///
/// After a crash a held copy is found as held again. One that has an outcome was released before, and goes on.
package final class HeldMessages: JobReceiving {
    private struct State {
        var waiting: [StoredMessageRef: AcceptedMessage] = [:]
        weak var reporter: (any HeldReporting)?
    }

    private let state = Mutex(State())
    private let queue: any JobReceiving
    private let outcomes: any OutcomeRecording
    private let time: any TimeSource
    private let bound: Int
    private let counts: PlacementCounts

    package init(
        queue: any JobReceiving, outcomes: any OutcomeRecording, time: any TimeSource,
        bound: Int = PlacementLimits.held, counts: PlacementCounts = PlacementCounts()
    ) {
        self.queue = queue
        self.outcomes = outcomes
        self.time = time
        self.bound = bound
        self.counts = counts
    }

    package func bind(_ reporter: any HeldReporting) { state.withLock { $0.reporter = reporter } }

    package var count: Int { state.withLock { $0.waiting.count } }

    package func receive(_ messages: [AcceptedMessage]) {
        guard messages.contains(where: { $0.envelope.submit?.held != nil }) else { return queue.receive(messages) }
        var passed: [AcceptedMessage] = []
        var held: [(ref: StoredMessageRef, key: MessageKey, receiver: NodeRun)] = []
        var uncertain = 0
        let reporter: (any HeldReporting)? = state.withLock { state in
            for message in messages {
                guard let mark = message.envelope.submit, let receiver = mark.held else {
                    passed.append(message)
                    continue
                }
                let found = message.progress != nil
                let standing = standing(of: message)
                if standing == .unclear || standing == .held && found && state.waiting.count >= bound { uncertain += 1 }
                if standing != .held || found && state.waiting.count >= bound {
                    passed.append(message)
                    continue
                }
                // Nothing has happened to it: it is fresh once it is released. Its Reception may never have been recorded.
                state.waiting[message.ref] = AcceptedMessage(
                    ref: message.ref, envelope: message.envelope, body: nil, progress: nil, receptionRecorded: false)
                held.append(
                    (
                        message.ref, MessageKey(mark),
                        NodeRun(node: receiver.receiver, incarnation: receiver.incarnation)
                    ))
            }
            return state.reporter
        }
        if uncertain > 0 { counts.add(.maybeDuplicate, uncertain) }
        if !held.isEmpty { reporter?.found(held: held) }
        if !passed.isEmpty { queue.receive(passed) }
    }

    private enum Standing {
        case held
        /// An attempt or a notice is on record for a recipient that is left: it was released before the restart.
        case released
        /// Recipients are final, and nothing was tried for the others: it was released before, or the report of another copy has ended
        /// some, or a withdrawal was written in part. Delivered, and counted.
        case unclear
    }

    private func standing(of message: AcceptedMessage) -> Standing {
        guard let progress = message.progress else { return .held }
        if progress.contains(where: { $0.attempts > 0 || $0.doubts > 0 || $0.delayNoticeSent || $0.lastReply != nil }) {
            return .released
        }
        return progress.count == message.envelope.recipients.count ? .held : .unclear
    }

    /// The copy counts: into the queue. Unknown ones are ignored.
    package func release(_ refs: [StoredMessageRef]) {
        let messages = take(refs)
        if !messages.isEmpty { queue.receive(messages) }
    }

    /// Another copy counts: final for every recipient, without event and without report.
    package func withdraw(_ refs: [StoredMessageRef]) {
        let now = time.now()
        let withdrawn = take(refs).flatMap { message in
            message.envelope.recipients.indices.map { index in
                BatonModel.Outcome(
                    job: JobRef(message: message.ref, recipient: UInt32(index)), at: now, verdict: .withdrawn,
                    attempts: 0, reply: nil, peer: nil)
            }
        }
        if !withdrawn.isEmpty { outcomes.record(withdrawn) }
    }

    private func take(_ refs: [StoredMessageRef]) -> [AcceptedMessage] {
        state.withLock { state in refs.compactMap { state.waiting.removeValue(forKey: $0) } }
    }
}
