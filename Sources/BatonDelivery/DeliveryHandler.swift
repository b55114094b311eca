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
    private let clock: PoolClock
    private var context: ChannelHandlerContext?
    /// The pool has let go of this connection: nothing is reported any more.
    private var isDetached = false
    private var mayDot: (() -> Bool)?
    private var awaitsWritable = false
    private var actions = ActionBuffer<ClientAction>()

    init(session: ClientSession, pool: ConnectionPool, id: ConnectionID, time: any TimeSource, clock: PoolClock) {
        self.session = session
        self.pool = pool
        self.id = id
        self.time = time
        self.clock = clock
    }

    var localAddress: SocketAddress? { context?.channel.localAddress }
    var remoteAddress: SocketAddress? { context?.channel.remoteAddress }

    // MARK: The pool's verbs

    /// `mayDot`: asked before each step until the final dot is out; nil where it always may.
    func begin(_ transaction: ClientTransaction, mayDot: (() -> Bool)?) {
        self.mayDot = mayDot
        process(.begin(transaction))
    }
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

    /// Performs the session's actions in their order. Writes go out in one flush before the pool is told anything, and the
    /// session tells before it closes: closing makes the channel inactive at once, and what came after that was not heard.
    private func process(_ event: ClientEvent) {
        // Whatever comes could lead to the final dot: not without a fresh promise (PROTOCOL P1).
        if let mayDot, session.isBeforeDot, !mayDot() { session.receive(.forbidden, at: time.now(), into: &actions) }
        session.receive(event, at: time.now(), into: &actions)
        if session.deadline < clock.due {
            clock.due = session.deadline
            pool.assumeIsolated { $0.deadlineMoved() }
        }
        guard !actions.isEmpty else { return }
        var unflushed = false
        var wrote = false
        for action in actions.drain() {
            if case .write(let bytes) = action {
                context?.write(wrapOutboundOut(bytes), promise: nil)
                unflushed = true
                wrote = true
                continue
            }
            if unflushed { context?.flush() }
            unflushed = false
            switch action {
            case .write: break
            case .greeted: tell(.greeted)
            case .refused(let reply): tell(.refused(reply))
            case .finished(let end): tell(.finished(end))
            case .wantFragment(let index): tell(.wantFragment(index))
            case .close: context?.close(promise: nil)
            }
        }
        if unflushed { context?.flush() }
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
