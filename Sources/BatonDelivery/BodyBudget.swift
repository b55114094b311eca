// How much of the bodies read back from the spool a loop's transactions hold at a time.
import BatonCore
import BatonModel
import NIOCore

/// Counts octets of bodies read back for transactions of one loop. Bodies that waited in memory for their first attempt are the
/// queue's and not counted. Touched on the loop alone.
///
/// At `DeliveryConfiguration.bodyMemory` no further transaction is begun until one ends; large bodies (those sent fragment by
/// fragment) may take half of it, so that slow receivers of large mail do not hold up all other mail.
final class BodyBudget {
    /// What a read is counted as until its size is known, and at most unless it is streamed.
    static let whole = Limits.fragmentThreshold
    /// A streamed body has at most two fragments in memory.
    static let streamed = 2 * Limits.fragmentSize

    private(set) var held = 0
    private(set) var heldStreamed = 0

    /// Whether another transaction may be begun under `max` octets.
    func hasRoom(under max: Int) -> Bool { held == 0 || held + Self.whole <= max }

    /// Whether another body may be streamed under `max` octets.
    func mayStream(under max: Int) -> Bool { heldStreamed == 0 || heldStreamed + Self.streamed <= max / 2 }

    fileprivate func book(_ octets: Int, streamed: Bool) {
        held += octets
        if streamed { heldStreamed += octets }
    }
}

/// A transaction's part of the budget, given back when the transaction and its copies are gone. Made and ended on the loop.
final class BodyLease {
    private let budget: BodyBudget
    private var octets: Int
    private var isStreamed = false

    /// For a read whose size is not known yet.
    init(_ budget: BodyBudget) {
        self.budget = budget
        octets = BodyBudget.whole
        budget.book(octets, streamed: false)
    }

    deinit { budget.book(-octets, streamed: isStreamed) }

    /// What came.
    func settle(_ body: StoredBody) {
        budget.book(-octets, streamed: isStreamed)
        switch body {
        case .whole(let body):
            octets = body.bytes.storageCapacity
            isStreamed = false
        case .fragmented:
            octets = BodyBudget.streamed
            isStreamed = true
        }
        budget.book(octets, streamed: isStreamed)
    }
}
