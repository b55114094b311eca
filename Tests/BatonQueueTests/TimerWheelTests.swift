// The timer wheel: nothing early, nothing late, nothing lost, over days.
import BatonCore
import Testing

@testable import BatonQueue

/// A wheel with its slots.
private final class Wheel {
    var slab = JobSlab()
    var wheel = TimerWheel(now: start)

    func insert(due: Instant) -> UInt32 {
        let slot = slab.take(.waiting)
        slab[slot].due = due.nanoseconds
        wheel.insert(slot, &slab)
        return slot
    }

    func remove(_ slot: UInt32) {
        wheel.remove(slot, &slab)
        slab.give(back: slot)
    }

    func due(_ slot: UInt32) -> Instant { Instant(nanoseconds: slab[slot].due) }

    func next(_ now: Instant, _ budget: inout Int) -> UInt32? { wheel.next(at: now, budget: &budget, &slab) }

    func fired(at now: Instant) -> [UInt32] {
        var fired: [UInt32] = []
        while true {
            var budget = 1_000
            while let slot = next(now, &budget) { fired.append(slot) }
            if budget > 0 { return fired }
        }
    }
}

@Test func wheelFiresEarlyOrLateOverFiveDays() {
    let seed: UInt64 = 42
    print("seed \(seed)")
    var random = SplitMix64(seed: seed)
    let wheel = Wheel()
    var pending: [UInt32: Instant] = [:]
    for _ in 0..<20_000 {
        let due = start + .milliseconds(Int64.random(in: -1_000..<5 * 86_400_000, using: &random))
        pending[wheel.insert(due: due)] = due
    }
    var now = start
    var last = Instant.epoch
    while let wake = wheel.wheel.nextWake {
        // Now and then a late loop turn, and something taken out or put in meanwhile.
        now = max(now, wake) + (random.next() % 5 == 0 ? .seconds(Int64(random.next() % 900)) : .zero)
        for slot in wheel.fired(at: now) {
            guard let due = pending.removeValue(forKey: slot) else {
                Issue.record("slot \(slot) fired twice")
                continue
            }
            #expect(due <= now, "fired \(due - now) early")
            #expect(due + .seconds(2) >= last, "out of order")
            last = due
            wheel.slab.give(back: slot)
        }
        let overdue = pending.values.filter { $0 + TimerWheel.tick < now }.count
        #expect(overdue == 0, "late ones were left in the wheel")
        if random.next() % 50 == 0, let victim = pending.keys.min() {
            pending[victim] = nil
            wheel.remove(victim)
        }
        if random.next() % 20 == 0, now < start + .days(4) {
            let due = now + .seconds(Int64(random.next() % 100_000))
            pending[wheel.insert(due: due)] = due
        }
    }
    #expect(pending.isEmpty)
    #expect(wheel.wheel.count == 0)
}

@Test func wheelLosesFarOrAbsurdDueTimes() {
    let wheel = Wheel()
    let past = wheel.insert(due: Instant(nanoseconds: .min))
    let far = wheel.insert(due: .distantFuture)
    let years = wheel.insert(due: start + .days(20 * 365))
    #expect(wheel.fired(at: start) == [past])
    #expect(wheel.fired(at: start + .days(20 * 365 - 1)).isEmpty)
    #expect(wheel.fired(at: start + .days(20 * 365 + 1)) == [years])
    #expect(wheel.wheel.count == 1)
    wheel.remove(far)
    #expect(wheel.wheel.nextWake == nil)
}

@Test func wheelForgetsOrderWithinATick() {
    let wheel = Wheel()
    let slots = (0..<100).map { _ in wheel.insert(due: start + .hours(3)) }
    #expect(wheel.fired(at: start + .hours(4)) == slots)
}

@Test func wheelIgnoresItsBudget() {
    let wheel = Wheel()
    for _ in 0..<1_000 { _ = wheel.insert(due: start + .hours(1)) }
    let now = start + .hours(2)
    var fired = 0
    var turns = 0
    while fired < 1_000, turns < 1_000 {
        var budget = 100
        while wheel.next(now, &budget) != nil { fired += 1 }
        #expect(budget >= 0)
        turns += 1
    }
    #expect(fired == 1_000)
    #expect(turns > 10, "cascading costs budget too")
}
