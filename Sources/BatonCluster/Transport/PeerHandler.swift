// One connection to a peer: a PeerSession behind a channel, its timer, its writes, its batches for the delegate.
import BatonCore
import BatonPeer
import BatonTLS
import Metrics
import NIOCore

/// What a connection begins with.
struct PeerConnection {
    let id: PeerSessionID
    let role: PeerRole
    /// `node.id` of the dialed node; nil on an accepted connection.
    let name: String?
    let dialer: PeerDialer?
}

/// Feeds octets to the session and performs its actions: frames go to the delegate once per read, writes are flushed once per read
/// or batch. All on the channel's loop. Moves to the bulk loop with its session when an accepted connection turns out to be a bulk
/// channel (`PeerTransport.move`).
final class PeerHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    /// What goes along when a connection changes its loop.
    struct Luggage {
        let connection: PeerConnection
        let session: PeerSession
        /// Not performed yet.
        let actions: [PeerAction]
        /// Of the handler before this one; nil in clear.
        let tls: TLSConnection?
    }

    let transport: PeerTransport
    private let tls: TLSHandler?
    let connection: PeerConnection
    var session: PeerSession
    private var actions = ActionBuffer<PeerAction>()
    private var context: ChannelHandlerContext?
    private var timer: Scheduled<Void>?
    private var link: PeerLink?
    private var inbox: [ReceivedFrame] = []
    var unsent: [(PeerMessage, SendRefusal)] = []
    private var output = ByteBuffer()
    private var hasOutput = false
    private var isStalled = false
    private var hasBegun = false
    /// The session is over; the channel may linger.
    private var isOver = false
    private var hasMoved = false
    private var reason: CloseReason?
    /// Since they were counted last.
    var sentOctets = 0
    var receivedOctets = 0
    var counted = (sent: 0, received: 0)

    /// `tls`: the handler before this one; nil in clear.
    init(_ connection: PeerConnection, transport: PeerTransport, tls: TLSHandler?) {
        self.tls = tls
        self.connection = connection
        self.transport = transport
        self.session = PeerSession(
            settings: transport.settings, role: connection.role, nonce: transport.freshNonce())
    }

    /// On the new loop.
    init(_ luggage: Luggage, transport: PeerTransport, tls: TLSHandler?) {
        self.tls = tls
        self.connection = luggage.connection
        self.transport = transport
        self.session = luggage.session
        for action in luggage.actions { actions.append(action) }
        self.hasBegun = true
    }

    // MARK: Channel

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        transport.added(self, connection.id, on: context.eventLoop)
        if context.channel.isActive { begin() }
    }

    func channelActive(context: ChannelHandlerContext) {
        begin()
        context.fireChannelActive()
    }

    private func begin() {
        guard !isOver else { return }
        if hasBegun {
            perform()
            finish()
        } else if tls == nil {
            greet(certified: nil)
        } else if timer == nil {
            // The session's own bound begins with HELLO; this one is for TLS below it.
            timer = after(transport.settings.timing.handshake) { $0.reject(.violation(.handshakeTimeout)) }
        }
    }

    private func greet(certified: [NodeID]?) {
        hasBegun = true
        timer?.cancel()
        timer = nil
        feed(.connected(certified: certified))
        finish()
    }

    /// TLS is up; the certificate comes from the CA and is in date.
    private func established(_ names: [[UInt8]]) {
        guard !hasBegun, !isOver else { return }
        if let name = connection.name, !names.contains(Array(name.utf8)) {
            reject(.tls(names.isEmpty ? .noName : .wrongName))
        } else if names.isEmpty {
            reject(.tls(.noName))
        } else {
            greet(certified: names.map { NodeID(value: StableHash.of($0)) })
        }
    }

    /// Ends a connection that has no session to say so.
    private func reject(_ why: PeerRejection) {
        guard !isOver, let context else { return }
        isOver = true
        timer?.cancel()
        transport.rejected(why, connection)
        linger(context)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var octets = Self.unwrapInboundIn(data)
        guard hasBegun, !isOver, !hasMoved else { return }
        receivedOctets += octets.readableBytes
        // What is held by reference must not keep a buffer alive that is many times as large.
        if octets.readableBytes < octets.storageCapacity / 4 { octets = ByteBuffer(buffer: octets) }
        session.receive(.received(octets), at: transport.time.now(), into: &actions)
        if isOnAnotherLoop(than: context.eventLoop) { return move(context) }
        perform()
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        finish()
        context.fireChannelReadComplete()
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        guard !context.channel.isWritable, !isOver else { return }
        // The watermark is above all that the peer's window lets this side send: it reads nothing.
        transport.rejected(.unread, connection)
        reason = .lost(midFrame: false)
        feed(.closed)
        finish()
        context.close(promise: nil)
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if let event = event as? TLSEvent {
            switch event {
            case .established(let names): established(names)
            }
        } else if let event = event as? ChannelEvent, event == .inputClosed, !hasMoved {
            lost()
            context.close(promise: nil)
        }
        context.fireUserInboundEventTriggered(event)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        guard !hasMoved else { return }
        if let failure = error as? TLSFailure, failure != .truncated || !hasBegun {
            if !hasBegun { return reject(.tls(failure)) }
            transport.rejected(.tls(failure), connection)
        }
        lost()
        context.close(promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) {
        lost()
        context.fireChannelInactive()
    }

    /// Comes for every handler that was added, even where the channel never became active.
    func handlerRemoved(context: ChannelHandlerContext) {
        guard !hasMoved else { return }
        lost()
        self.context = nil
        if transport.end(connection.id), link == nil {
            connection.dialer?.ended(reason, ofAttempt: true)
        }
    }

    private func lost() {
        guard !isOver, !hasMoved else { return }
        feed(.closed)
        finish()
    }

    // MARK: Told by the transport, on the loop

    /// What other threads have sent and released since the last time.
    func drain() {
        guard let link else { return }
        let batch = link.take()
        guard !isOver else { return }
        let now = transport.time.now()
        if batch.released.frames > 0 { session.receive(.released(batch.released), at: now, into: &actions) }
        for message in batch.messages { session.receive(.send(message), at: now, into: &actions) }
        perform()
        finish()
    }

    func leave(_ why: GoodbyeReason) {
        guard !isOver, !hasMoved else { return }
        feed(.leave(why))
        finish()
    }

    func replaced() {
        guard !isOver, !hasMoved else { return }
        feed(.replaced)
        finish()
    }

    /// Without a word more.
    func cut() {
        guard !hasMoved else { return }
        lost()
        context?.close(promise: nil)
    }

    // MARK: Session

    private func feed(_ event: PeerEvent) {
        session.receive(event, at: transport.time.now(), into: &actions)
        perform()
    }

    private func perform() {
        while !actions.isEmpty {
            for action in actions.drain() { perform(action) }
        }
    }

    private func perform(_ action: PeerAction) {
        switch action {
        case .write(let octets): write(octets)
        case .deliver(let message, let cost):
            inbox.append(ReceivedFrame(message: message, cost: cost, session: connection.id))
        case .identify(let identity):
            switch transport.admit(connection.id, identity) {
            case .admitted: session.receive(.admitted, at: transport.time.now(), into: &actions)
            case .refused(let violation):
                session.receive(.refused(violation), at: transport.time.now(), into: &actions)
            }
        case .opened(let identity): opened(identity)
        case .sendRefused(let message, let refusal): unsent.append((message, refusal))
        case .peerLeaves(let why):
            deliver()
            if let link { transport.delegate?.leaves(link.identity, why) }
        case .setTimer(let due): setTimer(due)
        case .close(let why): close(why)
        }
    }

    private func opened(_ identity: PeerIdentity) {
        guard let context else { return }
        let window = max(1, session.peerWindow.octets + transport.configuration.unread)
        _ = context.channel.setOption(
            .writeBufferWaterMark, value: ChannelOptions.Types.WriteBufferWaterMark(low: window / 2, high: window))
        let link = PeerLink(
            id: connection.id, identity: identity, limit: transport.settings.queue,
            window: transport.settings.window(of: identity.channel), loop: context.eventLoop, handler: self)
        self.link = link
        transport.opened(link, by: connection)
        transport.delegate?.connected(identity)
    }

    private func write(_ octets: ByteBuffer) {
        sentOctets += octets.readableBytes
        hasOutput = true
        if octets.readableBytes <= TransportLimits.joinedOctets {
            output.writeImmutableBuffer(octets)
        } else {
            writeOutput()
            context?.write(Self.wrapOutboundOut(octets), promise: nil)
        }
    }

    private func writeOutput() {
        guard output.readableBytes > 0 else { return }
        context?.write(Self.wrapOutboundOut(output), promise: nil)
        output = ByteBuffer()
    }

    private func flush() {
        guard hasOutput else { return }
        hasOutput = false
        writeOutput()
        context?.flush()
    }

    /// Hands over what arrived, and gives back at once what the consumer does not release itself.
    private func deliver() {
        guard let link, !inbox.isEmpty else { return }
        var frames: [ReceivedFrame] = []
        swap(&frames, &inbox)
        var done = FrameCost.zero
        for frame in frames where !frame.isReleasedByConsumer {
            done.octets += frame.cost.octets
            done.frames += frame.cost.frames
        }
        transport.delegate?.received(frames, from: link.identity)
        if done.frames > 0, !isOver {
            session.receive(.released(done), at: transport.time.now(), into: &actions)
        }
    }

    /// The end of a read or a batch.
    private func finish() {
        guard !hasMoved else { return }
        deliver()
        if !isOver, let released = link?.takeReleased(), released.frames > 0 {
            session.receive(.released(released), at: transport.time.now(), into: &actions)
        }
        perform()
        flush()
        guard let link else { return }
        // Stored, not computed: another module's computed property would copy the whole session.
        let queued = session.queued
        link.queued(queued)
        let metrics = transport.metrics.of(link.identity.channel)
        let isStalled = queued.frames > 0
        if isStalled, !self.isStalled { metrics.stalls.increment() }
        self.isStalled = isStalled
        count(metrics)
        report(link)
    }

    // MARK: Timer

    private func setTimer(_ due: Instant) {
        timer?.cancel()
        timer = after(due - transport.time.now()) { handler in
            handler.feed(.timer)
            handler.finish()
        }
    }

    private func after(_ span: TimeSpan, _ body: @escaping (PeerHandler) -> Void) -> Scheduled<Void>? {
        context?.eventLoop.assumeIsolated().scheduleTask(in: .nanoseconds(max(0, span.nanoseconds))) {
            self.timer = nil
            body(self)
        }
    }

    // MARK: The end

    private func close(_ why: CloseReason) {
        guard !isOver else { return }
        deliver()
        isOver = true
        reason = why
        timer?.cancel()
        timer = nil
        transport.judged(why, connection, session.identity)
        if let link {
            link.close()
            transport.closed(link, why)
            transport.delegate?.disconnected(link.identity, why)
        }
        guard let context else { return }
        flush()
        switch why {
        case .violation(.silent), .left, .leftAlone, .lost, .error: context.close(promise: nil)
        case .violation, .replaced: linger(context)
        }
    }

    /// Lets the peer read the ERROR: a close with octets unread would reset the connection and take it away.
    private func linger(_ context: ChannelHandlerContext) {
        context.close(mode: .output, promise: nil)
        timer = after(TransportLimits.linger) { $0.context?.close(promise: nil) }
    }

    // MARK: Moving

    private func isOnAnotherLoop(than loop: any EventLoop) -> Bool {
        guard case .acceptor = connection.role, let identity = session.identity, !session.isClosed else { return false }
        return transport.loop(of: identity.channel) !== loop
    }

    /// The peer has sent HELLO and waits for ours, which is among the actions: nothing is under way either way.
    private func move(_ context: ChannelHandlerContext) {
        hasMoved = true
        timer?.cancel()
        timer = nil
        transport.move(
            context,
            Luggage(connection: connection, session: session, actions: actions.drain(), tls: tls?.detach()))
    }
}
