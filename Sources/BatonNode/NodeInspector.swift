// Answers the admin HTTP from the node's parts.
import BatonCore
import BatonDNS
import BatonDelivery
import BatonIngress
import BatonModel
import BatonQueue
import BatonRuntime
import BatonSpool
import Logging
import NIOCore
import Synchronization

/// `NodeInspecting` for this node: queues are asked loop by loop, histories come from the spool and the event log.
struct NodeInspector: NodeInspecting {
    let node: RelayNode
    /// Nil: a node on its own.
    var cluster: (any ClusterHealth)?

    // MARK: Health

    func health() async -> HealthReport {
        let stats = node.spool.stats
        var reasons = stats.degradedReasons
        if node.events.isFull { reasons.append("event log cannot be written: new mail is refused") }
        let resolver = node.resolver.status
        if resolver.isDown { reasons.append("no resolver answers") }
        if case .stripped(let why) = resolver.dnssec { reasons.append("DNSSEC validation is off: \(why)") }
        reasons += cluster?.reasons() ?? []
        let state: HealthReport.State =
            switch node.phase.withLock({ $0 }) {
            case .starting: .starting
            case .stopping: .draining
            // No mail can be taken any more; what is queued is still delivered.
            case .serving where stats.laneDead: .failed
            case .serving where cluster?.isDraining == true: .draining
            case .serving where cluster?.acceptsMail == false: .cutOff
            case .serving: reasons.isEmpty ? .serving : .degraded
            }
        return HealthReport(
            state: state, node: node.configuration.node.id, version: BatonVersion.current,
            copies: cluster?.copies ?? 1,
            disk: .init(
                freeBytes: stats.freeBytes, totalBytes: stats.totalBytes,
                minFreeBytes: UInt64(max(0, node.current.get().spool.minFree))), reasons: reasons)
    }

    func storedMessages() async -> Int { node.spool.stats.messages }

    /// What other nodes are told of this one.
    func cluster(nodeOnly: Bool) async throws -> ClusterStatusReport {
        let health = await health()
        let parts = cluster?.parts() ?? (takeovers: [], limits: [])
        return ClusterStatusReport(
            name: nil, copies: health.copies, nodes: [await member(health)], takeovers: parts.takeovers,
            limits: parts.limits)
    }

    // MARK: Queue

    func queue(_ filter: AdminFilter) async throws -> QueueReport {
        var totals = QueueTotals()
        var connections: [String: Int] = [:]
        for loop in node.loops {
            for status in try await loop.dispatcher.siteStatus().get() {
                connections[text(status.site), default: 0] += status.connections
            }
        }
        // Each partition gives a page of its rows; a cursor names the partition and the place in it.
        var sites: [String: QueueReport.Site] = [:]
        var order: [String] = []
        var next: String?
        let (start, inner) = try place(filter.cursor)
        let now = node.time.now()
        for (index, loop) in node.loops.enumerated() {
            let wanted = index >= start && next == nil
            let summary = await loop.partition.summary(
                cursor: index == start ? inner : nil, limit: wanted ? max(1, filter.limit - order.count) : 1)
            totals += summary.totals
            guard wanted else { continue }
            for row in summary.rows {
                let name = text(row.name)
                if let wantedSite = filter.site, wantedSite != name { continue }
                var site =
                    sites[name]
                    ?? QueueReport.Site(
                        site: name, domains: 0, ready: 0, deferred: 0, suspended: 0, inFlight: 0, oldestSeconds: 0,
                        connections: connections[name] ?? 0, lastError: nil)
                if sites[name] == nil { order.append(name) }
                site.domains += row.domains
                site.ready += row.totals.ready
                site.deferred += row.totals.deferred
                site.suspended += row.totals.suspended
                site.inFlight += row.totals.inFlight
                site.oldestSeconds = max(site.oldestSeconds, Int(max(0, (now - row.oldestArrival).seconds)))
                site.lastError = site.lastError ?? row.lastReply.map(Self.line)
                sites[name] = site
            }
            if let cursor = summary.next {
                next = "\(index):\(cursor)"
            } else if order.count >= filter.limit, index + 1 < node.loops.count {
                next = "\(index + 1):"
            }
        }
        return QueueReport(
            total: QueueTotalReport(
                ready: totals.ready, deferred: totals.deferred, suspended: totals.suspended, inFlight: totals.inFlight,
                damaged: totals.damaged), sites: order.compactMap { sites[$0] }, next: next)
    }

    func queuedMessages(_ filter: AdminFilter) async throws -> QueueListReport {
        var queueFilter = QueueFilter(domain: filter.domain, site: filter.site.map { Array($0.utf8) })
        switch filter.sender {
        case .address(let address): queueFilter.sender = address
        case .domain(let domain): queueFilter.senderDomain = domain
        case .null: queueFilter.nullSender = true
        case nil: break
        }
        if let state = filter.state {
            let known: [QueueJobState] = [.ready, .deferred, .suspended, .inFlight, .damaged]
            guard let found = known.first(where: { $0.name == state }) else {
                throw ProblemReport(400, "Bad Request", "unknown state \(state)")
            }
            queueFilter.state = found
        }
        var rows: [QueueListReport.Row] = []
        var (index, cursor) = try place(filter.cursor)
        while index < node.loops.count, rows.count < filter.limit {
            let page = await node.loops[index].partition.list(
                queueFilter, limit: filter.limit - rows.count, cursor: cursor)
            for row in page.rows { rows.append(await report(row)) }
            cursor = page.next
            if cursor == nil { index += 1 }
        }
        let next = index < node.loops.count ? "\(index):\(cursor.map { "\($0)" } ?? "")" : nil
        return QueueListReport(messages: rows, next: next)
    }

    private func report(_ row: QueueRow) async -> QueueListReport.Row {
        var envelope = row.envelope
        if envelope == nil { envelope = await read(row.ref) }
        let recipients = envelope?.recipients ?? []
        let index = Int(row.recipient)
        return QueueListReport.Row(
            id: row.message.description, sender: envelope?.sender?.description ?? "",
            recipient: index < recipients.count ? recipients[index].address.description : "@\(row.domain)",
            site: text(row.site), state: row.state.name, attempts: Int(row.attempts),
            arrived: TimeText.rfc3339(row.arrival), due: row.due.map { TimeText.rfc3339($0) },
            lastReply: row.lastReply.map(Self.line))
    }

    // MARK: Messages

    func message(_ id: MessageID, nodeOnly: Bool) async throws -> MessageReport? {
        var rows: [QueueRow] = []
        for loop in node.loops { rows += await loop.partition.show(id) }
        let records = try await node.eventSearch.events(of: id)
        guard !rows.isEmpty || !records.isEmpty else { return nil }
        var envelopes: [StoredMessageRef: Envelope] = [:]
        for row in rows where envelopes[row.ref] == nil {
            if let envelope = row.envelope {
                envelopes[row.ref] = envelope
            } else {
                envelopes[row.ref] = await read(row.ref)
            }
        }
        return MessageTimeline(
            id: id, node: node.configuration.node.id, rows: rows, envelopes: envelopes, events: records
        )
        .report()
    }

    func messages(
        _ search: MessageSearch, limit: Int, cursor: String?, nodeOnly: Bool
    ) async throws -> MessageListReport {
        let key: EventSearch.Key =
            switch search {
            case .recipient(let address): .recipient(address.description)
            case .sender(.address(let address)): .sender(address.description)
            case .sender(.domain(let domain)): .senderDomain(domain.description)
            case .sender(.null): .sender("")
            case .messageID(let text): .messageID(text)
            }
        let found = try await node.eventSearch.messages(matching: key, limit: limit, before: cursor)
        var reports: [MessageReport] = []
        for id in found.ids {
            if var report = try await message(id, nodeOnly: nodeOnly) {
                for index in report.recipients.indices { report.recipients[index].attempts = [] }
                reports.append(report)
            }
        }
        return MessageListReport(messages: reports, next: found.next)
    }

    // MARK: Verbs

    func perform(_ command: AdminCommand) async throws -> OperationReport { try await node.perform(command) }

    func operation(_ id: String) async throws -> OperationReport? {
        var report = OperationReport(operation: id, verb: "", count: 0, inFlight: 0, done: true)
        for part in id.split(separator: ".") {
            let numbers = part.split(separator: "-")
            guard numbers.count == 2, let index = Int(numbers[0]), let number = UInt64(numbers[1]),
                node.loops.indices.contains(index),
                let progress = await node.loops[index].partition.operation(number)
            else { return nil }
            report.count += progress.count
            report.inFlight += progress.inFlight
            report.done = report.done && progress.done
            report.verb = "\(progress.verb)"
        }
        return report.verb.isEmpty ? nil : report
    }

    static func selector(_ selector: AdminSelector) -> QueueSelector {
        switch selector {
        case .message(let id): .message(id)
        case .domain(let domain): .domain(domain)
        case .site(let name): .site(Array(name.utf8))
        case .sender(let address): .sender(address)
        case .nullSender: .sender(nil)
        case .senderDomain(let domain): .senderDomain(domain)
        case .all: .all
        }
    }

    // MARK: Helpers

    private func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

    /// `partition:cursor`; both may be empty.
    private func place(_ cursor: String?) throws -> (Int, UInt64?) {
        guard let cursor, !cursor.isEmpty else { return (0, nil) }
        let parts = cursor.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2, let index = Int(parts[0]), index >= 0 else {
            throw ProblemReport(400, "Bad Request", "unknown cursor")
        }
        return (index, UInt64(parts[1]))
    }

    private func read(_ ref: StoredMessageRef) async -> Envelope? {
        await withCheckedContinuation { continuation in
            let once = OneRead { outcome in
                if case .message(let envelope, _) = outcome {
                    continuation.resume(returning: envelope)
                } else {
                    continuation.resume(returning: nil)
                }
            }
            node.spool.read([BodyRead(ref: ref, part: .message, token: 0)], for: once)
        }
    }

    /// `550 5.1.1 no such user`, in one line.
    static func line(_ reply: SMTPReply) -> String {
        let text = String(decoding: reply.text, as: UTF8.self).split(whereSeparator: \.isNewline).joined(separator: " ")
        let status = reply.status.map { "\($0) " } ?? ""
        return reply.code == 0 ? "\(status)\(text)" : "\(reply.code) \(status)\(text)"
    }
}

/// The receiver of a single read, for the admin side only.
private final class OneRead: BodyReadReceiving {
    private let done: @Sendable (BodyReadOutcome) -> Void

    init(_ done: @escaping @Sendable (BodyReadOutcome) -> Void) {
        self.done = done
    }

    func bodiesRead(_ results: [BodyReadResult]) {
        if let result = results.first { done(result.outcome) }
    }
}
