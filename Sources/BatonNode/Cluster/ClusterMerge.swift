// How the answers of several nodes become one: totals, sites, a message's recipients, an operation's progress. Pure.
import BatonCore

extension QueueReport {
    /// Two pages of a listing as one: the totals are the later one's, a site that stands on both is added up.
    package static func joined(_ first: QueueReport, _ second: QueueReport) -> QueueReport {
        var all = second
        all.sites = first.sites
        var index: [String: Int] = [:]
        for (place, site) in first.sites.enumerated() { index[site.site] = place }
        for site in second.sites {
            if let place = index[site.site] {
                ClusterMerge.add(site, to: &all.sites[place])
            } else {
                index[site.site] = all.sites.count
                all.sites.append(site)
            }
        }
        all.incomplete = Set(first.incomplete + second.incomplete).sorted()
        return all
    }
}

enum ClusterMerge {
    // MARK: Queue

    static func add(_ other: QueueTotalReport, to total: inout QueueTotalReport) {
        total.ready += other.ready
        total.deferred += other.deferred
        total.suspended += other.suspended
        total.inFlight += other.inFlight
        total.damaged += other.damaged
    }

    /// The same site of two nodes: sums, the oldest age, any error.
    static func add(_ other: QueueReport.Site, to site: inout QueueReport.Site) {
        site.domains += other.domains
        site.ready += other.ready
        site.deferred += other.deferred
        site.suspended += other.suspended
        site.inFlight += other.inFlight
        site.oldestSeconds = max(site.oldestSeconds, other.oldestSeconds)
        site.connections += other.connections
        site.lastError = site.lastError ?? other.lastError
    }

    /// One node's page of sites: where the node goes on (nil: finished).
    struct SitePage {
        var node: String
        /// The cursor that it was asked with; empty: from the start.
        var start: String
        var sites: [QueueReport.Site]
        var next: String?
    }

    /// Pages of several nodes as one of at most `limit` sites. The page of a node that does not fit is left for the next time,
    /// and so are those behind it; the first one always fits.
    static func sites(_ pages: [SitePage], limit: Int) -> (sites: [QueueReport.Site], next: PageCursor) {
        var merged: [QueueReport.Site] = []
        var index: [String: Int] = [:]
        var left: [PageCursor.Place] = []
        var isFull = false
        for page in pages {
            let fresh = page.sites.count { index[$0.site] == nil }
            isFull = isFull || (!merged.isEmpty && merged.count + fresh > limit)
            if isFull {
                left.append(PageCursor.Place(node: page.node, inner: page.start))
                continue
            }
            for site in page.sites {
                if let place = index[site.site] {
                    add(site, to: &merged[place])
                } else {
                    index[site.site] = merged.count
                    merged.append(site)
                }
            }
            if let next = page.next { left.append(PageCursor.Place(node: page.node, inner: next)) }
        }
        return (merged, PageCursor(left))
    }

    // MARK: Messages

    private static let finals: Set<String> = ["delivered", "bounced", "expired", "admin_bounced"]
    private static let finalEvents: Set<String> = ["Delivery", "Bounce", "Expiration", "AdminBounce"]
    /// Of live states the one that says most; a node that knows only the Reception says nothing.
    private static let live = ["in_flight", "ready", "deferred", "suspended", "damaged"]

    /// Lower wins.
    private static func rank(_ state: String) -> Int {
        if finals.contains(state) { return 0 }
        return live.firstIndex(of: state).map { $0 + 1 } ?? live.count + 1
    }

    /// What several nodes know of one message; nil for none. Final wins over live, and of two finals the earlier: the events of
    /// a recipient's end share one id, and whoever reads the event log keeps the first.
    static func message(_ reports: [MessageReport]) -> MessageReport? {
        guard var merged = reports.first else { return nil }
        for other in reports.dropFirst() { add(other, to: &merged) }
        return merged
    }

    private static func add(_ other: MessageReport, to merged: inout MessageReport) {
        let mine = merged.recipients.map { rank($0.state) }.min() ?? Int.max
        let theirs = other.recipients.map { rank($0.state) }.min() ?? Int.max
        // The node named is one that has it in its queue, else one that has its end.
        let isLive = { (report: MessageReport) in report.recipients.contains { live.contains($0.state) } }
        if isLive(other) != isLive(merged) ? isLive(other) : theirs < mine { merged.node = other.node }
        if merged.sender.isEmpty { merged.sender = other.sender }
        if merged.messageId.isEmpty { merged.messageId = other.messageId }
        if merged.size == 0 { merged.size = other.size }
        if merged.client.isEmpty { merged.client = other.client }
        if merged.user.isEmpty { merged.user = other.user }
        if merged.envid.isEmpty { merged.envid = other.envid }
        var index: [String: Int] = [:]
        for (place, recipient) in merged.recipients.enumerated() { index[recipient.recipient] = place }
        for recipient in other.recipients {
            if let place = index[recipient.recipient] {
                add(recipient, to: &merged.recipients[place])
            } else {
                index[recipient.recipient] = merged.recipients.count
                merged.recipients.append(recipient)
            }
        }
    }

    private static func add(_ other: MessageReport.Recipient, to merged: inout MessageReport.Recipient) {
        let attempts = attempts(merged.attempts + other.attempts)
        let bothFinal = finals.contains(merged.state) && finals.contains(other.state)
        let first = attempts.first { finalEvents.contains($0.type) }
        let othersEnd = bothFinal && first != nil && !merged.attempts.contains { $0 == first }
        if rank(other.state) < rank(merged.state) || othersEnd {
            merged.state = other.state
            merged.nextDue = other.nextDue
            if !other.site.isEmpty { merged.site = other.site }
        }
        if merged.site.isEmpty { merged.site = other.site }
        if finals.contains(merged.state) { merged.nextDue = nil }
        merged.attemptsMade = max(merged.attemptsMade, other.attemptsMade)
        merged.attempts = attempts
    }

    /// In the order of time; of those that the event log gives one id (an end, or the same attempt's same event) the first.
    private static func attempts(_ all: [AttemptReport]) -> [AttemptReport] {
        struct Key: Hashable {
            var type: String
            var attempt: Int
        }
        var seen: Set<Key> = []
        return all.enumerated().sorted { ($0.element.time, $0.offset) < ($1.element.time, $1.offset) }.map(\.element)
            .filter { attempt in
                let isEnd = finalEvents.contains(attempt.type)
                return seen.insert(Key(type: isEnd ? "end" : attempt.type, attempt: isEnd ? 0 : attempt.attempt))
                    .inserted
            }
    }

    /// Pages of searches: a message that several nodes know is one, newest first.
    static func messages(_ pages: [[MessageReport]]) -> [MessageReport] {
        var groups: [String: [MessageReport]] = [:]
        for report in pages.joined() { groups[report.id, default: []].append(report) }
        return groups.values.compactMap(message).sorted { $0.id > $1.id }
    }

    // MARK: Verbs

    /// An operation that goes on in several nodes. `parts`: each node's id with its own progress.
    static func operation(
        _ parts: [(node: String, report: OperationReport)], verb: String, incomplete: [String]
    ) -> OperationReport {
        var merged = OperationReport(
            operation: "", verb: verb, count: 0, inFlight: 0, done: true, incomplete: incomplete.sorted())
        for part in parts {
            merged.count += part.report.count
            merged.inFlight += part.report.inFlight
            merged.done = merged.done && part.report.done
            if merged.verb.isEmpty { merged.verb = part.report.verb }
        }
        merged.operation =
            PageCursor(parts.map { PageCursor.Place(node: $0.node, inner: $0.report.operation) }).text ?? ""
        return merged
    }

    // MARK: The cluster

    /// The view of the node that is asked, with what each other node says of itself.
    static func cluster(
        _ own: ClusterStatusReport, _ others: [(node: String, report: ClusterStatusReport)], missing: [String]
    ) -> ClusterStatusReport {
        var merged = own
        for (node, report) in others {
            guard let place = merged.nodes.firstIndex(where: { $0.id == node }),
                let itself = report.nodes.first(where: { $0.id == node })
            else { continue }
            merged.nodes[place].messages = itself.messages
            merged.nodes[place].diskUsedFraction = itself.diskUsedFraction
            merged.nodes[place].version = itself.version ?? merged.nodes[place].version
            // Each node reports the take-overs and limits in which it has a part.
            merged.takeovers += report.takeovers.filter { $0.by == node && !own.takeovers.contains($0) }
            merged.limits += report.limits.filter { $0.node == node && !own.limits.contains($0) }
        }
        merged.nodes.sort { $0.id < $1.id }
        merged.takeovers = Array(
            merged.takeovers.sorted { ($0.since, $0.node, $0.by) < ($1.since, $1.node, $1.by) }.prefix(
                ClusterAdminLimits.reportRows))
        merged.limits = Array(
            merged.limits.sorted { ($0.site, $0.kind, $0.node) < ($1.site, $1.kind, $1.node) }.prefix(
                ClusterAdminLimits.reportRows))
        merged.incomplete = missing.sorted()
        return merged
    }
}
