// The actor: on its loop, once per batch, one look-up for many callers.
import BatonCore
import BatonDNS
import BatonModel
import BatonRuntime
import BatonTestKit
import NIOCore
import NIOPosix
import Testing

@Test func callersOfOneDomainShareItsLookUpsAndTheCacheAnswersAtOnce() throws {
    var zone = FakeZone()
    zone.mx("d.example", [(10, "a.example")])
    zone.host("a.example", ["203.0.113.1"])
    let resolver = FakeResolver(zone)
    let time = SimulatedTime()
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    defer { try? group.syncShutdownGracefully() }
    let loop = group.next()
    let cache = DNSCache(
        home: LoopHome(loop), resolver: resolver, settings: PlanSettings(addressFamily: .ipv4), time: time, seed: 1)
    let plans = ThreadMailbox<String>(capacity: 1000)
    let ask: @Sendable () -> Void = {
        cache.plan(Domain("D.example")) { plans.deliver(CollectionOfOne(describe($0.verdict))) }
    }
    try loop.submit { for _ in 0..<100 { ask() } }.wait()
    #expect(resolver.total == 1)
    resolver.answerAll()
    // What the answers led to is done once the loop has come round.
    try loop.submit {}.wait()
    #expect(resolver.total == 2)
    resolver.answerAll()
    try loop.submit {}.wait()
    #expect(plans.take() == [String](repeating: "hosts 10 a.example 203.0.113.1", count: 100))
    try loop.submit { ask() }.wait()
    #expect(plans.count == 1)
    #expect(resolver.total == 2)
    time.advance(by: .seconds(300))
    try loop.submit { ask() }.wait()
    #expect(resolver.total == 3)
}

@Test func planAskedForFromWithinAnAnswer() throws {
    var zone = FakeZone()
    zone.host("a.example", ["203.0.113.1"])
    zone.host("b.example", ["203.0.113.2"])
    let resolver = FakeResolver(zone)
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    defer { try? group.syncShutdownGracefully() }
    let loop = group.next()
    let cache = DNSCache(
        home: LoopHome(loop), resolver: resolver, settings: PlanSettings(addressFamily: .ipv4), time: SimulatedTime(),
        seed: 1)
    let plans = ThreadMailbox<String>(capacity: 1000)
    try loop.submit {
        cache.planHost(Domain("a.example")) { first in
            plans.deliver(CollectionOfOne(describe(first.verdict)))
            cache.planHost(Domain("b.example")) { plans.deliver(CollectionOfOne(describe($0.verdict))) }
            cache.planHost(Domain("a.example")) { plans.deliver(CollectionOfOne(describe($0.verdict))) }
        }
    }.wait()
    for _ in 0..<2 {
        resolver.answerAll()
        try loop.submit {}.wait()
    }
    let expected = ["hosts 0 a.example 203.0.113.1", "hosts 0 a.example 203.0.113.1", "hosts 0 b.example 203.0.113.2"]
    #expect(plans.take()?.sorted() == expected)
}

@Test func newSettingsHoldForTheNextPlan() throws {
    var zone = FakeZone()
    zone.host("a.example", ["127.0.0.1"])
    let resolver = FakeResolver(zone)
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    defer { try? group.syncShutdownGracefully() }
    let loop = group.next()
    let cache = DNSCache(
        home: LoopHome(loop), resolver: resolver, settings: PlanSettings(addressFamily: .ipv4), time: SimulatedTime(),
        seed: 1)
    let plans = ThreadMailbox<String>(capacity: 1000)
    for allow in [false, true] {
        cache.reconfigure(PlanSettings(addressFamily: .ipv4, allowPrivateAddresses: allow))
        try loop.submit {
            cache.plan(Domain("a.example")) { plans.deliver(CollectionOfOne(describe($0.verdict))) }
        }.wait()
        for _ in 0..<2 {
            resolver.answerAll()
            try loop.submit {}.wait()
        }
    }
    #expect(plans.take() == ["noAddress", "hosts 0 a.example 127.0.0.1"])
}
