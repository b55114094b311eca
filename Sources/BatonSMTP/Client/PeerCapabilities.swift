// What a peer offered in its EHLO or LHLO reply.
import BatonModel

/// The extensions that delivery makes use of (RFC 5321 4.1.1.1). A HELO peer has none.
package struct PeerCapabilities: Hashable, Sendable {
    /// RFC 2920.
    package var pipelining = false
    /// RFC 6152.
    package var eightBitMIME = false
    /// RFC 6531.
    package var smtpUTF8 = false
    /// RFC 3461.
    package var dsn = false
    /// RFC 3030.
    package var chunking = false
    /// RFC 3207; read by the TLS part.
    package var startTLS = false
    /// RFC 8689.
    package var requireTLS = false
    /// RFC 1870: whether SIZE was offered at all.
    package var size = false
    /// Largest message in octets; 0: none named.
    package var sizeLimit = 0
    /// RFC 9422, at least 1; nil: none named.
    package var recipientsMax: Int?
    package var transactionsMax: Int?
    /// AUTH mechanisms as offered, upper case (RFC 4954); read by the AUTH part. At most 16.
    package var authMechanisms: [[UInt8]] = []

    package init() {}

    /// Reads the lines after the first. Unknown keywords and malformed values are passed over.
    package init(ehloText text: [UInt8]) {
        for line in text.split(separator: 0x0a).dropFirst() {
            let words = line.split(whereSeparator: { $0 == 0x20 || $0 == 0x0d || $0 == 0x09 })
            guard let keyword = words.first else { continue }
            read(String(decoding: keyword.prefix(32), as: UTF8.self).uppercased(), Array(words.dropFirst()))
        }
    }

    private mutating func read(_ keyword: String, _ arguments: [ArraySlice<UInt8>]) {
        switch keyword {
        case "PIPELINING": pipelining = true
        case "8BITMIME": eightBitMIME = true
        case "SMTPUTF8": smtpUTF8 = true
        case "DSN": dsn = true
        case "CHUNKING": chunking = true
        case "STARTTLS": startTLS = true
        case "REQUIRETLS": requireTLS = true
        case "SIZE":
            size = true
            sizeLimit = arguments.first.flatMap(Self.number) ?? 0
        case "AUTH":
            authMechanisms = arguments.prefix(16).map { Array(String(decoding: $0, as: UTF8.self).uppercased().utf8) }
        case "LIMITS":
            for argument in arguments { readLimit(argument) }
        default: break
        }
    }

    private mutating func readLimit(_ argument: ArraySlice<UInt8>) {
        guard let equals = argument.firstIndex(of: UInt8(ascii: "=")),
            let value = Self.number(argument[(equals + 1)...]), value > 0
        else { return }
        switch String(decoding: argument[..<equals], as: UTF8.self).uppercased() {
        case "RCPTMAX": recipientsMax = value
        case "MAILMAX": transactionsMax = value
        default: break
        }
    }

    private static func number(_ digits: ArraySlice<UInt8>) -> Int? {
        guard !digits.isEmpty, digits.count <= 18 else { return nil }
        var value = 0
        for digit in digits {
            guard digit >= 0x30, digit <= 0x39 else { return nil }
            value = value * 10 + Int(digit - 0x30)
        }
        return value
    }
}
