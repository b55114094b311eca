// The actor on its loop: crossing in, calling back, the timer, operators from outside.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Dispatch
import Logging
import NIOCore
import NIOEmbedded
import Testing

@testable import BatonQueue

/// A delivery side that answers from within each call, as the real one does.
private final class EagerDelivery: WorkSignalling, @unchecked Sendable {
    // @unchecked: touched on the loop only, or by the test while the loop stands still.
    unowned let partition: QueuePartition
    var pulls = true
    var result: (Transaction) -> AttemptResult = { _ in .delivered(accepted) }
    var routes = 0
    var signals = 0
    var sent: [StoredMessageRef] = []
    var bodies = 0
    var decisions: [RecipientDecision] = []
    var finals: [FinalWithoutAttempt] = []
    var depth = 0
    var deepest = 0

    init(_ partition: QueuePartition) { self.partition = partition }

    func routeNeeded(_ destination: DestinationID, domain: Domain) {
        routes += 1
        partition.nameSite(siteA, name: Array("site".utf8))
        partition.assign(destination, to: siteA, until: .distantFuture)
    }

    func workReady(_ site: SiteID, ready: Int) {
        signals += 1
        guard pulls else { return }
        depth += 1
        deepest = max(depth, deepest)
        defer { depth -= 1 }
        for transaction in partition.pull(site, transactions: 100, recipients: 100) {
            sent.append(transaction.message)
            if transaction.body != nil { bodies += 1 }
            let results = transaction.recipients.map { ($0.handle, result(transaction)) }
            let envelope = message(0, to: ["u@x.test"]).envelope
            let decided = partition.decide(results, envelope: envelope, at: partition.time.now())
            decisions += decided
            let final = zip(transaction.recipients, decided).compactMap { recipient, decision -> JobHandle? in
                switch decision {
                case .delivered, .bounced, .expired: recipient.handle
                case .deferred, .inDoubt, .returned, .unknown: nil
                }
            }
            partition.settle(final)
        }
    }

    func finalWithoutAttempt(_ items: [FinalWithoutAttempt]) {
        finals += items
        partition.settle(items.map(\.recipient.handle))
    }
}

private struct Rig {
    let loop = NIOAsyncTestingEventLoop()
    let time = SimulatedTime(start)
    let partition: QueuePartition
    let delivery: EagerDelivery

    init(_ configuration: QueueConfiguration = QueueConfiguration(seed: 1)) async throws {
        partition = QueuePartition(
            index: 0, count: 1, home: LoopHome(loop), time: time, configuration: configuration,
            logger: Logger(label: "test"))
        let made = EagerDelivery(partition)
        delivery = made
        let partition = self.partition
        try await loop.executeInContext { partition.bind(signalling: made) }
    }

    func advance(_ seconds: Int64) async {
        time.advance(by: .seconds(seconds))
        await loop.advanceTime(by: .seconds(seconds))
    }

    func end() async throws {
        let partition = self.partition
        try await loop.executeInContext { partition.stop() }
        await loop.shutdownGracefully()
    }
}

@Test func mailFromAThreadMissesTheDeliverySide() async throws {
    let rig = try await Rig()
    // The testing loop runs what is due at once: it is kept busy until both hand-overs wait in the mailbox.
    let handedOver = DispatchSemaphore(value: 0)
    rig.loop.execute { handedOver.wait() }
    rig.partition.receive([message(1, to: ["a@x.test"]), message(2, to: ["b@y.test"])])
    rig.partition.receive([message(3, to: ["c@x.test"])])
    #expect(rig.partition.jobCount == 3)
    handedOver.signal()
    await rig.loop.run()
    #expect(rig.delivery.sent.map(\.record).sorted() == [1, 2, 3])
    #expect(rig.delivery.bodies == 3)
    #expect(rig.delivery.routes == 2)
    #expect(rig.delivery.deepest == 1, "calls back nest")
    #expect(rig.delivery.signals <= 2, "one signal for a batch, not for a message")
    #expect(rig.partition.jobCount == 0)
    try await rig.end()
}

@Test func deferredMailMissesItsTimer() async throws {
    let rig = try await Rig()
    rig.delivery.result = { _ in .temporary(tryLater) }
    rig.partition.receive([message(1, to: ["a@x.test"])])
    await rig.loop.run()
    #expect(rig.delivery.sent.count == 1)
    await rig.advance(200)
    #expect(rig.delivery.sent.count == 1)
    // The loop's clock runs ahead bit by bit, as the wheel may wake early to move far slots down.
    for _ in 0..<200 { await rig.advance(1) }
    #expect(rig.delivery.sent.count == 2)
    try await rig.end()
}

@Test func operatorOutsideTheLoopIsNotServed() async throws {
    let rig = try await Rig()
    rig.delivery.pulls = false
    rig.partition.receive((0..<10).map { message($0, to: ["a@x.test"]) })
    await rig.loop.run()
    async let progress = rig.partition.suspend(.domain(Domain("x.test")))
    async let summary = rig.partition.summary()
    for _ in 0..<100 { await rig.loop.run() }
    #expect(try await progress.count == 10)
    #expect(await summary.rows.count == 1)
    async let bounced = rig.partition.bounce(.all, report: true)
    for _ in 0..<100 { await rig.loop.run() }
    #expect(try await bounced.count == 10)
    await rig.loop.run()
    #expect(rig.delivery.finals.count == 10)
    #expect(rig.partition.jobCount == 0)
    try await rig.end()
}

@Test func lateLoopPilesUpBodies() async throws {
    let one = message(1, to: ["a@x.test"], size: 1_000)
    let rig = try await Rig(QueueConfiguration(residentBytes: 8_000, jobsMax: 50, seed: 1))
    let partition = rig.partition
    // While the loop is busy here, mail waits in the mailbox.
    let full = try await rig.loop.executeInContext {
        (0..<50).map { number in
            partition.receive([message(UInt32(number), to: ["a@x.test"], size: 1_000)])
            return partition.isFull
        }
    }
    #expect(full.prefix(49).allSatisfy { !$0 })
    #expect(full.last == true, "mail in the mailbox counts")
    await rig.loop.run()
    #expect(rig.delivery.sent.count == 50)
    #expect(rig.delivery.bodies > 0 && rig.delivery.bodies * one.envelope.traits.length <= 8_000)
    #expect(!rig.partition.isFull)
    try await rig.end()
}

@Test func recoveryOverflowsTheMailbox() async throws {
    let rig = try await Rig()
    let partition = rig.partition
    rig.delivery.pulls = false
    let taken = try await rig.loop.executeInContext {
        let batch = (0..<1_024).map { message(UInt32($0), to: ["a@x.test"], body: false) }
        var taken = 0
        while taken < 100, partition.offer(batch) { taken += 1 }
        return taken
    }
    #expect(taken == QueueLimits.mailboxMessages / 1_024)
    #expect(rig.partition.jobCount == QueueLimits.mailboxMessages)
    await rig.loop.run()
    #expect(rig.partition.offer([message(1, to: ["a@x.test"])]))
    await rig.loop.run()
    #expect(rig.partition.jobCount == QueueLimits.mailboxMessages + 1)
    try await rig.end()
}

@Test func deliverySideThatGivesEverythingBackStopsTheLoop() async throws {
    let rig = try await Rig()
    let (delivery, loop) = (rig.delivery, rig.loop)
    let storm = 2_000
    nonisolated(unsafe) var signalsWhenOthersRan: Int?  // Set and read on the loop alone.
    rig.delivery.result = { _ in
        if delivery.signals == 1 { loop.execute { signalsWhenOthersRan = delivery.signals } }
        return delivery.signals < storm ? .returned : .delivered(accepted)
    }
    rig.partition.receive([message(1, to: ["a@x.test"])])
    await rig.loop.run()
    let ran = try await rig.loop.executeInContext { signalsWhenOthersRan }
    #expect(delivery.signals == storm)
    #expect(delivery.deepest == 1)
    #expect(ran.map { $0 < storm / 2 } == true, "others ran after \(ran ?? -1) signals")
    try await rig.end()
}
