// What a pool needs to know of its site: hosts, addresses, limits.
import BatonCore
import BatonModel
import BatonSMTP

/// Where a connection goes.
package enum Endpoint: Hashable, Sendable {
    case ip(IPAddress, port: UInt16)
    case unix(path: String)

    /// As `PeerName.address` has it.
    package var text: String {
        switch self {
        case .ip(let address, _): address.description
        case .unix(let path): path
        }
    }
}

/// One host of a site.
package struct SiteHost: Hashable, Sendable {
    package let name: [UInt8]
    /// Hosts of one rank are equals; lower ranks come first.
    package let rank: UInt16
    package let endpoints: [Endpoint]

    package init(name: [UInt8], rank: UInt16, endpoints: [Endpoint]) {
        self.name = name
        self.rank = rank
        self.endpoints = endpoints
    }
}

/// The limits in force for a site.
package struct SiteLimits: Hashable, Sendable {
    package var connections: Int
    /// 0: no limit.
    package var messagesPerConnection: Int
    package var messagesPerSecond: Double?
    package var idle: TimeSpan
    /// Of one domain in a transaction.
    package var recipientsPerTransaction: Int

    package init(
        connections: Int, messagesPerConnection: Int = 0, messagesPerSecond: Double? = nil,
        idle: TimeSpan = .seconds(30), recipientsPerTransaction: Int = 100
    ) {
        self.connections = max(1, connections)
        self.messagesPerConnection = messagesPerConnection
        self.messagesPerSecond = messagesPerSecond
        self.idle = idle
        self.recipientsPerTransaction = max(1, recipientsPerTransaction)
    }
}

/// A site as it stands now. Two domains share a pool exactly when their plans have the same `key`.
package struct SitePlan: Sendable {
    /// Rule, route and MX set with its ranks.
    package let key: [UInt8]
    /// As in events; limits are counted under it.
    package let name: [UInt8]
    package let hosts: [SiteHost]
    package let isLMTP: Bool
    package let limits: SiteLimits
    /// An explicit route, or the configuration allows it.
    package let privateAllowed: Bool
    package let expires: Instant

    package init(
        key: [UInt8], name: [UInt8], hosts: [SiteHost], isLMTP: Bool, limits: SiteLimits, privateAllowed: Bool,
        expires: Instant
    ) {
        self.key = key
        self.name = name
        self.hosts = hosts
        self.isLMTP = isLMTP
        self.limits = limits
        self.privateAllowed = privateAllowed
        self.expires = expires
    }
}

/// The planner's answer for a destination.
package enum PlannedDestination: Sendable {
    case site(SitePlan)
    /// The domain takes no mail.
    case fail(SMTPReply)
    /// Not to be tried now; counts as an attempt.
    case postpone(SMTPReply)
    /// Our own fault; nothing counts.
    case hold(until: Instant)
}
