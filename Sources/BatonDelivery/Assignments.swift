// Which destinations are assigned, and until when.
import BatonCore
import BatonModel

/// Assignments in force, with a note to each. A value. Those that have run out are dropped when the table has doubled since
/// the last time, so it holds at most twice the assignments in force (which the partition bounds) and a step costs O(1)
/// amortised: ids are never reused, so without this it would grow for ever.
struct Assignments<Note> {
    private var entries: [DestinationID: (note: Note, until: Instant)] = [:]
    private var pruneAbove = Self.pruneFirst

    private static var pruneFirst: Int { 1_024 }

    var count: Int { entries.count }
    var all: [DestinationID] { Array(entries.keys) }

    subscript(destination: DestinationID) -> Note? { entries[destination]?.note }

    mutating func set(_ destination: DestinationID, _ note: Note, until: Instant, at now: Instant) {
        entries[destination] = (note, until)
        guard entries.count > pruneAbove else { return }
        entries = entries.filter { now < $0.value.until }
        pruneAbove = max(Self.pruneFirst, 2 * entries.count)
    }

    @discardableResult
    mutating func remove(_ destination: DestinationID) -> Note? { entries.removeValue(forKey: destination)?.note }
}
