// Questions to several nodes at once, and the operators' verbs for all of them.
import BatonCore
import BatonModel
import Foundation

extension ClusterInspector {
    /// What several nodes answered.
    struct Found<Value: Sendable>: Sendable {
        /// By node; a node that knows nothing (404) is neither here nor missing.
        var answers: [String: Value] = [:]
        /// Nodes without an answer, or with one that cannot be used.
        var missing: [String] = []
        /// What this node itself threw, or the problem of another one (400 and the like), for where nobody answered.
        var error: (any Error)?
    }

    /// Live nodes in order, this one among them, and those that died and whose mail is not all taken over yet.
    func members() async -> (live: [String], dead: [String]) {
        let status = await runtime.status()
        let live = Set(status.nodes.filter { $0.state != .dead }.map(\.id) + [runtime.node])
        let dead = Set(status.takeovers.filter { $0.done < $0.segments }.map(\.node)).subtracting(live)
        return (live.sorted(), dead.sorted())
    }

    /// Nil without one; 400 for one that is not of this cluster's listings.
    func place(_ cursor: String?) throws -> PageCursor? {
        guard let cursor, !cursor.isEmpty else { return nil }
        guard let place = PageCursor(text: cursor) else { throw AdminQuery.bad("unknown cursor") }
        return place
    }

    /// Asks each node its own question: this one through `local`, the others through the runtime, all at the same time.
    func each<Part: Sendable, Value: Codable & Sendable>(
        _ parts: [String: Part], within: TimeSpan, as type: Value.Type,
        question: (Part) -> (path: String, query: [(String, String)]),
        local: @escaping @Sendable (Part) async throws -> Value
    ) async -> Found<Value> {
        var groups: [String: (query: PeerQuery, nodes: [String])] = [:]
        for (node, part) in parts where node != runtime.node {
            let (path, query) = question(part)
            let asked = PeerQuery(path: path, query: query)
            groups["\(asked.path)?\(asked.query)", default: (asked, [])].nodes.append(node)
        }
        return await gather(
            Array(groups.values), within: within, as: type,
            own: parts[runtime.node].map { part in
                { @Sendable in try await local(part) }
            })
    }

    func gather<Value: Codable & Sendable>(
        _ questions: [(query: PeerQuery, nodes: [String])], within: TimeSpan, as type: Value.Type,
        own: (@Sendable () async throws -> Value)?
    ) async -> Found<Value> {
        let runtime = runtime
        return await withTaskGroup(of: Found<Value>.self) { group in
            if let own {
                group.addTask {
                    do {
                        return Found(answers: [runtime.node: try await own()])
                    } catch let problem as ProblemReport where problem.status == 404 {
                        return Found()
                    } catch { return Found(missing: [runtime.node], error: error) }
                }
            }
            for (query, nodes) in questions {
                group.addTask {
                    guard let json = query.json else {
                        return Found(
                            missing: nodes,
                            error: ProblemReport(413, "Content Too Large", "too large for the other nodes"))
                    }
                    return Self.read(
                        await runtime.ask(query.name, json, nodes: nodes.sorted(), within: within), nodes, as: type)
                }
            }
            var all = Found<Value>()
            for await found in group {
                all.answers.merge(found.answers) { first, _ in first }
                all.missing += found.missing
                all.error = all.error ?? found.error
            }
            return all
        }
    }

    /// An answer that no one asked for counts for nothing, a broken one as none.
    static func read<Value: Codable & Sendable>(
        _ given: PeerAnswers, _ nodes: [String], as type: Value.Type
    ) -> Found<Value> {
        var found = Found<Value>()
        var silent = Set(nodes)
        for answer in given.answers where silent.contains(answer.node) {
            if answer.status == 404 {
                silent.remove(answer.node)
            } else if answer.status == 200, answer.json.count <= ClusterAdminLimits.answerOctets,
                let value = try? AdminClient.decode(type, from: Data(answer.json))
            {
                silent.remove(answer.node)
                found.answers[answer.node] = value
            } else if let problem = try? AdminClient.decode(ProblemReport.self, from: Data(answer.json)) {
                found.error = found.error ?? problem
            }
        }
        found.missing = silent.sorted()
        return found
    }

    static func parameters(_ filter: AdminFilter) -> [(String, String)] {
        var all = [("limit", "\(filter.limit)")]
        if let domain = filter.domain { all.append(("domain", domain.description)) }
        if let site = filter.site { all.append(("site", site)) }
        switch filter.sender {
        case .address(let address): all.append(("sender", address.description))
        case .domain(let domain): all.append(("sender", "@\(domain)"))
        case .null: all.append(("sender", "<>"))
        case nil: break
        }
        if let state = filter.state { all.append(("state", state)) }
        if let cursor = filter.cursor { all.append(("cursor", cursor)) }
        return all
    }

    static func parameter(_ search: MessageSearch) -> (String, String) {
        switch search {
        case .recipient(let address): ("recipient", address.description)
        case .sender(.address(let address)): ("sender", address.description)
        case .sender(.domain(let domain)): ("sender", "@\(domain)")
        case .sender(.null): ("sender", "<>")
        case .messageID(let text): ("message_id", text)
        }
    }

    // MARK: Verbs

    /// A suspension or bounce goes into the control plane first, then to every live node; a node that is away, or takes mail
    /// over, finds it there. A suspension that cannot be put there still holds on the nodes that answer, and the report says so;
    /// a resumption that cannot would come undone, so it is refused.
    package func perform(_ command: AdminCommand) async throws -> OperationReport {
        if command.nodeOnly { return try await local.perform(command) }
        var command = command
        var incomplete: [String] = []
        switch command.verb {
        case .retry: break
        case .suspend, .bounce:
            let now = time()
            let hold = SharedHold(
                id: freshID(), kind: command.verb == .bounce ? .bounce : .suspend, selector: command.selector,
                made: now,
                until: command.duration.map { now + $0 }, reason: command.reason, report: command.report)
            // Also where it is not shared: an attempt of the same verb a moment later on another node means the same mail.
            command.shared = hold
            do {
                let there = try await holds.all().holds
                guard there.count(where: { !$0.isOver(at: now) }) < SharedHoldLimits.holds else {
                    throw ProblemReport(503, "Service Unavailable", "too many suspensions and bounces at a time")
                }
                command.revision = try await holds.put(hold)
                // Only new ones make them more: so they are never many. What cannot be removed now is due again with the next.
                let over = there.filter { $0.isOver(at: now) && $0.key != hold.key }
                if !over.isEmpty { try? await holds.removeOver(over) }
            } catch let problem as ProblemReport {
                throw problem
            } catch { incomplete.append(Self.controlPlane) }
        case .resume:
            do {
                var keys = [SharedHold.suspensionKey(command.selector)]
                if command.selector == .all {
                    keys += try await holds.all().holds.filter { $0.kind == .suspend }.map(\.key)
                }
                command.revision = try await holds.remove(Array(Set(keys)).sorted())
            } catch {
                throw ProblemReport(
                    503, "Service Unavailable",
                    "the control plane does not answer, so the suspension would come back; nothing was changed")
            }
        }
        return try await fanOut(command, incomplete)
    }

    private func fanOut(_ command: AdminCommand, _ incomplete: [String]) async throws -> OperationReport {
        let (nodes, dead) = await members()
        var query = PeerQuery(path: "/api/v1/queue/\(command.verb.rawValue)", body: AdminCommandBody(command))
        query.hold = command.shared
        query.revision = command.revision
        let local = local
        let others = nodes.filter { $0 != runtime.node }
        let wanted = command
        let found = await gather(
            others.isEmpty ? [] : [(query, others)], within: ClusterAdminLimits.answerWait, as: OperationReport.self,
            own: { try await local.perform(wanted) })
        if found.answers.isEmpty, let error = found.error { throw error }
        return ClusterMerge.operation(
            nodes.compactMap { node in found.answers[node].map { (node, $0) } }, verb: command.verb.rawValue,
            incomplete: Array(Set(incomplete + found.missing + dead)))
    }

    package func operation(_ id: String) async throws -> OperationReport? {
        guard let parts = PageCursor(text: id) else { return try await local.operation(id) }
        let found = await each(
            Dictionary(parts.places.map { ($0.node, $0.inner) }, uniquingKeysWith: { first, _ in first }),
            within: ClusterAdminLimits.answerWait, as: OperationReport.self
        ) { inner in
            ("/api/v1/operations/\(inner)", [])
        } local: { [local] inner in
            guard let report = try await local.operation(inner) else { throw ProblemReport(404, "Not Found", "") }
            return report
        }
        guard !found.answers.isEmpty else {
            if let error = found.error { throw error }
            return nil
        }
        var merged = ClusterMerge.operation(
            parts.places.compactMap { place in found.answers[place.node].map { (place.node, $0) } }, verb: "",
            incomplete: found.missing)
        merged.operation = id
        return merged
    }
}

extension AdminCommandBody {
    /// The body that means `command`; its time is told by `SharedHold` where there is one.
    init(_ command: AdminCommand) {
        self.init()
        switch command.selector {
        case .message(let id): self.id = id.description
        case .domain(let domain): self.domain = domain.description
        case .site(let name): site = name
        case .sender(let address): sender = address.description
        case .nullSender: sender = "<>"
        case .senderDomain(let domain): sender = "@\(domain)"
        case .all: all = true
        }
        if command.verb == .bounce {
            reason = command.reason
            report = command.report
        }
        // `for` takes whole milliseconds, and is a bound beside `SharedHold.until` only.
        if let duration = command.duration { self.for = "\(max(1, duration.nanoseconds / 1_000_000))ms" }
    }
}
