// A node's registration: announcements that get no answer, and what others do between its reads and its writes.
import BatonControlPlane
import BatonCore
import BatonModel
import BatonRuntime
import BatonSpool
import BatonTestKit
import Logging
import Synchronization
import Testing

@testable import BatonCluster

/// Fails reads of keys as it is told, and does something before a change.
private final class TroubledPlane: ControlPlane {
    let inner = InMemoryControlPlane(seed: 7, time: SimulatedTime())
    let failedGets = Mutex(0)
    let beforeCommit = Mutex<(@Sendable (ControlTransaction) -> Bool)?>(nil)

    func list(_ prefix: ControlKey, at revision: ControlRevision?, answer: @escaping Answer<ControlListing>) {
        inner.list(prefix, at: revision, answer: answer)
    }

    func get(_ key: ControlKey, answer: @escaping Answer<ControlListing>) {
        let fails = failedGets.withLock { left in
            defer { left = max(0, left - 1) }
            return left > 0
        }
        if fails { return answer(.failure(.refused(.unavailable, "no member answers"))) }
        inner.get(key, answer: answer)
    }

    func commit(_ transaction: ControlTransaction, answer: @escaping Answer<ControlCommit>) {
        if let before = beforeCommit.withLock({ $0 }), before(transaction) { beforeCommit.withLock { $0 = nil } }
        inner.commit(transaction, answer: answer)
    }

    func grantLease(_ ttl: TimeSpan, answer: @escaping Answer<ControlLease>) { inner.grantLease(ttl, answer: answer) }
    func keepAlive(_ lease: ControlLeaseID, within limit: TimeSpan, answer: @escaping Answer<TimeSpan?>) {
        inner.keepAlive(lease, within: limit, answer: answer)
    }
    func revoke(_ lease: ControlLeaseID, answer: @escaping Answer<Void>) { inner.revoke(lease, answer: answer) }
    func watch(
        _ prefix: ControlKey, after: ControlRevision?, resync: TimeSpan,
        receive: @escaping @Sendable (ControlWatchEvent) -> Void
    ) -> (any ControlWatch)? { inner.watch(prefix, after: after, resync: resync, receive: receive) }
    func stop() { inner.stop() }
}

@Suite struct RegistrationTests {
    private let plane = TroubledPlane()
    private let paths = ClusterPaths(cluster: "t")
    private let disk: UInt64 = 7
    private let registration: Registration

    init() {
        let run = Drainer(node: NodeID(name: "n1"), incarnation: Incarnation(value: 5))
        registration = Registration(
            agent: ControlAgent(plane, paths: paths, me: run),
            entry: NodeEntry(
                id: "n1", incarnation: run.incarnation, disk: disk, address: "127.0.0.1:1", failureDomain: "",
                weight: 1,
                version: "1", state: .joining), disk: disk, lease: .seconds(10), time: SystemTimeSource(),
            logger: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }), pause: .milliseconds(1))
    }

    private func register() async throws { try await registration.run(registered: {}, lost: {}) }

    private func node() -> (state: NodeEntry.State?, lease: ControlLeaseID?) {
        let path = paths.node("n1")
        let entry = plane.inner.snapshot.entries[path]
        let value: NodeEntry? = entry.flatMap { ClusterCodec.decode($0.value) }
        return (value?.state, entry?.lease)
    }

    // MARK: Announcements

    @Test func announcementIsLostAfterOneTimeout() async throws {
        try await register()
        #expect(node().state == .joining)
        plane.failedGets.withLock { $0 = 7 }
        await registration.announce(.serving)
        #expect(node().state == .serving)
        // A change whose answer is lost, or that did not arrive, is no reason to give up either.
        plane.inner.injectNext(.lostRequest)
        await registration.announce(.draining)
        #expect(node().state == .draining)
        plane.inner.injectNext(.lostAnswer)
        await registration.announce(.drained)
        #expect(node().state == .drained)
        await registration.stop(forGood: false)
    }

    @Test(.timeLimit(.minutes(1))) func announcementWithoutEndHoldsADrainUp() async throws {
        try await register()
        plane.failedGets.withLock { $0 = .max }
        await registration.announce(.drained, within: .milliseconds(20))
        #expect(node().state == .joining)
        await registration.stop(forGood: true)
        #expect(node().state == nil)
    }

    @Test(.timeLimit(.minutes(1))) func announcementGoesOnBehindTheStop() async throws {
        try await register()
        plane.failedGets.withLock { $0 = .max }
        async let announced: Void = registration.announce(.serving)
        await registration.stop(forGood: false)
        await announced
    }

    @Test(.timeLimit(.minutes(1))) func announcementGoesOnWithoutALease() async throws {
        try await register()
        try await plane.revoke(try #require(node().lease))
        await registration.announce(.serving)
        // Of another registration nothing is said either.
        let other = try await plane.grantLease(.seconds(10))
        let put = ControlWrite.put(paths.node("n1"), [], lease: other.id)
        _ = try await plane.commit(ControlTransaction(if: [], [put]))
        await registration.announce(.draining)
        #expect(node().state == nil && node().lease == other.id)
        await registration.stop(forGood: false)
    }

    @Test func lateAnnouncementUndoesADrain() async throws {
        try await register()
        plane.failedGets.withLock { $0 = 3 }
        async let serving: Void = registration.announce(.serving)
        await registration.announce(.draining)
        await serving
        #expect(node().state == .draining)
        await registration.announce(.serving)
        #expect(node().state == .draining)
        await registration.stop(forGood: false)
    }

    // MARK: Declared lost

    /// What `baton cluster forget` writes.
    private func forget() -> ControlTransaction {
        ControlTransaction(
            if: [.absent(paths.node("n1"))],
            [
                .delete(paths.roster("n1")),
                .put(paths.forgotten("n1", disk: disk), ClusterCodec.json(RosterEntry(id: "n1", disk: disk))),
            ])
    }

    private var isForgotten: Bool { plane.inner.snapshot.entries[paths.forgotten("n1", disk: disk)] != nil }

    /// A segment that names this disk: with it, a disk that was declared lost may not come back.
    private func putSegment() async throws {
        let id = SegmentID(writer: NodeID(name: "n2"), incarnation: Incarnation(value: 5), index: 3)
        let key = SegmentKey(
            id: id, ensemble: [EnsembleMember(node: NodeID(name: "n1"), diskID: disk)], appendEpoch: 1,
            state: .sealed(at: 8192), drainer: Drainer(node: id.writer, incarnation: id.incarnation), drainEpoch: 1)
        let put = ControlWrite.put(paths.segment(id), ClusterCodec.encode(key))
        _ = try await plane.commit(ControlTransaction(if: [], [put]))
    }

    @Test func forgetBetweenReadAndRegistrationIsLost() async throws {
        try await putSegment()
        let (inner, node, declared) = (plane.inner, paths.node("n1"), forget())
        plane.beforeCommit.withLock { before in
            before = { transaction in
                guard transaction.writes.contains(where: { $0.key == node }) else { return false }
                inner.commit(declared) { _ in }
                return true
            }
        }
        await #expect(throws: RegistrationRefusal.self) { try await register() }
        #expect(isForgotten && self.node().state == nil)
        await registration.stop(forGood: false)
    }

    @Test func forgottenDiskWithoutSegmentsNeverComesBack() async throws {
        _ = try await plane.commit(forget())
        try await register()
        #expect(!isForgotten && node().state == .joining)
        await registration.stop(forGood: false)
    }
}
