// Answers the admin HTTP for the whole cluster: asks this node and the others, and makes one answer of it.
import BatonCore
import BatonModel
import Foundation

/// `NodeInspecting` for a node of a cluster. `scope=node` goes to `local` unchanged.
package struct ClusterInspector: NodeInspecting {
    /// This node alone (`NodeInspector`).
    let local: any NodeInspecting
    let runtime: any ClusterAdministering
    let holds: any HoldSharing
    let time: @Sendable () -> Instant
    /// 32 fresh hexadecimal digits.
    let freshID: @Sendable () -> String

    package init(
        local: any NodeInspecting, runtime: any ClusterAdministering, holds: any HoldSharing,
        time: @escaping @Sendable () -> Instant, freshID: @escaping @Sendable () -> String
    ) {
        self.local = local
        self.runtime = runtime
        self.holds = holds
        self.time = time
        self.freshID = freshID
    }

    /// What no node can be called, in `incomplete`: a change that could not be put into the control plane.
    static let controlPlane = "(control plane)"

    package func health() async -> HealthReport { await local.health() }
    package func storedMessages() async -> Int { await local.storedMessages() }

    // MARK: Queue

    package func queue(_ filter: AdminFilter) async throws -> QueueReport {
        if filter.nodeOnly { return try await local.queue(filter) }
        let (nodes, dead) = await members()
        let cursor = try place(filter.cursor) ?? PageCursor(nodes.map { PageCursor.Place(node: $0, inner: "") })
        // Each node is asked for its totals, and for sites where it is not finished with them.
        var asked: [String: AdminFilter] = [:]
        for node in nodes {
            var part = filter
            part.nodeOnly = true
            let place = cursor.places.first { $0.node == node }
            part.cursor = place?.inner.isEmpty == false ? place?.inner : nil
            if place == nil { part.limit = 1 }
            asked[node] = part
        }
        let found = await each(asked, within: ClusterAdminLimits.answerWait, as: QueueReport.self) { part in
            ("/api/v1/queue", Self.parameters(part))
        } local: { part in
            try await local.queue(part)
        }
        if found.answers.isEmpty, let error = found.error { throw error }
        var total = QueueTotalReport()
        var pages: [ClusterMerge.SitePage] = []
        for node in nodes {
            guard let answer = found.answers[node] else { continue }
            ClusterMerge.add(answer.total, to: &total)
            guard let start = cursor.places.first(where: { $0.node == node })?.inner else { continue }
            pages.append(ClusterMerge.SitePage(node: node, start: start, sites: answer.sites, next: answer.next))
        }
        let (sites, next) = ClusterMerge.sites(pages, limit: filter.limit)
        return QueueReport(
            total: total, sites: sites, next: next.text, incomplete: Set(found.missing + dead).sorted())
    }

    package func queuedMessages(_ filter: AdminFilter) async throws -> QueueListReport {
        if filter.nodeOnly { return try await local.queuedMessages(filter) }
        let (nodes, dead) = await members()
        var left = (try place(filter.cursor)?.places ?? nodes.map { PageCursor.Place(node: $0, inner: "") })
            .filter { nodes.contains($0.node) }
        var rows: [QueueListReport.Row] = []
        var missing: Set<String> = Set(dead)
        var failure: (any Error)?
        let end = time() + ClusterAdminLimits.listingWait
        // One node after the other: rows of two nodes have nothing to add up, and a page is full before most are asked.
        for _ in 0..<ClusterAdminLimits.pageQuestions {
            guard let place = left.first, rows.count < filter.limit, time() < end else { break }
            var part = filter
            part.nodeOnly = true
            part.cursor = place.inner.isEmpty ? nil : place.inner
            part.limit = filter.limit - rows.count
            let found = await each(
                [place.node: part], within: ClusterAdminLimits.answerWait, as: QueueListReport.self
            ) { part in
                ("/api/v1/queue/messages", Self.parameters(part))
            } local: { part in
                try await local.queuedMessages(part)
            }
            guard let answer = found.answers[place.node] else {
                failure = failure ?? found.error
                missing.insert(place.node)
                left.removeFirst()
                continue
            }
            rows += answer.messages.prefix(part.limit)
            if let next = answer.next { left[0].inner = next } else { left.removeFirst() }
        }
        if rows.isEmpty, left.isEmpty, let failure { throw failure }
        return QueueListReport(messages: rows, next: PageCursor(left).text, incomplete: missing.sorted())
    }

    // MARK: Messages

    package func message(_ id: MessageID, nodeOnly: Bool) async throws -> MessageReport? {
        if nodeOnly { return try await local.message(id, nodeOnly: true) }
        let (nodes, dead) = await members()
        let found = await each(
            Dictionary(uniqueKeysWithValues: nodes.map { ($0, id) }), within: ClusterAdminLimits.searchWait,
            as: MessageReport.self
        ) { id in
            ("/api/v1/messages/\(id)", [])
        } local: { id in
            guard let report = try await local.message(id, nodeOnly: true) else {
                throw ProblemReport(404, "Not Found", "")
            }
            return report
        }
        let missing = Set(found.missing + dead).sorted()
        guard var report = ClusterMerge.message(nodes.compactMap { found.answers[$0] }) else {
            if let error = found.error { throw error }
            if missing.isEmpty { return nil }
            throw ProblemReport(
                503, "Service Unavailable",
                "not known to the nodes that answered; no answer from \(missing.joined(separator: ", "))")
        }
        report.incomplete = missing
        return report
    }

    package func messages(
        _ search: MessageSearch, limit: Int, cursor: String?, nodeOnly: Bool
    ) async throws -> MessageListReport {
        if nodeOnly { return try await local.messages(search, limit: limit, cursor: cursor, nodeOnly: true) }
        let (nodes, dead) = await members()
        let places = (try place(cursor)?.places ?? nodes.map { PageCursor.Place(node: $0, inner: "") })
            .filter { nodes.contains($0.node) }
        // Every node gives a part of the page, so that the newest of each are on the first one.
        let part = max(1, limit / max(1, places.count))
        let asked = places.prefix(limit)
        let found = await each(
            Dictionary(asked.map { ($0.node, $0.inner) }, uniquingKeysWith: { first, _ in first }),
            within: ClusterAdminLimits.searchWait, as: MessageListReport.self
        ) { inner in
            (
                "/api/v1/messages",
                [Self.parameter(search), ("limit", "\(part)")] + (inner.isEmpty ? [] : [("cursor", inner)])
            )
        } local: { inner in
            try await local.messages(search, limit: part, cursor: inner.isEmpty ? nil : inner, nodeOnly: true)
        }
        if found.answers.isEmpty, let error = found.error { throw error }
        var next: [PageCursor.Place] = []
        for place in asked {
            if let inner = found.answers[place.node]?.next {
                next.append(PageCursor.Place(node: place.node, inner: inner))
            }
        }
        next += places.dropFirst(limit)
        return MessageListReport(
            messages: ClusterMerge.messages(asked.compactMap { found.answers[$0.node]?.messages }),
            next: PageCursor(next).text, incomplete: Set(found.missing + dead).sorted())
    }

    // MARK: The cluster

    package func cluster(nodeOnly: Bool) async throws -> ClusterStatusReport {
        let own = await ownStatus()
        if nodeOnly { return own }
        let others = own.nodes.filter { $0.id != runtime.node && $0.state != .dead }.map(\.id)
        let found = await each(
            Dictionary(others.map { ($0, ()) }, uniquingKeysWith: { first, _ in first }),
            within: ClusterAdminLimits.answerWait, as: ClusterStatusReport.self
        ) { _ in
            ("/api/v1/cluster", [])
        } local: { _ in
            own
        }
        return ClusterMerge.cluster(
            own, others.compactMap { node in found.answers[node].map { (node, $0) } }, missing: found.missing)
    }

    /// The runtime's view, with what this node knows of itself.
    private func ownStatus() async -> ClusterStatusReport {
        var own = await runtime.status()
        let mine = await member(await local.health())
        if let place = own.nodes.firstIndex(where: { $0.id == runtime.node }) {
            own.nodes[place].version = mine.version
            own.nodes[place].messages = mine.messages
            own.nodes[place].diskUsedFraction = mine.diskUsedFraction
        }
        return own
    }

    package func drain(_ command: ClusterDrainCommand) async throws -> ClusterDrainReport {
        try await runtime.drain(
            node: command.node ?? runtime.node, deadline: command.deadline, exit: command.exit)
    }

    package func drainProgress(_ node: String?) async throws -> ClusterDrainReport? {
        try await runtime.drainProgress(node: node ?? runtime.node)
    }

    package func forget(_ node: String) async throws -> ClusterForgetReport {
        guard node != runtime.node else {
            throw ProblemReport(409, "Conflict", "\(node) is the node that answers: it is alive")
        }
        return try await runtime.forget(node: node)
    }

    package func recoverRegistry() async throws -> ClusterRecoveryReport { try await runtime.recoverRegistry() }
}
