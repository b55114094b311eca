// How an operation of the control plane fails: refused, or unknown. A conflict is an answer, not a failure.

package enum ControlFailure: Error, Hashable, Sendable, CustomStringConvertible {
    /// It certainly had and will have no effect.
    case refused(ControlRefusal, String)
    /// It may have had its effect, or may still have it: `commitRepeating` settles a transaction.
    case unknown(String)

    package var refusal: ControlRefusal? {
        if case .refused(let refusal, _) = self { refusal } else { nil }
    }

    package var isUnknown: Bool {
        if case .unknown = self { true } else { false }
    }

    package var description: String {
        switch self {
        case .refused(let refusal, let text): "refused (\(refusal)): \(text)"
        case .unknown(let text): "unknown outcome: \(text)"
        }
    }
}

package enum ControlRefusal: Hashable, Sendable {
    /// No member could be reached or had a quorum, in time.
    case unavailable
    /// The revision asked for is no longer kept.
    case compacted
    /// The lease does not exist, or no longer.
    case leaseGone
    /// Over a bound of ours or the store's, or not well-formed.
    case invalid
    /// User, password, certificate or permission.
    case denied
    /// The store has no space left.
    case noSpace
    /// Too many operations under way.
    case overloaded
    /// Another store answered than at first.
    case foreignStore
    /// A file of the local store fails its checksum or cannot be written.
    case damaged
    /// The plane was stopped.
    case stopped
}
