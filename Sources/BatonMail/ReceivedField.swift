// The trace field that Baton puts in front of every message it takes (RFC 5321 4.4).
import BatonCore
import BatonModel
import NIOCore

/// The `with` word of a Received field (RFC 3848, RFC 6531 4.3).
package struct ReceivedProtocol: Hashable, Sendable {
    package enum Base: UInt8, Sendable {
        case smtp
        case esmtp
        case lmtp
    }

    package let base: Base
    package let isEncrypted: Bool
    package let isAuthenticated: Bool
    /// MAIL had SMTPUTF8.
    package let isUTF8: Bool

    package init(_ base: Base, isEncrypted: Bool = false, isAuthenticated: Bool = false, isUTF8: Bool = false) {
        self.base = base
        self.isEncrypted = isEncrypted
        self.isAuthenticated = isAuthenticated
        self.isUTF8 = isUTF8
    }

    func write(into buffer: inout ByteBuffer) {
        switch base {
        case .smtp:
            // HELO has no extensions, so no suffix either.
            buffer.writeStaticString("SMTP")
            return
        case .esmtp: buffer.writeStaticString(isUTF8 ? "UTF8SMTP" : "ESMTP")
        case .lmtp: buffer.writeStaticString(isUTF8 ? "UTF8LMTP" : "LMTP")
        }
        if isEncrypted { buffer.writeInteger(UInt8(ascii: "S")) }
        if isAuthenticated { buffer.writeInteger(UInt8(ascii: "A")) }
    }
}

package enum ReceivedField {
    /// HELO argument that is kept; a longer one is cut.
    package static let heloOctets = 255

    /// Appends the whole field with its final CRLF, folded; no line is longer than 998 octets.
    ///
    /// ```
    /// Received: from mail.example.org ([192.0.2.1])
    /// TAB by relay1.example.net with ESMTP id 01KAPZ…(26)
    /// TAB for <user@example.net>;
    /// TAB Tue, 24 Nov 2026 00:03:06 +0000
    /// ```
    /// - Parameters:
    ///   - helo: as the client gave it, trusted in nothing: what is not a letter, a digit or one of `.-_:[]` becomes `?`.
    ///   - client: nil for a client without an IP address (a Unix socket).
    ///   - hostname: `node.hostname`, checked by the configuration.
    ///   - forRecipient: only for a message with a single recipient, so that none learns of another (RFC 5321 7.2). Left
    ///     out where it holds controls, or non-ASCII octets without UTF8SMTP.
    package static func write(
        into buffer: inout ByteBuffer, helo: [UInt8], client: IPAddress?, hostname: [UInt8], proto: ReceivedProtocol,
        id: MessageID, forRecipient: MailAddress?, at instant: Instant
    ) {
        buffer.writeStaticString("Received: from ")
        if helo.isEmpty {
            buffer.writeStaticString("unknown")
        } else {
            for byte in helo.prefix(heloOctets) { buffer.writeInteger(harmless(byte) ? byte : UInt8(ascii: "?")) }
        }
        buffer.writeStaticString(" (")
        if let client {
            buffer.writeStaticString(client.isIPv4 ? "[" : "[IPv6:")
            buffer.writeString(client.description)
            buffer.writeStaticString("]")
        } else {
            buffer.writeStaticString("local")
        }
        buffer.writeStaticString(")\r\n\tby ")
        buffer.writeBytes(hostname)
        buffer.writeStaticString(" with ")
        proto.write(into: &buffer)
        buffer.writeStaticString(" id ")
        writeID(id, into: &buffer)
        if let recipient = forRecipient, fits(recipient, utf8: proto.isUTF8) {
            buffer.writeStaticString("\r\n\tfor <")
            buffer.writeBytes(recipient.bytes)
            buffer.writeStaticString(">")
        }
        buffer.writeStaticString(";\r\n\t")
        MailDate.write(instant, into: &buffer)
        buffer.writeStaticString("\r\n")
    }

    static func writeID(_ id: MessageID, into buffer: inout ByteBuffer) {
        buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: MessageID.textLength) { raw in
            var at = 0
            id.forEachCharacter { byte in
                raw[at] = byte
                at += 1
            }
            return at
        }
    }

    /// Octets that can neither end a field nor open a comment in it.
    private static func harmless(_ byte: UInt8) -> Bool {
        switch byte {
        case 0x30...0x39, 0x41...0x5a, 0x61...0x7a: true
        case UInt8(ascii: "."), UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: ":"), UInt8(ascii: "["),
            UInt8(ascii: "]"):
            true
        default: false
        }
    }

    private static func fits(_ recipient: MailAddress, utf8: Bool) -> Bool {
        recipient.bytes.allSatisfy { ($0 >= 0x20 && $0 < 0x7f) || ($0 >= 0x80 && utf8) }
    }
}

/// Message-ID values that Baton makes (RFC 5322 3.6.4).
package enum MessageIDField {
    /// `<01KAPZ…@relay1.example.net>`.
    package static func value(_ id: MessageID, hostname: [UInt8]) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(hostname.count + MessageID.textLength + 3)
        bytes.append(UInt8(ascii: "<"))
        id.forEachCharacter { bytes.append($0) }
        bytes.append(UInt8(ascii: "@"))
        bytes.append(contentsOf: hostname)
        bytes.append(UInt8(ascii: ">"))
        return bytes
    }

    /// The whole field with CRLF, for submitted mail that lacks one (RFC 6409 8.3).
    package static func write(_ id: MessageID, hostname: [UInt8], into buffer: inout ByteBuffer) {
        buffer.writeStaticString("Message-ID: <")
        ReceivedField.writeID(id, into: &buffer)
        buffer.writeStaticString("@")
        buffer.writeBytes(hostname)
        buffer.writeStaticString(">\r\n")
    }
}

/// The Date field, for submitted mail that lacks one (RFC 6409 8.2).
package enum DateField {
    package static func write(_ instant: Instant, into buffer: inout ByteBuffer) {
        buffer.writeStaticString("Date: ")
        MailDate.write(instant, into: &buffer)
        buffer.writeStaticString("\r\n")
    }
}
