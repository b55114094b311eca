// Which final dots may go now: fresh promises of a segment's members (PROTOCOL P1), and W dots without a settled outcome (P5).
import BatonCore
import BatonModel
import DequeModule
import Synchronization

/// The bounds of the window (docs/LIMITS.md, "Cluster").
package enum WindowLimits {
    /// Dots without a settled outcome, of a site and of the node.
    package static let site = 32
    package static let node = 512
    /// An outcome that is not settled after so long lets its place go: its report waits, or it was recorded otherwise.
    package static let placeLife = TimeSpan.seconds(10)
}

/// Written by the cluster's thread, read by the pools. Any thread; each call is a short lock. A segment that is not named has no
/// permission; nothing of it survives a crash.
package final class DotPermission: DotPermitting {
    private struct Place: Sendable {
        let site: [UInt8]
        var outcomes: Int
        let endedAt: Instant
    }

    private struct State: Sendable {
        var until: [UInt32: Instant] = [:]
        /// Segments whose mail was moved, and where to: their references live on.
        var moved: [UInt32: UInt32] = [:]
        var taken = 0
        var sites: [[UInt8]: Int] = [:]
        /// Transactions that ended, by segment, in the order in which their outcomes are recorded.
        var unsettled: [UInt32: Deque<Place>] = [:]
        var refused = false
        var wakes: [@Sendable () -> Void] = []

        func place(of handle: UInt32) -> UInt32 { moved[handle] ?? handle }

        mutating func free(_ site: [UInt8]) {
            taken -= 1
            guard let count = sites[site] else { return }
            sites[site] = count > 1 ? count - 1 : nil
        }
    }

    private let state = Mutex(State())

    package init() {}

    // MARK: The cluster's side

    package func permit(_ handle: UInt32, until instant: Instant?) { state.withLock { $0.until[handle] = instant } }

    /// So many more outcomes of the segment are settled.
    package func settled(_ handle: UInt32, outcomes: Int) {
        wake { state in
            var left = outcomes
            while left > 0, var first = state.unsettled[handle]?.first {
                let now = min(left, first.outcomes)
                left -= now
                first.outcomes -= now
                if first.outcomes > 0 {
                    state.unsettled[handle]?[0] = first
                } else {
                    state.unsettled[handle]?.removeFirst()
                    state.free(first.site)
                }
            }
        }
    }

    /// All that is alive in a segment was moved into another: its members promise for it from now on, and outcomes are written there.
    /// Before the segment is forgotten.
    package func moved(_ handle: UInt32, to target: UInt32) {
        state.withLock { state in
            // Chains are never longer than one step.
            for (old, place) in state.moved where place == handle { state.moved[old] = target }
            state.moved[handle] = target
            state.until[handle] = nil
            state.unsettled[target, default: []] += state.unsettled.removeValue(forKey: handle) ?? []
        }
    }

    /// The segment is drained by somebody else, or gone: nothing of it will be settled here.
    package func forget(_ handle: UInt32) {
        wake { state in
            state.until[handle] = nil
            state.moved = state.moved.filter { $0.value != handle }
            for place in state.unsettled.removeValue(forKey: handle) ?? [] { state.free(place.site) }
        }
    }

    /// Lets places go that wait too long.
    package func tick(at now: Instant) {
        wake { state in
            for handle in Array(state.unsettled.keys) {
                while let first = state.unsettled[handle]?.first, now - first.endedAt >= WindowLimits.placeLife {
                    state.unsettled[handle]?.removeFirst()
                    state.free(first.site)
                }
                if state.unsettled[handle]?.isEmpty == true { state.unsettled[handle] = nil }
            }
        }
    }

    private func wake(_ change: (inout State) -> Void) {
        let wakes = state.withLock { state -> [@Sendable () -> Void] in
            let before = state.taken
            change(&state)
            guard state.refused, state.taken < before else { return [] }
            state.refused = false
            return state.wakes
        }
        for wake in wakes { wake() }
    }

    /// Dots without a settled outcome now.
    package var taken: Int { state.withLock { $0.taken } }

    // MARK: DotPermitting

    package func reserve(site: [UInt8], at now: Instant) -> Bool {
        state.withLock { state in
            guard state.taken < WindowLimits.node, state.sites[site, default: 0] < WindowLimits.site else {
                state.refused = true
                return false
            }
            state.taken += 1
            state.sites[site, default: 0] += 1
            return true
        }
    }

    package func mayDot(_ message: StoredMessageRef, at now: Instant) -> Bool {
        state.withLock { state in state.until[state.place(of: message.segment)].map { $0 > now } ?? false }
    }

    package func ended(_ message: StoredMessageRef, site: [UInt8], outcomes: Int, at now: Instant) {
        if outcomes > 0 {
            return state.withLock { state in
                state.unsettled[state.place(of: message.segment), default: []].append(
                    Place(site: site, outcomes: outcomes, endedAt: now))
            }
        }
        wake { $0.free(site) }
    }

    package func onRoom(_ wake: @escaping @Sendable () -> Void) { state.withLock { $0.wakes.append(wake) } }
}
