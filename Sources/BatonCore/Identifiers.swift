// The names of nodes, segments and messages.

/// A node's configured name (`node.id`) as a number that fits fixed-size headers: `StableHash` of the name.
///
/// Registration refuses a node whose number another name already has.
public struct NodeID: Hashable, Sendable {
    public let value: UInt64

    public init(value: UInt64) {
        self.value = value
    }

    public init(name: String) {
        var hash = StableHash()
        for byte in name.utf8 { hash.combine(byte) }
        self.value = hash.finish()
    }
}

/// One run of a node. Random, drawn at each start, never derived from the control plane (PROTOCOL A5).
public struct Incarnation: Hashable, Sendable {
    public let value: UInt64

    public init(value: UInt64) {
        self.value = value
    }
}

/// A segment's name: who writes it, in which run, and the how many-th it is. Unique for ever.
public struct SegmentID: Hashable, Sendable {
    public let writer: NodeID
    public let incarnation: Incarnation
    public let index: UInt64

    public init(writer: NodeID, incarnation: Incarnation, index: UInt64) {
        self.writer = writer
        self.incarnation = incarnation
        self.index = index
    }
}

/// A message's id: 48 bits of milliseconds since the epoch, then 80 random bits, so that ids sort by time of arrival.
///
/// Its text is 26 characters of Crockford base 32, the same in SMTP replies, logs, events, Received and the API.
public struct MessageID: Hashable, Comparable, Sendable, BitwiseCopyable {
    public let high: UInt64
    public let low: UInt64

    @inlinable
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// The id of a message that arrived at `instant`; `random` gives 80 bits.
    @inlinable
    public init(at instant: Instant, random: (UInt16, UInt64)) {
        self.high = (instant.millisecondsSinceEpoch & 0xffff_ffff_ffff) << 16 | UInt64(random.0)
        self.low = random.1
    }

    /// When the id was made, to the millisecond.
    public var madeAt: Instant { Instant(nanoseconds: Int64(high >> 16) &* 1_000_000) }

    @inlinable
    public static func < (left: MessageID, right: MessageID) -> Bool {
        (left.high, left.low) < (right.high, right.low)
    }

    /// Number of characters of `text`.
    public static let textLength = 26

    /// Writes the 26 characters through `append`, most significant first.
    @inlinable
    public func forEachCharacter(_ append: (UInt8) -> Void) {
        // 130 bits of text for 128 bits of id: the first character holds 3 bits.
        var position = 125
        while position >= 0 {
            let value: UInt64
            if position >= 64 {
                value = high >> UInt64(position - 64)
            } else if position > 59 {
                value = (high << UInt64(64 - position)) | (low >> UInt64(position))
            } else {
                value = low >> UInt64(position)
            }
            append(Self.alphabet(Int(value & 31)))
            position -= 5
        }
    }

    /// The 26 characters as bytes.
    public var textBytes: [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(Self.textLength)
        forEachCharacter { bytes.append($0) }
        return bytes
    }

    @inlinable
    static func alphabet(_ value: Int) -> UInt8 {
        let digits: StaticString = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
        return digits.utf8Start[value]
    }

    /// Reads 26 characters; small letters and Crockford's look-alikes (O, I, L) are taken. Nil for anything else.
    public init?(text: some Collection<UInt8>) {
        guard text.count == Self.textLength else { return nil }
        var high: UInt64 = 0
        var low: UInt64 = 0
        for (index, character) in text.enumerated() {
            guard let value = Self.value(of: character) else { return nil }
            if index == 0, value > 7 { return nil }
            high = high << 5 | low >> 59
            low = low << 5 | value
        }
        self.init(high: high, low: low)
    }

    private static func value(of character: UInt8) -> UInt64? {
        let upper = character >= 0x61 && character <= 0x7a ? character - 0x20 : character
        switch upper {
        case 0x30...0x39: return UInt64(upper - 0x30)
        case UInt8(ascii: "O"): return 0
        case UInt8(ascii: "I"), UInt8(ascii: "L"): return 1
        case UInt8(ascii: "U"): return nil
        case 0x41...0x5a:
            for value in 10..<32 where alphabet(value) == upper { return UInt64(value) }
            return nil
        default: return nil
        }
    }
}

extension MessageID: CustomStringConvertible {
    public var description: String { String(decoding: textBytes, as: UTF8.self) }
}

/// Makes message ids from a seeded generator. One per loop; not shared.
package struct MessageIDGenerator: Sendable {
    private var random: SplitMix64

    package init(seed: UInt64) {
        self.random = SplitMix64(seed: seed)
    }

    package mutating func next(at now: Instant) -> MessageID {
        MessageID(at: now, random: (UInt16(truncatingIfNeeded: random.next()), random.next()))
    }
}
