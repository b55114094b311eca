// Whose mail a message is, for fairness: the class that the queue gives turns to.
import BatonCore
import BatonModel

/// Sender classes (DESIGN 3.5): the authenticated user, else the client's network, else the sender's domain; never an address,
/// of which a sender has as many as it likes. There are no users yet.
///
/// Networks are /24 of IPv4 and /64 of IPv6. A loopback client and a Unix socket have a network that says nothing, since every
/// program of the host is in it: there the sender's domain decides, and mail of the null sender is one class.
package enum SenderClass: Equatable, Sendable {
    case network(UInt64)
    case local

    /// Nil for a Unix socket.
    package init(client: IPAddress?) {
        guard let client, !Self.isLoopback(client) else {
            self = .local
            return
        }
        var hash = StableHash()
        hash.combine(UInt8(ascii: client.isIPv4 ? "4" : "6"))
        hash.combine(client.octets.prefix(client.isIPv4 ? 3 : 8))
        self = .network(hash.finish())
    }

    private static func isLoopback(_ client: IPAddress) -> Bool {
        RelayPolicy.loopback.contains { $0.contains(client) }
    }

    /// `Envelope.senderClass`: stable over restarts and nodes.
    package func value(for sender: MailAddress?) -> UInt64 {
        switch self {
        case .network(let value): return value
        case .local:
            var hash = StableHash()
            hash.combine(UInt8(ascii: "d"))
            for octet in sender?.domainBytes ?? [] {
                hash.combine(octet >= 0x41 && octet <= 0x5a ? octet | 0x20 : octet)
            }
            return hash.finish()
        }
    }
}
