// Every bound of a message at its limit and one beyond, on both sides.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonPeer

private func zeros(_ count: Int) -> ByteBuffer { ByteBuffer(repeating: 0, count: count) }

/// At the limit it goes and comes back; one beyond, it is not sent.
private func expectBound(
    _ limit: Int, _ make: (Int) -> PeerMessage, sourceLocation: SourceLocation = #_sourceLocation
) throws {
    let largest = make(limit)
    let octets = try #require(EncodedFrame(largest), "refused at its limit", sourceLocation: sourceLocation)
    #expect(decode([Array(octets.joined.readableBytesView)]).messages == [largest], sourceLocation: sourceLocation)
    #expect(EncodedFrame(make(limit + 1)) == nil, "sent beyond its limit", sourceLocation: sourceLocation)
}

private func submit(envelope: Int, body: Int, bodyOctets: Int? = nil, isCompressed: Bool = false) -> PeerMessage {
    .submit(
        Submit(
            key: sampleKey, receiver: sampleRun.incarnation, envelope: zeros(envelope), body: zeros(body),
            bodyOctets: bodyOctets ?? body, isCompressed: isCompressed))
}

private func hello(
    nonce: UInt64 = 1, versions: VersionRange = .current, window: FrameCost = PeerLimits.bulkWindow, cluster: Int = 4,
    name: Int = 4
) -> PeerMessage {
    .hello(
        Hello(
            versions: versions, run: sampleRun, nonce: nonce, echo: 0, features: [], channel: .bulk, window: window,
            cluster: [UInt8](repeating: 97, count: cluster), name: [UInt8](repeating: 97, count: name)))
}

@Test func submitLargerThanItsBound() throws {
    try expectBound(PeerLimits.submitEnvelopeOctets) { submit(envelope: $0, body: 0) }
    try expectBound(Limits.fragmentThreshold) { submit(envelope: 1, body: $0) }
    try expectBound(Limits.fragmentThreshold) { submit(envelope: 1, body: 10, bodyOctets: $0, isCompressed: true) }
    #expect(EncodedFrame(submit(envelope: 0, body: 1)) == nil)
    #expect(EncodedFrame(submit(envelope: 1, body: 5, bodyOctets: 4)) == nil)
    #expect(EncodedFrame(submit(envelope: 1, body: 0, bodyOctets: 4, isCompressed: true)) == nil)
}

@Test func appendLargerThanItsBound() throws {
    func append(_ octets: Int, chunk: Int? = nil, position: Int = 0, offset: Int64 = 0) -> PeerMessage {
        .append(
            Append(
                segment: sampleSegment, epoch: 1, offset: offset, chunkOctets: chunk ?? octets, position: position,
                octets: zeros(octets)))
    }
    try expectBound(PeerLimits.partOctets) { append($0) }
    try expectBound(PeerLimits.chunkOctets) { append(1, chunk: $0, position: $0 - 1) }
    #expect(EncodedFrame(append(0)) == nil)
    #expect(EncodedFrame(append(5, chunk: 4)) == nil)
    #expect(EncodedFrame(append(5, chunk: 8, position: 4)) == nil)
    #expect(EncodedFrame(append(1, offset: -1)) == nil)
    #expect(EncodedFrame(append(1, offset: .max)) == nil)
}

@Test func largeChunkLosesOctetsBetweenItsParts() {
    var chunk = ByteBuffer(repeating: 7, count: 2 * PeerLimits.partOctets + 9)
    for mark in 0..<40 { chunk.setInteger(UInt32(mark), at: mark * 100_000) }
    let parts = Append.parts(of: chunk, segment: sampleSegment, epoch: 2, offset: 4096)
    #expect(parts.count == 3)
    var joined = ByteBuffer()
    for part in parts {
        #expect(part.isValid && part.position == joined.readableBytes && part.chunkOctets == chunk.readableBytes)
        joined.writeImmutableBuffer(part.octets)
        #expect(part.isLast == (joined.readableBytes == chunk.readableBytes))
    }
    #expect(joined == chunk)
    #expect(Append.parts(of: ByteBuffer(), segment: sampleSegment, epoch: 2, offset: 0).isEmpty)
}

@Test func copyPartLargerThanItsBound() throws {
    func part(_ octets: Int, _ status: CopyPart.Status = .octets, last: Bool = true) -> PeerMessage {
        .chunk(
            CopyPart(
                request: 1, segment: sampleSegment, epoch: 1, offset: 0, part: .segment, status: status, isLast: last,
                octets: zeros(octets)))
    }
    try expectBound(PeerLimits.partOctets) { part($0) }
    #expect(EncodedFrame(part(1, .missing)) == nil, "octets of a missing copy")
    #expect(EncodedFrame(part(0, .damaged, last: false)) == nil, "more behind damage")
    #expect(EncodedFrame(part(0, last: false)) == nil, "an empty part that is not the last")
}

@Test func outcomesLargerThanTheirBound() throws {
    func outcome(_ octets: Int, count: Int = 1, from: Int64 = 0, isLate: Bool = false) -> PeerMessage {
        .outcome(
            OutcomeRecords(
                segment: sampleSegment, epoch: 1, from: from, count: count, records: zeros(octets), isLate: isLate))
    }
    try expectBound(PeerLimits.outcomeOctets) { outcome($0) }
    #expect(EncodedFrame(outcome(3, count: 4)) == nil, "more records than octets")
    #expect(EncodedFrame(outcome(3, count: 0)) == nil)
    #expect(EncodedFrame(outcome(3, from: 1, isLate: true)) == nil)
    #expect(EncodedFrame(outcome(3, from: .max)) == nil)
}

@Test func promiseForMoreSegmentsThanItsBound() throws {
    func items(_ count: Int) -> [PromiseItem] {
        [PromiseItem](repeating: PromiseItem(segment: sampleSegment, epoch: 1), count: count)
    }
    try expectBound(PeerLimits.promiseItems) {
        .promiseAsked(PromiseAsked(number: 1, askedAt: .epoch, items: items($0)))
    }
    try expectBound(PeerLimits.promiseItems) {
        .promise(Promise(number: 1, askedAt: .epoch, span: .seconds(2), items: items($0)))
    }
    #expect(EncodedFrame(.promiseAsked(PromiseAsked(number: 1, askedAt: .epoch, items: []))) == nil)
}

@Test func countThatTheOctetsCannotHoldIsReserved() throws {
    var octets = try encoded(
        .promiseAsked(PromiseAsked(number: 1, askedAt: .epoch, items: [PromiseItem(segment: sampleSegment, epoch: 1)])))
    octets[12 + 16] = 0xff
    octets[12 + 17] = 0x0f
    #expect(decode([resealed(octets)]).violation == .malformed)
}

@Test func spanBeyondItsBound() throws {
    let limit = Int(PeerLimits.spanMax.nanoseconds / 1_000_000)
    try expectBound(limit) {
        .promise(Promise(number: 1, askedAt: .epoch, span: .milliseconds(Int64($0)), items: []))
    }
    try expectBound(limit) {
        .quota(
            Quota(
                verb: .grant, kind: .rate, span: .milliseconds(Int64($0)), request: 1, share: 1, amount: 1, site: [97]))
    }
    #expect(EncodedFrame(.promise(Promise(number: 1, askedAt: .epoch, span: .zero, items: []))) == nil)
    let fraction = TimeSpan(nanoseconds: 1_500_001)
    #expect(EncodedFrame(.promise(Promise(number: 1, askedAt: .epoch, span: fraction, items: []))) == nil)
}

@Test func quotaThatContradictsItself() throws {
    func quota(_ verb: Quota.Verb, span: Int64, share: UInt64, amount: UInt64, site: Int = 3) -> PeerMessage {
        .quota(
            Quota(
                verb: verb, kind: .connections, span: .seconds(span), request: 1, share: share, amount: amount,
                site: [UInt8](repeating: 97, count: site)))
    }
    try expectBound(PeerLimits.siteOctets) { quota(.request, span: 0, share: 0, amount: 1, site: $0) }
    #expect(EncodedFrame(quota(.request, span: 0, share: 0, amount: 1, site: 0)) == nil)
    #expect(EncodedFrame(quota(.request, span: 1, share: 0, amount: 1)) == nil)
    #expect(EncodedFrame(quota(.request, span: 0, share: 0, amount: 0)) == nil)
    #expect(EncodedFrame(quota(.grant, span: 0, share: 1, amount: 1)) == nil)
    #expect(EncodedFrame(quota(.grant, span: 1, share: 0, amount: 1)) == nil)
    #expect(EncodedFrame(quota(.grant, span: 1, share: 0, amount: 0)) != nil)
    #expect(EncodedFrame(quota(.returned, span: 0, share: 0, amount: 1)) == nil)
    #expect(EncodedFrame(quota(.returned, span: 0, share: 2, amount: 0)) != nil)
}

@Test func queryOrAnswerLargerThanItsBound() throws {
    func query(name: Int, json: Int) -> PeerMessage {
        .query(Query(request: 1, name: [UInt8](repeating: 97, count: name), json: zeros(json)))
    }
    try expectBound(PeerLimits.queryNameOctets) { query(name: $0, json: 0) }
    try expectBound(PeerLimits.queryOctets - 11) { query(name: 1, json: $0) }
    try expectBound(PeerLimits.answerOctets - 12) { .answer(Answer(request: 1, status: 200, json: zeros($0))) }
    #expect(EncodedFrame(query(name: 0, json: 0)) == nil)
    #expect(EncodedFrame(.answer(Answer(request: 1, status: 99, json: zeros(0)))) == nil)
    #expect(EncodedFrame(.answer(Answer(request: 1, status: 600, json: zeros(0)))) == nil)
}

@Test func helloBeyondItsBounds() throws {
    try expectBound(PeerLimits.nameOctets) { hello(cluster: $0) }
    try expectBound(PeerLimits.nameOctets) { hello(name: $0) }
    try expectBound(PeerLimits.windowOctetsMax) { hello(window: FrameCost(octets: $0, frames: 16)) }
    try expectBound(PeerLimits.windowFramesMax) { hello(window: FrameCost(octets: 4 << 20, frames: $0)) }
    #expect(EncodedFrame(hello(window: FrameCost(octets: PeerLimits.windowOctetsMin - 1, frames: 16))) == nil)
    #expect(EncodedFrame(hello(window: FrameCost(octets: 4 << 20, frames: PeerLimits.windowFramesMin - 1))) == nil)
    #expect(EncodedFrame(hello(nonce: 0)) == nil)
    #expect(EncodedFrame(hello(cluster: 0)) == nil)
    #expect(EncodedFrame(hello(name: 0)) == nil)
    #expect(EncodedFrame(hello(versions: VersionRange(lowest: 2, highest: 1))) == nil)
    #expect(EncodedFrame(hello(versions: VersionRange(lowest: 0, highest: 1))) == nil)
}

@Test func errorTextBeyondItsBound() throws {
    try expectBound(PeerLimits.errorTextOctets) {
        .error(ErrorReport(code: 9, text: [UInt8](repeating: 97, count: $0)))
    }
    for violation in PeerViolation.allCases { #expect(EncodedFrame(.error(ErrorReport(violation))) != nil) }
}

@Test func offsetsThatContradictEachOther() {
    #expect(
        EncodedFrame(
            .recorded(
                Recorded(segment: sampleSegment, epoch: 1, memory: 5, synced: 6, incarnation: sampleRun.incarnation)))
            == nil)
    #expect(
        EncodedFrame(
            .sealed(
                Sealed(
                    segment: sampleSegment, epoch: 1, length: nil, logLength: nil, incarnation: sampleRun.incarnation,
                    status: .sealed, hasInvalidTail: true))) == nil, "an invalid tail behind no known prefix")
    #expect(
        EncodedFrame(.fetch(Fetch(request: 0, segment: sampleSegment, epoch: 1, from: 0, atMost: 1, part: .segment)))
            == nil)
    #expect(
        EncodedFrame(.fetch(Fetch(request: 1, segment: sampleSegment, epoch: 1, from: 0, atMost: 0, part: .segment)))
            == nil)
    #expect(EncodedFrame(.create(Create(segment: sampleSegment, epoch: 1, reserve: -1))) == nil)
    #expect(EncodedFrame(.credit(Credit(FrameCost(octets: 12, frames: 0)))) == nil)
}

@Test func largestFrameThatTheLeastWindowCannotHold() {
    let largest = FrameType.allCases.map { $0.payloadLengths.upperBound + FrameHeader.octets }.max() ?? .max
    let portion = PeerLimits.windowOctetsMin / PeerLimits.creditPortions
    #expect(largest <= PeerLimits.windowOctetsMin - portion)
}

@Test func decoderReservesWhatIsOnlyDeclared() throws {
    var decoder = FrameDecoder()
    var head = ByteBuffer()
    let length = PeerLimits.partOctets + Append.fixedLength
    head.writeMultipleIntegers(
        UInt32(length), FrameType.append.rawValue, UInt8(0), UInt16(0), UInt32(0), endianness: .little)
    decoder.feed(head)
    guard case .header = try decoder.next() else { Issue.record("no header"); return }
    decoder.feed(ByteBuffer(repeating: 0, count: 1))
    #expect(try decoder.next() == .needMore)
    #expect(decoder.reservedOctets <= PeerLimits.reservedOctets * 2)
    #expect(decoder.bufferedOctets == 13)
}
