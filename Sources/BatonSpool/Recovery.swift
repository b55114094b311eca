// A start: takes every segment over, scans it, decides moved messages, and fixes sealed lengths.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import NIOCore

/// A segment of an earlier incarnation, as the start found it. What it holds is handed over by `RecoveryStream`.
struct RecoveredSegment: Sendable {
    let handle: UInt32
    let name: SegmentName
    var chunks: [ChunkHeader]
    var marks: OutcomeMarks
    /// Messages moved here, by record: void until their source is found finished at its epoch (PROTOCOL C2).
    var moved: [UInt32: MovedFrom] = [:]
    var void: Set<UInt32> = []
    /// The log that holds all its outcomes.
    var logPath: String
}

struct Recovered: Sendable {
    var summary = RecoverySummary()
    var segments: [RecoveredSegment] = []
    var logs: [UInt32: OutcomeLog] = [:]
    var epochs: [UInt32: UInt64] = [:]
    /// What stored reports say of other messages.
    var subjects: [MessageID: [(recipient: UInt32, kind: ReportSubject.Kind, report: StoredMessageRef)]] = [:]
    var decisions: [(target: UInt32, source: SegmentID, drainEpoch: UInt64, alive: Bool)] = []
    /// Finished segments whose files and keys go once the decisions are durable.
    var finished: [SegmentKey] = []
    var spares: [String] = []
}

/// Blocking, once, before any thread is started. Reads headers, envelopes and outcome logs, no bodies. Damage never stops it:
/// it is put on record and the rest is served. It throws only where the registry cannot be written.
struct Recovery {
    let directory: DataDirectory
    let registry: any SegmentRegistry
    let ledger: SegmentLedger
    let logger: Logger
    let now: Instant

    private var disk: any Disk { directory.disk }
    private var path: String { directory.segmentsPath }
    private var result = Recovered()
    private var sealedAt: [SegmentID: Int64] = [:]
    /// Decisions found in outcome logs, by target.
    private var found: [UInt32: [(source: SegmentID, epoch: UInt64, alive: Bool)]] = [:]
    private var keyless: Set<SegmentID> = []

    init(directory: DataDirectory, registry: any SegmentRegistry, ledger: SegmentLedger, logger: Logger, now: Instant) {
        self.directory = directory
        self.registry = registry
        self.ledger = ledger
        self.logger = logger
        self.now = now
    }

    mutating func run() throws(SpoolError) -> Recovered {
        let files = try listFiles()
        let keys = try takeOver(files)
        for key in keys where key.state != .finished { scan(key, hasFile: files.contains(key.id)) }
        try seal(keys)
        decideMoved(keys)
        result.finished += keys.filter { $0.state == .finished }
        return result
    }

    /// In a cluster: nothing but the spare files. Segments are adopted later.
    mutating func spares() throws(SpoolError) -> Recovered {
        _ = try listFiles()
        return result
    }

    /// One segment of a cluster, whose key names this node; its log of that epoch has been written. Throws where its file cannot
    /// be read; damage in it is set aside. Its ledger entry stays `adopting` until the caller has handed its messages over.
    mutating func adopt(_ key: SegmentKey, logPath: String, eventsMayBeLost: Bool) throws(SpoolError) -> Recovered {
        let name = SegmentName(key.id)
        do throws(DiskError) {
            try disk.close(disk.open("\(path)/\(name.segmentFile)", .read))
        } catch {
            throw SpoolError(.notWritable, "the copy of segment \(name) cannot be read", error)
        }
        scan(key, hasFile: true, logPath: logPath, adopting: true)
        guard !result.segments.isEmpty else {
            if let handle = ledger.handle(of: key.id) { ledger.remove(handle) }
            throw SpoolError(.notWritable, "the copy of segment \(name) cannot be read")
        }
        do throws(SpoolError) {
            try decideTaken(key)
        } catch {
            // Nothing was handed over: the takeover is tried again.
            if let handle = ledger.handle(of: key.id) { ledger.remove(handle) }
            throw error
        }
        if eventsMayBeLost {
            for index in result.segments.indices {
                result.segments[index].marks.receptions = 0
                result.segments[index].marks.outcomeOffset = 0
            }
            for handle in result.logs.keys { result.logs[handle]?.forgetEvents() }
        }
        return result
    }

    // MARK: Files and keys

    private mutating func listFiles() throws(SpoolError) -> Set<SegmentID> {
        let names: [String]
        do throws(DiskError) {
            names = try disk.list(path)
        } catch {
            throw SpoolError(.notWritable, "the segments cannot be listed", error)
        }
        var segments: Set<SegmentID> = []
        for name in names {
            if name.hasPrefix("spare-") {
                result.spares.append(name)
            } else if name.hasSuffix(".seg"), let segment = SegmentName(stem: name.dropLast(4)) {
                segments.insert(segment.id)
            }
        }
        // What recycling cannot use any more goes.
        while result.spares.count > SpoolLimits.spareSegments {
            try? disk.unlink("\(path)/\(result.spares.removeLast())")
        }
        return segments
    }

    /// Drainer := this incarnation, drain epoch + 1, for every segment that is not finished (PROTOCOL "Takeover" 1). A file
    /// without a key is a segment prepared by a start that died, or the registry was damaged: adopted if it holds anything.
    private mutating func takeOver(_ files: Set<SegmentID>) throws(SpoolError) -> [SegmentKey] {
        let drainer = Drainer(node: directory.identity.node, incarnation: directory.incarnation)
        var changed: [SegmentKey] = []
        var kept: [SegmentKey] = []
        var known: Set<SegmentID> = []
        for key in try registry.list() {
            known.insert(key.id)
            guard key.state != .finished else {
                kept.append(key)
                continue
            }
            var taken = key
            taken.drainer = drainer
            taken.drainEpoch &+= 1
            taken.target = nil
            changed.append(taken)
        }
        let member = EnsembleMember(node: directory.identity.node, diskID: directory.identity.diskID)
        for id in files.subtracting(known).sorted(by: { $0.index < $1.index }) {
            guard holdsChunks(id) else {
                // Our own empty file without a key may go (PROTOCOL A4).
                try? disk.unlink("\(path)/\(SegmentName(id).segmentFile)")
                continue
            }
            keyless.insert(id)
            note("segment \(SegmentName(id)) has no key in the registry: adopted")
            changed.append(
                SegmentKey(
                    id: id, ensemble: [member], appendEpoch: 1, state: .open, drainer: drainer, drainEpoch: 1))
        }
        for answer in try registry.store(changed) {
            guard case .committed(let key?) = answer else {
                throw SpoolError(.registryFailed, "somebody else changes this node's registry")
            }
            kept.append(key)
        }
        return kept
    }

    private func holdsChunks(_ id: SegmentID) -> Bool {
        guard let file = try? disk.open("\(path)/\(SegmentName(id).segmentFile)", .read) else { return true }
        defer { try? disk.close(file) }
        guard let size = try? disk.size(file) else { return true }
        let scanner = SegmentScanner(disk: disk, file: file, id: id, size: size, evidence: AckEvidence())
        guard let scan = try? scanner.scan({ _, _ in true }) else { return true }
        return !scan.chunks.isEmpty || !scan.damage.isEmpty
    }

    private mutating func note(_ text: String) {
        result.summary.damage.append(text)
        logger.error("spool: \(text)")
    }

    // MARK: Scanning

    private mutating func scan(
        _ key: SegmentKey, hasFile: Bool, logPath: String? = nil, adopting: Bool = false
    ) {
        let name = SegmentName(key.id)
        // Other threads run while a segment is adopted: until all of it is counted it looks like one that nobody needs.
        let handle = ledger.add(key.id, sealed: true, adopting: adopting, at: now)
        result.epochs[handle] = key.drainEpoch
        result.summary.segments += 1
        let evidence = readLog(key, name, handle, logPath ?? "\(path)/\(name.outcomeFile)")
        guard hasFile else {
            // A missing file is damage, never emptiness (PROTOCOL A4).
            ledger.update(handle) { $0.damaged = true }
            return note("segment \(name) has a key and no file")
        }
        do throws(DiskError) {
            let file = try disk.open("\(path)/\(name.segmentFile)", .read)
            defer { try? disk.close(file) }
            // What stands behind a seal was never acknowledged here (PROTOCOL "Takeover" 4: cut to n).
            var size = try disk.size(file)
            if case .sealed(let end) = key.state { size = min(size, end) }
            let scanner = SegmentScanner(
                disk: disk, file: file, id: key.id, size: size, evidence: evidence.evidence)
            var segment = RecoveredSegment(
                handle: handle, name: name, chunks: [], marks: evidence.marks, logPath: evidence.path)
            let scan = try scanner.scan { header, block in take(header, block, into: &segment) }
            segment.chunks = scan.chunks
            settle(key, scan, segment, evidence.outcomes)
        } catch {
            ledger.update(handle) { $0.damaged = true }
            note("segment \(name) cannot be read: \(error.call) errno \(error.errno)")
        }
    }

    private struct LogEvidence {
        var path = ""
        var evidence = AckEvidence()
        var marks = OutcomeMarks()
        var outcomes: [OutcomeRecord] = []
    }

    private mutating func readLog(
        _ key: SegmentKey, _ name: SegmentName, _ handle: UInt32, _ logPath: String
    ) -> LogEvidence {
        var log = LogEvidence()
        log.path = logPath
        if case .sealed(let end) = key.state { log.evidence.offset = end }
        var lastOutcome: Int64 = 0
        var decisions: [(source: SegmentID, epoch: UInt64, alive: Bool)] = []
        do throws(DiskError) {
            let read = try OutcomeLog.read(logPath, segment: key.id, from: disk) { entry, end in
                switch entry {
                case .outcome(let record):
                    lastOutcome = end
                    if record.verdict.isFinal { log.outcomes.append(record) }
                    log.evidence.messages = max(log.evidence.messages, record.record &+ 1)
                case .marks(let marks): log.marks = marks
                case .heldDecision(let source, let epoch, let alive): decisions.append((source, epoch, alive))
                case .drainer: break
                }
            }
            if read.damaged > 0 {
                note("outcome log of \(name) has \(read.damaged) damaged bytes: recipients may be sent to again")
            }
            result.logs[handle] = OutcomeLog(
                path: logPath, id: key.id, validEnd: read.validEnd, lastOutcomeEnd: lastOutcome, marks: log.marks)
        } catch {
            note("outcome log of \(name) cannot be read: errno \(error.errno); recipients may be sent to again")
            var unreadable = OutcomeLog(path: logPath, id: key.id)
            unreadable.fail()
            result.logs[handle] = unreadable
        }
        found[handle] = decisions
        log.evidence.offset = max(log.evidence.offset, log.marks.ackedOffset)
        log.evidence.messages = max(log.evidence.messages, log.marks.ackedMessages)
        return log
    }

    /// Puts a chunk's messages into the ledger. False, and nothing taken, if its block makes no sense.
    private mutating func take(
        _ header: ChunkHeader, _ block: ByteBuffer, into segment: inout RecoveredSegment
    ) -> Bool {
        guard let records = ChunkRecords.read(block, of: header) else { return false }
        let handle = segment.handle
        ledger.update(handle) { entry in
            entry.pad(to: header.firstMessage)
            for record in records {
                entry.add(record.placed)
                if record.message.fragmented { entry.hasFragmented = true }
            }
        }
        for record in records {
            let ref = StoredMessageRef(segment: handle, record: record.number)
            if let moved = record.message.moved { segment.moved[record.number] = moved }
            let envelope = record.message.envelope
            for subject in envelope.subjects {
                result.subjects[subject.message, default: []].append((subject.recipient, subject.kind, ref))
            }
        }
        result.summary.messages += records.count
        return true
    }

    private mutating func settle(
        _ key: SegmentKey, _ scan: SegmentScan, _ segment: RecoveredSegment, _ finals: [OutcomeRecord]
    ) {
        let quarantined = scan.damage.reduce(Int64(0)) { $0 + $1.length }
        result.summary.tornBytes += scan.tornBytes
        result.summary.quarantinedBytes += quarantined
        for range in scan.damage {
            note("segment \(segment.name): damaged \(range.what) at \(range.from)..<\(range.to), kept and set aside")
        }
        if scan.tornBytes > 0 {
            logger.notice(
                "spool: unfinished chunk behind the acknowledged end",
                metadata: ["segment": "\(segment.name)", "at": "\(scan.end)", "bytes": "\(scan.tornBytes)"])
        }
        ledger.update(segment.handle) { entry in
            entry.length = scan.end
            if let first = scan.chunks.first { entry.bornAt = min(now, first.writtenAt) }
            entry.ackedOffset = scan.end
            entry.setAsideBytes = quarantined
            entry.damaged = entry.damaged || !scan.damage.isEmpty
            for record in finals { _ = entry.markFinal(record.record, recipient: record.recipient) }
        }
        if scan.chunks.isEmpty { result.summary.emptySegments += 1 }
        if !scan.unreadableEnd { sealedAt[key.id] = scan.end }
        result.segments.append(segment)
    }

    /// Sealed at the length that the scan found, before anything is delivered (PROTOCOL "Takeover" 4).
    private func seal(_ keys: [SegmentKey]) throws(SpoolError) {
        var changed: [SegmentKey] = []
        for key in keys where key.state == .open {
            guard let end = sealedAt[key.id] else { continue }
            var sealed = key
            sealed.state = .sealed(at: end)
            changed.append(sealed)
        }
        guard !changed.isEmpty else { return }
        for answer in try registry.store(changed) {
            guard case .committed = answer else {
                throw SpoolError(.registryFailed, "somebody else changes this node's registry")
            }
        }
    }

    // MARK: Moved messages

    /// PROTOCOL C2 iv: finished at the epoch of the move makes the moved message live, a higher epoch makes it void. The takeover
    /// above raised the epoch of every source that is not finished.
    private mutating func decideMoved(_ keys: [SegmentKey]) {
        let byID = Dictionary(keys.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
        let keyless = keyless
        decideMoved { Self.isAlive($0, byID, keyless) }
    }

    /// The same for a segment taken over in a cluster, by the sources' keys as they are stored now.
    private mutating func decideTaken(_ key: SegmentKey) throws(SpoolError) {
        var alive: [MoveName: Bool] = [:]
        for segment in result.segments {
            let known = Set((found[segment.handle] ?? []).map { MoveName(source: $0.source, epoch: $0.epoch) })
            for moved in segment.moved.values {
                let move = MoveName(source: moved.source, epoch: moved.drainEpoch)
                if known.contains(move) || alive[move] != nil { continue }
                alive[move] = try isAlive(move, in: key.id)
            }
        }
        decideMoved { alive[MoveName(source: $0.source, epoch: $0.drainEpoch)] ?? true }
    }

    /// A move that is still open is made void on the source's key, in competition with its commit: so nothing in the target waits
    /// for the source's drainer, and neither can do otherwise later.
    private mutating func isAlive(_ move: MoveName, in target: SegmentID) throws(SpoolError) -> Bool {
        for _ in 0..<SpoolLimits.moveReads {
            let source = try registry.read(move.source)
            switch MoveFate(of: source, epoch: move.epoch, target: target) {
            case .live: return true
            case .void: return false
            case .gone:
                note(
                    "segment \(SegmentName(target)) holds messages of \(SegmentName(move.source)), which is gone, and does not say "
                        + "what became of them: they count, and may be sent twice")
                return true
            case .open:
                guard var void = source else { return true }
                void.targetVoid = true
                if case .committed = try registry.store(void) { return false }
            }
        }
        throw SpoolError(.registryFailed, "the key of segment \(SegmentName(move.source)) changes all the time")
    }

    private mutating func decideMoved(_ isAlive: (MovedFrom) -> Bool) {
        for index in result.segments.indices {
            var segment = result.segments[index]
            var fresh: Set<SegmentID> = []
            for (record, moved) in segment.moved {
                let known = found[segment.handle]?.last {
                    $0.source == moved.source && $0.epoch == moved.drainEpoch
                }
                let alive = known?.alive ?? isAlive(moved)
                if known == nil, fresh.insert(moved.source).inserted {
                    result.decisions.append((segment.handle, moved.source, moved.drainEpoch, alive))
                }
                let ref = StoredMessageRef(segment: segment.handle, record: record)
                if alive {
                    for outcome in moved.outcomes where outcome.verdict.isFinal {
                        _ = ledger.markFinal(ref, recipient: outcome.recipient)
                    }
                } else {
                    segment.void.insert(record)
                    ledger.kill(ref)
                }
            }
            result.segments[index] = segment
        }
    }

    private static func isAlive(
        _ moved: MovedFrom, _ keys: [SegmentID: SegmentKey], _ keyless: Set<SegmentID>
    ) -> Bool {
        // Registry lost: the source's file is there, so that its message is.
        if keyless.contains(moved.source) { return false }
        guard let source = keys[moved.source] else {
            // The key goes last, behind the decision: its absence without one is damage. Better twice than never.
            return true
        }
        return source.state == .finished && source.drainEpoch == moved.drainEpoch
    }
}

/// The messages of an envelope block.
enum ChunkRecords {
    struct Item: Sendable {
        let number: UInt32
        let placed: PlacedMessage
        let message: MessageRecord
    }

    /// Nil if anything in it does not parse or the counts do not match the header.
    static func read(_ block: ByteBuffer, of header: ChunkHeader) -> [Item]? {
        var buffer = block
        var items: [Item] = []
        var records: UInt32 = 0
        while buffer.readableBytes > 0 {
            let at = buffer.readerIndex - block.readerIndex
            guard let record = RecordFormat.read(&buffer, blockOffset: at) else { return nil }
            records += 1
            guard case .message(let message, let offset, let length) = record else { continue }
            items.append(
                Item(
                    number: header.firstMessage + UInt32(items.count),
                    placed: PlacedMessage(
                        offset: header.offset + Int64(ChunkHeader.length + offset),
                        storedBytes: UInt32(clamping: length + message.storedBytes),
                        recipients: UInt32(clamping: message.envelope.recipients.count)),
                    message: message))
        }
        guard records == header.records, items.count == Int(header.messages) else { return nil }
        return items
    }
}
