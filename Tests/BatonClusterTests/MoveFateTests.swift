// What a source's key says of what was moved out of it, and that the control plane keeps it.
import BatonControlPlane
import BatonCore
import BatonModel
import BatonSpool
import Testing

@testable import BatonCluster

@Suite struct MoveFateTests {
    @Test func fateOfCopiesByTheSourcesKey() {
        let (one, two) = (CleaningRig.target, CleaningRig.next)
        func fate(_ epoch: UInt64 = 3, _ edit: (inout SegmentKey) -> Void) -> MoveFate {
            var key = CleaningRig.sourceKey
            key.drainEpoch = 3
            key.target = one
            edit(&key)
            return MoveFate(of: key, epoch: epoch, target: one)
        }
        #expect(fate { _ in } == .open)
        #expect(fate { $0.finish() } == .live)
        #expect(fate(2) { _ in } == .void, "the source was taken over")
        #expect(fate(2) { $0.finish() } == .void, "finished at a later epoch")
        #expect(fate { $0.targetVoid = true } == .void)
        #expect(
            fate {
                $0.targetVoid = true
                $0.finish()
            } == .void, "a source that drained itself after the move was given up")
        #expect(
            fate {
                $0.finish()
                $0.drainEpoch = 4
            } == .live, "a finished key that was taken over (10)")
        #expect(fate { $0.target = two } == .void, "moved elsewhere later")
        #expect(fate { $0.target = nil } == .void)
        #expect(
            fate {
                $0.finish()
                $0.target = nil
            } == .gone)
        #expect(MoveFate(of: nil, epoch: 3, target: one) == .gone)
    }

    @Test func voidMoveIsStillVoidBehindTheControlPlane() throws {
        var key = CleaningRig.sourceKey
        key.target = CleaningRig.target
        for void in [false, true] {
            key.targetVoid = void
            let paths = ClusterPaths(cluster: "c")
            let text = String(decoding: ClusterCodec.encode(key), as: UTF8.self)
            #expect(text.contains("targetVoid") == void)
            let entry = ControlEntry(
                key: paths.segment(key.id), value: ClusterCodec.encode(key), created: 1, modified: 5)
            #expect(ClusterCodec.segment(entry, in: paths) == key)
        }
    }
}
