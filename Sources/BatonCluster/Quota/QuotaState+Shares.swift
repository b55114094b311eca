// Asking for shares, giving them, and giving them back.
import BatonCore
import BatonPeer

extension QuotaState {
    // MARK: Holder

    /// Asks for what is short, renews what is used, gives back what is not.
    mutating func tend(_ key: QuotaKey) {
        guard let roster, var entry = entries[key] else { return }
        for (giver, held) in entry.shares where held.share.until <= now { entry.shares[giver] = nil }
        for (giver, request) in entry.requests where now - request.at >= QuotaLimits.answer {
            entry.requests[giver] = nil
        }
        entries[key] = entry
        returnSpare(key)
        guard let entry = entries[key], entry.wanted > 0 else { return }
        let have = allowance(of: key, limit: entry.limit, at: now)
        var short = entry.wanted - min(entry.wanted, have)
        let home = roster.home(of: key.site)
        // The home first; the others in an order of their own for each node, so that not all ask the same one.
        let others = roster.members.map(\.node).filter { $0 != home && $0 != own }
            .sorted { SplitMix64.mix($0.value ^ own.value) < SplitMix64.mix($1.value ^ own.value) }
        for giver in [home].compactMap({ $0 }) + others {
            guard let entry = entries[key], entry.requests[giver] == nil else { continue }
            let held = entry.shares[giver]
            let renews = held.map { due($0.share) } ?? false
            if let notBefore = entry.notBefore[giver], now < notBefore { continue }
            guard renews || short > 0, sent < QuotaLimits.sendsPerTick || giver == own else { continue }
            let amount = (held?.share.amount ?? 0) + short
            ask(key, giver, share: held?.number ?? 0, amount: amount)
            let now = allowance(of: key, limit: entry.limit, at: self.now)
            short = entry.wanted - min(entry.wanted, now)
        }
    }

    /// Half of its time is over.
    private func due(_ share: Share) -> Bool {
        (now - share.askedAt).nanoseconds * 2 >= (share.until - share.askedAt).nanoseconds
    }

    private mutating func ask(_ key: QuotaKey, _ giver: NodeID, share: UInt64, amount: UInt64) {
        let request = nextNumber()
        entries[key]?.requests[giver] = Request(number: request, at: now, share: share)
        entries[key]?.notBefore[giver] = now + QuotaLimits.answer
        let message = Quota(
            verb: .request, kind: key.kind, span: .zero, request: request, share: share, amount: max(1, amount),
            site: key.site)
        if giver == own {
            answer(message, key, to: own)
        } else {
            sent += 1
            actions.append(.send(message, to: giver))
        }
    }

    /// Shares that nothing needs, the smallest loss first.
    private mutating func returnSpare(_ key: QuotaKey) {
        guard let entry = entries[key], !entry.shares.isEmpty else { return }
        var spare = allowance(of: key, limit: entry.limit, at: now)
        spare -= min(spare, entry.wanted)
        for (giver, held) in entry.shares.sorted(by: { $0.key.value < $1.key.value }) where held.share.amount <= spare {
            spare -= held.share.amount
            giveBack(key, giver, held.number)
        }
    }

    private mutating func giveBack(_ key: QuotaKey, _ giver: NodeID, _ share: UInt64) {
        // From here on it is not used, whatever the giver still says.
        entries[key]?.shares[giver] = nil
        entries[key]?.requests[giver] = nil
        if giver == own {
            takeBack(share, key, from: own)
        } else {
            sent += 1
            actions.append(
                .send(
                    Quota(
                        verb: .returned, kind: key.kind, span: .zero, request: nextNumber(), share: share, amount: 0,
                        site: key.site), to: giver))
        }
    }

    private mutating func granted(_ message: Quota, _ key: QuotaKey, from giver: NodeID) {
        guard let request = entries[key]?.requests[giver],
            request.number == message.request || !guards.contains(.latestAnswerOnly)
        else { return }
        entries[key]?.requests[giver] = nil
        guard message.share != 0 else {
            // Nothing now. What there was of a share that was to be renewed lasts until its end.
            entries[key]?.notBefore[giver] = now + message.span
            return
        }
        let part = guards.contains(.spanMargin) ? QuotaLimits.holderPart : 1
        entries[key]?.shares[giver] = (
            message.share,
            Share(
                amount: message.amount, until: request.at + message.span.multiplied(by: part), askedAt: request.at)
        )
        entries[key]?.notBefore[giver] = now + QuotaLimits.retry
    }

    // MARK: Giver

    mutating func received(_ message: Quota, from sender: NodeID) {
        let key = QuotaKey(site: message.site, kind: message.kind)
        switch message.verb {
        case .request: answer(message, key, to: sender)
        case .grant: granted(message, key, from: sender)
        case .returned: takeBack(message.share, key, from: sender)
        }
    }

    private mutating func takeBack(_ share: UInt64, _ key: QuotaKey, from node: NodeID) {
        if entries[key]?.pool.takeBack(share, from: node) == true { return }
        _ = entries[key]?.floor.takeBack(share, from: node)
    }

    private mutating func answer(_ message: Quota, _ key: QuotaKey, to node: NodeID) {
        guard roster?[node] != nil else { return }
        var given: (share: UInt64, amount: UInt64) = (0, 0)
        if ensure(key, limit: nil) { given = give(message, key, to: node) }
        let answer = Quota(
            verb: .grant, kind: key.kind, span: given.share == 0 ? QuotaLimits.retry : QuotaLimits.share,
            request: message.request, share: given.share, amount: given.amount, site: key.site)
        if node == own { granted(answer, key, from: own) } else { actions.append(.send(answer, to: node)) }
    }

    private mutating func give(_ message: Quota, _ key: QuotaKey, to node: NodeID) -> (share: UInt64, amount: UInt64) {
        guard let entry = entries[key] else { return (0, 0) }
        let quantum = key.quantum(of: entry.limit)
        let slice = key.kind == .rate ? QuotaState.slice(of: entry.limit) : QuotaLimits.slice
        let counts = guards.contains(.countsWhatIsGiven)
        let share = nextNumber()
        var rest = message.share
        if entry.floor.holds(message.share, node) { rest = 0 }
        if !entry.floor.holds(message.share, node), let pool = poolAsHome(of: key, limit: entry.limit) {
            let given: (share: UInt64, amount: UInt64) =
                entries[key]?.pool.give(
                    node, wanted: message.amount, renewing: rest, number: share, capacity: pool, quantum: quantum,
                    slice: slice, at: now, countsWhatIsGiven: counts) ?? (0, 0)
            if given.amount > 0 || entry.pool.holds(message.share, node) { return given }
        } else if entry.pool.holds(message.share, node) {
            // Not the home any more, or not certain of it: the share ends by itself.
            return (0, 0)
        }
        guard node != own else { return (0, 0) }
        // What it does not need itself, in whole quanta.
        let floor = ownFloor(of: key, limit: entry.limit, at: now)
        let needed = (entry.wanted + quantum - 1) / quantum * quantum
        return entries[key]?.floor.give(
            node, wanted: message.amount, renewing: message.share, number: share,
            capacity: floor - min(floor, needed), quantum: quantum, slice: slice, at: now,
            countsWhatIsGiven: counts) ?? (0, 0)
    }

    /// A small rate stays long enough in one place for a message to be sent there: twice the time between two.
    static func slice(of ratePerHour: UInt64) -> TimeSpan {
        max(QuotaLimits.slice, TimeSpan.seconds(7_200).multiplied(by: 1 / Double(max(1, ratePerHour))))
    }
}
