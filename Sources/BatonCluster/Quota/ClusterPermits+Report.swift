// What a node has of each cluster-wide limit, for status.
import BatonCore
import BatonPeer
import Synchronization

/// This node's part of one limit, now.
package struct QuotaPart: Hashable, Sendable {
    package let key: QuotaKey
    /// Of the whole cluster: connections, or messages an hour.
    package let limit: UInt64
    /// What this node may use.
    package let share: UInt64
    /// Connections open, or what the last second comes to in an hour.
    package let used: UInt64
    /// Who deals the limit out; nil before the first read of the roster.
    package let home: NodeID?
}

extension ClusterPermits {
    /// The limits that this node has a part in, at most `count`. A site without mail here has none.
    package func parts(atMost count: Int) -> [QuotaPart] {
        let now = time.now()
        return state.withLock { state in
            var found: [QuotaPart] = []
            let roster = state.quota.roster
            func add(_ site: [UInt8], _ kind: Quota.Kind, _ limit: UInt64, _ used: UInt64) {
                let key = QuotaKey(site: site, kind: kind)
                let share = state.quota.allowance(of: key, limit: limit, at: now)
                found.append(
                    QuotaPart(key: key, limit: limit, share: share, used: used, home: roster?.home(of: site)))
            }
            for (site, entry) in state.sites.prefix(count) {
                add(site, .connections, UInt64(max(1, entry.limit)), UInt64(max(0, entry.open)))
            }
            for (site, rate) in state.rates.prefix(count - found.count) {
                add(site, .rate, rate.perHour, UInt64(max(rate.taken, rate.takenBefore)) * QuotaLimits.rateQuantum)
            }
            return found
        }
    }
}
