// Enhanced status codes (RFC 3463; registry of RFC 5248).

/// `class.subject.detail`, for example 5.1.1.
public struct EnhancedStatus: Hashable, Sendable {
    public let classDigit: UInt8
    public let subject: UInt16
    public let detail: UInt16

    @inlinable public init(_ classDigit: UInt8, _ subject: UInt16, _ detail: UInt16) {
        self.classDigit = classDigit
        self.subject = subject
        self.detail = detail
    }

    /// Reads `2.1.5` at the start of a reply's text. Nil unless the class is 2, 4 or 5 and the numbers have at most 3 digits,
    /// followed by the end or a blank. Returns the octets used, one blank after it included.
    @inlinable public static func parse(_ text: some Collection<UInt8>) -> (status: EnhancedStatus, length: Int)? {
        var numbers: [UInt16] = []
        var current: UInt16 = 0
        var digits = 0
        var used = 0
        for byte in text {
            if byte >= 0x30, byte <= 0x39 {
                digits += 1
                guard digits <= 3 else { return nil }
                current = current * 10 + UInt16(byte - 0x30)
            } else if byte == UInt8(ascii: "."), digits > 0, numbers.count < 2 {
                numbers.append(current)
                current = 0
                digits = 0
            } else if byte == 0x20 || byte == 0x09 {
                guard digits > 0 else { return nil }
                used += 1
                break
            } else {
                return nil
            }
            used += 1
        }
        guard digits > 0, numbers.count == 2, [2, 4, 5].contains(numbers[0]) else { return nil }
        return (EnhancedStatus(UInt8(numbers[0]), numbers[1], current), used)
    }
}

extension EnhancedStatus: CustomStringConvertible {
    public var description: String { "\(classDigit).\(subject).\(detail)" }
}
