// Copies that are held back while nobody knows whether the receiver has the message (PROTOCOL S5, S6).
import BatonCore
import BatonModel
import BatonPeer

/// Rules that a test takes out one by one; production has all.
package struct SubmitGuards: OptionSet, Hashable, Sendable {
    package let rawValue: UInt16

    package init(rawValue: UInt16) {
        self.rawValue = rawValue
    }

    package static let refuseAfterNo = SubmitGuards(rawValue: 1)
    package static let submitNamesIncarnation = SubmitGuards(rawValue: 2)
    package static let pendingIsNotNo = SubmitGuards(rawValue: 4)
    package static let failedIsUnknown = SubmitGuards(rawValue: 8)
    package static let noOnlyWhenScanned = SubmitGuards(rawValue: 16)
    package static let heldIsStored = SubmitGuards(rawValue: 32)
    package static let forgottenIsUnknown = SubmitGuards(rawValue: 64)
    package static let haveWhenCopied = SubmitGuards(rawValue: 128)
    package static let all = SubmitGuards(rawValue: 255)
}

extension SubmitState {
    mutating func held(_ ref: StoredMessageRef, _ key: MessageKey, _ receiver: NodeRun) {
        guard let question = questions[key] else {
            // Found on disk: after a restart, or in a segment taken over.
            questions[key] = Question(receiver: receiver, since: now, witnesses: live, copy: ref)
            return
        }
        guard question.copy == nil else {
            // A second held copy of one key has no question of its own.
            if question.copy != ref {
                actions.append(.count(.maybeDuplicate))
                actions.append(.release(ref))
            }
            return
        }
        questions[key]?.copy = ref
        settle(key)
    }

    mutating func tickQuestions() {
        for key in questions.keys.sorted(by: {
            ($0.ingress.node.value, $0.counter) < ($1.ingress.node.value, $1.counter)
        }) {
            guard let question = questions[key], question.decision == nil else { continue }
            if now - question.since >= PlacementLimits.hold {
                decide(key, .release(counted: true))
                continue
            }
            if key.ingress == own { storeAgain(key.counter) }
            if let askedAt = question.askedAt, now - askedAt < PlacementLimits.askInterval { continue }
            questions[key]?.askedAt = now
            questions[key]?.saidNo = []
            ask(key, question.receiver)
        }
    }

    /// The lane may have lost its backup together with the receiver, and has another one in a moment: the client shall not wait for the
    /// end of the hold.
    private mutating func storeAgain(_ counter: UInt64) {
        guard let entry = parts[counter], case .hoping(_, let since) = entry.stage, let receiver = entry.receiver,
            now - since >= PlacementLimits.storeAgain
        else { return }
        storeHeld(counter, entry.part, receiver)
    }

    /// A receiver that lives knows alone; of one that is gone every node that lives may have taken something over.
    private mutating func ask(_ key: MessageKey, _ receiver: NodeRun) {
        let question = BatonPeer.Ask(key: key, receiver: receiver)
        if receiver != own, live.contains(receiver) {
            actions.append(.ask(question, to: receiver.node))
            return
        }
        if receiver != own {
            for run in live.sorted(by: { $0.node.value < $1.node.value }) where run != own {
                actions.append(.ask(question, to: run.node))
            }
        }
        heard(key, verdict(key, receiver), from: own)
    }

    /// An answer about a key whose copy is held here.
    mutating func heard(_ key: MessageKey, _ answer: BatonPeer.SubmitAnswer, from sender: NodeRun) {
        guard let question = questions[key], question.decision == nil else { return }
        switch answer {
        case .stored: decide(key, .withdraw)
        case .refused where sender == question.receiver: decide(key, .release(counted: false))
        case .refused where !live.contains(question.receiver):
            questions[key]?.saidNo.insert(sender)
            guard let saidNo = questions[key]?.saidNo, live.union([own]).isSubset(of: saidNo) else { return }
            // Certain only if nobody else came or went since the SUBMIT was sent by this very run.
            let same = key.ingress == own && live == question.witnesses.subtracting([question.receiver])
            decide(key, .release(counted: !same))
        case .refused, .pending: break
        case .unknown: questions[key]?.saidNo.remove(sender)
        }
    }

    private mutating func decide(_ key: MessageKey, _ decision: Decision) {
        questions[key]?.decision = decision
        settle(key)
    }

    mutating func dropQuestion(_ key: MessageKey) {
        guard let question = questions.removeValue(forKey: key) else { return }
        if key.ingress == own { closeKey(of: question.receiver.node) }
    }

    /// Performs the decision once the copy is here, or is known never to be.
    mutating func settle(_ key: MessageKey) {
        guard let question = questions[key], let decision = question.decision else { return }
        let entry = key.ingress == own ? parts[key.counter] : nil
        if let copy = question.copy {
            dropQuestion(key)
            switch decision {
            case .withdraw:
                actions.append(.count(.withdrawn))
                actions.append(.withdraw(copy))
            case .release(let counted):
                actions.append(.count(.released))
                if counted || question.mayStandTwice { actions.append(.count(.maybeDuplicate)) }
                actions.append(.release(copy))
            }
            return
        }
        guard let entry else { return }
        switch (entry.stage, decision) {
        // The receiver has it: 250 without waiting for this disk. The question stays for the copy that is on its way.
        case (.storingHeld, .withdraw):
            actions.append(.count(.placed))
            finish(key.counter, .durable(.elsewhere))
        case (.hoping, .withdraw):
            dropQuestion(key)
            actions.append(.count(.placed))
            finish(key.counter, .durable(.elsewhere))
        case (.hoping(let refusal, _), .release(let counted)):
            dropQuestion(key)
            if counted { actions.append(.count(.maybeDuplicate)) }
            finish(key.counter, .refused(refusal))
        case (.storingHeld, .release), (.sent, _), (.storing, _): break
        }
    }
}
