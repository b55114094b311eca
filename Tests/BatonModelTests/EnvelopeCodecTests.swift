// Envelopes on disk: round trip, every truncation, every flipped bit.
import BatonCore
import BatonModel
import NIOCore
import Testing

private func mail(_ text: String) -> MailAddress {
    guard let made = MailAddress(text) else { preconditionFailure(text) }
    return made
}

/// An envelope with something in each field.
private func full(recipients: Int = 3) -> Envelope {
    Envelope(
        id: MessageID(high: 0x0123_4567_89ab_cdef, low: 0xfedc_ba98_7654_3210),
        arrival: Instant(secondsSinceEpoch: 1_767_225_600), sender: mail("\"a@b\"@example.org"),
        envid: Array("QQ+2B1".utf8), returnContent: .headers, flags: [.smtpUTF8, .submission], senderClass: 77,
        user: Array("user".utf8), client: Array("192.0.2.1".utf8), sessionID: 99,
        messageIDField: Array("<x@example.org>".utf8),
        recipients: (0..<recipients).map { index in
            EnvelopeRecipient(
                address: mail("r\(index)@Example.NET"), notify: [.success, .failure],
                originalRecipient: Array("rfc822;r\(index)+40example.net".utf8))
        },
        subjects: [
            ReportSubject(message: MessageID(high: 1, low: 2), recipient: 3, kind: .failure),
            ReportSubject(message: MessageID(high: 4, low: 5), recipient: 6, kind: .delay),
        ],
        traits: BodyTraits(
            length: 12_345, crc32c: 0xdead_beef, headerLength: 400, leadingDots: 2, longestLine: 998,
            hasEightBitBody: true, hasEightBitHeader: false, endsWithCRLF: true))
}

/// Every kind of placement at an envelope's end.
private func placed() -> [Envelope] {
    let mark = SubmitMark(
        ingress: NodeID(value: 11), ingressIncarnation: Incarnation(value: 12), counter: 13)
    let held = SubmitMark(
        ingress: NodeID(value: 11), ingressIncarnation: Incarnation(value: 12), counter: 13,
        held: SubmitMark.HeldFor(receiver: NodeID(value: 14), incarnation: Incarnation(value: 15)))
    return [
        full().part(nil, submit: mark), full().part(nil, submit: held), full().part([0, 2], submit: nil),
        full().part([1], submit: mark), full().part([1, 2], submit: held),
    ]
}

private func encoded(_ envelope: Envelope) -> ByteBuffer {
    var buffer = ByteBuffer()
    EnvelopeCodec.encode(envelope, into: &buffer)
    return buffer
}

private func expectEqual(_ left: Envelope?, _ right: Envelope) {
    guard let left else {
        Issue.record("not decoded")
        return
    }
    #expect(left.id == right.id && left.arrival == right.arrival && left.sender == right.sender)
    #expect(left.envid == right.envid && left.returnContent == right.returnContent && left.flags == right.flags)
    #expect(left.senderClass == right.senderClass && left.user == right.user && left.client == right.client)
    #expect(left.sessionID == right.sessionID && left.messageIDField == right.messageIDField)
    #expect(left.recipients == right.recipients && left.subjects == right.subjects && left.traits == right.traits)
    #expect(left.submit == right.submit && left.numbers == right.numbers)
}

@Test func envelopeComesBackAsItWent() {
    expectEqual(EnvelopeCodec.decode(encoded(full())), full())
    expectEqual(EnvelopeCodec.decode(encoded(full(recipients: 5000))), full(recipients: 5000))
    for envelope in placed() { expectEqual(EnvelopeCodec.decode(encoded(envelope)), envelope) }
}

@Test func envelopeWithNothingInIt() {
    let empty = Envelope(
        id: MessageID(high: 0, low: 0), arrival: .epoch, sender: nil, recipients: [], traits: .empty)
    let back = EnvelopeCodec.decode(encoded(empty))
    expectEqual(back, empty)
    #expect(back?.sender == nil)
}

@Test func envelopeAtAnOffsetInItsBuffer() {
    var buffer = ByteBuffer(repeating: 0xaa, count: 13)
    EnvelopeCodec.encode(full(), into: &buffer)
    buffer.moveReaderIndex(forwardBy: 13)
    expectEqual(EnvelopeCodec.decode(buffer), full())
}

@Test func envelopeCutAnywhereIsRefused() {
    for whole in [encoded(full())] + placed().map(encoded) {
        for length in 0..<whole.readableBytes {
            guard let cut = whole.getSlice(at: whole.readerIndex, length: length) else { continue }
            #expect(EnvelopeCodec.decode(cut) == nil, "cut at \(length)")
        }
    }
}

@Test func envelopeWithOctetsAfterItsEndIsRefused() {
    var buffer = encoded(full())
    buffer.writeInteger(UInt8(0))
    #expect(EnvelopeCodec.decode(buffer) == nil)
}

@Test func envelopeWithAFlippedBitIsRefusedOrReadButNeverTraps() {
    for whole in ([full()] + placed()).map({ Array(encoded($0).readableBytesView) }) {
        for index in whole.indices {
            for bit in 0..<8 {
                var flipped = whole
                flipped[index] ^= 1 << UInt8(bit)
                // What decodes has to encode to the very same octets, so that nothing is silently changed.
                guard let envelope = EnvelopeCodec.decode(ByteBuffer(bytes: flipped)) else { continue }
                let again = Array(encoded(envelope).readableBytesView)
                #expect(again == flipped, "octet \(index), bit \(bit)")
            }
        }
    }
}

@Test func envelopeOfAnotherVersionIsRefused() {
    var whole = Array(encoded(full()).readableBytesView)
    for version in UInt8.min...UInt8.max where version != EnvelopeCodec.version {
        whole[0] = version
        #expect(EnvelopeCodec.decode(ByteBuffer(bytes: whole)) == nil)
    }
}

@Test func countThatTheRestCannotHoldIsRefused() {
    // Without recipients and subjects the two counts are the last eight octets.
    let empty = Envelope(id: MessageID(high: 0, low: 0), arrival: .epoch, sender: nil, recipients: [], traits: .empty)
    let whole = Array(encoded(empty).readableBytesView)
    for count in [UInt32(1), 49_999, 50_000, 50_001, 0x7fff_ffff, .max] {
        for end in [8, 4] {
            var bytes = whole
            for octet in 0..<4 {
                bytes[bytes.count - end + octet] = UInt8(truncatingIfNeeded: count >> UInt32(8 * octet))
            }
            #expect(EnvelopeCodec.decode(ByteBuffer(bytes: bytes)) == nil, "count \(count)")
        }
    }
}

@Test func randomOctetsAreNoEnvelope() {
    var random = SplitMix64(seed: 21)
    for _ in 0..<3000 {
        var bytes = (0..<Int(random.next() % 300)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        if !bytes.isEmpty { bytes[0] = EnvelopeCodec.version }
        #expect(EnvelopeCodec.decode(ByteBuffer(bytes: bytes)) == nil, "seed 21")
    }
}

@Test func envelopeFromBeforePlacementIsRefused() {
    // Byte for byte what releases before SUBMIT wrote: no flag, nothing at the end.
    let whole = Array(encoded(full()).readableBytesView)
    #expect(whole[3] & 0x80 == 0)
    #expect(EnvelopeCodec.decode(ByteBuffer(bytes: whole))?.submit == nil)
    // And a reader from before, who knows no end but that of the subjects, refuses what it could not hold.
    for envelope in placed() {
        let extended = Array(encoded(envelope).readableBytesView)
        #expect(extended[3] & 0x80 != 0)
        var cleared = extended
        cleared[3] &= 0x7f
        #expect(EnvelopeCodec.decode(ByteBuffer(bytes: cleared)) == nil)
    }
}

@Test func partsOfAMessageShareTheIdsOfTheirReportsOrEvents() {
    let whole = full(recipients: 6)
    let parts = [whole.part([0, 4], submit: nil), whole.part([1], submit: nil), whole.part([2, 3, 5], submit: nil)]
    var ids: Set<MessageID> = []
    for part in parts {
        for index in UInt32(0)..<UInt32(part.recipients.count) {
            let number = part.number(of: index)
            #expect(part.recipients[Int(index)] == whole.recipients[Int(number)])
            #expect(part.recipient(number: number) == index)
            let event = MailEvent(type: .bounce, at: .epoch, envelope: part, recipient: index, attempts: 1)
            let same = MailEvent(type: .delivery, at: .epoch, envelope: whole, recipient: number, attempts: 2)
            #expect(event.eventID == same.eventID, "a copy of the whole tells of the same recipient")
            ids.insert(event.eventID)
        }
        for number in UInt32(0)..<8 where part.numbers?.contains(number) == false {
            #expect(part.recipient(number: number) == nil)
        }
    }
    #expect(ids.count == 6)
    #expect(whole.part([0, 1, 2, 3, 4, 5], submit: nil).numbers == nil && whole.recipient(number: 6) == nil)
}
