// Which keys a recovery of a set-back registry writes, and which nodes it waits for (docs/decisions/0010).
import BatonCluster
import BatonControlPlane
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonNode

private func segment(_ index: UInt64) -> SegmentID {
    SegmentID(writer: NodeID(name: "n1"), incarnation: Incarnation(value: 5), index: index)
}

private func key(_ index: UInt64, _ change: (inout SegmentKey) -> Void = { _ in }) -> SegmentKey {
    let id = segment(index)
    var key = SegmentKey(
        id: id, ensemble: [EnsembleMember(node: id.writer, diskID: 1)],
        drainer: Drainer(node: id.writer, incarnation: id.incarnation))
    key.revision = 9
    change(&key)
    return key
}

private func merge(_ found: [(UInt64, epoch: UInt64)]) -> RegistryMerge {
    var merge = RegistryMerge()
    for (index, epoch) in found {
        merge.add(
            [CopyClaim(CopyOnDisk(id: segment(index), epoch: epoch, sealed: epoch, end: 4096), disk: 2)], of: "n2")
    }
    return merge
}

private func steps(
    _ merge: RegistryMerge, _ keys: [SegmentKey], live: Set<Drainer> = [], isSetBack: Bool
) -> [RegistryStep] {
    RegistryRebuild.steps(merge, over: keys, live: live, isSetBack: isSetBack)
}

@Test func keyOfAnEarlierDayStaysAfterARecovery() throws {
    // 0: as it was; 1: never seen by this registry; 2: finished in it; 3: sealed in it.
    let there = [key(0), key(2) { $0.state = .finished }, key(3) { $0.state = .sealed(at: 2048) }]
    let disks = merge([(0, epoch: 4), (1, epoch: 1), (2, epoch: 1), (3, epoch: 2)])
    let found = steps(disks, there, isSetBack: true)
    #expect(found.map(\.id) == [segment(0), segment(1), segment(3)])
    #expect(found.map(\.replaces) == [9, 0, 9])
    guard case .write(let first, _)? = found.first, case .write(let last, _)? = found.last else {
        return #expect(Bool(false), "no keys")
    }
    #expect(first.drainEpoch == 4 && first.ensemble == [EnsembleMember(node: NodeID(name: "n2"), diskID: 2)])
    #expect(first.state == .open)
    // Where it was cut is final: what stands behind it was refused.
    #expect(last.state == .sealed(at: 2048) && last.drainEpoch == 2)
    // Where nobody distrusts the registry, what is there is right.
    #expect(steps(disks, there, isSetBack: false).map(\.id) == [segment(1)])
}

@Test func segmentThatNoDiskHoldsIsWaitedForForEver() {
    let there = [key(0), key(1)]
    #expect(steps(merge([(1, epoch: 1)]), there, isSetBack: true).contains(.remove(segment(0), replaces: 9)))
    #expect(steps(merge([]), there, isSetBack: false).isEmpty, "a disk that is away is not an empty one")
}

@Test func segmentThatIsBeingRegisteredIsWrittenOver() {
    let writer = Drainer(node: NodeID(name: "n1"), incarnation: Incarnation(value: 5))
    #expect(steps(merge([(0, epoch: 1)]), [key(1)], live: [writer], isSetBack: true).isEmpty)
}

private func standing(_ mark: RegistryMark?, listed: (revision: Int64, recovery: UInt64)?) -> RegistryStanding {
    var trust = RegistryTrust(mark)
    if let listed {
        _ = trust.judge(
            listing: ControlHeader(store: 7, revision: listed.revision), recovery: listed.recovery, tally: 0,
            since: mark)
    }
    return RegistryStanding(trust)
}

@Test func registryIsRebuiltUnderANodeThatWorksByIt() {
    let seen = RegistryMark(store: 7, revision: 40, recovery: 2)
    var standings = RegistryStandings(recovery: 1)
    standings.add(standing(seen, listed: (20, 2)), of: "n1")
    standings.add(standing(RegistryMark(store: 7, revision: 15, recovery: 2), listed: (20, 2)), of: "n2")
    standings.add(standing(nil, listed: (20, 2)), of: "n3")
    #expect(standings.isSetBack && standings.recovery == 2)
    // One that has not looked yet is waited for; a new node without copies does no harm.
    standings.add(standing(nil, listed: nil), of: "n4")
    #expect(standings.unaware(["n1", "n2", "n4"]) == ["n2", "n4"])
    var content = RegistryStandings(recovery: 0)
    content.add(standing(seen, listed: (40, 2)), of: "n1")
    #expect(!content.isSetBack && content.unaware(["n1"]).isEmpty)
}

@Test func nodeThatDoesNotTellItsStandingIsLeftOut() {
    let seen = RegistryMark(store: .max, revision: 40, recovery: 2)
    let told = standing(seen, listed: (20, 2))
    var standings = RegistryStandings(recovery: 0)
    let missing = standings.gather(
        PeerAnswers(
            answers: [
                PeerAnswer(node: "n2", status: 200, json: ClusterCodec.json(told)),
                PeerAnswer(node: "n3", status: 404, json: []), PeerAnswer(node: "n4", status: 200, json: [1]),
            ], missing: ["n5"]), of: ["n2", "n3", "n6"])
    #expect(missing == ["n3", "n4", "n5", "n6"])
    #expect(standings.isSetBack && standings.recovery == 2)
}
