// Makes text that strangers wrote harmless before it goes into a header field or a report.
import BatonModel
import NIOCore

/// One rule for everything that a peer, a sender or a DNS answer supplied (RFC 5321 4.2: reply text is untrusted).
package enum HostileText {
    /// One line: printable ASCII stays; CR, LF, tabs and other controls become single blanks; everything else `?`, or, with
    /// `utf8`, well-formed UTF-8 stays except for C1 controls, line and paragraph separators and bidirectional controls.
    /// At most `limit` octets; never longer than its input.
    package static func line(_ bytes: some Collection<UInt8>, utf8: Bool = false, limit: Int = 512) -> [UInt8] {
        var out: [UInt8] = []
        out.reserveCapacity(min(limit, bytes.count))
        if utf8 {
            for scalar in String(decoding: bytes.prefix(limit), as: UTF8.self).unicodeScalars {
                // A replacement character is three octets for one bad octet: `?` keeps the promise of the length.
                if scalar.value < 0x80 {
                    append(UInt8(scalar.value), to: &out)
                } else if scalar.value == 0xfffd || isTreacherous(scalar) {
                    out.append(UInt8(ascii: "?"))
                } else {
                    out.append(contentsOf: Array(String(scalar).utf8))
                }
            }
        } else {
            for byte in bytes.prefix(limit) { append(byte, to: &out) }
        }
        while out.last == 0x20 { out.removeLast() }
        return out
    }

    private static func append(_ byte: UInt8, to out: inout [UInt8]) {
        if byte > 0x20, byte < 0x7f {
            out.append(byte)
        } else if byte >= 0x80 {
            out.append(UInt8(ascii: "?"))
        } else if let last = out.last, last != 0x20 {
            out.append(0x20)
        }
    }

    private static func isTreacherous(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0x80...0x9f, 0x200b...0x200f, 0x2028...0x202e, 0x2060...0x2069, 0xfeff: true
        default: false
        }
    }

    /// Decodes xtext (RFC 3461 4): `+41` is `A`. Nil where it is malformed.
    package static func fromXtext(_ bytes: some Collection<UInt8>) -> [UInt8]? {
        var out: [UInt8] = []
        out.reserveCapacity(bytes.count)
        var rest = bytes.makeIterator()
        while let byte = rest.next() {
            guard byte == UInt8(ascii: "+") else {
                out.append(byte)
                continue
            }
            guard let high = rest.next().flatMap(hexValue), let low = rest.next().flatMap(hexValue) else { return nil }
            out.append(high << 4 | low)
        }
        return out
    }

    private static func hexValue(_ byte: UInt8) -> UInt8? {
        switch byte {
        case 0x30...0x39: byte - 0x30
        case 0x41...0x46: byte - 0x37
        case 0x61...0x66: byte - 0x57
        default: nil
        }
    }

    /// An internationalised address in ASCII: `\x{E9}` for each character above 127 (utf-8-addr-xtext without its `+`, RFC
    /// 6533 3), controls and ill-formed UTF-8 as `?`; beside such characters a backslash of the address is `\x{5C}`. Up to six
    /// times as long as its input.
    package static func escapedAddress(_ bytes: some Collection<UInt8>) -> [UInt8] {
        var out: [UInt8] = []
        let isInternational = bytes.contains { $0 >= 0x80 }
        for scalar in String(decoding: bytes, as: UTF8.self).unicodeScalars {
            switch scalar.value {
            case 0x5c where isInternational: out.append(contentsOf: Array("\\x{5C}".utf8))
            case 0x20...0x7e: out.append(UInt8(scalar.value))
            case 0x80..<0xfffd, 0xfffe...:
                out.append(contentsOf: Array("\\x{\(String(scalar.value, radix: 16, uppercase: true))}".utf8))
            default: out.append(UInt8(ascii: "?"))
            }
        }
        return out
    }
}

/// Appends text wrapped at blanks. Every line after the first begins with `indent`, so that no text can pose as a MIME
/// boundary or a header field; a word longer than a line stays whole up to `hardWidth` octets and is then cut in two.
struct WrappedText {
    static let width = 76
    static let hardWidth = 900

    /// `prefix` begins the first line and is trusted; `text` is one harmless line.
    static func write(
        prefix: StaticString, _ text: [UInt8], indent: StaticString, into buffer: inout ByteBuffer
    ) {
        buffer.writeStaticString(prefix)
        var column = prefix.utf8CodeUnitCount
        let indentWidth = indent.utf8CodeUnitCount
        var isFirst = true
        for word in text.split(separator: 0x20) {
            if !isFirst {
                if column + 1 + word.count > width, column > indentWidth {
                    buffer.writeStaticString("\r\n")
                    buffer.writeStaticString(indent)
                    column = indentWidth
                } else {
                    buffer.writeInteger(0x20 as UInt8)
                    column += 1
                }
            }
            isFirst = false
            var rest = word
            while column + rest.count > hardWidth {
                let piece = rest.prefix(max(1, hardWidth - column))
                buffer.writeBytes(piece)
                buffer.writeStaticString("\r\n")
                buffer.writeStaticString(indent)
                column = indentWidth
                rest = rest.dropFirst(piece.count)
            }
            buffer.writeBytes(rest)
            column += rest.count
        }
        buffer.writeStaticString("\r\n")
    }
}
