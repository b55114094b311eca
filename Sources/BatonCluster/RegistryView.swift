// What a node knows of the control plane: keys, nodes, its own changes under way and those whose result it never learned.
import BatonCore
import BatonModel
import BatonSpool

/// Keys as last read, and every change of this node's that may still land. One change per segment is under way at a time.
package struct RegistryView: Sendable {
    struct Change: Sendable {
        /// What is to be stored; its `revision` is the one that it compares.
        let key: ClusterKey
        /// The answer was "unknown": the key is read again before anything else.
        var unknown = false
    }

    private(set) var keys = Table<SegmentID, ClusterKey>()
    private(set) var nodes: [NodeRecord] = []
    private(set) var forgotten: [EnsembleMember] = []
    private(set) var departed: [EnsembleMember] = []
    private(set) var listedAt: Instant?
    private(set) var listedRevision: UInt64 = 0
    private(set) var changes = Table<SegmentID, Change>()
    /// Changes with an unknown result whose base revision is still the stored one: they may land at any time.
    private(set) var possible = Table<SegmentID, [ClusterKey]>()

    func isBusy(_ id: SegmentID) -> Bool { changes.contains(id) }

    func isAlive(_ drainer: Drainer) -> Bool {
        nodes.contains { $0.node == drainer.node && $0.incarnation == drainer.incarnation }
    }

    func isAlive(_ member: EnsembleMember) -> Bool {
        nodes.contains { $0.node == member.node && $0.disk == member.diskID }
    }

    /// What stood in its copy is given up. A disk whose node has left in order is not: it may come back.
    func isDeclaredLost(_ member: EnsembleMember) -> Bool { forgotten.contains(member) && !departed.contains(member) }

    /// The key as stored, and as it may be stored by now through a change of ours.
    func views(_ id: SegmentID) -> [ClusterKey] {
        var views = possible[id] ?? []
        if let known = keys[id] { views.insert(known, at: 0) }
        if let change = changes[id], !views.contains(change.key) { views.append(change.key) }
        return views
    }

    /// Whether the test holds for every view; without the array, and a view may be looked at twice.
    func allViews(_ id: SegmentID, satisfy test: (ClusterKey) -> Bool) -> Bool {
        if let known = keys[id], !test(known) { return false }
        if !possible.isEmpty, let landing = possible[id], !landing.allSatisfy(test) { return false }
        if !changes.isEmpty, let change = changes[id], !test(change.key) { return false }
        return true
    }

    /// False when another change of the segment is under way.
    mutating func begin(_ key: ClusterKey) -> Bool {
        guard changes[key.id] == nil else { return false }
        changes[key.id] = Change(key: key)
        return true
    }

    /// The change got its answer, whatever it is.
    mutating func end(_ id: SegmentID) { changes[id] = nil }

    mutating func unknown(_ id: SegmentID) {
        guard let change = changes[id], !change.unknown else { return }
        changes[id]?.unknown = true
        possible[id] = (possible[id] ?? []).filter { $0 != change.key } + [change.key]
    }

    /// Segments whose key has to be read before anything else is decided about them.
    var toRead: [SegmentID] {
        changes.contains(where: \.unknown) ? changes.keys.filter { changes[$0]?.unknown == true } : []
    }

    /// The key was read after an unknown result: the next change may begin.
    mutating func read(_ id: SegmentID) {
        if changes[id]?.unknown == true { changes[id] = nil }
    }

    /// True when this is news.
    mutating func learn(_ key: ClusterKey) -> Bool {
        if let known = keys[key.id], known.revision >= key.revision { return false }
        keys[key.id] = key
        // A compare-and-set on an older revision can never land any more.
        let left = (possible[key.id] ?? []).filter { $0.revision >= key.revision }
        possible[key.id] = left.isEmpty ? nil : left
        return true
    }

    mutating func forget(_ id: SegmentID) {
        keys[id] = nil
        possible[id] = nil
    }

    mutating func listed(_ listing: Listing, at now: Instant) {
        nodes = listing.nodes
        forgotten = listing.forgotten
        departed = listing.departed
        listedAt = now
        listedRevision = max(listedRevision, listing.revision)
    }

    /// Known keys that the listing no longer has.
    func gone(in listing: Listing) -> [SegmentID] {
        let there = Set(listing.keys.map(\.id))
        return keys.keys.filter { !there.contains($0) && (keys[$0]?.revision ?? 0) <= listing.revision }
    }
}
