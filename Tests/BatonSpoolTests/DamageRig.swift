// A writer and its backup, each with a disk of its own, and what the cluster does between them when a chunk is damaged.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

/// Messages 1 to 4, a chunk each, acknowledged by both copies, in a segment that the lane still writes.
struct DamageRig {
    let time = SimulatedTime()
    let registry = SharedRegistry()
    let disk = MemoryDisk()
    let other = MemoryDisk()
    let writer: ClusterRig
    let backup: ClusterRig
    let sink = Sink()
    let id: SegmentID
    static let count = UInt64(4)

    init() throws {
        backup = try ClusterRig("n2", on: other, registry: registry, time: time, seed: 2)
        let wired = WiredBackup(backup.copies, backup.member)
        writer = try ClusterRig("n1", on: disk, registry: registry, time: time, seed: 1, backup: wired)
        let spool = writer.spool
        wired.state.withLock { $0.receiver = spool }
        for number in 1...Self.count {
            spool.submit([Mail(number).submission(token: number, sink: sink)])
            spool.pump()
            backup.copies.pump()
        }
        let first = try #require(sink.ref(1))
        id = try #require(spool.segment(of: first.segment))
    }

    /// Accepts one more message, if the lane takes it.
    func store(_ mail: Mail) -> StoredMessageRef? {
        writer.spool.submit([mail.submission(token: mail.number, sink: sink)])
        writer.spool.pump()
        backup.copies.pump()
        writer.spool.pump()
        return sink.ref(mail.number)
    }

    var path: String { writer.path(SegmentName(id).segmentFile) }
    var otherPath: String { backup.path(SegmentName(id).segmentFile) }

    /// Where the chunk of a message begins: all of these are of one size.
    func offset(_ number: UInt64) -> Int64 { Int64(number - 1) * 4096 }
    /// In the middle of the message's body.
    func body(_ number: UInt64) -> Int { Int(offset(number)) + 1500 }

    func read(_ number: UInt64, part: BodyPart = .message) -> BodyReadOutcome? {
        guard let ref = sink.ref(number) else { return nil }
        let reads = Reads()
        writer.spool.read([BodyRead(ref: ref, part: part, token: 1)], for: reads)
        writer.spool.pump()
        return reads.results.withLock { $0[1] }
    }

    func isIntact(_ number: UInt64) -> Bool { read(number)?.bytes == Mail(number).body }

    /// What the spool asked the cluster for last.
    var asked: DamagedChunk? { writer.news.state.withLock { $0.damaged.last } }
    var questions: Int { writer.news.state.withLock { $0.damaged.count } }

    /// FETCH of a chunk, as the backup answers it.
    func fetch(_ id: SegmentID, at offset: Int64, atMost most: Int = DamagedChunk.octetsMax) -> CopyRead {
        let answer = Mutex(CopyRead.failed)
        backup.copies.read(id, .chunk, from: offset, atMost: most) { read in answer.withLock { $0 = read } }
        backup.copies.pump()
        return answer.withLock { $0 }
    }

    func mend(_ chunk: DamagedChunk, _ octets: ByteBuffer) -> CopyMend {
        let answer = Mutex(CopyMend.failed)
        writer.copies.mend(chunk, octets) { mend in answer.withLock { $0 = mend } }
        writer.copies.pump()
        return answer.withLock { $0 }
    }

    /// What the cluster does with the last question.
    func repair() throws {
        let chunk = try #require(asked)
        switch fetch(chunk.segment, at: chunk.offset) {
        case .octets(let octets, _):
            switch mend(chunk, octets) {
            case .mended: writer.spool.ended(.repaired, of: chunk)
            case .other: writer.spool.ended(.nowhere, of: chunk)
            case .failed: writer.spool.ended(.unanswered, of: chunk)
            }
        case .missing, .damaged: writer.spool.ended(.nowhere, of: chunk)
        case .failed: writer.spool.ended(.unanswered, of: chunk)
        }
    }

    func octets(_ number: UInt64) throws -> ByteBuffer {
        guard case .octets(let octets, _) = fetch(id, at: offset(number)) else { throw Nothing() }
        return octets
    }

    struct Nothing: Error {}

    /// Both copies, as far as they hold chunks.
    var areEqual: Bool {
        let end = Int(offset(Self.count + 1))
        return disk.contents(path)?.prefix(end) == other.contents(otherPath)?.prefix(end)
    }

    func stop() {
        writer.stop()
        backup.stop()
    }
}

extension BodyReadOutcome {
    var isBeingRepaired: Bool { if case .beingRepaired = self { true } else { false } }
}

extension CopyRead {
    var isDamaged: Bool { if case .damaged = self { true } else { false } }
    var isMissing: Bool { if case .missing = self { true } else { false } }
}
