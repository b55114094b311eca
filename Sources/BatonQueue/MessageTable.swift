// Messages of queued recipients: where they are stored, what filters need, and what is still in memory of them.
import BatonCore
import BatonModel
import NIOCore

/// What the queue knows of a message without its envelope. No references, so that a page holds a thousand of them.
struct MessageEntry: BitwiseCopyable {
    var ref: StoredMessageRef
    var id: MessageID
    var arrival: Instant
    /// Fairness class, `Envelope.senderClass`.
    var senderClass: UInt64
    /// `StableHash` of the sender (domain in lower case) and of its domain; of nothing for the null reverse-path. 64 bits:
    /// an operator's `bounce --sender` must not hit a stranger by collision.
    var senderHash: UInt64
    var senderDomainHash: UInt64
    /// Grows with each message taken in, so that an operation leaves later mail alone. Wraps; compared by difference.
    var serial: UInt32
    /// Chain of its live jobs, and how many.
    var firstJob: UInt32 = none
    var live: UInt32 = 0
    /// Live jobs without an attempt: while there are any, the body may stay in memory.
    var untried: UInt32 = 0
    /// Index in `ResidentTable`; `none` when envelope and body have left memory.
    var resident: UInt32 = none
    /// Octets of the body, saturating: what a transaction costs its sender class.
    var size: UInt32
    var isReport: Bool
    /// Null sender or a report: nobody to tell of a delay.
    var isSilent: Bool
}

/// Envelope and body in memory.
struct Resident: Sendable {
    let envelope: Envelope
    let body: MessageBody
    let bytes: Int
}

/// The messages of a partition, found by index or by id.
struct MessageTable: ~Copyable {
    private var pool = PagedPool<MessageEntry>()
    private var index = MessageIndex()
    private var residents: [Resident?] = []
    private var freeResidents: [UInt32] = []
    /// Exact sum of `Resident.bytes`.
    private(set) var residentBytes = 0
    private(set) var residentCount = 0

    var live: Int { pool.live }
    var bytes: Int { pool.bytes + index.bytes }

    subscript(index: UInt32) -> MessageEntry {
        @inline(__always) _read { yield pool[index] }
        @inline(__always) _modify { yield &pool[index] }
    }

    mutating func add(_ entry: MessageEntry) -> UInt32 {
        let message = pool.take(entry)
        pool[message] = entry
        index.insert(message, key: MessageIndex.key(entry.id), in: pool)
        return message
    }

    mutating func remove(_ message: UInt32) {
        dropResident(message)
        index.remove(message, key: MessageIndex.key(pool[message].id), in: pool)
        pool.give(back: message)
    }

    /// All with this id: parts of one message meet in a partition after a fall-back, a takeover or a release.
    func all(_ id: MessageID) -> [UInt32] {
        var found: [UInt32] = []
        _ = index.find(key: MessageIndex.key(id)) { message in
            if pool[message].id == id { found.append(message) }
            return false
        }
        return found
    }

    /// The one of several parts of a message that stands there.
    func find(_ id: MessageID, at ref: StoredMessageRef) -> UInt32? {
        index.find(key: MessageIndex.key(id)) { pool[$0].id == id && pool[$0].ref == ref }
    }

    // MARK: What is in memory

    mutating func keep(_ resident: Resident, for message: UInt32) {
        dropResident(message)
        let slot: UInt32
        if let free = freeResidents.popLast() {
            slot = free
            residents[Int(slot)] = resident
        } else {
            slot = UInt32(residents.count)
            residents.append(resident)
        }
        pool[message].resident = slot
        residentBytes += resident.bytes
        residentCount += 1
    }

    mutating func dropResident(_ message: UInt32) {
        let slot = pool[message].resident
        guard slot != none, let resident = residents[Int(slot)] else { return }
        residents[Int(slot)] = nil
        freeResidents.append(slot)
        pool[message].resident = none
        residentBytes -= resident.bytes
        residentCount -= 1
    }

    func resident(of message: UInt32) -> Resident? {
        let slot = pool[message].resident
        return slot == none ? nil : residents[Int(slot)]
    }

    /// What a resident message is counted as: its buffer's whole storage, and its envelope by estimate.
    static func cost(_ envelope: Envelope, _ body: MessageBody) -> Int {
        var bytes = body.bytes.storageCapacity + 512
        // Recipients carry two small arrays each; ORCPT and address text by their length.
        for recipient in envelope.recipients {
            bytes += 128 + recipient.address.bytes.count + recipient.originalRecipient.count
        }
        return bytes
    }
}

/// Message indices by id in open addressing: 4 bytes each at a load of at most 3/4, against 30 to 50 in a `Dictionary`.
///
/// 256 shards, so that growth rehashes a 256th at a time and no loop turn stands still for it.
struct MessageIndex: Sendable {
    private struct Shard: Sendable {
        var cells: [UInt32] = []
        var count = 0
    }

    private var shards = [Shard](repeating: Shard(), count: 256)

    /// Ids hold 80 random bits, mixed again so that ids made in tests spread as well.
    static func key(_ id: MessageID) -> UInt64 { SplitMix64.mix(id.low ^ id.high &* 0x9e37_79b9_7f4a_7c15) }

    var bytes: Int { shards.reduce(0) { $0 + $1.cells.capacity * 4 } }

    mutating func insert(_ message: UInt32, key: UInt64, in pool: borrowing PagedPool<MessageEntry>) {
        let shard = Int(key & 255)
        if (shards[shard].count + 1) * 4 > shards[shard].cells.count * 3 {
            let old = shards[shard].cells
            shards[shard].cells = [UInt32](repeating: none, count: Swift.max(8, old.count * 2))
            for cell in old where cell != none { Self.place(cell, key: Self.key(pool[cell].id), &shards[shard].cells) }
        }
        Self.place(message, key: key, &shards[shard].cells)
        shards[shard].count += 1
    }

    private static func place(_ message: UInt32, key: UInt64, _ cells: inout [UInt32]) {
        let mask = cells.count - 1
        var position = Int(truncatingIfNeeded: key >> 8) & mask
        while cells[position] != none { position = (position + 1) & mask }
        cells[position] = message
    }

    func find(key: UInt64, matches: (UInt32) -> Bool) -> UInt32? {
        let cells = shards[Int(key & 255)].cells
        guard !cells.isEmpty else { return nil }
        let mask = cells.count - 1
        var position = Int(truncatingIfNeeded: key >> 8) & mask
        while cells[position] != none {
            if matches(cells[position]) { return cells[position] }
            position = (position + 1) & mask
        }
        return nil
    }

    /// Removes by shifting back what follows, so that no tombstones pile up.
    mutating func remove(_ message: UInt32, key: UInt64, in pool: borrowing PagedPool<MessageEntry>) {
        let shard = Int(key & 255)
        guard !shards[shard].cells.isEmpty else { return }
        let mask = shards[shard].cells.count - 1
        var hole = Int(truncatingIfNeeded: key >> 8) & mask
        while shards[shard].cells[hole] != message {
            if shards[shard].cells[hole] == none { return }
            hole = (hole + 1) & mask
        }
        var position = (hole + 1) & mask
        while shards[shard].cells[position] != none {
            let cell = shards[shard].cells[position]
            let ideal = Int(truncatingIfNeeded: Self.key(pool[cell].id) >> 8) & mask
            // The cell may move into the hole if its own place is not between the hole and here.
            if (position - ideal) & mask >= (position - hole) & mask {
                shards[shard].cells[hole] = cell
                hole = position
            }
            position = (position + 1) & mask
        }
        shards[shard].cells[hole] = none
        shards[shard].count -= 1
    }
}
