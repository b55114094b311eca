// The work of the copies' thread, as a value behind one mutex.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import Metrics
import NIOCore

/// Chunks of one batch are written one by one and synced once per segment, then answered. Nothing is called durable, created or
/// sealed before its fdatasync has returned.
struct CopyWorker: Sendable {
    struct Copy: Sendable {
        var state: CopyState
        var file: DiskFile?
        var logs: [UInt64: DiskFile] = [:]
        var usedAt: Instant
        /// Since when outcomes are not synced, by epoch.
        var dirty: [UInt64: Instant] = [:]
        /// What the outcome logs say was acknowledged, when they were last read.
        var ackedOffset: Int64 = 0
        /// The name of a log is not synced.
        var namesDirty = false
    }

    let disk: any Disk
    let node: NodeID
    let root: String
    let directory: String
    let configuration: SpoolConfiguration
    let news: any CopyNews
    let logger: Logger
    var copies: [SegmentID: Copy] = [:]
    private let chunks = Counter(label: "baton_copy_chunks_total")
    private let octets = Counter(label: "baton_copy_written_bytes_total")
    private let refused = Counter(label: "baton_copy_refused_total")

    init(
        disk: any Disk, node: NodeID, root: String, directory: String, configuration: SpoolConfiguration,
        news: any CopyNews, logger: Logger
    ) {
        self.disk = disk
        self.node = node
        self.root = root
        self.directory = directory
        self.configuration = configuration
        self.news = news
        self.logger = logger
    }

    func files(_ id: SegmentID) -> SegmentFiles {
        SegmentFiles(disk: disk, directory: directory, name: SegmentName(id))
    }

    // MARK: A batch

    private typealias Answer = (id: SegmentID, end: Int64, done: @Sendable (CopyAppend) -> Void)

    mutating func process(_ batch: [CopyStore.Work], at now: Instant) {
        var answers: [Answer] = []
        for work in batch {
            switch work {
            case .append(let id, let offset, let chunk, let done): append(id, offset, chunk, done, &answers, at: now)
            case .create(let id, let reserve, let done): done(create(id, reserve: reserve, at: now))
            case .record(let id, let epoch, let offset, let bytes, let done):
                done(record(id, epoch, offset, bytes, at: now))
            case .seal(let id, let epoch, let done):
                // What was appended before it is in it.
                sync(&answers)
                done(seal(id, epoch, at: now))
            case .read(let id, let content, let offset, let most, let done):
                done(read(id, content, offset, most, at: now))
            case .restore(let id, let purpose, let offset, let bytes, let done):
                done(restore(id, purpose, offset, bytes, at: now))
            case .mend(let chunk, let octets, let done): done(mend(chunk, octets))
            case .unlink(let id, let done): done(unlink(id))
            case .unlinkIfEmpty(let id): unlinkIfEmpty(id, at: now)
            case .inventory(let done): done(inventory())
            }
        }
        sync(&answers)
        closeSurplus()
    }

    // MARK: Opening

    /// The copy, opened and scanned if it lies here; nil where there is no file.
    mutating func open(_ id: SegmentID, at now: Instant) throws(DiskError) -> Copy? {
        if var known = copies[id] {
            known.usedAt = now
            if known.file == nil, !known.state.failed { known.file = try disk.open(files(id).segmentPath, .readWrite) }
            copies[id] = known
            return known
        }
        let files = files(id)
        let file: DiskFile
        do throws(DiskError) {
            file = try disk.open(files.segmentPath, .readWrite)
        } catch {
            guard error.errno == ENOENT else { throw error }
            return nil
        }
        var copy = Copy(state: CopyState(end: 0, tailInvalid: false, seal: .none), file: file, usedAt: now)
        do throws(DiskError) {
            copy.state = CopyState(end: 0, tailInvalid: false, seal: try files.readSeal())
            for epoch in try files.logEpochs() {
                let log = try disk.open(files.logPath(epoch: epoch), .readWrite)
                copy.logs[epoch] = log
                let read = try OutcomeLog.read(files.logPath(epoch: epoch), segment: id, from: disk) { entry, _ in
                    if case .marks(let marks) = entry { copy.ackedOffset = max(copy.ackedOffset, marks.ackedOffset) }
                }
                // What the page cache gave back is not durable yet.
                try disk.sync(log)
                copy.state.found(epoch, length: read.validEnd)
            }
            let found = try scan(id, file, acked: copy.ackedOffset)
            try disk.sync(file)
            copy.state.rescanned(end: found.end, tailInvalid: found.tailInvalid)
            copies[id] = copy
            return copy
        } catch {
            for log in copy.logs.values { try? disk.close(log) }
            try? disk.close(file)
            throw error
        }
    }

    func scan(
        _ id: SegmentID, _ file: DiskFile, acked: Int64
    ) throws(DiskError) -> (end: Int64, tailInvalid: Bool) {
        let size = try disk.size(file)
        let scanner = SegmentScanner(disk: disk, file: file, id: id, size: size, evidence: AckEvidence())
        let scan = try scanner.scan { _, _ in true }
        let prefix = scan.damage.first.map { min($0.from, scan.end) } ?? scan.end
        let isInvalid =
            !scan.damage.isEmpty || scan.tornBytes > 0 || scan.unreadableEnd || acked > prefix
            || hasRemains(id, file, at: prefix, size: size)
        return (prefix, isInvalid)
    }

    /// Whether something stands where the next chunk would begin. A header that rotted reads like none, and a copy that took it
    /// for the end would cut what the others still have (PROTOCOL T1). An own file may be a recycled one, full of old octets:
    /// there only a header's magic without its checksum tells.
    private func hasRemains(_ id: SegmentID, _ file: DiskFile, at end: Int64, size: Int64) -> Bool {
        let count = Int(min(Int64(ChunkHeader.alignment), max(0, size - end)))
        guard count > 0 else { return false }
        guard let block = try? DiskRead.upTo(count, of: file, at: end, from: disk) else { return true }
        guard id.writer == node else { return block.readableBytesView.contains { $0 != 0 } }
        let magic: UInt32? = block.getInteger(at: block.readerIndex, endianness: .little)
        return magic == ChunkHeader.magic && ChunkHeader.parse(block) == nil
    }

    private mutating func closeSurplus() {
        let opened = copies.filter { $0.value.file != nil }
        guard opened.count > CopyLimits.openCopies else { return }
        let old = opened.sorted { $0.value.usedAt < $1.value.usedAt }.prefix(opened.count - CopyLimits.openCopies)
        for (id, copy) in old where copy.dirty.isEmpty {
            if let file = copy.file { try? disk.close(file) }
            for log in copy.logs.values { try? disk.close(log) }
            copies[id]?.file = nil
            copies[id]?.logs = [:]
        }
    }

    /// Whether more copies may be taken: other nodes have more room, and the own mail needs what is left.
    var hasRoom: Bool {
        guard let space = try? disk.space(root) else { return true }
        return space.free >= configuration.minFree / 2
    }

    // MARK: The backup's verbs

    private mutating func create(_ id: SegmentID, reserve: Int64, at now: Instant) -> CopyCreation {
        let files = files(id)
        do throws(DiskError) {
            guard hasRoom else { return .noRoom }
            if let there = try open(id, at: now) {
                guard there.state.end == 0, !there.state.tailInvalid, !there.state.isSealed else { return .refused }
                // Of an attempt that died behind the file: its name may not be safe.
                try disk.syncDirectory(directory)
                return .created
            }
            guard try files.readSeal() == .none else { return .refused }
            let file = try disk.open(files.segmentPath, .create)
            do throws(DiskError) {
                try disk.allocate(file, length: min(max(0, reserve), SpoolLimits.segmentBytesMax))
                try disk.sync(file)
                try disk.syncDirectory(directory)
            } catch {
                try? disk.close(file)
                try? disk.unlink(files.segmentPath)
                throw error
            }
            copies[id] = Copy(state: CopyState(end: 0, tailInvalid: false, seal: .none), file: file, usedAt: now)
            return .created
        } catch {
            logger.error(
                "copies: no file for a segment", metadata: ["segment": "\(files.name)", "errno": "\(error.errno)"])
            return error.errno == DiskError.noSpace || error.errno == DiskError.quota ? .noRoom : .failed
        }
    }

    private mutating func append(
        _ id: SegmentID, _ offset: Int64, _ chunk: ByteBuffer, _ done: @escaping @Sendable (CopyAppend) -> Void,
        _ answers: inout [Answer], at now: Instant
    ) {
        let end = offset.addingReportingOverflow(Int64(chunk.readableBytes))
        do throws(DiskError) {
            guard !end.overflow, let copy = try open(id, at: now) else {
                refused.increment()
                return done(.ignored)
            }
            // Closed after its disk failed.
            guard let file = copy.file else { return done(.failed(upTo: copy.state.synced)) }
            switch copy.state.decide(append: offset, end: end.partialValue) {
            case .sealed(let epoch): return done(.sealed(epoch: epoch))
            case .failed: return done(.failed(upTo: copy.state.synced))
            case .ignore: return done(.ignored)
            case .repeated: answers.append((id, copy.state.end, done))
            case .write:
                // A backup never stores what is no chunk of this segment at this place.
                guard Self.isChunk(chunk, of: id, at: offset) else {
                    refused.increment()
                    logger.error("copies: not a chunk of its segment", metadata: ["segment": "\(SegmentName(id))"])
                    return done(.ignored)
                }
                try chunk.writeAll(to: file, at: offset, on: disk)
                copies[id]?.state.wrote(to: end.partialValue)
                chunks.increment()
                octets.increment(by: chunk.readableBytes)
                answers.append((id, end.partialValue, done))
            }
        } catch {
            let synced = copies[id]?.state.synced ?? 0
            if error.errno == DiskError.noSpace || error.errno == DiskError.quota {
                // What stands behind the end is no chunk: its header's CRC covers lengths, and the whole was never complete.
                return done(.noRoom(upTo: synced))
            }
            fail(id, error)
            done(.failed(upTo: synced))
        }
    }

    /// Header and both blocks have their checksums, and say that they belong here.
    static func isChunk(_ chunk: ByteBuffer, of id: SegmentID, at offset: Int64) -> Bool {
        guard let (header, _) = ChunkHeader.parse(chunk), header.segment == id, header.offset == offset,
            header.end - offset == Int64(chunk.readableBytes), header.contentLength <= chunk.readableBytes
        else { return false }
        let envelopes = chunk.readerIndex + ChunkHeader.length
        return chunk.crc32c(at: envelopes, length: Int(header.envelopeLength)) == header.envelopeCRC
            && chunk.crc32c(at: envelopes + Int(header.envelopeLength), length: Int(header.bodyLength))
                == header.bodyCRC
    }

    /// One fdatasync for each segment that was written to, then the answers.
    private mutating func sync(_ answers: inout [Answer]) {
        guard !answers.isEmpty else { return }
        let ids = answers.count == 1 ? [answers[0].id] : Array(Set(answers.map(\.id)))
        for id in ids {
            guard let copy = copies[id], copy.state.synced < copy.state.end, !copy.state.failed, let file = copy.file
            else { continue }
            do throws(DiskError) {
                if configuration.sync { try disk.sync(file) }
                copies[id]?.state.synced(to: copy.state.end)
            } catch {
                fail(id, error)
            }
        }
        for answer in answers {
            let copy = copies[answer.id]
            let synced = copy?.state.synced ?? 0
            if copy?.state.failed == true {
                answer.done(.failed(upTo: synced))
            } else if synced >= answer.end {
                answer.done(.durable(upTo: synced))
            } else {
                answer.done(.ignored)
            }
        }
        answers.removeAll()
    }

    mutating func fail(_ id: SegmentID, _ error: DiskError) {
        copies[id]?.state.fail()
        logger.critical(
            "copies: the disk failed; this copy takes nothing more",
            metadata: ["segment": "\(SegmentName(id))", "call": "\(error.call)", "errno": "\(error.errno)"])
    }

    // MARK: The end

    mutating func finish(at now: Instant) {
        tick(at: now)
        for copy in copies.values {
            if let file = copy.file { try? disk.close(file) }
            for log in copy.logs.values { try? disk.close(log) }
        }
        copies = [:]
    }

    // MARK: Going

    private mutating func unlink(_ id: SegmentID) -> Bool {
        if let copy = copies.removeValue(forKey: id) {
            if let file = copy.file { try? disk.close(file) }
            for log in copy.logs.values { try? disk.close(log) }
        }
        do throws(DiskError) {
            try files(id).unlinkAll()
            return true
        } catch {
            logger.error("copies: files cannot be removed", metadata: ["segment": "\(SegmentName(id))"])
            return false
        }
    }

    private mutating func unlinkIfEmpty(_ id: SegmentID, at now: Instant) {
        guard let copy = try? open(id, at: now), let file = copy.file,
            let found = try? scan(id, file, acked: copy.ackedOffset), found.end == 0, !found.tailInvalid
        else { return }
        _ = unlink(id)
    }

    private func inventory() -> [SegmentID] {
        guard let names = try? disk.list(directory) else { return [] }
        var found: Set<SegmentID> = []
        for name in names {
            guard let stem = name.split(separator: ".").first, let segment = SegmentName(stem: stem) else { continue }
            found.insert(segment.id)
        }
        return Array(found)
    }
}
