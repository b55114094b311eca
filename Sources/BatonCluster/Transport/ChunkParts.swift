// A chunk as the APPEND frames that carry it, and back.
import BatonCore
import BatonPeer
import NIOCore

extension PeerMessage {
    /// The APPENDs of a chunk, in their order: one, unless it is larger than `PeerLimits.partOctets`. Octets by reference.
    package static func appends(
        of chunk: ByteBuffer, segment: SegmentID, epoch: UInt64, offset: Int64
    ) -> [PeerMessage] {
        Append.parts(of: chunk, segment: segment, epoch: epoch, offset: offset).map { .append($0) }
    }
}

/// Joins the parts of one segment's chunks as they arrive on one connection.
///
/// Pure. Holds at most `limit` octets of a chunk that is not complete: the credit of its parts is given back when it is, so a limit
/// below three quarters of the window never stops the sender, and a larger chunk has to be written part by part instead. Nothing
/// is allocated by a declared length. A new connection begins with a new joiner.
package struct ChunkJoiner: Sendable {
    package enum Step: Hashable, Sendable {
        /// Its octets are held; more has to come.
        case more
        /// The whole chunk, and where it stands.
        case chunk(ByteBuffer, offset: Int64)
        /// Not the part that has to come next, or a chunk beyond the limit. What was held is gone.
        case refused
    }

    private struct Held {
        let segment: SegmentID
        let epoch: UInt64
        let offset: Int64
        let octets: Int
        var buffer: ByteBuffer
    }

    package let limit: Int
    private var held: Held?

    package init(limit: Int) {
        self.limit = limit
    }

    package var heldOctets: Int { held?.buffer.readableBytes ?? 0 }

    package mutating func add(_ part: Append) -> Step {
        let before = held
        held = nil
        guard part.isValid, part.chunkOctets <= limit else { return .refused }
        guard var now = before else {
            guard part.position == 0 else { return .refused }
            if part.isLast { return .chunk(part.octets, offset: part.offset) }
            held = Held(
                segment: part.segment, epoch: part.epoch, offset: part.offset, octets: part.chunkOctets,
                buffer: part.octets)
            return .more
        }
        guard part.segment == now.segment, part.epoch == now.epoch, part.offset == now.offset,
            part.chunkOctets == now.octets, part.position == now.buffer.readableBytes
        else { return .refused }
        now.buffer.writeImmutableBuffer(part.octets)
        if part.isLast { return .chunk(now.buffer, offset: now.offset) }
        held = now
        return .more
    }
}
