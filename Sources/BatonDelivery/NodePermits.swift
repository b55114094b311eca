// The node's connection and rate limits, shared by the pools of all loops.
import BatonCore
import BatonModel
import Synchronization

/// Counts connections per site and for the node, and keeps a token bucket per rated site. Any thread; a mutex held for a few
/// instructions. Bounded: an entry for each site with a connection or a rate; those with a rate come from the configuration.
///
/// At a limit the answer is no: the pool asks again at its next tick, and pools with idle connections give one up.
package final class NodePermits: PermitLeasing {
    private struct Site {
        var open = 0
        var tokens = 0.0
        var filledAt: Instant?
    }

    private struct State {
        var limit: Int
        var open = 0
        /// Refusals by the node's limit that nobody has made up for.
        var refused = 0
        var sites: [[UInt8]: Site] = [:]
        /// Sites that their own limit turned away.
        var waiting: Set<[UInt8]> = []
    }

    private let state: Mutex<State>

    /// `connections`: of the node, at least 1 (`delivery.connections`).
    package init(connections: Int) {
        state = Mutex(State(limit: max(1, connections)))
    }

    /// A reload; connections over a lower limit stay until they close.
    package func update(connections: Int) { state.withLock { $0.limit = max(1, connections) } }

    package var openConnections: Int { state.withLock { $0.open } }

    package func takeConnection(site: [UInt8], siteLimit: Int) -> Bool {
        state.withLock { state in
            guard state.open < state.limit else {
                state.refused = min(state.refused + 1, state.limit)
                return false
            }
            guard state.sites[site]?.open ?? 0 < max(1, siteLimit) else {
                state.waiting.insert(site)
                return false
            }
            state.open += 1
            state.sites[site, default: Site()].open += 1
            return true
        }
    }

    package func returnConnection(site: [UInt8]) {
        state.withLock { state in
            guard let open = state.sites[site]?.open, open > 0 else { return }
            state.open -= 1
            state.sites[site]?.open = open - 1
            if open == 1 { state.waiting.remove(site) }
            if open == 1, state.sites[site]?.filledAt == nil { state.sites.removeValue(forKey: site) }
        }
    }

    package func takeMessages(site: [UInt8], perSecond: Double?, wanted: Int, now: Instant) -> Int {
        guard let perSecond, wanted > 0 else { return wanted }
        guard perSecond > 0 else { return 0 }
        return state.withLock { state in
            var entry = state.sites[site] ?? Site()
            // One second's worth at once, one message at least.
            let burst = max(1, perSecond)
            if let last = entry.filledAt {
                entry.tokens = min(burst, entry.tokens + max(0, (now - last).seconds) * perSecond)
            } else {
                entry.tokens = burst
            }
            entry.filledAt = now
            let granted = min(wanted, Int(min(entry.tokens, 1e9)))
            entry.tokens -= Double(granted)
            state.sites[site] = entry
            return granted
        }
    }

    package func claimWaiter(site: [UInt8]) -> Bool {
        state.withLock { state in
            if state.refused > 0 {
                state.refused -= 1
                return true
            }
            return state.waiting.remove(site) != nil
        }
    }

    package var hasWaiters: Bool { state.withLock { $0.refused > 0 || !$0.waiting.isEmpty } }
    package var waitingSites: [[UInt8]] { state.withLock { Array($0.waiting) } }
}
