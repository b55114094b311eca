// The payloads of a segment's writer and drainer towards a copy: CREATE, APPEND, OUTCOME and their answers.
import BatonCore
import NIOCore

/// Asks a member to create and fsync the segment's file before its key is written (PROTOCOL A4).
///
/// `segment id   24 u64 append epoch   32 i64 octets to reserve`
package struct Create: FramePayload {
    package var segment: SegmentID
    package var epoch: UInt64
    package var reserve: Int64

    package static let type = FrameType.create

    package init(segment: SegmentID, epoch: UInt64, reserve: Int64) {
        self.segment = segment
        self.epoch = epoch
        self.reserve = reserve
    }

    package var isValid: Bool { reserve >= 0 }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeSegment(segment)
        buffer.writeMultipleIntegers(epoch, reserve, endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let segment = payload.readSegment(),
            let (epoch, reserve) = payload.readMultipleIntegers(endianness: .little, as: (UInt64, Int64).self)
        else { return nil }
        self.init(segment: segment, epoch: epoch, reserve: reserve)
    }
}

/// `segment id   24 u64 append epoch   32 u64 backup's incarnation   40 u64 backup's disk id   48 u8 status   49 3 zero`
package struct Created: FramePayload {
    package enum Status: UInt8, CaseIterable, Sendable {
        case created = 1
        case noRoom = 2
        case failed = 3
        /// Another file has this name, or a seal stands in the way.
        case refused = 4
    }

    package var segment: SegmentID
    package var epoch: UInt64
    package var incarnation: Incarnation
    /// Identity is per disk (PROTOCOL "Around it"): it goes into the ensemble entry.
    package var disk: UInt64
    package var status: Status

    package static let type = FrameType.created

    package init(segment: SegmentID, epoch: UInt64, incarnation: Incarnation, disk: UInt64, status: Status) {
        self.segment = segment
        self.epoch = epoch
        self.incarnation = incarnation
        self.disk = disk
        self.status = status
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeSegment(segment)
        buffer.writeMultipleIntegers(epoch, incarnation.value, disk, status.rawValue, endianness: .little)
        buffer.writeRepeatingByte(0, count: 3)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let segment = payload.readSegment(),
            let (epoch, incarnation, disk, value) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, UInt64, UInt64, UInt8).self),
            let status = Status(rawValue: value), payload.readZeros(3)
        else { return nil }
        self.init(
            segment: segment, epoch: epoch, incarnation: Incarnation(value: incarnation), disk: disk, status: status)
    }
}

/// A chunk, or a part of a large one, for a backup.
///
/// ```
///  0  segment id    24  u64 append epoch    32  i64 offset of the chunk in the segment
/// 40  u32 length of the whole chunk         44  u32 position of these octets in the chunk
/// 48  octets of the chunk, by reference and unchanged; the frame's CRC ends before them, for a chunk checks itself
/// ```
package struct Append: FramePayload {
    package var segment: SegmentID
    package var epoch: UInt64
    package var offset: Int64
    package var chunkOctets: Int
    package var position: Int
    package var octets: ByteBuffer

    package static let type = FrameType.append
    package static let fixedLength = 48

    package init(
        segment: SegmentID, epoch: UInt64, offset: Int64, chunkOctets: Int, position: Int, octets: ByteBuffer
    ) {
        self.segment = segment
        self.epoch = epoch
        self.offset = offset
        self.chunkOctets = chunkOctets
        self.position = position
        self.octets = octets
    }

    /// The frames of a chunk: one, unless it is larger than `PeerLimits.partOctets`.
    package static func parts(of chunk: ByteBuffer, segment: SegmentID, epoch: UInt64, offset: Int64) -> [Append] {
        var rest = chunk
        var parts: [Append] = []
        let total = chunk.readableBytes
        while let octets = rest.readSlice(length: min(rest.readableBytes, PeerLimits.partOctets)),
            octets.readableBytes > 0
        {
            parts.append(
                Append(
                    segment: segment, epoch: epoch, offset: offset, chunkOctets: total,
                    position: total - rest.readableBytes - octets.readableBytes, octets: octets))
        }
        return parts
    }

    /// Whether the chunk ends with these octets.
    package var isLast: Bool { position + octets.readableBytes == chunkOctets }

    package var tail: ByteBuffer? { octets }
    package var isValid: Bool {
        offset >= 0 && (1...PeerLimits.chunkOctets).contains(chunkOctets) && (0..<chunkOctets).contains(position)
            && (1...PeerLimits.partOctets).contains(octets.readableBytes)
            && octets.readableBytes <= chunkOctets - position
            && offset <= Int64.max - Int64(PeerLimits.chunkOctets)
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeSegment(segment)
        buffer.writeMultipleIntegers(
            epoch, offset, UInt32(clamping: chunkOctets), UInt32(clamping: position), endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let segment = payload.readSegment(),
            let (epoch, offset, chunkOctets, position) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, Int64, UInt32, UInt32).self)
        else { return nil }
        self.init(
            segment: segment, epoch: epoch, offset: offset, chunkOctets: Int(chunkOctets), position: Int(position),
            octets: payload.readRest())
    }
}

/// How far a copy is fdatasync'ed; cumulative.
///
/// `segment id   24 u64 append epoch   32 i64 offset   40 u64 backup's incarnation   48 u8 status   49 3 zero`
package struct Durable: FramePayload {
    package enum Status: UInt8, CaseIterable, Sendable {
        case durable = 1
        /// Nothing beyond `upTo` will be durable here: the writer replaces this backup.
        case noRoom = 2
        case failed = 3
    }

    package var segment: SegmentID
    package var epoch: UInt64
    package var upTo: Int64
    package var incarnation: Incarnation
    package var status: Status

    package static let type = FrameType.durable

    package init(segment: SegmentID, epoch: UInt64, upTo: Int64, incarnation: Incarnation, status: Status) {
        self.segment = segment
        self.epoch = epoch
        self.upTo = upTo
        self.incarnation = incarnation
        self.status = status
    }

    package var isValid: Bool { upTo >= 0 }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeSegment(segment)
        buffer.writeMultipleIntegers(epoch, upTo, incarnation.value, status.rawValue, endianness: .little)
        buffer.writeRepeatingByte(0, count: 3)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let segment = payload.readSegment(),
            let (epoch, upTo, incarnation, value) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, Int64, UInt64, UInt8).self),
            let status = Status(rawValue: value), payload.readZeros(3)
        else { return nil }
        self.init(
            segment: segment, epoch: epoch, upTo: upTo, incarnation: Incarnation(value: incarnation), status: status)
    }
}

/// Records of an outcome log for a backup, or final outcomes of an earlier drain epoch (PROTOCOL T5).
///
/// `segment id   24 u64 drain epoch   32 i64 offset in this epoch's log   40 u32 records   44 records, opaque here`
package struct OutcomeRecords: FramePayload {
    package var segment: SegmentID
    package var epoch: UInt64
    package var from: Int64
    package var count: Int
    package var records: ByteBuffer
    package var isLate: Bool

    package static let type = FrameType.outcome

    package init(segment: SegmentID, epoch: UInt64, from: Int64, count: Int, records: ByteBuffer, isLate: Bool = false)
    {
        self.segment = segment
        self.epoch = epoch
        self.from = from
        self.count = count
        self.records = records
        self.isLate = isLate
    }

    package var flags: FrameFlags { isLate ? .late : [] }
    package var tail: ByteBuffer? { records }
    package var isValid: Bool {
        from >= 0 && (!isLate || from == 0) && records.readableBytes <= PeerLimits.outcomeOctets && count >= 1
            && count <= records.readableBytes && from <= Int64.max - Int64(PeerLimits.outcomeOctets)
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeSegment(segment)
        buffer.writeMultipleIntegers(epoch, from, UInt32(clamping: count), endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let segment = payload.readSegment(),
            let (epoch, from, count) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, Int64, UInt32).self)
        else { return nil }
        self.init(
            segment: segment, epoch: epoch, from: from, count: Int(count), records: payload.readRest(),
            isLate: flags.contains(.late))
    }
}

/// How far a backup has an epoch's outcome log: in memory, and fdatasync'ed (PROTOCOL P4).
///
/// `segment id   24 u64 drain epoch   32 i64 in memory   40 i64 fdatasync'ed   48 u64 backup's incarnation`
package struct Recorded: FramePayload {
    package var segment: SegmentID
    package var epoch: UInt64
    package var memory: Int64
    package var synced: Int64
    package var incarnation: Incarnation

    package static let type = FrameType.recorded

    package init(segment: SegmentID, epoch: UInt64, memory: Int64, synced: Int64, incarnation: Incarnation) {
        self.segment = segment
        self.epoch = epoch
        self.memory = memory
        self.synced = synced
        self.incarnation = incarnation
    }

    package var isValid: Bool { synced >= 0 && synced <= memory }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeSegment(segment)
        buffer.writeMultipleIntegers(epoch, memory, synced, incarnation.value, endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let segment = payload.readSegment(),
            let (epoch, memory, synced, incarnation) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, Int64, Int64, UInt64).self)
        else { return nil }
        self.init(
            segment: segment, epoch: epoch, memory: memory, synced: synced,
            incarnation: Incarnation(value: incarnation))
    }
}
