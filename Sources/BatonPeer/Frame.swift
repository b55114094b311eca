// A frame's header and the types of frames (docs/PEER_PROTOCOL.md, "Frame").
import BatonCore
import BatonModel
import NIOCore

/// What a frame says. The number is the one on the wire.
package enum FrameType: UInt8, CaseIterable, Sendable {
    case hello = 1
    case ready = 2
    case ping = 3
    case pong = 4
    case credit = 5
    case goodbye = 6
    case error = 7
    case submit = 16
    case submitted = 17
    case ask = 18
    case create = 32
    case created = 33
    case append = 34
    case durable = 35
    case outcome = 36
    case recorded = 37
    case fetch = 38
    case chunk = 39
    case seal = 48
    case sealed = 49
    case finished = 50
    case unlinked = 51
    case promiseAsked = 64
    case promise = 65
    case quota = 80
    case query = 96
    case answer = 97

    /// Payload lengths that are legal (octets).
    package var payloadLengths: ClosedRange<Int> {
        switch self {
        case .hello: 62...PeerLimits.helloOctets
        case .ready: 10...10
        case .ping, .pong: 16...16
        case .credit: 8...8
        case .goodbye: 1...1
        case .error: 4...(4 + PeerLimits.errorTextOctets)
        case .submit: 45...(Submit.fixedLength + PeerLimits.submitEnvelopeOctets + Limits.fragmentThreshold)
        case .submitted: 44...44
        case .ask: 40...40
        case .create: 40...40
        case .created, .durable: 52...52
        case .append: (Append.fixedLength + 1)...(Append.fixedLength + PeerLimits.partOctets)
        case .outcome: 45...(44 + PeerLimits.outcomeOctets)
        case .recorded, .fetch: 56...56
        case .chunk: CopyPart.fixedLength...(CopyPart.fixedLength + PeerLimits.partOctets)
        case .seal, .finished: 32...32
        case .sealed: 60...60
        case .unlinked: 40...40
        case .promiseAsked: 52...(20 + PromiseItem.length * PeerLimits.promiseItems)
        case .promise: 24...(24 + PromiseItem.length * PeerLimits.promiseItems)
        case .quota: 33...(32 + PeerLimits.siteOctets)
        case .query: 11...PeerLimits.queryOctets
        case .answer: 12...PeerLimits.answerOctets
        }
    }

    /// Where it may travel; nil: on both channels.
    package var channel: PeerChannel? {
        switch self {
        case .hello, .ready, .ping, .pong, .credit, .goodbye, .error: nil
        case .submit, .submitted, .ask, .create, .created, .append, .durable, .outcome, .recorded, .fetch, .chunk: .bulk
        case .seal, .sealed, .finished, .unlinked, .promiseAsked, .promise, .quota, .query, .answer: .control
        }
    }

    /// Whether it uses credit: it does when it is a message for somebody above the session.
    package var usesCredit: Bool { channel != nil }

    /// Octets at the payload's start that the CRC covers; nil: all. What is left out checks itself.
    var coveredOctets: Int? {
        switch self {
        case .append: Append.fixedLength
        case .chunk: CopyPart.fixedLength
        default: nil
        }
    }

    /// Flags that version 1 knows on it.
    var legalFlags: FrameFlags {
        switch self {
        case .submit: .lz4
        case .outcome: .late
        default: []
        }
    }
}

package struct FrameFlags: OptionSet, Hashable, Sendable {
    package let rawValue: UInt8

    package init(rawValue: UInt8) {
        self.rawValue = rawValue
    }

    /// The body of a SUBMIT is an LZ4 block.
    package static let lz4 = FrameFlags(rawValue: 1)
    /// An OUTCOME carries final outcomes of an earlier drain epoch (PROTOCOL T5).
    package static let late = FrameFlags(rawValue: 2)
}

/// The two connections of a pair of nodes.
package enum PeerChannel: UInt8, CaseIterable, Sendable {
    /// Heartbeats, seals, promises, shares, questions of operators.
    case control = 1
    /// Mail, chunks, outcomes.
    case bulk = 2
}

/// What a frame takes of a window, and the size of one.
package struct FrameCost: Hashable, Sendable {
    package var octets: Int
    package var frames: Int

    package init(octets: Int, frames: Int) {
        self.octets = octets
        self.frames = frames
    }

    package static let zero = FrameCost(octets: 0, frames: 0)
}

/// ```
///  0  u32 payload length    4  u8 type    5  u8 flags    6  u16 zero
///  8  u32 CRC32C of 0 ..< 8 and of the covered part of the payload
/// ```
package struct FrameHeader: Hashable, Sendable {
    package let length: Int
    package let type: FrameType
    package let flags: FrameFlags
    package let crc: UInt32

    package static let octets = 12
    /// Octets of the header that the CRC covers.
    static let covered = 8

    package var cost: FrameCost { FrameCost(octets: Self.octets + length, frames: 1) }

    /// Reads and judges the header at `buffer`'s reader index. Nil while it is not complete. Nothing is allocated.
    package static func read(_ buffer: ByteBuffer) throws(PeerViolation) -> FrameHeader? {
        var buffer = buffer
        guard
            let (length, type, flags, zero, crc) = buffer.readMultipleIntegers(
                endianness: .little, as: (UInt32, UInt8, UInt8, UInt16, UInt32).self)
        else { return nil }
        guard let type = FrameType(rawValue: type) else { throw .unknownType }
        let set = FrameFlags(rawValue: flags)
        guard zero == 0, type.legalFlags.isSuperset(of: set) else { throw .reservedBits }
        let lengths = type.payloadLengths
        guard length <= UInt32(lengths.upperBound) else { throw .oversized }
        guard length >= UInt32(lengths.lowerBound) else { throw .undersized }
        return FrameHeader(length: Int(length), type: type, flags: set, crc: crc)
    }
}

/// A frame as it came: header judged, checksum right, payload not yet read.
package struct Frame: Hashable, Sendable {
    package let type: FrameType
    package let flags: FrameFlags
    package let payload: ByteBuffer

    package init(type: FrameType, flags: FrameFlags = [], payload: ByteBuffer) {
        self.type = type
        self.flags = flags
        self.payload = payload
    }

    package var cost: FrameCost { FrameCost(octets: FrameHeader.octets + payload.readableBytes, frames: 1) }
}
