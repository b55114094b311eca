// The retry schedule: growth, cap, jitter, absurd settings.
import BatonCore
import BatonModel
import Testing

@testable import BatonQueue

@Test func retryWaitDoesNotDoubleUpToTheMax() {
    let schedule = RetrySchedule(first: .minutes(5), factor: 2, max: .hours(4), jitter: 0)
    let waits = (1...8).map { schedule.wait(after: $0) }
    #expect(
        waits == [
            .minutes(5), .minutes(10), .minutes(20), .minutes(40), .minutes(80), .minutes(160), .minutes(240),
            .minutes(240),
        ])
}

@Test func retryJitterLeavesItsBand() {
    let schedule = RetrySchedule()
    var random = SplitMix64(seed: 3)
    var low = 1.0
    var high = 1.0
    for _ in 0..<10_000 {
        let ratio = schedule.jittered(after: 9, random: &random).seconds / TimeSpan.hours(4).seconds
        low = min(low, ratio)
        high = max(high, ratio)
    }
    // The cap comes before the jitter, so that capped mail spreads as well.
    #expect(low >= 0.8 && low < 0.81)
    #expect(high <= 1.2 && high > 1.19)
}

@Test(arguments: [
    RetrySchedule(first: .zero, factor: 0, max: .zero, jitter: 0),
    RetrySchedule(first: .seconds(-5), factor: -3, max: .seconds(-1), jitter: 9),
    RetrySchedule(first: .days(100_000), factor: 1e300, max: .hours(4), jitter: 1),
    RetrySchedule(first: .seconds(1), factor: .nan, max: .hours(4), jitter: .nan),
])
func absurdScheduleSpinsOrTraps(_ schedule: RetrySchedule) {
    var random = SplitMix64(seed: 1)
    for failures in [-1, 0, 1, 2, 1_000, Int.max] {
        let wait = schedule.jittered(after: failures, random: &random)
        #expect(wait >= RetrySchedule.waitMin)
        #expect(wait <= .hours(8))
    }
}

@Test func mailThatFailedTogetherComesBackTogether() {
    // 1,000 messages refused in the same instant: their retries spread over the jitter's width, 120 s of 300.
    let harness = Harness()
    for number in 0..<1_000 { harness.receive(message(UInt32(number), to: ["u@one.test"])) }
    var buckets: [Int64: Int] = [:]
    for transaction in harness.pull(siteA, 1_000) {
        for decision in harness.decide(transaction, .temporary(tryLater)) {
            guard case .deferred(let until, _) = decision else {
                Issue.record("not deferred")
                continue
            }
            buckets[(until - start).nanoseconds / 10_000_000_000, default: 0] += 1
        }
    }
    #expect(buckets.keys.min().map { $0 >= 24 } == true)
    #expect(buckets.keys.max().map { $0 <= 36 } == true)
    #expect(buckets.values.max().map { $0 < 150 } == true, "a tenth of the width holds most: \(buckets)")
}
