// The window of unsettled dots, the writer's side of replication, and keys as JSON.
import BatonControlPlane
import BatonCore
import BatonModel
import BatonPeer
import BatonSpool
import BatonTestKit
import Logging
import NIOCore
import Synchronization
import Testing

@testable import BatonCluster

private let start = Instant(secondsSinceEpoch: 1_000)
private let site = Array("a.test".utf8)

/// Once such a member is stale, what is unsettled because of it is settled by the others, or by the own disk (PROTOCOL P3).
@Test func stopEndsBeforeAMemberThatTakesNothingIsStale() {
    let timing = TakeoverTiming()
    let stale = timing.behind + timing.silence + timing.listSoon
    #expect(DriverLimits.settleWait >= stale)
}

@Suite struct DotPermissionTests {
    private func ref(_ segment: UInt32) -> StoredMessageRef { StoredMessageRef(segment: segment, record: 0) }

    @Test func dotWithoutPromiseIsPermitted() {
        let permission = DotPermission()
        #expect(!permission.mayDot(ref(1), at: start))
        permission.permit(1, until: start + .seconds(1))
        #expect(permission.mayDot(ref(1), at: start))
        #expect(!permission.mayDot(ref(1), at: start + .seconds(1)))
        #expect(!permission.mayDot(ref(2), at: start))
        permission.permit(1, until: nil)
        #expect(!permission.mayDot(ref(1), at: start))
    }

    @Test func mailThatWasMovedIsSentOnTheOldPlacesPromises() {
        let permission = DotPermission()
        permission.permit(1, until: start + .seconds(100))
        permission.permit(2, until: start + .seconds(1))
        permission.permit(3, until: start + .seconds(2))
        permission.moved(1, to: 2)
        #expect(permission.mayDot(ref(1), at: start))
        #expect(!permission.mayDot(ref(1), at: start + .seconds(1)))
        // And on, with what it brought along.
        permission.moved(2, to: 3)
        permission.forget(1)
        permission.forget(2)
        #expect(permission.mayDot(ref(1), at: start + .seconds(1)))
        // Its segment is gone: nobody promises for it.
        permission.forget(3)
        #expect(!permission.mayDot(ref(1), at: start) && !permission.mayDot(ref(2), at: start))
    }

    @Test func placesOfMovedMailAreFreeWhenTheirOutcomesAreSettledInTheNewPlace() {
        let permission = DotPermission()
        for _ in 0..<3 { #expect(permission.reserve(site: site, at: start)) }
        permission.ended(ref(1), site: site, outcomes: 1, at: start)
        permission.moved(1, to: 2)
        permission.ended(ref(1), site: site, outcomes: 1, at: start)
        permission.ended(ref(2), site: site, outcomes: 1, at: start)
        #expect(permission.taken == 3)
        permission.settled(2, outcomes: 3)
        #expect(permission.taken == 0)
    }

    @Test func moreThanTheWindowOfOneSiteIsOut() {
        let permission = DotPermission()
        for _ in 0..<WindowLimits.site { #expect(permission.reserve(site: site, at: start)) }
        #expect(!permission.reserve(site: site, at: start))
        #expect(permission.reserve(site: Array("b.test".utf8), at: start))
        permission.ended(ref(1), site: site, outcomes: 0, at: start)
        #expect(permission.reserve(site: site, at: start))
    }

    @Test func moreThanTheWindowOfTheNodeIsOut() {
        let permission = DotPermission()
        for index in 0..<WindowLimits.node { #expect(permission.reserve(site: Array("\(index)".utf8), at: start)) }
        #expect(!permission.reserve(site: site, at: start))
    }

    @Test func placeIsFreeBeforeItsOutcomeIsSettled() {
        let permission = DotPermission()
        let woken = Mutex(0)
        permission.onRoom { woken.withLock { $0 += 1 } }
        for _ in 0..<WindowLimits.site { #expect(permission.reserve(site: site, at: start)) }
        permission.ended(ref(7), site: site, outcomes: 3, at: start)
        #expect(!permission.reserve(site: site, at: start))
        permission.settled(7, outcomes: 2)
        #expect(!permission.reserve(site: site, at: start))
        #expect(woken.withLock { $0 } == 0)
        permission.settled(7, outcomes: 1)
        #expect(woken.withLock { $0 } == 1)
        #expect(permission.reserve(site: site, at: start))
    }

    @Test func outcomeThatIsNeverSettledKeepsItsPlaceForEver() {
        let permission = DotPermission()
        #expect(permission.reserve(site: site, at: start))
        permission.ended(ref(7), site: site, outcomes: 1, at: start)
        permission.tick(at: start + WindowLimits.placeLife - .milliseconds(1))
        #expect(permission.taken == 1)
        permission.tick(at: start + WindowLimits.placeLife)
        #expect(permission.taken == 0)
        #expect(permission.reserve(site: site, at: start))
        permission.ended(ref(8), site: site, outcomes: 1, at: start)
        permission.forget(8)
        #expect(permission.taken == 0)
    }
}

private final class FakePeers: PeerSending {
    struct Sent {
        var node: NodeID
        var message: PeerMessage
    }

    let sent = Mutex<[Sent]>([])
    let refuses = Mutex<Set<NodeID>>([])
    let answer = Mutex<(@Sendable (NodeID, PeerMessage) -> Void)?>(nil)

    func send(_ messages: [PeerMessage], to node: NodeID) -> Bool {
        guard !refuses.withLock({ $0.contains(node) }) else { return false }
        sent.withLock { sent in for message in messages { sent.append(Sent(node: node, message: message)) } }
        if let answer = answer.withLock({ $0 }) { for message in messages { answer(node, message) } }
        return true
    }
}

@Suite struct ReplicatorTests {
    private let peers = FakePeers()
    private let time = SimulatedTime()
    private let lost = Lost()

    private final class Lost: Sendable {
        let segments = Mutex<[SegmentID]>([])
    }

    private static func member(_ name: String) -> EnsembleMember { EnsembleMember(node: NodeID(name: name), diskID: 1) }

    private static func segment(_ index: UInt64) -> SegmentID {
        SegmentID(writer: NodeID(name: "n1"), incarnation: Incarnation(value: 5), index: index)
    }

    private func make(copies: Int = 2, domains: [String: String] = ["n2": "", "n3": ""]) -> Replicator {
        let lost = lost
        let replicator = Replicator(
            peers: peers, copies: copies, failureDomain: "rack1", segmentSize: 1 << 20, time: time,
            logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        ) { id, _ in lost.segments.withLock { $0.append(id) } }
        replicator.update(
            candidates: domains.sorted { $0.key < $1.key }.map {
                BackupCandidate(member: Self.member($0.key), failureDomain: $0.value)
            })
        for name in domains.keys { replicator.connected(NodeID(name: name)) }
        peers.answer.withLock { answer in
            answer = { node, message in
                guard case .create(let create) = message else { return }
                replicator.created(
                    Created(
                        segment: create.segment, epoch: 1, incarnation: Incarnation(value: 1), disk: 1, status: .created
                    ),
                    from: node)
            }
        }
        return replicator
    }

    @Test func oneCopyIsTakenForTwo() {
        #expect(make(domains: [:]).prepare(Self.segment(0)) == nil)
        #expect(make(copies: 3, domains: ["n2": ""]).prepare(Self.segment(0)) == nil)
        #expect(make(copies: 1, domains: [:]).prepare(Self.segment(0)) == [])
        let away = make(domains: ["n2": ""])
        away.disconnected(NodeID(name: "n2"))
        #expect(away.prepare(Self.segment(0)) == nil)
    }

    @Test func segmentsInARowHaveOneBackup() throws {
        let replicator = make()
        let first = try #require(replicator.prepare(Self.segment(0)))
        let second = try #require(replicator.prepare(Self.segment(1)))
        #expect(first != second)
    }

    @Test func copiesLieInOneFailureDomain() {
        let replicator = make(domains: ["n2": "rack1", "n3": "rack2"])
        for index in UInt64(0)..<4 { #expect(replicator.prepare(Self.segment(index)) == [Self.member("n3")]) }
    }

    @Test func silentBackupHoldsMailUp() {
        let replicator = make(domains: ["n2": ""])
        _ = replicator.prepare(Self.segment(0))
        replicator.send(ByteBuffer(repeating: 1, count: 4096), of: Self.segment(0), at: 0, acked: 0)
        time.advance(by: .milliseconds(799))
        replicator.tick(at: time.now())
        #expect(lost.segments.withLock { $0.isEmpty })
        time.advance(by: .milliseconds(1))
        replicator.tick(at: time.now())
        #expect(lost.segments.withLock { $0 } == [Self.segment(0)])
    }

    @Test func backupThatAnswersIsGivenUp() {
        let replicator = make(domains: ["n2": ""])
        _ = replicator.prepare(Self.segment(0))
        replicator.send(ByteBuffer(repeating: 1, count: 4096), of: Self.segment(0), at: 0, acked: 0)
        let answer = Durable(
            segment: Self.segment(0), epoch: 1, upTo: 4096, incarnation: Incarnation(value: 1), status: .durable)
        #expect(replicator.durable(answer, from: NodeID(name: "n3")) == nil)
        #expect(replicator.durable(answer, from: NodeID(name: "n2")) == Self.member("n2"))
        time.advance(by: .seconds(10))
        replicator.tick(at: time.now())
        #expect(lost.segments.withLock { $0.isEmpty })
    }

    @Test func refusalOfABackupIsNotHeard() {
        for status in [Durable.Status.noRoom, .failed] {
            let replicator = make(domains: ["n2": ""])
            _ = replicator.prepare(Self.segment(0))
            let answer = Durable(
                segment: Self.segment(0), epoch: 1, upTo: 0, incarnation: Incarnation(value: 1), status: status)
            #expect(replicator.durable(answer, from: NodeID(name: "n2")) == nil)
        }
        #expect(lost.segments.withLock { $0.count } == 2)
    }

    @Test func chunkThatDidNotLeaveCountsAsSent() {
        let replicator = make(domains: ["n2": ""])
        _ = replicator.prepare(Self.segment(0))
        _ = peers.refuses.withLock { $0.insert(NodeID(name: "n2")) }
        replicator.send(ByteBuffer(repeating: 1, count: 4096), of: Self.segment(0), at: 0, acked: 0)
        replicator.tick(at: time.now())
        #expect(lost.segments.withLock { $0 } == [Self.segment(0)])
    }
}

@Suite struct ClusterKeyTests {
    private let paths = ClusterPaths(cluster: "t")

    private func key() -> SegmentKey {
        let id = SegmentID(writer: NodeID(value: .max), incarnation: Incarnation(value: 1 << 63), index: 7)
        func member(_ value: UInt64) -> EnsembleMember {
            EnsembleMember(node: NodeID(value: value), diskID: .max - value)
        }
        var key = SegmentKey(
            id: id, ensemble: [member(1), member(2)], appendEpoch: 3, state: .sealed(at: 8192),
            drainer: Drainer(node: NodeID(value: 9), incarnation: Incarnation(value: .max - 1)), drainEpoch: 4)
        key.stale = [member(2)]
        key.joining = member(5)
        key.former = [member(6)]
        key.target = SegmentID(writer: NodeID(value: 1), incarnation: Incarnation(value: 2), index: 3)
        key.revision = 44
        return key
    }

    private func entry(_ value: [UInt8], _ id: SegmentID) -> ControlEntry {
        ControlEntry(key: paths.segment(id), value: value, created: 1, modified: 44)
    }

    @Test func keyComesBackAltered() {
        var open = key()
        open.state = .open
        var finished = key()
        finished.finish()
        for wanted in [key(), open, finished] {
            #expect(ClusterCodec.segment(entry(ClusterCodec.encode(wanted), wanted.id), in: paths) == wanted)
        }
    }

    @Test func garbageIsTakenForAKey() {
        let good = ClusterCodec.encode(key())
        for cut in stride(from: 0, to: good.count, by: 7) {
            #expect(ClusterCodec.segment(entry(Array(good.prefix(cut)), key().id), in: paths) == nil)
        }
        var random = SplitMix64(seed: 4)
        for _ in 0..<2_000 {
            var bytes = good
            bytes[Int(random.next() % UInt64(bytes.count))] = UInt8(truncatingIfNeeded: random.next())
            _ = ClusterCodec.segment(entry(bytes, key().id), in: paths)
        }
        let foreign = ControlEntry(key: ControlKey("/baton/t/segments/zz/1/2"), value: good, created: 1, modified: 2)
        #expect(ClusterCodec.segment(foreign, in: paths) == nil)
    }
}

@Suite struct GatheredOutcomesTests {
    private let id = SegmentID(writer: NodeID(name: "n1"), incarnation: Incarnation(value: 1), index: 0)
    private let member = EnsembleMember(node: NodeID(name: "n2"), diskID: 2)

    @Test func secondTryOfAnAdoptionHasNoOutcomesOfOthers() {
        var gathered = GatheredOutcomes()
        gathered.begin(id, epoch: 2)
        gathered.add(ByteBuffer(string: "a"), of: member, id, epoch: 2)
        #expect(gathered.entries(id, epoch: 2).count == 1)
        gathered.begin(id, epoch: 2)
        gathered.keep { _, epoch in epoch == 2 }
        #expect(gathered.entries(id, epoch: 2).count == 1)
        // Fetched again, it takes the place of what was there.
        gathered.add(ByteBuffer(string: "ab"), of: member, id, epoch: 2)
        #expect(gathered.entries(id, epoch: 2) == [ByteBuffer(string: "ab")])
    }

    @Test func outcomesOfAnotherEpochAreTaken() {
        var gathered = GatheredOutcomes()
        gathered.begin(id, epoch: 2)
        gathered.add(ByteBuffer(string: "a"), of: member, id, epoch: 1)
        #expect(gathered.entries(id, epoch: 2).isEmpty)
        gathered.add(ByteBuffer(string: "a"), of: member, id, epoch: 2)
        gathered.begin(id, epoch: 3)
        #expect(gathered.entries(id, epoch: 3).isEmpty)
        #expect(gathered.entries(id, epoch: 2).isEmpty)
        gathered.begin(id, epoch: 3)
        gathered.keep { _, _ in false }
        gathered.add(ByteBuffer(string: "a"), of: member, id, epoch: 3)
        #expect(gathered.entries(id, epoch: 3).isEmpty)
    }
}
