// Destinations (domains with mail) and the sites they belong to.
import BatonCore
import BatonModel

/// Where a destination stands. Its jobs can be pulled in `assigned` only.
enum DestinationPhase: Sendable {
    /// No site; the next ready job asks for one.
    case unrouted
    /// Asked; its timer asks again after `QueueLimits.routeTimeout`.
    case routing
    case assigned
    /// Failed as a whole: one wheel entry, whatever the number of its jobs.
    case backedOff
    /// Our own fault: waits, nothing counted.
    case paused
}

struct JobCounts: Sendable {
    var ready = 0
    var waiting = 0
    var suspended = 0
    var inFlight = 0
    var damaged = 0

    var all: Int { ready + waiting + suspended + inFlight + damaged }

    mutating func add(_ state: JobState, _ change: Int) {
        switch state {
        case .ready: ready += change
        case .waiting: waiting += change
        case .suspended: suspended += change
        case .inFlight, .settling: inFlight += change
        case .damaged: damaged += change
        case .free, .timer: break
        }
    }
}

struct DestinationRecord: Sendable {
    let id: UInt32
    let domain: Domain
    var phase = DestinationPhase.unrouted
    /// Index of its site's record, `none` without one; kept through back-off.
    var site = none
    var assignedUntil = Instant.epoch
    /// Failures as a whole in a row: the exponent of its back-off.
    var failures = 0
    /// Its one timer in the wheel.
    var timer = none
    /// Chain of all its live jobs, the newest first.
    var firstJob = none
    var lastJob = none
    var counts = JobCounts()
    /// Chain of its queues on the ready board, one for each sender class.
    var firstQueue = none
    var nextOfSite = none
    var previousOfSite = none
    /// Neighbours among destinations without jobs.
    var nextIdle = none
    var previousIdle = none
    var isIdle = false
    /// Walks of its chain under way.
    var sweeps = 0
    /// Reopening waits for its walk to end.
    var reopenAfterSweep = false
    /// Last reply for it as a whole.
    var reply: UInt32 = 0

    /// Whether ready jobs count as deferred in an operator's eyes.
    var isBlocked: Bool { phase == .backedOff || phase == .paused }
}

struct SiteRecord: Sendable {
    let id: SiteID
    var name: [UInt8] = []
    /// Overrides `queue.retry`.
    var retry: RetrySchedule?
    var firstDestination = none
    var destinations = 0
    /// Ring of classes with ready jobs, and the number of those jobs.
    var firstClass = none
    var lastClass = none
    var ready = 0
    /// Told about in this batch.
    var isDirty = false
    var lastReply: UInt32 = 0
}

/// Records by index, with free lists; ids are never given twice while anyone may still hold one.
struct DestinationTable: Sendable {
    private(set) var records: [DestinationRecord?] = []
    private var free: [UInt32] = []
    private var byDomain: [Domain: UInt32] = [:]
    private var byID: [UInt32: UInt32] = [:]
    private var nextID: UInt32 = 1
    private(set) var firstIdle = none
    private var lastIdle = none
    private(set) var idleCount = 0

    var count: Int { byID.count }
    var highWater: UInt32 { UInt32(records.count) }

    /// Only for indices of live records, which every job's `destination` is.
    subscript(index: UInt32) -> DestinationRecord {
        @inline(__always) _read {
            guard let record = records[Int(index)] else { preconditionFailure("destination without record") }
            yield record
        }
        @inline(__always) _modify {
            // The optional is unwrapped in place: every index in a job or a site's chain is live.
            yield &records[Int(index)].unsafelyLive
        }
    }

    func exists(_ index: UInt32) -> Bool { index < highWater && records[Int(index)] != nil }

    func find(_ domain: Domain) -> UInt32? { byDomain[domain] }

    /// Nil for an id that was released.
    func find(_ id: DestinationID) -> UInt32? { byID[id.value] }

    mutating func intern(_ domain: Domain) -> (index: UInt32, isNew: Bool) {
        if let known = byDomain[domain] { return (known, false) }
        while byID[nextID] != nil { nextID &+= 1 }
        let record = DestinationRecord(id: nextID, domain: domain)
        nextID &+= 1
        let index: UInt32
        if let reused = free.popLast() {
            index = reused
            records[Int(index)] = record
        } else {
            index = UInt32(records.count)
            records.append(record)
        }
        byDomain[domain] = index
        byID[record.id] = index
        return (index, true)
    }

    mutating func release(_ index: UInt32) {
        guard let record = records[Int(index)] else { return }
        leaveIdle(index)
        byDomain[record.domain] = nil
        byID[record.id] = nil
        records[Int(index)] = nil
        free.append(index)
    }

    mutating func enterIdle(_ index: UInt32) {
        guard !self[index].isIdle else { return }
        self[index].isIdle = true
        self[index].nextIdle = none
        self[index].previousIdle = lastIdle
        if lastIdle == none { firstIdle = index } else { self[lastIdle].nextIdle = index }
        lastIdle = index
        idleCount += 1
    }

    mutating func leaveIdle(_ index: UInt32) {
        guard self[index].isIdle else { return }
        let next = self[index].nextIdle
        let previous = self[index].previousIdle
        if previous == none { firstIdle = next } else { self[previous].nextIdle = next }
        if next == none { lastIdle = previous } else { self[next].previousIdle = previous }
        self[index].isIdle = false
        idleCount -= 1
    }
}

extension Optional where Wrapped == DestinationRecord {
    /// In-place access to a record known to be live; traps on a broken invariant.
    fileprivate var unsafelyLive: DestinationRecord {
        @inline(__always) get {
            guard let self else { preconditionFailure("destination without record") }
            return self
        }
        @inline(__always) _modify {
            guard self != nil else { preconditionFailure("destination without record") }
            yield &self!
        }
    }
}

extension Optional where Wrapped == SiteRecord {
    fileprivate var unsafelyLive: SiteRecord {
        @inline(__always) get {
            guard let self else { preconditionFailure("site without record") }
            return self
        }
        @inline(__always) _modify {
            guard self != nil else { preconditionFailure("site without record") }
            yield &self!
        }
    }
}

/// Sites of a partition: as many as the delivery side uses, and `QueueLimits.idleSites` without destinations.
struct SiteTable: Sendable {
    private(set) var records: [SiteRecord?] = []
    private var free: [UInt32] = []
    private var byID: [SiteID: UInt32] = [:]

    var highWater: UInt32 { UInt32(records.count) }

    subscript(index: UInt32) -> SiteRecord {
        @inline(__always) _read {
            guard let record = records[Int(index)] else { preconditionFailure("site without record") }
            yield record
        }
        @inline(__always) _modify { yield &records[Int(index)].unsafelyLive }
    }

    func exists(_ index: UInt32) -> Bool { index < highWater && records[Int(index)] != nil }

    func find(_ id: SiteID) -> UInt32? { byID[id] }

    /// The site's record, made if need be.
    mutating func intern(_ id: SiteID) -> UInt32 {
        if let known = byID[id] { return known }
        if byID.count - inUse >= QueueLimits.idleSites { dropIdle() }
        let record = SiteRecord(id: id)
        let index: UInt32
        if let reused = free.popLast() {
            index = reused
            records[Int(index)] = record
        } else {
            index = UInt32(records.count)
            records.append(record)
        }
        byID[id] = index
        return index
    }

    /// Sites with destinations.
    var inUse = 0

    /// Forgets every site without destinations: rare, so a walk over all is cheap enough.
    private mutating func dropIdle() {
        for index in records.indices {
            guard let record = records[index], record.destinations == 0, !record.isDirty else { continue }
            byID[record.id] = nil
            records[index] = nil
            free.append(UInt32(index))
        }
    }

    mutating func forget(_ id: SiteID) {
        guard let index = byID[id], self[index].destinations == 0, !self[index].isDirty else { return }
        byID[id] = nil
        records[Int(index)] = nil
        free.append(index)
    }
}
