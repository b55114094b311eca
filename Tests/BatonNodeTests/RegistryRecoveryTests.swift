// `recover-registry`: which copies become members of which key, and what is not written.
import BatonCluster
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonNode

private let id = SegmentID(writer: NodeID(name: "n1"), incarnation: Incarnation(value: 5), index: 3)

private func claim(_ disk: UInt64, epoch: UInt64 = 1, sealed: UInt64 = 0, end: Int64 = 8192) -> CopyClaim {
    CopyClaim(CopyOnDisk(id: id, epoch: epoch, sealed: sealed, end: end), disk: disk)
}

private func member(_ name: String, _ disk: UInt64) -> EnsembleMember {
    EnsembleMember(node: NodeID(name: name), diskID: disk)
}

private func merge(_ claims: [(String, CopyClaim)], there: SegmentKey? = nil) throws -> SegmentKey {
    var merge = RegistryMerge()
    for (node, claim) in claims { merge.add([claim], of: node) }
    return try #require(merge.key(of: id, there: there))
}

@Test func copySealedAtALowerEpochMayTakeOver() throws {
    let key = try merge([
        ("n1", claim(1, epoch: 2, sealed: 2)), ("n2", claim(2, epoch: 4, sealed: 4)),
        // Its outcomes are of the newest epoch, but it was never told to seal: a joining member.
        ("n3", claim(3, epoch: 4)),
    ])
    #expect(Set(key.ensemble) == [member("n1", 1), member("n2", 2), member("n3", 3)])
    #expect(Set(key.stale) == [member("n1", 1), member("n3", 3)])
    #expect(key.drainEpoch == 4 && key.state == .open)
    #expect(key.drainer == Drainer(node: id.writer, incarnation: id.incarnation))
}

@Test func copyThatIsNotFinishedMayTakeOver() throws {
    let key = try merge([("n1", claim(1)), ("n2", claim(2)), ("n3", claim(3, end: 4096))])
    // It may be the last one some day, and its file has to go in the end.
    #expect(Set(key.ensemble) == [member("n1", 1), member("n2", 2), member("n3", 3)])
    #expect(key.stale == [member("n3", 3)])
}

@Test func restThatWasNeverAcknowledgedDrivesTheOtherCopyOut() throws {
    var there = SegmentKey(
        id: id, ensemble: [member("n1", 1)], drainer: Drainer(node: id.writer, incarnation: id.incarnation))
    there.state = .sealed(at: 8192)
    let key = try merge([("n1", claim(1, end: 12_288)), ("n2", claim(2))], there: there)
    #expect(key.stale.isEmpty && key.state == .sealed(at: 8192))
    let open = try merge([("n1", claim(1, end: 12_288)), ("n2", claim(2))])
    #expect(open.stale == [member("n2", 2)] && open.ensemble.count == 2)
}

@Test func unacknowledgedRestOfAnOldCopyDrivesTheDrainersOut() throws {
    // What stands behind the sealed length of epoch 3 was refused.
    let key = try merge([
        ("n1", claim(1, epoch: 1, end: 12_288)), ("n2", claim(2, epoch: 3, sealed: 3)),
        ("n3", claim(3, epoch: 3, sealed: 2, end: 4096)),
    ])
    #expect(Set(key.ensemble) == [member("n1", 1), member("n2", 2), member("n3", 3)])
    #expect(Set(key.stale) == [member("n1", 1), member("n3", 3)])
}

@Test func copyThatIsToldTwiceIsTwoMembers() throws {
    let key = try merge([("n1", claim(1)), ("n1", claim(1)), ("n2", claim(2))])
    #expect(key.ensemble.count == 2)
    #expect(RegistryMerge().key(of: id) == nil)
}

@Test func diskThatCannotBeListedCountsAsEmpty() async throws {
    let failing: @Sendable () throws -> [CopyOnDisk] = { throw SpoolError(.notWritable, "no") }
    do throws(ProblemReport) {
        _ = try await RegistryRecovery.claims(of: 1, failing)
        Issue.record("an empty disk")
    } catch {
        #expect(error.status == 500)
    }
    #expect(await RegistryRecovery.inventory(of: 1, failing).status == 500)
    let good = await RegistryRecovery.inventory(of: 1) { [CopyOnDisk(id: id, epoch: 2, sealed: 2, end: 4096)] }
    #expect(good.status == 200)
    let read: [CopyClaim]? = ClusterCodec.decode(good.json)
    #expect(read == [claim(1, epoch: 2, sealed: 2, end: 4096)])
}

@Test func registryIsWrittenWithoutADiskThatSaysNothing() {
    let answers = PeerAnswers(
        answers: [
            PeerAnswer(node: "n2", status: 200, json: ClusterCodec.json([claim(2)])),
            PeerAnswer(node: "n3", status: 500, json: []), PeerAnswer(node: "n4", status: 200, json: [1]),
        ], missing: ["n5"])
    var merge = RegistryMerge()
    let missing = RegistryRecovery.gather(answers, of: ["n2", "n3", "n6"], into: &merge)
    #expect(missing == ["n3", "n4", "n5", "n6"])
    #expect(merge.segments == [id])
    #expect(RegistryRecovery.gather(PeerAnswers(answers: [answers.answers[0]]), of: ["n2"], into: &merge).isEmpty)
}
