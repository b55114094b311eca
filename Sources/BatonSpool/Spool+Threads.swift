// The loops of the spool's threads, and `pump`, which runs them all on one thread for tests.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import NIOCore
import Synchronization

enum ReadWork: Sendable {
    case body(BodyRead, any BodyReadReceiving)
    case history(StoredMessageRef, CheckedContinuation<[Outcome]?, Never>)
    /// Segments went: their open files hold space that was given back.
    case trim
}

extension Spool {
    func startThreads() {
        writers.withLock { $0.append(DedicatedThread(name: "spool-writer") { self.runWriter() }) }
        others.withLock { threads in
            threads.append(DedicatedThread(name: "spool-outcomes") { self.runOutcomes() })
            threads.append(DedicatedThread(name: "spool-keeper") { self.runKeeper() })
            for index in 0..<max(1, configuration.readerThreads) {
                threads.append(DedicatedThread(name: "spool-reader-\(index)") { self.runReader() })
            }
        }
    }

    /// No timer while nothing waits: only a non-empty segment's age is waited for.
    private func runWriter() {
        while true {
            let now = time.now()
            let timeout = writer.withLock { $0?.rollTimeout(at: now) }
            guard let batch = laneMailbox.take(limit: 2 * Limits.chunkMessages, timeoutNanoseconds: timeout) else {
                return
            }
            let then = time.now()
            writer.withLock { $0?.process(batch, at: then) }
        }
    }

    private func runOutcomes() {
        let interval = min(configuration.outcomeSyncInterval.nanoseconds, 1_000_000_000)
        var last = time.now()
        while true {
            let wait = max(1_000_000, interval - (time.now() - last).nanoseconds)
            // A moment's gathering saves many wakes and a write for each delivery, in a cluster at the other members too.
            guard
                let batch = outcomeMailbox.take(timeoutNanoseconds: wait, gathering: SpoolLimits.outcomeGathering)
            else { return }
            let now = time.now()
            if !batch.isEmpty { outcomes.withLock { $0.process(batch, at: now) } }
            if (now - last).nanoseconds >= interval {
                last = now
                tickOutcomes(at: now)
            }
        }
    }

    private func tickOutcomes(at now: Instant) {
        let done = outcomes.withLock { $0.tick(at: now) }
        if !done.isEmpty { keeperMailbox.deliver(CollectionOfOne(.reclaim(done))) }
    }

    private func runKeeper() {
        var last = time.now()
        while true {
            // A lane without a segment asks for one more often: no mail is taken meanwhile.
            let interval: Int64 = shared.mayAppend.load(ordering: .relaxed) ? 1_000_000_000 : 250_000_000
            guard let work = keeperMailbox.take(timeoutNanoseconds: interval) else { return }
            let now = time.now()
            process(work, at: now)
            if (now - last).nanoseconds >= interval {
                last = now
                keeper.withLock { $0.tick(at: now) }
                if cluster == nil { stepCleaning(at: now) } else { stepMoving(at: now) }
            }
            if !shared.mayAppend.load(ordering: .relaxed), shared.prepared.withLock({ $0 != nil }) {
                laneMailbox.deliver(CollectionOfOne(.leave))
            }
        }
    }

    private func process(_ work: [KeeperWork], at now: Instant) {
        let before = shared.segmentsReclaimed.load(ordering: .relaxed)
        keeper.withLock { $0.process(work, outcomes: outcomes, at: now) }
        if shared.segmentsReclaimed.load(ordering: .relaxed) != before { trimReaders() }
    }

    private func runReader() {
        var reader = SegmentReader(disk: directory.disk, directory: directory.segmentsPath)
        while let batch = readMailbox.take(limit: 32) { answer(batch, by: &reader) }
        reader.close()
    }

    // MARK: Reading

    private func answer(_ batch: [ReadWork], by reader: inout SegmentReader) {
        var groups: [(receiver: any BodyReadReceiving, results: [BodyReadResult])] = []
        for work in batch {
            switch work {
            case .body(let request, let receiver):
                let result = BodyReadResult(token: request.token, outcome: read(request, by: &reader))
                if let index = groups.lastIndex(where: { $0.receiver === receiver }) {
                    groups[index].results.append(result)
                } else {
                    groups.append((receiver, [result]))
                }
            case .history(let message, let continuation): continuation.resume(returning: readHistory(of: message))
            case .trim: reader.close { ledger.handle(of: $0.id) == nil }
            }
        }
        for (receiver, results) in groups { receiver.bodiesRead(results) }
    }

    private func read(_ request: BodyRead, by reader: inout SegmentReader) -> BodyReadOutcome {
        guard let location = ledger.location(of: request.ref) else { return .failed(errno: ENOENT) }
        let first = attempt(request, location, by: &reader)
        // Its segment may have been cleaned away between look-up and read, and its file, still open here, recycled: the
        // ledger knows the new place.
        if first.isRead { return intact(first, request.part, location) }
        guard let place = ledger.location(of: request.ref) else { return .failed(errno: ENOENT) }
        if place == location { return judge(first, request.part, location, by: &reader) }
        let second = attempt(request, place, by: &reader)
        return second.isRead ? intact(second, request.part, place) : judge(second, request.part, place, by: &reader)
    }

    private func attempt(
        _ request: BodyRead, _ location: MessageLocation, by reader: inout SegmentReader
    ) -> BodyReadOutcome {
        switch request.part {
        case .message:
            switch reader.message(at: location) {
            case .found(let message): return .message(message.envelope, message.body)
            case .damaged: return .damaged
            case .failed(let error): return .failed(errno: error.errno)
            }
        case .fragment(let index):
            switch reader.fragment(index, at: location) {
            case .found(let bytes): return .fragment(bytes)
            case .damaged: return .damaged
            case .failed(let error): return .failed(errno: error.errno)
            }
        }
    }

    func readHistory(of message: StoredMessageRef) -> [Outcome]? {
        guard let location = ledger.location(of: message) else { return nil }
        var found: [Outcome] = []
        // The log of the present epoch begins with what all former ones say.
        let epoch = outcomes.withLock { $0.logEpoch(of: location.segment) }
        let path = "\(directory.segmentsPath)/\(location.name.outcomeFile(epoch: epoch))"
        let read = try? OutcomeLog.read(path, segment: location.name.id, from: directory.disk) { entry, _ in
            if case .outcome(let record) = entry, record.record == location.record {
                found.append(record.outcome(of: message))
            }
        }
        return read == nil ? nil : found
    }

    /// After segments went. Full read queues trim at the next occasion.
    func trimReaders() {
        for _ in 0..<max(1, configuration.readerThreads) { _ = readMailbox.offer(CollectionOfOne(.trim)) }
    }

    // MARK: By hand

    /// Everything that waits, on the caller's thread, until nothing is left. Only with `Threading.manual`.
    package func pump() {
        guard threading == .manual else { return }
        var busy = true
        while busy {
            busy = false
            let now = time.now()
            if let batch = laneMailbox.take(limit: 2 * Limits.chunkMessages, timeoutNanoseconds: 0), !batch.isEmpty {
                busy = true
                writer.withLock { $0?.process(batch, at: now) }
            }
            busy = drainOutcomes() || busy
            busy = drainKeeper() || busy
            if let batch = readMailbox.take(limit: 32, timeoutNanoseconds: 0), !batch.isEmpty {
                busy = true
                manualReader.withLock { answer(batch, by: &$0) }
            }
        }
    }

    /// The once-a-second work of all threads. Only with `Threading.manual`.
    package func tick() {
        guard threading == .manual else { return }
        let now = time.now()
        writer.withLock { $0?.process([], at: now) }
        pump()
        tickOutcomes(at: now)
        keeper.withLock { $0.tick(at: now) }
        pump()
        if cluster == nil { stepCleaning(at: now) } else { stepMoving(at: now) }
        if !shared.mayAppend.load(ordering: .relaxed), shared.prepared.withLock({ $0 != nil }) {
            laneMailbox.deliver(CollectionOfOne(.leave))
        }
        pump()
    }

    @discardableResult
    func drainOutcomes() -> Bool {
        guard let batch = outcomeMailbox.take(timeoutNanoseconds: 0), !batch.isEmpty else { return false }
        let now = time.now()
        outcomes.withLock { $0.process(batch, at: now) }
        return true
    }

    @discardableResult
    func drainKeeper() -> Bool {
        guard let work = keeperMailbox.take(timeoutNanoseconds: 0), !work.isEmpty else { return false }
        process(work, at: time.now())
        return true
    }

    // MARK: Counts

    /// Any thread; walks the segments, not the messages.
    package var stats: SpoolStats {
        var stats = SpoolStats()
        stats.syncs = configuration.sync
        ledger.state.withLock { state in
            for entry in state.entries.values {
                if entry.sealed { stats.segmentsSealed += 1 } else { stats.segmentsOpen += 1 }
                stats.bytes += entry.length
                stats.liveBytes += entry.liveBytes
                stats.messages += entry.liveMessages
                stats.liveRecipients += entry.liveRecipients
                stats.quarantinedBytes += entry.quarantinedBytes
                if entry.isDamaged { stats.damagedSegments += 1 }
            }
        }
        stats.dirtyOutcomeLogs = outcomes.withLock { $0.dirtyCount }
        stats.commits = shared.commits.load(ordering: .relaxed)
        stats.committedMessages = shared.committedMessages.load(ordering: .relaxed)
        stats.committedBytes = shared.committedBytes.load(ordering: .relaxed)
        stats.segmentsReclaimed = shared.segmentsReclaimed.load(ordering: .relaxed)
        stats.chunksRepaired = shared.chunksRepaired.load(ordering: .relaxed)
        stats.segmentsCleaned = shared.segmentsCleaned.load(ordering: .relaxed)
        stats.laneDead = shared.dead.load(ordering: .relaxed)
        stats.diskFull = shared.diskFull.load(ordering: .relaxed)
        stats.freeBytes = shared.freeBytes.load(ordering: .relaxed)
        stats.totalBytes = shared.totalBytes.load(ordering: .relaxed)
        stats.freeInodes = shared.freeInodes.load(ordering: .relaxed)
        return stats
    }
}

extension BodyReadOutcome {
    fileprivate var isRead: Bool {
        switch self {
        case .message, .fragment: true
        case .damaged, .beingRepaired, .failed: false
        }
    }
}
