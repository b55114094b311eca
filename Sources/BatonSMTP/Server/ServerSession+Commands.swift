// Command lines of the server session: reading, order, replies.
import BatonCore
import BatonModel
import CBatonSystem
import NIOCore

extension ServerSession {
    private enum LineScan {
        case incomplete
        case overlong
        /// The end of an overlong line.
        case skipped(Int)
        case badOctet
        /// Octets with CRLF.
        case command(Command, Int)
    }

    /// Reads one line and answers it. False when there is no whole line.
    mutating func readCommand(_ input: inout ByteBuffer, at now: Instant, _ output: inout ServerOutput) -> Bool {
        let scan = input.withUnsafeReadableBytes { scanLine($0) }
        switch scan {
        case .incomplete: return false
        case .badOctet:
            end(.badOctet, &output)
            return true
        case .overlong:
            // Keep the last octet: it may be the CR of the line's end.
            skipsLine = true
            input.moveReaderIndex(forwardBy: input.readableBytes - 1)
            searchedTo = 0
            return false
        case .skipped(let octets):
            skipsLine = false
            searchedTo = 0
            input.moveReaderIndex(forwardBy: octets)
            deadline = now + settings.limits.commandTimeout
            answer(.lineTooLong, &output)
            return true
        case .command(let command, let octets):
            searchedTo = 0
            input.moveReaderIndex(forwardBy: octets)
            deadline = now + settings.limits.commandTimeout
            commands &+= 1
            if input.readableBytes > 0, isLastOfGroup(command) {
                end(.unsynchronised, &output)
                return true
            }
            perform(command, at: now, &output)
            return true
        }
    }

    private mutating func scanLine(_ raw: UnsafeRawBufferPointer) -> LineScan {
        guard let base = raw.baseAddress?.assumingMemoryBound(to: UInt8.self) else { return .incomplete }
        let from = min(searchedTo, raw.count)
        let found = from + baton_find_crlf_nul(base + from, raw.count - from)
        if found == raw.count || (base[found] == 0x0d && found + 1 == raw.count) {
            searchedTo = found
            return raw.count >= CommandParser.lineOctetsMax ? .overlong : .incomplete
        }
        guard base[found] == 0x0d, base[found + 1] == 0x0a else { return .badOctet }
        let octets = found + 2
        if skipsLine || octets > CommandParser.lineOctetsMax { return .skipped(octets) }
        return .command(CommandParser.parse(UnsafeRawBufferPointer(rebasing: raw[..<found])), octets)
    }

    /// Commands behind which a client has to wait for the reply (RFC 2920 3.1, RFC 3207 4, RFC 4954 4); without EHLO, which
    /// alone offers PIPELINING, every command.
    private func isLastOfGroup(_ command: Command) -> Bool {
        guard isExtended else { return true }
        switch command {
        case .ehlo, .helo, .data, .vrfy, .expn, .noop, .quit, .starttls, .auth, .unimplemented: return true
        case .mail, .rcpt, .bdat, .rset, .help, .http, .unknown, .malformed: return false
        }
    }

    /// Whether a connection that sends nothing else only holds its place.
    private func isIdle(_ command: Command) -> Bool {
        switch command {
        case .ehlo, .helo, .rset, .noop, .vrfy, .help: true
        case .bdat(let size, let last): !last && size < ServerSettings.bytesPerSecondMin
        // What is answered by a 5xx counts as an error.
        case .mail, .rcpt, .data, .quit, .expn, .starttls, .auth, .unimplemented, .http, .unknown, .malformed: false
        }
    }

    private mutating func perform(_ command: Command, at now: Instant, _ output: inout ServerOutput) {
        if isIdle(command) {
            idleCommands += 1
            if idleCommands > ServerSettings.idleCommandsMax { return end(.tooManyCommands, &output) }
        }
        switch command {
        case .mail(let sender, let parameters): mail(sender, parameters, at: now, &output)
        case .rcpt(let recipient, let parameters): rcpt(recipient, parameters, at: now, &output)
        case .data: data(at: now, &output)
        case .bdat(let size, let last): bdat(size, last, at: now, &output)
        case .ehlo(let name): greet(name, extended: true, &output)
        case .helo(let name): greet(name, extended: false, &output)
        case .rset:
            resetTransaction(&output)
            answer(.ok, &output)
        case .noop: answer(.ok, &output)
        case .vrfy: answer(.cannotVerify, &output)
        case .help: answer(.help, &output)
        case .quit: end(.bye, &output, lingering: false)
        case .expn, .starttls, .auth, .unimplemented: answer(.notImplemented, &output)
        case .http:
            // Only the first line proves a browser; later it is one more unknown word.
            if commands == 1 { end(.http, &output) } else { answer(.unknownCommand, &output) }
        case .unknown: answer(.unknownCommand, &output)
        case .malformed(let verb, let error): malformed(verb, error, at: now, &output)
        }
    }

    private mutating func malformed(
        _ verb: Verb, _ error: CommandError, at now: Instant, _ output: inout ServerOutput
    ) {
        if verb == .bdat {
            // How many octets follow is unknown, and they must not be taken for commands.
            end(.badArgument, &output)
            return
        }
        let reply: ServerReply
        switch error {
        case .argument: reply = .badArgument
        case .path: reply = verb == .mail ? .badSender : .badRecipient
        case .tooLong: reply = .argumentTooLong
        case .unknownParameter: reply = .unknownParameter
        case .needsSMTPUTF8: reply = .needsSMTPUTF8
        }
        if verb == .rcpt, state == .transaction { draft.refused += 1 }
        if verb == .mail || verb == .rcpt {
            noteRejection(reply, stage: verb == .mail ? .mail : .rcpt, recipient: nil, at: now, &output)
        }
        answer(reply, &output)
    }

    private mutating func greet(_ name: [UInt8], extended: Bool, _ output: inout ServerOutput) {
        helo = name
        isExtended = extended
        resetTransaction(&output)
        output.replies.writeBytes(extended ? settings.ehlo : settings.helo)
    }

    private mutating func mail(
        _ sender: MailAddress?, _ parameters: MailParameters, at now: Instant, _ output: inout ServerOutput
    ) {
        switch state {
        case .unidentified: return answer(.helloFirst, &output)
        case .transaction: return answer(.nestedMail, &output)
        case .betweenChunks: return answer(.chunksOpen, &output)
        case .ready: break
        case .awaitingGreeting, .data, .chunk, .awaitingVerdict, .closed: return
        }
        if settings.limits.messagesPerConnection > 0, messages >= settings.limits.messagesPerConnection {
            return end(.tooManyMessages, &output)
        }
        draft.sender = sender
        if let gate {
            noteRejection(gate, stage: .mail, recipient: nil, at: now, &output)
            draft = Draft()
            return answer(gate, &output)
        }
        if let size = parameters.size, size > settings.limits.messageSize {
            noteRejection(.tooBig, stage: .mail, recipient: nil, at: now, &output)
            draft = Draft()
            return answer(.tooBig, &output)
        }
        draft.parameters = parameters
        state = .transaction
        answer(.senderOk, &output)
    }

    private mutating func rcpt(
        _ recipient: MailAddress?, _ parameters: RcptParameters, at now: Instant, _ output: inout ServerOutput
    ) {
        switch state {
        case .transaction: break
        case .betweenChunks: return answer(.chunksOpen, &output)
        case .awaitingGreeting, .unidentified, .ready, .data, .chunk, .awaitingVerdict, .closed:
            return answer(state == .unidentified ? .helloFirst : .mailFirst, &output)
        }
        if let recipient {
            if recipient.isInternational, !draft.parameters.smtpUTF8 {
                return refuse(recipient, .needsSMTPUTF8, at: now, &output)
            }
            guard client.mayRelay else { return refuse(recipient, .relayDenied, at: now, &output) }
        }
        if !draft.parameters.smtpUTF8, parameters.originalRecipient.contains(where: { $0 >= 0x80 }) {
            draft.refused += 1
            return answer(.needsSMTPUTF8, &output)
        }
        // A stranger may write to the postmaster, and his sender address may be anybody's: no reports go there.
        let wanted = EnvelopeRecipient(
            address: recipient ?? settings.postmaster, notify: client.mayRelay ? parameters.notify : .never,
            originalRecipient: parameters.originalRecipient)
        guard draft.recipients.count < min(settings.limits.recipients, Limits.recipientsPerEnvelope) else {
            if draft.holds(wanted) { return answer(.recipientOk, &output) }
            draft.refused += 1
            return answer(.tooManyRecipients, &output)
        }
        // Said twice, delivered once, as other relays have it.
        _ = draft.add(wanted)
        answer(.recipientOk, &output)
    }

    private mutating func refuse(
        _ recipient: MailAddress, _ reply: ServerReply, at now: Instant, _ output: inout ServerOutput
    ) {
        draft.refused += 1
        noteRejection(reply, stage: .rcpt, recipient: recipient, at: now, &output)
        answer(reply, &output)
    }

    /// Why neither DATA nor BDAT may come now; nil if they may.
    private var bodyRefusal: ServerReply? {
        switch state {
        case .transaction:
            guard draft.recipients.isEmpty else { return nil }
            return draft.refused > 0 ? .noValidRecipients : .recipientFirst
        case .unidentified: return .helloFirst
        case .betweenChunks: return .chunksOpen
        case .awaitingGreeting, .ready, .data, .chunk, .awaitingVerdict, .closed: return .mailFirst
        }
    }

    private mutating func data(at now: Instant, _ output: inout ServerOutput) {
        if let refusal = bodyRefusal { return answer(refusal, &output) }
        beginBody(.dotted, at: now)
        state = .data
        output.replies.writeStaticString(ServerReply.startData.line)
        output.replies.writeStaticString("\r\n")
    }

    /// The octets of a refused BDAT are on their way all the same (RFC 3030 2): they are read and dropped before the reply.
    private mutating func bdat(_ size: Int, _ last: Bool, at now: Instant, _ output: inout ServerOutput) {
        guard size <= settings.drainMax else { return end(.tooBig, &output) }
        let continues = state == .betweenChunks
        chunkRefusal = continues ? nil : bodyRefusal
        chunkSize = size
        chunkRemaining = size
        chunkIsLast = last
        stateBeforeChunk = state
        if chunkRefusal == nil, !continues { beginBody(.counted, at: now) }
        bodyStartedAt = now
        bodyOctets = 0
        state = .chunk
        resetDataDeadline(at: now)
        if size == 0 { finishChunk(at: now, &output) }
    }
}
