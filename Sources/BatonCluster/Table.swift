// A small sorted map: the state machines walk their tables in an order that is the same in every process.
import BatonCore
import BatonModel
import BatonSpool

/// Keys in ascending order beside their values. Meant for hundreds of entries; a walk never depends on hash seeds, so that a run
/// of the simulator is its seed and nothing else.
package struct Table<Key: Comparable & Sendable, Value: Sendable>: Sendable {
    package private(set) var keys: [Key] = []
    @usableFromInline var slots: [Value?] = []

    @inlinable package init() {}

    @inlinable package var isEmpty: Bool { keys.isEmpty }
    @inlinable package var count: Int { keys.count }
    @inlinable package var values: [Value] {
        var found: [Value] = []
        found.reserveCapacity(slots.count)
        for case let value? in slots { found.append(value) }
        return found
    }

    @inlinable package func contains(_ key: Key) -> Bool { place(of: key).found }

    @inlinable package func contains(where test: (Value) -> Bool) -> Bool {
        for case let value? in slots where test(value) { return true }
        return false
    }

    @inlinable func place(of key: Key) -> (index: Int, found: Bool) {
        var low = 0
        var high = keys.count
        while low < high {
            let middle = (low + high) / 2
            if keys[middle] < key { low = middle + 1 } else { high = middle }
        }
        return (low, low < keys.count && keys[low] == key)
    }

    @inlinable package subscript(key: Key) -> Value? {
        get {
            let (index, found) = place(of: key)
            return found ? slots[index] : nil
        }
        _modify {
            let (index, found) = place(of: key)
            if found {
                yield &slots[index]
                if slots[index] == nil {
                    slots.remove(at: index)
                    keys.remove(at: index)
                }
            } else {
                var value: Value?
                yield &value
                if let value {
                    keys.insert(key, at: index)
                    slots.insert(value, at: index)
                }
            }
        }
    }
}

extension Table: Equatable where Value: Equatable {}
extension Table: Hashable where Key: Hashable, Value: Hashable {}

extension NodeID: Comparable {
    public static func < (left: NodeID, right: NodeID) -> Bool { left.value < right.value }
}

extension Incarnation: Comparable {
    public static func < (left: Incarnation, right: Incarnation) -> Bool { left.value < right.value }
}

extension SegmentID: Comparable {
    public static func < (left: SegmentID, right: SegmentID) -> Bool {
        (left.writer, left.incarnation, left.index) < (right.writer, right.incarnation, right.index)
    }
}

extension EnsembleMember: Comparable {
    package static func < (left: EnsembleMember, right: EnsembleMember) -> Bool {
        (left.node.value, left.diskID) < (right.node.value, right.diskID)
    }
}
