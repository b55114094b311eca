// The store as a value: keys with revisions, leases, a bounded history. What the local and the in-memory plane share.
import BatonCore

/// Behaves as etcd does: one revision per writing transaction, leases that take their keys along, compaction. Pure; the simulator may
/// use it directly. Bounds: `ControlLimits.history` changes, after which the oldest are compacted; `ControlLimits.leases`.
package struct ControlStore: Sendable {
    package struct Lease: Hashable, Sendable {
        package let ttl: TimeSpan
        package var deadline: Instant
    }

    /// A change, with what was there before it, so that past revisions can be shown.
    private struct Step: Sendable {
        let change: ControlChange
        let before: ControlEntry?
    }

    /// Drawn when the store was made.
    package let id: UInt64
    package private(set) var revision: ControlRevision
    /// Watches and listings reach back to this revision.
    package private(set) var compacted: ControlRevision
    package private(set) var entries: [ControlKey: ControlEntry]
    package private(set) var leases: [ControlLeaseID: Lease]
    private var history: [Step] = []
    private let listingMax: Int

    package init(
        id: UInt64, revision: ControlRevision = 1, entries: [ControlEntry] = [],
        leases: [(id: ControlLeaseID, ttl: TimeSpan)] = [], at now: Instant, listingMax: Int = ControlLimits.listing
    ) {
        self.listingMax = listingMax
        self.id = id
        self.revision = revision
        self.compacted = revision
        self.entries = Dictionary(entries.map { ($0.key, $0) }) { first, _ in first }
        self.leases = Dictionary(leases.map { ($0.id, Lease(ttl: $0.ttl, deadline: now + $0.ttl)) }) { first, _ in first
        }
    }

    package var header: ControlHeader { ControlHeader(store: id, revision: revision) }

    // MARK: Reading

    package func get(_ key: ControlKey) -> ControlListing {
        ControlListing(header: header, entries: entries[key].map { [$0] } ?? [])
    }

    package func list(
        _ prefix: ControlKey, at past: ControlRevision? = nil
    ) -> Result<ControlListing, ControlFailure> {
        guard !prefix.bytes.isEmpty else { return .failure(.refused(.invalid, "an empty prefix")) }
        var found = entries.filter { $0.key.hasPrefix(prefix) }
        if let past, past != revision {
            guard past <= revision else { return .failure(.refused(.invalid, "revision \(past) is in the future")) }
            guard past >= compacted else { return .failure(.refused(.compacted, "revision \(past) is compacted")) }
            for step in history.reversed() where step.change.revision > past && step.change.key.hasPrefix(prefix) {
                found[step.change.key] = step.before
            }
        }
        guard found.count <= listingMax else { return .failure(.refused(.invalid, "too many entries")) }
        return .success(ControlListing(header: header, entries: found.values.sorted { $0.key < $1.key }))
    }

    /// The changes under a prefix after a revision, those of a revision together; nil where they are compacted.
    package func changes(under prefix: ControlKey, after seen: ControlRevision) -> [ControlChange]? {
        guard seen >= compacted else { return nil }
        return history.compactMap { step in
            step.change.revision > seen && step.change.key.hasPrefix(prefix) ? step.change : nil
        }
    }

    // MARK: Writing

    package mutating func commit(_ transaction: ControlTransaction) -> Result<ControlCommit, ControlFailure> {
        if let problem = transaction.problem { return .failure(.refused(.invalid, problem)) }
        let holds = transaction.comparisons.allSatisfy { comparison in
            let entry = entries[comparison.key]
            switch comparison {
            case .absent: return entry == nil
            case .modified(_, let revision): return entry?.modified == revision
            case .created(_, let revision): return entry?.created == revision
            }
        }
        guard holds else {
            let keys = Set(transaction.comparisons.map(\.key))
            let current = keys.compactMap { entries[$0] }.sorted { $0.key < $1.key }
            return .success(.conflict(header, current: current))
        }
        for case .put(_, _, let lease?) in transaction.writes where leases[lease] == nil {
            return .failure(.refused(.leaseGone, "no lease \(lease.value)"))
        }
        write(transaction.writes)
        return .success(.committed(header))
    }

    private mutating func write(_ writes: [ControlWrite]) {
        let next = revision + 1
        var changed = false
        for write in writes {
            let before = entries[write.key]
            let change: ControlChange
            switch write {
            case .put(let key, let value, let lease):
                change = .put(
                    ControlEntry(
                        key: key, value: value, created: before?.created ?? next, modified: next, lease: lease))
            case .delete(let key):
                guard before != nil else { continue }
                change = .deleted(key, at: next)
            }
            if case .put(let entry) = change { entries[write.key] = entry } else { entries[write.key] = nil }
            history.append(Step(change: change, before: before))
            changed = true
        }
        if changed { revision = next }
        // A quarter at once, so that this is not done at every write.
        if history.count > ControlLimits.history {
            compact(history[history.count - ControlLimits.history * 3 / 4].change.revision)
        }
    }

    /// Forgets the history up to a revision, which stays readable.
    package mutating func compact(_ at: ControlRevision) {
        compacted = max(compacted, min(at, revision))
        history.removeAll { $0.change.revision <= compacted }
    }

    // MARK: Leases

    package mutating func grant(
        _ id: ControlLeaseID, _ ttl: TimeSpan, at now: Instant
    ) -> Result<ControlLease, ControlFailure> {
        guard id.value != 0, ttl <= ControlLimits.leaseMax, ttl > .zero else {
            return .failure(.refused(.invalid, "a lease of \(ttl.seconds) s"))
        }
        guard leases[id] == nil else { return .failure(.refused(.invalid, "the lease exists")) }
        guard leases.count < ControlLimits.leases else { return .failure(.refused(.overloaded, "too many leases")) }
        let granted = max(ttl, ControlLimits.leaseMin)
        leases[id] = Lease(ttl: granted, deadline: now + granted)
        return .success(ControlLease(id: id, ttl: granted))
    }

    package mutating func keepAlive(_ id: ControlLeaseID, at now: Instant) -> TimeSpan? {
        guard let lease = leases[id], lease.deadline > now else { return nil }
        leases[id]?.deadline = now + lease.ttl
        return lease.ttl
    }

    /// Whether there was such a lease.
    @discardableResult
    package mutating func revoke(_ id: ControlLeaseID) -> Bool {
        guard leases.removeValue(forKey: id) != nil else { return false }
        let keys = entries.values.filter { $0.lease == id }.map(\.key).sorted()
        if !keys.isEmpty { write(keys.map { .delete($0) }) }
        return true
    }

    /// Ends the leases whose time is over, each in a revision of its own. Whether there were any.
    package mutating func expire(at now: Instant) -> Bool {
        let over = leases.filter { $0.value.deadline <= now }.map(\.key).sorted { $0.value < $1.value }
        for id in over { revoke(id) }
        return !over.isEmpty
    }

    package var nextExpiry: Instant? { leases.values.map(\.deadline).min() }
}
