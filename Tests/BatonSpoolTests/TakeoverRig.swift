// What tests of a spool in a cluster share: a registry in memory, a disk with a hook, a backup wired to another disk's copies, a pair.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

/// Compare-and-set in memory. `refuses`: stores fail, reads do not, as with an etcd that has raised its NOSPACE alarm.
final class SharedRegistry: SegmentRegistry {
    struct State {
        var keys: [SegmentID: SegmentKey] = [:]
        var revision: UInt64 = 0
        var refuses = false
        /// The next store lands, and its answer is lost.
        var losesAnswer = false
        var beforeStore: (@Sendable (SegmentKey) -> Void)?
    }
    let state = Mutex(State())

    func list() throws(SpoolError) -> [SegmentKey] { state.withLock { Array($0.keys.values) } }
    func read(_ id: SegmentID) throws(SpoolError) -> SegmentKey? { state.withLock { $0.keys[id] } }

    func store(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer {
        if let hook = state.withLock({ $0.beforeStore }) { hook(key) }
        let answer = state.withLock { state -> RegistryAnswer? in
            if state.refuses { return nil }
            guard (state.keys[key.id]?.revision ?? 0) == key.revision else { return .conflict(state.keys[key.id]) }
            state.revision += 1
            var stored = key
            stored.revision = state.revision
            state.keys[key.id] = stored
            if state.losesAnswer {
                state.losesAnswer = false
                return nil
            }
            return .committed(stored)
        }
        guard let answer else { throw SpoolError(.registryFailed, "unknown") }
        return answer
    }

    func store(_ keys: [SegmentKey]) throws(SpoolError) -> [RegistryAnswer] {
        var answers: [RegistryAnswer] = []
        for key in keys { answers.append(try store(key)) }
        return answers
    }

    func remove(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer {
        state.withLock { state in
            guard state.keys[key.id]?.revision == key.revision else { return .conflict(state.keys[key.id]) }
            state.keys[key.id] = nil
            return .committed(nil)
        }
    }

    /// The key as a taker commits it: its drainer, the next epoch, sealed.
    func take(_ id: SegmentID, for drainer: Drainer, sealedAt end: Int64) -> SegmentKey? {
        state.withLock { state in
            state.keys[id]?.drainer = drainer
            state.keys[id]?.drainEpoch += 1
            state.keys[id]?.state = .sealed(at: end)
            return state.keys[id]
        }
    }
}

/// A memory disk that calls back when a file is opened: what else happens at that moment.
final class HookedDisk: Disk {
    let inner: MemoryDisk
    private let hook = Mutex<(@Sendable (String, OpenMode) -> Void)?>(nil)

    init(_ inner: MemoryDisk) { self.inner = inner }

    private let readHook = Mutex<(@Sendable () -> Void)?>(nil)

    func onRead(_ call: (@Sendable () -> Void)?) { readHook.withLock { $0 = call } }
    func onOpen(_ call: @escaping @Sendable (String, OpenMode) -> Void) { hook.withLock { $0 = call } }

    func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> DiskFile {
        if let call = hook.withLock({ $0 }) { call(path, mode) }
        return try inner.open(path, mode)
    }
    func close(_ file: DiskFile) throws(DiskError) { try inner.close(file) }
    func write(_ file: DiskFile, _ bytes: UnsafeRawBufferPointer, at offset: Int64) throws(DiskError) {
        try inner.write(file, bytes, at: offset)
    }
    func read(_ file: DiskFile, into buffer: UnsafeMutableRawBufferPointer, at offset: Int64) throws(DiskError) -> Int {
        if let call = readHook.withLock({ $0 }) { call() }
        return try inner.read(file, into: buffer, at: offset)
    }
    func sync(_ file: DiskFile) throws(DiskError) { try inner.sync(file) }
    func syncFileSystem(_ file: DiskFile) throws(DiskError) { try inner.syncFileSystem(file) }
    func allocate(_ file: DiskFile, length: Int64) throws(DiskError) { try inner.allocate(file, length: length) }
    func truncate(_ file: DiskFile, length: Int64) throws(DiskError) { try inner.truncate(file, length: length) }
    func size(_ file: DiskFile) throws(DiskError) -> Int64 { try inner.size(file) }
    func syncDirectory(_ path: String) throws(DiskError) { try inner.syncDirectory(path) }
    func unlink(_ path: String) throws(DiskError) { try inner.unlink(path) }
    func rename(_ from: String, to: String) throws(DiskError) { try inner.rename(from, to: to) }
    func makeDirectory(_ path: String) throws(DiskError) { try inner.makeDirectory(path) }
    func list(_ path: String) throws(DiskError) -> [String] { try inner.list(path) }
    func space(_ path: String) throws(DiskError) -> DiskSpace { try inner.space(path) }
    func lock(_ file: DiskFile) throws(DiskError) { try inner.lock(file) }
}

/// Everything that spool and copies tell the cluster.
final class News: SegmentNews, CopyNews {
    struct State {
        var drained: [SegmentID] = []
        var damaged: [DamagedChunk] = []
        var keys: [SegmentKey] = []
        var epochs: [SegmentID: [UInt64]] = [:]
        var offers: [(ids: [SegmentID], target: SegmentID)] = []
        var moved: [(id: SegmentID, epoch: UInt64, landed: Bool)] = []
        /// Fdatasync'ed octets of the present epoch's log.
        var synced: [SegmentID: Int64] = [:]
        /// Outcomes that places of the window wait for.
        var taken: [SegmentID: Int] = [:]
    }
    let state = Mutex(State())

    func outcomesAdvanced(_ id: SegmentID, epoch: UInt64, end: Int64, synced: Int64, taken: Int) {
        state.withLock { state in
            state.epochs[id, default: []].append(epoch)
            state.synced[id] = synced
            state.taken[id] = taken
        }
    }
    func keyChanged(_ key: SegmentKey) { state.withLock { $0.keys.append(key) } }
    func drained(_ id: SegmentID) { state.withLock { $0.drained.append(id) } }
    func damaged(_ chunk: DamagedChunk) { state.withLock { $0.damaged.append(chunk) } }
    func cleanable(_ ids: [SegmentID], into target: SegmentID) { state.withLock { $0.offers.append((ids, target)) } }
    func moved(_ id: SegmentID, epoch: UInt64, landed: Bool) {
        state.withLock { $0.moved.append((id, epoch, landed)) }
    }
    func logSynced(_ id: SegmentID, epoch: UInt64, memory: Int64, synced: Int64) {}
    var drained: [SegmentID] { state.withLock { $0.drained } }
}

/// The writer's backup is another node's store of copies, run by hand.
final class WiredBackup: ChunkReplicating {
    struct State {
        var receiver: (any ReplicationReceiving)?
        var isAway = false
        var prepared: [SegmentID] = []
    }
    let state = Mutex(State())
    let store: CopyStore
    let member: EnsembleMember

    init(_ store: CopyStore, _ member: EnsembleMember) {
        self.store = store
        self.member = member
    }

    func prepare(_ segment: SegmentID) -> [EnsembleMember]? {
        guard !state.withLock({ $0.isAway }) else { return nil }
        let made = Mutex(CopyCreation.failed)
        store.create(segment, reserve: 256 * 1024) { answer in made.withLock { $0 = answer } }
        store.pump()
        guard made.withLock({ $0 }) == .created else { return nil }
        state.withLock { $0.prepared.append(segment) }
        return [member]
    }

    func send(_ chunk: ByteBuffer, of segment: SegmentID, at offset: Int64, acked: Int64) {
        store.append(segment, at: offset, chunk) { [self] answer in
            guard case .durable(let end) = answer else { return }
            state.withLock { $0.receiver }?.durable(segment, on: member, upTo: end)
        }
    }
}

/// One node of a cluster, as far as its disk goes.
final class ClusterRig: Sendable {
    let disk: HookedDisk
    let directory: DataDirectory
    let spool: Spool
    let copies: CopyStore
    let news = News()
    let jobs = Jobs()
    let events = Events()
    let time: SimulatedTime

    init(
        _ name: String, on disk: MemoryDisk, registry: SharedRegistry, time: SimulatedTime, seed: UInt64,
        backup: (any ChunkReplicating)? = nil
    ) throws {
        self.disk = HookedDisk(disk)
        self.time = time
        var random = SplitMix64(seed: seed)
        directory = try DataDirectory.open(path: "data", disk: self.disk, cluster: "c", nodeName: name) {
            random.next()
        }
        copies = CopyStore(
            directory: directory, configuration: Rig.small, news: news, time: time, logger: quietLogger,
            threading: .manual)
        spool = try Spool.open(
            directory: directory, configuration: Rig.small, events: events, time: time, logger: quietLogger,
            threading: .manual,
            cluster: SpoolCluster(registry: registry, replicator: backup ?? NoBackup(), news: news)
        ) { _ in }
        try spool.start(jobs: jobs, unreported: jobs)
        spool.pump()
    }

    var member: EnsembleMember {
        EnsembleMember(node: directory.identity.node, diskID: directory.identity.diskID)
    }
    var drainer: Drainer { Drainer(node: directory.identity.node, incarnation: directory.incarnation) }

    func ticks(_ count: Int) {
        for _ in 0..<count {
            time.advance(by: .seconds(1))
            spool.tick()
        }
    }

    func seal(_ id: SegmentID, epoch: UInt64) -> CopySeal? {
        let answer = Mutex<CopySeal?>(nil)
        copies.seal(id, epoch: epoch) { seal in answer.withLock { $0 = seal } }
        copies.pump()
        return answer.withLock { $0 }
    }

    func path(_ file: String) -> String { "\(directory.segmentsPath)/\(file)" }

    func stop() {
        spool.stop()
        copies.stop()
        directory.close()
    }
}

final class NoBackup: ChunkReplicating {
    func prepare(_ segment: SegmentID) -> [EnsembleMember]? { [] }
    func send(_ chunk: ByteBuffer, of segment: SegmentID, at offset: Int64, acked: Int64) {}
}

/// A writer whose backup has acknowledged three messages.
struct TakeoverPair {
    let time = SimulatedTime()
    let registry = SharedRegistry()
    let disk = MemoryDisk()
    let writer: ClusterRig
    let taker: ClusterRig
    let backup: WiredBackup
    let sink = Sink()
    let id: SegmentID

    init(messages: UInt64 = 3, marked: Bool = false) throws {
        taker = try ClusterRig("n2", on: disk, registry: registry, time: time, seed: 2)
        backup = WiredBackup(taker.copies, taker.member)
        writer = try ClusterRig("n1", on: MemoryDisk(), registry: registry, time: time, seed: 1, backup: backup)
        let spool = writer.spool
        backup.state.withLock { $0.receiver = spool }
        for number in 1...messages {
            let mail = Mail(number)
            spool.submit([
                Submission(
                    envelope: marked ? mail.envelope.part(nil, submit: Self.mark(number)) : mail.envelope,
                    body: .whole(mail.body), token: number, sink: sink)
            ])
            spool.pump()
            #expect(sink.ref(number) == nil, "250 with one copy")
            taker.copies.pump()
            spool.pump()
        }
        let ref = try #require(sink.ref(messages))
        id = try #require(spool.segment(of: ref.segment))
    }

    /// As another node's SUBMIT; the last message of three is its own held copy.
    static func mark(_ number: UInt64) -> SubmitMark {
        let run = (node: NodeID(name: "n9"), incarnation: Incarnation(value: 9))
        return SubmitMark(
            ingress: run.node, ingressIncarnation: run.incarnation, counter: number,
            held: number == 3
                ? SubmitMark.HeldFor(receiver: NodeID(name: "n8"), incarnation: Incarnation(value: 8)) : nil)
    }

    /// What the cluster does once the writer is gone for good, up to the adoption.
    func takeOver() throws -> AdoptionReport {
        guard case .sealed(let report)? = taker.seal(id, epoch: 2) else { throw Missing() }
        let key = try #require(registry.take(id, for: taker.drainer, sealedAt: report.end))
        return try taker.spool.adopt(Adoption(key: key, others: [], eventsMayBeLost: true))
    }
}

struct Missing: Error {}
