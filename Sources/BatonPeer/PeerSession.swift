// One connection between two nodes: handshake, credit, heartbeat and end, without I/O (docs/PEER_PROTOCOL.md).
import BatonCore
import NIOCore

/// Greets, proves that the other end is fresh and who it says it is, then passes messages on until either side ends it.
///
/// Pure; its shell is a channel handler on the control loop or a data loop. Whatever the peer does, a session ends in exactly one
/// `.close`, and nothing follows it. Memory: what arrives is bounded by the receive window, what waits to go by the queue, what
/// is under way by the peer's window; before the peer is known, a single frame of `PeerLimits.helloOctets`. It survives no crash
/// and needs not: what was not answered is unknown, and the machines above ask again.
package struct PeerSession: StateMachine {
    enum Phase: Equatable {
        case idle
        /// The dialer's own HELLO is out.
        case awaitingHello
        /// The acceptor's HELLO is out.
        case awaitingReady
        /// The echo is right; the roster is asked.
        case admission
        case open
        case closed
    }

    let settings: PeerSettings
    let role: PeerRole
    let nonce: UInt64
    var phase = Phase.idle
    var certified: [NodeID]?
    /// Set by the peer's HELLO.
    var hello: Hello?
    package internal(set) var identity: PeerIdentity?

    var decoder = FrameDecoder()
    var sendWindow = SendWindow(size: .zero)
    var receiveWindow = ReceiveWindow(size: .zero)
    /// Messages without credit, in the order in which they were sent.
    var queue = CircularBuffer<EncodedFrame>()
    /// What waits for credit.
    package internal(set) var queued = FrameCost.zero
    /// Of all types, since the beginning.
    package private(set) var frames = (sent: 0, received: 0)

    /// When the shell's timer is due; nil when none is set.
    var timerDue: Instant?
    var handshakeDue = Instant.distantFuture
    var heartbeat = Heartbeat()
    var farewell = Farewell()

    /// `nonce` is fresh for every connection, random and not 0; the settings are within `PeerLimits`.
    package init(settings: PeerSettings, role: PeerRole, nonce: UInt64) {
        precondition(nonce != 0 && settings.isValid, "no peer would take this HELLO")
        self.settings = settings
        self.role = role
        self.nonce = nonce
    }

    package var isOpen: Bool { phase == .open }
    package var isClosed: Bool { phase == .closed }
    /// From the last PING to its PONG.
    package var roundTrip: TimeSpan? { heartbeat.roundTrip }
    /// What the peer takes before it has let go of any; nothing before the handshake is over.
    package var peerWindow: FrameCost { sendWindow.size }
    /// What is delivered and not released.
    package var heldCost: FrameCost { receiveWindow.held }

    package mutating func receive(_ event: PeerEvent, at now: Instant, into actions: inout ActionBuffer<PeerAction>) {
        guard phase != .closed else {
            // A caller that has not heard of the end yet.
            if case .send(let message) = event { actions.append(.sendRefused(message, .notOpen)) }
            return
        }
        switch event {
        case .connected(let certified): connected(certified, at: now, into: &actions)
        case .received(let octets): received(octets, at: now, into: &actions)
        case .timer: timerFired(at: now, into: &actions)
        case .admitted: admitted(at: now, into: &actions)
        case .refused(let violation):
            guard phase == .admission else { return }
            fail(violation, into: &actions)
        case .send(let message): send(message, into: &actions)
        case .released(let cost): released(cost, into: &actions)
        case .leave(let reason): leave(reason, at: now, into: &actions)
        case .replaced:
            if phase != .idle { writeNow(ErrorReport(.duplicateSession), into: &actions) }
            end(.replaced, into: &actions)
        case .closed:
            end(farewell.isComplete ? .left : .lost(midFrame: decoder.isMidFrame), into: &actions)
        }
        if phase != .closed { arm(into: &actions) }
    }

    // MARK: Reading

    private mutating func received(_ octets: ByteBuffer, at now: Instant, into actions: inout ActionBuffer<PeerAction>)
    {
        guard phase != .idle else { return }
        heartbeat.heard(at: now)
        decoder.feed(octets)
        readFrames(at: now, into: &actions)
    }

    /// Reads what is there. Stops for the roster, and at the end.
    mutating func readFrames(at now: Instant, into actions: inout ActionBuffer<PeerAction>) {
        do throws(PeerViolation) {
            while phase != .closed {
                if phase == .admission { return try judgeEarlyOctets() }
                switch try decoder.next() {
                case .needMore: return
                case .header(let header): try judge(header)
                case .frame(let frame):
                    try handle(try PeerMessage(reading: frame), cost: frame.cost, at: now, into: &actions)
                }
            }
        } catch {
            fail(error, into: &actions)
        }
    }

    /// What may have come while the roster is asked: the acceptor sends nothing before it has read READY, and the dialer may be
    /// sending already, within the window that it was offered.
    private func judgeEarlyOctets() throws(PeerViolation) {
        switch role {
        case .dialer: guard decoder.bufferedOctets == 0 else { throw .unexpected }
        case .acceptor:
            let limit = receiveWindow.size.octets + PeerLimits.helloOctets
            guard decoder.bufferedOctets <= limit else { throw .creditOverrun }
        }
    }

    /// Whether a frame may come now, before memory is spent on it.
    private mutating func judge(_ header: FrameHeader) throws(PeerViolation) {
        switch phase {
        case .awaitingHello:
            guard header.type == .hello || header.type == .error else { throw .unexpected }
        case .awaitingReady:
            guard header.type == .ready || header.type == .error else { throw .unexpected }
        case .open:
            guard header.type != .hello, header.type != .ready else { throw .unexpected }
            guard header.type.usesCredit else { return }
            guard header.type.channel == identity?.channel else { throw .wrongChannel }
            guard !farewell.isHeard else { throw .afterGoodbye }
            try receiveWindow.use(header.cost)
        case .idle, .admission, .closed: throw .unexpected
        }
    }

    private mutating func handle(
        _ message: PeerMessage, cost: FrameCost, at now: Instant, into actions: inout ActionBuffer<PeerAction>
    ) throws(PeerViolation) {
        frames.received += 1
        switch message {
        case .hello(let hello): try receivedHello(hello, into: &actions)
        case .ready(let ready): try receivedReady(ready, into: &actions)
        case .ping(let ping):
            try heartbeat.pinged(at: now, every: settings.timing.pingInterval)
            writeNow(Pong(ping.beat), into: &actions)
        case .pong(let pong): try heartbeat.answered(pong.beat, at: now)
        case .credit(let credit):
            try sendWindow.grant(credit.cost)
            flush(into: &actions)
        case .goodbye(let goodbye): try receivedGoodbye(goodbye, at: now, into: &actions)
        case .error(let report): end(.error(code: report.code, text: report.text), into: &actions)
        case .submit, .submitted, .ask, .create, .created, .append, .durable, .outcome, .recorded, .fetch, .chunk,
            .seal,
            .sealed, .finished, .unlinked, .promiseAsked, .promise, .quota, .query, .answer:
            guard let sender = identity?.run else { throw .unexpected }
            if let violation = message.violation(from: sender) { throw violation }
            if case .submit(let submit) = message, submit.isCompressed, !canCompress { throw .reservedBits }
            actions.append(.deliver(message, cost))
        }
    }

    private var canCompress: Bool { identity?.features.contains(.lz4) ?? false }

    // MARK: Sending

    private mutating func send(_ message: PeerMessage, into actions: inout ActionBuffer<PeerAction>) {
        guard phase == .open, let identity else { return actions.append(.sendRefused(message, .notOpen)) }
        guard farewell.reason == nil else { return actions.append(.sendRefused(message, .leaving)) }
        var isLegal = message.type.channel == identity.channel && message.violation(from: settings.run) == nil
        if case .submit(let submit) = message, submit.isCompressed, !canCompress { isLegal = false }
        if case .fetch(let fetch) = message, fetch.part == .chunk, !identity.features.contains(.chunks) {
            isLegal = false
        }
        guard isLegal, let frame = EncodedFrame(message) else {
            return actions.append(.sendRefused(message, .invalid))
        }
        if queue.isEmpty, sendWindow.take(frame.cost) { return write(frame, into: &actions) }
        guard queued.frames < settings.queue.frames, frame.octets <= settings.queue.octets - queued.octets else {
            return actions.append(.sendRefused(message, .full))
        }
        queued.frames += 1
        queued.octets += frame.octets
        queue.append(frame)
    }

    /// Sends what has credit, in order; a small frame never overtakes a large one.
    mutating func flush(into actions: inout ActionBuffer<PeerAction>) {
        while let frame = queue.first, sendWindow.take(frame.cost) {
            queue.removeFirst()
            queued.frames -= 1
            queued.octets -= frame.octets
            write(frame, into: &actions)
        }
        sayGoodbyeIfDue(into: &actions)
    }

    private mutating func write(_ frame: EncodedFrame, into actions: inout ActionBuffer<PeerAction>) {
        frames.sent += 1
        actions.append(.write(frame.head))
        if frame.tail.readableBytes > 0 { actions.append(.write(frame.tail)) }
    }

    /// Frames of the connection itself use no credit and wait for nothing.
    mutating func writeNow(_ payload: some FramePayload, into actions: inout ActionBuffer<PeerAction>) {
        guard let frame = EncodedFrame(payload) else { return }
        write(frame, into: &actions)
    }

    private mutating func released(_ cost: FrameCost, into actions: inout ActionBuffer<PeerAction>) {
        guard phase == .open, let given = receiveWindow.release(cost), !farewell.isHeard else { return }
        writeNow(Credit(given), into: &actions)
    }

    // MARK: The end

    mutating func fail(_ violation: PeerViolation, into actions: inout ActionBuffer<PeerAction>) {
        // A dead peer is not told: the octets would only wait in the transport.
        if violation != .silent { writeNow(ErrorReport(violation), into: &actions) }
        end(.violation(violation), into: &actions)
    }

    mutating func end(_ reason: CloseReason, into actions: inout ActionBuffer<PeerAction>) {
        phase = .closed
        decoder = FrameDecoder()
        queue = CircularBuffer()
        queued = .zero
        timerDue = nil
        actions.append(.close(reason))
    }
}
