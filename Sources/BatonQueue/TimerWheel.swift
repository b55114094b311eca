// A hierarchical timer wheel over job slots: one timer per loop, whatever the number of jobs.
import BatonCore

/// Slots by due time, in 7 levels of 64 buckets; a tick is 2^23 ns (8.4 ms). Insert and remove are O(1); a slot moves down at
/// most six times. Slots come back in order of their tick, never early, within a tick in order of insertion.
///
/// A slot stands in the level of the highest bit in which its tick differs from `current`, so every bucket of a lower level
/// is due before any of a higher one, and 42 bits of ticks cover all of `Instant`.
struct TimerWheel: Sendable {
    private static let tickBits: Int64 = 23
    private static let levelBits = 6
    private static let levels = 7
    /// The bucket of slots that were late when inserted.
    private static let lateBucket = levels << levelBits

    private var buckets = [JobList](repeating: JobList(), count: lateBucket + 1)
    /// One bit for each bucket of a level that holds something.
    private var occupied = [UInt64](repeating: 0, count: levels)
    private var current: UInt64
    /// The bucket that `current` stands on while it is emptied.
    private var open: Int?
    private(set) var count = 0

    static let tick = TimeSpan(nanoseconds: 1 << tickBits)

    init(now: Instant) {
        self.current = Self.floorTick(now.nanoseconds)
    }

    private static func floorTick(_ nanoseconds: Int64) -> UInt64 {
        UInt64(Swift.max(0, nanoseconds)) >> UInt64(tickBits)
    }

    private static func ceilingTick(_ nanoseconds: Int64) -> UInt64 {
        let value = UInt64(Swift.max(0, nanoseconds))
        return (value >> UInt64(tickBits)) + (value & ((1 << UInt64(tickBits)) - 1) == 0 ? 0 : 1)
    }

    /// Puts a slot in by its `due`.
    mutating func insert(_ index: UInt32, _ slab: inout JobSlab) {
        place(index, &slab)
        count += 1
    }

    private mutating func place(_ index: UInt32, _ slab: inout JobSlab) {
        let due = Self.ceilingTick(slab[index].due)
        guard due > current else {
            slab.append(index, to: &buckets[Self.lateBucket], home: UInt32(Self.lateBucket))
            return
        }
        let level = (63 - (due ^ current).leadingZeroBitCount) / Self.levelBits
        let position = Int(due >> UInt64(level * Self.levelBits)) & 63
        let bucket = level << Self.levelBits | position
        occupied[level] |= 1 << UInt64(position)
        slab.append(index, to: &buckets[bucket], home: UInt32(bucket))
    }

    /// Takes a slot out before its time.
    mutating func remove(_ index: UInt32, _ slab: inout JobSlab) {
        take(index, from: Int(slab[index].home), &slab)
        count -= 1
    }

    private mutating func take(_ index: UInt32, from bucket: Int, _ slab: inout JobSlab) {
        slab.remove(index, from: &buckets[bucket])
        if bucket < Self.lateBucket, buckets[bucket].isEmpty {
            occupied[bucket >> Self.levelBits] &= ~(1 << UInt64(bucket & 63))
        }
    }

    /// The next slot whose time has come, taken out of the wheel; nil when there is none or `budget` is used up (each slot
    /// touched costs one of it).
    mutating func next(at now: Instant, budget: inout Int, _ slab: inout JobSlab) -> UInt32? {
        let target = Self.floorTick(now.nanoseconds)
        while budget > 0 {
            let late = buckets[Self.lateBucket].head
            if late != none {
                budget -= 1
                take(late, from: Self.lateBucket, &slab)
                count -= 1
                return late
            }
            if let bucket = open {
                let head = buckets[bucket].head
                guard head != none else {
                    open = nil
                    continue
                }
                budget -= 1
                take(head, from: bucket, &slab)
                if Self.ceilingTick(slab[head].due) <= current {
                    count -= 1
                    return head
                }
                place(head, &slab)
                continue
            }
            guard let (bucket, start) = nearest(), start <= target else {
                // Nothing begins before `target`, so moving on keeps every slot ahead of `current` in its level.
                if target > current { current = target }
                return nil
            }
            current = start
            open = bucket
        }
        return nil
    }

    /// The first bucket that is not empty, and the tick at which it begins.
    private func nearest() -> (bucket: Int, start: UInt64)? {
        for level in 0..<Self.levels where occupied[level] != 0 {
            let shift = UInt64(level * Self.levelBits)
            let position = occupied[level].trailingZeroBitCount
            let upper = shift + UInt64(Self.levelBits)
            let above = (current >> upper) << upper
            return (level << Self.levelBits | position, above | UInt64(position) << shift)
        }
        return nil
    }

    /// When `next` is worth calling; nil for an empty wheel. May be early for far slots, never late.
    var nextWake: Instant? {
        if !buckets[Self.lateBucket].isEmpty { return .epoch }
        if let open, !buckets[open].isEmpty { return .epoch }
        guard let (_, start) = nearest() else { return nil }
        return Instant(nanoseconds: Int64(clamping: start << UInt64(Self.tickBits)))
    }
}
