// A node's disk in memory: what is synced, what only the page cache has, what is torn or rotten.
import BatonCluster
import BatonCore
import BatonSpool

struct SimulatedFile {
    struct Stored {
        var chunk: Chunk
        var synced: Bool
        var intact = true
    }

    struct Logged {
        let epoch: UInt64
        let position: Int
        let record: JobOutcome
        var synced: Bool
    }

    var chunks: [Stored] = []
    var sealEpoch: UInt64 = 0
    var rebuilt = false
    var log: [Logged] = []

    /// The valid prefix, and whether something invalid stands behind it.
    var valid: (chunks: [Chunk], tailInvalid: Bool) {
        var found: [Chunk] = []
        for stored in chunks {
            guard stored.intact, stored.chunk.start == found.last?.end ?? 0 else { return (found, true) }
            found.append(stored.chunk)
        }
        return (found, false)
    }

    var scan: CopyScan {
        let (chunks, tailInvalid) = valid
        let epoch = log.map(\.epoch).max() ?? 0
        var count = 0
        while log.contains(where: { $0.epoch == epoch && $0.position == count }) { count += 1 }
        return CopyScan(
            chunks: chunks, tailInvalid: tailInvalid, sealEpoch: sealEpoch, rebuilt: rebuilt,
            outcomes: log.map(\.record),
            logEpoch: epoch, logCount: count)
    }

    mutating func put(_ stored: Stored) {
        let chunk = stored.chunk
        if chunks.last?.chunk.end ?? 0 <= chunk.start { return chunks.append(stored) }
        chunks.removeAll { $0.chunk.start < chunk.end && $0.chunk.end > chunk.start }
        chunks.append(stored)
        chunks.sort { $0.chunk.start < $1.chunk.start }
    }

    mutating func put(_ records: [JobOutcome], epoch: UInt64, from: Int) {
        for (offset, record) in records.enumerated() {
            let position = from + offset
            log.removeAll { $0.epoch == epoch && $0.position == position }
            log.append(.init(epoch: epoch, position: position, record: record, synced: false))
        }
    }

    mutating func syncChunks() {
        for place in chunks.indices where !chunks[place].synced { chunks[place].synced = true }
    }

    mutating func syncLog() {
        for place in log.indices where !log[place].synced { log[place].synced = true }
    }

    /// Two records of one part, both durable.
    func holdsTwice(_ part: MailRecord) -> Bool {
        chunks.reduce(0) { sum, stored in
            sum + (stored.synced && stored.intact ? stored.chunk.records.count { $0.isSame(part) } : 0)
        } > 1
    }

    func holds(_ part: MailRecord) -> Bool {
        chunks.contains { $0.synced && $0.intact && $0.chunk.records.contains { $0.isSame(part) } }
    }
}

extension MailRecord {
    /// The same part of the same message, wherever it stands.
    func isSame(_ other: MailRecord) -> Bool { id == other.id && firstNumber == other.firstNumber }
}

struct SimulatedDisk {
    let id: UInt64
    var files = Table<SegmentID, SimulatedFile>()
    var full = false
    var lost = false
    /// The next fdatasync fails.
    var failing = false

    init(id: UInt64) { self.id = id }

    mutating func perform(_ operation: DiskOperation, _ random: inout SplitMix64) -> DiskResult {
        switch operation {
        case .create(let id):
            if full { return .full }
            if files[id] == nil { files[id] = SimulatedFile() }
        case .recreate(let id):
            if full { return .full }
            if files[id] == nil {
                files[id] = SimulatedFile()
                files[id]?.rebuilt = true
            }
        case .whole(let id): files[id]?.rebuilt = false
        case .write(let chunk):
            guard files[chunk.segment] != nil else { return .done }
            if full {
                if random.next() % 2 == 0 { put(chunk, synced: false, intact: false) }
                return .full
            }
            put(chunk, synced: false, intact: true)
        case .sync(let id, _):
            if failing { return fail(id, &random) }
            syncChunks(id)
        case .seal(let id, let epoch):
            if failing { return fail(id, &random) }
            syncChunks(id)
            if epoch > files[id]?.sealEpoch ?? 0 { files[id]?.sealEpoch = epoch }
        case .outcomes(let id, let epoch, let from, let records):
            files[id]?.put(records, epoch: epoch, from: from)
        case .syncOutcomes(let id, _, _):
            if failing { return fail(id, &random) }
            files[id]?.syncLog()
        case .scan(let id): return .scanned(files[id]?.scan)
        case .cut(let id, let length): cut(id, length)
        case .repair(let id, let chunks):
            for chunk in chunks { put(chunk, synced: true, intact: true) }
            _ = id
        case .unlink(let id): files[id] = nil
        }
        return .done
    }

    private mutating func put(_ chunk: Chunk, synced: Bool, intact: Bool) {
        files[chunk.segment]?.put(.init(chunk: chunk, synced: synced, intact: intact))
    }

    private mutating func syncChunks(_ id: SegmentID) {
        files[id]?.syncChunks()
    }

    private mutating func cut(_ id: SegmentID, _ length: Int64) {
        guard var file = files[id] else { return }
        file.chunks = file.chunks.compactMap { stored in
            if stored.chunk.end <= length { return stored }
            guard stored.chunk.start < length, stored.intact else { return nil }
            let kept = Array(stored.chunk.records.prefix(Int(length - stored.chunk.start)))
            return .init(chunk: Chunk(segment: id, start: stored.chunk.start, records: kept), synced: true)
        }
        files[id] = file
    }

    /// EIO: the kernel may have dropped the dirty pages, and says so once.
    private mutating func fail(_ id: SegmentID, _ random: inout SplitMix64) -> DiskResult {
        failing = false
        loseUnsynced(id, &random)
        return .failed
    }

    /// Unsynced chunks vanish, stay, or are torn, each by itself; of an outcome log a prefix stays.
    private mutating func loseUnsynced(_ id: SegmentID, _ random: inout SplitMix64) {
        guard var file = files[id] else { return }
        file.chunks = file.chunks.compactMap { stored in
            var stored = stored
            guard !stored.synced else { return stored }
            switch random.next() % 3 {
            case 0: return nil
            case 1: stored.intact = false
            default: break
            }
            stored.synced = true
            return stored
        }
        let unsynced = file.log.filter { !$0.synced }
        let kept = unsynced.prefix(Int(random.next() % UInt64(unsynced.count + 1)))
        file.log = file.log.filter(\.synced) + kept
        for place in file.log.indices { file.log[place].synced = true }
        files[id] = file
    }

    /// The worst that a loss of power can do.
    mutating func loseAllUnsynced() {
        for id in files.keys {
            files[id]?.chunks.removeAll { !$0.synced }
            files[id]?.log.removeAll { !$0.synced }
        }
    }

    mutating func losePower(_ random: inout SplitMix64) {
        for id in files.keys { loseUnsynced(id, &random) }
    }
}
