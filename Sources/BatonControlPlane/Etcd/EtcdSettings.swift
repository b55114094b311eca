// Where etcd is, how to get in, and how long to wait.
import BatonCore
import BatonHTTPClient

package struct EtcdSettings: Sendable {
    /// `http://host:port` or `https://host:port`, of members of one cluster.
    package var endpoints: [String]
    package var credentials: HTTPCredentials?
    package var tls: HTTPTLSSettings
    /// All tries of an operation together.
    package var operationLimit: TimeSpan
    /// One try of a read, so that a member that hangs leaves time for another.
    package var tryLimit: TimeSpan
    /// TCP and TLS of one try.
    package var connectLimit: TimeSpan

    package init(
        endpoints: [String], credentials: HTTPCredentials? = nil, tls: HTTPTLSSettings = HTTPTLSSettings(),
        operationLimit: TimeSpan = .seconds(5), tryLimit: TimeSpan = .milliseconds(1500),
        connectLimit: TimeSpan = .seconds(1)
    ) {
        self.endpoints = endpoints.map { $0.hasSuffix("/") ? String($0.dropLast()) : $0 }
        self.credentials = credentials
        self.tls = tls
        self.operationLimit = operationLimit
        self.tryLimit = tryLimit
        self.connectLimit = connectLimit
    }

    /// What is wrong with them, if anything.
    package var problem: String? {
        guard !endpoints.isEmpty, endpoints.count <= ControlLimits.endpoints else {
            return "between one and \(ControlLimits.endpoints) endpoints are needed"
        }
        for endpoint in endpoints {
            let lower = endpoint.lowercased()
            let host =
                lower.hasPrefix("https://") ? lower.dropFirst(8) : lower.hasPrefix("http://") ? lower.dropFirst(7) : ""
            guard !host.isEmpty, !host.contains(where: { "/?#@ ".contains($0) }) else {
                return "\(endpoint): an endpoint is http:// or https://, host and port"
            }
        }
        return nil
    }
}

/// Which member is asked next. A member that fails is left for the next one in the list.
struct EtcdEndpoints: Sendable {
    let count: Int
    private(set) var current: Int

    /// - Parameter first: any number, so that clients spread over the members.
    init(count: Int, first: UInt64) {
        self.count = max(1, count)
        self.current = Int(first % UInt64(max(1, count)))
    }

    /// Only the member in use is left: others may have moved on already.
    mutating func failed(_ endpoint: Int) {
        if endpoint == current { current = (current + 1) % count }
    }
}
