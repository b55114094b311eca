// The SMTP and LMTP client (RFC 5321, 2033, 2920, 3030): one connection's state, without I/O.
import BatonCore
import BatonModel
import NIOCore

/// Greets, then runs one mail transaction after the other. Pure; its shell is `DeliveryHandler` in BatonDelivery.
///
/// With PIPELINING a transaction is MAIL, RCPT… and DATA in one write, then body and dot in another; without, step by step.
/// Every exchange has a `deadline`. Whatever the peer does, a transaction that began ends in exactly one `.finished`, and a
/// session that never got ready in exactly one `.refused`. Bounded by `ReplyParser`'s limits; a peer that breaks them, or
/// answers what was not asked, is dropped: nothing is written while something unread lies here, since that would be taken for
/// its answer (`isOutOfStep`).
package struct ClientSession: StateMachine {
    enum Phase: Equatable {
        case idle
        case banner
        case ehlo
        case helo
        case ready
        case reset
        case mail
        /// Waiting for the reply to the how many-th RCPT.
        case rcpt(Int)
        case data
        /// A fragmented body goes out by DATA.
        case streaming
        /// A BDAT chunk is out.
        case chunk(last: Bool)
        /// The final dot is out; LMTP: the reply of the how many-th recipient is next.
        case dot(Int)
        case quit
        case closed
    }

    let settings: ClientSettings
    var phase = Phase.idle
    package internal(set) var capabilities = PeerCapabilities()
    /// When the shell has to send `.tick`; `distantFuture` when nothing is waited for.
    package internal(set) var deadline = Instant.distantFuture
    /// Transactions begun.
    package internal(set) var transactions = 0

    var parser = ReplyParser()
    var inbound = ByteBuffer()
    var current: RunningTransaction?
    /// A transaction was left without an end at the peer: RSET goes before the next MAIL.
    var needsReset = false

    package init(settings: ClientSettings) {
        self.settings = settings
    }

    /// Whether `.begin` is allowed.
    package var isReady: Bool { phase == .ready }
    package var isClosed: Bool { phase == .closed }
    /// Whether a transaction runs whose final dot is not out.
    package var isBeforeDot: Bool { current != nil && !isPastDot }
    /// Whether the final dot (or the last chunk) of the running transaction is out.
    package var isPastDot: Bool {
        switch phase {
        case .dot, .chunk(last: true): true
        default: false
        }
    }
    /// Whether a fragmented body is on its way by DATA, so that `.writable` is waited for.
    package var isStreaming: Bool { phase == .streaming }
    /// The fragment that `.wantFragment` asked for last.
    package var fragmentWanted: UInt32 { current?.nextFragment ?? 0 }
    /// The peer's MAILMAX is used up (RFC 9422).
    package var isExhausted: Bool { capabilities.transactionsMax.map { transactions >= $0 } ?? false }

    package mutating func receive(_ event: ClientEvent, at now: Instant, into actions: inout ActionBuffer<ClientAction>)
    {
        switch event {
        case .connected:
            guard phase == .idle else { return }
            phase = .banner
            deadline = now + settings.timeouts.banner
        case .received(var bytes):
            guard phase != .closed, phase != .idle else { return }
            if inbound.readableBytes == 0 { inbound = bytes } else { inbound.writeBuffer(&bytes) }
            readReplies(at: now, into: &actions)
        case .begin(let transaction):
            begin(transaction, at: now, into: &actions)
        case .fragment(let index, let bytes):
            receiveFragment(index, bytes, at: now, into: &actions)
        case .bodyDamaged:
            guard current != nil, !isPastDot else { return }
            end(.damaged, reusable: false, into: &actions)
        case .bodyUnreadable, .forbidden:
            guard current != nil, !isPastDot else { return }
            end(.again, reusable: false, into: &actions)
        case .writable:
            guard phase == .streaming else { return }
            current?.awaitsWritable = false
            sendFragment(at: now, into: &actions)
        case .tick:
            guard now >= deadline else { return }
            lose("timed out", at: now, into: &actions)
        case .closed:
            lose("connection lost", at: now, into: &actions)
        case .quit:
            sendQuit(at: now, into: &actions)
        }
    }

    // MARK: Replies

    /// Before anything is written that waits for an answer of its own: whether the peer has said more than it was asked. Then
    /// the connection is lost here, above all before a body, whose 250 would be the reply to something else.
    mutating func isOutOfStep(at now: Instant, into actions: inout ActionBuffer<ClientAction>) -> Bool {
        guard inbound.readableBytes > 0 else { return false }
        lose("peer answered what it was not asked", at: now, into: &actions)
        return true
    }

    private mutating func readReplies(at now: Instant, into actions: inout ActionBuffer<ClientAction>) {
        while phase != .closed {
            switch parser.next(from: &inbound) {
            case .needMore:
                // The buffer came from the transport's allocator: an emptied one is given back.
                if inbound.readableBytes == 0 { inbound = ByteBuffer() }
                return
            case .violation(let violation):
                lose("peer broke the protocol (\(violation))", at: now, into: &actions)
            case .reply(let code):
                receiveReply(code, at: now, into: &actions)
            }
        }
    }

    private mutating func receiveReply(_ code: UInt16, at now: Instant, into actions: inout ActionBuffer<ClientAction>)
    {
        switch phase {
        case .idle, .closed: break
        case .banner:
            guard code / 100 == 2 else { return refuse(parser.reply(stage: .banner), into: &actions) }
            greet(settings.isLMTP ? "LHLO " : "EHLO ", .ehlo, at: now, into: &actions)
        case .ehlo:
            if code / 100 == 2 {
                capabilities = PeerCapabilities(ehloText: parser.text)
                // STARTTLS, then AUTH go here: each a phase of its own that ends in EHLO again or in `becomeReady`.
                becomeReady(into: &actions)
            } else if code / 100 == 5, !settings.isLMTP {
                greet("HELO ", .helo, at: now, into: &actions)
            } else {
                refuse(parser.reply(stage: .ehlo), into: &actions)
            }
        case .helo:
            guard code / 100 == 2 else { return refuse(parser.reply(stage: .ehlo), into: &actions) }
            becomeReady(into: &actions)
        case .ready:
            // Unasked: the server's farewell (421), or out of step.
            phase = .closed
            deadline = .distantFuture
            actions.append(.close)
        case .quit:
            phase = .closed
            deadline = .distantFuture
            actions.append(.close)
        case .reset, .mail, .rcpt, .data, .streaming, .chunk, .dot:
            receiveTransactionReply(code, at: now, into: &actions)
        }
    }

    private mutating func greet(
        _ verb: StaticString, _ next: Phase, at now: Instant, into actions: inout ActionBuffer<ClientAction>
    ) {
        if isOutOfStep(at: now, into: &actions) { return }
        var line = ByteBufferAllocator().buffer(capacity: settings.hostname.count + 16)
        line.writeStaticString(verb)
        line.writeBytes(settings.hostname)
        line.writeStaticString("\r\n")
        phase = next
        deadline = now + settings.timeouts.command
        actions.append(.write(line))
    }

    private mutating func becomeReady(into actions: inout ActionBuffer<ClientAction>) {
        phase = .ready
        deadline = .distantFuture
        actions.append(.greeted(capabilities))
    }

    private mutating func refuse(_ reply: SMTPReply, into actions: inout ActionBuffer<ClientAction>) {
        phase = .closed
        deadline = .distantFuture
        actions.append(.refused(reply))
        actions.append(.close)
    }

    private mutating func sendQuit(at now: Instant, into actions: inout ActionBuffer<ClientAction>) {
        switch phase {
        case .ready:
            phase = .quit
            deadline = now + settings.timeouts.quit
            actions.append(.write(ByteBuffer(string: "QUIT\r\n")))
        case .quit, .closed: break
        case .idle, .banner, .ehlo, .helo:
            phase = .closed
            deadline = .distantFuture
            actions.append(.close)
        case .reset, .mail, .rcpt, .data, .streaming, .chunk, .dot:
            break
        }
    }

    // MARK: The connection goes

    /// The connection is lost, late or out of step: what runs ends by how far it came.
    mutating func lose(_ reason: String, at now: Instant, into actions: inout ActionBuffer<ClientAction>) {
        switch phase {
        case .closed: return
        case .idle, .ready, .quit:
            phase = .closed
            deadline = .distantFuture
            actions.append(.close)
        case .banner, .ehlo, .helo:
            refuse(noReply(reason), into: &actions)
        case .reset, .mail, .rcpt, .data, .streaming, .chunk(last: false):
            end(.lost(noReply(reason)), reusable: false, into: &actions)
        case .dot, .chunk(last: true):
            end(.inDoubt(noReply(reason)), reusable: false, into: &actions)
        }
    }

    /// What stands for a reply that did not come: code 0, 4.4.2 (RFC 3463 3.5).
    private func noReply(_ reason: String) -> SMTPReply {
        let stage: ReplyStage =
            switch phase {
            case .banner, .idle: .banner
            case .ehlo, .helo: .ehlo
            case .reset: .rset
            case .mail, .ready: .mail
            case .rcpt: .rcpt
            case .data: .data
            case .streaming, .dot: .finalDot
            case .chunk: .bdat
            case .quit, .closed: .quit
            }
        return SMTPReply(local: 0, EnhancedStatus(4, 4, 2), "\(reason) while waiting for \(stage.name)", stage: stage)
    }
}
