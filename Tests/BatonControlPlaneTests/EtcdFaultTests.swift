// A real etcd that is killed, stopped, restored, guarded and encrypted.
import BatonControlPlane
import BatonCore
import BatonHTTPClient
import BatonRuntime
import Foundation
import Testing

private func withEtcd(
    _ server: EtcdServer, settings change: (inout EtcdSettings) -> Void = { _ in },
    _ body: (EtcdServer, EtcdControlPlane) async throws -> Void
) async throws {
    let plane = try EtcdControlPlane(server.settings(change))
    defer {
        plane.stop()
        server.stop()
    }
    try await server.waitUntilItAnswers(plane)
    try await body(server, plane)
}

private func failure<Value>(_ operation: () async throws -> Value) async -> ControlFailure? {
    do {
        _ = try await operation()
        return nil
    } catch {
        return error as? ControlFailure
    }
}

private func put(_ key: ControlKey, _ value: String) -> ControlTransaction {
    ControlTransaction(if: [], [.put(key, Array(value.utf8))])
}

private func eventually(_ what: String, seconds: Int = 20, _ condition: () async throws -> Bool) async throws {
    for _ in 0..<(seconds * 20) {
        if try await condition() { return }
        try await Task.sleep(nanoseconds: 50_000_000)
    }
    fail("never: \(what)")
}

@Suite(.serialized, .timeLimit(.minutes(2)))
struct EtcdFaultTests {
    private let time = SystemTimeSource()

    @Test func killedAndRestartedEtcdLosesItsPlace() async throws {
        try await withEtcd(EtcdServer(), settings: { $0.operationLimit = .seconds(1) }) { server, plane in
            let log = WatchLog()
            let watch = plane.watch("/", after: nil, resync: .minutes(1)) { log.receive($0) }
            defer { watch?.cancel() }
            try await eventually("a first snapshot") { !log.snapshots.isEmpty }
            _ = try await plane.commit(put("/a", "1"))
            try await eventually("a first change") { log.known["/a"] != nil }
            let lease = try await plane.grantLease(.seconds(60))
            server.kill9()
            #expect(await failure { try await plane.get("/a") }?.refusal == .unavailable)
            // Nobody listens: it certainly was not sent.
            #expect(await failure { try await plane.commit(put("/b", "1")) }?.refusal == .unavailable)
            try server.start()
            try await server.waitUntilItAnswers(plane)
            #expect(try await plane.get("/a").entries.count == 1)
            #expect(try await plane.get("/b").entries.isEmpty)
            #expect(try await plane.keepAlive(lease.id, within: .seconds(5)) == lease.ttl)
            _ = try await plane.commit(put("/c", "1"))
            try await eventually("the watch goes on") { log.known["/c"] != nil }
            #expect(log.snapshots.count == 1)
            #expect(log.changes.map(\.key) == ["/a", "/c"])
        }
    }

    /// SIGSTOP: requests are taken and not answered.
    @Test func stoppedEtcdAnswersForEver() async throws {
        try await withEtcd(
            EtcdServer(),
            settings: {
                $0.operationLimit = .milliseconds(700)
                $0.tryLimit = .milliseconds(300)
            }
        ) { server, plane in
            server.pause()
            #expect(await failure { try await plane.get("/a") }?.refusal == .unavailable)
            #expect(await failure { try await plane.commit(put("/late", "1")) }?.isUnknown == true)
            let create = ControlTransaction(if: [.absent("/k")], [.put("/k", Array("n1.1".utf8))])
            async let settled = plane.commitRepeating(create, deadline: time.now() + .seconds(30), time: time)
            try await Task.sleep(nanoseconds: 1_500_000_000)
            server.resume()
            guard case .committed = await settled else { return fail("\(await settled)") }
            let entry = try await plane.get("/k").entries.first
            #expect(entry?.value == Array("n1.1".utf8))
            #expect(entry?.created == entry?.modified)
        }
    }

    /// By hand, under a live node: it has to hear of it within a renewal.
    @Test func revokedLeaseIsKeptByItsHolder() async throws {
        try await withEtcd(EtcdServer()) { server, plane in
            let clock = SystemTimeSource()
            let sentAt = clock.now()
            let lease = try await plane.grantLease(.seconds(3))
            let renewals = Counter()
            let ends = Counter()
            let keeper = LeaseKeeper(lease, of: plane, sentAt: sentAt, time: clock) {
                ($0 == .gone ? ends : renewals).add()
            }
            defer { keeper.stop() }
            try await eventually("a renewal") { renewals.value > 0 }
            #expect(keeper.isAlive(at: clock.now()))
            try await server.ask("/v3/lease/revoke", #"{"ID":"\#(lease.id.value)"}"#)
            try await eventually("the news") { ends.value == 1 }
            #expect(!keeper.isAlive(at: clock.now()))
        }
    }

    @Test func lostLeaderStopsTheCluster() async throws {
        try await withEtcd(EtcdServer(members: 3)) { server, plane in
            let lease = try await plane.grantLease(.seconds(6))
            let news = Counter()
            let clock = SystemTimeSource()
            let keeper = LeaseKeeper(lease, of: plane, sentAt: clock.now(), time: clock) {
                if $0 == .gone { news.add() }
            }
            defer { keeper.stop() }
            _ = try await plane.commit(ControlTransaction(if: [], [.put("/alive", [], lease: lease.id)]))
            let log = WatchLog()
            let watch = plane.watch("/n", after: nil, resync: .seconds(2)) { log.receive($0) }
            defer { watch?.cancel() }
            var count = 0
            /// Five increments, each by compare-and-set, settled where the answer is lost.
            func work() async throws {
                for _ in 0..<5 {
                    let before = try await read(plane, "/n")
                    let comparison = before.map { ControlComparison.modified("/n", at: $0.modified) } ?? .absent("/n")
                    let transaction = ControlTransaction(if: [comparison], [.put("/n", Array("\(count + 1)".utf8))])
                    let end = await plane.commitRepeating(transaction, deadline: time.now() + .seconds(20), time: time)
                    guard case .committed = end else { return fail("\(end)") }
                    count += 1
                }
            }
            try await work()
            let leader = try await leader(server)
            server.kill9(leader)
            try await work()
            try server.start(leader)
            try await work()
            server.pause((leader + 1) % 3)
            try await work()
            server.resume((leader + 1) % 3)
            try await work()
            #expect(try await read(plane, "/n").map { String(decoding: $0.value, as: UTF8.self) } == "\(count)")
            try await eventually("the watch knows it") { log.known["/n"]?.value == Array("\(count)".utf8) }
            #expect(news.value == 0)
            #expect(try await read(plane, "/alive") != nil)

            // Without a majority nothing is answered, stale or not.
            server.kill9((leader + 1) % 3)
            server.kill9((leader + 2) % 3)
            #expect(await failure { try await plane.get("/n") }?.refusal == .unavailable)
            #expect(await failure { try await plane.commit(put("/n", "x")) } != nil)
            try server.start((leader + 1) % 3)
            try await eventually("a majority again") { (try? await plane.get("/n")) != nil }
        }
    }

    /// A read that outlives an election.
    private func read(_ plane: EtcdControlPlane, _ key: ControlKey) async throws -> ControlEntry? {
        var last: ControlFailure?
        for _ in 0..<10 {
            do throws(ControlFailure) {
                return try await plane.get(key).entries.first
            } catch {
                last = error
            }
        }
        throw last ?? .unknown("never read")
    }

    private func leader(_ server: EtcdServer) async throws -> Int {
        let client = CurlThread(name: "ask")
        defer { client.stop() }
        for index in 0..<3 {
            let request = HTTPRequest(
                .post, server.endpoint(index) + "/v3/maintenance/status", body: Array("{}".utf8))
            let text = String(decoding: try await client.perform(request).body, as: UTF8.self)
            let parts = text.split(separator: "\"").map(String.init)
            guard let own = parts.firstIndex(of: "member_id"), let leader = parts.firstIndex(of: "leader") else {
                continue
            }
            if parts[own + 2] == parts[leader + 2] { return index }
        }
        throw Unexpected("no leader")
    }

    @Test func storeRestoredFromABackupIsWatchedInTheFuture() async throws {
        try await withEtcd(EtcdServer()) { server, plane in
            _ = try await plane.commit(put("/a", "1"))
            server.kill9()
            let copy = server.folder.appendingPathComponent("backup")
            try FileManager.default.copyItem(at: server.dataFolder(), to: copy)
            try server.start()
            try await server.waitUntilItAnswers(plane)
            let log = WatchLog()
            let watch = plane.watch("/", after: nil, resync: .seconds(1)) { log.receive($0) }
            defer { watch?.cancel() }
            for count in 0..<20 { _ = try await plane.commit(put("/b", "\(count)")) }
            try await eventually("all is seen") { log.known["/b"]?.value == Array("19".utf8) }
            server.kill9()
            try FileManager.default.removeItem(at: server.dataFolder())
            try FileManager.default.moveItem(at: copy, to: server.dataFolder())
            try server.start()
            try await server.waitUntilItAnswers(plane)
            try await eventually("the watch says so") {
                log.events.contains { if case .snapshot(_, wentBack: true) = $0 { true } else { false } }
            }
            #expect(log.known["/b"] == nil)
            _ = try await plane.commit(put("/c", "1"))
            try await eventually("and goes on") { log.known["/c"] != nil }
        }
    }

    @Test func memberOfAnotherClusterAnswersForTheFirst() async throws {
        let other = try EtcdServer()
        defer { other.stop() }
        let first = try EtcdServer()
        let endpoints = first.endpoints + other.endpoints
        try await withEtcd(
            first,
            settings: {
                $0.endpoints = endpoints
                $0.operationLimit = .milliseconds(800)
            }
        ) { server, plane in
            let probe = try EtcdControlPlane(other.settings())
            defer { probe.stop() }
            try await other.waitUntilItAnswers(probe)
            let theirs = try await probe.get("/a").header.store
            let pinned = try await plane.get("/a").header.store
            if pinned == theirs { other.kill9() } else { server.kill9() }
            let end = await failure { try await plane.get("/a") }
            #expect(end?.refusal == .foreignStore || end?.refusal == .unavailable)
        }
    }

    // MARK: Authentication and TLS

    private func base64(_ text: String) -> String { Data(text.utf8).base64EncodedString() }

    @Test func authenticationIsTurnedOnUnderway() async throws {
        let password = #"p"w\é"#
        try await withEtcd(
            EtcdServer(extra: ["--bcrypt-cost", "4"]),
            settings: { $0.credentials = HTTPCredentials(user: "n1", password: password) }
        ) { server, plane in
            _ = try await plane.commit(put("/baton/a", "1"))
            let log = WatchLog()
            let watch = plane.watch("/baton/", after: nil, resync: .seconds(2)) { log.receive($0) }
            defer { watch?.cancel() }
            let range = #""key":"\#(base64("/baton/"))","range_end":"\#(base64("/baton0"))""#
            for (path, body) in [
                ("user/add", #"{"name":"root","password":"r"}"#), ("role/add", #"{"name":"root"}"#),
                ("user/grant", #"{"user":"root","role":"root"}"#), ("role/add", #"{"name":"baton"}"#),
                ("role/grant", #"{"name":"baton","perm":{"permType":"READWRITE",\#(range)}}"#),
                ("user/add", #"{"name":"n1","password":"p\"w\\é"}"#), ("user/grant", #"{"user":"n1","role":"baton"}"#),
                ("enable", "{}"),
            ] {
                try await server.ask("/v3/auth/\(path)", body)
            }
            // The token is fetched when the first request is refused for want of one.
            _ = try await plane.commit(put("/baton/b", "1"))
            #expect(try await plane.list("/baton/").entries.count == 2)
            #expect(await failure { try await plane.commit(put("/other", "1")) }?.refusal == .denied)
            #expect(await failure { try await plane.get("/other") }?.refusal == .denied)
            let lease = try await plane.grantLease(.seconds(30))
            #expect(try await plane.keepAlive(lease.id, within: .seconds(5)) == lease.ttl)
            try await eventually("the watch") { log.known["/baton/b"] != nil }
            // A restarted etcd knows none of its tokens.
            server.kill9()
            try server.start()
            try await eventually("a new token") { (try? await plane.get("/baton/a")) != nil }
            _ = try await plane.commit(put("/baton/c", "1"))
            #expect(try await plane.keepAlive(lease.id, within: .seconds(5)) == lease.ttl)
            try await eventually("the watch goes on") { log.known["/baton/c"] != nil }
            for credentials in [HTTPCredentials(user: "n1", password: "wrong"), nil] {
                let stranger = try EtcdControlPlane(server.settings { $0.credentials = credentials })
                #expect(await failure { try await stranger.get("/baton/a") }?.refusal == .denied)
                #expect(await failure { try await stranger.commit(put("/baton/a", "2")) }?.refusal == .denied)
                stranger.stop()
            }
        }
    }

    @Test func strangerIsTrusted() async throws {
        let certificates = try Certificates()
        defer { certificates.remove() }
        let client = HTTPTLSSettings(
            caFile: certificates.path("ca.pem"), certificateFile: certificates.path("good.pem"),
            privateKeyFile: certificates.path("good.key"))
        let tls = EtcdServer.TLS(
            ca: certificates.path("ca.pem"), certificate: certificates.path("good.pem"),
            key: certificates.path("good.key"))
        try await withEtcd(EtcdServer(tls: tls), settings: { $0.tls = client }) { server, plane in
            let log = WatchLog()
            let watch = plane.watch("/", after: nil, resync: .minutes(1)) { log.receive($0) }
            defer { watch?.cancel() }
            _ = try await plane.commit(put("/a", "1"))
            try await eventually("the watch") { log.known["/a"] != nil }
            let lease = try await plane.grantLease(.seconds(30))
            #expect(try await plane.keepAlive(lease.id, within: .seconds(5)) == lease.ttl)

            var wrongCA = client
            wrongCA.caFile = certificates.path("other.pem")
            var noCertificate = client
            noCertificate.certificateFile = nil
            noCertificate.privateKeyFile = nil
            var noFile = client
            noFile.caFile = "/nonexistent.pem"
            for (name, settings) in [("wrong CA", wrongCA), ("no certificate", noCertificate), ("no file", noFile)] {
                let stranger = try EtcdControlPlane(
                    server.settings {
                        $0.tls = settings
                        $0.operationLimit = .milliseconds(500)
                    })
                let end = await failure { try await stranger.get("/a") }
                #expect(end?.refusal == .unavailable, "\(name): \(String(describing: end))")
                #expect(await failure { try await stranger.commit(put("/a", "2")) } != nil, "\(name)")
                stranger.stop()
            }
            #expect(try await plane.get("/a").entries.first?.value == Array("1".utf8))
        }
    }

    @Test func certificateOfAnotherHostIsTrusted() async throws {
        let certificates = try Certificates()
        defer { certificates.remove() }
        let tls = EtcdServer.TLS(
            ca: certificates.path("ca.pem"), certificate: certificates.path("misnamed.pem"),
            key: certificates.path("misnamed.key"))
        let server = try EtcdServer(tls: tls)
        defer { server.stop() }
        let client = CurlThread(name: "misnamed")
        defer { client.stop() }
        let request = HTTPRequest(
            .get, server.endpoint() + "/version",
            tls: HTTPTLSSettings(
                caFile: certificates.path("ca.pem"), certificateFile: certificates.path("good.pem"),
                privateKeyFile: certificates.path("good.key")))
        // Until it listens, the connection is refused.
        try await eventually("the certificate is refused") {
            do throws(HTTPError) {
                _ = try await client.perform(request)
                fail("trusted")
                return true
            } catch {
                #expect(!error.mayHaveArrived)
                return error.kind == .tls
            }
        }
    }
}
