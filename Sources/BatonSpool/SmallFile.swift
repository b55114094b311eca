// Whole small files that are replaced as one: identity, incarnation, registry.
import BatonCore
import BatonRuntime
import Glibc
import NIOCore

/// Layout: `payload | u32 CRC32C of the payload`. Replaced by writing a temporary file, fsync, rename, fsync of the directory.
enum SmallFile {
    enum Content {
        case absent
        case damaged
        case payload(ByteBuffer)
    }

    /// Reads a file of at most `limit` bytes. An unreadable or damaged one is `damaged`, never absent.
    static func read(_ path: String, limit: Int, from disk: any Disk) -> Content {
        do throws(DiskError) {
            return try load(path, limit: limit, from: disk)
        } catch {
            return .damaged
        }
    }

    /// As `read`, but a file that the disk does not give back is an error: only what was read can be called damaged.
    static func load(_ path: String, limit: Int, from disk: any Disk) throws(DiskError) -> Content {
        let file: DiskFile
        do throws(DiskError) {
            file = try disk.open(path, .read)
        } catch {
            guard error.errno == ENOENT else { throw error }
            return .absent
        }
        defer { try? disk.close(file) }
        let size = try disk.size(file)
        guard size >= 4, size <= Int64(limit), let found = try DiskRead.exactly(Int(size), of: file, at: 0, from: disk),
            let stored: UInt32 = found.getInteger(at: found.writerIndex - 4, endianness: .little),
            let payload = found.getSlice(at: found.readerIndex, length: found.readableBytes - 4),
            payload.crc32c == stored
        else { return .damaged }
        return .payload(payload)
    }

    static func replace(
        _ name: String, in directory: String, with payload: ByteBuffer, on disk: any Disk
    ) throws(DiskError) {
        let temporary = "\(directory)/\(name).tmp"
        do {
            try disk.unlink(temporary)
        } catch {
            guard error.errno == ENOENT else { throw error }
        }
        var bytes = payload
        bytes.writeInteger(payload.crc32c, endianness: .little)
        let file = try disk.open(temporary, .create)
        do {
            try bytes.writeAll(to: file, at: 0, on: disk)
            try disk.sync(file)
        } catch {
            try? disk.close(file)
            throw error
        }
        try disk.close(file)
        try disk.rename(temporary, to: "\(directory)/\(name)")
        try disk.syncDirectory(directory)
    }
}

/// Reads into buffers.
enum DiskRead {
    /// `length` bytes at `offset`; nil where the file ends before. The caller has bounded `length`.
    static func exactly(
        _ length: Int, of file: DiskFile, at offset: Int64, from disk: any Disk
    ) throws(DiskError) -> ByteBuffer? {
        let buffer = try upTo(length, of: file, at: offset, from: disk)
        return buffer.readableBytes == length ? buffer : nil
    }

    /// As many bytes as there are, at most `length`.
    static func upTo(
        _ length: Int, of file: DiskFile, at offset: Int64, from disk: any Disk
    ) throws(DiskError) -> ByteBuffer {
        var buffer = ByteBufferAllocator().buffer(capacity: length)
        var failure: DiskError?
        buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: length) { space in
            let target = UnsafeMutableRawBufferPointer(rebasing: space.prefix(length))
            do throws(DiskError) {
                return try disk.read(file, into: target, at: offset)
            } catch {
                failure = error
                return 0
            }
        }
        if let failure { throw failure }
        return buffer
    }
}

extension ByteBuffer {
    /// CRC32C of the readable bytes.
    var crc32c: UInt32 { withUnsafeReadableBytes { CRC32C.of($0) } }

    /// CRC32C of `length` bytes from `index`; both lie within what was written, which the caller has checked.
    func crc32c(at index: Int, length: Int, seed: UInt32 = 0) -> UInt32 {
        withVeryUnsafeBytes { bytes in
            precondition(index >= 0 && length >= 0 && index + length <= writerIndex)
            return CRC32C.of(UnsafeRawBufferPointer(rebasing: bytes[index..<(index + length)]), seed: seed)
        }
    }

    /// Writes the readable bytes to a file.
    func writeAll(to file: DiskFile, at offset: Int64, on disk: any Disk) throws(DiskError) {
        var failure: DiskError?
        withUnsafeReadableBytes { bytes in
            do throws(DiskError) {
                try disk.write(file, bytes, at: offset)
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
    }
}
