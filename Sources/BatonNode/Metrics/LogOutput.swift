// swift-log's back end: readable lines on a terminal, JSON lines otherwise, untrusted text escaped.
import BatonCore
import Foundation
import Glibc
import Logging
import Synchronization

/// Set once by the executable: `LoggingSystem.bootstrap { LogOutput(label: $0, …) }`.
package struct LogOutput: LogHandler {
    package enum Style: Sendable {
        case text
        case json
    }

    package var metadata: Logger.Metadata = [:]
    package var metadataProvider: Logger.MetadataProvider?
    package var logLevel: Logger.Level
    private let label: String
    private let style: Style
    private let write: @Sendable (String) -> Void

    /// `write` gets whole lines with their newline, from any thread.
    package init(
        label: String, level: Logger.Level, style: Style = LogOutput.styleOfStandardError,
        write: @escaping @Sendable (String) -> Void = LogOutput.toStandardError
    ) {
        self.label = label
        self.logLevel = level
        self.style = style
        self.write = write
    }

    /// Text where somebody looks.
    package static var styleOfStandardError: Style { isatty(2) == 1 ? .text : .json }

    /// One write(2) a line, so that lines of threads do not mix. A line that cannot be written is lost: nothing waits for it.
    package static let toStandardError: @Sendable (String) -> Void = { line in
        var line = line
        line.withUTF8 { bytes in
            var done = 0
            while done < bytes.count, let base = bytes.baseAddress {
                let count = Glibc.write(2, base + done, bytes.count - done)
                if count < 0, errno == EINTR { continue }
                if count <= 0 { return }
                done += count
            }
        }
    }

    package subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    package func log(event: LogEvent) {
        var all = metadata
        if let provided = metadataProvider?.get() { all.merge(provided) { _, new in new } }
        if let given = event.metadata { all.merge(given) { _, new in new } }
        let now = TimeText.rfc3339(Date().timeIntervalSince1970)
        write(line(level: event.level, message: event.message.description, metadata: all, time: now))
    }

    /// The line with its newline.
    func line(level: Logger.Level, message: String, metadata: Logger.Metadata, time: String) -> String {
        let pairs = metadata.map { ($0.key, Self.flat($0.value)) }.sorted { $0.0 < $1.0 }
        switch style {
        case .json:
            var text = "{\"time\":\"\(time)\",\"level\":\"\(level.rawValue)\",\"logger\":\"\(LogEscape.json(label))\""
            text += ",\"message\":\"\(LogEscape.json(message))\""
            for (key, value) in pairs { text += ",\"\(LogEscape.json(key))\":\"\(LogEscape.json(value))\"" }
            return text + "}\n"
        case .text:
            let name = level.rawValue + String(repeating: " ", count: max(0, 8 - level.rawValue.count))
            var text = "\(time) \(name) \(LogEscape.plain(message))"
            for (key, value) in pairs {
                let shown = LogEscape.plain(value)
                let quoted = shown.contains(" ") || shown.isEmpty ? "\"\(shown)\"" : shown
                text += "  \(LogEscape.plain(key))=\(quoted)"
            }
            return text + "\n"
        }
    }

    private static func flat(_ value: Logger.Metadata.Value) -> String {
        switch value {
        case .string(let text): text
        case .stringConvertible(let value): value.description
        case .array(let values): "[" + values.map(flat).joined(separator: ", ") + "]"
        case .dictionary(let values):
            "{" + values.sorted { $0.key < $1.key }.map { "\($0.key): \(flat($0.value))" }.joined(separator: ", ") + "}"
        }
    }
}

/// Peers choose part of what is logged: no byte of theirs may end a line, move a cursor or turn text around.
package enum LogEscape {
    /// Octets of one value that are kept.
    package static let octetsMax = 4096

    /// C0, DEL, C1, line separators, bidirectional controls and zero-width characters.
    static func isUnsafe(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 0..<0x20, 0x7f..<0xa0, 0x200b...0x200f, 0x2028...0x202e, 0x2060...0x2069, 0xfeff, 0xfff9...0xfffb: true
        default: false
        }
    }

    package static func plain(_ text: String) -> String {
        escaped(text) { scalar in
            isUnsafe(scalar) ? "\\u{\(String(scalar.value, radix: 16))}" : scalar == "\\" ? "\\\\" : nil
        }
    }

    package static func json(_ text: String) -> String {
        escaped(text) { scalar in
            switch scalar {
            case "\"": return "\\\""
            case "\\": return "\\\\"
            case _ where isUnsafe(scalar):
                let digits = String(scalar.value, radix: 16)
                return "\\u" + String(repeating: "0", count: max(0, 4 - digits.count)) + digits
            default: return nil
            }
        }
    }

    private static func escaped(_ text: String, _ replace: (Unicode.Scalar) -> String?) -> String {
        var result = ""
        for scalar in text.unicodeScalars {
            if result.utf8.count >= octetsMax {
                result += "…"
                break
            }
            if let replacement = replace(scalar) { result += replacement } else { result.unicodeScalars.append(scalar) }
        }
        return result
    }
}

/// Times as people and programs read them.
package enum TimeText {
    /// `2026-11-24T00:18:19.123Z`; out of range values are clamped to the years 1970 to 9999.
    package static func rfc3339(_ secondsSinceEpoch: Double) -> String {
        let finite = secondsSinceEpoch.isFinite ? secondsSinceEpoch : 0
        let milliseconds = Int64((min(max(finite, 0), 253_402_300_799) * 1000).rounded(.down))
        var seconds = time_t(milliseconds / 1000)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        func padded(_ value: Int, _ width: Int) -> String {
            let text = "\(value)"
            return String(repeating: "0", count: max(0, width - text.count)) + text
        }
        let day =
            "\(padded(Int(parts.tm_year) + 1900, 4))-\(padded(Int(parts.tm_mon) + 1, 2))-\(padded(Int(parts.tm_mday), 2))"
        let hour = "\(padded(Int(parts.tm_hour), 2)):\(padded(Int(parts.tm_min), 2)):\(padded(Int(parts.tm_sec), 2))"
        return "\(day)T\(hour).\(padded(Int(milliseconds % 1000), 3))Z"
    }

    package static func rfc3339(_ instant: Instant) -> String { rfc3339(Double(instant.nanoseconds) / 1e9) }
}
