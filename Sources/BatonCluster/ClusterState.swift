// One node of the cluster as a pure value: events in, actions out. The rules are in PROTOCOL; each is cited at its guard.
import BatonCore
import BatonModel
import BatonSpool

/// Append, backup, takeover, permission, outcomes, copies, cleaning and submit of one incarnation of one node.
///
/// The shell performs the actions in order, reports every result (failures and unknowns too) and calls `tick` about every
/// 100 ms. What survives a crash is what the disk operations wrote; a new incarnation begins with `started`.
package struct ClusterState: StateMachine {
    package enum Event: Hashable, Sendable {
        /// The first event: what the disk holds.
        case started([SegmentID], [CopyScan])
        case tick
        /// A client's message, and the node that placement prefers for it.
        case mail([MailPart])
        case disk(DiskOperation, DiskResult)
        case control(ControlRequest, ControlAnswer)
        case frame(Frame, from: Drainer)
        case answered(Dot, ReceiverAnswer)
    }

    package enum Action: Hashable, Sendable {
        case disk(DiskOperation)
        case control(ControlRequest)
        case send(Frame, to: NodeID)
        /// 250, or 451.
        case reply(MessageID, accepted: Bool)
        /// The final dot may go. Permission is checked now: performed at once or not at all.
        case dot(Dot)
        /// A final outcome of a recipient, at its position in this epoch's outcome log.
        case final(SegmentID, epoch: UInt64, position: Int, JobOutcome, MailRecord)
        /// So many records of this epoch's outcome log are settled (P3). May fall.
        case settled(SegmentID, epoch: UInt64, Int)
        /// What may arrive twice, and is counted.
        case maybeDuplicate(MailRecord)
        /// End this incarnation and start another (T2; a dead lane).
        case restart(RestartReason)
    }

    package enum RestartReason: Hashable, Sendable { case leaseLost, diskFailed, registryChanged }

    package let me: Drainer
    package let member: EnsembleMember
    let timing: ClusterTiming
    let guards: Guards
    var random: SplitMix64
    var now = Instant.epoch
    var actions = ActionBuffer<Action>()

    var registry = RegistryView()
    var copies = Table<SegmentID, Copy>()
    var append = AppendRole()
    var drains = Table<SegmentID, Drain>()
    var finishing = Table<SegmentID, Finishing>()
    var promises: PromiseBook
    var submits = SubmitBook()
    var incarnations = Table<NodeID, [Incarnation]>()
    /// Reports that a taker asked for and whose seal or scan is under way.
    var reporting = Table<SegmentID, (to: NodeID, epoch: UInt64)>()
    /// Final outcomes of dots whose segment this node no longer drains (T5).
    var late = Table<SegmentID, [JobOutcome]>()
    var orphanedSince = Table<SegmentID, Instant>()
    /// Asked about a finished segment's file before it was read here that it is finished.
    var confirming = Table<SegmentID, NodeID>()
    /// Files whose unlink was handed to the disk.
    var unlinking = Table<SegmentID, Bool>()

    var registered = false
    var stopped = false
    var keepAliveAt = Instant.epoch
    var listSentAt = Instant.epoch
    var listUnderWay = false
    var listSoon = false
    var promiseAskedAt = Instant.epoch

    package init(
        me: Drainer, disk: UInt64, timing: ClusterTiming, seed: UInt64, at now: Instant, guards: Guards = .all
    ) {
        self.me = me
        self.member = EnsembleMember(node: me.node, diskID: disk)
        self.timing = timing
        self.guards = guards
        self.random = SplitMix64(seed: seed)
        self.promises = PromiseBook(
            // T3: as if it had just given a promise to everybody.
            quietUntil: guards.contains(.quietAfterStart) ? now + timing.promise : now)
        self.now = now
    }

    package mutating func receive(_ event: Event, at now: Instant, into output: inout ActionBuffer<Action>) {
        guard !stopped else { return }
        self.now = max(self.now, now)
        swap(&actions, &output)
        defer { swap(&actions, &output) }
        switch event {
        case .started(let ids, let scans):
            for (id, scan) in zip(ids, scans) { copies[id] = Copy(scan, at: self.now) }
            control(.register)
        case .tick: tick()
        case .mail(let parts): accept(parts)
        case .disk(let operation, let result): finished(operation, result)
        case .control(let request, let answer): answered(request, answer)
        case .frame(let frame, let sender): received(frame, from: sender)
        case .answered(let dot, let answer): answered(dot, answer)
        }
        flush()
    }

    // MARK: Small helpers

    mutating func control(_ request: ControlRequest) { actions.append(.control(request)) }

    mutating func disk(_ operation: DiskOperation) { actions.append(.disk(operation)) }

    mutating func send(_ frame: Frame, to node: NodeID) {
        if node != me.node { actions.append(.send(frame, to: node)) }
    }

    mutating func restart(_ reason: RestartReason) {
        guard !stopped else { return }
        stopped = true
        actions.append(.restart(reason))
    }

    // MARK: Time

    private mutating func tick() {
        if now - keepAliveAt >= timing.keepAlive {
            keepAliveAt = now
            control(registered ? .keepAlive : .register)
        }
        let listAfter = listSoon ? TimeSpan.milliseconds(200) : timing.list
        if !listUnderWay, now - listSentAt >= listAfter { list() }
        for id in registry.toRead { control(.read(id)) }
        tickAppend()
        tickCopies()
        tickTakeover()
        tickPromises()
        tickOutcomes()
        tickReports()
        tickChanges()
        tickTargets()
        tickFinishing()
        tickSubmits()
        for id in drains.keys { pump(id) }
        promises.prune(before: now)
    }

    mutating func list() {
        listSentAt = now
        listUnderWay = true
        listSoon = false
        control(.list)
    }

    // MARK: Control plane

    private mutating func answered(_ request: ControlRequest, _ answer: ControlAnswer) {
        switch (request, answer) {
        case (.register, .done):
            registered = true
            list()
        case (.register, .leaseLost):
            // T2: one lease per incarnation, and it is over.
            if guards.contains(.newIncarnation) { restart(.leaseLost) }
        case (.register, _): registered = false
        case (.keepAlive, .leaseLost):
            // T2: whoever lost its lease is somebody else from now on.
            if guards.contains(.newIncarnation) { restart(.leaseLost) } else { control(.register) }
        case (.keepAlive, _): break
        case (.list, .listed(let listing)):
            listUnderWay = false
            listed(listing)
        case (.list, _):
            listUnderWay = false
            listSoon = true
        case (.read(let id), .key(let key)):
            // The place is free for the next change once the key was read; what may still land stays in `views`.
            registry.read(id)
            if let key { learn(key, own: false) } else { absent(id) }
            if confirming[id] != nil { confirmRead(id) }
        case (.read, _): break
        case (.store(let key, _), .committed(let stored?)):
            registry.end(key.id)
            learn(stored, own: true)
        case (.store(let key, let condition), .refused(let current, let conditionFailed)):
            registry.end(key.id)
            if key.revision == 0, let tries = append.registrations[key.id] { append.registrations[key.id] = tries - 1 }
            if conditionFailed, case .registered = condition { return restart(.leaseLost) }
            if let current { learn(current, own: false) } else if key.revision > 0 { absent(key.id) }
            // Somebody else was faster, or the drainer that was to be replaced lives after all.
            listSoon = true
        case (.store(let key, _), .unknown):
            registry.unknown(key.id)
            optimist(key)
        case (.store(let key, _), _): registry.end(key.id)
        case (.remove(let key), .committed):
            append.registrations[key.id] = nil
            absent(key.id)
        case (.remove(let key), .refused(let current, _)):
            if let current { learn(current, own: false) } else { absent(key.id) }
        case (.remove, _): break
        }
    }

    /// P1's counter-example: believing in a change whose result is unknown.
    private mutating func optimist(_ key: ClusterKey) {
        guard !guards.contains(.unknownIsNotStale), drains[key.id] != nil else { return }
        var believed = key
        believed.revision += 0
        optimism[key.id] = believed
    }

    /// Only ever filled with `unknownIsNotStale` taken out.
    var optimism = Table<SegmentID, ClusterKey>()

    private mutating func listed(_ listing: Listing) {
        registry.listed(listing, at: now)
        for id in registry.gone(in: listing) { absent(id) }
        for key in listing.keys { learn(key, own: false) }
        // T4 at work: a key may name this node although it never saw its own change land.
        for key in listing.keys { resume(key.id) }
        decideAbsent(listing)
        dropUnregistered(listing)
        claimOrphans()
    }

    /// The only place where news of a key are acted on.
    mutating func learn(_ key: ClusterKey, own: Bool) {
        guard registry.learn(key) else { return }
        optimism[key.id] = nil
        let mine = key.drainer == me
        if append.segments[key.id] != nil { learnWritten(key) }
        if let drain = drains[key.id], !mine || drain.epoch != key.drainEpoch { dropDrain(key.id) }
        if mine, drains[key.id] == nil, own || guards.contains(.resumeLateTakeover) { beginDrain(key) }
        switch key.state {
        case .open: break
        case .sealed(let length): cut(key.id, at: length)
        case .finished:
            drains[key.id] = nil
            // S7 first: what is unlinked cannot be remembered.
            rememberKeys(of: key)
            unlink(key.id)
            if mine { beginFinishing(key) } else { finishing[key.id] = nil }
        }
        if copies[key.id] != nil, !isMember(of: key) { leaveCopy(key) }
        decideMoves(from: key)
    }

    /// T4: a takeover that landed late has an owner.
    private mutating func resume(_ id: SegmentID) {
        guard guards.contains(.resumeLateTakeover), let key = registry.keys[id], key.drainer == me else { return }
        if key.state == .finished {
            beginFinishing(key)
        } else if drains[id] == nil {
            beginDrain(key)
        }
    }

    func isMember(of key: ClusterKey) -> Bool { key.ensemble.contains(member) || key.joining == member }

    /// The key is gone: the segment was finished, and all members had confirmed (C3).
    mutating func absent(_ id: SegmentID) {
        registry.forget(id)
        finishing[id] = nil
        drains[id] = nil
        late[id] = nil
        if let segment = append.segments[id], case .open = segment.phase { append.segments[id] = nil }
    }

    /// Changes one key by compare-and-set; nothing happens while another change of it is under way.
    mutating func change(
        _ id: SegmentID, if condition: ControlRequest.Condition = .none, _ edit: (inout ClusterKey) -> Void
    ) {
        guard var key = registry.keys[id], !registry.isBusy(id) else { return }
        edit(&key)
        guard registry.begin(key) else { return }
        control(.store(key, condition))
    }
}
