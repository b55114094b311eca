// Message ids as text, their order, and numbers that must never change between releases.
import BatonCore
import Testing

@Test func messageIDTextComesBackAsTheSameID() {
    var random = SplitMix64(seed: 11)
    for _ in 0..<2000 {
        let id = MessageID(high: random.next(), low: random.next())
        #expect(id.textBytes.count == MessageID.textLength)
        #expect(MessageID(text: id.textBytes) == id, "seed 11")
    }
    for id in [
        MessageID(high: 0, low: 0), MessageID(high: .max, low: .max), MessageID(high: 1, low: 0),
        MessageID(high: 0, low: 1 << 63),
    ] {
        #expect(MessageID(text: id.textBytes) == id)
    }
}

@Test func messageIDTextOfFixedValues() {
    #expect(MessageID(high: 0, low: 0).description == "00000000000000000000000000")
    #expect(MessageID(high: .max, low: .max).description == "7ZZZZZZZZZZZZZZZZZZZZZZZZZ")
    #expect(MessageID(high: 0, low: 31).description == "0000000000000000000000000Z")
    #expect(MessageID(high: 1, low: 0).description == "0000000000000G000000000000")
}

@Test func messageIDTextThatIsNone() {
    let good = MessageID(high: 0x0123_4567_89ab_cdef, low: 0xfedc_ba98_7654_3210).textBytes
    #expect(MessageID(text: good.dropLast()) == nil)
    #expect(MessageID(text: good + [0x30]) == nil)
    #expect(MessageID(text: [UInt8]()) == nil)
    #expect(MessageID(text: Array("8ZZZZZZZZZZZZZZZZZZZZZZZZZ".utf8)) == nil, "129 bits")
    for wrong in [UInt8(ascii: "U"), UInt8(ascii: "-"), 0, 0x80, 0xff, UInt8(ascii: "@"), UInt8(ascii: "[")] {
        for index in good.indices {
            var text = good
            text[index] = wrong
            #expect(MessageID(text: text) == nil)
        }
    }
}

@Test func messageIDTextInSmallLettersAndLookAlikes() {
    let id = MessageID(high: 0x0123_4567_89ab_cdef, low: 0xfedc_ba98_7654_3210)
    #expect(MessageID(text: Array(id.description.lowercased().utf8)) == id)
    #expect(MessageID(text: Array("0000000000000000000000000O".utf8)) == MessageID(high: 0, low: 0))
    for one in ["I", "L", "i", "l"] {
        #expect(MessageID(text: Array("0000000000000000000000000\(one)".utf8)) == MessageID(high: 0, low: 1))
    }
}

@Test func laterMessageHasTheGreaterID() {
    var generator = MessageIDGenerator(seed: 3)
    var last: MessageID?
    for milliseconds in 1...500 {
        let instant = Instant(secondsSinceEpoch: 1_767_225_600) + .milliseconds(Int64(milliseconds))
        let id = generator.next(at: instant)
        if let last { #expect(last < id && last.description < id.description) }
        #expect(id.madeAt == instant)
        last = id
    }
}

@Test func hashesThatLeaveTheProcessNeverChange() {
    // Placement, node numbers and sender classes on disk depend on these values: a failure here is a format break.
    #expect(StableHash.of([UInt8]()) == stableHashOfNothing)
    #expect(StableHash.of(Array("example.org".utf8)) == stableHashOfExample)
    #expect(NodeID(name: "n1").value == stableHashOfN1)
    var hash = StableHash()
    hash.combine(UInt64(0x0102_0304_0506_0708))
    #expect(hash.finish() == StableHash.of([8, 7, 6, 5, 4, 3, 2, 1] as [UInt8]))
}

/// Computed by an independent implementation of FNV-1a and of SplitMix64's mixer.
private let stableHashOfNothing: UInt64 = 0xf52a_15e9_a9b5_e89b
private let stableHashOfExample: UInt64 = 0xdd92_ef3c_617d_04af
private let stableHashOfN1: UInt64 = 0xf8e4_6110_455c_6e53

@Test func generatorGivesThePublishedSequence() {
    // The reference output of SplitMix64 for seed 1234567.
    var random = SplitMix64(seed: 1_234_567)
    let expected: [UInt64] = [
        6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423, 4_593_380_528_125_082_431,
        16_408_922_859_458_223_821,
    ]
    #expect(expected.map { _ in random.next() } == expected)
}
