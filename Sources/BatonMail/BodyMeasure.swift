// The traits of a body that is at hand whole; the ingress measures its own while it receives them.
import BatonCore
import BatonModel
import NIOCore

extension BodyTraits {
    /// Reads every octet once; for bodies that Baton makes itself, and as an oracle in tests.
    package static func measured(_ buffer: ByteBuffer) -> BodyTraits {
        buffer.withUnsafeReadableBytes { bytes in
            var traits = BodyTraits.empty
            traits.length = bytes.count
            traits.crc32c = CRC32C.of(bytes)
            var lineStart = 0
            var headerEnd: Int?
            for index in bytes.indices {
                let byte = bytes[index]
                if index == lineStart, byte == UInt8(ascii: ".") { traits.leadingDots += 1 }
                if byte >= 0x80 {
                    if headerEnd == nil { traits.hasEightBitHeader = true } else { traits.hasEightBitBody = true }
                }
                guard byte == 0x0a, index > 0, bytes[index - 1] == 0x0d else { continue }
                let line = max(0, index - 1 - lineStart)
                traits.longestLine = max(traits.longestLine, line)
                if line == 0, headerEnd == nil { headerEnd = index + 1 }
                lineStart = index + 1
            }
            traits.longestLine = max(traits.longestLine, bytes.count - lineStart)
            traits.headerLength = headerEnd ?? bytes.count
            traits.endsWithCRLF = lineStart == bytes.count
            return traits
        }
    }
}
