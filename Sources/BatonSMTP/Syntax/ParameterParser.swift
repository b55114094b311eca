// ESMTP parameters of MAIL and RCPT: SIZE, BODY, SMTPUTF8, RET, ENVID, NOTIFY, ORCPT (RFC 1870, 6152, 6531, 3461).
import BatonCore
import BatonModel

/// Why a command was refused by its form alone.
package enum CommandError: Error, Equatable, Sendable {
    /// Wrong argument: 501 5.5.4.
    case argument
    /// Not a path: 501 5.1.7 for MAIL, 501 5.1.3 for RCPT.
    case path
    /// Something over its length limit: 501 5.5.4, with its own text.
    case tooLong
    /// A parameter that was not offered: 555 5.5.4 (RFC 5321 4.1.1.11).
    case unknownParameter
    /// An address beyond ASCII without SMTPUTF8: 553 5.6.7 (RFC 6531 3.5).
    case needsSMTPUTF8
}

/// The parameters of MAIL.
package struct MailParameters: Equatable, Sendable {
    /// SIZE in octets; nil if not given. `Int.max` for numbers beyond 63 bits.
    package var size: Int?
    package var body: BodyKind = .unspecified
    package var smtpUTF8 = false
    package var returnContent: ReturnContent = .unspecified
    /// xtext as received.
    package var envid: [UInt8] = []

    package enum BodyKind: Equatable, Sendable {
        case unspecified
        case sevenBit
        case eightBitMIME
    }
}

/// The parameters of RCPT.
package struct RcptParameters: Equatable, Sendable {
    package var notify: NotifyFlags = []
    /// `type;xtext` as received.
    package var originalRecipient: [UInt8] = []
}

/// Reads ` KEY=VALUE KEY …` behind a path. A parameter given twice is refused; keys in any case.
enum ParameterParser {
    typealias Octets = UnsafeRawBufferPointer

    static func mail(_ line: Octets, from start: Int) throws(CommandError) -> MailParameters {
        var result = MailParameters()
        var seen: UInt8 = 0
        var position = start
        while let (key, value) = try next(line, at: &position) {
            if matches(key, "SIZE") {
                try once(&seen, 1)
                result.size = try number(value)
            } else if matches(key, "BODY") {
                try once(&seen, 2)
                if matches(value, "8BITMIME") {
                    result.body = .eightBitMIME
                } else if matches(value, "7BIT") {
                    result.body = .sevenBit
                } else {
                    throw .argument
                }
            } else if matches(key, "SMTPUTF8") {
                try once(&seen, 4)
                guard value == nil else { throw .argument }
                result.smtpUTF8 = true
            } else if matches(key, "RET") {
                try once(&seen, 8)
                if matches(value, "FULL") {
                    result.returnContent = .full
                } else if matches(value, "HDRS") {
                    result.returnContent = .headers
                } else {
                    throw .argument
                }
            } else if matches(key, "ENVID") {
                try once(&seen, 16)
                guard let value, !value.isEmpty else { throw .argument }
                guard value.count <= Limits.envidOctets else { throw .tooLong }
                guard isXtext(value) else { throw .argument }
                result.envid = Array(value)
            } else {
                throw .unknownParameter
            }
        }
        return result
    }

    static func rcpt(_ line: Octets, from start: Int) throws(CommandError) -> RcptParameters {
        var result = RcptParameters()
        var seen: UInt8 = 0
        var position = start
        while let (key, value) = try next(line, at: &position) {
            if matches(key, "NOTIFY") {
                try once(&seen, 1)
                result.notify = try notify(value)
            } else if matches(key, "ORCPT") {
                try once(&seen, 2)
                guard let value, !value.isEmpty else { throw .argument }
                guard value.count <= Limits.orcptOctets else { throw .tooLong }
                guard isOriginalRecipient(value) else { throw .argument }
                result.originalRecipient = Array(value)
            } else {
                throw .unknownParameter
            }
        }
        return result
    }

    /// NEVER alone, or a list of SUCCESS, FAILURE, DELAY without repetition (RFC 3461 4.1).
    private static func notify(_ value: Octets?) throws(CommandError) -> NotifyFlags {
        guard let value, !value.isEmpty else { throw .argument }
        if matches(value, "NEVER") { return .never }
        var flags: NotifyFlags = []
        var start = 0
        while true {
            var end = start
            while end < value.count, value[end] != UInt8(ascii: ",") { end += 1 }
            let word = Octets(rebasing: value[start..<end])
            let flag: NotifyFlags
            if matches(word, "SUCCESS") {
                flag = .success
            } else if matches(word, "FAILURE") {
                flag = .failure
            } else if matches(word, "DELAY") {
                flag = .delay
            } else {
                throw .argument
            }
            guard flags.isDisjoint(with: flag) else { throw .argument }
            flags.formUnion(flag)
            if end == value.count { return flags }
            start = end + 1
        }
    }

    /// The next parameter; nil at the end of the line (blanks there are tolerated).
    private static func next(_ line: Octets, at position: inout Int) throws(CommandError) -> (Octets, Octets?)? {
        guard position < line.count else { return nil }
        guard line[position] == 0x20 else { throw .argument }
        while position < line.count, line[position] == 0x20 || line[position] == 0x09 { position += 1 }
        guard position < line.count else { return nil }
        let keyStart = position
        while position < line.count, isKeyOctet(line[position]) { position += 1 }
        guard position > keyStart, line[keyStart] != UInt8(ascii: "-") else { throw .argument }
        let key = Octets(rebasing: line[keyStart..<position])
        guard position < line.count, line[position] == UInt8(ascii: "=") else {
            guard position == line.count || line[position] == 0x20 else { throw .argument }
            return (key, nil)
        }
        position += 1
        let valueStart = position
        // esmtp-value is any octet but "=", blank and controls; ORCPT of type utf-8 may hold UTF-8 (RFC 6533 3).
        while position < line.count, line[position] > 0x20, line[position] != UInt8(ascii: "="), line[position] != 0x7f
        {
            position += 1
        }
        guard position > valueStart, position == line.count || line[position] == 0x20 else { throw .argument }
        return (key, Octets(rebasing: line[valueStart..<position]))
    }

    private static func isKeyOctet(_ octet: UInt8) -> Bool {
        switch octet {
        case 0x61...0x7a, 0x41...0x5a, 0x30...0x39, UInt8(ascii: "-"): true
        default: false
        }
    }

    private static func once(_ seen: inout UInt8, _ bit: UInt8) throws(CommandError) {
        guard seen & bit == 0 else { throw .argument }
        seen |= bit
    }

    /// 1 to 20 digits (RFC 1870 4); saturates.
    static func number(_ value: Octets?) throws(CommandError) -> Int {
        guard let value, !value.isEmpty, value.count <= 20 else { throw .argument }
        var result = 0
        for octet in value {
            guard octet >= 0x30, octet <= 0x39 else { throw .argument }
            let (product, overflow) = result.multipliedReportingOverflow(by: 10)
            let (sum, carried) = product.addingReportingOverflow(Int(octet - 0x30))
            result = overflow || carried || result == .max ? .max : sum
        }
        return result
    }

    /// Whether the octets are the word, in any case of ASCII letters.
    @inline(__always)
    static func matches(_ octets: Octets?, _ word: StaticString) -> Bool {
        guard let octets, octets.count == word.utf8CodeUnitCount else { return false }
        for index in 0..<octets.count {
            let octet = octets[index]
            let upper = octet >= 0x61 && octet <= 0x7a ? octet & 0xdf : octet
            if upper != word.utf8Start[index] { return false }
        }
        return true
    }

    /// RFC 3461 4: printable ASCII but `+` and `=`, or `+` and two upper-case hexadecimal digits. What decodes to a control
    /// character that could break a line is refused, since it ends in reports.
    static func isXtext(_ octets: Octets) -> Bool {
        var index = 0
        while index < octets.count {
            let octet = octets[index]
            if octet == UInt8(ascii: "+") {
                guard index + 2 < octets.count, let high = hex(octets[index + 1]), let low = hex(octets[index + 2])
                else { return false }
                let decoded = high << 4 | low
                guard decoded != 0, decoded != 0x0d, decoded != 0x0a else { return false }
                index += 3
            } else {
                guard octet > 0x20, octet < 0x7f, octet != UInt8(ascii: "=") else { return false }
                index += 1
            }
        }
        return true
    }

    private static func hex(_ octet: UInt8) -> UInt8? {
        switch octet {
        case 0x30...0x39: octet - 0x30
        case 0x41...0x46: octet - 0x41 + 10
        default: nil
        }
    }

    /// `rfc822;xtext` or another address type; for `utf-8` also UTF-8 octets (RFC 6533 3).
    private static func isOriginalRecipient(_ value: Octets) -> Bool {
        guard let separator = value.firstIndex(of: UInt8(ascii: ";")), separator > 0, separator + 1 < value.count
        else { return false }
        let type = Octets(rebasing: value[..<separator])
        guard type.allSatisfy(isKeyOctet) else { return false }
        let address = Octets(rebasing: value[(separator + 1)...])
        guard matches(type, "UTF-8") else { return isXtext(address) }
        guard PathParser.isUTF8(address, 0, address.count) else { return false }
        // Octets above 127 stand for themselves; the rest keeps to xtext.
        var start = 0
        for index in 0...address.count where index == address.count || address[index] >= 0x80 {
            if index > start, !isXtext(Octets(rebasing: address[start..<index])) { return false }
            start = index + 1
        }
        return true
    }
}
