// What peers say: chunks and outcome logs go straight to the copies, answers to the spool, the rest to the cluster's thread.
import BatonCore
import BatonModel
import BatonPeer
import BatonRuntime
import BatonSpool
import NIOCore
import Synchronization

/// Octets that one session may have waiting in parts of a chunk: not more than five eighths of the bulk window.
private let joinerLimit = 5 * ByteCount.mebi

extension ClusterRuntime: PeerTransportDelegate {
    package func connected(_ identity: PeerIdentity) {
        switch identity.channel {
        case .control: tell(.met(Self.drainer(identity)))
        case .bulk:
            replicator.connected(identity.run.node)
            tell(.hint)
        }
    }

    package func disconnected(_ identity: PeerIdentity, _ reason: CloseReason) {
        guard identity.channel == .bulk else { return }
        replicator.disconnected(identity.run.node)
        handlers.disconnected(identity.run.node)
        // A node that is gone may be dead: look soon.
        tell(.hint)
    }

    static func drainer(_ identity: PeerIdentity) -> Drainer {
        Drainer(node: identity.run.node, incarnation: identity.run.incarnation)
    }

    package func received(_ frames: [ReceivedFrame], from identity: PeerIdentity) {
        guard let parts = partsIfBound else { return release(frames) }
        for frame in frames { take(frame, from: identity, parts) }
    }

    private func release(_ frames: [ReceivedFrame]) {
        for frame in frames where frame.isReleasedByConsumer { transport.release(frame.cost, of: frame.session) }
    }

    private func take(_ frame: ReceivedFrame, from identity: PeerIdentity, _ parts: ClusterParts) {
        let peer = Self.drainer(identity)
        switch frame.message {
        case .append(let part): append(part, frame, from: peer, parts)
        case .durable(let answer):
            if let member = replicator.durable(answer, from: peer.node) {
                parts.spool.durable(answer.segment, on: member, upTo: answer.upTo)
            }
        case .created(let answer): replicator.created(answer, from: peer.node)
        case .create(let question): create(question, from: peer, parts)
        case .outcome(let records) where records.isLate:
            if takesLate(records) {
                mailbox.deliver(CollectionOfOne(.run { $0.lateOutcomes(records, from: peer) }))
            }
        case .outcome(let records): record(records, from: peer, parts)
        case .recorded(let answer):
            tell(
                .recorded(
                    answer.segment, epoch: answer.epoch, memory: answer.memory, synced: answer.synced, from: peer))
        case .fetch(let question): fetch(question, from: peer, parts)
        case .chunk(let octets): mailbox.deliver(CollectionOfOne(.run { $0.received(octets, from: peer) }))
        case .seal(let question): tell(.sealAsked(question.segment, epoch: question.epoch, from: peer))
        case .sealed(let answer): sealed(answer, from: peer)
        case .finished(let question): tell(.finishedAsked(question.segment, from: peer))
        case .unlinked(let answer):
            tell(
                .unlinkedElsewhere(answer.segment, disk: answer.disk, revision: answer.revision, from: peer))
        case .promiseAsked(let question):
            let items = question.items.map { PromiseItem(segment: $0.segment, epoch: $0.epoch) }
            tell(
                .promiseAsked(
                    items, number: question.number, sentAt: question.askedAt.nanoseconds, from: peer))
        case .promise(let answer):
            let items = answer.items.map { PromiseItem(segment: $0.segment, epoch: $0.epoch) }
            tell(.promised(items, sentAt: answer.askedAt, from: peer))
        case .submit, .submitted, .ask: handlers.submit(frame, identity)
        case .quota(let quota): handlers.quota(quota, identity)
        case .query(let query): handlers.query(query, identity)
        case .answer(let answer): handlers.answer(answer, identity)
        case .hello, .ready, .ping, .pong, .credit, .goodbye, .error: break
        }
    }

    // MARK: The backup's side

    private func create(_ question: Create, from peer: Drainer, _ parts: ClusterParts) {
        guard question.segment.writer == peer.node, question.segment.incarnation == peer.incarnation else { return }
        let (me, disk, transport) = (settings.me, settings.disk, transport)
        parts.copies.create(question.segment, reserve: question.reserve) { [self] creation in
            let status: Created.Status =
                switch creation {
                case .created: .created
                case .noRoom: .noRoom
                case .refused: .refused
                case .failed: .failed
                }
            if status == .created { tell(.copyCreated(question.segment)) }
            let answer = Created(
                segment: question.segment, epoch: question.epoch, incarnation: me.incarnation, disk: disk,
                status: status)
            _ = transport.send([.created(answer)], to: peer.node)
        }
    }

    private func append(_ part: Append, _ frame: ReceivedFrame, from peer: Drainer, _ parts: ClusterParts) {
        let step = joiners.withLock { joiners in
            if joiners.count > 4 * PeerLimits.nodes { joiners.removeAll() }
            return joiners[frame.session, default: ChunkJoiner(limit: joinerLimit)].add(part)
        }
        switch step {
        case .more, .refused: transport.release(frame.cost, of: frame.session)
        case .chunk(let chunk, let offset):
            guard part.segment.writer == peer.node, part.segment.incarnation == peer.incarnation else {
                return transport.release(frame.cost, of: frame.session)
            }
            parts.copies.append(part.segment, at: offset, chunk) { [self] answer in
                transport.release(frame.cost, of: frame.session)
                self.answer(answer, part.segment, part.epoch, to: peer.node)
            }
        }
    }

    private func answer(_ answer: CopyAppend, _ id: SegmentID, _ epoch: UInt64, to node: NodeID) {
        func durable(_ upTo: Int64, _ status: Durable.Status) -> PeerMessage {
            .durable(
                Durable(
                    segment: id, epoch: epoch, upTo: upTo, incarnation: settings.me.incarnation, status: status))
        }
        switch answer {
        case .durable(let upTo): _ = transport.send([durable(upTo, .durable)], to: node)
        case .noRoom(let upTo): _ = transport.send([durable(upTo, .noRoom)], to: node)
        case .failed(let upTo): _ = transport.send([durable(upTo, .failed)], to: node)
        case .sealed(let epoch): _ = transport.send([.sealed(without(.higherEpoch, id, epoch))], to: node)
        // Nothing is said: the writer replaces a backup that does not answer.
        case .ignored: break
        }
    }

    private func record(_ records: OutcomeRecords, from peer: Drainer, _ parts: ClusterParts) {
        let id = records.segment
        drainers.withLock { drainers in
            if drainers.count > 100_000 { drainers.removeAll() }
            drainers[id] = peer.node
        }
        parts.copies.recordOutcomes(id, epoch: records.epoch, from: records.from, records.records) { [self] answer in
            switch answer {
            case .recorded(let memory, let synced), .gap(let memory, let synced):
                _ = transport.send(
                    [
                        .recorded(
                            Recorded(
                                segment: id, epoch: records.epoch, memory: memory, synced: synced,
                                incarnation: settings.me.incarnation))
                    ], to: peer.node)
            case .sealed(let epoch): _ = transport.send([.sealed(without(.higherEpoch, id, epoch))], to: peer.node)
            case .missing: _ = transport.send([.sealed(without(.missing, id, records.epoch))], to: peer.node)
            case .failed: _ = transport.send([.sealed(without(.failed, id, records.epoch))], to: peer.node)
            }
        }
    }

    /// What a member says that has no copy to speak of.
    private func without(_ status: Sealed.Status, _ id: SegmentID, _ epoch: UInt64) -> Sealed {
        Sealed(
            segment: id, epoch: epoch, length: nil, logLength: nil, incarnation: settings.me.incarnation,
            status: status, hasInvalidTail: false)
    }

    private func fetch(_ question: Fetch, from peer: Drainer, _ parts: ClusterParts) {
        let content: CopyContent =
            switch question.part {
            case .segment: .chunks
            case .outcomes: .outcomeEntries
            case .chunk: .chunk
            }
        let most = min(question.atMost, PeerLimits.partOctets)
        parts.copies.read(question.segment, content, from: question.from, atMost: most) { [transport] read in
            var answer = BatonPeer.CopyPart(
                request: question.request, segment: question.segment, epoch: question.epoch, offset: question.from,
                part: question.part, status: .octets, isLast: true, octets: ByteBuffer())
            switch read {
            case .octets(let octets, _): answer.octets = octets
            case .missing: answer.status = .missing
            case .damaged: answer.status = .damaged
            case .failed: answer.status = .failed
            }
            _ = transport.send([.chunk(answer)], to: peer.node)
        }
    }

    private func sealed(_ answer: Sealed, from peer: Drainer) {
        let report: MemberReport
        switch answer.status {
        case .sealed:
            report = .sealed(
                end: max(0, answer.length ?? 0), tailInvalid: answer.hasInvalidTail || answer.length == nil,
                outcomeOctets: max(0, answer.logLength ?? 0))
        case .higherEpoch:
            replicator.ended(answer.segment)
            return tell(.superseded(answer.segment, epoch: answer.epoch))
        case .missing: report = .missing
        case .failed: report = .failed
        }
        tell(.reported(answer.segment, epoch: answer.epoch, report, from: peer))
    }
}
