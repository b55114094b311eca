// The grammar of configuration values: durations, sizes, rates, addresses, blocks, patterns, next hops.
import BatonCore
import BatonModel

/// Reads and prints values. Every reader throws words that say what was expected; none traps on any text.
enum ConfigurationGrammar {
    // MARK: Numbers with units

    private static let durationUnits: [(String, Int64)] = [
        ("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ]
    private static let sizeUnits: [(String, Int)] = [
        ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40),
    ]

    /// Digits, then letters; nil for anything else or a number that does not fit.
    private static func split(_ text: String) -> (number: Int64, unit: String)? {
        let digits = text.utf8.prefix { $0 >= 0x30 && $0 <= 0x39 }
        guard !digits.isEmpty, digits.count <= 18, let number = Int64(String(decoding: digits, as: UTF8.self)) else {
            return nil
        }
        return (number, String(decoding: text.utf8.dropFirst(digits.count), as: UTF8.self))
    }

    static func duration(_ text: String) throws(ValueProblem) -> TimeSpan {
        guard let (number, unit) = split(text),
            let scale = durationUnits.first(where: { $0.0 == unit })?.1
        else { throw ValueProblem("expected a duration such as 250ms, 30s, 5m, 4h or 5d, found \(quoted(text))") }
        let (product, overflow) = number.multipliedReportingOverflow(by: scale)
        if overflow { throw ValueProblem("\(quoted(text)) is too long") }
        return TimeSpan(nanoseconds: product)
    }

    static func size(_ text: String) throws(ValueProblem) -> Int {
        guard let (number, unit) = split(text), let scale = sizeUnits.first(where: { $0.0 == unit })?.1 else {
            throw ValueProblem("expected a size such as 64KiB, 25MiB or 1GiB, found \(quoted(text))")
        }
        let (product, overflow) = Int(number).multipliedReportingOverflow(by: scale)
        if overflow { throw ValueProblem("\(quoted(text)) is too large") }
        return product
    }

    static func rate(_ text: String) throws(ValueProblem) -> MessageRate {
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        let seconds = ["s": 1, "m": 60, "h": 3600, "d": 86400]
        guard parts.count == 2, let (number, rest) = split(String(parts[0])), rest.isEmpty,
            let per = seconds[String(parts[1])]
        else { throw ValueProblem("expected a rate such as 100/m (per s, m, h or d), found \(quoted(text))") }
        guard number >= 1, number <= 1_000_000_000 else { throw ValueProblem("a rate is at least 1, at most 10^9") }
        return MessageRate(count: Int(number), per: per)
    }

    static func integer(_ text: String) throws(ValueProblem) -> Int {
        guard let (number, rest) = split(text), rest.isEmpty else {
            throw ValueProblem("expected a whole number, found \(quoted(text))")
        }
        return Int(number)
    }

    static func decimal(_ text: String) throws(ValueProblem) -> Double {
        let plain = text.utf8.allSatisfy { ($0 >= 0x30 && $0 <= 0x39) || $0 == 0x2e }
        guard plain, !text.isEmpty, text.utf8.count <= 20, let value = Double(text) else {
            throw ValueProblem("expected a number, found \(quoted(text))")
        }
        return value
    }

    static func boolean(_ text: String) throws(ValueProblem) -> Bool {
        switch text {
        case "true": return true
        case "false": return false
        default: throw ValueProblem("expected true or false, found \(quoted(text))")
        }
    }

    static func text(of span: TimeSpan) -> String {
        for (unit, scale) in durationUnits.reversed() where span.nanoseconds % scale == 0 && span.nanoseconds != 0 {
            return "\(span.nanoseconds / scale)\(unit)"
        }
        return "\(span.nanoseconds / 1_000_000)ms"
    }

    static func text(ofSize bytes: Int) -> String {
        for (unit, scale) in sizeUnits.reversed() where bytes % scale == 0 && bytes != 0 {
            return "\(bytes / scale)\(unit)"
        }
        return "\(bytes)B"
    }

    /// Whole numbers without a fraction: `2`, `0.2`.
    static func text(of value: Double) -> String {
        value == value.rounded() && abs(value) < 1e15 ? "\(Int(value))" : "\(value)"
    }

    // MARK: Names and addresses

    /// Letters, digits, hyphens and underscores in labels of 1 to 63 octets; UTF-8 labels are taken (RFC 6531).
    static func isDomainName(_ name: String) -> Bool {
        guard !name.isEmpty, name.utf8.count <= Limits.domainOctets else { return false }
        return name.split(separator: ".", omittingEmptySubsequences: false).allSatisfy { label in
            let bytes = Array(label.utf8)
            return !bytes.isEmpty && bytes.count <= 63 && bytes.first != UInt8(ascii: "-")
                && bytes.last != UInt8(ascii: "-")
                && bytes.allSatisfy { byte in
                    byte >= 0x80 || byte == UInt8(ascii: "-") || byte == UInt8(ascii: "_")
                        || (byte >= 0x30 && byte <= 0x39) || (byte >= 0x41 && byte <= 0x5a)
                        || (byte >= 0x61 && byte <= 0x7a)
                }
        }
    }

    /// Only what EHLO may carry (RFC 5321 4.1.2): ASCII.
    static func hostname(_ text: String) throws(ValueProblem) -> String {
        guard isDomainName(text), text.utf8.allSatisfy({ $0 < 0x80 && $0 != UInt8(ascii: "_") }) else {
            throw ValueProblem("expected a host name such as relay1.example.net, found \(quoted(text))")
        }
        return text.lowercased()
    }

    static func nodeID(_ text: String) throws(ValueProblem) -> String {
        guard isDomainName(text), text.utf8.count <= 63, text.utf8.allSatisfy({ $0 < 0x80 }) else {
            throw ValueProblem("expected up to 63 letters, digits, '-', '_' or '.', found \(quoted(text))")
        }
        return text
    }

    static func domain(_ text: String) throws(ValueProblem) -> Domain {
        guard isDomainName(text) else { throw ValueProblem("expected a domain name, found \(quoted(text))") }
        return Domain(text)
    }

    static func pattern(_ text: String) throws(ValueProblem) -> DomainPattern {
        if text == "*" { return .any }
        let below = text.hasPrefix("*.")
        let name = below ? String(text.dropFirst(2)) : text
        guard !name.contains("*") else {
            throw ValueProblem("a wildcard is '*' or '*.domain', found \(quoted(text))")
        }
        let domain = try domain(name)
        return below ? .below(domain) : .exactly(domain)
    }

    static func mailbox(_ text: String) throws(ValueProblem) -> MailAddress {
        let plain = text.utf8.allSatisfy { $0 > 0x20 && $0 != 0x7f && $0 != 0x3c && $0 != 0x3e }
        guard plain, let address = MailAddress(text),
            isDomainName(String(decoding: address.domainBytes, as: UTF8.self))
        else { throw ValueProblem("expected an address such as postmaster@example.net, found \(quoted(text))") }
        return address
    }

    static func block(_ text: String) throws(ValueProblem) -> AddressBlock {
        if let block = AddressBlock(text) { return block }
        let parts = text.split(separator: "/", omittingEmptySubsequences: false)
        guard parts.count == 2, let address = IPAddress(String(parts[0])), let length = Int(parts[1]), length >= 0,
            length < address.octets.count * 8, !parts[1].hasPrefix("+")
        else { throw ValueProblem("expected a network such as 10.0.0.0/8 or ::1/128, found \(quoted(text))") }
        let masked = address.octets.enumerated().map { index, octet in
            let bits = min(8, max(0, length - index * 8))
            return bits == 8 ? octet : octet & ~UInt8(truncatingIfNeeded: 0xff >> bits)
        }
        let base = IPAddress(octets: masked).map { "\($0)/\(length)" } ?? ""
        throw ValueProblem("\(quoted(text)) has host bits set; the network is \(base)")
    }

    /// `address:port`, `[v6]:port`; the port may be left out where there is a default.
    static func endpoint(_ text: String, defaultPort: Int?, ports: ClosedRange<Int>) throws(ValueProblem)
        -> SocketEndpoint
    {
        let example = "expected an IP address and port such as 127.0.0.1:2525 or [::1]:2525, found \(quoted(text))"
        let (host, port) = splitPort(text)
        guard let address = IPAddress(host), address.isIPv4 || text.hasPrefix("[") || port == nil else {
            throw ValueProblem(example)
        }
        guard let port else {
            guard let defaultPort else { throw ValueProblem(example) }
            return SocketEndpoint(address: address, port: defaultPort)
        }
        guard let number = try? integer(port), ports.contains(number) else {
            throw ValueProblem(
                "a port is a number from \(ports.lowerBound) to \(ports.upperBound), found \(quoted(port))")
        }
        return SocketEndpoint(address: address, port: number)
    }

    /// Host without brackets, and the text after the port's colon, if any.
    private static func splitPort(_ text: String) -> (host: String, port: String?) {
        if text.hasPrefix("["), let close = text.lastIndex(of: "]") {
            let host = String(text[text.index(after: text.startIndex)..<close])
            let rest = text[text.index(after: close)...]
            if rest.isEmpty { return (host, nil) }
            return rest.hasPrefix(":") ? (host, String(rest.dropFirst())) : ("", nil)
        }
        let colons = text.utf8.filter { $0 == UInt8(ascii: ":") }.count
        guard colons == 1, let colon = text.firstIndex(of: ":") else { return (text, nil) }
        return (String(text[..<colon]), String(text[text.index(after: colon)...]))
    }

    static func nextHop(_ text: String) throws(ValueProblem) -> NextHop {
        let expected = "expected smtp://host[:port], lmtp://host:port or lmtp+unix:/path, found \(quoted(text))"
        if text.hasPrefix("lmtp+unix:") {
            let path = String(text.dropFirst("lmtp+unix:".count))
            guard path.hasPrefix("/"), path.utf8.count <= 107, !path.utf8.contains(where: { $0 < 0x20 }) else {
                throw ValueProblem("a Unix socket is an absolute path of at most 107 octets, found \(quoted(path))")
            }
            return NextHop(kind: .lmtpUnix, host: path, port: 0)
        }
        if text.hasPrefix("smtps://") { throw ValueProblem("smtps:// needs TLS, which this build does not have") }
        let kind: NextHop.Kind
        if text.hasPrefix("smtp://") {
            kind = .smtp
        } else if text.hasPrefix("lmtp://") {
            kind = .lmtp
        } else {
            throw ValueProblem(expected)
        }
        let (host, port) = splitPort(String(text.dropFirst("smtp://".count)))
        guard IPAddress(host) != nil || isDomainName(host) else { throw ValueProblem(expected) }
        var number = kind == .smtp ? 25 : 24
        if let port {
            guard let given = try? integer(port), (1...65535).contains(given) else {
                throw ValueProblem("a port is a number from 1 to 65535, found \(quoted(port))")
            }
            number = given
        }
        return NextHop(kind: kind, host: host.lowercased(), port: number)
    }

    /// A value as it is shown: at most 60 characters, control characters escaped.
    static func quoted(_ text: String) -> String {
        var shown = ""
        for scalar in text.unicodeScalars.prefix(60) {
            shown +=
                scalar.value < 0x20 || scalar.value == 0x7f ? "\\u{\(String(scalar.value, radix: 16))}" : String(scalar)
        }
        return "'\(shown)\(text.unicodeScalars.count > 60 ? "…" : "")'"
    }
}
