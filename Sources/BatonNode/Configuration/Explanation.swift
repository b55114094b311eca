// `check-config --explain DOMAIN`, and what a reload may change.
import BatonCore
import BatonModel

/// One value in force, with where it comes from.
package struct ExplainedValue: Sendable {
    package let key: String
    package let value: String
    /// `baton.yaml:12`, or `default`.
    package let origin: String
}

extension NodeConfiguration {
    /// Route, site and every value in force for mail to `domain`, as aligned lines. Asks no DNS: sites named by MX are
    /// decided when the MX is known, so they are listed as candidates.
    package func explanation(for domain: Domain) -> String {
        let rows = explainedValues(for: domain)
        let keyWidth = rows.map { $0.key.count }.max() ?? 0
        let valueWidth = min(60, rows.map { $0.value.count }.max() ?? 0)
        func padded(_ text: String, _ width: Int) -> String {
            text + String(repeating: " ", count: max(0, width - text.count))
        }
        return rows.map { "\(padded($0.key, keyWidth))  \(padded($0.value, valueWidth))  \($0.origin)" }
            .joined(separator: "\n")
    }

    /// The rows of `explanation`.
    package func explainedValues(for domain: Domain) -> [ExplainedValue] {
        var rows = [ExplainedValue(key: "domain", value: domain.description, origin: "asked")]
        if let index = routes.firstIndex(where: { $0.domain.matches(domain) }) {
            rows.append(
                ExplainedValue(
                    key: "route", value: routes[index].nextHop.description, origin: origin("routes[\(index)].next_hop"))
            )
        } else {
            rows.append(ExplainedValue(key: "route", value: "by MX", origin: "default"))
        }
        let (site, siteIndex, shipped) = siteNaming(domain)
        rows.append(
            ExplainedValue(
                key: "site", value: site?.name ?? siteCandidates(),
                origin: siteIndex.map { origin("sites[\($0)]") } ?? (shipped ? "shipped" : "default")))
        rows += limitRows(site, siteIndex)
        for key in ConfigurationKeys.sections where Self.concernsDelivery(key.path) {
            rows.append(ExplainedValue(key: key.path, value: key.text(self), origin: origin(key.path)))
        }
        return rows
    }

    /// The first rule that names the domain itself.
    private func siteNaming(_ domain: Domain) -> (SiteRule?, Int?, Bool) {
        if let index = sites.firstIndex(where: { $0.matches(domain: domain) }) { return (sites[index], index, false) }
        if let rule = ShippedSites.rules.first(where: { $0.matches(domain: domain) }) { return (rule, nil, true) }
        return (nil, nil, false)
    }

    private func siteCandidates() -> String {
        let named = sites.filter { !$0.mxSuffixes.isEmpty }.map(\.name)
        return named.isEmpty ? "the MX set" : "by MX: \(named.joined(separator: ", ")), else the MX set"
    }

    /// What the site changes, each with the line that it comes from.
    private func limitRows(_ site: SiteRule?, _ index: Int?) -> [ExplainedValue] {
        let keys: [(String, String?, String)] = [
            ("connections", site?.connections.map { "\($0)" }, "delivery.connections_per_site"),
            ("rate", site?.rate?.description, ""),
            (
                "messages_per_connection", site?.messagesPerConnection.map { "\($0)" },
                "delivery.messages_per_connection"
            ),
            (
                "recipients_per_transaction", site?.recipientsPerTransaction.map { "\($0)" },
                "delivery.recipients_per_transaction"
            ),
            ("retry.first", site?.retry.first.map(ConfigurationGrammar.text(of:)), "queue.retry.first"),
            ("retry.factor", site?.retry.factor.map(ConfigurationGrammar.text(of:)), "queue.retry.factor"),
            ("retry.max", site?.retry.max.map(ConfigurationGrammar.text(of:)), "queue.retry.max"),
            ("retry.jitter", site?.retry.jitter.map(ConfigurationGrammar.text(of:)), "queue.retry.jitter"),
        ]
        return keys.map { name, own, general in
            if let own {
                let place = index.map { origin("sites[\($0)].\(name)") } ?? "shipped"
                return ExplainedValue(key: "site.\(name)", value: own, origin: place)
            }
            let value = ConfigurationKeys.sections.first { $0.path == general }?.text(self) ?? "unlimited"
            return ExplainedValue(
                key: "site.\(name)", value: value, origin: general.isEmpty ? "default" : origin(general))
        }
    }

    private static func concernsDelivery(_ path: String) -> Bool {
        path.hasPrefix("delivery.") || path.hasPrefix("queue.") || path.hasPrefix("dns.") || path == "node.hostname"
    }

    private func origin(_ key: String) -> String {
        // A list element's own line stands for keys in it that were not written.
        guard let line = lines[key] else { return "default" }
        return "\(file ?? "configuration"):\(line)"
    }

    // MARK: Reload

    /// What SIGHUP would change but cannot: one line for each key, naming it. Empty: `new` can replace `self`.
    package func changesThatNeedRestart(to new: NodeConfiguration) -> [String] {
        var refused: [String] = []
        for key in ConfigurationKeys.sections where !key.reloadable && key.text(self) != key.text(new) {
            refused.append("\(key.path): \(key.text(self)) stays in force, \(key.text(new)) needs a restart")
        }
        if listeners.map(\.address) != new.listeners.map(\.address) {
            refused.append("listeners: addresses stay in force until a restart")
        } else {
            for (index, pair) in zip(listeners, new.listeners).enumerated() {
                for key in ConfigurationKeys.listener where !key.reloadable && key.text(pair.0) != key.text(pair.1) {
                    refused.append(
                        "listeners[\(index)].\(key.path): \(key.text(pair.0)) stays in force until a restart")
                }
            }
        }
        return refused
    }

    /// `new` with every value that cannot be reloaded taken from `self`: what is in force after SIGHUP.
    package func reloaded(with new: NodeConfiguration) -> NodeConfiguration {
        var result = self
        result.limits = new.limits
        result.limits.memory = limits.memory
        result.delivery = new.delivery
        result.sites = new.sites
        result.routes = new.routes
        result.queue = new.queue
        result.node.shutdownGrace = new.node.shutdownGrace
        if listeners.map(\.address) == new.listeners.map(\.address) {
            for index in result.listeners.indices { result.listeners[index].relayFrom = new.listeners[index].relayFrom }
        }
        result.file = new.file
        result.lines = new.lines
        result.warnings = new.warnings
        return result
    }
}
