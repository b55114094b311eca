// The reconciler's verdicts, history files, options and scenarios.
import ArgumentParser
import BatonCore
import Glibc
import Testing

@testable import baton_bench

private func record(
    _ kind: HistoryKind, _ index: UInt64, recipient: UInt16 = 0, code: UInt16 = 250, checksum: UInt32 = 7,
    at: Int64 = 1_000_000
) -> HistoryRecord {
    HistoryRecord(
        kind: kind, run: 1, index: index, recipient: recipient, code: code, checksum: checksum, length: 100, begun: at,
        finished: at + 5_000_000, queueID: Array("0ABC".utf8))
}

private func verdict(sent: [HistoryRecord], got: [HistoryRecord]) -> Verdict {
    var reconciler = Reconciler(run: 1)
    for entry in sent { reconciler.sent(entry) }
    reconciler.sealSent()
    for entry in got { reconciler.got(entry) }
    return reconciler.verdict()
}

@Suite struct ReconcilerTests {
    @Test func lossNotNoticed() {
        let result = verdict(sent: (0..<10).map { record(.accepted, $0) }, got: (0..<9).map { record(.received, $0) })
        #expect(result.lost == 1 && result.delivered == 9)
        #expect(result.lostExamples == ["lost: message 9 recipient 0"])
        #expect(!ScenarioRunner.failures(result, ["lost": 0]).isEmpty)
        #expect(ScenarioRunner.failures(result, ["lost": 1, "min_delivered": 9]).isEmpty)
        #expect(!ScenarioRunner.failures(result, ["min_delivered": 10]).isEmpty)
    }

    @Test func lossOfOneRecipientOfSeveral() {
        let result = verdict(
            sent: [record(.accepted, 1, recipient: 0), record(.accepted, 1, recipient: 1)],
            got: [record(.received, 1, recipient: 0), record(.received, 1, recipient: 0)])
        #expect(result.lost == 1 && result.duplicated == 1)
    }

    @Test func duplicateBlamedOnAKillThatDidNotCauseIt() {
        var reconciler = Reconciler(run: 1)
        for index in 0..<3 { reconciler.sent(record(.accepted, UInt64(index))) }
        reconciler.sealSent()
        let second: Int64 = 1_000_000_000
        // Answered at 10 s (a kill follows 5 ms later), at 20 s (none does), at 30 s (the kill was 2 ms before).
        for (index, at) in [10 * second, 20 * second, 30 * second].enumerated() {
            reconciler.got(record(.received, UInt64(index), at: at - 5_000_000))
            reconciler.got(record(.received, UInt64(index), at: at + 7 * second))
        }
        #expect(reconciler.repeated == [10 * second, 20 * second, 30 * second])
        let kills = [10 * second + 5_000_000, 22 * second, 30 * second - 2_000_000]
        let account = KillAccount(repeated: reconciler.repeated, kills: kills)
        #expect(account.explained == 2 && account.unexplained == 1 && account.mostOfAKill == 1)
        #expect(account.killsWithRepetitions == 2 && account.longest == 5_000_000)
        #expect(!ScenarioRunner.failures(reconciler.verdict(), ["unexplained": 0], account).isEmpty)
        #expect(ScenarioRunner.failures(reconciler.verdict(), ["unexplained": 1], account).isEmpty)
    }

    @Test func alterationNotNoticed() {
        let result = verdict(sent: [record(.accepted, 1)], got: [record(.received, 1, checksum: 8)])
        #expect(result.altered == 1 && result.lost == 0)
        #expect(!ScenarioRunner.failures(result, ["altered": 0]).isEmpty)
    }

    @Test func repeatAfterAnUnansweredDeliveryCountedAsDuplicate() {
        let result = verdict(
            sent: [record(.accepted, 1), record(.accepted, 2)],
            got: [record(.receivedUnanswered, 1), record(.received, 1), record(.receivedUnanswered, 2)])
        #expect(result.duplicated == 0 && result.delivered == 1 && result.lost == 1)
    }

    @Test func bouncedCountedAsLost() {
        let failed = record(.report, 1, code: ReportAction.failed.rawValue)
        let delayed = record(.report, 2, code: ReportAction.delayed.rawValue)
        let result = verdict(sent: [record(.accepted, 1), record(.accepted, 2)], got: [failed, delayed])
        #expect(result.bounced == 1 && result.lost == 1 && result.delayNotices == 1)
        let both = verdict(sent: [record(.accepted, 1)], got: [failed, record(.received, 1)])
        #expect(both.deliveredAndBounced == 1)
    }

    @Test func inDoubtOrRefusedCountedAsLost() {
        let result = verdict(
            sent: [record(.inDoubt, 1, code: 0), record(.refused, 2, code: 451), record(.inDoubt, 3, code: 0)],
            got: [record(.received, 1), record(.received, 2), record(.received, 9)])
        #expect(result.lost == 0 && result.inDoubt == 2 && result.inDoubtDelivered == 1)
        #expect(result.refused == 1 && result.refusedDelivered == 1 && result.unexpected == 1)
    }
}

@Suite struct HistoryTests {
    private func path() -> String { "bench-history-\(getpid())-\(UInt64.random(in: 0...UInt64.max)).tmp" }

    @Test func recordDoesNotSurviveTheFile() throws {
        let file = path()
        defer { unlink(file) }
        let writer = try HistoryWriter(path: file)
        var reader = try HistoryReader(path: file)
        let count = HistoryWriter.bufferBound / HistoryRecord.size + 100
        for index in 0..<count { writer.append(record(.accepted, UInt64(index), recipient: UInt16(index % 5))) }
        writer.flush()
        var seen: [HistoryRecord] = []
        try reader.forEachNew { seen.append($0) }
        #expect(
            seen.count == count && seen.last == record(.accepted, UInt64(count - 1), recipient: UInt16((count - 1) % 5))
        )
        writer.append(record(.inDoubt, 77))
        try writer.close()
        seen.removeAll()
        try reader.forEachNew { seen.append($0) }
        #expect(seen == [record(.inDoubt, 77)])
        #expect(reader.damaged == 0)
    }

    @Test func halfARecordReadAsOne() throws {
        let file = path()
        defer { unlink(file) }
        var bytes: [UInt8] = []
        record(.received, 5).encode(into: &bytes)
        bytes += bytes.prefix(40)
        try writeFile(file, "")
        let descriptor = open(file, O_WRONLY | O_APPEND)
        #expect(bytes.withUnsafeBytes { writeAll(descriptor, $0) } == 0)
        close(descriptor)
        var reader = try HistoryReader(path: file)
        var seen = 0
        try reader.forEachNew { _ in seen += 1 }
        #expect(seen == 1)
    }

    @Test func damagedRecordAccepted() {
        var bytes: [UInt8] = []
        record(.received, 5).encode(into: &bytes)
        #expect(bytes.count == HistoryRecord.size)
        #expect(bytes.withUnsafeBytes { HistoryRecord($0) } != nil)
        bytes[0] = 99
        #expect(bytes.withUnsafeBytes { HistoryRecord($0) } == nil)
        bytes[0] = 1
        bytes[1] = 29
        #expect(bytes.withUnsafeBytes { HistoryRecord($0) } == nil)
    }
}

@Suite struct LoadTests {
    @Test func idThatDoesNotComeBack() {
        for id in [
            BenchID(run: 0, index: 0), BenchID(run: .max, index: .max), BenchID(run: 0x1234, index: 987_654_321),
        ] {
            var text: [UInt8] = []
            id.append(to: &text)
            #expect(text.count == BenchID.textLength && BenchID(field: text + [0x0d, 0x0a]) == id)
        }
        for bad in ["", "0000000a_0000000000000009", "0000000a-000000000000000", "0000000A-0000000000000009"] {
            #expect(BenchID(field: Array(bad.utf8)) == nil)
        }
    }

    @Test func sizesFarFromWhatWasAskedFor() {
        for (size, low, high) in [(SizeOption(5120), 4700, 5500), (SizeOption(argument: "1KiB-8KiB")!, 900, 8600)] {
            var factory = MessageFactory(
                run: 1, seed: 5, sender: "a@b.example", recipients: CountOption(1), domains: 10, zipf: 1,
                domain: "x.test",
                size: size, style: .text)
            for index in 0..<200 {
                let message = factory.make(UInt64(index), due: 0)
                #expect(message.length >= low && message.length <= high)
                #expect(message.checksum == CRC32C.of(message.header + message.body.plain))
            }
        }
    }

    @Test func domainsThatDoNotFollowZipf() {
        let zipf = ZipfSampler(count: 100, exponent: 1)
        var random = SplitMix64(seed: 11)
        var counts = [Int](repeating: 0, count: 100)
        for _ in 0..<20_000 { counts[zipf.rank(&random)] += 1 }
        // The first of 100 has 1/H(100) = 19.3 % of the draws, the tenth a tenth of that.
        #expect(counts[0] > 3500 && counts[0] < 4200)
        #expect(counts[9] > 280 && counts[9] < 500)
        #expect(counts.reduce(0, +) == 20_000)
    }

    @Test func unitsMisread() {
        #expect(SpanOption(argument: "250ms")?.nanoseconds == 250_000_000)
        #expect(SpanOption(argument: "1.5s")?.nanoseconds == 1_500_000_000)
        #expect(SpanOption(argument: "2m")?.nanoseconds == 120_000_000_000)
        #expect(
            SpanOption(argument: "-1s") == nil && SpanOption(argument: "5") == nil && SpanOption(argument: "s") == nil)
        #expect(SizeOption(argument: "5KiB")?.low == 5120 && SizeOption(argument: "999GiB") == nil)
        #expect(CountOption(argument: "3-2") == nil && CountOption(argument: "0") == nil)
        #expect(EndpointOption(argument: "[::1]:25")?.kind == .tcp(host: "::1", port: 25))
        #expect(EndpointOption(argument: "nohost") == nil && EndpointOption(argument: "h:99999") == nil)
        #expect(StageRateOption(argument: "rcpt=0.5")?.rate == 0.5 && StageRateOption(argument: "rcpt=2") == nil)
    }

    @Test func scenarioWithAMisspeltKey() throws {
        let good = try Scenario(
            yaml: "name: n\nsend: {messages: 5, pipelining: true}\nsink: {temp-fail: [rcpt=0.1, dot=0.2]}\n", name: "x")
        #expect(good.send == ["--messages", "5", "--pipelining"])
        #expect(good.sink == ["--temp-fail", "rcpt=0.1", "--temp-fail", "dot=0.2"])
        #expect(throws: BenchError.self) { try Scenario(yaml: "sned: {messages: 5}", name: "x") }
        #expect(throws: BenchError.self) { try Scenario(yaml: "name: n", name: "x") }
        #expect(throws: BenchError.self) { try Scenario(yaml: "send: {messages: 5}\nexpect: {lots: 0}", name: "x") }
        #expect(throws: BenchError.self) {
            try Scenario(yaml: "send: {messages: 5}\nrelay: {kill: {every: 3s-1s}}", name: "x")
        }
    }

    @Test func shippedScenarioThatDoesNotParse() throws {
        let folder = #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined() + "/benchmarks/scenarios"
        for name in ["direct", "steady", "flood", "mixed", "large", "kill-loop", "drop-after-dot", "restarts"] {
            let plan = try Scenario(yaml: readFile("\(folder)/\(name).yaml"), name: "?")
            #expect(plan.name == name)
            _ = try BatonBench.parseAsRoot(["send"] + plan.send)
            _ = try BatonBench.parseAsRoot(["sink"] + plan.sink)
        }
    }

    @Test func jsonThatIsNone() {
        let value = JSONValue.object([
            ("a\"\n", .string("\u{1}\\")), ("n", .number(.infinity)), ("l", .array([.integer(1), .null])),
        ])
        #expect(value.text == #"{"a\"\n": "\u0001\\", "n": null, "l": [1, null]}"#)
    }
}
