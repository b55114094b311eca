// What a tick and a new site cost: only the pools that are due, and the one that makes room.
import BatonCore
import BatonDNS
import BatonModel
import BatonTestKit
import NIOPosix
import Testing

@testable import BatonDelivery

private func site(_ number: Int) -> SiteID { SiteID(value: UInt32(number)) }
private func at(_ seconds: Int64) -> Instant { Instant(secondsSinceEpoch: seconds) }

@Suite struct PoolScheduleTests {
    @Test func heapForgetsAnEntryOrItsOrder() {
        for seed in UInt64(1)...50 {
            var random = SplitMix64(seed: seed)
            var heap = SiteHeap()
            var naive: [SiteID: Instant] = [:]
            for step in 0..<400 {
                let one = site(Int(random.next() % 40))
                switch random.next() % 4 {
                case 0:
                    heap.remove(one)
                    naive.removeValue(forKey: one)
                case 1:
                    heap.set(one, at: nil)
                    naive.removeValue(forKey: one)
                default:
                    let when = at(Int64(random.next() % 30))
                    heap.set(one, at: when)
                    naive[one] = when
                }
                #expect(heap.count == naive.count, "seed \(seed) step \(step)")
                #expect(heap.first?.at == naive.values.min(), "seed \(seed) step \(step)")
                #expect(heap.instant(of: one) == naive[one], "seed \(seed) step \(step)")
            }
            var last = Instant.epoch
            while let first = heap.first {
                #expect(first.at >= last && naive[first.site] == first.at, "seed \(seed)")
                last = first.at
                heap.remove(first.site)
            }
        }
    }

    @Test func poolThatIsNotDueIsVisited() {
        var schedule = PoolSchedule()
        for number in 0..<10_000 {
            schedule.update(site(number), PoolStanding(due: number % 2_500 == 7 ? at(10) : at(1_000)))
        }
        var found: [SiteID] = []
        while found.count < 100, let one = schedule.popDue(at: at(10)) { found.append(one) }
        #expect(Set(found) == [site(7), site(2_507), site(5_007), site(7_507)])
        #expect(found.count == 4)
        // Visited once: until it says otherwise it is not due again.
        #expect(schedule.popDue(at: at(999)) == nil)
        schedule.update(site(7), PoolStanding(due: at(20)))
        #expect(schedule.nextDue == at(20))
        schedule.remove(site(7))
        #expect(schedule.nextDue == at(1_000))
        #expect(schedule.count == 9_999)
    }

    @Test func busyPoolIsTakenForTheLongestIdle() {
        var schedule = PoolSchedule()
        schedule.update(site(1), PoolStanding(idleSince: at(5)))
        schedule.update(site(2), PoolStanding(idleSince: at(3)))
        schedule.update(site(3), PoolStanding(spareSince: at(1)))
        #expect(schedule.longestIdle == site(2))
        #expect(schedule.longestSpare == site(3))
        schedule.update(site(2), PoolStanding())
        #expect(schedule.longestIdle == site(1))
        schedule.remove(site(1))
        schedule.remove(site(3))
        #expect(schedule.longestIdle == nil && schedule.longestSpare == nil)
    }

    @Test func assignmentsGrowForEver() {
        var table = Assignments<Int>()
        var most = 0
        for number in 0..<100_000 {
            // Each holds for 15 minutes, one comes a second.
            table.set(
                DestinationID(value: UInt32(number)), number, until: at(Int64(number) + 900), at: at(Int64(number)))
            most = max(most, table.count)
        }
        #expect(most <= 2_000)
        #expect(table[DestinationID(value: 99_999)] == 99_999)
        #expect(table[DestinationID(value: 99_200)] == 99_200)
        #expect(table.remove(DestinationID(value: 99_999)) == 99_999)
        #expect(table[DestinationID(value: 99_999)] == nil)
    }
}

@Suite struct DispatcherCostTests {
    /// A site for each address literal, none of them with work.
    private func delivery(sites: Int, poolsMax: Int) async -> Delivery {
        let delivery = Delivery(port: 1, poolsMax: poolsMax)
        for number in 0..<sites {
            await delivery.route("[127.1.\(number / 250).\(number % 250 + 1)]", destination: number + 1)
        }
        await delivery.settle()
        return delivery
    }

    @Test func tickVisitsPoolsThatAreNotDue() async {
        let delivery = await delivery(sites: 300, poolsMax: 1_000)
        await delivery.pass(.milliseconds(500))
        await delivery.pass(.seconds(60))
        #expect(await delivery.visits() == 0)
        #expect(await delivery.poolCount() == 300)
        // Their assignments run out: each is visited once, and gone.
        await delivery.pass(.minutes(15))
        #expect(await delivery.visits() == 300)
        #expect(await delivery.poolCount() == 0)
        #expect(await delivery.scheduled() == 0)
    }

    @Test func newSiteScansAllPools() async {
        let delivery = await delivery(sites: 50, poolsMax: 50)
        delivery.time.advance(by: .seconds(1))
        for number in 0..<10 { await delivery.route("[127.2.0.\(number + 1)]", destination: 1_000 + number) }
        await delivery.settle()
        #expect(await delivery.visits() == 10)
        #expect(await delivery.poolCount() == 50)
        #expect(await delivery.scheduled() == 50)
        // The evicted site's destination was given back, so that its mail is routed anew.
        #expect(delivery.source.verdicts.all.filter { $0 == "release" }.count == 10)
        #expect(!delivery.source.verdicts.all.contains("hold"))
    }

    @Test func poolWithWorkMakesRoom() async {
        let delivery = Delivery(port: 1, poolsMax: 1) { $0.connectionsPerSite = 1 }
        delivery.add([["a@example.test"]])
        await delivery.route("[127.3.0.1]")
        await delivery.settle()
        await delivery.route("[127.3.0.2]", destination: 2)
        await delivery.settle()
        #expect(delivery.source.verdicts.all.contains("hold"))
        #expect(await delivery.poolCount() == 1)
    }

    /// Two sites, one permit: the idle connection of the first is given up for the second at the next tick.
    @Test func idleConnectionKeepsAWaiterOut() async throws {
        let mx = try await FakeMX(group: MultiThreadedEventLoopGroup.singleton, address: "0.0.0.0")
        let delivery = Delivery(port: mx.port, nodeConnections: 1)
        delivery.add([["a@example.test"]])
        await delivery.route("[127.0.0.1]")
        _ = await delivery.source.results.wait(for: 1)
        await delivery.settle()
        #expect(delivery.permits.openConnections == 1)
        delivery.add([["b@example.test"]])
        await delivery.route("[127.0.0.2]", destination: 2)
        await delivery.settle()
        #expect(delivery.permits.hasWaiters)
        for _ in 0..<10 where delivery.source.results.all.count < 2 {
            await delivery.pass(.milliseconds(500))
            let deadline = ContinuousClock.now + .seconds(2)
            while delivery.source.results.all.count < 2, delivery.permits.openConnections > 0,
                ContinuousClock.now < deadline
            { await delivery.settle() }
        }
        #expect(delivery.source.results.all.count == 2)
        #expect(mx.record.connections == 2 && mx.record.openMost == 1)
        await mx.stop()
    }
}
