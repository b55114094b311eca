// What the ledger knows of messages that were found damaged when they were read.
import BatonCore
import BatonModel

/// Damage of one segment that reads have met. A message leaves it when it is read intact, its chunk when it is repaired.
struct ReadDamage: Sendable {
    struct Message: Hashable, Sendable {
        let bytes: Int64
        /// The chunk that is damaged; nil where it cannot be told.
        let chunk: DamagedChunk?
        /// The fragment in it; nil for the message's record, or its whole body.
        let fragment: UInt32?
    }

    private(set) var messages: [UInt32: Message] = [:]
    /// Chunks that no other copy has intact, or that were repaired in vain.
    private(set) var hopeless: Set<Int64> = []
    private var repairs: [Int64: Int] = [:]

    var isEmpty: Bool { messages.isEmpty }
    var bytes: Int64 { messages.values.reduce(0) { $0 + $1.bytes } }

    /// True for a message that was not known to be damaged.
    mutating func add(_ record: UInt32, _ message: Message) -> Bool {
        messages.updateValue(message, forKey: record) == nil
    }

    /// The chunk that was found when this was read before: a disk full of damage is not searched at each attempt.
    func chunk(of record: UInt32, fragment: UInt32?) -> DamagedChunk? {
        guard let known = messages[record], known.fragment == fragment else { return nil }
        return known.chunk
    }

    /// This part of it was read intact.
    mutating func remove(_ record: UInt32, fragment: UInt32?) -> Bool {
        guard let known = messages[record], known.fragment == fragment else { return false }
        messages[record] = nil
        return true
    }

    /// How many messages are well again by it.
    mutating func repaired(_ chunk: Int64) -> Int {
        let well = messages.filter { $0.value.chunk?.offset == chunk }
        for record in well.keys { messages[record] = nil }
        repairs[chunk, default: 0] += 1
        // A disk that gives back something else again and again is not to be asked for ever.
        if repairs[chunk, default: 0] >= SpoolLimits.chunkRepairs { hopeless.insert(chunk) }
        return well.count
    }

    mutating func giveUp(_ chunk: Int64) { hopeless.insert(chunk) }
}

extension SegmentLedger.Entry {
    var isDamaged: Bool { damaged || !damage.isEmpty }
    var quarantinedBytes: Int64 { setAsideBytes + damage.bytes }
}
