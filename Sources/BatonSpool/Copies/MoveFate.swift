// What the source's key says of messages that a cleaning moved (PROTOCOL C2 iv; docs/decisions/0007).
import BatonCore

/// The fate of copies that were moved from a segment at a drain epoch of it into a target, by the source's key as it is stored.
package enum MoveFate: Hashable, Sendable {
    /// The source was finished at that epoch for this target: the copies are the messages.
    case live
    /// Never to count: the epoch has risen, the move was given up, or the source goes on without it.
    case void
    /// Neither yet: whoever drains the target waits, or makes the move void on the source's key.
    case open
    /// The source is gone, or names the target no more, and nobody can have let that happen before the target's log says which
    /// (C2 v). Where the log does not, it was damaged: better twice than never.
    case gone

    package init(of key: SegmentKey?, epoch: UInt64, target: SegmentID) {
        guard let key else {
            self = .gone
            return
        }
        let isTarget = key.target == target
        if key.state == .finished {
            if key.finishedEpoch != epoch || (isTarget && key.targetVoid) {
                self = .void
            } else {
                self = isTarget ? .live : .gone
            }
        } else {
            self = key.drainEpoch > epoch || !isTarget || key.targetVoid ? .void : .open
        }
    }
}

/// One cleaning's copies, as their records name them.
struct MoveName: Hashable, Sendable {
    let source: SegmentID
    let epoch: UInt64
}
