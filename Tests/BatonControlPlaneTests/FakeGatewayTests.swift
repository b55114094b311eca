// What the etcd plane does with answers that are lost, cut, too long, or never come.
import BatonControlPlane
import BatonCore
import BatonRuntime
import BatonTestKit
import Testing

private func withGateway(
    _ change: (inout EtcdSettings) -> Void = { _ in },
    _ reply: @escaping @Sendable (String, String, ServerConnection) -> GatewayReply,
    _ body: (FakeGateway, EtcdControlPlane) async throws -> Void
) async throws {
    let gateway = FakeGateway(reply)
    var settings = gateway.settings
    change(&settings)
    let plane = try EtcdControlPlane(settings)
    defer {
        plane.stop()
        gateway.stop()
    }
    try await body(gateway, plane)
}

private func failure<Value>(_ operation: () async throws -> Value) async -> ControlFailure? {
    do {
        _ = try await operation()
        return nil
    } catch {
        return error as? ControlFailure
    }
}

private let entry = #"{"key":"YS8x","create_revision":"2","mod_revision":"2","value":"AA=="}"#

@Suite(.serialized, .timeLimit(.minutes(1)))
struct FakeGatewayTests {
    private let transaction = ControlTransaction(if: [.absent("a")], [.put("a", [1])])

    @Test(arguments: ["close", "garbage", "trouble", "empty"])
    func lostAnswerIsSentAgainOrTakenForARefusal(way: String) async throws {
        try await withGateway({ _ in }) { _, _, _ in
            switch way {
            case "close": .close
            case "garbage": .ok("<html>")
            case "trouble": .error(status: 503, #"{"error":"etcdserver: request timed out","code":14}"#)
            default: .ok("{}")
            }
        } _: { gateway, plane in
            #expect(await failure { try await plane.commit(transaction) }?.isUnknown == true)
            #expect(gateway.count("/v3/kv/txn") == 1)
        }
    }

    @Test func hangingMemberHoldsACallForEver() async throws {
        try await withGateway({
            $0.operationLimit = .milliseconds(400)
            $0.tryLimit = .milliseconds(150)
        }) { _, _, _ in
            .hang
        } _: { gateway, plane in
            #expect(await failure { try await plane.get("a") }?.refusal == .unavailable)
            #expect(gateway.count("/v3/kv/range") >= 2)
            #expect(await failure { try await plane.commit(transaction) }?.isUnknown == true)
            #expect(gateway.count("/v3/kv/txn") == 1)
            let lease = ControlLeaseID(value: 1)
            #expect(await failure { try await plane.keepAlive(lease, within: .milliseconds(100)) } != nil)
            #expect(gateway.count("/v3/lease/keepalive") == 1)
        }
    }

    /// Answers are owed to calls that wait for the next round when the plane stops.
    @Test func stoppedPlaneForgetsCallsThatWait() async throws {
        try await withGateway({ _ in }) { _, _, _ in
            .close
        } _: { gateway, plane in
            async let waiting = failure { try await plane.get("a") }
            while gateway.count("/v3/kv/range") < 2 { await Task.yield() }
            plane.stop()
            let end = await waiting
            #expect(end?.refusal == .stopped || end?.refusal == .unavailable, "\(String(describing: end))")
        }
    }

    @Test func bulkStarvesTheLease() async throws {
        try await withGateway({ _ in }) { path, _, _ in
            path == "/v3/lease/keepalive"
                ? .ok("{\"result\":{\(FakeGateway.header),\"ID\":\"5\",\"TTL\":\"3\"}}") : .hang
        } _: { gateway, plane in
            let answered = Counter()
            let overloaded = Counter()
            for _ in 0..<ControlLimits.waiting {
                plane.list("bulk", at: nil) { result in
                    if case .failure(let failure) = result, failure.refusal == .overloaded { overloaded.add() }
                    answered.add()
                }
            }
            // The bulk thread has all that it takes; the rest is refused, not queued.
            #expect(overloaded.value > 0)
            let lease = ControlLease(id: ControlLeaseID(value: 5), ttl: .milliseconds(900))
            let time = SystemTimeSource()
            let renewed = ThreadMailbox<LeaseNews>(capacity: 100)
            let keeper = LeaseKeeper(lease, of: plane, sentAt: time.now(), time: time) {
                renewed.deliver(CollectionOfOne($0))
            }
            defer { keeper.stop() }
            let news = renewed.take(limit: 1, timeoutNanoseconds: 10_000_000_000)?.first
            guard case .alive(let until) = news else { return fail("\(String(describing: news))") }
            #expect(until > time.now())
            #expect(keeper.isAlive(at: time.now()))
            #expect(!keeper.isAlive(at: until + .seconds(60)))
            plane.stop()
            #expect(answered.value == ControlLimits.waiting)
        }
    }

    @Test func listingIsBegunAnewForEver() async throws {
        try await withGateway({ _ in }) { path, body, _ in
            // The second page names the revision of the first, which is gone by then.
            if body.contains("\"revision\":\"9\"") {
                return .error(
                    status: 400, #"{"error":"x","message":"mvcc: required revision has been compacted","code":11}"#)
            }
            return .ok("{\(FakeGateway.header),\"kvs\":[\(entry)],\"more\":true,\"count\":\"2\"}")
        } _: { gateway, plane in
            #expect(await failure { try await plane.list("a/") }?.refusal == .compacted)
            #expect(gateway.count("/v3/kv/range") == ControlLimits.listingAttempts * 2)
        }
    }

    /// Pages that never end: each with one more entry, by a clock that moves on with each.
    @Test func listingWithoutEnd() async throws {
        let time = SimulatedTime()
        let gateway = FakeGateway { _, _, _ in
            time.advance(by: .seconds(1))
            return .ok("{\(FakeGateway.header),\"kvs\":[\(entry)],\"more\":true,\"count\":\"2\"}")
        }
        let plane = try EtcdControlPlane(gateway.settings, time: time)
        defer {
            plane.stop()
            gateway.stop()
        }
        #expect(await failure { try await plane.list("a/") }?.refusal == .unavailable)
        #expect(gateway.count("/v3/kv/range") <= 30)
    }

    @Test func pageTooLongForOneAnswer() async throws {
        // Sixteen MiB take their time on a busy machine, and time is not what is tested.
        try await withGateway({
            $0.operationLimit = .seconds(60)
            $0.tryLimit = .seconds(30)
        }) { path, body, _ in
            if body.contains("\"limit\":\"\(ControlLimits.page)\"") {
                return .ok(String(repeating: " ", count: ControlLimits.answerBytes + 1))
            }
            return .ok("{\(FakeGateway.header),\"kvs\":[\(entry)]}")
        } _: { gateway, plane in
            let listing = try await plane.list("a/")
            #expect(listing.entries.count == 1)
            #expect(gateway.count("/v3/kv/range") == 2)
        }
    }

    /// The same store under another id is another store.
    @Test func memberOfAnotherClusterIsBelieved() async throws {
        let calls = Counter()
        try await withGateway({ $0.operationLimit = .milliseconds(300) }) { path, _, _ in
            calls.add()
            let store = calls.value == 1 ? 7 : 8
            let header = "\"header\":{\"cluster_id\":\"\(store)\",\"revision\":\"9\"}"
            return .ok("{\(header),\"succeeded\":true,\"responses\":[]}")
        } _: { gateway, plane in
            let first = try await plane.get("a")
            #expect(first.header.store == 7)
            #expect(await failure { try await plane.get("a") }?.refusal == .foreignStore)
            // Another cluster may have written it.
            #expect(await failure { try await plane.commit(transaction) }?.isUnknown == true)
        }
    }

    @Test func repeatedGrantLeavesTwoLeases() async throws {
        let calls = Counter()
        try await withGateway({ _ in }) { path, body, _ in
            let id = body.split(separator: "\"").first { $0.allSatisfy(\.isNumber) } ?? ""
            switch path {
            case "/v3/lease/grant":
                calls.add()
                if calls.value == 1 { return .close }
                return .error(
                    status: 412, #"{"error":"x","message":"etcdserver: lease already exists","code":9}"#)
            default: return .ok("{\"result\":{\(FakeGateway.header),\"ID\":\"\(id)\",\"TTL\":\"4\"}}")
            }
        } _: { gateway, plane in
            let lease = try await plane.grantLease(.seconds(3))
            #expect(lease.ttl == .seconds(4))
            #expect(gateway.count("/v3/lease/grant") == 2)
        }
    }

    // MARK: Watches

    /// Answers lists, and hands the watch's connection to `stream` with its number.
    private func watching(
        _ stream: @escaping @Sendable (Int, ServerConnection) -> Void
    ) -> @Sendable (String, String, ServerConnection) -> GatewayReply {
        let streams = Counter()
        return { path, _, connection in
            guard path == "/v3/watch" else { return .ok("{\(FakeGateway.header),\"kvs\":[\(entry)]}") }
            streams.add()
            connection.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            stream(streams.value, connection)
            return .handled
        }
    }

    /// At a revision above all that the streams bring.
    private static let created = #"{"result":{"header":{"cluster_id":"7","revision":"50"},"created":true}}"# + "\n"

    private static func put(_ revision: Int) -> String {
        let kv = "{\"key\":\"YS8x\",\"create_revision\":\"2\",\"mod_revision\":\"\(revision)\"}"
        return "{\"result\":{\(FakeGateway.header),\"events\":[{\"kv\":\(kv)}]}}\n"
    }

    private static func chunk(_ text: String) -> String { "\(String(text.utf8.count, radix: 16))\r\n\(text)\r\n" }

    private func eventually(_ condition: () -> Bool) async throws {
        for _ in 0..<1000 where !condition() { try await Task.sleep(nanoseconds: 10_000_000) }
        #expect(condition())
    }

    @Test func lineOfAWatchIsCutAnywhere() async throws {
        let reply = watching { _, connection in
            for character in Self.created + Self.put(10) + Self.put(10) + Self.put(11) {
                connection.write(Self.chunk(String(character)))
            }
            while connection.readSome() != nil {}
        }
        try await withGateway({ _ in }, reply) { _, plane in
            let log = WatchLog()
            let watch = plane.watch("a/", after: nil, resync: .minutes(1)) { log.receive($0) }
            try await eventually { log.changes.count >= 2 }
            #expect(log.changes.map(\.revision) == [10, 11])
            watch?.cancel()
        }
    }

    @Test(arguments: ["{\"result\":{}}\n", "garbage\n", "{\"error\":{\"grpc_code\":14,\"message\":\"lost\"}}\n", ""])
    func brokenWatchStaysBroken(line: String) async throws {
        let reply = watching { number, connection in
            connection.write(Self.chunk(Self.created) + Self.chunk(Self.put(9 + number)))
            if number == 1 {
                if !line.isEmpty { connection.write(Self.chunk(line)) }
                return
            }
            while connection.readSome() != nil {}
        }
        try await withGateway({ _ in }, reply) { gateway, plane in
            let log = WatchLog()
            let watch = plane.watch("a/", after: nil, resync: .minutes(1)) { log.receive($0) }
            try await eventually { log.changes.count >= 2 }
            #expect(log.changes.map(\.revision) == [10, 11])
            #expect(log.events.contains { if case .interrupted = $0 { true } else { false } })
            #expect(gateway.count("/v3/watch") == 2)
            watch?.cancel()
        }
    }

    /// Octets without a line's end would be kept for ever.
    @Test func lineOfAWatchWithoutEnd() async throws {
        let reply = watching { number, connection in
            connection.write(Self.chunk(Self.created))
            guard number == 1 else { while connection.readSome() != nil {}; return }
            let part = Self.chunk(String(repeating: "x", count: 1024 * 1024))
            for _ in 0...(ControlLimits.answerBytes / (1024 * 1024)) { connection.write(part) }
            while connection.readSome() != nil {}
        }
        try await withGateway({ _ in }, reply) { gateway, plane in
            let log = WatchLog()
            let watch = plane.watch("a/", after: nil, resync: .minutes(1)) { log.receive($0) }
            // What the line held is made good by a listing.
            try await eventually { log.snapshots.count >= 2 && gateway.count("/v3/watch") == 2 }
            watch?.cancel()
        }
    }

    /// A member that takes the request and says nothing is left for another try.
    @Test func watchThatIsNeverOpened() async throws {
        let reply = watching { number, connection in
            if number > 1 { connection.write(Self.chunk(Self.created) + Self.chunk(Self.put(10))) }
            while connection.readSome() != nil {}
        }
        try await withGateway({ _ in }, reply) { gateway, plane in
            let log = WatchLog()
            let watch = plane.watch("a/", after: nil, resync: .minutes(1)) { log.receive($0) }
            try await eventually { log.changes.count == 1 }
            watch?.cancel()
        }
    }
}
