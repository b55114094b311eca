// Damage found while reading: quarantined with an alarm, and in a cluster repaired from another copy, which lifts the quarantine.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import Synchronization

extension Spool {
    /// A read that failed. What is not damage is passed on; a bad sector is damage where another copy can be asked.
    func judge(
        _ outcome: BodyReadOutcome, _ part: BodyPart, _ location: MessageLocation, by reader: inout SegmentReader
    ) -> BodyReadOutcome {
        switch outcome {
        case .damaged: return damaged(part, location, by: &reader) ?? .damaged
        case .failed(let errno) where errno == EIO && cluster != nil:
            return damaged(part, location, by: &reader) ?? outcome
        case .failed, .message, .fragment, .beingRepaired: return outcome
        }
    }

    /// Its segment stays, and `/health` says so, until the chunk is repaired. Nil where nobody else can help.
    private func damaged(
        _ part: BodyPart, _ location: MessageLocation, by reader: inout SegmentReader
    ) -> BodyReadOutcome? {
        let known =
            ledger.read(location.segment) { $0.damage.chunk(of: location.record, fragment: part.fragment) } ?? nil
        let chunk = cluster == nil ? nil : known ?? chunk(of: part, location, by: &reader)
        let found = ledger.update(location.segment) { entry in
            let index = Int(location.record)
            let bytes = index < entry.sizes.count ? Int64(entry.sizes[index]) : 0
            let isNew = entry.damage.add(
                location.record, ReadDamage.Message(bytes: bytes, chunk: chunk, fragment: part.fragment))
            let hope = chunk.map { !entry.damage.hopeless.contains($0.offset) } ?? false
            return (isNew: isNew, hope: hope)
        }
        guard let found else { return nil }
        let place: Logger.Metadata = ["segment": "\(location.name)", "record": "\(location.record)"]
        if found.isNew { shared.damagedMessages.add(1, ordering: .relaxed) }
        guard found.hope, let chunk, let cluster else {
            if found.isNew {
                logger.error("spool: a stored message is damaged: quarantined, not sent", metadata: place)
            }
            return nil
        }
        if found.isNew {
            logger.warning("spool: a stored message is damaged: other copies are asked for its chunk", metadata: place)
        }
        cluster.news.damaged(chunk)
        return .beingRepaired
    }

    /// The chunk that holds what cannot be read; nil where it cannot be found, or was not acknowledged as a whole.
    private func chunk(
        of part: BodyPart, _ location: MessageLocation, by reader: inout SegmentReader
    ) -> DamagedChunk? {
        guard let acked = ledger.read(location.segment, { $0.ackedOffset }),
            let place = reader.chunk(withDamageIn: part, of: location), place.offset < acked,
            (place.header?.end ?? place.offset) <= acked
        else { return nil }
        return DamagedChunk(
            segment: location.name.id, offset: place.offset, end: place.header?.end, acked: acked)
    }

    /// Read intact: if it was not before, it is well again.
    func intact(_ outcome: BodyReadOutcome, _ part: BodyPart, _ location: MessageLocation) -> BodyReadOutcome {
        guard shared.damagedMessages.load(ordering: .relaxed) > 0 else { return outcome }
        if ledger.update(location.segment, { $0.damage.remove(location.record, fragment: part.fragment) }) == true {
            shared.damagedMessages.subtract(1, ordering: .relaxed)
        }
        return outcome
    }

    package func ended(_ repair: ChunkRepair, of chunk: DamagedChunk) {
        // None while a takeover repairs what it will read.
        let handle = ledger.handle(of: chunk.segment)
        switch repair {
        case .repaired:
            let well = handle.flatMap { ledger.update($0) { $0.damage.repaired(chunk.offset) } } ?? 0
            shared.damagedMessages.subtract(well, ordering: .relaxed)
            shared.chunksRepaired.add(1, ordering: .relaxed)
            logger.notice(
                "spool: a damaged chunk was repaired from another copy", metadata: CopyWorker.place(of: chunk))
        case .nowhere:
            guard let handle else { return }
            ledger.update(handle) { $0.damage.giveUp(chunk.offset) }
            logger.error(
                "spool: a chunk is damaged on every copy: its damaged messages are quarantined, not sent",
                metadata: CopyWorker.place(of: chunk))
        case .unanswered: break
        }
    }
}

extension BodyPart {
    fileprivate var fragment: UInt32? { if case .fragment(let index) = self { index } else { nil } }
}

extension SegmentReader {
    /// The chunk of the record, or of the part of the body, that cannot be read now.
    mutating func chunk(withDamageIn part: BodyPart, of location: MessageLocation) -> ChunkFinder.Place? {
        var octet = location.offset
        if case .found(let message) = record(at: location) {
            let index = Int(part.fragment ?? 0)
            guard message.extents.indices.contains(index) else { return nil }
            octet = message.extents[index].offset
        }
        return finder(of: location.name)?.place(of: octet)
    }
}
