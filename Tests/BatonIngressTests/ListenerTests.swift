// Listeners over real loopback sockets: a session from end to end, limits at the door, early talkers, stop.
import BatonCore
import BatonModel
import BatonRuntime
import BatonSMTP
import Dispatch
import Glibc
import Logging
import NIOCore
import NIOPosix
import Testing

@testable import BatonIngress

/// A running ingress on a free port. `body` runs with its port.
private func withIngress(
    limits: IngressLimits = IngressLimits(), greetingDelay: TimeSpan = .milliseconds(1), answersAtOnce: Bool = true,
    group: MultiThreadedEventLoopGroup = MultiThreadedEventLoopGroup(numberOfThreads: 1),
    _ body: @Sendable (Ingress, FakeSpool, Int) async throws -> Void
) async throws {
    let spool = FakeSpool(answersAtOnce: answersAtOnce)
    var configuration = IngressConfiguration(hostname: "relay.test", listeners: [ListenerConfiguration(port: 0)])
    configuration.limits = limits
    configuration.greetingDelay = greetingDelay
    let ingress = Ingress(
        configuration: configuration, group: group, submitter: spool, events: FakeEvents(), time: SystemTimeSource(),
        seed: 1, logger: Logger(label: "test"))
    let port = try #require(try await ingress.start().first?.port)
    try await body(ingress, spool, port)
    await ingress.stop(grace: .milliseconds(100))
    #expect(ingress.connections == 0)
    try await group.shutdownGracefully()
}

@Suite(.serialized) struct ListenerTests {
    @Test func sessionOverARealSocket() async throws {
        try await withIngress { _, spool, port in
            try await offPool {
                let client = try BlockingClient(port: port)
                #expect(client.receive().hasPrefix("220 relay.test"))
                #expect(client.ask("EHLO c.test\r\n").contains("250-PIPELINING"))
                let replies = client.ask("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n", replies: 3)
                #expect(replies.hasSuffix("<CR><LF>\r\n"))
                #expect(client.ask("Subject: x\r\n\r\nHello\r\n.\r\nQUIT\r\n", replies: 2).contains("queued as"))
                #expect(client.isClosedByServer())
            }
            #expect(spool.submissions.count == 1)
        }
    }

    @Test func clientThatSpeaksBeforeTheGreeting() async throws {
        try await withIngress(greetingDelay: .milliseconds(500)) { _, _, port in
            try await offPool {
                let client = try BlockingClient(port: port)
                client.send("EHLO early.test\r\n")
                #expect(client.receive().hasPrefix("554"))
                #expect(client.isClosedByServer())
            }
        }
    }

    /// The greeting's time comes while the loop is busy and the client's octets lie unread: it is not greeted all the same.
    @Test func clientThatSpeaksBeforeTheGreetingOfABusyLoop() async throws {
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        try await withIngress(greetingDelay: .milliseconds(300), group: group) { ingress, _, port in
            try await offPool {
                let client = try BlockingClient(port: port)
                for _ in 0..<5_000 where ingress.connections == 0 { usleep(1_000) }
                let blocked = DispatchSemaphore(value: 0)
                let over = DispatchSemaphore(value: 0)
                group.next().execute {
                    blocked.signal()
                    over.wait()
                    // Past the greeting's time, whenever the connection came.
                    usleep(320_000)
                }
                blocked.wait()
                client.send("EHLO early.test\r\n")
                over.signal()
                #expect(client.receive().hasPrefix("554"))
                #expect(client.isClosedByServer())
            }
        }
    }

    @Test func connectionOverTheLimitIs421() async throws {
        var limits = IngressLimits()
        limits.connections = 2
        var wider = limits
        wider.connections = 10
        wider.connectionsPerClient = 2
        let update = wider
        try await withIngress(limits: limits) { ingress, _, port in
            try await offPool {
                let first = try BlockingClient(port: port)
                let second = try BlockingClient(port: port)
                #expect(first.receive().hasPrefix("220") && second.receive().hasPrefix("220"))
                let third = try BlockingClient(port: port)
                #expect(third.receive().hasPrefix("421 4.3.2") && third.isClosedByServer())
                ingress.update(limits: update)
                let fourth = try BlockingClient(port: port)
                #expect(fourth.receive().hasPrefix("421 4.7.0") && fourth.isClosedByServer())
                _ = first.ask("QUIT\r\n")
                #expect(first.isClosedByServer())
            }
        }
    }

    @Test func reloadedNetworksHoldForOldOnesOnly() async throws {
        try await withIngress { ingress, _, port in
            try await offPool {
                func answer() throws -> String {
                    let client = try BlockingClient(port: port)
                    _ = client.receive()
                    _ = client.ask("EHLO c.test\r\n")
                    return client.ask("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n", replies: 2)
                }
                let other = try #require(AddressBlock("10.0.0.0/8"))
                let loopback = try #require(AddressBlock("127.0.0.0/8"))
                #expect(try answer().contains("\r\n250 "))
                ingress.update(limits: IngressLimits(), relayFrom: [[other]])
                #expect(try answer().contains("\r\n554 5.7.1"))
                ingress.update(limits: IngressLimits(), relayFrom: [[other, loopback]])
                #expect(try answer().contains("\r\n250 "))
            }
        }
    }

    @Test func halfClosedClientGetsItsReplies() async throws {
        try await withIngress { _, spool, port in
            try await offPool {
                let client = try BlockingClient.inData(port: port)
                client.send("Subject: x\r\n\r\nHello\r\n.\r\n")
                client.endOutput()
                #expect(client.receive().contains("queued as") && client.isClosedByServer())
            }
            #expect(spool.submissions.count == 1)
        }
    }

    @Test func portInUseIsAnError() async throws {
        try await withIngress { _, spool, port in
            let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
            let configuration = IngressConfiguration(
                hostname: "relay.test", listeners: [ListenerConfiguration(port: 0), ListenerConfiguration(port: port)])
            let other = Ingress(
                configuration: configuration, group: group, submitter: spool, events: FakeEvents(),
                time: SystemTimeSource(), seed: 2, logger: Logger(label: "test"))
            let failure = await #expect(throws: ListenerFailure.self) { try await other.start() }
            #expect(failure?.place == "127.0.0.1:\(port)")
            try await group.shutdownGracefully()
        }
    }

    @Test func stopLetsAnOpenTransactionFinish() async throws {
        try await withIngress { ingress, spool, port in
            let client = try await offPool { try BlockingClient.inData(port: port) }
            async let stopped: Void = ingress.stop(grace: .seconds(20))
            try await offPool {
                let replies = client.ask("Subject: x\r\n\r\nHello\r\n.\r\n", replies: 2)
                #expect(replies.contains("queued as") && replies.contains("\r\n421 4.3.2"))
                #expect(client.isClosedByServer())
                client.endOutput()
            }
            await stopped
            #expect(spool.submissions.count == 1)
        }
    }

    /// The fake spool never says that anything is written: reading stops at the bound, whatever the client sends.
    @Test func slowSpoolBoundsTheMemoryOfASession() async throws {
        try await withIngress { ingress, _, port in
            try await offPool {
                let client = try BlockingClient.inData(port: port)
                let block = String(repeating: String(repeating: "s", count: 998) + "\r\n", count: 2_000)
                client.send("Subject: x\r\n\r\n" + block)
                var most = 0
                for _ in 0..<20 {
                    _ = try BlockingClient(port: port).receive()
                    most = max(most, ingress.memoryInUse)
                }
                #expect(most >= Limits.unwrittenPerSession / 2, "\(most)")
                #expect(most <= Limits.unwrittenPerSession + 3 * Limits.fragmentSize, "\(most)")
            }
        }
    }
}
