// The thread's own state: `TakeoverState`, fetches and copies under way; performs actions.
import BatonCore
import BatonModel
import BatonPeer
import BatonRuntime
import BatonSpool
import DequeModule
import NIOCore
import Synchronization

/// Bounds of the driver (docs/LIMITS.md, "Cluster").
package enum DriverLimits {
    /// Octets of one FETCH, and of one piece of a copy.
    package static let pieceOctets = ByteCount.mebi
    /// Pieces given to a joining member within 100 ms: 40 MiB/s. Pieces of late outcomes in one try.
    package static let piecesPerTick = 4
    /// A FETCH without an answer for so long has failed.
    package static let fetchDeadline = TimeSpan.seconds(3)
    /// Outcome entries of one member that a takeover takes into memory.
    package static let outcomeOctets = 64 * ByteCount.mebi
    /// Late outcomes of former drainers that wait here.
    package static let lateOctets = 16 * ByteCount.mebi
    /// A node that leaves waits no longer for its outcomes to be settled. Longer than it takes to mark a member stale that takes none
    /// (`TakeoverTiming.behind`), and than the pause before a session with a node that has just restarted is opened again.
    package static let settleWait = TimeSpan.seconds(5)
    /// Runs of nodes that are gone and may be asked about.
    package static let goneRuns = 64
    /// What was seen of the registry is written to the disk no more often.
    package static let markPause = TimeSpan.seconds(1)
    /// A registry that is not believed is listed no more often.
    package static let distrustPause = TimeSpan.seconds(1)
    /// A node counts on in the registry no more often.
    package static let tallyPause = TimeSpan.seconds(5)
    /// Takeovers that status tells of.
    package static let notices = 100
}

/// A value owned by the cluster's thread.
struct ClusterDriver: Sendable {
    let runtime: ClusterRuntime
    let parts: ClusterParts?
    var state: TakeoverState
    var fetches = FetchRuns()
    var copies = CopyRuns()
    var repairs = RepairState()
    /// Chunks that a takeover waits for, with its epoch.
    var takeoverMends: [DamagedChunk: UInt64] = [:]
    var gathered = GatheredOutcomes()
    /// Late outcomes of segments that are not read yet; within `DriverLimits.lateOctets`.
    var early: [OutcomeRecords] = []
    private var permits: [SegmentID: Instant] = [:]
    private var marks: [SegmentID: Marks] = [:]
    private var logs: [SegmentID: (epoch: UInt64, file: OutcomeFile)] = [:]
    private var number: UInt64 = 0
    /// A listing was not believed: the next one is asked for after a pause.
    private var distrust = DistrustPause()
    private var listedRuns: Set<Drainer> = []
    private var goneRuns: [Drainer] = []

    init(runtime: ClusterRuntime, parts: ClusterParts) {
        self.runtime = runtime
        self.parts = parts
        self.state = TakeoverState(
            me: runtime.settings.me, disk: runtime.settings.disk, copies: runtime.settings.copies,
            seed: runtime.settings.me.incarnation.value,
            at: runtime.time.now())
    }

    // MARK: Work

    mutating func perform(_ work: ClusterRuntime.Work) {
        switch work {
        case .event(let event): receive(event)
        case .view(let view): take(view)
        case .setBack(let view): takeSetBack(view)
        case .run(let action): action(&self)
        }
    }

    mutating func receive(_ event: TakeoverEvent) {
        var actions = ActionBuffer<TakeoverAction>()
        state.receive(event, at: runtime.time.now(), into: &actions)
        for action in actions.drain() { perform(action) }
    }

    mutating func tick(at now: Instant) {
        if distrust.isOver(at: now) { receive(.control(.list, .unknown)) }
        receive(.tick)
        let keys = state.registry.keys
        runtime.remember(RegistryTally.Extent(keys), at: now)
        runtime.replicator.tick(at: now)
        runtime.permission.tick(at: now)
        for (id, until) in permits { permit(id, until) }
        for run in fetches.overdue(at: now) { end(run, complete: false) }
        mend(.tick)
        for id in copies.segments { advanceCopy(id) }
        let drains = state.drains
        gathered.keep { id, epoch in drains[id]?.epoch == epoch && drains[id]?.phase != .ready }
        takeEarly()
        tellScanned()
        runtime.handlers.tick()
    }

    /// Runs that were listed and are no more; the newest last.
    private mutating func noteGone(_ view: ClusterView) {
        let live = Set(view.nodes.compactMap(\.run))
        for run in listedRuns where !live.contains(run) && !goneRuns.contains(run) { goneRuns.append(run) }
        goneRuns.removeAll { live.contains($0) }
        if goneRuns.count > DriverLimits.goneRuns { goneRuns.removeFirst(goneRuns.count - DriverLimits.goneRuns) }
        listedRuns = live
    }

    private func tellScanned() {
        let keys = state.registry.keys.values
        for run in goneRuns {
            let complete = keys.allSatisfy { key in
                guard key.id.writer == run.node, key.id.incarnation == run.incarnation, key.state != .finished else {
                    return true
                }
                if key.drainer == state.me { return state.drains[key.id]?.phase == .ready }
                return state.registry.isAlive(key.drainer)
            }
            runtime.handlers.scanned(run, complete)
        }
    }

    private mutating func take(_ view: ClusterView) {
        let me = runtime.settings.me.node
        noteGone(view)
        runtime.trusts()
        meet(view)
        runtime.replicator.update(
            candidates: view.nodes.compactMap { node in
                guard node.node != me, node.state == .serving || node.state == .joining, let member = node.member,
                    !view.listing.forgotten.contains(member)
                else { return nil }
                return BackupCandidate(member: member, failureDomain: node.failureDomain)
            }.sorted { $0.member < $1.member })
        runtime.handlers.membership(view)
        receive(.control(.list, .listed(view.listing)))
    }

    private func meet(_ view: ClusterView) {
        runtime.view = view
        runtime.transport.peers(
            view.nodes.compactMap { node in
                guard let run = node.run, let address = PeerAddress(node.address) else { return nil }
                return PeerEndpoint(
                    name: node.id, incarnation: run.incarnation, address: address,
                    revision: UInt64(max(0, view.revisions[node.node] ?? 0)))
            })
    }

    /// The nodes meet, for `recover-registry`; the rules learn nothing (docs/decisions/0010).
    private mutating func takeSetBack(_ view: ClusterView) {
        runtime.distrust()
        meet(view)
        distrust.begin(at: runtime.time.now())
    }

    // MARK: Actions

    private mutating func perform(_ action: TakeoverAction) {
        let (transport, mailbox) = (runtime.transport, runtime.mailbox)
        switch action {
        case .control(.list):
            runtime.agent.list { listing in
                let work: ClusterRuntime.Work =
                    switch listing {
                    case .view(let view): .view(view)
                    case .setBack(let view): .setBack(view)
                    case .nothing: .event(.control(.list, .unknown))
                    }
                mailbox.deliver(CollectionOfOne(work))
            }
        case .control(let request):
            runtime.agent.perform(request) { answer in
                mailbox.deliver(CollectionOfOne(.event(.control(request, answer))))
            }
        case .askPromises(let items, let node): askPromises(items, of: node)
        case .promise(let items, let number, let sentAt, let node):
            let promise = BatonPeer.Promise(
                number: number, askedAt: Instant(nanoseconds: sentAt), span: state.timing.promise,
                items: items.map { BatonPeer.PromiseItem(segment: $0.segment, epoch: $0.epoch) })
            _ = transport.send([.promise(promise)], to: node)
        case .seal(let id, let epoch):
            parts?.copies.seal(id, epoch: epoch) { seal in
                mailbox.deliver(CollectionOfOne(.event(.copySealed(id, epoch: epoch, seal))))
            }
        case .askSeal(let id, let epoch, let node):
            _ = transport.send([.seal(Seal(segment: id, epoch: epoch))], to: node)
        case .answerSeal(let id, let epoch, let seal, let node): answerSeal(id, epoch, seal, to: node)
        case .fetchOutcomes(let id, let epoch, let member, _):
            begin(FetchRun(segment: id, epoch: epoch, member: member, purpose: .outcomes, offset: 0, askedAt: .epoch))
        case .repair(let id, let epoch, let member, let start, let upTo):
            begin(
                FetchRun(
                    segment: id, epoch: epoch, member: member, purpose: .repair(upTo: upTo), offset: start,
                    askedAt: .epoch))
        case .mend(let id, let epoch, let offset, let end, let members):
            mend(id, epoch, at: offset, upTo: end, of: members)
        case .adopt(let key): adopt(key)
        case .permit(let id, let until):
            permits[id] = until
            permit(id, until)
        case .sendOutcomes(let id, let epoch, let member, let from, let upTo):
            sendOutcomes(id, epoch, to: member, from: from, upTo: upTo)
        case .settled(let id, let epoch, let upTo): settled(id, epoch, upTo)
        case .sendLateOutcomes(let id, let epoch, let node, let pieces):
            sendLateOutcomes(id, epoch, to: node, after: pieces)
        case .copy(let key, let joiner):
            guard let length = key.sealedAt else { return }
            copies.begin(key, to: joiner, length: length)
            advanceCopy(key.id)
        case .move(let key): runtime.takeovers.deliver(CollectionOfOne(.move(key)))
        case .settleMove(let id, let epoch, let target, let alive):
            // From here on the members of the target promise for what was moved (P1). At once: the source is forgotten by the next
            // action, and with it what leads to it from segments that were moved into it before.
            if alive, let old = parts?.handle(id), let new = parts?.handle(target) {
                runtime.permission.moved(old, to: new)
            }
            runtime.takeovers.deliver(
                CollectionOfOne(.settleMove(id, epoch: epoch, into: target, alive: alive)))
        case .askFinished(let id, let epoch, let node):
            _ = transport.send([.finished(Finished(segment: id, epoch: epoch))], to: node)
        case .answerUnlinked(let id, let revision, let node):
            let answer = Unlinked(segment: id, revision: revision, disk: runtime.settings.disk)
            if node == runtime.settings.me.node { return }
            _ = transport.send([.unlinked(answer)], to: node)
        case .unlink(let id): release(id)
        case .stopWriting(let id):
            runtime.replicator.ended(id)
            parts?.spool.stopWriting(id)
        case .dropIfEmpty(let id): parts?.copies.unlinkIfEmpty(id)
        case .tookOver(let id, let former):
            runtime.notices.withLock { notices in
                notices.append(TakeoverNotice(segment: id, from: former, at: runtime.time.now()))
                if notices.count > DriverLimits.notices { notices.removeFirst() }
            }
        case .whole(let id): if let handle = parts?.handle(id) { runtime.handlers.whole(handle) }
        case .restart(let reason):
            // The next run has to know as much as this one: it judges by it.
            runtime.saveMark()
            runtime.onRestart(reason)
        }
    }

    private mutating func askPromises(_ items: [PromiseItem], of node: NodeID) {
        var rest = items[...]
        while !rest.isEmpty {
            number &+= 1
            let asked = PromiseAsked(
                number: number, askedAt: runtime.time.now(),
                items: rest.prefix(PeerLimits.promiseItems).map {
                    BatonPeer.PromiseItem(segment: $0.segment, epoch: $0.epoch)
                })
            rest = rest.dropFirst(PeerLimits.promiseItems)
            _ = runtime.transport.send([.promiseAsked(asked)], to: node)
        }
    }

    private func answerSeal(_ id: SegmentID, _ epoch: UInt64, _ seal: CopySeal, to node: NodeID) {
        var answer = Sealed(
            segment: id, epoch: epoch, length: nil, logLength: nil, incarnation: runtime.settings.me.incarnation,
            status: .sealed, hasInvalidTail: false)
        switch seal {
        case .sealed(let report):
            answer.length = report.end
            answer.logLength = report.outcomeOctets
            answer.hasInvalidTail = report.tailInvalid
        case .superseded(let higher):
            answer.epoch = higher
            answer.status = .higherEpoch
        case .missing: answer.status = .missing
        case .failed: answer.status = .failed
        }
        _ = runtime.transport.send([.sealed(answer)], to: node)
    }

    private mutating func adopt(_ key: SegmentKey) {
        let others = gathered.entries(key.id, epoch: key.drainEpoch)
        // Only a drainer that is this very node has its event log here.
        let mayBeLost = key.id.writer != runtime.settings.me.node
        runtime.takeovers.deliver(
            CollectionOfOne(
                .adopt(
                    Adoption(
                        key: key, others: others, eventsMayBeLost: mayBeLost, mayRepeat: state.mayRepeat(key.id)))))
    }

    private func permit(_ id: SegmentID, _ until: Instant?) {
        guard let handle = parts?.handle(id) else { return }
        runtime.permission.permit(handle, until: until)
    }

    /// Files go on the takeover thread's side of the spool; the answer comes back as an event.
    private mutating func release(_ id: SegmentID) {
        logs[id] = nil
        permits[id] = nil
        marks[id] = nil
        guard let parts else { return }
        if let handle = parts.handle(id) {
            runtime.permission.forget(handle)
            // The copies' thread lets go of what it has open first, so that nothing writes into what the spool removes.
            let takeovers = runtime.takeovers
            parts.copies.unlink(id) { _ in takeovers.deliver(CollectionOfOne(.release(id))) }
            return
        }
        let mailbox = runtime.mailbox
        parts.copies.unlink(id) { gone in mailbox.deliver(CollectionOfOne(.event(.unlinked(id, gone: gone)))) }
    }

    // MARK: Outcomes

    /// Where the log of a segment stood when so many outcomes had been recorded; the ones that are not settled yet.
    struct Marks: Sendable {
        var epoch: UInt64
        var waiting = Deque<(end: Int64, taken: Int)>()
        /// Outcomes that the window was told of.
        var told = 0
    }

    mutating func outcomesAdvanced(_ id: SegmentID, _ epoch: UInt64, end: Int64, synced: Int64, taken: Int) {
        if marks[id]?.epoch != epoch { marks[id] = Marks(epoch: epoch) }
        if taken > marks[id]?.waiting.last?.taken ?? marks[id]?.told ?? 0 { marks[id]?.waiting.append((end, taken)) }
        receive(.outcomesAdvanced(id, epoch: epoch, end: end, synced: synced))
        settled(id, epoch, state.drains[id]?.settledSaid ?? 0)
    }

    /// Segments with outcomes that are not settled.
    var unsettledLogs: Int { state.drains.values.count { $0.settledSaid < $0.logEnd } }

    /// P3: places of the window whose outcomes are settled are free.
    private mutating func settled(_ id: SegmentID, _ epoch: UInt64, _ upTo: Int64) {
        guard var mark = marks[id], mark.epoch == epoch, let handle = parts?.handle(id) else { return }
        let before = mark.told
        while let first = mark.waiting.first, first.end <= upTo {
            mark.told = first.taken
            mark.waiting.removeFirst()
        }
        marks[id] = mark
        if mark.told > before { runtime.permission.settled(handle, outcomes: mark.told - before) }
    }

    private mutating func sendOutcomes(
        _ id: SegmentID, _ epoch: UInt64, to member: EnsembleMember, from: Int64, upTo: Int64
    ) {
        guard let parts else { return }
        if logs[id]?.epoch != epoch {
            let path = "\(runtime.settings.segmentsPath)/\(SegmentName(id).outcomeFile(epoch: epoch))"
            logs[id] = (epoch, OutcomeFile(path: path, disk: parts.disk))
            if logs.count > 256 { logs = logs.filter { $0.key == id } }
        }
        guard let file = logs[id]?.file else { return }
        var offset = from
        repeat {
            let count = Int(min(upTo - offset, Int64(PeerLimits.outcomeOctets)))
            guard let octets = file.read(from: offset, count: count), octets.readableBytes > 0 else { return }
            let records = OutcomeRecords(
                segment: id, epoch: epoch, from: offset, count: max(1, octets.readableBytes / 16), records: octets)
            guard runtime.transport.send([.outcome(records)], to: member.node) else { return }
            offset += Int64(octets.readableBytes)
        } while offset < upTo
    }
}
