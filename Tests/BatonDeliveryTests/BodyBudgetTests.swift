// What bodies read back may hold, counted and kept by a dispatcher with slow receivers.
import BatonCore
import BatonModel
import BatonTestKit
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import BatonDelivery

@Test func leaseIsNeverGivenBack() {
    let budget = BodyBudget()
    let max = 4 * BodyBudget.whole
    do {
        let small = BodyLease(budget)
        #expect(budget.held == BodyBudget.whole)
        let body = ByteBuffer(repeating: 0x61, count: 1_000)
        small.settle(.whole(MessageBody(bytes: body, traits: .empty)))
        #expect(budget.held == body.storageCapacity)
        let large = BodyLease(budget)
        large.settle(.fragmented(traits: .empty, count: 80))
        #expect(budget.heldStreamed == BodyBudget.streamed)
        #expect(budget.hasRoom(under: max) && !budget.mayStream(under: max))
    }
    #expect(budget.held == 0 && budget.heldStreamed == 0)
    // However small the bound is, one at a time goes.
    #expect(budget.hasRoom(under: 1) && budget.mayStream(under: 1))
}

@Suite(.serialized) struct BodyBudgetTests {
    /// Forty connections and forty stored messages, receivers that do not answer the dot, room for four reads.
    @Test func slowReceiversHoldAllBodies() async throws {
        let mx = try await FakeMX(group: MultiThreadedEventLoopGroup.singleton) { _, command in
            command == "(dot)" ? .silence : nil
        }
        let body = Array(repeating: UInt8(ascii: "x"), count: 200_000)
        let envelope = makeEnvelope(["a@example.test"], body: body)
        let stored = Dictionary(uniqueKeysWithValues: (0..<40).map { (UInt32($0), (envelope, body)) })
        let delivery = Delivery(port: mx.port, reader: FakeReader(messages: stored)) { configuration in
            configuration.connectionsPerSite = 40
            configuration.bodyMemory = 4 * BodyBudget.whole
        }
        delivery.add(Array(repeating: ["a@example.test"], count: 40), resident: false)
        await delivery.route()
        // The sockets are real: as long as they need to fill the room there is, and a while longer.
        var out = 0
        for _ in 0..<100_000 where out < 4 {
            await delivery.settle()
            out = delivery.source.state.withLock { $0.out }
        }
        for _ in 0..<20 {
            await delivery.pass(.milliseconds(500))
            await delivery.settle()
        }
        #expect(out == 4)
        #expect((1...4).contains(delivery.source.state.withLock { $0.out }))
        #expect(delivery.source.state.withLock { $0.ready.count } >= 36, "the rest waits in the queue")
        await mx.stop()
    }
}
