// The bounds that several modules share; each module names its own beside them, and docs/LIMITS.md lists all.

package enum Limits {
    /// A body above this is spooled in fragments while it arrives (bytes, Received header included).
    package static let fragmentThreshold = 256 * 1024
    /// Bytes of a message that a session may hold unwritten; reached, it stops reading.
    package static let unwrittenPerSession = 1024 * 1024
    /// Bytes of one fragment chunk's body block.
    package static let fragmentSize = 256 * 1024
    /// Largest chunk the writer forms (bytes of envelopes and bodies), one oversized message apart.
    package static let chunkBytes = 1024 * 1024
    /// Most messages in a chunk.
    package static let chunkMessages = 256
    /// Octets of a forward or reverse path (RFC 5321 4.5.3.1.3), of a local part and of a domain. 256 counts the brackets.
    package static let pathOctets = 256
    package static let localPartOctets = 64
    package static let domainOctets = 255
    /// Characters of ENVID and ORCPT as received (RFC 3461 4.2, 4.4).
    package static let envidOctets = 100
    package static let orcptOctets = 500
    /// Text of a remote reply that is kept with an outcome; the rest is cut.
    package static let keptReplyOctets = 512
    /// The most recipients that any envelope may carry, whatever the configuration says.
    package static let recipientsPerEnvelope = 50_000
    /// Largest encoded envelope accepted from disk or a peer.
    package static let envelopeBytes = 64 * 1024 * 1024
    /// Largest header section that is scanned (bytes); a message with a longer one is refused with 552.
    package static let headerSection = 256 * 1024
}
