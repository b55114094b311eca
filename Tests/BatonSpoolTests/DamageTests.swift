// Damage in one copy: the chunk comes from the other one, or the message is quarantined; it is never sent, and never taken for absent.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

@Test func damagedBodyQuarantinedThoughTheBackupHasIt() throws {
    // In the record, in its envelope, in the body, and in several places with the chunk's own header among them.
    for flips in [[130], [300], [1500], [2100], [20, 1500], [20, 130, 1500, 1501]] {
        let rig = try DamageRig()
        for flip in flips { rig.disk.flip(rig.path, at: Int(rig.offset(2)) + flip) }
        #expect(rig.read(2)?.isBeingRepaired == true, "\(flips)")
        #expect(rig.writer.spool.stats.quarantinedBytes > 0, "\(flips): damaged, and nobody is told")
        #expect(rig.writer.spool.stats.damagedSegments == 1, "\(flips)")
        #expect(rig.asked?.offset == rig.offset(2), "\(flips)")
        try rig.repair()
        #expect(rig.isIntact(2), "\(flips)")
        for number in [UInt64(1), 3, 4] { #expect(rig.isIntact(number), "\(flips)") }
        #expect(rig.areEqual, "\(flips)")
        let stats = rig.writer.spool.stats
        #expect(stats.quarantinedBytes == 0 && stats.damagedSegments == 0, "\(flips): the alarm stays")
        #expect(stats.degradedReasons.isEmpty)
        #expect(stats.chunksRepaired == 1)
        rig.stop()
    }
}

@Test func firstAndLastChunkAreNotRepaired() throws {
    let rig = try DamageRig()
    for number in [UInt64(1), DamageRig.count] {
        rig.disk.flip(rig.path, at: rig.body(number))
        rig.disk.flip(rig.path, at: Int(rig.offset(number)) + 20)
        #expect(rig.read(number)?.isBeingRepaired == true)
        try rig.repair()
        #expect(rig.isIntact(number))
    }
    #expect(rig.areEqual)
    rig.stop()
}

@Test func neighboursOfADamagedHeaderAreNotRepaired() throws {
    let rig = try DamageRig()
    for number in [UInt64(2), 3] {
        rig.disk.flip(rig.path, at: rig.body(number))
        rig.disk.flip(rig.path, at: Int(rig.offset(number)) + 20)
    }
    // The chunks are put right from the first on: where the second begins the first has to tell.
    #expect(rig.read(3)?.isBeingRepaired == true)
    try rig.repair()
    #expect(rig.read(3)?.isBeingRepaired == true)
    try rig.repair()
    #expect(rig.isIntact(3) && rig.isIntact(2))
    #expect(rig.areEqual)
    rig.stop()
}

@Test func laneGoesOnWhileItsOpenSegmentIsRepaired() throws {
    let rig = try DamageRig()
    rig.disk.flip(rig.path, at: rig.body(2))
    #expect(rig.read(2)?.isBeingRepaired == true)
    let chunk = try #require(rig.asked)
    let octets = try rig.octets(2)
    #expect(rig.store(Mail(5)) != nil)
    #expect(rig.mend(chunk, octets) == .mended)
    rig.writer.spool.ended(.repaired, of: chunk)
    #expect(rig.store(Mail(6)) != nil)
    for number in UInt64(1)...6 { #expect(rig.isIntact(number)) }
    let last = try #require(rig.sink.ref(6))
    #expect(rig.writer.spool.segment(of: last.segment) == rig.id, "it was to be the same segment")
    #expect(rig.areEqual)
    rig.stop()
}

@Test func messageDamagedOnBothCopiesIsSentOrAbsent() throws {
    let rig = try DamageRig()
    rig.disk.flip(rig.path, at: rig.body(3))
    rig.other.flip(rig.otherPath, at: rig.body(3) + 7)
    #expect(rig.read(3)?.isBeingRepaired == true)
    try rig.repair()
    for _ in 0..<3 {
        #expect(rig.read(3)?.isDamaged == true)
        #expect(rig.writer.spool.stats.quarantinedBytes > 0)
        #expect(rig.writer.spool.stats.degradedReasons.count == 1)
    }
    #expect(rig.questions == 1, "asked again and again for what nobody has")
    for number in [UInt64(1), 2, 4] { #expect(rig.isIntact(number)) }
    rig.stop()
}

@Test func silentMemberMakesTheQuarantineFinal() throws {
    let rig = try DamageRig()
    rig.disk.flip(rig.path, at: rig.body(2))
    for round in 1...5 {
        #expect(rig.read(2)?.isBeingRepaired == true)
        #expect(rig.questions == round, "nobody asks again")
        rig.writer.spool.ended(.unanswered, of: try #require(rig.asked))
        #expect(rig.writer.spool.stats.degradedReasons.count == 1)
    }
    #expect(rig.read(2)?.isBeingRepaired == true)
    try rig.repair()
    #expect(rig.isIntact(2))
    #expect(rig.writer.spool.stats.degradedReasons.isEmpty)
    rig.stop()
}

@Test func diskThatForgetsItsRepairsIsRepairedForEver() throws {
    let rig = try DamageRig()
    for _ in 0..<SpoolLimits.chunkRepairs {
        rig.disk.flip(rig.path, at: rig.body(2))
        #expect(rig.read(2)?.isBeingRepaired == true)
        try rig.repair()
    }
    #expect(rig.isIntact(2))
    rig.disk.flip(rig.path, at: rig.body(2))
    #expect(rig.read(2)?.isDamaged == true)
    #expect(rig.questions == SpoolLimits.chunkRepairs)
    rig.stop()
}

@Test func badSectorIsNotRepaired() throws {
    let rig = try DamageRig()
    let at = rig.body(2)
    rig.disk.spoil(rig.path, at..<at + 1)
    #expect(rig.read(2)?.isBeingRepaired == true)
    let chunk = try #require(rig.asked)
    #expect(chunk.offset == rig.offset(2))
    #expect(rig.mend(chunk, try rig.octets(2)) == .mended)
    // What is written to a bad sector goes to another one.
    rig.disk.spoil(rig.path, 0..<0)
    rig.writer.spool.ended(.repaired, of: chunk)
    #expect(rig.isIntact(2))
    #expect(rig.writer.spool.stats.degradedReasons.isEmpty)
    rig.stop()
}

@Test func transientErrorLeavesItsAlarmFor() throws {
    let rig = try DamageRig()
    rig.disk.fail(DiskFault(call: "read", errno: EIO))
    #expect(rig.read(2)?.isBeingRepaired == true || rig.questions == 0)
    #expect(rig.isIntact(2))
    #expect(rig.writer.spool.stats.degradedReasons.isEmpty, "the message is well again")
    rig.stop()
}

// MARK: The member that is asked

@Test func memberGivesADamagedChunkAway() throws {
    let rig = try DamageRig()
    #expect(try rig.octets(2).readableBytes == 4096)
    for flip in [20, 130, 1500] {
        rig.other.flip(rig.otherPath, at: Int(rig.offset(2)) + flip)
        #expect(rig.fetch(rig.id, at: rig.offset(2)).isDamaged, "flip at \(flip)")
        rig.other.flip(rig.otherPath, at: Int(rig.offset(2)) + flip)
    }
    #expect(rig.fetch(rig.id, at: rig.offset(2) + 128).isDamaged, "no chunk begins there")
    #expect(rig.fetch(rig.id, at: rig.offset(DamageRig.count + 1)).isDamaged)
    #expect(rig.fetch(rig.id, at: .max).isDamaged)
    #expect(rig.fetch(rig.id, at: rig.offset(2), atMost: 4095).isDamaged, "more than was asked for")
    rig.other.spoil(rig.otherPath, rig.body(2)..<rig.body(2) + 1)
    #expect(rig.fetch(rig.id, at: rig.offset(2)).isDamaged, "a bad sector")
    rig.other.spoil(rig.otherPath, 0..<0)
    let unknown = SegmentID(writer: rig.id.writer, incarnation: rig.id.incarnation, index: 77)
    #expect(rig.fetch(unknown, at: 0).isMissing)
    // A sealed copy answers as well, and one whose seal found damage further ahead.
    rig.other.flip(rig.otherPath, at: 20)
    #expect(rig.backup.seal(rig.id, epoch: 2) != nil)
    #expect(try rig.octets(2).readableBytes == 4096)
    #expect(rig.isIntact(2), "the drainer's own copy is as good as before")
    rig.stop()
}

// MARK: Octets that are not the chunk

@Test func anotherChunkIsPutInThePlaceOfADamagedOne() throws {
    for headerIsDamaged in [false, true] {
        let rig = try DamageRig()
        rig.disk.flip(rig.path, at: rig.body(2))
        if headerIsDamaged { rig.disk.flip(rig.path, at: Int(rig.offset(2)) + 20) }
        #expect(rig.read(2)?.isBeingRepaired == true)
        let chunk = try #require(rig.asked)
        #expect((chunk.end == nil) == headerIsDamaged)
        let before = rig.disk.contents(rig.path)
        let right = try rig.octets(2)
        var long = right
        long.writeRepeatingByte(0, count: 4096)
        var flipped = right
        flipped.setInteger(UInt8(1), at: 1600)
        for (octets, what) in [
            (try rig.octets(3), "of another place"), (long, "longer"), (ByteBuffer(), "nothing"),
            (right.getSlice(at: 0, length: 4000) ?? right, "shorter"), (flipped, "damaged as well"),
            (forged(Mail(9), like: right, previous: nil), "another one, at its place"),
            (forged(Mail(9, size: 6000), like: right, previous: nil), "one that covers the next"),
            (forged(Mail(2), like: right, previous: 77), "one behind another chunk"),
        ] {
            #expect(rig.mend(chunk, octets) == .other, "\(what), header damaged: \(headerIsDamaged)")
            #expect(rig.disk.contents(rig.path) == before, "\(what): was written")
        }
        let short = DamagedChunk(segment: rig.id, offset: chunk.offset, end: nil, acked: chunk.offset + 4095)
        #expect(rig.mend(short, right) == .other, "beyond what is acknowledged")
        #expect(rig.mend(chunk, right) == .mended)
        rig.stop()
    }
}

/// Where no chunk behind it says what stood there, the one before it does, and one that it would cover.
@Test func endOfASegmentTakesAnyChunk() throws {
    let rig = try DamageRig()
    for number in [UInt64(3), 4] {
        let at = rig.offset(number)
        rig.disk.flip(rig.path, at: Int(at) + 20)
        let right = try rig.octets(number)
        let before = rig.disk.contents(rig.path)
        let chunk = DamagedChunk(segment: rig.id, offset: at, end: nil, acked: rig.offset(5))
        let wrong =
            number == 4
            ? forged(Mail(9), like: right, previous: 77) : forged(Mail(9, size: 6000), like: right, previous: nil)
        #expect(rig.mend(chunk, wrong) == .other, "chunk \(number)")
        #expect(rig.disk.contents(rig.path) == before)
        #expect(rig.mend(chunk, right) == .mended)
    }
    #expect(rig.areEqual)
    rig.stop()
}

/// A chunk with its checksums that was never written: another message under the header of `octets`.
private func forged(_ mail: Mail, like octets: ByteBuffer, previous: UInt32?) -> ByteBuffer {
    guard let (header, _) = ChunkHeader.parse(octets) else { return octets }
    var builder = ChunkBuilder(compression: CompressionPolicy(.off))
    builder.begin()
    _ = builder.addMessage(mail.envelope, body: mail.body)
    let made = builder.finish(
        segment: header.segment, appendEpoch: header.appendEpoch, offset: header.offset,
        ackedOffset: header.ackedOffset, number: header.number, firstMessage: header.firstMessage,
        previousHeaderCRC: previous ?? header.previousHeaderCRC, at: header.writtenAt)
    _ = builder.seal(made)
    return builder.chunk
}

@Test func paddingOfAnotherCopyIsTakenAsItCame() throws {
    let rig = try DamageRig()
    rig.disk.flip(rig.path, at: rig.body(2))
    #expect(rig.read(2)?.isBeingRepaired == true)
    var octets = try rig.octets(2)
    octets.setInteger(UInt8(0x42), at: 4095)
    #expect(rig.mend(try #require(rig.asked), octets) == .mended)
    #expect(rig.areEqual)
    rig.stop()
}

@Test func repairBringsAnUnlinkedFileBack() throws {
    let rig = try DamageRig()
    let octets = try rig.octets(2)
    let chunk = DamagedChunk(segment: rig.id, offset: rig.offset(2), end: nil, acked: 1 << 20)
    rig.writer.copies.unlink(rig.id) { _ in }
    #expect(rig.mend(chunk, octets) == .failed)
    #expect(rig.disk.contents(rig.path) == nil)
    rig.stop()
}

// MARK: Crashes and failures of the own disk

@Test func crashBetweenARepairAndItsSyncLosesMore() throws {
    let rig = try DamageRig()
    let octets = try rig.octets(2)
    rig.disk.flip(rig.path, at: rig.body(2))
    rig.disk.flip(rig.path, at: Int(rig.offset(2)) + 20)
    #expect(rig.read(2)?.isBeingRepaired == true)
    let chunk = try #require(rig.asked)
    let damaged = try #require(rig.disk.contents(rig.path))
    let start = Int(rig.offset(2))
    let promised = Array(octets.readableBytesView)
    // Whatever sectors of the write the disk kept: the neighbours are as they were, and a further repair ends it.
    for kept in 0..<(fullDepth ? 256 : 40) {
        let file = try rig.disk.open(rig.path, .readWrite)
        func put(_ bytes: [UInt8], at offset: Int) throws {
            try bytes.withUnsafeBytes { try rig.disk.write(file, $0, at: Int64(offset)) }
        }
        try put(damaged, at: 0)
        for sector in 0..<8 where kept & (1 << sector) != 0 {
            try put(Array(promised[sector * 512..<sector * 512 + 512]), at: start + sector * 512)
        }
        try rig.disk.close(file)
        for number in [UInt64(1), 3, 4] { #expect(rig.isIntact(number), "kept \(kept)") }
        let read = rig.read(2)
        #expect(read?.isBeingRepaired == true || read?.isDamaged == true || read?.bytes == Mail(2).body, "kept \(kept)")
        #expect(rig.mend(chunk, octets) == .mended, "kept \(kept)")
        #expect(rig.areEqual, "kept \(kept)")
    }
    rig.stop()
}

@Test func repairIsCalledDoneBeforeItsSync() throws {
    for call in ["open", "write", "sync"] {
        let rig = try DamageRig()
        rig.disk.flip(rig.path, at: rig.body(2))
        #expect(rig.read(2)?.isBeingRepaired == true)
        rig.disk.fail(DiskFault(call: call, errno: EIO))
        #expect(rig.mend(try #require(rig.asked), try rig.octets(2)) == .failed, "\(call)")
        rig.disk.clearFaults()
        let open = rig.disk.openPaths.count { $0 == rig.path }
        #expect(open <= 3, "\(call): its file stays open")
        rig.stop()
    }
}

// MARK: Fragments

@Test func damagedFragmentIsNotRepaired() throws {
    let rig = try DamageRig()
    let mail = Mail(7, size: 2 * Limits.fragmentSize)
    let stream = rig.writer.spool.openStream(sink: rig.sink)
    for index in 0..<2 {
        let piece = mail.body.getSlice(at: index * Limits.fragmentSize, length: Limits.fragmentSize)
        rig.writer.spool.append(try #require(piece), to: stream)
        rig.writer.spool.pump()
        rig.backup.copies.pump()
    }
    rig.writer.spool.submit([
        Submission(envelope: mail.envelope, body: .fragments(stream), token: 7, sink: rig.sink)
    ])
    for _ in 0..<3 {
        rig.writer.spool.pump()
        rig.backup.copies.pump()
    }
    let ref = try #require(rig.sink.ref(7))
    let id = try #require(rig.writer.spool.segment(of: ref.segment))
    let path = rig.writer.path(SegmentName(id).segmentFile)
    let all = try #require(rig.disk.contents(path))
    // Somewhere in the second fragment.
    let end = try #require(rig.writer.spool.ledger.read(ref.segment) { $0.ackedOffset })
    let at = Int(end) - Limits.fragmentSize / 2
    #expect(all[at] != 0 || all[at + 1] != 0)
    rig.disk.flip(path, at: at)
    #expect(rig.read(7, part: .fragment(1))?.isBeingRepaired == true)
    try rig.repair()
    guard case .fragment(let bytes)? = rig.read(7, part: .fragment(1)) else {
        Issue.record("not repaired")
        return
    }
    #expect(bytes == mail.body.getSlice(at: Limits.fragmentSize, length: Limits.fragmentSize))
    // Another part that reads well says nothing of this one; this one itself does.
    rig.disk.flip(path, at: at)
    #expect(rig.read(7, part: .fragment(1))?.isBeingRepaired == true)
    #expect(rig.read(7, part: .fragment(0))?.isBeingRepaired == false)
    _ = rig.read(7)
    #expect(rig.writer.spool.stats.degradedReasons.count == 1)
    rig.disk.flip(path, at: at)
    #expect(rig.read(7, part: .fragment(1))?.isBeingRepaired == false)
    #expect(rig.writer.spool.stats.degradedReasons.isEmpty)
    rig.stop()
}

@Test func largeChunkIsGivenAway() throws {
    let rig = try DamageRig()
    let id = SegmentID(writer: rig.id.writer, incarnation: rig.id.incarnation, index: 99)
    var builder = ChunkBuilder(compression: CompressionPolicy(.off))
    for octets in [DamagedChunk.octetsMax - 4096, DamagedChunk.octetsMax] {
        builder.begin()
        builder.addFragment(FragmentStreamID(value: 1), index: 0, body: ByteBuffer(repeating: 7, count: octets))
        let header = builder.finish(
            segment: id, appendEpoch: 1, offset: 0, ackedOffset: 0, number: 0, firstMessage: 0, previousHeaderCRC: 0,
            at: .epoch)
        _ = builder.seal(header)
        rig.backup.copies.create(id, reserve: 0) { _ in }
        let made = builder.chunk
        rig.backup.copies.append(id, at: 0, made) { answer in
            #expect(answer == .durable(upTo: Int64(made.readableBytes)))
        }
        let chunk = DamagedChunk(segment: id, offset: 0, end: nil, acked: .max)
        let fits = octets < DamagedChunk.octetsMax
        #expect(rig.fetch(id, at: 0).isDamaged != fits)
        #expect(chunk.takes(made) == fits)
        rig.backup.copies.unlink(id) { _ in }
    }
    rig.stop()
}

// MARK: Takeovers

@Test func takersCopyRotsAndTheWritersIsNotAsked() throws {
    let rig = try DamageRig()
    let taker = rig.backup
    guard case .sealed(let report)? = taker.seal(rig.id, epoch: 2) else { throw DamageRig.Nothing() }
    let key = try #require(rig.registry.take(rig.id, for: taker.drainer, sealedAt: report.end))
    #expect(try taker.spool.adopt(Adoption(key: key, others: [], eventsMayBeLost: true)).messages == 4)
    rig.other.flip(rig.otherPath, at: rig.body(3))
    let message = try #require(taker.jobs.message(Mail.id(3)))
    func read() -> BodyReadOutcome? {
        let reads = Reads()
        taker.spool.read([BodyRead(ref: message.ref, part: .message, token: 1)], for: reads)
        taker.spool.pump()
        return reads.results.withLock { $0[1] }
    }
    #expect(read()?.isBeingRepaired == true)
    let chunk = try #require(taker.news.state.withLock { $0.damaged.last })
    // From the copy that the writer wrote, to the taker's, whose file is sealed.
    rig.writer.copies.read(rig.id, .chunk, from: chunk.offset, atMost: DamagedChunk.octetsMax) { found in
        guard case .octets(let octets, _) = found else { return }
        taker.copies.mend(chunk, octets) { mend in
            #expect(mend == .mended)
            taker.spool.ended(.repaired, of: chunk)
        }
    }
    rig.writer.copies.pump()
    taker.copies.pump()
    #expect(read()?.bytes == Mail(3).body)
    #expect(rig.areEqual)
    #expect(taker.spool.stats.degradedReasons.isEmpty)
    rig.stop()
}

@Test func copiesThatAreDamagedInDifferentPlacesLoseWhatTheOtherHas() throws {
    let rig = try DamageRig()
    let taker = rig.backup
    // Headers and envelopes, which a takeover scans: the second chunk here, the third and the fourth there.
    rig.other.flip(rig.otherPath, at: Int(rig.offset(3)) + 20)
    rig.disk.flip(rig.path, at: Int(rig.offset(2)) + 200)
    rig.other.flip(rig.otherPath, at: Int(rig.offset(4)) + 200)
    var ends: [Int64] = []
    for _ in 0..<3 {
        guard case .sealed(let report)? = taker.seal(rig.id, epoch: 2) else { throw DamageRig.Nothing() }
        ends.append(report.end)
        guard report.tailInvalid else { break }
        let chunk = DamagedChunk(segment: rig.id, offset: report.end, end: nil, acked: .max)
        rig.writer.copies.read(rig.id, .chunk, from: chunk.offset, atMost: DamagedChunk.octetsMax) { found in
            guard case .octets(let octets, _) = found else { return }
            taker.copies.mend(chunk, octets) { #expect($0 == .mended) }
        }
        rig.writer.copies.pump()
        taker.copies.pump()
    }
    #expect(ends == [rig.offset(3), rig.offset(4), rig.offset(5)])
    let key = try #require(rig.registry.take(rig.id, for: taker.drainer, sealedAt: rig.offset(5)))
    #expect(try taker.spool.adopt(Adoption(key: key, others: [], eventsMayBeLost: true)).messages == 4)
    #expect(taker.spool.stats.degradedReasons.isEmpty)
    rig.stop()
}
