// The commands of a mail transaction as octets, with the parameters that the peer's extensions allow.
import BatonCore
import BatonModel
import NIOCore

/// What one transaction sends: recipients of one envelope, at most `delivery.recipients_per_transaction`.
package struct ClientTransaction: Sendable {
    package let envelope: Envelope
    /// Indices in `envelope.recipients`.
    package let recipients: [UInt32]
    package let body: StoredBody

    package init(envelope: Envelope, recipients: [UInt32], body: StoredBody) {
        self.envelope = envelope
        self.recipients = recipients
        self.body = body
    }
}

/// What a message needs and this peer does not offer.
package enum Incapability: Sendable, Hashable {
    /// 8-bit content, no 8BITMIME (RFC 6152 3): other hosts first, then 5.6.3.
    case eightBitMIME
    /// Addresses or headers in UTF-8, no SMTPUTF8 (RFC 6531 3.2): other hosts first, then 5.6.7.
    case smtpUTF8
    /// Larger than the peer's SIZE (RFC 1870 6.1): 5.3.4.
    case size(limit: Int)
    /// REQUIRETLS without TLS or without the extension (RFC 8689 4.2.1): 5.7.30.
    case requireTLS
}

enum ClientCommands {
    /// What `transaction` needs beyond `peer`; nil if nothing.
    static func incapability(_ transaction: ClientTransaction, _ peer: PeerCapabilities) -> Incapability? {
        let envelope = transaction.envelope
        let traits = transaction.body.traits
        if envelope.flags.contains(.requireTLS), !peer.requireTLS { return .requireTLS }
        if needsUTF8(transaction) {
            if !peer.smtpUTF8 { return .smtpUTF8 }
        }
        if isEightBit(traits), !peer.eightBitMIME { return .eightBitMIME }
        if peer.size, peer.sizeLimit > 0, traits.length > peer.sizeLimit { return .size(limit: peer.sizeLimit) }
        return nil
    }

    /// An address in UTF-8 needs SMTPUTF8; so do headers in UTF-8 if the sender declared them. Undeclared 8-bit headers are
    /// old mail that travels as 8BITMIME.
    private static func needsUTF8(_ transaction: ClientTransaction) -> Bool {
        let envelope = transaction.envelope
        guard envelope.flags.contains(.smtpUTF8) else { return false }
        if transaction.body.traits.hasEightBitHeader { return true }
        if envelope.sender?.isInternational == true { return true }
        return transaction.recipients.contains { index in
            envelope.recipients.indices.contains(Int(index))
                && envelope.recipients[Int(index)].address.isInternational
        }
    }

    private static func isEightBit(_ traits: BodyTraits) -> Bool { traits.hasEightBitBody || traits.hasEightBitHeader }

    static func writeMail(
        _ transaction: ClientTransaction, _ peer: PeerCapabilities, isLMTP: Bool, into buffer: inout ByteBuffer
    ) {
        let envelope = transaction.envelope
        let traits = transaction.body.traits
        buffer.writeStaticString("MAIL FROM:<")
        if let sender = envelope.sender { buffer.writeBytes(sender.bytes) }
        buffer.writeStaticString(">")
        if peer.size {
            buffer.writeStaticString(" SIZE=")
            buffer.writeString(String(traits.length))
        }
        if peer.eightBitMIME, isEightBit(traits) || envelope.flags.contains(.eightBitMIME) {
            buffer.writeStaticString(" BODY=8BITMIME")
        }
        if peer.smtpUTF8, needsUTF8(transaction) { buffer.writeStaticString(" SMTPUTF8") }
        if peer.requireTLS, envelope.flags.contains(.requireTLS) { buffer.writeStaticString(" REQUIRETLS") }
        if peer.dsn, !isLMTP {
            switch envelope.returnContent {
            case .unspecified: break
            case .full: buffer.writeStaticString(" RET=FULL")
            case .headers: buffer.writeStaticString(" RET=HDRS")
            }
            if !envelope.envid.isEmpty {
                buffer.writeStaticString(" ENVID=")
                buffer.writeBytes(envelope.envid)
            }
        }
        buffer.writeStaticString("\r\n")
    }

    /// An index outside the envelope (a defect) is sent as an address that no peer accepts, never a trap.
    static func writeRecipient(
        _ transaction: ClientTransaction, _ position: Int, _ peer: PeerCapabilities, isLMTP: Bool,
        into buffer: inout ByteBuffer
    ) {
        buffer.writeStaticString("RCPT TO:<")
        let all = transaction.envelope.recipients
        if transaction.recipients.indices.contains(position),
            all.indices.contains(Int(transaction.recipients[position]))
        {
            let recipient = all[Int(transaction.recipients[position])]
            buffer.writeBytes(recipient.address.bytes)
            buffer.writeStaticString(">")
            if peer.dsn, !isLMTP {
                writeNotify(recipient, utf8: peer.smtpUTF8 && needsUTF8(transaction), into: &buffer)
            }
        } else {
            buffer.writeStaticString(">")
        }
        buffer.writeStaticString("\r\n")
    }

    private static func writeNotify(_ recipient: EnvelopeRecipient, utf8: Bool, into buffer: inout ByteBuffer) {
        if !recipient.notify.isEmpty {
            buffer.writeStaticString(" NOTIFY=")
            if recipient.notify.contains(.never) {
                buffer.writeStaticString("NEVER")
            } else {
                var first = true
                for (flag, name) in [
                    (NotifyFlags.success, "SUCCESS"), (.failure, "FAILURE"), (.delay, "DELAY"),
                ] where recipient.notify.contains(flag) {
                    if !first { buffer.writeStaticString(",") }
                    first = false
                    buffer.writeString(name)
                }
            }
        }
        let original = utf8 ? recipient.originalRecipient : inASCII(recipient.originalRecipient)
        if !original.isEmpty {
            buffer.writeStaticString(" ORCPT=")
            buffer.writeBytes(original)
        }
    }

    /// An ORCPT that came in UTF-8, for a transaction without SMTPUTF8: `\x{F6}` for each character above 127 (RFC 6533 3,
    /// utf-8-addr-xtext). Empty where it then is longer than an ORCPT may be.
    private static func inASCII(_ original: [UInt8]) -> [UInt8] {
        guard original.contains(where: { $0 >= 0x80 }) else { return original }
        var out: [UInt8] = []
        for scalar in String(decoding: original, as: UTF8.self).unicodeScalars {
            if scalar.isASCII {
                out.append(UInt8(truncatingIfNeeded: scalar.value))
            } else {
                out.append(contentsOf: Array("\\x{\(String(scalar.value, radix: 16, uppercase: true))}".utf8))
            }
        }
        return out.count <= Limits.orcptOctets ? out : []
    }
}
