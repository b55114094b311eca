// Whether what the control plane answers is the registry that this disk went by (docs/decisions/0010). Pure.
import BatonControlPlane
import BatonCore
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

    /// A listing of everything. `floor`: `mark` when it was asked for.
    package mutating func judge(
        listing header: ControlHeader, recovery: UInt64, since floor: RegistryMark?
    ) -> Verdict {
        guard !isOver else { return .changed("this run is over") }
        let seen = RegistryMark(store: header.store, revision: header.revision, recovery: recovery)
        guard let floor, let why = Self.difference(of: seen, from: floor) else { return accept(seen) }
        if isTrusted { return end(why) }
        if recovery > floor.recovery { return accept(seen) }
        setBack = why
        return .setBack(why)
    }

    /// Any other answer. False: nothing may be concluded from it. Before a listing was accepted none is asked for.
    package mutating func judge(_ header: ControlHeader, since floor: RegistryMark?) -> Verdict {
        guard !isOver, isTrusted, let mark, let floor else { return .setBack("no listing was accepted yet") }
        let seen = RegistryMark(store: header.store, revision: header.revision, recovery: floor.recovery)
        if let why = Self.difference(of: seen, from: floor) { return end(why) }
        self.mark?.revision = max(mark.revision, header.revision)
        return .trusted
    }

    /// Another disk, which distrusts the registry, has seen more than this one, or another store.
    package mutating func judge(told: RegistryMark) -> Verdict {
        guard !isOver, isTrusted, let mark,
            (told.recovery, told.revision) > (mark.recovery, mark.revision)
                || told.recovery == mark.recovery && told.store != mark.store
        else { return .trusted }
        self.mark = told
        return end("another disk has seen more of it")
    }

    private mutating func accept(_ seen: RegistryMark) -> Verdict {
        var accepted = seen
        // A listing that is overtaken by a later one takes nothing back.
        if let mark, mark.store == seen.store, mark.recovery == seen.recovery {
            accepted.revision = max(mark.revision, seen.revision)
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
        if seen.store != known.store { return "another store answers" }
        if seen.revision < known.revision {
            return "it is at revision \(seen.revision), and \(known.revision) was seen before"
        }
        return nil
    }
}
