// LZ4 for bodies, on disk and in SUBMIT: whether to try, and the only calls into liblz4.
import BatonCore
import CLZ4
import NIOCore

/// Decides per body whether to compress (`spool.compression`; `auto` towards peers). Pure.
///
/// `auto` tries the first and one in 16 bodies of at least `SpoolLimits.compressionFloor` and uses LZ4 for all of them while the tried
/// ones shrink to half or less: LZ4 costs about 2.5 µs per KiB of CPU, which a disk that keeps up does not pay back on less.
/// Small mail is never tried, so that the default costs it nothing.
package struct CompressionPolicy: Sendable {
    private let mode: SpoolConfiguration.Compression
    private var eligible: UInt64 = 0
    /// Moving average of stored/raw, in 1/1024; nil before the first try, which counts alone.
    private var ratio: Int?

    package init(_ mode: SpoolConfiguration.Compression) {
        self.mode = mode
    }

    package mutating func wants(length: Int) -> Bool {
        guard mode != .off, length >= SpoolLimits.compressionFloor else { return false }
        if mode == .on { return true }
        eligible &+= 1
        return ratio.map { $0 <= 512 } ?? true || eligible % 16 == 1
    }

    package mutating func observed(raw: Int, stored: Int) {
        guard raw > 0 else { return }
        let last = stored * 1024 / raw
        ratio = ratio.map { ($0 * 3 + last) / 4 } ?? last
    }
}

package enum LZ4 {
    /// Appends the compressed bytes to `target` if they are fewer than `source`'s. Returns their count, nil if not written.
    package static func compress(_ source: ByteBuffer, into target: inout ByteBuffer) -> Int? {
        let raw = source.readableBytes
        guard raw > 0, raw <= SpoolLimits.bodyBlockBytes else { return nil }
        let bound = Int(LZ4_compressBound(Int32(raw)))
        var stored = 0
        target.writeWithUnsafeMutableBytes(minimumWritableBytes: bound) { space in
            source.withUnsafeReadableBytes { bytes in
                stored = Int(
                    LZ4_compress_default(
                        bytes.baseAddress?.assumingMemoryBound(to: CChar.self),
                        space.baseAddress?.assumingMemoryBound(to: CChar.self), Int32(raw),
                        Int32(clamping: space.count)))
            }
            if stored <= 0 || stored >= raw { stored = 0 }
            return stored
        }
        return stored > 0 ? stored : nil
    }

    /// Exactly `rawLength` bytes, or nil. The caller has bounded `rawLength`.
    package static func decompress(_ source: ByteBuffer, rawLength: Int) -> ByteBuffer? {
        guard rawLength > 0, rawLength <= SpoolLimits.bodyBlockBytes else { return nil }
        var target = ByteBufferAllocator().buffer(capacity: rawLength)
        var made: Int32 = -1
        target.writeWithUnsafeMutableBytes(minimumWritableBytes: rawLength) { space in
            source.withUnsafeReadableBytes { bytes in
                made = LZ4_decompress_safe(
                    bytes.baseAddress?.assumingMemoryBound(to: CChar.self),
                    space.baseAddress?.assumingMemoryBound(to: CChar.self), Int32(clamping: bytes.count),
                    Int32(rawLength))
            }
            return max(0, min(Int(made), rawLength))
        }
        return Int(made) == rawLength ? target : nil
    }
}
