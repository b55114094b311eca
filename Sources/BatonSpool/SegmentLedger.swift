// What every live segment holds: where its messages stand and which of their recipients are not final yet.
import BatonCore
import BatonModel
import Synchronization

/// A message's place on disk.
package struct MessageLocation: Hashable, Sendable {
    package let segment: UInt32
    package let name: SegmentName
    /// The message's number in that segment (another than asked for, if it was moved).
    package let record: UInt32
    /// Offset of its record in the segment file.
    package let offset: Int64
}

/// The ledger of one data directory. About 12 bytes per message, plus a bit per recipient of messages with several.
///
/// Any thread; every call is short. Handles (`StoredMessageRef.segment`) are given out once and never reused in a process, so
/// a late reference to a reclaimed segment finds nothing instead of another's message.
package final class SegmentLedger: Sendable {
    struct Entry: Sendable {
        let name: SegmentName
        var sealed: Bool
        /// Bytes of the file that hold chunks.
        var length: Int64 = 0
        var bornAt: Instant
        /// Record offsets in units of 8 bytes.
        var offsets: [UInt32] = []
        var sizes: [UInt32] = []
        /// Recipients without a final outcome.
        var live: [UInt32] = []
        /// Which recipients are final, for messages with several; kept while some are live.
        var finals: [UInt32: RecipientBits] = [:]
        var liveMessages = 0
        var liveRecipients = 0
        var liveBytes: Int64 = 0
        /// Messages whose Reception events are recorded (not yet synced).
        var received: UInt32 = 0
        /// Acknowledged end of the segment.
        var ackedOffset: Int64 = 0
        /// Reports in it whose outcome is not synced yet.
        var pins = 0
        /// Damage that a scan met: never reclaimed, never cleaned, always reported.
        var setAsideBytes: Int64 = 0
        var damaged = false
        /// Damage that reads met, until it is repaired.
        var damage = ReadDamage()
        var hasFragmented = false
        /// A cleaning has not settled what becomes of it: not to be reclaimed.
        var closing = false
        /// Being read by an adoption: what it holds is not counted yet.
        var adopting = false
        /// Cleanings of it that came to nothing.
        var cleaningsFailed = 0
    }

    struct RecipientBits: Sendable {
        private var words: [UInt64]

        init(count: Int) { words = Array(repeating: 0, count: (count + 63) / 64) }

        /// Whether it was not set before; false for an index beyond the count.
        mutating func set(_ index: UInt32) -> Bool {
            let word = Int(index / 64)
            guard word < words.count else { return false }
            let bit = UInt64(1) << UInt64(index % 64)
            defer { words[word] |= bit }
            return words[word] & bit == 0
        }

        func contains(_ index: UInt32) -> Bool {
            let word = Int(index / 64)
            return word < words.count && words[word] & (UInt64(1) << UInt64(index % 64)) != 0
        }
    }

    struct State: Sendable {
        var entries: [UInt32: Entry] = [:]
        var handles: [SegmentID: UInt32] = [:]
        var next: UInt32 = 1
        /// Messages moved by cleaning: their old references go on working.
        var forwards: [StoredMessageRef: StoredMessageRef] = [:]
    }

    let state = Mutex(State())

    package init() {}

    // MARK: Segments

    func add(_ id: SegmentID, sealed: Bool, adopting: Bool = false, at now: Instant) -> UInt32 {
        state.withLock { state in
            if let handle = state.handles[id] { return handle }
            let handle = state.next
            state.next += 1
            state.entries[handle] = Entry(name: SegmentName(id), sealed: sealed, bornAt: now)
            state.entries[handle]?.adopting = adopting
            state.handles[id] = handle
            return handle
        }
    }

    /// Nil where there is no such segment.
    @discardableResult
    func update<T: Sendable>(_ handle: UInt32, _ change: (inout Entry) -> T) -> T? {
        state.withLock { state in
            guard var entry = state.entries[handle] else { return nil }
            state.entries[handle] = nil
            defer { state.entries[handle] = entry }
            return change(&entry)
        }
    }

    func read<T: Sendable>(_ handle: UInt32, _ look: (Entry) -> T) -> T? {
        state.withLock { $0.entries[handle].map(look) }
    }

    package func handle(of id: SegmentID) -> UInt32? { state.withLock { $0.handles[id] } }

    package func name(of handle: UInt32) -> SegmentName? { state.withLock { $0.entries[handle]?.name } }

    func remove(_ handle: UInt32) {
        state.withLock { state in
            guard let entry = state.entries.removeValue(forKey: handle) else { return }
            state.handles[entry.name.id] = nil
            // A forward lives as long as the place that it leads to.
            state.forwards = state.forwards.filter { $0.value.segment != handle }
        }
    }

    // MARK: Messages

    /// Adds the messages of a chunk that end at `end`; returns the number of the first.
    func append(_ placed: [PlacedMessage], to handle: UInt32, end: Int64) -> UInt32 {
        state.withLock { state in
            guard var entry = state.entries[handle] else { return 0 }
            state.entries[handle] = nil
            let first = UInt32(entry.offsets.count)
            for message in placed { entry.add(message) }
            entry.length = max(entry.length, end)
            entry.ackedOffset = max(entry.ackedOffset, end)
            state.entries[handle] = entry
            return first
        }
    }

    /// Marks a recipient final. False if it was already, or is unknown. Follows a move.
    func markFinal(_ message: StoredMessageRef, recipient: UInt32) -> Bool {
        state.withLock { state in
            let place = state.forwards[message] ?? message
            guard state.entries[place.segment] != nil else { return false }
            return state.entries[place.segment]?.markFinal(place.record, recipient: recipient) ?? false
        }
    }

    package func location(of message: StoredMessageRef) -> MessageLocation? {
        state.withLock { state in
            let place = state.forwards[message] ?? message
            guard let entry = state.entries[place.segment], Int(place.record) < entry.offsets.count else { return nil }
            let offset = entry.offsets[Int(place.record)]
            guard offset != UInt32.max else { return nil }
            return MessageLocation(
                segment: place.segment, name: entry.name, record: place.record, offset: Int64(offset) * 8)
        }
    }

    /// Where outcomes of the message are to be written now.
    func resolve(_ message: StoredMessageRef) -> StoredMessageRef? {
        state.withLock { state in
            let place = state.forwards[message] ?? message
            guard let entry = state.entries[place.segment], Int(place.record) < entry.offsets.count else { return nil }
            return place
        }
    }

    /// Recipients of the message that have no final outcome.
    func live(_ message: StoredMessageRef) -> UInt32 {
        state.withLock { state in
            let place = state.forwards[message] ?? message
            guard let entry = state.entries[place.segment], Int(place.record) < entry.live.count else { return 0 }
            return entry.live[Int(place.record)]
        }
    }

    /// The recipient has no final outcome yet. False where nothing is known of the message.
    func isOpen(_ message: StoredMessageRef, recipient: UInt32) -> Bool {
        state.withLock { state in
            let place = state.forwards[message] ?? message
            return state.entries[place.segment].map { !$0.isFinal(place.record, recipient: recipient) } ?? false
        }
    }

    /// Every recipient has a final outcome. False where nothing is known of the message, as of a segment that another node drains now.
    package func isFinal(_ message: StoredMessageRef) -> Bool {
        state.withLock { state in
            let place = state.forwards[message] ?? message
            guard let entry = state.entries[place.segment], Int(place.record) < entry.live.count else { return false }
            return entry.live[Int(place.record)] == 0
        }
    }

    /// From now on the old reference means the new place (PROTOCOL C2: the source is finished).
    func forward(_ moves: [StoredMessageRef: StoredMessageRef]) {
        state.withLock { state in
            // References that already led to the source lead on, so that a chain is never longer than one step.
            for (old, place) in state.forwards {
                if let further = moves[place] { state.forwards[old] = further }
            }
            for (old, new) in moves { state.forwards[old] = new }
        }
    }

    func kill(_ message: StoredMessageRef) {
        state.withLock { $0.entries[message.segment]?.kill(message.record) }
    }

    func pin(_ handle: UInt32) { update(handle) { $0.pins += 1 } }

    func unpin(_ handle: UInt32) { update(handle) { $0.pins = max(0, $0.pins - 1) } }

    /// Sealed segments without live recipients, pins and damage.
    func reclaimCandidates() -> [UInt32] {
        state.withLock { state in
            var found: [UInt32] = []
            for (handle, entry) in state.entries where entry.isDone { found.append(handle) }
            return found
        }
    }
}

extension SegmentLedger.Entry {
    /// Nothing in it needs to be kept (but for outcomes and events to be synced, which the outcome log knows).
    var isDone: Bool { sealed && liveRecipients == 0 && pins == 0 && !isDamaged && !closing && !adopting }

    mutating func add(_ message: PlacedMessage) {
        offsets.append(UInt32(truncatingIfNeeded: message.offset / 8))
        sizes.append(message.storedBytes)
        live.append(message.recipients)
        if message.recipients > 0 {
            liveMessages += 1
            liveRecipients += Int(message.recipients)
            liveBytes += Int64(message.storedBytes)
        }
    }

    /// Fills the numbers of a damaged range, so that later messages keep theirs; the gap has no place and no live recipients.
    mutating func pad(to number: UInt32) {
        while offsets.count < Int(number) {
            offsets.append(UInt32.max)
            sizes.append(0)
            live.append(0)
        }
    }

    mutating func markFinal(_ record: UInt32, recipient: UInt32) -> Bool {
        let index = Int(record)
        guard index < live.count, live[index] > 0 else { return false }
        if finals[record] == nil, live[index] > 1 {
            // First outcome of a message with several recipients: all are live, so `live` is their number.
            finals[record] = SegmentLedger.RecipientBits(count: Int(live[index]))
        }
        if finals[record] != nil {
            guard finals[record]?.set(recipient) == true else { return false }
        } else if recipient != 0 {
            return false
        }
        live[index] -= 1
        liveRecipients -= 1
        if live[index] == 0 { settled(index) }
        return true
    }

    mutating func kill(_ record: UInt32) {
        let index = Int(record)
        guard index < live.count, live[index] > 0 else { return }
        liveRecipients -= Int(live[index])
        live[index] = 0
        settled(index)
    }

    private mutating func settled(_ index: Int) {
        liveMessages -= 1
        liveBytes -= Int64(sizes[index])
        finals[UInt32(index)] = nil
    }

    func isFinal(_ record: UInt32, recipient: UInt32) -> Bool {
        let index = Int(record)
        guard index < live.count, live[index] > 0 else { return true }
        return finals[record]?.contains(recipient) ?? false
    }
}
