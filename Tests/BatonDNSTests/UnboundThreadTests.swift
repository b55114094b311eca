// libunbound, the resolver's thread and the cache against a real name server.
import BatonCore
import BatonModel
import BatonRuntime
import Foundation
import Logging
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import BatonDNS

/// Waits for a bounded number of answers.
private final class Collector: AnswerReceiving {
    private let mailbox = ThreadMailbox<DNSReply>(capacity: 10_000)

    func answered(_ replies: [DNSReply]) { mailbox.deliver(replies) }

    func take(_ count: Int) -> [DNSQuestion: DNSAnswer] {
        var answers: [DNSQuestion: DNSAnswer] = [:]
        while answers.count < count {
            guard let batch = mailbox.take(timeoutNanoseconds: 20_000_000_000), !batch.isEmpty else { break }
            for reply in batch { answers[reply.question] = reply.answer }
        }
        return answers
    }
}

private let quiet = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }

private func resolver(
    _ server: ResolverServer, anchor: String? = nil, timeout: TimeSpan = .seconds(5),
    statusChanged: @escaping @Sendable (ResolverStatus) -> Void = { _ in }
) throws -> UnboundThread {
    let configuration = ResolverConfiguration(servers: [server], trustAnchor: anchor, timeout: timeout)
    return try UnboundThread(configuration, time: SystemTimeSource(), logger: quiet, statusChanged: statusChanged)
}

private func ask(_ resolver: UnboundThread, _ questions: [(String, RecordType)]) -> [String: DNSAnswer] {
    let collector = Collector()
    let all = questions.map { DNSQuestion(name: name($0.0), type: $0.1) }
    resolver.resolve(all, for: collector)
    return Dictionary(uniqueKeysWithValues: collector.take(all.count).map { ($0.key.description, $0.value) })
}

private let header = "$TTL 300\n@ IN SOA ns h 1 3600 600 86400 45\n@ IN NS ns\nns IN A 127.0.0.1\n"

private let zone =
    header + """
        plain IN A 203.0.113.1
        plain IN AAAA 2001:db8::1
        null IN MX 0 .
        mail IN MX 20 mx2
        mail IN MX 10 MX1
        mx1 IN A 203.0.113.11
        mx2 IN A 203.0.113.12
        alias IN CNAME mail
        target IN MX 10 hop
        hop IN CNAME mx1
        loop1 IN CNAME loop2
        loop2 IN CNAME loop1
        zero 0 IN A 203.0.113.5
        text IN TXT "x"

        """ + (0..<100).map { "many IN MX \($0 / 10) host\($0)\nhost\($0) IN A 203.0.113.\($0)\n" }.joined()

@Test func answersOfARealServer() throws {
    let nsd = try Nsd(["baton.test": zone])
    defer { nsd.stop() }
    let resolver = try resolver(nsd.server)
    defer { resolver.stop() }
    let answers = ask(
        resolver,
        [
            ("plain.baton.test", .a), ("plain.baton.test", .aaaa), ("null.baton.test", .mx), ("mail.baton.test", .mx),
            ("alias.baton.test", .mx), ("hop.baton.test", .a), ("loop1.baton.test", .a), ("zero.baton.test", .a),
            ("text.baton.test", .mx), ("gone.baton.test", .mx), ("many.baton.test", .mx), ("elsewhere.example", .mx),
        ])
    #expect(answers["plain.baton.test a"] == DNSAnswer(.addresses([address("203.0.113.1")]), ttl: 300))
    #expect(answers["plain.baton.test aaaa"] == DNSAnswer(.addresses([address("2001:db8::1")]), ttl: 300))
    let null = MXRecord(preference: 0, exchange: .null)
    #expect(answers["null.baton.test mx"]?.content == .exchangers([null]))
    let both: Set = [
        MXRecord(preference: 10, exchange: .host(name("mx1.baton.test"))),
        MXRecord(preference: 20, exchange: .host(name("mx2.baton.test"))),
    ]
    for owner in ["mail", "alias"] {
        guard case .exchangers(let records)? = answers["\(owner).baton.test mx"]?.content else {
            Issue.record("\(owner): \(String(describing: answers["\(owner).baton.test mx"]))")
            continue
        }
        #expect(Set(records) == both)
    }
    #expect(answers["hop.baton.test a"]?.content == .addresses([address("203.0.113.11")]))
    #expect(answers["loop1.baton.test a"]?.content == .failed(.refused(rcode: 2)), "an endless chain of CNAMEs")
    #expect(answers["zero.baton.test a"] == DNSAnswer(.addresses([address("203.0.113.5")]), ttl: 0))
    #expect(answers["text.baton.test mx"] == DNSAnswer(.noData, ttl: 45))
    #expect(answers["gone.baton.test mx"] == DNSAnswer(.noSuchName, ttl: 45))
    guard case .exchangers(let many)? = answers["many.baton.test mx"]?.content else {
        Issue.record("no answer for many")
        return
    }
    #expect(many.count == 100)
    #expect(answers["elsewhere.example mx"]?.content == .failed(.refused(rcode: 2)), "a server that refuses")
    #expect(resolver.status.dnssec == .off)
    #expect(!resolver.status.isDown)
}

@Test func plansThroughTheActorAgainstARealServer() throws {
    let nsd = try Nsd(["baton.test": zone])
    defer { nsd.stop() }
    let resolver = try resolver(nsd.server)
    defer { resolver.stop() }
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    defer { try? group.syncShutdownGracefully() }
    let loop = group.next()
    let cache = DNSCache(
        home: LoopHome(loop), resolver: resolver, settings: PlanSettings(addressFamily: .ipv4),
        time: SystemTimeSource(), seed: 3)
    let domains = ["mail", "alias", "target", "null", "gone", "text", "plain", "zero", "many"]
    let plans = ThreadMailbox<(String, String)>(capacity: 1000)
    loop.execute {
        for domain in domains {
            cache.plan(Domain(domain + ".baton.test")) { plan in
                loop.assertInEventLoop()
                plans.deliver(CollectionOfOne((domain, describe(plan.verdict))))
            }
        }
        cache.planHost(Domain("localhost")) { plan in
            plans.deliver(CollectionOfOne(("localhost", describe(plan.verdict))))
        }
    }
    var texts: [String: String] = [:]
    while texts.count < domains.count + 1 {
        guard let batch = plans.take(timeoutNanoseconds: 20_000_000_000), !batch.isEmpty else { break }
        for (domain, text) in batch { texts[domain] = text }
    }
    #expect(texts["mail"] == "hosts 10 mx1.baton.test 203.0.113.11; 20 mx2.baton.test 203.0.113.12")
    #expect(texts["alias"] == texts["mail"])
    #expect(texts["target"] == "hosts 10 hop.baton.test 203.0.113.11")
    #expect(texts["null"] == "nullMX")
    #expect(texts["gone"] == "noSuchDomain")
    #expect(texts["text"] == "noAddress")
    #expect(texts["plain"] == "hosts 0 plain.baton.test 203.0.113.1")
    #expect(texts["zero"] == "hosts 0 zero.baton.test 203.0.113.5")
    #expect(texts["many"]?.hasPrefix("hosts 0 host") == true)
    #expect(texts["localhost"] == "hosts 0 localhost 127.0.0.1")
}

/// The status is shown a moment behind the answers: polled, for five seconds at most.
private func saysDown(_ resolver: UnboundThread) -> Bool {
    for _ in 0..<500 where !resolver.status.isDown { usleep(10_000) }
    return resolver.status.isDown
}

@Test func serverThatIsSilentAltogether() throws {
    let silent = try LoopbackSocket()
    let resolver = try resolver(
        ResolverServer(address: address("127.0.0.1"), port: silent.port), timeout: .milliseconds(300))
    defer { resolver.stop() }
    let answers = ask(resolver, [("a.example", .mx), ("b.example", .a)])
    #expect(answers["a.example mx"]?.content == .failed(.resolverDown))
    #expect(answers["b.example a"]?.content == .failed(.resolverDown))
    #expect(saysDown(resolver))
    #expect(ask(resolver, [("c.example", .mx)])["c.example mx"]?.content == .failed(.resolverDown))
}

@Test func serverThatIsSilentAboutOneDomain() throws {
    let server = try AlmostSilentServer()
    defer { server.stop() }
    let resolver = try resolver(
        ResolverServer(address: address("127.0.0.1"), port: server.port), timeout: .milliseconds(300))
    defer { resolver.stop() }
    let answers = ask(resolver, [("a.example", .mx)])
    #expect(answers["a.example mx"]?.content == .failed(.timeout))
    #expect(!resolver.status.isDown)
}

@Test func portWithoutAnyServer() throws {
    let port = try LoopbackSocket().port
    let resolver = try resolver(
        ResolverServer(address: address("127.0.0.1"), port: port), timeout: .milliseconds(300))
    defer { resolver.stop() }
    #expect(ask(resolver, [("a.example", .mx)])["a.example mx"]?.content == .failed(.resolverDown))
}

@Test func moreLookUpsThanLibunboundMayHaveAtOnce() throws {
    let hosts = (0..<1500).map { "h\($0) IN A 203.0.113.\($0 % 256)\n" }.joined()
    let nsd = try Nsd(["baton.test": header + hosts])
    defer { nsd.stop() }
    let resolver = try resolver(nsd.server)
    defer { resolver.stop() }
    let answers = ask(resolver, (0..<1500).map { ("h\($0).baton.test", .a) })
    let good = answers.count {
        $0.value.content
            == .addresses([address("203.0.113.\((Int($0.key.dropFirst().prefix { $0.isNumber }) ?? 0) % 256)")])
    }
    #expect(good == 1500)
}

@Test func stopWhileLookUpsAreUnderWayAnswersThem() throws {
    let silent = try LoopbackSocket()
    let resolver = try resolver(ResolverServer(address: address("127.0.0.1"), port: silent.port))
    let collector = Collector()
    resolver.resolve([DNSQuestion(name: name("a.example"), type: .mx)], for: collector)
    resolver.stop()
    resolver.stop()
    resolver.resolve([DNSQuestion(name: name("b.example"), type: .mx)], for: collector)
    let answers = collector.take(2)
    #expect(answers.count == 2)
    #expect(answers.values.allSatisfy { $0.content == .failed(.resolverDown) })
}

// MARK: DNSSEC

private let fixtures = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Fixtures")

/// The resolver's opinion of DNSSEC once it has one.
private func settledStatus(_ zone: String, then ask: (UnboundThread) -> [String: DNSAnswer]) throws -> (
    DNSSECStatus, [String: DNSAnswer]
) {
    let nsd = try Nsd(["signed.test": zone])
    defer { nsd.stop() }
    let changes = ThreadMailbox<ResolverStatus>(capacity: 100)
    let anchor = fixtures.appendingPathComponent("signed.test.ds").path
    let resolver = try resolver(nsd.server, anchor: anchor) { changes.deliver(CollectionOfOne($0)) }
    defer { resolver.stop() }
    var status = DNSSECStatus.unknown
    while status == .unknown {
        guard let batch = changes.take(timeoutNanoseconds: 20_000_000_000), !batch.isEmpty else { break }
        if let last = batch.last { status = last.dnssec }
    }
    return (status, ask(resolver))
}

@Test func signedZoneIsSecureAndATamperedRecordIsBogus() throws {
    let signed = try String(contentsOf: fixtures.appendingPathComponent("signed.test.zone"), encoding: .utf8)
    let tampered = signed.replacingOccurrences(
        of: "mx.signed.test.\t300\tIN\tA\t203.0.113.1", with: "mx.signed.test.\t300\tIN\tA\t203.0.113.66")
    #expect(signed != tampered)
    let (status, answers) = try settledStatus(tampered) {
        ask($0, [("signed.test", .mx), ("mx.signed.test", .a), ("gone.signed.test", .a)])
    }
    #expect(status == .validating)
    #expect(answers["signed.test mx"]?.secure == true)
    #expect(answers["gone.signed.test a"] == DNSAnswer(.noSuchName, ttl: 60, secure: true))
    #expect(answers["mx.signed.test a"]?.content == .failed(.bogus))
}

@Test func resolverThatStripsDNSSECIsNoticedAndDefersNothing() throws {
    let signed = try String(contentsOf: fixtures.appendingPathComponent("signed.test.zone"), encoding: .utf8)
    let stripped =
        signed.split(separator: "\n").filter { line in
            !["RRSIG", "DNSKEY", "NSEC"].contains { line.contains("\tIN\t\($0)") }
        }.joined(separator: "\n") + "\n"
    let (status, answers) = try settledStatus(stripped) { ask($0, [("signed.test", .mx), ("mx.signed.test", .a)]) }
    guard case .stripped = status else {
        Issue.record("\(status)")
        return
    }
    #expect(answers["mx.signed.test a"] == DNSAnswer(.addresses([address("203.0.113.1")]), ttl: 300))
    guard case .exchangers? = answers["signed.test mx"]?.content else {
        Issue.record("mail would be deferred")
        return
    }
}

@Test func trustAnchorThatIsNone() throws {
    let server = ResolverServer(address: address("127.0.0.1"), port: 53)
    #expect(throws: ResolverError.self) { _ = try resolver(server, anchor: "/nonexistent/root.key") }
    #expect(throws: ResolverError.self) { _ = try resolver(server, anchor: #filePath) }
    #expect(TrustAnchor.owner(in: "; x\n.\tIN\tDS 20326 8 2 E06D\n") == [])
    #expect(TrustAnchor.owner(in: "Example.ORG. IN DNSKEY 257 3 13 AA==") == name("example.org"))
    #expect(TrustAnchor.owner(in: "nothing here") == nil)
}
