// What every control plane has to do, whatever is behind it: one suite, run against each.
import BatonControlPlane
import BatonCore
import Synchronization
import Testing

/// A plane of its own for one case, and how its world is moved.
struct PlaneUnderTest: Sendable {
    let plane: any ControlPlane
    /// Keys of this case alone.
    let prefix: String
    /// Lets time pass: simulated, or real.
    let pass: @Sendable (TimeSpan) async -> Void
    /// Forgets the history up to now.
    let compact: @Sendable () async throws -> Void

    func key(_ name: String) -> ControlKey { ControlKey("\(prefix)/\(name)") }
    var all: ControlKey { ControlKey("\(prefix)/") }

    /// Polls until the condition holds, for 15 s at most.
    func eventually(_ what: String, _ condition: () async throws -> Bool) async throws {
        for _ in 0..<600 {
            if try await condition() { return }
            await pass(.milliseconds(25))
        }
        Issue.record("never: \(what)")
    }

    func commit(
        if comparisons: [ControlComparison] = [], _ writes: [ControlWrite]
    ) async throws -> ControlCommit {
        try await plane.commit(ControlTransaction(if: comparisons, writes))
    }

    /// Commits what has to succeed.
    @discardableResult
    func put(_ name: String, _ value: String, lease: ControlLeaseID? = nil) async throws -> ControlHeader {
        guard case .committed(let header) = try await commit([.put(key(name), Array(value.utf8), lease: lease)]) else {
            throw Unexpected("a put without comparison is in conflict")
        }
        return header
    }

    func value(_ name: String) async throws -> String? {
        try await plane.get(key(name)).entries.first.map { String(decoding: $0.value, as: UTF8.self) }
    }

    /// Records an issue unless the operation is refused for this reason.
    func expect(
        _ refusal: ControlRefusal, at location: SourceLocation = #_sourceLocation, _ operation: () async throws -> Void
    ) async throws {
        do {
            try await operation()
            Issue.record("not refused", sourceLocation: location)
        } catch let failure as ControlFailure {
            #expect(failure.refusal == refusal, "\(failure)", sourceLocation: location)
        }
    }
}

struct Unexpected: Error, CustomStringConvertible {
    let description: String
    init(_ text: String) { description = text }
}

/// Collects what a watch tells.
final class WatchLog: Sendable {
    private let log = Mutex<[ControlWatchEvent]>([])

    func receive(_ event: ControlWatchEvent) { log.withLock { $0.append(event) } }
    var events: [ControlWatchEvent] { log.withLock { $0 } }

    /// All changes told, in order.
    var changes: [ControlChange] {
        events.flatMap { event -> [ControlChange] in if case .changes(let some) = event { some } else { [] } }
    }

    var snapshots: [ControlListing] {
        events.compactMap { if case .snapshot(let listing, _) = $0 { listing } else { nil } }
    }

    /// What a reader knows after all that was told.
    var known: [ControlKey: ControlEntry] {
        var known: [ControlKey: ControlEntry] = [:]
        for event in events {
            switch event {
            case .snapshot(let listing, _):
                known = Dictionary(listing.entries.map { ($0.key, $0) }) { first, _ in first }
            case .changes(let changes):
                for change in changes {
                    if case .put(let entry) = change { known[entry.key] = entry } else { known[change.key] = nil }
                }
            case .interrupted: break
            }
        }
        return known
    }
}

struct ConformanceCase: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let run: @Sendable (PlaneUnderTest) async throws -> Void

    init(_ name: String, _ run: @escaping @Sendable (PlaneUnderTest) async throws -> Void) {
        self.testDescription = name
        self.run = run
    }
}

enum Conformance {
    static let cases = [
        ConformanceCase("keyIsCreatedTwice", keyIsCreatedTwice),
        ConformanceCase("updateAtAnOldRevision", updateAtAnOldRevision),
        ConformanceCase("halfOfATransactionIsWritten", halfOfATransactionIsWritten),
        ConformanceCase("recreatedKeyTakenForTheOldOne", recreatedKeyTakenForTheOldOne),
        ConformanceCase("deletionOfNothingIsAChange", deletionOfNothingIsAChange),
        ConformanceCase("transactionOverItsBounds", transactionOverItsBounds),
        ConformanceCase("twoWritersWinTheSameRevision", twoWritersWinTheSameRevision),
        ConformanceCase("neighbourOfThePrefixIsListed", neighbourOfThePrefixIsListed),
        ConformanceCase("octetsArriveChanged", octetsArriveChanged),
        ConformanceCase("listingLongerThanAPage", listingLongerThanAPage),
        ConformanceCase("listingOfAPastRevision", listingOfAPastRevision),
        ConformanceCase("revisionOrStoreChangesByItself", revisionOrStoreChangesByItself),
        ConformanceCase("stoppedPlaneAnswers", stoppedPlaneAnswers),
        ConformanceCase("leaseLeavesItsKeysBehind", leaseLeavesItsKeysBehind),
        ConformanceCase("renewedLeaseEnds", renewedLeaseEnds),
        ConformanceCase("revokedLeaseLives", revokedLeaseLives),
        ConformanceCase("leasesShareAName", leasesShareAName),
        ConformanceCase("watchMissesOrRepeatsAChange", watchMissesOrRepeatsAChange),
        ConformanceCase("watchFromARevisionTellsOlderChanges", watchFromARevisionTellsOlderChanges),
        ConformanceCase("watchFromACompactedRevision", watchFromACompactedRevision),
        ConformanceCase("watchThatIsNotLookedAfter", watchThatIsNotLookedAfter),
        ConformanceCase("cancelledWatchTellsMore", cancelledWatchTellsMore),
        ConformanceCase("watchesOverTheirBound", watchesOverTheirBound),
    ]
}

extension Conformance {

    static func keyIsCreatedTwice(_ test: PlaneUnderTest) async throws {
        let create = ControlTransaction(if: [.absent(test.key("a"))], [.put(test.key("a"), [1])])
        guard case .committed(let header) = try await test.plane.commit(create) else {
            throw Unexpected("first")
        }
        guard case .conflict(let later, let current) = try await test.plane.commit(create) else {
            throw Unexpected("second")
        }
        #expect(later.revision >= header.revision && later.store == header.store)
        let entry = ControlEntry(
            key: test.key("a"), value: [1], created: header.revision, modified: header.revision)
        #expect(current == [entry])
    }

    static func updateAtAnOldRevision(_ test: PlaneUnderTest) async throws {
        let first = try await test.put("a", "1").revision
        let second = try await test.commit(
            if: [.modified(test.key("a"), at: first)], [.put(test.key("a"), Array("2".utf8))])
        guard case .committed(let header) = second else { throw Unexpected("the right revision is in conflict") }
        let third = try await test.commit(
            if: [.modified(test.key("a"), at: first)], [.put(test.key("a"), Array("3".utf8))])
        guard case .conflict(_, let current) = third else { throw Unexpected("an old revision was accepted") }
        #expect(current.first?.created == first)
        #expect(current.first?.modified == header.revision)
        #expect(try await test.value("a") == "2")
    }

    static func halfOfATransactionIsWritten(_ test: PlaneUnderTest) async throws {
        let revision = try await test.put("a", "1").revision
        let comparisons: [ControlComparison] = [.modified(test.key("a"), at: revision), .absent(test.key("a"))]
        let writes: [ControlWrite] = [.put(test.key("b"), [2]), .delete(test.key("a"))]
        guard case .conflict(_, let current) = try await test.commit(if: comparisons, writes) else {
            throw Unexpected("committed")
        }
        #expect(current.map(\.key) == [test.key("a")])
        #expect(try await test.value("a") == "1")
        #expect(try await test.value("b") == nil)
        guard
            case .committed(let header) = try await test.commit([
                .put(test.key("c"), [3]), .put(test.key("d"), [4]),
            ])
        else { throw Unexpected("conflict") }
        let listing = try await test.plane.list(test.all)
        #expect(listing.entries.map(\.key) == [test.key("a"), test.key("c"), test.key("d")])
        #expect(listing.entries.suffix(2).allSatisfy { $0.modified == header.revision })
    }

    static func recreatedKeyTakenForTheOldOne(_ test: PlaneUnderTest) async throws {
        let created = try await test.put("node", "1").revision
        try await test.put("node", "2")
        let same: [ControlComparison] = [.created(test.key("node"), at: created)]
        guard case .committed = try await test.commit(if: same, [.put(test.key("x"), [])]) else {
            throw Unexpected("a changed key is still the one created")
        }
        _ = try await test.commit([.delete(test.key("node"))])
        guard case .conflict(_, current: []) = try await test.commit(if: same, [.put(test.key("y"), [])]) else {
            throw Unexpected("an absent key")
        }
        try await test.put("node", "1")
        guard case .conflict = try await test.commit(if: same, [.put(test.key("y"), [])]) else {
            throw Unexpected("a recreated key")
        }
        guard case .conflict = try await test.commit(if: [.absent(test.key("node"))], [.put(test.key("y"), [])])
        else { throw Unexpected("present key taken for absent") }
    }

    static func deletionOfNothingIsAChange(_ test: PlaneUnderTest) async throws {
        let before = try await test.put("a", "1").revision
        guard case .committed(let header) = try await test.commit([.delete(test.key("b"))]) else {
            throw Unexpected("conflict")
        }
        #expect(header.revision == before)
        guard case .committed(let after) = try await test.commit([.delete(test.key("a"))]) else {
            throw Unexpected("conflict")
        }
        #expect(after.revision == before + 1)
        #expect(try await test.value("a") == nil)
    }

    static func transactionOverItsBounds(_ test: PlaneUnderTest) async throws {
        let writes = (0..<ControlLimits.operations).map { ControlWrite.put(test.key("\($0)"), [1]) }
        let comparisons = (0..<ControlLimits.operations).map { ControlComparison.absent(test.key("\($0)")) }
        guard case .committed = try await test.commit(if: comparisons, writes) else { throw Unexpected("128") }
        let long = [UInt8](repeating: 0x62, count: ControlLimits.valueBytes)
        _ = try await test.commit([.put(test.key("long"), long)])
        let key = ControlKey(bytes: [UInt8](repeating: 0x61, count: ControlLimits.keyBytes + 1))
        let wrong: [ControlTransaction] = [
            ControlTransaction(if: [], writes + [.delete(test.key("z"))]),
            ControlTransaction(if: comparisons + [.absent(test.key("z"))], [.delete(test.key("z"))]),
            ControlTransaction(if: [], [.put(test.key("z"), long + [0])]),
            ControlTransaction(if: [], [.put(key, [])]),
            ControlTransaction(if: [], [.put(ControlKey(""), [])]),
            ControlTransaction(if: [.absent(key)], [.put(test.key("z"), [])]),
            ControlTransaction(if: [], [.put(test.key("z"), []), .delete(test.key("z"))]),
            ControlTransaction(if: [.modified(test.key("z"), at: 0)], [.put(test.key("z"), [])]),
            ControlTransaction(if: [], (0..<65).map { .put(test.key("\($0)"), long) }),
            ControlTransaction(if: [], []),
        ]
        for transaction in wrong {
            try await test.expect(.invalid) { _ = try await test.plane.commit(transaction) }
        }
        #expect(try await test.value("z") == nil)
    }

    static func twoWritersWinTheSameRevision(_ test: PlaneUnderTest) async throws {
        try await test.put("n", "0")
        let wins = try await withThrowingTaskGroup(of: Int.self) { group in
            for writer in 0..<4 {
                group.addTask {
                    var wins = 0
                    while wins < 10 {
                        guard let entry = try await test.plane.get(test.key("n")).entries.first,
                            let count = Int(String(decoding: entry.value, as: UTF8.self))
                        else { throw Unexpected("gone") }
                        let write = ControlWrite.put(test.key("n"), Array("\(count + 1)".utf8))
                        let result = try await test.commit(
                            if: [.modified(test.key("n"), at: entry.modified)],
                            [write, .put(test.key("w\(writer)"), [UInt8(wins)])])
                        if case .committed = result { wins += 1 }
                    }
                    return wins
                }
            }
            return try await group.reduce(0, +)
        }
        #expect(try await test.value("n") == "\(wins)")
    }

    static func neighbourOfThePrefixIsListed(_ test: PlaneUnderTest) async throws {
        let names = ["a", "a/1", "a/2", "a0", "b"]
        for name in names { try await test.put(name, name) }
        let listing = try await test.plane.list(test.key("a/"))
        #expect(listing.entries.map(\.key) == [test.key("a/1"), test.key("a/2")])
        #expect(try await test.plane.list(test.key("a")).entries.count == 4)
        #expect(try await test.plane.list(test.key("nothing")).entries.isEmpty)
        #expect(try await test.plane.get(test.key("a/")).entries.isEmpty)
        #expect(try await test.plane.get(test.key("a0")).entries.map(\.value) == [Array("a0".utf8)])
        try await test.expect(.invalid) { _ = try await test.plane.list(ControlKey("")) }
    }

    static func octetsArriveChanged(_ test: PlaneUnderTest) async throws {
        let octets = (0...255).map { UInt8($0) }
        let odd = ControlKey(bytes: test.all.bytes + [0x61, 0xff, 0x00, 0xff])
        let beyond = ControlKey(bytes: test.all.bytes + [0x62])
        _ = try await test.commit([.put(odd, octets), .put(test.key("empty"), []), .put(beyond, [7])])
        #expect(try await test.plane.get(odd).entries.first?.value == octets)
        #expect(try await test.plane.get(test.key("empty")).entries.map(\.value) == [[]])
        let prefix = ControlKey(bytes: test.all.bytes + [0x61, 0xff])
        #expect(try await test.plane.list(prefix).entries.map(\.key) == [odd])
    }

    static func listingLongerThanAPage(_ test: PlaneUnderTest) async throws {
        let count = ControlLimits.page * 2 + 100
        var next = 0
        while next < count {
            let names = next..<min(count, next + ControlLimits.operations)
            _ = try await test.commit(names.map { .put(test.key("\(100_000 + $0)"), Array("\($0)".utf8)) })
            next = names.upperBound
        }
        let listing = try await test.plane.list(test.all)
        #expect(listing.entries.map(\.key) == (0..<count).map { test.key("\(100_000 + $0)") })
    }

    static func listingOfAPastRevision(_ test: PlaneUnderTest) async throws {
        try await test.put("a", "1")
        let then = try await test.put("b", "1").revision
        _ = try await test.commit([.put(test.key("a"), Array("2".utf8)), .delete(test.key("b"))])
        let now = try await test.put("c", "1").revision
        let past = try await test.plane.list(test.all, at: then)
        #expect(past.entries.map { String(decoding: $0.value, as: UTF8.self) } == ["1", "1"])
        #expect(past.header.revision >= now)
        #expect(try await test.plane.list(test.all, at: now).entries.count == 2)
        try await test.expect(.invalid) { _ = try await test.plane.list(test.all, at: now + 1000) }
        try await test.compact()
        try await test.expect(.compacted) { _ = try await test.plane.list(test.all, at: then) }
    }

    static func revisionOrStoreChangesByItself(_ test: PlaneUnderTest) async throws {
        var last = try await test.plane.get(test.key("a")).header
        #expect(last.revision > 0)
        for count in 0..<5 {
            let written = try await test.put("a", "\(count)")
            #expect(written.revision > last.revision)
            last = try await test.plane.list(test.all).header
            #expect(last == written)
        }
    }

    static func stoppedPlaneAnswers(_ test: PlaneUnderTest) async throws {
        test.plane.stop()
        try await test.expect(.stopped) { try await test.put("a", "1") }
        try await test.expect(.stopped) { _ = try await test.plane.get(test.key("a")) }
        try await test.expect(.stopped) { _ = try await test.plane.grantLease(.seconds(5)) }
        #expect(test.plane.watch(test.all, after: nil, resync: .seconds(10), receive: { _ in }) == nil)
        test.plane.stop()
    }
}
