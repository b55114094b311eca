// How the fields that several frames share are written and read, and what every payload can do.
import BatonCore
import BatonModel
import NIOCore

/// The payload of one frame type.
///
/// `isValid` says what its bytes alone can say, and is asked on both sides: a reader refuses what is not valid, and a writer
/// never sends it, so that a mistake here does not look like a hostile peer there.
protocol FramePayload: Hashable, Sendable {
    static var type: FrameType { get }
    var flags: FrameFlags { get }
    var isValid: Bool { get }
    /// The last octets of the payload where they are many: they go out by reference, behind what `write` wrote.
    var tail: ByteBuffer? { get }
    func write(into buffer: inout ByteBuffer)
    /// Reads all of `payload`, or fails; `isValid` has not been asked yet. Octets left over are the caller's to refuse.
    init?(reading payload: inout ByteBuffer, flags: FrameFlags)
}

extension FramePayload {
    var flags: FrameFlags { [] }
    var isValid: Bool { true }
    var tail: ByteBuffer? { nil }
}

/// One run of a node: what a session, a drainer and a message key are bound to.
package struct NodeRun: Hashable, Sendable {
    package let node: NodeID
    package let incarnation: Incarnation

    package init(node: NodeID, incarnation: Incarnation) {
        self.node = node
        self.incarnation = incarnation
    }
}

/// A SUBMIT's name (PROTOCOL "Submit"), the same in every question about it. 24 octets.
package struct MessageKey: Hashable, Sendable {
    package let ingress: NodeRun
    package let counter: UInt64

    package init(ingress: NodeRun, counter: UInt64) {
        self.ingress = ingress
        self.counter = counter
    }
}

extension ByteBuffer {
    mutating func writeSegment(_ segment: SegmentID) {
        writeMultipleIntegers(
            segment.writer.value, segment.incarnation.value, segment.index, endianness: .little)
    }

    mutating func readSegment() -> SegmentID? {
        guard
            let (writer, incarnation, index) = readMultipleIntegers(
                endianness: .little, as: (UInt64, UInt64, UInt64).self)
        else { return nil }
        return SegmentID(writer: NodeID(value: writer), incarnation: Incarnation(value: incarnation), index: index)
    }

    mutating func writeRun(_ run: NodeRun) {
        writeMultipleIntegers(run.node.value, run.incarnation.value, endianness: .little)
    }

    mutating func readRun() -> NodeRun? {
        guard let (node, incarnation) = readMultipleIntegers(endianness: .little, as: (UInt64, UInt64).self) else {
            return nil
        }
        return NodeRun(node: NodeID(value: node), incarnation: Incarnation(value: incarnation))
    }

    mutating func writeKey(_ key: MessageKey) {
        writeRun(key.ingress)
        writeInteger(key.counter, endianness: .little)
    }

    mutating func readKey() -> MessageKey? {
        guard let ingress = readRun(), let counter: UInt64 = readInteger(endianness: .little) else { return nil }
        return MessageKey(ingress: ingress, counter: counter)
    }

    /// `u16 n` and n octets. The caller has bounded them: `isValid` was asked.
    mutating func writeShort(_ octets: [UInt8]) {
        writeInteger(UInt16(truncatingIfNeeded: octets.count), endianness: .little)
        writeBytes(octets)
    }

    mutating func readShort() -> [UInt8]? {
        guard let length: UInt16 = readInteger(endianness: .little) else { return nil }
        return readBytes(length: Int(length))
    }

    /// All that is left, by reference.
    mutating func readRest() -> ByteBuffer { readSlice(length: readableBytes) ?? ByteBuffer() }

    mutating func readZeros(_ count: Int) -> Bool {
        guard let zeros = readSlice(length: count) else { return false }
        return zeros.readableBytesView.allSatisfy { $0 == 0 }
    }

    /// CRC32C of `length` octets from `index`, continued from `seed`; nil where they are not there.
    func crc32c(at index: Int, length: Int, seed: UInt32) -> UInt32? {
        guard let slice = getSlice(at: index, length: length) else { return nil }
        return slice.withUnsafeReadableBytes { CRC32C.of($0, seed: seed) }
    }
}
