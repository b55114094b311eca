// Settings, events and actions of a peer session.
import BatonCore
import NIOCore

/// Lengths of time of a session. The defaults are production's.
package struct PeerTiming: Hashable, Sendable {
    package var handshake = PeerLimits.handshakeTimeout
    package var pingInterval = PeerLimits.pingInterval
    package var deathAfter = PeerLimits.deathAfter
    package var goodbye = PeerLimits.goodbyeTimeout

    package init() {}
}

/// What this node is to its peers. The same for all sessions of a process.
package struct PeerSettings: Sendable {
    package var run: NodeRun
    /// `node.id` and `cluster.name`, 1 to 255 octets each.
    package var name: [UInt8]
    package var cluster: [UInt8]
    package var versions = VersionRange.current
    package var features = PeerFeatures()
    package var bulkWindow = PeerLimits.bulkWindow
    package var controlWindow = PeerLimits.controlWindow
    package var queue = PeerLimits.queue
    package var timing = PeerTiming()

    package init(name: [UInt8], cluster: [UInt8], incarnation: Incarnation) {
        self.run = NodeRun(node: NodeID(value: StableHash.of(name)), incarnation: incarnation)
        self.name = name
        self.cluster = cluster
    }

    /// Whether a peer takes a HELLO with these settings.
    package var isValid: Bool {
        let names = 1...PeerLimits.nameOctets
        return names.contains(name.count) && names.contains(cluster.count) && versions.lowest > 0
            && versions.lowest <= versions.highest
            && PeerChannel.allCases.allSatisfy { channel in
                let window = window(of: channel)
                return (PeerLimits.windowOctetsMin...PeerLimits.windowOctetsMax).contains(window.octets)
                    && (PeerLimits.windowFramesMin...PeerLimits.windowFramesMax).contains(window.frames)
            }
    }

    package func window(of channel: PeerChannel) -> FrameCost {
        switch channel {
        case .bulk: bulkWindow
        case .control: controlWindow
        }
    }
}

/// Which end of the connection a session is.
package enum PeerRole: Hashable, Sendable {
    case dialer(PeerChannel, expecting: NodeID)
    case acceptor
}

/// Who is at the other end, proven fresh by the echo of this connection's nonce.
package struct PeerIdentity: Hashable, Sendable {
    package let run: NodeRun
    package let name: [UInt8]
    package let channel: PeerChannel
    /// Which of the two nodes dialed.
    package let dialer: NodeID
    package let nonce: UInt64
    package let version: UInt16
    /// What both sides offer.
    package let features: PeerFeatures
}

package enum PeerEvent: Sendable {
    /// The transport is up, TLS included: the node ids in the peer's certificate, nil on plaintext (loopback only).
    case connected(certified: [NodeID]?)
    case received(ByteBuffer)
    /// The instant of the last `.setTimer` has passed, late or not.
    case timer
    /// The roster's answer to `.identify`.
    case admitted
    case refused(PeerViolation)
    /// A message that uses credit. Goes out, waits in the queue, or comes back in `.sendRefused`.
    case send(PeerMessage)
    /// Delivered messages of this cost together are finished with, and their octets let go.
    case released(FrameCost)
    /// Say GOODBYE when the queue is empty, and close.
    case leave(GoodbyeReason)
    /// The roster gave this session's place to another.
    case replaced
    /// The transport is gone.
    case closed
}

package enum SendRefusal: Hashable, Sendable {
    /// Before the handshake is over, or after the end.
    case notOpen
    /// GOODBYE was said or is to be said.
    case leaving
    /// The queue is full: the peer gives no credit. Its sender treats the peer as slow.
    case full
    /// Out of bounds, of the other channel, in another node's name, or not for callers to send.
    case invalid
}

package enum PeerAction: Sendable {
    /// Write in order; flush after the last action of the batch.
    case write(ByteBuffer)
    /// For the machines above. Its cost is to be given back by `.released`.
    case deliver(PeerMessage, FrameCost)
    /// Ask the roster; answer with `.admitted` or `.refused`.
    case identify(PeerIdentity)
    /// Messages may be sent from here on.
    case opened(PeerIdentity)
    case sendRefused(PeerMessage, SendRefusal)
    /// The peer sends no more messages; new work goes elsewhere.
    case peerLeaves(GoodbyeReason)
    /// Replaces the timer that was set before.
    case setTimer(Instant)
    /// The session is over, exactly once: write what is to be written, close the transport, tell the roster. Messages that were
    /// sent or queued and not answered are unknown.
    case close(CloseReason)
}
