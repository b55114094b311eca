// A mailbox: local part and domain, as octets.

/// `local@domain` as it goes on the wire, without brackets. The local part keeps its case and its quotes; the domain's
/// ASCII letters keep their case here and are lowered in `domain`.
///
/// Made by the SMTP parser, by configuration and by the envelope decoder, which have checked syntax and length.
public struct MailAddress: Hashable, Sendable {
    public let bytes: [UInt8]
    /// Number of octets before the separating `@`.
    public let localPartCount: Int

    /// Nil unless both parts are non-empty and free of CR, LF, NUL, and the whole fits a path (RFC 5321 4.5.3.1.3).
    @inlinable public init?(localPart: some Collection<UInt8>, domain: some Collection<UInt8>) {
        guard !localPart.isEmpty, !domain.isEmpty, localPart.count + domain.count + 1 <= Self.octetsMax else {
            return nil
        }
        var joined: [UInt8] = []
        joined.reserveCapacity(localPart.count + domain.count + 1)
        joined.append(contentsOf: localPart)
        joined.append(UInt8(ascii: "@"))
        joined.append(contentsOf: domain)
        guard !joined.contains(where: { $0 == 0 || $0 == 0x0d || $0 == 0x0a }) else { return nil }
        self.bytes = joined
        self.localPartCount = localPart.count
    }

    /// Splits at the last `@`; the same checks as above. Does not check the grammar of RFC 5321: the SMTP parser does.
    @inlinable public init?(_ text: some BidirectionalCollection<UInt8>) {
        guard let at = text.lastIndex(of: UInt8(ascii: "@")) else { return nil }
        self.init(localPart: Array(text[..<at]), domain: Array(text[text.index(after: at)...]))
    }

    public init?(_ text: String) {
        self.init(Array(text.utf8))
    }

    /// A path without its brackets (RFC 5321 4.5.3.1.3), doubled to leave room for UTF-8 (RFC 6531 3.1 leaves it open).
    public static let octetsMax = 512

    public var localPart: ArraySlice<UInt8> { bytes[..<localPartCount] }
    public var domainBytes: ArraySlice<UInt8> { bytes[(localPartCount + 1)...] }
    public var domain: Domain { Domain(domainBytes) }

    /// Whether SMTPUTF8 is needed to carry it.
    public var isInternational: Bool { bytes.contains { $0 >= 0x80 } }
}

extension MailAddress: CustomStringConvertible {
    public var description: String { String(decoding: bytes, as: UTF8.self) }
}
