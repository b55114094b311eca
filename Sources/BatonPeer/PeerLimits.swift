// The bounds of the peer protocol; docs/LIMITS.md says what happens at each, docs/PEER_PROTOCOL.md where they stand on the wire.
import BatonCore

package enum PeerLimits {
    // MARK: Frames

    /// Payload of a HELLO (octets): the most that anybody makes this node hold before it has said who it is.
    package static let helloOctets = 1024
    /// Cluster name and node name (octets each).
    package static let nameOctets = 255
    /// Text of an ERROR (octets); a longer one is cut by its sender and refused by its reader.
    package static let errorTextOctets = 256
    /// Envelope of a SUBMIT (octets). Its body is at most `Limits.fragmentThreshold`. Larger mail stays at the ingress node.
    package static let submitEnvelopeOctets = ByteCount.mebi
    /// Octets of a chunk in one APPEND, or of a copy in one CHUNK; a larger chunk goes in parts.
    package static let partOctets = 2 * ByteCount.mebi
    /// Declared length of a whole chunk (octets): what the spool may form at most, with room. Nothing is allocated by it.
    package static let chunkOctets = 160 * ByteCount.mebi
    /// Records of one OUTCOME (octets together).
    package static let outcomeOctets = 256 * ByteCount.kibi
    /// Segments in one PROMISE.
    package static let promiseItems = 4096
    /// Longest span of a promise or a share.
    package static let spanMax = TimeSpan.seconds(60)
    /// Site name of a QUOTA (octets).
    package static let siteOctets = 255
    /// Name of a QUERY, the whole of its payload, and the payload of its ANSWER (octets).
    package static let queryNameOctets = 256
    package static let queryOctets = 64 * ByteCount.kibi
    package static let answerOctets = ByteCount.mebi

    // MARK: Memory of a session

    /// Octets that are reserved for a frame when its first ones arrive; the buffer of a larger one grows with what comes.
    package static let reservedOctets = ByteCount.mebi + 64 * ByteCount.kibi
    /// Windows that a HELLO may offer. Three quarters of the least one hold the largest frame.
    package static let windowOctetsMin = 4 * ByteCount.mebi
    package static let windowOctetsMax = 256 * ByteCount.mebi
    package static let windowFramesMin = 16
    package static let windowFramesMax = 65_536
    /// The windows that this node offers.
    package static let bulkWindow = FrameCost(octets: 8 * ByteCount.mebi, frames: 2048)
    package static let controlWindow = FrameCost(octets: 4 * ByteCount.mebi, frames: 1024)
    /// What of a window is given back at once: a part of this many.
    package static let creditPortions = 4
    /// Messages of this side that wait for credit.
    package static let queue = FrameCost(octets: 8 * ByteCount.mebi, frames: 4096)

    // MARK: Time

    /// From the connection to the end of the handshake.
    package static let handshakeTimeout = TimeSpan.seconds(5)
    package static let pingInterval = TimeSpan.milliseconds(250)
    /// Silence after which a peer counts as dead.
    package static let deathAfter = TimeSpan.milliseconds(1500)
    /// PINGs that a peer may send within one interval, a stall of its own included.
    package static let pingsPerInterval = 16
    /// PINGs out without their PONG; no further one is sent.
    package static let pingsUnanswered = 16
    /// From the own GOODBYE, or the wish to say it, to the close.
    package static let goodbyeTimeout = TimeSpan.seconds(2)

    // MARK: Connecting

    /// Waits before a lost connection is dialed again: the first, the longest, and the one after a fault of configuration.
    package static let retryFirst = TimeSpan.milliseconds(100)
    package static let retryMax = TimeSpan.seconds(2)
    package static let retryMisconfigured = TimeSpan.seconds(60)
    /// Part of a wait that is drawn at random, either way.
    package static let retryJitter = 0.5
    /// A session that stood for so long sets the wait back to the first.
    package static let stableAfter = TimeSpan.seconds(10)
    /// Connections whose handshake is not over.
    package static let handshakes = 128
    /// Nodes that the roster remembers.
    package static let nodes = 1024
    /// Superseded incarnations of a node that the roster remembers; the oldest is forgotten.
    package static let formerIncarnations = 16
}
