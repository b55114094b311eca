// A server session under a test's hand: text in, replies and messages out, no sockets and no clock but the test's.
import BatonCore
import BatonModel
import BatonSMTP
import NIOCore
import Testing

/// Drives a `ServerSession` as the ingress handler does.
struct ServerDialogue {
    var session: ServerSession
    var now = Instant(secondsSinceEpoch: 1_767_225_600)
    var input = ByteBuffer()
    var output = ServerOutput()
    /// Answer of the spool to each message; nil leaves messages without one.
    var spool: SubmissionOutcome? = .durable(StoredMessageRef(segment: 0, record: 0))
    var messages: [(message: ReceivedMessage, content: [UInt8])] = []
    var rejections: [RejectionEvent] = []
    var streamed: [UInt8] = []
    var streamsOpened = 0
    var abandoned = 0
    var isClosed = false
    var lingers = false

    init(
        limits: ServerLimits = ServerLimits(), mayRelay: Bool = true, normalize: Bool = false,
        service: ListenerService = .relay, greets: Bool = true
    ) {
        let settings = ServerSettings(
            hostname: "relay.test", service: service, normalizesBareLF: normalize, limits: limits,
            postmaster: MailAddress("boss@relay.test") ?? Self.noAddress, greetingDelay: .milliseconds(1))
        session = ServerSession(
            settings: settings,
            client: ServerClient(address: Array("192.0.2.1".utf8), mayRelay: mayRelay, sessionID: 7), seed: 1, at: now)
        if greets {
            now = now + .milliseconds(1)
            session.deadlineReached(at: now, into: &output)
            _ = takeReplies()
        }
    }

    private static var noAddress: MailAddress { preconditionFailure("boss@relay.test is an address") }

    /// The replies to `octets`, which arrive together.
    mutating func send(_ octets: [UInt8]) -> String {
        input.writeBytes(octets)
        run()
        return takeReplies()
    }

    mutating func send(_ text: String) -> String { send(Array(text.utf8)) }

    /// The replies to `octets`, which arrive one by one.
    mutating func sendByteByByte(_ octets: [UInt8]) -> String {
        var replies = ""
        for octet in octets { replies += send([octet]) }
        return replies
    }

    mutating func run() {
        while true {
            session.receive(&input, at: now, into: &output)
            guard perform(), let spool, session.awaitsVerdict else { return }
            session.submissionFinished(spool, at: now, into: &output)
            _ = perform()
        }
    }

    /// Whether a message was submitted.
    mutating func perform() -> Bool {
        var actions: [ServerAction] = []
        swap(&actions, &output.actions)
        var submitted = false
        for action in actions {
            switch action {
            case .openStream(let message):
                streamsOpened += 1
                streamed = Array(message.piece.readableBytesView.dropFirst(IncomingBody.headroom))
            case .fragment(let piece): streamed += Array(piece.readableBytesView)
            case .submit(let message):
                submitted = true
                if message.isStreamed {
                    messages.append((message, streamed + Array(message.piece.readableBytesView)))
                } else {
                    messages.append(
                        (message, Array(session.takeContent().readableBytesView.dropFirst(IncomingBody.headroom))))
                }
            case .abandonStream: abandoned += 1
            case .reject(let event): rejections.append(event)
            case .close(let lingering):
                isClosed = true
                lingers = lingering
            }
        }
        return submitted
    }

    mutating func takeReplies() -> String {
        let text = output.replies.readString(length: output.replies.readableBytes) ?? ""
        output.replies.clear()
        return text
    }

    mutating func advance(_ span: TimeSpan) -> String {
        now = now + span
        session.deadlineReached(at: now, into: &output)
        _ = perform()
        return takeReplies()
    }

    /// EHLO, done.
    mutating func greet() { _ = send("EHLO client.test\r\n") }

    /// A transaction up to the 354.
    mutating func openData() {
        greet()
        _ = send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
        let reply = send("DATA\r\n")
        #expect(reply.hasPrefix("354"), "\(reply)")
    }
}

/// Codes of replies, one per line: `250-` lines of EHLO too.
func codes(_ replies: String) -> [String] {
    replies.split(separator: "\r\n").map { String($0.prefix(3)) }
}

/// A header and a body that nobody objects to.
let plainMessage = "Subject: x\r\n\r\nHello\r\n"
