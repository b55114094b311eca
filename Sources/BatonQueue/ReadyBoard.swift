// What can be sent now, in fair order: site → sender classes (deficit round robin) → destinations → jobs, first in first out.
import BatonCore
import BatonModel

/// Ready jobs of one destination and one sender class.
struct DestinationQueue: Sendable {
    let destination: UInt32
    let senderClass: UInt64
    var jobs = JobList()
    /// The class queue it is attached to; `none` while the destination cannot be served.
    var classQueue = none
    /// Neighbours in the class's round.
    var next = none
    var previous = none
    /// Next queue of the same destination.
    var nextOfDestination = none
    var previousOfDestination = none
}

/// A sender class's share of one site.
struct ClassQueue: Sendable {
    let site: UInt32
    let senderClass: UInt64
    /// What it may still send before its turn ends; negative after a large transaction.
    var deficit = ReadyBoard.quantum
    var first = none
    var last = none
    /// Neighbours in the site's round.
    var next = none
    var previous = none
}

/// The board of a partition. A class waits at most a quantum of each other class before its turn, so one sender's backlog
/// costs another's mail a few transactions, never the backlog.
///
/// A transaction costs its recipients plus one for each 32 KiB of body. Deficit round robin (Shreedhar, Varghese 1995), with
/// debts: a transaction larger than what is left is sent, and paid back by rounds sat out.
struct ReadyBoard: Sendable {
    /// What a class may send in its turn.
    static let quantum = 8
    /// The deepest debt: one enormous message does not shut its class out for long, nor the rounds that pay it back run on.
    static let debtMax = 1_024
    private static let bodyUnit: UInt32 = 32 * 1024

    private struct QueueKey: Hashable, Sendable {
        let destination: UInt32
        let senderClass: UInt64
    }

    private var queues: [DestinationQueue?] = []
    private var freeQueues: [UInt32] = []
    private var queueOf: [QueueKey: UInt32] = [:]
    private var classes: [ClassQueue?] = []
    private var freeClasses: [UInt32] = []
    private var classOf: [QueueKey: UInt32] = [:]

    static func cost(recipients: Int, size: UInt32) -> Int { recipients + Int(size / bodyUnit) }

    func queue(_ index: UInt32) -> DestinationQueue {
        guard let queue = queues[Int(index)] else { preconditionFailure("ready queue without record") }
        return queue
    }

    private func classQueue(_ index: UInt32) -> ClassQueue {
        guard let queue = classes[Int(index)] else { preconditionFailure("class queue without record") }
        return queue
    }

    // MARK: Jobs

    /// Adds a job, at the front for work that was given back.
    mutating func push(
        _ job: UInt32, senderClass: UInt64, front: Bool, _ slab: inout JobSlab,
        _ destinations: inout DestinationTable, _ sites: inout SiteTable
    ) {
        let destination = slab[job].destination
        let key = QueueKey(destination: destination, senderClass: senderClass)
        let index: UInt32
        if let known = queueOf[key] {
            index = known
        } else {
            index = makeQueue(key, &destinations)
            if destinations[destination].phase == .assigned { attach(index, destinations[destination].site, &sites) }
        }
        if front {
            slab.prepend(job, to: &queues[Int(index)].live.jobs, home: index)
        } else {
            slab.append(job, to: &queues[Int(index)].live.jobs, home: index)
        }
        if queue(index).classQueue != none { sites[classQueue(queue(index).classQueue).site].ready += 1 }
    }

    private mutating func makeQueue(_ key: QueueKey, _ destinations: inout DestinationTable) -> UInt32 {
        var made = DestinationQueue(destination: key.destination, senderClass: key.senderClass)
        made.nextOfDestination = destinations[key.destination].firstQueue
        let index: UInt32
        if let reused = freeQueues.popLast() {
            index = reused
        } else {
            index = UInt32(queues.count)
            queues.append(nil)
        }
        if made.nextOfDestination != none {
            queues[Int(made.nextOfDestination)].live.previousOfDestination = index
        }
        queues[Int(index)] = made
        destinations[key.destination].firstQueue = index
        queueOf[key] = index
        return index
    }

    /// Takes a ready job out; a queue without jobs goes with it.
    mutating func remove(
        _ job: UInt32, _ slab: inout JobSlab, _ destinations: inout DestinationTable, _ sites: inout SiteTable
    ) {
        let index = slab[job].home
        slab.remove(job, from: &queues[Int(index)].live.jobs)
        let left = queue(index)
        if left.classQueue != none { sites[classQueue(left.classQueue).site].ready -= 1 }
        guard left.jobs.isEmpty else { return }
        detach(index, &sites)
        if left.previousOfDestination == none {
            destinations[left.destination].firstQueue = left.nextOfDestination
        } else {
            queues[Int(left.previousOfDestination)].live.nextOfDestination = left.nextOfDestination
        }
        if left.nextOfDestination != none {
            queues[Int(left.nextOfDestination)].live.previousOfDestination = left.previousOfDestination
        }
        queueOf[QueueKey(destination: left.destination, senderClass: left.senderClass)] = nil
        queues[Int(index)] = nil
        freeQueues.append(index)
    }

    // MARK: Destinations coming and going

    /// Every queue of the destination joins the rounds of its site.
    mutating func attachAll(_ destination: DestinationRecord, _ sites: inout SiteTable) {
        var index = destination.firstQueue
        while index != none {
            if queue(index).classQueue == none { attach(index, destination.site, &sites) }
            index = queue(index).nextOfDestination
        }
    }

    mutating func detachAll(_ destination: DestinationRecord, _ sites: inout SiteTable) {
        var index = destination.firstQueue
        while index != none {
            detach(index, &sites)
            index = queue(index).nextOfDestination
        }
    }

    private mutating func attach(_ index: UInt32, _ site: UInt32, _ sites: inout SiteTable) {
        let senderClass = queue(index).senderClass
        let key = QueueKey(destination: site, senderClass: senderClass)
        let owner: UInt32
        if let known = classOf[key] {
            owner = known
        } else {
            owner = makeClass(key, &sites)
        }
        append(index, toClass: owner)
        sites[site].ready += Int(queue(index).jobs.count)
    }

    private mutating func detach(_ index: UInt32, _ sites: inout SiteTable) {
        let owner = queue(index).classQueue
        guard owner != none else { return }
        let site = classQueue(owner).site
        sites[site].ready -= Int(queue(index).jobs.count)
        remove(index, fromClass: owner)
        queues[Int(index)].live.classQueue = none
        guard classQueue(owner).first == none else { return }
        remove(owner, &sites[site])
        classOf[QueueKey(destination: site, senderClass: classQueue(owner).senderClass)] = nil
        classes[Int(owner)] = nil
        freeClasses.append(owner)
    }

    private mutating func makeClass(_ key: QueueKey, _ sites: inout SiteTable) -> UInt32 {
        let index: UInt32
        if let reused = freeClasses.popLast() {
            index = reused
        } else {
            index = UInt32(classes.count)
            classes.append(nil)
        }
        classes[Int(index)] = ClassQueue(site: key.destination, senderClass: key.senderClass)
        classOf[key] = index
        append(index, &sites[key.destination])
        return index
    }

    // MARK: Rounds

    /// The queue whose turn it is at the site; nil without ready jobs. Pay with `charge`.
    mutating func turn(_ site: UInt32, _ sites: inout SiteTable) -> UInt32? {
        while true {
            let owner = sites[site].firstClass
            guard owner != none else { return nil }
            if classQueue(owner).deficit > 0 {
                let first = classQueue(owner).first
                return first == none ? nil : first
            }
            // Ends: each round lifts every deficit by a quantum.
            classes[Int(owner)].live.deficit += Self.quantum
            if classQueue(owner).next != none {
                remove(owner, &sites[site])
                append(owner, &sites[site])
            }
        }
    }

    /// After jobs of the class were taken: pays, and gives the next destination of the class its turn. Both the queue and
    /// the class may be gone by then.
    mutating func charge(_ index: UInt32, site: UInt32, senderClass: UInt64, cost: Int) {
        guard let owner = classOf[QueueKey(destination: site, senderClass: senderClass)] else { return }
        classes[Int(owner)].live.deficit = max(classQueue(owner).deficit - cost, -Self.debtMax)
        guard let served = queues[Int(index)], served.classQueue == owner, served.senderClass == senderClass,
            served.next != none
        else { return }
        remove(index, fromClass: owner)
        append(index, toClass: owner)
    }

    private mutating func append(_ index: UInt32, toClass owner: UInt32) {
        let last = classQueue(owner).last
        queues[Int(index)].live.classQueue = owner
        queues[Int(index)].live.previous = last
        queues[Int(index)].live.next = none
        if last == none { classes[Int(owner)].live.first = index } else { queues[Int(last)].live.next = index }
        classes[Int(owner)].live.last = index
    }

    private mutating func remove(_ index: UInt32, fromClass owner: UInt32) {
        let (previous, next) = (queue(index).previous, queue(index).next)
        if previous == none { classes[Int(owner)].live.first = next } else { queues[Int(previous)].live.next = next }
        if next == none { classes[Int(owner)].live.last = previous } else { queues[Int(next)].live.previous = previous }
        queues[Int(index)].live.next = none
        queues[Int(index)].live.previous = none
    }

    private mutating func append(_ owner: UInt32, _ site: inout SiteRecord) {
        classes[Int(owner)].live.previous = site.lastClass
        classes[Int(owner)].live.next = none
        if site.lastClass == none {
            site.firstClass = owner
        } else {
            classes[Int(site.lastClass)].live.next = owner
        }
        site.lastClass = owner
    }

    private mutating func remove(_ owner: UInt32, _ site: inout SiteRecord) {
        let (previous, next) = (classQueue(owner).previous, classQueue(owner).next)
        if previous == none { site.firstClass = next } else { classes[Int(previous)].live.next = next }
        if next == none { site.lastClass = previous } else { classes[Int(next)].live.previous = previous }
    }
}

extension Optional where Wrapped: ReadyBoardRecord {
    /// In-place access to a record known to be live; traps on a broken invariant.
    fileprivate var live: Wrapped {
        @inline(__always) get {
            guard let self else { preconditionFailure("record of the ready board is gone") }
            return self
        }
        @inline(__always) _modify {
            guard self != nil else { preconditionFailure("record of the ready board is gone") }
            yield &self!
        }
    }
}

/// Marks the records that `live` reaches.
private protocol ReadyBoardRecord {}
extension DestinationQueue: ReadyBoardRecord {}
extension ClassQueue: ReadyBoardRecord {}
