// What the peer transport takes and gives: endpoints, received frames, the delegate, configuration, errors.
import BatonCore
import BatonPeer
import BatonTLS

/// A host and port as `cluster.peer_address` and a node's registration name them.
package struct PeerAddress: Hashable, Sendable, CustomStringConvertible {
    /// An IPv4 or IPv6 address without brackets, or a host name.
    package let host: String
    package let port: Int

    /// `10.0.0.1:7025`, `[2001:db8::1]:7025`, `n1.internal:7025`. Nil for anything else: a registration comes from outside.
    package init?(_ text: String) {
        guard text.utf8.count <= TransportLimits.addressOctets, let colon = text.lastIndex(of: ":") else { return nil }
        let digits = text[text.index(after: colon)...]
        guard digits.utf8.count <= 5, digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let port = Int(digits)
        else { return nil }
        var host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") {
            host = host.dropFirst().dropLast()
            guard IPAddress(String(host))?.isIPv4 == false else { return nil }
        } else if host.contains(":") {
            return nil
        }
        self.init(host: String(host), port: port)
    }

    /// Nil for a host with octets that no name and no address has, or a port above 65,535 (0: any free one, to bind only).
    package init?(host: String, port: Int) {
        let letters: ClosedRange<UInt8> = 0x61...0x7a
        let isLegal = host.utf8.allSatisfy { octet in
            letters.contains(octet | 0x20) || (0x30...0x3a).contains(octet) || octet == 0x2d || octet == 0x2e
                || octet == 0x5f
        }
        guard isLegal, !host.isEmpty, host.utf8.count <= TransportLimits.addressOctets, (0...65_535).contains(port)
        else { return nil }
        self.host = host
        self.port = port
    }

    /// An address of this machine alone. A name never counts as one: what it resolves to is not known here.
    package var isLoopback: Bool {
        guard let address = IPAddress(host) else { return false }
        return Self.loopback.contains { $0.contains(address) }
    }

    private static let loopback = ["127.0.0.0/8", "::1/128"].compactMap { AddressBlock($0) }

    package var description: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }
}

/// A node as the control plane has it now.
package struct PeerEndpoint: Hashable, Sendable {
    /// `node.id`.
    package var name: String
    package var node: NodeID
    /// Of its present run.
    package var incarnation: Incarnation
    package var address: PeerAddress
    /// Of its key in the control plane: an older word than one that was heard counts for nothing.
    package var revision: UInt64

    package init(name: String, incarnation: Incarnation, address: PeerAddress, revision: UInt64) {
        self.name = name
        self.node = NodeID(name: name)
        self.incarnation = incarnation
        self.address = address
        self.revision = revision
    }

    /// What a registration can say wrongly.
    var isValid: Bool {
        (1...PeerLimits.nameOctets).contains(name.utf8.count) && node == NodeID(name: name) && address.port > 0
    }
}

/// A message of a peer and what it takes of the window until it is released.
package struct ReceivedFrame: Sendable {
    package let message: PeerMessage
    package let cost: FrameCost
    /// To give the credit back to; the name of one connection, never reused.
    package let session: PeerSessionID

    /// APPEND and SUBMIT are released by the consumer, once it has written them and let go of their octets; all others by the
    /// transport, as soon as `received` has returned.
    package var isReleasedByConsumer: Bool {
        switch message {
        case .append, .submit: true
        case .hello, .ready, .ping, .pong, .credit, .goodbye, .error, .submitted, .ask, .create, .created, .durable,
            .outcome, .recorded, .fetch, .chunk, .seal, .sealed, .finished, .unlinked, .promiseAsked, .promise, .quota,
            .query, .answer:
            false
        }
    }
}

/// Gets what peers say. Each call is made on the event loop of the channel (`PeerIdentity.channel`) and must not block: calls
/// for the two channels may run at the same time. `connected` and `disconnected` come exactly once each for a session, and all
/// of its `received` between them.
package protocol PeerTransportDelegate: AnyObject, Sendable {
    /// Messages may be sent to `identity.run.node` on `identity.channel`.
    func connected(_ identity: PeerIdentity)
    /// Everything that one read brought, in order; never empty.
    func received(_ frames: [ReceivedFrame], from identity: PeerIdentity)
    /// The peer said GOODBYE: new work goes elsewhere; what it owes still arrives.
    func leaves(_ identity: PeerIdentity, _ reason: GoodbyeReason)
    /// What was sent and not answered is unknown from here on.
    func disconnected(_ identity: PeerIdentity, _ reason: CloseReason)
    /// Messages that `send` had taken and that certainly did not go out: the session was leaving, or they are invalid.
    func notSent(_ messages: [PeerMessage], to identity: PeerIdentity, _ reason: SendRefusal)
}

extension PeerTransportDelegate {
    package func leaves(_ identity: PeerIdentity, _ reason: GoodbyeReason) {}
    package func notSent(_ messages: [PeerMessage], to identity: PeerIdentity, _ reason: SendRefusal) {}
}

/// What lies below the sessions. Nothing falls back from one to the other.
package enum PeerSecurity: Sendable {
    /// `cluster.tls`: TLS 1.3, both sides with a certificate of the CA that carries the node id as a DNS SAN. `TLSContext.reload`
    /// counts for new connections.
    case tls(TLSContext)
    /// `cluster.insecure_plaintext`: loopback addresses only, to listen on and to dial.
    case plaintext
}

package struct PeerTransportConfiguration: Sendable {
    /// `cluster.peer_address`. Port 0 binds a free one.
    package var address: PeerAddress
    package var settings: PeerSettings
    package var security: PeerSecurity
    /// Octets that a peer may leave unread beyond its own window.
    package var unread = TransportLimits.unread

    package init(address: PeerAddress, settings: PeerSettings, security: PeerSecurity) {
        self.address = address
        self.settings = settings
        self.security = security
    }
}

/// Why the transport did not start; one clear line each.
package enum PeerTransportError: Error, Hashable, Sendable, CustomStringConvertible {
    case cannotBind(address: String, reason: String)
    case plaintextBeyondLoopback(address: String)
    /// A node or cluster name, or a window, that no peer would take.
    case invalidSettings
    /// This node's own certificate does not carry its `node.id`: no peer would take it.
    case certificateWithoutOwnName(node: String)
    case alreadyStarted

    package var description: String {
        switch self {
        case .cannotBind(let address, let reason): "cannot listen for peers on \(address): \(reason)"
        case .plaintextBeyondLoopback(let address):
            "cluster.insecure_plaintext is for loopback addresses only, and \(address) is none"
        case .invalidSettings: "node.id and cluster.name have to be 1 to 255 octets long"
        case .certificateWithoutOwnName(let node):
            "the certificate of cluster.tls does not carry the node id \(node) as a DNS subject alternative name"
        case .alreadyStarted: "the peer transport was started before"
        }
    }
}

/// The bounds of the transport; those of the protocol stand in `PeerLimits`. docs/LIMITS.md says what happens at each.
package enum TransportLimits {
    /// Connections of one address that are in their handshake, so that one stranger cannot take all of `PeerLimits.handshakes`.
    package static let handshakesPerAddress = 32
    /// Connections that the kernel keeps until they are accepted.
    package static let backlog: Int32 = 256
    /// How long an ended connection waits for the peer to read its ERROR and close.
    package static let linger = TimeSpan.seconds(1)
    /// Octets that a peer may leave unread beyond its own window before it is cut off.
    package static let unread = ByteCount.mebi
    /// Octets of one read.
    package static let readOctets = 128 * ByteCount.kibi
    /// Frames up to this size are copied together into one write.
    package static let joinedOctets = 4 * ByteCount.kibi
    /// What `stop` waits beyond `PeerTiming.goodbye` before it cuts.
    package static let stopSlack = TimeSpan.seconds(1)
    /// Octets of a host name, and of a whole address.
    package static let addressOctets = 300
}
