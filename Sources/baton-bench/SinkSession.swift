// The sink's side of the dialogue as a pure state machine: octets in, replies and records out.
import BatonCore
import NIOCore

/// Where in the dialogue a configured fault strikes.
enum SinkStage: String, CaseIterable, Sendable {
    case connect
    case ehlo
    case mail
    case rcpt
    case data
    /// Between DATA's 354 and the end of data: only drops strike here.
    case body
    case dot
}

/// How the sink behaves. All rates are in [0, 1] and drawn from seeded generators.
struct SinkBehaviour: Sendable {
    var hostname = "sink.example"
    var pipelining = true
    var chunking = true
    var eightBitMIME = true
    var smtpUTF8 = true
    var dsn = true
    var lmtp = false
    var temporary: [SinkStage: Double] = [:]
    var permanent: [SinkStage: Double] = [:]
    /// Drops at `body` cut the connection before the end of data, at `dot` after it and before the reply.
    var drops: [SinkStage: Double] = [:]
    /// Before every reply.
    var latency: Int64 = 0
    /// Before the reply to the end of data, in place of `latency`.
    var dotLatency: Int64?
    var slowRate = 0.0
    var slowBy: Int64 = 0
    /// 421 at the next MAIL after this many messages; 0 for no limit.
    var messagesPerConnection = 0
    var recipientsPerMessage = 1000
    var seed: UInt64 = 1
    var keepsWhole = false
    /// Keep only what carries no id of ours: a user's own mail among a load.
    var keepsForeignOnly = false
}

/// A message as the sink took it, for `--keep`.
struct KeptMessage: Sendable {
    let sender: [UInt8]
    let recipients: [[UInt8]]
    let bytes: [UInt8]
}

/// One connection's state. Memory: a command line of at most `lineBound` octets is looked for in the shell's buffer; of a
/// message only the digest is kept, unless it is a report or `keepsWhole` is set.
struct SinkSession: Sendable {
    static let lineBound = 4096

    /// What one step did. The reply, if any, was appended to `out`.
    enum Step: Equatable, Sendable {
        case needMore
        case progressed
        /// A reply was appended; it is due after so many nanoseconds, and nothing more is read before.
        case replied(after: Int64)
        /// Close once what was appended is sent.
        case close
        /// Close at once, without sending anything.
        case drop
    }

    private enum State: Sendable {
        case command
        case data(BodyScanner)
        case chunk(rest: Int, last: Bool)
        case gone
    }

    private let behaviour: SinkBehaviour
    private var random: SplitMix64
    private var state = State.command
    private var greeted = false
    private var hasSender = false
    private var nullSender = false
    private var sender: [UInt8] = []
    private var recipients: [UInt16] = []
    private var keptRecipients: [[UInt8]] = []
    private var collector = MessageCollector(keepsWhole: false)
    private var chunking = false
    private var begun: Int64 = 0
    private var messages = 0
    /// Filled by a step, taken by the shell.
    var records: [HistoryRecord] = []
    var keptMessages: [KeptMessage] = []
    private(set) var accepted = 0

    init(_ behaviour: SinkBehaviour, number: UInt64) {
        self.behaviour = behaviour
        self.random = SplitMix64(seed: SplitMix64.mix(behaviour.seed) ^ number)
    }

    // MARK: Events

    /// The connection is up; `refused` when the sink has too many.
    mutating func connected(refused: Bool, _ out: inout ByteBuffer) -> Step {
        if refused {
            state = .gone
            return say("421 4.3.2 too many connections\r\n", &out, then: .close)
        }
        if struck(behaviour.drops, .connect) { return dropped() }
        if let reply = fault(.connect, "421 4.3.2 try later\r\n", "554 5.3.2 no service here\r\n") {
            state = .gone
            return say(reply, &out, then: .close)
        }
        return say("220 \(behaviour.hostname) ESMTP baton-bench sink\r\n", &out)
    }

    /// Takes one command line, or a piece of a message.
    mutating func step(_ input: inout ByteBuffer, now: Int64, _ out: inout ByteBuffer) -> Step {
        switch state {
        case .gone: return .needMore
        case .data: return dataStep(&input, now, &out)
        case .chunk(let rest, let last): return chunkStep(&input, rest, last, now, &out)
        case .command: return commandStep(&input, now, &out)
        }
    }

    // MARK: Messages

    private mutating func dataStep(_ input: inout ByteBuffer, _ now: Int64, _ out: inout ByteBuffer) -> Step {
        guard case .data(var scanner) = state, input.readableBytes > 0 else { return .needMore }
        if struck(behaviour.drops, .body) { return dropped() }
        var taken = collector
        // Emptied, so that the collector's array is not copied when it grows.
        collector = MessageCollector(keepsWhole: false)
        let result = input.readWithUnsafeReadableBytes { bytes in
            let result = scanner.consume(bytes) { taken.append($0) }
            return (result.used, result.ended)
        }
        collector = taken
        state = .data(scanner)
        return result ? finishMessage(now, &out) : .progressed
    }

    private mutating func chunkStep(
        _ input: inout ByteBuffer, _ rest: Int, _ last: Bool, _ now: Int64, _ out: inout ByteBuffer
    ) -> Step {
        if rest > 0 {
            guard input.readableBytes > 0 else { return .needMore }
            if struck(behaviour.drops, .body) { return dropped() }
            let count = min(rest, input.readableBytes)
            input.readWithUnsafeReadableBytes { bytes in
                collector.append(UnsafeRawBufferPointer(rebasing: bytes[..<count]))
                return count
            }
            state = .chunk(rest: rest - count, last: last)
            if rest > count { return .progressed }
        }
        if last { return finishMessage(now, &out) }
        state = .command
        return say("250 2.0.0 chunk taken\r\n", &out)
    }

    private mutating func finishMessage(_ now: Int64, _ out: inout ByteBuffer) -> Step {
        state = .command
        let whole = collector.kept
        let keeps = behaviour.keepsWhole
        var done = collector.finish()
        messages += 1
        defer { resetTransaction() }
        if struck(behaviour.drops, .dot) {
            note(.receivedUnanswered, 0, done, now)
            return dropped()
        }
        if let reply = fault(.dot, "451 4.3.0 try later\r\n", "554 5.6.0 content refused\r\n") {
            note(.receivedUnanswered, reply.hasPrefix("4") ? 451 : 554, done, now)
            var text = ""
            for _ in 0..<(behaviour.lmtp ? recipients.count : 1) { text += reply }
            return say(text, &out, dot: true)
        }
        accepted += 1
        if keeps, !behaviour.keepsForeignOnly || done.id == nil {
            keptMessages.append(KeptMessage(sender: sender, recipients: keptRecipients, bytes: whole))
        }
        let reports = nullSender && done.id == nil ? ReportReader.read(whole) : []
        for report in reports {
            records.append(
                HistoryRecord(
                    kind: .report, run: report.id.run, index: report.id.index, recipient: report.recipient,
                    code: report.action.rawValue, checksum: 0, length: UInt32(clamping: whole.count), begun: begun,
                    finished: now))
        }
        if reports.isEmpty { note(.received, 250, done, now) }
        done.length = 0
        if behaviour.lmtp {
            var text = ""
            for _ in recipients { text += "250 2.0.0 Ok\r\n" }
            return say(text, &out, dot: true)
        }
        return say("250 2.0.0 Ok: taken\r\n", &out, dot: true)
    }

    private mutating func note(
        _ kind: HistoryKind, _ code: UInt16, _ done: (id: BenchID?, checksum: UInt32, length: Int), _ now: Int64
    ) {
        for recipient in recipients {
            records.append(
                HistoryRecord(
                    kind: kind, run: done.id?.run ?? 0, index: done.id?.index ?? HistoryRecord.foreignIndex,
                    recipient: recipient, code: code, checksum: done.checksum, length: UInt32(clamping: done.length),
                    begun: begun, finished: now, queueID: collector.queueID))
        }
    }

    private mutating func resetTransaction() {
        hasSender = false
        nullSender = false
        sender = []
        recipients.removeAll(keepingCapacity: true)
        keptRecipients.removeAll()
        chunking = false
    }

    private mutating func beginMessage(_ now: Int64) {
        begun = now
        collector = MessageCollector(keepsWhole: nullSender || behaviour.keepsWhole)
    }

    // MARK: Commands

    private mutating func commandStep(_ input: inout ByteBuffer, _ now: Int64, _ out: inout ByteBuffer) -> Step {
        let view = input.readableBytesView
        guard let end = view.firstIndex(of: 0x0a) else {
            if view.count > Self.lineBound {
                state = .gone
                return say("500 5.5.2 line too long\r\n", &out, then: .close)
            }
            return .needMore
        }
        var line = Array(view[view.startIndex..<end])
        input.moveReaderIndex(forwardBy: line.count + 1)
        if line.last == 0x0d { line.removeLast() }
        return command(line, now, &out)
    }

    private mutating func command(_ line: [UInt8], _ now: Int64, _ out: inout ByteBuffer) -> Step {
        let verb = line.prefix(4).map { $0 & 0xdf }
        switch verb {
        case Self.mail: return mail(line, &out)
        case Self.rcpt: return rcpt(line, &out)
        case Self.data: return data(now, &out)
        case Self.bdat: return bdat(line, now, &out)
        case Self.ehlo, Self.lhlo: return ehlo(extended: true, &out)
        case Self.helo: return ehlo(extended: false, &out)
        case Self.rset:
            resetTransaction()
            return say("250 2.0.0 Ok\r\n", &out)
        case Self.noop: return say("250 2.0.0 Ok\r\n", &out)
        case Self.vrfy: return say("252 2.5.0 send and see\r\n", &out)
        case Self.quit:
            state = .gone
            return say("221 2.0.0 Bye\r\n", &out, then: .close)
        default: return say("502 5.5.1 not known here\r\n", &out)
        }
    }

    private static let mail = Array("MAIL".utf8), rcpt = Array("RCPT".utf8), data = Array("DATA".utf8)
    private static let bdat = Array("BDAT".utf8), ehlo = Array("EHLO".utf8), lhlo = Array("LHLO".utf8)
    private static let helo = Array("HELO".utf8), rset = Array("RSET".utf8), noop = Array("NOOP".utf8)
    private static let quit = Array("QUIT".utf8), vrfy = Array("VRFY".utf8)

    private mutating func ehlo(extended: Bool, _ out: inout ByteBuffer) -> Step {
        if struck(behaviour.drops, .ehlo) { return dropped() }
        if let reply = fault(.ehlo, "421 4.3.2 try later\r\n", "550 5.7.1 not you\r\n") {
            return say(reply, &out, then: reply.hasPrefix("421") ? .close : nil)
        }
        greeted = true
        resetTransaction()
        guard extended else { return say("250 \(behaviour.hostname)\r\n", &out) }
        var lines = [behaviour.hostname, "SIZE \(SizeOption.bound)"]
        if behaviour.pipelining { lines.append("PIPELINING") }
        if behaviour.eightBitMIME { lines.append("8BITMIME") }
        if behaviour.smtpUTF8 { lines.append("SMTPUTF8") }
        if behaviour.chunking { lines.append("CHUNKING") }
        if behaviour.dsn { lines.append("DSN") }
        lines.append("ENHANCEDSTATUSCODES")
        var text = ""
        for (place, line) in lines.enumerated() { text += "250\(place == lines.count - 1 ? " " : "-")\(line)\r\n" }
        return say(text, &out)
    }

    private mutating func mail(_ line: [UInt8], _ out: inout ByteBuffer) -> Step {
        guard greeted else { return say("503 5.5.1 EHLO first\r\n", &out) }
        guard !hasSender else { return say("503 5.5.1 one sender\r\n", &out) }
        if behaviour.messagesPerConnection > 0, messages >= behaviour.messagesPerConnection {
            state = .gone
            return say("421 4.4.5 enough for this connection\r\n", &out, then: .close)
        }
        if struck(behaviour.drops, .mail) { return dropped() }
        sender = Self.path(line)
        nullSender = sender.isEmpty
        if let reply = fault(.mail, "451 4.3.0 try later\r\n", "550 5.7.1 sender refused\r\n") {
            resetTransaction()
            return say(reply, &out)
        }
        hasSender = true
        return say("250 2.1.0 Ok\r\n", &out)
    }

    private mutating func rcpt(_ line: [UInt8], _ out: inout ByteBuffer) -> Step {
        guard hasSender else { return say("503 5.5.1 MAIL first\r\n", &out) }
        guard recipients.count < behaviour.recipientsPerMessage else {
            return say("452 4.5.3 too many recipients\r\n", &out)
        }
        if struck(behaviour.drops, .rcpt) { return dropped() }
        if let reply = fault(.rcpt, "450 4.2.1 try later\r\n", "550 5.1.1 nobody here\r\n") { return say(reply, &out) }
        let address = Self.path(line)
        recipients.append(Self.recipientNumber(address))
        if behaviour.keepsWhole { keptRecipients.append(address) }
        return say("250 2.1.5 Ok\r\n", &out)
    }

    private mutating func data(_ now: Int64, _ out: inout ByteBuffer) -> Step {
        guard hasSender, !chunking else { return say("503 5.5.1 not now\r\n", &out) }
        guard !recipients.isEmpty else { return say("554 5.5.1 no valid recipients\r\n", &out) }
        if struck(behaviour.drops, .data) { return dropped() }
        if let reply = fault(.data, "451 4.3.0 try later\r\n", "554 5.7.1 refused\r\n") {
            resetTransaction()
            return say(reply, &out)
        }
        beginMessage(now)
        state = .data(BodyScanner())
        return say("354 go on\r\n", &out)
    }

    private mutating func bdat(_ line: [UInt8], _ now: Int64, _ out: inout ByteBuffer) -> Step {
        let words = line.split(separator: 0x20)
        guard words.count == 2 || words.count == 3, let size = Int(String(decoding: words[1], as: UTF8.self)),
            size >= 0,
            size <= SizeOption.bound
        else {
            state = .gone
            return say("501 5.5.4 bad BDAT\r\n", &out, then: .close)
        }
        let last = words.count == 3 && words[2].map { $0 & 0xdf } == Array("LAST".utf8)
        // The announced octets follow without a reply to wait for, so a refusal has to close (RFC 3030 2).
        guard behaviour.chunking, hasSender, !recipients.isEmpty else {
            state = .gone
            return say("503 5.5.1 not now\r\n", &out, then: .close)
        }
        if !chunking {
            beginMessage(now)
            chunking = true
        }
        state = .chunk(rest: size, last: last)
        return .progressed
    }

    // MARK: Replies and faults

    private mutating func say(_ text: String, _ out: inout ByteBuffer, then end: Step? = nil, dot: Bool = false) -> Step
    {
        out.writeString(text)
        if let end { return end }
        var wait = dot ? behaviour.dotLatency ?? behaviour.latency : behaviour.latency
        if behaviour.slowRate > 0, random.unit() < behaviour.slowRate { wait += behaviour.slowBy }
        return .replied(after: wait)
    }

    private mutating func dropped() -> Step {
        state = .gone
        return .drop
    }

    private mutating func struck(_ rates: [SinkStage: Double], _ stage: SinkStage) -> Bool {
        guard !rates.isEmpty, let rate = rates[stage], rate > 0 else { return false }
        return random.unit() < rate
    }

    private mutating func fault(_ stage: SinkStage, _ temporary: String, _ permanent: String) -> String? {
        if struck(behaviour.temporary, stage) { return temporary }
        // A report that is refused is gone by rule (RFC 5321 4.5.5), and with it the proof that its message was not lost.
        if !nullSender, struck(behaviour.permanent, stage) { return permanent }
        return nil
    }

    // MARK: Addresses

    /// What stands between the first `<` and the last `>`.
    static func path(_ line: [UInt8]) -> [UInt8] {
        guard let open = line.firstIndex(of: UInt8(ascii: "<")), let close = line.lastIndex(of: UInt8(ascii: ">")),
            open < close
        else { return [] }
        return Array(line[(open + 1)..<close])
    }

    /// 12 for `r12.345@example`.
    static func recipientNumber(_ address: some Collection<UInt8>) -> UInt16 {
        guard let first = address.first, first | 0x20 == UInt8(ascii: "r") else {
            return HistoryRecord.unknownRecipient
        }
        var number = 0
        var digits = 0
        for byte in address.dropFirst() {
            if byte == UInt8(ascii: ".") || byte == UInt8(ascii: "@") { break }
            guard byte >= 0x30, byte <= 0x39, digits < 5 else { return HistoryRecord.unknownRecipient }
            number = number * 10 + Int(byte - 0x30)
            digits += 1
        }
        return digits > 0 && number < 65_535 ? UInt16(number) : HistoryRecord.unknownRecipient
    }
}

/// Finds in a delivery report which message and recipients it speaks of (RFC 3464), by our id field in the returned header.
enum ReportReader {
    struct Entry: Equatable {
        let id: BenchID
        let recipient: UInt16
        let action: ReportAction
    }

    static func read(_ bytes: [UInt8]) -> [Entry] {
        var id: BenchID?
        var found: [(UInt16, ReportAction)] = []
        var action = ReportAction.unknown
        var recipient: UInt16?
        func close() {
            if let recipient { found.append((recipient, action)) }
            recipient = nil
            action = .unknown
        }
        for raw in bytes.split(separator: 0x0a, omittingEmptySubsequences: false) {
            let line = raw.last == 0x0d ? raw.dropLast() : raw
            if line.isEmpty {
                close()
            } else if let value = field("X-Bench-Id:", line) {
                if id == nil { id = BenchID(field: value) }
            } else if let value = field("Final-Recipient:", line) {
                let address = value.split(separator: UInt8(ascii: ";")).last ?? value[...]
                recipient = SinkSession.recipientNumber(address.drop { $0 == 0x20 || $0 == UInt8(ascii: "<") })
            } else if let value = field("Action:", line) {
                switch String(decoding: value.prefix { $0 > 0x20 }, as: UTF8.self).lowercased() {
                case "failed": action = .failed
                case "delayed": action = .delayed
                case "delivered": action = .delivered
                case "relayed": action = .relayed
                case "expanded": action = .expanded
                default: action = .unknown
                }
            }
        }
        close()
        guard let id else { return [] }
        return found.map { Entry(id: id, recipient: $0.0, action: $0.1) }
    }

    private static func field(_ name: StaticString, _ line: ArraySlice<UInt8>) -> ArraySlice<UInt8>? {
        let length = name.utf8CodeUnitCount
        guard line.count > length else { return nil }
        for (mine, theirs) in zip(UnsafeBufferPointer(start: name.utf8Start, count: length), line)
        where mine | 0x20 != theirs | 0x20 { return nil }
        return line[(line.startIndex + length)...].drop { $0 == 0x20 }
    }
}
