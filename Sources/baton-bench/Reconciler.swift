// Joins what the sender was promised with what the sink got: lost, duplicated, altered, and how long it took.
import Histogram

/// The verdict on a run. Memory: 48 octets per message and recipient sent, 8 per repetition.
struct Reconciler {
    /// One message and recipient that the sender has a record of.
    private struct Entry {
        let key: UInt64
        let begun: Int64
        let checksum: UInt32
        let length: UInt32
        let kind: HistoryKind
        /// When the sink answered the first copy.
        var first: Int64 = 0
        var received: UInt16 = 0
        /// Deliveries that the sink took without saying 2xx: a relay that sends again is right to.
        var unanswered: UInt16 = 0
        var altered = false
        var bounced = false
    }

    /// A bounded list of examples for people.
    struct Example: Sendable {
        let text: String
    }

    static let exampleBound = 20

    private var entries: [Entry] = []
    private var sorted = false
    private let run: UInt32?
    private(set) var unexpected = 0
    private(set) var foreign = 0
    private(set) var delayed = 0
    private(set) var outstanding = 0
    private(set) var latency = Histogram<UInt32>(
        highestTrackableValue: 3_600_000_000, numberOfSignificantValueDigits: .three)
    private(set) var examples: [Example] = []
    /// For each repetition, when the sink answered the first copy: what went wrong went wrong just then.
    private(set) var repeated: [Int64] = []
    private var firstBegun = Int64.max
    private var lastReceived: Int64 = 0
    private var lastAccepted: Int64 = 0

    init(run: UInt32? = nil) { self.run = run }

    private static func key(_ record: HistoryRecord) -> UInt64 { record.index << 16 | UInt64(record.recipient) }

    /// All of the sender's records come first.
    mutating func sent(_ record: HistoryRecord) {
        if let run, record.run != run { return }
        guard record.kind == .accepted || record.kind == .refused || record.kind == .inDoubt else { return }
        entries.append(
            Entry(
                key: Self.key(record), begun: record.begun, checksum: record.checksum, length: record.length,
                kind: record.kind))
        firstBegun = min(firstBegun, record.begun)
        if record.kind == .accepted {
            outstanding += 1
            lastAccepted = max(lastAccepted, record.finished)
        }
        sorted = false
    }

    /// Ends the sender's part.
    mutating func sealSent() {
        entries.sort { $0.key < $1.key }
        sorted = true
    }

    mutating func got(_ record: HistoryRecord) {
        precondition(sorted, "sealSent comes first")
        if record.index == HistoryRecord.foreignIndex {
            foreign += 1
            return
        }
        if let run, record.run != run { return }
        guard let slot = find(Self.key(record)) else {
            unexpected += 1
            example("unexpected: message \(record.index) recipient \(record.recipient)")
            return
        }
        let wasOpen = entries[slot].received == 0 && !entries[slot].bounced
        switch record.kind {
        case .report:
            if record.code == ReportAction.delayed.rawValue { delayed += 1 }
            guard record.code == ReportAction.failed.rawValue else { return }
            entries[slot].bounced = true
        case .receivedUnanswered:
            entries[slot].unanswered &+= 1
            check(record, slot)
            return
        case .received:
            entries[slot].received &+= 1
            check(record, slot)
            if entries[slot].received == 1 {
                entries[slot].first = record.finished
                latency.record(UInt64(max(1, (record.finished - entries[slot].begun) / 1000)))
            } else {
                repeated.append(entries[slot].first)
                example(
                    "again: message \(record.index) recipient \(record.recipient) queue id \(Self.text(record.queueID))"
                )
            }
            lastReceived = max(lastReceived, record.finished)
        default: return
        }
        if wasOpen, entries[slot].kind == .accepted { outstanding -= 1 }
    }

    private mutating func check(_ record: HistoryRecord, _ slot: Int) {
        guard record.checksum != entries[slot].checksum || record.length != entries[slot].length else { return }
        if !entries[slot].altered {
            example(
                "altered: message \(record.index) recipient \(record.recipient): \(entries[slot].length) octets sent, "
                    + "\(record.length) received, queue id \(Self.text(record.queueID))")
        }
        entries[slot].altered = true
    }

    private mutating func example(_ text: String) {
        if examples.count < Self.exampleBound { examples.append(Example(text: text)) }
    }

    private static func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

    private func find(_ key: UInt64) -> Int? {
        var low = 0
        var high = entries.count
        while low < high {
            let middle = (low + high) / 2
            if entries[middle].key < key { low = middle + 1 } else { high = middle }
        }
        return low < entries.count && entries[low].key == key ? low : nil
    }

    /// The counts. `lost` is what was accepted, and neither received with 2xx nor reported as failed.
    func verdict() -> Verdict {
        var verdict = Verdict()
        for entry in entries {
            switch entry.kind {
            case .accepted:
                verdict.accepted += 1
                if entry.received > 0 {
                    verdict.delivered += 1
                } else if entry.bounced {
                    verdict.bounced += 1
                } else {
                    verdict.lost += 1
                    if verdict.lostExamples.count < Self.exampleBound {
                        verdict.lostExamples.append("lost: message \(entry.key >> 16) recipient \(entry.key & 0xffff)")
                    }
                }
            case .inDoubt:
                verdict.inDoubt += 1
                if entry.received > 0 || entry.bounced { verdict.inDoubtDelivered += 1 }
            default:
                verdict.refused += 1
                if entry.received > 0 { verdict.refusedDelivered += 1 }
            }
            if entry.received > 1 { verdict.duplicated += Int(entry.received) - 1 }
            if entry.received > 0, entry.bounced { verdict.deliveredAndBounced += 1 }
            if entry.altered { verdict.altered += 1 }
        }
        verdict.unexpected = unexpected
        verdict.foreign = foreign
        verdict.delayNotices = delayed
        verdict.examples = examples.map(\.text)
        verdict.seconds = lastReceived > firstBegun ? Double(lastReceived - firstBegun) / 1e9 : 0
        verdict.latency = latency.json
        return verdict
    }
}

/// What became of the recipients of a run.
struct Verdict: Sendable {
    var accepted = 0
    var delivered = 0
    var bounced = 0
    var lost = 0
    /// Deliveries beyond the first that the sink answered with 2xx.
    var duplicated = 0
    var altered = 0
    var deliveredAndBounced = 0
    var refused = 0
    var refusedDelivered = 0
    var inDoubt = 0
    var inDoubtDelivered = 0
    var unexpected = 0
    var foreign = 0
    var delayNotices = 0
    /// From the first message begun to the last one received.
    var seconds = 0.0
    var latency = JSONValue.null
    var lostExamples: [String] = []
    var examples: [String] = []

    var endToEndRate: Double { seconds > 0 ? Double(delivered) / seconds : 0 }

    var json: JSONValue {
        .object([
            ("accepted", .integer(accepted)), ("delivered", .integer(delivered)), ("bounced", .integer(bounced)),
            ("lost", .integer(lost)), ("duplicated", .integer(duplicated)), ("altered", .integer(altered)),
            ("delivered_and_bounced", .integer(deliveredAndBounced)), ("refused", .integer(refused)),
            ("refused_but_delivered", .integer(refusedDelivered)), ("in_doubt", .integer(inDoubt)),
            ("in_doubt_delivered", .integer(inDoubtDelivered)), ("unexpected", .integer(unexpected)),
            ("foreign", .integer(foreign)), ("delay_notices", .integer(delayNotices)), ("seconds", .number(seconds)),
            ("end_to_end_per_second", .number(endToEndRate)), ("end_to_end_latency", latency),
            ("examples", .array((lostExamples + examples).map { .string($0) })),
        ])
    }

    /// For people: the numbers that matter, a line each.
    var text: String {
        var lines = [
            "accepted \(accepted), delivered \(delivered), bounced \(bounced), refused \(refused), in doubt \(inDoubt)",
            "lost \(lost), duplicated \(duplicated), altered \(altered)",
            "end to end \(Int(endToEndRate.rounded()))/s over \((seconds * 100).rounded() / 100) s",
        ]
        if case .object(let pairs) = latency {
            let wanted = ["p50", "p99", "p99_9", "max"]
            let parts = pairs.filter { wanted.contains($0.0) }.map { "\($0.0) \($0.1.text)" }
            lines.append("end-to-end latency in ms: " + parts.joined(separator: ", "))
        }
        lines += lostExamples
        lines += examples
        return lines.joined(separator: "\n")
    }
}

/// Whether the kills of a run account for its repetitions: a copy is sent again where the relay died between the receiver's
/// answer and its own record of it, so that the first copy was answered shortly before a kill (or while it was under way).
struct KillAccount: Sendable {
    /// Longest time between a receiver's answer and the record of it that a kill may cut (nanoseconds).
    static let window: Int64 = 1_000_000_000
    /// Repetitions whose first copy was answered in the window before a kill, and the others.
    private(set) var explained = 0
    private(set) var unexplained = 0
    /// Most repetitions of one kill, and the kills that caused any.
    private(set) var mostOfAKill = 0
    private(set) var killsWithRepetitions = 0
    /// Longest time from an answer to the kill that cut its record (nanoseconds).
    private(set) var longest: Int64 = 0

    /// How long after a kill the sink may still read, and answer, what the dead relay had sent (nanoseconds).
    static let lateAnswer: Int64 = 500_000_000

    /// Times of CLOCK_MONOTONIC; `kills`, ascending, are taken when the process is gone.
    init(repeated: [Int64], kills: [Int64]) {
        var counts: [Int64: Int] = [:]
        for first in repeated {
            guard let kill = kills.first(where: { $0 >= first - Self.lateAnswer }), kill - first <= Self.window else {
                unexplained += 1
                continue
            }
            explained += 1
            counts[kill, default: 0] += 1
            longest = max(longest, kill - first)
        }
        mostOfAKill = counts.values.max() ?? 0
        killsWithRepetitions = counts.count
    }

    var json: JSONValue {
        .object([
            ("explained", .integer(explained)), ("unexplained", .integer(unexplained)),
            ("kills_with_duplicates", .integer(killsWithRepetitions)), ("most_of_one_kill", .integer(mostOfAKill)),
            ("longest_ms_from_answer_to_kill", .number(Double(longest) / 1e6)),
        ])
    }
}
