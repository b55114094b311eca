// The files of one segment in a data directory of a cluster: chunks, an outcome log for each drain epoch, the seal.
import BatonCore
import BatonRuntime
import Glibc
import NIOCore

/// Names and contents; nothing is kept open. Blocking.
struct SegmentFiles {
    let disk: any Disk
    let directory: String
    let name: SegmentName

    var segmentPath: String { "\(directory)/\(name.segmentFile)" }
    func logPath(epoch: UInt64) -> String { "\(directory)/\(name.outcomeFile(epoch: epoch))" }

    /// Epochs of which a log lies here, ascending.
    func logEpochs() throws(DiskError) -> [UInt64] {
        var found: [UInt64] = []
        for file in try disk.list(directory) {
            if let epoch = name.epoch(ofOutcomeFile: file) { found.append(epoch) }
        }
        return found.sorted()
    }

    // MARK: The seal

    /// Throws where the disk does not give it back: neither "none" nor "rotten" may be guessed then.
    func readSeal() throws(DiskError) -> CopySealFile {
        switch try SmallFile.load("\(directory)/\(name.sealFile)", limit: 64, from: disk) {
        case .absent: return .none
        case .damaged: return .rotten
        case .payload(var payload):
            guard payload.readString(length: 4) == "BTNZ",
                let epoch: UInt64 = payload.readInteger(endianness: .little), payload.readableBytes == 0
            else { return .rotten }
            return .sealed(epoch)
        }
    }

    /// Durable when it returns.
    func seal(at epoch: UInt64) throws(DiskError) {
        var payload = ByteBuffer()
        payload.writeString("BTNZ")
        payload.writeInteger(epoch, endianness: .little)
        try SmallFile.replace(name.sealFile, in: directory, with: payload, on: disk)
    }

    // MARK: Outcomes

    /// The entries of all epochs' logs, each once, without file headers.
    func entries() throws(DiskError) -> ByteBuffer { try gathered().octets }

    /// All `entries`, and up to where their marks say that the segment was acknowledged.
    func gathered() throws(DiskError) -> (octets: ByteBuffer, ackedOffset: Int64) {
        let (records, marks) = try union(with: [])
        let seed = OutcomeFormat.header(name.id).seed
        var all = ByteBuffer()
        for record in records { OutcomeFormat.write(.outcome(record), seed: seed, into: &all) }
        if marks != OutcomeMarks() { OutcomeFormat.write(.marks(marks), seed: seed, into: &all) }
        return (all, marks.ackedOffset)
    }

    /// The entries of `octets`, as another member sent them; what cannot be read is passed over.
    func decode(_ octets: ByteBuffer) -> [OutcomeEntry] {
        var found: [OutcomeEntry] = []
        var buffer = OutcomeFormat.header(name.id).bytes
        buffer.writeImmutableBuffer(octets)
        _ = OutcomeFormat.scan(buffer, segment: name.id) { entry, _ in found.append(entry) }
        return found
    }

    /// The union of the logs here and of `others`, each entry once: the beginning of the log of a new drain epoch.
    func union(with others: [ByteBuffer]) throws(DiskError) -> (entries: [OutcomeRecord], marks: OutcomeMarks) {
        var seen: Set<OutcomeRecord> = []
        var records: [OutcomeRecord] = []
        var marks = OutcomeMarks()
        func take(_ entry: OutcomeEntry) {
            switch entry {
            case .outcome(let record): if seen.insert(record).inserted { records.append(record) }
            case .marks(let found):
                // Only what says how much was acknowledged: offsets in other logs say nothing in this one.
                marks.ackedOffset = max(marks.ackedOffset, found.ackedOffset)
                marks.ackedMessages = max(marks.ackedMessages, found.ackedMessages)
                marks.receptions = max(marks.receptions, found.receptions)
            case .drainer, .heldDecision: break
            }
        }
        for epoch in try logEpochs() {
            _ = try OutcomeLog.read(logPath(epoch: epoch), segment: name.id, from: disk) { entry, _ in take(entry) }
        }
        for octets in others { for entry in decode(octets) { take(entry) } }
        return (records, marks)
    }

    // MARK: Going

    /// Everything of the segment, durably. What is not there is no error.
    func unlinkAll() throws(DiskError) {
        for file in try disk.list(directory) where file.hasPrefix("\(name).") {
            do throws(DiskError) {
                try disk.unlink("\(directory)/\(file)")
            } catch {
                guard error.errno == ENOENT else { throw error }
            }
        }
        try disk.syncDirectory(directory)
    }
}
