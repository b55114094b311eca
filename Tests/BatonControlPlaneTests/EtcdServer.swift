// A real etcd on loopback for a test: started, killed, stopped and continued, with authentication or TLS where asked for.
import BatonControlPlane
import BatonCore
import BatonHTTPClient
import BatonRuntime
import Foundation
import Glibc

/// One member or several; they end with `stop`, or when the test process ends.
final class EtcdServer: @unchecked Sendable {
    // @unchecked: a test starts and kills members one after the other.

    struct TLS {
        let ca: String
        let certificate: String
        let key: String
    }

    private final class Member {
        let name: String
        let client: UInt16
        let peer: UInt16
        var process: Process?
        var input: Pipe?

        init(name: String, client: UInt16, peer: UInt16) {
            self.name = name
            self.client = client
            self.peer = peer
        }
    }

    let folder: URL
    private let members: [Member]
    private let tls: TLS?
    private let extra: [String]
    /// Its folder goes with its process: for one that nobody stops.
    private let isShared: Bool

    init(
        members count: Int = 1, tls: TLS? = nil, token: String = UUID().uuidString, extra: [String] = [],
        isShared: Bool = false
    ) throws {
        self.isShared = isShared
        guard FileManager.default.isExecutableFile(atPath: "/usr/bin/etcd") else {
            throw Unexpected("etcd is missing: apt-get install etcd-server")
        }
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("baton-etcd-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        self.tls = tls
        let ports = try Self.freePorts(count * 2)
        members = (0..<count).map { Member(name: "m\($0)", client: ports[$0 * 2], peer: ports[$0 * 2 + 1]) }
        self.extra = ["--initial-cluster-token", token] + extra
        for index in members.indices { try start(index) }
    }

    private var scheme: String { tls == nil ? "http" : "https" }
    func endpoint(_ index: Int = 0) -> String { "\(scheme)://127.0.0.1:\(members[index].client)" }
    var endpoints: [String] { members.indices.map { endpoint($0) } }

    func settings(_ change: (inout EtcdSettings) -> Void = { _ in }) -> EtcdSettings {
        var settings = EtcdSettings(endpoints: endpoints)
        if let tls { settings.tls = HTTPTLSSettings(caFile: tls.ca) }
        change(&settings)
        return settings
    }

    // MARK: Members

    func start(_ index: Int = 0) throws {
        let member = members[index]
        let client = endpoint(index)
        let peer = "http://127.0.0.1:\(member.peer)"
        let cluster = members.map { "\($0.name)=http://127.0.0.1:\($0.peer)" }.joined(separator: ",")
        var arguments = [
            "--name", member.name, "--data-dir", "\(folder.path)/\(member.name)", "--listen-client-urls", client,
            "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", cluster, "--logger", "zap", "--log-level", "error",
            // Short, for short leases; long enough for a busy machine.
            "--heartbeat-interval", "60", "--election-timeout", "600",
        ]
        if let tls {
            arguments += [
                "--cert-file", tls.certificate, "--key-file", tls.key, "--trusted-ca-file", tls.ca,
                "--client-cert-auth",
            ]
        }
        // The shell waits for the end of its input, which also comes when this process dies, and kills etcd.
        let script =
            "pid=$0; log=$1; shift; /usr/bin/etcd \"$@\" </dev/null >>\"$log\" 2>&1 & child=$!; "
            + "echo $child >\"$pid.new\"; mv \"$pid.new\" \"$pid\"; cat >/dev/null; kill -9 $child; wait $child"
            + (isShared ? "; rm -rf \"${pid%/*}\"" : "")
        let process = Process()
        let input = Pipe()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", script, pidFile(index), "\(folder.path)/\(member.name).log"] + arguments + extra
        process.standardInput = input
        process.standardError = FileHandle.nullDevice
        unlink(pidFile(index))
        try Self.withoutBlockedSignals { try process.run() }
        member.process = process
        member.input = input
    }

    private func pidFile(_ index: Int) -> String { "\(folder.path)/\(members[index].name).pid" }

    private func pid(_ index: Int) -> pid_t? {
        for _ in 0..<500 {
            if let text = try? String(contentsOfFile: pidFile(index), encoding: .utf8),
                let pid = pid_t(text.trimmingCharacters(in: .whitespacesAndNewlines))
            {
                return pid
            }
            usleep(10_000)
        }
        return nil
    }

    private func signal(_ index: Int, _ number: Int32) { if let pid = pid(index) { kill(pid, number) } }

    func pause(_ index: Int = 0) { signal(index, SIGSTOP) }
    func resume(_ index: Int = 0) { signal(index, SIGCONT) }

    /// kill -9.
    func kill9(_ index: Int = 0) {
        let member = members[index]
        signal(index, SIGKILL)
        try? member.input?.fileHandleForWriting.close()
        member.process?.waitUntilExit()
        member.process = nil
    }

    func stop() {
        for index in members.indices where members[index].process != nil { kill9(index) }
        try? FileManager.default.removeItem(at: folder)
    }

    func log() -> String {
        members.map { (try? String(contentsOfFile: "\(folder.path)/\($0.name).log", encoding: .utf8)) ?? "" }
            .joined().suffix(2000).description
    }

    /// A copy of a stopped member's data.
    func dataFolder(_ index: Int = 0) -> URL { folder.appendingPathComponent(members[index].name) }

    // MARK: Asking without the code under test's rules

    /// A request of the test's own to the gateway, by the first member.
    @discardableResult
    func ask(_ path: String, _ body: String, token: String? = nil) async throws -> String {
        let client = CurlThread(name: "ask")
        defer { client.stop() }
        var request = HTTPRequest(.post, endpoint() + path, body: Array(body.utf8), tls: settings().tls)
        if let token { request.headers.append(HTTPHeader("Authorization", token)) }
        let response = try await client.perform(request)
        let text = String(decoding: response.body, as: UTF8.self)
        guard response.status == 200 else { throw Unexpected("\(path): \(text)") }
        return text
    }

    /// Until the plane is answered, for 30 s at most.
    func waitUntilItAnswers(_ plane: EtcdControlPlane) async throws {
        var last: ControlFailure?
        for _ in 0..<300 {
            do throws(ControlFailure) {
                _ = try await plane.get("ready")
                return
            } catch {
                last = error
            }
            try await Task.sleep(nanoseconds: 100_000_000)
        }
        throw Unexpected("etcd does not answer: \(last.map { "\($0)" } ?? ""): \(log())")
    }

    // MARK: Parts

    /// Threads of the test runner block signals; a child would inherit that.
    private static func withoutBlockedSignals(_ body: () throws -> Void) rethrows {
        var none = sigset_t()
        var before = sigset_t()
        sigemptyset(&none)
        pthread_sigmask(SIG_SETMASK, &none, &before)
        defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
        try body()
    }

    /// Ports that are free now, all different.
    private static func freePorts(_ count: Int) throws -> [UInt16] {
        var sockets: [Int32] = []
        defer { for descriptor in sockets { close(descriptor) } }
        return try (0..<count).map { _ in
            let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            sockets.append(descriptor)
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
            var length = socklen_t(MemoryLayout<sockaddr_in>.size)
            let bound = withUnsafeMutablePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(descriptor, $0, length) == 0 && getsockname(descriptor, $0, &length) == 0
                }
            }
            guard bound else { throw Unexpected("bind: errno \(errno)") }
            return UInt16(bigEndian: address.sin_port)
        }
    }
}

/// A throw-away certificate authority with a server's and a client's certificate, made by the openssl command.
struct Certificates {
    let folder: URL

    init() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("baton-ca-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        for ca in ["ca", "other"] {
            try openssl(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=\(ca) "
                    + "-keyout \(ca).key -out \(ca).pem")
        }
        try "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n".write(
            to: folder.appendingPathComponent("good.ext"), atomically: true, encoding: .utf8)
        try "subjectAltName=DNS:elsewhere.test\nextendedKeyUsage=serverAuth,clientAuth\n".write(
            to: folder.appendingPathComponent("misnamed.ext"), atomically: true, encoding: .utf8)
        for name in ["good", "misnamed"] {
            try openssl(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=\(name) -keyout \(name).key "
                    + "-out \(name).csr")
            try openssl(
                "x509 -req -in \(name).csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
                    + "-extfile \(name).ext -out \(name).pem")
        }
    }

    func path(_ name: String) -> String { folder.appendingPathComponent(name).path }
    func remove() { try? FileManager.default.removeItem(at: folder) }

    private func openssl(_ arguments: String) throws {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/openssl")
        process.arguments = arguments.split(separator: " ").map(String.init)
        process.currentDirectoryURL = folder
        process.standardError = FileHandle.nullDevice
        try process.run()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else { throw Unexpected("openssl \(arguments)") }
    }
}
