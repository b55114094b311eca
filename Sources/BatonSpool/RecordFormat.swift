// The records of a chunk's envelope block: messages and fragments (docs/SPOOL_FORMAT.md, "Records").
import BatonCore
import BatonModel
import NIOCore

/// How stored bytes are coded.
package enum BodyCodec: UInt8, Sendable {
    case none = 0
    case lz4 = 1
}

/// A run of stored body bytes: where, how long, how coded, with its own CRC32C. 24 bytes on disk.
///
/// ```
///  0  i64 offset in the segment file   8  u32 stored length  12  u32 raw length  16  u32 CRC32C of the stored bytes
/// 20  u8  codec                       21  3 bytes zero
/// ```
package struct BodyExtent: Hashable, Sendable {
    package var offset: Int64
    package var storedLength: UInt32
    package var rawLength: UInt32
    package var crc32c: UInt32
    package var codec: BodyCodec

    package static let length = 24

    func write(into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(
            offset, storedLength, rawLength, crc32c, UInt32(codec.rawValue), endianness: .little)
    }

    static func read(_ buffer: inout ByteBuffer) -> BodyExtent? {
        guard
            let (offset, stored, raw, crc, tail) = buffer.readMultipleIntegers(
                endianness: .little, as: (Int64, UInt32, UInt32, UInt32, UInt32).self),
            offset >= 0, tail <= 1, let codec = BodyCodec(rawValue: UInt8(tail)),
            Int(stored) <= SpoolLimits.bodyBlockBytes, Int(raw) <= SpoolLimits.bodyBlockBytes,
            codec != .none || stored == raw
        else { return nil }
        return BodyExtent(offset: offset, storedLength: stored, rawLength: raw, crc32c: crc, codec: codec)
    }
}

/// Where a moved message came from (PROTOCOL C2 ii): it counts only once its source is finished at this epoch.
package struct MovedFrom: Hashable, Sendable {
    package let source: SegmentID
    package let record: UInt32
    package let drainEpoch: UInt64
    /// Last outcome of each recipient that has one.
    package let outcomes: [OutcomeRecord]
}

/// A message as it stands in an envelope block.
///
/// ```
///  0  u32 record length, a multiple of 8, all of this   4  u32 CRC32C of the record from 8 to its end
///  8  u8 kind = 1   9  u8 bits (1: fragmented, 2: moved)   10  u16 zero   12  u32 extents   16  u32 envelope length
/// 20  u32 zero
/// 24  extents, 24 bytes each (one for a whole body)
///     moved only: 24 bytes source segment, u32 source record, u32 outcomes, u64 drain epoch, u32 n, outcome records
///     envelope (`EnvelopeCodec`), zeros up to a multiple of 8
/// ```
package struct MessageRecord: Sendable {
    package let envelope: Envelope
    package let fragmented: Bool
    package let extents: [BodyExtent]
    package let moved: MovedFrom?

    static let kind: UInt8 = 1
    static let headLength = 24

    /// Stored bytes of the body.
    var storedBytes: Int { extents.reduce(0) { $0 + Int($1.storedLength) } }
}

/// What a walk over an envelope block meets.
package enum ChunkRecord: Sendable {
    /// With the record's offset within the block and its length.
    case message(MessageRecord, at: Int, length: Int)
    /// Body bytes of a stream that a later message may commit; nothing by itself.
    case fragment(stream: UInt64, index: UInt32, BodyExtent)
}

package enum RecordFormat {
    static let fragmentKind: UInt8 = 2

    /// ```
    ///  0  u32 record length = 48   4  u32 CRC32C of the record from 8 to its end
    ///  8  u8 kind = 2   9  3 bytes zero   12  u32 fragment number   16  u64 stream   24  extent
    /// ```
    static let fragmentLength = 48

    static func padded(_ length: Int) -> Int { (length + 7) & ~7 }

    /// Sets the CRC32C of the record at `start`, once everything else of it stands.
    static func seal(recordAt start: Int, length: Int, in buffer: inout ByteBuffer) {
        buffer.setInteger(buffer.crc32c(at: start + 8, length: length - 8), at: start + 4, endianness: .little)
    }

    /// Reads the record at the buffer's start; nil for anything that was not written by this format.
    package static func read(_ buffer: inout ByteBuffer, blockOffset: Int) -> ChunkRecord? {
        guard let length: UInt32 = buffer.getInteger(at: buffer.readerIndex, endianness: .little),
            length >= 24, length % 8 == 0, Int(length) <= buffer.readableBytes,
            var record = buffer.readSlice(length: Int(length)),
            let (_, crc, kind, bits, _) = record.readMultipleIntegers(
                endianness: .little, as: (UInt32, UInt32, UInt8, UInt8, UInt16).self),
            record.crc32c(at: record.readerIndex - 4, length: Int(length) - 8) == crc
        else { return nil }
        switch kind {
        case MessageRecord.kind:
            guard let message = readMessage(&record, bits: bits) else { return nil }
            return .message(message, at: blockOffset, length: Int(length))
        case fragmentKind:
            guard
                let (index, stream) = record.readMultipleIntegers(endianness: .little, as: (UInt32, UInt64).self),
                let extent = BodyExtent.read(&record), record.readableBytes == 0
            else { return nil }
            return .fragment(stream: stream, index: index, extent)
        default: return nil
        }
    }

    private static func readMessage(_ record: inout ByteBuffer, bits: UInt8) -> MessageRecord? {
        guard bits <= 3,
            let (count, envelopeLength, _) = record.readMultipleIntegers(
                endianness: .little, as: (UInt32, UInt32, UInt32).self),
            Int(count) <= SpoolLimits.fragmentsPerMessage, Int(count) * BodyExtent.length <= record.readableBytes,
            bits & 1 != 0 || count == 1
        else { return nil }
        var extents: [BodyExtent] = []
        extents.reserveCapacity(Int(count))
        for _ in 0..<count {
            guard let extent = BodyExtent.read(&record) else { return nil }
            extents.append(extent)
        }
        var moved: MovedFrom?
        if bits & 2 != 0 {
            guard let found = readMoved(&record) else { return nil }
            moved = found
        }
        guard Int(envelopeLength) <= Limits.envelopeBytes, let bytes = record.readSlice(length: Int(envelopeLength)),
            record.readableBytes < 8, let envelope = EnvelopeCodec.decode(bytes)
        else { return nil }
        var raw = 0
        for extent in extents { raw += Int(extent.rawLength) }
        guard raw == envelope.traits.length else { return nil }
        return MessageRecord(envelope: envelope, fragmented: bits & 1 != 0, extents: extents, moved: moved)
    }

    private static func readMoved(_ record: inout ByteBuffer) -> MovedFrom? {
        guard let source = RegistryFormat.readSegmentID(&record),
            let (sourceRecord, count, epoch, length) = record.readMultipleIntegers(
                endianness: .little, as: (UInt32, UInt32, UInt64, UInt32).self),
            var bytes = record.readSlice(length: Int(length)), Int(count) * OutcomeRecord.lengthMin <= Int(length)
        else { return nil }
        var outcomes: [OutcomeRecord] = []
        for _ in 0..<count {
            guard let outcome = OutcomeRecord.readBody(&bytes) else { return nil }
            outcomes.append(outcome)
        }
        guard bytes.readableBytes == 0 else { return nil }
        return MovedFrom(source: source, record: sourceRecord, drainEpoch: epoch, outcomes: outcomes)
    }

    static func writeMoved(_ moved: MovedFrom, into buffer: inout ByteBuffer) {
        RegistryFormat.write(moved.source, into: &buffer)
        var bytes = ByteBuffer()
        for outcome in moved.outcomes { outcome.writeBody(into: &bytes) }
        buffer.writeMultipleIntegers(
            moved.record, UInt32(moved.outcomes.count), moved.drainEpoch, UInt32(bytes.readableBytes),
            endianness: .little)
        buffer.writeBuffer(&bytes)
    }

    static func writeFragment(stream: UInt64, index: UInt32, _ extent: BodyExtent, into buffer: inout ByteBuffer) {
        buffer.writeMultipleIntegers(
            UInt32(fragmentLength), UInt32(0), fragmentKind, UInt8(0), UInt16(0), index, stream, endianness: .little)
        extent.write(into: &buffer)
    }
}
