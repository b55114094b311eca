// The third part of a report: what is given back of the message itself, and the boundary that keeps parts apart.
import BatonCore
import BatonModel
import NIOCore

/// Content that fits, with the type and encoding it needs.
struct ReturnedPart {
    /// Nil for no third part.
    let type: StaticString?
    let encoding: StaticString
    let description: StaticString
    let content: ByteBuffer

    private static let none = ReturnedPart(type: nil, encoding: "7bit", description: "", content: ByteBuffer())

    /// Whether it holds octets above 127, so that the report around it has to say so too (RFC 2045 6.4).
    var isEightBit: Bool { encoding.withUTF8Buffer { $0.elementsEqual("8bit".utf8) } }

    /// At most `room` octets of content. A full message that does not fit becomes its header section.
    static func make(
        _ returned: DeliveryReport.Returned, traits: BodyTraits, utf8: Bool, room: Int, headerMax: Int
    ) -> ReturnedPart {
        guard room > 0 else { return none }
        switch returned {
        case .nothing: return none
        case .full(let bytes) where bytes.readableBytes <= room:
            let eightBit = bytes.readableBytesView.contains { $0 >= 0x80 }
            return ReturnedPart(
                type: utf8 ? "message/global" : "message/rfc822", encoding: eightBit ? "8bit" : "7bit",
                description: "Undelivered message", content: bytes)
        case .full(let bytes), .headers(let bytes):
            return headers(bytes, traits: traits, utf8: utf8, room: min(room, headerMax))
        }
    }

    private static func headers(_ bytes: ByteBuffer, traits: BodyTraits, utf8: Bool, room: Int) -> ReturnedPart {
        let section = bytes.readableBytesView.prefix(traits.headerLength)
        let plain = section.allSatisfy { $0 < 0x80 && $0 != 0 } && traits.longestLine <= 998
        let description: StaticString = "Header section of the undelivered message"
        if utf8 || plain {
            let eightBit = section.contains { $0 >= 0x80 }
            return ReturnedPart(
                type: utf8 ? "message/global-headers" : "text/rfc822-headers", encoding: eightBit ? "8bit" : "7bit",
                description: description, content: ByteBuffer(bytes: cut(Array(section), to: room)))
        }
        // Quoted-printable triples at worst, soft line ends included; so the report needs no 8BITMIME to come home.
        let whole = cut(Array(section), to: room / 4)
        return ReturnedPart(
            type: "text/rfc822-headers", encoding: "quoted-printable", description: description,
            content: quotedPrintable(whole))
    }

    /// Whole lines only, without the empty line at the end.
    private static func cut(_ section: [UInt8], to limit: Int) -> [UInt8] {
        var kept = section.prefix(limit)
        if kept.count < section.count, let end = kept.lastIndex(of: 0x0a) {
            kept = kept[...end]
        } else if kept.count < section.count {
            kept = []
        }
        if kept.count >= 4, kept.suffix(4).elementsEqual([0x0d, 0x0a, 0x0d, 0x0a]) { kept = kept.dropLast(2) }
        return Array(kept)
    }

    private static func quotedPrintable(_ bytes: [UInt8]) -> ByteBuffer {
        var out = ByteBuffer()
        var column = 0
        for (index, byte) in bytes.enumerated() {
            if byte == 0x0d, index + 1 < bytes.count, bytes[index + 1] == 0x0a { continue }
            if byte == 0x0a, index > 0, bytes[index - 1] == 0x0d {
                out.writeStaticString("\r\n")
                column = 0
                continue
            }
            let endsLine = index + 1 < bytes.count && bytes[index + 1] == 0x0d
            let blank = byte == 0x20 || byte == 0x09
            let plain = (byte > 0x20 && byte < 0x7f && byte != UInt8(ascii: "=")) || (blank && !endsLine)
            if column + (plain ? 1 : 3) > 75 {
                out.writeStaticString("=\r\n")
                column = 0
            }
            if plain {
                out.writeInteger(byte)
                column += 1
            } else {
                let digits: StaticString = "0123456789ABCDEF"
                out.writeInteger(UInt8(ascii: "="))
                out.writeInteger(digits.utf8Start[Int(byte >> 4)])
                out.writeInteger(digits.utf8Start[Int(byte & 15)])
                column += 3
            }
        }
        return out
    }
}

/// A boundary that none of the parts holds (RFC 2046 5.1.1).
enum ReportBoundary {
    /// Boundaries tried before the last is taken as it is. Each try that fails costs its adversary the exact text of another
    /// boundary inside the returned message, whose octets are bounded.
    static let triesMax = 64

    static func make(id: MessageID, avoiding parts: [ByteBuffer]) -> [UInt8] {
        var boundary: [UInt8] = []
        for attempt in 0..<triesMax {
            var hash = StableHash()
            hash.combine(id.low)
            hash.combine(UInt64(attempt))
            // The contents enter too: a message cannot hold the hash of itself by accident, and hardly by design.
            for part in parts { hash.combine(UInt64(part.readableBytesView.withUnsafeBytes { CRC32C.of($0) })) }
            boundary = Array("=_baton_\(id)_\(String(hash.finish(), radix: 36))".utf8)
            if !parts.contains(where: { contains($0, boundary) }) { return boundary }
        }
        return boundary
    }

    static func contains(_ haystack: ByteBuffer, _ needle: [UInt8]) -> Bool {
        let view = haystack.readableBytesView
        guard let first = needle.first, needle.count <= view.count else { return false }
        var from = view.startIndex
        while let at = view[from...].firstIndex(of: first) {
            if view[at...].starts(with: needle) { return true }
            from = view.index(after: at)
        }
        return false
    }
}
