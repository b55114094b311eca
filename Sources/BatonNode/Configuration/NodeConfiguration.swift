// The whole configuration of a node as checked values, with the defaults of docs/CONFIGURATION.md.
import BatonCore
import BatonModel

/// What `baton.yaml` says. A value that exists has been checked: every number is in the range of its key.
///
/// Made by `ConfigurationLoader`; `NodeConfiguration()` is a node without a configuration file.
package struct NodeConfiguration: Sendable {
    package var node = NodeSection()
    package var listeners = [ListenerConfiguration()]
    package var limits = LimitsSection()
    package var dns = DNSSection()
    package var delivery = DeliverySection()
    /// First match wins. The shipped rules are not in it; `ShippedSites.rules` come after these.
    package var sites: [SiteRule] = []
    /// First match wins; no match: MX.
    package var routes: [RouteRule] = []
    package var queue = QueueSection()
    package var spool = SpoolSection()
    package var events = EventsSection()
    package var admin = AdminSection()
    /// Nil: a node on its own.
    package var cluster: ClusterSettings?

    /// The file as it was named; nil without one.
    package var file: String?
    /// Where a value comes from: key (`delivery.port`, `sites[0].rate`) to line. Missing: the default.
    package var lines: [String: Int] = [:]
    /// Lines for an operator that are no errors (an open relay's network, say): `file:line:column: warning: …`.
    package var warnings: [String] = []

    package init() {}

    /// Where a bare `<postmaster>` goes: `node.postmaster`, else postmaster@hostname.
    package var postmaster: MailAddress? {
        node.postmaster ?? MailAddress(localPart: Array("postmaster".utf8), domain: Array(node.hostname.utf8))
    }

    /// The route for a domain; nil: MX.
    package func route(for domain: Domain) -> RouteRule? {
        routes.first { $0.domain.matches(domain) }
    }
}

/// `node:`
package struct NodeSection: Sendable {
    /// Names the node in events and (later) in the cluster.
    package var id = "n1"
    /// EHLO, Received, Message-ID and Reporting-MTA. The default is the system's host name, asked once.
    package var hostname = SystemNames.hostname
    package var dataDirectory = "./baton-data"
    package var postmaster: MailAddress?
    package var shutdownGrace = TimeSpan.seconds(10)
    /// Data loops; nil: one on up to two cores, else half the cores.
    package var loops: Int?
}

/// One of `listeners:`
package struct ListenerConfiguration: Sendable {
    package enum Service: String, Sendable, CaseIterable {
        case relay
        /// Adds Date and Message-ID where they lack.
        case submission
    }

    package enum BareNewline: String, Sendable, CaseIterable {
        case reject
        case normalize
    }

    package var address = SocketEndpoint(address: IPAddress("127.0.0.1"), port: 2525)
    package var service = Service.relay
    /// Clients that may relay. Loopback alone by default.
    package var relayFrom = ["127.0.0.0/8", "::1/128"].compactMap { AddressBlock($0) }
    package var bareNewline = BareNewline.reject

    package init() {}
}

/// `limits:`
package struct LimitsSection: Sendable {
    /// Bytes of a message's content (SIZE, RFC 1870).
    package var messageSize = 50 * ByteCount.mebi
    package var recipients = 1000
    package var connections = 10_000
    package var connectionsPerClient = 500
    /// 0: unlimited.
    package var messagesPerConnection = 0
    package var errorsPerConnection = 20
    package var hops = 100
    /// Bytes of one line of data.
    package var lineLength = 64 * ByteCount.kibi
    package var commandTimeout = TimeSpan.minutes(5)
    /// Longest stall within DATA or BDAT; in all at least 1 KiB/s after the first minute.
    package var dataTimeout = TimeSpan.minutes(3)
    /// Bytes of bodies, queues and buffers.
    package var memory = ByteCount.gibi
}

/// `dns:`
package struct DNSSection: Sendable {
    /// Empty: the system's resolv.conf.
    package var servers: [SocketEndpoint] = []
    /// Path of a root trust anchor file; nil: nothing is validated.
    package var trustAnchor: String?
    package var timeout = TimeSpan.seconds(5)
}

/// `delivery:`
package struct DeliverySection: Sendable {
    package enum AddressFamily: String, Sendable, CaseIterable {
        case preferIPv4 = "prefer_ipv4"
        case preferIPv6 = "prefer_ipv6"
        case ipv4
        case ipv6
    }

    package var port = 25
    package var allowPrivateAddresses = false
    package var connections = 5000
    package var connectionsPerSite = 20
    package var messagesPerConnection = 1000
    package var recipientsPerTransaction = 100
    package var addressFamily = AddressFamily.preferIPv4
    package var timeouts = DeliveryTimeouts()
}

/// `delivery.timeouts:`
package struct DeliveryTimeouts: Sendable {
    package var connect = TimeSpan.seconds(30)
    package var banner = TimeSpan.minutes(5)
    package var command = TimeSpan.minutes(5)
    package var dataCommand = TimeSpan.minutes(2)
    /// Longest wait for room to write within DATA.
    package var data = TimeSpan.minutes(3)
    package var dot = TimeSpan.minutes(10)
    package var quit = TimeSpan.seconds(5)
    /// How long a warm connection is kept without work.
    package var idle = TimeSpan.seconds(30)
    /// From the first connect until DATA, over all hosts of an attempt.
    package var attempt = TimeSpan.minutes(10)
}

/// One of `sites:`: what differs for a provider or a domain. Nil fields leave `delivery` and `queue` in force.
package struct SiteRule: Sendable {
    package var name = ""
    /// A destination belongs here when its best MX host is one of these or below one.
    package var mxSuffixes: [Domain] = []
    package var domains: [DomainPattern] = []
    package var connections: Int?
    package var rate: MessageRate?
    package var messagesPerConnection: Int?
    package var recipientsPerTransaction: Int?
    package var retry = RetryOverride()

    package init() {}

    /// Whether the rule names this domain.
    package func matches(domain: Domain) -> Bool { domains.contains { $0.matches(domain) } }

    /// Whether the rule names this MX host: the suffix itself or a name below it, by whole labels.
    package func matches(mxHost: Domain) -> Bool {
        mxSuffixes.contains { suffix in
            if mxHost.bytes == suffix.bytes { return true }
            return mxHost.bytes.count > suffix.bytes.count + 1
                && mxHost.bytes.suffix(suffix.bytes.count) == suffix.bytes[...]
                && mxHost.bytes[mxHost.bytes.count - suffix.bytes.count - 1] == UInt8(ascii: ".")
        }
    }
}

/// `retry:` of a site; nil: as `queue.retry`.
package struct RetryOverride: Sendable {
    package var first: TimeSpan?
    package var factor: Double?
    package var max: TimeSpan?
    package var jitter: Double?

    /// `base` with what is set here.
    package func applied(to base: RetrySettings) -> RetrySettings {
        var settings = base
        if let first { settings.first = first }
        if let factor { settings.factor = factor }
        if let max { settings.max = max }
        if let jitter { settings.jitter = jitter }
        return settings
    }
}

/// `queue.retry:`
package struct RetrySettings: Sendable, Hashable {
    package var first = TimeSpan.minutes(5)
    package var factor = 2.0
    /// Caps the wait before jitter.
    package var max = TimeSpan.hours(4)
    /// A fraction either way.
    package var jitter = 0.2
}

/// One of `routes:`
package struct RouteRule: Sendable {
    package var domain = DomainPattern.any
    package var nextHop = NextHop(kind: .smtp, host: "", port: 25)

    package init() {}
}

/// `queue:`
package struct QueueSection: Sendable {
    package var retry = RetrySettings()
    package var expireAfter = TimeSpan.days(5)
    package var ndrExpireAfter = TimeSpan.days(2)
    /// Nil: `never`.
    package var delayNoticeAfter: TimeSpan?
}

/// `spool:`
package struct SpoolSection: Sendable {
    package enum Compression: String, Sendable, CaseIterable {
        case auto
        case on
        case off
    }

    package var segmentSize = 64 * ByteCount.mebi
    /// False skips every fdatasync of mail: for benchmarks only.
    package var sync = true
    package var compression = Compression.auto
    /// Bytes.
    package var minFree = 2 * ByteCount.gibi
    /// Bytes.
    package var cleaningBudget = 16 * ByteCount.gibi
}

/// `events:`
package struct EventsSection: Sendable {
    package var retention = TimeSpan.days(7)
    /// Bytes.
    package var maxSize = 20 * ByteCount.gibi
}

/// `admin:`
package struct AdminSection: Sendable {
    package var address = SocketEndpoint(address: IPAddress("127.0.0.1"), port: 8025)
}
