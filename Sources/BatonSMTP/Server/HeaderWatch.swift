// The few facts of a header section that the server side decides by, found as the section streams in.
import Glibc

/// Counts Received fields, notes Date and Message-ID, finds the end of the section. It looks at each line once.
package struct HeaderWatch: Sendable {
    /// Longest Message-ID kept for envelope and events (octets); a longer one is not kept.
    package static let messageIDOctetsMax = 255
    /// Received fields of this node that a message may bring: mail that passes a filter and comes back is no loop yet.
    package static let ownMax = 8

    /// Received fields so far (RFC 5321 6.3).
    package private(set) var received = 0
    /// Received fields that name this node as the one that took the message, counted once the section is complete and only where
    /// there are more than `ownMax` Received fields at all.
    package private(set) var own = 0
    package private(set) var hasDate = false
    package private(set) var hasMessageID = false
    /// Value of the first Message-ID field, trimmed; empty if none or too long.
    package private(set) var messageID: [UInt8] = []
    /// Octets of the section with the empty line that ends it, once that has come.
    package private(set) var length: Int?

    private var lineStart = 0
    private var searchedTo = 0
    private var awaitsFoldedMessageID = false
    private let hostname: [UInt8]

    /// `hostname`: this node's, as its own Received fields have it; empty: not looked for.
    package init(hostname: [UInt8] = []) {
        self.hostname = hostname
    }

    /// Looks at the lines completed since the last call. `content` is all of the message so far, from its first octet.
    package mutating func scan(_ content: UnsafeRawBufferPointer) {
        guard length == nil, let base = content.baseAddress else { return }
        while searchedTo < content.count,
            let hit = memchr(base + searchedTo, 0x0a, content.count - searchedTo)
        {
            let end = UnsafeRawPointer(hit) - base + 1
            let line = UnsafeRawBufferPointer(rebasing: content[lineStart..<end])
            if line.count == 2, line[0] == 0x0d {
                length = end
                if received > Self.ownMax, !hostname.isEmpty {
                    own = ownFields(in: UnsafeRawBufferPointer(rebasing: content[..<end]))
                }
                return
            }
            examine(line)
            lineStart = end
            searchedTo = end
        }
        searchedTo = max(searchedTo, content.count)
    }

    private mutating func examine(_ line: UnsafeRawBufferPointer) {
        guard let first = line.first else { return }
        switch first {
        case 0x20, 0x09:
            if awaitsFoldedMessageID { keepMessageID(line) }
        case UInt8(ascii: "R"), UInt8(ascii: "r"):
            awaitsFoldedMessageID = false
            if Self.value(of: line, "received") != nil { received &+= 1 }
        case UInt8(ascii: "D"), UInt8(ascii: "d"):
            awaitsFoldedMessageID = false
            if Self.value(of: line, "date") != nil { hasDate = true }
        case UInt8(ascii: "M"), UInt8(ascii: "m"):
            awaitsFoldedMessageID = false
            guard !hasMessageID, let value = Self.value(of: line, "message-id") else { return }
            hasMessageID = true
            keepMessageID(value)
        default: awaitsFoldedMessageID = false
        }
    }

    /// A Message-ID may stand on the line after its name (RFC 5322 2.2.3).
    private mutating func keepMessageID(_ value: UnsafeRawBufferPointer) {
        var start = 0
        var end = value.count
        while start < end, value[start] <= 0x20 { start += 1 }
        while end > start, value[end - 1] <= 0x20 { end -= 1 }
        awaitsFoldedMessageID = start == end
        if end - start <= Self.messageIDOctetsMax { messageID = Array(value[start..<end]) }
    }

    /// Received fields with this node's name behind `by` (RFC 5321 4.4). Rare: only for mail that has come a long way.
    private func ownFields(in section: UnsafeRawBufferPointer) -> Int {
        var count = 0
        var isOpen = false
        for line in section.split(separator: 0x0a) {
            guard let first = line.first else { continue }
            let text = UnsafeRawBufferPointer(rebasing: line)
            if first != 0x20, first != 0x09 {
                isOpen =
                    (first == UInt8(ascii: "R") || first == UInt8(ascii: "r"))
                    && Self.value(of: text, "received") != nil
            }
            if isOpen, namesUs(text) {
                count += 1
                isOpen = false
            }
        }
        return count
    }

    private func namesUs(_ line: UnsafeRawBufferPointer) -> Bool {
        var words = line.split(maxSplits: .max, omittingEmptySubsequences: true) {
            $0 <= 0x20 || $0 == UInt8(ascii: ";")
        }[...]
        while let word = words.popFirst() {
            guard Self.equal(word, Array("by".utf8)), let next = words.first else { continue }
            if Self.equal(next, hostname) { return true }
        }
        return false
    }

    /// Without regard to case (ASCII).
    private static func equal(_ one: Slice<UnsafeRawBufferPointer>, _ other: [UInt8]) -> Bool {
        func small(_ octet: UInt8) -> UInt8 { (0x41...0x5a).contains(octet) ? octet | 0x20 : octet }
        return one.count == other.count && zip(one, other).allSatisfy { small($0) == small($1) }
    }

    /// What follows the colon if the line begins with the field's name (given in small letters); blanks may precede the colon
    /// (RFC 5322 4.5).
    private static func value(of line: UnsafeRawBufferPointer, _ name: StaticString) -> UnsafeRawBufferPointer? {
        let count = name.utf8CodeUnitCount
        guard line.count > count else { return nil }
        for index in 1..<count where line[index] | 0x20 != name.utf8Start[index] && line[index] != name.utf8Start[index]
        {
            return nil
        }
        var position = count
        while position < line.count, line[position] == 0x20 || line[position] == 0x09 { position += 1 }
        guard position < line.count, line[position] == UInt8(ascii: ":") else { return nil }
        return UnsafeRawBufferPointer(rebasing: line[(position + 1)...])
    }
}
