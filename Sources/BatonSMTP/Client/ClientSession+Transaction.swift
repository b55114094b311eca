// One mail transaction of the client session: envelope, body, replies per recipient.
import BatonCore
import BatonModel
import NIOCore

/// What a transaction has come to so far.
struct RunningTransaction: Sendable {
    let transaction: ClientTransaction
    /// Per recipient; nil while nothing was said that ends it.
    var ends: [RecipientEnd?]
    var accepted = 0
    let startedAt: Instant
    /// All commands up to DATA are out.
    let pipelined: Bool
    /// MAIL was refused: the replies to what was pipelined behind it are read and ignored.
    var mailRefused = false
    var mailAccepted = false
    /// The body goes by BDAT.
    let chunked: Bool
    /// The transport has not yet taken the last fragment.
    var awaitsWritable = false
    /// The fragment to be sent next, and at most one that is here already.
    var nextFragment: UInt32 = 0
    var held: ByteBuffer?
    var asked: UInt32 = 0
    var stuffer = DotStuffer()
    var trouble: SMTPReply?

    var count: Int { transaction.recipients.count }
}

extension ClientSession {
    private static let dot = ByteBuffer(string: ".\r\n")
    private static let lineEndDot = ByteBuffer(string: "\r\n.\r\n")
    private static let dataCommand: StaticString = "DATA\r\n"

    // MARK: Begin

    mutating func begin(
        _ transaction: ClientTransaction, at now: Instant, into actions: inout ActionBuffer<ClientAction>
    ) {
        let count = transaction.recipients.count
        guard phase == .ready, count > 0 else {
            // The shell began on a connection that is not ready, or without recipients: given back untouched.
            actions.append(.finished(finished(Array(repeating: .again, count: count), reusable: phase == .ready, nil)))
            return
        }
        guard inbound.readableBytes == 0 else {
            // Half an unasked reply: nobody has been told anything yet.
            phase = .closed
            deadline = .distantFuture
            actions.append(.close)
            actions.append(.finished(finished(Array(repeating: .again, count: count), reusable: false, nil)))
            return
        }
        if let lack = ClientCommands.incapability(transaction, capabilities) {
            actions.append(
                .finished(finished(Array(repeating: .incapable(lack), count: count), reusable: true, nil)))
            return
        }
        let traits = transaction.body.traits
        let chunked =
            capabilities.chunking && (traits.length >= settings.chunkingFrom || !traits.endsWithCRLF)
        transactions += 1
        let pipelined = capabilities.pipelining
        var running = RunningTransaction(
            transaction: transaction, ends: Array(repeating: nil, count: count), startedAt: now, pipelined: pipelined,
            chunked: chunked)
        if let most = capabilities.recipientsMax, most < count {
            for index in most..<count { running.ends[index] = .again }
        }
        var buffer = ByteBufferAllocator().buffer(capacity: 128 + (pipelined ? count * 64 : 0))
        if needsReset { buffer.writeStaticString("RSET\r\n") }
        if pipelined || !needsReset {
            ClientCommands.writeMail(transaction, capabilities, isLMTP: settings.isLMTP, into: &buffer)
        }
        if pipelined {
            for index in 0..<count where running.ends[index] == nil {
                ClientCommands.writeRecipient(
                    transaction, index, capabilities, isLMTP: settings.isLMTP, into: &buffer)
            }
            if !chunked { buffer.writeStaticString(Self.dataCommand) }
        }
        phase = needsReset ? .reset : .mail
        current = running
        wait(settings.timeouts.command, at: now)
        actions.append(.write(buffer))
    }

    /// Waits for a reply, until DATA never beyond the attempt's own limit.
    private mutating func wait(_ span: TimeSpan, at now: Instant) {
        deadline = now + span
        if let current { deadline = min(deadline, current.startedAt + settings.timeouts.attempt) }
    }

    // MARK: Replies

    mutating func receiveTransactionReply(
        _ code: UInt16, at now: Instant, into actions: inout ActionBuffer<ClientAction>
    ) {
        let kind = code / 100
        switch phase {
        case .reset:
            guard kind == 2 else { return drop(stage: .rset, at: now, into: &actions) }
            needsReset = false
            phase = .mail
            wait(settings.timeouts.command, at: now)
            if current?.pipelined == false, let current {
                if isOutOfStep(at: now, into: &actions) { return }
                var buffer = ByteBufferAllocator().buffer(capacity: 128)
                ClientCommands.writeMail(current.transaction, capabilities, isLMTP: settings.isLMTP, into: &buffer)
                actions.append(.write(buffer))
            }
        case .mail: receiveMailReply(kind, code, at: now, into: &actions)
        case .rcpt(let index): receiveRecipientReply(index, kind, code, at: now, into: &actions)
        case .data: receiveDataReply(kind, code, at: now, into: &actions)
        case .streaming:
            // An answer before the dot: a refusal counts, but the connection is out of step.
            guard kind == 4 || kind == 5, code != 421 else { return drop(stage: .data, at: now, into: &actions) }
            end(.reply(parser.reply(stage: .data)), reusable: false, into: &actions)
        case .chunk(let last): receiveChunkReply(last, kind, code, at: now, into: &actions)
        case .dot(let index): receiveFinalReply(index, kind, code, stage: .finalDot, at: now, into: &actions)
        case .idle, .banner, .ehlo, .helo, .ready, .quit, .closed: break
        }
    }

    private mutating func receiveMailReply(
        _ kind: UInt16, _ code: UInt16, at now: Instant, into actions: inout ActionBuffer<ClientAction>
    ) {
        guard code != 421, kind == 2 || kind == 4 || kind == 5 else {
            return drop(stage: .mail, at: now, into: &actions)
        }
        if kind == 2 {
            current?.mailAccepted = true
        } else {
            let reply = parser.reply(stage: .mail)
            current?.mailRefused = true
            current?.trouble = reply
            settle(.reply(reply))
            if current?.pipelined == false { return end(nil, reusable: true, into: &actions) }
        }
        proceed(after: -1, at: now, into: &actions)
    }

    private mutating func receiveRecipientReply(
        _ index: Int, _ kind: UInt16, _ code: UInt16, at now: Instant, into actions: inout ActionBuffer<ClientAction>
    ) {
        guard code != 421, kind == 2 || kind == 4 || kind == 5 else {
            return drop(stage: .rcpt, at: now, into: &actions)
        }
        if current?.mailRefused == false, current?.ends.indices.contains(index) == true {
            if kind == 2 {
                current?.accepted += 1
            } else {
                let reply = parser.reply(stage: .rcpt)
                let again = (current?.accepted ?? 0) > 0 && Self.saysTooMany(reply)
                current?.ends[index] = again ? .again : .reply(reply)
            }
        }
        proceed(after: index, at: now, into: &actions)
    }

    /// 452, or 552 as old peers have it, for too many recipients (RFC 5321 4.5.3.1.10).
    package static func saysTooMany(_ reply: SMTPReply) -> Bool {
        guard reply.code == 452 || reply.code == 552 else { return false }
        guard let status = reply.status else { return true }
        return status.subject == 5 && status.detail == 3
    }

    /// After MAIL (-1) or the RCPT at `index`: the next RCPT that is not left out, then DATA.
    private mutating func proceed(
        after index: Int, at now: Instant, into actions: inout ActionBuffer<ClientAction>
    ) {
        guard let current else { return }
        var next = index + 1
        let limit = min(current.count, capabilities.recipientsMax ?? current.count)
        if current.mailRefused, !current.pipelined { next = limit }
        if next < limit {
            phase = .rcpt(next)
            wait(settings.timeouts.command, at: now)
            if !current.pipelined {
                if isOutOfStep(at: now, into: &actions) { return }
                var buffer = ByteBufferAllocator().buffer(capacity: 128)
                ClientCommands.writeRecipient(
                    current.transaction, next, capabilities, isLMTP: settings.isLMTP, into: &buffer)
                actions.append(.write(buffer))
            }
            return
        }
        if current.pipelined, !current.chunked {
            phase = .data
            wait(settings.timeouts.dataCommand, at: now)
        } else if current.accepted == 0 {
            needsReset = current.mailAccepted
            end(nil, reusable: true, into: &actions)
        } else if current.chunked {
            startBody(at: now, into: &actions)
        } else {
            if isOutOfStep(at: now, into: &actions) { return }
            phase = .data
            wait(settings.timeouts.dataCommand, at: now)
            actions.append(.write(ByteBuffer(string: "DATA\r\n")))
        }
    }

    private mutating func receiveDataReply(
        _ kind: UInt16, _ code: UInt16, at now: Instant, into actions: inout ActionBuffer<ClientAction>
    ) {
        guard let current else { return }
        switch kind {
        case 3:
            if current.accepted > 0 { return startBody(at: now, into: &actions) }
            // All were refused and yet 354: a lone dot, its answer means nothing (RFC 2920 3.1).
            if isOutOfStep(at: now, into: &actions) { return }
            actions.append(.write(Self.dot))
            phase = .dot(0)
            deadline = now + settings.timeouts.dot
        case 4, 5:
            if code == 421 { return drop(stage: .data, at: now, into: &actions) }
            needsReset = current.mailAccepted
            end(current.accepted > 0 ? .reply(parser.reply(stage: .data)) : nil, reusable: true, into: &actions)
        default: drop(stage: .data, at: now, into: &actions)
        }
    }

    private mutating func receiveChunkReply(
        _ last: Bool, _ kind: UInt16, _ code: UInt16, at now: Instant, into actions: inout ActionBuffer<ClientAction>
    ) {
        if last { return receiveFinalReply(0, kind, code, stage: .bdat, at: now, into: &actions) }
        switch kind {
        case 2:
            if isOutOfStep(at: now, into: &actions) { return }
            phase = .streaming
            sendFragment(at: now, into: &actions)
        case 4, 5:
            if code == 421 { return drop(stage: .bdat, at: now, into: &actions) }
            needsReset = true
            end(.reply(parser.reply(stage: .bdat)), reusable: true, into: &actions)
        default: drop(stage: .bdat, at: now, into: &actions)
        }
    }

    private mutating func receiveFinalReply(
        _ from: Int, _ kind: UInt16, _ code: UInt16, stage: ReplyStage, at now: Instant,
        into actions: inout ActionBuffer<ClientAction>
    ) {
        guard kind == 2 || kind == 4 || kind == 5 else {
            return lose("peer broke the protocol (\(code) after the final dot)", at: now, into: &actions)
        }
        let reply = parser.reply(stage: stage)
        needsReset = false
        if code == 421 {
            current?.trouble = reply
            return end(.reply(reply), reusable: false, into: &actions)
        }
        guard settings.isLMTP, (current?.accepted ?? 0) > 0 else {
            return end(.reply(reply), reusable: true, into: &actions)
        }
        // LMTP: this reply is that of the next accepted recipient (RFC 2033 4.2).
        guard let ends = current?.ends, let mine = ends.indices.first(where: { $0 >= from && ends[$0] == nil }) else {
            return end(nil, reusable: false, into: &actions)
        }
        current?.ends[mine] = .reply(reply)
        if ends.indices.contains(where: { $0 > mine && ends[$0] == nil }) {
            // The BDAT reply comes per recipient too; both wait in the same phase from here on.
            phase = .dot(mine + 1)
            deadline = now + settings.timeouts.dot
        } else {
            end(nil, reusable: true, into: &actions)
        }
    }

    // MARK: End

    /// Gives `end` to every recipient that has none yet.
    private mutating func settle(_ end: RecipientEnd) {
        guard let count = current?.count else { return }
        for index in 0..<count where current?.ends[index] == nil { current?.ends[index] = end }
    }

    /// A reply that ends the connection before the dot: 421, or one that does not belong there.
    private mutating func drop(stage: ReplyStage, at now: Instant, into actions: inout ActionBuffer<ClientAction>) {
        let reply = parser.reply(stage: stage)
        current?.trouble = reply
        end(.lost(reply), reusable: false, into: &actions)
    }

    /// Ends the transaction; `rest` goes to every recipient without an end of its own (nil: there is none).
    mutating func end(_ rest: RecipientEnd?, reusable: Bool, into actions: inout ActionBuffer<ClientAction>) {
        settle(rest ?? .again)
        guard let current else { return }
        self.current = nil
        deadline = .distantFuture
        phase = reusable ? .ready : .closed
        // The end before the close: once the transport is gone nobody listens for it.
        actions.append(
            .finished(
                finished(current.ends.map { $0 ?? .again }, reusable: reusable && !isExhausted, current.trouble)))
        if !reusable { actions.append(.close) }
    }

    private func finished(_ ends: [RecipientEnd], reusable: Bool, _ trouble: SMTPReply?) -> TransactionEnd {
        TransactionEnd(
            ends: ends, reusable: reusable, peerHasDSN: capabilities.dsn && !settings.isLMTP, trouble: trouble)
    }

    // MARK: Body

    private mutating func startBody(at now: Instant, into actions: inout ActionBuffer<ClientAction>) {
        guard let current else { return }
        if isOutOfStep(at: now, into: &actions) { return }
        switch current.transaction.body {
        case .whole(let body):
            if current.chunked {
                actions.append(.write(chunkCommand(body.bytes.readableBytes, last: true)))
                actions.append(.write(body.bytes))
                phase = .chunk(last: true)
            } else {
                let bytes = body.traits.leadingDots > 0 ? self.current?.stuffer.stuff(body.bytes) : body.bytes
                actions.append(.write(bytes ?? body.bytes))
                actions.append(.write(body.traits.endsWithCRLF ? Self.dot : Self.lineEndDot))
                phase = .dot(0)
            }
            deadline = now + settings.timeouts.dot
        case .fragmented(_, let count):
            phase = .streaming
            deadline = now + settings.timeouts.data
            self.current?.asked = min(1, count)
            if count > 0 { actions.append(.wantFragment(0)) } else { end(.damaged, reusable: false, into: &actions) }
        }
    }

    private func chunkCommand(_ octets: Int, last: Bool) -> ByteBuffer {
        ByteBuffer(string: last ? "BDAT \(octets) LAST\r\n" : "BDAT \(octets)\r\n")
    }

    mutating func receiveFragment(
        _ index: UInt32, _ bytes: ByteBuffer, at now: Instant, into actions: inout ActionBuffer<ClientAction>
    ) {
        guard current != nil, current?.held == nil, index == current?.nextFragment else { return }
        current?.held = bytes
        if phase == .streaming { sendFragment(at: now, into: &actions) }
    }

    /// Sends the fragment at hand when the transport is ready for it, and asks for the one after it: at most one waits here
    /// while one is on its way.
    mutating func sendFragment(at now: Instant, into actions: inout ActionBuffer<ClientAction>) {
        guard let running = current, !running.awaitsWritable, let bytes = running.held,
            case .fragmented(let traits, let count) = running.transaction.body
        else { return }
        let last = running.nextFragment + 1 >= count
        current?.held = nil
        current?.nextFragment += 1
        if running.chunked {
            actions.append(.write(chunkCommand(bytes.readableBytes, last: last)))
            actions.append(.write(bytes))
            phase = .chunk(last: last)
        } else {
            let stuffed = traits.leadingDots > 0 ? current?.stuffer.stuff(bytes) : bytes
            actions.append(.write(stuffed ?? bytes))
            if last {
                actions.append(.write(traits.endsWithCRLF ? Self.dot : Self.lineEndDot))
                phase = .dot(0)
            } else {
                current?.awaitsWritable = true
            }
        }
        deadline = now + (last ? settings.timeouts.dot : settings.timeouts.data)
        if !last {
            current?.asked += 1
            actions.append(.wantFragment(running.nextFragment + 1))
        }
    }
}
