// All sessions of one event loop, and their one road to the spool and back.
import BatonCore
import BatonModel
import BatonSMTP
import Logging
import NIOCore
import Synchronization

/// Gathers what sessions of a loop submit during a tick into one batch, and brings the spool's results back with one crossing per
/// batch. Everything but `submissionsFinished` and `fragmentsWritten` runs on the loop.
///
/// Bounds: a session has at most one submission out and `Limits.unwrittenPerSession` octets unanswered, so batches and results
/// are bounded by the connections admitted.
package final class IngressLoop: SubmissionResultReceiving, @unchecked Sendable {
    // @unchecked: the mutable properties are touched on `loop` alone, which each entry checks; `arrived` is under its mutex.
    package let loop: any EventLoop
    let submitter: any MessageSubmitting
    let events: any EventRecording
    let admission: Admission
    let time: any TimeSource
    let logger: Logger
    private let metrics: IngressMetrics

    private var sessions: [UInt64: IngressHandler] = [:]
    private var streams: [FragmentStreamID: IngressHandler] = [:]
    private var submissions: [Submission] = []
    private var rejections: [RejectionEvent] = []
    private var flushScheduled = false
    private var seeds: SplitMix64
    private var emptied: EventLoopPromise<Void>?
    private(set) var isStopping = false
    var tally = IngressTally()
    /// Shared by the handlers of the loop: the fields that a message gets are made here.
    var scratch = ByteBufferAllocator().buffer(capacity: 1024)

    private struct Arrived {
        var results: [SubmissionResult] = []
        var fragments: [FragmentResult] = []
        var wakePending = false
    }

    private let arrived = Mutex(Arrived())

    init(
        loop: any EventLoop, submitter: any MessageSubmitting, events: any EventRecording, admission: Admission,
        time: any TimeSource, seed: UInt64, logger: Logger
    ) {
        self.loop = loop
        self.submitter = submitter
        self.events = events
        self.admission = admission
        self.time = time
        self.seeds = SplitMix64(seed: seed)
        self.logger = logger
        self.metrics = IngressMetrics()
    }

    // MARK: Sessions

    func nextSeed() -> UInt64 {
        loop.assertInEventLoop()
        return seeds.next()
    }

    func add(_ handler: IngressHandler, session: UInt64) {
        loop.assertInEventLoop()
        sessions[session] = handler
        tally.connections += 1
        scheduleFlush()
    }

    func remove(session: UInt64) {
        loop.assertInEventLoop()
        sessions[session] = nil
        scheduleFlush()
        if sessions.isEmpty, let emptied {
            self.emptied = nil
            emptied.succeed()
        }
    }

    func bind(_ stream: FragmentStreamID, to handler: IngressHandler) { streams[stream] = handler }
    func unbind(_ stream: FragmentStreamID) { streams[stream] = nil }

    /// Why MAIL is refused now; nil if it is not.
    var gate: ServerReply? {
        switch submitter.admission {
        case .refused(let refusal): return .refusal(refusal)
        case .open: break
        }
        if events.isFull { return .diskFull }
        return admission.hasMemoryForMessage ? nil : .memoryFull
    }

    // MARK: To the spool, once per tick

    func submit(_ submission: Submission) {
        submissions.append(submission)
        scheduleFlush()
    }

    func reject(_ event: RejectionEvent) {
        rejections.append(event)
        tally.rejections += 1
        scheduleFlush()
    }

    func scheduleFlush() {
        guard !flushScheduled else { return }
        flushScheduled = true
        loop.execute { self.flush() }
    }

    private func flush() {
        flushScheduled = false
        if !submissions.isEmpty {
            var batch: [Submission] = []
            swap(&batch, &submissions)
            submitter.submit(batch)
        }
        if !rejections.isEmpty {
            var batch: [RejectionEvent] = []
            swap(&batch, &rejections)
            events.record(rejections: batch)
        }
        if !tally.isEmpty {
            metrics.add(tally)
            tally = IngressTally()
            metrics.show(connections: admission.connections, memory: admission.memoryInUse)
        }
    }

    // MARK: Back from the spool

    package func submissionsFinished(_ results: [SubmissionResult]) {
        let wake = arrived.withLock { arrived in
            arrived.results.append(contentsOf: results)
            defer { arrived.wakePending = true }
            return !arrived.wakePending
        }
        if wake { loop.execute { self.deliver() } }
    }

    package func fragmentsWritten(_ results: [FragmentResult]) {
        let wake = arrived.withLock { arrived in
            arrived.fragments.append(contentsOf: results)
            defer { arrived.wakePending = true }
            return !arrived.wakePending
        }
        if wake { loop.execute { self.deliver() } }
    }

    private func deliver() {
        let batch = arrived.withLock { arrived in
            var batch = Arrived()
            swap(&batch, &arrived)
            return batch
        }
        for result in batch.fragments { streams[result.stream]?.fragmentWritten(result) }
        for result in batch.results {
            if case .durable = result.outcome { tally.messages += 1 } else { tally.refusedMessages += 1 }
            // A session that has gone leaves its message with the spool: it is delivered all the same.
            sessions[result.token]?.submissionFinished(result.outcome)
        }
        scheduleFlush()
    }

    // MARK: Stop

    /// Idle sessions get 421, those in DATA or BDAT may finish. The future completes when none is left.
    func shutdown() -> EventLoopFuture<Void> {
        loop.assertInEventLoop()
        isStopping = true
        guard !sessions.isEmpty else { return loop.makeSucceededVoidFuture() }
        let promise = emptied ?? loop.makePromise(of: Void.self)
        emptied = promise
        for handler in Array(sessions.values) { handler.shutdown() }
        return promise.futureResult
    }

    /// The grace is over: 421 and close for all. Returns the ids whose final dot stays unanswered.
    func terminate() -> [MessageID] {
        loop.assertInEventLoop()
        var unanswered: [MessageID] = []
        for handler in Array(sessions.values) {
            if let id = handler.pendingID { unanswered.append(id) }
            handler.terminate()
        }
        return unanswered
    }
}
