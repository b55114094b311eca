// What lies on this disk, for `recover-registry`: told without a registry, changed in nothing.
import BatonCore
import BatonRuntime
import NIOCore

/// A segment of which something lies on this disk.
package struct CopyOnDisk: Hashable, Sendable {
    package let id: SegmentID
    /// The highest epoch of a seal or an outcome log here; at least 1.
    package let epoch: UInt64
    /// The epoch at which the copy was sealed; 0 for none, or for one that is rotten.
    package let sealed: UInt64
    /// Up to where chunk follows chunk.
    package let end: Int64

    package init(id: SegmentID, epoch: UInt64, sealed: UInt64, end: Int64) {
        self.id = id
        self.epoch = epoch
        self.sealed = sealed
        self.end = end
    }
}

extension Spool {
    /// Everything with a segment file, whatever the registry says. Blocking; reads only. Throws where something cannot be listed:
    /// a list that lacks a copy would be worse than none.
    package func copiesOnDisk() throws(SpoolError) -> [CopyOnDisk] {
        do throws(DiskError) {
            var found: [CopyOnDisk] = []
            for file in try directory.disk.list(directory.segmentsPath) where file.hasSuffix(".seg") {
                guard let name = SegmentName(stem: file.dropLast(4)) else { continue }
                let files = SegmentFiles(disk: directory.disk, directory: directory.segmentsPath, name: name)
                let sealed = try files.readSeal().epoch
                let epochs = try files.logEpochs()
                found.append(
                    CopyOnDisk(
                        id: name.id, epoch: max(1, sealed, epochs.last ?? 1), sealed: sealed, end: try files.reach()))
            }
            return found
        } catch {
            throw SpoolError(.notWritable, "the segments cannot be listed", error)
        }
    }
}

extension SegmentFiles {
    /// Up to where chunk follows chunk, by their headers alone: a look at every copy has to be quick, and whoever takes the segment
    /// over reads the rest. A place that the disk does not give back ends it.
    func reach() throws(DiskError) -> Int64 {
        let file = try disk.open(segmentPath, .read)
        defer { try? disk.close(file) }
        let size = try disk.size(file)
        var end: Int64 = 0
        while let block = try? DiskRead.upTo(ChunkHeader.length, of: file, at: end, from: disk),
            let (header, _) = ChunkHeader.parse(block), header.segment == name.id, header.offset == end,
            header.contentLength <= size - end
        {
            end = header.end
        }
        return end
    }
}
