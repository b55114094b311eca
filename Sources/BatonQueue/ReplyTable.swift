// Last replies, each kept once however many recipients got it.
import BatonModel

/// Replies by number, counted; 0 is none. At `QueueLimits.replies` different ones, a new reply keeps code, status and stage
/// and loses its text (the outcome log has it); when even those are too many, it is not kept.
struct ReplyTable: Sendable {
    private struct Entry: Sendable {
        var reply: SMTPReply
        var users: Int
    }

    private var entries: [Entry?] = [nil]
    private var free: [UInt32] = []
    private var numbers: [SMTPReply: UInt32] = [:]
    private let limit: Int

    init(limit: Int = QueueLimits.replies) {
        self.limit = limit
    }

    var count: Int { numbers.count }

    /// A number for the reply, counted once more; give it back with `release`.
    mutating func keep(_ reply: SMTPReply) -> UInt32 {
        let kept = reply.kept
        if let number = numbers[kept] {
            entries[Int(number)]?.users += 1
            return number
        }
        // A quarter is left for replies without text, of which there are few.
        if numbers.count >= limit - limit / 4, !kept.text.isEmpty {
            return keep(SMTPReply(code: kept.code, status: kept.status, text: [], stage: kept.stage))
        }
        guard numbers.count < limit else { return 0 }
        let number: UInt32
        if let reused = free.popLast() {
            number = reused
            entries[Int(number)] = Entry(reply: kept, users: 1)
        } else {
            number = UInt32(entries.count)
            entries.append(Entry(reply: kept, users: 1))
        }
        numbers[kept] = number
        return number
    }

    mutating func retain(_ number: UInt32) -> UInt32 {
        if number != 0 { entries[Int(number)]?.users += 1 }
        return number
    }

    mutating func release(_ number: UInt32) {
        guard number != 0, let entry = entries[Int(number)] else { return }
        if entry.users > 1 {
            entries[Int(number)]?.users -= 1
        } else {
            numbers[entry.reply] = nil
            entries[Int(number)] = nil
            free.append(number)
        }
    }

    subscript(number: UInt32) -> SMTPReply? { number == 0 ? nil : entries[Int(number)]?.reply }
}
