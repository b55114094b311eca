// How many messages a second come in, for a domain and for the node: what spreads the large ones over several nodes.
import BatonCore

/// An exponentially decaying count, by `PlacementLimits.rateSpan`.
struct DecayingRate: Sendable {
    private var count = 0.0
    private var at = Instant.epoch

    /// Messages a second now.
    func rate(at now: Instant) -> Double { decayed(at: now) / PlacementLimits.rateSpan.seconds }

    /// One more message; the rate with it.
    mutating func add(at now: Instant) -> Double {
        count = decayed(at: now) + 1
        at = now
        return count / PlacementLimits.rateSpan.seconds
    }

    /// e^(-t / span), by repeated squaring of (1 - t / 1024 span): no libm, and exact enough for a rate.
    private func decayed(at now: Instant) -> Double {
        let spans = max(0, (now - at).seconds) / PlacementLimits.rateSpan.seconds
        guard count > 0, spans < 40 else { return 0 }
        var factor = 1 - spans / 1_024
        for _ in 0..<10 { factor *= factor }
        return count * factor
    }
}

/// The rate of each domain. What this node takes in counts; a domain that comes in through several nodes spreads a little later.
/// Bounded: of a full table the slower half is forgotten, and counts from zero again; that costs O(log n) per new domain,
/// amortised.
package struct DomainRates: Sendable {
    private let bound: Int
    private var entries: [UInt64: DecayingRate] = [:]

    package init(bound: Int = PlacementLimits.ratedDomains) {
        self.bound = max(2, bound)
    }

    package var count: Int { entries.count }

    /// Messages a second of the domain now.
    package func rate(ofHash domain: UInt64, at now: Instant) -> Double { entries[domain]?.rate(at: now) ?? 0 }

    /// One more message; the rate with it.
    package mutating func add(hash domain: UInt64, at now: Instant) -> Double {
        if entries.count >= bound, entries[domain] == nil { forget(at: now) }
        return entries[domain, default: DecayingRate()].add(at: now)
    }

    private mutating func forget(at now: Instant) {
        let kept = entries.map { (key: $0.key, value: $0.value, rate: $0.value.rate(at: now)) }
            .sorted { $0.rate == $1.rate ? $0.key < $1.key : $0.rate > $1.rate }.prefix(bound / 2)
        var next: [UInt64: DecayingRate] = [:]
        next.reserveCapacity(bound)
        for item in kept { next[item.key] = item.value }
        entries = next
    }
}
