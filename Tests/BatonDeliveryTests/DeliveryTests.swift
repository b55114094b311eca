// The delivery side against scripted receivers: what goes out, what is decided, what is sent again.
import BatonCore
import BatonDNS
import BatonModel
import BatonTestKit
import Glibc
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import BatonDelivery

private let group = MultiThreadedEventLoopGroup.singleton

/// `TMPDIR`, else the system's; a Unix socket's path has to stay short.
private let temporaryFolder = getenv("TMPDIR").map { String(cString: $0) } ?? P_tmpdir

/// Permits of a node whose share of the site ends when something is to be begun for the second time.
private final class EndingShare: PermitLeasing {
    private let node = NodePermits(connections: 5)
    private let asked = Mutex(0)

    func takeConnection(site: [UInt8], siteLimit: Int) -> Bool { node.takeConnection(site: site, siteLimit: siteLimit) }
    func returnConnection(site: [UInt8]) { node.returnConnection(site: site) }
    func takeMessages(site: [UInt8], perSecond: Double?, wanted: Int, now: Instant) -> Int { wanted }
    func claimSurplus(site: [UInt8]) -> Bool {
        asked.withLock {
            $0 += 1
            return $0 == 2
        }
    }
}

@Suite struct DeliveryTests {
    @Test func messagesAlteredOrLost() async throws {
        let mx = try await FakeMX(group: group)
        let delivery = Delivery(port: mx.port) { $0.connectionsPerSite = 1 }
        delivery.add([["a@example.test"], ["b@example.test", "c@example.test"], ["d@example.test"]])
        await delivery.route()
        let settlements = await delivery.settler.settlements.wait(for: 3)
        let record = mx.record
        #expect(record.connections == 1)
        #expect(record.messages.map(\.body) == Array(repeating: Array("a: b\r\n\r\nhello\r\n.dot\r\n".utf8), count: 3))
        #expect(record.messages.map(\.recipients.count) == [1, 2, 1])
        #expect(settlements.map(\.entries.count) == [1, 2, 1])
        #expect(settlements[0].peer == PeerName(name: Array("mx0.test".utf8), address: Array("127.0.0.1".utf8)))
        #expect(settlements[0].sourceAddress == Array("127.0.0.1".utf8))
        #expect(settlements[0].deliveryProtocol == .esmtp)
        #expect(settlements[0].entries[0].relayedWithoutDSN == false)
        #expect(settlements[0].entries[0].reply.text == Array("taken 0".utf8))
        await mx.stop()
    }

    @Test func recipientRepliesMixedUp() async throws {
        let mx = try await FakeMX(group: group) { _, command in
            if command.contains("<bad@") { return .say("550 5.1.1 no such user") }
            if command.contains("<slow@") { return .say("450 4.2.1 later") }
            return nil
        }
        let delivery = Delivery(port: mx.port)
        delivery.add([["bad@example.test", "good@example.test", "slow@example.test"]])
        await delivery.route()
        let results = await delivery.source.results.wait(for: 3)
        #expect(results == ["permanent 550 5.1.1", "delivered 250", "temporary 450"])
        let entries = await delivery.settler.settlements.wait(for: 1)[0].entries
        #expect(entries.map(\.recipient.recipient) == [0, 1, 2])
        await mx.stop()
    }

    @Test(arguments: ["421 4.3.2 tired", nil])
    func staleConnectionCostsAnAttempt(said: String?) async throws {
        // The second message of the first connection meets 421, or a close.
        let seen = Mutex(0)
        let mx = try await FakeMX(group: group) { connection, command in
            guard connection == 0, command.hasPrefix("MAIL") else { return nil }
            let count = seen.withLock {
                $0 += 1
                return $0
            }
            guard count > 1 else { return nil }
            return said.map { .sayAndClose($0) } ?? .close
        }
        let delivery = Delivery(port: mx.port) { $0.connectionsPerSite = 1 }
        delivery.add([["a@example.test"], ["b@example.test"]])
        await delivery.route()
        let results = await delivery.source.results.wait(for: 2)
        #expect(results == ["delivered 250", "delivered 250"])
        #expect(mx.record.connections == 2)
        #expect(await delivery.status()?.pausedUntil == nil)
        await mx.stop()
    }

    @Test func freshConnectionLostIsSentForEver() async throws {
        let mx = try await FakeMX(group: group) { _, command in command.hasPrefix("RCPT") ? .close : nil }
        let delivery = Delivery(port: mx.port)
        delivery.add([["a@example.test"]])
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["temporary 0"])
        #expect(mx.record.connections == 1)
        await mx.stop()
    }

    @Test func lostBeforeDotNeverTriesNextHost() async throws {
        let first = try await FakeMX(group: group) { _, command in command.hasPrefix("RCPT") ? .close : nil }
        let second = try await FakeMX(group: group, address: "127.0.0.2", port: first.port)
        let delivery = Delivery(port: first.port, verdict: Delivery.hosts(["127.0.0.1", "127.0.0.2"]))
        delivery.add([["a@example.test"]])
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["delivered 250"])
        #expect(second.record.messages.count == 1)
        await first.stop()
        await second.stop()
    }

    @Test func lostAfterDotSentToAnotherHost() async throws {
        let first = try await FakeMX(group: group) { _, command in command == "(dot)" ? .close : nil }
        let second = try await FakeMX(group: group, address: "127.0.0.2", port: first.port)
        let delivery = Delivery(port: first.port, verdict: Delivery.hosts(["127.0.0.1", "127.0.0.2"]))
        delivery.add([["a@example.test"]])
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["inDoubt"])
        await delivery.settle()
        #expect(second.record.connections == 0)
        await first.stop()
        await second.stop()
    }

    @Test(arguments: ["554 5.7.1 go away", "421 4.3.2 busy", "521 never"])
    func bannerRefusalStopsBeforeNextMX(said: String) async throws {
        let first = try await FakeMX(group: group) { _, command in command == "(connect)" ? .sayAndClose(said) : nil }
        let second = try await FakeMX(group: group, address: "127.0.0.2", port: first.port)
        let delivery = Delivery(port: first.port, verdict: Delivery.hosts(["127.0.0.1", "127.0.0.2"]))
        delivery.add([["a@example.test"]])
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["delivered 250"])
        #expect(second.record.messages.count == 1)
        await first.stop()
        await second.stop()
    }

    @Test func heloRefusedEverywhereBounces() async throws {
        let mx = try await FakeMX(group: group) { _, command in
            command.hasPrefix("EHLO") || command.hasPrefix("HELO") ? .say("550 5.7.1 no") : nil
        }
        let delivery = Delivery(port: mx.port)
        delivery.add([["a@example.test"]])
        await delivery.route()
        #expect(await delivery.source.verdicts.wait(for: 2) == ["assign", "deferSite 550"])
        #expect(mx.record.commands.count == 2)
        #expect(await delivery.status()?.pausedUntil != nil)
        #expect(delivery.source.results.all.isEmpty)
        await mx.stop()
    }

    @Test func neverMailFromEveryMXDeferred() async throws {
        let mx = try await FakeMX(group: group) { _, command in command == "(connect)" ? .say("521 5.3.2 never") : nil }
        let delivery = Delivery(port: mx.port)
        delivery.add([["a@example.test"]])
        await delivery.route()
        #expect(await delivery.source.verdicts.wait(for: 2) == ["assign", "fail 521 5.3.2"])
        await mx.stop()
    }

    @Test func nobodyListensAndNothingIsSaid() async throws {
        let mx = try await FakeMX(group: group)
        await mx.stop()
        let delivery = Delivery(port: mx.port)
        delivery.add([["a@example.test"]])
        await delivery.route()
        #expect(await delivery.source.verdicts.wait(for: 2) == ["assign", "deferSite 0"])
        #expect(delivery.permits.openConnections == 0)
    }

    @Test func siteLimitExceeded() async throws {
        let mx = try await FakeMX(group: group)
        let delivery = Delivery(port: mx.port) { $0.connectionsPerSite = 3 }
        delivery.add((0..<60).map { ["u\($0)@example.test"] })
        await delivery.route()
        _ = await delivery.source.results.wait(for: 60)
        let record = mx.record
        #expect(record.openMost <= 3)
        #expect(record.messages.count == 60)
        await mx.stop()
    }

    @Test func nodeLimitExceeded() async throws {
        let mx = try await FakeMX(group: group)
        let delivery = Delivery(port: mx.port, nodeConnections: 1)
        delivery.add((0..<20).map { ["u\($0)@example.test"] })
        await delivery.route()
        _ = await delivery.source.results.wait(for: 20)
        #expect(mx.record.openMost == 1)
        await mx.stop()
    }

    @Test func connectionUsedBeyondItsMessages() async throws {
        let mx = try await FakeMX(group: group)
        let delivery = Delivery(port: mx.port) {
            $0.connectionsPerSite = 1
            $0.messagesPerConnection = 2
        }
        delivery.add((0..<4).map { ["u\($0)@example.test"] })
        await delivery.route()
        _ = await delivery.source.results.wait(for: 2)
        // The pool asks for work again at its next tick, when the used connection is gone.
        for _ in 0..<20 where delivery.source.results.all.count < 4 { await delivery.pass(.milliseconds(500)) }
        _ = await delivery.source.results.wait(for: 4)
        for connection in 0..<2 { #expect(mx.record.messages.filter { $0.connection == connection }.count == 2) }
        #expect(mx.record.commands.contains("QUIT"))
        await mx.stop()
    }

    @Test func connectionGoesOnWhenItsShareHasEnded() async throws {
        let mx = try await FakeMX(group: group)
        let delivery = Delivery(port: mx.port, shares: EndingShare()) { $0.connectionsPerSite = 1 }
        delivery.add((0..<3).map { ["u\($0)@example.test"] })
        await delivery.route()
        _ = await delivery.source.results.wait(for: 1)
        for _ in 0..<20 where delivery.source.results.all.count < 3 { await delivery.pass(.milliseconds(500)) }
        _ = await delivery.source.results.wait(for: 3)
        #expect(mx.record.messages.map(\.connection) == [0, 1, 1])
        await mx.stop()
    }

    @Test func idleConnectionStaysForEver() async throws {
        let mx = try await FakeMX(group: group)
        let delivery = Delivery(port: mx.port)
        delivery.add([["a@example.test"]])
        await delivery.route()
        _ = await delivery.settler.settlements.wait(for: 1)
        await delivery.pass(.seconds(29))
        #expect(delivery.permits.openConnections == 1)
        await delivery.pass(.seconds(1))
        let deadline = ContinuousClock.now + .seconds(10)
        while delivery.permits.openConnections > 0, ContinuousClock.now < deadline { await delivery.settle() }
        #expect(delivery.permits.openConnections == 0)
        #expect(mx.record.commands.last == "QUIT")
        await mx.stop()
    }

    @Test func silentPeerHoldsMessageForEver() async throws {
        let asked = Collector<String>()
        let mx = try await FakeMX(group: group) { _, command in
            guard command == "(dot)" else { return nil }
            asked.add(command)
            return .silence
        }
        let delivery = Delivery(port: mx.port)
        delivery.add([["a@example.test"]])
        await delivery.route()
        _ = await asked.wait(for: 1)
        await delivery.pass(.minutes(9))
        #expect(delivery.source.results.all.isEmpty)
        await delivery.pass(.minutes(1))
        #expect(await delivery.source.results.wait(for: 1) == ["inDoubt"])
        await mx.stop()
    }

    @Test func eightBitContentBouncedBeforeOtherHosts() async throws {
        let first = try await FakeMX(group: group, offers: ["PIPELINING"])
        let second = try await FakeMX(group: group, address: "127.0.0.2", port: first.port)
        let delivery = Delivery(port: first.port, verdict: Delivery.hosts(["127.0.0.1", "127.0.0.2"]))
        delivery.add([["a@example.test"]], body: "a: b\r\n\r\nü\r\n")
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["delivered 250"])
        #expect(first.record.messages.isEmpty)
        await first.stop()
        await second.stop()
    }

    @Test func eightBitContentDeferredWhenNobodyTakesIt() async throws {
        let mx = try await FakeMX(group: group, offers: ["PIPELINING"])
        let delivery = Delivery(port: mx.port)
        delivery.add((0..<500).map { ["u\($0)@example.test"] }, body: "a: b\r\n\r\nü\r\n")
        await delivery.route()
        // 500 in a row: immediate ends must not grow the stack.
        let results = await delivery.source.results.wait(for: 500)
        #expect(Set(results) == ["permanent 554 5.6.3"])
        await mx.stop()
    }

    @Test func bodyReadBackWrongly() async throws {
        let mx = try await FakeMX(group: group)
        let body = Array("a: b\r\n\r\nfrom disk\r\n".utf8)
        let envelope = makeEnvelope(["a@example.test"], body: body)
        let delivery = Delivery(port: mx.port, reader: FakeReader(messages: [0: (envelope, body)]))
        delivery.add([["a@example.test"]], resident: false)
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["delivered 250"])
        #expect(mx.record.messages.first?.body == body)
        await mx.stop()
    }

    @Test(arguments: [["PIPELINING"], ["PIPELINING", "CHUNKING"]])
    func largeBodyAltered(offers: [String]) async throws {
        let mx = try await FakeMX(group: group, offers: offers)
        var body: [UInt8] = Array("a: b\r\n\r\n".utf8)
        for line in 0..<40_000 {
            body += Array((line % 7 == 0 ? ".line \(line)\r\n" : "line \(line) of many\r\n").utf8)
        }
        let envelope = makeEnvelope(["a@example.test"], body: body)
        let reader = FakeReader(messages: [0: (envelope, body)], fragmentSize: Limits.fragmentSize)
        let delivery = Delivery(port: mx.port, reader: reader)
        delivery.add([["a@example.test"]], resident: false)
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["delivered 250"])
        #expect(mx.record.messages.first?.body == body)
        #expect(mx.record.commands.contains { $0.hasPrefix("BDAT") } == offers.contains("CHUNKING"))
        await mx.stop()
    }

    @Test func damagedFragmentReachesTheDot() async throws {
        let mx = try await FakeMX(group: group)
        let body = Array(String(repeating: "0123456789abcde\r\n", count: 40_000).utf8)
        let envelope = makeEnvelope(["a@example.test"], body: body)
        let reader = FakeReader(
            messages: [0: (envelope, body)], fragmentSize: Limits.fragmentSize, damagedFragment: 1)
        let delivery = Delivery(port: mx.port, reader: reader)
        delivery.add([["a@example.test"]], resident: false)
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["damaged"])
        await delivery.settle()
        #expect(mx.record.messages.isEmpty)
        #expect(delivery.settler.settlements.all.isEmpty)
        await mx.stop()
    }

    @Test func fragmentThatIsBeingRepairedReachesTheDotOrCounts() async throws {
        let mx = try await FakeMX(group: group)
        let body = Array(String(repeating: "0123456789abcde\r\n", count: 40_000).utf8)
        let envelope = makeEnvelope(["a@example.test"], body: body)
        let reader = FakeReader(
            messages: [0: (envelope, body)], fragmentSize: Limits.fragmentSize, damagedFragment: 1, repairs: true)
        let delivery = Delivery(port: mx.port, reader: reader)
        delivery.add([["a@example.test"]], resident: false)
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["beingRepaired"])
        await delivery.settle()
        #expect(mx.record.messages.isEmpty)
        #expect(delivery.settler.settlements.all.isEmpty)
        await mx.stop()
    }

    @Test func messageThatIsBeingRepairedBlocksTheNext() async throws {
        let mx = try await FakeMX(group: group)
        let body = Array("a: b\r\n\r\nsecond\r\n".utf8)
        let envelope = makeEnvelope(["b@example.test"], body: body)
        let reader = FakeReader(messages: [1: (envelope, body)], repairs: true)
        let delivery = Delivery(port: mx.port, reader: reader) { $0.connectionsPerSite = 1 }
        delivery.add([["a@example.test"], ["b@example.test"]], resident: false)
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 2) == ["beingRepaired", "delivered 250"], "without a pause")
        await mx.stop()
    }

    @Test func damagedMessageBlocksTheNext() async throws {
        let mx = try await FakeMX(group: group)
        let body = Array("a: b\r\n\r\nsecond\r\n".utf8)
        let envelope = makeEnvelope(["b@example.test"], body: body)
        let delivery = Delivery(port: mx.port, reader: FakeReader(messages: [1: (envelope, body)])) {
            $0.connectionsPerSite = 1
        }
        delivery.add([["a@example.test"], ["b@example.test"]], resident: false)
        await delivery.route()
        _ = await delivery.source.results.wait(for: 1)
        await delivery.pass(.seconds(1))
        #expect(await delivery.source.results.wait(for: 2) == ["damaged", "delivered 250"])
        await mx.stop()
    }

    @Test func lmtpRepliesMixedUp() async throws {
        let path = "\(temporaryFolder)/baton-test-\(SplitMix64.mix(UInt64(UInt32.random(in: 0 ... .max)))).sock"
        let dots = Mutex(0)
        let mx = try await FakeMX(group: group, socket: path, offers: ["PIPELINING"], isLMTP: true) { _, command in
            guard command == "(dot)" else { return nil }
            let count = dots.withLock {
                $0 += 1
                return $0
            }
            return count == 2 ? .say("452 4.2.2 full") : nil
        }
        let delivery = Delivery(port: 1) { configuration in
            if let domain = DomainPattern("*"), let nextHop = NextHop("lmtp+unix:\(path)") {
                configuration.routes = [RouteRule(domain: domain, nextHop: nextHop)]
            }
        }
        delivery.add([["a@example.test", "b@example.test", "c@example.test"]])
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 3) == ["delivered 250", "temporary 452", "delivered 250"])
        let settlement = await delivery.settler.settlements.wait(for: 1)[0]
        #expect(settlement.deliveryProtocol == .lmtp)
        #expect(settlement.entries[0].relayedWithoutDSN)
        await mx.stop()
    }

    @Test func privateTargetConnectedTo() async throws {
        let mx = try await FakeMX(group: group)
        let delivery = Delivery(port: mx.port) { $0.allowPrivateAddresses = false }
        delivery.add([["a@example.test"]])
        await delivery.route()
        #expect(await delivery.source.verdicts.wait(for: 1) == ["fail 550 5.4.4"])
        #expect(mx.record.connections == 0)
        await mx.stop()
    }

    @Test func shutDownLosesAnswers() async throws {
        let asked = Collector<String>()
        let mx = try await FakeMX(group: group) { _, command in
            guard command == "(dot)" else { return nil }
            asked.add(command)
            return .silence
        }
        // One connection: of two, the other could be short of its dot when the grace ends.
        let delivery = Delivery(port: mx.port) { $0.connectionsPerSite = 1 }
        delivery.add([["a@example.test"], ["b@example.test"]])
        await delivery.route()
        _ = await asked.wait(for: 1)
        let stopped = delivery.dispatcher.shutDown(grace: .seconds(10))
        await delivery.settle()
        await delivery.pass(.seconds(9))
        #expect(delivery.source.results.all.isEmpty)
        await delivery.pass(.seconds(1))
        try await stopped.get()
        #expect(delivery.source.results.all.allSatisfy { $0 == "inDoubt" })
        #expect(!delivery.source.results.all.isEmpty)
        await mx.stop()
    }

    @Test func settlementsOfOneTurnComeOneByOne() async throws {
        let mx = try await FakeMX(group: group)
        let delivery = Delivery(port: mx.port)
        delivery.add([["a@example.test"]])
        await delivery.route()
        _ = await delivery.settler.settlements.wait(for: 1)
        #expect(delivery.settler.calls.withLock { $0 } == 1)
        #expect(delivery.source.state.withLock { $0.out } == 0)
        await mx.stop()
    }
}
