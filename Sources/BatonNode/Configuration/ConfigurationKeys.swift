// Every key of the configuration, in the order of docs/CONFIGURATION.md, with its range.
import BatonCore
import Yams

/// The tables that reading, `--explain`, reload and the documentation's test share.
enum ConfigurationKeys {
    /// The longest span that any key takes.
    private static let year = TimeSpan.days(365)
    private static let tera = 1 << 40

    /// Every section, without the lists.
    static let sections = single + cluster

    /// `node:` to `admin:`: what a node on its own has.
    private static let single: [ConfigurationKey<NodeConfiguration>] = [
        .init("node.id", \.node.id, .nodeID),
        .init("node.hostname", \.node.hostname, .hostname),
        .init("node.data_dir", \.node.dataDirectory, .path),
        .init(optional: "node.postmaster", \.node.postmaster, .mailbox, absent: "postmaster@hostname"),
        .init("node.shutdown_grace", \.node.shutdownGrace, .duration(.milliseconds(100) ... .hours(1)), reload: true),
        .init(optional: "node.loops", \.node.loops, .integer(1...64), absent: "auto"),
        // RFC 5321 4.5.3.1.7 (64 KiB of content) and 4.5.3.1.8 (100 recipients) are the floors.
        .init("limits.message_size", \.limits.messageSize, .size(64 << 10...4 << 30), reload: true),
        .init("limits.recipients", \.limits.recipients, .integer(100...Limits.recipientsPerEnvelope), reload: true),
        .init("limits.connections", \.limits.connections, .integer(1...1_000_000), reload: true),
        .init("limits.connections_per_client", \.limits.connectionsPerClient, .integer(1...1_000_000), reload: true),
        .init(
            "limits.messages_per_connection", \.limits.messagesPerConnection, .integer(0...1_000_000_000), reload: true),
        .init("limits.errors_per_connection", \.limits.errorsPerConnection, .integer(1...1_000_000), reload: true),
        .init("limits.hops", \.limits.hops, .integer(1...1000), reload: true),
        .init("limits.line_length", \.limits.lineLength, .size(1000...1 << 30), reload: true),
        .init(
            "limits.command_timeout", \.limits.commandTimeout, .duration(.milliseconds(100) ... .hours(1)), reload: true
        ),
        .init("limits.data_timeout", \.limits.dataTimeout, .duration(.milliseconds(100) ... .hours(1)), reload: true),
        .init("limits.memory", \.limits.memory, .size(16 << 20...16 * tera), reload: false),
        .init(list: "dns.servers", \.dns.servers, .endpoint(1...65535, defaultPort: 53)),
        .init(optional: "dns.trust_anchor", \.dns.trustAnchor, .path, absent: "none"),
        .init("dns.timeout", \.dns.timeout, .duration(.milliseconds(100) ... .minutes(2))),
        .init("delivery.port", \.delivery.port, .integer(1...65535), reload: true),
        .init("delivery.allow_private_addresses", \.delivery.allowPrivateAddresses, .boolean, reload: true),
        .init("delivery.connections", \.delivery.connections, .integer(1...1_000_000), reload: true),
        .init("delivery.connections_per_site", \.delivery.connectionsPerSite, .integer(1...100_000), reload: true),
        .init(
            "delivery.messages_per_connection", \.delivery.messagesPerConnection, .integer(1...1_000_000_000),
            reload: true),
        .init(
            "delivery.recipients_per_transaction", \.delivery.recipientsPerTransaction, .integer(1...1000),
            reload: true),
        .init("delivery.address_family", \.delivery.addressFamily, .word, reload: true),
        timeout("connect", \.delivery.timeouts.connect),
        timeout("banner", \.delivery.timeouts.banner),
        timeout("command", \.delivery.timeouts.command),
        timeout("data_command", \.delivery.timeouts.dataCommand),
        timeout("data", \.delivery.timeouts.data),
        timeout("dot", \.delivery.timeouts.dot),
        timeout("quit", \.delivery.timeouts.quit),
        timeout("idle", \.delivery.timeouts.idle),
        timeout("attempt", \.delivery.timeouts.attempt),
        .init("queue.retry.first", \.queue.retry.first, .duration(.milliseconds(10)...year), reload: true),
        .init("queue.retry.factor", \.queue.retry.factor, .decimal(1...100), reload: true),
        .init("queue.retry.max", \.queue.retry.max, .duration(.milliseconds(10)...year), reload: true),
        .init("queue.retry.jitter", \.queue.retry.jitter, .decimal(0...1), reload: true),
        .init("queue.expire_after", \.queue.expireAfter, .duration(.milliseconds(10)...year), reload: true),
        .init("queue.ndr_expire_after", \.queue.ndrExpireAfter, .duration(.milliseconds(10)...year), reload: true),
        delayNotice,
        .init("spool.segment_size", \.spool.segmentSize, .size(1 << 20...4 << 30)),
        .init("spool.sync", \.spool.sync, .boolean),
        .init("spool.compression", \.spool.compression, .word),
        .init("spool.min_free", \.spool.minFree, .size(0...1024 * tera)),
        .init("spool.cleaning_budget", \.spool.cleaningBudget, .size(0...1024 * tera)),
        .init("events.retention", \.events.retention, .duration(.minutes(1) ... .days(3650))),
        .init("events.max_size", \.events.maxSize, .size(1 << 20...1024 * tera)),
        .init("admin.address", \.admin.address, .endpoint(0...65535)),
    ]

    private static func timeout(
        _ name: String, _ field: any WritableKeyPath<NodeConfiguration, TimeSpan> & Sendable
    ) -> ConfigurationKey<NodeConfiguration> {
        .init("delivery.timeouts." + name, field, .duration(.milliseconds(10) ... .hours(2)), reload: true)
    }

    /// `never` or a duration.
    private static let delayNotice: ConfigurationKey<NodeConfiguration> = .init(
        optional: "queue.delay_notice_after", \.queue.delayNoticeAfter,
        ConfigurationKind<TimeSpan>.duration(.milliseconds(10)...year).orNever(), absent: "never", reload: true)

    static let listener: [ConfigurationKey<ListenerConfiguration>] = [
        .init("address", \.address, .endpoint(0...65535)),
        .init("service", \.service, .word),
        // The value is checked and means nothing: without TLS there is only `none`.
        .init(
            path: "tls", kind: "none", reloadable: false,
            read: { node, _ in
                guard NoTLS(rawValue: node.scalar?.string ?? "") != nil else {
                    throw ValueProblem("only none: this build has no TLS")
                }
            }, text: { _ in "none" }),
        .init(list: "relay_from", \.relayFrom, .block, reload: true),
        .init("bare_newline", \.bareNewline, .word, reload: true),
    ]

    static let site: [ConfigurationKey<SiteRule>] = [
        .init("name", \.name, .siteName, reload: true),
        .init(list: "mx_suffix", \.mxSuffixes, .domain, reload: true),
        .init(list: "domain", \.domains, .pattern, reload: true),
        .init(optional: "connections", \.connections, .integer(1...100_000), absent: "", reload: true),
        .init(optional: "rate", \.rate, .rate, absent: "", reload: true),
        .init(
            optional: "messages_per_connection", \.messagesPerConnection, .integer(1...1_000_000_000), absent: "",
            reload: true),
        .init(
            optional: "recipients_per_transaction", \.recipientsPerTransaction, .integer(1...1000), absent: "",
            reload: true),
        .init(optional: "retry.first", \.retry.first, .duration(.milliseconds(10)...year), absent: "", reload: true),
        .init(optional: "retry.factor", \.retry.factor, .decimal(1...100), absent: "", reload: true),
        .init(optional: "retry.max", \.retry.max, .duration(.milliseconds(10)...year), absent: "", reload: true),
        .init(optional: "retry.jitter", \.retry.jitter, .decimal(0...1), absent: "", reload: true),
    ]

    static let route: [ConfigurationKey<RouteRule>] = [
        .init("domain", \.domain, .pattern, reload: true),
        .init("next_hop", \.nextHop, .nextHop, reload: true),
    ]

    /// Names on the top level.
    static let top = [
        "node", "listeners", "limits", "dns", "delivery", "sites", "routes", "queue", "spool", "events", "admin",
        "cluster",
    ]

    /// Every key as docs/CONFIGURATION.md lists it: path, kind and default.
    static var documented: [(path: String, kind: String, defaultText: String)] {
        let configuration = NodeConfiguration()
        var rows: [(path: String, kind: String, defaultText: String)] = []
        for key in sections { rows.append((key.path, key.kind, key.text(configuration))) }
        for key in listener { rows.append(("listeners[].\(key.path)", key.kind, key.text(ListenerConfiguration()))) }
        for key in site { rows.append(("sites[].\(key.path)", key.kind, key.text(SiteRule()))) }
        for key in route { rows.append(("routes[].\(key.path)", key.kind, "")) }
        return rows
    }
}

extension ConfigurationKind where Value == TimeSpan {
    /// `never` is written as no value at all: the reader gives `.zero`, which `ConfigurationLoader` turns into nil.
    func orNever() -> Self {
        Self(name: "duration or never", read: { $0 == "never" ? .zero : try read($0) }, text: text)
    }
}
