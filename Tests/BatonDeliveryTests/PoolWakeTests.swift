// When a pool wakes by itself: work that nothing else brings back has to have a time.
import BatonCore
import BatonModel
import Testing

@testable import BatonDelivery

private let start = Instant(secondsSinceEpoch: 1_000)

private func reply(_ code: UInt16, _ stage: ReplyStage, _ status: EnhancedStatus? = nil) -> SMTPReply {
    SMTPReply(code: code, status: status, text: [], stage: stage)
}

@Suite struct PoolWakeTests {
    @Test func poolWithoutWorkWakes() {
        var walk = Walk(hosts(1))
        #expect(walk.wake == .distantFuture)
        walk.ready = 1
        walk.pump()
        walk.greetAll()
        for id in walk.busy { walk.finish(id) }
        // Idle: only its connection's end.
        #expect(walk.wake == start + .seconds(30))
        #expect(!walk.state.wantsWork)
    }

    @Test func pauseEndsUnnoticed() {
        var walk = Walk(hosts(1), limit: 2)
        walk.ready = 9
        walk.pump()
        walk.greetAll()
        for id in walk.busy { walk.finish(id, reusable: false, trouble: reply(421, .mail), fresh: true) }
        walk.pump()
        #expect(walk.connecting.isEmpty && walk.busy.isEmpty)
        #expect(walk.wake == start + .minutes(1))
    }

    @Test func deniedPermitIsNeverAskedForAgain() {
        var walk = Walk(hosts(1))
        walk.grants = false
        walk.ready = 3
        walk.pump()
        #expect(walk.wake == start + DeliveryLimits.tick)
        walk.now = walk.wake
        walk.send(.tick)
        walk.pump()
        #expect(walk.wake == start + .seconds(1))
    }

    @Test func rateOrReadPauseIsNeverOver() {
        var walk = Walk(hosts(1), limit: 1)
        walk.ready = 9
        walk.pump()
        walk.greetAll()
        guard let one = walk.busy.first else { return }
        walk.busy.remove(one)
        walk.idle.insert(one)
        walk.send(.blocked(one, until: start + .seconds(2)))
        #expect(walk.state.wantsWork)
        #expect(walk.wake == start + .seconds(2))
        // Before its time nothing is pulled, whoever signals.
        walk.pump()
        #expect(walk.busy.isEmpty)
        walk.now = walk.wake
        walk.send(.tick)
        walk.pump()
        #expect(walk.busy.count == 1)
    }

    @Test func failedGrowthIsNeverTriedAgain() {
        var walk = Walk(hosts(1), limit: 4)
        walk.ready = 9
        walk.pump()
        walk.greetAll()
        walk.pump()
        for id in walk.connecting.keys { walk.fail(id, .unreachable(reply(0, .connect))) }
        walk.pump()
        #expect(walk.connecting.isEmpty)
        #expect(walk.wake <= start + DeliveryLimits.growthPause)
        walk.now = start + DeliveryLimits.growthPause
        walk.send(.tick)
        walk.pump()
        #expect(walk.connecting.count == 1)
    }

    @Test func wonBackPlaceStaysEmpty() {
        var walk = Walk(hosts(1), limit: 4)
        walk.ready = 900
        walk.pump()
        walk.greetAll()
        guard let one = walk.busy.first else { return }
        walk.finish(one, trouble: reply(451, .mail, EnhancedStatus(4, 7, 1)))
        walk.now = walk.now + .minutes(1)
        walk.send(.tick)
        for id in walk.quitting { walk.send(.closed(id)) }
        walk.quitting = []
        walk.pump()
        walk.greetAll()
        #expect(walk.busy.count == 1)
        // The probe's success opens places that no event of its own fills.
        for id in walk.busy { walk.finish(id) }
        #expect(walk.wake <= walk.now + DeliveryLimits.tick)
        walk.now = walk.wake
        walk.send(.tick)
        walk.pump()
        #expect(walk.connecting.count + walk.busy.count == 2)
    }

    @Test func busyPoolAtItsLimitWakesForNothing() {
        var walk = Walk(hosts(1), limit: 1)
        walk.ready = 900
        walk.pump()
        walk.greetAll()
        walk.pump()
        #expect(walk.busy.count == 1)
        #expect(walk.wake == .distantFuture)
    }

    /// A connection that closes while it works, told as `closed`: the root of the stall that `mixed` found. Its place stayed
    /// taken, so that after as many closes as the limit fresh connections greeted and were given nothing.
    @Test func closedBusyConnectionKeepsItsPlace() {
        var walk = Walk(hosts(1), limit: 3)
        walk.ready = 100
        for _ in 0..<3 {
            walk.pump()
            walk.greetAll()
        }
        #expect(walk.busy.count == 3)
        for id in walk.busy {
            walk.busy.remove(id)
            walk.send(.closed(id))
        }
        #expect(walk.state.busyConnections == 0)
        #expect(walk.permits == 0)
        walk.pump()
        walk.greetAll()
        #expect(walk.busy.count == 1)
    }

    @Test func probeOnOneMessageConnectionsNeverCounts() {
        var walk = Walk(hosts(1), limit: 4)
        walk.ready = 900
        walk.pump()
        walk.greetAll()
        for id in walk.busy { walk.finish(id, reusable: false, trouble: reply(421, .mail), fresh: true) }
        walk.now = walk.now + .minutes(1)
        walk.pump()
        walk.greetAll()
        #expect(walk.busy.count == 1)
        // MAILMAX=1: the peer took the message, and the connection is done with.
        for id in walk.busy { walk.finish(id, reusable: false, served: true) }
        #expect(!walk.state.throttle.isProbing)
    }

    /// One recipient a pause is tried; the others would wait for ever, neither counted nor expired.
    @Test func siteThatThrottlesForEverCountsNobodysAttempt() {
        var walk = Walk(hosts(1), limit: 4)
        walk.ready = 900
        for round in 0..<6 {
            walk.pump()
            walk.greetAll()
            #expect(walk.busy.count == 1, "round \(round)")
            for id in walk.busy { walk.finish(id, reusable: false, trouble: reply(421, .mail), fresh: true) }
            #expect(walk.deferred.count == max(0, round - 3), "round \(round)")
            walk.now = walk.state.throttle.pausedUntil
        }
    }
}
