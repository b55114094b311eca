// A chunk that cannot be read here: where it stands, and which octets may take its place.
import BatonCore
import BatonRuntime
import NIOCore

/// A chunk of which something fails its checksum, in a segment that this node drains.
package struct DamagedChunk: Hashable, Sendable {
    package let segment: SegmentID
    package let offset: Int64
    /// Where it ends by its own header; nil where that is damaged as well.
    package let end: Int64?
    /// Everything before it is acknowledged. Nothing behind it is repaired: there the lane may write.
    package let acked: Int64

    package init(segment: SegmentID, offset: Int64, end: Int64?, acked: Int64) {
        self.segment = segment
        self.offset = offset
        self.end = end
        self.acked = acked
    }

    /// Octets of the largest chunk that is repaired: what one CHUNK holds. Only an envelope of more than a mebibyte makes a larger one.
    package static let octetsMax = 2 * ByteCount.mebi

    /// Whether these octets are a whole chunk of this segment, of this length, at this place, by their own checksums.
    package func takes(_ octets: ByteBuffer) -> Bool {
        guard octets.readableBytes <= Self.octetsMax, CopyWorker.isChunk(octets, of: segment, at: offset) else {
            return false
        }
        let found = offset + Int64(octets.readableBytes)
        return found <= acked && end.map { $0 == found } ?? true
    }
}

/// How the repair of a chunk ended.
package enum ChunkRepair: Hashable, Sendable {
    /// It stands in the file as it was promised, fdatasync'ed.
    case repaired
    /// Every other member was asked, and none has it intact.
    case nowhere
    /// A member was away or did not answer, or the own disk failed: the next read begins anew.
    case unanswered
}

/// Where the chunk stands that holds an octet, in a file in which some headers may be damaged.
struct ChunkFinder {
    let disk: any Disk
    let file: DiskFile
    let id: SegmentID

    struct Place: Hashable, Sendable {
        let offset: Int64
        /// Nil where it is damaged: then the chunk begins where the one before it ends.
        let header: ChunkHeader?
    }

    /// The header at this place, with its CRC. A place that the disk does not give back has none.
    func header(at offset: Int64) -> (header: ChunkHeader, crc: UInt32)? {
        guard let bytes = try? DiskRead.upTo(ChunkHeader.length, of: file, at: offset, from: disk),
            let found = ChunkHeader.parse(bytes), found.header.segment == id, found.header.offset == offset
        else { return nil }
        return found
    }

    /// Backwards from the octet: the first header that is met is that of its chunk, or of the last intact one before it.
    func place(of octet: Int64) -> Place? {
        guard octet >= 0 else { return nil }
        guard let found = last(before: octet / Self.page * Self.page + Self.page) else {
            return octet < Self.reach ? Place(offset: 0, header: nil) : nil
        }
        if found.header.end > octet { return Place(offset: found.header.offset, header: found.header) }
        return Place(offset: found.header.end, header: nil)
    }

    /// The last intact header that stands before this multiple of the alignment.
    func last(before offset: Int64) -> (header: ChunkHeader, crc: UInt32)? {
        var at = offset - Self.page
        while at >= 0, offset - at <= Self.reach {
            if let found = header(at: at) { return found }
            at -= Self.page
        }
        return nil
    }

    private static let page = Int64(ChunkHeader.alignment)
    /// A damaged chunk of the largest size, and one before it.
    private static let reach = 2 * Int64(DamagedChunk.octetsMax)

    /// Whether this header is the one that was promised at its place, as far as the file still tells: it is the one that stands there,
    /// or else its neighbours name it, and it covers no other chunk.
    func promises(_ header: ChunkHeader, crc: UInt32) -> Bool {
        if let own = self.header(at: header.offset) { return own.header == header && own.crc == crc }
        if let before = last(before: header.offset) {
            guard before.header.end <= header.offset else { return false }
            if before.header.end == header.offset {
                guard header.previousHeaderCRC == before.crc, header.number == before.header.number &+ 1,
                    header.firstMessage == before.header.firstMessage &+ before.header.messages
                else { return false }
            }
        } else if header.offset == 0 {
            guard header.number == 0, header.previousHeaderCRC == 0, header.firstMessage == 0 else { return false }
        }
        var at = header.offset + Self.page
        while at < header.end {
            if self.header(at: at) != nil { return false }
            at += Self.page
        }
        guard let next = self.header(at: header.end) else { return true }
        return next.header.previousHeaderCRC == crc && next.header.number == header.number &+ 1
    }
}
