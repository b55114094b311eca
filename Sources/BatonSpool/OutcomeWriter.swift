// Writes outcomes, syncs them within a second, keeps the marks of the event log, and finds what can be reclaimed.
import BatonCore
import BatonModel
import BatonRuntime
import Logging
import Metrics
import NIOCore
import Synchronization

/// Everything that the outcome thread does, as a value behind one mutex. Nobody waits for its syncs; a crash loses at most
/// the outcomes of the last `outcomeSyncInterval`, which means a repeated delivery, never a lost one.
struct OutcomeWriter: Sendable {
    let disk: any Disk
    let directory: String
    let reservePath: String
    let configuration: SpoolConfiguration
    let ledger: SegmentLedger
    let events: any EventRecording
    let drainer: Drainer
    let logger: Logger
    let onFailure: @Sendable (SpoolFailure) -> Void

    var logs: [UInt32: OutcomeLog] = [:]
    var mirrors: [UInt32: CleaningMirror] = [:]
    /// Drain epoch of each taken-over segment; 1 for our own.
    var epochs: [UInt32: UInt64] = [:]
    /// Nil in a single node.
    var news: (any SegmentNews)?
    /// Outcomes recorded by this process, by segment; only in a cluster.
    private var taken: [UInt32: Int] = [:]
    private var touched: Set<UInt32> = []
    private var directoryDirty = false
    private var lastCandidates: Set<UInt32> = []
    private var lastSync: Instant = .epoch
    private let recorded = Counter(label: "baton_spool_outcomes_total")
    private let unknown = Counter(label: "baton_spool_outcomes_unknown_total")

    init(
        disk: any Disk, directory: DataDirectory, configuration: SpoolConfiguration, ledger: SegmentLedger,
        events: any EventRecording, logger: Logger, onFailure: @escaping @Sendable (SpoolFailure) -> Void
    ) {
        self.disk = disk
        self.directory = directory.segmentsPath
        self.reservePath = "\(directory.path)/reserve"
        self.configuration = configuration
        self.ledger = ledger
        self.events = events
        self.drainer = Drainer(node: directory.identity.node, incarnation: directory.incarnation)
        self.logger = logger
        self.onFailure = onFailure
    }

    // MARK: Recording

    /// Writes a batch (without sync).
    mutating func process(_ outcomes: [Outcome], at now: Instant) {
        for outcome in outcomes { take(outcome) }
        recorded.increment(by: Int64(outcomes.count))
        flush(at: now)
    }

    private mutating func take(_ outcome: Outcome) {
        let message = outcome.job.message
        guard let place = ledger.resolve(message) else {
            unknown.increment()
            return
        }
        if news != nil {
            if !outcome.isLate { taken[place.segment, default: 0] += 1 }
            touched.insert(place.segment)
        }
        let recipient = outcome.job.recipient
        if outcome.verdict.isFinal {
            // A final outcome is final: the first one stands (invariant 7).
            guard ledger.markFinal(place, recipient: recipient) else { return }
        } else {
            let already = ledger.read(place.segment) { $0.isFinal(place.record, recipient: recipient) } ?? true
            guard !already else { return }
        }
        append(.outcome(OutcomeRecord(outcome, record: place.record)), to: place.segment)
        mirror(outcome, from: place)
        guard let report = outcome.report, let target = ledger.resolve(report) else { return }
        // The report's segment outlives this outcome's way to the disk.
        ledger.pin(target.segment)
        logs[place.segment]?.pins.append(target.segment)
    }

    /// The epoch whose log is written; a single node has one log for all.
    func logEpoch(of handle: UInt32) -> UInt64 { news == nil ? 1 : epochs[handle] ?? 1 }

    mutating func append(_ entry: OutcomeEntry, to handle: UInt32) {
        guard let name = ledger.name(of: handle) else { return }
        let (drainer, epoch) = (drainer, epochs[handle] ?? 1)
        if logs[handle] == nil {
            guard news == nil || epoch == 1 else { return }
            logs[handle] = OutcomeLog(path: "\(directory)/\(name.outcomeFile)", id: name.id)
        }
        logs[handle]?.append(entry, drainer: drainer, epoch: epoch)
        touched.insert(handle)
    }

    /// Writes what is buffered; what a full disk refuses stays for the next round.
    mutating func flush(at now: Instant) {
        let disk = disk
        let written = touched
        defer { for handle in written { tell(handle) } }
        for handle in touched {
            do throws(DiskError) {
                if try logs[handle]?.flush(on: disk, at: now) == true { directoryDirty = true }
                touched.remove(handle)
            } catch {
                refused(handle, error, at: now)
            }
        }
        closeSurplus()
    }

    /// It is told how far the log is at the next flush, though nothing was written.
    mutating func touch(_ handle: UInt32) { if news != nil { touched.insert(handle) } }

    /// How far the log of the present epoch is, for those who hold a copy of it.
    private func tell(_ handle: UInt32) {
        // What a full disk has not taken yet is not said: its outcomes are not settled.
        guard let news, let log = logs[handle], let name = ledger.name(of: handle), !log.failed, log.waitingBytes == 0
        else { return }
        news.outcomesAdvanced(
            name.id, epoch: epochs[handle] ?? 1, end: log.offset, synced: log.syncedOffset, taken: taken[handle] ?? 0)
    }

    private mutating func refused(_ handle: UInt32, _ error: DiskError, at now: Instant) {
        guard error.errno == DiskError.noSpace || error.errno == DiskError.quota else {
            touched.remove(handle)
            return failed(handle, error)
        }
        let disk = disk
        // The reserve is for this: outcomes have to be written when mail is refused already.
        do throws(DiskError) {
            try disk.unlink(reservePath)
            if try logs[handle]?.flush(on: disk, at: now) == true { directoryDirty = true }
            touched.remove(handle)
        } catch {
            guard logs[handle]?.failed != true else {
                touched.remove(handle)
                return failed(handle, error)
            }
            let waiting = logs.values.reduce(0) { $0 + $1.waitingBytes }
            if waiting > SpoolLimits.refusedOutcomeBytes {
                logs[handle]?.dropWaiting()
                touched.remove(handle)
                failed(handle, error)
            }
        }
    }

    private func failed(_ handle: UInt32, _ error: DiskError) {
        guard let name = ledger.name(of: handle) else { return }
        logger.critical(
            "spool: an outcome log failed; its segment is kept, its recipients may be sent to again after a restart",
            metadata: ["segment": "\(name)", "call": "\(error.call)", "errno": "\(error.errno)"])
        onFailure(.outcomeLogFailed(name, error))
    }

    private mutating func closeSurplus() {
        let disk = disk
        var open = logs.values.count { $0.file != nil }
        guard open > SpoolLimits.openOutcomeFiles else { return }
        for (handle, log) in logs where open > SpoolLimits.openOutcomeFiles && log.file != nil && log.isClean {
            logs[handle]?.close(on: disk)
            open -= 1
        }
    }

    // MARK: Syncing

    var dirtyCount: Int { logs.values.count { $0.dirtySince != nil } }

    /// Once a second: marks, syncs, and the segments that nothing holds any more.
    mutating func tick(at now: Instant) -> [UInt32] {
        advanceMarks(at: now)
        flush(at: now)
        sync()
        return reclaimable()
    }

    /// fdatasyncs everything written. Above `SpoolLimits.dirtyOutcomeFiles` one syncfs instead.
    mutating func sync() {
        let disk = disk
        if directoryDirty {
            do throws(DiskError) {
                try disk.syncDirectory(directory)
                directoryDirty = false
            } catch {
                // The names are not safe: every unsynced log stays in doubt, so that nothing is reclaimed on its word.
                for (handle, log) in logs where log.dirtySince != nil {
                    logs[handle]?.fail()
                    failed(handle, error)
                }
                return
            }
        }
        let unsynced = logs.filter { $0.value.dirtySince != nil && !$0.value.failed }
        let dirty = Array(unsynced.keys)
        if dirty.count > SpoolLimits.dirtyOutcomeFiles, let file = unsynced.values.compactMap({ $0.file }).first {
            do throws(DiskError) {
                try disk.syncFileSystem(file)
                for handle in dirty { logs[handle]?.syncedByFileSystem() }
            } catch {
                for handle in dirty {
                    logs[handle]?.fail()
                    failed(handle, error)
                }
            }
        } else {
            for handle in dirty {
                do throws(DiskError) {
                    try logs[handle]?.sync(on: disk)
                } catch {
                    failed(handle, error)
                }
            }
        }
        for handle in dirty {
            releasePins(handle)
            tell(handle)
        }
    }

    private mutating func releasePins(_ handle: UInt32) {
        guard let log = logs[handle], log.isClean, !log.pins.isEmpty else { return }
        for pinned in log.pins { ledger.unpin(pinned) }
        logs[handle]?.pins.removeAll()
    }

    // MARK: Marks and reclaim

    /// What the event log has synced is written down, so that recovery derives only the rest again; and how far the segment
    /// is acknowledged, so that recovery can tell a torn tail from damage.
    private mutating func advanceMarks(at now: Instant) {
        let synced = events.synced
        let segments = ledger.progress()
        // Read behind the snapshot: what the snapshot holds was recorded before.
        let recorded = events.recorded
        // Of one that is being adopted the log is not open yet, and its epoch not known here.
        for segment in segments where !segment.adopting {
            let handle = segment.handle
            if logs[handle] == nil {
                guard segment.messages > 0, let name = ledger.name(of: handle) else { continue }
                logs[handle] = OutcomeLog(path: "\(directory)/\(name.outcomeFile)", id: name.id)
            }
            guard var log = logs[handle], !log.failed else { continue }
            logs[handle] = nil
            if let awaited = log.awaited, synced >= awaited.recorded {
                log.marks.receptions = max(log.marks.receptions, awaited.receptions)
                log.marks.outcomeOffset = max(log.marks.outcomeOffset, awaited.outcomeOffset)
                log.awaited = nil
            }
            if log.awaited == nil,
                segment.received > log.marks.receptions || log.lastOutcomeEnd > log.marks.outcomeOffset
            {
                log.awaited = (recorded, segment.received, log.lastOutcomeEnd)
            }
            log.marks.ackedOffset = max(log.marks.ackedOffset, segment.ackedOffset)
            log.marks.ackedMessages = max(log.marks.ackedMessages, segment.messages)
            let changed = log.marks != log.writtenMarks
            if changed { log.writtenMarks = log.marks }
            let marks = log.marks
            logs[handle] = log
            // A segment about to be reclaimed needs no more marks.
            if changed, !segment.done { append(.marks(marks), to: handle) }
        }
    }

    /// Events of everything in the segment are synced.
    func eventsSafe(_ handle: UInt32) -> Bool {
        guard let (received, messages) = ledger.read(handle, { ($0.received, UInt32($0.offsets.count)) }) else {
            return false
        }
        guard let log = logs[handle] else { return messages == 0 }
        return received == messages && log.marks.receptions >= messages
            && log.marks.outcomeOffset >= log.lastOutcomeEnd
    }

    /// A segment goes when it was done at two ticks running, its outcomes are fdatasync'ed and its events synced (C3). Two
    /// ticks, since the outcome that a report rests on is recorded a moment after the report itself.
    private mutating func reclaimable() -> [UInt32] {
        let candidates = Set(ledger.reclaimCandidates())
        let settled = candidates.intersection(lastCandidates).filter { handle in
            mirrors[handle] == nil && (logs[handle]?.isClean ?? true) && eventsSafe(handle)
        }
        lastCandidates = candidates.subtracting(settled)
        return settled.sorted()
    }

    /// The segment is gone.
    mutating func forget(_ handle: UInt32) {
        let disk = disk
        logs[handle]?.close(on: disk)
        logs[handle] = nil
        epochs[handle] = nil
        taken[handle] = nil
        touched.remove(handle)
    }

    /// Flushes and syncs for the last time.
    mutating func finish(at now: Instant) {
        let disk = disk
        flush(at: now)
        sync()
        advanceMarks(at: now)
        flush(at: now)
        sync()
        for handle in logs.keys { logs[handle]?.close(on: disk) }
    }
}

extension SegmentLedger {
    struct Progress: Sendable {
        let handle: UInt32
        let messages: UInt32
        let received: UInt32
        let ackedOffset: Int64
        let done: Bool
        let adopting: Bool
    }

    func progress() -> [Progress] {
        state.withLock { state in
            state.entries.map { handle, entry in
                Progress(
                    handle: handle, messages: UInt32(entry.offsets.count), received: entry.received,
                    ackedOffset: entry.ackedOffset, done: entry.isDone, adopting: entry.adopting)
            }
        }
    }
}
