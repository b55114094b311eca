// The store as a value: its bounds; and the decision on a commit that was not answered.
import BatonControlPlane
import BatonCore
import BatonRuntime
import BatonTestKit
import Testing

private let start = Instant(secondsSinceEpoch: 1_000)

struct ControlStoreTests {
    private func put(_ store: inout ControlStore, _ keys: Range<Int>, _ value: [UInt8] = []) {
        let writes = keys.map { ControlWrite.put(ControlKey("/\($0)"), value) }
        guard case .success(.committed) = store.commit(ControlTransaction(if: [], writes)) else {
            Issue.record("not committed")
            return
        }
    }

    @Test func historyOverItsBound() {
        var store = ControlStore(id: 1, at: start)
        for _ in 0..<ControlLimits.history { put(&store, 0..<1) }
        #expect(store.compacted == 1)
        let watched = store.revision - 10
        put(&store, 0..<1)
        #expect(store.compacted > 1)
        #expect(store.changes(under: "/", after: watched)?.count == 11)
        #expect(store.changes(under: "/", after: 1) == nil)
        #expect(store.changes(under: "/", after: store.compacted)?.count == Int(store.revision - store.compacted))
        guard case .success(let past) = store.list("/", at: store.compacted) else {
            Issue.record("the compacted revision itself is readable")
            return
        }
        #expect(past.entries.map(\.modified) == [store.compacted])
    }

    @Test func listingOverItsBound() {
        let entries = (0...100).map {
            ControlEntry(key: ControlKey("/\($0)"), value: [], created: 2, modified: 2)
        }
        let full = ControlStore(id: 1, revision: 2, entries: Array(entries.dropLast()), at: start, listingMax: 100)
        guard case .success(let listing) = full.list("/") else { return fail("at the bound") }
        #expect(listing.entries.count == 100)
        let over = ControlStore(id: 1, revision: 2, entries: entries, at: start, listingMax: 100)
        guard case .failure(let failure) = over.list("/") else { return fail("over the bound") }
        #expect(failure.refusal == .invalid)
    }

    @Test func leasesOverTheirBound() {
        var store = ControlStore(id: 1, at: start)
        for id in 1...ControlLimits.leases {
            guard case .success = store.grant(ControlLeaseID(value: Int64(id)), .seconds(1), at: start) else {
                return fail("lease \(id)")
            }
        }
        let one = ControlLeaseID(value: -1)
        guard case .failure(let failure) = store.grant(one, .seconds(1), at: start) else { return fail("over") }
        #expect(failure.refusal == .overloaded)
        let later = start + .seconds(1)
        let ended = store.expire(at: later)
        #expect(ended)
        #expect(store.leases.isEmpty)
        guard case .success(let lease) = store.grant(one, .milliseconds(1), at: later) else {
            return fail("again")
        }
        #expect(lease.ttl == ControlLimits.leaseMin)
        guard case .failure = store.grant(ControlLeaseID(value: 9), ControlLimits.leaseMax + .seconds(1), at: later)
        else { return fail("a lease of more than a day") }
    }

    @Test func fileOverItsBound() async throws {
        let plane = try LocalControlPlane.open(
            "/c", disk: MemoryDisk(), time: SimulatedTime(), fileBytesMax: 100_000)
        defer { plane.stop() }
        let value = [UInt8](repeating: 1, count: ControlLimits.valueBytes)
        var refusal: ControlRefusal?
        var written = 0
        while refusal == nil, written < 100 {
            let writes = (written..<(written + 2)).map { ControlWrite.put(ControlKey("/\($0)"), value) }
            do throws(ControlFailure) {
                _ = try await plane.commit(ControlTransaction(if: [], writes))
                written += 2
            } catch {
                refusal = error.refusal
            }
        }
        #expect(refusal == .noSpace)
        #expect(written == 6)
        #expect(try await plane.list("/").entries.count == written)
        _ = try await plane.commit(ControlTransaction(if: [], [.delete("/1")]))
    }
}

struct CommitRepeatTests {
    private let transaction = ControlTransaction(if: [.absent("/k")], [.put("/k", [1])])
    private let header = ControlHeader(store: 1, revision: 5)

    private func entry(_ value: UInt8) -> ControlEntry {
        ControlEntry(key: "/k", value: [value], created: 4, modified: 4)
    }

    @Test func conflictOfARepetitionHidesTheFirstSuccess() {
        var state = CommitRepeatState(transaction, deadline: start + .seconds(10))
        guard case .commitAgain = state.receive(.answered(.failure(.unknown("lost"))), at: start) else {
            return fail("an unknown outcome is not tried again")
        }
        guard case .read = state.receive(.answered(.success(.conflict(header, current: [entry(1)]))), at: start) else {
            return fail("a conflict after an unknown outcome is believed")
        }
        guard case .end(.committed(nil)) = state.receive(.read(.success([entry(1)])), at: start) else {
            return fail("our own value")
        }
        guard case .end(.conflict(_, afterUnknown: true)) = state.receive(.read(.success([entry(2)])), at: start) else {
            return fail("another's value")
        }
    }

    @Test func refusalOfARepetitionIsTakenForTheOutcome() {
        var state = CommitRepeatState(transaction, deadline: start + .seconds(10))
        guard case .end(.refused) = state.receive(.answered(.failure(.refused(.unavailable, ""))), at: start) else {
            return fail("a first refusal is certain")
        }
        _ = state.receive(.answered(.failure(.unknown("lost"))), at: start)
        guard case .commitAgain = state.receive(.answered(.failure(.refused(.unavailable, ""))), at: start) else {
            return fail("a refusal after an unknown outcome")
        }
    }

    @Test func commitIsRepeatedForEver() {
        var state = CommitRepeatState(transaction, deadline: start + .seconds(10))
        var now = start
        var waits: [TimeSpan] = []
        for _ in 0..<100 {
            switch state.receive(.answered(.failure(.unknown("lost"))), at: now) {
            case .commitAgain(let wait):
                waits.append(wait)
                now = now + wait
            case .end(.unknown):
                #expect(now < start + .seconds(10))
                #expect(waits.first == ControlLimits.repeatFirst)
                #expect(waits.max() == ControlLimits.repeatMax)
                return
            case let other: return fail("\(other)")
            }
        }
        Issue.record("no end")
    }

    @Test func unansweredCommitIsSettledInRealTime() async throws {
        let time = SystemTimeSource()
        let plane = InMemoryControlPlane(seed: 1, time: time)
        plane.injectNext(.lostAnswer)
        plane.injectNext(.lostRequest)
        let settlement = await plane.commitRepeating(transaction, deadline: time.now() + .seconds(5), time: time)
        guard case .committed(nil) = settlement else { return fail("\(settlement)") }
        #expect(try await plane.get("/k").entries.first?.value == [1])
    }
}
