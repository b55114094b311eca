// The record of every segment: who may drain it, whether it is sealed or finished. The seam to the control plane.
import BatonCore
import BatonModel

/// Open, then sealed at its final length, then finished; never back.
package enum SegmentState: Hashable, Sendable {
    case open
    /// Nothing at or beyond this offset was ever acknowledged, all before it was.
    case sealed(at: Int64)
    /// Every message is final or moved; the files may go (PROTOCOL C2 iii, C3).
    case finished
}

/// Who delivers a segment's messages.
package struct Drainer: Hashable, Sendable {
    package let node: NodeID
    package let incarnation: Incarnation

    package init(node: NodeID, incarnation: Incarnation) {
        self.node = node
        self.incarnation = incarnation
    }
}

/// A segment's record in the control plane. Changed by compare-and-set on `revision` only.
package struct SegmentKey: Hashable, Sendable {
    package let id: SegmentID
    package var ensemble: [EnsembleMember]
    package var appendEpoch: UInt64
    package var state: SegmentState
    package var drainer: Drainer
    package var drainEpoch: UInt64
    /// Where a cleaning moves its live messages (PROTOCOL C2 i).
    package var target: SegmentID?
    /// What was moved there never counts: this cleaning was given up (docs/decisions/0007).
    package var targetVoid = false
    /// Members whose outcome log may lag: no promise is asked of them, and they may not take over (PROTOCOL P1, P2).
    package var stale: [EnsembleMember] = []
    /// Becomes a member once it has everything (PROTOCOL C1).
    package var joining: EnsembleMember?
    /// Replaced members that may still hold a file: the key outlives them, so that they read `finished` (PROTOCOL C3).
    package var former: [EnsembleMember] = []
    /// The sealed length of a finished segment: what stood behind it never counted, and nobody remembers it as stored (S7).
    package var finishedLength: Int64 = 0
    /// The drain epoch at which it was finished: a later takeover of the finished key raises `drainEpoch`, not this (C2 iv).
    package var finishedEpoch: UInt64 = 0
    /// Of the last change; 0 for a key that is not stored yet.
    package var revision: UInt64 = 0

    package init(
        id: SegmentID, ensemble: [EnsembleMember], appendEpoch: UInt64, state: SegmentState, drainer: Drainer,
        drainEpoch: UInt64, target: SegmentID? = nil
    ) {
        self.id = id
        self.ensemble = ensemble
        self.appendEpoch = appendEpoch
        self.state = state
        self.drainer = drainer
        self.drainEpoch = drainEpoch
        self.target = target
    }
}

package enum RegistryAnswer: Sendable {
    /// Stored; the key with its new revision (nil when it was removed).
    case committed(SegmentKey?)
    /// Somebody else changed it: what is there now.
    case conflict(SegmentKey?)
}

/// Compare-and-set of segment keys. Blocking: called on the keeper's thread and at start, never on a loop or the writer.
///
/// A thrown error means that the outcome is unknown: read again before acting (DESIGN section 5).
package protocol SegmentRegistry: Sendable {
    func list() throws(SpoolError) -> [SegmentKey]
    func read(_ id: SegmentID) throws(SpoolError) -> SegmentKey?
    /// Stores `key` if the stored revision equals `key.revision` (0: there is none).
    func store(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer
    /// The same for many at once, each by itself; cheaper where one write holds all. Answers in the same order.
    func store(_ keys: [SegmentKey]) throws(SpoolError) -> [RegistryAnswer]
    /// Removes the key if its revision is still that of `key`.
    func remove(_ key: SegmentKey) throws(SpoolError) -> RegistryAnswer
}
