// What the spool's tests share: a spool on a memory disk, run by hand, with collectors for everything it gives out.
import BatonCore
import BatonModel
import BatonRuntime
import BatonTestKit
import Glibc
import Logging
import NIOCore
import Synchronization
import Testing

@testable import BatonSpool

/// Every crash point, offset and 1,000 power cuts with `BATON_TEST_DEPTH=full`; a spread sample of them otherwise.
let fullDepth = getenv("BATON_TEST_DEPTH").map { String(cString: $0) == "full" } ?? false

/// Results of submissions and fragments, by token.
final class Sink: SubmissionResultReceiving {
    struct State {
        var outcomes: [UInt64: SubmissionOutcome] = [:]
        var fragments: [FragmentStreamID: FragmentResult] = [:]
        var calls = 0
    }
    let state = Mutex(State())
    /// Called for each message that became durable, at that moment.
    let onDurable: @Sendable (UInt64) -> Void

    init(onDurable: @escaping @Sendable (UInt64) -> Void = { _ in }) {
        self.onDurable = onDurable
    }

    func submissionsFinished(_ results: [SubmissionResult]) {
        state.withLock { state in
            state.calls += 1
            for result in results {
                #expect(state.outcomes[result.token] == nil, "two results for one submission")
                state.outcomes[result.token] = result.outcome
            }
        }
        for result in results {
            if case .durable = result.outcome { onDurable(result.token) }
        }
    }

    func fragmentsWritten(_ results: [FragmentResult]) {
        state.withLock { state in
            for result in results where state.fragments[result.stream]?.refusal == nil {
                state.fragments[result.stream] = result
            }
        }
    }

    func ref(_ token: UInt64) -> StoredMessageRef? {
        guard case .durable(let ref)? = state.withLock({ $0.outcomes[token] }) else { return nil }
        return ref
    }

    func refusal(_ token: UInt64) -> SubmissionRefusal? {
        guard case .refused(let reason)? = state.withLock({ $0.outcomes[token] }) else { return nil }
        return reason
    }

    func fragmentRefusal(_ stream: FragmentStreamID) -> SubmissionRefusal? {
        state.withLock { $0.fragments[stream]?.refusal }
    }
}

final class Jobs: JobReceiving, UnreportedReceiving {
    struct State {
        var messages: [AcceptedMessage] = []
        var outcomes: [UnreportedOutcome] = []
        var receptions: [Envelope] = []
        var submits: [FoundSubmit] = []
        var late: [UnreportedOutcome] = []
        /// How many messages had been handed over when the first of these came.
        var messagesBeforeSubmits: Int?
        /// Messages of each call.
        var batches: [Int] = []
    }
    let state = Mutex(State())

    func receive(_ messages: [AcceptedMessage]) {
        state.withLock { state in
            state.messages += messages
            state.batches.append(messages.count)
        }
    }
    func unreported(outcomes: [UnreportedOutcome]) { state.withLock { $0.outcomes += outcomes } }
    func unreported(receptions: [Envelope]) { state.withLock { $0.receptions += receptions } }

    func late(outcomes: [UnreportedOutcome]) { state.withLock { $0.late += outcomes } }

    func found(submits: [FoundSubmit]) {
        state.withLock { state in
            state.messagesBeforeSubmits = state.messagesBeforeSubmits ?? state.messages.count
            state.submits += submits
        }
    }

    var messages: [AcceptedMessage] { state.withLock { $0.messages } }
    var outcomes: [UnreportedOutcome] { state.withLock { $0.outcomes } }
    var late: [UnreportedOutcome] { state.withLock { $0.late } }
    var receptions: [Envelope] { state.withLock { $0.receptions } }
    func message(_ id: MessageID) -> AcceptedMessage? { messages.first { $0.envelope.id == id } }
}

/// An event log whose sync the test moves.
final class Events: EventRecording {
    let counts = Mutex((recorded: UInt64(0), synced: UInt64(0), full: false))

    func record(_ events: [MailEvent]) { counts.withLock { $0.recorded += UInt64(events.count) } }
    func record(rejections: [RejectionEvent]) {}
    var recorded: UInt64 { counts.withLock { $0.recorded } }
    var synced: UInt64 { counts.withLock { $0.synced } }
    var isFull: Bool { counts.withLock { $0.full } }
    func add(_ count: UInt64) { counts.withLock { $0.recorded += count } }
    func sync() { counts.withLock { $0.synced = $0.recorded } }
}

final class Reads: BodyReadReceiving {
    let results = Mutex([UInt64: BodyReadOutcome]())
    func bodiesRead(_ results: [BodyReadResult]) {
        self.results.withLock { all in
            for result in results { all[result.token] = result.outcome }
        }
    }
}

/// One process's life on a disk.
final class Rig: Sendable {
    let disk: any Disk
    let spool: Spool
    let jobs = Jobs()
    let events = Events()
    let time: SimulatedTime
    let failures = Mutex([SpoolFailure]())
    let directory: DataDirectory

    init(
        on disk: any Disk, configuration: SpoolConfiguration = Rig.small, seed: UInt64 = 1,
        time: SimulatedTime = SimulatedTime(), threading: Spool.Threading = .manual, path: String = "data",
        replicator: (any ChunkReplicating)? = nil
    ) throws {
        self.disk = disk
        self.time = time
        var random = SplitMix64(seed: seed)
        directory = try DataDirectory.open(path: path, disk: disk, cluster: "", nodeName: "n1") { random.next() }
        let failures = Shared()
        spool = try Spool.open(
            directory: directory, configuration: configuration, events: events, time: time, logger: quietLogger,
            threading: threading, replicator: replicator
        ) { failure in failures.list.withLock { $0.append(failure) } }
        self.shared = failures
        try spool.start(jobs: jobs, unreported: jobs)
        spool.pump()
    }

    final class Shared: Sendable { let list = Mutex([SpoolFailure]()) }
    let shared: Shared

    /// Small segments, so that rolls happen.
    static let small: SpoolConfiguration = {
        var configuration = SpoolConfiguration()
        configuration.segmentSize = 256 * 1024
        configuration.minFree = 1 << 20
        return configuration
    }()

    func stop() {
        spool.stop()
        directory.close()
    }

    /// Submits and runs; the reference if it was taken.
    @discardableResult
    func store(_ mail: Mail, _ sink: Sink, token: UInt64? = nil) -> StoredMessageRef? {
        spool.submit([mail.submission(token: token ?? mail.number, sink: sink)])
        spool.pump()
        return sink.ref(token ?? mail.number)
    }

    func read(_ ref: StoredMessageRef, part: BodyPart = .message) -> BodyReadOutcome? {
        let reads = Reads()
        spool.read([BodyRead(ref: ref, part: part, token: 1)], for: reads)
        spool.pump()
        return reads.results.withLock { $0[1] }
    }

    func record(
        _ ref: StoredMessageRef, recipient: UInt32 = 0, _ verdict: OutcomeVerdict, report: StoredMessageRef? = nil
    ) {
        spool.record([outcome(ref, recipient: recipient, verdict, report: report)])
        spool.pump()
    }

    func outcome(
        _ ref: StoredMessageRef, recipient: UInt32 = 0, _ verdict: OutcomeVerdict, attempts: UInt16 = 1,
        report: StoredMessageRef? = nil
    ) -> Outcome {
        Outcome(
            job: JobRef(message: ref, recipient: recipient), at: time.now(), verdict: verdict, attempts: attempts,
            reply: SMTPReply(local: 250, EnhancedStatus(2, 0, 0), "ok"),
            peer: PeerName(name: Array("mx.example".utf8), address: Array("192.0.2.1".utf8)), report: report)
    }

    func ticks(_ count: Int) {
        for _ in 0..<count {
            time.advance(by: .seconds(1))
            spool.tick()
        }
    }

    func name(of ref: StoredMessageRef?) throws -> SegmentName {
        let segment = try #require(ref).segment
        return try #require(spool.ledger.name(of: segment))
    }

    var segmentFiles: [String] {
        ((try? disk.list("\(directory.path)/segments")) ?? []).filter { $0.hasSuffix(".seg") }.sorted()
    }
}

let quietLogger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }

/// A message made from its number alone, so that what comes back can be compared.
struct Mail: Sendable {
    let number: UInt64
    let envelope: Envelope
    let body: ByteBuffer

    init(
        _ number: UInt64, size: Int = 2000, recipients: Int = 1, domains: Int = 1, subjects: [ReportSubject] = [],
        compressible: Bool = false
    ) {
        self.number = number
        body = Self.body(number, size: size, compressible: compressible)
        var list: [EnvelopeRecipient] = []
        for index in 0..<recipients {
            guard let address = MailAddress("user\(index)@d\(index % domains).example") else { continue }
            list.append(EnvelopeRecipient(address: address))
        }
        envelope = Envelope(
            id: Self.id(number), arrival: Instant(secondsSinceEpoch: 1_700_000_000),
            sender: MailAddress("sender@example.net"), recipients: list, subjects: subjects,
            traits: Self.traits(body))
    }

    static func id(_ number: UInt64) -> MessageID { MessageID(high: 7, low: number) }

    static func body(_ number: UInt64, size: Int, compressible: Bool) -> ByteBuffer {
        var random = SplitMix64(seed: number)
        var buffer = ByteBufferAllocator().buffer(capacity: size)
        while buffer.readableBytes < size {
            if compressible {
                buffer.writeString("The same line of text again and again, as people write.\r\n")
            } else {
                buffer.writeInteger(random.next())
            }
        }
        return buffer.getSlice(at: 0, length: size) ?? buffer
    }

    static func traits(_ body: ByteBuffer) -> BodyTraits {
        var traits = BodyTraits.empty
        traits.length = body.readableBytes
        traits.crc32c = body.withUnsafeReadableBytes { CRC32C.of($0) }
        return traits
    }

    func submission(token: UInt64, sink: Sink) -> Submission {
        Submission(envelope: envelope, body: .whole(body), token: token, sink: sink)
    }
}

extension BodyReadOutcome {
    var bytes: ByteBuffer? {
        guard case .message(_, .whole(let body)) = self else { return nil }
        return body.bytes
    }

    var isDamaged: Bool {
        if case .damaged = self { return true }
        return false
    }
}

extension SubmissionRefusal {
    var isDiskFull: Bool { if case .diskFull = self { true } else { false } }
    var isNoCopies: Bool { if case .noCopies = self { true } else { false } }
    var isStorageFailed: Bool { if case .storageFailed = self { true } else { false } }
    var isOverloaded: Bool { if case .overloaded = self { true } else { false } }
    var isStopping: Bool { if case .stopping = self { true } else { false } }
}
