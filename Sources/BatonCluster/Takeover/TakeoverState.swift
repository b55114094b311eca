// One node of a cluster in production: registered segments, claims, promises, copies, as a pure value. The messages are the spool's.
import BatonCore
import BatonModel
import BatonSpool

/// The rules of takeover, permission, settled outcomes, copies and deletion (PROTOCOL) at the grain of segments.
///
/// The simulator's `ClusterState` holds the same rules together with those of messages; both share keys, the view of the registry
/// and the promise book. The shell (`ClusterRuntime`) performs the actions in order, reports every result, and calls `tick` about every
/// 100 ms. Nothing in it survives a crash: an incarnation begins with `started`.
package struct TakeoverState: StateMachine {
    package typealias Event = TakeoverEvent
    package typealias Action = TakeoverAction

    package let me: Drainer
    package let member: EnsembleMember
    let timing: TakeoverTiming
    /// How many copies a segment is to have (`cluster.min_copies`).
    let wantedCopies: Int
    var random: SplitMix64
    var now = Instant.epoch
    var actions = ActionBuffer<Action>()

    package private(set) var registry = RegistryView()
    var promises: PromiseBook
    var drains = Table<SegmentID, DrainedSegment>()
    /// Files on this disk that the spool does not hold.
    var copies = Table<SegmentID, Bool>()
    /// Highest epoch at which a copy here was asked to be sealed.
    var fences = Table<SegmentID, UInt64>()
    /// SEAL requests of others whose fsync is under way.
    var sealingFor = Table<SegmentID, [SealRequest]>()
    var finishing = Table<SegmentID, Finished>()
    /// Files whose unlink was handed to the disk.
    var unlinking = Table<SegmentID, Bool>()
    /// Replaced copies whose outcomes the drainer is to have before they go (T5).
    var leavingCopies = Table<SegmentID, LeavingCopy>()
    /// Who asked whether a finished segment's file has gone, before the key was read here.
    var confirming = Table<SegmentID, NodeID>()
    /// Requests under way; each is answered once.
    private var reading = Table<SegmentID, Bool>()
    private var removing = Table<SegmentID, Bool>()
    var orphanedSince = Table<SegmentID, Instant>()
    var incarnations = Table<NodeID, Incarnation>()
    /// At most one at a time.
    var cleaning: SegmentCleaning?

    var registered = false
    /// What lies on this disk was looked through.
    var knowsCopies = false
    var stopped = false
    /// This node leaves for good: whatever it claimed now would have to be claimed again.
    var leaving = false
    var promiseAskedAt = Instant.epoch
    private var listSentAt: Instant?
    private var listUnderWay = false
    var listWanted = false

    struct SealRequest: Hashable, Sendable {
        let epoch: UInt64
        let from: NodeID
    }

    /// A finished segment whose key waits for everybody's file to go (C3).
    struct Finished: Hashable, Sendable {
        var selfGone = false
        var confirmed: [EnsembleMember] = []
        var askedAt = Instant.epoch
    }

    /// A copy that another member has replaced.
    struct LeavingCopy: Hashable, Sendable {
        /// Of the first try.
        var since: Instant?
        var triedAt: Instant?
        var underWay = false
        /// What this drainer has of it.
        var drainer: Drainer?
        var pieces = 0
        /// All is told, or it was given up.
        var told = false
    }

    package init(
        me: Drainer, disk: UInt64, copies: Int = 2, timing: TakeoverTiming = TakeoverTiming(), seed: UInt64,
        at now: Instant
    ) {
        self.wantedCopies = copies
        self.me = me
        self.member = EnsembleMember(node: me.node, diskID: disk)
        self.timing = timing
        self.random = SplitMix64(seed: seed)
        // T3: as if it had just given a promise to everybody.
        self.promises = PromiseBook(quietUntil: now + timing.promise)
        self.now = now
    }

    package mutating func receive(_ event: Event, at now: Instant, into output: inout ActionBuffer<Action>) {
        guard !stopped else { return }
        self.now = max(self.now, now)
        swap(&actions, &output)
        defer { swap(&actions, &output) }
        switch event {
        case .started(let ids):
            for id in ids { copies[id] = true }
            knowsCopies = true
        case .registered:
            registered = true
            list()
        case .leaseLost: restart(.leaseLost)
        case .registryChanged: restart(.registryChanged)
        case .leaving: leaving = true
        case .tick: tick()
        case .hint: listWanted = true
        case .control(let request, let answer): answered(request, answer)
        case .met(let peer): meet(peer)
        case .copyCreated(let id): copies[id] = true
        case .promiseAsked(let items, let number, let sentAt, let peer): promise(items, number, sentAt, to: peer)
        case .promised(let items, let sentAt, let peer): promised(items, sentAt, by: peer)
        case .sealAsked(let id, let epoch, let peer): sealAsked(id, epoch, by: peer)
        case .reported(let id, let epoch, let report, let peer): reported(id, epoch, report, by: peer)
        case .copySealed(let id, let epoch, let seal): sealed(id, epoch, seal)
        case .outcomesFetched(let id, let epoch, let other, let complete): fetched(id, epoch, other, complete)
        case .repaired(let id, let epoch, let complete): repaired(id, epoch, complete)
        case .mended(let id, let epoch, let repair): mended(id, epoch, repair)
        case .adopted(let id, let epoch, let success): adopted(id, epoch, success)
        case .outcomesAdvanced(let id, let epoch, let end, let synced): advanced(id, epoch, end, synced)
        case .recorded(let id, let epoch, let memory, let synced, let peer):
            recorded(id, epoch, memory, synced, by: peer)
        case .superseded(let id, let epoch): overtaken(id, by: epoch)
        case .keyStored(let key): learn(key, own: true)
        case .drained(let id):
            drains[id]?.drained = true
            tickChanges(id)
        case .cleanable(let ids, let target): beginCleaning(ids, into: target)
        case .moved(let id, let epoch, let landed): moved(id, epoch, landed)
        case .moveSettled(let id, let epoch, let end): moveSettled(id, epoch, end)
        case .finishedAsked(let id, let peer): confirm(id, to: peer)
        case .unlinked(let id, let gone): unlinked(id, gone)
        case .lateOutcomesSent(let id, let pieces, let all): lateOutcomesSent(id, pieces, all)
        case .unlinkedElsewhere(let id, let disk, let revision, let peer):
            confirmed(id, disk, at: revision, by: peer)
        case .copied(let id, let epoch, let other, let complete): copied(id, epoch, other, complete)
        }
    }

    // MARK: Small helpers

    mutating func control(_ request: ControlRequest) { actions.append(.control(request)) }

    /// Once at a time for each key. What is left out at the bound is asked for again by its tick, or seen by the next listing.
    mutating func read(_ id: SegmentID) {
        guard reading[id] == nil, reading.count < timing.requests else { return }
        reading[id] = true
        control(.read(id))
    }

    /// As `read`: what is left out is due again after `finishRetry`.
    mutating func remove(_ key: SegmentKey) {
        guard removing[key.id] == nil, removing.count < timing.requests else { return }
        removing[key.id] = true
        control(.remove(key))
    }

    mutating func restart(_ reason: ClusterState.RestartReason) {
        stopped = true
        actions.append(.restart(reason))
    }

    /// The member of the segment that the peer is, by the key as known. A node that came back with a new disk may stand there twice,
    /// with the lost disk and as the one that joins: it is the one that it is registered with.
    func member(of node: NodeID, in id: SegmentID) -> EnsembleMember? {
        guard let key = registry.keys[id] else { return nil }
        let named = (key.ensemble + [key.joining].compactMap { $0 }).filter { $0.node == node }
        return named.count > 1 ? named.first { registry.isAlive($0) } ?? named.first : named.first
    }

    func isMember(of key: SegmentKey) -> Bool { key.ensemble.contains(member) || key.joining == member }

    /// It was replaced by another member, or given up while it joined.
    func hasNoPart(in key: SegmentKey) -> Bool { !isMember(of: key) && key.former.contains(member) }

    // MARK: Time

    private mutating func tick() {
        guard registered else { return }
        if !listUnderWay {
            let due = listSentAt.map { $0 + (listWanted ? timing.listSoon : timing.list) } ?? now
            if now >= due { list() }
        }
        for id in registry.toRead { read(id) }
        tickPromises()
        for id in drains.keys {
            tickTakeover(id)
            tickOutcomes(id)
            tickChanges(id)
            tellWhole(id)
            tell(id)
        }
        tickCleaning()
        clearTargets()
        tickFinishing()
        tickLeaving()
        for id in confirming.keys { read(id) }
        promises.prune(before: now)
    }

    private mutating func list() {
        listSentAt = now
        listUnderWay = true
        listWanted = false
        control(.list)
    }

    // MARK: Control plane

    private mutating func answered(_ request: ControlRequest, _ answer: ControlAnswer) {
        switch (request, answer) {
        case (.list, .listed(let listing)):
            listUnderWay = false
            listed(listing)
        case (.list, _):
            listUnderWay = false
            listWanted = true
        case (.read(let id), .key(let key)):
            reading[id] = nil
            registry.read(id)
            if let key { learn(key, own: false) } else { absent(id) }
            if confirming[id] != nil { confirmRead(id) }
        case (.read(let id), _): reading[id] = nil
        case (.store(let key, _), .committed(let stored?)):
            registry.end(key.id)
            if stored.drainer == me, let known = registry.keys[key.id], known.drainer != me {
                actions.append(.tookOver(key.id, from: known.drainer))
            }
            learn(stored, own: true)
        case (.store(let key, _), .refused(let current, let condition)):
            registry.end(key.id)
            // A condition that does not hold says nothing of the key.
            if let current {
                learn(current, own: false)
            } else if key.revision > 0, !condition {
                absent(key.id)
            }
            listWanted = true
        case (.store(let key, _), .unknown): registry.unknown(key.id)
        case (.store(let key, _), _): registry.end(key.id)
        case (.remove(let key), .committed):
            removing[key.id] = nil
            absent(key.id)
        case (.remove(let key), .refused(let current, _)):
            removing[key.id] = nil
            if let current { learn(current, own: false) } else { absent(key.id) }
        case (.remove(let key), _): removing[key.id] = nil
        case (.register, _), (.keepAlive, _): break
        }
    }

    private mutating func listed(_ listing: Listing) {
        registry.listed(listing, at: now)
        for id in registry.gone(in: listing) { absent(id) }
        for key in listing.keys { learn(key, own: false) }
        // T4 at work: a key may name this node although it never saw its own change land.
        for key in listing.keys { resume(key.id) }
        dropUnregistered(listing)
        claimOrphans()
    }

    /// The only place where news of a key are acted on.
    mutating func learn(_ key: SegmentKey, own: Bool) {
        let before = registry.keys[key.id]?.drainer
        guard registry.learn(key) else { return }
        let mine = key.drainer == me
        // Before its files are asked to go: references lead to the copies by then.
        learnMove(key)
        if let drain = drains[key.id], !mine || drain.epoch != key.drainEpoch { dropDrain(key.id) }
        if mine, drains[key.id] == nil { beginDrain(key, former: before == me ? nil : before) }
        if key.state == .finished {
            if mine { sayWhole(key.id) }
            drains[key.id] = nil
            // One with a target waits for the rest of the listing, which may have the target.
            if mine { beginFinishing(key) } else if key.target == nil { unlinkCopy(key.id) }
        }
        // Replaced by another member: the file is of no use any more.
        if key.state != .finished, !mine, hasNoPart(in: key) { unlinkCopy(key.id) }
        if drains[key.id] != nil {
            tickTakeover(key.id)
            tell(key.id)
        }
    }

    /// T4: a takeover that landed late has an owner. Files of a source go once nobody can ask what became of its mail.
    private mutating func resume(_ id: SegmentID) {
        guard let key = registry.keys[id] else { return }
        guard key.drainer == me else {
            if key.state == .finished { unlinkCopy(id) }
            return
        }
        if key.state == .finished {
            if finishing[id] == nil { beginFinishing(key) }
        } else if drains[id] == nil {
            beginDrain(key, former: nil)
        }
    }

    /// The key is gone: the segment was finished, and all members had confirmed (C3).
    mutating func absent(_ id: SegmentID) {
        registry.forget(id)
        moveGone(id)
        finishing[id] = nil
        if drains[id] != nil { dropDrain(id) }
        if confirming[id] != nil { confirmRead(id) }
    }

    /// Changes one key by compare-and-set; nothing happens while another change of it is under way.
    mutating func change(
        _ id: SegmentID, if condition: ControlRequest.Condition = .none, _ edit: (inout SegmentKey) -> Void
    ) {
        guard var key = registry.keys[id], !registry.isBusy(id) else { return }
        // The rest is due again at the next tick, or after the next listing.
        guard registry.changes.count < timing.requests else { return listWanted = true }
        edit(&key)
        guard registry.begin(key) else { return }
        control(.store(key, condition))
    }

    /// Files whose key was never written, and can never be: the writer's run is over (A4). The shell checks that they are empty.
    private mutating func dropUnregistered(_ listing: Listing) {
        for id in copies.keys where registry.keys[id] == nil && unlinking[id] == nil {
            // What this run writes may be on its way into the control plane.
            guard Drainer(node: id.writer, incarnation: id.incarnation) != me else { continue }
            let lives = listing.nodes.contains { $0.node == id.writer && $0.incarnation == id.incarnation }
            if !lives, copies[id] == true {
                copies[id] = false
                actions.append(.dropIfEmpty(id))
            }
        }
    }
}
