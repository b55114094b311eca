// A mail domain as it is compared, looked up and interned.
import BatonCore

/// A domain's octets with ASCII letters in lower case, without a trailing dot; or an address literal with its brackets.
///
/// U-labels are kept as they came (RFC 6531); `BatonDNS` turns them into A-labels for look-ups. At most
/// `Limits.domainOctets`; the parser that made it has checked the syntax.
public struct Domain: Hashable, Sendable {
    public let bytes: [UInt8]

    /// Lower-cases ASCII and drops one trailing dot. The caller has checked the syntax.
    @inlinable public init(_ raw: some Collection<UInt8>) {
        var lowered: [UInt8] = []
        lowered.reserveCapacity(raw.count)
        for byte in raw { lowered.append(byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte) }
        if lowered.last == UInt8(ascii: "."), lowered.count > 1 { lowered.removeLast() }
        self.bytes = lowered
    }

    public init(_ text: String) {
        self.init(Array(text.utf8))
    }

    /// `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    public var isLiteral: Bool { bytes.first == UInt8(ascii: "[") }

    /// Whether any octet is outside ASCII, so that a peer needs SMTPUTF8 or an A-label.
    public var isInternational: Bool { bytes.contains { $0 >= 0x80 } }

    /// A fixed-key hash for placement.
    public var stableHash: UInt64 { StableHash.of(bytes) }
}

extension Domain: CustomStringConvertible {
    public var description: String { String(decoding: bytes, as: UTF8.self) }
}
