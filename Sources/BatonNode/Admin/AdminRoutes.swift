// The admin HTTP's routes as a function from a request to an answer, without a socket.
import BatonCore
import BatonModel
import Foundation

/// A request that has been read whole.
struct AdminRequest: Sendable {
    var method: String
    /// Path without the query, percent-encoded as received.
    var path: String
    var query: String
    var authorization: String?
    var body: [UInt8] = []
}

struct AdminAnswer: Sendable {
    var status: Int
    var contentType: String
    var body: [UInt8]
    var allow: String?
    var challenge = false

    static func json(_ value: some Encodable, status: Int = 200) -> AdminAnswer {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        // Encoding of these plain values cannot fail; an empty object would be seen by the first test.
        let data = (try? encoder.encode(value)) ?? Data("{}".utf8)
        let isProblem = value is ProblemReport
        return AdminAnswer(
            status: status, contentType: isProblem ? "application/problem+json" : "application/json",
            body: Array(data) + [0x0a])
    }

    static func problem(_ problem: ProblemReport) -> AdminAnswer {
        var answer = json(problem, status: problem.status)
        answer.challenge = problem.status == 401
        return answer
    }
}

/// Answers requests. Stateless but for the token; any task.
struct AdminRoutes: Sendable {
    let node: any NodeInspecting
    let metrics: PrometheusText
    let token: AdminToken

    func answer(_ request: AdminRequest) async -> AdminAnswer {
        await AdminResources(node: node).caught { try await routed(request) }
    }

    private func routed(_ request: AdminRequest) async throws -> AdminAnswer {
        guard request.path.utf8.count + request.query.utf8.count <= AdminLimits.targetOctets else {
            throw ProblemReport(414, "URI Too Long", "at most \(AdminLimits.targetOctets) octets")
        }
        let parts = request.path.split(separator: "/", omittingEmptySubsequences: true).map(String.init)
        switch parts {
        case ["health"]:
            if let refusal = AdminResources.wrongMethod(request.method, request.path, "GET") { return refusal }
            let health = await node.health()
            return .json(health, status: health.isServing ? 200 : 503)
        case ["metrics"]:
            if let refusal = AdminResources.wrongMethod(request.method, request.path, "GET") { return refusal }
            return AdminAnswer(
                status: 200, contentType: "text/plain; version=0.0.4; charset=utf-8", body: Array(metrics.render().utf8)
            )
        default: break
        }
        guard isAuthorized(request) else {
            throw ProblemReport(401, "Unauthorized", "needs Authorization: Bearer and the token in admin.token")
        }
        guard parts.count >= 3, parts[0] == "api", parts[1] == "v1" else {
            throw AdminResources.notFound(request.path)
        }
        return try await AdminResources(node: node).answer(
            request.method, Array(parts[2...]), try AdminQuery(request.query), body: request.body,
            command: { try AdminCommandBody.command($0, request.body) })
    }

    private func isAuthorized(_ request: AdminRequest) -> Bool {
        guard let header = request.authorization else { return false }
        let parts = header.split(separator: " ", maxSplits: 1)
        guard parts.count == 2, parts[0].lowercased() == "bearer" else { return false }
        return token.matches(Array(parts[1].utf8))
    }
}

/// The query of a request: known names once each.
struct AdminQuery {
    var values: [String: String]

    /// Rows of a page without `limit`.
    static let defaultLimit = 100

    init(_ text: String) throws(ProblemReport) {
        var values: [String: String] = [:]
        for pair in text.split(separator: "&") {
            let halves = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(Self.decoded)
            guard let name = halves[0], let value = halves.count == 2 ? halves[1] : "" else {
                throw Self.bad("the query is not percent-encoded UTF-8")
            }
            guard values.updateValue(value, forKey: name) == nil else {
                throw Self.bad("\(LogEscape.plain(name)) stands in the query twice")
            }
        }
        self.values = values
    }

    private static func decoded(_ text: Substring) -> String? {
        text.replacing("+", with: " ").removingPercentEncoding
    }

    static func bad(_ detail: String) -> ProblemReport { ProblemReport(400, "Bad Request", detail) }

    func allow(_ names: Set<String>) throws(ProblemReport) {
        if let stranger = values.keys.sorted().first(where: { !names.contains($0) }) {
            throw Self.bad("unknown parameter \(LogEscape.plain(stranger))")
        }
    }

    func nodeOnly() throws(ProblemReport) -> Bool {
        switch values["scope"] {
        case nil, "cluster": return false
        case "node": return true
        default: throw Self.bad("scope is node or cluster")
        }
    }

    func limit() throws(ProblemReport) -> Int {
        guard let text = values["limit"] else { return Self.defaultLimit }
        guard let limit = Int(text), (1...AdminLimits.pageRows).contains(limit) else {
            throw Self.bad("limit is a number from 1 to \(AdminLimits.pageRows)")
        }
        return limit
    }

    func filter() throws -> AdminFilter {
        try allow(["domain", "site", "sender", "state", "limit", "cursor", "scope"])
        var filter = AdminFilter()
        if let text = values["domain"] { filter.domain = try Self.domain(text) }
        filter.site = values["site"]
        if let text = values["sender"] { filter.sender = try Self.sender(text) }
        if let state = values["state"] {
            guard ["ready", "deferred", "suspended", "in_flight", "damaged"].contains(state) else {
                throw Self.bad("state is ready, deferred, suspended, in_flight or damaged")
            }
            filter.state = state
        }
        filter.limit = try limit()
        filter.cursor = values["cursor"]
        filter.nodeOnly = try nodeOnly()
        return filter
    }

    func search() throws -> MessageSearch {
        try allow(["recipient", "sender", "message_id", "limit", "cursor", "scope"])
        let given = ["recipient", "sender", "message_id"].filter { values[$0] != nil }
        guard given.count == 1 else { throw Self.bad("give one of recipient, sender and message_id") }
        if let text = values["recipient"] {
            guard let address = MailAddress(text) else { throw Self.bad("recipient is an address") }
            return .recipient(address)
        }
        if let text = values["sender"] { return .sender(try Self.sender(text)) }
        guard let text = values["message_id"], !text.isEmpty, text.utf8.count <= 255 else {
            throw Self.bad("message_id has 1 to 255 octets")
        }
        return .messageID(text)
    }

    static func domain(_ text: String) throws(ProblemReport) -> Domain {
        let isLiteral = text.hasPrefix("[") && text.hasSuffix("]") && text.utf8.count <= Limits.domainOctets
        guard isLiteral || ConfigurationGrammar.isDomainName(text) else { throw bad("domain is a domain name") }
        return Domain(text)
    }

    /// `a@b`, `@b`, or the null reverse-path, `<>` or nothing.
    static func sender(_ text: String) throws(ProblemReport) -> AdminSender {
        if text == "<>" || text.isEmpty { return .null }
        if text.hasPrefix("@") { return .domain(try domain(String(text.dropFirst()))) }
        guard let address = MailAddress(text) else { throw bad("sender is an address, @domain or <>") }
        return .address(address)
    }
}

/// The body of `POST /api/v1/queue/{verb}`.
struct AdminCommandBody: Codable, Sendable {
    var id: String?
    var domain: String?
    var site: String?
    var sender: String?
    var all: Bool?
    var reason: String?
    var report: Bool?
    /// A duration of the configuration's grammar, `1h`.
    var `for`: String?

    private static let names: Set<String> = ["id", "domain", "site", "sender", "all", "reason", "report", "for"]

    static func command(_ verb: AdminVerb, _ bytes: [UInt8]) throws -> AdminCommand {
        let object: [String: Any]
        let body: AdminCommandBody
        do {
            object = try JSONSerialization.jsonObject(with: Data(bytes)) as? [String: Any] ?? ["": 0]
            body = try JSONDecoder().decode(AdminCommandBody.self, from: Data(bytes))
        } catch {
            throw AdminQuery.bad("the body is not a JSON object of this resource")
        }
        if let stranger = object.keys.sorted().first(where: { !names.contains($0) }) {
            throw AdminQuery.bad("unknown member \(LogEscape.plain(stranger))")
        }
        return try body.command(verb)
    }

    func command(_ verb: AdminVerb) throws -> AdminCommand {
        if all == false { throw AdminQuery.bad("all is true or left out") }
        let given = [id != nil, domain != nil, site != nil, sender != nil, all != nil].filter { $0 }.count
        guard given == 1 else { throw AdminQuery.bad("give one of id, domain, site, sender and all") }
        if verb != .bounce, reason != nil || report != nil {
            throw AdminQuery.bad("reason and report belong to bounce")
        }
        if verb != .suspend, self.for != nil { throw AdminQuery.bad("for belongs to suspend") }
        let reason = self.reason ?? ""
        guard reason.utf8.count <= AdminLimits.reasonOctets, !reason.unicodeScalars.contains(where: LogEscape.isUnsafe)
        else {
            throw AdminQuery.bad("reason has at most \(AdminLimits.reasonOctets) octets and no control characters")
        }
        var duration: TimeSpan?
        if let text = self.for {
            guard let span = try? ConfigurationGrammar.duration(text), span > .zero, span <= .days(365) else {
                throw AdminQuery.bad("for is a duration such as 30m or 1h, at most 365d")
            }
            duration = span
        }
        return AdminCommand(
            verb: verb, selector: try selector(), reason: reason, report: report ?? false, duration: duration)
    }

    private func selector() throws -> AdminSelector {
        if let id {
            guard let message = MessageID(text: Array(id.utf8)) else { throw AdminQuery.bad("id has 26 characters") }
            return .message(message)
        }
        if let domain { return .domain(try AdminQuery.domain(domain)) }
        if let site { return .site(site) }
        guard let sender else { return .all }
        switch try AdminQuery.sender(sender) {
        case .address(let address): return .sender(address)
        case .domain(let domain): return .senderDomain(domain)
        case .null: return .nullSender
        }
    }
}
