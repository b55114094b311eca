// Time that saturates instead of trapping.
import BatonCore
import Testing

@Test func arithmeticBeyondTheEndsOfTimeSaturates() {
    let end = Instant(nanoseconds: .max)
    let start = Instant(nanoseconds: .min)
    #expect(end + .seconds(1) == end)
    #expect(start - .seconds(1) == start)
    #expect(start + TimeSpan(nanoseconds: .min) == start)
    #expect(end - TimeSpan(nanoseconds: .min) == end)
    #expect((end - start).nanoseconds == .max)
    #expect((start - end).nanoseconds == .min)
    #expect(TimeSpan.days(.max).nanoseconds == .max)
    #expect(TimeSpan.days(.min).nanoseconds == .min)
    #expect(Instant(secondsSinceEpoch: .max) == end)
    #expect(Instant(secondsSinceEpoch: .min) == start)
    #expect(TimeSpan(nanoseconds: .max) + .seconds(1) == TimeSpan(nanoseconds: .max))
    #expect(TimeSpan.hours(1).multiplied(by: .infinity).nanoseconds == .max)
    #expect(TimeSpan.hours(1).multiplied(by: 1e30).nanoseconds == .max)
    #expect(TimeSpan.hours(1).multiplied(by: .nan).nanoseconds == .max)
}

@Test func secondsRoundTowardsThePast() {
    #expect(Instant(nanoseconds: 1_999_999_999).secondsSinceEpoch == 1)
    #expect(Instant(nanoseconds: -1).secondsSinceEpoch == -1)
    #expect(Instant(nanoseconds: -1_000_000_000).secondsSinceEpoch == -1)
    #expect(Instant(nanoseconds: -1_000_000_001).secondsSinceEpoch == -2)
    #expect(Instant(nanoseconds: .min).secondsSinceEpoch < 0)
    #expect(Instant(nanoseconds: -5).millisecondsSinceEpoch == 0)
    #expect(Instant(nanoseconds: 1_500_000).millisecondsSinceEpoch == 1)
}

@Test func sizesForPeople() {
    #expect(ByteCount.text(0) == "0 B")
    #expect(ByteCount.text(1023) == "1023 B")
    #expect(ByteCount.text(1536) == "1.5 KiB")
    #expect(ByteCount.text(5 * ByteCount.gibi) == "5.0 GiB")
    #expect(ByteCount.text(.max).hasSuffix("TiB"))
}

@Test func unitIsAtLeastZeroAndBelowOne() {
    var random = SplitMix64(seed: 4)
    var sum = 0.0
    for _ in 0..<10_000 {
        let value = random.unit()
        #expect(value >= 0 && value < 1)
        sum += value
    }
    #expect(abs(sum / 10_000 - 0.5) < 0.02, "seed 4")
}
