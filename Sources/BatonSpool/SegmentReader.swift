// Reads stored messages and bodies back, checking every byte it gives out.
import BatonCore
import BatonModel
import BatonRuntime
import NIOCore

/// What reading one thing came to.
enum Stored<Value: Sendable>: Sendable {
    case found(Value)
    /// CRC32C or structure is wrong.
    case damaged
    case failed(DiskError)
}

/// Segment files open for reading, the last `SpoolLimits.openReadFiles` used. Owned by one reader thread.
struct SegmentReader: Sendable {
    let disk: any Disk
    let directory: String
    private var files: [(name: SegmentName, file: DiskFile)] = []

    init(disk: any Disk, directory: String) {
        self.disk = disk
        self.directory = directory
    }

    /// The record of a message. One read for a usual envelope.
    mutating func record(at location: MessageLocation) -> Stored<MessageRecord> {
        do throws(DiskError) {
            let file = try open(location.name)
            var bytes = try DiskRead.upTo(2048, of: file, at: location.offset, from: disk)
            guard let length: UInt32 = bytes.getInteger(at: 0, endianness: .little), length >= 24,
                Int(length) <= SpoolLimits.envelopeBlockBytes
            else { return .damaged }
            if Int(length) > bytes.readableBytes {
                bytes = try DiskRead.upTo(Int(length), of: file, at: location.offset, from: disk)
            }
            guard case .message(let message, _, _) = RecordFormat.read(&bytes, blockOffset: 0) else { return .damaged }
            return .found(message)
        } catch {
            return .failed(error)
        }
    }

    /// The raw octets of an extent.
    mutating func bytes(of extent: BodyExtent, in name: SegmentName) -> Stored<ByteBuffer> {
        do throws(DiskError) {
            let file = try open(name)
            guard
                let stored = try DiskRead.exactly(Int(extent.storedLength), of: file, at: extent.offset, from: disk),
                stored.crc32c == extent.crc32c
            else { return .damaged }
            switch extent.codec {
            case .none: return .found(stored)
            case .lz4:
                guard let raw = LZ4.decompress(stored, rawLength: Int(extent.rawLength)) else { return .damaged }
                return .found(raw)
            }
        } catch {
            return .failed(error)
        }
    }

    /// Envelope and body; the body of a fragmented message is only named.
    mutating func message(at location: MessageLocation) -> Stored<(envelope: Envelope, body: StoredBody)> {
        let message: MessageRecord
        switch record(at: location) {
        case .found(let found): message = found
        case .damaged: return .damaged
        case .failed(let error): return .failed(error)
        }
        let traits = message.envelope.traits
        if message.fragmented {
            return .found((message.envelope, .fragmented(traits: traits, count: UInt32(message.extents.count))))
        }
        guard let extent = message.extents.first else { return .damaged }
        switch bytes(of: extent, in: location.name) {
        case .found(let raw):
            // For LZ4 the stored bytes were checked above; these are the octets that were acknowledged.
            let intact = extent.codec == .none ? extent.crc32c == traits.crc32c : raw.crc32c == traits.crc32c
            guard intact, raw.readableBytes == traits.length else { return .damaged }
            return .found((message.envelope, .whole(MessageBody(bytes: raw, traits: traits))))
        case .damaged: return .damaged
        case .failed(let error): return .failed(error)
        }
    }

    mutating func fragment(_ index: UInt32, at location: MessageLocation) -> Stored<ByteBuffer> {
        switch record(at: location) {
        case .found(let message):
            guard message.fragmented, Int(index) < message.extents.count else { return .damaged }
            return bytes(of: message.extents[Int(index)], in: location.name)
        case .damaged: return .damaged
        case .failed(let error): return .failed(error)
        }
    }

    mutating func close(where gone: (SegmentName) -> Bool = { _ in true }) {
        for (name, file) in files where gone(name) { try? disk.close(file) }
        files.removeAll { gone($0.name) }
    }

    mutating func finder(of name: SegmentName) -> ChunkFinder? {
        guard let file = try? open(name) else { return nil }
        return ChunkFinder(disk: disk, file: file, id: name.id)
    }

    private mutating func open(_ name: SegmentName) throws(DiskError) -> DiskFile {
        if let index = files.lastIndex(where: { $0.name == name }) {
            let found = files[index]
            if index != files.count - 1 {
                files.remove(at: index)
                files.append(found)
            }
            return found.file
        }
        if files.count >= SpoolLimits.openReadFiles {
            try? disk.close(files.removeFirst().file)
        }
        let file = try disk.open("\(directory)/\(name.segmentFile)", .read)
        files.append((name, file))
        return file
    }
}
