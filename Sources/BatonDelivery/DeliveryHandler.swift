// The shell of a client session: a channel handler that turns bytes into events and actions into writes.
import BatonCore
import BatonModel
import BatonSMTP
import NIOCore

/// One outgoing connection. Lives on its channel's loop, as its pool does; the pool keeps it in a `NIOLoopBound`.
///
/// Writes of one event go out in one flush. The pool is told last, when the session is at rest, so that it may begin the next
/// transaction in the same call.
final class DeliveryHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private enum News {
        case greeted
        case refused(SMTPReply)
        case finished(TransactionEnd)
        case wantFragment(UInt32)
    }

    private(set) var session: ClientSession
    private let pool: ConnectionPool
    private let id: ConnectionID
    private let time: any TimeSource
    private var context: ChannelHandlerContext?
    /// The pool has let go of this connection: nothing is reported any more.
    private var isDetached = false
    private var awaitsWritable = false
    private var actions = ActionBuffer<ClientAction>()

    init(session: ClientSession, pool: ConnectionPool, id: ConnectionID, time: any TimeSource) {
        self.session = session
        self.pool = pool
        self.id = id
        self.time = time
    }

    var localAddress: SocketAddress? { context?.channel.localAddress }
    var remoteAddress: SocketAddress? { context?.channel.remoteAddress }

    // MARK: The pool's verbs

    func begin(_ transaction: ClientTransaction) { process(.begin(transaction)) }
    func quit() { process(.quit) }
    func give(_ event: ClientEvent) { process(event) }

    func detach() { isDetached = true }

    /// The pool needs the connection no more: QUIT where the session still can, closed in any case soon.
    func leave(within span: TimeSpan) {
        isDetached = true
        guard session.isReady, let channel = context?.channel else { return }
        process(.quit)
        let timer = channel.eventLoop.scheduleTask(in: .nanoseconds(span.nanoseconds)) { channel.close(promise: nil) }
        channel.closeFuture.whenComplete { _ in timer.cancel() }
    }

    /// Called at each tick.
    func checkDeadline(at now: Instant) { if now >= session.deadline { process(.tick) } }

    /// Ends the connection at once; what runs ends as lost or in doubt.
    func abort() {
        process(.closed)
        context?.close(promise: nil)
    }

    // MARK: Channel

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        if context.channel.isActive { process(.connected) }
    }

    func handlerRemoved(context: ChannelHandlerContext) { self.context = nil }

    func channelActive(context: ChannelHandlerContext) { process(.connected) }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) { process(.received(unwrapInboundIn(data))) }

    func channelInactive(context: ChannelHandlerContext) {
        process(.closed)
        guard !isDetached else { return }
        isDetached = true
        let id = id
        pool.assumeIsolated { $0.connectionClosed(id) }
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        guard awaitsWritable, context.channel.isWritable else { return }
        awaitsWritable = false
        process(.writable)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

    // MARK: Steps

    private func process(_ event: ClientEvent) {
        session.receive(event, at: time.now(), into: &actions)
        guard !actions.isEmpty else { return }
        var news: News?
        var wrote = false
        var closes = false
        for action in actions.drain() {
            switch action {
            case .write(let bytes):
                context?.write(wrapOutboundOut(bytes), promise: nil)
                wrote = true
            // A session says at most one of these for one event.
            case .greeted: news = .greeted
            case .refused(let reply): news = .refused(reply)
            case .finished(let end): news = .finished(end)
            case .wantFragment(let index): news = .wantFragment(index)
            case .close: closes = true
            }
        }
        if wrote { context?.flush() }
        // News first: closing makes the channel inactive at once, and what is told after that is not heard.
        if let news { tell(news) }
        if closes { context?.close(promise: nil) }
        if wrote, session.isStreaming { askWritable() }
    }

    /// After a fragment: go on at once if the transport took it, else when it has.
    private func askWritable() {
        guard let context else { return }
        if context.channel.isWritable { process(.writable) } else { awaitsWritable = true }
    }

    private func tell(_ news: News) {
        guard !isDetached else { return }
        let id = id
        switch news {
        case .greeted: pool.assumeIsolated { $0.connectionGreeted(id) }
        case .refused(let reply):
            isDetached = true
            pool.assumeIsolated { $0.connectionRefused(id, reply) }
        case .finished(let end): pool.assumeIsolated { $0.transactionEnded(id, end) }
        case .wantFragment(let index): pool.assumeIsolated { $0.fragmentWanted(id, index) }
        }
    }
}
