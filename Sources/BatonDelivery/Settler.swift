// The shell of `SettlerState`: performs its actions on the partition's loop.
import BatonCore
import BatonMail
import BatonModel
import BatonRuntime
import Logging
import Metrics
import NIOCore

/// Makes decisions durable (invariant 1). One per data loop; `settle` on that loop, results from any thread.
///
/// Holds work only while its recipients' slots are taken; at most `SettlerLimits.inFlight` of it with bodies.
package final class Settler: Settling, SubmissionResultReceiving, BodyReadReceiving {
    /// A class, so that changing the state in place never copies it.
    private final class Core {
        var state: SettlerState
        /// Outstanding work when the gauge was last set.
        var gauged = 0

        init(_ configuration: ReportConfiguration) { self.state = SettlerState(configuration: configuration) }
    }

    private let loop: any EventLoop
    private let core: NIOLoopBoundBox<Core>
    private let time: any TimeSource
    private let submitter: any MessageSubmitting
    private let reader: any BodyReading
    private let events: any EventRecording
    private let outcomes: any OutcomeRecording
    private let source: any WorkSource
    private let logger: Logger

    private let failureReports = Counter(label: "baton_reports_total", dimensions: [("kind", "failure")])
    private let delayReports = Counter(label: "baton_reports_total", dimensions: [("kind", "delay")])
    private let successReports = Counter(label: "baton_reports_total", dimensions: [("kind", "success")])
    private let undeliverable = Counter(label: "baton_reports_undeliverable_total")
    private let refusals = Counter(label: "baton_reports_refused_total")
    private let damaged = Counter(label: "baton_settler_damaged_total")
    private let waiting: Gauge

    /// Any thread. `source` is the partition of `loop`; `name` tells loops apart in the gauge `baton_reports_waiting`.
    package init(
        loop: any EventLoop, name: String, configuration: ReportConfiguration, time: any TimeSource,
        submitter: any MessageSubmitting, reader: any BodyReading, events: any EventRecording,
        outcomes: any OutcomeRecording, source: any WorkSource, logger: Logger
    ) {
        self.loop = loop
        self.core = NIOLoopBoundBox.makeBoxSendingValue(Core(configuration), eventLoop: loop)
        self.time = time
        self.submitter = submitter
        self.reader = reader
        self.events = events
        self.outcomes = outcomes
        self.source = source
        self.logger = logger
        self.waiting = Gauge(label: "baton_reports_waiting", dimensions: [("loop", name)])
    }

    /// Reports and read-backs not finished. On the loop. A stop in good order waits for 0: until then their recipients'
    /// outcomes are not recorded, and a restart would try those again.
    package var outstanding: Int { core.value.state.outstanding }

    package func settle(_ settlements: [Settlement]) { receive(.settled(settlements)) }

    package func settle(_ finals: [FinalWithoutAttempt]) { receive(.finals(finals)) }

    package func settle(_ notices: [DelayNoticeDue]) { receive(.notices(notices)) }

    // MARK: Results. On the lane's and the readers' threads; at most `SettlerLimits.inFlight` of them are ever under way

    package func submissionsFinished(_ results: [SubmissionResult]) {
        loop.execute { self.receive(.submitted(results)) }
    }

    /// Reports are submitted whole.
    package func fragmentsWritten(_ results: [FragmentResult]) {}

    package func bodiesRead(_ results: [BodyReadResult]) {
        loop.execute { self.receive(.read(results)) }
    }

    // MARK: On the loop

    private func receive(_ event: SettlerState.Event) {
        let core = core.value
        var actions = ActionBuffer<SettlerState.Action>()
        core.state.receive(event, at: time.now(), into: &actions)
        for action in actions.drain() { perform(action) }
        let outstanding = core.state.outstanding
        if outstanding != core.gauged {
            core.gauged = outstanding
            waiting.record(outstanding)
        }
    }

    private func perform(_ action: SettlerState.Action) {
        switch action {
        case .record(let batch): events.record(batch)
        case .outcomes(let batch): outcomes.record(batch)
        case .release(let handles): source.settle(handles)
        case .submit(let reports):
            submitter.submit(
                reports.map {
                    Submission(envelope: $0.envelope, body: .whole($0.body), token: $0.token, sink: self)
                })
        case .read(let reads): reader.read(reads, for: self)
        case .wake(let at):
            let wait = max(0, (at - time.now()).nanoseconds)
            loop.scheduleTask(in: .nanoseconds(wait)) { self.receive(.retryDue) }
        case .tally(let tally): count(tally)
        }
    }

    private func count(_ tally: SettlerTally) {
        if tally.failureReports > 0 { failureReports.increment(by: tally.failureReports) }
        if tally.delayReports > 0 { delayReports.increment(by: tally.delayReports) }
        if tally.successReports > 0 { successReports.increment(by: tally.successReports) }
        if tally.undeliverable > 0 { undeliverable.increment(by: tally.undeliverable) }
        if tally.refusals > 0 {
            refusals.increment(by: tally.refusals)
            logger.warning(
                "the spool refuses reports; they are kept and tried again",
                metadata: ["reports.outstanding": "\(core.value.state.outstanding)"])
        }
        if tally.damaged > 0 {
            damaged.increment(by: tally.damaged)
            logger.error(
                "recipients cannot be ended: their message is damaged and quarantined",
                metadata: ["recipients": "\(tally.damaged)"])
        }
    }
}
