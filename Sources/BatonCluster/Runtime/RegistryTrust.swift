// Whether what the control plane answers is the registry that this disk went by (docs/decisions/0010). Pure.
import BatonControlPlane
import BatonCore
import BatonModel
import BatonSpool

/// Every answer's header is judged against what was known when its request was sent. One run of a node goes by one registry.
package struct RegistryTrust: Sendable {
    package enum Verdict: Hashable, Sendable {
        case trusted
        /// Nothing is to be learned from it until it was rebuilt; why.
        case setBack(String)
        /// It is not the one that this run has gone by: the run ends; why.
        case changed(String)
    }

    /// The newest that was accepted, by this run or one before; what has to be saved.
    package private(set) var mark: RegistryMark?
    /// This run has accepted a listing.
    package private(set) var isTrusted = false
    /// Why the listing that came last was not accepted.
    package private(set) var setBack: String?
    private var isOver = false

    package init(_ mark: RegistryMark? = nil) { self.mark = mark }

    /// A listing of everything, with its recovery number and this disk's tally. `floor`: `mark` when it was asked for.
    package mutating func judge(
        listing header: ControlHeader, recovery: UInt64, tally: UInt64, since floor: RegistryMark?
    ) -> Verdict {
        guard !isOver else { return .changed("this run is over") }
        let seen = RegistryMark(store: header.store, revision: header.revision, recovery: recovery, tally: tally)
        if isTrusted, let mark, (floor?.recovery ?? 0) < mark.recovery, recovery <= mark.recovery {
            // Asked for before the rebuilt one was accepted.
            return recovery == mark.recovery ? accept(seen) : .setBack("an answer from before its recovery")
        }
        guard let floor, let difference = Difference(of: seen, from: floor) else { return accept(seen) }
        if isTrusted { return end(difference) }
        if difference == .rebuilt { return accept(seen) }
        latch(difference)
        setBack = difference.description
        return .setBack(difference.description)
    }

    /// Any other answer. Before a listing was accepted nothing may be concluded from one.
    package mutating func judge(_ header: ControlHeader, since floor: RegistryMark?) -> Verdict {
        guard !isOver, isTrusted, let mark, let floor, floor.recovery == mark.recovery, !floor.isRefused else {
            return .setBack("no listing was accepted when it was asked for")
        }
        let seen = RegistryMark(
            store: header.store, revision: header.revision, recovery: floor.recovery, tally: floor.tally)
        if let difference = Difference(of: seen, from: floor) { return end(difference) }
        self.mark?.revision = max(mark.revision, header.revision)
        return .trusted
    }

    /// Another disk distrusts the registry, whose recovery number it has known as this: so does this one from now on.
    package mutating func refuse(recovery: UInt64) -> Verdict {
        let known = mark ?? RegistryMark(store: 0, revision: 0, recovery: 0)
        guard !isOver, setBack == nil, known.recovery <= recovery else { return .trusted }
        mark = known
        mark?.recovery = recovery
        if isTrusted { return end(.refused) }
        latch(.refused)
        return .trusted
    }

    /// This disk's tally in the registry is this now.
    package mutating func tallied(_ tally: UInt64) {
        guard isTrusted, let mark else { return }
        self.mark?.tally = max(mark.tally, tally)
    }

    private mutating func accept(_ seen: RegistryMark) -> Verdict {
        var accepted = seen
        // A listing that is overtaken by a later one takes nothing back.
        if let mark, mark.store == seen.store, mark.recovery == seen.recovery {
            accepted.revision = max(mark.revision, seen.revision)
            accepted.tally = max(mark.tally, seen.tally)
        }
        mark = accepted
        isTrusted = true
        setBack = nil
        return .trusted
    }

    /// Registrations alone would bring a lost revision back: what was set back stays so until it is rebuilt, for the next runs as well.
    /// Another store is there again when it answers again.
    private mutating func latch(_ difference: Difference) {
        switch difference {
        case .rebuilt, .otherStore: break
        case .earlierRecovery, .refused, .earlierRevision, .earlierTally: mark?.isRefused = true
        }
    }

    private mutating func end(_ difference: Difference) -> Verdict {
        latch(difference)
        isOver = true
        isTrusted = false
        return .changed(difference.description)
    }
}

/// How a registry differs from the one that was known.
private enum Difference: Hashable, CustomStringConvertible {
    case rebuilt
    case earlierRecovery(UInt64, known: UInt64)
    case refused
    case otherStore
    case earlierRevision(Int64, known: Int64)
    case earlierTally(UInt64, known: UInt64)

    /// Nil where nothing speaks against its being the same.
    init?(of seen: RegistryMark, from known: RegistryMark) {
        if seen.recovery > known.recovery {
            self = .rebuilt
        } else if seen.recovery < known.recovery {
            self = .earlierRecovery(seen.recovery, known: known.recovery)
        } else if known.isRefused {
            self = .refused
        } else if seen.store != known.store {
            self = .otherStore
        } else if seen.revision < known.revision {
            self = .earlierRevision(seen.revision, known: known.revision)
        } else if seen.tally < known.tally {
            // Revisions may be raised when a backup is restored.
            self = .earlierTally(seen.tally, known: known.tally)
        } else {
            return nil
        }
    }

    var description: String {
        switch self {
        case .rebuilt: "it was rebuilt from the disks"
        case .earlierRecovery(let seen, let known): "it is from before its last recovery (\(seen) instead of \(known))"
        case .refused: "it was found to be set back before"
        case .otherStore: "another store answers"
        case .earlierRevision(let seen, let known): "it is at revision \(seen), and \(known) was seen before"
        case .earlierTally(let seen, let known): "it has counted to \(seen) for this disk, which was at \(known)"
        }
    }
}

/// When this disk counts on in the registry: soon after keys of segments have changed, so that a backup from before is told by its
/// count. Pure.
struct RegistryTally: Sendable {
    /// Of the segments' keys.
    struct Extent: Hashable, Sendable {
        let keys: Int
        let newest: UInt64

        init(keys: Int, newest: UInt64) {
            self.keys = keys
            self.newest = newest
        }

        init(_ keys: Table<SegmentID, SegmentKey>) {
            self.init(keys: keys.count, newest: keys.values.lazy.map(\.revision).max() ?? 0)
        }
    }

    private var counted: Extent?
    private var sent: Extent?
    private var sentAt = Instant.epoch

    /// True: it is to be sent now, and `ended` follows.
    mutating func isDue(_ extent: @autoclosure () -> Extent, at now: Instant) -> Bool {
        // The keys are gone through only where it could be sent: this is asked at every tick.
        guard sent == nil, now - sentAt >= DriverLimits.tallyPause else { return false }
        let extent = extent()
        guard extent != counted else { return false }
        sent = extent
        sentAt = now
        return true
    }

    mutating func ended(_ isWritten: Bool) {
        if isWritten { counted = sent }
        sent = nil
    }
}
