// Sentences of CONTRACT "Delivery behaviour" that no other test holds to their guard.
import BatonCore
import BatonDNS
import BatonModel
import BatonRuntime
import BatonTestKit
import Logging
import NIOCore
import NIOEmbedded
import NIOPosix
import Synchronization
import Testing

@testable import BatonDelivery

private let group = MultiThreadedEventLoopGroup.singleton

@Suite struct ContractTests {
    @Test(arguments: ["421 4.3.2 tired", nil], ["MAIL", "RCPT", "DATA"])
    func staleConnectionCostsAnAttemptAtAnyCommand(said: String?, verb: String) async throws {
        let seen = Mutex(0)
        let mx = try await FakeMX(group: group) { connection, command in
            guard connection == 0, command.hasPrefix(verb) else { return nil }
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
        #expect(await delivery.source.results.wait(for: 2) == ["delivered 250", "delivered 250"])
        #expect(mx.record.messages.map(\.recipients.count) == [1, 1])
        await mx.stop()
    }

    @Test func resentMessageIsResentForEver() async throws {
        // The first message of a connection passes, and no second; the fresh connection of the resend is lost as well.
        let mails = Mutex(0)
        let mx = try await FakeMX(group: group) { _, command in
            guard command.hasPrefix("MAIL") else { return nil }
            let count = mails.withLock {
                $0 += 1
                return $0
            }
            return count > 1 ? .close : nil
        }
        let delivery = Delivery(port: mx.port) { $0.connectionsPerSite = 1 }
        delivery.add([["a@example.test"], ["b@example.test"]])
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 2) == ["delivered 250", "temporary 0"])
        #expect(mx.record.connections == 2)
        await mx.stop()
    }

    @Test func heloRefusalStopsBeforeNextMX() async throws {
        let first = try await FakeMX(group: group) { _, command in
            command.hasPrefix("EHLO") || command.hasPrefix("HELO") ? .say("550 5.7.1 no") : nil
        }
        let second = try await FakeMX(group: group, address: "127.0.0.2", port: first.port)
        let delivery = Delivery(port: first.port, verdict: Delivery.hosts(["127.0.0.1", "127.0.0.2"]))
        delivery.add([["a@example.test"]])
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["delivered 250"])
        #expect(first.record.commands == ["EHLO relay.test", "HELO relay.test"])
        await first.stop()
        await second.stop()
    }

    @Test func senderRefusalBouncesNobody() async throws {
        let mx = try await FakeMX(group: group) { _, command in
            command.hasPrefix("MAIL") ? .say("550 5.7.1 sender not welcome") : nil
        }
        let delivery = Delivery(port: mx.port)
        delivery.add([["a@example.test", "b@example.test"]])
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 2) == ["permanent 550 5.7.1", "permanent 550 5.7.1"])
        #expect(await delivery.status()?.pausedUntil == nil)
        await mx.stop()
    }

    @Test func internationalAddressBouncedBeforeOtherHosts() async throws {
        let first = try await FakeMX(group: group, offers: ["PIPELINING", "8BITMIME"])
        let second = try await FakeMX(
            group: group, address: "127.0.0.2", port: first.port, offers: ["PIPELINING", "8BITMIME", "SMTPUTF8"])
        let delivery = Delivery(port: first.port, verdict: Delivery.hosts(["127.0.0.1", "127.0.0.2"]))
        delivery.add([["ü@example.test"]], flags: .smtpUTF8)
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["delivered 250"])
        #expect(first.record.messages.isEmpty && second.record.messages.count == 1)
        await first.stop()
        await second.stop()
        let alone = try await FakeMX(group: group, offers: ["PIPELINING", "8BITMIME"])
        let lonely = Delivery(port: alone.port)
        lonely.add([["ü@example.test"]], flags: .smtpUTF8)
        await lonely.route()
        #expect(await lonely.source.results.wait(for: 1) == ["permanent 553 5.6.7"])
        await alone.stop()
    }

    @Test func messageOverThePeersSizeIsSent() async throws {
        let mx = try await FakeMX(group: group, offers: ["PIPELINING", "SIZE 10"])
        let delivery = Delivery(port: mx.port)
        delivery.add([["a@example.test"]])
        await delivery.route()
        #expect(await delivery.source.results.wait(for: 1) == ["permanent 552 5.3.4"])
        #expect(!mx.record.commands.contains { $0.hasPrefix("MAIL") })
        await mx.stop()
    }

    /// What the planner lets through is checked again where it is connected to: a name may lead elsewhere by then.
    @Test(arguments: [false, true])
    func privateAddressConnectedToBehindThePlan(allowed: Bool) throws {
        let embedded = EmbeddedEventLoop()
        let network = ModelNetwork(embedded)
        let source = FakeSource(time: SimulatedTime())
        let context = DeliveryContext(
            home: .init(ModelLoop(embedded)), source: source, settler: FakeSettler(), reader: FakeReader(),
            permits: NodePermits(connections: 5), connector: network, time: SimulatedTime(),
            logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }),
            configuration: DeliveryConfiguration(hostname: Array("relay.test".utf8)))
        let address = try #require(IPAddress("10.0.0.1"))
        let host = SiteHost(name: Array("mx.test".utf8), rank: 0, endpoints: [.ip(address, port: 25)])
        let plan = SitePlan(
            key: [1], name: Array("mx.test".utf8), hosts: [host], isLMTP: false, limits: SiteLimits(connections: 2),
            privateAllowed: allowed, expires: .distantFuture)
        let pool = ConnectionPool(site: SiteID(value: 1), plan: plan, context: context, seed: 1)
        pool.assumeIsolated { $0.pump(ready: 1) }
        #expect(network.made == (allowed ? 1 : 0))
        #expect(source.verdicts.all == (allowed ? [] : ["deferSite 0"]))
    }
}
