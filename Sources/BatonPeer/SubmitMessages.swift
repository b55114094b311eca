// The payloads that place a message on another node: SUBMIT, SUBMITTED, ASK (docs/PEER_PROTOCOL.md, "Submit"; PROTOCOL S1-S7).
import BatonCore
import BatonModel
import NIOCore

/// Hands one message to the peer, which answers SUBMITTED once.
///
/// ```
///  0  message key, 24 octets    24  u64 receiver incarnation
/// 32  u32 envelope length       36  u32 body length as sent    40  u32 body length uncompressed
/// 44  envelope (EnvelopeCodec), body
/// ```
/// The envelope is not decoded here: one that cannot be read is answered, and does not cost the connection. A compressed body
/// (an LZ4 block) is made and opened by the shell; `bodyOctets` bounds it before anything is allocated.
package struct Submit: FramePayload {
    package var key: MessageKey
    /// The run of the receiver that is meant; another one refuses (S2).
    package var receiver: Incarnation
    package var envelope: ByteBuffer
    package var body: ByteBuffer
    /// Octets of the body uncompressed.
    package var bodyOctets: Int
    package var isCompressed: Bool

    package static let type = FrameType.submit
    package static let fixedLength = 44

    package init(
        key: MessageKey, receiver: Incarnation, envelope: ByteBuffer, body: ByteBuffer, bodyOctets: Int,
        isCompressed: Bool
    ) {
        self.key = key
        self.receiver = receiver
        self.envelope = envelope
        self.body = body
        self.bodyOctets = bodyOctets
        self.isCompressed = isCompressed
    }

    package var flags: FrameFlags { isCompressed ? .lz4 : [] }
    package var tail: ByteBuffer? { body }

    /// Whether it fits: what does not is kept by the ingress node.
    package var isValid: Bool {
        (1...PeerLimits.submitEnvelopeOctets).contains(envelope.readableBytes)
            && body.readableBytes <= Limits.fragmentThreshold
            && (0...Limits.fragmentThreshold).contains(bodyOctets)
            && (isCompressed ? body.readableBytes > 0 : body.readableBytes == bodyOctets)
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeKey(key)
        buffer.writeMultipleIntegers(
            receiver.value, UInt32(clamping: envelope.readableBytes), UInt32(clamping: body.readableBytes),
            UInt32(clamping: bodyOctets), endianness: .little)
        buffer.writeImmutableBuffer(envelope)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let key = payload.readKey(),
            let (receiver, envelopeLength, bodyLength, bodyOctets) = payload.readMultipleIntegers(
                endianness: .little, as: (UInt64, UInt32, UInt32, UInt32).self),
            let envelope = payload.readSlice(length: Int(envelopeLength)),
            let body = payload.readSlice(length: Int(bodyLength))
        else { return nil }
        self.init(
            key: key, receiver: Incarnation(value: receiver), envelope: envelope, body: body,
            bodyOctets: Int(bodyOctets), isCompressed: flags.contains(.lz4))
    }
}

/// What became of a message key.
package enum SubmitAnswer: Hashable, Sendable {
    /// Durable on all copies.
    case stored
    /// Written and not yet acknowledged (S3).
    case pending
    /// Not here, and refused from now on (S1).
    case refused(SubmitRefusal)
    /// Cannot be told: octets of a failed append reached a disk or a peer (S4), or not all segments are scanned (S5).
    case unknown

    var bytes: (answer: UInt8, refusal: UInt8) {
        switch self {
        case .stored: (1, 0)
        case .pending: (2, 0)
        case .refused(let why): (3, why.rawValue)
        case .unknown: (4, 0)
        }
    }

    init?(answer: UInt8, refusal: UInt8) {
        switch (answer, refusal) {
        case (1, 0): self = .stored
        case (2, 0): self = .pending
        case (3, _):
            guard let why = SubmitRefusal(rawValue: refusal) else { return nil }
            self = .refused(why)
        case (4, 0): self = .unknown
        default: return nil
        }
    }
}

/// Why a message is not here. A failure after anything was written is `SubmitAnswer.unknown` instead (S4).
package enum SubmitRefusal: UInt8, CaseIterable, Sendable {
    case notHere = 1
    /// The SUBMIT was meant for another run of this node (S2).
    case otherIncarnation = 2
    case noRoom = 3
    case storageFailed = 4
    case overloaded = 5
    case stopping = 6
    /// Envelope or body cannot be read.
    case unreadable = 7
}

/// `message key   24 u64 receiver node   32 u64 receiver incarnation   40 u8 answer   41 u8 refusal   42 u16 zero`
package struct Submitted: FramePayload {
    package var key: MessageKey
    /// The run that the SUBMIT was meant for; the one that answers is the session's peer, its drainer.
    package var receiver: NodeRun
    package var answer: SubmitAnswer

    package static let type = FrameType.submitted

    package init(key: MessageKey, receiver: NodeRun, answer: SubmitAnswer) {
        self.key = key
        self.receiver = receiver
        self.answer = answer
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeKey(key)
        buffer.writeRun(receiver)
        let bytes = answer.bytes
        buffer.writeMultipleIntegers(bytes.answer, bytes.refusal, UInt16(0), endianness: .little)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let key = payload.readKey(), let receiver = payload.readRun(),
            let (value, refusal) = payload.readMultipleIntegers(endianness: .little, as: (UInt8, UInt8).self),
            payload.readZeros(2), let answer = SubmitAnswer(answer: value, refusal: refusal)
        else { return nil }
        self.init(key: key, receiver: receiver, answer: answer)
    }
}

/// Asks the present drainer of a receiver's segments about a key (S5): `message key   24 u64 receiver node   32 u64 incarnation`.
package struct Ask: FramePayload {
    package var key: MessageKey
    package var receiver: NodeRun

    package static let type = FrameType.ask

    package init(key: MessageKey, receiver: NodeRun) {
        self.key = key
        self.receiver = receiver
    }

    func write(into buffer: inout ByteBuffer) {
        buffer.writeKey(key)
        buffer.writeRun(receiver)
    }

    init?(reading payload: inout ByteBuffer, flags: FrameFlags) {
        guard let key = payload.readKey(), let receiver = payload.readRun() else { return nil }
        self.init(key: key, receiver: receiver)
    }
}
