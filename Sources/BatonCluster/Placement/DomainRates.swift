// How many messages a second come in for a domain: the measure that spreads the large ones over several nodes.
import BatonCore

/// An exponentially decaying count per domain, by `PlacementLimits.rateSpan`. What this node takes in counts; a domain that
/// comes in through several nodes spreads a little later. Bounded: of a full table the slower half is forgotten, and counts
/// from zero again; that costs O(log n) per new domain, amortised.
package struct DomainRates: Sendable {
    private struct Entry {
        var count: Double
        var at: Instant
    }

    private let bound: Int
    private var entries: [UInt64: Entry] = [:]

    package init(bound: Int = PlacementLimits.ratedDomains) {
        self.bound = max(2, bound)
    }

    package var count: Int { entries.count }

    /// Messages a second of the domain now.
    package func rate(ofHash domain: UInt64, at now: Instant) -> Double {
        guard let entry = entries[domain] else { return 0 }
        return Self.decayed(entry, at: now) / PlacementLimits.rateSpan.seconds
    }

    /// One more message; the rate with it.
    package mutating func add(hash domain: UInt64, at now: Instant) -> Double {
        let before = entries[domain].map { Self.decayed($0, at: now) } ?? 0
        if before == 0, entries.count >= bound, entries[domain] == nil { forget(at: now) }
        entries[domain] = Entry(count: before + 1, at: now)
        return (before + 1) / PlacementLimits.rateSpan.seconds
    }

    private mutating func forget(at now: Instant) {
        let kept = entries.map { (key: $0.key, value: Self.decayed($0.value, at: now)) }
            .sorted { $0.value == $1.value ? $0.key < $1.key : $0.value > $1.value }.prefix(bound / 2)
        var next: [UInt64: Entry] = [:]
        next.reserveCapacity(bound)
        for item in kept { next[item.key] = Entry(count: item.value, at: now) }
        entries = next
    }

    /// e^(-t / span), by repeated squaring of (1 - t / 1024 span): no libm, and exact enough for a rate.
    private static func decayed(_ entry: Entry, at now: Instant) -> Double {
        let spans = max(0, (now - entry.at).seconds) / PlacementLimits.rateSpan.seconds
        guard spans < 40 else { return 0 }
        var factor = 1 - spans / 1_024
        for _ in 0..<10 { factor *= factor }
        return entry.count * factor
    }
}
