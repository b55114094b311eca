// Fuzz entries for what a server answers: replies, and whole delivery sessions.
import BatonCore
import BatonModel
import NIOCore

@testable import BatonSMTP

private struct ReadReplies: Equatable {
    var replies: [SMTPReply] = []
    var violation: ReplyViolation?
}

private func read(_ pieces: [[UInt8]]) throws -> ReadReplies {
    var parser = ReplyParser()
    var buffer = ByteBuffer()
    var read = ReadReplies()
    for piece in pieces {
        buffer.writeBytes(piece)
        var waits = false
        while !waits {
            switch parser.next(from: &buffer) {
            case .needMore: waits = true
            case .reply(let code):
                let reply = parser.reply(stage: .rcpt)
                try hold(code == reply.code && code >= 100 && code < 600, "code \(code)")
                try hold(parser.text.count <= ReplyParser.textOctets, "text of \(parser.text.count)")
                try hold(reply.text.count <= parser.text.count, "text that grew")
                try hold(!reply.text.contains(0), "NUL in a reply")
                if let status = reply.status { try hold(UInt16(status.classDigit) == code / 100, "\(status), \(code)") }
                read.replies.append(reply)
            case .violation(let violation):
                read.violation = violation
                return read
            }
        }
        try hold(buffer.readableBytes < ReplyParser.lineOctets, "\(buffer.readableBytes) octets held")
    }
    return read
}

@Sendable func fuzzReplies(_ input: [UInt8]) throws {
    guard let first = input.first else { return }
    let stream = Array(input.dropFirst())
    let whole = try read([stream])
    let split = try read(cut(stream, seed: first))
    try hold(whole == split, "cut otherwise, the replies differ: \(whole) // \(split)")
}

/// A session that a peer answers with anything: what began ends exactly once, for every recipient.
///
/// The first octet chooses transport and body; the rest is the peer's stream, cut by the second octet. A 0xff in a cut's
/// place is a time-out, a 0xfe a lost connection.
@Sendable func fuzzClient(_ input: [UInt8]) throws {
    guard input.count >= 2 else { return }
    let options = input[0]
    var session = ClientSession(
        settings: ClientSettings(
            hostname: Array("relay.test".utf8), isLMTP: options & 1 != 0, chunkingFrom: options & 2 != 0 ? 1 : 1_000_000
        ))
    var now = Instant(secondsSinceEpoch: 1000)
    var begun = 0
    var finished = 0
    var verdicts = 0
    var closes = 0
    let recipients: [UInt32] = options & 4 != 0 ? [0] : [0, 1, 2]
    func send(_ event: ClientEvent) throws {
        var queue: [ClientEvent] = [event]
        var rounds = 0
        while !queue.isEmpty {
            rounds += 1
            try hold(rounds < 100_000, "the session never rests")
            var actions = ActionBuffer<ClientAction>()
            session.receive(queue.removeFirst(), at: now, into: &actions)
            for action in actions.drain() {
                switch action {
                case .write(let bytes):
                    try hold(closes == 0, "written after the close")
                    if options & 8 != 0, session.isStreaming, bytes.readableBytes > 0 { queue.append(.writable) }
                case .wantFragment(let index):
                    try hold(index < 3, "fragment \(index)")
                    queue.append(.fragment(index, ByteBuffer(string: "line\r\n.dot\r\n")))
                case .greeted: verdicts += 1
                case .refused: verdicts += 1
                case .finished(let end):
                    finished += 1
                    try hold(end.ends.count == recipients.count, "\(end.ends.count) ends for \(recipients.count)")
                case .close: closes += 1
                }
            }
        }
        try hold(finished <= begun && finished + 1 >= begun, "\(begun) begun, \(finished) finished")
        try hold(verdicts <= 1 && closes <= 1, "\(verdicts) verdicts, \(closes) closes")
    }
    try send(.connected)
    let stream = Array(input.dropFirst(2))
    for piece in cut(stream, seed: input[1] | 1) {
        if piece.first == 0xff {
            now = max(now, session.deadline == .distantFuture ? now : session.deadline)
            try send(.tick)
        } else if piece.first == 0xfe {
            try send(.closed)
        } else {
            try send(.received(ByteBuffer(bytes: piece)))
        }
        if session.isReady, begun == finished, begun < 50 {
            begun += 1
            try send(.begin(transaction(recipients, options)))
        }
    }
    try send(.closed)
    try hold(session.isClosed, "open after the end")
    try hold(begun == finished, "\(begun) begun, \(finished) finished")
    try hold(verdicts == 1 && closes == 1, "\(verdicts) verdicts, \(closes) closes")
}

private func transaction(_ recipients: [UInt32], _ options: UInt8) -> ClientTransaction {
    let octets = Array("Subject: x\r\n\r\n.hello\r\n".utf8)
    let fragmented = options & 8 != 0
    let traits = BodyTraits(
        length: fragmented ? 36 : octets.count, crc32c: fragmented ? 0 : CRC32C.of(octets), headerLength: 14,
        leadingDots: fragmented ? 3 : 1, longestLine: 10, hasEightBitBody: options & 16 != 0, hasEightBitHeader: false,
        endsWithCRLF: true)
    let addresses = ["a@example.test", "b@example.test", "c@example.test"].compactMap { MailAddress($0) }
    let envelope = Envelope(
        id: MessageID(high: 1, low: 2), arrival: .epoch, sender: MailAddress("s@sender.test"),
        flags: options & 32 != 0 ? [.smtpUTF8] : [], recipients: addresses.map { EnvelopeRecipient(address: $0) },
        traits: traits)
    let body: StoredBody =
        fragmented
        ? .fragmented(traits: traits, count: 3) : .whole(MessageBody(bytes: ByteBuffer(bytes: octets), traits: traits))
    return ClientTransaction(envelope: envelope, recipients: recipients, body: body)
}
