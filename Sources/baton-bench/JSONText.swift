// JSON for results: written by hand, so that the order of keys stays and no Foundation is needed.
import Glibc

enum JSONValue: Sendable, Equatable {
    case object([(String, JSONValue)])
    case array([JSONValue])
    case string(String)
    case integer(Int)
    case number(Double)
    case boolean(Bool)
    case null

    static func == (left: JSONValue, right: JSONValue) -> Bool { left.text == right.text }

    var text: String {
        var out = ""
        append(to: &out)
        return out
    }

    private func append(to out: inout String) {
        switch self {
        case .null: out += "null"
        case .boolean(let value): out += value ? "true" : "false"
        case .integer(let value): out += String(value)
        case .number(let value):
            // Three digits behind the point are enough for milliseconds and rates; JSON has no infinities.
            out += value.isFinite ? Self.rounded(value) : "null"
        case .string(let value): Self.quote(value, &out)
        case .array(let values):
            out += "["
            for (place, value) in values.enumerated() {
                if place > 0 { out += ", " }
                value.append(to: &out)
            }
            out += "]"
        case .object(let pairs):
            out += "{"
            for (place, pair) in pairs.enumerated() {
                if place > 0 { out += ", " }
                Self.quote(pair.0, &out)
                out += ": "
                pair.1.append(to: &out)
            }
            out += "}"
        }
    }

    private static func rounded(_ value: Double) -> String {
        guard abs(value) < 1e15 else { return String(value) }
        return String((value * 1000).rounded() / 1000)
    }

    private static func quote(_ text: String, _ out: inout String) {
        out += "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            case "\n": out += "\\n"
            default:
                if scalar.value < 0x20 {
                    let digits = String(scalar.value, radix: 16)
                    out += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
                } else {
                    out.unicodeScalars.append(scalar)
                }
            }
        }
        out += "\""
    }

    /// Writes the text and a line end; nothing without a path.
    func write(to path: String?) throws {
        guard let path else { return }
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { throw BenchError.system("open \(path)", errno) }
        defer { _ = close(descriptor) }
        let bytes = Array(text.utf8) + [0x0a]
        let failure = bytes.withUnsafeBytes { writeAll(descriptor, $0) }
        if failure != 0 { throw BenchError.system("write \(path)", failure) }
    }
}
