// A message's octets while they arrive: one copy, cut into pieces when the message is large.
import BatonCore
import CBatonSystem
import NIOCore

/// Collects un-stuffed octets behind a headroom that the shell later fills with the fields it adds in front.
///
/// Up to `wholeMax` octets stay in one buffer. A larger message is cut: the first piece has `wholeMax` octets, the others
/// `Limits.fragmentSize`; they wait in `pieces` until the session hands them over. Holds at most one piece and what one
/// `receive` adds. The header section has to end within the first piece, so that its facts are known before any octet leaves.
package struct IncomingBody: Sendable {
    /// Octets reserved in front of the content. Fields that need more are put in front by a copy.
    package static let headroom = 640
    /// Octets that the added fields may take in a streamed message.
    package static let prefixMax = 4096
    /// Content that still travels in one buffer.
    package static let wholeMax = Limits.fragmentThreshold - prefixMax
    /// First guess for a message whose size was not announced.
    package static let firstCapacity = 8 * 1024 - headroom

    package private(set) var header = HeaderWatch()
    /// Octets of content so far, discarded ones not included.
    package private(set) var contentLength = 0
    package private(set) var hasEightBitHeader = false
    package private(set) var hasEightBitBody = false
    /// The header section did not end within `wholeMax`.
    package private(set) var headerTooLong = false
    /// Pieces ready to be handed over; the first of all has the headroom.
    package private(set) var pieces: [ByteBuffer] = []
    /// Whether a piece has been cut.
    package private(set) var isStreamed = false
    private var buffer = ByteBuffer()
    private var headroomHere = 0
    private var highBitSearchedTo = 0
    private var isDiscarding = false

    package init() {}

    /// Makes ready for a message of about `expected` octets (nil: unknown). An announced size is believed up to one piece.
    /// `hostname`: this node's, to know its own Received fields by.
    package mutating func begin(expected: Int?, hostname: [UInt8] = []) {
        self = IncomingBody()
        header = HeaderWatch(hostname: hostname)
        let capacity = min(max(expected ?? Self.firstCapacity, 256), Self.wholeMax)
        buffer = ByteBufferAllocator().buffer(capacity: capacity + Self.headroom)
        buffer.moveWriterIndex(to: Self.headroom)
        headroomHere = Self.headroom
    }

    /// Frees what is held and ignores what follows.
    package mutating func discard() {
        isDiscarding = true
        buffer = ByteBuffer()
        pieces = []
        headroomHere = 0
    }

    /// Octets in memory here.
    package var heldBytes: Int { buffer.capacity }

    /// The last piece, or the whole message with its headroom. Leaves nothing behind.
    package mutating func takeRest() -> ByteBuffer {
        var taken = ByteBuffer()
        swap(&taken, &buffer)
        return taken
    }

    package mutating func takePieces() -> [ByteBuffer] {
        guard !pieces.isEmpty else { return [] }
        var taken: [ByteBuffer] = []
        swap(&taken, &pieces)
        return taken
    }

    mutating func append(_ text: StaticString) {
        append(UnsafeRawBufferPointer(start: text.utf8Start, count: text.utf8CodeUnitCount), 0, text.utf8CodeUnitCount)
    }

    /// Appends `raw[start..<end]`.
    mutating func append(_ raw: UnsafeRawBufferPointer, _ start: Int, _ end: Int) {
        var start = start
        while start < end, !isDiscarding {
            let pieceMax = isStreamed ? Limits.fragmentSize : Self.wholeMax + headroomHere
            let room = pieceMax - buffer.readableBytes
            guard room > 0 else {
                cut()
                continue
            }
            let taken = min(room, end - start)
            buffer.writeBytes(UnsafeRawBufferPointer(rebasing: raw[start..<(start + taken)]))
            contentLength += taken
            start += taken
            inspect()
        }
    }

    private mutating func cut() {
        guard header.length != nil else {
            headerTooLong = true
            discard()
            return
        }
        pieces.append(buffer)
        buffer = ByteBufferAllocator().buffer(capacity: Limits.fragmentSize)
        headroomHere = 0
        highBitSearchedTo = 0
        isStreamed = true
    }

    /// Takes note of what was appended last: header lines, octets above 127.
    private mutating func inspect() {
        let skip = headroomHere
        if header.length == nil {
            var watch = HeaderWatch()
            swap(&watch, &header)
            buffer.withUnsafeReadableBytes { watch.scan(UnsafeRawBufferPointer(rebasing: $0[skip...])) }
            swap(&watch, &header)
        }
        guard !hasEightBitBody else { return }
        let from = highBitSearchedTo
        let headerEnd = isStreamed ? 0 : header.length ?? .max
        let seekHeader = !hasEightBitHeader
        let (inHeader, inBody, end) = buffer.withUnsafeReadableBytes { raw in
            let content = UnsafeRawBufferPointer(rebasing: raw[skip...])
            let split = min(max(headerEnd, from), content.count)
            let header = seekHeader && Self.hasHighBit(content, from, split)
            return (header, Self.hasHighBit(content, split, content.count), content.count)
        }
        highBitSearchedTo = end
        if inHeader { hasEightBitHeader = true }
        if inBody { hasEightBitBody = true }
    }

    private static func hasHighBit(_ raw: UnsafeRawBufferPointer, _ start: Int, _ end: Int) -> Bool {
        guard start < end, let base = raw.baseAddress?.assumingMemoryBound(to: UInt8.self) else { return false }
        return baton_find_high_bit(base + start, end - start) < end - start
    }
}
