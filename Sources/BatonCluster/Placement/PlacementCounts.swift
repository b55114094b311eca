// Counters of placement.
import Metrics

/// Made once per node; cheap to add to from any thread.
package struct PlacementCounts: Sendable {
    private let counters: [SubmitCount: Counter]

    package init() {
        var made: [SubmitCount: Counter] = [:]
        for count in SubmitCount.allCases { made[count] = Counter(label: Self.label(count)) }
        counters = made
    }

    static func label(_ count: SubmitCount) -> String {
        switch count {
        case .placed: "baton_placement_placed_total"
        case .fellBack: "baton_placement_fallbacks_total"
        case .held: "baton_placement_held_total"
        case .withdrawn: "baton_placement_withdrawn_total"
        case .released: "baton_placement_released_total"
        case .maybeDuplicate: "baton_maybe_duplicate_total"
        }
    }

    func add(_ count: SubmitCount, _ amount: Int = 1) { counters[count]?.increment(by: Int64(amount)) }
}
