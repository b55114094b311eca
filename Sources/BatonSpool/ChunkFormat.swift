// A chunk: the unit of write, fdatasync and replication. Its header byte by byte (docs/SPOOL_FORMAT.md, "Chunk").
import BatonCore
import NIOCore

/// ```
///   0  u32 magic "BTNC"          4  u16 version = 1           6  u16 header length = 128
///   8  u64 writer               16  u64 incarnation          24  u64 index
///  32  u64 append epoch         40  i64 segment offset of this chunk
///  48  i64 acked offset known to the writer: everything before it is acknowledged
///  56  u32 chunk number         60  u32 record count (messages and fragments)
///  64  u32 number of the first message record in this segment
///  68  u32 messages             72  u32 envelope-block length    76  u32 body-block length
///  80  u32 CRC32C of envelope block   84  u32 CRC32C of body block
///  88  u32 CRC32C of the previous chunk's header (0 for the first)
///  92  u32 zero                 96  i64 written at (ns)     104  20 bytes zero
/// 124  u32 CRC32C of bytes 0 ..< 124
/// ```
/// Then the envelope block, the body block, and zeros up to a multiple of 4096: no later write touches a block that holds
/// acknowledged bytes, and no write needs a block to be read first. All integers little-endian.
package struct ChunkHeader: Hashable, Sendable {
    package var segment: SegmentID
    package var appendEpoch: UInt64
    package var offset: Int64
    package var ackedOffset: Int64
    package var number: UInt32
    package var records: UInt32
    package var firstMessage: UInt32
    package var messages: UInt32
    package var envelopeLength: UInt32
    package var bodyLength: UInt32
    package var envelopeCRC: UInt32
    package var bodyCRC: UInt32
    package var previousHeaderCRC: UInt32
    package var writtenAt: Instant

    package static let length = 128
    /// Chunks begin at multiples of this.
    package static let alignment = 4096
    static let magic: UInt32 = 0x434e_5442  // "BTNC"
    static let version: UInt16 = 1

    /// Bytes of header and blocks without the padding.
    package var contentLength: Int { Self.length + Int(envelopeLength) + Int(bodyLength) }
    /// Where the next chunk begins.
    package var end: Int64 { offset + Int64(Self.padded(contentLength)) }
    package var bodyOffset: Int64 { offset + Int64(Self.length) + Int64(envelopeLength) }

    package static func padded(_ length: Int) -> Int { (length + alignment - 1) / alignment * alignment }

    /// Overwrites the first 128 bytes of `buffer`, which the caller has reserved. Returns the header's CRC32C.
    @discardableResult
    package func write(over buffer: inout ByteBuffer) -> UInt32 {
        let start = buffer.readerIndex
        precondition(buffer.readableBytes >= Self.length)
        var header = ByteBufferAllocator().buffer(capacity: Self.length)
        header.writeMultipleIntegers(Self.magic, Self.version, UInt16(Self.length), endianness: .little)
        header.writeMultipleIntegers(
            segment.writer.value, segment.incarnation.value, segment.index, appendEpoch, endianness: .little)
        header.writeMultipleIntegers(
            offset, ackedOffset, number, records, firstMessage, messages, endianness: .little)
        header.writeMultipleIntegers(
            envelopeLength, bodyLength, envelopeCRC, bodyCRC, previousHeaderCRC, UInt32(0), writtenAt.nanoseconds,
            endianness: .little)
        header.writeRepeatingByte(0, count: Self.length - 4 - header.readableBytes)
        let crc = header.crc32c
        header.writeInteger(crc, endianness: .little)
        buffer.setBuffer(header, at: start)
        return crc
    }

    /// The header in 128 bytes, with its CRC32C; nil for anything but a valid header of a known version with lengths
    /// within the limits. Does not compare segment and offset: the caller does.
    package static func parse(_ bytes: ByteBuffer) -> (header: ChunkHeader, crc: UInt32)? {
        guard bytes.readableBytes >= length else { return nil }
        var buffer = bytes
        guard
            let (magic, version, headerLength) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt32, UInt16, UInt16).self),
            magic == Self.magic, version == Self.version, Int(headerLength) == length,
            let stored: UInt32 = bytes.getInteger(at: bytes.readerIndex + length - 4, endianness: .little),
            bytes.crc32c(at: bytes.readerIndex, length: length - 4) == stored,
            let (writer, incarnation, index, epoch) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt64, UInt64, UInt64, UInt64).self),
            let (offset, acked, number, records, first, messages) = buffer.readMultipleIntegers(
                endianness: .little, as: (Int64, Int64, UInt32, UInt32, UInt32, UInt32).self),
            let (envelopeLength, bodyLength, envelopeCRC, bodyCRC, previous, _, written) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt32, UInt32, UInt32, UInt32, UInt32, UInt32, Int64).self),
            offset >= 0, offset % Int64(alignment) == 0, offset <= Int64.max / 2, acked >= 0, acked <= offset,
            messages <= records, Int(envelopeLength) <= SpoolLimits.envelopeBlockBytes,
            Int(bodyLength) <= SpoolLimits.bodyBlockBytes, Int(records) <= Int(envelopeLength) / 8,
            first <= UInt32.max - messages
        else { return nil }
        let header = ChunkHeader(
            segment: SegmentID(
                writer: NodeID(value: writer), incarnation: Incarnation(value: incarnation), index: index),
            appendEpoch: epoch, offset: offset, ackedOffset: acked, number: number, records: records,
            firstMessage: first, messages: messages, envelopeLength: envelopeLength, bodyLength: bodyLength,
            envelopeCRC: envelopeCRC, bodyCRC: bodyCRC, previousHeaderCRC: previous,
            writtenAt: Instant(nanoseconds: written))
        return (header, stored)
    }
}
