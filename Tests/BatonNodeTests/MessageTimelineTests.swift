// What the API says of a message: parts of it that meet on one node, each with its own recipients.
import BatonCore
import BatonModel
import Testing

@testable import BatonNode
@testable import BatonQueue

@Test func partsOfAMessageShareTheirRecipients() throws {
    let id = MessageID(high: 7, low: 9)
    let recipients = try ["a@x.test", "b@x.test", "c@x.test"].map {
        EnvelopeRecipient(address: try #require(MailAddress($0)))
    }
    let whole = Envelope(id: id, arrival: .epoch, sender: nil, recipients: recipients, traits: .empty)
    let places = [StoredMessageRef(segment: 1, record: 1), StoredMessageRef(segment: 2, record: 5)]
    let parts = [places[0]: whole.part([0, 2], submit: nil), places[1]: whole.part([1], submit: nil)]
    func row(_ place: Int, _ recipient: UInt32, _ state: QueueJobState, attempts: UInt16) -> QueueRow {
        QueueRow(
            message: id, ref: places[place], recipient: recipient, envelope: nil, domain: Domain("x.test"), site: [],
            state: state, attempts: attempts, arrival: .epoch, due: nil, lastReply: nil)
    }
    let rows = [row(0, 0, .deferred, attempts: 3), row(0, 1, .ready, attempts: 0), row(1, 0, .suspended, attempts: 1)]
    let report = MessageTimeline(id: id, node: "n1", rows: rows, envelopes: parts, events: []).report()
    #expect(
        report.recipients.map { "\($0.recipient) \($0.state) \($0.attemptsMade)" } == [
            "a@x.test deferred 3", "c@x.test ready 0", "b@x.test suspended 1",
        ])
}
