// Dot-stuffing of outgoing DATA (RFC 5321 4.5.2), resumable between the fragments of a large body.
import Glibc
import NIOCore

/// Doubles each dot at the beginning of a line. Its input is CRLF text (ingress lets nothing else in), so LF ends a line.
package struct DotStuffer: Sendable {
    /// Whether the next octet begins a line; true at the beginning of a body.
    private var atLineStart = true

    package init() {}

    /// The octets with their dots doubled; the same buffer, uncopied, where there is nothing to double.
    package mutating func stuff(_ bytes: ByteBuffer) -> ByteBuffer {
        let (positions, endsLine) = bytes.withUnsafeReadableBytes { positionsOfDots($0) }
        if bytes.readableBytes > 0 { atLineStart = endsLine }
        guard !positions.isEmpty else { return bytes }
        var stuffed = ByteBufferAllocator().buffer(capacity: bytes.readableBytes + positions.count)
        bytes.withUnsafeReadableBytes { raw in
            var from = 0
            for position in positions {
                stuffed.writeBytes(UnsafeRawBufferPointer(rebasing: raw[from..<position]))
                stuffed.writeInteger(UInt8(ascii: "."))
                from = position
            }
            stuffed.writeBytes(UnsafeRawBufferPointer(rebasing: raw[from...]))
        }
        return stuffed
    }

    private func positionsOfDots(_ raw: UnsafeRawBufferPointer) -> ([Int], Bool) {
        guard let base = raw.baseAddress, !raw.isEmpty else { return ([], atLineStart) }
        var positions: [Int] = []
        if atLineStart, raw[0] == UInt8(ascii: ".") { positions.append(0) }
        var offset = 0
        while offset < raw.count, let hit = memchr(base + offset, 0x0a, raw.count - offset) {
            offset = UnsafeRawPointer(hit) - base + 1
            if offset < raw.count, raw[offset] == UInt8(ascii: ".") { positions.append(offset) }
        }
        return (positions, raw[raw.count - 1] == 0x0a)
    }
}
