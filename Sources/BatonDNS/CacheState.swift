// Typed answers with their TTLs, and who waits for which look-up. A pure value.
import BatonCore
import DequeModule

/// An answer and how long it may be used.
package struct CachedAnswer: Sendable {
    package let answer: DNSAnswer
    package let expires: Instant
}

/// One loop's answers: positive, negative (RFC 2308) and failed ones, bounded by octets, and the look-ups under way.
///
/// At its bound the cache drops the oldest answer that was not used since it was last passed over (second chance). A TTL of
/// 0 is never kept, but one look-up serves everyone who asked while it was under way.
package struct CacheState: Sendable {
    package enum Found: Sendable {
        case hit(CachedAnswer)
        /// The waiter was added; the question has to be asked.
        case ask
        /// The waiter was added to a look-up under way.
        case joined
    }

    private struct Entry: Sendable {
        let value: CachedAnswer
        let cost: Int
        var used: Bool
    }

    private var entries: [DNSQuestion: Entry] = [:]
    /// Keys in order of eviction. Exactly one place for each entry.
    private var order = Deque<DNSQuestion>()
    private var underWay: [DNSQuestion: [PlanKey]] = [:]
    private let capacity: Int

    /// Estimated octets of all entries; at most the capacity.
    package private(set) var cost = 0
    package private(set) var evicted: UInt64 = 0

    package init(capacity: Int = DNSLimits.cacheBytes) {
        self.capacity = capacity
    }

    package var count: Int { entries.count }
    package var lookupsUnderWay: Int { underWay.count }

    package mutating func find(_ question: DNSQuestion, for waiter: PlanKey, at now: Instant) -> Found {
        if let entry = entries[question], now < entry.value.expires {
            entries[question]?.used = true
            return .hit(entry.value)
        }
        let joined = underWay[question] != nil
        underWay[question, default: []].append(waiter)
        return joined ? .joined : .ask
    }

    /// Keeps an answer and says who waited for it; nobody if it was not asked for, and then it is not kept.
    package mutating func receive(_ reply: DNSReply, at now: Instant) -> (waiters: [PlanKey], value: CachedAnswer) {
        let span = Self.lifetime(of: reply.answer)
        let value = CachedAnswer(answer: reply.answer, expires: now + span)
        guard let waiters = underWay.removeValue(forKey: reply.question) else { return ([], value) }
        if span > .zero { store(value, for: reply.question, at: now) }
        return (waiters, value)
    }

    /// How long an answer is kept; zero for not at all.
    package static func lifetime(of answer: DNSAnswer) -> TimeSpan {
        switch answer.content {
        case .addresses, .exchangers, .other:
            let ttl = TimeSpan.seconds(Int64(answer.ttl ?? 0))
            return ttl == .zero ? .zero : min(DNSLimits.ttlMax, max(DNSLimits.ttlMin, ttl))
        case .noData, .noSuchName:
            guard let ttl = answer.ttl else { return DNSLimits.negativeDefault }
            return min(DNSLimits.negativeMax, .seconds(Int64(ttl)))
        case .failed(let failure):
            return failure.isOurs ? .zero : DNSLimits.failureSpan
        }
    }

    private mutating func store(_ value: CachedAnswer, for question: DNSQuestion, at now: Instant) {
        let cost = Self.cost(of: question, value.answer)
        guard cost <= capacity else { return }
        if let old = entries[question] {
            self.cost -= old.cost
        } else {
            order.append(question)
        }
        entries[question] = Entry(value: value, cost: cost, used: false)
        self.cost += cost
        evict(at: now)
    }

    private mutating func evict(at now: Instant) {
        // Every pass over a used entry clears its mark, so this ends after two rounds at most.
        while cost > capacity, let oldest = order.popFirst() {
            guard var entry = entries[oldest] else { continue }
            if entry.used, now < entry.value.expires {
                entry.used = false
                entries[oldest] = entry
                order.append(oldest)
            } else {
                entries[oldest] = nil
                cost -= entry.cost
                evicted += 1
            }
        }
    }

    private static func cost(of question: DNSQuestion, _ answer: DNSAnswer) -> Int {
        var octets = 256 + 2 * question.name.count
        switch answer.content {
        case .addresses(let addresses): octets += 64 * addresses.count
        case .exchangers(let records): octets += records.count * 112
        case .other, .noData, .noSuchName, .failed: break
        }
        return octets
    }
}
