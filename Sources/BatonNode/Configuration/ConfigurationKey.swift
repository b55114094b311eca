// A key of the configuration: its name, its kind, how it is read, printed and whether SIGHUP may change it.
import BatonCore
import BatonModel
import Yams

/// One key below a section or a list element of type `Root`, by its dotted path (`delivery.timeouts.dot`).
struct ConfigurationKey<Root>: Sendable {
    let path: String
    /// The grammar's name, as docs/CONFIGURATION.md shows it.
    let kind: String
    let reloadable: Bool
    let read: @Sendable (Node, inout Root) throws -> Void
    /// The value as one would write it.
    let text: @Sendable (Root) -> String
}

extension ConfigurationKey {
    /// A key with a scalar value.
    init<Value>(
        _ path: String, _ field: any WritableKeyPath<Root, Value> & Sendable, _ kind: ConfigurationKind<Value>,
        reload: Bool = false
    ) {
        self.init(
            path: path, kind: kind.name, reloadable: reload,
            read: { node, root in root[keyPath: field] = try kind.read(try Self.scalar(node, kind.name)) },
            text: { kind.text($0[keyPath: field]) })
    }

    /// A key that is absent unless written.
    init<Value>(
        optional path: String, _ field: any WritableKeyPath<Root, Value?> & Sendable, _ kind: ConfigurationKind<Value>,
        absent: String, reload: Bool = false
    ) {
        self.init(
            path: path, kind: kind.name, reloadable: reload,
            read: { node, root in root[keyPath: field] = try kind.read(try Self.scalar(node, kind.name)) },
            text: { $0[keyPath: field].map(kind.text) ?? absent })
    }

    /// A key with a list; one scalar stands for a list of one.
    init<Value>(
        list path: String, _ field: any WritableKeyPath<Root, [Value]> & Sendable, _ kind: ConfigurationKind<Value>,
        reload: Bool = false
    ) {
        self.init(
            path: path, kind: "list of " + kind.name, reloadable: reload,
            read: { node, root in
                var values: [Value] = []
                var problems = ListProblems()
                let items: [Node]
                if case .sequence(let sequence) = node { items = Array(sequence) } else { items = [node] }
                for item in items {
                    do {
                        values.append(try kind.read(try Self.scalar(item, kind.name)))
                    } catch let problem as ValueProblem {
                        problems.items.append((SourcePlace(item.mark), problem))
                    }
                }
                if !problems.items.isEmpty { throw problems }
                root[keyPath: field] = values
            },
            text: { "[" + $0[keyPath: field].map(kind.text).joined(separator: ", ") + "]" })
    }

    private static func scalar(_ node: Node, _ kind: String) throws(ValueProblem) -> String {
        guard case .scalar(let scalar) = node else {
            throw ValueProblem("expected a \(kind), found \(node.sortOfNode)")
        }
        if scalar.string.isEmpty { throw ValueProblem("expected a \(kind), found nothing") }
        return scalar.string
    }
}

/// Problems of several elements of a list.
struct ListProblems: Error {
    var items: [(place: SourcePlace, problem: ValueProblem)] = []
}

/// A place in the file, from 1; 0 where there is none.
struct SourcePlace: Hashable {
    var line = 0
    var column = 0

    init(line: Int = 0, column: Int = 0) {
        self.line = line
        self.column = column
    }

    init(_ mark: Mark?) {
        self.init(line: mark?.line ?? 0, column: mark?.column ?? 0)
    }
}

extension Node {
    var sortOfNode: String {
        switch self {
        case .scalar: "a single value"
        case .mapping: "a group of keys"
        case .sequence: "a list"
        case .alias: "an alias"
        }
    }
}

/// How values of one kind are read and printed.
struct ConfigurationKind<Value>: Sendable {
    let name: String
    let read: @Sendable (String) throws -> Value
    let text: @Sendable (Value) -> String
}

extension ConfigurationKind where Value == Int {
    static func integer(_ range: ClosedRange<Int>) -> Self {
        Self(
            name: "number", read: { try within($0, try ConfigurationGrammar.integer($0), range, { "\($0)" }) },
            text: { "\($0)" })
    }

    static func size(_ range: ClosedRange<Int>) -> Self {
        Self(
            name: "size",
            read: { try within($0, try ConfigurationGrammar.size($0), range, ConfigurationGrammar.text(ofSize:)) },
            text: ConfigurationGrammar.text(ofSize:))
    }
}

extension ConfigurationKind where Value == TimeSpan {
    static func duration(_ range: ClosedRange<TimeSpan>) -> Self {
        Self(
            name: "duration",
            read: { try within($0, try ConfigurationGrammar.duration($0), range, ConfigurationGrammar.text(of:)) },
            text: ConfigurationGrammar.text(of:))
    }
}

extension ConfigurationKind where Value == Double {
    static func decimal(_ range: ClosedRange<Double>) -> Self {
        Self(
            name: "decimal",
            read: { try within($0, try ConfigurationGrammar.decimal($0), range, ConfigurationGrammar.text(of:)) },
            text: ConfigurationGrammar.text(of:))
    }
}

private func within<Value: Comparable>(
    _ text: String, _ value: Value, _ range: ClosedRange<Value>, _ print: (Value) -> String
) throws -> Value {
    guard range.contains(value) else {
        throw ValueProblem("\(text) is outside \(print(range.lowerBound)) to \(print(range.upperBound))")
    }
    return value
}

extension ConfigurationKind where Value == Bool {
    static var boolean: Self {
        Self(name: "true or false", read: { try ConfigurationGrammar.boolean($0) }, text: { $0 ? "true" : "false" })
    }
}

extension ConfigurationKind where Value == String {
    static var path: Self {
        Self(
            name: "path",
            read: { text in
                if text.utf8.contains(where: { $0 < 0x20 || $0 == 0x7f }) {
                    throw ValueProblem("expected a path, found \(ConfigurationGrammar.quoted(text))")
                }
                return text
            }, text: { $0 })
    }
    static var hostname: Self { Self(name: "host name", read: { try ConfigurationGrammar.hostname($0) }, text: { $0 }) }
    static var nodeID: Self { Self(name: "name", read: { try ConfigurationGrammar.nodeID($0) }, text: { $0 }) }
    /// A site's name, which becomes a metric label.
    static var siteName: Self { Self(name: "name", read: { try ConfigurationGrammar.nodeID($0) }, text: { $0 }) }
}

extension ConfigurationKind where Value == MailAddress {
    static var mailbox: Self {
        Self(name: "address", read: { try ConfigurationGrammar.mailbox($0) }, text: { $0.description })
    }
}

extension ConfigurationKind where Value == SocketEndpoint {
    static func endpoint(_ ports: ClosedRange<Int>, defaultPort: Int? = nil) -> Self {
        Self(
            name: defaultPort == nil ? "address:port" : "address[:port]",
            read: { try ConfigurationGrammar.endpoint($0, defaultPort: defaultPort, ports: ports) },
            text: { $0.description })
    }
}

extension ConfigurationKind where Value == AddressBlock {
    static var block: Self {
        Self(
            name: "network", read: { try ConfigurationGrammar.block($0) },
            text: { "\($0.base)/\($0.prefixLength)" })
    }
}

extension ConfigurationKind where Value == Domain {
    static var domain: Self {
        Self(name: "domain", read: { try ConfigurationGrammar.domain($0) }, text: { $0.description })
    }
}

extension ConfigurationKind where Value == DomainPattern {
    static var pattern: Self {
        Self(name: "domain pattern", read: { try ConfigurationGrammar.pattern($0) }, text: { $0.description })
    }
}

extension ConfigurationKind where Value == NextHop {
    static var nextHop: Self {
        Self(name: "next hop", read: { try ConfigurationGrammar.nextHop($0) }, text: { $0.description })
    }
}

extension ConfigurationKind where Value == MessageRate {
    static var rate: Self { Self(name: "rate", read: { try ConfigurationGrammar.rate($0) }, text: { $0.description }) }
}

extension ConfigurationKind where Value: RawRepresentable & CaseIterable & Sendable, Value.RawValue == String {
    /// One of the words of an enumeration.
    static var word: Self {
        let words = Value.allCases.map(\.rawValue)
        return Self(
            name: words.joined(separator: ", "),
            read: { text in
                guard let value = Value(rawValue: text) else {
                    throw ValueProblem(
                        "expected \(words.joined(separator: ", ")), found \(ConfigurationGrammar.quoted(text))")
                }
                return value
            }, text: { $0.rawValue })
    }
}

/// TLS is another part: only `none` is taken, so that a file may say it.
enum NoTLS: String, CaseIterable, Sendable {
    case none
}
