// The pool's pure half: growth, limits, throttling, resends, and a random walk that keeps the permits' books.
import BatonCore
import BatonModel
import Testing

@testable import BatonDelivery

func hosts(_ count: Int, addresses: Int = 1, sameRank: Bool = false) -> [SiteHost] {
    (0..<count).map { host in
        SiteHost(
            name: Array("mx\(host)".utf8), rank: sameRank ? 0 : UInt16(host),
            endpoints: (0..<addresses).compactMap { address in
                IPAddress("192.0.\(host + 2).\(address + 1)").map { .ip($0, port: 25) }
            })
    }
}

private func reply(_ code: UInt16, _ stage: ReplyStage = .banner, _ status: EnhancedStatus? = nil) -> SMTPReply {
    SMTPReply(code: code, status: status, text: [], stage: stage)
}

/// Performs the actions as the simplest of shells and keeps the books.
struct Walk {
    var state: PoolState
    var now = Instant(secondsSinceEpoch: 1_000)
    var permits = 0
    var grants = true
    var connecting: [ConnectionID: ([UInt8], Endpoint)] = [:]
    var busy: Set<ConnectionID> = []
    var idle: Set<ConnectionID> = []
    var quitting: Set<ConnectionID> = []
    var ready = 0
    var begun: [WorkID] = []
    var gaveUp: [WorkID] = []
    var gaveBack: [WorkID] = []
    var deferred: [SMTPReply] = []
    var failed: [SMTPReply] = []
    var pauses = 0
    var order: [[UInt8]] = []
    var mostOpen = 0

    init(_ hosts: [SiteHost], limit: Int = 4, messages: Int = 0, seed: UInt64 = 1) {
        state = PoolState(
            hosts: hosts, limits: SiteLimits(connections: limit, messagesPerConnection: messages), seed: seed)
    }

    mutating func send(_ event: PoolState.Event) {
        var queue = [event]
        while !queue.isEmpty {
            var actions = ActionBuffer<PoolState.Action>()
            state.receive(queue.removeFirst(), at: now, into: &actions)
            for action in actions.drain() {
                switch action {
                case .askPermit(let id):
                    if grants { permits += 1 }
                    queue.append(.permit(id, grants))
                case .connect(let id, let host, let endpoint):
                    connecting[id] = (host, endpoint)
                    order.append(host)
                case .pull(let id):
                    idle.remove(id)
                    connecting.removeValue(forKey: id)
                    if ready > 0 {
                        ready -= 1
                        busy.insert(id)
                    } else {
                        busy.remove(id)
                        idle.insert(id)
                        queue.append(.starved(id))
                    }
                case .begin(let id, let work):
                    idle.remove(id)
                    begun.append(work)
                    busy.insert(id)
                case .giveUp(let work): gaveUp.append(work)
                case .giveBack(let work): gaveBack.append(work)
                case .quit(let id):
                    idle.remove(id)
                    busy.remove(id)
                    quitting.insert(id)
                case .returnPermit: permits -= 1
                case .deferSite(let reply): deferred.append(reply)
                case .failSite(let reply): failed.append(reply)
                case .paused: pauses += 1
                }
            }
            mostOpen = max(mostOpen, state.openConnections)
        }
    }

    var wake: Instant { state.wake(at: now) }

    mutating func pump() { send(.pump(ready: ready)) }

    mutating func greetAll() {
        for id in connecting.keys.sorted(by: { $0.value < $1.value }) { greet(id) }
    }

    mutating func greet(_ id: ConnectionID) {
        guard connecting.removeValue(forKey: id) != nil else { return }
        idle.insert(id)
        send(.greeted(id))
    }

    mutating func fail(_ id: ConnectionID, _ failure: ConnectFailure) {
        connecting.removeValue(forKey: id)
        send(.failed(id, failure))
    }

    /// `served` by default where the connection goes on without trouble.
    mutating func finish(
        _ id: ConnectionID, reusable: Bool = true, trouble: SMTPReply? = nil, fresh: Bool = false, served: Bool? = nil
    ) {
        busy.remove(id)
        if reusable { idle.insert(id) }
        send(
            .finished(
                id, reusable: reusable, trouble: trouble, fresh: fresh, served: served ?? (reusable && trouble == nil)))
    }
}

@Suite struct PoolStateTests {
    /// The share has ended while there is work for years: the connection closes between two transactions, and its place is not
    /// kept.
    @Test func busyConnectionStaysBeyondItsShare() {
        var walk = Walk(hosts(1), limit: 2)
        walk.ready = 100
        walk.pump()
        walk.greetAll()
        guard let id = walk.busy.first else {
            Issue.record("nothing is sent")
            return
        }
        walk.send(.surplus(id))
        #expect(walk.quitting == [id])
        #expect(walk.busy.isEmpty)
        walk.send(.surplus(id))
        walk.grants = false
        walk.send(.closed(id))
        #expect(walk.permits == 0)
        walk.now = walk.now + .seconds(1)
        walk.pump()
        #expect(walk.state.openConnections == 0)
    }

    @Test func poolOpensAllConnectionsAtOnce() {
        var walk = Walk(hosts(1), limit: 20)
        walk.ready = 100
        walk.pump()
        #expect(walk.connecting.count == 1)
        var steps: [Int] = []
        for _ in 0..<6 {
            walk.greetAll()
            walk.pump()
            steps.append(walk.state.openConnections)
        }
        #expect(steps == [2, 4, 8, 16, 20, 20])
    }

    @Test func oneMessageOpensTwoConnections() {
        var walk = Walk(hosts(1), limit: 20)
        walk.ready = 1
        walk.pump()
        walk.pump()
        walk.pump()
        #expect(walk.connecting.count == 1)
    }

    @Test func nextHostNotTriedInOrder() {
        var walk = Walk(hosts(3))
        walk.ready = 1
        walk.pump()
        for _ in 0..<3 {
            for id in walk.connecting.keys { walk.fail(id, .unreachable(reply(0, .connect))) }
        }
        #expect(walk.order == hosts(3).map(\.name))
        #expect(walk.deferred.count == 1)
        #expect(walk.permits == 0)
        #expect(walk.pauses == 1)
    }

    @Test func equalHostsAlwaysInOneOrder() {
        var first: Set<[UInt8]> = []
        for seed in 0..<40 {
            var walk = Walk(hosts(3, sameRank: true), seed: UInt64(seed))
            walk.ready = 1
            walk.pump()
            if let host = walk.order.first { first.insert(host) }
        }
        #expect(first.count == 3)
    }

    @Test func moreThanFiveAddressesTried() {
        var walk = Walk(hosts(4, addresses: 3))
        walk.ready = 1
        walk.pump()
        var tries = 0
        while let id = walk.connecting.keys.first, tries < 50 {
            tries += 1
            walk.fail(id, .unreachable(reply(0, .connect)))
        }
        #expect(tries == DeliveryLimits.addressesPerAttempt)
    }

    @Test func refusedHostAskedAtItsNextAddress() {
        var walk = Walk(hosts(2, addresses: 2))
        walk.ready = 1
        walk.pump()
        for _ in 0..<2 { for id in walk.connecting.keys { walk.fail(id, .refused(reply(554))) } }
        #expect(walk.order == hosts(2).map(\.name))
        #expect(walk.deferred.first?.effectiveStatus == EnhancedStatus(4, 3, 2))
        #expect(walk.failed.isEmpty)
    }

    @Test func neverFromSomeMXBounces() {
        var walk = Walk(hosts(2))
        walk.ready = 1
        walk.pump()
        for id in walk.connecting.keys { walk.fail(id, .refused(reply(521))) }
        for id in walk.connecting.keys { walk.fail(id, .unreachable(reply(0, .connect))) }
        #expect(walk.failed.isEmpty)
        #expect(walk.deferred.count == 1)
        var all = Walk(hosts(2))
        all.ready = 1
        all.pump()
        for _ in 0..<2 { for id in all.connecting.keys { all.fail(id, .refused(reply(521))) } }
        #expect(all.failed.count == 1)
        #expect(all.deferred.isEmpty)
    }

    @Test func deadAddressTriedFirstAgain() {
        var walk = Walk(hosts(2))
        walk.ready = 2
        walk.pump()
        for id in walk.connecting.keys { walk.fail(id, .unreachable(reply(0, .connect))) }
        walk.greetAll()
        walk.order = []
        walk.pump()
        #expect(walk.order.first == Array("mx1".utf8))
        walk.now = walk.now + DeliveryLimits.addressAvoidance
        walk.send(.tick)
        walk.ready = 9
        walk.greetAll()
        walk.order = []
        walk.pump()
        #expect(walk.order.first == Array("mx0".utf8))
    }

    @Test func ownFaultCountsAgainstTheSite() {
        var walk = Walk(hosts(2), limit: 8)
        walk.ready = 5
        walk.pump()
        for _ in 0..<2 { for id in walk.connecting.keys { walk.fail(id, .ownFault(reply(0, .connect))) } }
        #expect(walk.deferred.isEmpty)
        #expect(walk.state.throttle.adapted == 8)
        #expect(walk.pauses == 1)
        walk.pump()
        #expect(walk.connecting.isEmpty)
        walk.now = walk.now + DeliveryLimits.ownFaultPauseMin
        walk.pump()
        #expect(walk.connecting.count == 1)
        walk.pump()
        #expect(walk.connecting.count == 1)
    }

    @Test func ownFaultHidesRemoteFailure() {
        var walk = Walk(hosts(2))
        walk.ready = 1
        walk.pump()
        for id in walk.connecting.keys { walk.fail(id, .ownFault(reply(0, .connect))) }
        for id in walk.connecting.keys { walk.fail(id, .unreachable(reply(0, .connect))) }
        #expect(walk.deferred.count == 1)
    }

    @Test func pausedSiteSendsOn() {
        var walk = Walk(hosts(1), limit: 8)
        walk.ready = 100
        for _ in 0..<4 {
            walk.pump()
            walk.greetAll()
        }
        #expect(walk.busy.count == 8)
        guard let one = walk.busy.first else { return }
        walk.finish(one, trouble: reply(421, .mail), fresh: true)
        #expect(walk.state.throttle.adapted == 4)
        // The others bring the same news; it counts once, and nobody goes on.
        for id in walk.busy { walk.finish(id, reusable: false, trouble: reply(421, .mail), fresh: true) }
        #expect(walk.state.throttle.adapted == 4)
        #expect(walk.pauses == 1)
        #expect(walk.busy.isEmpty)
        walk.now = walk.now + .seconds(59)
        walk.send(.tick)
        walk.pump()
        #expect(walk.busy.isEmpty && walk.connecting.isEmpty)
        walk.now = walk.now + .seconds(1)
        for id in walk.quitting { walk.send(.closed(id)) }
        walk.pump()
        #expect(walk.connecting.count + walk.busy.count == 1)
    }

    @Test func reusedConnectionsFarewellPausesTheSite() {
        var walk = Walk(hosts(1))
        walk.ready = 3
        walk.pump()
        walk.greetAll()
        guard let one = walk.busy.first else { return }
        walk.finish(one, reusable: false, trouble: reply(421, .mail), fresh: false)
        #expect(walk.pauses == 0)
    }

    @Test func limitNeverWonBack() {
        var throttle = SiteThrottle(ceiling: 8)
        var now = Instant(secondsSinceEpoch: 1)
        var spans: [Double] = []
        for _ in 0..<7 {
            throttle.trouble(at: now)
            spans.append((throttle.pausedUntil - now).seconds / 60)
            now = throttle.pausedUntil
        }
        #expect(spans == [1, 2, 4, 8, 15, 15, 15])
        #expect(throttle.adapted == 1)
        #expect(throttle.limit(at: now) == 1)
        for _ in 0..<(1 + 2 + 3 + 4 + 5 + 6 + 7) { throttle.success() }
        #expect(throttle.adapted == 8)
        #expect(throttle.limit(at: now) == 8)
        for _ in 0..<100 { throttle.success() }
        #expect(throttle.adapted == 8)
        throttle.trouble(at: now)
        #expect((throttle.pausedUntil - now).seconds == 60)
    }

    @Test func resendGoesToTheHostItAvoids() {
        var walk = Walk(hosts(2))
        walk.send(.resend(WorkID(value: 1), avoiding: [Array("mx0".utf8)]))
        #expect(walk.order == [Array("mx1".utf8)])
        walk.greetAll()
        #expect(walk.begun == [WorkID(value: 1)])
        walk.send(.resend(WorkID(value: 2), avoiding: hosts(2).map(\.name)))
        #expect(walk.gaveUp == [WorkID(value: 2)])
    }

    @Test func resendForgottenWhenItCannotConnect() {
        var walk = Walk(hosts(1))
        walk.send(.resend(WorkID(value: 1), avoiding: []))
        for id in walk.connecting.keys { walk.fail(id, .unreachable(reply(0, .connect))) }
        #expect(walk.gaveUp == [WorkID(value: 1)])
        walk.send(.resend(WorkID(value: 2), avoiding: []))
        #expect(walk.gaveBack == [WorkID(value: 2)])
        var denied = Walk(hosts(1))
        denied.grants = false
        denied.send(.resend(WorkID(value: 3), avoiding: []))
        #expect(denied.gaveBack == [WorkID(value: 3)])
    }

    @Test func deniedPermitAskedForAgainAtOnce() {
        var walk = Walk(hosts(1))
        walk.grants = false
        walk.ready = 5
        walk.pump()
        walk.grants = true
        walk.pump()
        #expect(walk.connecting.isEmpty)
        walk.send(.tick)
        walk.pump()
        #expect(walk.connecting.count == 1)
    }

    @Test func randomWalkLosesAPermitOrALimit() {
        for seed in UInt64(1)...200 {
            var random = SplitMix64(seed: seed)
            var walk = Walk(hosts(3, addresses: 2), limit: 5, messages: 3, seed: seed)
            var works: UInt32 = 0
            for step in 0..<400 {
                func pick(_ set: some Collection<ConnectionID>) -> ConnectionID? {
                    let sorted = set.sorted { $0.value < $1.value }
                    return sorted.isEmpty ? nil : sorted[Int(random.next() % UInt64(sorted.count))]
                }
                switch random.next() % 12 {
                case 0, 1: walk.ready += Int(random.next() % 20)
                case 2: walk.pump()
                case 3, 4: if let id = pick(walk.connecting.keys) { walk.greet(id) }
                case 5:
                    if let id = pick(walk.connecting.keys) {
                        let failures: [ConnectFailure] = [
                            .unreachable(reply(0, .connect)), .refused(reply(421)), .refused(reply(521)),
                            .ownFault(reply(0, .connect)),
                        ]
                        walk.fail(id, failures[Int(random.next() % 4)])
                    }
                case 6, 7: if let id = pick(walk.busy) { walk.finish(id) }
                case 8:
                    if let id = pick(walk.busy) {
                        walk.finish(id, reusable: false, trouble: reply(421, .mail), fresh: random.next() % 2 == 0)
                        if random.next() % 2 == 0 {
                            works += 1
                            walk.send(.resend(WorkID(value: works), avoiding: []))
                        }
                    }
                case 9:
                    if let id = pick(walk.idle.union(walk.quitting)) {
                        walk.idle.remove(id)
                        walk.quitting.remove(id)
                        walk.send(.closed(id))
                    }
                case 10:
                    walk.now = walk.now + .seconds(Int64(random.next() % 40))
                    walk.send(.tick)
                default: walk.grants = random.next() % 4 != 0
                }
                let open = walk.state.openConnections
                #expect(walk.permits == open, "seed \(seed) step \(step)")
                #expect(walk.state.busyConnections == walk.busy.count, "seed \(seed) step \(step)")
                #expect(
                    open == walk.connecting.count + walk.busy.count + walk.idle.count + walk.quitting.count,
                    "seed \(seed) step \(step)")
            }
            // Every resend came to exactly one end, or still connects.
            let ended = walk.begun.count + walk.gaveUp.count + walk.gaveBack.count
            #expect(ended <= Int(works) && Int(works) - ended <= walk.connecting.count, "seed \(seed)")
            #expect(Set(walk.begun + walk.gaveUp + walk.gaveBack).count == ended, "seed \(seed)")
            // Resends may go one over the site's limit each until the permits say no; growth never does.
            #expect(walk.mostOpen <= 5 + Int(works), "seed \(seed)")
        }
    }
}

@Suite struct NodePermitsTests {
    @Test func limitOverrun() {
        let permits = NodePermits(connections: 3)
        let a: [UInt8] = [1]
        let b: [UInt8] = [2]
        #expect(permits.takeConnection(site: a, siteLimit: 2))
        #expect(permits.takeConnection(site: a, siteLimit: 2))
        #expect(!permits.takeConnection(site: a, siteLimit: 2))
        #expect(permits.claimWaiter(site: a))
        #expect(!permits.claimWaiter(site: a))
        #expect(permits.takeConnection(site: b, siteLimit: 2))
        #expect(!permits.takeConnection(site: b, siteLimit: 2))
        #expect(permits.claimWaiter(site: a))
        permits.returnConnection(site: a)
        #expect(permits.takeConnection(site: b, siteLimit: 2))
        permits.returnConnection(site: [9])
        #expect(permits.openConnections == 3)
    }

    @Test func rateOverrun() {
        let permits = NodePermits(connections: 3)
        var now = Instant(secondsSinceEpoch: 1)
        #expect(permits.takeMessages(site: [1], perSecond: nil, wanted: 9, now: now) == 9)
        var sent = permits.takeMessages(site: [1], perSecond: 10, wanted: 100, now: now)
        #expect(sent == 10)
        for _ in 0..<100 {
            now = now + .milliseconds(100)
            sent += permits.takeMessages(site: [1], perSecond: 10, wanted: 100, now: now)
        }
        #expect(sent >= 109 && sent <= 110)
        #expect(permits.takeMessages(site: [2], perSecond: 0.5, wanted: 9, now: now) == 1)
        #expect(permits.takeMessages(site: [2], perSecond: 0.5, wanted: 9, now: now + .seconds(1)) == 0)
        #expect(permits.takeMessages(site: [2], perSecond: 0.5, wanted: 9, now: now + .seconds(2)) == 1)
    }
}
