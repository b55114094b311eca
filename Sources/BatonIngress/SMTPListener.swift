// A bound address that accepts clients onto the data loops.
import BatonCore
import BatonSMTP
import NIOCore
import NIOPosix
import Synchronization

/// What new sessions of a listener start with; exchanged as a whole by a reload.
struct ListenerState: Sendable {
    let settings: ServerSettings
    let policy: RelayPolicy
}

/// One entry of `listeners:`. Accepting runs on the group's loops; each connection stays on the loop it was given.
final class SMTPListener: Sendable {
    /// Connections that the kernel keeps until they are accepted.
    static let backlog: Int32 = 1024
    /// Octets of replies that a client may leave unread before we stop reading from it.
    static let replyWatermark = 32 * 1024

    let configuration: ListenerConfiguration
    private let state: Mutex<ListenerState>
    private let homes: [ObjectIdentifier: IngressLoop]
    private let admission: Admission
    private let sessionIDs: SessionIDs
    private let channel = Mutex<(any Channel)?>(nil)

    init(
        configuration: ListenerConfiguration, state: ListenerState, homes: [ObjectIdentifier: IngressLoop],
        admission: Admission, sessionIDs: SessionIDs
    ) {
        self.configuration = configuration
        self.state = Mutex(state)
        self.homes = homes
        self.admission = admission
        self.sessionIDs = sessionIDs
    }

    func update(_ new: ListenerState) { state.withLock { $0 = new } }

    /// Binds. Throws the system's error (address in use, not permitted, not ours).
    func start(on group: any EventLoopGroup) async throws -> SocketAddress {
        let bootstrap = ServerBootstrap(group: group)
            .serverChannelOption(.backlog, value: Self.backlog)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
            .childChannelOption(.autoRead, value: false)
            .childChannelOption(.allowRemoteHalfClosure, value: true)
            .childChannelOption(.maxMessagesPerRead, value: 1)
            .childChannelOption(
                .writeBufferWaterMark,
                value: ChannelOptions.Types.WriteBufferWaterMark(
                    low: Self.replyWatermark / 2, high: Self.replyWatermark)
            )
            .childChannelInitializer { channel in self.accept(channel) }
        let bound = try await bootstrap.bind(host: configuration.host, port: configuration.port).get()
        channel.withLock { $0 = bound }
        guard let address = bound.localAddress else { throw ChannelError.unknownLocalAddress }
        return address
    }

    func stop() async {
        let bound = channel.withLock { channel in
            defer { channel = nil }
            return channel
        }
        try? await bound?.close().get()
    }

    private func accept(_ channel: any Channel) -> EventLoopFuture<Void> {
        guard let home = homes[ObjectIdentifier(channel.eventLoop)] else {
            return channel.eventLoop.makeFailedFuture(ChannelError.operationUnsupported)
        }
        let address = channel.remoteAddress.flatMap(IPAddress.init(_:))
        let refusal: ServerReply?
        switch admission.admit(address?.clientNetwork ?? []) {
        case .admitted: refusal = nil
        case .tooManyConnections:
            refusal = .tooManyConnections
            home.tally.refusedConnections += 1
        case .tooManyFromClient:
            refusal = .tooManyFromClient
            home.tally.refusedFromClient += 1
        }
        home.scheduleFlush()
        let current = state.withLock { $0 }
        let handler = IngressHandler(
            home: home, settings: current.settings, policy: current.policy, address: address,
            sessionID: sessionIDs.next(),
            refusal: refusal)
        return channel.eventLoop.makeCompletedFuture { try channel.pipeline.syncOperations.addHandler(handler) }
    }
}

/// Numbers sessions of the node's run: random from its start, then counting.
final class SessionIDs: Sendable {
    private let counter: Atomic<UInt64>

    init(seed: UInt64) {
        // Far from the end, and different from run to run.
        self.counter = Atomic(seed >> 1)
    }

    func next() -> UInt64 { counter.wrappingAdd(1, ordering: .relaxed).newValue }
}

extension IPAddress {
    /// Nil for a Unix socket.
    init?(_ address: SocketAddress) {
        guard let text = address.ipAddress else { return nil }
        self.init(text)
    }
}
