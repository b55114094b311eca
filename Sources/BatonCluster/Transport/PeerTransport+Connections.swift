// The transport's side that its connections and dialers talk to: who is let in, who has come and gone, where a connection lives.
import BatonCore
import BatonPeer
import BatonTLS
import Glibc
import Logging
import Metrics
import NIOCore
import NIOPosix
import Synchronization

extension PeerTransport {
    var isPlaintext: Bool {
        switch configuration.security {
        case .plaintext: true
        case .tls: false
        }
    }

    func loop(of channel: PeerChannel) -> any EventLoop {
        switch channel {
        case .control: controlLoop
        case .bulk: bulkLoop
        }
    }

    func freshNonce() -> UInt64 { max(random(), 1) }

    func hasSession(to node: NodeID, _ channel: PeerChannel) -> Bool {
        table.withLock { $0.roster.session(to: node, channel) != nil }
    }

    func begin(from address: IPAddress?) -> PeerSessionID? { table.withLock { $0.begin(from: address) } }

    func accept(_ channel: any Channel) throws {
        let address = channel.remoteAddress?.ipAddress.flatMap { IPAddress($0) }
        // An address that cannot be told counts as one.
        guard let id = begin(from: address ?? IPAddress(octets: [0, 0, 0, 0])) else {
            metrics.rejected(.handshakes)
            throw ChannelError.operationUnsupported
        }
        do {
            try install(on: channel, PeerConnection(id: id, role: .acceptor, name: nil, dialer: nil))
        } catch {
            _ = end(id)
            throw error
        }
    }

    /// On the channel's loop.
    func install(on channel: any Channel, _ connection: PeerConnection) throws {
        let role = connection.name.map { TLSRole.client(name: Array($0.utf8)) } ?? .server
        let tls: TLSHandler?
        switch configuration.security {
        case .plaintext: tls = nil
        case .tls(let context):
            guard let made = TLSConnection(context, role) else { throw TLSFailure.internalError }
            tls = TLSHandler(made)
        }
        try add(PeerHandler(connection, transport: self, tls: tls), behind: tls, to: channel)
    }

    /// The upper handler first, so that it hears all that the lower one has to say.
    private func add(_ handler: PeerHandler, behind tls: TLSHandler?, to channel: any Channel) throws {
        try channel.pipeline.syncOperations.addHandler(handler)
        if let tls { try channel.pipeline.syncOperations.addHandler(tls, position: .first) }
    }

    func added(_ handler: PeerHandler, _ id: PeerSessionID, on loop: any EventLoop) {
        let connection = PeerTable.Connection(loop: loop, handler: NIOLoopBound(handler, eventLoop: loop))
        let isStopping = table.withLock { table in
            table.connections[id] = connection
            return table.stage == .stopping
        }
        if isStopping { loop.execute { connection.handler.value.leave(.stopping) } }
    }

    func admit(_ id: PeerSessionID, _ identity: PeerIdentity) -> Admission {
        let (admission, ended) = table.withLock { table -> (Admission, [PeerTable.Connection]) in
            let admission = table.admit(id, identity)
            guard case .admitted(let replaced) = admission else { return (admission, []) }
            return (admission, replaced.compactMap { table.connections[$0] })
        }
        for connection in ended {
            // On the same loop at once, so that the old session's end is told before the new one's beginning.
            if connection.loop.inEventLoop {
                connection.handler.value.replaced()
            } else {
                connection.loop.execute { connection.handler.value.replaced() }
            }
        }
        return admission
    }

    func opened(_ link: PeerLink, by connection: PeerConnection) {
        let channel = link.identity.channel
        let (count, dialer) = table.withLock { table in
            table.opened(link)
            return (table.count(of: channel), table.dialers[link.identity.run.node]?.first { $0.channel == channel })
        }
        metrics.of(channel).sessions.record(count)
        connection.dialer?.opened(byAttempt: true)
        if dialer !== connection.dialer { dialer?.opened(byAttempt: false) }
    }

    func closed(_ link: PeerLink, _ reason: CloseReason) {
        let channel = link.identity.channel
        let (count, dialer) = table.withLock { table in
            table.closed(link)
            return (table.count(of: channel), table.dialers[link.identity.run.node]?.first { $0.channel == channel })
        }
        metrics.of(channel).sessions.record(count)
        dialer?.ended(reason, ofAttempt: false)
    }

    /// A connection is gone. False: that was known.
    func end(_ id: PeerSessionID) -> Bool {
        let (isNews, drained) = table.withLock { table in
            let isNews = table.end(id)
            guard table.stage == .stopping, table.isEmpty else { return (isNews, EventLoopPromise<Void>?.none) }
            defer { table.drained = nil }
            return (isNews, table.drained)
        }
        drained?.succeed(())
        return isNews
    }

    func rejected(_ rejection: PeerRejection, _ connection: PeerConnection) {
        metrics.rejected(rejection)
        log(rejection.name, connection)
    }

    /// Counts and logs why a session ended. Text of a peer is not logged.
    func judged(_ reason: CloseReason, _ connection: PeerConnection, _ identity: PeerIdentity?) {
        switch reason {
        case .violation(let violation): rejected(.violation(violation), connection)
        case .error(let code, _):
            metrics.error(code: code)
            log("the peer says \(PeerViolation(rawValue: code).map { "\($0)" } ?? "error \(code)")", connection)
        case .left, .leftAlone, .replaced, .lost: break
        }
    }

    private func log(_ what: String, _ connection: PeerConnection) {
        // Anybody may connect: strangers do not fill the log.
        let level: Logger.Level = connection.dialer == nil ? .debug : .warning
        logger.log(
            level: level, "a peer connection ends",
            metadata: ["reason": "\(what)", "dialed": "\(connection.name ?? "no")"])
    }

    // MARK: Moving

    /// Gives an accepted connection to the bulk loop. The socket is duplicated and the old channel closed, which leaves the
    /// connection itself untouched; what arrives in between waits in the kernel.
    func move(_ context: ChannelHandlerContext, _ luggage: PeerHandler.Luggage) {
        let id = luggage.connection.id
        let copy = try? context.pipeline.syncOperations.withUnsafeTransportIfAvailable(of: NIOBSDSocket.Handle.self) {
            dup($0)
        }
        context.close(promise: nil)
        guard let copy, copy >= 0 else {
            _ = end(id)
            return
        }
        let carried = Carried(luggage: luggage)
        ClientBootstrap(group: bulkLoop)
            .channelOption(.tcpOption(.tcp_nodelay), value: 1)
            .channelOption(.allowRemoteHalfClosure, value: true)
            .channelOption(.recvAllocator, value: Self.readAllocator)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let tls = carried.luggage.tls.map { TLSHandler($0) }
                    try self.add(
                        PeerHandler(carried.luggage, transport: self, tls: tls), behind: tls, to: channel)
                }
            }
            .withConnectedSocket(copy)
            .whenFailure { _ in _ = self.end(id) }
    }

    /// @unchecked: handed from one loop to the other once, and not touched by the first one again.
    private struct Carried: @unchecked Sendable {
        let luggage: PeerHandler.Luggage
    }
}
