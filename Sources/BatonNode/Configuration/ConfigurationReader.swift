// Walks the composed YAML by the key tables and collects every problem with its place.
import BatonCore
import BatonModel
import Yams

/// One thing that is wrong with a configuration file.
package struct ConfigurationProblem: Error, Hashable, Sendable, CustomStringConvertible {
    package let file: String
    /// From 1; 0 where the problem has no place.
    package let line: Int
    package let column: Int
    package let message: String

    /// `file:line:column: message`, the form that editors jump to.
    package var description: String { "\(file):\(line):\(column): \(message)" }
}

/// State of one reading: what was read, what is wrong, where values came from.
struct ConfigurationReader {
    let file: String
    var configuration = NodeConfiguration()
    var problems: [ConfigurationProblem] = []
    /// Place of each value read, by key.
    var places: [String: SourcePlace] = [:]
    /// `NodeConfiguration.lines`; kept apart, since a group is read into a copy of the configuration.
    var lines: [String: Int] = [:]

    init(file: String) {
        self.file = file
    }

    /// Reads the whole document. Problems are in `problems`, in the order of the file.
    mutating func read(_ root: Node) {
        guard case .mapping(let mapping) = root else {
            report(root.mark, "expected groups of keys such as node: and listeners:, found \(root.sortOfNode)")
            return
        }
        for (key, value) in mapping {
            guard let name = key.scalar?.string else {
                report(key.mark, "a key is a word")
                continue
            }
            // `dns:` with nothing below is an empty group.
            let empty = value.scalar.map { $0.string.isEmpty } ?? false
            if name == "cluster" { places[name] = SourcePlace(key.mark) }
            if empty, ConfigurationKeys.top.contains(name) { continue }
            switch name {
            case "listeners": readList(value, name, ConfigurationKeys.listener, \.listeners) { ListenerConfiguration() }
            case "sites": readList(value, name, ConfigurationKeys.site, \.sites) { SiteRule() }
            case "routes": readList(value, name, ConfigurationKeys.route, \.routes) { RouteRule() }
            case _ where ConfigurationKeys.top.contains(name):
                var configuration = self.configuration
                readGroup(value, prefix: name, shown: name, ConfigurationKeys.sections, &configuration)
                self.configuration = configuration
            default:
                reportUnknown(key, name, among: ConfigurationKeys.top)
            }
        }
    }

    /// Reads a group of keys into `root`. `prefix` is the group's path in the table, `shown` its name for people.
    private mutating func readGroup<Root>(
        _ node: Node, prefix: String, shown: String, _ keys: [ConfigurationKey<Root>], _ root: inout Root
    ) {
        guard case .mapping(let mapping) = node else {
            report(node.mark, "\(shown): expected a group of keys, found \(node.sortOfNode)")
            return
        }
        let start = prefix.isEmpty ? "" : prefix + "."
        for (keyNode, value) in mapping {
            guard let name = keyNode.scalar?.string else {
                report(keyNode.mark, "\(shown): a key is a word")
                continue
            }
            let path = start + name
            if let key = keys.first(where: { $0.path == path }) {
                let full = shown.isEmpty ? name : "\(shown).\(name)"
                readValue(value, keyNode.mark, key, full, &root)
            } else if !name.contains("."), keys.contains(where: { $0.path.hasPrefix(path + ".") }) {
                let empty = value.scalar.map { $0.string.isEmpty } ?? false
                if !empty { readGroup(value, prefix: path, shown: "\(shown).\(name)", keys, &root) }
            } else {
                let known = keys.filter { $0.path.hasPrefix(start) }
                    .compactMap { $0.path.dropFirst(start.count).split(separator: ".").first.map(String.init) }
                reportUnknown(keyNode, name, among: known, group: shown)
            }
        }
    }

    private mutating func readValue<Root>(
        _ node: Node, _ keyMark: Mark?, _ key: ConfigurationKey<Root>, _ full: String, _ root: inout Root
    ) {
        // An empty value has no useful place of its own.
        let place = node.scalar?.string.isEmpty == true ? keyMark : node.mark
        places[full] = SourcePlace(place)
        lines[full] = place?.line
        do {
            try key.read(node, &root)
        } catch let problem as ValueProblem {
            report(place, "\(full): \(problem.text)")
        } catch let problems as ListProblems {
            for item in problems.items { report(item.place, "\(full): \(item.problem.text)") }
        } catch {
            report(place, "\(full): \(error)")
        }
    }

    private mutating func readList<Element>(
        _ node: Node, _ name: String, _ keys: [ConfigurationKey<Element>],
        _ field: WritableKeyPath<NodeConfiguration, [Element]>, make: () -> Element
    ) {
        guard case .sequence(let sequence) = node else {
            report(node.mark, "\(name): expected a list, found \(node.sortOfNode)")
            return
        }
        guard sequence.count <= ConfigurationLimits.listElements else {
            report(node.mark, "\(name): more than \(ConfigurationLimits.listElements) elements")
            return
        }
        var elements: [Element] = []
        for (index, item) in sequence.enumerated() {
            var element = make()
            places["\(name)[\(index)]"] = SourcePlace(item.mark)
            lines["\(name)[\(index)]"] = item.mark?.line
            readGroup(item, prefix: "", shown: "\(name)[\(index)]", keys, &element)
            elements.append(element)
        }
        configuration[keyPath: field] = elements
        places[name] = SourcePlace(node.mark)
    }

    mutating func report(_ place: SourcePlace?, _ message: String) {
        problems.append(
            ConfigurationProblem(file: file, line: place?.line ?? 0, column: place?.column ?? 0, message: message))
    }

    private mutating func report(_ mark: Mark?, _ message: String) {
        report(SourcePlace(mark), message)
    }

    private mutating func reportUnknown(_ node: Node, _ name: String, among known: [String], group: String = "") {
        let place = group.isEmpty ? "" : "\(group): "
        var message = "\(place)unknown key \(ConfigurationGrammar.quoted(name))"
        if let nearest = NearestWord.to(name, among: known) { message += ", did you mean '\(nearest)'?" }
        report(node.mark, message)
    }
}

/// Bounds of the configuration file itself.
package enum ConfigurationLimits {
    /// Bytes of a file.
    package static let fileBytes = 16 << 20
    /// Elements of `listeners`, `sites` or `routes`.
    package static let listElements = 10_000
    /// Members in `cluster.etcd`.
    package static let etcdEndpoints = 16
    /// Bytes of a certificate, key or password file.
    package static let namedFileBytes = 1 << 20
    /// Problems that are printed; the rest is counted.
    package static let problemsShown = 100
}

/// Finds what somebody meant to type.
enum NearestWord {
    /// The known word with the fewest edits, always one if there is any; ties go to the first.
    static func to(_ word: String, among known: [String]) -> String? {
        let wanted = Array(word.utf8.prefix(64))
        return known.map { ($0, distance(wanted, Array($0.utf8))) }.min { $0.1 < $1.1 }?.0
    }

    /// Levenshtein distance.
    static func distance(_ left: [UInt8], _ right: [UInt8]) -> Int {
        var row = Array(0...right.count)
        for (index, byte) in left.enumerated() {
            var diagonal = index
            row[0] = index + 1
            for (column, other) in right.enumerated() {
                let above = row[column + 1]
                row[column + 1] = min(above + 1, row[column] + 1, diagonal + (byte == other ? 0 : 1))
                diagonal = above
            }
        }
        return row[right.count]
    }
}
