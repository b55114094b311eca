// The checked configuration as each module wants it.
import BatonCluster
import BatonCore
import BatonDNS
import BatonDelivery
import BatonIngress
import BatonMail
import BatonModel
import BatonPeer
import BatonQueue
import BatonSMTP
import BatonSpool
import NIOCore

/// How `limits.memory` is divided. What has no share (programme text, resolver, DNS cache, event log, allocator) lives in the
/// 128 MiB that the contract allows beside it.
struct MemoryShares: Equatable {
    /// Octets of bodies on their way in, until the spool has written them: a quarter.
    let incoming: Int
    /// Octets of bodies that stay in memory until their first attempt: a quarter. Over it they are read back.
    let bodies: Int
    /// Queued recipients, at `QueueLimits.jobOctets` each: three eighths, `QueueLimits.jobsMax` at most.
    let jobs: Int
    /// Octets of bodies read back for their transactions: an eighth.
    let outgoing: Int

    init(_ memory: Int) {
        incoming = max(memory / 4, ByteCount.mebi)
        bodies = memory / 4
        jobs = min(QueueLimits.jobsMax, memory / 8 * 3 / QueueLimits.jobOctets)
        outgoing = max(memory / 8, ByteCount.mebi)
    }
}

extension NodeConfiguration {
    /// Data loops: one on up to two cores, else half the cores (DESIGN section 2).
    func loopCount(cores: Int) -> Int { node.loops ?? (cores <= 2 ? 1 : cores / 2) }

    var memoryShares: MemoryShares { MemoryShares(limits.memory) }

    var spoolSettings: SpoolConfiguration {
        var settings = SpoolConfiguration()
        settings.segmentSize = spool.segmentSize
        settings.sync = spool.sync
        settings.compression =
            switch spool.compression {
            case .auto: .auto
            case .on: .on
            case .off: .off
            }
        settings.minFree = UInt64(max(0, spool.minFree))
        settings.cleaningBudget = Int64(spool.cleaningBudget)
        return settings
    }

    /// One partition's settings: its part of the queue's shares of `limits.memory` (`MemoryShares`).
    func queueSettings(partitions: Int, seed: UInt64) -> QueueConfiguration {
        QueueConfiguration(
            retry: RetrySchedule(queue.retry), expireAfter: queue.expireAfter, reportExpireAfter: queue.ndrExpireAfter,
            delayNoticeAfter: queue.delayNoticeAfter, residentBytes: max(memoryShares.bodies / partitions, 1),
            jobsMax: max(memoryShares.jobs / partitions, 1), seed: seed)
    }

    /// The retry schedule of a site by its name as events have it; nil where `queue.retry` holds.
    func retrySchedule(ofSite name: [UInt8]) -> RetrySchedule? {
        let text = String(decoding: name, as: UTF8.self)
        guard let rule = sites.first(where: { $0.siteNames.contains(text) }), rule.retry.isSet else { return nil }
        return RetrySchedule(rule.retry.applied(to: queue.retry))
    }

    /// The limits of sites as a home of the cluster needs them, by the names that delivery uses.
    var quotaSettings: QuotaSettings {
        var limits: [QuotaKey: UInt64] = [:]
        for rule in sites + ShippedSites.rules {
            for name in rule.siteNames {
                let site = Array(name.utf8)
                let connections = QuotaKey(site: site, kind: .connections)
                if let limit = rule.connections, limits[connections] == nil {
                    limits[connections] = UInt64(max(1, limit))
                }
                let rate = QuotaKey(site: site, kind: .rate)
                if let perSecond = rule.rate?.perSecond, limits[rate] == nil, perSecond > 0, perSecond < 1e12 {
                    limits[rate] = max(1, UInt64(perSecond * 3_600))
                }
            }
        }
        return QuotaSettings(connections: UInt64(max(1, delivery.connectionsPerSite)), limits: limits)
    }

    var resolverSettings: ResolverConfiguration {
        ResolverConfiguration(
            servers: dns.servers.map { ResolverServer(address: $0.address, port: UInt16(clamping: $0.port)) },
            trustAnchor: dns.trustAnchor, timeout: dns.timeout)
    }

    var planSettings: PlanSettings {
        let family: AddressFamily =
            switch delivery.addressFamily {
            case .preferIPv4: .preferIPv4
            case .preferIPv6: .preferIPv6
            case .ipv4: .ipv4
            case .ipv6: .ipv6
            }
        // Only a listener on the port that mail goes to can be the other end of a loop.
        let own = listeners.filter { $0.address.port == delivery.port }.map(\.address.address)
        return PlanSettings(
            addressFamily: family, allowPrivateAddresses: delivery.allowPrivateAddresses,
            ownNames: [Domain(node.hostname).bytes], ownAddresses: LocalAddresses.reachable(at: own))
    }

    var deliverySettings: DeliveryConfiguration {
        var settings = DeliveryConfiguration(hostname: Array(node.hostname.utf8))
        settings.port = UInt16(clamping: delivery.port)
        settings.allowPrivateAddresses = delivery.allowPrivateAddresses
        settings.connections = delivery.connections
        settings.connectionsPerSite = delivery.connectionsPerSite
        settings.messagesPerConnection = delivery.messagesPerConnection
        settings.recipientsPerTransaction = delivery.recipientsPerTransaction
        settings.bodyMemory = memoryShares.outgoing / loopCount(cores: System.coreCount)
        settings.timeouts.connect = delivery.timeouts.connect
        settings.timeouts.idle = delivery.timeouts.idle
        settings.timeouts.client.banner = delivery.timeouts.banner
        settings.timeouts.client.command = delivery.timeouts.command
        settings.timeouts.client.dataCommand = delivery.timeouts.dataCommand
        settings.timeouts.client.data = delivery.timeouts.data
        settings.timeouts.client.dot = delivery.timeouts.dot
        settings.timeouts.client.quit = delivery.timeouts.quit
        settings.timeouts.client.attempt = delivery.timeouts.attempt
        settings.sites = (sites + ShippedSites.rules).flatMap { $0.deliveryRules }
        settings.routes = routes.compactMap { rule in
            guard let pattern = BatonDelivery.DomainPattern(rule.domain.description),
                let hop = BatonDelivery.NextHop(rule.nextHop.description)
            else { return nil }
            return BatonDelivery.RouteRule(domain: pattern, nextHop: hop)
        }
        return settings
    }

    var ingressSettings: IngressConfiguration {
        var settings = IngressConfiguration(
            hostname: node.hostname, postmaster: postmaster,
            listeners: listeners.map { listener in
                BatonIngress.ListenerConfiguration(
                    host: listener.address.address.description, port: listener.address.port,
                    service: listener.service == .submission ? .submission : .relay, relayFrom: listener.relayFrom,
                    normalizesBareLF: listener.bareNewline == .normalize)
            })
        settings.limits.session = serverLimits
        settings.limits.connections = limits.connections
        settings.limits.connectionsPerClient = limits.connectionsPerClient
        settings.limits.memory = memoryShares.incoming
        return settings
    }

    var reportSettings: ReportConfiguration {
        ReportConfiguration(
            hostname: Array(node.hostname.utf8), postmaster: postmaster?.bytes ?? [], expireAfter: queue.expireAfter)
    }

    var eventSettings: EventSettings {
        var settings = EventSettings()
        settings.retention = events.retention
        settings.maxSize = Int64(events.maxSize)
        return settings
    }

    private var serverLimits: ServerLimits {
        var server = ServerLimits()
        server.messageSize = limits.messageSize
        server.recipients = limits.recipients
        server.messagesPerConnection = limits.messagesPerConnection
        server.errorsPerConnection = limits.errorsPerConnection
        server.hops = limits.hops
        server.lineLength = limits.lineLength
        server.commandTimeout = limits.commandTimeout
        server.dataTimeout = limits.dataTimeout
        return server
    }
}

extension RetrySchedule {
    init(_ settings: RetrySettings) {
        self.init(first: settings.first, factor: settings.factor, max: settings.max, jitter: settings.jitter)
    }
}

extension RetryOverride {
    fileprivate var isSet: Bool { first != nil || factor != nil || max != nil || jitter != nil }
}

extension SiteRule {
    /// What delivery calls the sites of this rule: its name, else its domain patterns and its first MX suffix.
    fileprivate var siteNames: [String] {
        if !name.isEmpty { return [name] }
        return domains.map(\.description) + mxSuffixes.prefix(1).map(\.description)
    }

    /// Delivery matches one condition a rule; rules of one name share their connections and rate.
    fileprivate var deliveryRules: [BatonDelivery.SiteRule] {
        var rules: [BatonDelivery.SiteRule] = []
        let name: [UInt8]? = self.name.isEmpty ? nil : Array(self.name.utf8)
        func rule(_ match: BatonDelivery.SiteRule.Match) -> BatonDelivery.SiteRule {
            BatonDelivery.SiteRule(
                match: match, name: name, connections: connections, messagesPerSecond: rate?.perSecond,
                messagesPerConnection: messagesPerConnection, recipientsPerTransaction: recipientsPerTransaction)
        }
        if !mxSuffixes.isEmpty { rules.append(rule(.mxSuffix(mxSuffixes.map(\.bytes)))) }
        for domain in domains {
            if let pattern = BatonDelivery.DomainPattern(domain.description) { rules.append(rule(.domain(pattern))) }
        }
        return rules
    }
}
