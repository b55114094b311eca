// Which keys a recovery of the registry writes (docs/decisions/0010). Pure.
import BatonCore
import BatonModel
import BatonSpool

/// What becomes of a key.
package enum RegistryStep: Hashable, Sendable {
    /// `replaces`: the revision of the key that stands there; 0: none does.
    case write(SegmentKey, replaces: UInt64)
    /// Of a segment without a copy on any disk. A file of it that turns up later stays, for the next recovery; what a cleaning moved
    /// out of it counts (`MoveFate.gone`).
    case remove(SegmentID, replaces: UInt64)

    package var id: SegmentID {
        switch self {
        case .write(let key, _): key.id
        case .remove(let id, _): id
        }
    }

    package var replaces: UInt64 {
        switch self {
        case .write(_, let revision), .remove(_, let revision): revision
        }
    }
}

package enum RegistryRebuild {
    /// In the order of their segments, removals last.
    ///
    /// - Parameter keys: what stands in the registry.
    /// - Parameter live: the runs that are registered.
    package static func steps(
        _ merge: RegistryMerge, over keys: [SegmentKey], live: Set<Drainer>, isSetBack: Bool
    ) -> [RegistryStep] {
        var known: [SegmentID: SegmentKey] = [:]
        for key in keys { known[key.id] = key }
        // Its writer lives: it is being registered at this moment.
        func isBeingWritten(_ id: SegmentID) -> Bool {
            live.contains(Drainer(node: id.writer, incarnation: id.incarnation))
        }
        var steps: [RegistryStep] = []
        for id in merge.segments where !isBeingWritten(id) {
            let there = known[id]
            // Finished is final: no older registry says it of what lives.
            if let there, !isSetBack || there.state == .finished { continue }
            guard let key = merge.key(of: id, there: there) else { continue }
            steps.append(.write(key, replaces: there?.revision ?? 0))
        }
        guard isSetBack else { return steps }
        let found = Set(merge.segments)
        for key in keys where key.state != .finished && !found.contains(key.id) && !isBeingWritten(key.id) {
            steps.append(.remove(key.id, replaces: key.revision))
        }
        return steps
    }
}
