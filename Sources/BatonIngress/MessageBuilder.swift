// From what the session received to what the spool stores: the fields added in front, the traits, the envelope.
import BatonCore
import BatonMail
import BatonModel
import BatonSMTP
import NIOCore

/// Builds one message. For a whole body the fields go into the headroom and the CRC32C is taken over the finished octets while
/// they are warm; for a stream the fields lead the first piece and the CRC32C goes on from piece to piece.
struct MessageBuilder {
    /// Of the client and its listener.
    struct Origin {
        let settings: ServerSettings
        let address: IPAddress?
        let addressText: [UInt8]
        let senderClass: SenderClass
        let sessionID: UInt64
    }

    private var prefixLength = 0
    private var prefixLongestLine = 0
    private var crc: UInt32 = 0

    /// The whole message: octets behind the headroom become the body. `content` is given away, so that no copy is made.
    static func whole(
        _ message: ReceivedMessage, content: consuming ByteBuffer, origin: Origin, scratch: inout ByteBuffer
    ) -> (Envelope, ByteBuffer) {
        var builder = MessageBuilder()
        var body = builder.prefixed(message, content, origin: origin, scratch: &scratch)
        builder.crc = body.readableBytesView.withUnsafeBytes { CRC32C.of($0) }
        let envelope = builder.envelope(message, origin: origin)
        // A body that wastes most of its buffer would hold that memory until its delivery.
        if body.capacity > 4 * max(body.readableBytes, 4096) { body = ByteBuffer(buffer: body) }
        return (envelope, body)
    }

    /// The first piece of a stream with the fields in front, cut to what one fragment may hold.
    mutating func first(_ message: ReceivedMessage, origin: Origin, scratch: inout ByteBuffer) -> [ByteBuffer] {
        split(prefixed(message, message.piece, origin: origin, scratch: &scratch))
    }

    /// A later piece.
    mutating func next(_ piece: ByteBuffer) -> [ByteBuffer] { split(piece) }

    private mutating func split(_ piece: ByteBuffer) -> [ByteBuffer] {
        crc = piece.withUnsafeReadableBytes { CRC32C.of($0, seed: crc) }
        var rest = piece
        var pieces: [ByteBuffer] = []
        while rest.readableBytes > 0, let part = rest.readSlice(length: min(rest.readableBytes, Limits.fragmentSize)) {
            pieces.append(part)
        }
        return pieces
    }

    private mutating func prefixed(
        _ message: ReceivedMessage, _ content: consuming ByteBuffer, origin: Origin, scratch: inout ByteBuffer
    ) -> ByteBuffer {
        scratch.clear()
        let settings = origin.settings
        ReceivedField.write(
            into: &scratch, helo: message.helo, client: origin.address, hostname: settings.hostname,
            proto: ReceivedProtocol(message.isExtended ? .esmtp : .smtp, isUTF8: message.parameters.smtpUTF8),
            id: message.id, forRecipient: message.recipients.count == 1 ? message.recipients.first?.address : nil,
            at: message.startedAt)
        if settings.service == .submission {
            if !message.header.hasDate { DateField.write(message.startedAt, into: &scratch) }
            if !message.header.hasMessageID {
                MessageIDField.write(message.id, hostname: settings.hostname, into: &scratch)
            }
        }
        prefixLength = scratch.readableBytes
        prefixLongestLine = Self.longestLine(scratch)
        var body = content
        if prefixLength <= IncomingBody.headroom {
            let start = body.readerIndex + IncomingBody.headroom - prefixLength
            body.setBuffer(scratch, at: start)
            body.moveReaderIndex(to: start)
            return body
        }
        var joined = ByteBufferAllocator().buffer(capacity: prefixLength + body.readableBytes)
        joined.writeImmutableBuffer(scratch)
        body.moveReaderIndex(forwardBy: IncomingBody.headroom)
        joined.writeBuffer(&body)
        return joined
    }

    private static func longestLine(_ buffer: ByteBuffer) -> Int {
        var longest = 0
        var start = 0
        for (offset, octet) in buffer.readableBytesView.enumerated() where octet == 0x0a {
            longest = max(longest, offset - start - 1)
            start = offset + 1
        }
        return longest
    }

    /// The envelope, once all octets are known.
    func envelope(_ message: ReceivedMessage, origin: Origin) -> Envelope {
        var flags: EnvelopeFlags = []
        if message.parameters.smtpUTF8 { flags.insert(.smtpUTF8) }
        if message.parameters.body == .eightBitMIME { flags.insert(.eightBitMIME) }
        if origin.settings.service == .submission { flags.insert(.submission) }
        var traits = message.traits
        traits.length += prefixLength
        traits.headerLength += prefixLength
        traits.crc32c = crc
        traits.longestLine = max(traits.longestLine, prefixLongestLine)
        // An empty message ends with the CRLF of the fields in front of it.
        let makesID = origin.settings.service == .submission && !message.header.hasMessageID
        return Envelope(
            id: message.id, arrival: message.startedAt, sender: message.sender, envid: message.parameters.envid,
            returnContent: message.parameters.returnContent, flags: flags,
            senderClass: origin.senderClass.value(for: message.sender),
            client: origin.addressText, sessionID: origin.sessionID,
            messageIDField: makesID
                ? MessageIDField.value(message.id, hostname: origin.settings.hostname) : message.header.messageID,
            recipients: message.recipients, traits: traits)
    }
}
