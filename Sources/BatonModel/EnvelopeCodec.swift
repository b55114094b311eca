// The envelope's bytes on disk and on the peer wire (docs/SPOOL_FORMAT.md, "Envelope").
import BatonCore
import NIOCore

/// All integers little-endian. A decoder of version 1 refuses other versions, truncation, trailing octets, counts that the
/// rest of the bytes cannot hold, and values outside their enums; it never allocates by a declared count alone.
///
/// ```
///  0  u8  version = 1     u8 return content     u16 flags
///  4  u64 id high         u64 id low            i64 arrival (ns)      u64 sender class      u64 session id
/// 44  u64 body length     u32 body CRC32C       u32 header length     u32 leading dots      u32 longest line
/// 68  u8  body bits (1: 8-bit body, 2: 8-bit header, 4: ends with CRLF)
/// 69  u16 n, sender (n = 0: null path)   u16 n, ENVID   u16 n, user   u16 n, client   u16 n, Message-ID
///     (the sender is followed by u16 octets of its local part)
///     u32 recipients, each: u16 n, address   u16 octets of the local part   u8 notify   u16 n, ORCPT
///     u32 subjects, each:   u64 u64 message id   u32 recipient   u8 kind
///     only with flag 0x8000, so that a reader from before refuses it instead of sending what is held:
///     u8  bits, not 0 (1: submit key, 2: held, only with 1; 4: numbers)
///     submit key: u64 ingress node   u64 its incarnation   u64 counter
///     held:       u64 receiver node  u64 its incarnation
///     numbers:    u32 for each recipient, strictly rising, below `Limits.recipientsPerEnvelope`
/// ```
package enum EnvelopeCodec {
    package static let version: UInt8 = 1

    package static func encode(_ envelope: Envelope, into buffer: inout ByteBuffer) {
        let placement = placementBits(envelope)
        // `extended` says nothing to anybody but the decoder.
        let flags = envelope.flags.rawValue & ~extended | (placement == 0 ? 0 : extended)
        buffer.writeMultipleIntegers(version, envelope.returnContent.rawValue, flags, endianness: .little)
        buffer.writeMultipleIntegers(
            envelope.id.high, envelope.id.low, envelope.arrival.nanoseconds, envelope.senderClass, envelope.sessionID,
            endianness: .little)
        let traits = envelope.traits
        buffer.writeMultipleIntegers(
            UInt64(traits.length), traits.crc32c, UInt32(clamping: traits.headerLength),
            UInt32(clamping: traits.leadingDots), UInt32(clamping: traits.longestLine), endianness: .little)
        let bits: UInt8 =
            (traits.hasEightBitBody ? 1 : 0) | (traits.hasEightBitHeader ? 2 : 0) | (traits.endsWithCRLF ? 4 : 0)
        buffer.writeInteger(bits)
        write(envelope.sender?.bytes ?? [], into: &buffer)
        buffer.writeInteger(UInt16(envelope.sender?.localPartCount ?? 0), endianness: .little)
        write(envelope.envid, into: &buffer)
        write(envelope.user, into: &buffer)
        write(envelope.client, into: &buffer)
        write(envelope.messageIDField, into: &buffer)
        buffer.writeInteger(UInt32(envelope.recipients.count), endianness: .little)
        for recipient in envelope.recipients {
            write(recipient.address.bytes, into: &buffer)
            buffer.writeInteger(UInt16(recipient.address.localPartCount), endianness: .little)
            buffer.writeInteger(recipient.notify.rawValue)
            write(recipient.originalRecipient, into: &buffer)
        }
        buffer.writeInteger(UInt32(envelope.subjects.count), endianness: .little)
        for subject in envelope.subjects {
            buffer.writeMultipleIntegers(
                subject.message.high, subject.message.low, subject.recipient, subject.kind.rawValue, endianness: .little
            )
        }
        if placement != 0 { writePlacement(envelope, placement, into: &buffer) }
    }

    /// Nil for anything that `encode` cannot have written. Reads the whole of `buffer`.
    package static func decode(_ buffer: ByteBuffer) -> Envelope? {
        var buffer = buffer
        guard
            let (found, content, flags) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt8, UInt8, UInt16).self),
            found == version, let returnContent = ReturnContent(rawValue: content),
            let (high, low, arrival, senderClass, session) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt64, UInt64, Int64, UInt64, UInt64).self),
            let traits = readTraits(&buffer),
            let senderBytes = read(&buffer), let senderLocal: UInt16 = buffer.readInteger(endianness: .little),
            let envid = read(&buffer), let user = read(&buffer), let client = read(&buffer),
            let messageIDField = read(&buffer), let recipients = readRecipients(&buffer),
            let subjects = readSubjects(&buffer),
            let (submit, numbers) = readPlacement(&buffer, flags, recipients: recipients.count),
            buffer.readableBytes == 0
        else { return nil }
        var sender: MailAddress?
        if senderBytes.isEmpty {
            guard senderLocal == 0 else { return nil }
        } else {
            guard let address = address(senderBytes, localPartCount: Int(senderLocal)) else { return nil }
            sender = address
        }
        return Envelope(
            id: MessageID(high: high, low: low), arrival: Instant(nanoseconds: arrival), sender: sender, envid: envid,
            returnContent: returnContent, flags: EnvelopeFlags(rawValue: flags & ~extended), senderClass: senderClass,
            user: user,
            client: client, sessionID: session, messageIDField: messageIDField, recipients: recipients,
            subjects: subjects, traits: traits, submit: submit, numbers: numbers)
    }

    private static func write(_ bytes: [UInt8], into buffer: inout ByteBuffer) {
        let kept = bytes.prefix(Int(UInt16.max))
        buffer.writeInteger(UInt16(kept.count), endianness: .little)
        buffer.writeBytes(kept)
    }

    private static func read(_ buffer: inout ByteBuffer) -> [UInt8]? {
        guard let length: UInt16 = buffer.readInteger(endianness: .little) else { return nil }
        return buffer.readBytes(length: Int(length))
    }

    private static func address(_ bytes: [UInt8], localPartCount: Int) -> MailAddress? {
        guard localPartCount > 0, localPartCount < bytes.count, bytes[localPartCount] == UInt8(ascii: "@") else {
            return nil
        }
        return MailAddress(localPart: bytes[..<localPartCount], domain: bytes[(localPartCount + 1)...])
    }

    private static func readTraits(_ buffer: inout ByteBuffer) -> BodyTraits? {
        guard
            let (length, crc, header, dots, longest) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt64, UInt32, UInt32, UInt32, UInt32).self),
            let bits: UInt8 = buffer.readInteger(), bits & ~7 == 0, length <= UInt64(Int32.max) * 4
        else { return nil }
        return BodyTraits(
            length: Int(length), crc32c: crc, headerLength: Int(header), leadingDots: Int(dots),
            longestLine: Int(longest), hasEightBitBody: bits & 1 != 0, hasEightBitHeader: bits & 2 != 0,
            endsWithCRLF: bits & 4 != 0)
    }

    private static func readRecipients(_ buffer: inout ByteBuffer) -> [EnvelopeRecipient]? {
        guard let count: UInt32 = buffer.readInteger(endianness: .little) else { return nil }
        // A recipient takes at least 10 octets: a count that the rest cannot hold is refused before anything is reserved.
        guard Int(count) <= Limits.recipientsPerEnvelope, Int(count) * 10 <= buffer.readableBytes else { return nil }
        var recipients: [EnvelopeRecipient] = []
        recipients.reserveCapacity(Int(count))
        for _ in 0..<count {
            guard let bytes = read(&buffer), let local: UInt16 = buffer.readInteger(endianness: .little),
                let notify: UInt8 = buffer.readInteger(), let original = read(&buffer),
                let address = address(bytes, localPartCount: Int(local))
            else { return nil }
            recipients.append(
                EnvelopeRecipient(
                    address: address, notify: NotifyFlags(rawValue: notify), originalRecipient: original))
        }
        return recipients
    }

    private static func readSubjects(_ buffer: inout ByteBuffer) -> [ReportSubject]? {
        guard let count: UInt32 = buffer.readInteger(endianness: .little) else { return nil }
        guard Int(count) <= Limits.recipientsPerEnvelope, Int(count) * 21 <= buffer.readableBytes else { return nil }
        var subjects: [ReportSubject] = []
        for _ in 0..<count {
            guard
                let (high, low, recipient, kind) = buffer.readMultipleIntegers(
                    endianness: .little, as: (UInt64, UInt64, UInt32, UInt8).self),
                let kind = ReportSubject.Kind(rawValue: kind)
            else { return nil }
            subjects.append(
                ReportSubject(message: MessageID(high: high, low: low), recipient: recipient, kind: kind))
        }
        return subjects
    }

    // MARK: Placement

    private static let extended: UInt16 = 0x8000

    private static func placementBits(_ envelope: Envelope) -> UInt8 {
        let numbered = envelope.numbers.map { $0.count == envelope.recipients.count } ?? false
        return (envelope.submit == nil ? 0 : 1) | (envelope.submit?.held == nil ? 0 : 2) | (numbered ? 4 : 0)
    }

    private static func writePlacement(_ envelope: Envelope, _ bits: UInt8, into buffer: inout ByteBuffer) {
        buffer.writeInteger(bits)
        if let submit = envelope.submit {
            buffer.writeMultipleIntegers(
                submit.ingress.value, submit.ingressIncarnation.value, submit.counter, endianness: .little)
            if let held = submit.held {
                buffer.writeMultipleIntegers(held.receiver.value, held.incarnation.value, endianness: .little)
            }
        }
        guard bits & 4 != 0 else { return }
        for number in envelope.numbers ?? [] { buffer.writeInteger(number, endianness: .little) }
    }

    /// Nil is malformed; two nils are an envelope without either.
    private static func readPlacement(
        _ buffer: inout ByteBuffer, _ flags: UInt16, recipients: Int
    ) -> (submit: SubmitMark?, numbers: [UInt32]?)? {
        guard flags & extended != 0 else { return (nil, nil) }
        guard let bits: UInt8 = buffer.readInteger(), (1...7).contains(bits), bits & 3 != 2 else { return nil }
        var submit: SubmitMark?
        if bits & 1 != 0 {
            guard
                let (node, incarnation, counter) = buffer.readMultipleIntegers(
                    endianness: .little, as: (UInt64, UInt64, UInt64).self)
            else { return nil }
            var held: SubmitMark.HeldFor?
            if bits & 2 != 0 {
                guard
                    let (receiver, run) = buffer.readMultipleIntegers(
                        endianness: .little, as: (UInt64, UInt64).self)
                else { return nil }
                held = SubmitMark.HeldFor(receiver: NodeID(value: receiver), incarnation: Incarnation(value: run))
            }
            submit = SubmitMark(
                ingress: NodeID(value: node), ingressIncarnation: Incarnation(value: incarnation), counter: counter,
                held: held)
        }
        guard bits & 4 != 0 else { return (submit, nil) }
        guard recipients * 4 <= buffer.readableBytes else { return nil }
        var numbers: [UInt32] = []
        numbers.reserveCapacity(recipients)
        for _ in 0..<recipients {
            guard let number: UInt32 = buffer.readInteger(endianness: .little),
                number < UInt32(Limits.recipientsPerEnvelope), numbers.last.map({ $0 < number }) ?? true
            else { return nil }
            numbers.append(number)
        }
        return (submit, numbers)
    }
}
