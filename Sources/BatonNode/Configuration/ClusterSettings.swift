// `cluster:` as checked values, and the keys that read it.
import BatonCore
import BatonModel
import Yams

/// What a node needs to know to be part of a cluster. A value that exists has been checked (`ClusterChecks`).
package struct ClusterSettings: Sendable, Hashable {
    /// Three files in PEM. `ca` alone, or all three; a certificate never without its key.
    package struct Files: Sendable, Hashable {
        package var ca: String?
        package var certificate: String?
        package var privateKey: String?

        package init(ca: String? = nil, certificate: String? = nil, privateKey: String? = nil) {
            self.ca = ca
            self.certificate = certificate
            self.privateKey = privateKey
        }

        package var isEmpty: Bool { ca == nil && certificate == nil && privateKey == nil }
    }

    /// 1 to 64 of `a-z`, `0-9` and `-`: the cluster's keys stand below `/baton/<name>/`.
    package var name = ""
    /// Where the other nodes reach this one.
    package var peerAddress = SocketEndpoint(address: IPAddress("127.0.0.1"), port: 7025)
    /// `http://host:port` or `https://host:port`, without a slash at the end; all of one scheme.
    package var etcd: [String] = []
    package var etcdUser: String?
    package var etcdPasswordFile: String?
    package var etcdTLS = Files()
    /// Disks that hold a message when its 250 is sent.
    package var minCopies = 2
    /// Copies are put into different ones where that can be; nil: `node.id`.
    package var failureDomain: String?
    /// Share of the mail, beside the other nodes' weights.
    package var weight = 1.0
    package var lease = TimeSpan.seconds(10)
    /// Messages a second for which a domain gets one more node.
    package var spreadRate = 100
    /// Empty only with `insecurePlaintext`.
    package var tls = Files()
    /// No TLS between the nodes: on loopback addresses alone.
    package var insecurePlaintext = false

    package init() {}
}

extension NodeConfiguration {
    /// Where the key tables read to: the first key makes the section.
    var clusterSection: ClusterSettings {
        get { cluster ?? ClusterSettings() }
        set { cluster = newValue }
    }

    /// Disks that hold a message when its 250 is sent: banner and metrics.
    package var copies: Int { cluster?.minCopies ?? 1 }
}

extension ConfigurationKeys {
    /// Nothing of it is reloadable. What stands in the TLS files may change: they are read anew, by their unchanged paths.
    static let cluster: [ConfigurationKey<NodeConfiguration>] = [
        needed("cluster.name", \.clusterSection.name, .clusterName),
        needed("cluster.peer_address", \.clusterSection.peerAddress, .endpoint(1...65535)),
        .init(list: "cluster.etcd", \.clusterSection.etcd, .etcdEndpoint),
        .init(optional: "cluster.etcd_user", \.clusterSection.etcdUser, .word(octets: 128), absent: "none"),
        file("cluster.etcd_password_file", \.clusterSection.etcdPasswordFile),
        file("cluster.etcd_tls.ca", \.clusterSection.etcdTLS.ca),
        file("cluster.etcd_tls.certificate", \.clusterSection.etcdTLS.certificate),
        file("cluster.etcd_tls.private_key", \.clusterSection.etcdTLS.privateKey),
        .init("cluster.min_copies", \.clusterSection.minCopies, .integer(1...3)),
        .init(optional: "cluster.failure_domain", \.clusterSection.failureDomain, .nodeID, absent: "node.id"),
        .init("cluster.weight", \.clusterSection.weight, .decimal(0.1...100)),
        .init("cluster.lease", \.clusterSection.lease, .duration(.seconds(2) ... .seconds(60))),
        .init("cluster.spread_rate", \.clusterSection.spreadRate, .integer(1...1_000_000)),
        file("cluster.tls.ca", \.clusterSection.tls.ca),
        file("cluster.tls.certificate", \.clusterSection.tls.certificate),
        file("cluster.tls.private_key", \.clusterSection.tls.privateKey),
        .init("cluster.insecure_plaintext", \.clusterSection.insecurePlaintext, .boolean),
    ]

    /// A key without a default.
    private static func needed<Value>(
        _ path: String, _ field: any WritableKeyPath<NodeConfiguration, Value> & Sendable,
        _ kind: ConfigurationKind<Value>
    ) -> ConfigurationKey<NodeConfiguration> {
        let plain = ConfigurationKey<NodeConfiguration>(path, field, kind)
        return ConfigurationKey(
            path: path, kind: plain.kind, reloadable: false, read: plain.read,
            text: { $0.cluster == nil ? "none" : plain.text($0) })
    }

    private static func file(
        _ path: String, _ field: any WritableKeyPath<NodeConfiguration, String?> & Sendable
    ) -> ConfigurationKey<NodeConfiguration> {
        .init(optional: path, field, .path, absent: "none")
    }
}

extension ConfigurationKind where Value == String {
    static var clusterName: Self {
        Self(
            name: "name",
            read: { text in
                let plain = text.utf8.allSatisfy {
                    ($0 >= 0x61 && $0 <= 0x7a) || ($0 >= 0x30 && $0 <= 0x39) || $0 == 0x2d
                }
                guard plain, (1...64).contains(text.utf8.count) else {
                    throw ValueProblem(
                        "expected 1 to 64 of a-z, 0-9 and '-', found \(ConfigurationGrammar.quoted(text))")
                }
                return text
            }, text: { $0 })
    }

    /// `http://host:port` or `https://host:port`; a slash at the end is dropped.
    static var etcdEndpoint: Self {
        Self(
            name: "URL",
            read: { text in
                var bare = text.hasSuffix("/") ? String(text.dropLast()) : text
                let problem = ValueProblem(
                    "expected http://host:port or https://host:port, found \(ConfigurationGrammar.quoted(text))")
                guard let scheme = ["http://", "https://"].first(where: { bare.lowercased().hasPrefix($0) }) else {
                    throw problem
                }
                let place = bare.dropFirst(scheme.count)
                bare = scheme + place
                guard let colon = place.lastIndex(of: ":"), let port = Int(place[place.index(after: colon)...]),
                    (1...65535).contains(port), place[place.index(after: colon)...].utf8.allSatisfy({ $0 != 0x2b })
                else { throw problem }
                let host = place[..<colon]
                if host.hasPrefix("["), host.hasSuffix("]") {
                    guard IPAddress(String(host.dropFirst().dropLast()))?.isIPv4 == false else { throw problem }
                } else {
                    guard ConfigurationGrammar.isDomainName(String(host)), host.utf8.allSatisfy({ $0 < 0x80 }) else {
                        throw problem
                    }
                }
                return bare
            }, text: { $0 })
    }

    /// Visible ASCII without white space.
    static func word(octets: Int) -> Self {
        Self(
            name: "word",
            read: { text in
                guard (1...octets).contains(text.utf8.count), text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f }) else {
                    throw ValueProblem(
                        "expected 1 to \(octets) visible characters, found \(ConfigurationGrammar.quoted(text))")
                }
                return text
            }, text: { $0 })
    }
}
