// The sink's shell: listening sockets and loops around SinkSession.
import BatonCore
import CBatonSystem
import Glibc
import NIOCore
import NIOPosix
import Synchronization

/// What a sink counted so far.
struct SinkCounts: Sendable {
    var connections = 0
    var open = 0
    /// The most that were open, looked at every 20 ms: one that closes and one that opens may be seen in either order.
    var peak = 0
    var messages = 0
    var recipients = 0
    var unanswered = 0
    var reports = 0
    var foreign = 0
    var octets: UInt64 = 0
    var first: Int64 = 0
    var last: Int64 = 0
}

/// Shared by all connections of a sink; safe from any loop.
final class SinkShared: Sendable {
    let behaviour: SinkBehaviour
    let maxConnections: Int
    let history: HistoryWriter?
    let keepFolder: String?
    let counts = Mutex(SinkCounts())

    init(_ behaviour: SinkBehaviour, maxConnections: Int, history: HistoryWriter?, keepFolder: String?) {
        self.behaviour = behaviour
        self.maxConnections = maxConnections
        self.history = history
        self.keepFolder = keepFolder
    }

    /// Counts and stores what a session reported.
    func take(_ records: [HistoryRecord], messages: Int, kept: [KeptMessage], now: Int64) {
        counts.withLock { counts in
            counts.messages += messages
            if counts.first == 0 { counts.first = now }
            counts.last = now
            for record in records {
                counts.octets += UInt64(record.length)
                switch record.kind {
                case .received:
                    counts.recipients += 1
                    if record.index == HistoryRecord.foreignIndex { counts.foreign += 1 }
                case .report: counts.reports += 1
                default: counts.unanswered += 1
                }
            }
        }
        if let history { for record in records { history.append(record) } }
        for message in kept { keep(message) }
    }

    /// Writes `<n>.eml` (the message) and `<n>.env` (sender, then a recipient a line). For tests, not for load.
    private func keep(_ message: KeptMessage) {
        guard let keepFolder else { return }
        let number = counts.withLock { $0.messages }
        var envelope = message.sender + [0x0a]
        for recipient in message.recipients { envelope += recipient + [0x0a] }
        let name = "\(keepFolder)/\(number)-\(baton_clock_monotonic())"
        for (suffix, bytes) in [("eml", message.bytes), ("env", envelope)] {
            let descriptor = open("\(name).\(suffix).tmp", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
            guard descriptor >= 0 else { continue }
            _ = bytes.withUnsafeBytes { writeAll(descriptor, $0) }
            _ = close(descriptor)
            rename("\(name).\(suffix).tmp", "\(name).\(suffix)")
        }
    }
}

/// One connection of the sink, on its loop. Bound: it stops reading when `pendingBound` octets wait behind a delayed reply.
final class SinkHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    static let pendingBound = 1024 * 1024

    private let shared: SinkShared
    private var session: SinkSession
    private var pending = ByteBuffer()
    private var out = ByteBuffer()
    private var paused = false
    private var counted = false
    private var taken = 0

    init(_ shared: SinkShared, number: UInt64) {
        self.shared = shared
        self.session = SinkSession(shared.behaviour, number: number)
    }

    func channelActive(context: ChannelHandlerContext) {
        let refused = shared.counts.withLock { counts -> Bool in
            counts.connections += 1
            counts.open += 1
            return counts.open > shared.maxConnections
        }
        counted = true
        var fresh = ByteBuffer()
        let step = session.connected(refused: refused, &fresh)
        out = fresh
        if perform(step, context) { pump(context) }
        send(context)
    }

    func channelInactive(context: ChannelHandlerContext) {
        if counted { shared.counts.withLock { $0.open -= 1 } }
        counted = false
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        var incoming = unwrapInboundIn(data)
        if pending.readableBytes == 0 {
            pending = incoming
        } else {
            pending.writeBuffer(&incoming)
        }
        if !paused { pump(context) }
        if paused, pending.readableBytes > Self.pendingBound {
            try? context.channel.syncOptions?.setOption(.autoRead, value: false)
        }
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        if !paused { send(context) }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        context.close(promise: nil)
    }

    private func pump(_ context: ChannelHandlerContext) {
        let now = baton_clock_monotonic()
        while true {
            let step = session.step(&pending, now: now, &out)
            if step == .needMore { break }
            if !perform(step, context) { break }
        }
        if !session.records.isEmpty || session.accepted != taken {
            shared.take(
                session.records, messages: session.accepted - taken, kept: session.keptMessages,
                now: baton_clock_monotonic())
            taken = session.accepted
            session.records.removeAll(keepingCapacity: true)
            session.keptMessages.removeAll()
        }
        pending.discardReadBytes()
    }

    /// False when the connection waits or ends.
    private func perform(_ step: SinkSession.Step, _ context: ChannelHandlerContext) -> Bool {
        switch step {
        case .needMore, .progressed: return true
        case .replied(let wait):
            guard wait > 0 else { return true }
            paused = true
            context.eventLoop.assumeIsolated().scheduleTask(in: .nanoseconds(wait)) {
                self.resume(context)
            }
            return false
        case .close:
            send(context)
            context.close(mode: .output, promise: nil)
            // A peer that never closes its half does not hold the slot.
            context.eventLoop.assumeIsolated().scheduleTask(in: .seconds(1)) { context.close(promise: nil) }
            return false
        case .drop:
            out.clear()
            context.close(promise: nil)
            return false
        }
    }

    private func resume(_ context: ChannelHandlerContext) {
        guard context.channel.isActive else { return }
        paused = false
        send(context)
        pump(context)
        if !paused {
            send(context)
            try? context.channel.syncOptions?.setOption(.autoRead, value: true)
        }
    }

    private func send(_ context: ChannelHandlerContext) {
        guard out.readableBytes > 0 else { return }
        context.writeAndFlush(wrapOutboundOut(out), promise: nil)
        out = context.channel.allocator.buffer(capacity: 256)
    }
}

/// A running sink.
final class SinkServer: Sendable {
    let shared: SinkShared
    private let group: MultiThreadedEventLoopGroup
    private let channel: any Channel

    /// Binds and serves; throws with a clear line when the endpoint is taken.
    init(_ shared: SinkShared, endpoint: EndpointOption, loops: Int) throws {
        self.shared = shared
        self.group = MultiThreadedEventLoopGroup(numberOfThreads: loops)
        let number = Mutex(UInt64(0))
        let bootstrap = ServerBootstrap(group: group)
            .serverChannelOption(.backlog, value: 1024)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.maxMessagesPerRead, value: 4)
            .childChannelOption(.recvAllocator, value: FixedSizeRecvByteBufferAllocator(capacity: 32 * 1024))
            .childChannelOption(.allowRemoteHalfClosure, value: false)
            .childChannelInitializer { channel in
                let mine = number.withLock { count -> UInt64 in
                    count += 1
                    return count
                }
                return channel.eventLoop.makeCompletedFuture {
                    if case .tcp = endpoint.kind {
                        try channel.syncOptions?.setOption(.tcpOption(.tcp_nodelay), value: 1)
                    }
                    try channel.pipeline.syncOperations.addHandler(SinkHandler(shared, number: mine))
                }
            }
        do {
            switch endpoint.kind {
            case .tcp(let host, let port): self.channel = try bootstrap.bind(host: host, port: port).wait()
            case .unix(let path):
                unlink(path)
                self.channel = try bootstrap.bind(unixDomainSocketPath: path).wait()
            }
        } catch {
            try? group.syncShutdownGracefully()
            throw BenchError("cannot listen on \(endpoint.description): \(error)")
        }
    }

    var port: Int? { channel.localAddress?.port }

    func stop() throws {
        try channel.close().wait()
        try group.syncShutdownGracefully()
    }
}
