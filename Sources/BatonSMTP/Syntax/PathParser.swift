// Reverse and forward paths (RFC 5321 4.1.2, 4.1.3; RFC 6531 3.3) read from a command line's octets.
import BatonCore
import BatonModel

/// What stands between the angle brackets of MAIL or RCPT.
package enum ParsedPath: Equatable, Sendable {
    /// `<>`
    case null
    case mailbox(MailAddress)
    /// `<postmaster>` without a domain, in any case (RFC 5321 4.5.1).
    case postmaster
}

package enum PathError: Error, Equatable, Sendable {
    case syntax
    /// A local part over 64 octets, a domain over 255, a label over 63 or a path over 256 (RFC 5321 4.5.3.1).
    case tooLong
    /// A mailbox without a domain.
    case noDomain
}

/// The grammar of paths. Strict: brackets are needed, dots do not stand at the ends of a local part or doubled, `%` and `!`
/// are ordinary characters, a source route is read and dropped (RFC 5321 4.1.1.3, appendix C).
///
/// Tolerated beyond the grammar: an underscore in a domain, and one trailing dot, which is dropped.
package enum PathParser {
    typealias Octets = UnsafeRawBufferPointer

    /// Reads `<...>` at `position` and leaves `position` behind the bracket. Octets above 127 have to be well-formed UTF-8;
    /// whether SMTPUTF8 was asked for is the caller's question.
    static func parse(_ line: Octets, at position: inout Int) throws(PathError) -> ParsedPath {
        guard position < line.count, line[position] == UInt8(ascii: "<") else { throw .syntax }
        position += 1
        guard position < line.count else { throw .syntax }
        if line[position] == UInt8(ascii: ">") {
            position += 1
            return .null
        }
        if line[position] == UInt8(ascii: "@") { try skipSourceRoute(line, at: &position) }
        let start = position
        try skipLocalPart(line, at: &position)
        let localEnd = position
        guard localEnd > start else { throw .syntax }
        guard position < line.count else { throw .syntax }
        if line[position] == UInt8(ascii: ">") {
            position += 1
            if isPostmaster(line, start, localEnd) { return .postmaster }
            throw .noDomain
        }
        guard line[position] == UInt8(ascii: "@") else { throw .syntax }
        guard localEnd - start <= Limits.localPartOctets else { throw .tooLong }
        position += 1
        let domainStart = position
        try skipDomain(line, at: &position)
        var domainEnd = position
        guard position < line.count, line[position] == UInt8(ascii: ">") else { throw .syntax }
        position += 1
        if line[domainEnd - 1] == UInt8(ascii: ".") { domainEnd -= 1 }
        guard domainEnd > domainStart, domainEnd - domainStart <= Limits.domainOctets else { throw .tooLong }
        // The brackets count (RFC 5321 4.5.3.1.3).
        guard domainEnd - start + 2 <= Limits.pathOctets else { throw .tooLong }
        guard isUTF8(line, start, domainEnd) else { throw .syntax }
        guard
            let address = MailAddress(
                localPart: UnsafeRawBufferPointer(rebasing: line[start..<localEnd]),
                domain: UnsafeRawBufferPointer(rebasing: line[domainStart..<domainEnd]))
        else { throw .syntax }
        return .mailbox(address)
    }

    /// `@a.example,@b.example:` before the mailbox.
    private static func skipSourceRoute(_ line: Octets, at position: inout Int) throws(PathError) {
        while position < line.count, line[position] == UInt8(ascii: "@") {
            position += 1
            try skipDomain(line, at: &position)
            guard position < line.count else { throw .syntax }
            switch line[position] {
            case UInt8(ascii: ","):
                position += 1
                guard position < line.count, line[position] == UInt8(ascii: "@") else { throw .syntax }
            case UInt8(ascii: ":"):
                position += 1
                return
            default: throw .syntax
            }
        }
        throw .syntax
    }

    private static func skipLocalPart(_ line: Octets, at position: inout Int) throws(PathError) {
        if position < line.count, line[position] == UInt8(ascii: "\"") {
            try skipQuoted(line, at: &position)
            return
        }
        var atomLength = 0
        while position < line.count {
            let octet = line[position]
            if isAtext(octet) {
                atomLength += 1
            } else if octet == UInt8(ascii: ".") {
                guard atomLength > 0 else { throw .syntax }
                atomLength = 0
            } else {
                break
            }
            position += 1
        }
        guard atomLength > 0 else { throw .syntax }
    }

    private static func skipQuoted(_ line: Octets, at position: inout Int) throws(PathError) {
        position += 1
        while position < line.count {
            let octet = line[position]
            switch octet {
            case UInt8(ascii: "\""):
                position += 1
                return
            case UInt8(ascii: "\\"):
                guard position + 1 < line.count, line[position + 1] >= 0x20, line[position + 1] < 0x7f else {
                    throw .syntax
                }
                position += 2
            case 0x20...0x7e, 0x80...0xff: position += 1
            default: throw .syntax
            }
        }
        throw .syntax
    }

    /// A domain or an address literal; stops at the first octet that cannot belong to it.
    static func skipDomain(_ line: Octets, at position: inout Int) throws(PathError) {
        guard position < line.count else { throw .syntax }
        if line[position] == UInt8(ascii: "[") {
            try skipLiteral(line, at: &position)
            return
        }
        var labelLength = 0
        let start = position
        while position < line.count {
            let octet = line[position]
            if isLabelOctet(octet) {
                guard octet != UInt8(ascii: "-") || labelLength > 0 else { throw .syntax }
                labelLength += 1
                guard labelLength <= 63 else { throw .tooLong }
            } else if octet == UInt8(ascii: ".") {
                guard labelLength > 0, line[position - 1] != UInt8(ascii: "-") else { throw .syntax }
                labelLength = 0
            } else {
                break
            }
            position += 1
        }
        // A trailing dot leaves labelLength 0 behind at least one label.
        guard position > start, line[position - 1] != UInt8(ascii: "-") else { throw .syntax }
    }

    /// `[192.0.2.1]` or `[IPv6:2001:db8::1]`; other tags are not known here.
    private static func skipLiteral(_ line: Octets, at position: inout Int) throws(PathError) {
        let start = position + 1
        var end = start
        while end < line.count, line[end] != UInt8(ascii: "]") {
            guard end - start < 64, line[end] > 0x20, line[end] < 0x7f else { throw .syntax }
            end += 1
        }
        guard end < line.count, end > start else { throw .syntax }
        let inside = String(decoding: line[start..<end], as: UTF8.self)
        let tagged = inside.count > 5 && inside.prefix(5).lowercased() == "ipv6:"
        let address = tagged ? String(inside.dropFirst(5)) : inside
        guard address.utf8.contains(UInt8(ascii: ":")) == tagged, IPAddress(address) != nil else { throw .syntax }
        position = end + 1
    }

    @inline(__always)
    static func isAtext(_ octet: UInt8) -> Bool {
        switch octet {
        case 0x61...0x7a, 0x41...0x5a, 0x30...0x39, 0x80...0xff: true
        case UInt8(ascii: "!"), UInt8(ascii: "#"), UInt8(ascii: "$"), UInt8(ascii: "%"), UInt8(ascii: "&"),
            UInt8(ascii: "'"), UInt8(ascii: "*"), UInt8(ascii: "+"), UInt8(ascii: "-"), UInt8(ascii: "/"),
            UInt8(ascii: "="), UInt8(ascii: "?"), UInt8(ascii: "^"), UInt8(ascii: "_"), UInt8(ascii: "`"),
            UInt8(ascii: "{"), UInt8(ascii: "|"), UInt8(ascii: "}"), UInt8(ascii: "~"):
            true
        default: false
        }
    }

    @inline(__always)
    private static func isLabelOctet(_ octet: UInt8) -> Bool {
        switch octet {
        case 0x61...0x7a, 0x41...0x5a, 0x30...0x39, 0x80...0xff, UInt8(ascii: "-"), UInt8(ascii: "_"): true
        default: false
        }
    }

    private static func isPostmaster(_ line: Octets, _ start: Int, _ end: Int) -> Bool {
        let word: StaticString = "postmaster"
        guard end - start == word.utf8CodeUnitCount else { return false }
        for index in 0..<word.utf8CodeUnitCount where line[start + index] | 0x20 != word.utf8Start[index] {
            return false
        }
        return true
    }

    /// Whether the octets are well-formed UTF-8; costs nothing for ASCII.
    static func isUTF8(_ line: Octets, _ start: Int, _ end: Int) -> Bool {
        let part = UnsafeRawBufferPointer(rebasing: line[start..<end])
        guard part.contains(where: { $0 >= 0x80 }) else { return true }
        return String(validating: part, as: UTF8.self) != nil
    }
}
