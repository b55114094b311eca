// The shells of placement: results exactly once, parts of several nodes, held messages in front of the queue.
import BatonCore
import BatonModel
import BatonPeer
import NIOCore
import Synchronization
import Testing

@testable import BatonCluster

/// A spool in memory: keeps what it gets until it is told to answer, in the order in which it came.
private final class FakeSpool: MessageSubmitting {
    struct State {
        var waiting: [BatonModel.Submission] = []
        var refuseMail = false
        var refs: UInt32 = 0
        var streams: UInt64 = 0
    }

    let state = Mutex(State())
    let jobs: any JobReceiving

    init(jobs: any JobReceiving) { self.jobs = jobs }

    func submit(_ batch: [BatonModel.Submission]) { state.withLock { $0.waiting += batch } }

    /// Results first, then the jobs, as the lane does it.
    func answer(_ refusal: SubmissionRefusal? = nil) {
        let taken: [(BatonModel.Submission, StoredMessageRef)] = state.withLock { state in
            defer { state.waiting = [] }
            return state.waiting.map {
                state.refs += 1
                return ($0, StoredMessageRef(segment: 1, record: state.refs))
            }
        }
        for (submission, ref) in taken {
            submission.sink.submissionsFinished([
                SubmissionResult(
                    token: submission.token, outcome: refusal.map { .refused($0) } ?? .durable(ref))
            ])
        }
        guard refusal == nil, !taken.isEmpty else { return }
        jobs.receive(
            taken.map {
                AcceptedMessage(
                    ref: $0.1, envelope: $0.0.envelope, body: nil, progress: nil, receptionRecorded: false)
            })
    }

    var waiting: [BatonModel.Submission] { state.withLock { $0.waiting } }
    func openStream(sink: any SubmissionResultReceiving) -> FragmentStreamID {
        state.withLock { state in
            state.streams += 1
            return FragmentStreamID(value: state.streams)
        }
    }
    func append(_ bytes: ByteBuffer, to stream: FragmentStreamID) {}
    func abandon(_ stream: FragmentStreamID) {}
    var admission: StorageAdmission { state.withLock { $0.refuseMail ? .refused(.diskFull) : .open } }
}

private final class Queue: JobReceiving, OutcomeRecording {
    let messages = Mutex<[AcceptedMessage]>([])
    let outcomes = Mutex<[BatonModel.Outcome]>([])
    func receive(_ batch: [AcceptedMessage]) { messages.withLock { $0 += batch } }
    func record(_ batch: [BatonModel.Outcome]) { outcomes.withLock { $0 += batch } }
    var ids: [UInt64] { messages.withLock { $0.map(\.envelope.id.low) } }
    var records: [BatonModel.Outcome] { outcomes.withLock { $0 } }
}

private final class Client: SubmissionResultReceiving {
    let results = Mutex<[UInt64: [SubmissionOutcome]]>([:])
    func submissionsFinished(_ batch: [SubmissionResult]) {
        results.withLock { for result in batch { $0[result.token, default: []].append(result.outcome) } }
    }
    func fragmentsWritten(_ results: [FragmentResult]) {}

    /// "250", "451", nothing, or a complaint about two results.
    func reply(_ token: UInt64) -> String {
        let all = results.withLock { $0[token] ?? [] }
        guard all.count <= 1 else { return "two" }
        return all.first.map { if case .durable = $0 { "250" } else { "451" } } ?? ""
    }
}

private final class Clock: TimeSource {
    let at = Mutex(Instant.epoch)
    func now() -> Instant { at.withLock { $0 } }
    func pass(_ span: TimeSpan) { at.withLock { $0 = $0 + span } }
}

/// Frames wait in `sent` until the test lets them go.
private final class Wire: SubmitTransport {
    struct State {
        var sent: [(message: PeerMessage, to: NodeID)] = []
        var cut: Set<NodeID> = []
    }

    let state = Mutex(State())
    func send(_ message: PeerMessage, to node: NodeID) -> Bool {
        state.withLock { state in
            if state.cut.contains(node) { return false }
            state.sent.append((message, node))
            return true
        }
    }
    func take() -> [(message: PeerMessage, to: NodeID)] {
        state.withLock { state in
            defer { state.sent = [] }
            return state.sent
        }
    }
}

private struct Station {
    let run: NodeRun
    let queue = Queue()
    let held: HeldMessages
    let spool: FakeSpool
    let wire = Wire()
    let placer: Placer

    let final = Final()

    init(_ run: NodeRun, _ clock: Clock) {
        self.run = run
        held = HeldMessages(queue: queue, outcomes: queue, time: clock)
        spool = FakeSpool(jobs: held)
        placer = Placer(
            own: run, spreadRate: 100, local: spool, held: held, transport: wire, time: clock,
            isFinal: { [final] ref in final.refs.withLock { $0.contains(ref) } })
    }
}

/// Messages that have a final outcome for every recipient.
private final class Final: Sendable {
    let refs = Mutex<Set<StoredMessageRef>>([])
}

private struct Trio {
    let clock = Clock()
    let stations: [Station]

    init() {
        let clock = clock
        stations = (0..<3).map { Station(BatonClusterTests.run(UInt64($0)), clock) }
        let nodes = stations.map { PlacementNode(run: $0.run) }
        for station in stations { station.placer.update(nodes: nodes, live: nodes.map(\.run)) }
    }

    /// Delivers all frames on the wires, and those that they lead to.
    func exchange() {
        for _ in 0..<10 {
            for station in stations {
                for frame in station.wire.take() {
                    guard let target = stations.first(where: { $0.run.node == frame.to }) else { continue }
                    target.placer.received(frame.message, from: station.run)
                }
            }
        }
    }

    /// A recipient whose domain goes to that station, as station 0 sees it.
    func recipient(at index: Int, _ name: String) -> String {
        let nodes = stations.map { PlacementNode(run: $0.run) }
        for number in 0..<1_000 {
            let domain = Array("x\(number).example".utf8)
            if RendezvousOrder.order(of: domain, among: nodes, count: 1)[0] == index {
                return "\(name)@x\(number).example"
            }
        }
        return ""
    }
}

private let body = ByteBuffer(string: "")

private func submission(_ id: UInt64, _ recipients: [String], _ client: Client) -> BatonModel.Submission {
    BatonModel.Submission(envelope: envelope(id, to: recipients), body: .whole(body), token: id, sink: client)
}

@Test func partIsForgottenOrAnsweredTooSoon() {
    let trio = Trio()
    let client = Client()
    let to = [
        trio.recipient(at: 2, "a"), trio.recipient(at: 0, "b"), trio.recipient(at: 1, "c"), trio.recipient(at: 2, "d"),
    ]
    trio.stations[0].placer.submit([submission(9, to, client)])
    #expect(trio.stations[0].spool.waiting.count == 1 && client.reply(9) == "")
    trio.stations[0].spool.answer()
    trio.exchange()
    trio.stations[1].spool.answer()
    trio.exchange()
    #expect(client.reply(9) == "", "one part is not durable yet")
    trio.stations[2].spool.answer()
    trio.exchange()
    #expect(client.reply(9) == "250")
    let parts = trio.stations.map { station in station.queue.messages.withLock { $0.map(\.envelope) } }
    #expect(parts.map(\.count) == [1, 1, 1])
    #expect(parts.map { $0[0].recipients.map(\.address.description) } == [[to[1]], [to[2]], [to[0], to[3]]])
    // The same message everywhere, with numbers that no other part has.
    #expect(
        Set(parts.map { $0[0].id }).count == 1 && parts.allSatisfy { $0[0].senderClass == 5 && !$0[0].client.isEmpty })
    #expect(parts.map { $0[0].numbers } == [[1], [2], [0, 3]])
    #expect(trio.stations[0].placer.unfinished == 0)
}

@Test func messageOfOneNodePassesThroughUnchanged() {
    let trio = Trio()
    let client = Client()
    trio.stations[0].placer.submit([submission(1, [trio.recipient(at: 0, "a")], client)])
    let waiting = trio.stations[0].spool.waiting
    #expect(
        waiting.count == 1 && waiting[0].sink === client && waiting[0].token == 1 && waiting[0].envelope.submit == nil)
    let stream = trio.stations[0].placer.openStream(sink: client)
    let large = BatonModel.Submission(
        envelope: envelope(2, to: [trio.recipient(at: 1, "a")]), body: .fragments(stream), token: 2, sink: client)
    trio.stations[0].placer.submit([large])
    #expect(trio.stations[0].spool.waiting.count == 2 && trio.stations[0].wire.take().isEmpty)
}

@Test func nodeThatRefusesOrIsNotThereCostsThe250() {
    let trio = Trio()
    let client = Client()
    trio.stations[1].spool.state.withLock { $0.refuseMail = true }
    trio.stations[0].wire.state.withLock { $0.cut = [trio.stations[2].run.node] }
    trio.stations[0].placer.submit([submission(1, [trio.recipient(at: 1, "a"), trio.recipient(at: 2, "b")], client)])
    trio.exchange()
    #expect(trio.stations[0].spool.waiting.count == 2)
    #expect(trio.stations[0].spool.waiting.allSatisfy { $0.envelope.submit == nil && $0.envelope.numbers?.count == 1 })
    trio.stations[0].spool.answer()
    #expect(client.reply(1) == "250")
    #expect(trio.stations[0].queue.ids == [1, 1])
    // Nowhere at all: 451.
    trio.stations[0].placer.submit([submission(2, [trio.recipient(at: 2, "b")], client)])
    trio.stations[0].spool.answer(.diskFull)
    #expect(client.reply(2) == "451")
}

@Test func silentNodeMakesTwoCopiesCount() {
    let trio = Trio()
    let client = Client()
    trio.stations[0].placer.submit([submission(1, [trio.recipient(at: 1, "a"), trio.recipient(at: 1, "b")], client)])
    let submit = trio.stations[0].wire.take()
    trio.clock.pass(.milliseconds(1_050))
    trio.stations[0].placer.tick()
    trio.stations[0].spool.answer()
    #expect(client.reply(1) == "250", "a held copy is durable")
    #expect(trio.stations[0].queue.ids.isEmpty && trio.stations[0].held.count == 1)
    // The SUBMIT arrives late, and its node has the message.
    for frame in submit { trio.stations[1].placer.received(frame.message, from: trio.stations[0].run) }
    trio.stations[1].spool.answer()
    trio.exchange()
    #expect(trio.stations[0].held.count == 0 && trio.stations[0].queue.ids.isEmpty)
    #expect(trio.stations[1].queue.ids == [1])
    let records = trio.stations[0].queue.records
    #expect(records.map(\.verdict) == [.withdrawn, .withdrawn] && records.map(\.job.recipient) == [0, 1])
    #expect(trio.stations[0].placer.openQuestions == 0)
}

@Test func submitThatNeverArrivedIsDeliveredByNobody() {
    let trio = Trio()
    let client = Client()
    trio.stations[0].placer.submit([submission(1, [trio.recipient(at: 1, "a")], client)])
    let lost = trio.stations[0].wire.take()
    trio.clock.pass(.milliseconds(1_050))
    trio.stations[0].placer.tick()
    trio.stations[0].spool.answer()
    trio.exchange()
    trio.clock.pass(.milliseconds(600))
    trio.stations[0].placer.tick()
    trio.exchange()
    #expect(trio.stations[0].queue.ids == [1], "not here, said its receiver")
    // S1: however late it comes.
    for frame in lost { trio.stations[1].placer.received(frame.message, from: trio.stations[0].run) }
    #expect(trio.stations[1].spool.waiting.isEmpty)
}

@Test func sessionTrustsWhatItsPeerSends() {
    let trio = Trio()
    let client = Client()
    trio.stations[0].placer.submit([submission(1, [trio.recipient(at: 1, "a")], client)])
    guard case .submit(let good)? = trio.stations[0].wire.take().first?.message else {
        Issue.record("no SUBMIT")
        return
    }
    var bad: [Submit] = []
    func add(_ change: (inout Submit) -> Void) {
        var made = good
        change(&made)
        bad.append(made)
    }
    add { $0.envelope = ByteBuffer(string: "x") }
    add { $0.body = ByteBuffer(string: "longer than its envelope says") }
    add { $0.isCompressed = true }
    add { $0.key = MessageKey(ingress: $0.key.ingress, counter: 77) }
    for submit in bad { trio.stations[1].placer.received(.submit(submit), from: trio.stations[0].run) }
    trio.stations[1].placer.received(.submit(good), from: trio.stations[2].run)
    #expect(trio.stations[1].spool.waiting.isEmpty)
    let answers = trio.stations[1].wire.take().compactMap { frame -> BatonPeer.SubmitAnswer? in
        if case .submitted(let answer) = frame.message { answer.answer } else { nil }
    }
    #expect(answers == Array(repeating: .refused(.unreadable), count: 5))
}

@Test func takerNeverLooksWhetherAMessageIsDelivered() {
    let trio = Trio()
    let taker = trio.stations[0]
    let key = MessageKey(ingress: trio.stations[1].run, counter: 3)
    let ref = StoredMessageRef(segment: 9, record: 4)
    taker.placer.post(.adopted([AdoptedKey(key: key, ref: ref, isFinal: false)]))
    func answer() -> BatonPeer.SubmitAnswer? {
        taker.placer.received(.ask(Ask(key: key, receiver: BatonClusterTests.run(77))), from: trio.stations[1].run)
        return taker.wire.take().compactMap { frame -> BatonPeer.SubmitAnswer? in
            if case .submitted(let answer) = frame.message { answer.answer } else { nil }
        }.first
    }
    #expect(answer() == .pending)
    #expect(answer() == .pending, "not delivered yet")
    taker.final.refs.withLock { _ = $0.insert(ref) }
    _ = answer()
    #expect(answer() == .stored, "within one question")
}

// MARK: Held messages

private func accepted(
    _ record: UInt32, held: Bool, progress: [RecipientProgress]? = nil, counter: UInt64 = 1
) -> AcceptedMessage {
    let mark = MessageKey(ingress: run(5), counter: counter).mark(heldFor: held ? run(6) : nil)
    return AcceptedMessage(
        ref: StoredMessageRef(segment: 1, record: record),
        envelope: envelope(UInt64(record), to: ["a@b.example", "c@b.example"]).part(nil, submit: mark), body: nil,
        progress: progress, receptionRecorded: true)
}

private func progress(attempts: UInt16) -> [RecipientProgress] {
    (0..<2).map {
        RecipientProgress(
            recipient: $0, attempts: attempts, due: .epoch, doubts: 0, delayNoticeSent: false, lastReply: nil)
    }
}

private final class Reports: HeldReporting {
    let held = Mutex<[MessageKey]>([])
    func found(held: [(ref: StoredMessageRef, key: MessageKey, receiver: NodeRun)]) {
        self.held.withLock { $0 += held.map(\.key) }
    }
}

@Test func heldCopyReachesTheQueueOrIsForgottenAfterARestart() {
    let queue = Queue()
    let reports = Reports()
    let table = HeldMessages(queue: queue, outcomes: queue, time: Clock())
    table.bind(reports)
    table.receive([
        accepted(1, held: true, progress: progress(attempts: 0)),
        accepted(2, held: false, progress: progress(attempts: 0), counter: 2),
        accepted(3, held: true, progress: progress(attempts: 1), counter: 3),
        accepted(4, held: true, progress: [progress(attempts: 0)[1]], counter: 4),
        accepted(5, held: false, counter: 5),
    ])
    // What was tried already was released before; what is settled in part perhaps, and counts.
    #expect(queue.ids == [2, 3, 4, 5] && table.count == 1)
    #expect(reports.held.withLock { $0.map(\.counter) } == [1])
    let ref = StoredMessageRef(segment: 1, record: 1)
    table.release([ref])
    table.release([ref])
    table.withdraw([ref])
    #expect(queue.ids == [2, 3, 4, 5, 1] && queue.records.isEmpty)
    let released = queue.messages.withLock { $0.last }
    #expect(released?.progress == nil && released?.receptionRecorded == false)
}

@Test func heldMessagesPileUp() {
    let queue = Queue()
    let table = HeldMessages(queue: queue, outcomes: queue, time: Clock(), bound: 2)
    table.receive(
        (1...4).map { accepted(UInt32($0), held: true, progress: progress(attempts: 0), counter: UInt64($0)) })
    #expect(table.count == 2 && queue.ids == [3, 4])
    table.receive([accepted(5, held: true, counter: 5)])
    #expect(table.count == 3, "a fresh copy is bounded by the SUBMITs without answer")
}
