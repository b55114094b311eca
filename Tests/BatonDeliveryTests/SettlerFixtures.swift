// Settlements to test with, and a driver that keeps what the settler's state asks for.
import BatonCore
import BatonMail
import BatonModel
import NIOCore
import Testing

@testable import BatonDelivery

let settlerHost = ReportConfiguration(
    hostname: Array("relay1.example.net".utf8), expireAfter: .days(5))
let settlerStart = Instant(secondsSinceEpoch: 1_767_225_600)

func settlerBody(_ text: String = "From: a@example.org\r\nSubject: Hello\r\n\r\nBody text\r\n") -> StoredBody {
    let bytes = ByteBuffer(string: text)
    return .whole(MessageBody(bytes: bytes, traits: .measured(bytes)))
}

func settlerEnvelope(
    number: UInt64 = 1, sender: String? = "sender@example.org", flags: EnvelopeFlags = [],
    content: ReturnContent = .unspecified, notify: [NotifyFlags] = [[]], traits: BodyTraits? = nil
) -> Envelope {
    Envelope(
        id: MessageID(high: 0x019b_0000_0000_0000, low: number), arrival: settlerStart - .hours(1),
        sender: sender.flatMap { MailAddress($0) }, returnContent: content, flags: flags, senderClass: 77,
        recipients: notify.enumerated().compactMap { index, notify in
            MailAddress("user\(index)@example.com").map { EnvelopeRecipient(address: $0, notify: notify) }
        }, traits: traits ?? settlerBody().traits)
}

let settlerRefusal = SMTPReply(
    code: 550, status: EnhancedStatus(5, 1, 1), text: Array("User unknown".utf8), stage: .rcpt)
let settlerAcceptance = SMTPReply(code: 250, status: EnhancedStatus(2, 0, 0), text: Array("ok".utf8), stage: .finalDot)

func pulled(_ recipient: Int, attempts: UInt16 = 0) -> PulledRecipient {
    PulledRecipient(
        handle: JobHandle(slot: UInt32(recipient), generation: 1), recipient: UInt32(recipient), attempts: attempts)
}

func settlement(
    _ envelope: Envelope, _ decisions: [RecipientDecision], record: UInt32 = 0, body: StoredBody? = settlerBody(),
    withoutDSN: Bool = true, proto: DeliveryProtocol = .esmtp
) -> Settlement {
    Settlement(
        message: StoredMessageRef(segment: 1, record: record), envelope: envelope, body: body,
        site: Array("example.com".utf8),
        peer: PeerName(name: Array("mx.example.com".utf8), address: Array("192.0.2.9".utf8)),
        sourceAddress: Array("192.0.2.1".utf8), deliveryProtocol: proto, at: settlerStart,
        entries: decisions.enumerated().map { index, decision in
            var reply = settlerRefusal
            if case .delivered = decision { reply = settlerAcceptance }
            return SettlementEntry(
                recipient: pulled(index), decision: decision, reply: reply, relayedWithoutDSN: withoutDSN)
        })
}

/// Runs a `SettlerState` and keeps its actions by kind and in order.
struct SettlerRun {
    var state = SettlerState(configuration: settlerHost)
    var now = settlerStart
    var events: [MailEvent] = []
    var outcomes: [Outcome] = []
    var released: [JobHandle] = []
    var submissions: [ReportSubmission] = []
    var reads: [BodyRead] = []
    var wakes: [Instant] = []
    var tally = SettlerTally()
    /// Kinds of actions in the order performed: `e`, `o`, `r`.
    var order = ""

    mutating func send(_ event: SettlerState.Event) {
        var actions = ActionBuffer<SettlerState.Action>()
        state.receive(event, at: now, into: &actions)
        for action in actions.drain() {
            switch action {
            case .record(let batch):
                events += batch
                order += "e"
            case .outcomes(let batch):
                outcomes += batch
                order += "o"
            case .release(let batch):
                released += batch
                order += "r"
            case .submit(let batch): submissions += batch
            case .read(let batch): reads += batch
            case .wake(let at): wakes.append(at)
            case .tally(let more):
                tally.failureReports += more.failureReports
                tally.delayReports += more.delayReports
                tally.successReports += more.successReports
                tally.undeliverable += more.undeliverable
                tally.refusals += more.refusals
                tally.damaged += more.damaged
            }
        }
    }

    /// Takes the next submission and answers it.
    @discardableResult
    mutating func answer(_ outcome: SubmissionOutcome) throws -> ReportSubmission {
        try #require(!submissions.isEmpty)
        let submission = submissions.removeFirst()
        send(.submitted([SubmissionResult(token: submission.token, outcome: outcome)]))
        return submission
    }

    mutating func answerRead(_ outcome: BodyReadOutcome) throws {
        try #require(!reads.isEmpty)
        let read = reads.removeFirst()
        send(.read([BodyReadResult(token: read.token, outcome: outcome)]))
    }
}

let storedReport = StoredMessageRef(segment: 9, record: 9)
