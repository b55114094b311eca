// A message's octets in memory, and what was learned about them in the one pass that copied them.
import NIOCore

/// Facts about a body, found while it was received; stored with the envelope.
package struct BodyTraits: Hashable, Sendable {
    /// Octets, Baton's own Received field included.
    package var length: Int
    /// CRC32C of all octets, un-stuffed.
    package var crc32c: UInt32
    /// Octets up to and including the empty line that ends the header section; `length` if there is none.
    package var headerLength: Int
    /// Lines that begin with a dot. 0 lets delivery write the body as it is.
    package var leadingDots: Int
    /// Longest line in octets, without CRLF.
    package var longestLine: Int
    /// An octet above 127 in the body section, so that the peer has to offer 8BITMIME (RFC 6152).
    package var hasEightBitBody: Bool
    /// An octet above 127 in the header section, so that the peer has to offer SMTPUTF8 (RFC 6531).
    package var hasEightBitHeader: Bool
    /// Whether the last octets are CRLF. BDAT may end a message without them; DATA delivery then adds them.
    package var endsWithCRLF: Bool

    package init(
        length: Int, crc32c: UInt32, headerLength: Int, leadingDots: Int, longestLine: Int, hasEightBitBody: Bool,
        hasEightBitHeader: Bool, endsWithCRLF: Bool
    ) {
        self.length = length
        self.crc32c = crc32c
        self.headerLength = headerLength
        self.leadingDots = leadingDots
        self.longestLine = longestLine
        self.hasEightBitBody = hasEightBitBody
        self.hasEightBitHeader = hasEightBitHeader
        self.endsWithCRLF = endsWithCRLF
    }

    package static let empty = BodyTraits(
        length: 0, crc32c: 0, headerLength: 0, leadingDots: 0, longestLine: 0, hasEightBitBody: false,
        hasEightBitHeader: false, endsWithCRLF: true)
}

/// A whole body in memory: un-stuffed octets with CRLF line ends. At most `Limits.fragmentThreshold` octets.
package struct MessageBody: Sendable {
    package let bytes: ByteBuffer
    package let traits: BodyTraits

    package init(bytes: ByteBuffer, traits: BodyTraits) {
        self.bytes = bytes
        self.traits = traits
    }
}

/// A stored body as its reader meets it.
package enum StoredBody: Sendable {
    /// All octets at hand.
    case whole(MessageBody)
    /// Too large for memory: to be read fragment by fragment (index 0 ..< count), each at most `Limits.fragmentSize`.
    case fragmented(traits: BodyTraits, count: UInt32)

    package var traits: BodyTraits {
        switch self {
        case .whole(let body): body.traits
        case .fragmented(let traits, _): traits
        }
    }
}
