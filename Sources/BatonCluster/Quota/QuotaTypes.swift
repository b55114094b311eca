// The values of cluster-wide limits: what is shared, who owns what of it, what nodes say to each other.
import BatonCore
import BatonPeer

package enum QuotaLimits {
    /// How long a share lasts for its giver. A node that starts uses nothing of its own for 1.2 times as long, and a new home gives
    /// nothing for 1.2 times this and `view`: short, so that their mail does not wait; renewed after 0.85 s.
    package static let share = TimeSpan.seconds(2)
    /// How long a home gives shares after the begin of a linearizable read of the roster: three reads long.
    package static let view = TimeSpan.milliseconds(1_500)
    /// Clocks may run 7 % fast or slow: a holder uses a share for this part of it, and who waits for others' shares to end
    /// waits for that many times as long. 0.85 / 0.93 < 1 / 1.07, and 1.2 / 1.07 > 1 / 0.93.
    package static let holderPart = 0.85
    package static let waiterPart = 1.2
    /// Others want it: a share is renewed for so long at most.
    package static let slice = TimeSpan.seconds(10)
    /// After "nothing now".
    package static let retry = TimeSpan.milliseconds(500)
    /// A request without an answer is asked again after this.
    package static let answer = TimeSpan.milliseconds(400)
    /// A waiting node that has not asked for so long waits no more.
    package static let waiting = TimeSpan.seconds(3)
    /// Limits that are shared at a time.
    package static let keys = 16_384
    /// Frames that one tick sends.
    package static let sendsPerTick = 256
    /// Changes of the roster that a home remembers.
    package static let history = 16
    package static let members = 1_024
    /// Rates are dealt out in whole messages a second, as long as there are any (messages per hour).
    package static let rateQuantum: UInt64 = 3_600
    /// Connections of a share that is not renewed close from so long before its end, with the transaction that is under way on each.
    package static let lead = TimeSpan.milliseconds(300)
    /// After gaining a share of a rate: whoever had it may have used it up a moment ago (1 s, and what clocks differ).
    package static let warmUp = TimeSpan.milliseconds(1_150)
}

/// One limit of one site.
package struct QuotaKey: Hashable, Sendable {
    package let site: [UInt8]
    package let kind: Quota.Kind

    package init(site: [UInt8], kind: Quota.Kind) {
        self.site = site
        self.kind = kind
    }

    /// What is dealt out at a time: a connection, or a message a second (the whole of a smaller rate).
    func quantum(of limit: UInt64) -> UInt64 {
        switch kind {
        case .connections: 1
        case .rate: max(1, min(limit, QuotaLimits.rateQuantum))
        }
    }

    func floor(of limit: UInt64, by divisor: UInt32) -> UInt64 {
        guard divisor > 0 else { return 0 }
        let part = limit / UInt64(divisor)
        return part - part % quantum(of: limit)
    }
}

/// A node in the durable roster. It owns floor(limit / divisor) of every limit, home or not, etcd or not.
package struct QuotaMember: Hashable, Sendable {
    package let node: NodeID
    package var weight: UInt32
    /// Whether it takes part in the choice of homes (its lease lives).
    package var serving: Bool
    /// Homes keep floor(limit / withheld) back for it; 0: nothing.
    package var withheld: UInt32 = 0
    /// It uses floor(limit / used) at most; 0: nothing. Never more than what is withheld. Both are changed by itself only,
    /// but for the first part, which a member that shrinks may hand it (`QuotaRoster.handOn`).
    package var used: UInt32 = 0

    package init(node: NodeID, weight: UInt32 = 1, serving: Bool = true) {
        self.node = node
        self.weight = max(1, weight)
        self.serving = serving
    }
}

/// The roster: one durable value in the control plane, changed by compare-and-set, its sequence one higher each time.
///
/// A node joins with nothing withheld and nothing used, the first one (`first`) with all. It is removed when it has stopped for good:
/// drained, or forgotten by the operator, who thereby says so.
package struct QuotaRoster: Hashable, Sendable {
    package var sequence: UInt64
    package var members: [QuotaMember]

    package init(sequence: UInt64, members: [QuotaMember]) {
        self.sequence = sequence
        self.members = members
    }

    /// The very first one: stored only where there is none. Nobody has any right that could still be in use, so that this node has
    /// all of it at once, and lends to whoever comes next until the parts are settled.
    package static func first(_ node: NodeID, weight: UInt32) -> QuotaRoster {
        var member = QuotaMember(node: node, weight: weight)
        (member.withheld, member.used) = (1, 1)
        return QuotaRoster(sequence: 1, members: [member])
    }

    package subscript(node: NodeID) -> QuotaMember? { members.first { $0.node == node } }

    /// What a member uses no more goes to those that have nothing yet, in equal parts, and they may use it at once: no home could ever
    /// have given it away. Only to those without any part: floors of two parts that grow are not bounded by the floor of their sum.
    mutating func handOn(_ before: QuotaMember, _ after: QuotaMember) {
        let heirs = members.indices.filter { members[$0].withheld == 0 && members[$0].node != after.node }
        guard !heirs.isEmpty, before.used > 0, after.used > before.used, after.used <= QuotaLimits.members else {
            return
        }
        // heirs / divisor <= 1 / before - 1 / after; no product of these overflows, by the bound above.
        let (old, new) = (UInt64(before.used), UInt64(after.used))
        let divisor = UInt32(clamping: (UInt64(heirs.count) * old * new + new - old - 1) / (new - old))
        for index in heirs { (members[index].withheld, members[index].used) = (divisor, divisor) }
    }

    /// The parts of all members together are no more than the whole.
    package var isSound: Bool {
        let unit: UInt64 = 1 << 40
        let parts = members.reduce(UInt64(0)) { $0 + ($1.withheld == 0 ? 0 : unit / UInt64($1.withheld)) }
        return parts <= unit
            && members.allSatisfy { $0.used == 0 || $0.withheld > 0 && $0.used >= $0.withheld }
            && members.count <= QuotaLimits.members
    }

    /// The first of the serving members in the site's rendezvous order.
    package func home(of site: [UInt8]) -> NodeID? {
        let serving = members.filter(\.serving).map {
            PlacementNode(run: NodeRun(node: $0.node, incarnation: Incarnation(value: 0)), weight: $0.weight)
        }
        return RendezvousOrder.order(of: site, among: serving, count: 1).first.map { serving[$0].run.node }
    }

    /// What a home may deal out.
    func pool(of key: QuotaKey, limit: UInt64, withholdsFloors: Bool) -> UInt64 {
        guard withholdsFloors else { return limit }
        let floors = members.reduce(UInt64(0)) { $0 + key.floor(of: limit, by: $1.withheld) }
        return limit - min(limit, floors)
    }
}

/// The limits as this node's configuration has them, for sites that it serves as a home or lender without mail of its own.
package struct QuotaSettings: Sendable {
    /// `delivery.connections_per_site`.
    package var connections: UInt64
    /// Sites with limits of their own.
    package var limits: [QuotaKey: UInt64]

    package init(connections: UInt64, limits: [QuotaKey: UInt64] = [:]) {
        self.connections = connections
        self.limits = limits
    }

    func limit(of key: QuotaKey) -> UInt64? {
        if let own = limits[key] { return own }
        switch key.kind {
        case .connections: return connections
        case .rate: return nil
        }
    }
}

/// A share's name: who gave it, and its number there. Number 0 is the node's own floor.
package struct ShareName: Hashable, Sendable {
    package let giver: NodeID
    package let number: UInt64

    package init(giver: NodeID, number: UInt64) {
        self.giver = giver
        self.number = number
    }
}

package enum QuotaEvent: Sendable {
    case settings(QuotaSettings)
    /// A linearizable read of the roster that began at that instant.
    case roster(QuotaRoster, askedAt: Instant)
    /// What this node could use of a limit now, what it has in use included.
    case demand(QuotaKey, limit: UInt64, wanted: UInt64)
    case received(Quota, from: NodeID)
    case tick
}

package enum QuotaAction: Sendable {
    case send(Quota, to: NodeID)
    /// Store it if the stored roster's sequence is still one less; the answer comes with the next read.
    case propose(QuotaRoster)
}

/// Rules that a test takes out one by one; production has all.
package struct QuotaGuards: OptionSet, Hashable, Sendable {
    package let rawValue: UInt16

    package init(rawValue: UInt16) {
        self.rawValue = rawValue
    }

    package static let freshView = QuotaGuards(rawValue: 1)
    package static let newHomeWaits = QuotaGuards(rawValue: 2)
    package static let withholdFloors = QuotaGuards(rawValue: 4)
    package static let spanMargin = QuotaGuards(rawValue: 8)
    package static let lenderForgotNothing = QuotaGuards(rawValue: 16)
    package static let joinerWaits = QuotaGuards(rawValue: 32)
    package static let lowersBeforeSaying = QuotaGuards(rawValue: 64)
    package static let lentIsNotUsed = QuotaGuards(rawValue: 128)
    package static let latestAnswerOnly = QuotaGuards(rawValue: 256)
    package static let countsWhatIsGiven = QuotaGuards(rawValue: 512)
    package static let unbrokenChain = QuotaGuards(rawValue: 1_024)
    package static let all = QuotaGuards(rawValue: 2_047)
}
