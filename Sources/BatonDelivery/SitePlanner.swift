// From a domain to its site: explicit routes first, then address literals, then MX.
import BatonCore
import BatonDNS
import BatonModel

/// Finds sites for one loop. A value around the loop's `MXPlanning`: called on the loop; the answer comes on the loop,
/// perhaps before `plan` returns.
package struct SitePlanner: Sendable {
    package var configuration: DeliveryConfiguration
    private let planning: any MXPlanning

    package init(configuration: DeliveryConfiguration, planning: any MXPlanning) {
        self.configuration = configuration
        self.planning = planning
    }

    package func plan(_ domain: Domain, at now: Instant, _ answer: @escaping @Sendable (PlannedDestination) -> Void) {
        let configuration = configuration
        if let rule = configuration.routes.first(where: { $0.domain.matches(domain) }) {
            return route(rule.nextHop, domain, at: now, answer)
        }
        if domain.isLiteral { return answer(Self.literal(domain, configuration, at: now)) }
        planning.plan(domain) { plan in answer(Self.site(of: plan, domain, configuration, at: now)) }
    }

    // MARK: Routes

    private func route(
        _ nextHop: NextHop, _ domain: Domain, at now: Instant,
        _ answer: @escaping @Sendable (PlannedDestination) -> Void
    ) {
        let configuration = configuration
        let expires = now + DeliveryLimits.routePlanLife
        let name = Array(nextHop.text.utf8)
        switch nextHop {
        case .lmtpSocket(let path):
            let host = SiteHost(name: Array("localhost".utf8), rank: 0, endpoints: [.unix(path: path)])
            answer(.site(Self.site([host], name, domain, configuration, isRoute: true, isLMTP: true, expires)))
        case .tcp(let host, let port, let isLMTP):
            if let address = IPAddress(String(decoding: host, as: UTF8.self)) {
                let host = SiteHost(name: host, rank: 0, endpoints: [.ip(address, port: port)])
                let site = Self.site([host], name, domain, configuration, isRoute: true, isLMTP: isLMTP, expires)
                return answer(.site(site))
            }
            planning.planHost(Domain(host)) { plan in
                switch plan.verdict {
                case .hosts(let hosts):
                    let found = Self.hosts(hosts, port: port)
                    let until = min(expires, plan.expires)
                    answer(.site(Self.site(found, name, domain, configuration, isRoute: true, isLMTP: isLMTP, until)))
                case .resolverDown: answer(.hold(until: now + DeliveryLimits.ownFaultPauseMin))
                case .nullMX, .noSuchDomain, .noAddress, .mailLoop:
                    // The administrator's next hop has no address: their mistake is no reason to bounce their mail.
                    answer(.postpone(Self.local(451, 4, 4, 4, "next hop \(nextHop.text) has no address")))
                case .temporary(let reason):
                    answer(.postpone(Self.local(451, 4, 4, 3, "next hop \(nextHop.text): \(reason)")))
                }
            }
        }
    }

    // MARK: Literals and MX

    private static func literal(
        _ domain: Domain, _ configuration: DeliveryConfiguration, at now: Instant
    ) -> PlannedDestination {
        var text = String(decoding: domain.bytes.dropFirst().dropLast(), as: UTF8.self)
        if text.hasPrefix("ipv6:") { text = String(text.dropFirst(5)) }
        guard let address = IPAddress(text) else {
            return .fail(local(550, 5, 1, 2, "bad address literal"))
        }
        guard configuration.allowPrivateAddresses || !address.isPrivate else {
            return .fail(local(550, 5, 4, 4, "private address not allowed"))
        }
        let host = SiteHost(name: domain.bytes, rank: 0, endpoints: [.ip(address, port: configuration.port)])
        let expires = now + DeliveryLimits.mxPlanLife
        return .site(site([host], domain.bytes, domain, configuration, isRoute: false, isLMTP: false, expires))
    }

    static func site(
        of plan: MXPlan, _ domain: Domain, _ configuration: DeliveryConfiguration, at now: Instant
    ) -> PlannedDestination {
        switch plan.verdict {
        case .hosts(let all):
            var found = all
            if !configuration.allowPrivateAddresses {
                found = all.compactMap { host in
                    let left = host.addresses.filter { !$0.isPrivate }
                    return left.isEmpty ? nil : MXHost(preference: host.preference, name: host.name, addresses: left)
                }
            }
            guard !found.isEmpty else { return .fail(local(550, 5, 4, 4, "every target of the domain is private")) }
            let hosts = hosts(found, port: configuration.port)
            // The MX set and its order name the site: sorted, since equals come in random order.
            let name = found.sorted { ($0.preference, text($0)) < ($1.preference, text($1)) }.map(text)
                .joined(separator: ",")
            let expires = min(max(plan.expires, now + .seconds(1)), now + DeliveryLimits.mxPlanLife)
            return .site(
                site(
                    hosts, Array(name.utf8.prefix(512)), domain, configuration, isRoute: false, isLMTP: false, expires))
        case .nullMX: return .fail(local(556, 5, 1, 10, "the domain accepts no mail (null MX)"))
        case .noSuchDomain: return .fail(local(550, 5, 1, 2, "no such domain"))
        case .noAddress: return .fail(local(550, 5, 4, 4, "no mail exchanger with an address"))
        case .mailLoop: return .fail(local(554, 5, 4, 6, "mail loop: this relay is the domain's mail exchanger"))
        case .temporary(let reason): return .postpone(local(451, 4, 4, 3, "DNS: \(reason)"))
        case .resolverDown: return .hold(until: now + DeliveryLimits.ownFaultPauseMin)
        }
    }

    private static func text(_ host: MXHost) -> String { String(decoding: host.name, as: UTF8.self) }

    private static func hosts(_ all: [MXHost], port: UInt16) -> [SiteHost] {
        all.map { host in
            SiteHost(
                name: host.name, rank: host.preference, endpoints: host.addresses.map { .ip($0, port: port) })
        }
    }

    private static func site(
        _ hosts: [SiteHost], _ targetName: [UInt8], _ domain: Domain, _ configuration: DeliveryConfiguration,
        isRoute: Bool, isLMTP: Bool, _ expires: Instant
    ) -> SitePlan {
        let best = isRoute ? nil : hosts.min { $0.rank < $1.rank }?.name
        let index = configuration.sites.firstIndex { $0.matches(domain, bestHost: best) }
        let rule = index.map { configuration.sites[$0] }
        var name = rule?.name ?? targetName
        if let rule, rule.name == nil {
            switch rule.match {
            case .domain(let pattern): name = pattern.text
            case .mxSuffix(let suffixes): name = suffixes.first ?? targetName
            }
        }
        // Name, rule and targets: the same MX set under two rules has two pools, each with its own limits.
        let key = Array("\(index ?? -1)|\(isRoute ? "route" : "mx")|".utf8) + targetName
        return SitePlan(
            key: key, name: name, hosts: hosts, isLMTP: isLMTP,
            limits: SiteLimits(
                connections: rule?.connections ?? configuration.connectionsPerSite,
                messagesPerConnection: rule?.messagesPerConnection ?? configuration.messagesPerConnection,
                messagesPerSecond: rule?.messagesPerSecond, idle: configuration.timeouts.idle,
                recipientsPerTransaction: rule?.recipientsPerTransaction ?? configuration.recipientsPerTransaction),
            privateAllowed: isRoute || configuration.allowPrivateAddresses, expires: expires)
    }

    private static func local(_ code: UInt16, _ a: UInt8, _ b: UInt16, _ c: UInt16, _ text: String) -> SMTPReply {
        SMTPReply(local: code, EnhancedStatus(a, b, c), text)
    }
}
