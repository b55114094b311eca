// The single node's plane conforms, and survives what a disk can do to its file.
import BatonControlPlane
import BatonCore
import BatonRuntime
import BatonTestKit
import Foundation
import Glibc
import Testing

@Suite(.timeLimit(.minutes(1)))
struct LocalControlPlaneTests {
    private let time = SimulatedTime()

    private func open(
        _ disk: any Disk, _ folder: String = "/control", ifDamaged: LocalControlPlane.DamagePolicy = .refuse
    ) throws(ControlFailure) -> LocalControlPlane {
        try LocalControlPlane.open(folder, disk: disk, time: time, ifDamaged: ifDamaged)
    }

    @Test(arguments: Conformance.cases)
    func conforms(_ one: ConformanceCase) async throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("baton-local-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: folder) }
        let plane = try open(LinuxDisk(), folder.path)
        defer { plane.stop() }
        let test = PlaneUnderTest(
            plane: plane, prefix: "/case",
            pass: { [time] span in
                time.advance(by: span)
                // Any operation makes the thread look at the clock.
                _ = try? await plane.get("/")
            }, compact: { try await fillHistory(plane) })
        try await one.run(test)
    }

    /// The store has no compaction but its bound.
    private func fillHistory(_ plane: LocalControlPlane) async throws {
        let writes = (0..<ControlLimits.operations).map { ControlWrite.put(ControlKey("filler\($0)"), []) }
        for _ in 0...(ControlLimits.history / ControlLimits.operations) {
            _ = try await plane.commit(ControlTransaction(if: [], writes))
        }
    }

    private func put(_ plane: LocalControlPlane, _ key: ControlKey, _ value: [UInt8]) async throws {
        _ = try await plane.commit(ControlTransaction(if: [], [.put(key, value)]))
    }

    @Test func secondOpenerOfTheFolder() throws {
        let disk = MemoryDisk()
        let plane = try open(disk)
        defer { plane.stop() }
        #expect(throws: ControlFailure.self) { try open(disk) }
        plane.stop()
        let again = try open(disk)
        again.stop()
    }

    @Test func storeForgetsAtARestart() async throws {
        let disk = MemoryDisk()
        var plane = try open(disk)
        let lease = try await plane.grantLease(.seconds(10))
        _ = try await plane.commit(ControlTransaction(if: [], [.put("/a", [1], lease: lease.id), .put("/b", [2])]))
        let before = try await plane.list("/")
        plane.stop()
        time.advance(by: .seconds(9))
        plane = try open(disk)
        let after = try await plane.list("/")
        #expect(after.entries == before.entries)
        #expect(after.header == before.header)
        // The lease begins anew, in full, and then ends.
        time.advance(by: .seconds(9))
        #expect(try await plane.get("/a").entries.count == 1)
        time.advance(by: .seconds(2))
        #expect(try await plane.get("/a").entries.isEmpty)
        // Watches cannot go back behind the opening.
        let log = WatchLog()
        let watch = plane.watch("/", after: 1, resync: .minutes(1)) { log.receive($0) }
        _ = try await plane.get("/")
        while log.events.isEmpty { _ = try await plane.get("/") }
        #expect(log.snapshots.count == 1)
        watch?.cancel()
        plane.stop()
    }

    @Test(arguments: ["write", "sync", "open", "close", "unlink"], [EIO, ENOSPC])
    func failureBeforeTheRenameLosesOrKeepsTheChange(call: String, error: Int32) async throws {
        let disk = MemoryDisk()
        let plane = try open(disk)
        try await put(plane, "/a", [1])
        disk.fail(DiskFault(call: call, errno: error))
        do throws(ControlFailure) {
            _ = try await plane.commit(ControlTransaction(if: [], [.put("/a", [2])]))
            Issue.record("the fault was not met")
        } catch {
            #expect(error.refusal != nil)
        }
        #expect(try await plane.get("/a").entries.first?.value == [1])
        try await put(plane, "/b", [3])
        plane.stop()
        let again = try open(disk.reopened())
        #expect(try await again.list("/").entries.map(\.value) == [[1], [3]])
        again.stop()
    }

    @Test(arguments: ["rename", "syncDirectory"])
    func failureFromTheRenameOnIsTakenForARefusal(call: String) async throws {
        let disk = MemoryDisk()
        let plane = try open(disk)
        try await put(plane, "/a", [1])
        disk.fail(DiskFault(call: call, errno: EIO))
        do throws(ControlFailure) {
            _ = try await plane.commit(ControlTransaction(if: [], [.put("/a", [2])]))
            Issue.record("the fault was not met")
        } catch {
            #expect(error.isUnknown)
        }
        // Memory and disk may differ now: nothing is answered from memory.
        await #expect(throws: ControlFailure.self) { try await plane.get("/a") }
        await #expect(throws: ControlFailure.self) { try await put(plane, "/b", [3]) }
        plane.stop()
        let again = try open(disk)
        let value = try await again.get("/a").entries.first?.value
        #expect(value == [1] || value == [2])
        again.stop()
    }

    /// Power fails at any point of a run: what was answered is there, and what is there was asked for.
    @Test(arguments: 1...12 as ClosedRange<UInt64>)
    func powerLossTearsTheFile(seed: UInt64) async throws {
        let disk = MemoryDisk()
        let plane = try open(disk)
        for value in 1...12 as ClosedRange<UInt8> {
            try await put(plane, "/a", [value])
            disk.mark(Int(value))
        }
        plane.stop()
        let journal = disk.journal
        for cut in 0...journal.count {
            var answered = 0
            for case .mark(let value) in journal[..<cut] { answered = value }
            let survivor = DiskImage.afterPowerLoss(journal, cut: cut, seed: seed &+ UInt64(cut))
            let again = try open(survivor)
            let value = try await again.get("/a").entries.first?.value.first.map(Int.init) ?? 0
            #expect(value >= answered && value <= answered + 1, "seed \(seed), cut \(cut)")
            again.stop()
        }
    }

    @Test func damagedFileTakenForAnEmptyStore() async throws {
        let disk = MemoryDisk()
        let plane = try open(disk)
        try await put(plane, "/a", [1])
        let store = try await plane.get("/a").header.store
        plane.stop()
        let length = disk.contents("/control/control")?.count ?? 0
        #expect(length > 40)
        for offset in 0..<length {
            disk.flip("/control/control", at: offset)
            #expect(throws: ControlFailure.self, "offset \(offset)") { try open(disk) }
            disk.flip("/control/control", at: offset)
        }
        disk.flip("/control/control", at: 5)
        let fresh = try open(disk, ifDamaged: .putAside)
        #expect(fresh.wasDamaged)
        let listing = try await fresh.list("/")
        #expect(listing.entries.isEmpty)
        // Another store: whoever knew the first one sees it.
        #expect(listing.header.store != store)
        #expect(disk.contents("/control/control.damaged")?.count == length)
        fresh.stop()
    }

    @Test func operationsOverTheirBoundWait() async throws {
        let plane = try open(MemoryDisk())
        // The thread stands in an answer until it is let go, so that what follows waits.
        let entered = ThreadMailbox<Bool>(capacity: 1)
        let gate = ThreadMailbox<Bool>(capacity: 1)
        plane.get("/a") { _ in
            entered.deliver(CollectionOfOne(true))
            _ = gate.take()
        }
        _ = entered.take()
        let answered = Counter()
        let refused = Counter()
        for _ in 0..<(ControlLimits.waiting + 3) {
            plane.get("/a") { result in
                if case .failure(let failure) = result, failure.refusal == .overloaded { refused.add() }
                answered.add()
            }
        }
        #expect(refused.value == 3)
        gate.deliver(CollectionOfOne(true))
        plane.stop()
        #expect(answered.value == ControlLimits.waiting + 3)
    }
}
