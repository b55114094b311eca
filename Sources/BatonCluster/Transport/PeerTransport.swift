// The connections to the other nodes: listener, dialers, sessions, and the way in and out for everything above.
import BatonCore
import BatonPeer
import BatonRuntime
import BatonTLS
import Glibc
import Logging
import Metrics
import NIOCore
import NIOPosix
import Synchronization

/// Keeps a control and a bulk channel to every node of the cluster and passes messages on (docs/PEER_PROTOCOL.md).
///
/// Safe from any thread and never blocking, `start` and `stop` apart, which wait. Control channels live on the control loop, bulk
/// channels on the bulk loop; both loops are of a `MultiThreadedEventLoopGroup`. Memory: a session holds at most its receive
/// window, its queue (`PeerSettings.queue`) and the peer's window. Nothing here survives a crash: what was sent and not answered is
/// unknown, and the machines above ask again.
package final class PeerTransport: Sendable {
    static let readAllocator = AdaptiveRecvByteBufferAllocator(
        minimum: 2048, initial: 16 * 1024, maximum: TransportLimits.readOctets)

    let configuration: PeerTransportConfiguration
    let time: any TimeSource
    let metrics = PeerMetrics()
    let logger: Logger
    let controlLoop: any EventLoop
    let bulkLoop: any EventLoop
    let random: @Sendable () -> UInt64
    let table: Mutex<PeerTable>
    private let target = Mutex<(any PeerTransportDelegate)?>(nil)

    var settings: PeerSettings { configuration.settings }
    var delegate: (any PeerTransportDelegate)? { target.withLock { $0 } }

    /// `random` gives nonces and seeds: fresh for every call, not to be guessed.
    package init(
        configuration: PeerTransportConfiguration, controlLoop: any EventLoop, bulkLoop: any EventLoop,
        time: any TimeSource, logger: Logger, random: @escaping @Sendable () -> UInt64 = { SystemRandom.uint64() }
    ) {
        self.configuration = configuration
        self.controlLoop = controlLoop
        self.bulkLoop = bulkLoop
        self.time = time
        self.logger = logger
        self.random = random
        self.table = Mutex(PeerTable(me: configuration.settings.run.node))
    }

    // MARK: Life

    /// Binds and accepts. Returns the address that is listened on. `delegate` is held until `stop` has returned.
    /// Throws `PeerTransportError`.
    @discardableResult
    package func start(delegate: any PeerTransportDelegate) async throws -> PeerAddress {
        let address = configuration.address
        guard settings.isValid else { throw PeerTransportError.invalidSettings }
        if isPlaintext, !address.isLoopback {
            throw PeerTransportError.plaintextBeyondLoopback(address: address.description)
        }
        if case .tls(let context) = configuration.security, !context.ownNames.contains(settings.name) {
            throw PeerTransportError.certificateWithoutOwnName(node: String(decoding: settings.name, as: UTF8.self))
        }
        let isFirst = table.withLock { table in
            guard table.stage == .new else { return false }
            table.stage = .serving
            return true
        }
        guard isFirst else { throw PeerTransportError.alreadyStarted }
        target.withLock { $0 = delegate }
        let bootstrap = ServerBootstrap(group: controlLoop, childGroup: controlLoop)
            .serverChannelOption(.backlog, value: TransportLimits.backlog)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
            .childChannelOption(.allowRemoteHalfClosure, value: true)
            .childChannelOption(.recvAllocator, value: Self.readAllocator)
            // A read at a time, so that a connection that moves to the bulk loop has read nothing behind its HELLO.
            .childChannelOption(.maxMessagesPerRead, value: 1)
            .childChannelInitializer { channel in channel.eventLoop.makeCompletedFuture { try self.accept(channel) } }
        let bound: any Channel
        do {
            bound = try await bootstrap.bind(host: address.host, port: address.port).get()
        } catch {
            throw PeerTransportError.cannotBind(address: address.description, reason: Self.reason(of: error))
        }
        let isStopped = table.withLock { table in
            guard table.stage == .serving else { return true }
            table.listener = bound
            return false
        }
        if isStopped { try? await bound.close() }
        return PeerAddress(host: address.host, port: bound.localAddress?.port ?? address.port) ?? address
    }

    private static func reason(of error: any Error) -> String {
        guard let system = error as? IOError else { return "the address cannot be resolved or used" }
        return String(cString: strerror(system.errnoCode))
    }

    /// Says GOODBYE on all sessions and waits for their end, at most `PeerTiming.goodbye` and `TransportLimits.stopSlack`; then cuts.
    /// Idempotent.
    package func stop() async {
        let drained = controlLoop.makePromise(of: Void.self)
        let (listener, dialers, connections, isLate, isEmpty) = table.withLock { table in
            let isLate = table.stage == .stopping
            table.stage = .stopping
            if !isLate { table.drained = drained }
            let taken = (
                table.listener, Array(table.dialers.values.joined()), Array(table.connections.values), isLate,
                table.isEmpty
            )
            table.listener = nil
            table.dialers = [:]
            return taken
        }
        if isLate { return drained.succeed(()) }
        try? await listener?.close()
        for dialer in dialers { dialer.stop() }
        for connection in connections {
            connection.loop.execute { connection.handler.value.leave(.stopping) }
        }
        if isEmpty { drained.succeed(()) }
        let bound = settings.timing.goodbye + TransportLimits.stopSlack
        let cut = controlLoop.scheduleTask(in: .nanoseconds(bound.nanoseconds)) { self.cutAll() }
        try? await drained.futureResult.get()
        cut.cancel()
        target.withLock { $0 = nil }
    }

    private func cutAll() {
        let (connections, drained) = table.withLock { table in
            defer { table.drained = nil }
            return (Array(table.connections.values), table.drained)
        }
        for connection in connections { connection.loop.execute { connection.handler.value.cut() } }
        drained?.succeed(())
    }

    // MARK: Peers

    /// The whole list as the control plane has it now, this node or not: new ones are dialed, those that went away are told
    /// GOODBYE, the rest hears who is the present run. Entries that contradict themselves, and beyond `PeerLimits.nodes`, are
    /// counted and left out.
    package func peers(_ list: [PeerEndpoint]) {
        var wanted: [NodeID: PeerEndpoint] = [:]
        var unusable = 0
        for endpoint in list where endpoint.node != settings.run.node {
            guard endpoint.isValid, !isPlaintext || endpoint.address.isLoopback, wanted.count < PeerLimits.nodes else {
                metrics.rejected(.endpoint)
                unusable += 1
                continue
            }
            wanted[endpoint.node] = endpoint
        }
        if unusable > 0 { logger.warning("registrations that cannot be used are not dialed: \(unusable)") }
        var ended: [PeerTable.Connection] = []
        var left: [PeerTable.Connection] = []
        var stopped: [PeerDialer] = []
        var started: [PeerDialer] = []
        var updated: [(PeerDialer, PeerEndpoint)] = []
        table.withLock { table in
            guard table.stage == .serving else { return }
            for (node, _) in table.endpoints where wanted[node] == nil {
                table.endpoints[node] = nil
                stopped += table.dialers.removeValue(forKey: node) ?? []
                for channel in PeerChannel.allCases {
                    if let link = table.routes[node]?[channel], let connection = table.connections[link.id] {
                        left.append(connection)
                    }
                }
            }
            for endpoint in wanted.values {
                let run = NodeRun(node: endpoint.node, incarnation: endpoint.incarnation)
                ended += table.roster.registered(run, revision: endpoint.revision).compactMap { table.connections[$0] }
                let old = table.endpoints.updateValue(endpoint, forKey: endpoint.node)
                if let dialers = table.dialers[endpoint.node] {
                    let isNews = old?.address != endpoint.address || old?.incarnation != endpoint.incarnation
                    if isNews { updated += dialers.map { ($0, endpoint) } }
                } else {
                    let dialers = PeerChannel.allCases.map {
                        PeerDialer(endpoint, $0, transport: self, seed: random())
                    }
                    table.dialers[endpoint.node] = dialers
                    started += dialers
                }
            }
        }
        for connection in ended { connection.loop.execute { connection.handler.value.replaced() } }
        for connection in left { connection.loop.execute { connection.handler.value.leave(.reconfigured) } }
        for dialer in stopped { dialer.stop() }
        for (dialer, endpoint) in updated { dialer.update(endpoint) }
        for dialer in started { dialer.start() }
    }

    /// An operator has declared a node lost: its sessions end, and what is known of it is forgotten.
    package func forget(_ node: NodeID) {
        let (connections, dialers) = table.withLock { table in
            table.endpoints[node] = nil
            return (
                table.roster.forget(node).compactMap { table.connections[$0] },
                table.dialers.removeValue(forKey: node) ?? []
            )
        }
        for dialer in dialers { dialer.stop() }
        for connection in connections { connection.loop.execute { connection.handler.value.replaced() } }
    }

    /// The present run of a node, as far as it is known here.
    package func incarnation(of node: NodeID) -> Incarnation? { table.withLock { $0.roster.incarnation(of: node) } }

    /// Whether messages can be sent to the node on that channel now.
    package func isConnected(to node: NodeID, _ channel: PeerChannel) -> Bool {
        table.withLock { $0.routes[node]?[channel] != nil }
    }

    /// Connections that this node has refused or ended, by reason, since it began.
    package var rejections: [PeerRejection: Int] { metrics.rejections }

    // MARK: Messages

    /// Sends all of `messages` or none, each on the channel of its type, in order per channel. False: no session is up on a channel
    /// that is needed, or its queue is full; nothing was sent. True: they go out unless the session ends, and are unknown then.
    ///
    /// Bodies of SUBMIT become LZ4 blocks on the calling thread, where both sides can and it pays.
    package func send(_ messages: [PeerMessage], to node: NodeID) -> Bool {
        let control = messages.filter { $0.type.channel == .control }
        let bulk = messages.filter { $0.type.channel == .bulk }
        // Frames of the session itself are not for callers to send.
        guard control.count + bulk.count == messages.count else { return false }
        let route = table.withLock { $0.routes[node] }
        let parts: [(PeerLink?, [PeerMessage])] = [(route?.control, control), (route?.bulk, bulk)]
        var reserved: [(link: PeerLink, messages: [PeerMessage], cost: FrameCost)] = []
        for (link, part) in parts where !part.isEmpty {
            let cost = part.reduce(into: FrameCost.zero) { sum, message in
                sum.octets += message.weight.octets
                sum.frames += 1
            }
            guard let link, link.reserve(cost) else {
                if let link { metrics.of(link.identity.channel).refusedSends.increment(by: part.count) }
                for earlier in reserved { earlier.link.giveUp(earlier.cost) }
                return false
            }
            reserved.append((link, part, cost))
        }
        for (link, messages, _) in reserved { link.send(messages.map { compressed($0, for: link) }) }
        return true
    }

    private func compressed(_ message: PeerMessage, for link: PeerLink) -> PeerMessage {
        guard case .submit(let submit) = message, !submit.isCompressed,
            link.wantsCompression(length: submit.body.readableBytes)
        else { return message }
        let smaller = submit.compressed()
        let stored = smaller?.body.readableBytes ?? submit.body.readableBytes
        link.compressed(raw: submit.body.readableBytes, stored: stored)
        guard let smaller else { return message }
        link.giveUp(FrameCost(octets: submit.body.readableBytes - stored, frames: 0))
        return .submit(smaller)
    }

    /// The consumer has finished with received messages of this cost together and let go of their octets. Never more than was
    /// received of that session: this process would stop. A session that is over is passed over.
    package func release(_ cost: FrameCost, of session: PeerSessionID) {
        guard cost.frames > 0 else { return }
        table.withLock { $0.links[session] }?.release(cost)
    }
}
