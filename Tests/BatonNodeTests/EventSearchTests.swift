// Searching event files piece by piece: lines across pieces, lines without end, and the budget.
import BatonCore
import BatonModel
import BatonRuntime
import Foundation
import Testing

@testable import BatonNode

/// A file with these octets, for the time of `body`.
private func withFile(_ octets: [UInt8], _ body: (String) throws -> Void) throws {
    let file = FileManager.default.temporaryDirectory.appendingPathComponent("ev-\(UInt64.random(in: 0 ... .max))")
    defer { try? FileManager.default.removeItem(at: file) }
    try Data(octets).write(to: file)
    try body(file.path)
}

private func found(_ path: String, _ needle: String, budget: Int = .max) -> (lines: [String], left: Int) {
    var budget = budget
    var lines: [String] = []
    _ = EventSearch.scan(path, for: needle, budget: &budget) { line in
        lines.append(String(decoding: line, as: UTF8.self))
        return true
    }
    return (lines, budget)
}

@Test func searchLosesALineBetweenTwoPieces() throws {
    // Lines of 100 octets, so that one crosses each end of a piece; every one is asked for.
    let count = 3 * EventSearch.window / 100
    let all = (0..<count).map { number in
        let text = "{\"n\":\(number),\"x\":\""
        return text + String(repeating: "y", count: 97 - text.count) + "\"}"
    }
    try withFile(Array(all.joined(separator: "\n").utf8)) { path in
        let missing = Set(all).subtracting(found(path, "{\"n\":").lines)
        #expect(missing.isEmpty)
        #expect(found(path, "{\"n\":").lines.count == count)
        let across = EventSearch.window / 100
        #expect(found(path, "{\"n\":\(across),").lines == [all[across]])
        #expect(found(path, "nothing").lines.isEmpty)
    }
}

@Test func searchKeepsALineWithoutEnd() throws {
    let long = [UInt8](repeating: UInt8(ascii: "z"), count: EventSearch.lineMax + 3 * EventSearch.window)
    try withFile(long + Array("\n{\"n\":1}\n".utf8)) { path in
        #expect(found(path, "{\"n\":1}").lines == ["{\"n\":1}"])
    }
}

@Test func searchReadsPastItsBudget() throws {
    let lines = Array(String(repeating: "{\"n\":1}\n", count: 1000).utf8)
    try withFile(lines) { path in
        let result = found(path, "{\"n\":1}", budget: 80)
        #expect(result.lines.count == 10)
        #expect(result.left == 0)
        #expect(found(path, "{\"n\":1}", budget: 0).lines.isEmpty)
    }
}

/// A line as `EventJSON` writes it, as far as a search looks.
private func reception(_ number: Int, _ recipient: String) -> String {
    let id = MessageID(high: 7, low: UInt64(number)).description
    return
        "{\"type\":\"Reception\",\"event_id\":\"\(number)-\(recipient)\",\"id\":\"\(id)\",\"recipient\":\"\(recipient)\"}\n"
}

@Test func pageEndsAndTheRestOfItsFileIsNeverShown() async throws {
    let directory = FileManager.default.temporaryDirectory.appendingPathComponent("ev-\(UInt64.random(in: 0 ... .max))")
    defer { try? FileManager.default.removeItem(at: directory) }
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    var all: Set<UInt64> = []
    // The second and third began within one second.
    for (file, name) in ["20261127T100000Z", "20261127T110000Z", "20261127T110000Z-10"].enumerated() {
        var text = ""
        for number in (file * 10)..<(file * 10 + 7) {
            all.insert(UInt64(number))
            text += reception(number, "a@x.test") + reception(number, "b@x.test") + reception(number + 500, "c@y.test")
        }
        try Data(text.utf8).write(to: directory.appendingPathComponent("\(name).jsonl"))
    }
    let workers = WorkerPool(name: "search", threads: 1, capacity: 4)
    defer { workers.stop() }
    let search = EventSearch(directory: directory.path, workers: workers)
    for limit in [1, 3, 7, 8, 100] {
        var found: [UInt64] = []
        var cursor: String?
        var pages = 0
        repeat {
            let page = try await search.messages(matching: .recipient("a@x.test"), limit: limit, before: cursor)
            #expect(page.ids.count <= limit)
            found += page.ids.map(\.low)
            cursor = page.next
            pages += 1
        } while cursor != nil && pages < 50
        #expect(found.count == all.count && Set(found) == all, "limit \(limit): \(found)")
        // The newest file first.
        #expect(found.prefix(7).allSatisfy { $0 >= 20 }, "limit \(limit): \(found)")
    }
    await #expect(throws: ProblemReport.self) {
        _ = try await search.messages(matching: .recipient("a@x.test"), limit: 5, before: "nonsense")
    }
}
