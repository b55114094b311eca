// Tells what a data directory holds without changing it (`baton spool inspect`).
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import NIOCore

/// Pure reading: takes no lock, makes and writes nothing, so that it works beside a running node, on damage, on a copy and on an
/// empty directory. Reads every byte once, bodies too. Blocking; memory is one segment's counts and one outcome log.
///
/// What a running node changes meanwhile is looked at again before it is called damage.
package struct SpoolInspector {
    private let disk: any Disk
    private let path: String
    private var report: SpoolReport
    private var keys: [SegmentID: SegmentKey] = [:]
    private var registryKnown = false

    private init(path: String, disk: any Disk) {
        self.path = path
        self.disk = disk
        self.report = SpoolReport(directory: path)
    }

    /// Throws only where the directory itself cannot be listed.
    package static func inspect(_ path: String, disk: any Disk) throws(DiskError) -> SpoolReport {
        var inspector = SpoolInspector(path: path, disk: disk)
        try inspector.run()
        return inspector.report
    }

    private var segmentsPath: String { "\(path)/segments" }

    private mutating func run() throws(DiskError) {
        let names = Set(try disk.list(path))
        inspectIdentity(names)
        readRegistry(names)
        report.totals.reserveBytes = length("\(path)/reserve")
        for segment in try listSegments(names) { inspect(segment) }
        for id in keys.keys where !report.segments.contains(where: { $0.name == SegmentName(id).description }) {
            inspect(id)
        }
        report.segments.sort { $0.name < $1.name }
        report.sum()
    }

    // MARK: Small files

    private mutating func inspectIdentity(_ names: Set<String>) {
        for name in names.sorted() where name.hasSuffix(".damaged") {
            report.problems.append("\(name): a start put this damaged file aside")
        }
        switch SmallFile.read("\(path)/identity", limit: 4096, from: disk) {
        case .payload(var payload):
            guard let found = DataDirectory.decodeIdentity(&payload) else {
                report.problems.append("identity: unknown format")
                break
            }
            report.identity = SpoolReport.Identity(
                cluster: found.cluster, node: found.nodeName, diskID: SegmentName.hex(found.diskID))
        case .damaged: report.problems.append("identity: damaged or unreadable")
        case .absent:
            if names.contains("segments") { report.problems.append("identity: missing") }
        }
        switch SmallFile.read("\(path)/incarnation", limit: 4096, from: disk) {
        case .payload(var payload):
            guard payload.readString(length: 4) == "BTNV",
                let (version, value) = payload.readMultipleIntegers(endianness: .little, as: (UInt32, UInt64).self),
                version == 1
            else {
                report.problems.append("incarnation: unknown format")
                break
            }
            report.incarnation = SegmentName.hex(value)
        case .damaged: report.problems.append("incarnation: damaged or unreadable")
        case .absent: break
        }
    }

    private mutating func readRegistry(_ names: Set<String>) {
        switch LocalSegmentRegistry.content(in: path, disk: disk) {
        case .payload(let content):
            registryKnown = true
            report.registry = SpoolReport.Registry(
                id: SegmentName.hex(content.id), revision: content.revision, keys: content.keys.count)
            for key in content.keys { keys[key.id] = key }
        case .damaged: report.problems.append("registry: damaged or unreadable")
        case .absent:
            // Before its first start a directory has none.
            registryKnown = !names.contains("segments")
            // A node of a cluster has its keys in the control plane.
            let isAlone = report.identity?.cluster.isEmpty ?? false
            if !registryKnown, isAlone { report.problems.append("registry: missing") }
        }
    }

    /// Whether the segment still has a key that is not finished. A node that runs may have reclaimed it while we looked.
    private func isStillRegistered(_ id: SegmentID) -> Bool {
        guard case .payload(let content) = LocalSegmentRegistry.content(in: path, disk: disk) else { return true }
        return content.keys.contains { $0.id == id && $0.state != .finished }
    }

    private func length(_ path: String) -> Int64 {
        guard let file = try? disk.open(path, .read) else { return 0 }
        defer { try? disk.close(file) }
        return (try? disk.size(file)) ?? 0
    }

    // MARK: Segments

    private mutating func listSegments(_ names: Set<String>) throws(DiskError) -> [SegmentID] {
        guard names.contains("segments") else {
            if report.identity != nil { report.problems.append("segments: missing") }
            return []
        }
        let found: [String]
        do throws(DiskError) {
            found = try disk.list(segmentsPath)
        } catch {
            report.problems.append("segments: cannot be listed (errno \(error.errno))")
            return []
        }
        var segments: [SegmentID] = []
        var logs: [SegmentID] = []
        for name in found.sorted() {
            if name.hasPrefix("spare-") {
                report.totals.spares += 1
                report.totals.spareBytes += length("\(segmentsPath)/\(name)")
            } else if name.hasSuffix(".seg"), let segment = SegmentName(stem: name.dropLast(4)) {
                segments.append(segment.id)
            } else if name.hasSuffix(".out"), let segment = SegmentName(stem: name.dropLast(4)) {
                logs.append(segment.id)
            } else {
                report.problems.append("segments/\(name): unknown file")
            }
        }
        for id in logs where !segments.contains(id) && keys[id] == nil && isStillThere(SegmentName(id).outcomeFile) {
            report.problems.append("segments/\(SegmentName(id).outcomeFile): an outcome log without its segment")
        }
        return segments
    }

    private func isStillThere(_ name: String) -> Bool { ((try? disk.list(segmentsPath)) ?? []).contains(name) }

    private mutating func inspect(_ id: SegmentID) {
        let name = SegmentName(id)
        let key = keys[id]
        var segment = SpoolReport.Segment(name: name.description, state: Self.state(key, known: registryKnown))
        segment.appendEpoch = key?.appendEpoch
        segment.drainEpoch = key?.drainEpoch
        segment.target = key?.target.map { SegmentName($0).description }
        var evidence = AckEvidence()
        if case .sealed(let end)? = key?.state {
            segment.sealedAt = end
            evidence.offset = end
        }
        let log = readLog(name, &segment, &evidence)
        do throws(DiskError) {
            let file = try disk.open("\(segmentsPath)/\(name.segmentFile)", .read)
            defer { try? disk.close(file) }
            try scan(file, id, evidence, log, &segment)
        } catch {
            if error.errno == ENOENT {
                // Files go first, the key last: a finished one may lack its file.
                if key?.state == .finished || !isStillRegistered(id) { return }
                segment.problems.append("has a key and no file")
            } else {
                segment.problems.append("cannot be read: \(error.call) errno \(error.errno)")
            }
        }
        if registryKnown, key == nil, segment.chunks > 0 || !segment.damage.isEmpty, !isStillRegistered(id) {
            guard isStillThere(name.segmentFile) else { return }
            segment.problems.append("has no key in the registry; the next start adopts it")
        }
        // Its file may have become a new segment's under our eyes.
        if !segment.damage.isEmpty, key != nil, key?.state != .finished, !isStillRegistered(id) { return }
        report.segments.append(segment)
    }

    private static func state(_ key: SegmentKey?, known: Bool) -> String {
        switch key?.state {
        case .open?: "open"
        case .sealed?: "sealed"
        case .finished?: "finished"
        case nil: known ? "keyless" : "unknown"
        }
    }

    private struct Log {
        var finals: [(record: UInt32, recipient: UInt32)] = []
        var decisions: [(source: SegmentID, epoch: UInt64, alive: Bool)] = []
    }

    private func readLog(
        _ name: SegmentName, _ segment: inout SpoolReport.Segment, _ evidence: inout AckEvidence
    ) -> Log {
        var log = Log()
        var outcomes = 0
        var found = evidence
        do throws(DiskError) {
            let read = try OutcomeLog.read("\(segmentsPath)/\(name.outcomeFile)", segment: name.id, from: disk) {
                entry, _ in
                switch entry {
                case .outcome(let record):
                    outcomes += 1
                    if record.verdict.isFinal { log.finals.append((record.record, record.recipient)) }
                    found.messages = max(found.messages, record.record &+ 1)
                case .marks(let marks):
                    found.offset = max(found.offset, marks.ackedOffset)
                    found.messages = max(found.messages, marks.ackedMessages)
                case .heldDecision(let source, let epoch, let alive): log.decisions.append((source, epoch, alive))
                case .drainer: break
                }
            }
            segment.logBytes = read.size
            if read.damaged > 0 {
                segment.problems.append("outcome log: \(read.damaged) damaged bytes before \(read.validEnd)")
            }
        } catch {
            segment.problems.append("outcome log cannot be read: \(error.call) errno \(error.errno)")
        }
        segment.outcomes = outcomes
        evidence = found
        return log
    }

    private func scan(
        _ file: DiskFile, _ id: SegmentID, _ evidence: AckEvidence, _ log: Log, _ segment: inout SpoolReport.Segment
    ) throws(DiskError) {
        segment.fileBytes = try disk.size(file)
        var entry = SegmentLedger.Entry(name: SegmentName(id), sealed: true, bornAt: .epoch)
        var held: [UInt32] = []
        var void: [UInt32] = []
        let scanner = SegmentScanner(
            disk: disk, file: file, id: id, size: min(segment.fileBytes, segment.sealedAt ?? .max), evidence: evidence)
        let scan = try scanner.scan { header, block in
            guard let records = ChunkRecords.read(block, of: header) else { return false }
            entry.pad(to: header.firstMessage)
            for record in records {
                entry.add(record.placed)
                guard let moved = record.message.moved else { continue }
                switch fate(of: moved, log) {
                case .live: for done in moved.outcomes where done.verdict.isFinal { entry.settle(record.number, done) }
                case .held: held.append(record.number)
                case .void: void.append(record.number)
                }
            }
            return true
        }
        segment.messages = entry.live.indices.count { entry.offsets[$0] != .max }
        for record in held + void { entry.kill(record) }
        for done in log.finals { _ = entry.markFinal(done.record, recipient: done.recipient) }
        (segment.held, segment.void) = (held.count, void.count)
        segment.live = entry.liveMessages
        segment.final = segment.messages - segment.live - held.count - void.count
        segment.liveRecipients = entry.liveRecipients
        segment.chunks = scan.chunks.count
        segment.bytes = scan.end
        segment.damage = scan.damage.map { SpoolReport.Damage(from: $0.from, to: $0.to, what: $0.what) }
        if scan.tornBytes > 0 {
            segment.tornAt = scan.end
            segment.tornBytes = scan.tornBytes
        }
        for chunk in scan.chunks where (try? scanner.bodiesAreIntact(chunk)) != true {
            segment.damage.append(
                SpoolReport.Damage(
                    from: chunk.bodyOffset, to: chunk.end, what: "bodies of the chunk at \(chunk.offset)"))
        }
        segment.damage.sort { $0.from < $1.from }
    }

    private enum Fate { case live, held, void }

    /// As a start would decide (PROTOCOL C2 iv), but for what a running node has still under way.
    private func fate(of moved: MovedFrom, _ log: Log) -> Fate {
        if let known = log.decisions.last(where: { $0.source == moved.source && $0.epoch == moved.drainEpoch }) {
            return known.alive ? .live : .void
        }
        guard let source = keys[moved.source] else { return .live }
        if source.state == .finished, source.drainEpoch == moved.drainEpoch { return .live }
        return source.drainEpoch > moved.drainEpoch ? .void : .held
    }
}

extension SegmentLedger.Entry {
    fileprivate mutating func settle(_ record: UInt32, _ outcome: OutcomeRecord) {
        _ = markFinal(record, recipient: outcome.recipient)
    }
}
