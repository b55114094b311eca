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
        guard let floor, let why = Self.difference(of: seen, from: floor) else { return accept(seen) }
        if isTrusted { return end(why) }
        if recovery > floor.recovery { return accept(seen) }
        setBack = why
        return .setBack(why)
    }

    /// Any other answer. Before a listing was accepted nothing may be concluded from one.
    package mutating func judge(_ header: ControlHeader, since floor: RegistryMark?) -> Verdict {
        guard !isOver, isTrusted, let mark, let floor else { return .setBack("no listing was accepted yet") }
        let seen = RegistryMark(
            store: header.store, revision: header.revision, recovery: floor.recovery, tally: floor.tally)
        if let why = Self.difference(of: seen, from: floor) { return end(why) }
        self.mark?.revision = max(mark.revision, header.revision)
        return .trusted
    }

    /// Another disk distrusts the registry, whose recovery number it has known as this: so does this one from now on.
    package mutating func refuse(recovery: UInt64) -> Verdict {
        guard !isOver, isTrusted, let mark, mark.recovery <= recovery else { return .trusted }
        self.mark?.recovery = recovery
        self.mark?.isRefused = true
        return end("another disk distrusts it")
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

    private mutating func end(_ why: String) -> Verdict {
        isOver = true
        isTrusted = false
        return .changed(why)
    }

    private static func difference(of seen: RegistryMark, from known: RegistryMark) -> String? {
        if seen.recovery > known.recovery { return "it was rebuilt from the disks" }
        if seen.recovery < known.recovery {
            return "it is from before its last recovery (\(seen.recovery) instead of \(known.recovery))"
        }
        if known.isRefused { return "another disk distrusts it" }
        if seen.store != known.store { return "another store answers" }
        if seen.revision < known.revision {
            return "it is at revision \(seen.revision), and \(known.revision) was seen before"
        }
        // Revisions may be raised when a backup is restored.
        if seen.tally < known.tally {
            return "it has counted to \(seen.tally) for this node, which was at \(known.tally)"
        }
        return nil
    }
}

/// When this disk counts on in the registry: soon after keys of segments have changed, so that a backup from before is told by its
/// count. Pure.
struct RegistryTally: Sendable {
    private struct Extent: Hashable {
        let keys: Int
        let newest: UInt64
    }

    private var counted: Extent?
    private var sent: Extent?
    private var sentAt = Instant.epoch

    /// After a listing; true: it is to be sent now, and `ended` follows.
    mutating func isDue(_ keys: [SegmentKey], at now: Instant) -> Bool {
        let extent = Extent(keys: keys.count, newest: keys.lazy.map(\.revision).max() ?? 0)
        guard sent == nil, extent != counted, now - sentAt >= DriverLimits.tallyPause else { return false }
        sent = extent
        sentAt = now
        return true
    }

    mutating func ended(_ isWritten: Bool) {
        if isWritten { counted = sent }
        sent = nil
    }
}
