// Segments that this node takes over while it runs, and how they go (PROTOCOL "Takeover", C3).
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import NIOCore
import Synchronization

struct Receivers: Sendable {
    let jobs: any JobReceiving
    let unreported: any UnreportedReceiving
}

/// Reports found in adopted segments, and what they say of messages of other ones: a report that was durable before its
/// outcome is not made twice. Bounded by `SpoolLimits.adoptedSubjects`; the oldest go.
struct AdoptedSubjects: Sendable {
    typealias Found = [(recipient: UInt32, kind: ReportSubject.Kind, report: StoredMessageRef)]
    private var subjects: [MessageID: Found] = [:]
    private var order: [MessageID] = []

    mutating func add(_ more: [MessageID: Found]) -> [MessageID: Found] {
        for (message, found) in more {
            if subjects[message] == nil { order.append(message) }
            subjects[message, default: []] += found
        }
        while order.count > SpoolLimits.adoptedSubjects { subjects[order.removeFirst()] = nil }
        return subjects
    }
}

extension Spool: SegmentDraining {
    package func adopt(_ adoption: Adoption) throws(SpoolError) -> AdoptionReport {
        guard let receivers = receivers.withLock({ $0 }) else {
            throw SpoolError(.notWritable, "the spool has not started")
        }
        let result: Result<AdoptionReport, SpoolError> = adopting.withLock { subjects in
            do throws(SpoolError) {
                return .success(try adopt(adoption, receivers, &subjects))
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    private func adopt(
        _ adoption: Adoption, _ receivers: Receivers, _ subjects: inout AdoptedSubjects
    ) throws(SpoolError) -> AdoptionReport {
        let key = adoption.key
        guard ledger.handle(of: key.id) == nil else {
            // Its messages are in the queue already. A node that lost a segment takes it over again as a new incarnation (T2).
            throw SpoolError(.notWritable, "segment \(SegmentName(key.id)) is drained by this process already")
        }
        let now = time.now()
        let files = SegmentFiles(
            disk: directory.disk, directory: directory.segmentsPath, name: SegmentName(key.id))
        do throws(DiskError) {
            try writeUnion(of: adoption, in: files, at: now)
        } catch {
            throw SpoolError(.notWritable, "outcomes of segment \(files.name) cannot be gathered", error)
        }
        var recovery = Recovery(
            directory: directory, registry: registry, ledger: ledger, logger: logger, now: now)
        var found = try recovery.adopt(
            key, logPath: files.logPath(epoch: key.drainEpoch), eventsMayBeLost: adoption.eventsMayBeLost)
        found.subjects = subjects.add(found.subjects)
        outcomes.withLock { writer in
            for (handle, log) in found.logs { writer.logs[handle] = log }
            for (handle, epoch) in found.epochs { writer.epochs[handle] = epoch }
            // Before anything of the segment is told to the cluster: what it then calls synced includes them (PROTOCOL C2 v).
            for move in found.decisions {
                writer.append(
                    .heldDecision(source: move.source, drainEpoch: move.drainEpoch, alive: move.alive), to: move.target)
            }
        }
        var stream = RecoveryStream(
            disk: directory.disk, path: directory.segmentsPath, ledger: ledger, jobs: receivers.jobs,
            unreported: receivers.unreported, now: now)
        stream.hand(over: found, outcomes: outcomes)
        for note in stream.damage { logger.error("spool: \(note)") }
        guard let handle = ledger.handle(of: key.id) else {
            // Not reached: it was added above, and nothing removes one that is being adopted.
            throw SpoolError(.notWritable, "segment \(files.name) is not in the ledger")
        }
        ledger.update(handle) { $0.adopting = false }
        outcomes.withLock { writer in
            writer.touch(handle)
            writer.flush(at: now)
        }
        return AdoptionReport(
            handle: handle, messages: found.summary.messages, liveMessages: stream.liveMessages,
            liveRecipients: stream.liveRecipients)
    }

    /// The log of the new epoch begins with everything that is known, durably, before anything is handed to the queue.
    private func writeUnion(of adoption: Adoption, in files: SegmentFiles, at now: Instant) throws(DiskError) {
        let key = adoption.key
        let path = files.logPath(epoch: key.drainEpoch)
        let known = try files.union(with: adoption.others)
        // Put into place as a whole: an earlier try of this very takeover may have left outcomes that stand nowhere else.
        let fresh = path + ".new"
        do throws(DiskError) {
            try files.disk.unlink(fresh)
        } catch {
            guard error.errno == ENOENT else { throw error }
        }
        var log = OutcomeLog(path: fresh, id: key.id)
        for entry in known.entries { log.append(entry, drainer: key.drainer, epoch: key.drainEpoch) }
        if known.marks == OutcomeMarks() {
            log.append(.marks(known.marks), drainer: key.drainer, epoch: key.drainEpoch)
        }
        defer { log.close(on: files.disk) }
        _ = try log.flush(on: files.disk, at: now)
        try log.sync(on: files.disk)
        try files.disk.rename(fresh, to: path)
        try files.disk.syncDirectory(files.directory)
    }

    package func release(_ id: SegmentID) -> Bool {
        guard let handle = ledger.handle(of: id) else { return false }
        let gone = keeper.withLock { keeper in
            do throws(SpoolError) {
                try keeper.release(handle, outcomes: outcomes)
                return true
            } catch {
                logger.error("spool: a finished segment cannot be removed", metadata: ["error": "\(error)"])
                return false
            }
        }
        if gone { trimReaders() }
        return gone
    }

    package func stopWriting(_ id: SegmentID) {
        acknowledger.withLock { $0 }?.report([.sealSent(id)], at: time.now())
        if let ahead = takePrepared(id) {
            // The open one goes on.
            keeperMailbox.deliver([.close(ahead.file), .needSegment])
            return
        }
        leave()
    }

    /// Whether every recipient of the message has a final outcome; any thread.
    package func isFinal(_ message: StoredMessageRef) -> Bool { ledger.isFinal(message) }

    package func segment(of handle: UInt32) -> SegmentID? { ledger.name(of: handle)?.id }
}
