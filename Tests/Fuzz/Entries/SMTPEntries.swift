// Fuzz entries for what a client sends: command lines, whole dialogues, DATA.
import BatonCore
import BatonMail
import BatonModel
import NIOCore

@testable import BatonSMTP

/// Lines as the session hands them over: no CR, LF or NUL, at most `lineOctetsMax`.
@Sendable func fuzzCommands(_ input: [UInt8]) throws {
    for line in input.split(whereSeparator: { $0 == 0 || $0 == 0x0d || $0 == 0x0a }) {
        let octets = Array(line.prefix(CommandParser.lineOctetsMax))
        switch octets.withUnsafeBytes({ CommandParser.parse($0) }) {
        case .mail(let sender, _): if let sender { try check(sender, "MAIL FROM") }
        case .rcpt(let recipient, _): if let recipient { try check(recipient, "RCPT TO") }
        case .ehlo(let name), .helo(let name):
            try hold(!name.isEmpty && name.count <= Limits.domainOctets, "EHLO name of \(name.count)")
            try hold(!name.contains { $0 <= 0x20 || $0 == 0x7f }, "control octet in the EHLO name")
        case .bdat(let size, _): try hold(size >= 0, "BDAT size \(size)")
        default: break
        }
    }
}

/// An accepted address is short, free of controls, and is read from its own spelling as itself.
func check(_ address: MailAddress, _ verb: String) throws {
    try hold(address.bytes.count + 2 <= Limits.pathOctets, "path of \(address.bytes.count)")
    try hold(address.localPart.count <= Limits.localPartOctets, "local part of \(address.localPart.count)")
    try hold(!address.bytes.contains { $0 < 0x20 || $0 == 0x7f }, "control octet in \(address)")
    let line = Array("\(verb):<".utf8) + address.bytes + Array((verb == "MAIL FROM" ? "> SMTPUTF8" : ">").utf8)
    let again: MailAddress? =
        switch line.withUnsafeBytes({ CommandParser.parse($0) }) {
        case .mail(let found, _): found
        case .rcpt(let found, _): found
        default: nil
        }
    try hold(again == address, "\(address) is read again as \(String(describing: again))")
}

/// What a dialogue came to.
private struct Dialogue: Equatable {
    var replies: [UInt8] = []
    var messages: [[UInt8]] = []
    var closed = false
}

private func converse(_ pieces: [[UInt8]], normalize: Bool) throws -> Dialogue {
    var limits = ServerLimits()
    limits.messageSize = 2000
    limits.recipients = 5
    limits.lineLength = 200
    limits.hops = 3
    guard let postmaster = MailAddress("postmaster@relay.test") else { throw Finding(description: "postmaster") }
    let settings = ServerSettings(
        hostname: "relay.test", normalizesBareLF: normalize, limits: limits, postmaster: postmaster)
    let client = ServerClient(address: Array("192.0.2.1".utf8), mayRelay: true, sessionID: 1)
    let now = Instant(secondsSinceEpoch: 1_767_225_600)
    var session = ServerSession(settings: settings, client: client, seed: 1, at: now)
    var output = ServerOutput()
    var input = ByteBuffer()
    var dialogue = Dialogue()
    session.deadlineReached(at: now + .seconds(1), into: &output)
    for piece in pieces {
        input.writeBytes(piece)
        while true {
            session.receive(&input, at: now + .seconds(1), into: &output)
            for action in output.actions {
                switch action {
                case .submit(let message):
                    let content = session.takeContent().octets.dropFirst(IncomingBody.headroom)
                    try hold(
                        content.count == message.traits.length, "\(content.count) octets, not \(message.traits.length)")
                    var measured = BodyTraits.measured(ByteBuffer(bytes: content))
                    measured.crc32c = message.traits.crc32c
                    try hold(measured == message.traits, "traits that are not the body's: \(message.traits)")
                    try hold(isCleanText(content), "an accepted message with a bare CR, a bare LF or NUL")
                    try hold(!message.recipients.isEmpty && message.recipients.count <= 5, "recipients")
                    dialogue.messages.append(Array(content))
                case .close: dialogue.closed = true
                case .openStream, .fragment, .abandonStream, .reject: break
                }
            }
            output.actions.removeAll()
            guard session.awaitsVerdict else { break }
            session.submissionFinished(
                .durable(StoredMessageRef(segment: 0, record: 0)), at: now + .seconds(1), into: &output)
        }
    }
    dialogue.replies = output.replies.octets
    return dialogue
}

private func isCleanText(_ octets: some Collection<UInt8>) -> Bool {
    var last: UInt8 = 0
    for octet in octets {
        if octet == 0 || (octet == 0x0a) != (last == 0x0d) { return false }
        last = octet
    }
    return last != 0x0d
}

/// A stream means the same however the network cuts its lines, and 250 to a message means one message.
///
/// Lines that arrive together may be an offence (RFC 2920 3.1), which ends the session: then only the bounds are held.
@Sendable func fuzzSession(_ input: [UInt8]) throws {
    guard let first = input.first else { return }
    let stream = Array(input.dropFirst())
    let normalize = first & 1 != 0
    let lines = split(stream)
    let byLine = try converse(lines, normalize: normalize)
    let pieces = lines.flatMap { cut($0, seed: first >> 1) }
    try expectSame(byLine, try converse(pieces, normalize: normalize))
    let together = try converse([stream], normalize: normalize)
    if !text(together.replies).contains("Commands pipelined where they may not be") { try expectSame(byLine, together) }
    for dialogue in [byLine, together] {
        try hold(isCleanText(dialogue.replies), "a reply with a bare CR or LF")
        let taken = text(dialogue.replies).split(separator: "\r\n").count { $0.hasPrefix("250 2.0.0 Ok: queued as ") }
        try hold(taken == dialogue.messages.count, "\(taken) times 250 for \(dialogue.messages.count) messages")
    }
}

/// Of several faults of one message any may be named, so refusals are compared by their class.
private func expectSame(_ one: Dialogue, _ other: Dialogue) throws {
    let same =
        one.messages == other.messages && one.closed == other.closed && outline(one.replies) == outline(other.replies)
    try hold(same, "cut otherwise, the dialogue differs: \(text(one.replies)) // \(text(other.replies))")
}

private func outline(_ replies: [UInt8]) -> [ArraySlice<UInt8>] {
    replies.split(separator: 0x0a).map { $0.first == UInt8(ascii: "5") ? $0.prefix(1) : $0 }
}

/// Pieces that end behind each LF.
private func split(_ octets: [UInt8]) -> [[UInt8]] {
    var pieces: [[UInt8]] = []
    var start = 0
    for index in octets.indices where octets[index] == 0x0a {
        pieces.append(Array(octets[start...index]))
        start = index + 1
    }
    if start < octets.count { pieces.append(Array(octets[start...])) }
    return pieces
}

private func text(_ octets: [UInt8]) -> String { String(decoding: octets, as: UTF8.self) }

private struct Framed: Equatable {
    var content: [UInt8] = []
    var used = 0
    var ended = false
    var violation: FramingViolation?
    var dots = 0
    var longest = 0
    var endsWithCRLF = false
}

private func frame(_ pieces: [[UInt8]], _ kind: DataFraming.Kind, normalize: Bool) -> Framed {
    var framing = DataFraming(kind, normalizesBareLF: normalize)
    var body = IncomingBody()
    body.begin(expected: nil)
    var framed = Framed()
    for piece in pieces where !framed.ended {
        let (used, ended) = piece.withUnsafeBytes { framing.receive($0, into: &body) }
        framed.used += used
        framed.ended = ended
    }
    if kind == .counted { framing.finish() }
    framed.content = Array(body.takeRest().octets.dropFirst(IncomingBody.headroom))
    framed.violation = framing.violation
    framed.dots = framing.leadingDots
    framed.longest = framing.longestLine
    framed.endsWithCRLF = framing.endsWithCRLF
    return framed
}

/// Octet by octet and by the book (RFC 5321 4.5.2): what a clean DATA holds. Nil for one with violations or without its end.
///
/// Normalized, a bare LF ends a line too, and a lone dot counts only between two CRLF.
private func framedByTheBook(_ stream: [UInt8], normalize: Bool) -> (content: [UInt8], used: Int)? {
    var content: [UInt8] = []
    var line: [UInt8] = []
    var behindCRLF = true
    var index = 0
    while index < stream.count {
        let octet = stream[index]
        index += 1
        if octet != 0x0d, octet != 0x0a {
            guard octet != 0 else { return nil }
            line.append(octet)
            continue
        }
        if octet == 0x0d {
            guard index < stream.count, stream[index] == 0x0a else { return nil }
            index += 1
        } else if !normalize {
            return nil
        }
        let isDot = line == [UInt8(ascii: ".")]
        if isDot, behindCRLF, octet == 0x0d { return (content, index) }
        if !isDot, line.first == UInt8(ascii: ".") { line.removeFirst() }
        content += line + [0x0d, 0x0a]
        line = []
        behindCRLF = octet == 0x0d
    }
    return nil
}

@Sendable func fuzzData(_ input: [UInt8]) throws {
    guard input.count >= 2 else { return }
    let kind: DataFraming.Kind = input[0] & 1 == 0 ? .dotted : .counted
    let normalize = input[0] & 2 != 0
    let stream = Array(input.dropFirst(2))
    let whole = frame([stream], kind, normalize: normalize)
    let split = frame(cut(stream, seed: input[1]), kind, normalize: normalize)
    try hold(whole.used == split.used && whole.ended == split.ended, "cut otherwise, it ends elsewhere")
    try hold(
        whole.violation == split.violation,
        "\(String(describing: whole.violation)) or \(String(describing: split.violation))")
    guard whole.violation == nil else { return }
    try hold(whole == split, "cut otherwise, the body differs: \(whole) // \(split)")
    if kind == .counted, !normalize { try hold(whole.content == stream, "BDAT changed") }
    guard kind == .dotted else { return }
    if whole.ended {
        try hold(isCleanText(whole.content), "bare CR, bare LF or NUL got in")
        try hold(whole.endsWithCRLF, "DATA without its last CRLF")
    }
    if let book = framedByTheBook(stream, normalize: normalize) {
        try hold(whole.ended && whole.used == book.used, "the end is at \(book.used), not \(whole.used)")
        try hold(whole.content == book.content, "the body differs from the book's")
    } else {
        try hold(!whole.ended, "ended where the book sees no end")
    }
    guard whole.ended else { return }
    // What was taken in goes out again as it came.
    var stuffer = DotStuffer()
    var sent: [UInt8] = []
    for piece in cut(whole.content, seed: input[1]) { sent += stuffer.stuff(ByteBuffer(bytes: piece)).octets }
    let back = frame([sent + Array(".\r\n".utf8)], .dotted, normalize: false)
    try hold(back.ended && back.content == whole.content, "stuffed and un-stuffed, the body differs")
    try hold(back.dots == whole.dots, "\(whole.dots) leading dots, then \(back.dots)")
}
