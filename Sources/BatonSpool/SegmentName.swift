// File names of segments and their outcome logs.
import BatonCore

/// A segment's id in text, `<writer>-<incarnation>-<index>`, 16 hexadecimal digits each; the stem of its files' names.
package struct SegmentName: Hashable, Sendable, CustomStringConvertible {
    package let id: SegmentID

    package init(_ id: SegmentID) {
        self.id = id
    }

    /// Reads the stem of a name; nil for anything that `description` cannot have written.
    package init?(stem: Substring) {
        let parts = stem.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 3, parts.allSatisfy({ $0.utf8.count == 16 }),
            let writer = Self.hexValue(parts[0]), let incarnation = Self.hexValue(parts[1]),
            let index = Self.hexValue(parts[2])
        else { return nil }
        self.id = SegmentID(
            writer: NodeID(value: writer), incarnation: Incarnation(value: incarnation), index: index)
    }

    package var description: String {
        "\(Self.hex(id.writer.value))-\(Self.hex(id.incarnation.value))-\(Self.hex(id.index))"
    }

    package var segmentFile: String { "\(self).seg" }
    package var outcomeFile: String { "\(self).out" }

    /// In a cluster each drain epoch has a log of its own; the first one's is that of a single node.
    package func outcomeFile(epoch: UInt64) -> String { epoch == 1 ? outcomeFile : "\(self).\(Self.hex(epoch)).out" }

    /// The epoch at which a copy was sealed (PROTOCOL "Takeover" 2).
    var sealFile: String { "\(self).seal" }

    /// The drain epoch of one of this segment's outcome logs; nil for any other name.
    func epoch(ofOutcomeFile file: String) -> UInt64? {
        if file == outcomeFile { return 1 }
        let stem = "\(self)."
        guard file.hasPrefix(stem), file.hasSuffix(".out") else { return nil }
        let digits = file.dropFirst(stem.count).dropLast(4)
        return digits.utf8.count == 16 ? Self.hexValue(digits) : nil
    }

    package static func hex(_ value: UInt64) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }

    private static func hexValue(_ text: Substring) -> UInt64? {
        guard text.utf8.allSatisfy({ ($0 >= 0x30 && $0 <= 0x39) || ($0 >= 0x61 && $0 <= 0x66) }) else { return nil }
        return UInt64(text, radix: 16)
    }
}
