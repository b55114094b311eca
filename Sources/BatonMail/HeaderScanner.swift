// Finds the end of a header section and the few fields the ingress asks for, while the octets arrive in pieces.
import BatonCore
import Glibc
import NIOCore

/// Reads un-stuffed message octets in order, in pieces of any size, and stops looking at the empty line.
///
/// Keeps at most `messageIDOctets` of the text it saw. Lines end with CRLF; a bare LF ends none here, since what reaches a
/// stored body has none. A line without a colon in it is no field and is passed over: it does not end the section.
package struct HeaderScanner: Sendable {
    /// Octets of a Message-ID that are kept; the rest is cut.
    package static let messageIDOctets = 255
    /// Field names compared are no longer than this.
    private static let nameOctets = 16

    /// Octets of header section seen so far; after `isComplete` its whole length, the empty line included.
    package private(set) var length = 0
    /// Whether the empty line has been seen. Octets after it are not looked at.
    package private(set) var isComplete = false
    package private(set) var receivedCount = 0
    package private(set) var hasDate = false
    package private(set) var hasMessageID = false
    package private(set) var hasFrom = false
    /// The first Message-ID's value, unfolded and trimmed.
    package private(set) var messageID: [UInt8] = []

    private enum Place {
        case name
        case value
        case messageIDValue
    }

    private var place = Place.name
    /// Lower-cased octets of the current line's name, first octet in the most significant place.
    private var name: (UInt64, UInt64) = (0, 0)
    private var nameLength = 0
    private var lineLength = 0
    private var lastByte: UInt8 = 0
    private var nameEnded = false
    /// The previous line was the first Message-ID field, so a continuation line goes on with it.
    private var inMessageID = false

    package init() {}

    /// Whether the section has grown beyond `limit` without its end (552, never a truncated header).
    package func exceeds(_ limit: Int = Limits.headerSection) -> Bool { length > limit }

    package mutating func scan(_ buffer: ByteBuffer) {
        guard !isComplete else { return }
        buffer.withUnsafeReadableBytes { scan($0) }
    }

    package mutating func scan(_ bytes: UnsafeRawBufferPointer) {
        var at = 0
        while at < bytes.count, !isComplete {
            if place == .value {
                // The rest of an uninteresting line: find its LF without looking at each octet.
                guard let base = bytes.baseAddress else { return }
                let rest = bytes.count - at
                guard let found = memchr(base + at, 0x0a, rest) else {
                    take(rest, last: bytes[bytes.count - 1])
                    return
                }
                let distance = UnsafeRawPointer(found) - (base + at)
                if distance > 0 { take(distance, last: bytes[at + distance - 1]) }
                at += distance
            }
            step(bytes[at])
            at += 1
        }
    }

    private mutating func take(_ count: Int, last: UInt8) {
        length += count
        lineLength += count
        lastByte = last
    }

    private mutating func step(_ byte: UInt8) {
        length += 1
        lineLength += 1
        defer { lastByte = byte }
        if byte == 0x0a, lastByte == 0x0d, lineLength >= 2 {
            if lineLength == 2 { isComplete = true }
            endLine()
            return
        }
        switch place {
        case .value: return
        case .messageIDValue: keep(byte)
        case .name: stepName(byte)
        }
    }

    private mutating func stepName(_ byte: UInt8) {
        if lineLength == 1 {
            if byte == 0x20 || byte == 0x09 {
                place = inMessageID ? .messageIDValue : .value
                if inMessageID { keep(0x20) }
                return
            }
            inMessageID = false
        }
        switch byte {
        case UInt8(ascii: ":"): endName()
        case 0x20, 0x09: nameEnded = true
        case 0x0d: return
        default:
            // Blanks may stand between name and colon only (RFC 5322 4.5, obsolete but met).
            guard !nameEnded, nameLength < Self.nameOctets else {
                place = .value
                return
            }
            let lowered = UInt64(byte >= 0x41 && byte <= 0x5a ? byte | 0x20 : byte)
            if nameLength < 8 {
                name.0 |= lowered << UInt64(56 - nameLength * 8)
            } else {
                name.1 |= lowered << UInt64(56 - (nameLength - 8) * 8)
            }
            nameLength += 1
        }
    }

    private mutating func endName() {
        place = .value
        switch (nameLength, name.0, name.1) {
        case (8, Self.received.0, Self.received.1): receivedCount += 1
        case (4, Self.date.0, Self.date.1): hasDate = true
        case (4, Self.from.0, Self.from.1): hasFrom = true
        case (10, Self.messageIDName.0, Self.messageIDName.1):
            if !hasMessageID {
                inMessageID = true
                place = .messageIDValue
            }
            hasMessageID = true
        default: return
        }
    }

    private mutating func keep(_ byte: UInt8) {
        if byte == 0x0d || byte == 0x0a { return }
        if byte == 0x20 || byte == 0x09 {
            // Leading blanks and runs of them are folds.
            if messageID.isEmpty || messageID.last == 0x20 { return }
        }
        if messageID.count < Self.messageIDOctets { messageID.append(byte == 0x09 ? 0x20 : byte) }
    }

    private mutating func endLine() {
        if inMessageID {
            while messageID.last == 0x20 { messageID.removeLast() }
        }
        place = .name
        name = (0, 0)
        nameLength = 0
        lineLength = 0
        nameEnded = false
    }

    private static let received = packed("received")
    private static let date = packed("date")
    private static let from = packed("from")
    private static let messageIDName = packed("message-id")

    private static func packed(_ text: StaticString) -> (UInt64, UInt64) {
        var value: (UInt64, UInt64) = (0, 0)
        for index in 0..<text.utf8CodeUnitCount {
            let byte = UInt64(text.utf8Start[index])
            if index < 8 {
                value.0 |= byte << UInt64(56 - index * 8)
            } else {
                value.1 |= byte << UInt64(56 - (index - 8) * 8)
            }
        }
        return value
    }
}
