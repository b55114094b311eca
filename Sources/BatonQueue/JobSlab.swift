// Jobs: one 64-byte slot for each queued recipient, linked into exactly one waiting list.
import BatonCore
import BatonModel

/// No index: the end of every chain.
let none = UInt32.max

/// Where a slot stands. It decides which list it is linked into.
enum JobState: UInt8 {
    case free
    /// In a queue of the ready board.
    case ready
    /// In the timer wheel until `due`.
    case waiting
    /// In the timer wheel until it expires.
    case suspended
    /// With the delivery side; in no list.
    case inFlight
    /// Final, not settled; in no list.
    case settling
    /// Its body is damaged; in no list.
    case damaged
    /// No recipient: a timer of a destination or of a hold, in the wheel.
    case timer
}

struct JobFlags: OptionSet, BitwiseCopyable {
    let rawValue: UInt8

    /// NOTIFY has DELAY.
    static let wantsDelayNotice = JobFlags(rawValue: 1)
    /// Nobody is to be told of a delay: null sender, a report, or NOTIFY without DELAY.
    static let noDelayNotice = JobFlags(rawValue: 2)
    static let delayNoticeSent = JobFlags(rawValue: 4)
    /// Never attempted: counted in its message's `untried`, which keeps the body in memory.
    static let untried = JobFlags(rawValue: 8)
    /// Handed out by `finalWithoutAttempt`, so counted in `finalsOutstanding`.
    static let handedOut = JobFlags(rawValue: 16)
    /// A timer of a hold (of a destination otherwise).
    static let holdTimer = JobFlags(rawValue: 32)
}

/// One recipient: at most 64 bytes, so that a million jobs are 64 MB. Text stays in the envelope, on disk.
struct JobSlot: BitwiseCopyable {
    /// Nanoseconds since the epoch: when the wheel gives it back.
    var due: Int64 = 0
    /// Neighbours in the one list it waits in.
    var next = none
    var previous = none
    /// Which list: the wheel's bucket, or the ready board's queue.
    var home = none
    var message = none
    /// Index in `Envelope.recipients`. A hold timer's hold.
    var recipient: UInt32 = 0
    var destination = none
    /// Neighbours among the live jobs of its message, and of its destination.
    var nextOfMessage = none
    var previousOfMessage = none
    var nextOfDestination = none
    var previousOfDestination = none
    /// Grows with each reuse; a handle with another one is stale.
    var generation: UInt32 = 1
    /// Last reply in the reply table; 0 for none.
    var reply: UInt32 = 0
    var attempts: UInt16 = 0
    var doubts: UInt8 = 0
    var state = JobState.free
    var flags: JobFlags = []
}

/// Head, tail and length of an intrusive list of slots.
struct JobList: BitwiseCopyable {
    var head = none
    var tail = none
    var count: UInt32 = 0

    var isEmpty: Bool { head == none }
}

/// All slots of a partition. `JobHandle`s from outside are checked by `slot(of:)`; indices inside are trusted.
struct JobSlab: ~Copyable {
    private var pool = PagedPool<JobSlot>()

    init() {
        precondition(MemoryLayout<JobSlot>.stride <= 64, "a job slot has outgrown its cache line")
    }

    var live: Int { pool.live }
    var highWater: UInt32 { pool.highWater }
    var bytes: Int { pool.bytes }

    subscript(index: UInt32) -> JobSlot {
        @inline(__always) _read { yield pool[index] }
        @inline(__always) _modify { yield &pool[index] }
    }

    /// A slot in its first state but for its generation.
    mutating func take(_ state: JobState) -> UInt32 {
        let index = pool.take(JobSlot())
        let generation = pool[index].generation
        pool[index] = JobSlot()
        pool[index].generation = generation
        pool[index].state = state
        return index
    }

    /// Every handle to it is stale from now on.
    mutating func give(back index: UInt32) {
        pool[index].state = .free
        pool[index].generation &+= 1
        pool.give(back: index)
    }

    func handle(_ index: UInt32) -> JobHandle { JobHandle(slot: index, generation: pool[index].generation) }

    /// Nil for a handle that is stale or was never given out.
    func slot(of handle: JobHandle) -> UInt32? {
        guard handle.slot < pool.highWater, pool[handle.slot].generation == handle.generation,
            pool[handle.slot].state != .free
        else { return nil }
        return handle.slot
    }

    // MARK: The list a job waits in

    mutating func append(_ index: UInt32, to list: inout JobList, home: UInt32) {
        pool[index].home = home
        pool[index].next = none
        pool[index].previous = list.tail
        if list.tail == none { list.head = index } else { pool[list.tail].next = index }
        list.tail = index
        list.count += 1
    }

    mutating func prepend(_ index: UInt32, to list: inout JobList, home: UInt32) {
        pool[index].home = home
        pool[index].previous = none
        pool[index].next = list.head
        if list.head == none { list.tail = index } else { pool[list.head].previous = index }
        list.head = index
        list.count += 1
    }

    mutating func remove(_ index: UInt32, from list: inout JobList) {
        let next = pool[index].next
        let previous = pool[index].previous
        if previous == none { list.head = next } else { pool[previous].next = next }
        if next == none { list.tail = previous } else { pool[next].previous = previous }
        pool[index].next = none
        pool[index].previous = none
        pool[index].home = none
        list.count -= 1
    }

    // MARK: The chains of its message and of its destination (membership, not waiting)

    mutating func link(_ index: UInt32, intoMessage first: inout UInt32) {
        pool[index].nextOfMessage = first
        pool[index].previousOfMessage = none
        if first != none { pool[first].previousOfMessage = index }
        first = index
    }

    mutating func unlink(_ index: UInt32, fromMessage first: inout UInt32) {
        let next = pool[index].nextOfMessage
        let previous = pool[index].previousOfMessage
        if previous == none { first = next } else { pool[previous].nextOfMessage = next }
        if next != none { pool[next].previousOfMessage = previous }
    }

    /// At the head, so that a walk that began before does not meet it.
    mutating func link(_ index: UInt32, into destination: inout DestinationRecord) {
        let first = destination.firstJob
        pool[index].nextOfDestination = first
        pool[index].previousOfDestination = none
        if first == none { destination.lastJob = index } else { pool[first].previousOfDestination = index }
        destination.firstJob = index
    }

    mutating func unlink(_ index: UInt32, from destination: inout DestinationRecord) {
        let next = pool[index].nextOfDestination
        let previous = pool[index].previousOfDestination
        if previous == none { destination.firstJob = next } else { pool[previous].nextOfDestination = next }
        if next == none { destination.lastJob = previous } else { pool[next].previousOfDestination = previous }
    }
}
