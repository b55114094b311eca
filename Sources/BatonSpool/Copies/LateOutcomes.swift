// Final outcomes that a former drainer recorded and nobody was told of (PROTOCOL T5).
import BatonCore
import BatonModel
import Logging
import NIOCore
import Synchronization

/// What of a copy's outcomes is worth telling its present drainer.
package enum LateOutcomes {
    /// Whole entries that are read alone.
    package struct Piece: Sendable {
        package let octets: ByteBuffer
        package let count: Int
    }

    /// The final ones of a copy's `CopyContent.outcomeEntries`, in pieces of at most `most` octets; one alone is far below that.
    package static func pieces(of entries: ByteBuffer, segment: SegmentID, most: Int) -> [Piece] {
        let seed = OutcomeFormat.header(segment).seed
        var found: [Piece] = []
        var octets = ByteBuffer()
        var count = 0
        for record in finals(in: entries, segment: segment) {
            let before = octets.writerIndex
            OutcomeFormat.write(.outcome(record), seed: seed, into: &octets)
            count += 1
            if octets.readableBytes > most, count > 1,
                let last = octets.getSlice(at: before, length: octets.writerIndex - before)
            {
                octets.moveWriterIndex(to: before)
                found.append(Piece(octets: octets, count: count - 1))
                octets = last
                count = 1
            }
        }
        if count > 0 { found.append(Piece(octets: octets, count: count)) }
        return found
    }

    /// What can be read, in order. A copy that was withdrawn never counted (PROTOCOL S6): of it nothing is said.
    static func finals(in entries: ByteBuffer, segment: SegmentID) -> [OutcomeRecord] {
        OutcomeFormat.entries(entries, segment: segment).compactMap { entry in
            guard case .outcome(let record) = entry, record.verdict.isFinal, record.verdict != .withdrawn else {
                return nil
            }
            return record
        }
    }
}

extension Spool {
    package func late(_ entries: ByteBuffer, of id: SegmentID) {
        guard let handle = ledger.handle(of: id), let receivers = receivers.withLock({ $0 }) else { return }
        var reader = SegmentReader(disk: directory.disk, directory: directory.segmentsPath)
        defer { reader.close() }
        var envelopes: [UInt32: Envelope] = [:]
        var found: [UnreportedOutcome] = []
        var open = 0
        for record in LateOutcomes.finals(in: entries, segment: id) {
            let message = StoredMessageRef(segment: handle, record: record.record)
            guard ledger.isOpen(message, recipient: record.recipient) else { continue }
            if envelopes[record.record] == nil, let place = ledger.location(of: message),
                case .found(let stored) = reader.record(at: place)
            {
                if envelopes.count >= SpoolLimits.recoveryBatch { envelopes.removeAll() }
                envelopes[record.record] = stored.envelope
            }
            guard let envelope = envelopes[record.record], Int(record.recipient) < envelope.recipients.count else {
                continue
            }
            open += 1
            var outcome = record.outcome(of: message)
            outcome.isLate = true
            found.append(UnreportedOutcome(envelope: envelope, outcome: outcome))
            if found.count >= SpoolLimits.recoveryBatch {
                receivers.unreported.late(outcomes: found)
                found.removeAll(keepingCapacity: true)
            }
        }
        if !found.isEmpty { receivers.unreported.late(outcomes: found) }
        guard open > 0 else { return }
        logger.notice(
            "spool: a former drainer has ended recipients that are open here",
            metadata: ["segment": "\(SegmentName(id))", "recipients": "\(open)"])
    }
}
