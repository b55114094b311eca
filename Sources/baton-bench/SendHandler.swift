// The generator's shell: one connection's channel handler around SendSession.
import CBatonSystem
import NIOCore

final class SendHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let owner: SendLoop
    private var session: SendSession
    private var context: ChannelHandlerContext?
    private var pending = ByteBuffer()
    private var out = ByteBuffer()
    private var lastActivity: Int64 = 0
    private var ended = false
    private var quitting = false
    private var why = "closed by the other side"
    private(set) var wasReady = false

    init(_ owner: SendLoop, _ behaviour: SendBehaviour) {
        self.owner = owner
        self.session = SendSession(behaviour)
    }

    var isSpent: Bool { session.isSpent }

    func channelActive(context: ChannelHandlerContext) {
        self.context = context
        lastActivity = baton_clock_monotonic()
        owner.opened(self)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        lastActivity = baton_clock_monotonic()
        var incoming = unwrapInboundIn(data)
        if pending.readableBytes == 0 { pending = incoming } else { pending.writeBuffer(&incoming) }
        pump(context)
        pending.discardReadBytes()
    }

    func channelReadComplete(context: ChannelHandlerContext) { send() }

    private func pump(_ context: ChannelHandlerContext) {
        while !ended {
            switch session.step(&pending, &out) {
            case .needMore: return
            case .progressed: continue
            case .ready:
                wasReady = true
                owner.ready(self)
            case .ended(let message, let results, let queueID):
                owner.ended(message, results, queueID: queueID)
                owner.ready(self)
            case .close(let reason):
                if !reason.isEmpty { why = reason }
                context.close(promise: nil)
                return
            }
        }
    }

    /// Called by the owner, from within a step or from its pace.
    func begin(_ message: BenchMessage) {
        session.begin(message, &out)
        lastActivity = baton_clock_monotonic()
        send()
    }

    func quit() {
        quitting = true
        session.quit(&out)
        lastActivity = baton_clock_monotonic()
        send()
    }

    func abort(_ reason: String) {
        why = reason
        context?.close(promise: nil)
    }

    func isOverdue(_ now: Int64, _ timeout: Int64) -> Bool { session.isWaiting && now - lastActivity > timeout }

    private func send() {
        guard out.readableBytes > 0, let context else { return }
        context.writeAndFlush(wrapOutboundOut(out), promise: nil)
        out = context.channel.allocator.buffer(capacity: 512)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        why = "\(error)"
        context.close(promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) {
        guard !ended else { return }
        ended = true
        self.context = nil
        if let (message, results) = session.lost() {
            owner.ended(message, results, queueID: [])
        } else if let message = session.message {
            owner.giveBack(message)
        }
        owner.closed(self, why: why, orderly: quitting)
    }
}
