// What stands below /api/v1 as a function from a request that may be answered to its answer.
import BatonCore
import BatonModel
import Foundation

/// Answers for whoever has been let in: an operator with the token, or another node of the cluster. Stateless; any task.
struct AdminResources: Sendable {
    let node: any NodeInspecting

    /// `parts` follow `/api/v1`. `command` reads the body of a queue's verb; `body` is that of the cluster's, nil where those
    /// are not answered.
    func answer(
        _ method: String, _ parts: [String], _ query: AdminQuery, body: [UInt8]? = nil,
        command: (AdminVerb) throws -> AdminCommand
    ) async throws -> AdminAnswer {
        let path = "/api/v1/" + parts.joined(separator: "/")
        func refused(_ allowed: String) -> AdminAnswer? { Self.wrongMethod(method, path, allowed) }
        guard let first = parts.first else { throw Self.notFound(path) }
        switch (first, parts.count) {
        case ("queue", 1):
            if let refusal = refused("GET") { return refusal }
            return .json(try await node.queue(try query.filter()))
        case ("queue", 2) where parts[1] == "messages":
            if let refusal = refused("GET") { return refusal }
            return .json(try await node.queuedMessages(try query.filter()))
        case ("queue", 2):
            guard let verb = AdminVerb(rawValue: parts[1]) else { throw Self.notFound(path) }
            if let refusal = refused("POST") { return refusal }
            try query.allow(["scope"])
            var wanted = try command(verb)
            wanted.nodeOnly = try query.nodeOnly()
            return .json(try await node.perform(wanted))
        case ("messages", 1):
            if let refusal = refused("GET") { return refusal }
            return .json(
                try await node.messages(
                    try query.search(), limit: try query.limit(), cursor: query.values["cursor"],
                    nodeOnly: try query.nodeOnly()))
        case ("messages", 2):
            if let refusal = refused("GET") { return refusal }
            try query.allow(["scope"])
            guard let id = MessageID(text: Array(parts[1].utf8)),
                let message = try await node.message(id, nodeOnly: try query.nodeOnly())
            else { throw Self.missing("message", parts[1]) }
            return .json(message)
        case ("operations", 2):
            if let refusal = refused("GET") { return refusal }
            try query.allow(["scope"])
            guard let id = parts[1].removingPercentEncoding, let operation = try await node.operation(id) else {
                throw Self.missing("operation", parts[1])
            }
            return .json(operation)
        case ("cluster", 1):
            if let refusal = refused("GET") { return refusal }
            try query.allow(["scope"])
            return .json(try await node.cluster(nodeOnly: try query.nodeOnly()))
        case ("cluster", 2): return try await cluster(parts[1], method, query, body, path)
        default: throw Self.notFound(path)
        }
    }

    private func cluster(
        _ verb: String, _ method: String, _ query: AdminQuery, _ body: [UInt8]?, _ path: String
    ) async throws -> AdminAnswer {
        switch verb {
        case "drain" where method == "GET" || method == "HEAD":
            try query.allow(["node"])
            let name = try query.values["node"].map(ClusterCommandBody.node)
            guard let report = try await node.drainProgress(name) else {
                throw Self.missing("drain of", name ?? "this node")
            }
            return .json(report)
        case "drain", "forget", "recover-registry":
            if let refusal = Self.wrongMethod(method, path, "POST") { return refusal }
            guard let body else { throw Self.notFound(path) }
            try query.allow([])
            switch verb {
            case "drain": return .json(try await node.drain(try ClusterCommandBody.drain(body)))
            case "forget": return .json(try await node.forget(try ClusterCommandBody.forget(body)))
            default:
                _ = try ClusterCommandBody.read(body, [])
                return .json(try await node.recoverRegistry())
            }
        default: throw Self.notFound(path)
        }
    }

    /// Turns what is thrown into problem details.
    func caught(_ work: () async throws -> AdminAnswer) async -> AdminAnswer {
        do {
            return try await work()
        } catch let problem as ProblemReport {
            return .problem(problem)
        } catch is CancellationError {
            return .problem(ProblemReport(503, "Service Unavailable", "the node did not answer in time"))
        } catch {
            return .problem(ProblemReport(500, "Internal Server Error", LogEscape.plain("\(error)")))
        }
    }

    private static func missing(_ sort: String, _ name: String) -> ProblemReport {
        ProblemReport(404, "Not Found", "no \(sort) \(LogEscape.plain(String(name.prefix(64))))")
    }

    static func notFound(_ path: String) -> ProblemReport {
        ProblemReport(404, "Not Found", "no resource \(LogEscape.plain(String(path.prefix(200))))")
    }

    /// HEAD is taken for GET.
    static func wrongMethod(_ method: String, _ path: String, _ allowed: String) -> AdminAnswer? {
        if method == allowed || (allowed == "GET" && method == "HEAD") { return nil }
        var answer = AdminAnswer.problem(
            ProblemReport(405, "Method Not Allowed", "\(LogEscape.plain(String(path.prefix(200)))) takes \(allowed)"))
        answer.allow = allowed
        return answer
    }
}

/// The bodies of `POST /api/v1/cluster/…`.
enum ClusterCommandBody {
    struct Members: Codable {
        var node: String?
        var deadline: String?
        var exit: Bool?
    }

    static func drain(_ bytes: [UInt8]) throws -> ClusterDrainCommand {
        let members = try read(bytes, ["node", "deadline", "exit"])
        var command = ClusterDrainCommand(node: try members.node.map(node), exit: members.exit ?? false)
        if let text = members.deadline {
            guard let span = ClusterDrainCommand.deadline(text) else {
                throw AdminQuery.bad("deadline is a duration such as 0s or 10m, at most 24h")
            }
            command.deadline = span
        }
        return command
    }

    static func forget(_ bytes: [UInt8]) throws -> String {
        guard let name = try read(bytes, ["node"]).node else { throw AdminQuery.bad("node is needed") }
        return try node(name)
    }

    static func node(_ text: String) throws -> String {
        guard let name = try? ConfigurationGrammar.nodeID(text) else {
            throw AdminQuery.bad("node is the id of a node")
        }
        return name
    }

    /// An object with no other members than `names`; nothing at all stands for an empty one.
    static func read(_ bytes: [UInt8], _ names: Set<String>) throws -> Members {
        if bytes.isEmpty { return Members() }
        guard let object = try? JSONSerialization.jsonObject(with: Data(bytes)) as? [String: Any],
            let members = try? JSONDecoder().decode(Members.self, from: Data(bytes))
        else { throw AdminQuery.bad("the body is not a JSON object of this resource") }
        if let stranger = object.keys.sorted().first(where: { !names.contains($0) }) {
            throw AdminQuery.bad("unknown member \(LogEscape.plain(stranger))")
        }
        return members
    }
}
