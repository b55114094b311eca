// The settler's shell on an embedded loop: ports called in order, retries by its timer.
import BatonCore
import BatonMail
import BatonModel
import BatonTestKit
import Logging
import NIOCore
import NIOEmbedded
import Synchronization
import Testing

@testable import BatonDelivery

/// Every port of the settler in one: notes the calls in order, keeps submissions until told.
private final class Ports: MessageSubmitting, BodyReading, EventRecording, OutcomeRecording, WorkSource {
    struct Log {
        var calls: [String] = []
        var submissions: [Submission] = []
    }
    let log = Mutex(Log())

    func submit(_ batch: [Submission]) {
        log.withLock {
            $0.submissions += batch; $0.calls.append("submit")
        }
    }
    func openStream(sink: any SubmissionResultReceiving) -> FragmentStreamID { FragmentStreamID(value: 0) }
    func append(_ bytes: ByteBuffer, to stream: FragmentStreamID) {}
    func abandon(_ stream: FragmentStreamID) {}
    var admission: StorageAdmission { .open }

    func read(_ requests: [BodyRead], for receiver: any BodyReadReceiving) {
        log.withLock { $0.calls.append("read") }
        receiver.bodiesRead(
            requests.map { BodyReadResult(token: $0.token, outcome: .message(settlerEnvelope(), settlerBody())) })
    }

    func record(_ events: [MailEvent]) { log.withLock { $0.calls.append("events \(events.count)") } }
    func record(rejections: [RejectionEvent]) {}
    var recorded: UInt64 { 0 }
    var synced: UInt64 { 0 }
    var isFull: Bool { false }

    func record(_ outcomes: [Outcome]) { log.withLock { $0.calls.append("outcomes \(outcomes.count)") } }

    func assign(_ destination: DestinationID, to site: SiteID, until: Instant) {}
    func deferDestination(_ destination: DestinationID, reply: SMTPReply) {}
    func deferSite(_ site: SiteID, reply: SMTPReply) {}
    func failDestination(_ destination: DestinationID, reply: SMTPReply) {}
    func holdDestination(_ destination: DestinationID, until: Instant) {}
    func pull(_ site: SiteID, transactions: Int, recipients: Int) -> [Transaction] { [] }
    func decide(
        _ results: [(JobHandle, AttemptResult)], envelope: Envelope, at now: Instant
    ) -> [RecipientDecision] { [] }
    func settle(_ handles: [JobHandle]) { log.withLock { $0.calls.append("settle \(handles.count)") } }
    func ready(_ site: SiteID) -> Int { 0 }

    func takeCalls() -> [String] {
        log.withLock { log in
            defer { log.calls = [] }
            return log.calls
        }
    }

    func answer(_ outcome: SubmissionOutcome) {
        let all = log.withLock { log in
            defer { log.submissions = [] }
            return log.submissions
        }
        for one in all { one.sink.submissionsFinished([SubmissionResult(token: one.token, outcome: outcome)]) }
    }
}

@Test func settlerShellCallsPortsOutOfOrder() throws {
    let loop = EmbeddedEventLoop()
    let ports = Ports()
    let time = SimulatedTime(settlerStart)
    let settler = Settler(
        loop: loop, name: "0", configuration: settlerHost, time: time, submitter: ports, reader: ports, events: ports,
        outcomes: ports, source: ports, logger: Logger(label: "test"))
    settler.settle([settlement(settlerEnvelope(notify: [[], []]), [.delivered, .bounced])])
    #expect(ports.takeCalls() == ["events 1", "outcomes 1", "settle 1", "submit"])
    ports.answer(.refused(.diskFull))
    loop.run()
    #expect(ports.takeCalls().isEmpty)
    #expect(settler.outstanding == 1)
    loop.advanceTime(by: .milliseconds(999))
    #expect(ports.takeCalls().isEmpty)
    loop.advanceTime(by: .milliseconds(2))
    loop.run()
    #expect(ports.takeCalls() == ["read", "submit"])
    ports.answer(.durable(storedReport))
    loop.run()
    #expect(ports.takeCalls() == ["events 1", "outcomes 1", "settle 1"])
    #expect(settler.outstanding == 0)
}
