// Frames to octets, and octets to frames as they arrive (docs/PEER_PROTOCOL.md, "Frame").
import BatonCore
import NIOCore

/// A frame ready to be written: header and small fields in one buffer, many octets by reference in another.
package struct EncodedFrame: Hashable, Sendable {
    package let type: FrameType
    package let head: ByteBuffer
    /// Empty where all is in `head`.
    package let tail: ByteBuffer

    package var octets: Int { head.readableBytes + tail.readableBytes }
    package var cost: FrameCost { FrameCost(octets: octets, frames: 1) }

    /// Nil for what a peer would refuse: values out of their bounds, or too long a payload.
    /// Case by case, so that no payload is boxed on its way.
    package init?(_ message: PeerMessage) {
        switch message {
        case .hello(let payload): self.init(payload)
        case .ready(let payload): self.init(payload)
        case .ping(let payload): self.init(payload)
        case .pong(let payload): self.init(payload)
        case .credit(let payload): self.init(payload)
        case .goodbye(let payload): self.init(payload)
        case .error(let payload): self.init(payload)
        case .submit(let payload): self.init(payload)
        case .submitted(let payload): self.init(payload)
        case .ask(let payload): self.init(payload)
        case .create(let payload): self.init(payload)
        case .created(let payload): self.init(payload)
        case .append(let payload): self.init(payload)
        case .durable(let payload): self.init(payload)
        case .outcome(let payload): self.init(payload)
        case .recorded(let payload): self.init(payload)
        case .fetch(let payload): self.init(payload)
        case .chunk(let payload): self.init(payload)
        case .seal(let payload): self.init(payload)
        case .sealed(let payload): self.init(payload)
        case .finished(let payload): self.init(payload)
        case .unlinked(let payload): self.init(payload)
        case .promiseAsked(let payload): self.init(payload)
        case .promise(let payload): self.init(payload)
        case .quota(let payload): self.init(payload)
        case .query(let payload): self.init(payload)
        case .answer(let payload): self.init(payload)
        }
    }

    init?(_ payload: some FramePayload) {
        guard payload.isValid else { return nil }
        let type = Swift.type(of: payload).type
        let tail = payload.tail ?? ByteBuffer()
        // Most fixed parts fit; a longer one grows the buffer once.
        var head = ByteBufferAllocator().buffer(capacity: 128)
        head.writeMultipleIntegers(
            UInt32(0), type.rawValue, payload.flags.rawValue, UInt16(0), UInt32(0), endianness: .little)
        payload.write(into: &head)
        let fixed = head.readableBytes - FrameHeader.octets
        let length = fixed + tail.readableBytes
        guard type.payloadLengths.contains(length), let wireLength = UInt32(exactly: length) else { return nil }
        head.setInteger(wireLength, at: 0, endianness: .little)
        var crc = head.withUnsafeReadableBytes { all in
            let covered = CRC32C.of(UnsafeRawBufferPointer(rebasing: all[..<FrameHeader.covered]))
            return CRC32C.of(UnsafeRawBufferPointer(rebasing: all[FrameHeader.octets...]), seed: covered)
        }
        if type.coveredOctets == nil { crc = tail.withUnsafeReadableBytes { CRC32C.of($0, seed: crc) } }
        head.setInteger(crc, at: FrameHeader.covered, endianness: .little)
        self.type = type
        self.head = head
        self.tail = tail
    }

    /// Both parts in one buffer, copied; for tests and for small frames.
    package var joined: ByteBuffer {
        var whole = head
        whole.writeImmutableBuffer(tail)
        return whole
    }
}

/// Reads frames from a stream that is cut anywhere. One per connection; after it has thrown it is not asked again.
///
/// A header is judged by itself and announced before its payload is waited for, so that the session can refuse what it does not
/// want before memory is spent on it. Holds at most one frame that is not complete, and what one read brought behind it; a frame
/// that is wholly there is handed out by reference.
package struct FrameDecoder: Sendable {
    package enum Step: Hashable, Sendable {
        case needMore
        /// Type, flags and length are legal as such. Asked on, the decoder waits for the payload.
        case header(FrameHeader)
        /// The frame whose header was announced; its checksum is right.
        case frame(Frame)
    }

    private var input = ByteBuffer()
    /// Whether `input` is a buffer of our own of which no slice was handed out, so that it can grow in place.
    private var isOwn = false
    private var header: FrameHeader?

    package init() {}

    /// Octets that are here and not handed out yet.
    package var bufferedOctets: Int { input.readableBytes }
    /// Octets of memory held for them.
    var reservedOctets: Int { isOwn ? input.capacity : 0 }
    /// Whether the stream would end within a frame.
    package var isMidFrame: Bool { header != nil || input.readableBytes > 0 }

    /// Takes what the transport read.
    package mutating func feed(_ octets: ByteBuffer) {
        guard octets.readableBytes > 0 else { return }
        guard input.readableBytes > 0 else {
            input = octets
            isOwn = false
            return
        }
        if !isOwn {
            let known = header.map { $0.length } ?? 0
            let capacity = max(input.readableBytes + octets.readableBytes, min(known, PeerLimits.reservedOctets))
            var own = ByteBufferAllocator().buffer(capacity: capacity)
            own.writeImmutableBuffer(input)
            input = own
            isOwn = true
        }
        input.writeImmutableBuffer(octets)
    }

    package mutating func next() throws(PeerViolation) -> Step {
        guard let header else {
            guard let found = try FrameHeader.read(input) else { return .needMore }
            self.header = found
            return .header(found)
        }
        guard input.readableBytes >= FrameHeader.octets + header.length else { return .needMore }
        let start = input.readerIndex
        let covered = min(header.type.coveredOctets ?? header.length, header.length)
        guard let first = input.crc32c(at: start, length: FrameHeader.covered, seed: 0),
            input.crc32c(at: start + FrameHeader.octets, length: covered, seed: first) == header.crc
        else { throw .badChecksum }
        input.moveReaderIndex(forwardBy: FrameHeader.octets)
        guard let payload = input.readSlice(length: header.length) else { throw .malformed }
        self.header = nil
        isOwn = false
        if input.readableBytes == 0 { input = ByteBuffer() }
        return .frame(Frame(type: header.type, flags: header.flags, payload: payload))
    }
}
