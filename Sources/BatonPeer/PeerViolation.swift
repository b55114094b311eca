// What a peer may do wrong, with the codes of ERROR, and why a session ends.
import BatonCore

/// A breach of the protocol, or a peer that is not wanted. Each ends its connection. The number is the code in ERROR.
package enum PeerViolation: UInt16, Error, CaseIterable, Sendable {
    /// A payload longer than its type allows.
    case oversized = 1
    /// A payload shorter than its type allows.
    case undersized = 2
    case unknownType = 3
    /// Flags or zeros that version 1 does not know.
    case reservedBits = 4
    case badChecksum = 5
    /// Fields that contradict each other or their bounds.
    case malformed = 6
    /// Legal at another moment.
    case unexpected = 7
    case wrongChannel = 8
    /// More than the window holds.
    case creditOverrun = 9
    /// Credit for what was not used.
    case creditOverflow = 10
    case tooManyPings = 11
    case unaskedPong = 12
    /// A message behind its sender's GOODBYE.
    case afterGoodbye = 13
    /// Another magic: not Baton at all.
    case notBaton = 31
    case versionMismatch = 32
    case wrongCluster = 33
    /// The peer has this node's own id.
    case ownNode = 34
    /// Not the node that was dialed, certified, or that hashes to the id.
    case unexpectedNode = 35
    /// The echo is not this connection's nonce: a replay.
    case staleEcho = 36
    /// A run of the peer that a newer one has superseded, or an answer in the name of another run.
    case staleIncarnation = 37
    case duplicateSession = 38
    case tooManySessions = 39
    case handshakeTimeout = 40
    /// A segment frame of a writer that is not the peer.
    case foreignSegment = 48
    /// A SUBMIT whose key is not the peer's.
    case foreignKey = 49
    /// Nothing was heard for `PeerTiming.deathAfter`.
    case silent = 50

    /// Whether dialing again soon cannot help.
    package var isMisconfiguration: Bool {
        switch self {
        case .notBaton, .versionMismatch, .wrongCluster, .ownNode, .unexpectedNode: true
        case .oversized, .undersized, .unknownType, .reservedBits, .badChecksum, .malformed, .unexpected, .wrongChannel,
            .creditOverrun, .creditOverflow, .tooManyPings, .unaskedPong, .afterGoodbye, .staleEcho, .staleIncarnation,
            .duplicateSession, .tooManySessions, .handshakeTimeout, .foreignSegment, .foreignKey, .silent:
            false
        }
    }
}

/// Why a session ended. What was sent and not answered is unknown to its sender, whatever the reason.
package enum CloseReason: Hashable, Sendable {
    /// The peer broke the protocol or is not wanted; ERROR has told it, unless it was silent.
    case violation(PeerViolation)
    /// The peer said ERROR: its code, known here or not, and its text, which is not to be trusted.
    case error(code: UInt16, text: [UInt8])
    /// Both sides said GOODBYE.
    case left
    /// The own GOODBYE was not answered in time.
    case leftAlone
    /// Another session took this one's place.
    case replaced
    /// The transport went, with a frame half read or not.
    case lost(midFrame: Bool)

    package var isMisconfiguration: Bool {
        switch self {
        case .violation(let violation): violation.isMisconfiguration
        case .error(let code, _): PeerViolation(rawValue: code)?.isMisconfiguration ?? false
        case .left, .leftAlone, .replaced, .lost: false
        }
    }
}
