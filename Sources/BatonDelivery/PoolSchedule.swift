// When which pool of a loop has something to do, so that a tick visits those and no others.
import BatonCore
import BatonModel

/// What a pool tells of itself when it comes to rest.
struct PoolStanding: Sendable, Equatable {
    /// When it wants its tick: a time-out, the end of a pause, waiting work that it could not serve. `distantFuture`: never.
    var due = Instant.distantFuture
    /// Since when it has had neither connection nor work; nil while it has.
    var idleSince: Instant?
    /// Since when its longest idle connection has had nothing to do; nil without an idle one.
    var spareSince: Instant?
}

/// Site handles ordered by an instant: insert, move and remove in O(log n), the earliest in O(1). A value. Bounded by its
/// user: one entry a site.
struct SiteHeap: Sendable {
    private var entries: [(at: Instant, site: SiteID)] = []
    private var places: [SiteID: Int] = [:]

    var count: Int { entries.count }
    var first: (at: Instant, site: SiteID)? { entries.first }

    func instant(of site: SiteID) -> Instant? { places[site].map { entries[$0].at } }

    /// Puts the site at `at`, wherever it was before; nil takes it out.
    mutating func set(_ site: SiteID, at instant: Instant?) {
        guard let instant else { return remove(site) }
        if let place = places[site] {
            entries[place].at = instant
            sift(place)
        } else {
            entries.append((instant, site))
            places[site] = entries.count - 1
            sift(entries.count - 1)
        }
    }

    mutating func remove(_ site: SiteID) {
        guard let place = places.removeValue(forKey: site) else { return }
        let last = entries.removeLast()
        guard place < entries.count else { return }
        entries[place] = last
        places[last.site] = place
        sift(place)
    }

    /// Moves the entry at `start` up or down to where it belongs.
    private mutating func sift(_ start: Int) {
        var place = start
        while place > 0 {
            let parent = (place - 1) / 2
            guard entries[place].at < entries[parent].at else { break }
            exchange(place, parent)
            place = parent
        }
        while true {
            var least = place
            for child in [2 * place + 1, 2 * place + 2] where child < entries.count {
                if entries[child].at < entries[least].at { least = child }
            }
            guard least != place else { return }
            exchange(place, least)
            place = least
        }
    }

    private mutating func exchange(_ one: Int, _ other: Int) {
        entries.swapAt(one, other)
        places[entries[one].site] = one
        places[entries[other].site] = other
    }
}

/// The pools of one loop by what they wait for. A value; its shell is `Dispatcher`.
///
/// A tick costs O(log n) for each pool that is due, and a new site at `poolsPerLoop` as much for the one pool that makes
/// room: the one that has been idle longest.
struct PoolSchedule: Sendable {
    private var due = SiteHeap()
    private var idle = SiteHeap()
    private var spare = SiteHeap()

    /// Pools known.
    var count: Int { due.count }

    mutating func update(_ site: SiteID, _ standing: PoolStanding) {
        due.set(site, at: standing.due)
        idle.set(site, at: standing.idleSince)
        spare.set(site, at: standing.spareSince)
    }

    mutating func remove(_ site: SiteID) {
        due.remove(site)
        idle.remove(site)
        spare.remove(site)
    }

    /// The next pool whose time has come. Until it says otherwise, it is not due again.
    mutating func popDue(at now: Instant) -> SiteID? {
        guard let first = due.first, first.at <= now else { return nil }
        due.set(first.site, at: .distantFuture)
        return first.site
    }

    /// When the next pool is due; `distantFuture` without one.
    var nextDue: Instant { due.first?.at ?? .distantFuture }
    /// The pool that has had nothing to do for the longest time.
    var longestIdle: SiteID? { idle.first?.site }
    /// The pool with the connection that has had nothing to do for the longest time.
    var longestSpare: SiteID? { spare.first?.site }
    func hasSpare(_ site: SiteID) -> Bool { spare.instant(of: site) != nil }
}
