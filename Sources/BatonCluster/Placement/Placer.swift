// Places accepted mail on the cluster's nodes: the shell of placement and SUBMIT.
import BatonCore
import BatonModel
import BatonPeer
import NIOCore
import Synchronization

/// How SUBMIT, SUBMITTED and ASK leave. Any thread; never blocks.
package protocol SubmitTransport: Sendable {
    /// False: it never left (no session to the node, or its queue is full).
    func send(_ message: PeerMessage, to node: NodeID) -> Bool
}

/// `MessageSubmitting` for the ingress over that of this node. A message of one part that stays here passes through untouched;
/// the parts of others go to their nodes, and the result comes when every part is durable, or held durably (PROTOCOL S6).
///
/// Any thread; never blocks; one lock for a few microseconds a batch, and nothing is called while it is held. Every submission
/// gets exactly one result through its own sink, with its own token. Bounded: `PlacementLimits` for what goes out; sessions
/// bound what comes in.
package final class Placer: MessageSubmitting, SubmissionResultReceiving, HeldReporting {
    private struct Pending {
        let sink: any SubmissionResultReceiving
        let token: UInt64
        var parts: PartResults
    }

    private struct Incoming {
        let key: MessageKey
        let envelope: Envelope
        let body: ByteBuffer
    }

    private struct State {
        var placement: PlacementState
        var submits: SubmitState
        var messages: [UInt64: Pending] = [:]
        var nextMessage: UInt64 = 0
        var incoming: [MessageKey: Incoming] = [:]
        /// Tokens of incoming SUBMITs at the local spool; own parts use their counter.
        var tokens: [UInt64: MessageKey] = [:]
        var nextToken = Placer.incomingTokens
        var tickedAt = Instant.epoch
    }

    /// Tokens from here on are of incoming SUBMITs.
    private static let incomingTokens: UInt64 = 1 << 63

    private let state: Mutex<State>
    private let own: NodeRun
    private let local: any MessageSubmitting
    private let held: HeldMessages
    private let transport: any SubmitTransport
    private let time: any TimeSource
    private let counts: PlacementCounts
    private let isFinal: @Sendable (StoredMessageRef) -> Bool

    /// `local`: this node's own way to its disk, with its admission. `held` stands between the spool and the queue. `isFinal`: whether
    /// nothing of a stored message is left to be delivered; never blocks.
    package init(
        own: NodeRun, spreadRate: Double, local: any MessageSubmitting, held: HeldMessages,
        transport: any SubmitTransport, time: any TimeSource, counts: PlacementCounts = PlacementCounts(),
        guards: SubmitGuards = .all, isFinal: @escaping @Sendable (StoredMessageRef) -> Bool = { _ in false }
    ) {
        state = Mutex(
            State(
                placement: PlacementState(own: own.node, spreadRate: spreadRate),
                submits: SubmitState(own: own, guards: guards)))
        self.own = own
        self.local = local
        self.held = held
        self.transport = transport
        self.time = time
        self.counts = counts
        self.isFinal = isFinal
        held.bind(self)
    }

    // MARK: From the cluster

    /// The nodes that new mail may go to (this one included unless it drains), and all runs that live.
    package func update(nodes: [PlacementNode], live: [NodeRun]) {
        run { state, now, work in
            state.placement.update(nodes)
            work.post(.nodes(live), &state.submits, now)
        }
    }

    /// Events of the cluster's other parts: sessions that ended, keys found in segments taken over, what is scanned.
    package func post(_ event: SubmitEvent) {
        run { state, now, work in work.post(event, &state.submits, now) }
    }

    /// To be called every `PlacementLimits.tick` or so.
    package func tick() {
        run { state, now, work in
            guard now - state.tickedAt >= PlacementLimits.tick else { return }
            state.tickedAt = now
            work.post(.tick, &state.submits, now)
        }
    }

    /// SUBMIT, SUBMITTED and ASK from a session's peer; others are ignored.
    package func received(_ message: PeerMessage, from peer: NodeRun) {
        switch message {
        case .submit(let submit): arrived(submit, from: peer)
        case .submitted(let answer): post(.submitted(answer, from: peer))
        case .ask(let question): post(.asked(question, from: peer))
        default: break
        }
    }

    /// A body has to be whole: whoever offers compression to peers opens it before.
    private func arrived(_ submit: Submit, from peer: NodeRun) {
        let meant = NodeRun(node: own.node, incarnation: submit.receiver)
        guard !submit.isCompressed, let envelope = EnvelopeCodec.decode(submit.envelope),
            let mark = envelope.submit, mark.held == nil, MessageKey(mark) == submit.key,
            submit.key.ingress.node == peer.node, envelope.traits.length == submit.body.readableBytes,
            !envelope.recipients.isEmpty
        else {
            let answer = Submitted(key: submit.key, receiver: meant, answer: .refused(.unreadable))
            _ = transport.send(.submitted(answer), to: peer.node)
            return
        }
        if case .refused(let refusal) = local.admission {
            let why: SubmitRefusal =
                switch refusal {
                case .diskFull, .noCopies: .noRoom
                case .storageFailed: .storageFailed
                case .overloaded: .overloaded
                case .stopping: .stopping
                }
            let answer = Submitted(key: submit.key, receiver: meant, answer: .refused(why))
            _ = transport.send(.submitted(answer), to: peer.node)
            return
        }
        run { state, now, work in
            // One that is under way keeps its own octets.
            if state.incoming[submit.key] == nil {
                state.incoming[submit.key] = Incoming(key: submit.key, envelope: envelope, body: submit.body)
                work.arriving = submit.key
            }
            work.post(.arrived(submit.key, receiver: meant, from: peer), &state.submits, now)
        }
    }

    package func found(held: [(ref: StoredMessageRef, key: MessageKey, receiver: NodeRun)]) {
        run { state, now, work in
            for copy in held { work.post(.held(copy.ref, copy.key, receiver: copy.receiver), &state.submits, now) }
        }
    }

    // MARK: From the ingress

    package func submit(_ batch: [BatonModel.Submission]) {
        if state.withLock({ $0.placement.isLocal }) { return local.submit(batch) }
        run { state, now, work in
            for submission in batch { place(submission, &state, now, &work) }
        }
    }

    private func place(_ submission: BatonModel.Submission, _ state: inout State, _ now: Instant, _ work: inout Work) {
        guard case .whole(let body) = submission.body else {
            work.local.append(submission)
            return
        }
        let envelope = submission.envelope
        let parts = state.placement.place(envelope, bodyOctets: body.readableBytes, fragmented: false, at: now)
        if parts.count == 1, parts[0].node == nil {
            work.local.append(submission)
            return
        }
        let message = state.nextMessage
        state.nextMessage += 1
        state.messages[message] = Pending(
            sink: submission.sink, token: submission.token, parts: PartResults(parts: parts.count))
        for part in parts {
            let made = OutgoingPart(message: message, envelope: envelope.part(part.recipients, submit: nil), body: body)
            work.post(part.node.map { .place(made, on: $0) } ?? .keep(made), &state.submits, now)
        }
    }

    package func openStream(sink: any SubmissionResultReceiving) -> FragmentStreamID { local.openStream(sink: sink) }
    package func append(_ bytes: ByteBuffer, to stream: FragmentStreamID) { local.append(bytes, to: stream) }
    package func abandon(_ stream: FragmentStreamID) { local.abandon(stream) }
    package var admission: StorageAdmission { local.admission }

    // MARK: From the local spool

    package func submissionsFinished(_ results: [SubmissionResult]) {
        run { state, now, work in
            for result in results {
                if result.token < Self.incomingTokens {
                    work.post(.stored(counter: result.token, result.outcome), &state.submits, now)
                } else if let key = state.tokens.removeValue(forKey: result.token) {
                    work.post(.incomingStored(key, result.outcome), &state.submits, now)
                }
            }
        }
    }

    package func fragmentsWritten(_ results: [FragmentResult]) {}

    package var unfinished: Int { state.withLock { $0.messages.count } }
    package var openQuestions: Int { state.withLock { $0.submits.openQuestions } }

    // MARK: Performing

    /// What is to be done once the lock is free.
    private struct Work {
        var local: [BatonModel.Submission] = []
        var actions = ActionBuffer<SubmitAction>()
        var results: [(sink: any SubmissionResultReceiving, results: [SubmissionResult])] = []
        var sends: [(message: PeerMessage, node: NodeID, counter: UInt64?)] = []
        var submits: [(key: MessageKey, part: OutgoingPart, receiver: NodeRun)] = []
        var released: [StoredMessageRef] = []
        var withdrawn: [StoredMessageRef] = []
        var looks: [(ref: StoredMessageRef, key: MessageKey)] = []
        var arriving: MessageKey?

        mutating func post(_ event: SubmitEvent, _ submits: inout SubmitState, _ now: Instant) {
            submits.receive(event, at: now, into: &actions)
        }

        mutating func add(_ result: SubmissionResult, to sink: any SubmissionResultReceiving) {
            if let index = results.firstIndex(where: { $0.sink === sink }) {
                results[index].results.append(result)
            } else {
                results.append((sink, [result]))
            }
        }
    }

    private func run(_ step: (inout State, Instant, inout Work) -> Void) {
        let now = time.now()
        var work = state.withLock { state in
            var work = Work()
            step(&state, now, &work)
            for action in work.actions.drain() { stage(action, &state, &work) }
            // An incoming SUBMIT that was answered at once needs its octets no more.
            if let key = work.arriving { state.incoming[key] = nil }
            return work
        }
        perform(&work)
    }

    private func stage(_ action: SubmitAction, _ state: inout State, _ work: inout Work) {
        switch action {
        case .submit(let key, let part, let receiver): work.submits.append((key, part, receiver))
        case .answer(let answer, let node):
            // This node's own keys, of an earlier run, are answered for within the state.
            if node != own.node { work.sends.append((.submitted(answer), node, nil)) }
        case .ask(let question, let node): work.sends.append((.ask(question), node, nil))
        case .store(let counter, let part, let mark):
            let envelope = mark.map { part.envelope.part(nil, submit: $0) } ?? part.envelope
            work.local.append(
                BatonModel.Submission(envelope: envelope, body: .whole(part.body), token: counter, sink: self))
        case .storeIncoming(let key):
            guard let incoming = state.incoming.removeValue(forKey: key) else { return }
            let token = state.nextToken
            state.nextToken += 1
            state.tokens[token] = key
            work.local.append(
                BatonModel.Submission(
                    envelope: incoming.envelope, body: .whole(incoming.body), token: token, sink: self))
        case .finished(let message, let outcome): finished(message, outcome, &state, &work)
        case .look(let ref, let key): work.looks.append((ref, key))
        case .release(let ref): work.released.append(ref)
        case .withdraw(let ref): work.withdrawn.append(ref)
        case .count(let count): counts.add(count)
        }
    }

    private func finished(_ message: UInt64, _ outcome: SubmissionOutcome, _ state: inout State, _ work: inout Work) {
        guard var pending = state.messages.removeValue(forKey: message) else { return }
        guard let result = pending.parts.finished(outcome) else {
            state.messages[message] = pending
            return
        }
        if result.mayBeDoubled { counts.add(.maybeDuplicate) }
        work.add(SubmissionResult(token: pending.token, outcome: result.outcome), to: pending.sink)
    }

    private func perform(_ work: inout Work) {
        if !work.local.isEmpty { local.submit(work.local) }
        var unsent: [UInt64] = []
        for submit in work.submits where !send(submit.key, submit.part, to: submit.receiver) {
            unsent.append(submit.key.counter)
        }
        for item in work.sends { _ = transport.send(item.message, to: item.node) }
        if !work.released.isEmpty { held.release(work.released) }
        if !work.withdrawn.isEmpty { held.withdraw(work.withdrawn) }
        for item in work.results { item.sink.submissionsFinished(item.results) }
        let final = work.looks.filter { isFinal($0.ref) }
        guard !unsent.isEmpty || !final.isEmpty else { return }
        run { state, now, work in
            for look in final { work.post(.final(look.key), &state.submits, now) }
            for counter in unsent { work.post(.notSent(counter: counter), &state.submits, now) }
        }
    }

    /// False too where the envelope is larger than a SUBMIT holds.
    private func send(_ key: MessageKey, _ part: OutgoingPart, to receiver: NodeRun) -> Bool {
        var envelope = ByteBuffer()
        EnvelopeCodec.encode(part.envelope.part(nil, submit: key.mark()), into: &envelope)
        let submit = Submit(
            key: key, receiver: receiver.incarnation, envelope: envelope, body: part.body,
            bodyOctets: part.body.readableBytes, isCompressed: false)
        return submit.isValid && transport.send(.submit(submit), to: receiver.node)
    }
}
