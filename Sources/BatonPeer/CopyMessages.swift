// The payloads of takeover, copies and deletion: FETCH, CHUNK, SEAL, SEALED, FINISHED, UNLINKED.
import BatonCore
import NIOCore

/// Which file of a segment is meant.
package enum SegmentPart: UInt8, CaseIterable, Sendable {
    case segment = 1
    case outcomes = 2
    /// The one chunk that begins at the offset asked for, whole, in one frame, and only if it has its checksums. Asked of a peer that
    /// offers `PeerFeatures.chunks`.
    case chunk = 3
}

/// Asks for octets of another copy; answered by CHUNKs up to the one marked last.
///
/// `u64 request   8 segment id   32 u64 drain epoch   40 i64 from   48 u32 at most   52 u8 part   53 3 zero`
package struct Fetch: FramePayload {
    package var request: UInt64
    package var segment: SegmentID
    package var epoch: UInt64
    package var from: Int64
    package var atMost: Int
    package var part: SegmentPart

    package static let type = FrameType.fetch

    package init(request: UInt64, segment: SegmentID, epoch: UInt64, from: Int64, atMost: Int, part: SegmentPart) {
        self.request = request
        self.segment = segment
        self.epoch = epoch
        self.from = from
        self.atMost = atMost
        self.part = part
    }

    package var isValid: Bool { request != 0 && from >= 0 && atMost > 0 && from <= Int64.max - Int64(UInt32.max) }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeInteger(request, endianness: .little)
        buffer.writeSegment(segment)
        buffer.writeMultipleIntegers(
            epoch, from, UInt32(clamping: atMost), part.rawValue, endianness: .little)
        buffer.writeRepeatingByte(0, count: 3)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let request: UInt64 = payload.readInteger(endianness: .little), let segment = payload.readSegment(),
            let (epoch, from, atMost, value) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, Int64, UInt32, UInt8).self),
            let part = SegmentPart(rawValue: value), payload.readZeros(3)
        else { return nil }
        self.init(request: request, segment: segment, epoch: epoch, from: from, atMost: Int(atMost), part: part)
    }
}

/// The CHUNK frame: octets of a copy, or why there are none. Request 0: sent unasked to a joining member (PROTOCOL C1).
///
/// ```
///  0  u64 request    8  segment id    32  u64 drain epoch    40  i64 offset
/// 48  u8 part       49  u8 status     50  u8 bits (1: nothing follows)    51  u8 zero
/// 52  octets, by reference; the frame's CRC ends before them, for chunks and log entries check themselves
/// ```
package struct CopyPart: FramePayload {
    package enum Status: UInt8, CaseIterable, Sendable {
        case octets = 1
        case missing = 2
        /// Never treated as missing.
        case damaged = 3
        case failed = 4
    }

    package var request: UInt64
    package var segment: SegmentID
    package var epoch: UInt64
    package var offset: Int64
    package var part: SegmentPart
    package var status: Status
    package var isLast: Bool
    package var octets: ByteBuffer

    package static let type = FrameType.chunk
    package static let fixedLength = 52

    package init(
        request: UInt64, segment: SegmentID, epoch: UInt64, offset: Int64, part: SegmentPart, status: Status,
        isLast: Bool, octets: ByteBuffer
    ) {
        self.request = request
        self.segment = segment
        self.epoch = epoch
        self.offset = offset
        self.part = part
        self.status = status
        self.isLast = isLast
        self.octets = octets
    }

    package var tail: ByteBuffer? { octets }
    package var isValid: Bool {
        offset >= 0 && octets.readableBytes <= PeerLimits.partOctets
            && offset <= Int64.max - Int64(PeerLimits.partOctets) && (status == .octets || octets.readableBytes == 0)
            && (status == .octets || isLast) && (isLast || octets.readableBytes > 0)
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeInteger(request, endianness: .little)
        buffer.writeSegment(segment)
        buffer.writeMultipleIntegers(
            epoch, offset, part.rawValue, status.rawValue, UInt8(isLast ? 1 : 0), UInt8(0), endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let request: UInt64 = payload.readInteger(endianness: .little), let segment = payload.readSegment(),
            let (epoch, offset, partValue, statusValue, bits, zero) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, Int64, UInt8, UInt8, UInt8, UInt8).self),
            let part = SegmentPart(rawValue: partValue), let status = Status(rawValue: statusValue), bits <= 1,
            zero == 0
        else { return nil }
        self.init(
            request: request, segment: segment, epoch: epoch, offset: offset, part: part, status: status,
            isLast: bits == 1, octets: payload.readRest())
    }
}

/// Seals a copy at a drain epoch that was won by compare-and-set: `segment id   24 u64 drain epoch`.
package struct Seal: FramePayload {
    package var segment: SegmentID
    package var epoch: UInt64

    package static let type = FrameType.seal

    package init(segment: SegmentID, epoch: UInt64) {
        self.segment = segment
        self.epoch = epoch
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeSegment(segment)
        buffer.writeInteger(epoch, endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let segment = payload.readSegment(), let epoch: UInt64 = payload.readInteger(endianness: .little) else {
            return nil
        }
        self.init(segment: segment, epoch: epoch)
    }
}

/// The seal is fdatasync'ed, and what the copy holds; also the answer to an APPEND or OUTCOME of an epoch that is over.
///
/// ```
///  0  segment id    24  u64 epoch that seals it    32  i64 valid prefix, -1 unknown    40  i64 outcome log, -1 unknown
/// 48  u64 incarnation of the answering node    56  u8 status    57  u8 bits (1: invalid tail)    58  u16 zero
/// ```
package struct Sealed: FramePayload {
    package enum Status: UInt8, CaseIterable, Sendable {
        case sealed = 1
        /// A higher epoch has sealed it, which `epoch` names: the asker's is over.
        case higherEpoch = 2
        case missing = 3
        case failed = 4
    }

    package var segment: SegmentID
    package var epoch: UInt64
    /// Octets of the longest valid prefix.
    package var length: Int64?
    package var logLength: Int64?
    package var incarnation: Incarnation
    package var status: Status
    /// Something invalid stands behind the prefix: this copy alone never sets the sealed length (PROTOCOL T1).
    package var hasInvalidTail: Bool

    package static let type = FrameType.sealed

    package init(
        segment: SegmentID, epoch: UInt64, length: Int64?, logLength: Int64?, incarnation: Incarnation, status: Status,
        hasInvalidTail: Bool
    ) {
        self.segment = segment
        self.epoch = epoch
        self.length = length
        self.logLength = logLength
        self.incarnation = incarnation
        self.status = status
        self.hasInvalidTail = hasInvalidTail
    }

    package var isValid: Bool {
        (length ?? 0) >= 0 && (logLength ?? 0) >= 0 && (!hasInvalidTail || length != nil)
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeSegment(segment)
        buffer.writeMultipleIntegers(
            epoch, length ?? -1, logLength ?? -1, incarnation.value, status.rawValue, UInt8(hasInvalidTail ? 1 : 0),
            UInt16(0), endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let segment = payload.readSegment(),
            let (epoch, length, logLength, incarnation, value, bits, zero) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, Int64, Int64, UInt64, UInt8, UInt8, UInt16).self),
            let status = Status(rawValue: value), bits <= 1, zero == 0
        else { return nil }
        self.init(
            segment: segment, epoch: epoch, length: length == -1 ? nil : length,
            logLength: logLength == -1 ? nil : logLength, incarnation: Incarnation(value: incarnation), status: status,
            hasInvalidTail: bits == 1)
    }
}

/// Asks whether the file of a finished segment has gone (PROTOCOL C3): `segment id   24 u64 drain epoch`.
package struct Finished: FramePayload {
    package var segment: SegmentID
    package var epoch: UInt64

    package static let type = FrameType.finished

    package init(segment: SegmentID, epoch: UInt64) {
        self.segment = segment
        self.epoch = epoch
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeSegment(segment)
        buffer.writeInteger(epoch, endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let segment = payload.readSegment(), let epoch: UInt64 = payload.readInteger(endianness: .little) else {
            return nil
        }
        self.init(segment: segment, epoch: epoch)
    }
}

/// The file has gone from this disk: `segment id   24 u64 revision of the key   32 u64 disk id`.
package struct Unlinked: FramePayload {
    package var segment: SegmentID
    /// Of the key, as the sender read it; 0: there was none.
    package var revision: UInt64
    package var disk: UInt64

    package static let type = FrameType.unlinked

    package init(segment: SegmentID, revision: UInt64, disk: UInt64) {
        self.segment = segment
        self.revision = revision
        self.disk = disk
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeSegment(segment)
        buffer.writeMultipleIntegers(revision, disk, endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let segment = payload.readSegment(),
            let (revision, disk) = payload.readMultipleIntegers(endianness: .little, as: (UInt64, UInt64).self)
        else { return nil }
        self.init(segment: segment, revision: revision, disk: disk)
    }
}
