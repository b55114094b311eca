// The lane's housekeeper: prepares segments ahead of need, seals, reclaims, watches the disk.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import NIOCore
import Synchronization

enum KeeperWork: Sendable {
    /// The prepared segment was taken, or is missed.
    case needSegment
    /// The writer is done with the segment; its file is closed once the seal is stored.
    case seal(SegmentID, UInt32, DiskFile, at: Int64)
    case close(DiskFile)
    case reclaim([UInt32])
}

/// Everything that the keeper's thread does, as a value behind one mutex. The only caller of the registry after the start.
struct Keeper: Sendable {
    let disk: any Disk
    let directory: DataDirectory
    let configuration: SpoolConfiguration
    let registry: any SegmentRegistry
    let shared: LaneShared
    let ledger: SegmentLedger
    let logger: Logger
    let member: EnsembleMember
    let replicator: (any ChunkReplicating)?
    /// Nil in a single node.
    let news: (any SegmentNews)?

    private var nextIndex: UInt64 = 0
    private var wanted = false
    /// A file whose key is not known to be stored.
    private var unfinished: (id: SegmentID, file: DiskFile)?
    private var spares: [String] = []
    private var seals: [(id: SegmentID, handle: UInt32, file: DiskFile, end: Int64)] = []
    private var spareNumber: UInt64 = 0
    private var complained = false
    var cleaning: CleaningRun?
    var nextCleaning: Instant = .epoch
    /// The same in a cluster.
    var moving: MoveRun?

    init(
        directory: DataDirectory, configuration: SpoolConfiguration, registry: any SegmentRegistry,
        shared: LaneShared, ledger: SegmentLedger, spares: [String], replicator: (any ChunkReplicating)?,
        news: (any SegmentNews)?, logger: Logger
    ) {
        self.news = news
        self.disk = directory.disk
        self.directory = directory
        self.configuration = configuration
        self.registry = registry
        self.shared = shared
        self.ledger = ledger
        self.spares = spares
        self.replicator = replicator
        self.logger = logger
        self.member = EnsembleMember(node: directory.identity.node, diskID: directory.identity.diskID)
    }

    private var drainer: Drainer { Drainer(node: directory.identity.node, incarnation: directory.incarnation) }
    private var segmentsPath: String { directory.segmentsPath }

    mutating func process(_ work: [KeeperWork], outcomes: borrowing Mutex<OutcomeWriter>, at now: Instant) {
        for item in work {
            switch item {
            case .needSegment: wanted = true
            case .seal(let id, let handle, let file, let end): seals.append((id, handle, file, end))
            case .close(let file): try? disk.close(file)
            case .reclaim(let handles):
                for handle in handles { reclaim(handle, outcomes: outcomes, at: now) }
            }
        }
        storeSeals()
        prepareIfWanted(at: now)
    }

    // MARK: Preparing

    /// File first, on every member, then its name, then its key (PROTOCOL A4); then the writer may have it.
    mutating func prepareIfWanted(at now: Instant) {
        guard wanted, !shared.dead.load(ordering: .relaxed), shared.prepared.withLock({ $0 == nil }) else { return }
        do throws(SpoolError) {
            let segment = try prepare(at: now)
            shared.prepared.withLock { $0 = segment }
            wanted = false
            complained = false
        } catch {
            if let underlying = error.underlying, underlying.errno == ENOSPC || underlying.errno == EDQUOT {
                shared.diskFull.store(true, ordering: .relaxed)
            }
            if !complained {
                let level: Logger.Level = error.code == .noBackup ? .warning : .error
                logger.log(
                    level: level, "spool: no segment can be prepared; the open one goes on",
                    metadata: ["error": "\(error)"])
            }
            complained = true
        }
    }

    mutating func prepare(at now: Instant) throws(SpoolError) -> SegmentFile {
        var made = unfinished
        if made == nil { made = try newFile() }
        guard let (id, file) = made else { throw SpoolError(.notWritable, "a segment file cannot be made") }
        // Whatever fails from here on: the file stays, since the key may be stored all the same, and is used at the next try.
        unfinished = (id, file)
        shared.lost.withLock { $0.removeAll() }
        var stored = try registry.read(id)
        if news != nil, stored != nil {
            // Of an attempt without an answer. Whether its backups still wait for chunks of it is not known: closed, empty.
            unfinished = nil
            discard(id, file, at: now)
            throw SpoolError(.registryFailed, "the key of a new segment was stored unnoticed: another one is tried")
        }
        if stored == nil { stored = try register(id) }
        guard let key = stored else { throw SpoolError(.registryFailed, "the key of a new segment is not stored") }
        unfinished = nil
        let handle = ledger.add(id, sealed: false, at: now)
        shared.state.withLock { state in
            var actions = ActionBuffer<LaneState.Action>()
            state.receive(.opened(id, ensemble: key.ensemble), at: now, into: &actions)
        }
        // The append rule hears of losses from here on; of an earlier one nobody would tell it.
        if shared.lost.withLock({ $0.contains(id) }) {
            discard(id, file, at: now)
            throw SpoolError(.noBackup, "a backup of a new segment was lost while its key was stored")
        }
        return SegmentFile(id: id, handle: handle, file: file, appendEpoch: key.appendEpoch)
    }

    private mutating func register(_ id: SegmentID) throws(SpoolError) -> SegmentKey {
        guard let backups = replicator.map({ $0.prepare(id) }) ?? [] else {
            throw SpoolError(.noBackup, "no backup takes a new segment")
        }
        let key = SegmentKey(
            id: id, ensemble: [member] + backups, appendEpoch: 1, state: .open, drainer: drainer, drainEpoch: 1)
        guard case .committed(let stored?) = try registry.store(key) else {
            throw SpoolError(.registryFailed, "the key of a new segment exists already")
        }
        news?.keyChanged(stored)
        return stored
    }

    /// Registered and of no use: sealed where it begins, and drained at once.
    private mutating func discard(_ id: SegmentID, _ file: DiskFile, at now: Instant) {
        seals.append((id, ledger.add(id, sealed: false, at: now), file, 0))
    }

    private mutating func newFile() throws(SpoolError) -> (id: SegmentID, file: DiskFile) {
        let id = SegmentID(
            writer: directory.identity.node, incarnation: directory.incarnation, index: nextIndex)
        nextIndex += 1
        return (id, try makeFile("\(segmentsPath)/\(SegmentName(id).segmentFile)"))
    }

    /// A file of a reclaimed segment, whose blocks are written already, else a new one of full length.
    private mutating func makeFile(_ path: String) throws(SpoolError) -> DiskFile {
        while let spare = spares.popLast() {
            do throws(DiskError) {
                try disk.rename("\(segmentsPath)/\(spare)", to: path)
                let file = try disk.open(path, .readWrite)
                try disk.syncDirectory(segmentsPath)
                return file
            } catch {
                try? disk.unlink("\(segmentsPath)/\(spare)")
                try? disk.unlink(path)
            }
        }
        do throws(DiskError) {
            let file = try disk.open(path, .create)
            do throws(DiskError) {
                try disk.allocate(file, length: Int64(configuration.segmentSize))
                try disk.sync(file)
                try disk.syncDirectory(segmentsPath)
                return file
            } catch {
                try? disk.close(file)
                try? disk.unlink(path)
                throw error
            }
        } catch {
            throw SpoolError(.notWritable, "a segment file cannot be made", error)
        }
    }

    // MARK: Sealing

    private mutating func storeSeals() {
        var left: [(id: SegmentID, handle: UInt32, file: DiskFile, end: Int64)] = []
        for seal in seals {
            shared.state.withLock { state in
                var actions = ActionBuffer<LaneState.Action>()
                state.receive(.sealSent(seal.id), at: .epoch, into: &actions)
            }
            do throws(SpoolError) {
                // Whoever took the segment over seals it (PROTOCOL "Takeover" 4).
                if var key = try registry.read(seal.id), key.state == .open, key.drainer == drainer {
                    key.state = .sealed(at: seal.end)
                    guard case .committed(let stored) = try registry.store(key) else {
                        left.append(seal)
                        continue
                    }
                    if let stored { news?.keyChanged(stored) }
                }
                sealed(seal.id, seal.handle, seal.file)
            } catch {
                left.append(seal)
            }
        }
        seals = left
    }

    private func sealed(_ id: SegmentID, _ handle: UInt32, _ file: DiskFile) {
        shared.state.withLock { state in
            var actions = ActionBuffer<LaneState.Action>()
            state.receive(.sealCommitted(id), at: .epoch, into: &actions)
        }
        try? disk.close(file)
        ledger.update(handle) { $0.sealed = true }
    }

    // MARK: Reclaiming

    /// Finished in the registry, then the files, the key last (PROTOCOL C3).
    mutating func reclaim(_ handle: UInt32, outcomes: borrowing Mutex<OutcomeWriter>, at now: Instant) {
        guard ledger.read(handle, { $0.isDone }) == true, let name = ledger.name(of: handle) else { return }
        // In a cluster it goes when every member may know it (PROTOCOL C3): `release`.
        if let news { return news.drained(name.id) }
        do throws(SpoolError) {
            guard var key = try registry.read(name.id) else { return }
            if key.state != .finished {
                key.state = .finished
                guard case .committed(let stored?) = try registry.store(key) else { return }
                key = stored
            }
            try removeFiles(of: name)
            _ = try registry.remove(key)
        } catch {
            logger.error("spool: a segment cannot be reclaimed", metadata: ["error": "\(error)"])
            return
        }
        ledger.remove(handle)
        outcomes.withLock { $0.forget(handle) }
        shared.segmentsReclaimed.add(1, ordering: .relaxed)
    }

    /// A segment of the cluster is finished: its files and its entry go. The key goes later, by its drainer.
    mutating func release(_ handle: UInt32, outcomes: borrowing Mutex<OutcomeWriter>) throws(SpoolError) {
        guard let name = ledger.name(of: handle) else { return }
        try removeFiles(of: name)
        ledger.remove(handle)
        outcomes.withLock { $0.forget(handle) }
        shared.segmentsReclaimed.add(1, ordering: .relaxed)
    }

    mutating func removeFiles(of name: SegmentName) throws(SpoolError) {
        do throws(DiskError) {
            if news != nil {
                for file in try disk.list(segmentsPath)
                where file.hasPrefix("\(name).") && (file.hasSuffix(".out") || file.hasSuffix(".seal")) {
                    try unlinkIfThere("\(segmentsPath)/\(file)")
                }
            }
            try unlinkIfThere("\(segmentsPath)/\(name.outcomeFile)")
            let path = "\(segmentsPath)/\(name.segmentFile)"
            if try keepAsSpare(path) == false { try unlinkIfThere(path) }
            try disk.syncDirectory(segmentsPath)
        } catch {
            throw SpoolError(.notWritable, "the files of a finished segment cannot be removed", error)
        }
    }

    private mutating func keepAsSpare(_ path: String) throws(DiskError) -> Bool {
        guard configuration.recycle, spares.count < SpoolLimits.spareSegments,
            !shared.diskFull.load(ordering: .relaxed)
        else { return false }
        guard let file = try? disk.open(path, .read) else { return false }
        let size = (try? disk.size(file)) ?? -1
        try? disk.close(file)
        guard size == Int64(configuration.segmentSize) else { return false }
        spareNumber += 1
        let spare = "spare-\(SegmentName.hex(directory.incarnation.value))-\(spareNumber)"
        try disk.rename(path, to: "\(segmentsPath)/\(spare)")
        spares.append(spare)
        return true
    }

    private func unlinkIfThere(_ path: String) throws(DiskError) {
        do throws(DiskError) {
            try disk.unlink(path)
        } catch {
            guard error.errno == ENOENT else { throw error }
        }
    }

    // MARK: The disk

    /// Once a second: the disk's marks, the reserve, and what could not be done before.
    mutating func tick(at now: Instant) {
        storeSeals()
        watchSpace()
        prepareIfWanted(at: now)
    }

    mutating func watchSpace() {
        guard var space = try? disk.space(directory.path) else { return }
        if space.free < configuration.minFree + configuration.minFree / 20, !spares.isEmpty {
            // Spares are room that only looks taken: on a small disk they would keep the door shut for ever.
            while let spare = spares.popLast() { try? disk.unlink("\(segmentsPath)/\(spare)") }
            guard let now = try? disk.space(directory.path) else { return }
            space = now
        }
        shared.freeBytes.store(space.free, ordering: .relaxed)
        shared.totalBytes.store(space.total, ordering: .relaxed)
        shared.freeInodes.store(space.freeInodes, ordering: .relaxed)
        let wasFull = shared.diskFull.load(ordering: .relaxed)
        // A little above the mark before mail is taken again, so that the door does not flap.
        let mark = wasFull ? configuration.minFree + configuration.minFree / 20 : configuration.minFree
        let full = space.free < mark || space.freeInodes < 64
        if full != wasFull {
            shared.diskFull.store(full, ordering: .relaxed)
            logger.warning(
                full ? "spool: disk below min_free, new mail is refused" : "spool: disk has room again",
                metadata: ["free": "\(space.free)"])
        }
        if !full { keepReserve() }
    }

    /// A file whose only use is to be unlinked when outcomes find no room. A crash may have left it too short.
    private func keepReserve() {
        let path = "\(directory.path)/reserve"
        guard let file = (try? disk.open(path, .create)) ?? (try? disk.open(path, .readWrite)) else { return }
        do throws(DiskError) {
            if try disk.size(file) < SpoolLimits.reserveBytes {
                try disk.allocate(file, length: SpoolLimits.reserveBytes)
                try disk.sync(file)
            }
            try disk.close(file)
        } catch {
            try? disk.close(file)
            try? disk.unlink(path)
        }
    }
}
