// Durations, sizes, rates and addresses as the command line and scenarios write them.
import ArgumentParser

/// A time span such as `250ms`, `30s`, `5m`, `2h`, kept in nanoseconds. Bounded to 100 days.
struct SpanOption: ExpressibleByArgument, Equatable, Sendable {
    let nanoseconds: Int64

    static let zero = SpanOption(nanoseconds: 0)

    init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }

    init?(argument: String) {
        let units: [(String, Double)] = [
            ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3_600e9), ("d", 86_400e9),
        ]
        if argument == "0" {
            self.nanoseconds = 0
            return
        }
        // The longest unit that fits comes first, so that `ms` is not read as `s`.
        for (unit, factor) in units.sorted(by: { $0.0.count > $1.0.count }) where argument.hasSuffix(unit) {
            guard let value = Double(argument.dropLast(unit.count)), value >= 0, value * factor <= 8.64e18 else {
                return nil
            }
            self.nanoseconds = Int64(value * factor)
            return
        }
        return nil
    }
}

/// Octets such as `5000`, `5KiB`, `50MiB`, or a range `1KiB-100KiB` that is drawn from evenly on a logarithmic scale.
struct SizeOption: ExpressibleByArgument, Equatable, Sendable {
    let low: Int
    let high: Int

    /// The most octets of one generated message: more would be a test of the generator's memory.
    static let bound = 256 * 1024 * 1024

    init(_ size: Int) {
        self.low = size
        self.high = size
    }

    init?(argument: String) {
        let parts = argument.split(separator: "-", omittingEmptySubsequences: false)
        guard let first = parts.first, let low = Self.octets(String(first)), parts.count <= 2 else { return nil }
        var high = low
        if parts.count == 2 {
            guard let other = Self.octets(String(parts[1])), other >= low else { return nil }
            high = other
        }
        self.low = low
        self.high = high
    }

    static func octets(_ text: String) -> Int? {
        let units: [(String, Int)] = [
            ("KiB", 1024), ("MiB", 1024 * 1024), ("GiB", 1024 * 1024 * 1024), ("KB", 1000), ("MB", 1_000_000),
        ]
        var digits = text[...]
        var factor = 1
        for (unit, size) in units where text.hasSuffix(unit) {
            digits = text.dropLast(unit.count)
            factor = size
        }
        guard let count = Int(digits), count >= 0 else { return nil }
        let (product, overflow) = count.multipliedReportingOverflow(by: factor)
        return overflow || product > bound ? nil : product
    }
}

/// A whole number or a range of them, `3` or `1-10`.
struct CountOption: ExpressibleByArgument, Equatable, Sendable {
    let low: Int
    let high: Int

    init(_ count: Int) {
        self.low = count
        self.high = count
    }

    init?(argument: String) {
        let parts = argument.split(separator: "-", omittingEmptySubsequences: false)
        guard let first = parts.first, let low = Int(first), low >= 1, parts.count <= 2 else { return nil }
        var high = low
        if parts.count == 2 {
            guard let other = Int(parts[1]), other >= low else { return nil }
            high = other
        }
        guard high <= 60_000 else { return nil }
        self.low = low
        self.high = high
    }
}

/// `host:port`, `[v6]:port` or `unix:/path`.
struct EndpointOption: ExpressibleByArgument, Equatable, Sendable {
    enum Kind: Equatable, Sendable {
        case tcp(host: String, port: Int)
        case unix(path: String)
    }
    let kind: Kind

    init?(argument: String) {
        if argument.hasPrefix("unix:") {
            let path = String(argument.dropFirst(5))
            // sun_path holds 108 octets with its NUL.
            guard path.utf8.count > 0, path.utf8.count < 108 else { return nil }
            self.kind = .unix(path: path)
            return
        }
        guard let colon = argument.lastIndex(of: ":"), let port = Int(argument[argument.index(after: colon)...]),
            port >= 0, port <= 65_535
        else { return nil }
        var host = String(argument[..<colon])
        if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        guard !host.isEmpty else { return nil }
        self.kind = .tcp(host: host, port: port)
    }

    var description: String {
        switch kind {
        case .tcp(let host, let port): "\(host):\(port)"
        case .unix(let path): "unix:\(path)"
        }
    }
}

/// `stage=rate` with a rate in [0, 1]: how often something goes wrong at a stage of the sink's dialogue.
struct StageRateOption: ExpressibleByArgument, Equatable, Sendable {
    let stage: SinkStage
    let rate: Double

    init?(argument: String) {
        let parts = argument.split(separator: "=", omittingEmptySubsequences: false)
        guard parts.count == 2, let stage = SinkStage(rawValue: String(parts[0])), let rate = Double(parts[1]),
            rate >= 0,
            rate <= 1
        else { return nil }
        self.stage = stage
        self.rate = rate
    }
}
