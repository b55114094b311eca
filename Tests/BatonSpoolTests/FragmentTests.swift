// Bodies that arrive in fragments, and segments that linger for them.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

private func append(_ mail: Mail, to stream: FragmentStreamID, _ rig: Rig, pieces: Range<Int>) {
    for piece in pieces {
        let from = piece * Limits.fragmentSize
        let length = min(Limits.fragmentSize, mail.body.readableBytes - from)
        guard length > 0, let bytes = mail.body.getSlice(at: from, length: length) else { continue }
        rig.spool.append(bytes, to: stream)
        rig.spool.pump()
    }
}

private func finish(_ mail: Mail, _ stream: FragmentStreamID, _ rig: Rig, _ sink: Sink) -> StoredMessageRef? {
    rig.spool.submit([
        Submission(envelope: mail.envelope, body: .fragments(stream), token: mail.number, sink: sink)
    ])
    rig.spool.pump()
    return sink.ref(mail.number)
}

private func readFragments(_ ref: StoredMessageRef, _ rig: Rig) -> ByteBuffer? {
    guard case .message(_, .fragmented(_, let count))? = rig.read(ref) else { return nil }
    var all = ByteBuffer()
    for index in 0..<count {
        guard case .fragment(var bytes)? = rig.read(ref, part: .fragment(index)) else { return nil }
        all.writeBuffer(&bytes)
    }
    return all
}

@Test func largeBodyIsWrittenWhileItArrivesAndReadsBack() throws {
    let disk = MemoryDisk()
    var configuration = Rig.small
    configuration.segmentSize = 4 << 20
    let rig = try Rig(on: disk, configuration: configuration)
    let sink = Sink()
    let mail = Mail(1, size: 1_300_000)
    let stream = rig.spool.openStream(sink: sink)
    append(mail, to: stream, rig, pieces: 0..<3)
    #expect(sink.state.withLock { $0.fragments[stream]?.written } == 3 * Limits.fragmentSize)
    append(mail, to: stream, rig, pieces: 3..<5)
    let ref = try #require(finish(mail, stream, rig, sink))
    #expect(readFragments(ref, rig) == mail.body)
    rig.stop()
    let again = try Rig(on: disk.reopened(), configuration: configuration, seed: 2)
    let message = try #require(again.jobs.messages.first)
    #expect(readFragments(message.ref, again) == mail.body)
    again.stop()
}

@Test func slowUploadOutlivesItsSegmentsRoll() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let mail = Mail(1000, size: 700_000)
    let stream = rig.spool.openStream(sink: sink)
    append(mail, to: stream, rig, pieces: 0..<1)
    // A fast lane goes on meanwhile.
    for number in UInt64(1)...40 { rig.store(Mail(number, size: 20_000), sink) }
    append(mail, to: stream, rig, pieces: 1..<3)
    for number in UInt64(41)...60 { rig.store(Mail(number, size: 20_000), sink) }
    let ref = try #require(finish(mail, stream, rig, sink))
    #expect(readFragments(ref, rig) == mail.body)
    rig.stop()
    let again = try Rig(on: disk.reopened(), seed: 2)
    #expect(again.jobs.messages.count == 61)
    #expect(again.spool.recovery.damage.isEmpty)
    let found = try #require(again.jobs.message(mail.envelope.id))
    #expect(readFragments(found.ref, again) == mail.body)
    again.stop()
}

@Test func abandonedFragmentsAreDeadBytes() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let mail = Mail(1, size: 600_000)
    let stream = rig.spool.openStream(sink: sink)
    append(mail, to: stream, rig, pieces: 0..<2)
    rig.spool.abandon(stream)
    rig.spool.pump()
    rig.store(Mail(2), sink)
    rig.stop()
    let again = try Rig(on: disk.reopened(), seed: 2)
    #expect(again.jobs.messages.map(\.envelope.id) == [Mail.id(2)])
    again.stop()
}

@Test func commitThatMissesAFragmentIsRefused() throws {
    let rig = try Rig(on: MemoryDisk())
    let sink = Sink()
    let mail = Mail(1, size: 600_000)
    let stream = rig.spool.openStream(sink: sink)
    append(mail, to: stream, rig, pieces: 0..<2)
    #expect(finish(mail, stream, rig, sink) == nil)
    #expect(sink.refusal(1)?.isStorageFailed == true)
    rig.stop()
}

@Test func streamIsLostWhenItsFragmentFindsNoRoom() throws {
    let disk = MemoryDisk()
    let rig = try Rig(on: disk)
    let sink = Sink()
    let mail = Mail(1, size: 600_000)
    let stream = rig.spool.openStream(sink: sink)
    append(mail, to: stream, rig, pieces: 0..<1)
    disk.fail(DiskFault(call: "write", errno: ENOSPC))
    append(mail, to: stream, rig, pieces: 1..<3)
    #expect(sink.fragmentRefusal(stream)?.isDiskFull == true)
    #expect(finish(mail, stream, rig, sink) == nil)
    #expect(sink.refusal(1)?.isDiskFull == true)
    rig.stop()
}

@Test func tooManyLingeringSegmentsRefuseTheOldestStream() throws {
    let rig = try Rig(on: MemoryDisk(keepsJournal: false))
    let sink = Sink()
    var streams: [FragmentStreamID] = []
    let mail = Mail(5000, size: 300_000)
    var number: UInt64 = 1
    // Each round binds a stream to the open segment and fills it until it rolls.
    for _ in 0..<(SpoolLimits.lingeringSegments + 2) {
        let stream = rig.spool.openStream(sink: sink)
        streams.append(stream)
        append(mail, to: stream, rig, pieces: 0..<1)
        rig.store(Mail(number, size: 100_000), sink)
        number += 1
    }
    let refused = streams.filter { sink.fragmentRefusal($0)?.isOverloaded == true }
    #expect(refused.first == streams.first)
    #expect(refused.count < 4)
    rig.stop()
}
