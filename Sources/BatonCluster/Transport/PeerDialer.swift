// Keeps one channel to one peer dialed.
import BatonCore
import BatonPeer
import Metrics
import NIOCore
import NIOPosix

/// Dials while no session of either side stands, and waits by `Backoff` between attempts. All on the channel's loop.
///
/// The node with the higher id lets the other one dial first (`PeerLimits.retryFirst`), so that two nodes that learn of each other
/// at the same time rarely dial at the same time; where they do, the roster keeps one.
final class PeerDialer: @unchecked Sendable {
    // @unchecked: all but constants is touched on `loop` only.
    let node: NodeID
    let channel: PeerChannel
    let loop: any EventLoop
    private let transport: PeerTransport
    private var endpoint: PeerEndpoint
    private var backoff: Backoff
    private var wait: Scheduled<Void>?
    private var isDialing = false
    private var isStopped = false
    private var hasDialed = false

    init(_ endpoint: PeerEndpoint, _ channel: PeerChannel, transport: PeerTransport, seed: UInt64) {
        self.node = endpoint.node
        self.channel = channel
        self.loop = transport.loop(of: channel)
        self.transport = transport
        self.endpoint = endpoint
        self.backoff = Backoff(seed: seed)
    }

    // MARK: Any thread

    func start() {
        loop.execute {
            let isFirst = self.transport.settings.run.node.value < self.node.value
            if isFirst { self.consider() } else { self.wait(PeerLimits.retryFirst) }
        }
    }

    /// Another run or another address: dialed at once, whatever the wait was for.
    func update(_ endpoint: PeerEndpoint) {
        loop.execute {
            guard !self.isStopped else { return }
            self.endpoint = endpoint
            self.wait?.cancel()
            self.wait = nil
            self.consider()
        }
    }

    func stop() {
        loop.execute {
            self.isStopped = true
            self.wait?.cancel()
            self.wait = nil
        }
    }

    /// A session on this channel stands, whoever dialed it.
    func opened(byAttempt: Bool) {
        loop.execute {
            if byAttempt { self.isDialing = false }
            self.backoff.opened(at: self.transport.time.now())
        }
    }

    /// A session on this channel is over, or an attempt to dial it.
    func ended(_ reason: CloseReason?, ofAttempt: Bool) {
        loop.execute {
            if ofAttempt { self.isDialing = false }
            guard !self.isStopped, self.wait == nil else { return }
            self.wait(self.backoff.wait(after: reason, at: self.transport.time.now()))
        }
    }

    // MARK: The loop

    private func wait(_ span: TimeSpan) {
        guard !isStopped, wait == nil else { return }
        wait = loop.scheduleTask(in: .nanoseconds(span.nanoseconds)) {
            self.wait = nil
            self.consider()
        }
    }

    private func consider() {
        guard !isStopped, !isDialing, wait == nil, !transport.hasSession(to: node, channel) else { return }
        guard let id = transport.begin(from: nil) else { return wait(PeerLimits.retryMax) }
        isDialing = true
        if hasDialed { transport.metrics.reconnects.increment() }
        hasDialed = true
        let transport = self.transport
        let endpoint = self.endpoint
        let role = PeerRole.dialer(channel, expecting: node)
        let bootstrap = ClientBootstrap(group: loop)
            .connectTimeout(.nanoseconds(transport.settings.timing.handshake.nanoseconds))
            .channelOption(.tcpOption(.tcp_nodelay), value: 1)
            .channelOption(.allowRemoteHalfClosure, value: true)
            .channelOption(.recvAllocator, value: PeerTransport.readAllocator)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try transport.install(
                        on: channel, PeerConnection(id: id, role: role, name: endpoint.name, dialer: self))
                }
            }
        bootstrap.connect(host: endpoint.address.host, port: endpoint.address.port).whenFailure { _ in
            // Where a handler was added, it has told so itself.
            if transport.end(id) { self.ended(nil, ofAttempt: true) }
        }
    }
}
