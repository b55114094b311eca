// From the spool to the queue: recovery waits for a full mailbox, fresh mail never does, and events say who handed it in.
import BatonCore
import BatonModel
import BatonQueue
import BatonRuntime
import BatonSpool
import Dispatch
import Foundation
import Logging
import NIOCore
import NIOPosix
import Synchronization
import Testing

@testable import BatonNode

private func accepted(_ number: Int, recovered: Bool, recipients: Int = 1) throws -> AcceptedMessage {
    let address = try #require(MailAddress("a@example.test"))
    let envelope = Envelope(
        id: MessageID(high: 9, low: UInt64(number)), arrival: Instant(secondsSinceEpoch: 1_790_000_000), sender: nil,
        client: Array("192.0.2.7".utf8),
        recipients: Array(repeating: EnvelopeRecipient(address: address), count: recipients), traits: .empty)
    let progress = (0..<UInt32(recipients)).map { recipient in
        RecipientProgress(
            recipient: recipient, attempts: 1, due: .distantFuture, doubts: 0, delayNoticeSent: false, lastReply: nil)
    }
    return AcceptedMessage(
        ref: StoredMessageRef(segment: 1, record: UInt32(number)), envelope: envelope, body: nil,
        progress: recovered ? progress : nil, receptionRecorded: recovered)
}

private final class KeptEvents: EventRecording {
    let events = Mutex<[MailEvent]>([])
    func record(_ events: [MailEvent]) { self.events.withLock { $0 += events } }
    func record(rejections: [RejectionEvent]) {}
    var recorded: UInt64 { 0 }
    var synced: UInt64 { 0 }
    var isFull: Bool { false }
}

private final class KeptOutcomes: OutcomeRecording {
    let outcomes = Mutex<[Outcome]>([])
    func record(_ outcomes: [Outcome]) { self.outcomes.withLock { $0 += outcomes } }
}

/// Refuses the first offers and keeps what it took.
private final class BusyPartition: MailTaking {
    let refusals: Atomic<Int>
    /// Messages that are being tried.
    let tried = Mutex<Set<MessageID>>([])
    let offered = Mutex<[MessageID]>([])
    let pushed = Mutex<[MessageID]>([])

    init(refusals: Int) { self.refusals = Atomic(refusals) }

    func receive(_ messages: [AcceptedMessage]) { pushed.withLock { $0 += messages.map(\.envelope.id) } }

    func offer(_ messages: [AcceptedMessage]) -> Bool {
        if refusals.wrappingSubtract(1, ordering: .relaxed).oldValue > 0 { return false }
        offered.withLock { $0 += messages.map(\.envelope.id) }
        return true
    }

    func drop(_ ended: [EndedElsewhere], then: @escaping @Sendable ([Bool]) -> Void) {
        let tried = tried.withLock { $0 }
        then(ended.map { !tried.contains($0.id) })
    }
}

@Test func recoveredMailIsPushedPastTheBound() throws {
    let partition = BusyPartition(refusals: 5)
    let relay = IntakeRelay(
        events: KeptEvents(), partitions: [partition], outcomes: KeptOutcomes(), time: SystemTimeSource())
    let messages = try (0..<(2 * IntakeRelay.recoveredBatch + 1)).map { try accepted($0, recovered: true) }
    relay.receive(messages)
    #expect(partition.pushed.withLock { $0.count } == 0)
    let inOrder = partition.offered.withLock { $0 } == messages.map(\.envelope.id)
    #expect(inOrder)
}

@Test func freshMailWaitsOnTheWritersThread() throws {
    let events = KeptEvents()
    let partition = BusyPartition(refusals: .max)
    let relay = IntakeRelay(events: events, partitions: [partition], outcomes: KeptOutcomes(), time: SystemTimeSource())
    relay.receive([try accepted(1, recovered: false)])
    #expect(partition.pushed.withLock { $0.count } == 1)
    let event = try #require(events.events.withLock { $0.first })
    #expect(event.type == .reception)
    #expect(event.peer == PeerName(name: [], address: Array("192.0.2.7".utf8)))
}

/// A whole restart against a loop that stands still: what waits stays under the bound, and all of it arrives.
@Test(.timeLimit(.minutes(1))) func restartFloodsTheMailbox() async throws {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let loop = group.next()
    let time = SystemTimeSource()
    let partition = QueuePartition(
        index: 0, count: 1, home: LoopHome(loop), time: time, configuration: QueueConfiguration(seed: 1),
        logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() })
    let relay = IntakeRelay(events: KeptEvents(), partitions: [partition], outcomes: KeptOutcomes(), time: time)
    // Three recipients a message: it is they that are counted.
    let batch = try (0..<IntakeRelay.recoveredBatch).map { try accepted($0, recovered: true, recipients: 3) }
    let batches = 3 * QueueLimits.mailboxMessages / IntakeRelay.recoveredBatch
    let release = DispatchSemaphore(value: 0)
    loop.execute { release.wait() }
    let done = Atomic<Bool>(false)
    let given = Atomic<Int>(0)
    let recovery = Thread {
        for _ in 0..<batches {
            relay.receive(batch)
            given.add(1, ordering: .relaxed)
        }
        done.store(true, ordering: .releasing)
    }
    recovery.start()
    // It comes to a halt at the bound.
    var seen = -1
    while seen != given.load(ordering: .relaxed) || seen < 10 {
        seen = given.load(ordering: .relaxed)
        try await Task.sleep(nanoseconds: 50_000_000)
    }
    let finishedEarly = done.load(ordering: .acquiring)
    #expect(!finishedEarly)
    #expect(partition.jobCount <= QueueLimits.mailboxMessages)
    release.signal()
    while !done.load(ordering: .acquiring) { try await Task.sleep(nanoseconds: 10_000_000) }
    try await loop.submit { partition.stop() }.get()
    #expect(partition.jobCount == batches * batch.count * 3)
    try await group.shutdownGracefully()
}

/// PROTOCOL T5: the attempt under way has an outcome of its own, and an event of its own.
@Test func lateOutcomeOfARecipientThatIsBeingTriedIsRecorded() throws {
    let events = KeptEvents()
    let outcomes = KeptOutcomes()
    let partition = BusyPartition(refusals: 0)
    let relay = IntakeRelay(events: events, partitions: [partition], outcomes: outcomes, time: SystemTimeSource())
    let late = try (1...3).map { number in
        let message = try accepted(number, recovered: true)
        return UnreportedOutcome(
            envelope: message.envelope,
            outcome: Outcome(
                job: JobRef(message: message.ref, recipient: 0), at: Instant(secondsSinceEpoch: 1_790_000_100),
                verdict: .delivered, attempts: 2, reply: nil, peer: nil))
    }
    partition.tried.withLock { $0 = [late[1].envelope.id] }
    relay.late(outcomes: late)
    #expect(outcomes.outcomes.withLock { $0.map(\.job.message.record) } == [1, 3])
    #expect(events.events.withLock { $0.map(\.type) } == [.delivery, .delivery])
}
