// What `SpoolInspector` found, as values to print or to encode.
import BatonCore

/// A data directory's content. Counts are of messages unless they say otherwise; all lengths are bytes.
package struct SpoolReport: Sendable, Encodable {
    package struct Identity: Sendable, Encodable {
        package var cluster: String
        package var node: String
        package var diskID: String
    }

    package struct Registry: Sendable, Encodable {
        package var id: String
        package var revision: UInt64
        package var keys: Int
    }

    /// `from ..< to` of the segment file, or of its outcome log.
    package struct Damage: Sendable, Encodable {
        package var from: Int64
        package var to: Int64
        package var what: String
    }

    package struct Segment: Sendable, Encodable {
        package var name: String
        /// open, sealed, finished; keyless for a file that no key names, unknown where the registry cannot be read.
        package var state: String
        package var appendEpoch: UInt64?
        package var drainEpoch: UInt64?
        package var sealedAt: Int64?
        /// Where a cleaning under way moves its messages.
        package var target: String?
        package var chunks = 0
        package var messages = 0
        /// With recipients that have no final outcome on record.
        package var live = 0
        package var final = 0
        /// Copies of an undecided cleaning, and of one that does not count.
        package var held = 0
        package var void = 0
        package var liveRecipients = 0
        /// Bytes that chunks take, and the file's length.
        package var bytes: Int64 = 0
        package var fileBytes: Int64 = 0
        package var outcomes = 0
        package var logBytes: Int64 = 0
        /// Where an unfinished chunk begins that was never acknowledged.
        package var tornAt: Int64?
        package var tornBytes: Int64 = 0
        package var damage: [Damage] = []
        /// What else is wrong: files that are missing or cannot be read.
        package var problems: [String] = []
    }

    package struct Totals: Sendable, Encodable {
        package var segments = 0
        package var messages = 0
        package var live = 0
        package var final = 0
        package var liveRecipients = 0
        package var bytes: Int64 = 0
        package var fileBytes: Int64 = 0
        package var logBytes: Int64 = 0
        package var tornBytes: Int64 = 0
        package var damagedBytes: Int64 = 0
        package var spares = 0
        package var spareBytes: Int64 = 0
        package var reserveBytes: Int64 = 0
    }

    package var directory: String
    /// Nothing is damaged, missing or unreadable. An unfinished tail is no damage.
    package var healthy = true
    package var identity: Identity?
    package var incarnation: String?
    package var registry: Registry?
    package var segments: [Segment] = []
    package var totals = Totals()
    /// Of the directory itself: identity, registry, names.
    package var problems: [String] = []

    init(directory: String) {
        self.directory = directory
    }

    mutating func sum() {
        for segment in segments {
            totals.segments += 1
            totals.messages += segment.messages
            totals.live += segment.live
            totals.final += segment.final
            totals.liveRecipients += segment.liveRecipients
            totals.bytes += segment.bytes
            totals.fileBytes += segment.fileBytes
            totals.logBytes += segment.logBytes
            totals.tornBytes += segment.tornBytes
            totals.damagedBytes += segment.damage.reduce(0) { $0 + max(0, $1.to - $1.from) }
        }
        healthy =
            problems.isEmpty && segments.allSatisfy { $0.damage.isEmpty && $0.problems.isEmpty }
    }
}
