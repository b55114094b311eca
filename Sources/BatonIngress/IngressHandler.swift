// One client connection: a ServerSession behind a channel, its timer, its back-pressure.
import BatonCore
import BatonModel
import BatonSMTP
import NIOCore

/// Feeds octets to the session and performs its actions. Replies are gathered and flushed once per read. All on the channel's loop.
///
/// Stops reading while `Limits.unwrittenPerSession` octets of a stream are unanswered, while the client does not take its
/// replies (the channel's write watermark), and while `inputMax` octets wait for the spool's verdict.
final class IngressHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// Octets of pipelined commands that may wait behind a final dot.
    static let inputMax = 64 * 1024
    /// Octets of memory that a buffer of an idle session keeps.
    static let keptMax = 4096
    /// How long a connection that was ended by us may go on sending before it is cut.
    static let linger = TimeSpan.seconds(2)
    /// The timer looks at least this often, so that deadlines that come closer need no new timer.
    static let timerSpan = TimeSpan.seconds(30)
    /// How soon it looks again for a client that has spoken before the greeting and was not read yet.
    static let earlySpan = TimeSpan.milliseconds(1)

    private let home: IngressLoop
    private let origin: MessageBuilder.Origin
    private let network: [UInt8]
    private let refusal: ServerReply?
    private var session: ServerSession
    private var context: ChannelHandlerContext?
    private var input = ByteBuffer()
    private var output: ServerOutput
    private var builder = MessageBuilder()
    private var stream: FragmentStreamID?
    private var streamAppended = 0
    private var streamWritten = 0
    /// Octets submitted and not yet decided.
    private var submitted = 0
    private var booked = 0
    private var timer: Scheduled<Void>?
    private var timerAt = Instant.distantFuture
    private var lingersUntil: Instant?
    private var readPending = false
    private var pausedSince: Instant?
    private var isClosed = false

    /// `refusal`: the connection was not admitted; it is told so and closed.
    init(
        home: IngressLoop, settings: ServerSettings, policy: RelayPolicy, address: IPAddress?, sessionID: UInt64,
        refusal: ServerReply?
    ) {
        let text = address.map { Array($0.description.utf8) } ?? []
        let network = address?.clientNetwork ?? []
        self.home = home
        self.network = network
        self.refusal = refusal
        self.origin = MessageBuilder.Origin(
            settings: settings, address: address, addressText: text, senderClass: SenderClass(client: address),
            sessionID: sessionID)
        self.session = ServerSession(
            settings: settings,
            client: ServerClient(address: text, mayRelay: policy.mayRelay(address), sessionID: sessionID),
            seed: home.nextSeed(), at: home.time.now())
        self.output = ServerOutput(replies: ByteBufferAllocator().buffer(capacity: 256))
    }

    var pendingID: MessageID? { session.pendingID }

    // MARK: Channel

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        if context.channel.isActive { begin(context) }
    }

    func channelActive(context: ChannelHandlerContext) {
        begin(context)
        context.fireChannelActive()
    }

    private var hasBegun = false

    private func begin(_ context: ChannelHandlerContext) {
        guard !hasBegun else { return }
        hasBegun = true
        if let refusal {
            output.replies.writeStaticString(refusal.line)
            output.replies.writeStaticString("\r\n")
            flush()
            isClosed = true
            context.close(promise: nil)
            return
        }
        home.add(self, session: origin.sessionID)
        if home.isStopping { session.shutdown(into: &output) }
        perform()
        flush()
        // Reading begins before the greeting: what comes now is an offence.
        readMore()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var received = Self.unwrapInboundIn(data)
        guard !isClosed, lingersUntil == nil, refusal == nil else { return }
        home.tally.bytes += received.readableBytes
        if input.readableBytes == 0 { input = received } else { input.writeBuffer(&received) }
        receive()
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        readPending = false
        flush()
        trimInput()
        readMore()
        context.fireChannelReadComplete()
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) { readMore() }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if let event = event as? ChannelEvent, event == .inputClosed {
            if lingersUntil != nil {
                cut()
            } else if !isClosed {
                session.inputEnded(into: &output)
                perform()
            }
        }
        context.fireUserInboundEventTriggered(event)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { cut() }

    func channelInactive(context: ChannelHandlerContext) {
        isClosed = true
        if refusal == nil, hasBegun {
            session.connectionLost(into: &output)
            perform()
            book(0)
        }
        timer?.cancel()
        timer = nil
        self.context = nil
        context.fireChannelInactive()
    }

    /// Comes for every handler that was added, even where the channel never became active.
    func handlerRemoved(context: ChannelHandlerContext) {
        guard refusal == nil else { return }
        home.admission.release(network)
        home.remove(session: origin.sessionID)
    }

    // MARK: Session

    private func receive() {
        // Whatever comes first, a MAIL may stand behind it; only octets of a body cannot be followed by one that is let in.
        switch session.state {
        case .unidentified, .ready, .transaction, .betweenChunks: session.gate = home.gate
        case .awaitingGreeting, .data, .chunk, .awaitingVerdict, .closed: break
        }
        session.receive(&input, at: home.time.now(), into: &output)
        perform()
    }

    func submissionFinished(_ outcome: SubmissionOutcome) {
        submitted = 0
        session.submissionFinished(outcome, at: home.time.now(), into: &output)
        perform()
        if input.readableBytes > 0 || session.hasInputEnded, !isClosed, lingersUntil == nil {
            receive()
            trimInput()
        }
        flush()
        readMore()
    }

    /// The receive buffer goes back to the allocator instead of waiting with a session that has less than a command in it.
    private func trimInput() {
        if input.readableBytes == 0 {
            input = ByteBuffer()
        } else if input.readableBytes < CommandParser.lineOctetsMax, input.storageCapacity > Self.keptMax {
            input = ByteBuffer(buffer: input)
        }
    }

    /// Octets of memory for what has arrived or is on its way out, bodies not included.
    var bufferedMemory: Int { input.storageCapacity + output.replies.storageCapacity }

    func fragmentWritten(_ result: FragmentResult) {
        streamWritten = max(streamWritten, result.written)
        if let refusal = result.refusal {
            session.refuseBody(.storage(refusal), into: &output)
        }
        perform()
        readMore()
    }

    func shutdown() {
        session.shutdown(into: &output)
        perform()
        flush()
    }

    func terminate() {
        session.terminate(into: &output)
        perform()
        flush()
        cut()
    }

    private func perform() {
        while !output.actions.isEmpty {
            var actions: [ServerAction] = []
            swap(&actions, &output.actions)
            for action in actions { perform(action) }
        }
        account()
        armTimer()
    }

    private func perform(_ action: ServerAction) {
        switch action {
        case .openStream(let message):
            let opened = home.submitter.openStream(sink: home)
            stream = opened
            streamAppended = 0
            streamWritten = 0
            builder = MessageBuilder()
            home.bind(opened, to: self)
            append(builder.first(message, origin: origin, scratch: &home.scratch), to: opened)
        case .fragment(let piece):
            if let stream { append(builder.next(piece), to: stream) }
        case .submit(let message): submit(message)
        case .abandonStream:
            if let stream {
                home.unbind(stream)
                home.submitter.abandon(stream)
            }
            forgetStream()
        case .reject(let event): home.reject(event)
        case .close(let lingering): end(lingering: lingering)
        }
    }

    private func submit(_ message: ReceivedMessage) {
        let envelope: Envelope
        let body: SubmittedBody
        if message.isStreamed, let stream {
            append(builder.next(message.piece), to: stream)
            envelope = builder.envelope(message, origin: origin)
            body = .fragments(stream)
            home.unbind(stream)
            submitted = streamAppended - streamWritten
            forgetStream()
        } else {
            let (made, bytes) = MessageBuilder.whole(
                message, content: session.takeContent(), origin: origin, scratch: &home.scratch)
            envelope = made
            body = .whole(bytes)
            submitted = bytes.capacity
        }
        home.submit(Submission(envelope: envelope, body: body, token: origin.sessionID, sink: home))
    }

    private func append(_ pieces: [ByteBuffer], to stream: FragmentStreamID) {
        for piece in pieces {
            streamAppended += piece.readableBytes
            home.submitter.append(piece, to: stream)
        }
    }

    private func forgetStream() {
        stream = nil
        streamAppended = 0
        streamWritten = 0
    }

    // MARK: Bounds

    private var unwritten: Int { streamAppended - streamWritten }

    /// What waits behind a final dot.
    private var waiting: Int { session.awaitsVerdict && input.readableBytes > 0 ? input.storageCapacity : 0 }

    /// Books what is held; over the budget, the message under way is given up and its memory freed.
    private func account() {
        let fits = book(session.heldBytes + unwritten + submitted + waiting)
        if !fits, session.keepsBody {
            home.tally.overMemory += 1
            session.refuseBody(.memory, into: &output)
            for action in output.actions { perform(action) }
            output.actions.removeAll(keepingCapacity: true)
            _ = book(session.heldBytes + unwritten + submitted + waiting)
        }
    }

    @discardableResult
    private func book(_ held: Int) -> Bool {
        let delta = held - booked
        guard delta != 0 else { return true }
        booked = held
        let fits = home.admission.book(delta)
        return fits || delta < 0
    }

    private func readMore() {
        guard let context, !readPending else { return }
        if lingersUntil == nil {
            guard !isClosed, input.readableBytes < Self.inputMax, context.channel.isWritable else { return }
            if unwritten + session.heldBytes >= Limits.unwrittenPerSession {
                // Our own disk holds the client up: its clocks stand still.
                if pausedSince == nil { pausedSince = home.time.now() }
                return
            }
            if let since = pausedSince {
                pausedSince = nil
                session.readingResumed(after: home.time.now() - since)
            }
        }
        readPending = true
        context.read()
    }

    private func flush() {
        guard let context, output.replies.readableBytes > 0 else { return }
        context.writeAndFlush(Self.wrapOutboundOut(output.replies), promise: nil)
        if output.replies.storageCapacity > Self.keptMax {
            output.replies = ByteBufferAllocator().buffer(capacity: 256)
        } else {
            output.replies.clear()
        }
    }

    // MARK: Time and end

    private func armTimer() {
        guard let context, !isClosed || lingersUntil != nil else { return }
        let wanted = lingersUntil ?? session.deadline
        guard wanted < timerAt, wanted != .distantFuture else { return }
        let now = home.time.now()
        schedule(at: min(wanted, now + Self.timerSpan), now, context)
    }

    private func schedule(at instant: Instant, _ now: Instant, _ context: ChannelHandlerContext) {
        timer?.cancel()
        timerAt = instant
        let delay = TimeAmount.nanoseconds(max(0, (instant - now).nanoseconds))
        timer = context.eventLoop.assumeIsolated().scheduleTask(in: delay) { self.timerRan() }
    }

    private func timerRan() {
        timer = nil
        timerAt = .distantFuture
        let now = home.time.now()
        if let lingersUntil {
            if now >= lingersUntil { return cut() }
        } else if session.state == .awaitingGreeting, let context, context.hasUnreadInput {
            // An early talker; the read that is under way will say so.
            return schedule(at: now + Self.earlySpan, now, context)
        } else if pausedSince == nil {
            session.deadlineReached(at: now, into: &output)
            perform()
            flush()
            readMore()
        }
        armAgain(now)
    }

    /// The timer has run and something is still to come; a paused session is looked at again later.
    private func armAgain(_ now: Instant) {
        guard timer == nil else { return }
        if pausedSince != nil, let context, !isClosed {
            schedule(at: now + Self.timerSpan, now, context)
        } else {
            armTimer()
        }
    }

    private func end(lingering: Bool) {
        guard let context, !isClosed, lingersUntil == nil else { return }
        flush()
        input = ByteBuffer()
        guard lingering else {
            isClosed = true
            context.close(promise: nil)
            return
        }
        lingersUntil = home.time.now() + Self.linger
        timerAt = .distantFuture
        context.close(mode: .output, promise: nil)
        readMore()
    }

    private func cut() {
        guard let context else { return }
        isClosed = true
        context.close(promise: nil)
    }
}
