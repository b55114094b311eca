// The offline inspector: what it tells of live, stopped, damaged and empty directories, and that it changes nothing.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Testing

@testable import BatonSpool

private func inspect(_ disk: MemoryDisk, _ path: String = "data") throws -> SpoolReport {
    try SpoolInspector.inspect(path, disk: disk)
}

/// Three messages in one segment, one of them delivered; the process is gone.
private func populated(stop: Bool) throws -> (disk: MemoryDisk, name: SegmentName) {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...3 { rig.store(Mail(number, size: 700, recipients: 2), sink) }
    let first = try #require(sink.ref(1))
    for recipient in UInt32(0)...1 { rig.record(first, recipient: recipient, .delivered) }
    rig.record(try #require(sink.ref(2)), recipient: 1, .bounced)
    let name = try rig.name(of: first)
    if stop { rig.stop() }
    return (disk.reopened(), name)
}

@Test func inspectionBesideARunningNodeTakesNoLockAndWritesNothing() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    for number in UInt64(1)...40 { rig.store(Mail(number, size: 20_000), sink) }
    rig.record(try #require(sink.ref(1)), .delivered)
    rig.ticks(1)
    let before = disk.journal.count
    let paths = disk.paths
    let report = try inspect(disk)
    #expect(disk.journal.count == before, "the inspector wrote")
    #expect(disk.paths == paths)
    #expect(report.healthy, "\(report)")
    #expect(report.totals.messages == 40)
    #expect(report.totals.live == 39)
    #expect(report.totals.final == 1)
    #expect(report.segments.count { $0.state == "open" } == 2, "the open one and the one ahead")
    #expect(report.segments.contains { $0.state == "sealed" && $0.sealedAt == $0.bytes })
    #expect(report.identity?.node == "n1")
    #expect(report.incarnation == SegmentName.hex(rig.directory.incarnation.value))
    #expect(report.registry?.keys == report.segments.count)
    #expect(report.totals.reserveBytes == SpoolLimits.reserveBytes)
    // The node goes on as if nobody had looked.
    #expect(rig.store(Mail(100), sink) != nil)
    rig.stop()
}

@Test func inspectionCountsRecipientsAndTellsTheSeal() throws {
    let (disk, name) = try populated(stop: true)
    let report = try inspect(disk)
    let segment = try #require(report.segments.first { $0.name == name.description })
    #expect(segment.state == "sealed")
    #expect(segment.sealedAt == Int64(12_288))
    #expect((segment.appendEpoch, segment.drainEpoch) == (1, 1))
    #expect((segment.chunks, segment.messages, segment.live, segment.final) == (3, 3, 2, 1))
    #expect(segment.liveRecipients == 3)
    #expect(segment.outcomes == 3)
    #expect(report.healthy)
}

@Test func inspectionTellsAnUnfinishedTailFromDamage() throws {
    let (disk, name) = try populated(stop: false)
    let path = "data/segments/\(name.segmentFile)"
    disk.flip(path, at: 8192 + 300)
    let torn = try inspect(disk)
    let segment = try #require(torn.segments.first { $0.name == name.description })
    #expect(segment.tornAt == 8192)
    #expect(segment.tornBytes == 4096)
    #expect(segment.messages == 2)
    #expect(torn.healthy, "an unfinished chunk was never acknowledged")
    let (sealed, same) = try populated(stop: true)
    sealed.flip("data/segments/\(same.segmentFile)", at: 8192 + 20)
    let damaged = try inspect(sealed)
    #expect(!damaged.healthy)
    #expect(damaged.totals.damagedBytes == 4096)
}

@Test func inspectionNamesThePlaceOfEveryFlippedByte() throws {
    let (disk, name) = try populated(stop: true)
    let path = "data/segments/\(name.segmentFile)"
    let segment = try #require(try inspect(disk).segments.first { $0.name == name.description })
    #expect(segment.damage.isEmpty)
    // Header, record and body of the second chunk.
    let content = 128 + 700 + 100
    for offset in stride(from: 4096, to: 4096 + content, by: 13) {
        let copy = disk.reopened()
        copy.flip(path, at: offset)
        let report = try inspect(copy)
        let found = report.segments.first { $0.name == name.description }?.damage ?? []
        #expect(
            found.contains { $0.from <= Int64(offset) && Int64(offset) < $0.to }, "flip at \(offset): \(found)")
        #expect(!report.healthy)
    }
}

@Test func inspectionTellsMissingFilesAndBrokenNames() throws {
    let (disk, name) = try populated(stop: true)
    let gone = disk.reopened()
    gone.remove("data/segments/\(name.segmentFile)")
    let missing = try inspect(gone)
    #expect(missing.segments.contains { $0.name == name.description && $0.problems.contains("has a key and no file") })
    #expect(!missing.healthy)
    for file in ["identity", "registry", "incarnation"] {
        let copy = disk.reopened()
        copy.flip("data/\(file)", at: 9)
        let report = try inspect(copy)
        #expect(report.problems.contains { $0.hasPrefix("\(file): damaged") }, "\(report.problems)")
        #expect(report.totals.messages == 3, "the segments are told all the same")
    }
    let unread = disk.reopened()
    unread.fail(DiskFault(call: "read", errno: EIO, sticky: true))
    #expect(!(try inspect(unread)).healthy)
}

@Test func inspectionOfAnEmptyAndOfNoDirectory() throws {
    let disk = MemoryDisk()
    try disk.makeDirectory("empty")
    let report = try inspect(disk, "empty")
    #expect(report.healthy)
    #expect(report.segments.isEmpty)
    #expect(report.identity == nil)
    #expect(throws: DiskError.self) { _ = try inspect(disk, "nowhere") }
    #expect(disk.paths.isEmpty, "it made something")
}

@Test func inspectionTellsAKeylessSegment() throws {
    let (disk, name) = try populated(stop: true)
    disk.remove("data/registry")
    let report = try inspect(disk)
    #expect(report.problems.contains("registry: missing"))
    #expect(report.segments.contains { $0.name == name.description && $0.messages == 3 && $0.state == "unknown" })
    #expect(!report.healthy)
}
