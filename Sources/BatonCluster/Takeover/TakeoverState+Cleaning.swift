// Cleaning: what is alive in an old segment moves into the node's open one, so that its space comes back (PROTOCOL C2).
import BatonCore
import BatonModel
import BatonSpool

/// The one cleaning that a node has under way (docs/decisions/0007).
struct SegmentCleaning: Hashable, Sendable {
    enum Phase: Hashable, Sendable {
        /// C2 i: the source's key is to name the target. Nothing is moved before it is known to.
        case naming
        /// C2 ii: copies are on their way into the target.
        case moving
        /// C2 iii: the source is to be finished, the only commit point.
        case committing
        /// The source's key is to say that the copies never count.
        case voiding
        /// C2 iv: the key has decided; the decision is on its way into the target's log.
        case settling(alive: Bool)
        /// C2 v: the log holds it up to `end`; once every member has synced that, the source's key may forget the target.
        case settled(end: Int64)
    }

    let source: SegmentID
    let epoch: UInt64
    let target: SegmentID
    let begunAt: Instant
    var phase = Phase.naming
    var askedAt: Instant

    init(source: SegmentID, epoch: UInt64, target: SegmentID, at now: Instant) {
        self.source = source
        self.epoch = epoch
        self.target = target
        self.begunAt = now
        self.askedAt = now
    }
}

extension TakeoverState {
    // MARK: Beginning

    mutating func beginCleaning(_ candidates: [SegmentID], into target: SegmentID) {
        guard cleaning == nil, registered, !leaving, isOpenHere(target),
            let source = candidates.first(where: { mayClean($0, into: target) }), let drain = drains[source]
        else { return }
        cleaning = SegmentCleaning(source: source, epoch: drain.epoch, target: target, at: now)
        drains[source]?.cleanedInto.append(target)
        // Its mail is not attempted while it moves.
        tell(source)
        change(source) { key in
            key.target = target
            key.targetVoid = false
        }
        if !registry.isBusy(source) { endCleaning() }
    }

    /// Written by this run, and by nobody else's word sealed or taken over.
    private func isOpenHere(_ id: SegmentID) -> Bool {
        guard let drain = drains[id], drain.isWritten, let key = registry.keys[id], key.state == .open,
            key.drainer == me, key.stale.isEmpty
        else { return false }
        return permission(id, drain) != nil
    }

    /// Only what is whole, known to all its members, and may be sent now: with permission held no former drainer sends it any more
    /// (docs/CLUSTER_MODEL.md, 11).
    private func mayClean(_ id: SegmentID, into target: SegmentID) -> Bool {
        guard id != target, let drain = drains[id], let key = registry.keys[id], key.drainer == me,
            key.drainEpoch == drain.epoch, let length = key.sealedAt, registry.views(id).count == 1
        else { return false }
        guard key.target == nil, key.stale.isEmpty, key.joining == nil, drain.copyUnderWay == nil, !drain.drained,
            drain.isWritten || (drain.own?.end ?? 0) >= length, permission(id, drain) != nil
        else { return false }
        guard drain.cleanedInto.count < timing.cleanings, !drain.cleanedInto.contains(target),
            // What was moved into it is settled first.
            !registry.keys.contains(where: { $0.target == id })
        else { return false }
        return hasEverything(id, upTo: drain.logEnd)
            && key.ensemble.allSatisfy { $0 == member || (registry.isAlive($0) && drain.peers[$0]?.failing == nil) }
    }

    /// Whether every member of a drained segment, stale or not, has its outcomes on disk up to there.
    private func hasEverything(_ id: SegmentID, upTo end: Int64) -> Bool {
        guard let drain = drains[id], drain.phase == .ready, let key = registry.keys[id], key.drainer == me,
            key.drainEpoch == drain.epoch, drain.logSynced >= end
        else { return false }
        return registry.views(id).allSatisfy { view in
            view.stale.isEmpty
                && view.ensemble.allSatisfy { $0 == member || (drain.peers[$0]?.synced ?? 0) >= end }
        }
    }

    /// C2 ii: m is attempted neither here nor there until its source's key has decided.
    func isMoving(_ id: SegmentID) -> Bool {
        guard let run = cleaning, run.source == id else { return false }
        switch run.phase {
        case .naming, .moving, .committing, .voiding, .settling(alive: true): return true
        case .settling(alive: false), .settled: return false
        }
    }

    // MARK: The source's key

    /// What the source's key says is what counts, whoever changed it.
    mutating func learnMove(_ key: SegmentKey) {
        guard let run = cleaning, run.source == key.id else { return }
        let fate = MoveFate(of: key, epoch: run.epoch, target: run.target)
        switch run.phase {
        case .naming:
            guard key.drainer == me, fate == .open else { return endCleaning() }
            cleaning?.phase = .moving
            actions.append(.move(key))
        case .moving, .committing, .voiding: decided(run, fate)
        case .settling: break
        case .settled: if key.target != run.target { endCleaning() }
        }
    }

    /// The source's key is gone, without this node's doing.
    mutating func moveGone(_ id: SegmentID) {
        guard let run = cleaning, run.source == id else { return }
        switch run.phase {
        case .naming, .settled: endCleaning()
        case .moving, .committing, .voiding: decided(run, .gone)
        case .settling: break
        }
    }

    private mutating func decided(_ run: SegmentCleaning, _ fate: MoveFate) {
        switch fate {
        case .open: break
        case .live, .gone: settle(run, alive: true)
        case .void: settle(run, alive: false)
        }
    }

    // MARK: Going on

    mutating func moved(_ id: SegmentID, _ epoch: UInt64, _ landed: Bool) {
        guard let run = cleaning, run.source == id, run.epoch == epoch, run.phase == .moving else { return }
        cleaning?.phase = landed ? .committing : .voiding
        tickCleaning()
    }

    mutating func tickCleaning() {
        guard let run = cleaning else { return }
        let isLate = now - run.begunAt >= timing.cleaning
        switch run.phase {
        case .naming:
            // A change that lands after this finds nothing moved: whoever drains the target clears it.
            if isLate || !registry.isBusy(run.source) { endCleaning() }
        case .moving:
            if isLate { cleaning?.phase = .voiding }
        case .committing:
            guard !isLate, drains[run.target]?.isWritten == true, let source = drains[run.source],
                source.epoch == run.epoch
            else {
                cleaning?.phase = .voiding
                return
            }
            // A key from a backup may still name a drainer that was overtaken; the partners do not promise it anything.
            guard promisedUntil(run.source, source) > now else { return }
            // C2 iii: competes with a takeover of the source, and with whoever takes the target over, on the same key.
            change(run) { $0.finish() }
        case .voiding:
            // Competes with a commit whose answer was lost.
            change(run) { $0.targetVoid = true }
        case .settling(let alive):
            if now - run.askedAt >= timing.settleRetry { settle(run, alive: alive) }
        case .settled(let end):
            // The last of them goes by `clearTargets`, where the target is gone.
            if hasEverything(run.target, upTo: end) { clear(run.source) }
        }
    }

    /// Nothing where the key has decided already, or names another drainer by now.
    private mutating func change(_ run: SegmentCleaning, _ edit: (inout SegmentKey) -> Void) {
        guard let key = registry.keys[run.source], key.drainer == me,
            MoveFate(of: key, epoch: run.epoch, target: run.target) == .open
        else { return }
        change(run.source, edit)
    }

    private mutating func settle(_ run: SegmentCleaning, alive: Bool) {
        cleaning?.phase = .settling(alive: alive)
        cleaning?.askedAt = now
        actions.append(.settleMove(run.source, epoch: run.epoch, into: run.target, alive: alive))
        tell(run.source)
    }

    mutating func moveSettled(_ id: SegmentID, _ epoch: UInt64, _ end: Int64?) {
        guard let run = cleaning, run.source == id, run.epoch == epoch, case .settling = run.phase, let end else {
            return
        }
        // By now, perhaps, the target has another drainer, who has cleared it.
        guard registry.keys[id]?.target == run.target else { return endCleaning() }
        cleaning?.phase = .settled(end: end)
        tell(id)
        tickCleaning()
    }

    private mutating func endCleaning() {
        guard let run = cleaning else { return }
        cleaning = nil
        tell(run.source)
    }

    // MARK: C2 v

    /// The target's drainer takes it out of the source's key once its decision is on every member's disk, the stale ones' too
    /// (docs/CLUSTER_MODEL.md, 5 and 24); the source's drainer does where the target is gone.
    mutating func clearTargets() {
        guard registry.keys.contains(where: { $0.target != nil }) else { return }
        for key in registry.keys.values {
            guard let target = key.target, !registry.isBusy(key.id) else { continue }
            if isOver(target, for: key) {
                if key.drainer == me, !isMoving(key.id) { clear(key.id) }
            } else if cleaning?.source != key.id, hasDecided(target) {
                clear(key.id)
            }
        }
    }

    /// Of a segment that this run writes, nothing stands there that its own cleaning did not settle. One that was taken over
    /// has decided about everything in it when it was read; not before all of it was.
    private func hasDecided(_ target: SegmentID) -> Bool {
        guard let drain = drains[target], drain.phase == .ready, registry.keys[target]?.drainer == me else {
            return false
        }
        if drain.isWritten { return true }
        guard let length = registry.keys[target]?.sealedAt, (drain.own?.end ?? 0) >= length, drain.logEnd > 0 else {
            return false
        }
        return hasEverything(target, upTo: drain.logEnd)
    }

    private mutating func clear(_ source: SegmentID) {
        change(source) { key in
            key.target = nil
            key.targetVoid = false
        }
    }

    /// A finished target has decided everything; so has one that was there when the source's key named it, and is no more.
    private func isOver(_ target: SegmentID, for source: SegmentKey) -> Bool {
        guard let key = registry.keys[target] else { return registry.listedRevision >= source.revision }
        return key.state == .finished
    }

    /// The source's key outlives every doubt about what was moved out of it, and so do its files: a registry from before the commit
    /// makes the moved void, and the source has to be there (docs/decisions/0010).
    func mayRemove(_ key: SegmentKey) -> Bool {
        guard let target = key.target else { return true }
        return isOver(target, for: key)
    }
}
