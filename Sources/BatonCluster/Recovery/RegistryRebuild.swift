// Which keys a recovery of the registry writes (docs/decisions/0010). Pure.
import BatonCore
import BatonModel
import BatonSpool

/// A key to be written.
package struct RegistryStep: Hashable, Sendable {
    package var key: SegmentKey
    /// The revision of the key that stands there; 0: none does.
    package var replaces: UInt64
    /// Nodes whose copies are left out.
    package var leftOut: [String] = []
}

package enum RegistryRebuild {
    /// In the order of their segments.
    ///
    /// - Parameter keys: what stands in the registry.
    /// - Parameter live: the runs that are registered.
    package static func steps(
        _ merge: RegistryMerge, over keys: [SegmentKey], live: Set<Drainer>, isSetBack: Bool
    ) -> [RegistryStep] {
        var known: [SegmentID: SegmentKey] = [:]
        for key in keys { known[key.id] = key }
        var steps: [RegistryStep] = []
        for id in merge.segments {
            // Its writer lives: it is being registered at this moment.
            if live.contains(Drainer(node: id.writer, incarnation: id.incarnation)) { continue }
            let there = known[id]
            // Finished is final: no older registry says it of what lives.
            if let there, !isSetBack || there.state == .finished { continue }
            guard let (key, leftOut) = merge.key(of: id) else { continue }
            steps.append(RegistryStep(key: key, replaces: there?.revision ?? 0, leftOut: leftOut))
        }
        guard isSetBack else { return steps }
        let found = Set(merge.segments)
        for key in keys where key.state != .finished && !found.contains(key.id) {
            if live.contains(Drainer(node: key.id.writer, incarnation: key.id.incarnation)) { continue }
            steps.append(RegistryStep(key: finished(key), replaces: key.revision))
        }
        return steps
    }

    /// Of a segment without a copy on any disk.
    private static func finished(_ key: SegmentKey) -> SegmentKey {
        var gone = key
        if case .sealed(let length) = key.state { gone.finishedLength = length }
        gone.state = .finished
        gone.finishedEpoch = key.drainEpoch
        gone.revision = 0
        return gone
    }
}
