// The conformance cases of leases and watches.
import BatonControlPlane
import BatonCore
import Testing

extension Conformance {

    static func leaseLeavesItsKeysBehind(_ test: PlaneUnderTest) async throws {
        let lease = try await test.plane.grantLease(.seconds(1))
        #expect(lease.ttl >= .seconds(1) && lease.ttl <= .seconds(5))
        try await test.put("mine", "1", lease: lease.id)
        try await test.put("other", "1")
        #expect(try await test.plane.get(test.key("mine")).entries.first?.lease == lease.id)
        try await test.eventually("the lease ends") { try await test.value("mine") == nil }
        #expect(try await test.value("other") == "1")
        #expect(try await test.plane.keepAlive(lease.id, within: .seconds(5)) == nil)
        try await test.expect(.leaseGone) { try await test.put("mine", "2", lease: lease.id) }
        #expect(try await test.value("mine") == nil)
    }

    static func renewedLeaseEnds(_ test: PlaneUnderTest) async throws {
        let lease = try await test.plane.grantLease(.seconds(2))
        try await test.put("mine", "1", lease: lease.id)
        var left = lease.ttl + lease.ttl
        while left > .zero {
            await test.pass(.milliseconds(250))
            left = TimeSpan(nanoseconds: left.nanoseconds - 250_000_000)
            #expect(try await test.plane.keepAlive(lease.id, within: .seconds(5)) == lease.ttl)
        }
        #expect(try await test.value("mine") == "1")
        try await test.plane.revoke(lease.id)
    }

    static func revokedLeaseLives(_ test: PlaneUnderTest) async throws {
        let lease = try await test.plane.grantLease(.seconds(60))
        try await test.put("mine", "1", lease: lease.id)
        // A key that is put again without the lease no longer goes with it.
        try await test.put("kept", "1", lease: lease.id)
        try await test.put("kept", "2")
        try await test.plane.revoke(lease.id)
        #expect(try await test.value("mine") == nil)
        #expect(try await test.value("kept") == "2")
        #expect(try await test.plane.keepAlive(lease.id, within: .seconds(5)) == nil)
        try await test.plane.revoke(lease.id)
    }

    static func leasesShareAName(_ test: PlaneUnderTest) async throws {
        let first = try await test.plane.grantLease(.seconds(60))
        let second = try await test.plane.grantLease(.seconds(60))
        #expect(first.id != second.id)
        try await test.expect(.invalid) { _ = try await test.plane.grantLease(.zero) }
        try await test.expect(.invalid) { _ = try await test.plane.grantLease(.days(2)) }
        try await test.plane.revoke(first.id)
        try await test.plane.revoke(second.id)
    }

    static func watchMissesOrRepeatsAChange(_ test: PlaneUnderTest) async throws {
        try await test.put("before", "1")
        let log = WatchLog()
        let watch = test.plane.watch(test.all, after: nil, resync: .minutes(10)) { log.receive($0) }
        defer { watch?.cancel() }
        try await test.eventually("a first snapshot") { !log.snapshots.isEmpty }
        #expect(log.snapshots.first?.entries.map(\.key) == [test.key("before")])
        var expected: [ControlChange] = []
        for count in 0..<20 {
            let writes: [ControlWrite] = [
                .put(test.key("a"), [UInt8(count)]),
                count % 2 == 0 ? .put(test.key("b"), []) : .delete(test.key("b")),
            ]
            guard case .committed(let header) = try await test.commit(writes) else { throw Unexpected("conflict") }
            let revision = header.revision
            let entries = try await test.plane.list(test.all, at: revision).entries
            expected += entries.filter { $0.modified == revision }.map { .put($0) }
            if count % 2 == 1 { expected.append(.deleted(test.key("b"), at: revision)) }
            _ = try await test.commit([.put(ControlKey("\(test.prefix).elsewhere"), [])])
        }
        try await test.eventually("all changes") { log.changes.count >= expected.count }
        #expect(log.changes == expected)
        // All changes of a revision come together.
        for case .changes(let changes) in log.events {
            #expect(changes.count % 2 == 0)
        }
    }

    static func watchFromARevisionTellsOlderChanges(_ test: PlaneUnderTest) async throws {
        try await test.put("a", "1")
        let seen = try await test.put("a", "2").revision
        try await test.put("a", "3")
        let log = WatchLog()
        let watch = test.plane.watch(test.all, after: seen, resync: .minutes(10)) { log.receive($0) }
        defer { watch?.cancel() }
        try await test.put("a", "4")
        try await test.eventually("two changes") { log.changes.count >= 2 }
        let values = log.changes.map { change -> [UInt8] in
            if case .put(let entry) = change { entry.value } else { [] }
        }
        #expect(values == [Array("3".utf8), Array("4".utf8)])
        #expect(log.snapshots.isEmpty)
    }

    static func watchFromACompactedRevision(_ test: PlaneUnderTest) async throws {
        let seen = try await test.put("a", "1").revision
        try await test.put("a", "2")
        _ = try await test.commit([.delete(test.key("a")), .put(test.key("b"), [1])])
        try await test.compact()
        let log = WatchLog()
        let watch = test.plane.watch(test.all, after: seen, resync: .minutes(10)) { log.receive($0) }
        defer { watch?.cancel() }
        try await test.eventually("a snapshot") { !log.snapshots.isEmpty }
        #expect(log.snapshots.first?.entries.map(\.key) == [test.key("b")])
        try await test.put("c", "3")
        try await test.eventually("the next change") { log.known[test.key("c")] != nil }
        #expect(log.known.keys.sorted() == [test.key("b"), test.key("c")])
    }

    static func watchThatIsNotLookedAfter(_ test: PlaneUnderTest) async throws {
        try await test.put("a", "1")
        let log = WatchLog()
        let watch = test.plane.watch(test.all, after: nil, resync: .seconds(1)) { log.receive($0) }
        defer { watch?.cancel() }
        try await test.eventually("snapshots again and again") { log.snapshots.count >= 3 }
        try await test.put("b", "1")
        try await test.eventually("changes between them") { log.known[test.key("b")] != nil }
    }

    static func cancelledWatchTellsMore(_ test: PlaneUnderTest) async throws {
        let log = WatchLog()
        let watch = test.plane.watch(test.all, after: nil, resync: .seconds(1)) { log.receive($0) }
        try await test.eventually("a first snapshot") { !log.snapshots.isEmpty }
        watch?.cancel()
        // What is under way may still come.
        await test.pass(.milliseconds(100))
        let told = log.events.count
        let second = WatchLog()
        let other = test.plane.watch(test.all, after: nil, resync: .seconds(1)) { second.receive($0) }
        defer { other?.cancel() }
        try await test.put("a", "1")
        try await test.eventually("another watch is told") { second.known[test.key("a")] != nil }
        #expect(log.events.count == told)
    }

    static func watchesOverTheirBound(_ test: PlaneUnderTest) async throws {
        var open: [any ControlWatch] = []
        for _ in 0..<ControlLimits.watches {
            if let watch = test.plane.watch(test.all, after: nil, resync: .minutes(1), receive: { _ in }) {
                open.append(watch)
            }
        }
        #expect(open.count == ControlLimits.watches)
        #expect(test.plane.watch(test.all, after: nil, resync: .minutes(1), receive: { _ in }) == nil)
        open.removeLast().cancel()
        try await test.eventually("room for one") {
            guard let watch = test.plane.watch(test.all, after: nil, resync: .minutes(1), receive: { _ in }) else {
                return false
            }
            watch.cancel()
            return true
        }
        for watch in open { watch.cancel() }
    }
}
