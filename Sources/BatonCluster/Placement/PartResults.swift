// The results of a message's parts, until they are one result for its client: a value.
import BatonModel

/// 250 once every part is durable; 451 if one can be stored nowhere, once all are known. Parts that are durable by then are delivered
/// all the same, and the client's next try repeats them: that counts.
struct PartResults: Sendable {
    private var left: Int
    private var own: StoredMessageRef?
    private var isAnyDurable = false
    private var refusal: SubmissionRefusal?

    /// `parts`: how many there are, at least one.
    init(parts: Int) { left = parts }

    /// The last part's brings the message's result, and whether it may be delivered twice; the first reason for a refusal prevails.
    mutating func finished(_ outcome: SubmissionOutcome) -> (outcome: SubmissionOutcome, mayBeDoubled: Bool)? {
        left -= 1
        switch outcome {
        case .durable(let ref):
            isAnyDurable = true
            if ref != .elsewhere { own = own ?? ref }
        case .refused(let reason): refusal = refusal ?? reason
        }
        guard left == 0 else { return nil }
        guard let refusal else { return (.durable(own ?? .elsewhere), false) }
        return (.refused(refusal), isAnyDurable)
    }
}
