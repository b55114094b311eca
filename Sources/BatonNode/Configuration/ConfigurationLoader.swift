// Reads a configuration file: bytes, YAML, key tables, then the checks that concern several keys.
import BatonCore
import BatonModel
import Foundation
import Glibc
import Yams

/// Why there is no configuration.
package enum ConfigurationError: Error, CustomStringConvertible {
    /// Exit 66.
    case unreadable(path: String, reason: String)
    /// Exit 78; never empty.
    case invalid([ConfigurationProblem])

    package var description: String {
        switch self {
        case .unreadable(let path, let reason): return "\(path): \(reason)"
        case .invalid(let problems):
            let shown = problems.prefix(ConfigurationLimits.problemsShown).map(\.description)
            let rest = problems.count - shown.count
            return (shown + (rest > 0 ? ["\(rest) more problems"] : [])).joined(separator: "\n")
        }
    }

    /// sysexits.h: EX_NOINPUT or EX_CONFIG.
    package var exitCode: Int32 {
        switch self {
        case .unreadable: 66
        case .invalid: 78
        }
    }
}

/// Makes a `NodeConfiguration` from a file. Blocking; not on a loop.
package enum ConfigurationLoader {
    /// Relative paths in the file are relative to the file's directory, so that it means the same from everywhere.
    package static func load(path: String) throws(ConfigurationError) -> NodeConfiguration {
        let bytes: [UInt8]
        switch readWhole(path) {
        case .success(let read): bytes = read
        case .failure(let problem): throw .unreadable(path: path, reason: problem.text)
        }
        let directory = path.lastIndex(of: "/").map { String(path[...$0]) } ?? ""
        return try parse(bytes, file: path, directory: directory)
    }

    /// A node without a file.
    package static func embeddedDefaults() -> NodeConfiguration { NodeConfiguration() }

    /// As `load`, from bytes. `directory` is empty or ends in a slash.
    package static func parse(
        _ bytes: [UInt8], file: String, directory: String = "", checkFiles: Bool = true
    ) throws(ConfigurationError) -> NodeConfiguration {
        var reader = ConfigurationReader(file: file)
        guard let text = String(validating: bytes, as: UTF8.self) else {
            let place = invalidUTF8(bytes)
            throw .invalid([
                ConfigurationProblem(file: file, line: place.line, column: place.column, message: "not UTF-8")
            ])
        }
        do {
            // An empty file is a node with defaults.
            if let root = try Parser(yaml: text).singleRoot(), root.scalar?.string.isEmpty != true { reader.read(root) }
        } catch {
            reader.problems.append(problem(of: error, file: file))
        }
        reader.configuration.file = file
        reader.configuration.lines = reader.lines
        if reader.problems.isEmpty || !reader.places.isEmpty { check(&reader, directory: directory, files: checkFiles) }
        guard reader.problems.isEmpty else {
            throw .invalid(reader.problems.sorted { ($0.line, $0.column) < ($1.line, $1.column) })
        }
        return reader.configuration
    }

    // MARK: The file

    private static func readWhole(_ path: String) -> Result<[UInt8], ValueProblem> {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return .failure(ValueProblem(SystemText.error(errno))) }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let count = chunk.withUnsafeMutableBytes { Glibc.read(descriptor, $0.baseAddress, $0.count) }
            if count < 0 {
                if errno == EINTR { continue }
                return .failure(ValueProblem(SystemText.error(errno)))
            }
            if count == 0 { return .success(bytes) }
            bytes.append(contentsOf: chunk[..<count])
            if bytes.count > ConfigurationLimits.fileBytes {
                return .failure(ValueProblem("larger than \(ByteCount.text(ConfigurationLimits.fileBytes))"))
            }
        }
    }

    /// Line and column of the first byte that is no UTF-8.
    private static func invalidUTF8(_ bytes: [UInt8]) -> (line: Int, column: Int) {
        var line = 1
        for part in bytes.split(separator: 0x0a, omittingEmptySubsequences: false) {
            if String(validating: part, as: UTF8.self) == nil {
                var good = 0
                while good < part.count, !String(decoding: part.prefix(good + 1), as: UTF8.self).contains("\u{fffd}") {
                    good += 1
                }
                return (line, good + 1)
            }
            line += 1
        }
        return (0, 0)
    }

    private static func problem(of error: any Error, file: String) -> ConfigurationProblem {
        var place = SourcePlace()
        var message = "\(error)"
        switch error as? YamlError {
        case .scanner(let context, let problem, let mark, _), .parser(let context, let problem, let mark, _):
            place = SourcePlace(mark)
            message = context.map { "\($0.text) (line \($0.mark.line)): \(problem)" } ?? problem
        case .composer(_, let problem, let mark, _):
            place = SourcePlace(mark)
            message = problem
        case .duplicatedKeysInMapping(let names, let context):
            place = SourcePlace(context.mark)
            message = "duplicate key \(names.map(ConfigurationGrammar.quoted).joined(separator: ", "))"
        case .reader(let problem, let offset, _, let yaml):
            if let offset {
                let before = yaml.prefix(offset).split(separator: "\n", omittingEmptySubsequences: false)
                place = SourcePlace(line: before.count, column: (before.last?.count ?? 0) + 1)
            }
            message = problem
        default: break
        }
        return ConfigurationProblem(file: file, line: place.line, column: place.column, message: message)
    }

    // MARK: Checks across keys

    private static func check(_ reader: inout ConfigurationReader, directory: String, files: Bool) {
        // `never` came as zero.
        if reader.configuration.queue.delayNoticeAfter == .zero { reader.configuration.queue.delayNoticeAfter = nil }
        func absolute(_ path: String) -> String { path.hasPrefix("/") ? path : directory + path }
        reader.configuration.node.dataDirectory = absolute(reader.configuration.node.dataDirectory)
        if let anchor = reader.configuration.dns.trustAnchor {
            reader.configuration.dns.trustAnchor = absolute(anchor)
            if files, access(absolute(anchor), R_OK) != 0 {
                reader.report(
                    reader.places["dns.trust_anchor"],
                    "dns.trust_anchor: \(absolute(anchor)): \(SystemText.error(errno))")
            }
        }
        checkListeners(&reader)
        checkSites(&reader)
        checkRoutes(&reader)
        ClusterChecks.check(&reader, directory: directory, files: files)
        let retry = reader.configuration.queue.retry
        if retry.first > retry.max {
            reader.report(
                reader.places["queue.retry.first"] ?? reader.places["queue.retry.max"],
                "queue.retry.first: \(ConfigurationGrammar.text(of: retry.first)) is more than queue.retry.max, "
                    + ConfigurationGrammar.text(of: retry.max))
        }
    }

    private static func checkListeners(_ reader: inout ConfigurationReader) {
        if reader.configuration.listeners.isEmpty {
            reader.report(reader.places["listeners"], "listeners: at least one is needed")
        }
        var taken: [SocketEndpoint: Int] = [:]
        for (index, listener) in reader.configuration.listeners.enumerated() {
            let name = "listeners[\(index)]"
            if listener.address.port != 0, let first = taken.updateValue(index, forKey: listener.address) {
                reader.report(
                    reader.places["\(name).address"] ?? reader.places[name],
                    "\(name).address: \(listener.address) is taken by listeners[\(first)]")
            }
            if listener.relayFrom.contains(where: { $0.prefixLength == 0 }) {
                let place = reader.places["\(name).relay_from"]
                reader.configuration.warnings.append(
                    "\(reader.file):\(place?.line ?? 0):\(place?.column ?? 0): warning: \(name).relay_from: every client "
                        + "may relay (an open relay)")
            }
        }
    }

    private static func checkSites(_ reader: inout ConfigurationReader) {
        var names: Set<String> = []
        for index in reader.configuration.sites.indices {
            let site = reader.configuration.sites[index]
            let place = reader.places["sites[\(index)]"]
            if site.mxSuffixes.isEmpty, site.domains.isEmpty {
                reader.report(place, "sites[\(index)]: needs mx_suffix or domain")
            }
            if site.name.isEmpty {
                let made = site.mxSuffixes.first?.description ?? site.domains.first?.description ?? ""
                reader.configuration.sites[index].name = made
            }
            let name = reader.configuration.sites[index].name
            if !name.isEmpty, !names.insert(name).inserted {
                reader.report(
                    reader.places["sites[\(index)].name"] ?? place,
                    "sites[\(index)].name: \(ConfigurationGrammar.quoted(name)) is taken by a site above")
            }
            let retry = site.retry.applied(to: reader.configuration.queue.retry)
            if retry.first > retry.max, site.retry.first != nil || site.retry.max != nil {
                reader.report(
                    reader.places["sites[\(index)].retry.first"] ?? reader.places["sites[\(index)].retry.max"] ?? place,
                    "sites[\(index)].retry.first: \(ConfigurationGrammar.text(of: retry.first)) is more than the "
                        + "retry.max in force, \(ConfigurationGrammar.text(of: retry.max))")
            }
        }
    }

    private static func checkRoutes(_ reader: inout ConfigurationReader) {
        for index in reader.configuration.routes.indices {
            for key in ["domain", "next_hop"] where reader.places["routes[\(index)].\(key)"] == nil {
                reader.report(reader.places["routes[\(index)]"], "routes[\(index)]: needs \(key)")
            }
        }
    }
}

/// errno in words, without a lock or a shared buffer.
enum SystemText {
    static func error(_ number: Int32) -> String {
        var buffer = [CChar](repeating: 0, count: 128)
        // XSI or GNU flavour: Glibc imports the XSI one, which fills the buffer.
        _ = strerror_r(number, &buffer, buffer.count)
        let text = String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return text.isEmpty ? "error \(number)" : text
    }
}
