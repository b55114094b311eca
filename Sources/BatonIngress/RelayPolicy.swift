// Who may relay: the client's address against the listener's blocks, and nothing else.
import BatonCore

/// Relay permission. Nothing in an address (percent hacks, bang paths, source routes, quoting, literals) can widen it, since it
/// does not look at addresses of mail at all.
package struct RelayPolicy: Equatable, Sendable {
    private let blocks: [AddressBlock]

    /// Nil is an empty configuration: loopback alone. An empty list permits nobody.
    package init(relayFrom: [AddressBlock]?) {
        self.blocks = relayFrom ?? Self.loopback
    }

    package static let loopback: [AddressBlock] = ["127.0.0.0/8", "::1/128"].compactMap { AddressBlock($0) }

    /// A client without an IP address (a Unix socket) is not permitted.
    package func mayRelay(_ client: IPAddress?) -> Bool {
        guard let client else { return false }
        return blocks.contains { $0.contains(client) }
    }
}
