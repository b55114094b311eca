// The configuration file: every kind of error with its place, defaults, explain, reload, and the documentation's table.
import BatonCore
import BatonModel
import BatonSpool
import Foundation
import Testing

@testable import BatonNode

private func parse(_ text: String) throws -> NodeConfiguration {
    try ConfigurationLoader.parse(Array(text.utf8), file: "b.yaml")
}

/// The lines that `text` is refused with; empty when it is taken.
private func problems(_ text: String) -> [String] {
    do {
        _ = try parse(text)
        return []
    } catch let error as ConfigurationError {
        return error.description.split(separator: "\n").map(String.init)
    } catch {
        return ["\(error)"]
    }
}

@Test(arguments: [
    ("limits: { mesage_size: 1MiB }", "b.yaml:1:11: limits: unknown key 'mesage_size', did you mean 'message_size'?"),
    ("nod: {}", "b.yaml:1:1: unknown key 'nod', did you mean 'node'?"),
    ("delivery:\n  tls: opportunistic", "b.yaml:2:3: delivery: unknown key 'tls', did you mean 'port'?"),
    ("delivery:\n  timeouts: { dott: 5m }", "b.yaml:2:15: delivery.timeouts: unknown key 'dott', did you mean 'dot'?"),
    ("delivery: { port: 0 }", "b.yaml:1:19: delivery.port: 0 is outside 1 to 65535"),
    ("delivery: { port: twenty }", "b.yaml:1:19: delivery.port: expected a whole number, found 'twenty'"),
    ("delivery: { port: [25] }", "b.yaml:1:19: delivery.port: expected a number, found a list"),
    ("delivery: { port: }", "b.yaml:1:13: delivery.port: expected a number, found nothing"),
    ("limits: 5", "b.yaml:1:9: limits: expected a group of keys, found a single value"),
    (
        "limits: { message_size: 50MB }",
        "b.yaml:1:25: limits.message_size: expected a size such as 64KiB, 25MiB or 1GiB, found '50MB'"
    ),
    (
        "dns: { timeout: 5 }",
        "b.yaml:1:17: dns.timeout: expected a duration such as 250ms, 30s, 5m, 4h or 5d, found '5'"
    ),
    ("spool: { sync: yes }", "b.yaml:1:16: spool.sync: expected true or false, found 'yes'"),
    (
        "delivery: { address_family: ipv5 }",
        "b.yaml:1:29: delivery.address_family: expected prefer_ipv4, prefer_ipv6, ipv4, ipv6, found 'ipv5'"
    ),
    ("queue: { retry: { first: 5h } }", "b.yaml:1:26: queue.retry.first: 5h is more than queue.retry.max, 4h"),
    ("queue: { retry: { jitter: 1.5 } }", "b.yaml:1:27: queue.retry.jitter: 1.5 is outside 0 to 1"),
    ("limits: { hops: 5, hops: 6 }", "b.yaml:1:11: duplicate key 'hops'"),
    ("- a", "b.yaml:1:1: expected groups of keys such as node: and listeners:, found a list"),
    ("node: { id: a }\n---\nnode: { id: b }", "b.yaml:2:1: but found another document"),
    ("listeners: []", "b.yaml:1:12: listeners: at least one is needed"),
    ("listeners: {}", "b.yaml:1:12: listeners: expected a list, found a group of keys"),
    (
        "listeners: [{ address: localhost }]",
        "b.yaml:1:24: listeners[0].address: expected an IP address and port such as 127.0.0.1:2525 or [::1]:2525, "
            + "found 'localhost'"
    ),
    (
        "listeners: [{ address: '127.0.0.1:70000' }]",
        "b.yaml:1:24: listeners[0].address: a port is a number from 0 to 65535, found '70000'"
    ),
    (
        "listeners: [{ address: '127.0.0.1:25' }, { address: '127.0.0.1:25' }]",
        "b.yaml:1:53: listeners[1].address: 127.0.0.1:25 is taken by listeners[0]"
    ),
    ("listeners: [{ tls: starttls }]", "b.yaml:1:20: listeners[0].tls: only none: this build has no TLS"),
    ("listeners: [{ auth: off }]", "b.yaml:1:15: listeners[0]: unknown key 'auth', did you mean 'tls'?"),
    (
        "listeners: [{ relay_from: [10.0.0.1/8] }]",
        "b.yaml:1:28: listeners[0].relay_from: '10.0.0.1/8' has host bits set; the network is 10.0.0.0/8"
    ),
    (
        "listeners: [{ relay_from: ['2001:db8::1/32'] }]",
        "b.yaml:1:28: listeners[0].relay_from: '2001:db8::1/32' has host bits set; the network is 2001:db8::/32"
    ),
    (
        "listeners: [{ relay_from: [10.0.0.0/33] }]",
        "b.yaml:1:28: listeners[0].relay_from: expected a network such as 10.0.0.0/8 or ::1/128, found '10.0.0.0/33'"
    ),
    ("sites: [{ name: x }]", "b.yaml:1:9: sites[0]: needs mx_suffix or domain"),
    ("sites: [{ domain: a.test, rate: 0/m }]", "b.yaml:1:33: sites[0].rate: a rate is at least 1, at most 10^9"),
    (
        "sites: [{ domain: a.test, name: s }, { domain: b.test, name: s }]",
        "b.yaml:1:62: sites[1].name: 's' is taken by a site above"
    ),
    ("sites: [{ domain: a.test, tls: required }]", "b.yaml:1:27: sites[0]: unknown key 'tls', did you mean 'name'?"),
    (
        "sites: [{ domain: a.test, retry: { first: 5h } }]",
        "b.yaml:1:43: sites[0].retry.first: 5h is more than the retry.max in force, 4h"
    ),
    (
        "routes: [{ domain: 'a.*.b', next_hop: 'smtp://h' }]",
        "b.yaml:1:20: routes[0].domain: a wildcard is '*' or '*.domain', found 'a.*.b'"
    ),
    ("routes: [{ domain: a.test }]", "b.yaml:1:10: routes[0]: needs next_hop"),
    ("routes: [{ next_hop: 'smtp://h' }]", "b.yaml:1:10: routes[0]: needs domain"),
    (
        "routes: [{ domain: '*', next_hop: 'http://h' }]",
        "b.yaml:1:35: routes[0].next_hop: expected smtp://host[:port], lmtp://host:port or lmtp+unix:/path, found "
            + "'http://h'"
    ),
    (
        "routes: [{ domain: '*', next_hop: 'smtps://h' }]",
        "b.yaml:1:35: routes[0].next_hop: smtps:// needs TLS, which this build does not have"
    ),
    (
        "routes: [{ domain: '*', next_hop: 'lmtp+unix:run/x' }]",
        "b.yaml:1:35: routes[0].next_hop: a Unix socket is an absolute path of at most 107 octets, found 'run/x'"
    ),
    (
        "routes: [{ domain: '*', next_hop: 'smtp://h', username: u }]",
        "b.yaml:1:47: routes[0]: unknown key 'username', did you mean 'domain'?"
    ),
    (
        "dns: { trust_anchor: /nowhere/root.key }",
        "b.yaml:1:22: dns.trust_anchor: /nowhere/root.key: No such file or directory"
    ),
    (
        "node: { hostname: 'a b' }",
        "b.yaml:1:19: node.hostname: expected a host name such as relay1.example.net, found 'a b'"
    ),
    (
        "node: { postmaster: postmaster }",
        "b.yaml:1:21: node.postmaster: expected an address such as postmaster@example.net, found 'postmaster'"
    ),
])
func configurationErrorWithoutItsPlace(_ text: String, _ expected: String) {
    #expect(problems(text) == [expected])
}

@Test(arguments: ["node: {", "node:\n\tid: a", "a: 'x", "node: *nowhere", "node: { id: \u{1} }"])
func brokenYAMLWithoutALine(_ text: String) {
    let found = problems(text)
    #expect(found.count == 1)
    #expect(found.first?.hasPrefix("b.yaml:") == true)
    #expect(found.first?.hasPrefix("b.yaml:0:") == false)
}

@Test func configurationThatIsNotUTF8() {
    #expect(throws: ConfigurationError.self) {
        try ConfigurationLoader.parse([0x6e, 0x0a, 0x61, 0xff], file: "b.yaml")
    }
    do {
        _ = try ConfigurationLoader.parse([0x6e, 0x0a, 0x61, 0xff], file: "b.yaml")
    } catch { #expect(error.description == "b.yaml:2:2: not UTF-8") }
}

@Test func onlyTheFirstProblemIsTold() {
    let found = problems(
        """
        limits:
          hops: 0
          reciepients: 5
        routes:
          - { domain: '*', next_hop: nowhere }
        sites:
          - { domain: x.test, connections: -1, rate: fast }
        """)
    #expect(found.count == 5)
    #expect(found.map { $0.split(separator: ":")[1] } == ["2", "3", "5", "7", "7"])
}

@Test func configurationFileOverItsBound() throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent(
        "baton-big-\(UInt64.random(in: 0 ... .max))")
    defer { try? FileManager.default.removeItem(at: path) }
    try Data(repeating: UInt8(ascii: "#"), count: ConfigurationLimits.fileBytes + 1).write(to: path)
    do {
        _ = try ConfigurationLoader.load(path: path.path)
        Issue.record("a file over the bound was read")
    } catch {
        #expect(error.exitCode == 66)
        #expect(error.description.contains("larger than 16.0 MiB"))
    }
}

@Test func listOverItsBound() {
    let many = String(repeating: "{domain: x, next_hop: 'smtp://h'},", count: ConfigurationLimits.listElements + 1)
    #expect(problems("routes: [" + many + "]") == ["b.yaml:1:9: routes: more than 10000 elements"])
}

@Test func moreProblemsThanAreShown() {
    let lines = (0..<150).map { "  - { domain: '*', next_hop: n\($0) }" }.joined(separator: "\n")
    let found = problems("routes:\n" + lines)
    #expect(found.count == ConfigurationLimits.problemsShown + 1)
    #expect(found.last == "50 more problems")
}

@Test func missingConfigurationFile() {
    do {
        _ = try ConfigurationLoader.load(path: "/nowhere/baton.yaml")
        Issue.record("read a file that is not there")
    } catch {
        #expect(error.exitCode == 66)
        #expect(error.description == "/nowhere/baton.yaml: No such file or directory")
    }
}

@Test func emptyFileThatIsNoDefaultNode() throws {
    let configuration = try parse("# nothing\n")
    #expect(configuration.listeners.map(\.address.description) == ["127.0.0.1:2525"])
    #expect(configuration.listeners.first?.relayFrom == ["127.0.0.0/8", "::1/128"].compactMap { AddressBlock($0) })
    #expect(configuration.admin.address.description == "127.0.0.1:8025")
    #expect(configuration.node.dataDirectory == "./baton-data")
    #expect(configuration.queue.delayNoticeAfter == nil)
    #expect(try parse("node:\nlimits:\nroutes:\n").limits.hops == 100)
}

private let sample = """
    node:      { id: n1, hostname: Relay1.example.net, data_dir: ./baton-data, postmaster: pm@example.net, shutdown_grace: 10s }
    listeners:
      - { address: "127.0.0.1:2525", service: relay, tls: none, relay_from: ["127.0.0.0/8", "::1/128"], bare_newline: reject }
      - { address: "[::]:587", service: submission, bare_newline: normalize, relay_from: 10.0.0.0/8 }
    limits:    { message_size: 50MiB, recipients: 1000, connections: 10000, connections_per_client: 500, messages_per_connection: 0, errors_per_connection: 20, hops: 100,
                 line_length: 64KiB, command_timeout: 5m, data_timeout: 3m, memory: 1GiB }
    dns:       { servers: ["127.0.0.1:5353", "::1", "[::1]:54"], timeout: 5s }
    delivery:  { port: 25, allow_private_addresses: false, connections: 5000, connections_per_site: 20, messages_per_connection: 1000, recipients_per_transaction: 100, address_family: prefer_ipv4,
                 timeouts: { connect: 30s, banner: 5m, command: 5m, data_command: 2m, data: 3m, dot: 10m, quit: 5s, idle: 30s, attempt: 10m } }
    sites:
      - { mx_suffix: ["mail.protection.outlook.com", "mx.microsoft"], name: microsoft365, connections: 50, rate: 1000/m, messages_per_connection: 100 }
      - { domain: "slow.example", connections: 1, retry: { first: 30m } }
    routes:
      - { domain: "example.test", next_hop: "smtp://127.0.0.1:2600" }
      - { domain: "*.internal.test", next_hop: "lmtp+unix:/run/mda.sock" }
      - { domain: "*", next_hop: "smtp://relay.provider.example:587" }
    queue:     { retry: { first: 5m, factor: 2, max: 4h, jitter: 0.2 }, expire_after: 5d, ndr_expire_after: 2d, delay_notice_after: 3h }
    spool:     { segment_size: 64MiB, sync: true, compression: off, min_free: 2GiB, cleaning_budget: 8GiB }
    events:    { retention: 7d, max_size: 20GiB }
    admin:     { address: "127.0.0.1:8025" }
    """

@Test func contractSampleRefused() throws {
    let configuration = try parse(sample)
    #expect(configuration.node.hostname == "relay1.example.net")
    #expect(configuration.postmaster?.description == "pm@example.net")
    #expect(configuration.listeners[1].address.description == "[::]:587")
    #expect(configuration.listeners[1].service == .submission)
    #expect(configuration.listeners[1].bareNewline == .normalize)
    #expect(configuration.dns.servers.map(\.description) == ["127.0.0.1:5353", "[::1]:53", "[::1]:54"])
    #expect(configuration.sites[0].rate?.perSecond == 1000.0 / 60)
    #expect(configuration.sites[1].name == "slow.example")
    #expect(configuration.sites[1].retry.first == .minutes(30))
    #expect(configuration.spool.compression == .off)
    #expect(configuration.spoolSettings.cleaningBudget == 8 << 30)
    #expect(configuration.queue.delayNoticeAfter == .hours(3))
    #expect(configuration.route(for: Domain("Example.TEST"))?.nextHop.description == "smtp://127.0.0.1:2600")
    #expect(configuration.route(for: Domain("a.b.internal.test"))?.nextHop.kind == .lmtpUnix)
    #expect(configuration.route(for: Domain("internal.test"))?.nextHop.host == "relay.provider.example")
    #expect(configuration.lines["routes[1].next_hop"] == 15)
}

@Test func neverThatIsNotNever() throws {
    #expect(try parse("queue: { delay_notice_after: never }").queue.delayNoticeAfter == nil)
    #expect(problems("queue: { delay_notice_after: 0s }").count == 1)
}

@Test func siteOfAnotherLabelTakenForASuffix() throws {
    let site = try parse(sample).sites[0]
    #expect(site.matches(mxHost: Domain("example-com.mail.protection.outlook.com")))
    #expect(site.matches(mxHost: Domain("mx.microsoft")))
    #expect(!site.matches(mxHost: Domain("evilmx.microsoft")))
    #expect(!site.matches(mxHost: Domain("microsoft")))
}

@Test func explanationWithoutItsLines() throws {
    let rows = try parse(sample).explainedValues(for: Domain("slow.example"))
    func row(_ key: String) -> String { rows.first { $0.key == key }.map { "\($0.value) | \($0.origin)" } ?? "none" }
    #expect(row("route") == "smtp://relay.provider.example:587 | b.yaml:16")
    #expect(row("site") == "slow.example | b.yaml:12")
    #expect(row("site.connections") == "1 | b.yaml:12")
    #expect(row("site.retry.first") == "30m | b.yaml:12")
    #expect(row("site.retry.max") == "4h | b.yaml:17")
    #expect(row("site.rate") == "unlimited | default")
    #expect(row("delivery.timeouts.dot") == "10m | b.yaml:9")
    let bare = try parse("").explainedValues(for: Domain("x.test"))
    #expect(bare.first { $0.key == "route" }?.value == "by MX")
    #expect(bare.dropFirst().allSatisfy { $0.origin == "default" })
}

@Test func dataDirectoryThatMovesWithTheCaller() throws {
    let configuration = try ConfigurationLoader.parse(
        Array("node: { data_dir: spool }".utf8), file: "/etc/baton/baton.yaml", directory: "/etc/baton/")
    #expect(configuration.node.dataDirectory == "/etc/baton/spool")
}

@Test func openRelayWithoutAWarning() throws {
    #expect(try parse("listeners: [{ relay_from: 0.0.0.0/0 }]").warnings.count == 1)
    #expect(try parse(sample).warnings.isEmpty)
}

@Test func reloadThatChangesWhatItCannot() throws {
    let old = try parse(sample)
    var text = sample.replacingOccurrences(of: "hops: 100", with: "hops: 30")
    #expect(old.changesThatNeedRestart(to: try parse(text)).isEmpty)
    text = text.replacingOccurrences(of: "segment_size: 64MiB", with: "segment_size: 32MiB")
        .replacingOccurrences(of: "127.0.0.1:2525", with: "127.0.0.1:2526")
    let new = try parse(text)
    #expect(
        old.changesThatNeedRestart(to: new) == [
            "spool.segment_size: 64MiB stays in force, 32MiB needs a restart",
            "listeners: addresses stay in force until a restart",
        ])
    let merged = old.reloaded(with: new)
    #expect(merged.limits.hops == 30)
    #expect(merged.spool.segmentSize == 64 << 20)
    #expect(merged.listeners[0].address.port == 2525)
    // Whatever is told to be reloadable is in force afterwards, and nothing else changed.
    for key in ConfigurationKeys.sections {
        #expect(key.text(merged) == key.text(key.reloadable ? new : old), "\(key.path)")
    }
}

@Test func nearestWordIsNotTheNearest() {
    #expect(NearestWord.distance(Array("kitten".utf8), Array("sitting".utf8)) == 3)
    #expect(NearestWord.to("conections", among: ["rate", "connections", "retry"]) == "connections")
    #expect(NearestWord.to("x", among: []) == nil)
}

@Test(arguments: [
    ("250ms", Int64(250_000_000)), ("30s", 30_000_000_000), ("5m", 300_000_000_000), ("4h", 14_400_000_000_000),
    ("5d", 432_000_000_000_000),
])
func durationMisread(_ text: String, _ nanoseconds: Int64) throws {
    #expect(try ConfigurationGrammar.duration(text).nanoseconds == nanoseconds)
    #expect(ConfigurationGrammar.text(of: TimeSpan(nanoseconds: nanoseconds)) == text)
}

@Test(arguments: [
    "", "5", "m", "-5m", "5 m", "1.5h", "5M", "999999999999999999d", "99999999999999999999s", "５m", "5m5s",
])
func durationThatIsNone(_ text: String) {
    #expect(throws: ValueProblem.self) { try ConfigurationGrammar.duration(text) }
}

@Test(arguments: ["", "5", "5MB", "5mib", "KiB", "-1KiB", "1.5GiB", "999999999999999999TiB"])
func sizeThatIsNone(_ text: String) {
    #expect(throws: ValueProblem.self) { try ConfigurationGrammar.size(text) }
}

@Test(arguments: ["", "5", "/m", "5/", "5/x", "5/m/s", "0/s", "-1/m", "5 /m"])
func rateThatIsNone(_ text: String) {
    #expect(throws: ValueProblem.self) { try ConfigurationGrammar.rate(text) }
}

@Test func sizesAndRatesMisread() throws {
    #expect(try ConfigurationGrammar.size("64KiB") == 65536)
    #expect(try ConfigurationGrammar.size("0B") == 0)
    #expect(ConfigurationGrammar.text(ofSize: 25 << 20) == "25MiB")
    #expect(try ConfigurationGrammar.rate("100/h").perSecond == 100.0 / 3600)
}

/// The checkout this test was compiled from.
private let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

@Test func keyMissingFromTheDocumentation() throws {
    let text = try String(contentsOf: root.appendingPathComponent("docs/CONFIGURATION.md"), encoding: .utf8)
    var documented: [String: String] = [:]
    for line in text.split(separator: "\n") where line.hasPrefix("| `") {
        let cells = line.split(separator: "|").map { $0.trimmingCharacters(in: .whitespaces) }
        guard cells.count >= 4 else { continue }
        documented[cells[0].trimmingCharacters(in: ["`"])] = cells[2].trimmingCharacters(in: ["`"])
    }
    let rows = ConfigurationKeys.documented
    #expect(Set(documented.keys) == Set(rows.map(\.path)))
    for row in rows where row.path != "node.hostname" {
        #expect(documented[row.path] == row.defaultText, "\(row.path)")
    }
}
