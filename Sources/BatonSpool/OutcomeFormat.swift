// The outcome log's bytes (docs/SPOOL_FORMAT.md, "Outcome log").
import BatonCore
import BatonModel
import NIOCore

/// One outcome as the log keeps it: within its segment, a message is its record number.
package struct OutcomeRecord: Hashable, Sendable {
    package let record: UInt32
    package let recipient: UInt32
    package let at: Instant
    package let verdict: OutcomeVerdict
    package let attempts: UInt16
    package let reply: SMTPReply?
    package let peer: PeerName?

    package init(
        record: UInt32, recipient: UInt32, at: Instant, verdict: OutcomeVerdict, attempts: UInt16, reply: SMTPReply?,
        peer: PeerName?
    ) {
        self.record = record
        self.recipient = recipient
        self.at = at
        self.verdict = verdict
        self.attempts = attempts
        self.reply = reply?.kept
        self.peer = peer
    }

    package init(_ outcome: Outcome, record: UInt32) {
        self.init(
            record: record, recipient: outcome.job.recipient, at: outcome.at, verdict: outcome.verdict,
            attempts: outcome.attempts, reply: outcome.reply, peer: outcome.peer)
    }

    package func outcome(of message: StoredMessageRef) -> Outcome {
        Outcome(
            job: JobRef(message: message, recipient: recipient), at: at, verdict: verdict, attempts: attempts,
            reply: reply, peer: peer)
    }

    static let lengthMin = 28

    /// ```
    ///  0  u8 verdict   1  u8 bits (1: reply, 2: peer)   2  u16 attempts   4  u32 record   8  u32 recipient
    /// 12  i64 at (ns)  20  i64 until (ns; 0 unless deferred or in doubt)
    ///     reply: u16 code  u8 stage  u8 status class (0: none)  u16 subject  u16 detail  u16 n, text
    ///     peer:  u16 n, name  u16 n, address
    /// ```
    func writeBody(into buffer: inout ByteBuffer) {
        let (tag, until) = Self.tag(verdict)
        buffer.writeMultipleIntegers(
            tag, UInt8((reply == nil ? 0 : 1) | (peer == nil ? 0 : 2)), attempts, record, recipient, at.nanoseconds,
            until.nanoseconds, endianness: .little)
        if let reply {
            buffer.writeMultipleIntegers(
                reply.code, reply.stage.rawValue, reply.status?.classDigit ?? 0, reply.status?.subject ?? 0,
                reply.status?.detail ?? 0, endianness: .little)
            Self.write(reply.text, into: &buffer)
        }
        if let peer {
            Self.write(peer.name, into: &buffer)
            Self.write(peer.address, into: &buffer)
        }
    }

    static func readBody(_ buffer: inout ByteBuffer) -> OutcomeRecord? {
        guard
            let (tag, bits, attempts, record, recipient, at, until) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt8, UInt8, UInt16, UInt32, UInt32, Int64, Int64).self),
            bits <= 3, let verdict = verdict(tag, until: Instant(nanoseconds: until))
        else { return nil }
        var reply: SMTPReply?
        if bits & 1 != 0 {
            guard
                let (code, stageValue, digit, subject, detail) = buffer.readMultipleIntegers(
                    endianness: .little, as: (UInt16, UInt8, UInt8, UInt16, UInt16).self),
                let stage = ReplyStage(rawValue: stageValue), let text = read(&buffer)
            else { return nil }
            let status = digit == 0 ? nil : EnhancedStatus(digit, subject, detail)
            reply = SMTPReply(code: code, status: status, text: text, stage: stage)
        }
        var peer: PeerName?
        if bits & 2 != 0 {
            guard let name = read(&buffer), let address = read(&buffer) else { return nil }
            peer = PeerName(name: name, address: address)
        }
        return OutcomeRecord(
            record: record, recipient: recipient, at: Instant(nanoseconds: at), verdict: verdict, attempts: attempts,
            reply: reply, peer: peer)
    }

    private static func tag(_ verdict: OutcomeVerdict) -> (UInt8, Instant) {
        switch verdict {
        case .delivered: (1, .epoch)
        case .deferred(let until): (2, until)
        case .inDoubt(let until): (3, until)
        case .bounced: (4, .epoch)
        case .expired: (5, .epoch)
        case .adminBounced: (6, .epoch)
        case .delayNoticeSent: (7, .epoch)
        case .withdrawn: (8, .epoch)
        }
    }

    private static func verdict(_ tag: UInt8, until: Instant) -> OutcomeVerdict? {
        switch tag {
        case 1: .delivered
        case 2: .deferred(until: until)
        case 3: .inDoubt(until: until)
        case 4: .bounced
        case 5: .expired
        case 6: .adminBounced
        case 7: .delayNoticeSent
        case 8: .withdrawn
        default: nil
        }
    }

    private static func write(_ bytes: [UInt8], into buffer: inout ByteBuffer) {
        let kept = bytes.prefix(1024)
        buffer.writeInteger(UInt16(kept.count), endianness: .little)
        buffer.writeBytes(kept)
    }

    private static func read(_ buffer: inout ByteBuffer) -> [UInt8]? {
        guard let length: UInt16 = buffer.readInteger(endianness: .little), length <= 1024 else { return nil }
        return buffer.readBytes(length: Int(length))
    }
}

/// What the log knows beside outcomes; recovery's evidence of what was acknowledged and what was reported.
package struct OutcomeMarks: Hashable, Sendable {
    /// Segment offset before which everything is acknowledged, and the messages in it.
    package var ackedOffset: Int64 = 0
    package var ackedMessages: UInt32 = 0
    /// Messages whose Reception events are fdatasync'ed.
    package var receptions: UInt32 = 0
    /// Log offset before which every outcome's event is fdatasync'ed.
    package var outcomeOffset: Int64 = 0
}

/// One entry of the log.
package enum OutcomeEntry: Sendable {
    case outcome(OutcomeRecord)
    /// A drainer begins to write under its epoch.
    case drainer(Drainer, epoch: UInt64)
    case marks(OutcomeMarks)
    /// Messages moved here from `source` count, or are void (PROTOCOL C2 iv).
    case heldDecision(source: SegmentID, drainEpoch: UInt64, alive: Bool)
}

/// ```
/// file:   0 u32 magic "BTNO"   4 u32 version = 1   8 segment id, 24 bytes   32 u32 CRC32C of 0 ..< 32   36 u32 zero
/// entry:  0 u32 CRC32C of the rest, seeded with the file header's CRC       4 u16 payload length         6 u8 kind
///         7 u8 complement of the kind   8 payload
/// ```
enum OutcomeFormat {
    static let headerLength = 40
    static let entryHead = 8
    static let magic: UInt32 = 0x4f4e_5442
    static let payloadMax = Int(UInt16.max)

    static func header(_ id: SegmentID) -> (bytes: ByteBuffer, seed: UInt32) {
        var buffer = ByteBuffer()
        buffer.writeMultipleIntegers(magic, UInt32(1), endianness: .little)
        RegistryFormat.write(id, into: &buffer)
        let crc = buffer.crc32c
        buffer.writeMultipleIntegers(crc, UInt32(0), endianness: .little)
        return (buffer, crc)
    }

    static func write(_ entry: OutcomeEntry, seed: UInt32, into buffer: inout ByteBuffer) {
        let start = buffer.writerIndex
        let kind: UInt8 =
            switch entry {
            case .outcome: 1
            case .drainer: 2
            case .marks: 3
            case .heldDecision: 4
            }
        buffer.writeMultipleIntegers(UInt32(0), UInt16(0), kind, ~kind, endianness: .little)
        switch entry {
        case .outcome(let record): record.writeBody(into: &buffer)
        case .drainer(let drainer, let epoch):
            buffer.writeMultipleIntegers(
                drainer.node.value, drainer.incarnation.value, epoch, endianness: .little)
        case .marks(let marks):
            buffer.writeMultipleIntegers(
                marks.ackedOffset, marks.ackedMessages, marks.receptions, marks.outcomeOffset, endianness: .little)
        case .heldDecision(let source, let epoch, let alive):
            RegistryFormat.write(source, into: &buffer)
            buffer.writeMultipleIntegers(epoch, UInt8(alive ? 1 : 0), endianness: .little)
        }
        let length = buffer.writerIndex - start - entryHead
        buffer.setInteger(UInt16(clamping: length), at: start + 4, endianness: .little)
        let crc = buffer.crc32c(at: start + 4, length: buffer.writerIndex - start - 4, seed: seed)
        buffer.setInteger(crc, at: start, endianness: .little)
    }

    /// The entry at `index`, and the index behind it; nil if there is no valid one there.
    static func read(_ buffer: ByteBuffer, at index: Int, seed: UInt32) -> (entry: OutcomeEntry, end: Int)? {
        guard let crc: UInt32 = buffer.getInteger(at: index, endianness: .little),
            let length: UInt16 = buffer.getInteger(at: index + 4, endianness: .little),
            let kind: UInt8 = buffer.getInteger(at: index + 6), let check: UInt8 = buffer.getInteger(at: index + 7),
            check == ~kind, var payload = buffer.getSlice(at: index + entryHead, length: Int(length)),
            buffer.crc32c(at: index + 4, length: Int(length) + 4, seed: seed) == crc,
            let entry = decode(kind, &payload), payload.readableBytes == 0
        else { return nil }
        return (entry, index + entryHead + Int(length))
    }

    private static func decode(_ kind: UInt8, _ payload: inout ByteBuffer) -> OutcomeEntry? {
        switch kind {
        case 1: return OutcomeRecord.readBody(&payload).map { .outcome($0) }
        case 2:
            guard
                let (node, incarnation, epoch) = payload.readMultipleIntegers(
                    endianness: .little, as: (UInt64, UInt64, UInt64).self)
            else { return nil }
            return .drainer(
                Drainer(node: NodeID(value: node), incarnation: Incarnation(value: incarnation)), epoch: epoch)
        case 3:
            guard
                let (acked, messages, receptions, outcomes) = payload.readMultipleIntegers(
                    endianness: .little, as: (Int64, UInt32, UInt32, Int64).self), acked >= 0, outcomes >= 0
            else { return nil }
            return .marks(
                OutcomeMarks(
                    ackedOffset: acked, ackedMessages: messages, receptions: receptions, outcomeOffset: outcomes))
        case 4:
            guard let source = RegistryFormat.readSegmentID(&payload),
                let (epoch, alive) = payload.readMultipleIntegers(endianness: .little, as: (UInt64, UInt8).self),
                alive <= 1
            else { return nil }
            return .heldDecision(source: source, drainEpoch: epoch, alive: alive == 1)
        default: return nil
        }
    }

    /// What a log's bytes hold. `valid` ends behind the last valid entry; `damaged` counts bytes skipped before it.
    static func scan(
        _ buffer: ByteBuffer, segment: SegmentID, _ receive: (OutcomeEntry, _ end: Int) -> Void
    ) -> (valid: Int, damaged: Int) {
        let (expected, seed) = header(segment)
        var index = headerLength
        var valid = min(headerLength, buffer.readableBytes)
        var damaged = 0
        if buffer.getSlice(at: 0, length: headerLength) != expected { damaged = valid }
        while index + entryHead <= buffer.writerIndex {
            if let (entry, end) = read(buffer, at: index, seed: seed) {
                // Only bytes with something valid behind them are damage; the rest is an unfinished write.
                damaged += index - valid
                receive(entry, end)
                index = end
                valid = end
            } else {
                index += 1
            }
        }
        return (valid, damaged)
    }

    /// Entries without a file's header, as members send them; what cannot be read is passed over.
    static func entries(_ octets: ByteBuffer, segment: SegmentID) -> [OutcomeEntry] {
        var found: [OutcomeEntry] = []
        var buffer = header(segment).bytes
        buffer.writeImmutableBuffer(octets)
        _ = scan(buffer, segment: segment) { entry, _ in found.append(entry) }
        return found
    }
}
