// Chunks that rot: given whole and intact to the drainer that asks, and put back into a file of this node's own.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import NIOCore

extension CopyWorker {
    /// The chunk that begins at this place, if every octet of it has its checksum.
    func readChunk(_ id: SegmentID, at offset: Int64, atMost most: Int) -> CopyRead {
        do throws(DiskError) {
            let file = try disk.open(files(id).segmentPath, .read)
            defer { try? disk.close(file) }
            let bytes = try DiskRead.upTo(ChunkHeader.length, of: file, at: offset, from: disk)
            guard let (header, _) = ChunkHeader.parse(bytes), header.segment == id, header.offset == offset,
                header.end - offset <= Int64(min(most, DamagedChunk.octetsMax)),
                let chunk = try DiskRead.exactly(Int(header.end - offset), of: file, at: offset, from: disk),
                Self.isChunk(chunk, of: id, at: offset)
            else { return .damaged }
            return .octets(chunk, last: true)
        } catch {
            // A place that the disk does not give back counts as damage.
            return error.errno == ENOENT ? .missing : error.errno == EIO ? .damaged : .failed
        }
    }

    /// Puts a chunk back at its place. Before its fdatasync a crash leaves each of its blocks as it was, or as it was promised: no
    /// worse than the damage. A lane may go on writing behind `acked`, in blocks of its own; a failed fdatasync is told to its
    /// descriptor as well. The file is opened anew and never made: what was unlinked since stays gone.
    mutating func mend(_ chunk: DamagedChunk, _ octets: ByteBuffer) -> CopyMend {
        guard chunk.takes(octets), let (header, crc) = ChunkHeader.parse(octets) else { return .other }
        do throws(DiskError) {
            let file = try disk.open(files(chunk.segment).segmentPath, .readWrite)
            defer { try? disk.close(file) }
            guard ChunkFinder(disk: disk, file: file, id: chunk.segment).promises(header, crc: crc) else {
                logger.error(
                    "copies: another chunk was offered for a damaged one", metadata: Self.place(of: chunk))
                return .other
            }
            // The padding has no checksum: it is made here, not taken.
            var whole = octets.getSlice(at: octets.readerIndex, length: header.contentLength) ?? octets
            whole.writeRepeatingByte(0, count: max(0, octets.readableBytes - whole.readableBytes))
            try whole.writeAll(to: file, at: chunk.offset, on: disk)
            try disk.sync(file)
            return .mended
        } catch {
            if error.errno != DiskError.noSpace, error.errno != DiskError.quota, error.errno != ENOENT {
                fail(chunk.segment, error)
            }
            return .failed
        }
    }

    static func place(of chunk: DamagedChunk) -> Logger.Metadata {
        ["segment": "\(SegmentName(chunk.segment))", "offset": "\(chunk.offset)"]
    }
}
