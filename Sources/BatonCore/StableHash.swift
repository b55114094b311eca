// A hash with fixed keys, for values that leave the process (placement, node ids, sender classes).

/// FNV-1a over 64 bits with a final avalanche. Equal on every node and in every release; not for hostile keys in hash tables.
public struct StableHash: Sendable {
    @usableFromInline var state: UInt64 = 0xcbf2_9ce4_8422_2325

    @inlinable public init() {}

    @inlinable @inline(__always)
    public mutating func combine(_ byte: UInt8) {
        state = (state ^ UInt64(byte)) &* 0x0000_0100_0000_01b3
    }

    @inlinable public mutating func combine(_ bytes: some Sequence<UInt8>) {
        for byte in bytes { combine(byte) }
    }

    @inlinable public mutating func combine(_ value: UInt64) {
        for shift in stride(from: UInt64(0), to: 64, by: 8) { combine(UInt8(truncatingIfNeeded: value >> shift)) }
    }

    public func finish() -> UInt64 { SplitMix64.mix(state) }

    @inlinable public static func of(_ bytes: some Sequence<UInt8>) -> UInt64 {
        var hash = StableHash()
        hash.combine(bytes)
        return hash.finish()
    }
}
