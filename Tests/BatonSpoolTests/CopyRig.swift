// A copy store on a memory disk, and real chunks to give to it.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import NIOCore
import Synchronization

@testable import BatonSpool

/// A copy store on a memory disk, run by hand.
final class CopyRig: CopyNews, Sendable {
    let disk: MemoryDisk
    let directory: DataDirectory
    let store: CopyStore
    let synced = Mutex<[Int64]>([])

    init(on disk: MemoryDisk) throws {
        self.disk = disk
        var random = SplitMix64(seed: 9)
        directory = try DataDirectory.open(path: "copies", disk: disk, cluster: "c", nodeName: "n2") { random.next() }
        let relay = Relay()
        store = CopyStore(
            directory: directory, configuration: Rig.small, news: relay, time: SimulatedTime(), logger: quietLogger,
            threading: .manual)
        self.relay = relay
        relay.rig.withLock { $0 = self }
    }

    private final class Relay: CopyNews {
        struct Weak: Sendable { weak var rig: CopyRig? }
        let rig = Mutex<CopyRig?>(nil)
        func logSynced(_ id: SegmentID, epoch: UInt64, memory: Int64, synced: Int64) {
            rig.withLock { $0 }?.logSynced(id, epoch: epoch, memory: memory, synced: synced)
        }
    }
    private let relay: Relay

    /// The process ends in order.
    func stop() {
        store.stop()
        directory.close()
    }

    func logSynced(_ id: SegmentID, epoch: UInt64, memory: Int64, synced: Int64) {
        self.synced.withLock { $0.append(synced) }
    }

    private func ask<T: Sendable>(_ begin: (@escaping @Sendable (T) -> Void) -> Void) -> T? {
        let box = Mutex<T?>(nil)
        let shared = Box(box: Mutex<T?>(nil))
        begin { answer in shared.box.withLock { $0 = answer } }
        store.pump()
        return shared.box.withLock { $0 } ?? box.withLock { $0 }
    }

    private final class Box<T: Sendable>: Sendable {
        let box: Mutex<T?>
        init(box: consuming Mutex<T?>) { self.box = box }
    }

    func create(_ id: SegmentID) -> CopyCreation? { ask { store.create(id, reserve: 65_536, done: $0) } }
    func append(_ id: SegmentID, at offset: Int64, _ chunk: ByteBuffer) -> CopyAppend? {
        ask { store.append(id, at: offset, chunk, done: $0) }
    }
    func record(_ id: SegmentID, _ epoch: UInt64, from offset: Int64, _ octets: ByteBuffer) -> CopyLog? {
        ask { store.recordOutcomes(id, epoch: epoch, from: offset, octets, done: $0) }
    }
    func seal(_ id: SegmentID, _ epoch: UInt64) -> CopySeal? { ask { store.seal(id, epoch: epoch, done: $0) } }
    /// The copy's length, if it could be sealed.
    func end(_ id: SegmentID, sealedAt epoch: UInt64) -> Int64? {
        if case .sealed(let report)? = seal(id, epoch) { report.end } else { nil }
    }
    func end(of id: SegmentID) -> Int64? { chunks(id).map { Int64($0.readableBytes) } }
    func unlink(_ id: SegmentID) -> Bool? { ask { store.unlink(id, done: $0) } }
    func restore(_ id: SegmentID, _ purpose: RestorePurpose, at offset: Int64, _ octets: ByteBuffer) -> Bool? {
        ask { store.restore(id, purpose, at: offset, octets, done: $0) }
    }
    func chunks(_ id: SegmentID) -> ByteBuffer? {
        guard case .octets(let octets, _)? = ask({ store.read(id, .chunks, from: 0, atMost: 1 << 20, done: $0) }) else {
            return nil
        }
        return octets
    }
}

/// What a lane sends to its backup.
final class LaneChunks: ChunkReplicating {
    struct Sent: Sendable {
        let segment: SegmentID
        let offset: Int64
        let chunk: ByteBuffer
    }

    let sent = Mutex<[Sent]>([])

    func prepare(_ segment: SegmentID) -> [EnsembleMember]? {
        [EnsembleMember(node: NodeID(name: "n2"), diskID: 78)]
    }

    func send(_ chunk: ByteBuffer, of segment: SegmentID, at offset: Int64, acked: Int64) {
        sent.withLock { $0.append(Sent(segment: segment, offset: offset, chunk: chunk)) }
    }

    /// Real chunks of a real lane.
    static func make(_ count: UInt64) throws -> (rig: Rig, sink: Sink, sent: [Sent]) {
        let writer = LaneChunks()
        let rig = try Rig(on: MemoryDisk(), replicator: writer)
        let sink = Sink()
        for number in UInt64(1)...count { rig.store(Mail(number), sink) }
        return (rig, sink, writer.sent.withLock { $0 })
    }
}
