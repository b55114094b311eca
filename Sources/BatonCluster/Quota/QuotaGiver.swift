// Who was given how much of one right, and until when: a pure value, the same for a home's pool and for a lent floor.
import BatonCore

/// Bounded: one grant for each node of the roster, and what was shrunk or superseded until it has ended.
struct QuotaGiver: Sendable {
    struct Grant: Sendable {
        let to: NodeID
        var amount: UInt64
        var until: Instant
        /// Since when this node has had something without pause.
        let since: Instant
    }

    private(set) var grants: [UInt64: Grant] = [:]
    /// Given before, and perhaps still used by who does not know better.
    private var residue: [(amount: UInt64, until: Instant)] = []
    private var waiting: [NodeID: (since: Instant, last: Instant)] = [:]

    var isIdle: Bool { grants.isEmpty && residue.isEmpty && waiting.isEmpty }

    func outstanding(at now: Instant) -> UInt64 {
        grants.values.reduce(0) { $0 + ($1.until > now ? $1.amount : 0) }
            + residue.reduce(0) { $0 + ($1.until > now ? $1.amount : 0) }
    }

    func holds(_ share: UInt64, _ node: NodeID) -> Bool { grants[share]?.to == node }

    mutating func expire(at now: Instant) {
        grants = grants.filter { $0.value.until > now }
        residue.removeAll { $0.until <= now }
        waiting = waiting.filter { now - $0.value.last < QuotaLimits.waiting }
    }

    /// Whole, so that a return that comes twice frees nothing twice.
    mutating func takeBack(_ share: UInt64, from node: NodeID) -> Bool {
        guard grants[share]?.to == node else { return false }
        grants[share] = nil
        return true
    }

    /// What `node` gets, with what it has under `share` counted in; 0: nothing now. `capacity`: the whole right. `number` names
    /// a new share.
    mutating func give(
        _ node: NodeID, wanted: UInt64, renewing share: UInt64, number: UInt64, capacity: UInt64, quantum: UInt64,
        slice: TimeSpan, at now: Instant, countsWhatIsGiven: Bool = true
    ) -> (share: UInt64, amount: UInt64) {
        expire(at: now)
        let held = grants[share].flatMap { $0.to == node ? $0 : nil }
        if held == nil {
            // A share that its holder does not know of lasts until its end all the same.
            for (name, old) in grants where old.to == node {
                residue.append((old.amount, old.until))
                grants[name] = nil
            }
            waiting[node] = (waiting[node]?.since ?? now, now)
        }
        let out = countsWhatIsGiven ? outstanding(at: now) : 0
        // What it could have: the rest, and what it has already.
        let mine = held?.amount ?? 0
        var most = capacity > out - min(out, mine) ? capacity - (out - min(out, mine)) : 0
        let others = waiting.filter { $0.key != node && !serves($0.key) }
        if !others.isEmpty {
            let since = waiting[node]?.since ?? held?.since ?? now
            // One quantum stays for each that has waited for longer.
            let longer = others.values.reduce(UInt64(0)) { $0 + ($1.since < since ? 1 : 0) }
            if held == nil {
                most -= min(most, longer * quantum)
            } else {
                let claimants = UInt64(others.count + Set(grants.values.map(\.to)).count)
                let fair = max(quantum, capacity / claimants / quantum * quantum)
                most = min(most, fair)
                if let held, now - held.since >= slice, capacity - min(capacity, out) < quantum { most = 0 }
            }
        }
        var amount = min(most, (wanted + quantum - 1) / quantum * quantum)
        // The odd rest of a limit goes whole, to whoever takes all there is.
        if amount < most { amount -= amount % quantum }
        if held != nil {
            if amount < mine { residue.append((mine - amount, held?.until ?? now)) }
            grants[share]?.amount = amount
            grants[share]?.until = now + QuotaLimits.share
            if amount == 0 { grants[share] = nil }
            if amount == 0 { waiting[node] = (now, now) }
            return (amount == 0 ? 0 : share, amount)
        }
        guard amount > 0 else { return (0, 0) }
        waiting[node] = nil
        grants[number] = Grant(to: node, amount: amount, until: now + QuotaLimits.share, since: now)
        return (number, amount)
    }

    private func serves(_ node: NodeID) -> Bool { grants.values.contains { $0.to == node } }
}
