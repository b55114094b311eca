// The copies' part in takeovers and new copies: seals, reads, and octets put in their place.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import Logging
import NIOCore

extension CopyWorker {
    mutating func seal(_ id: SegmentID, _ epoch: UInt64, at now: Instant) -> CopySeal {
        let files = files(id)
        do throws(DiskError) {
            guard let copy = try open(id, at: now) else { return .missing }
            var state = copy.state
            if let higher = state.seal(at: epoch) { return .superseded(epoch: higher) }
            copies[id]?.state = state
            guard persistSeal(files, epoch, state) else { return .failed }
            // What a failed fdatasync left is not known: such a copy says nothing about its length.
            guard !state.failed, let file = copy.file else { return .failed }
            try disk.sync(file)
            let entries = try files.gathered()
            copies[id]?.ackedOffset = max(copy.ackedOffset, entries.ackedOffset)
            // Everything in the file, a chunk that nobody confirmed included.
            let found = try scan(id, file, acked: max(copy.ackedOffset, entries.ackedOffset))
            copies[id]?.state.rescanned(end: found.end, tailInvalid: found.tailInvalid)
            return .sealed(
                CopyReport(
                    end: found.end, tailInvalid: found.tailInvalid,
                    outcomeOctets: Int64(entries.octets.readableBytes)))
        } catch {
            fail(id, error)
            return .failed
        }
    }

    /// The fence binds already; false when it would not survive a restart. A file of its own each time, so that trying again is
    /// no retry of a failed fdatasync, and a full disk is no failure of the copy.
    private mutating func persistSeal(_ files: SegmentFiles, _ epoch: UInt64, _ state: CopyState) -> Bool {
        guard state.persisted < epoch || state.isSealRotten else { return true }
        do throws(DiskError) {
            try files.seal(at: epoch)
            copies[files.name.id]?.state.sealPersisted(epoch)
            return true
        } catch {
            logger.error(
                "copies: a seal cannot be stored",
                metadata: ["segment": "\(files.name)", "call": "\(error.call)", "errno": "\(error.errno)"])
            return false
        }
    }

    mutating func read(
        _ id: SegmentID, _ content: CopyContent, _ offset: Int64, _ most: Int, at now: Instant
    ) -> CopyRead {
        guard offset >= 0, most > 0 else { return .failed }
        let files = files(id)
        do throws(DiskError) {
            switch content {
            case .chunks:
                guard let copy = try open(id, at: now) else { return .missing }
                guard let file = copy.file else { return .failed }
                // A file that the lane writes grows behind our back: what stands there now counts.
                var end = copy.state.end
                if offset >= end {
                    // What is found counts as durable from here on.
                    try disk.sync(file)
                    let found = try scan(id, file, acked: copy.ackedOffset)
                    end = found.end
                    copies[id]?.state.rescanned(end: found.end, tailInvalid: found.tailInvalid)
                }
                let count = Int(min(Int64(most), max(0, end - offset)))
                let bytes = try DiskRead.upTo(count, of: file, at: offset, from: disk)
                return .octets(bytes, last: offset + Int64(bytes.readableBytes) >= end)
            case .chunk: return readChunk(id, at: offset, atMost: most)
            case .outcomeEntries:
                return Self.piece(of: try files.entries(), from: offset, atMost: most)
            case .outcomeLog(let epoch):
                let file = try disk.open(files.logPath(epoch: epoch), .read)
                defer { try? disk.close(file) }
                let size = try disk.size(file)
                let count = Int(min(Int64(most), max(0, size - offset)))
                let bytes = try DiskRead.upTo(count, of: file, at: offset, from: disk)
                return .octets(bytes, last: offset + Int64(bytes.readableBytes) >= size)
            }
        } catch {
            return error.errno == ENOENT ? .missing : .failed
        }
    }

    /// More than its bound a taker would not take into memory anyway.
    static func piece(of buffer: ByteBuffer, from offset: Int64, atMost most: Int) -> CopyRead {
        guard buffer.readableBytes <= CopyLimits.entryOctets else { return .failed }
        let start = Int(min(offset, Int64(buffer.readableBytes)))
        let count = min(most, buffer.readableBytes - start)
        guard let piece = buffer.getSlice(at: buffer.readerIndex + start, length: count) else { return .failed }
        return .octets(piece, last: start + count >= buffer.readableBytes)
    }

    mutating func restore(
        _ id: SegmentID, _ purpose: RestorePurpose, _ offset: Int64, _ bytes: ByteBuffer, at now: Instant
    ) -> Bool {
        guard offset >= 0, offset <= SpoolLimits.segmentBytesMax else { return false }
        guard purpose == .repair || hasRoom else { return false }
        let files = files(id)
        do throws(DiskError) {
            if try open(id, at: now) == nil {
                let state = CopyState(end: 0, tailInvalid: false, seal: try files.readSeal())
                let file = try disk.open(files.segmentPath, .create)
                copies[id] = Copy(state: state, file: file, usedAt: now)
                try disk.syncDirectory(directory)
            }
            guard let file = copies[id]?.file, copies[id]?.state.failed == false else { return false }
            try bytes.writeAll(to: file, at: offset, on: disk)
            try disk.sync(file)
            return true
        } catch {
            if error.errno != DiskError.noSpace, error.errno != DiskError.quota { fail(id, error) }
            return false
        }
    }
}
