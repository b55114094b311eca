// TLS as a channel handler: records on the one side, plain octets on the other.
import NIOCore

package enum TLSEvent: Hashable, Sendable {
    /// The handshake is over; the DNS names in the peer's certificate, which comes from the CA and is in date.
    case established(names: [[UInt8]])
}

/// Encrypts and decrypts on the channel's loop, without blocking. Begins by itself when the channel is active.
///
/// Fires `TLSEvent.established` before any octet of the peer. What goes wrong is fired as one `TLSFailure` by `errorCaught`, with
/// the alert for the peer flushed before; closing the channel, and a time-out of the handshake, are for the handlers behind.
/// Memory: what waits for the handshake is bounded by `TLSLimits.pendingOctets`, the rest by `TLSConnection`.
package final class TLSHandler: ChannelDuplexHandler {
    package typealias InboundIn = ByteBuffer
    package typealias InboundOut = ByteBuffer
    package typealias OutboundIn = ByteBuffer
    package typealias OutboundOut = ByteBuffer

    private enum State {
        case idle
        case handshaking
        case open
        /// Has failed, or its connection went to another handler.
        case over
    }

    private let connection: TLSConnection
    private var state: State
    private var pending: [(ByteBuffer, EventLoopPromise<Void>?)] = []
    private var pendingOctets = 0
    private var isInputClosed = false

    /// A connection that begins, or one whose handshake another handler has seen to.
    package init(_ connection: TLSConnection) {
        self.connection = connection
        self.state = connection.isEstablished ? .open : .idle
    }

    /// Gives the connection away: this handler passes nothing on any more.
    package func detach() -> TLSConnection {
        state = .over
        return connection
    }

    // MARK: In

    package func handlerAdded(context: ChannelHandlerContext) {
        if context.channel.isActive { begin(context) }
    }

    package func channelActive(context: ChannelHandlerContext) {
        begin(context)
        context.fireChannelActive()
    }

    private func begin(_ context: ChannelHandlerContext) {
        guard case .idle = state else { return }
        state = .handshaking
        advance(context)
    }

    package func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch state {
        case .idle, .over: return
        case .handshaking, .open: break
        }
        do throws(TLSFailure) {
            try connection.feed(Self.unwrapInboundIn(data))
        } catch {
            return fail(error, context)
        }
        advance(context)
    }

    /// Goes on with the handshake, then hands over what can be read.
    private func advance(_ context: ChannelHandlerContext) {
        do throws(TLSFailure) {
            if case .handshaking = state {
                let isDone = try connection.handshake()
                writeOutput(context)
                context.flush()
                guard isDone else { return }
                state = .open
                context.fireUserInboundEventTriggered(TLSEvent.established(names: connection.peerNames))
                try writePending(context)
            }
            guard case .open = state else { return }
            var plain = ByteBuffer()
            let failure = Result { () throws(TLSFailure) in try connection.read(into: &plain) }
            // Answers to what was read (a key update) before anybody acts on it.
            if writeOutput(context) { context.flush() }
            if plain.readableBytes > 0 { context.fireChannelRead(Self.wrapInboundOut(plain)) }
            try failure.get()
            if case .open = state, connection.isClosedByPeer { closeInput(context) }
        } catch {
            fail(error, context)
        }
    }

    private func closeInput(_ context: ChannelHandlerContext) {
        guard !isInputClosed else { return }
        isInputClosed = true
        context.fireUserInboundEventTriggered(ChannelEvent.inputClosed)
    }

    package func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        guard let event = event as? ChannelEvent, event == .inputClosed else {
            return context.fireUserInboundEventTriggered(event)
        }
        if !connection.isClosedByPeer { fail(.truncated, context) }
        closeInput(context)
    }

    package func channelInactive(context: ChannelHandlerContext) {
        if !connection.isClosedByPeer, !isInputClosed { fail(.truncated, context) }
        failPending(.truncated)
        context.fireChannelInactive()
    }

    package func handlerRemoved(context: ChannelHandlerContext) { failPending(.truncated) }

    private func fail(_ failure: TLSFailure, _ context: ChannelHandlerContext) {
        switch state {
        case .over: return
        case .idle, .handshaking, .open: state = .over
        }
        if writeOutput(context) { context.flush() }
        failPending(failure)
        context.fireErrorCaught(failure)
    }

    // MARK: Out

    package func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        var plain = Self.unwrapOutboundIn(data)
        switch state {
        case .idle, .handshaking:
            guard plain.readableBytes <= TLSLimits.pendingOctets - pendingOctets else {
                promise?.fail(TLSFailure.overflow)
                return fail(.overflow, context)
            }
            pendingOctets += plain.readableBytes
            pending.append((plain, promise))
        case .open:
            do throws(TLSFailure) {
                try encrypt(&plain, promise, context)
            } catch {
                promise?.fail(error)
                fail(error, context)
            }
        case .over: promise?.fail(ChannelError.ioOnClosedChannel)
        }
    }

    private func encrypt(
        _ plain: inout ByteBuffer, _ promise: EventLoopPromise<Void>?, _ context: ChannelHandlerContext
    ) throws(TLSFailure) {
        repeat {
            try connection.write(&plain)
            let isLast = plain.readableBytes == 0
            guard let records = connection.takeOutput() else {
                if isLast { promise?.succeed(()) }
                continue
            }
            context.write(Self.wrapOutboundOut(records), promise: isLast ? promise : nil)
        } while plain.readableBytes > 0
    }

    private func writePending(_ context: ChannelHandlerContext) throws(TLSFailure) {
        guard !pending.isEmpty else { return }
        var waiting: [(ByteBuffer, EventLoopPromise<Void>?)] = []
        swap(&waiting, &pending)
        pendingOctets = 0
        for (index, item) in waiting.enumerated() {
            var plain = item.0
            do throws(TLSFailure) {
                try encrypt(&plain, item.1, context)
            } catch {
                for rest in waiting[index...] { rest.1?.fail(error) }
                throw error
            }
        }
        context.flush()
    }

    private func failPending(_ failure: TLSFailure) {
        var waiting: [(ByteBuffer, EventLoopPromise<Void>?)] = []
        swap(&waiting, &pending)
        pendingOctets = 0
        for item in waiting { item.1?.fail(failure) }
    }

    @discardableResult
    private func writeOutput(_ context: ChannelHandlerContext) -> Bool {
        guard let records = connection.takeOutput() else { return false }
        context.write(Self.wrapOutboundOut(records), promise: nil)
        return true
    }

    package func close(context: ChannelHandlerContext, mode: CloseMode, promise: EventLoopPromise<Void>?) {
        switch (mode, state) {
        case (.input, _), (_, .idle), (_, .handshaking), (_, .over): break
        case (.output, .open), (.all, .open):
            connection.close()
            if writeOutput(context) { context.flush() }
        }
        context.close(mode: mode, promise: promise)
    }
}
