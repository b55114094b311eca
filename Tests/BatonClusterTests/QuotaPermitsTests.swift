// Permits of the cluster in front of the node's: connections, messages of every second window, and who has to give up one.
import BatonCore
import BatonModel
import BatonPeer
import Synchronization
import Testing

@testable import BatonCluster

private final class Clock: TimeSource {
    let at = Mutex(Instant.epoch + .seconds(1_000))
    func now() -> Instant { at.withLock { $0 } }
    func pass(_ span: TimeSpan) { at.withLock { $0 = $0 + span } }
}

/// A node without a limit of its own but on all its connections.
private final class NodeLimit: PermitLeasing {
    struct State {
        var open = 0
        var limit = 1_000
    }
    let state = Mutex(State())
    func takeConnection(site: [UInt8], siteLimit: Int) -> Bool {
        state.withLock { state in
            guard state.open < state.limit else { return false }
            state.open += 1
            return true
        }
    }
    func returnConnection(site: [UInt8]) { state.withLock { $0.open -= 1 } }
    func takeMessages(site: [UInt8], perSecond: Double?, wanted: Int, now: Instant) -> Int { wanted }
}

private final class Wire: QuotaTransport {
    struct State {
        var sent: [(message: Quota, to: NodeID)] = []
        var proposals: [QuotaRoster] = []
    }
    let state = Mutex(State())
    func send(_ message: Quota, to node: NodeID) { state.withLock { $0.sent.append((message, node)) } }
    func propose(_ roster: QuotaRoster) { state.withLock { $0.proposals.append(roster) } }
    func take() -> State {
        state.withLock { state in
            defer { state = State() }
            return state
        }
    }
}

private final class Cluster {
    let clock = Clock()
    let wires: [Wire]
    let nodes: [NodeLimit]
    let permits: [ClusterPermits]
    var roster: QuotaRoster
    var cut: Set<Int> = []
    static let site = Array("site".utf8)

    init(_ count: Int, rate: UInt64? = nil) {
        let clock = clock
        wires = (0..<count).map { _ in Wire() }
        nodes = (0..<count).map { _ in NodeLimit() }
        var made: [ClusterPermits] = []
        for index in 0..<count {
            made.append(
                ClusterPermits(
                    own: NodeID(value: UInt64(index) + 1), seed: UInt64(index) * 1_000, node: nodes[index],
                    transport: wires[index], time: clock))
        }
        permits = made
        roster = QuotaRoster(
            sequence: 1, members: (0..<count).map { QuotaMember(node: NodeID(value: UInt64($0) + 1)) })
        var limits: [QuotaKey: UInt64] = [QuotaKey(site: Self.site, kind: .connections): 12]
        limits[QuotaKey(site: Self.site, kind: .rate)] = rate
        for permit in permits { permit.update(QuotaSettings(connections: 20, limits: limits)) }
    }

    /// 50 ms, with ticks, reads of the roster and all frames; a node that is cut off has none of these but ticks.
    func step() {
        clock.pass(.milliseconds(50))
        for index in permits.indices {
            permits[index].tick()
            if !cut.contains(index) { permits[index].update(roster, askedAt: clock.now()) }
        }
        for _ in 0..<4 {
            for index in permits.indices {
                let out = wires[index].take()
                if cut.contains(index) { continue }
                for proposal in out.proposals where proposal.sequence == roster.sequence + 1 { roster = proposal }
                for item in out.sent where !cut.contains(Int(item.to.value) - 1) {
                    permits[Int(item.to.value) - 1].received(item.message, from: NodeID(value: UInt64(index) + 1))
                }
            }
        }
    }

    func settle() { for _ in 0..<500 { step() } }
}

@Test func nodesTogetherOpenMoreThanTheSiteAllows() {
    let cluster = Cluster(4)
    cluster.settle()
    var open = [0, 0, 0, 0]
    for round in 0..<400 {
        for node in 0..<4 where round >= node * 50 {
            while cluster.permits[node].takeConnection(site: Cluster.site, siteLimit: 12) { open[node] += 1 }
        }
        cluster.step()
        for node in 0..<4 {
            // Idle ones are given up for those who wait, here or elsewhere.
            while open[node] > 0, cluster.permits[node].hasWaiters, cluster.permits[node].overdrawn > 0,
                cluster.permits[node].claimWaiter(site: Cluster.site)
            {
                cluster.permits[node].returnConnection(site: Cluster.site)
                open[node] -= 1
            }
        }
        // What is open beyond the shares has to be given up within the tick.
        #expect(open.reduce(0, +) <= 12, "round \(round): \(open)")
        if round == 49 { #expect(open[0] == 12, "alone it has them all: \(open)") }
    }
    #expect(open.allSatisfy { $0 >= 2 }, "\(open)")
    #expect(cluster.nodes.map { $0.state.withLock { $0.open } } == open)
}

@Test func statusHidesWhoHasWhatOfALimit() throws {
    let cluster = Cluster(3, rate: 36_000)
    cluster.settle()
    #expect(cluster.permits.allSatisfy { $0.parts(atMost: 10).isEmpty }, "no mail, no part")
    for _ in 0..<5 { _ = cluster.permits[1].takeConnection(site: Cluster.site, siteLimit: 12) }
    for _ in 0..<100 {
        _ = cluster.permits[1].takeMessages(site: Cluster.site, perSecond: 10, wanted: 5, now: cluster.clock.now())
        cluster.step()
    }
    let parts = cluster.permits[1].parts(atMost: 10)
    let connections = try #require(parts.first { $0.key.kind == .connections })
    #expect(connections.limit == 12 && connections.used > 0 && connections.share >= connections.used)
    #expect(connections.home == cluster.roster.home(of: Cluster.site))
    let rate = try #require(parts.first { $0.key.kind == .rate })
    #expect(rate.limit == 36_000 && rate.share > 12_000, "lent by those without demand")
    #expect(rate.used > 0 && rate.used <= 36_000)
    #expect(cluster.permits[1].parts(atMost: 1).count == 1)
}

@Test func nodeThatIsCutOffKeepsWhatItBorrowed() {
    let cluster = Cluster(4)
    cluster.settle()
    var open = 0
    for _ in 0..<100 {
        while cluster.permits[0].takeConnection(site: Cluster.site, siteLimit: 12) { open += 1 }
        cluster.step()
    }
    #expect(open == 12)
    cluster.cut = [0]
    for _ in 0..<120 { cluster.step() }
    #expect(cluster.permits[0].overdrawn == 9, "its floor of three is its own")
    #expect(cluster.permits[0].hasWaiters && cluster.permits[0].waitingSites == [Cluster.site])
    for _ in 0..<9 {
        #expect(cluster.permits[0].claimWaiter(site: Cluster.site))
        cluster.permits[0].returnConnection(site: Cluster.site)
    }
    cluster.step()
    #expect(cluster.permits[0].overdrawn == 0 && !cluster.permits[0].claimWaiter(site: Cluster.site))
}

/// All connections are busy: each one beyond the shares is told before its next transaction, before the share has ended.
@Test func busyConnectionsOutliveTheirShare() {
    let cluster = Cluster(4)
    cluster.settle()
    var open = 0
    for _ in 0..<100 {
        while cluster.permits[0].takeConnection(site: Cluster.site, siteLimit: 12) { open += 1 }
        #expect(!cluster.permits[0].claimSurplus(site: Cluster.site), "while they are renewed")
        cluster.step()
    }
    #expect(open == 12)
    cluster.cut = [0]
    var most = 0
    for _ in 0..<60 {
        cluster.step()
        most = max(most, cluster.permits[0].overdrawn)
        while cluster.permits[0].claimSurplus(site: Cluster.site) {
            cluster.permits[0].returnConnection(site: Cluster.site)
            open -= 1
        }
    }
    #expect(open == 3, "its floor of three is its own")
    #expect(most == 0)
    #expect(!cluster.permits[0].claimSurplus(site: Array("other".utf8)))
}

@Test func limitOfTheNodeIsForgotten() {
    let cluster = Cluster(1)
    cluster.settle()
    cluster.nodes[0].state.withLock { $0.limit = 2 }
    var taken = 0
    for _ in 0..<10 where cluster.permits[0].takeConnection(site: Cluster.site, siteLimit: 12) { taken += 1 }
    #expect(taken == 2)
    cluster.permits[0].returnConnection(site: Cluster.site)
    #expect(cluster.permits[0].takeConnection(site: Cluster.site, siteLimit: 12))
}

/// Three nodes that all want more than there is, then one, then two: in no window of a second more than the limit.
@Test(arguments: [UInt64(10), 3, 100])
func secondWithMoreMessagesThanTheRate(_ perSecond: UInt64) {
    let cluster = Cluster(3, rate: perSecond * 3_600)
    cluster.settle()
    var sent: [Int64] = []
    var random = SplitMix64(seed: perSecond)
    var byNode = [0, 0, 0]
    for round in 0..<2_400 {
        let phase = round / 400 % 4
        for node in 0..<3 where [[0, 1, 2], [1], [0, 2], [2, 1]][phase].contains(node) {
            if random.next() % 3 == 0 { continue }
            let got = cluster.permits[node].takeMessages(
                site: Cluster.site, perSecond: Double(perSecond), wanted: 1_000, now: cluster.clock.now())
            byNode[node] += got
            sent += Array(repeating: cluster.clock.now().nanoseconds, count: got)
        }
        cluster.step()
    }
    var first = 0
    for (index, at) in sent.enumerated() {
        while at - sent[first] >= 1_000_000_000 { first += 1 }
        #expect(index - first < Int(perSecond), "at \(at)")
        if index - first >= Int(perSecond) { break }
    }
    // And not much less: 120 s of which the moves take some.
    #expect(sent.count > Int(perSecond) * 70, "\(sent.count) of \(perSecond * 120), \(byNode)")
    #expect(byNode.allSatisfy { $0 > 0 })
}

@Test func rateBelowOneASecondIsSentByEachNode() {
    let cluster = Cluster(3, rate: 600)
    cluster.settle()
    var sent: [Int64] = []
    for _ in 0..<6_000 {
        for node in 0..<3 {
            let got = cluster.permits[node].takeMessages(
                site: Cluster.site, perSecond: 600.0 / 3_600, wanted: 5, now: cluster.clock.now())
            sent += Array(repeating: cluster.clock.now().nanoseconds, count: got)
        }
        cluster.step()
    }
    for (one, next) in zip(sent, sent.dropFirst()) { #expect(next - one >= 5_900_000_000) }
    #expect(sent.count > 15, "\(sent.count) of 50")
}

@Test func windowGivesABurstTwice() {
    var window = RateWindow(amount: 36_000, at: .epoch)
    #expect(window.take(100, at: .epoch + .milliseconds(1_100)) == 0, "its last holder may have sent a moment ago")
    var now = Instant.epoch + .seconds(2)
    #expect(window.take(100, at: now) == 10)
    now = now + .milliseconds(990)
    #expect(window.take(100, at: now) == 0)
    now = now + .milliseconds(70)
    #expect(window.take(4, at: now) == 4)
    window.set(amount: 18_000, at: now)
    #expect(window.take(100, at: now) == 1)
    window.set(amount: 36_000, at: now)
    #expect(window.take(100, at: now + .milliseconds(500)) == 0)
    #expect(window.take(100, at: now + .milliseconds(1_500)) == 10)
}
