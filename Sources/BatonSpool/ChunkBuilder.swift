// Lays one chunk out in a buffer that is used again for the next.
import BatonCore
import BatonModel
import NIOCore

/// Where a message record landed, for the ledger.
struct PlacedMessage: Sendable {
    /// Offset of the record in the segment file.
    var offset: Int64
    /// Bytes of record and body.
    var storedBytes: UInt32
    var recipients: UInt32
}

/// Records first, bodies behind them, one copy each. Owned by the writer; grows to the largest chunk written and stays there.
struct ChunkBuilder: Sendable {
    private struct PendingBody: Sendable {
        let bytes: ByteBuffer
        /// Where its extent stands in the buffer.
        let extentIndex: Int
        let rawCRC: UInt32
        /// Index in `placed`, or in `fragments` if negative (-1 - index).
        let owner: Int
    }

    private var buffer: ByteBuffer
    private var bodies: [PendingBody] = []
    private var records: UInt32 = 0
    private(set) var placed: [PlacedMessage] = []
    private(set) var fragments: [(stream: FragmentStreamID, extent: BodyExtent)] = []
    private var compression: CompressionPolicy
    /// Bytes of records and bodies so far; the bound that the writer looks at.
    private(set) var bytes = 0

    init(compression: CompressionPolicy) {
        self.buffer = ByteBufferAllocator().buffer(capacity: Limits.chunkBytes + Limits.fragmentThreshold)
        self.compression = compression
    }

    var isEmpty: Bool { records == 0 }

    mutating func begin() {
        // A chunk with one huge envelope must not pin its buffer for ever.
        if buffer.capacity > 4 * Limits.chunkBytes {
            buffer = ByteBufferAllocator().buffer(capacity: Limits.chunkBytes + Limits.fragmentThreshold)
        }
        buffer.clear()
        buffer.writeRepeatingByte(0, count: ChunkHeader.length)
        bodies.removeAll(keepingCapacity: true)
        placed.removeAll(keepingCapacity: true)
        fragments.removeAll(keepingCapacity: true)
        records = 0
        bytes = 0
    }

    /// False, and nothing added, when the body is not what the envelope's traits say, or the record could not be read back.
    mutating func addMessage(_ envelope: Envelope, body: ByteBuffer, moved: MovedFrom? = nil) -> Bool {
        let crc = body.crc32c
        guard body.readableBytes == envelope.traits.length, crc == envelope.traits.crc32c,
            body.readableBytes <= SpoolLimits.bodyBlockBytes / 2
        else { return false }
        let extent = BodyExtent(
            offset: 0, storedLength: UInt32(body.readableBytes), rawLength: UInt32(body.readableBytes), crc32c: crc,
            codec: .none)
        guard let extentIndex = writeRecord(envelope, extents: [extent], fragmented: false, moved: moved) else {
            return false
        }
        bodies.append(PendingBody(bytes: body, extentIndex: extentIndex, rawCRC: crc, owner: placed.count - 1))
        bytes += body.readableBytes
        return true
    }

    /// A message whose body is fragments of earlier chunks of the same segment. False as `addMessage`.
    mutating func addCommit(_ envelope: Envelope, extents: [BodyExtent]) -> Bool {
        writeRecord(envelope, extents: extents, fragmented: true, moved: nil) != nil
    }

    mutating func addFragment(_ stream: FragmentStreamID, index: UInt32, body: ByteBuffer) {
        let length = UInt32(clamping: body.readableBytes)
        let extent = BodyExtent(offset: 0, storedLength: length, rawLength: length, crc32c: 0, codec: .none)
        let start = buffer.writerIndex
        RecordFormat.writeFragment(stream: stream.value, index: index, extent, into: &buffer)
        fragments.append((stream, extent))
        bodies.append(
            PendingBody(
                bytes: body, extentIndex: start + RecordFormat.fragmentLength - BodyExtent.length, rawCRC: body.crc32c,
                owner: -fragments.count))
        records += 1
        bytes += RecordFormat.fragmentLength + body.readableBytes
    }

    /// Returns the buffer index of the first extent; nil, and nothing written, where a reader's bounds would be broken: what no
    /// start could read back is refused, never acknowledged.
    private mutating func writeRecord(
        _ envelope: Envelope, extents: [BodyExtent], fragmented: Bool, moved: MovedFrom?
    ) -> Int? {
        let start = buffer.writerIndex
        let bits: UInt8 = (fragmented ? 1 : 0) | (moved == nil ? 0 : 2)
        buffer.writeMultipleIntegers(
            UInt32(0), UInt32(0), MessageRecord.kind, bits, UInt16(0), UInt32(extents.count), UInt32(0), UInt32(0),
            endianness: .little)
        for extent in extents { extent.write(into: &buffer) }
        if let moved { RecordFormat.writeMoved(moved, into: &buffer) }
        let envelopeStart = buffer.writerIndex
        EnvelopeCodec.encode(envelope, into: &buffer)
        guard buffer.writerIndex - envelopeStart <= Limits.envelopeBytes,
            buffer.writerIndex - ChunkHeader.length < SpoolLimits.envelopeBlockBytes
        else {
            buffer.moveWriterIndex(to: start)
            return nil
        }
        buffer.setInteger(UInt32(buffer.writerIndex - envelopeStart), at: start + 16, endianness: .little)
        let length = buffer.writerIndex - start
        buffer.writeRepeatingByte(0, count: RecordFormat.padded(length) - length)
        buffer.setInteger(UInt32(buffer.writerIndex - start), at: start, endianness: .little)
        var stored = UInt32(buffer.writerIndex - start)
        for extent in extents { stored = stored.addingReportingOverflow(extent.storedLength).partialValue }
        placed.append(
            PlacedMessage(
                offset: Int64(start), storedBytes: stored, recipients: UInt32(clamping: envelope.recipients.count)))
        records += 1
        bytes += buffer.writerIndex - start
        return start + MessageRecord.headLength
    }

    /// Copies (or compresses) the bodies behind the records, settles all offsets, pads and seals with CRCs. `offset` is the
    /// chunk's place in the segment. The chunk is in `chunk` until the next `begin`.
    mutating func finish(
        segment: SegmentID, appendEpoch: UInt64, offset: Int64, ackedOffset: Int64, number: UInt32,
        firstMessage: UInt32, previousHeaderCRC: UInt32, at now: Instant
    ) -> ChunkHeader {
        let envelopeLength = buffer.writerIndex - ChunkHeader.length
        let bodyStart = buffer.writerIndex
        for body in bodies { place(body, chunkOffset: offset) }
        sealRecords(from: ChunkHeader.length, to: bodyStart)
        for index in placed.indices { placed[index].offset += offset }
        let bodyLength = buffer.writerIndex - bodyStart
        let content = buffer.writerIndex
        buffer.writeRepeatingByte(0, count: ChunkHeader.padded(content) - content)
        let header = ChunkHeader(
            segment: segment, appendEpoch: appendEpoch, offset: offset, ackedOffset: ackedOffset, number: number,
            records: records, firstMessage: firstMessage, messages: UInt32(placed.count),
            envelopeLength: UInt32(envelopeLength), bodyLength: UInt32(bodyLength),
            envelopeCRC: buffer.crc32c(at: ChunkHeader.length, length: envelopeLength),
            bodyCRC: buffer.crc32c(at: bodyStart, length: bodyLength), previousHeaderCRC: previousHeaderCRC,
            writtenAt: now)
        return header
    }

    /// Each record carries its own CRC32C, so that it can be read back alone.
    private mutating func sealRecords(from start: Int, to end: Int) {
        var index = start
        while index < end, let length: UInt32 = buffer.getInteger(at: index, endianness: .little), length > 0 {
            RecordFormat.seal(recordAt: index, length: Int(length), in: &buffer)
            index += Int(length)
        }
    }

    /// Writes the header over its place and returns its CRC32C.
    mutating func seal(_ header: ChunkHeader) -> UInt32 { header.write(over: &buffer) }

    var chunk: ByteBuffer { buffer }

    private mutating func place(_ body: PendingBody, chunkOffset: Int64) {
        let start = buffer.writerIndex
        let raw = body.bytes.readableBytes
        var extent = BodyExtent(
            offset: chunkOffset + Int64(start), storedLength: UInt32(raw), rawLength: UInt32(raw), crc32c: body.rawCRC,
            codec: .none)
        var compressed: Int?
        if compression.wants(length: raw) {
            compressed = LZ4.compress(body.bytes, into: &buffer)
            compression.observed(raw: raw, stored: compressed ?? raw)
        }
        if let compressed {
            extent.storedLength = UInt32(compressed)
            extent.codec = .lz4
            extent.crc32c = buffer.crc32c(at: start, length: compressed)
        } else {
            buffer.writeImmutableBuffer(body.bytes)
        }
        var place = ByteBufferAllocator().buffer(capacity: BodyExtent.length)
        extent.write(into: &place)
        buffer.setBuffer(place, at: body.extentIndex)
        if body.owner >= 0 {
            placed[body.owner].storedBytes &+= extent.storedLength
            placed[body.owner].storedBytes &-= UInt32(raw)
        } else {
            fragments[-1 - body.owner].extent = extent
        }
    }
}
