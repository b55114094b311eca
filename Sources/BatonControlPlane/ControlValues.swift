// Keys, entries, transactions and their answers: what every control plane speaks in.
import BatonCore

/// A number of the store's changes, which only grows: each transaction that writes gets the next one. Always above 0.
package typealias ControlRevision = Int64

/// A key, or the beginning of one: octets, compared as octets. Baton's own are ASCII paths.
package struct ControlKey: Hashable, Comparable, Sendable, ExpressibleByStringLiteral, CustomStringConvertible {
    package let bytes: [UInt8]

    package init(bytes: [UInt8]) { self.bytes = bytes }
    package init(_ text: String) { self.bytes = Array(text.utf8) }
    package init(stringLiteral text: String) { self.init(text) }

    package var description: String { String(decoding: bytes, as: UTF8.self) }

    package static func < (left: ControlKey, right: ControlKey) -> Bool {
        left.bytes.lexicographicallyPrecedes(right.bytes)
    }

    package func hasPrefix(_ prefix: ControlKey) -> Bool { bytes.starts(with: prefix.bytes) }

    /// The first key after all that begin with this one; nil where there is none (only 0xff octets, or empty).
    package var endOfPrefix: ControlKey? {
        var end = bytes
        while let last = end.last, last == 0xff { end.removeLast() }
        guard let last = end.last else { return nil }
        end[end.count - 1] = last + 1
        return ControlKey(bytes: end)
    }
}

/// Names a lease; never 0.
package struct ControlLeaseID: Hashable, Sendable {
    package let value: Int64

    package init(value: Int64) { self.value = value }
}

/// A key with its value and its history in numbers.
package struct ControlEntry: Hashable, Sendable {
    package let key: ControlKey
    package let value: [UInt8]
    /// When it was created, after its last deletion.
    package let created: ControlRevision
    package let modified: ControlRevision
    /// The entry goes with it.
    package let lease: ControlLeaseID?

    package init(
        key: ControlKey, value: [UInt8], created: ControlRevision, modified: ControlRevision,
        lease: ControlLeaseID? = nil
    ) {
        self.key = key
        self.value = value
        self.created = created
        self.modified = modified
        self.lease = lease
    }
}

/// Which store answered, and how far it was.
///
/// A store that was restored from a backup, or replaced, shows in a lower revision or another id than were seen before: that
/// is for the reader to notice (PROTOCOL, "Around it"), who alone knows what its disk has recorded.
package struct ControlHeader: Hashable, Sendable {
    package let store: UInt64
    package let revision: ControlRevision

    package init(store: UInt64, revision: ControlRevision) {
        self.store = store
        self.revision = revision
    }
}

/// Entries in the order of their keys, all as of `header.revision`, or of the past revision that was asked for.
package struct ControlListing: Sendable {
    package let header: ControlHeader
    package let entries: [ControlEntry]

    package init(header: ControlHeader, entries: [ControlEntry]) {
        self.header = header
        self.entries = entries
    }
}

/// What has to hold for a transaction to write.
package enum ControlComparison: Hashable, Sendable {
    case absent(ControlKey)
    case modified(ControlKey, at: ControlRevision)
    case created(ControlKey, at: ControlRevision)

    package var key: ControlKey {
        switch self {
        case .absent(let key), .modified(let key, _), .created(let key, _): key
        }
    }
}

package enum ControlWrite: Hashable, Sendable {
    case put(ControlKey, [UInt8], lease: ControlLeaseID?)
    /// Of a key that is absent it does nothing.
    case delete(ControlKey)

    package static func put(_ key: ControlKey, _ value: [UInt8]) -> ControlWrite { .put(key, value, lease: nil) }

    package var key: ControlKey {
        switch self {
        case .put(let key, _, _), .delete(let key): key
        }
    }
}

/// Writes that happen all together if every comparison holds, else not at all.
///
/// Each key is written once at most. Bounds: `ControlLimits.operations` comparisons and as many writes, key and value
/// sizes, `transactionBytes`; over one it is refused as `invalid` without being sent.
package struct ControlTransaction: Hashable, Sendable {
    package var comparisons: [ControlComparison]
    package var writes: [ControlWrite]

    package init(if comparisons: [ControlComparison], _ writes: [ControlWrite]) {
        self.comparisons = comparisons
        self.writes = writes
    }

    /// What is wrong with it, if anything.
    package var problem: String? {
        guard comparisons.count <= ControlLimits.operations, writes.count <= ControlLimits.operations else {
            return "more than \(ControlLimits.operations) operations"
        }
        guard !writes.isEmpty else { return "nothing to write" }
        var written: Set<ControlKey> = []
        var size = 0
        for write in writes {
            guard written.insert(write.key).inserted else { return "a key is written twice" }
            guard ControlLimits.allows(write.key) else { return "a key is empty or too long" }
            size += write.key.bytes.count
            if case .put(_, let value, let lease) = write {
                guard value.count <= ControlLimits.valueBytes else { return "a value is too long" }
                guard lease?.value != 0 else { return "a lease without a name" }
                size += value.count
            }
        }
        for comparison in comparisons {
            guard ControlLimits.allows(comparison.key) else { return "a compared key is empty or too long" }
            switch comparison {
            case .absent: break
            case .modified(_, let revision), .created(_, let revision):
                guard revision > 0 else { return "a revision below 1" }
            }
            size += comparison.key.bytes.count
        }
        return size <= ControlLimits.transactionBytes ? nil : "the transaction is too long"
    }
}

package enum ControlCommit: Sendable {
    /// All is written; the header's revision is that of the writes (of the store, where they changed nothing).
    case committed(ControlHeader)
    /// Nothing is written. The compared keys that exist, as they are now.
    case conflict(ControlHeader, current: [ControlEntry])
}

package struct ControlLease: Hashable, Sendable {
    package let id: ControlLeaseID
    /// What the store grants; never less than was asked for.
    package let ttl: TimeSpan

    package init(id: ControlLeaseID, ttl: TimeSpan) {
        self.id = id
        self.ttl = ttl
    }
}

/// What a watch tells, in order. A hint that may be late, never a lock.
package enum ControlWatchEvent: Sendable {
    /// All of the prefix. It replaces what was known: the first event of a watch without a revision, after a gap, and each
    /// `resync`. `wentBack`: the store is at a lower revision than was seen before, or is another store.
    case snapshot(ControlListing, wentBack: Bool)
    /// Changes above everything told before, all those of a revision together.
    case changes([ControlChange])
    /// The stream is broken and is being opened again; nothing is lost by it.
    case interrupted(String)
}

package enum ControlChange: Hashable, Sendable {
    case put(ControlEntry)
    case deleted(ControlKey, at: ControlRevision)

    package var revision: ControlRevision {
        switch self {
        case .put(let entry): entry.modified
        case .deleted(_, let revision): revision
        }
    }

    package var key: ControlKey {
        switch self {
        case .put(let entry): entry.key
        case .deleted(let key, _): key
        }
    }
}
