// The server side of SMTP as a value: octets, results and deadlines in; replies and actions out (RFC 5321, 2920, 3030).
import BatonCore
import BatonModel
import CBatonSystem
import NIOCore

/// Who is at the other end, as far as the session has to know.
package struct ServerClient: Sendable {
    /// In text, without brackets.
    package let address: [UInt8]
    /// Whether the relay policy takes mail for other hosts from it.
    package let mayRelay: Bool
    package let sessionID: UInt64

    package init(address: [UInt8], mayRelay: Bool, sessionID: UInt64) {
        self.address = address
        self.mayRelay = mayRelay
        self.sessionID = sessionID
    }
}

/// A message that the client has handed over, or whose first piece it has (`ServerAction.openStream`).
package struct ReceivedMessage: Sendable {
    package let id: MessageID
    package let helo: [UInt8]
    package let isExtended: Bool
    package let sender: MailAddress?
    package let parameters: MailParameters
    package let recipients: [EnvelopeRecipient]
    package let header: HeaderWatch
    /// Without CRC32C and without what the shell adds in front. Of an opened stream: so far.
    package let traits: BodyTraits
    /// Of a stream: the first piece, behind `IncomingBody.headroom` octets, or the last one. A whole message is fetched with
    /// `ServerSession.takeContent`, so that nobody else holds its buffer and the added fields can be written into it.
    package let piece: ByteBuffer
    package let isStreamed: Bool
    package let startedAt: Instant
}

/// What the shell has to do, in this order.
package enum ServerAction: Sendable {
    /// The message is large: make its added fields, open a stream, append both.
    case openStream(ReceivedMessage)
    /// The next piece of the open stream.
    case fragment(ByteBuffer)
    /// Make it durable, then call `submissionFinished`. The session reads no further until then.
    case submit(ReceivedMessage)
    /// The open stream is void.
    case abandonStream
    case reject(RejectionEvent)
    /// Close once the replies are out. `lingering`: the client may still be sending, so that closing at once would reset the
    /// connection and take the last reply with it.
    case close(lingering: Bool)
}

/// Replies and actions of a step. Reused, so that a step allocates nothing.
package struct ServerOutput: Sendable {
    package var replies: ByteBuffer
    package var actions: [ServerAction] = []

    package init(replies: ByteBuffer = ByteBuffer()) {
        self.replies = replies
    }
}

/// One connection's protocol state. The shell calls it on its loop and performs what comes out.
///
/// Bounds: a command line of `CommandParser.lineOctetsMax`, `limits.recipients` in a transaction, one piece of a body. Every
/// state but `awaitingVerdict` has a deadline (`deadline`), which the shell watches with one timer.
/// TLS and AUTH will be states of their own between greeting and transaction; their commands answer 502 until then.
package struct ServerSession: Sendable {
    /// The payloads of the states stand beside it (`draft`, `body`), since a body inside an enum would be copied at each step.
    package enum State: Equatable, Sendable {
        case awaitingGreeting
        /// Before EHLO or HELO.
        case unidentified
        case ready
        /// MAIL was accepted.
        case transaction
        case data
        /// The announced octets of a BDAT command are coming.
        case chunk
        /// Between two BDAT commands of a message.
        case betweenChunks
        /// The message is with the spool.
        case awaitingVerdict
        case closed
    }

    /// A transaction in the making.
    struct Draft: Sendable {
        var sender: MailAddress?
        var parameters = MailParameters()
        var recipients: [EnvelopeRecipient] = []
        /// RCPT commands that were refused.
        var refused = 0
        /// Hashes of the recipients, once there are too many to look at each.
        private var hashes: Set<Int> = []
        private static let searchedMax = 8

        /// Adds the recipient; false if the same address with the same DSN parameters is there already.
        mutating func add(_ recipient: EnvelopeRecipient) -> Bool {
            if recipients.count < Self.searchedMax {
                guard !recipients.contains(recipient) else { return false }
            } else {
                if hashes.isEmpty { for known in recipients { hashes.insert(known.hashValue) } }
                guard hashes.insert(recipient.hashValue).inserted || !recipients.contains(recipient) else {
                    return false
                }
            }
            recipients.append(recipient)
            return true
        }

        /// Whether `add` would say no.
        func holds(_ recipient: EnvelopeRecipient) -> Bool {
            (hashes.isEmpty || hashes.contains(recipient.hashValue)) && recipients.contains(recipient)
        }
    }

    package internal(set) var state = State.awaitingGreeting
    /// When `deadlineReached` wants to be called; `.distantFuture` while the spool decides.
    package internal(set) var deadline: Instant
    /// Set: MAIL is refused with it (storage, memory, event log). The shell sets it before each `receive`.
    package var gate: ServerReply?

    let settings: ServerSettings
    let client: ServerClient
    var ids: MessageIDGenerator

    var helo: [UInt8] = []
    var isExtended = false
    var draft = Draft()
    var errors = 0
    var messages = 0
    var commands = 0
    /// Commands since the last accepted message that bring none nearer.
    var idleCommands = 0
    /// Octets of the unfinished command line that are known to hold no line end.
    var searchedTo = 0
    var skipsLine = false
    /// `shutdown` was called: no new transaction, no further command.
    var isStopping = false
    /// The client has ended its side: what it sent before is still answered.
    package internal(set) var hasInputEnded = false

    var id = MessageID(high: 0, low: 0)
    var framing = DataFraming(.dotted, normalizesBareLF: false)
    var body = IncomingBody()
    /// A whole message until the shell takes it.
    var content = ByteBuffer()
    var failure: BodyFailure?
    var streamOpened = false
    var chunkRemaining = 0
    var chunkSize = 0
    var chunkIsLast = false
    /// The octets of this BDAT are read and dropped; the reply is this one.
    var chunkRefusal: ServerReply?
    /// Where a refused BDAT leaves the session.
    var stateBeforeChunk = State.ready
    var bodyStartedAt = Instant.epoch
    var bodyOctets = 0

    package init(settings: ServerSettings, client: ServerClient, seed: UInt64, at now: Instant) {
        self.settings = settings
        self.client = client
        self.ids = MessageIDGenerator(seed: seed)
        self.deadline = now + settings.greetingDelay
    }

    /// Octets of the body held here, for the memory budget.
    package var heldBytes: Int { body.heldBytes + content.capacity }

    /// The whole message of `ServerAction.submit`, behind `IncomingBody.headroom` octets. Once per such action.
    package mutating func takeContent() -> ByteBuffer {
        var taken = ByteBuffer()
        swap(&taken, &content)
        return taken
    }

    /// Whether the client waits for the spool.
    package var awaitsVerdict: Bool { state == .awaitingVerdict }

    /// The id of the message that the spool decides about, for the log of a stop that came too early.
    package var pendingID: MessageID? { state == .awaitingVerdict ? id : nil }

    // MARK: Events

    /// Takes what can be taken from the front of `input`; leaves an unfinished line, and everything while the spool decides.
    package mutating func receive(_ input: inout ByteBuffer, at now: Instant, into output: inout ServerOutput) {
        var goesOn = true
        while goesOn {
            switch state {
            case .awaitingGreeting:
                if input.readableBytes > 0 { end(.beforeGreeting, &output) }
                goesOn = false
            case .unidentified, .ready, .transaction, .betweenChunks:
                if isStopping, state != .betweenChunks {
                    end(.shuttingDown, &output)
                } else {
                    goesOn = readCommand(&input, at: now, &output)
                }
            case .data: goesOn = readData(&input, at: now, &output)
            case .chunk: goesOn = readChunk(&input, at: now, &output)
            case .awaitingVerdict: goesOn = false
            case .closed:
                input.clear()
                goesOn = false
            }
        }
        if hasInputEnded, state != .awaitingVerdict { close(&output, lingering: false) }
    }

    /// The spool's answer to `ServerAction.submit`. 250 is written here and nowhere else, and only for `.durable`. The shell
    /// calls `receive` next, for what waited meanwhile.
    package mutating func submissionFinished(
        _ outcome: SubmissionOutcome, at now: Instant, into output: inout ServerOutput
    ) {
        guard state == .awaitingVerdict else { return }
        state = .ready
        deadline = now + settings.limits.commandTimeout
        switch outcome {
        case .durable:
            messages += 1
            errors = 0
            idleCommands = 0
            output.replies.writeStaticString("250 2.0.0 Ok: queued as ")
            id.forEachCharacter { output.replies.writeInteger($0) }
            output.replies.writeStaticString("\r\n")
        case .refused(let refusal):
            let reply = ServerReply.refusal(refusal)
            noteRejection(reply, stage: .finalDot, recipient: nil, at: now, &output)
            if case .stopping = refusal {
                end(reply, &output)
            } else {
                answer(reply, &output)
            }
        }
        draft = Draft()
        if isStopping, state != .closed { end(.shuttingDown, &output) }
    }

    /// Reading had to stop for our own reasons for so long: the client's clocks stand still meanwhile.
    package mutating func readingResumed(after pause: TimeSpan) {
        guard state == .data || state == .chunk else { return }
        bodyStartedAt = bodyStartedAt + pause
        deadline = deadline + pause
    }

    /// The body cannot be kept (memory budget, storage): the rest is read and dropped, and the client hears why at the end.
    package mutating func refuseBody(_ failure: BodyFailure, into output: inout ServerOutput) {
        switch state {
        case .data, .chunk, .betweenChunks: fail(failure, &output)
        case .awaitingGreeting, .unidentified, .ready, .transaction, .awaitingVerdict, .closed: break
        }
    }

    /// Whether octets of a body are being kept, so that refusing it would free memory.
    package var keepsBody: Bool {
        switch state {
        case .data, .chunk, .betweenChunks: failure == nil
        case .awaitingGreeting, .unidentified, .ready, .transaction, .awaitingVerdict, .closed: false
        }
    }

    /// The timer ran. Does nothing before `deadline`.
    package mutating func deadlineReached(at now: Instant, into output: inout ServerOutput) {
        guard now >= deadline else { return }
        switch state {
        case .awaitingGreeting:
            output.replies.writeBytes(settings.greeting)
            state = .unidentified
            deadline = now + settings.limits.commandTimeout
            if isStopping { end(.shuttingDown, &output) }
        case .unidentified, .ready, .transaction, .betweenChunks, .data, .chunk: end(.timedOut, &output)
        case .awaitingVerdict, .closed: break
        }
    }

    /// The node stops: idle sessions end now, those in DATA or BDAT after their reply.
    package mutating func shutdown(into output: inout ServerOutput) {
        isStopping = true
        switch state {
        case .awaitingGreeting, .unidentified, .ready, .transaction: end(.shuttingDown, &output)
        case .data, .chunk, .betweenChunks, .awaitingVerdict, .closed: break
        }
    }

    /// The grace is over.
    package mutating func terminate(into output: inout ServerOutput) {
        if state != .closed { end(.shuttingDown, &output) }
    }

    /// The client has sent its last octet (end of file). What waits for its verdict still gets it, and so do whole commands
    /// behind it.
    package mutating func inputEnded(into output: inout ServerOutput) {
        hasInputEnded = true
        if state != .awaitingVerdict { close(&output, lingering: false) }
    }

    /// The connection is gone. A message that is with the spool stays there.
    package mutating func connectionLost(into output: inout ServerOutput) { close(&output, lingering: false) }

    // MARK: Ways to answer

    /// Writes a reply; a 5xx counts, and the one too many becomes 421 and the end.
    mutating func answer(_ reply: ServerReply, _ output: inout ServerOutput) {
        if reply.classDigit == 5 {
            errors += 1
            if errors >= settings.limits.errorsPerConnection, settings.limits.errorsPerConnection > 0 {
                end(.tooManyErrors, &output)
                return
            }
        }
        reply.write(into: &output.replies)
    }

    /// A last reply, then the end.
    mutating func end(_ reply: ServerReply, _ output: inout ServerOutput, lingering: Bool = true) {
        reply.write(into: &output.replies)
        close(&output, lingering: lingering)
    }

    mutating func close(_ output: inout ServerOutput, lingering: Bool) {
        guard state != .closed else { return }
        dropBody(&output)
        state = .closed
        deadline = .distantFuture
        output.actions.append(.close(lingering: lingering))
    }

    /// Forgets the transaction (RSET, EHLO, after a reply to data).
    mutating func resetTransaction(_ output: inout ServerOutput) {
        dropBody(&output)
        draft = Draft()
        if state != .closed { state = helo.isEmpty ? .unidentified : .ready }
    }

    mutating func dropBody(_ output: inout ServerOutput) {
        if streamOpened, state != .awaitingVerdict { output.actions.append(.abandonStream) }
        streamOpened = false
        body.discard()
        failure = nil
    }

    mutating func noteRejection(
        _ reply: ServerReply, stage: ReplyStage, recipient: MailAddress?, at now: Instant, _ output: inout ServerOutput
    ) {
        output.actions.append(
            .reject(
                RejectionEvent(
                    at: now, sender: draft.sender?.bytes ?? [], recipient: recipient?.bytes ?? [],
                    client: client.address,
                    sessionID: client.sessionID, reply: reply.asReply(stage: stage))))
    }
}
