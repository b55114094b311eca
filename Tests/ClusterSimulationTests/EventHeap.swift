// What is to happen, in the order of time.
import BatonCore

/// A binary heap by time, then by order of scheduling. What happens lies beside it, so that only small keys move.
struct EventHeap<Element> {
    private struct Key {
        let at: Instant
        let order: UInt64
        let slot: Int

        func isBefore(_ other: Key) -> Bool { at == other.at ? order < other.order : at < other.at }
    }

    private var keys: [Key] = []
    private var slots: [Element?] = []
    private var free: [Int] = []

    mutating func push(_ element: Element, at: Instant, order: UInt64) {
        let slot = free.popLast() ?? slots.count
        if slot == slots.count { slots.append(element) } else { slots[slot] = element }
        keys.append(Key(at: at, order: order, slot: slot))
        var child = keys.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard keys[child].isBefore(keys[parent]) else { return }
            keys.swapAt(child, parent)
            child = parent
        }
    }

    mutating func pop() -> (at: Instant, what: Element)? {
        guard let first = keys.first, let last = keys.popLast() else { return nil }
        var taken: Element?
        swap(&taken, &slots[first.slot])
        guard let what = taken else { return nil }
        free.append(first.slot)
        guard !keys.isEmpty else { return (first.at, what) }
        keys[0] = last
        var parent = 0
        while true {
            var least = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < keys.count {
                if keys[child].isBefore(keys[least]) { least = child }
            }
            if least == parent { return (first.at, what) }
            keys.swapAt(parent, least)
            parent = least
        }
    }
}
