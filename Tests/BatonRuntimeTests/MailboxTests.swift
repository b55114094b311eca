// Hand-over between threads: order, bounds, one wake per batch, closing.
import BatonCore
import Glibc
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import BatonRuntime

@Test func threadMailboxOverItsBoundTakesNothing() {
    let mailbox = ThreadMailbox<Int>(capacity: 3)
    #expect(mailbox.offer([1, 2]))
    #expect(!mailbox.offer([3, 4]), "all or nothing")
    #expect(mailbox.offer([3]))
    #expect(!mailbox.offer([4]))
    #expect(mailbox.offer([]))
    #expect(mailbox.deliver([4, 5]), "bounded by its producer")
    #expect(mailbox.count == 5)
    #expect(mailbox.take(limit: 2) == [1, 2])
    #expect(mailbox.take() == [3, 4, 5])
}

@Test func threadMailboxThatIsClosedGivesWhatItHasAndThenNil() {
    let mailbox = ThreadMailbox<Int>(capacity: 3)
    #expect(mailbox.offer([1]))
    mailbox.close()
    #expect(!mailbox.offer([2]))
    #expect(!mailbox.deliver([2]))
    #expect(mailbox.take() == [1])
    #expect(mailbox.take() == nil)
}

@Test func threadMailboxWithoutOffersGivesUpInTime() {
    let mailbox = ThreadMailbox<Int>(capacity: 3)
    #expect(mailbox.take(timeoutNanoseconds: 1_000_000) == [])
    #expect(mailbox.take(timeoutNanoseconds: 0) == [])
    #expect(mailbox.take(timeoutNanoseconds: -5) == [])
}

@Test func gatheringThreadMailboxWaitsForEverThoughEnoughIsThere() {
    let mailbox = ThreadMailbox<Int>(capacity: 10)
    let forEver = Gathering(count: 3, span: .seconds(3600))
    #expect(mailbox.offer([1, 2, 3]))
    #expect(mailbox.take(gathering: forEver) == [1, 2, 3])
    #expect(mailbox.offer([1]))
    #expect(mailbox.take(gathering: Gathering(count: 3, span: .zero)) == [1], "the time is over")
    #expect(mailbox.take(timeoutNanoseconds: 0, gathering: forEver) == [], "nothing came, nothing to gather for")
    #expect(mailbox.offer([1]))
    mailbox.close()
    #expect(mailbox.take(gathering: forEver) == [1], "nothing more can come")
    #expect(mailbox.take(gathering: forEver) == nil)
}

@Test func gatheringTakerIsNotWokenByWhatMakesItEnough() {
    let mailbox = ThreadMailbox<Int>(capacity: 10)
    let batches = ThreadMailbox<[Int]>(capacity: 10)
    let taker = DedicatedThread(name: "taker") {
        while let batch = mailbox.take(gathering: Gathering(count: 3, span: .seconds(3600))) {
            batches.deliver([batch])
        }
    }
    for index in 0..<3 { mailbox.deliver([index]) }
    // Whether it slept at the first of them or not: it takes the three.
    #expect(batches.take(limit: 1, timeoutNanoseconds: 30_000_000_000) == [[0, 1, 2]])
    mailbox.deliver([3])
    mailbox.close()
    taker.join()
    #expect(batches.take() == [[3]], "woken by the end")
}

@Test func threadMailboxKeepsOrderUnderManyProducers() {
    let mailbox = ThreadMailbox<Int>(capacity: 64)
    let producers = (0..<4).map { producer in
        DedicatedThread(name: "producer") {
            for index in 0..<2000 {
                while !mailbox.offer(CollectionOfOne(producer * 10_000 + index)) { sched_yield() }
            }
        }
    }
    var last = [Int](repeating: -1, count: 4)
    var total = 0
    while total < 8000 {
        guard let batch = mailbox.take(limit: 10), !batch.isEmpty else { break }
        #expect(batch.count <= 10)
        for value in batch {
            let producer = value / 10_000
            #expect(value % 10_000 == last[producer] + 1)
            last[producer] = value % 10_000
        }
        total += batch.count
    }
    for producer in producers { producer.join() }
    #expect(total == 8000)
}

@Test func sleepingTakerIsWokenByCloseAndByOffer() {
    let mailbox = ThreadMailbox<Int>(capacity: 4)
    let seen = Mutex<[Int]>([])
    let taker = DedicatedThread(name: "taker") {
        while let batch = mailbox.take() { seen.withLock { $0 += batch } }
    }
    for index in 0..<100 {
        while !mailbox.offer(CollectionOfOne(index)) { sched_yield() }
    }
    mailbox.close()
    taker.join()
    #expect(seen.withLock { $0 } == Array(0..<100))
}

/// The first taker that woke said that none sleeps: what came while it worked waited for it, beside a thread with nothing to do.
@Test func secondTakerSleepsThoughThereIsWork() {
    let mailbox = ThreadMailbox<Int>(capacity: 4)
    let taken = ThreadMailbox<Int>(capacity: 4)
    let gate = ThreadMailbox<Bool>(capacity: 4)
    let takers = (0..<2).map { _ in
        DedicatedThread(name: "taker") {
            while let batch = mailbox.take(limit: 1) {
                taken.deliver(batch)
                _ = gate.take(limit: 1)
            }
        }
    }
    func sleeping() -> Int {
        pthread_mutex_lock(mailbox.mutex)
        defer { pthread_mutex_unlock(mailbox.mutex) }
        return mailbox.sleeping
    }
    let end = ContinuousClock.now + .seconds(30)
    while sleeping() < 2, ContinuousClock.now < end { sched_yield() }
    #expect(sleeping() == 2)
    for index in 0..<2 {
        mailbox.deliver([index])
        #expect(taken.take(timeoutNanoseconds: 30_000_000_000) == [index])
    }
    gate.close()
    mailbox.close()
    for taker in takers { taker.join() }
}

@Test func loopMailboxWakesOnceForABurst() throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    defer { try? group.syncShutdownGracefully() }
    let loop = group.next()
    let batches = Mutex<[[Int]]>([])
    let mailbox = LoopMailbox<Int>(loop: loop, capacity: 5) { batch in
        loop.assertInEventLoop()
        batches.withLock { $0.append(batch) }
    }
    // While the loop runs this block, everything offered waits for one wake.
    try loop.submit {
        #expect(mailbox.offer([1, 2]))
        #expect(mailbox.offer([3]))
        #expect(mailbox.offer([4, 5]))
        #expect(!mailbox.offer([6]), "over the bound")
        mailbox.deliver([7])
        mailbox.deliver([])
    }.wait()
    try loop.submit {}.wait()
    #expect(batches.withLock { $0 } == [[1, 2, 3, 4, 5, 7]])
    #expect(mailbox.offer([8]))
    try loop.submit {}.wait()
    #expect(batches.withLock { $0.last } == [8])
}

@Test func loopMailboxLosesNothingFromManyThreads() throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    defer { try? group.syncShutdownGracefully() }
    let loop = group.next()
    let sum = Mutex((count: 0, total: 0, most: 0))
    let mailbox = LoopMailbox<Int>(loop: loop, capacity: 50) { batch in
        sum.withLock { state in
            state.count += batch.count
            state.total += batch.reduce(0, +)
            state.most = max(state.most, batch.count)
        }
    }
    let threads = (0..<3).map { _ in
        DedicatedThread(name: "producer") {
            for index in 1...3000 {
                while !mailbox.offer([index]) { sched_yield() }
            }
        }
    }
    for thread in threads { thread.join() }
    try loop.submit {}.wait()
    let state = sum.withLock { $0 }
    #expect(state.count == 9000)
    #expect(state.total == 3 * 3000 * 3001 / 2)
    #expect(state.most <= 50)
}

@Test func workerPoolOverItsBoundRefusesAndFinishesTheRestWhenStopped() {
    let gate = ThreadMailbox<Int>(capacity: 1)
    let done = Mutex(0)
    let pool = WorkerPool(name: "work", threads: 1, capacity: 2)
    let began = ThreadMailbox<Int>(capacity: 1)
    #expect(
        pool.submit {
            began.deliver([1])
            _ = gate.take()
            done.withLock { $0 += 1 }
        })
    // The first is running, so that it takes no place in the queue.
    #expect(began.take() == [1])
    #expect(pool.submit { done.withLock { $0 += 1 } })
    #expect(pool.submit { done.withLock { $0 += 1 } })
    #expect(!pool.submit { done.withLock { $0 += 1 } })
    gate.deliver([1])
    pool.stop()
    #expect(done.withLock { $0 } == 3)
}

@Test func clockNeverGoesBack() {
    let time = SystemTimeSource()
    var last = time.now()
    for _ in 0..<10_000 {
        let next = time.now()
        #expect(next >= last)
        last = next
    }
    #expect(last.secondsSinceEpoch > 1_600_000_000)
}
