// Mail for another node: SUBMIT, its unanswered cases, and the copy that the ingress node holds back (PROTOCOL S1-S7).
import BatonCore
import BatonSpool

struct SubmitBook: Sendable {
    enum Incoming: Sendable {
        case pending
        case have(Instant)
        case refused(Instant)
        case unknown(Instant)
    }

    struct Outgoing: Sendable {
        let mail: MailRecord
        let receiver: Drainer
        let since: Instant
        var repeated = false
    }

    var counter: UInt64 = 0
    /// Next time that remembered keys are looked through.
    var pruneAt = Instant.epoch
    var incoming = Table<SubmitKey, Incoming>()
    /// Of each ingress node the highest key that was remembered and is not any more.
    var forgotten = Table<NodeID, SubmitKey>()
    var outgoing = Table<SubmitKey, Outgoing>()
    /// Questions about held copies: who said no so far.
    var questions = Table<SubmitKey, Question>()
    /// Clients that wait for their reply.
    var clients = Table<MessageID, Client>()

    struct Client: Sendable {
        /// Parts without their result.
        var left: Int
        var durable: [MailRecord] = []
        var isRefused = false
    }

    struct Question: Sendable {
        var since: Instant
        var askedAt = Instant.epoch
        /// Who said no in this round, and which segments of the receiver each has scanned.
        var saidNo = Table<NodeID, [SegmentID]>()
        /// The nodes that were there when the question arose.
        let witnesses: [Drainer]
    }
}

extension ClusterState {
    mutating func accept(_ parts: [MailPart]) {
        guard let first = parts.first else { return }
        submits.clients[first.mail.id] = SubmitBook.Client(left: parts.count)
        for part in parts { accept(part.mail, placedOn: part.node) }
    }

    /// 250 when every part is durable. 451 if one can be stored nowhere: the client's next try repeats the others.
    mutating func partAnswered(_ part: MailRecord, durable: Bool) {
        guard var client = submits.clients[part.id] else { return }
        client.left -= 1
        if durable { client.durable.append(part) } else { client.isRefused = true }
        guard client.left == 0 || durable && !guards.contains(.everyPart) else {
            submits.clients[part.id] = client
            return
        }
        submits.clients[part.id] = nil
        if client.isRefused, guards.contains(.refusedIsCounted) {
            for part in client.durable { actions.append(.maybeDuplicate(part)) }
        }
        actions.append(.reply(part.id, accepted: !client.isRefused))
    }

    private mutating func accept(_ mail: MailRecord, placedOn node: NodeID?) {
        guard let node, node != me.node, let record = registry.nodes.first(where: { $0.node == node }) else {
            return enqueue(mail, .client)
        }
        let key = SubmitKey(ingress: me, counter: submits.counter)
        submits.counter += 1
        submits.outgoing[key] = SubmitBook.Outgoing(mail: mail, receiver: record.drainer, since: now)
        send(.submit(mail, key, receiver: record.incarnation), to: node)
    }

    // MARK: Receiver

    mutating func submitted(_ mail: MailRecord, _ key: SubmitKey, _ receiver: Incarnation, from sender: Drainer) {
        // S2: meant for another incarnation, which may have it.
        if guards.contains(.submitNamesIncarnation), receiver != me.incarnation {
            return send(.submitted(key, .unknown), to: sender.node)
        }
        switch submits.incoming[key] {
        case .pending: send(.submitted(key, .pending), to: sender.node)
        case .have: send(.submitted(key, .have), to: sender.node)
        case .refused: send(.submitted(key, .no), to: sender.node)
        case .unknown: send(.submitted(key, .unknown), to: sender.node)
        // So late that it may have been here before.
        case nil where mayBeForgotten(key): send(.submitted(key, .unknown), to: sender.node)
        case nil:
            submits.incoming[key] = .pending
            var stored = mail
            stored.submit = key
            enqueue(stored, .submitted(key, from: sender.node))
        }
    }

    /// What this node knows about a key: as the receiver itself, or as a taker of its segments.
    mutating func asked(_ key: SubmitKey, _ receiver: Drainer, by sender: Drainer) {
        send(.answer(key, verdict(key, receiver), covers: scannedSegments(of: receiver)), to: sender.node)
    }

    private mutating func verdict(_ key: SubmitKey, _ receiver: Drainer) -> SubmitAnswer {
        switch submits.incoming[key] {
        case .have: return .have
        case .refused: return .no
        case .unknown: return .unknown
        case .pending: return guards.contains(.pendingIsNotNo) ? .pending : .no
        case nil: break
        }
        if receiver == me {
            if mayBeForgotten(key) { return .unknown }
            // S1: from now on this key is refused, however late its SUBMIT comes.
            if guards.contains(.refuseAfterNo) { submits.incoming[key] = .refused(now) }
            return .no
        }
        // S5: a taker looks into what it took over, and says no only when all of it is scanned.
        var complete = true
        for id in registry.keys.keys where id.writer == receiver.node && id.incarnation == receiver.incarnation {
            guard let known = registry.keys[id], known.drainer == me, known.state != .finished else { continue }
            guard let drain = drains[id], case .ready = drain.phase, known.sealedAt == drain.length else {
                complete = false
                continue
            }
            for record in drain.records where record.mail.submit == key {
                if guards.contains(.voidIsNotHad), record.held, case .moved? = record.mail.hold {
                    // Moved here from another of the receiver's segments: not decided yet, or void.
                    if record.isOpen { return .pending }
                    continue
                }
                return isOnAllMembers(known, drain) || !guards.contains(.haveWhenCopied) ? .have : .pending
            }
        }
        if mayBeForgotten(key) { return .unknown }
        return complete || !guards.contains(.noOnlyWhenScanned) ? .no : .unknown
    }

    /// What was forgotten is not denied: the question may come long after, when a taker of the held copy was slow (seed 42573).
    private func mayBeForgotten(_ key: SubmitKey) -> Bool {
        guard guards.contains(.forgottenIsUnknown), let upTo = submits.forgotten[key.ingress.node] else { return false }
        return key <= upTo
    }

    /// An unacknowledged message may stand in one copy only: the held copy goes when every member has this one.
    private func isOnAllMembers(_ key: ClusterKey, _ drain: Drain) -> Bool {
        guard let copy = copies[key.id], !copy.rebuilt, let length = key.sealedAt, copy.end >= length else {
            return false
        }
        return key.ensemble.allSatisfy { other in
            other == member || drain.peers[other]?.reported.map { $0.end >= length && !$0.rebuilt } ?? false
        }
    }

    private func scannedSegments(of receiver: Drainer) -> [SegmentID] {
        drains.keys.filter { id in
            guard id.writer == receiver.node, id.incarnation == receiver.incarnation, let drain = drains[id],
                case .ready = drain.phase
            else { return false }
            return registry.keys[id]?.sealedAt == drain.length
        }
    }

    /// S7: the keys of a finished segment outlive it.
    mutating func rememberKeys(of key: ClusterKey) {
        guard let copy = copies[key.id] else { return }
        for (index, record) in copy.chunks.flatMap(\.records).prefix(Int(key.finishedLength)).enumerated() {
            guard let submit = record.submit, counted(record, at: Int64(index), in: copy) else { continue }
            submits.incoming[submit] = guards.contains(.rememberFinished) ? .have(now) : nil
        }
    }

    /// What a cleaning moved in vain was withdrawn here: its source has the message, perhaps on one disk only, and answers for it
    /// (seed 50547). A member that does not know the decision keeps quiet as well.
    private func counted(_ record: MailRecord, at index: Int64, in copy: Copy) -> Bool {
        guard guards.contains(.voidIsNotHad), case .moved? = record.hold else { return true }
        return copy.released[JobID(index: index, recipient: 0)] != nil
    }

    // MARK: Ingress

    mutating func submitAnswered(_ key: SubmitKey, _ answer: SubmitAnswer, by sender: Drainer) {
        guard let out = submits.outgoing[key] else {
            // An answer after the own copy was stored decides about that copy.
            if sender == submits.questions[key].flatMap({ _ in held(key)?.receiver }) {
                heard(key, answer, [], from: sender)
            }
            return
        }
        switch answer {
        case .have:
            submits.outgoing[key] = nil
            partAnswered(out.mail, durable: true)
        case .no where sender == out.receiver:
            submits.outgoing[key] = nil
            enqueue(out.mail, .client)
        case .no, .unknown: storeHeld(key, out)
        case .pending: break
        }
    }

    private mutating func storeHeld(_ key: SubmitKey, _ out: SubmitBook.Outgoing) {
        submits.outgoing[key] = nil
        var own = out.mail
        // S6: flagged in the stored record, so that a taker asks as well.
        if guards.contains(.heldIsStored) { own.hold = .submit(key, receiver: out.receiver) }
        enqueue(own, .client)
    }

    private func held(_ key: SubmitKey) -> (id: SegmentID, index: Int64, receiver: Drainer)? {
        for id in drains.keys {
            guard let drain = drains[id] else { continue }
            for index in drain.open {
                if case .submit(key, let receiver)? = drain.records[Int(index)].mail.hold {
                    return (id, index, receiver)
                }
            }
        }
        return nil
    }

    mutating func tickSubmits() {
        for key in submits.outgoing.keys {
            guard let out = submits.outgoing[key] else { continue }
            let waited = now - out.since
            if waited >= timing.submitDeadline {
                storeHeld(key, out)
            } else if waited.nanoseconds * 2 >= timing.submitDeadline.nanoseconds, !out.repeated {
                submits.outgoing[key]?.repeated = true
                send(.submit(out.mail, key, receiver: out.receiver.incarnation), to: out.receiver.node)
            }
        }
        // Now and then: a key may be kept a little longer.
        if now >= submits.pruneAt {
            submits.pruneAt = now + timing.silence
            for key in submits.incoming.keys {
                switch submits.incoming[key] {
                case .have(let at)?, .refused(let at)?, .unknown(let at)?:
                    guard now - at > timing.remember else { continue }
                    submits.incoming[key] = nil
                    submits.forgotten[key.ingress.node] = max(submits.forgotten[key.ingress.node] ?? key, key)
                case .pending?, nil: break
                }
            }
        }
        for id in drains.keys { tickHeld(id) }
    }

    private mutating func tickHeld(_ id: SegmentID) {
        guard let drain = drains[id], case .ready = drain.phase else { return }
        for index in drain.open where drain.records[Int(index)].held {
            guard
                case .submit(let key, let receiver)? = drain.records[Int(index)].mail.hold
            else { continue }
            var question =
                submits.questions[key] ?? SubmitBook.Question(since: now, witnesses: registry.nodes.map(\.drainer))
            if now - question.since >= timing.hold {
                // What stays unknown is delivered, and counted.
                actions.append(.maybeDuplicate(drain.records[Int(index)].mail))
                release(id, index)
                submits.questions[key] = nil
                continue
            }
            if now - question.askedAt >= timing.promiseRenewal {
                question.askedAt = now
                question.saidNo = Table()
                if receiver == me {
                    submits.questions[key] = question
                    heard(key, verdict(key, receiver), scannedSegments(of: receiver), from: me)
                    continue
                }
                if registry.isAlive(receiver) {
                    send(.ask(key, receiver: receiver), to: receiver.node)
                } else {
                    for other in registry.nodes where other.node != me.node {
                        send(.ask(key, receiver: receiver), to: other.node)
                    }
                }
            }
            submits.questions[key] = question
            if !registry.isAlive(receiver) {
                heard(key, verdict(key, receiver), scannedSegments(of: receiver), from: me)
            }
        }
    }

    mutating func heard(_ key: SubmitKey, _ answer: SubmitAnswer, _ covers: [SegmentID], from sender: Drainer) {
        guard let (id, index, receiver) = held(key), var question = submits.questions[key] else { return }
        switch answer {
        case .have:
            submits.questions[key] = nil
            withdraw(id, index)
        case .no where sender == receiver:
            submits.questions[key] = nil
            release(id, index)
        case .no where !registry.isAlive(receiver):
            // S5: no only when every segment of the receiver was scanned by whoever drains it, and nobody remembers the key.
            question.saidNo[sender.node] = covers
            submits.questions[key] = question
            let covered = Set(question.saidNo.values.flatMap { $0 })
            let segments = registry.keys.values.filter {
                $0.id.writer == receiver.node && $0.id.incarnation == receiver.incarnation
            }
            guard registry.nodes.allSatisfy({ question.saidNo[$0.node] != nil }),
                !guards.contains(.noOnlyWhenScanned) || segments.allSatisfy({ covered.contains($0.id) })
            else { return }
            submits.questions[key] = nil
            // A segment may have been finished by a node that is gone: certain only if nobody else came or went since.
            let present = registry.nodes.map(\.drainer)
            if key.ingress != me || Set(present) != Set(question.witnesses.filter { $0 != receiver }) {
                if let mail = drains[id]?.records[Int(index)].mail { actions.append(.maybeDuplicate(mail)) }
            }
            release(id, index)
        case .unknown where sender != receiver: submits.questions[key]?.saidNo[sender.node] = nil
        case .no, .pending, .unknown: break
        }
    }

    /// The held copy is the one that counts; the decision is on record before it is attempted.
    mutating func release(_ id: SegmentID, _ index: Int64) {
        guard drains[id]?.records[Int(index)].held == true else { return }
        record(id, JobOutcome(job: JobID(index: index, recipient: 0), outcome: .released))
        pump(id)
    }
}
