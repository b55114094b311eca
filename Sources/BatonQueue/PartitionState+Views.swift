// The queue as rows: summary, list, show.
import BatonCore
import BatonModel

extension PartitionState {
    /// Totals from counters, and one page of rows: sites first, then destinations that have none. Rows without jobs are left
    /// out. A site's row adds up its destinations.
    func summary(cursor: UInt64?, limit: Int) -> QueueSummary {
        var rows: [QueueSiteRow] = []
        let wanted = min(max(limit, 1), QueueLimits.pageRows)
        var looked = 0
        var position = cursor ?? 0
        let sitesEnd = UInt64(sites.highWater)
        let end = UInt64(1) << 32 + UInt64(destinations.highWater)
        while position < end, rows.count < wanted, looked < QueueLimits.listScan {
            if position < UInt64(1) << 32 {
                guard position < sitesEnd else {
                    position = UInt64(1) << 32
                    continue
                }
                let index = UInt32(position)
                if sites.exists(index) {
                    looked += sites[index].destinations
                    if let row = row(ofSite: index) { rows.append(row) }
                }
            } else {
                let index = UInt32(position - UInt64(1) << 32)
                if destinations.exists(index), destinations[index].site == none, destinations[index].counts.all > 0 {
                    rows.append(row(ofDestination: index))
                }
            }
            looked += 1
            position += 1
        }
        return QueueSummary(totals: totals, rows: rows, next: position < end ? position : nil)
    }

    var totals: QueueTotals {
        var totals = Self.totals(jobs)
        totals.ready -= blockedReady
        totals.deferred += blockedReady
        return totals
    }

    private static func totals(_ counts: JobCounts) -> QueueTotals {
        var totals = QueueTotals()
        totals.ready = counts.ready
        totals.deferred = counts.waiting
        totals.suspended = counts.suspended
        totals.inFlight = counts.inFlight
        totals.damaged = counts.damaged
        return totals
    }

    private func totals(ofDestination index: UInt32) -> QueueTotals {
        var totals = Self.totals(destinations[index].counts)
        if destinations[index].isBlocked {
            totals.deferred += totals.ready
            totals.ready = 0
        }
        return totals
    }

    private func oldestArrival(_ index: UInt32) -> Instant {
        // The chain's end is the job that has been here longest.
        let last = destinations[index].lastJob
        return last == none ? .distantFuture : messages[slab[last].message].arrival
    }

    private func row(ofSite index: UInt32) -> QueueSiteRow? {
        var sum = QueueTotals()
        var domains = 0
        var oldest = Instant.distantFuture
        var reply: UInt32 = sites[index].lastReply
        var name = sites[index].name
        var destination = sites[index].firstDestination
        while destination != none {
            if destinations[destination].counts.all > 0 {
                sum += totals(ofDestination: destination)
                domains += 1
                oldest = min(oldest, oldestArrival(destination))
                if destinations[destination].reply != 0 { reply = destinations[destination].reply }
                if name.isEmpty { name = destinations[destination].domain.bytes }
            }
            destination = destinations[destination].nextOfSite
        }
        guard domains > 0 else { return nil }
        return QueueSiteRow(
            name: name, domains: domains, totals: sum, oldestArrival: oldest, lastReply: replies[reply])
    }

    private func row(ofDestination index: UInt32) -> QueueSiteRow {
        QueueSiteRow(
            name: destinations[index].domain.bytes, domains: 1, totals: totals(ofDestination: index),
            oldestArrival: oldestArrival(index), lastReply: replies[destinations[index].reply])
    }

    // MARK: Recipients

    /// A page in order of slots. It looks at `QueueLimits.listScan` slots at most, so it may be short or empty and yet have a
    /// next one. Mail that comes or goes between pages may be missed or not; nothing is shown twice.
    func list(_ filter: QueueFilter, limit: Int, cursor: UInt64?) -> QueuePage {
        let wanted = min(max(limit, 1), QueueLimits.pageRows)
        let sender = filter.nullSender ? SenderHash.address(nil) : filter.sender.map { SenderHash.address($0) }
        let senderDomain = filter.senderDomain.map { SenderHash.domain($0) }
        var rows: [QueueRow] = []
        let start = UInt32(clamping: cursor ?? 0)
        var slot = start
        let end = slab.highWater
        let lookEnd = end - min(start, end) > UInt32(QueueLimits.listScan) ? start + UInt32(QueueLimits.listScan) : end
        while slot < lookEnd, rows.count < wanted {
            defer { slot += 1 }
            guard let state = visibleState(slot) else { continue }
            let message = slab[slot].message
            let destination = slab[slot].destination
            if let wanted = filter.state, wanted != state { continue }
            if let domain = filter.domain, destinations[destination].domain != domain { continue }
            if let site = filter.site, siteName(destination) != site { continue }
            if let sender, messages[message].senderHash != sender { continue }
            if let senderDomain, messages[message].senderDomainHash != senderDomain { continue }
            rows.append(row(ofJob: slot, state))
        }
        return QueuePage(rows: rows, next: slot < end ? UInt64(slot) : nil)
    }

    /// Its live recipients, part by part; empty if the message is not queued here.
    func show(_ id: MessageID) -> [QueueRow] {
        messages.all(id).flatMap { message in
            var rows: [QueueRow] = []
            var job = messages[message].firstJob
            while job != none {
                if let state = visibleState(job) { rows.append(row(ofJob: job, state)) }
                job = slab[job].nextOfMessage
            }
            return rows.sorted { $0.recipient < $1.recipient }
        }
    }

    private func visibleState(_ job: UInt32) -> QueueJobState? {
        switch slab[job].state {
        case .ready: destinations[slab[job].destination].isBlocked ? .deferred : .ready
        case .waiting: .deferred
        case .suspended: .suspended
        case .inFlight, .settling: .inFlight
        case .damaged: .damaged
        case .free, .timer: nil
        }
    }

    private func row(ofJob job: UInt32, _ state: QueueJobState) -> QueueRow {
        let message = slab[job].message
        let destination = slab[job].destination
        return QueueRow(
            message: messages[message].id, ref: messages[message].ref, recipient: slab[job].recipient,
            envelope: messages.resident(of: message)?.envelope, domain: destinations[destination].domain,
            site: siteName(destination) ?? [], state: state, attempts: slab[job].attempts,
            arrival: messages[message].arrival, due: due(of: job), lastReply: replies[slab[job].reply])
    }

    private func due(of job: UInt32) -> Instant? {
        switch slab[job].state {
        case .waiting, .suspended: return Instant(nanoseconds: slab[job].due)
        case .ready:
            let timer = destinations[slab[job].destination].timer
            guard destinations[slab[job].destination].isBlocked, timer != none else { return nil }
            return Instant(nanoseconds: slab[timer].due)
        case .free, .inFlight, .settling, .damaged, .timer: return nil
        }
    }
}
