// Shares of cluster-wide limits, as one node sees them: a pure value (PROTOCOL "Around it").
import BatonCore
import BatonPeer

/// The sum of what all nodes may use of a limit never exceeds it, whatever is lost, late, doubled, cut off or restarted:
///
/// - a right belongs to one node at a time. A *floor* to its member of the roster; the *pool*, the limit without all floors, to
///   the site's home. Who gives a part of a right away does not use it until that share has ended by its own clock;
/// - a holder uses a share for `holderPart` of its span, counted from its request, so that it ends before its giver's does;
/// - a home gives only within `view` of a linearizable read, and only when it is certain that no other home's shares live.
///
/// A node without demand lends its floor, so that a site whose mail is on one node gets its whole limit. Bounded: `QuotaLimits`.
/// It survives no crash and needs to survive none: a restarted node waits until whatever it gave has ended.
package struct QuotaState: StateMachine {
    package typealias Event = QuotaEvent
    package typealias Action = QuotaAction

    struct Share: Sendable {
        var amount: UInt64
        var until: Instant
        var askedAt: Instant
    }

    struct Request: Sendable {
        let number: UInt64
        let at: Instant
        /// The share that it renews.
        let share: UInt64
    }

    struct Entry: Sendable {
        var limit: UInt64
        var wanted: UInt64 = 0
        /// By giver: at most one share, and one question under way.
        var shares: [NodeID: (number: UInt64, share: Share)] = [:]
        var requests: [NodeID: Request] = [:]
        /// Not asked again before.
        var notBefore: [NodeID: Instant] = [:]
        var pool = QuotaGiver()
        var floor = QuotaGiver()
    }

    let own: NodeID
    let guards: QuotaGuards
    let startedAt: Instant
    var settings = QuotaSettings(connections: 0)
    /// Rosters without a gap between them, the latest last, and when each was first seen.
    var history: [(roster: QuotaRoster, seenAt: Instant)] = []
    var viewAskedAt = Instant.epoch
    /// When the roster's present amount withheld for this node was first seen; until when it has lowered its use without saying.
    private var withheldSeen: (divisor: UInt32, at: Instant)?
    private var loweredSince: (divisor: UInt32, at: Instant)?
    var entries: [QuotaKey: Entry] = [:]
    private var order: [QuotaKey] = []
    private var cursor = 0
    var number: UInt64
    var now = Instant.epoch
    var actions = ActionBuffer<QuotaAction>()
    var sent = 0

    /// `seed`: random per run, so that numbers of shares and requests of another run of this node mean nothing to this one.
    package init(own: NodeID, seed: UInt64, startedAt: Instant, guards: QuotaGuards = .all) {
        self.own = own
        self.guards = guards
        self.startedAt = startedAt
        number = seed >> 1 | 1
    }

    package mutating func receive(_ event: QuotaEvent, at now: Instant, into actions: inout ActionBuffer<QuotaAction>) {
        self.now = now
        swap(&self.actions, &actions)
        defer { swap(&self.actions, &actions) }
        switch event {
        case .settings(let settings): self.settings = settings
        case .roster(let roster, let askedAt): learn(roster, askedAt)
        case .demand(let key, let limit, let wanted): demand(key, limit, wanted)
        case .received(let message, let sender): received(message, from: sender)
        case .tick: tick()
        }
    }

    var roster: QuotaRoster? { history.last?.roster }
    package var keys: Int { entries.count }

    // MARK: What this node may use

    /// The whole of it now.
    package func allowance(of key: QuotaKey, limit: UInt64, at now: Instant) -> UInt64 {
        shares(of: key, limit: limit, at: now).reduce(0) { $0 + $1.amount }
    }

    /// Each part of it by its name, the own floor first.
    package func shares(of key: QuotaKey, limit: UInt64, at now: Instant) -> [(name: ShareName, amount: UInt64)] {
        let entry = entries[key]
        let lent = guards.contains(.lentIsNotUsed) ? entry?.floor.outstanding(at: now) ?? 0 : 0
        let floor = ownFloor(of: key, limit: entry?.limit ?? limit, at: now)
        var found = [(name: ShareName(giver: own, number: 0), amount: floor - min(floor, lent))]
        for (giver, held) in entry?.shares ?? [:] where held.share.until > now {
            found.append((ShareName(giver: giver, number: held.number), held.share.amount))
        }
        return found
    }

    /// Usable without anybody, for as long as the roster's entry stands, which nobody else lowers.
    func ownFloor(of key: QuotaKey, limit: UInt64, at now: Instant) -> UInt64 {
        // What an earlier run lent lives on for that long.
        if guards.contains(.lenderForgotNothing), now - startedAt < QuotaState.wait(QuotaLimits.share) { return 0 }
        guard let roster, let member = roster[own], member.used > 0 else { return 0 }
        let least = guards.contains(.lowersBeforeSaying) ? UInt32(clamping: roster.members.count) : 0
        return key.floor(of: limit, by: max(member.used, least))
    }

    static func wait(_ span: TimeSpan) -> TimeSpan { span.multiplied(by: QuotaLimits.waiterPart) }

    // MARK: Roster

    private mutating func learn(_ roster: QuotaRoster, _ askedAt: Instant) {
        guard roster.isSound else { return }
        if let last = history.last {
            guard roster.sequence >= last.roster.sequence else { return }
            if roster.sequence == last.roster.sequence {
                viewAskedAt = max(viewAskedAt, askedAt)
                return changeOwnEntry(roster)
            }
            // What stood between two reads is not known: the proof begins anew.
            if roster.sequence != last.roster.sequence + 1, guards.contains(.unbrokenChain) { history = [] }
        }
        history.append((roster, now))
        while history.count > QuotaLimits.history { history.removeFirst() }
        viewAskedAt = max(viewAskedAt, askedAt)
        changeOwnEntry(roster)
    }

    /// Brings this node's part to 1 / members: down by using less first and saying so once nothing lent is left of more; up by
    /// having it withheld first and using it once no home can have given it away.
    private mutating func changeOwnEntry(_ roster: QuotaRoster) {
        guard let member = roster[own], !roster.members.isEmpty else { return }
        let target = UInt32(clamping: roster.members.count)
        if withheldSeen?.divisor != member.withheld { withheldSeen = (member.withheld, now) }
        if loweredSince?.divisor != target { loweredSince = nil }
        var changed = member
        if member.withheld != 0, member.withheld < target {
            let since = loweredSince?.at ?? now
            loweredSince = (target, since)
            let waits = guards.contains(.lowersBeforeSaying) ? QuotaState.wait(QuotaLimits.share) : .zero
            guard now - since >= waits else { return }
            changed.withheld = target
            changed.used = member.used == 0 ? 0 : max(member.used, target)
        } else if member.withheld != target {
            changed.withheld = target
            if changed.used != 0 { changed.used = max(changed.used, target) }
        } else if member.used != target {
            let waits = guards.contains(.joinerWaits) ? QuotaState.wait(QuotaLimits.share + QuotaLimits.view) : .zero
            guard let seen = withheldSeen, now - seen.at >= waits else { return }
            changed.used = target
        } else {
            return
        }
        var proposal = QuotaRoster(sequence: roster.sequence + 1, members: roster.members)
        proposal.members = proposal.members.map { $0.node == own ? changed : $0 }
        proposal.handOn(member, changed)
        // Not while the others' parts leave no room for it: they shrink as they read the roster.
        if proposal.isSound { actions.append(.propose(proposal)) }
    }

    /// What this node may give as the site's home now; nil if it is not, or not certain to be the only one.
    func poolAsHome(of key: QuotaKey, limit: UInt64) -> UInt64? {
        guard let latest = history.last, latest.roster.home(of: key.site) == own else { return nil }
        if guards.contains(.freshView), now - viewAskedAt > QuotaLimits.view { return nil }
        let wait = QuotaState.wait(QuotaLimits.share + QuotaLimits.view)
        var homeSince = latest.seenAt
        var pool = UInt64.max
        for index in history.indices.reversed() {
            guard history[index].roster.home(of: key.site) == own else { break }
            homeSince = history[index].seenAt
            // A member that is gone may have lent its floor a moment before; so the least pool of that time counts.
            let end = index + 1 < history.count ? history[index + 1].seenAt : now
            if now - end > wait { break }
            pool = min(
                pool,
                history[index].roster.pool(
                    of: key, limit: limit, withholdsFloors: guards.contains(.withholdFloors)))
        }
        guard now - homeSince >= wait || !guards.contains(.newHomeWaits) else { return nil }
        return pool
    }

    // MARK: Entries

    /// Nil past the bound.
    mutating func ensure(_ key: QuotaKey, limit: UInt64?) -> Bool {
        if entries[key] != nil { return true }
        guard let limit = limit ?? settings.limit(of: key), entries.count < QuotaLimits.keys else { return false }
        entries[key] = Entry(limit: limit)
        order.append(key)
        return true
    }

    private mutating func demand(_ key: QuotaKey, _ limit: UInt64, _ wanted: UInt64) {
        guard wanted > 0 || entries[key] != nil, ensure(key, limit: limit) else { return }
        let before = entries[key]?.wanted ?? 0
        entries[key]?.limit = limit
        entries[key]?.wanted = min(wanted, limit)
        // What is short is asked for at once, not at the next tick.
        if wanted > before { tend(key) }
    }

    private mutating func tick() {
        sent = 0
        var looked = 0
        let count = order.count
        while looked < count, sent < QuotaLimits.sendsPerTick, !order.isEmpty {
            if cursor >= order.count { cursor = 0 }
            let key = order[cursor]
            looked += 1
            tend(key)
            if isIdle(key) {
                entries[key] = nil
                order.swapAt(cursor, order.count - 1)
                order.removeLast()
            } else {
                cursor += 1
            }
        }
    }

    private mutating func isIdle(_ key: QuotaKey) -> Bool {
        entries[key]?.pool.expire(at: now)
        entries[key]?.floor.expire(at: now)
        guard let entry = entries[key] else { return true }
        return entry.wanted == 0 && entry.shares.isEmpty && entry.requests.isEmpty && entry.pool.isIdle
            && entry.floor.isIdle
    }

    mutating func nextNumber() -> UInt64 {
        number &+= 1
        if number == 0 { number = 1 }
        return number
    }
}
