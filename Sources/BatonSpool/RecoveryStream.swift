// Hands over what a start found: missing events first, then the messages that still have recipients.
import BatonCore
import BatonModel
import BatonRuntime
import NIOCore
import Synchronization

/// Walks the recovered segments once more, a chunk at a time, so that a large backlog never stands in memory as envelopes.
/// Stored reports make their subjects final here, durably, before anything of that batch is scheduled (DESIGN section 3.7).
struct RecoveryStream {
    let disk: any Disk
    let path: String
    let ledger: SegmentLedger
    let jobs: any JobReceiving
    let unreported: any UnreportedReceiving
    let now: Instant
    private var messages: [AcceptedMessage] = []
    private var outcomes: [UnreportedOutcome] = []
    private var receptions: [Envelope] = []
    private var submits: [FoundSubmit] = []
    private var derived: [Outcome] = []
    private(set) var liveMessages = 0
    private(set) var liveRecipients = 0
    /// What the scan found intact and could not be read again.
    private(set) var damage: [String] = []

    init(
        disk: any Disk, path: String, ledger: SegmentLedger, jobs: any JobReceiving,
        unreported: any UnreportedReceiving, now: Instant
    ) {
        self.disk = disk
        self.path = path
        self.ledger = ledger
        self.jobs = jobs
        self.unreported = unreported
        self.now = now
    }

    /// What the log says of one recipient, latest last.
    private struct RecipientState {
        var attempts: UInt16 = 0
        var due: Instant?
        var doubts: UInt16 = 0
        var delayNoticeSent = false
        var reply: SMTPReply?
        var final = false

        mutating func apply(_ record: OutcomeRecord) {
            guard !final else { return }
            attempts = max(attempts, record.attempts)
            if let reply = record.reply { self.reply = reply }
            switch record.verdict {
            case .deferred(let until): due = until
            case .inDoubt(let until):
                due = until
                doubts &+= 1
            case .delayNoticeSent: delayNoticeSent = true
            case .delivered, .bounced, .expired, .adminBounced, .withdrawn: final = true
            }
        }

        mutating func merge(_ later: RecipientState) {
            attempts = max(attempts, later.attempts)
            due = later.due ?? due
            doubts &+= later.doubts
            delayNoticeSent = delayNoticeSent || later.delayNoticeSent
            reply = later.reply ?? reply
            final = final || later.final
        }
    }

    private typealias Progress = [UInt32: [UInt32: RecipientState]]

    mutating func hand(over recovered: Recovered, outcomes writer: borrowing Mutex<OutcomeWriter>) {
        for segment in recovered.segments {
            var progress: Progress = [:]
            var fresh: [UInt32: [OutcomeRecord]] = [:]
            do throws(DiskError) {
                _ = try OutcomeLog.read(segment.logPath, segment: segment.name.id, from: disk) { entry, end in
                    guard case .outcome(let record) = entry else { return }
                    progress[record.record, default: [:]][record.recipient, default: RecipientState()].apply(record)
                    if end > segment.marks.outcomeOffset { fresh[record.record, default: []].append(record) }
                }
            } catch {
                damage.append(
                    "outcome log of \(segment.name) cannot be read again: errno \(error.errno); recipients may be sent to again"
                )
            }
            let file = segment.chunks.isEmpty ? nil : try? disk.open("\(path)/\(segment.name.segmentFile)", .read)
            defer { if let file { try? disk.close(file) } }
            for chunk in segment.chunks {
                if let records = records(of: chunk, in: file) {
                    walk(records, of: segment, progress, fresh, recovered)
                } else {
                    keep(chunk, of: segment)
                }
                let waiting = messages.count + receptions.count + outcomes.count + submits.count
                if waiting >= SpoolLimits.recoveryBatch { flush(writer) }
            }
            flush(writer)
            ledger.update(segment.handle) { $0.received = UInt32($0.offsets.count) }
        }
    }

    private func records(of chunk: ChunkHeader, in file: DiskFile?) -> [ChunkRecords.Item]? {
        let at = chunk.offset + Int64(ChunkHeader.length)
        guard let file,
            let block = try? DiskRead.exactly(Int(chunk.envelopeLength), of: file, at: at, from: disk),
            block.crc32c == chunk.envelopeCRC
        else { return nil }
        return ChunkRecords.read(block, of: chunk)
    }

    /// Its messages reach no queue until a start can read them: never absent without an alarm, and the segment stays.
    private mutating func keep(_ chunk: ChunkHeader, of segment: RecoveredSegment) {
        ledger.update(segment.handle) { entry in
            entry.damaged = true
            entry.setAsideBytes += chunk.end - chunk.offset
        }
        damage.append(
            "segment \(segment.name): the chunk at \(chunk.offset) cannot be read again: its \(chunk.messages) messages are "
                + "kept and set aside")
    }

    private mutating func walk(
        _ records: [ChunkRecords.Item], of segment: RecoveredSegment, _ progress: Progress,
        _ fresh: [UInt32: [OutcomeRecord]], _ recovered: Recovered
    ) {
        for record in records where !segment.void.contains(record.number) {
            let ref = StoredMessageRef(segment: segment.handle, record: record.number)
            let envelope = record.message.envelope
            for outcome in fresh[record.number] ?? [] {
                outcomes.append(UnreportedOutcome(envelope: envelope, outcome: outcome.outcome(of: ref)))
            }
            var states = progress[record.number] ?? [:]
            apply(record.message.moved, to: &states)
            apply(recovered.subjects[envelope.id] ?? [], to: &states, envelope, ref)
            offer(envelope, ref, states, receptionRecorded: record.number < segment.marks.receptions)
        }
    }

    private func apply(_ moved: MovedFrom?, to states: inout [UInt32: RecipientState]) {
        guard let moved else { return }
        let later = states
        states = [:]
        for outcome in moved.outcomes { states[outcome.recipient, default: RecipientState()].apply(outcome) }
        // What was recorded here came after the move.
        for (recipient, state) in later { states[recipient, default: RecipientState()].merge(state) }
    }

    private mutating func apply(
        _ subjects: [(recipient: UInt32, kind: ReportSubject.Kind, report: StoredMessageRef)],
        to states: inout [UInt32: RecipientState], _ envelope: Envelope, _ ref: StoredMessageRef
    ) {
        for subject in subjects {
            // Numbers of the whole message: a part has only its own.
            guard let recipient = envelope.recipient(number: subject.recipient) else { continue }
            let state = states[recipient] ?? RecipientState()
            guard !state.final, !(subject.kind == .delay && state.delayNoticeSent) else { continue }
            let verdict: OutcomeVerdict =
                switch subject.kind {
                case .failure: .bounced
                case .success: .delivered
                case .delay: .delayNoticeSent
                }
            let outcome = Outcome(
                job: JobRef(message: ref, recipient: recipient), at: now, verdict: verdict,
                attempts: state.attempts, reply: state.reply, peer: nil, report: subject.report)
            derived.append(outcome)
            outcomes.append(UnreportedOutcome(envelope: envelope, outcome: outcome))
            states[recipient, default: RecipientState()]
                .apply(OutcomeRecord(outcome, record: ref.record))
        }
    }

    private mutating func offer(
        _ envelope: Envelope, _ ref: StoredMessageRef, _ states: [UInt32: RecipientState], receptionRecorded: Bool
    ) {
        var live: [RecipientProgress] = []
        for recipient in UInt32(0)..<UInt32(clamping: envelope.recipients.count) {
            let state = states[recipient] ?? RecipientState()
            guard !state.final else { continue }
            live.append(
                RecipientProgress(
                    recipient: recipient, attempts: state.attempts, due: state.due ?? envelope.arrival,
                    doubts: state.doubts, delayNoticeSent: state.delayNoticeSent, lastReply: state.reply))
        }
        if let mark = envelope.submit, mark.held == nil {
            submits.append(FoundSubmit(mark: mark, ref: ref, isFinal: live.isEmpty))
        }
        // A held copy's were due when it was released, long after the mark may have passed it: once more, under the same ids.
        let receptionRecorded = receptionRecorded && envelope.submit?.held == nil
        if live.isEmpty {
            if !receptionRecorded { receptions.append(envelope) }
            return
        }
        liveMessages += 1
        liveRecipients += live.count
        messages.append(
            AcceptedMessage(
                ref: ref, envelope: envelope, body: nil, progress: live, receptionRecorded: receptionRecorded))
    }

    /// Outcomes that reports prove are fdatasync'ed before the batch is given away.
    private mutating func flush(_ writer: borrowing Mutex<OutcomeWriter>) {
        if !derived.isEmpty {
            let (outcomes, now) = (derived, now)
            writer.withLock { writer in
                writer.process(outcomes, at: now)
                writer.sync()
            }
            derived.removeAll()
        }
        if !submits.isEmpty { unreported.found(submits: submits) }
        if !receptions.isEmpty { unreported.unreported(receptions: receptions) }
        if !outcomes.isEmpty { unreported.unreported(outcomes: outcomes) }
        if !messages.isEmpty { jobs.receive(messages) }
        submits.removeAll(keepingCapacity: true)
        receptions.removeAll(keepingCapacity: true)
        outcomes.removeAll(keepingCapacity: true)
        messages.removeAll(keepingCapacity: true)
    }
}
