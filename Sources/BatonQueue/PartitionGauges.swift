// What other threads may know of a partition without crossing to its loop, and its metrics.
import BatonCore
import BatonModel
import Metrics
import NIOCore
import Synchronization

/// Counters that any thread reads. Written by the partition once per batch, and by `admit` as mail enters the mailbox.
final class PartitionGauges: Sendable {
    private let jobs = Atomic<Int>(0)
    private let load = Atomic<Int>(0)
    private let jobsMax: Atomic<Int>
    private let residentBytes = Atomic<Int>(0)
    private let residentMax: Atomic<Int>
    /// On the way through the mailbox.
    private let waitingJobs = Atomic<Int>(0)
    private let waitingBytes = Atomic<Int>(0)

    private let states: [Gauge]
    private let resident: Gauge
    private let received: Counter
    private let notKept: Counter

    init(index: Int, _ configuration: QueueConfiguration) {
        self.jobsMax = Atomic(configuration.jobsMax)
        self.residentMax = Atomic(configuration.residentBytes)
        let partition = ("partition", String(index))
        self.states = ["ready", "deferred", "suspended", "in_flight", "damaged"].map {
            Gauge(label: "baton_queue_jobs", dimensions: [partition, ("state", $0)])
        }
        self.resident = Gauge(label: "baton_queue_resident_bytes", dimensions: [partition])
        self.received = Counter(label: "baton_queue_messages_received_total", dimensions: [partition])
        self.notKept = Counter(label: "baton_queue_bodies_not_kept_total", dimensions: [partition])
    }

    func update(_ configuration: QueueConfiguration) {
        jobsMax.store(configuration.jobsMax, ordering: .relaxed)
        residentMax.store(configuration.residentBytes, ordering: .relaxed)
    }

    /// Whether admission is to refuse new mail.
    var isFull: Bool {
        load.load(ordering: .relaxed) + waitingJobs.load(ordering: .relaxed) >= jobsMax.load(ordering: .relaxed)
    }

    var jobCount: Int { jobs.load(ordering: .relaxed) + waitingJobs.load(ordering: .relaxed) }

    /// Whether recovered mail may enter the mailbox: it waits by recipients, not by messages, since one may have thousands.
    func hasRoom(for messages: [AcceptedMessage], max: Int) -> Bool {
        let waiting = waitingJobs.load(ordering: .relaxed)
        let more = messages.reduce(0) { $0 + ($1.progress?.count ?? $1.envelope.recipients.count) }
        return waiting == 0 || waiting + more <= max
    }

    /// Counts mail into the mailbox; bodies over the memory budget are let go here already, so that a loop that is late does
    /// not pile them up.
    func admit(_ messages: [AcceptedMessage]) -> [AcceptedMessage] {
        var jobs = 0
        let result = messages.map { message in
            jobs += message.progress?.count ?? message.envelope.recipients.count
            guard let body = message.body else { return message }
            let bytes = body.bytes.storageCapacity
            let waiting = waitingBytes.add(bytes, ordering: .relaxed).newValue
            if waiting + residentBytes.load(ordering: .relaxed) <= residentMax.load(ordering: .relaxed) {
                return message
            }
            waitingBytes.subtract(bytes, ordering: .relaxed)
            notKept.increment()
            return AcceptedMessage(
                ref: message.ref, envelope: message.envelope, body: nil, progress: message.progress,
                receptionRecorded: message.receptionRecorded)
        }
        waitingJobs.add(jobs, ordering: .relaxed)
        return result
    }

    /// The same mail has left the mailbox.
    func taken(_ messages: [AcceptedMessage]) {
        var jobs = 0
        var bytes = 0
        for message in messages {
            jobs += message.progress?.count ?? message.envelope.recipients.count
            bytes += message.body?.bytes.storageCapacity ?? 0
        }
        waitingJobs.subtract(jobs, ordering: .relaxed)
        waitingBytes.subtract(bytes, ordering: .relaxed)
    }

    func publish(jobs: Int, load: Int, residentBytes: Int) {
        self.jobs.store(jobs, ordering: .relaxed)
        self.load.store(load, ordering: .relaxed)
        self.residentBytes.store(residentBytes, ordering: .relaxed)
    }

    func report(_ totals: QueueTotals, residentBytes: Int, received: Int, notKept: Int) {
        let values = [totals.ready, totals.deferred, totals.suspended, totals.inFlight, totals.damaged]
        for (gauge, value) in zip(states, values) { gauge.record(value) }
        resident.record(residentBytes)
        if received > 0 { self.received.increment(by: Int64(received)) }
        if notKept > 0 { self.notKept.increment(by: Int64(notKept)) }
    }
}
