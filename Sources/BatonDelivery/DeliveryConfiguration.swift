// Delivery's validated settings: `delivery:`, `sites:` and `routes:` of the configuration. Parsing lives in BatonNode.
import BatonCore
import BatonModel
import BatonSMTP

/// Everything the delivery side of a loop is configured with. A value: a reload hands over a new one
/// (`Dispatcher.update`), which holds for new connections and, within a minute, for new work.
package struct DeliveryConfiguration: Sendable {
    /// EHLO name: `node.hostname`.
    package var hostname: [UInt8]
    /// `delivery.port`: for MX targets and address literals.
    package var port: UInt16 = 25
    /// Whether addresses from DNS and address literals may be private ones; explicit routes always may.
    package var allowPrivateAddresses = false
    /// Open connections of the node (`NodePermits` holds it).
    package var connections = 5000
    package var connectionsPerSite = 20
    /// Transactions on a connection before it is closed; 0: no limit.
    package var messagesPerConnection = 1000
    package var recipientsPerTransaction = 100
    /// Octets of bodies read back from the spool that this loop's transactions may hold (`BodyBudget`).
    package var bodyMemory = 128 * ByteCount.mebi
    package var timeouts = DeliveryTimeouts()
    /// First match wins.
    package var sites: [SiteRule] = []
    /// First match wins; no match: MX.
    package var routes: [RouteRule] = []

    package init(hostname: [UInt8]) {
        self.hostname = hostname
    }
}

/// `delivery.timeouts`.
package struct DeliveryTimeouts: Hashable, Sendable {
    package var connect: TimeSpan = .seconds(30)
    /// banner, command, data_command, data, dot, quit and attempt.
    package var client = ClientTimeouts()
    /// How long a connection without work stays open.
    package var idle: TimeSpan = .seconds(30)

    package init() {}
}

/// `example.test` (that domain alone), `*.example.test` (its subdomains), `*` (every domain).
package struct DomainPattern: Hashable, Sendable {
    package let text: [UInt8]
    private let suffix: [UInt8]
    private let isWild: Bool

    /// Nil for an empty pattern or a star elsewhere.
    package init?(_ text: String) {
        let bytes = Domain(text).bytes
        guard !bytes.isEmpty else { return nil }
        let star = UInt8(ascii: "*")
        self.text = bytes
        if bytes == [star] {
            suffix = []
            isWild = true
        } else if bytes.starts(with: [star, UInt8(ascii: ".")]), bytes.count > 2 {
            suffix = Array(bytes.dropFirst())
            isWild = true
        } else {
            suffix = bytes
            isWild = false
        }
        if suffix.contains(star) { return nil }
    }

    package func matches(_ domain: Domain) -> Bool {
        guard isWild else { return domain.bytes == suffix }
        return domain.bytes.count > suffix.count && domain.bytes.suffix(suffix.count).elementsEqual(suffix)
            || suffix.isEmpty
    }
}

/// One entry of `sites:`.
package struct SiteRule: Hashable, Sendable {
    package enum Match: Hashable, Sendable {
        /// The best MX host is one of these names or ends in a dot and one of them.
        case mxSuffix([[UInt8]])
        case domain(DomainPattern)
    }

    package var match: Match
    /// Domains of rules with a name are one site: their connections and rate are counted together.
    package var name: [UInt8]?
    package var connections: Int?
    package var messagesPerSecond: Double?
    package var messagesPerConnection: Int?
    package var recipientsPerTransaction: Int?

    package init(
        match: Match, name: [UInt8]? = nil, connections: Int? = nil, messagesPerSecond: Double? = nil,
        messagesPerConnection: Int? = nil, recipientsPerTransaction: Int? = nil
    ) {
        self.match = match
        self.name = name
        self.connections = connections
        self.messagesPerSecond = messagesPerSecond
        self.messagesPerConnection = messagesPerConnection
        self.recipientsPerTransaction = recipientsPerTransaction
    }

    func matches(_ domain: Domain, bestHost: [UInt8]?) -> Bool {
        switch match {
        case .domain(let pattern): return pattern.matches(domain)
        case .mxSuffix(let suffixes):
            guard let bestHost else { return false }
            return suffixes.contains { suffix in
                bestHost == suffix
                    || bestHost.count > suffix.count && bestHost.suffix(suffix.count).elementsEqual(suffix)
                        && bestHost[bestHost.count - suffix.count - 1] == UInt8(ascii: ".")
            }
        }
    }
}

/// Where an explicit route leads.
package enum NextHop: Hashable, Sendable {
    /// A host name or an address, over TCP.
    case tcp(host: [UInt8], port: UInt16, isLMTP: Bool)
    /// LMTP over a Unix socket.
    case lmtpSocket(path: String)

    /// Reads `smtp://host[:25]`, `lmtp://host[:24]` and `lmtp+unix:/path`. Nil for anything else.
    package init?(_ text: String) {
        if text.hasPrefix("lmtp+unix:") {
            let path = String(text.dropFirst(10))
            // sun_path holds 108 octets with its end.
            guard path.hasPrefix("/"), path.utf8.count < 108 else { return nil }
            self = .lmtpSocket(path: path)
            return
        }
        let isLMTP = text.hasPrefix("lmtp://")
        guard isLMTP || text.hasPrefix("smtp://") else { return nil }
        var rest = text.dropFirst(7)
        if rest.hasSuffix("/") { rest = rest.dropLast() }
        var host = rest
        var port: UInt16 = isLMTP ? 24 : 25
        if rest.hasPrefix("[") {
            guard let close = rest.firstIndex(of: "]") else { return nil }
            host = rest[rest.index(after: rest.startIndex)..<close]
            let after = rest[rest.index(after: close)...]
            if !after.isEmpty {
                guard after.hasPrefix(":"), let given = UInt16(after.dropFirst()), given > 0 else { return nil }
                port = given
            }
            guard IPAddress(String(host)) != nil else { return nil }
        } else if let colon = rest.lastIndex(of: ":") {
            host = rest[..<colon]
            guard let given = UInt16(rest[rest.index(after: colon)...]), given > 0 else { return nil }
            port = given
        }
        guard !host.isEmpty, !host.contains("/"), !host.contains("@"), host.utf8.count <= Limits.domainOctets else {
            return nil
        }
        self = .tcp(host: Domain(String(host)).bytes, port: port, isLMTP: isLMTP)
    }

    package var isLMTP: Bool {
        switch self {
        case .tcp(_, _, let isLMTP): isLMTP
        case .lmtpSocket: true
        }
    }

    package var text: String {
        switch self {
        case .tcp(let host, let port, let isLMTP):
            "\(isLMTP ? "lmtp" : "smtp")://\(String(decoding: host, as: UTF8.self)):\(port)"
        case .lmtpSocket(let path): "lmtp+unix:\(path)"
        }
    }
}

/// One entry of `routes:`.
package struct RouteRule: Hashable, Sendable {
    package var domain: DomainPattern
    package var nextHop: NextHop

    package init(domain: DomainPattern, nextHop: NextHop) {
        self.domain = domain
        self.nextHop = nextHop
    }
}

/// The bounds of the delivery side; docs/LIMITS.md says what happens at each.
package enum DeliveryLimits {
    /// Addresses tried for one connection or attempt.
    package static let addressesPerAttempt = 5
    /// Greeted sessions of one attempt of a transaction, resends on a fresh connection apart.
    package static let sessionsPerAttempt = 2
    /// Hosts asked for a capability before a message that needs it is refused.
    package static let hostsPerCapability = 5
    /// Pools of one loop; past it a new destination is held for `poolsFullHold`.
    package static let poolsPerLoop = 10_000
    package static let poolsFullHold = TimeSpan.seconds(5)
    /// Pools looked at to make room for a new one.
    package static let evictionLooks = 8
    /// Idle connections of a loop given up in one tick for pools that the node's limit turned away.
    package static let yieldsPerTick = 64
    /// A site's pause after trouble, doubled each time until a success.
    package static let pauseMin = TimeSpan.minutes(1)
    package static let pauseMax = TimeSpan.minutes(15)
    /// The pause after a fault of our own.
    package static let ownFaultPauseMin = TimeSpan.seconds(10)
    package static let ownFaultPauseMax = TimeSpan.minutes(1)
    /// How long an address that did not answer is tried last.
    package static let addressAvoidance = TimeSpan.minutes(5)
    /// How long new connections are not tried after one failed while others work.
    package static let growthPause = TimeSpan.seconds(10)
    /// How long a route's plan holds, so that a reload shows soon.
    package static let routePlanLife = TimeSpan.minutes(1)
    /// Longest life of an MX plan on this side, whatever its TTL.
    package static let mxPlanLife = TimeSpan.minutes(15)
    /// Destinations waiting to be routed; more are held for `poolsFullHold`.
    package static let routesWaiting = 100_000
    /// Messages in a row whose segments may not send now (PROTOCOL P1), after which a pool rests for `permissionPause`.
    package static let notPermittedInRow = 64
    package static let permissionPause = TimeSpan.milliseconds(100)
    /// Granularity of time-outs, pauses and idle connections.
    package static let tick = TimeSpan.milliseconds(500)
    /// How long pulling rests after the spool did not answer a read.
    package static let readPause = TimeSpan.seconds(1)
}
