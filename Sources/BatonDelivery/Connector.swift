// How a pool gets its transport.
import BatonCore
import NIOCore
import NIOPosix

/// Makes outgoing connections; tests put their own in its place.
protocol Connecting: Sendable {
    /// Connects on `loop` with `handler` in the pipeline. The future fails when it comes to nothing; once it has succeeded
    /// the handler hears of everything else. On the loop.
    func connect(
        to address: SocketAddress, on loop: any EventLoop, timeout: TimeSpan, handler: NIOLoopBound<DeliveryHandler>
    ) -> EventLoopFuture<Void>
}

/// TCP and Unix sockets. NIO sets TCP_NODELAY on its own: a body's last segment never waits for an acknowledgement.
struct SocketConnector: Connecting {
    func connect(
        to address: SocketAddress, on loop: any EventLoop, timeout: TimeSpan, handler: NIOLoopBound<DeliveryHandler>
    ) -> EventLoopFuture<Void> {
        ClientBootstrap(group: loop)
            .connectTimeout(.nanoseconds(timeout.nanoseconds))
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(handler.value)
                }
            }
            .connect(to: address).map { _ in }
    }
}
