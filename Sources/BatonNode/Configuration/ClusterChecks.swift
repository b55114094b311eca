// What `cluster:` has to fulfil beyond the range of each key: what belongs together, and the files.
import BatonCore
import Glibc

/// Problems go to the reader with the line that they are about.
enum ClusterChecks {
    /// `directory` is empty or ends in a slash: relative paths are relative to the file.
    static func check(_ reader: inout ConfigurationReader, directory: String, files: Bool) {
        guard let place = reader.places["cluster"] else { return }
        var settings = reader.configuration.clusterSection
        for key in ["name", "peer_address", "etcd"] where reader.places["cluster.\(key)"] == nil {
            reader.report(place, "cluster: needs \(key)")
        }
        if reader.places["node.id"] == nil {
            reader.report(place, "cluster: needs node.id, a different one for each node")
        }
        for path in [
            \ClusterSettings.etcdPasswordFile, \.etcdTLS.ca, \.etcdTLS.certificate, \.etcdTLS.privateKey, \.tls.ca,
            \.tls.certificate, \.tls.privateKey,
        ] {
            if let text = settings[keyPath: path], !text.hasPrefix("/") { settings[keyPath: path] = directory + text }
        }
        address(settings, place, &reader)
        peers(settings, place, &reader)
        etcd(settings, place, &reader)
        if files { read(settings, &reader) }
        reader.configuration.cluster = settings
    }

    private static func address(_ settings: ClusterSettings, _ place: SourcePlace, _ reader: inout ConfigurationReader)
    {
        guard let at = reader.places["cluster.peer_address"] else { return }
        let mine = settings.peerAddress
        if mine.address.octets.allSatisfy({ $0 == 0 }) {
            reader.report(at, "cluster.peer_address: the address that the other nodes reach, not \(mine.address)")
        }
        let others =
            reader.configuration.listeners.enumerated().map { ("listeners[\($0.offset)]", $0.element.address) }
            + [("admin", reader.configuration.admin.address)]
        if let taken = others.first(where: { $0.1 == mine }) {
            reader.report(at, "cluster.peer_address: \(mine) is taken by \(taken.0)")
        }
    }

    /// TLS between the nodes, or none on loopback.
    private static func peers(_ settings: ClusterSettings, _ place: SourcePlace, _ reader: inout ConfigurationReader) {
        guard settings.insecurePlaintext else {
            let tls = settings.tls
            let parts = [("ca", tls.ca), ("certificate", tls.certificate), ("private_key", tls.privateKey)]
            let missing = parts.filter { $0.1 == nil }.map(\.0)
            if !missing.isEmpty {
                reader.report(
                    place,
                    "cluster.tls: needs \(missing.joined(separator: ", ")) (on loopback alone "
                        + "insecure_plaintext: true does without)")
            }
            return
        }
        let at = reader.places["cluster.insecure_plaintext"] ?? place
        if !settings.peerAddress.address.isLoopback {
            reader.report(
                at, "cluster.insecure_plaintext: only with a loopback peer_address, not \(settings.peerAddress)")
        }
        if !settings.tls.isEmpty { reader.report(at, "cluster.insecure_plaintext: not together with cluster.tls") }
    }

    private static func etcd(_ settings: ClusterSettings, _ place: SourcePlace, _ reader: inout ConfigurationReader) {
        let at = reader.places["cluster.etcd"] ?? place
        if settings.etcd.isEmpty, let at = reader.places["cluster.etcd"],
            !reader.problems.contains(where: { $0.message.hasPrefix("cluster.etcd:") })
        {
            reader.report(at, "cluster.etcd: at least one member is needed")
        }
        if settings.etcd.count > ConfigurationLimits.etcdEndpoints {
            reader.report(at, "cluster.etcd: more than \(ConfigurationLimits.etcdEndpoints) members")
        }
        let encrypted = settings.etcd.filter { $0.hasPrefix("https://") }.count
        if encrypted > 0, encrypted < settings.etcd.count {
            reader.report(at, "cluster.etcd: http:// and https:// do not mix")
        }
        if (settings.etcdUser == nil) != (settings.etcdPasswordFile == nil) {
            let given = settings.etcdUser == nil ? "etcd_password_file" : "etcd_user"
            let missing = settings.etcdUser == nil ? "etcd_user" : "etcd_password_file"
            reader.report(reader.places["cluster.\(given)"], "cluster.\(given): needs \(missing)")
        }
        let tls = settings.etcdTLS
        if (tls.certificate == nil) != (tls.privateKey == nil) {
            let given = tls.certificate == nil ? "private_key" : "certificate"
            let missing = tls.certificate == nil ? "certificate" : "private_key"
            reader.report(reader.places["cluster.etcd_tls.\(given)"], "cluster.etcd_tls: needs \(missing)")
        }
        if !tls.isEmpty, encrypted == 0, !settings.etcd.isEmpty {
            reader.report(at, "cluster.etcd_tls: needs https:// in cluster.etcd")
        }
        let open = settings.etcd.first { endpoint in
            guard endpoint.hasPrefix("http://") else { return false }
            let place = endpoint.dropFirst(7)
            let host = place[..<(place.lastIndex(of: ":") ?? place.endIndex)]
            let bare = host.hasPrefix("[") ? String(host.dropFirst().dropLast()) : String(host)
            return bare != "localhost" && IPAddress(bare)?.isLoopback != true
        }
        if let open {
            let what =
                settings.etcdUser == nil
                ? "anybody on the way can change the cluster's registry" : "the password goes in clear"
            reader.configuration.warnings.append(
                "\(reader.file):\(at.line):\(at.column): warning: cluster.etcd: \(open) is not encrypted: \(what)")
        }
    }

    // MARK: Files

    private static func read(_ settings: ClusterSettings, _ reader: inout ConfigurationReader) {
        let pem = [
            ("tls.ca", settings.tls.ca, "CERTIFICATE", false),
            ("tls.certificate", settings.tls.certificate, "CERTIFICATE", false),
            ("tls.private_key", settings.tls.privateKey, "PRIVATE KEY", true),
            ("etcd_tls.ca", settings.etcdTLS.ca, "CERTIFICATE", false),
            ("etcd_tls.certificate", settings.etcdTLS.certificate, "CERTIFICATE", false),
            ("etcd_tls.private_key", settings.etcdTLS.privateKey, "PRIVATE KEY", true),
        ]
        for (key, path, label, secret) in pem {
            guard let path else { continue }
            var problem: ValueProblem?
            switch SecretFile.read(path, secret: secret) {
            case .failure(let found): problem = found
            case .success(let bytes):
                let text = String(decoding: bytes, as: UTF8.self)
                let found = text.split(separator: "\n").contains {
                    $0.hasPrefix("-----BEGIN ") && $0.contains(label + "-----")
                }
                if !found { problem = ValueProblem("holds no \(label) in PEM") }
            }
            if let problem {
                reader.report(reader.places["cluster.\(key)"], "cluster.\(key): \(path): \(problem.text)")
            }
        }
        guard let path = settings.etcdPasswordFile else { return }
        if case .failure(let problem) = SecretFile.password(path) {
            reader.report(
                reader.places["cluster.etcd_password_file"], "cluster.etcd_password_file: \(path): \(problem.text)")
        }
    }
}

/// Small files that a configuration names. Blocking.
enum SecretFile {
    /// The file's octets. Refuses one that is no regular file, is over `ConfigurationLimits.namedFileBytes`, or, if `secret`,
    /// may be read or written by everyone.
    static func read(_ path: String, secret: Bool) -> Result<[UInt8], ValueProblem> {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { return .failure(ValueProblem(SystemText.error(errno))) }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { return .failure(ValueProblem(SystemText.error(errno))) }
        guard status.st_mode & S_IFMT == S_IFREG else { return .failure(ValueProblem("not a file")) }
        if secret, status.st_mode & 0o006 != 0 {
            return .failure(ValueProblem("everyone may read or write it; chmod o-rw it"))
        }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 16 << 10)
        while true {
            let count = chunk.withUnsafeMutableBytes { Glibc.read(descriptor, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { return .failure(ValueProblem(SystemText.error(errno))) }
            if count == 0 { return .success(bytes) }
            bytes.append(contentsOf: chunk[..<count])
            if bytes.count > ConfigurationLimits.namedFileBytes {
                return .failure(
                    ValueProblem("larger than \(ByteCount.text(ConfigurationLimits.namedFileBytes))"))
            }
        }
    }

    /// The first line, without its end: 1 to 1024 octets.
    static func password(_ path: String) -> Result<String, ValueProblem> {
        read(path, secret: true).flatMap { bytes in
            let line = bytes.prefix { $0 != 0x0a && $0 != 0x0d }
            guard (1...1024).contains(line.count), let text = String(validating: line, as: UTF8.self) else {
                return .failure(ValueProblem("its first line is no password (1 to 1024 octets)"))
            }
            return .success(text)
        }
    }
}

extension ClusterSettings {
    /// The password of `etcd_user`; nil without one. Blocking; throws `NodeError` where the file has gone bad since the start.
    package func readEtcdPassword() throws(NodeError) -> String? {
        guard let path = etcdPasswordFile else { return nil }
        switch SecretFile.password(path) {
        case .success(let text): return text
        case .failure(let problem):
            throw NodeError("cluster.etcd_password_file: \(path): \(problem.text)", exitCode: 78)
        }
    }
}

extension IPAddress {
    /// 127.0.0.0/8 or ::1.
    package var isLoopback: Bool {
        isIPv4 ? octets.first == 127 : octets.dropLast().allSatisfy { $0 == 0 } && octets.last == 1
    }
}
