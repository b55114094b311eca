// The in-memory plane conforms, and fails as it is told.
import BatonControlPlane
import BatonCore
import BatonTestKit
import Synchronization
import Testing

@Suite(.timeLimit(.minutes(1)))
struct InMemoryControlPlaneTests {
    private let time = SimulatedTime()

    @Test(arguments: Conformance.cases)
    func conforms(_ one: ConformanceCase) async throws {
        let plane = InMemoryControlPlane(seed: 7, time: time)
        let test = PlaneUnderTest(
            plane: plane, prefix: "/case",
            pass: { [time] span in
                time.advance(by: span)
                plane.tick()
            }, compact: { plane.compact() })
        try await one.run(test)
    }

    private func transaction(_ value: UInt8) -> ControlTransaction {
        ControlTransaction(if: [.absent("/k")], [.put("/k", [value])])
    }

    private func failure(_ plane: InMemoryControlPlane, _ transaction: ControlTransaction) async -> ControlFailure? {
        do throws(ControlFailure) {
            _ = try await plane.commit(transaction)
            return nil
        } catch {
            return error
        }
    }

    @Test func lostAnswerTakenForALostRequest() async throws {
        let plane = InMemoryControlPlane(seed: 1, time: time)
        plane.injectNext(.lostRequest)
        #expect(await failure(plane, transaction(1))?.isUnknown == true)
        #expect(try await plane.get("/k").entries.isEmpty)
        plane.injectNext(.lostAnswer)
        #expect(await failure(plane, transaction(2))?.isUnknown == true)
        #expect(try await plane.get("/k").entries.first?.value == [2])
    }

    @Test func lateRequestArrivesAfterTheRead() async throws {
        let plane = InMemoryControlPlane(seed: 1, time: time)
        plane.injectNext(.lateRequest(operations: 2))
        #expect(await failure(plane, transaction(1))?.isUnknown == true)
        #expect(try await plane.get("/k").entries.isEmpty)
        #expect(try await plane.get("/k").entries.first?.value == [1])
    }

    @Test func outageIsToldAsAConflictOrAnEmptyStore() async throws {
        let plane = InMemoryControlPlane(seed: 1, time: time)
        plane.set(.refusing)
        #expect(await failure(plane, transaction(1))?.refusal == .unavailable)
        plane.set(.silent)
        #expect(await failure(plane, transaction(2))?.isUnknown == true)
        await #expect(throws: ControlFailure.self) { try await plane.get("/k") }
        let log = WatchLog()
        let watch = plane.watch("/", after: nil, resync: .minutes(1)) { log.receive($0) }
        #expect(log.events.isEmpty)
        plane.set(.reachable)
        #expect(try await plane.get("/k").entries.isEmpty)
        #expect(log.snapshots.count == 1)
        watch?.cancel()
    }

    @Test func storeRestoredFromABackupGoesUnnoticed() async throws {
        let plane = InMemoryControlPlane(seed: 1, time: time)
        let backup = plane.snapshot
        let log = WatchLog()
        let watch = plane.watch("/", after: nil, resync: .minutes(1)) { log.receive($0) }
        _ = try await plane.commit(transaction(1))
        plane.restore(backup)
        guard case .snapshot(let listing, wentBack: true)? = log.events.last else {
            Issue.record("\(log.events)")
            return
        }
        #expect(listing.entries.isEmpty)
        watch?.cancel()
    }

    @Test func brokenWatchLosesAChange() async throws {
        let plane = InMemoryControlPlane(seed: 1, time: time)
        let log = WatchLog()
        let watch = plane.watch("/", after: nil, resync: .minutes(1)) { log.receive($0) }
        plane.interruptWatches(for: .seconds(2))
        _ = try await plane.commit(transaction(1))
        #expect(log.changes.isEmpty)
        time.advance(by: .seconds(3))
        plane.tick()
        #expect(log.changes.count == 1)
        watch?.cancel()
    }

    /// A receiver that changes the store is told of that change, after the call that it is in.
    @Test func nestedChangeOvertakesTheOneThatCausedIt() async throws {
        let plane = InMemoryControlPlane(seed: 1, time: time)
        let log = WatchLog()
        let watch = plane.watch("/", after: nil, resync: .minutes(1)) { event in
            log.receive(event)
            if log.changes.count == 1 {
                plane.commit(ControlTransaction(if: [], [.put("/second", [])])) { _ in }
            }
        }
        _ = try await plane.commit(transaction(1))
        #expect(log.changes.map(\.key) == ["/k", "/second"])
        watch?.cancel()
    }

    /// Under every fault, what was committed stays, what was refused never comes, and a repeated commit ends in the truth.
    @Test(arguments: 1...20 as ClosedRange<UInt64>)
    func faultsMakeTheStoreLie(seed: UInt64) async throws {
        var faults = ControlFaults()
        faults.lostRequests = 0.15
        faults.lostAnswers = 0.15
        faults.lateRequests = 0.15
        faults.failedReads = 0.2
        faults.compactions = 0.02
        faults.brokenWatches = 0.05
        let plane = InMemoryControlPlane(seed: seed, time: time, faults: faults)
        let log = WatchLog()
        let watch = plane.watch("/", after: nil, resync: .seconds(10)) { log.receive($0) }
        var settled = 0
        for count in 0..<60 {
            let key = ControlKey("/\(count)")
            let transaction = ControlTransaction(if: [.absent(key)], [.put(key, Array("\(seed).\(count)".utf8))])
            // Waiting is simulated: each answer moves the clock.
            var state = CommitRepeatState(transaction, deadline: .distantFuture)
            var event = CommitRepeatState.Event.answered(plane.blocking { $0.commit(transaction, answer: $1) })
            settling: while true {
                switch state.receive(event, at: time.now()) {
                case .commitAgain(let wait):
                    time.advance(by: wait)
                    event = .answered(plane.blocking { $0.commit(transaction, answer: $1) })
                case .read(let wait):
                    time.advance(by: wait)
                    event = .read(plane.blocking { $0.get(key, answer: $1) }.map(\.entries))
                case .end(.committed):
                    settled += 1
                    break settling
                case .end(let other):
                    Issue.record("seed \(seed): \(other)")
                    break settling
                }
            }
        }
        plane.set(ControlFaults())
        plane.applyLate()
        let entries = try await plane.list("/").entries
        #expect(entries.count == 60 && settled == 60, "seed \(seed)")
        #expect(entries.allSatisfy { $0.created == $0.modified }, "seed \(seed): written twice")
        time.advance(by: .seconds(11))
        plane.tick()
        #expect(log.known.values.sorted { $0.key < $1.key } == entries, "seed \(seed)")
        watch?.cancel()
    }
}
