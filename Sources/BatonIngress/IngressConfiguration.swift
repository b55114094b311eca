// What the ingress is told by the node's configuration; defaults as in the contract.
import BatonCore
import BatonModel
import BatonSMTP

/// One entry of `listeners:`.
package struct ListenerConfiguration: Equatable, Sendable {
    package var host: String
    package var port: Int
    package var service: ListenerService
    /// Networks whose mail is relayed; nil (no `relay_from`): loopback alone.
    package var relayFrom: [AddressBlock]?
    /// `bare_newline: normalize`.
    package var normalizesBareLF: Bool

    package init(
        host: String = "127.0.0.1", port: Int = 2525, service: ListenerService = .relay,
        relayFrom: [AddressBlock]? = nil, normalizesBareLF: Bool = false
    ) {
        self.host = host
        self.port = port
        self.service = service
        self.relayFrom = relayFrom
        self.normalizesBareLF = normalizesBareLF
    }
}

/// `limits:` as far as ingress enforces them.
package struct IngressLimits: Equatable, Sendable {
    package var session = ServerLimits()
    /// Open connections of the node.
    package var connections = 10_000
    /// Open connections of a client network (an IPv4 address, an IPv6 /64).
    package var connectionsPerClient = 500
    /// Octets of bodies that are arriving or wait for the spool; the node gives a share of `limits.memory`.
    package var memory = 256 * ByteCount.mebi

    package init() {}
}

package struct IngressConfiguration: Sendable {
    /// `node.hostname`: greeting, EHLO, Received.
    package var hostname: String
    /// Where a bare `<postmaster>` goes; nil: postmaster at `hostname`.
    package var postmaster: MailAddress?
    package var listeners: [ListenerConfiguration]
    package var limits = IngressLimits()
    /// How long a client must keep silent before the greeting.
    package var greetingDelay = TimeSpan.milliseconds(1)

    package init(
        hostname: String, postmaster: MailAddress? = nil,
        listeners: [ListenerConfiguration] = [ListenerConfiguration()]
    ) {
        self.hostname = hostname
        self.postmaster = postmaster
        self.listeners = listeners
    }

    func settings(for listener: ListenerConfiguration) -> ServerSettings {
        // A host name that cannot carry an address (it is checked by the configuration) falls back to localhost.
        let fallback =
            MailAddress("postmaster@\(hostname)")
            ?? MailAddress(localPart: Array("postmaster".utf8), domain: Array("localhost".utf8))
        guard let postmaster = postmaster ?? fallback else {
            preconditionFailure("postmaster@localhost is an address")
        }
        return ServerSettings(
            hostname: hostname, service: listener.service, normalizesBareLF: listener.normalizesBareLF,
            limits: limits.session, postmaster: postmaster, greetingDelay: greetingDelay)
    }
}
