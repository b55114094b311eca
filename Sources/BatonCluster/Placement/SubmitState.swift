// Parts of messages on their way to other nodes' disks, and what is not known about them: a pure value (PROTOCOL S1-S7).
import BatonCore
import BatonModel
import BatonPeer
import NIOCore

/// The ingress side and the receiver's side of SUBMIT on one node. Bounded: `PlacementLimits`. What a session or a disk does
/// not tell is unknown, and what is unknown is never lost: a copy of it is held here until somebody knows or the hold ends.
package struct SubmitState: StateMachine {
    package typealias Event = SubmitEvent
    package typealias Action = SubmitAction

    enum Stage: Sendable {
        /// At the receiver since this instant.
        case sent(Instant)
        /// An own copy that counts is on its way to this disk.
        case storing
        /// An own copy that is held is on its way to this disk.
        case storingHeld
        /// This disk did not take the held copy: it is tried again, or the receiver's saves the part.
        case hoping(SubmissionRefusal, since: Instant)
    }

    struct Part: Sendable {
        let part: OutgoingPart
        let receiver: NodeRun?
        var stage: Stage
    }

    struct Question: Sendable {
        let receiver: NodeRun
        let since: Instant
        /// The runs that lived when the question arose.
        let witnesses: Set<NodeRun>
        var askedAt: Instant?
        /// Who said "not here" in this round.
        var saidNo: Set<NodeRun> = []
        /// The held copy, once it is durable here.
        var copy: StoredMessageRef?
        /// A held copy that was not acknowledged may stand on a disk beside the one that is.
        var mayStandTwice = false
        var decision: Decision?
    }

    enum Decision: Sendable {
        case withdraw
        case release(counted: Bool)
    }

    let own: NodeRun
    let guards: SubmitGuards
    var live: Set<NodeRun> = []
    /// Parts without their result, by counter.
    var parts: [UInt64: Part] = [:]
    var questions: [MessageKey: Question] = [:]
    var memory: KeyMemory
    var incoming = 0
    var scanned: Set<NodeRun> = []
    /// Of each receiver: keys without a fate, and octets that wait for an answer.
    private(set) var open: [NodeID: (keys: Int, octets: Int)] = [:]
    private var counter: UInt64 = 0
    var now = Instant.epoch
    var actions = ActionBuffer<SubmitAction>()

    package init(own: NodeRun, remembered: Int = PlacementLimits.remembered, guards: SubmitGuards = .all) {
        self.own = own
        self.guards = guards
        memory = KeyMemory(bound: remembered)
    }

    package var unfinished: Int { parts.count }
    package var openQuestions: Int { questions.count }

    package mutating func receive(
        _ event: SubmitEvent, at now: Instant, into actions: inout ActionBuffer<SubmitAction>
    ) {
        self.now = now
        swap(&self.actions, &actions)
        defer { swap(&self.actions, &actions) }
        switch event {
        case .nodes(let runs):
            live = Set(runs)
            // "No" counts for one membership only.
            for key in questions.keys { questions[key]?.saidNo = [] }
            scanned.subtract(live)
        case .place(let part, let receiver): place(part, on: receiver)
        case .keep(let part): keep(part, counter: nextCounter())
        case .notSent(let counter): notSent(counter)
        case .lost(let node):
            for counter in parts.keys.sorted() { giveUp(counter, on: node) }
        case .submitted(let message, let sender): answered(message, by: sender)
        case .asked(let question, let sender):
            let answer = verdict(question.key, question.receiver)
            reply(question.key, question.receiver, answer, to: sender.node)
        case .arrived(let key, let receiver, let sender): arrived(key, receiver, from: sender)
        case .incomingStored(let key, let outcome): incomingStored(key, outcome)
        case .stored(let counter, let outcome): stored(counter, outcome)
        case .held(let ref, let key, let receiver): held(ref, key, receiver)
        case .adopted(let keys):
            for found in keys {
                let known = found.isFinal || !guards.contains(.haveWhenCopied)
                memory.remember(found.key, known ? .have : .adopted(found.ref), at: now)
            }
        case .whole(let segment): memory.whole(segment, at: now)
        case .final(let key): if case .adopted = memory[key] { memory.remember(key, .have, at: now) }
        case .scanned(let run, let complete):
            if complete, scanned.count < PlacementLimits.forgottenRuns {
                scanned.insert(run)
            } else {
                scanned.remove(run)
            }
        case .tick: tick()
        }
    }

    func key(_ counter: UInt64) -> MessageKey { MessageKey(ingress: own, counter: counter) }

    private mutating func nextCounter() -> UInt64 {
        counter += 1
        return counter
    }

    // MARK: Ingress

    private mutating func place(_ part: OutgoingPart, on receiver: NodeRun) {
        let counter = nextCounter()
        let used = open[receiver.node] ?? (0, 0)
        guard receiver != own, live.contains(receiver), used.keys < PlacementLimits.unanswered,
            used.octets + part.octets <= PlacementLimits.unansweredOctets
        else {
            actions.append(.count(.fellBack))
            return keep(part, counter: counter)
        }
        open[receiver.node] = (used.keys + 1, used.octets + part.octets)
        parts[counter] = Part(part: part, receiver: receiver, stage: .sent(now))
        actions.append(.submit(key(counter), part, to: receiver))
    }

    /// Stores the part here, as a copy that counts.
    private mutating func keep(_ part: OutgoingPart, counter: UInt64) {
        parts[counter] = Part(part: part, receiver: parts[counter]?.receiver, stage: .storing)
        actions.append(.store(counter: counter, part, nil))
    }

    private mutating func notSent(_ counter: UInt64) {
        guard let entry = parts[counter], case .sent = entry.stage else { return }
        close(entry)
        actions.append(.count(.fellBack))
        keep(entry.part, counter: counter)
    }

    /// The receiver is silent: an own copy is stored, marked as held (S6), and the questions begin.
    private mutating func giveUp(_ counter: UInt64, on node: NodeID? = nil) {
        guard let entry = parts[counter], case .sent = entry.stage, let receiver = entry.receiver,
            node == nil || receiver.node == node
        else { return }
        release(octets: entry.part.octets, of: receiver.node)
        questions[key(counter)] = Question(receiver: receiver, since: now, witnesses: live)
        actions.append(.count(.held))
        storeHeld(counter, entry.part, receiver)
    }

    mutating func storeHeld(_ counter: UInt64, _ part: OutgoingPart, _ receiver: NodeRun) {
        parts[counter]?.stage = .storingHeld
        let mark = guards.contains(.heldIsStored) ? key(counter).mark(heldFor: receiver) : nil
        actions.append(.store(counter: counter, part, mark))
    }

    private mutating func answered(_ message: BatonPeer.Submitted, by sender: NodeRun) {
        guard message.key.ingress == own, let entry = parts[message.key.counter], case .sent = entry.stage else {
            return heard(message.key, message.answer, from: sender)
        }
        guard sender.node == entry.receiver?.node else { return }
        switch message.answer {
        case .stored:
            actions.append(.count(.placed))
            finish(message.key.counter, .durable(.elsewhere))
        case .refused:
            close(entry)
            actions.append(.count(.fellBack))
            keep(entry.part, counter: message.key.counter)
        case .unknown: giveUp(message.key.counter)
        case .pending: break
        }
    }

    private mutating func stored(_ counter: UInt64, _ outcome: SubmissionOutcome) {
        guard let entry = parts[counter] else {
            // Its 250 came from the receiver before; no copy comes here any more.
            if case .refused = outcome, questions[key(counter)]?.copy == nil { dropQuestion(key(counter)) }
            return
        }
        switch (entry.stage, outcome) {
        case (.storing, _), (.storingHeld, .durable): finish(counter, outcome)
        case (.storingHeld, .refused(let refusal)):
            parts[counter]?.stage = .hoping(refusal, since: now)
            // S4: its octets may be on a disk, and its taker would ask for itself.
            if case .storageFailed = refusal, guards.contains(.failedIsUnknown) {
                questions[key(counter)]?.mayStandTwice = true
            }
            if questions[key(counter)] == nil { finish(counter, outcome) }
            settle(key(counter))
        case (.sent, _), (.hoping, _): break
        }
    }

    /// The part has its result: the shell hears of it, and what it held is free.
    mutating func finish(_ counter: UInt64, _ outcome: SubmissionOutcome) {
        guard let entry = parts.removeValue(forKey: counter) else { return }
        if case .sent = entry.stage { close(entry) }
        actions.append(.finished(message: entry.part.message, outcome))
    }

    private mutating func close(_ entry: Part) {
        guard let receiver = entry.receiver else { return }
        release(octets: entry.part.octets, of: receiver.node)
        closeKey(of: receiver.node)
    }

    private mutating func release(octets: Int, of node: NodeID) {
        guard let used = open[node] else { return }
        open[node] = (used.keys, max(0, used.octets - octets))
    }

    mutating func closeKey(of node: NodeID) {
        guard let used = open[node] else { return }
        open[node] = used.keys > 1 ? (used.keys - 1, used.octets) : nil
    }

    private mutating func tick() {
        for (counter, entry) in parts {
            if case .sent(let since) = entry.stage, now - since >= PlacementLimits.deadline { giveUp(counter) }
        }
        memory.expire(at: now)
        tickQuestions()
    }

    // MARK: Receiver

    private mutating func arrived(_ key: MessageKey, _ receiver: NodeRun, from sender: NodeRun) {
        if guards.contains(.submitNamesIncarnation), receiver != own {
            return reply(key, receiver, .refused(.otherIncarnation), to: sender.node)
        }
        switch memory[key] {
        case .pending, .adopted: return reply(key, receiver, .pending, to: sender.node)
        case .have: return reply(key, receiver, .stored, to: sender.node)
        case .refused: return reply(key, receiver, .refused(.notHere), to: sender.node)
        case .unknown: return reply(key, receiver, .unknown, to: sender.node)
        case nil: break
        }
        // So late that it may have been here before.
        if memory.mayBeForgotten(key) { return reply(key, receiver, .unknown, to: sender.node) }
        guard incoming < PlacementLimits.incoming, !memory.isFull else {
            return reply(key, receiver, .refused(.overloaded), to: sender.node)
        }
        incoming += 1
        memory.remember(key, .pending, at: now)
        actions.append(.storeIncoming(key))
    }

    private mutating func incomingStored(_ key: MessageKey, _ outcome: SubmissionOutcome) {
        guard memory[key] == .pending else { return }
        incoming -= 1
        let (fate, answer): (KeyMemory.Fate, BatonPeer.SubmitAnswer) =
            switch outcome {
            case .durable: (.have, .stored)
            // S4: its octets may be on a disk.
            case .refused(.storageFailed):
                guards.contains(.failedIsUnknown) ? (.unknown, .unknown) : (.refused, .refused(.storageFailed))
            case .refused(.diskFull), .refused(.noCopies): (.refused, .refused(.noRoom))
            case .refused(.overloaded): (.refused, .refused(.overloaded))
            case .refused(.stopping): (.refused, .refused(.stopping))
            }
        memory.remember(key, fate, at: now)
        reply(key, own, answer, to: key.ingress.node)
        // A held copy of it may be here as well, of an ingress node that is gone.
        heard(key, answer, from: own)
    }

    private mutating func reply(
        _ key: MessageKey, _ receiver: NodeRun, _ answer: BatonPeer.SubmitAnswer, to node: NodeID
    ) {
        actions.append(.answer(BatonPeer.Submitted(key: key, receiver: receiver, answer: answer), to: node))
    }

    /// What this node knows of a key: as the receiver itself, or as a taker of its segments.
    mutating func verdict(_ key: MessageKey, _ receiver: NodeRun) -> BatonPeer.SubmitAnswer {
        switch memory[key] {
        case .have: return .stored
        case .refused: return .refused(.notHere)
        case .unknown: return .unknown
        case .pending: return guards.contains(.pendingIsNotNo) ? .pending : .refused(.notHere)
        // On this disk only, perhaps, and never acknowledged: the held copy stays until there are as many as promised.
        // What is delivered needs no copy.
        case .adopted(let ref):
            actions.append(.look(ref, key))
            return .pending
        case nil: break
        }
        if guards.contains(.forgottenIsUnknown), memory.mayBeForgotten(key) { return .unknown }
        if receiver == own {
            // S1: refused from now on, however late its SUBMIT comes; where there is no room to remember that, nothing is denied.
            guard guards.contains(.refuseAfterNo) else { return .refused(.notHere) }
            guard !memory.isFull else { return .unknown }
            memory.remember(key, .refused, at: now)
            return .refused(.notHere)
        }
        return scanned.contains(receiver) || !guards.contains(.noOnlyWhenScanned) ? .refused(.notHere) : .unknown
    }
}
