// A question to another node in the words of the admin HTTP, and its answering there.
import BatonCore
import BatonModel
import Foundation

/// A question as it travels: its name is the method and the first words of the path, the rest is JSON.
struct PeerQuery: Codable, Sendable {
    /// `/api/v1/messages/0R…`
    var path: String
    /// As in a URL; `scope=node` is always meant.
    var query: String
    /// Of a verb.
    var body: AdminCommandBody?
    /// The suspension or bounce that the verb made in the control plane, and that change's revision.
    var hold: SharedHold?
    var revision: UInt64?

    init(path: String, query: [(String, String)] = [], body: AdminCommandBody? = nil) {
        self.path = path
        self.query = query.map { "\(Self.encoded($0.0))=\(Self.encoded($0.1))" }.joined(separator: "&")
        self.body = body
    }

    var method: String { body == nil ? "GET" : "POST" }

    /// `GET /api/v1/queue`
    var name: String { "\(method) \(Self.stem(path))" }

    /// Nil where it is over the bound.
    var json: [UInt8]? {
        guard let data = try? JSONEncoder().encode(self), data.count <= ClusterAdminLimits.queryOctets else {
            return nil
        }
        return Array(data)
    }

    /// `/api/v1/` and the word after it, and the verb of a queue or cluster.
    static func stem(_ path: String) -> String {
        let parts = path.split(separator: "/").prefix(4)
        let verbs = parts.count == 4 && (parts[2] == "queue" || parts[2] == "cluster")
        return "/" + parts.prefix(verbs ? 4 : 3).joined(separator: "/")
    }

    /// Percent-encodes all but RFC 3986's unreserved characters.
    static func encoded(_ text: String) -> String { AdminClient.encoded(text) }
}

/// Answers other nodes' questions for this node alone. The asker is a node of the cluster, known by its certificate: no token.
package struct PeerQueries: Sendable {
    private let resources: AdminResources

    /// `node` answers for this node alone (`NodeInspector`).
    package init(node: any NodeInspecting) {
        self.resources = AdminResources(node: node)
    }

    /// The status as in HTTP, and JSON of at most `ClusterAdminLimits.answerOctets`. Never throws: what is wrong is a problem
    /// report. A listing that is too large is made with fewer rows; its `next` goes on there.
    package func answer(_ name: String, _ json: [UInt8]) async -> (status: Int, json: [UInt8]) {
        guard name.utf8.count <= ClusterAdminLimits.nameOctets, json.count <= ClusterAdminLimits.queryOctets,
            let query = try? JSONDecoder().decode(PeerQuery.self, from: Data(json)), name == query.name,
            query.path.utf8.count + query.query.utf8.count <= AdminLimits.targetOctets,
            query.path.hasPrefix("/api/v1/"), var parameters = try? AdminQuery(query.query)
        else { return Self.pair(.problem(ProblemReport(400, "Bad Request", "not a question of this version"))) }
        parameters.values["scope"] = "node"
        let parts = query.path.split(separator: "/").dropFirst(2).map(String.init)
        for _ in 0..<ClusterAdminLimits.fittingTries {
            let answer = await resources.caught {
                try await resources.answer(
                    query.method, parts, parameters, command: { verb in try query.command(verb) })
            }
            if answer.body.count <= ClusterAdminLimits.answerOctets { return Self.pair(answer) }
            let limit = Int(parameters.values["limit"] ?? "") ?? AdminQuery.defaultLimit
            guard query.method == "GET", limit > 1, parts.count == 1 || parts.last == "messages" else {
                return Self.pair(Self.cut(answer) ?? Self.tooLarge)
            }
            // A little less than what would fit if all rows were alike, so that a few tries do.
            let fitting = limit * ClusterAdminLimits.answerOctets / answer.body.count * 4 / 5
            parameters.values["limit"] = "\(max(1, min(fitting, limit / 2)))"
        }
        return Self.pair(Self.tooLarge)
    }

    private static let tooLarge = AdminAnswer.problem(
        ProblemReport(413, "Content Too Large", "the answer does not fit between nodes; ask this node with scope=node"))

    /// A message with very many attempts: the last one of each recipient, or none.
    private static func cut(_ answer: AdminAnswer) -> AdminAnswer? {
        guard answer.status == 200,
            var report = try? AdminClient.decode(MessageReport.self, from: Data(answer.body))
        else { return nil }
        for kept in [1, 0] {
            for index in report.recipients.indices {
                report.recipients[index].attempts = report.recipients[index].attempts.suffix(kept)
            }
            let smaller = AdminAnswer.json(report)
            if smaller.body.count <= ClusterAdminLimits.answerOctets { return smaller }
        }
        return nil
    }

    private static func pair(_ answer: AdminAnswer) -> (status: Int, json: [UInt8]) { (answer.status, answer.body) }
}

extension PeerQuery {
    /// The verb's command, with what it made in the control plane.
    func command(_ verb: AdminVerb) throws -> AdminCommand {
        guard let body else { throw AdminQuery.bad("no body") }
        var command = try body.command(verb)
        command.nodeOnly = true
        command.shared = hold
        command.revision = revision
        return command
    }
}
