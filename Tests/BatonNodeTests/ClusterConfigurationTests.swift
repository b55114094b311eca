// `cluster:` in the configuration file: what is refused with which line, the files, defaults and reload.
import BatonCore
import BatonModel
import Foundation
import Testing

@testable import BatonNode

private func problems(_ text: String, files: Bool = false) -> [String] {
    do {
        _ = try ConfigurationLoader.parse(Array(text.utf8), file: "b.yaml", checkFiles: files)
        return []
    } catch {
        return error.description.split(separator: "\n").map(String.init)
    }
}

private func parse(_ text: String) throws -> NodeConfiguration {
    try ConfigurationLoader.parse(Array(text.utf8), file: "b.yaml", directory: "/etc/baton/", checkFiles: false)
}

/// A cluster on loopback, with `more` in it.
private func plain(_ more: String = "") -> String {
    "node: { id: n1 }\ncluster: { name: prod, peer_address: '127.0.0.1:7025', etcd: 'http://127.0.0.1:2379',\n"
        + "  insecure_plaintext: true\(more.isEmpty ? "" : ", " + more) }"
}

/// A cluster with TLS.
private func safe(_ more: String = "", address: String = "10.0.0.1:7025", etcd: String = "'http://127.0.0.1:2379'")
    -> String
{
    "node: { id: n1 }\ncluster: { name: prod, peer_address: '\(address)', etcd: \(etcd),\n"
        + "  tls: { ca: a, certificate: b, private_key: c }\(more.isEmpty ? "" : ", " + more) }"
}

@Test func clusterThatIsRefused() throws {
    #expect(problems(plain()).isEmpty)
    #expect(problems(safe()).isEmpty)
    let cluster = try #require(try parse(plain("min_copies: 3, failure_domain: r1")).cluster)
    #expect(cluster.name == "prod")
    #expect(cluster.peerAddress.description == "127.0.0.1:7025")
    #expect(cluster.etcd == ["http://127.0.0.1:2379"])
    #expect(cluster.minCopies == 3)
    #expect(cluster.failureDomain == "r1")
    #expect(try parse(plain("min_copies: 3")).copies == 3)
    let full = try #require(
        try parse(
            safe(
                "etcd_user: u, etcd_password_file: p, etcd_tls: { ca: x, certificate: y, private_key: /z }, weight: 0.5",
                etcd: "['https://e1:2379/', 'HTTPS://[::1]:2379']")
        ).cluster)
    #expect(full.etcd == ["https://e1:2379", "https://[::1]:2379"])
    #expect(full.tls == .init(ca: "/etc/baton/a", certificate: "/etc/baton/b", privateKey: "/etc/baton/c"))
    #expect(full.etcdTLS == .init(ca: "/etc/baton/x", certificate: "/etc/baton/y", privateKey: "/z"))
    #expect(full.etcdPasswordFile == "/etc/baton/p")
    #expect(full.weight == 0.5)
}

@Test func clusterWithOtherDefaults() throws {
    let cluster = try #require(try parse(plain()).cluster)
    #expect(cluster.minCopies == 2)
    #expect(cluster.weight == 1)
    #expect(cluster.lease == .seconds(10))
    #expect(cluster.spreadRate == 100)
    #expect(cluster.failureDomain == nil)
    #expect(try parse("node: { id: n1 }").cluster == nil, "a node on its own")
    #expect(try parse("node: { id: n1 }").copies == 1)
}

@Test(arguments: [
    ("min_copies: 0", "3:", "cluster.min_copies: 0 is outside 1 to 3"),
    ("min_copies: 4", "3:", "cluster.min_copies: 4 is outside 1 to 3"),
    ("lease: 1s", "3:", "cluster.lease: 1s is outside 2s to 1m"),
    ("lease: 61s", "3:", "cluster.lease: 61s is outside 2s to 1m"),
    ("weight: 0", "3:", "cluster.weight: 0 is outside 0.1 to 100"),
    ("weight: 101", "3:", "cluster.weight: 101 is outside 0.1 to 100"),
    ("spread_rate: 0", "3:", "cluster.spread_rate: 0 is outside 1 to 1000000"),
    ("copies: 2", "3:", "cluster: unknown key 'copies', did you mean 'min_copies'?"),
    ("tls: { cert: x }", "3:", "cluster.tls: unknown key 'cert', did you mean 'ca'?"),
    ("tls: { ca: x }", "3:", "cluster.insecure_plaintext: not together with cluster.tls"),
    ("etcd_user: u", "3:", "cluster.etcd_user: needs etcd_password_file"),
    ("etcd_user: 'a b', etcd_password_file: p", "3:", "cluster.etcd_user: expected 1 to 128 visible characters"),
    ("etcd_password_file: p", "3:", "cluster.etcd_password_file: needs etcd_user"),
    ("etcd_tls: { ca: x }", "2:", "cluster.etcd_tls: needs https:// in cluster.etcd"),
])
func clusterKeyOutOfItsRange(_ more: String, _ line: String, _ message: String) {
    let found = problems(plain(more))
    #expect(found.first?.hasPrefix("b.yaml:\(line)") == true, "\(found)")
    #expect(found.first?.contains(": \(message)") == true, "\(found)")
}

@Test(arguments: [
    ("", "cluster: needs name"), ("cluster:", "cluster: needs name"), ("cluster: {}", "cluster: needs etcd"),
    ("cluster: { name: p }", "cluster: needs peer_address"), ("cluster: { name: p }", "cluster: needs node.id"),
    (
        "cluster: { name: p }",
        "cluster.tls: needs ca, certificate, private_key (on loopback alone insecure_plaintext: true does without)"
    ),
    ("cluster: { name: Prod }", "cluster.name: expected 1 to 64 of a-z, 0-9 and '-', found 'Prod'"),
    ("cluster: { name: \(String(repeating: "a", count: 65)) }", "cluster.name: expected 1 to 64 of a-z"),
    ("cluster: { etcd: [] }", "cluster.etcd: at least one member is needed"),
    ("cluster: { etcd: 'ftp://x:1' }", "cluster.etcd: expected http://host:port or https://host:port"),
    ("cluster: { etcd: 'http://x' }", "cluster.etcd: expected http://host:port"),
    ("cluster: { etcd: 'http://x:0' }", "cluster.etcd: expected http://host:port"),
    ("cluster: { etcd: 'http://u@x:1' }", "cluster.etcd: expected http://host:port"),
    ("cluster: { etcd: 'http://x:1/p' }", "cluster.etcd: expected http://host:port"),
    ("cluster: { etcd: 'http://[10.0.0.1]:1' }", "cluster.etcd: expected http://host:port"),
    ("cluster: { etcd: ['http://x:1', 'https://x:1'] }", "cluster.etcd: http:// and https:// do not mix"),
    (
        "cluster: { etcd: [\(Array(repeating: "'http://x:1'", count: 17).joined(separator: ","))] }",
        "cluster.etcd: more than 16 members"
    ),
    (
        "cluster: { peer_address: '0.0.0.0:7025' }",
        "cluster.peer_address: the address that the other nodes reach, not 0.0.0.0"
    ),
    ("cluster: { peer_address: '127.0.0.1:0' }", "cluster.peer_address: a port is a number from 1 to 65535"),
    ("cluster: { peer_address: '127.0.0.1:2525' }", "cluster.peer_address: 127.0.0.1:2525 is taken by listeners[0]"),
    ("cluster: { peer_address: '127.0.0.1:8025' }", "cluster.peer_address: 127.0.0.1:8025 is taken by admin"),
])
func clusterThatIsNoneTaken(_ text: String, _ message: String) {
    let found = problems(text)
    #expect(found.contains { $0.contains(": \(message)") } == !text.isEmpty, "\(found)")
}

@Test func plaintextThatLeavesTheMachine() {
    for address in ["10.0.0.1", "[2001:db8::1]", "192.168.1.1"] {
        let text = plain().replacingOccurrences(of: "127.0.0.1:7025", with: "\(address):7025")
        #expect(
            problems(text) == [
                "b.yaml:3:23: cluster.insecure_plaintext: only with a loopback peer_address, not \(address):7025"
            ])
    }
    for address in ["127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"] {
        #expect(problems(plain().replacingOccurrences(of: "127.0.0.1:7025", with: "\(address):7025")).isEmpty)
    }
    #expect(problems(safe("insecure_plaintext: false")).isEmpty)
}

@Test func passwordInClearWithoutAWarning() throws {
    #expect(try parse(plain()).warnings.isEmpty)
    #expect(try parse(safe(etcd: "['http://localhost:1', 'http://[::1]:1']")).warnings.isEmpty)
    #expect(try parse(safe(etcd: "'https://10.0.0.9:2379'")).warnings.isEmpty)
    let open = try parse(safe(etcd: "'http://10.0.0.9:2379'")).warnings
    #expect(open.count == 1 && open[0].hasPrefix("b.yaml:2:"), "\(open)")
    let user = try parse(safe("etcd_user: u, etcd_password_file: p", etcd: "'http://[2001:db8::1]:2379'")).warnings
    #expect(user.first?.hasSuffix("the password goes in clear") == true)
}

@Test func clusterFileThatIsNotChecked() throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("c-\(UInt64.random(in: 0 ... .max))")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    func file(_ name: String, _ text: String, mode: Int = 0o600) throws {
        let url = folder.appendingPathComponent(name)
        try Data(text.utf8).write(to: url)
        try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: url.path)
    }
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    func found() -> [String] {
        let text = safe("etcd_user: u, etcd_password_file: p")
        do {
            _ = try ConfigurationLoader.parse(Array(text.utf8), file: "b.yaml", directory: folder.path + "/")
            return []
        } catch {
            return error.description.replacingOccurrences(of: folder.path + "/", with: "").split(separator: "\n")
                .map { String($0.drop { $0 != " " }.dropFirst()) }
        }
    }
    #expect(
        found() == [
            "cluster.tls.ca: a: No such file or directory", "cluster.tls.certificate: b: No such file or directory",
            "cluster.tls.private_key: c: No such file or directory",
            "cluster.etcd_password_file: p: No such file or directory",
        ])
    try file("a", certificate, mode: 0o644)
    try file("b", certificate, mode: 0o644)
    try file("c", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n", mode: 0o640)
    try file("p", "secret\n", mode: 0o640)
    #expect(found() == [])
    try file("c", key, mode: 0o644)
    try file("p", "secret\n", mode: 0o604)
    #expect(
        found() == [
            "cluster.tls.private_key: c: everyone may read or write it; chmod o-rw it",
            "cluster.etcd_password_file: p: everyone may read or write it; chmod o-rw it",
        ])
    try file("a", key)
    try file("b", "")
    try file("c", certificate)
    try file("p", "\nsecret\n")
    #expect(
        found() == [
            "cluster.tls.ca: a: holds no CERTIFICATE in PEM", "cluster.tls.certificate: b: holds no CERTIFICATE in PEM",
            "cluster.tls.private_key: c: holds no PRIVATE KEY in PEM",
            "cluster.etcd_password_file: p: its first line is no password (1 to 1024 octets)",
        ])
    try file("a", certificate + String(repeating: "#", count: ConfigurationLimits.namedFileBytes))
    #expect(found().first == "cluster.tls.ca: a: larger than 1.0 MiB")
    try FileManager.default.removeItem(at: folder.appendingPathComponent("a"))
    try FileManager.default.createDirectory(
        at: folder.appendingPathComponent("a"), withIntermediateDirectories: false)
    #expect(found().first == "cluster.tls.ca: a: not a file")
    var settings = ClusterSettings()
    #expect(try settings.readEtcdPassword() == nil)
    try file("p", "secret \r\nnoise\n")
    settings.etcdPasswordFile = folder.path + "/p"
    #expect(try settings.readEtcdPassword() == "secret ")
}

@Test func clusterThatChangesWhileItRuns() throws {
    let old = try parse(safe())
    let text = safe("min_copies: 1").replacingOccurrences(of: "prod", with: "test")
        .replacingOccurrences(of: "ca: a", with: "ca: d")
    let new = try parse(text)
    #expect(
        old.changesThatNeedRestart(to: new) == [
            "cluster.name: prod stays in force, test needs a restart",
            "cluster.min_copies: 2 stays in force, 1 needs a restart",
            "cluster.tls.ca: /etc/baton/a stays in force, /etc/baton/d needs a restart",
        ])
    #expect(old.reloaded(with: new).cluster == old.cluster)
    let alone = try parse("node: { id: n1 }")
    #expect(alone.changesThatNeedRestart(to: old).contains("cluster.name: none stays in force, prod needs a restart"))
    #expect(alone.reloaded(with: old).cluster == nil)
    #expect(old.changesThatNeedRestart(to: alone).contains("cluster.name: prod stays in force, none needs a restart"))
    #expect(old.reloaded(with: alone).cluster == old.cluster)
}
