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
        let known = try union(with: [])
        let seed = OutcomeFormat.header(name.id).seed
        var all = ByteBuffer()
        for entry in known.entries { OutcomeFormat.write(entry, seed: seed, into: &all) }
        return (all, known.marks.ackedOffset)
    }

    /// The entries of `octets`, as another member sent them; what cannot be read is passed over.
    func decode(_ octets: ByteBuffer) -> [OutcomeEntry] { OutcomeFormat.entries(octets, segment: name.id) }

    /// What the logs of a segment say, each thing once.
    struct Known {
        var outcomes: [OutcomeRecord] = []
        /// What became of cleanings that moved messages here (PROTOCOL C2 iv).
        var decisions: [MoveName: Bool] = [:]
        var marks = OutcomeMarks()

        /// As a log says it. Decisions first: they say which of the outcomes' messages there are.
        var entries: [OutcomeEntry] {
            let named = decisions.sorted { Self.order($0.key) < Self.order($1.key) }
            return named.map { .heldDecision(source: $0.key.source, drainEpoch: $0.key.epoch, alive: $0.value) }
                + outcomes.map { .outcome($0) } + (marks == OutcomeMarks() ? [] : [.marks(marks)])
        }

        private static func order(_ move: MoveName) -> (UInt64, UInt64, UInt64, UInt64) {
            (move.source.writer.value, move.source.incarnation.value, move.source.index, move.epoch)
        }
    }

    /// The union of the logs here and of `others`, each entry once: the beginning of the log of a new drain epoch.
    func union(with others: [ByteBuffer]) throws(DiskError) -> Known {
        var seen: Set<OutcomeRecord> = []
        var known = Known()
        func take(_ entry: OutcomeEntry) {
            switch entry {
            case .outcome(let record): if seen.insert(record).inserted { known.outcomes.append(record) }
            case .marks(let found):
                // Only what says how much was acknowledged: offsets in other logs say nothing in this one.
                known.marks.ackedOffset = max(known.marks.ackedOffset, found.ackedOffset)
                known.marks.ackedMessages = max(known.marks.ackedMessages, found.ackedMessages)
                known.marks.receptions = max(known.marks.receptions, found.receptions)
            case .heldDecision(let source, let epoch, let alive):
                // There is one word for each move; were there two, better twice than never.
                let move = MoveName(source: source, epoch: epoch)
                known.decisions[move] = alive || known.decisions[move] == true
            case .drainer: break
            }
        }
        for epoch in try logEpochs() {
            _ = try OutcomeLog.read(logPath(epoch: epoch), segment: name.id, from: disk) { entry, _ in take(entry) }
        }
        for octets in others { for entry in decode(octets) { take(entry) } }
        return known
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
