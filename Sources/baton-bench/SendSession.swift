// The generator's side of the dialogue as a pure state machine: replies in, commands and results out.
import NIOCore

/// How the generator speaks.
struct SendBehaviour: Sendable {
    var hostname = "bench.example"
    var sender = "bench@bench.example"
    /// Use PIPELINING where it is offered.
    var pipelining = true
    /// QUIT after so many messages; 0 keeps the connection for all.
    var messagesPerConnection = 0
}

/// One connection's state; at most one message is under way. Bound: a reply line of `lineBound` octets, a reply of `replyLines`.
struct SendSession: Sendable {
    static let lineBound = 4096
    static let replyLines = 100

    /// How one recipient of a message ended.
    struct Result: Equatable, Sendable {
        let kind: HistoryKind
        let code: UInt16
    }

    /// What the shell has to do after a step.
    enum Step: Sendable {
        case needMore
        case progressed
        /// Ready for a message: hand one over with `begin`, or `quit`.
        case ready
        /// The message ended; results are per recipient. The queue id is of the relay's reply. `again` when no recipient
        /// got as far as DATA for the connection's sake (421), so that it should be sent again.
        case ended(BenchMessage, [Result], queueID: [UInt8])
        /// The connection has to be closed; `why` is for people.
        case close(why: String)
    }

    private enum State: Sendable {
        case banner
        case hello(extended: Bool)
        case ready
        case mail
        case recipient(Int)
        case data
        case dot
        case loneDot
        case reset
        case quitting
    }

    private let behaviour: SendBehaviour
    private var state = State.banner
    private var offersPipelining = false
    private var lines = 0
    private(set) var message: BenchMessage?
    private var results: [Result] = []
    private var mailCode: UInt16 = 250
    private var acceptedRecipients = 0
    private var sent = 0

    init(_ behaviour: SendBehaviour) { self.behaviour = behaviour }

    /// Whether the final dot is out: a connection lost now leaves the message in doubt.
    var isInDoubt: Bool { if case .dot = state { message != nil } else { false } }
    /// Whether a reply is owed.
    var isWaiting: Bool { if case .ready = state { false } else { true } }

    /// Takes one reply line out of `input`.
    mutating func step(_ input: inout ByteBuffer, _ out: inout ByteBuffer) -> Step {
        let view = input.readableBytesView
        guard let end = view.firstIndex(of: 0x0a) else {
            return view.count > Self.lineBound ? .close(why: "reply line too long") : .needMore
        }
        let line = view[view.startIndex..<end]
        guard line.count >= 3, let code = Self.code(line) else { return .close(why: "no reply code") }
        let continues = line.count > 3 && line[line.startIndex + 3] == UInt8(ascii: "-")
        let text = Array(line.dropFirst(4).prefix { $0 != 0x0d })
        input.moveReaderIndex(forwardBy: end - view.startIndex + 1)
        lines += 1
        if lines > Self.replyLines { return .close(why: "reply too long") }
        if case .hello(true) = state, text.map({ $0 & 0xdf }) == Array("PIPELINING".utf8) { offersPipelining = true }
        if continues { return .progressed }
        lines = 0
        return reply(code, text, &out)
    }

    /// Sends a message. Only after `.ready`.
    mutating func begin(_ next: BenchMessage, _ out: inout ByteBuffer) {
        message = next
        results.removeAll(keepingCapacity: true)
        mailCode = 250
        acceptedRecipients = 0
        sent += 1
        out.writeString("MAIL FROM:<\(behaviour.sender)>\r\n")
        if pipelines {
            for recipient in next.recipients { Self.recipient(recipient, &out) }
            out.writeString("DATA\r\n")
        }
        state = .mail
    }

    mutating func quit(_ out: inout ByteBuffer) {
        out.writeString("QUIT\r\n")
        state = .quitting
    }

    private var pipelines: Bool { behaviour.pipelining && offersPipelining }

    private mutating func reply(_ code: UInt16, _ text: [UInt8], _ out: inout ByteBuffer) -> Step {
        switch state {
        case .banner:
            guard code == 220 else { return .close(why: "greeted with \(code)") }
            out.writeString("EHLO \(behaviour.hostname)\r\n")
            state = .hello(extended: true)
            return .progressed
        case .hello(let extended):
            if code / 100 == 2 {
                state = .ready
                return .ready
            }
            guard extended else { return .close(why: "HELO answered \(code)") }
            out.writeString("HELO \(behaviour.hostname)\r\n")
            state = .hello(extended: false)
            return .progressed
        case .ready: return .close(why: "a reply nobody asked for: \(code)")
        case .mail: return mailReply(code, &out)
        case .recipient(let number): return recipientReply(number, code, &out)
        case .data: return dataReply(code, &out)
        case .dot:
            for slot in results.indices where results[slot].kind == .accepted {
                results[slot] = Result(kind: code / 100 == 2 ? .accepted : .refused, code: code)
            }
            return end(queueID: code / 100 == 2 ? Self.queueID(text) : [])
        case .loneDot, .reset: return end(queueID: [])
        case .quitting: return .close(why: "")
        }
    }

    private mutating func mailReply(_ code: UInt16, _ out: inout ByteBuffer) -> Step {
        mailCode = code
        if !pipelines {
            if code / 100 != 2 {
                refuseRest(code)
                return end(queueID: [])
            }
            if let first = message?.recipients.first { Self.recipient(first, &out) }
        }
        state = .recipient(0)
        return .progressed
    }

    private mutating func recipientReply(_ number: Int, _ code: UInt16, _ out: inout ByteBuffer) -> Step {
        let taken = code / 100 == 2
        if taken { acceptedRecipients += 1 }
        // Until the dot is answered, `accepted` means: this recipient is still in the running.
        results.append(Result(kind: taken ? .accepted : .refused, code: mailCode / 100 == 2 ? code : mailCode))
        guard let message else { return .close(why: "no message") }
        let next = number + 1
        if next < message.recipients.count {
            if !pipelines { Self.recipient(message.recipients[next], &out) }
            state = .recipient(next)
            return .progressed
        }
        if !pipelines {
            if acceptedRecipients == 0 {
                out.writeString("RSET\r\n")
                state = .reset
                return .progressed
            }
            out.writeString("DATA\r\n")
        }
        state = .data
        return .progressed
    }

    private mutating func dataReply(_ code: UInt16, _ out: inout ByteBuffer) -> Step {
        guard let message else { return .close(why: "no message") }
        if code == 354 {
            if acceptedRecipients == 0 {
                // RFC 2920 3.1: the server wants data although nobody was accepted.
                out.writeString(".\r\n")
                state = .loneDot
                return .progressed
            }
            out.writeBytes(message.header)
            out.writeImmutableBuffer(message.body.wire)
            state = .dot
            return .progressed
        }
        for slot in results.indices where results[slot].kind == .accepted {
            results[slot] = Result(kind: .refused, code: code)
        }
        return end(queueID: [])
    }

    private mutating func refuseRest(_ code: UInt16) {
        let count = message?.recipients.count ?? 0
        while results.count < count { results.append(Result(kind: .refused, code: code)) }
    }

    private mutating func end(queueID: [UInt8]) -> Step {
        guard let done = message else { return .close(why: "no message") }
        message = nil
        state = .ready
        return .ended(done, results, queueID: queueID)
    }

    /// Whether the connection has carried its share.
    var isSpent: Bool { behaviour.messagesPerConnection > 0 && sent >= behaviour.messagesPerConnection }

    /// What becomes of the message when the connection is lost: in doubt behind the dot, else nil, which means: send it again.
    mutating func lost() -> (BenchMessage, [Result])? {
        guard let message, isInDoubt else { return nil }
        self.message = nil
        let final = results.map { $0.kind == .accepted ? Result(kind: .inDoubt, code: 0) : $0 }
        return (message, final)
    }

    private static func recipient(_ address: [UInt8], _ out: inout ByteBuffer) {
        out.writeString("RCPT TO:<")
        out.writeBytes(address)
        out.writeString(">\r\n")
    }

    private static func code(_ line: ByteBufferView) -> UInt16? {
        var code: UInt16 = 0
        for byte in line.prefix(3) {
            guard byte >= 0x30, byte <= 0x39 else { return nil }
            code = code * 10 + UInt16(byte - 0x30)
        }
        return code
    }

    /// The word behind `queued as` (Baton, Postfix), else behind `id=` (Exim), else nothing.
    static func queueID(_ text: [UInt8]) -> [UInt8] {
        for mark in ["queued as ", "id="] {
            let bytes = Array(mark.utf8)
            guard text.count > bytes.count else { continue }
            for start in 0...(text.count - bytes.count)
            where text[start..<(start + bytes.count)].elementsEqual(bytes) {
                return Array(
                    text[(start + bytes.count)...].prefix { $0 > 0x20 && $0 < 0x7f }.prefix(HistoryRecord.queueIDBound))
            }
        }
        return []
    }
}
