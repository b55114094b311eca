// Looks events up in the log's files: the timeline of a message, and messages by recipient, sender or Message-ID.
import BatonCore
import BatonModel
import BatonRuntime
import CBatonSystem
import Foundation
import Glibc
import Synchronization

/// An event read back, as far as the admin API shows it.
struct EventRecord: Sendable {
    let type: String
    let eventID: String
    let id: String
    let sender: String
    let recipient: String
    let messageID: String
    let size: Int
    let user: String
    let attempt: AttemptReport

    /// Nil for a line that is no event of ours (a torn last line, say).
    init?(line: Data) {
        guard let root = try? JSONSerialization.jsonObject(with: line) as? [String: Any],
            let type = root["type"] as? String, let eventID = root["event_id"] as? String,
            let id = root["id"] as? String, let recipient = root["recipient"] as? String
        else { return nil }
        self.type = type
        self.eventID = eventID
        self.id = id
        self.recipient = recipient
        sender = root["sender"] as? String ?? ""
        messageID = root["message_id"] as? String ?? ""
        size = root["size"] as? Int ?? 0
        user = root["user"] as? String ?? ""
        let response = root["response"] as? [String: Any] ?? [:]
        let peer = root["peer_address"] as? [String: Any]
        var status: String?
        if let code = response["enhanced_code"] as? [String: Any], let a = code["class"] as? Int,
            let b = code["subject"] as? Int, let c = code["detail"] as? Int
        {
            status = "\(a).\(b).\(c)"
        }
        attempt = AttemptReport(
            time: root["event_time"] as? String ?? "", type: type, attempt: root["num_attempts"] as? Int ?? 0,
            code: response["code"] as? Int ?? 0, enhancedCode: status, reply: response["content"] as? String ?? "",
            command: response["command"] as? String ?? "", peerName: peer?["name"] as? String,
            peerAddress: peer?["addr"] as? String, site: root["site"] as? String)
    }
}

/// Searches on a worker thread, never on a loop. A search reads at most `bytesMax` of the files and then says so by a cursor.
package struct EventSearch: Sendable {
    enum Key: Sendable {
        case recipient(String)
        case sender(String)
        case senderDomain(String)
        case messageID(String)
    }

    /// Octets that one request reads.
    static let bytesMax = 512 * ByteCount.mebi
    /// Events of one message that are shown.
    static let eventsMax = 10_000

    private let directory: String
    private let workers: WorkerPool

    init(directory: String, workers: WorkerPool) {
        self.directory = directory
        self.workers = workers
    }

    /// All events of a message, oldest first.
    func events(of id: MessageID) async throws -> [EventRecord] {
        let needle = id.description
        // A file that ended before the message came cannot hold its events.
        let start = CivilTime(secondsSinceEpoch: id.madeAt.secondsSinceEpoch - 1).compact
        return try await run {
            var found: [EventRecord] = []
            var budget = Self.bytesMax
            for file in Self.files(directory, from: start) {
                _ = Self.scan(file, for: "\"id\":\"\(needle)\"", budget: &budget) { line in
                    if let record = EventRecord(line: line), record.id == needle { found.append(record) }
                    return found.count < Self.eventsMax
                }
                if budget <= 0 { break }
            }
            return found
        }
    }

    /// Ids of matching messages, newest file first, oldest line first in each. The cursor is the file to go on with, and where in it:
    /// `name@octets`. A message whose lines lie on both sides of that place is on both pages.
    func messages(matching key: Key, limit: Int, before cursor: String?) async throws -> (
        ids: [MessageID], next: String?
    ) {
        let needle =
            switch key {
            case .recipient(let address): "\"recipient\":\(Self.quoted(address))"
            case .sender(let address): "\"sender\":\(Self.quoted(address))"
            case .senderDomain(let domain): "@\(domain)\",\"recipient\":"
            case .messageID(let text): Self.messageIDNeedle(text)
            }
        let begin = cursor.flatMap(Place.init)
        if cursor != nil, begin == nil { throw ProblemReport(400, "Bad Request", "unknown cursor") }
        return try await run {
            var ids: [MessageID] = []
            var seen: Set<MessageID> = []
            var budget = Self.bytesMax
            var files = Self.files(directory, from: "")
            var place = begin
            if let place {
                files = files.filter { !EventFileName.precedes(place.name, ($0 as NSString).lastPathComponent) }
            }
            for file in files.reversed() {
                let name = (file as NSString).lastPathComponent
                let start = place?.name == name ? place?.offset ?? 0 : 0
                place = nil
                let stopped = Self.scan(file, from: start, for: needle, budget: &budget) { line in
                    guard let record = EventRecord(line: line), record.type == "Reception",
                        let id = MessageID(text: Array(record.id.utf8)), !seen.contains(id)
                    else { return true }
                    guard ids.count < limit else { return false }
                    seen.insert(id)
                    ids.append(id)
                    return true
                }
                if let stopped { return (ids, Place(name: name, offset: stopped).text) }
            }
            return (ids, nil)
        }
    }

    private func run<T: Sendable>(_ work: @escaping @Sendable () -> T) async throws -> T {
        try await withCheckedThrowingContinuation { continuation in
            let taken = workers.submit { continuation.resume(returning: work()) }
            if !taken {
                continuation.resume(throwing: ProblemReport(503, "Service Unavailable", "too many searches at a time"))
            }
        }
    }

    /// Where the next page begins.
    struct Place {
        let name: String
        let offset: Int

        init(name: String, offset: Int) {
            self.name = name
            self.offset = offset
        }

        init?(_ text: String) {
            let parts = text.split(separator: "@", omittingEmptySubsequences: false)
            guard parts.count == 2, let offset = Int(parts[1]), offset >= 0 else { return nil }
            self.init(name: String(parts[0]), offset: offset)
        }

        var text: String { "\(name)@\(offset)" }
    }

    private static func quoted(_ text: String) -> String {
        let data = try? JSONSerialization.data(
            withJSONObject: text, options: [.fragmentsAllowed, .withoutEscapingSlashes])
        return data.map { String(decoding: $0, as: UTF8.self) } ?? "\"\""
    }

    private static func messageIDNeedle(_ text: String) -> String {
        let bare = text.hasPrefix("<") && text.hasSuffix(">") ? String(text.dropFirst().dropLast()) : text
        return "\"message_id\":\(quoted("<\(bare)>"))"
    }

    /// Paths in order of time, from the last file that began before `start`.
    static func files(_ directory: String, from start: String) -> [String] {
        let names = ((try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? [])
            .filter { $0.hasSuffix(".jsonl") }.sorted(by: EventFileName.precedes)
        let first = names.lastIndex { $0.prefix(16) < start } ?? 0
        return names[min(first, names.count)...].map { "\(directory)/\($0)" }
    }

    /// Octets read at a time, so that a search does not count the log's files into the process's memory.
    static let window = ByteCount.mebi
    /// A longer line is skipped.
    static let lineMax = 4 * ByteCount.mebi

    /// Calls `take` with each line that holds `needle`, from the line that begins at octet `start`, until it answers false or the budget
    /// is used up. A last line without its end is looked at too: it may be on its way. Returns where the first line begins that was
    /// not taken; nil where the file was read to its end.
    static func scan(
        _ path: String, from start: Int = 0, for needle: String, budget: inout Int, take: (Data) -> Bool
    ) -> Int? {
        let descriptor = baton_open(path, O_RDONLY, 0)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        guard lseek(descriptor, off_t(start), SEEK_SET) >= 0 else { return nil }
        /// Of the first octet that is held.
        var base = start
        let wanted = Array(needle.utf8)
        var held: [UInt8] = []
        var block = [UInt8](repeating: 0, count: window)
        while budget > 0 {
            let most = min(window, budget)
            let count = block.withUnsafeMutableBytes { read(descriptor, $0.baseAddress, most) }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                return lines(of: held[...], with: wanted, take).map { base + $0 }
            }
            budget -= count
            held.append(contentsOf: block[..<count])
            guard let end = held.lastIndex(of: 0x0a) else {
                if held.count > lineMax {
                    base += held.count
                    held.removeAll(keepingCapacity: true)
                }
                continue
            }
            if let stopped = lines(of: held[...end], with: wanted, take) { return base + stopped }
            base += end + 1
            held.removeSubrange(...end)
        }
        return base
    }

    /// Where the line begins that `take` did not want; nil once it has had all.
    private static func lines(of octets: ArraySlice<UInt8>, with needle: [UInt8], _ take: (Data) -> Bool) -> Int? {
        var from = octets.startIndex
        while let hit = find(needle, in: octets[from...]) {
            let start = octets[..<hit].lastIndex(of: 0x0a).map { $0 + 1 } ?? octets.startIndex
            let end = octets[hit...].firstIndex(of: 0x0a) ?? octets.endIndex
            if !take(Data(octets[start..<end])) { return start }
            from = end
        }
        return nil
    }

    private static func find(_ needle: [UInt8], in octets: ArraySlice<UInt8>) -> Int? {
        octets.withUnsafeBytes { all in
            let hit = baton_find(all.baseAddress, all.count, needle, needle.count)
            return hit < 0 ? nil : octets.startIndex + hit
        }
    }
}
