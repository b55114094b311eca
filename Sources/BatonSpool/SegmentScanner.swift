// Walks a segment file: what is intact, what is a torn tail, what is damage (DESIGN section 4, PROTOCOL T1).
import BatonCore
import BatonRuntime
import NIOCore

/// Bytes of a segment that were acknowledged, or may have been, and cannot be read.
package struct DamagedRange: Hashable, Sendable {
    package let from: Int64
    package let to: Int64
    package let what: String

    package var length: Int64 { max(0, to - from) }
}

package struct SegmentScan: Sendable {
    /// Intact chunks: header and envelope block are valid, the last one's body block too.
    package var chunks: [ChunkHeader] = []
    package var damage: [DamagedRange] = []
    /// Where the segment is to be sealed: behind the last intact or damaged chunk.
    package var end: Int64 = 0
    /// Bytes of an unfinished chunk behind `end`, as far as can be told.
    package var tornBytes: Int64 = 0
    package var messages: UInt32 = 0
    /// The disk does not give back what stands at `end`: the segment may be longer, and is not sealed on this word.
    package var unreadableEnd = false
}

/// What is known from elsewhere about what was acknowledged.
package struct AckEvidence: Sendable {
    /// Everything before this offset was acknowledged (sealed length, the log's marks).
    package var offset: Int64 = 0
    /// This many messages were acknowledged (an outcome exists, or the marks say so).
    package var messages: UInt32 = 0

    package init() {}
}

/// Every chunk is synced before the next is written. So an invalid chunk with a valid one behind it was acknowledged or could
/// have been: damage, never cut. Without one behind it, and with nothing at or behind it known as acknowledged, it is the
/// torn tail of a crash. Reads headers and envelope blocks; bodies only of a last chunk that nothing vouches for.
struct SegmentScanner {
    let disk: any Disk
    let file: DiskFile
    let id: SegmentID
    let size: Int64
    let evidence: AckEvidence

    /// A chunk that the disk does not give back is no end of the segment: it counts as damage, and what follows is served.
    ///
    /// `visit` gets each intact chunk's envelope block, in order, and says whether it makes sense.
    func scan(_ visit: (ChunkHeader, ByteBuffer) -> Bool) throws(DiskError) -> SegmentScan {
        var scan = SegmentScan()
        var position: Int64 = 0
        while position + Int64(ChunkHeader.length) <= size {
            var unreadable = false
            if let (header, block) = chunk(at: position, after: scan, &unreadable), visit(header, block) {
                scan.chunks.append(header)
                scan.messages = header.firstMessage + header.messages
                position = header.end
                scan.end = position
                continue
            }
            guard let next = try nextHeader(after: position, &unreadable) else {
                if unreadable {
                    // Whether it was acknowledged cannot be told: never cut.
                    scan.damage.append(
                        DamagedRange(
                            from: position, to: max(evidence.offset, position + Int64(ChunkHeader.alignment)),
                            what: "place that cannot be read"))
                    scan.end = position
                    scan.unreadableEnd = true
                } else {
                    settleTail(at: position, &scan)
                }
                return scan
            }
            scan.damage.append(DamagedRange(from: position, to: next, what: "chunk"))
            position = next
            scan.end = next
        }
        settleTail(at: position, &scan)
        return scan
    }

    /// Nothing valid stands at or behind `position`.
    private func settleTail(at position: Int64, _ scan: inout SegmentScan) {
        let acknowledged = max(evidence.offset, evidence.messages > scan.messages ? position + 1 : 0)
        if acknowledged > position {
            // Something was promised here and cannot be read.
            let end = max(evidence.offset, position + Int64(ChunkHeader.alignment))
            scan.damage.append(DamagedRange(from: position, to: end, what: "acknowledged tail"))
            scan.end = end
        } else {
            scan.end = position
            scan.tornBytes = tornBytes(at: position)
        }
    }

    private func chunk(
        at position: Int64, after scan: SegmentScan, _ unreadable: inout Bool
    ) -> (header: ChunkHeader, envelopes: ByteBuffer)? {
        do throws(DiskError) {
            guard let header = try intact(at: position, after: scan), let block = try envelopeBlock(of: header),
                try isComplete(header)
            else { return nil }
            return (header, block)
        } catch {
            unreadable = true
            return nil
        }
    }

    private func header(at position: Int64) throws(DiskError) -> ChunkHeader? {
        let bytes = try DiskRead.upTo(ChunkHeader.length, of: file, at: position, from: disk)
        guard let (header, _) = ChunkHeader.parse(bytes), header.segment == id, header.offset == position,
            header.contentLength <= size - position
        else { return nil }
        return header
    }

    private func intact(at position: Int64, after scan: SegmentScan) throws(DiskError) -> ChunkHeader? {
        guard let header = try header(at: position), header.firstMessage >= scan.messages else { return nil }
        // Numbers that were skipped must have had room in what was skipped.
        let gap = position - (scan.chunks.last?.end ?? 0)
        guard Int64(header.firstMessage - scan.messages) <= gap / 64 else { return nil }
        return header
    }

    private func envelopeBlock(of header: ChunkHeader) throws(DiskError) -> ByteBuffer? {
        guard
            let block = try DiskRead.exactly(
                Int(header.envelopeLength), of: file, at: header.offset + Int64(ChunkHeader.length), from: disk),
            block.crc32c == header.envelopeCRC
        else { return nil }
        return block
    }

    /// A chunk known to be acknowledged is whole; its bodies are checked when they are read. The last one is checked here.
    private func isComplete(_ header: ChunkHeader) throws(DiskError) -> Bool {
        if header.end <= evidence.offset || header.firstMessage + header.messages <= evidence.messages { return true }
        // One behind it says so; one that cannot be read says nothing about this one.
        if header.end + Int64(ChunkHeader.length) <= size, (try? self.header(at: header.end)) != nil { return true }
        return try bodiesAreIntact(header)
    }

    /// Whether the chunk's body block has its CRC32C.
    func bodiesAreIntact(_ header: ChunkHeader) throws(DiskError) -> Bool {
        var crc: UInt32 = 0
        var left = Int(header.bodyLength)
        var at = header.bodyOffset
        while left > 0 {
            guard let piece = try DiskRead.exactly(min(left, ByteCount.mebi), of: file, at: at, from: disk) else {
                return false
            }
            crc = piece.withUnsafeReadableBytes { CRC32C.of($0, seed: crc) }
            left -= piece.readableBytes
            at += Int64(piece.readableBytes)
        }
        return crc == header.bodyCRC
    }

    /// The next place behind `position` with a valid header of this segment.
    private func nextHeader(after position: Int64, _ unreadable: inout Bool) throws(DiskError) -> Int64? {
        let step = Int64(ChunkHeader.alignment)
        var at = (position / step + 1) * step
        while at + Int64(ChunkHeader.length) <= size {
            guard let window = try? DiskRead.upTo(256 * ByteCount.kibi, of: file, at: at, from: disk) else {
                // Block by block around the hole.
                unreadable = true
                if (try? header(at: at)) != nil { return at }
                at += step
                continue
            }
            var index = 0
            while index + ChunkHeader.length <= window.readableBytes {
                let magic: UInt32? = window.getInteger(at: index, endianness: .little)
                if magic == ChunkHeader.magic, (try? header(at: at + Int64(index))) != nil {
                    return at + Int64(index)
                }
                index += ChunkHeader.alignment
            }
            guard window.readableBytes == 256 * ByteCount.kibi else { return nil }
            at += Int64(window.readableBytes)
        }
        return nil
    }

    /// Length of an unfinished chunk whose header can be read; 0 where nothing of it can.
    private func tornBytes(at position: Int64) -> Int64 {
        guard let bytes = try? DiskRead.upTo(ChunkHeader.length, of: file, at: position, from: disk),
            let (header, _) = ChunkHeader.parse(bytes), header.segment == id, header.offset == position
        else { return 0 }
        return header.end - position
    }
}
