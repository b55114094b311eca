// What a receiver remembers of message keys (PROTOCOL S1, S5, S7).
import BatonCore
import BatonModel
import BatonPeer

/// Answers by key, for `PlacementLimits.remember` and at most `PlacementLimits.remembered`. What is forgotten is never denied:
/// of each ingress run the highest forgotten counter is kept, and at or below it the answer is "unknown".
package struct KeyMemory: Sendable {
    package enum Fate: Hashable, Sendable {
        case pending
        case have
        case refused
        case unknown
        /// Found in a segment taken over that does not have all its copies again.
        case adopted(StoredMessageRef)
    }

    private struct Entry {
        var fate: Fate
        var at: Instant
    }

    private let bound: Int
    private var entries: [MessageKey: Entry] = [:]
    /// In the order of remembering, for expiry; holds a key as often as it was remembered anew.
    private var queue: [(key: MessageKey, at: Instant)] = []
    private var head = 0
    /// Segments taken over that have all their copies, and since when that is known: as long as a key of theirs may be remembered.
    private var wholeSince: [UInt32: Instant] = [:]
    private var forgotten: [NodeRun: UInt64] = [:]
    /// More runs than the bound were forgotten: nothing unknown is denied any more.
    private var forgotRuns = false

    package init(bound: Int = PlacementLimits.remembered) {
        self.bound = max(1, bound)
    }

    package var count: Int { entries.count }
    package var isFull: Bool { entries.count >= bound }

    package subscript(key: MessageKey) -> Fate? {
        guard let fate = entries[key]?.fate else { return nil }
        if case .adopted(let ref) = fate, wholeSince[ref.segment] != nil { return .have }
        return fate
    }

    /// Everything that was found in this segment is as safe as it was promised. Past the bound it is not noted.
    package mutating func whole(_ segment: UInt32, at now: Instant) {
        guard wholeSince.count < PlacementLimits.wholeSegments || wholeSince[segment] != nil else { return }
        wholeSince[segment] = now
    }

    /// Whether this key may have been known once.
    package func mayBeForgotten(_ key: MessageKey) -> Bool {
        if let upTo = forgotten[key.ingress] { return key.counter <= upTo }
        return forgotRuns
    }

    /// Past the bound the oldest answer is forgotten; what is pending never is.
    package mutating func remember(_ key: MessageKey, _ fate: Fate, at now: Instant) {
        if entries[key] == nil, isFull { forgetOldest() }
        entries[key] = Entry(fate: fate, at: now)
        queue.append((key, now))
    }

    package mutating func expire(at now: Instant) {
        // Its keys are older.
        for (segment, since) in wholeSince where now - since > PlacementLimits.remember { wholeSince[segment] = nil }
        while head < queue.count, now - queue[head].at > PlacementLimits.remember { dropHead() }
        if head > 4_096, head * 2 > queue.count {
            queue.removeFirst(head)
            head = 0
        }
    }

    private mutating func forgetOldest() {
        while head < queue.count {
            let before = entries.count
            dropHead()
            if entries.count < before { return }
        }
    }

    private mutating func dropHead() {
        let (key, at) = queue[head]
        head += 1
        guard let entry = entries[key], entry.at == at, entry.fate != .pending else { return }
        entries[key] = nil
        if let upTo = forgotten[key.ingress] {
            forgotten[key.ingress] = max(upTo, key.counter)
        } else if forgotten.count < PlacementLimits.forgottenRuns {
            forgotten[key.ingress] = key.counter
        } else {
            forgotRuns = true
        }
    }
}
