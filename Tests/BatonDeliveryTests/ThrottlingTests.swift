// Sites that ask us to slow down, and stored messages that come back late or wrong, on real sockets under a simulated clock.
import BatonCore
import BatonModel
import BatonTestKit
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import BatonDelivery

private let group = MultiThreadedEventLoopGroup.singleton

@Suite struct ThrottlingTests {
    /// 421 or 4.7.x at connect, EHLO or MAIL: the limit is halved, the site rests for a minute and longer each time, and each
    /// rest ends in one connection. Nothing here depends on who is faster: between two pauses the pool may do one thing only.
    @Test(arguments: ["(connect)", "EHLO", "MAIL"], ["421 4.3.2 busy", "450 4.7.1 slow down"])
    func throttledSiteIsHammered(stage: String, said: String) async throws {
        let mx = try await FakeMX(group: group) { _, command in
            command.hasPrefix(stage) ? .sayAndClose(said) : nil
        }
        let delivery = Delivery(port: mx.port) { $0.connectionsPerSite = 8 }
        for round in 1...3 {
            // One message first, else the pool grows before it has heard anything; then more than the probe may take.
            delivery.add((0..<(round == 1 ? 1 : 10)).map { ["u\($0)@example.test"] })
            if round == 1 { await delivery.route() } else { await delivery.pass(.milliseconds(500)) }
            if stage == "MAIL" {
                _ = await delivery.source.results.wait(for: round)
            } else {
                _ = await delivery.source.verdicts.wait(for: 1 + round)
            }
            await delivery.settle()
            let status = await delivery.status()
            #expect(mx.record.connections == round)
            #expect(status?.limit == 8 >> round)
            let pause = TimeSpan.minutes(Int64(1) << (round - 1))
            #expect(status?.pausedUntil == delivery.time.now() + pause)
            // Signals and ticks in the pause open nothing.
            delivery.add([["v@example.test"]])
            await delivery.signal()
            for _ in 0..<3 { await delivery.pass(TimeSpan(nanoseconds: (pause.nanoseconds - 500_000_000) / 3)) }
            await delivery.pass(
                TimeSpan(nanoseconds: (pause.nanoseconds - 500_000_000) - (pause.nanoseconds - 500_000_000) / 3 * 3))
            await delivery.settle()
            #expect(mx.record.connections == round)
        }
        await mx.stop()
    }

    @Test func healedSiteStaysSlow() async throws {
        let sick = Mutex(true)
        let mx = try await FakeMX(group: group) { _, command in
            command.hasPrefix("MAIL") && sick.withLock { $0 } ? .sayAndClose("421 4.7.0 slow down") : nil
        }
        let delivery = Delivery(port: mx.port) { $0.connectionsPerSite = 2 }
        // One message first: a second connection's 421 could come after the pause it belongs to, and begin another.
        delivery.add([["first@example.test"]])
        await delivery.route()
        _ = await delivery.source.results.wait(for: 1)
        await delivery.settle()
        #expect(await delivery.status()?.limit == 1)
        sick.withLock { $0 = false }
        delivery.add((0..<39).map { ["u\($0)@example.test"] })
        await delivery.pass(.minutes(1))
        _ = await delivery.source.results.wait(for: 40)
        #expect(await delivery.status()?.limit == 2)
        #expect(await delivery.status()?.pausedUntil == nil)
        await mx.stop()
    }
}

/// Keeps reads until they are let out, in the order that the test wants.
private final class HeldReader: BodyReading {
    private let held = Mutex<[(BodyRead, any BodyReadReceiving)]>([])
    let asked = Collector<BodyRead>()
    func read(_ requests: [BodyRead], for receiver: any BodyReadReceiving) {
        held.withLock { $0 += requests.map { ($0, receiver) } }
        for request in requests { asked.add(request) }
    }

    func answer(_ token: UInt64, _ outcome: BodyReadOutcome) {
        let found = held.withLock { held in
            held.firstIndex { $0.0.token == token }.map { held.remove(at: $0) }
        }
        found?.1.bodiesRead([BodyReadResult(token: token, outcome: outcome)])
    }
}

@Suite struct ReadBackTests {
    /// The first message is refused at its first chunk while its second fragment is being read; the next one begins on the
    /// same connection. The late fragment belongs to a message that has ended, and so does its damage.
    @Test(arguments: [false, true])
    func lateFragmentGivenToTheNextMessage(damaged: Bool) async throws {
        let chunks = Mutex(0)
        let mx = try await FakeMX(group: group, offers: ["PIPELINING", "CHUNKING"]) { _, command in
            guard command == "(chunk)" else { return nil }
            let count = chunks.withLock {
                $0 += 1
                return $0
            }
            return count == 1 ? .say("552 5.3.4 too big") : nil
        }
        let bytes = Array("a: b\r\n\r\nsecond message\r\n".utf8)
        let envelope = makeEnvelope(["a@example.test"], body: bytes)
        var traits = envelope.traits
        traits.length = Limits.fragmentThreshold + 1
        let big = StoredBody.fragmented(traits: traits, count: 2)
        let reader = HeldReader()
        let delivery = Delivery(port: mx.port, bodies: reader) { $0.connectionsPerSite = 1 }
        delivery.add([["a@example.test"], ["b@example.test"]], resident: false)
        await delivery.route()
        var reads = await reader.asked.wait(for: 1)
        reader.answer(reads[0].token, .message(envelope, big))
        reads = await reader.asked.wait(for: 2)
        reader.answer(reads[1].token, .fragment(ByteBuffer(string: "first\r\n")))
        // The fragment behind it is asked for; before it comes, the chunk is refused and the next message is read.
        reads = await reader.asked.wait(for: 4)
        #expect(delivery.source.results.all == ["permanent 552 5.3.4"])
        reader.answer(reads[3].token, .message(envelope, big))
        reads = await reader.asked.wait(for: 5)
        reader.answer(reads[2].token, damaged ? .damaged : .fragment(ByteBuffer(string: "of the first message\r\n")))
        await delivery.settle()
        reader.answer(reads[4].token, .fragment(ByteBuffer(bytes: bytes.prefix(10))))
        reads = await reader.asked.wait(for: 6)
        reader.answer(reads[5].token, .fragment(ByteBuffer(bytes: bytes.dropFirst(10))))
        #expect(await delivery.source.results.wait(for: 2) == ["permanent 552 5.3.4", "delivered 250"])
        #expect(mx.record.messages.last?.body.suffix(bytes.count) == bytes[...])
        await mx.stop()
    }

    /// A disk that does not answer is our own fault: each try costs the receiver a connection.
    @Test func unreadableBodyIsTriedEverySecond() async throws {
        let mx = try await FakeMX(group: group)
        let reader = HeldReader()
        let delivery = Delivery(port: mx.port, bodies: reader) { $0.connectionsPerSite = 1 }
        delivery.add([["a@example.test"], ["b@example.test"]], resident: false)
        await delivery.route()
        let reads = await reader.asked.wait(for: 1)
        reader.answer(reads[0].token, .failed(errno: 5))
        _ = await delivery.source.results.wait(for: 1)
        await delivery.settle()
        #expect(delivery.source.results.all == ["returned"])
        #expect(await delivery.status()?.pausedUntil == delivery.time.now() + DeliveryLimits.ownFaultPauseMin)
        await delivery.pass(.seconds(9))
        await delivery.settle()
        #expect(reader.asked.all.count == 1)
        await delivery.pass(.seconds(1))
        #expect(await reader.asked.wait(for: 2).count == 2)
        await mx.stop()
    }
}
