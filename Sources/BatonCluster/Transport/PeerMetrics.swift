// The counters of the peer transport, prefix baton_peer_.
import BatonPeer
import BatonTLS
import Metrics
import Synchronization

/// No label has values from outside: channels, directions, and reasons from fixed lists.
final class PeerMetrics: Sendable {
    struct Direction: Sendable {
        let frames: Counter
        let octets: Counter

        init(_ channel: String, _ direction: String) {
            let labels = [("channel", channel), ("direction", direction)]
            self.frames = Counter(label: "baton_peer_frames_total", dimensions: labels)
            self.octets = Counter(label: "baton_peer_octets_total", dimensions: labels)
        }
    }

    struct Channel: Sendable {
        let sent: Direction
        let received: Direction
        let sessions: Gauge
        let stalls: Counter
        let refusedSends: Counter

        init(_ channel: PeerChannel) {
            let name =
                switch channel {
                case .control: "control"
                case .bulk: "bulk"
                }
            self.sent = Direction(name, "sent")
            self.received = Direction(name, "received")
            self.sessions = Gauge(label: "baton_peer_sessions", dimensions: [("channel", name)])
            self.stalls = Counter(label: "baton_peer_credit_stalls_total", dimensions: [("channel", name)])
            self.refusedSends = Counter(label: "baton_peer_sends_refused_total", dimensions: [("channel", name)])
        }
    }

    private let control = Channel(.control)
    private let bulk = Channel(.bulk)
    /// Dials after the first one to a run of a node.
    let reconnects = Counter(label: "baton_peer_reconnects_total")
    /// By what this node found wrong.
    private let rejected: [PeerRejection: Counter]
    /// By the code of the peer's ERROR; one that is not known here counts as `unknown`.
    private let errors: [PeerViolation: Counter]
    private let unknownErrors = Counter(label: "baton_peer_errors_total", dimensions: [("reason", "unknown")])

    init() {
        self.rejected = Dictionary(
            uniqueKeysWithValues: PeerRejection.all.map {
                ($0, Counter(label: "baton_peer_rejected_total", dimensions: [("reason", $0.name)]))
            })
        self.errors = Dictionary(
            uniqueKeysWithValues: PeerViolation.allCases.map {
                ($0, Counter(label: "baton_peer_errors_total", dimensions: [("reason", "\($0)")]))
            })
    }

    func of(_ channel: PeerChannel) -> Channel {
        switch channel {
        case .control: control
        case .bulk: bulk
        }
    }

    /// The same as the counter, for whoever asks this transport.
    private let counts = Mutex<[PeerRejection: Int]>([:])

    var rejections: [PeerRejection: Int] { counts.withLock { $0 } }

    func rejected(_ reason: PeerRejection) {
        rejected[reason]?.increment()
        counts.withLock { $0[reason, default: 0] += 1 }
    }

    func error(code: UInt16) {
        (PeerViolation(rawValue: code).flatMap { errors[$0] } ?? unknownErrors).increment()
    }
}

/// Why a connection was ended by this node, for metrics, logs and tests.
package enum PeerRejection: Hashable, Sendable {
    case violation(PeerViolation)
    /// Nothing of the peer was read but its certificate.
    case tls(TLSFailure)
    /// As many connections in their handshake as there may be, of all addresses or of one.
    case handshakes
    /// The peer reads nothing, and more than its window lies here.
    case unread
    /// A registration that contradicts itself, or would be dialed in clear beyond loopback.
    case endpoint

    static var all: [PeerRejection] {
        PeerViolation.allCases.map { .violation($0) } + TLSFailure.allCases.map { .tls($0) } + [
            .handshakes, .unread, .endpoint,
        ]
    }

    package var name: String {
        switch self {
        case .violation(let violation): "\(violation)"
        case .tls(let failure): "tls_\(failure)"
        case .handshakes: "handshakes"
        case .unread: "unread"
        case .endpoint: "endpoint"
        }
    }
}
