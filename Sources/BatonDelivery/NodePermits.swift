// The node's connection and rate limits, shared by the pools of all loops.
import BatonCore
import BatonModel
import Synchronization

/// Counts connections per site and for the node, and keeps a token bucket per rated site. Any thread; a mutex held for a few
/// instructions. Bounded: a site is forgotten when it has no connection, no waiter and a full bucket.
///
/// At a limit the answer is no: the pool asks again at its next tick, and pools with idle connections give one up.
package final class NodePermits: PermitLeasing {
    private struct Site {
        var open = 0
        var refused = false
        var tokens = 0.0
        var filledAt: Instant?
    }

    private struct State {
        var limit: Int
        var open = 0
        var refused = false
        var sites: [[UInt8]: Site] = [:]
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
                state.refused = true
                return false
            }
            guard state.sites[site]?.open ?? 0 < max(1, siteLimit) else {
                state.sites[site]?.refused = true
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
            if state.refused {
                state.refused = false
                return true
            }
            guard state.sites[site]?.refused == true else { return false }
            state.sites[site]?.refused = false
            return true
        }
    }
}
