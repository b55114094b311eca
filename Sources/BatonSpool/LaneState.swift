// The append rule (DESIGN section 4 and 5, PROTOCOL A1-A3): which chunks may be acknowledged. Pure.
import BatonCore
import BatonModel

/// Says when a `250` is allowed. Knows nothing of messages: offsets in segments only.
///
/// The shell reports what became durable where, and acknowledges what it is told to. Shared by the writer thread and, in a
/// cluster, the peer loop, behind a `Mutex`; actions are performed after unlock.
package struct LaneState: StateMachine {
    package enum Event: Sendable {
        /// The segment's key is committed with this ensemble, which never changes while it is open (A1).
        case opened(SegmentID, ensemble: [EnsembleMember])
        /// A chunk that ends at `end` was handed to every member.
        case appended(SegmentID, end: Int64)
        /// The member has fdatasync'ed everything before `upTo`.
        case durable(SegmentID, EnsembleMember, upTo: Int64)
        /// The member refuses or is given up: the ensemble never shrinks, so nothing more is acknowledged in the segment (A1).
        case lost(SegmentID, EnsembleMember)
        /// A local write or fdatasync of the segment failed; its result is unknown and it is never retried.
        case failed(SegmentID)
        /// Nothing will be appended any more: seal where all is acknowledged.
        case rolled(SegmentID)
        /// A seal for the segment was handed to the control plane, whatever its answer (A2).
        case sealSent(SegmentID)
        /// The segment is sealed in the control plane: it needs no rule any more.
        case sealCommitted(SegmentID)
    }

    package enum Action: Hashable, Sendable {
        /// Everything of the segment that ends at or before `upTo` may be answered with 250.
        case acknowledge(SegmentID, upTo: Int64)
        /// What begins at or behind `from` will never be acknowledged here.
        case refuse(SegmentID, from: Int64)
        /// Commit `sealed(at:)` in the control plane; report `sealSent` before doing so.
        case storeSeal(SegmentID, at: Int64)
        /// The local disk failed: no segment of the lane acknowledges anything any more.
        case laneDead
    }

    private struct Segment: Sendable {
        var ensemble: [EnsembleMember]
        var durable: [Int64]
        var appended: Int64 = 0
        var acked: Int64 = 0
        var rolled = false
        var sealSent = false
    }

    private var segments: [SegmentID: Segment] = [:]
    private var dead = false

    package init() {}

    /// Offset before which everything of the segment is acknowledged; 0 for an unknown one.
    package func acked(_ id: SegmentID) -> Int64 { segments[id]?.acked ?? 0 }

    /// Whether what is appended to the segment from now on can still be acknowledged.
    package func acknowledges(_ id: SegmentID) -> Bool { !dead && segments[id].map { !$0.sealSent } ?? false }

    package mutating func receive(_ event: Event, at now: Instant, into actions: inout ActionBuffer<Action>) {
        switch event {
        case .opened(let id, let ensemble):
            guard segments[id] == nil else { return }
            segments[id] = Segment(ensemble: ensemble, durable: Array(repeating: 0, count: ensemble.count))
        case .appended(let id, let end):
            guard var segment = segments[id] else { return actions.append(.refuse(id, from: 0)) }
            segment.appended = max(segment.appended, end)
            segments[id] = segment
            if dead || segment.sealSent { actions.append(.refuse(id, from: segment.acked)) }
        case .durable(let id, let member, let upTo):
            advance(id, member, upTo, &actions)
        case .lost(let id, let member):
            guard var segment = segments[id], segment.ensemble.contains(member), !segment.sealSent else { return }
            segment.rolled = true
            segment.sealSent = true
            segments[id] = segment
            actions.append(.refuse(id, from: segment.acked))
            if !dead { actions.append(.storeSeal(id, at: segment.acked)) }
        case .failed(let id):
            dead = true
            if let segment = segments[id] { actions.append(.refuse(id, from: segment.acked)) }
            actions.append(.laneDead)
        case .rolled(let id):
            guard segments[id] != nil else { return }
            segments[id]?.rolled = true
            sealIfComplete(id, &actions)
        case .sealSent(let id):
            guard var segment = segments[id], !segment.sealSent else { return }
            // From here on the answer may be "sealed" whatever we hear: nothing is acknowledged again (A2).
            segment.sealSent = true
            segments[id] = segment
            if segment.appended > segment.acked { actions.append(.refuse(id, from: segment.acked)) }
        case .sealCommitted(let id):
            segments[id] = nil
        }
    }

    private mutating func advance(
        _ id: SegmentID, _ member: EnsembleMember, _ upTo: Int64, _ actions: inout ActionBuffer<Action>
    ) {
        guard var segment = segments[id], let index = segment.ensemble.firstIndex(of: member) else { return }
        segment.durable[index] = max(segment.durable[index], upTo)
        let everywhere = min(segment.appended, segment.durable.min() ?? 0)
        let allowed = !dead && !segment.sealSent && everywhere > segment.acked
        if allowed {
            segment.acked = everywhere
            actions.append(.acknowledge(id, upTo: everywhere))
        }
        segments[id] = segment
        sealIfComplete(id, &actions)
    }

    private func sealIfComplete(_ id: SegmentID, _ actions: inout ActionBuffer<Action>) {
        guard !dead, let segment = segments[id], segment.rolled, !segment.sealSent,
            segment.acked == segment.appended
        else { return }
        actions.append(.storeSeal(id, at: segment.acked))
    }
}
