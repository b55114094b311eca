// CRC32C (Castagnoli), by CPU instruction where there is one.
import CBatonSystem

package enum CRC32C {
    /// The CRC of `bytes`, continued from `seed` (0 to begin).
    @inline(__always)
    package static func of(_ bytes: UnsafeRawBufferPointer, seed: UInt32 = 0) -> UInt32 {
        guard let base = bytes.baseAddress, !bytes.isEmpty else { return seed }
        return baton_crc32c(seed, base, bytes.count)
    }

    package static func of(_ bytes: [UInt8], seed: UInt32 = 0) -> UInt32 {
        bytes.withUnsafeBytes { of($0, seed: seed) }
    }

    /// The CRC of A followed by B from the CRCs of both, so that pieces can be joined without reading them again.
    package static func combined(_ a: UInt32, _ b: UInt32, lengthOfB: Int) -> UInt32 {
        baton_crc32c_combine(a, b, UInt64(lengthOfB))
    }
}
