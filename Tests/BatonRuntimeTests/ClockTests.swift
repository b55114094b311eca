// The process clock: what it counts.
import BatonCore
import BatonRuntime
import Glibc
import Testing

private func boot() -> Int64 {
    var time = timespec()
    clock_gettime(CLOCK_BOOTTIME, &time)
    return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
}

/// No test can suspend the machine: that it is the clock which counts it has to do.
@Test func suspendedDrainerThinksItsPromisesFresh() {
    #expect(SystemTimeSource.clock == CLOCK_BOOTTIME)
    let time = SystemTimeSource()
    let (least, first, most) = (boot(), time.now(), boot())
    let (later, second, latest) = (boot(), time.now(), boot())
    let passed = (second - first).nanoseconds
    #expect(passed >= later - most && passed <= latest - least)
}
