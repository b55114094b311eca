// Final dots: permission, the window, and an explanation for every message that arrives twice.
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

extension Checker {
    // MARK: Dots

    func sent(_ dot: Dot, _ index: Int, _ run: Simulation) {
        dots += 1
        // Invariant 3: no dot of an epoch after the first dot of a higher one.
        if let highest = highestDot[dot.segment], dot.epoch < highest {
            fail(
                "invariant 3: node \(index + 1) sends \(dot.mail.id.low) of \(log(dot.segment, dot.epoch)) after a dot of epoch \(highest)"
            )
        }
        highestDot[dot.segment] = max(highestDot[dot.segment] ?? 0, dot.epoch)
        if dot.mail.hold != nil, run.hosts[index].state?.drains[dot.segment]?.records[Int(dot.job.index)].held == true {
            fail("held: \(dot.mail.id.low) sent while it is held")
        }
        if lateKnown.contains(Late(log: log(dot.segment, dot.epoch), job: dot.job)) {
            fail("T5: \(dot.mail.id.low) sent although its late outcome was known")
        }
        if let state = run.hosts[index].state, let drain = state.drains[dot.segment] {
            checkSettled(dot.segment, dot.epoch, state.settledCount(dot.segment, drain), index, run)
        }
        // Invariant 10: at most W dots without a settled outcome. That "settled" is true is checked where it is said.
        let open = run.hosts[index].state?.unsettled ?? 0
        if open > run.plan.timing.window { fail("invariant 10: node \(index + 1) has \(open) dots in doubt") }
    }

    func answered(_ dot: Dot, _ answer: ReceiverAnswer) {
        let recipient = Recipient(dot.mail, dot.job.recipient)
        guard answer == .unknown, let last = arrivals[recipient]?.indices.last else { return }
        if arrivals[recipient]?[last].dot == dot { arrivals[recipient]?[last].answerLost = true }
    }

    /// A late outcome reached the drainer before it sent the message.
    func heardLate(_ segment: SegmentID, _ epoch: UInt64, _ job: JobID) {
        lateKnown.insert(Late(log: log(segment, epoch), job: job))
    }

    func arrived(_ dot: Dot, _ answer: ReceiverAnswer, _ index: Int, _ run: Simulation) {
        let recipient = Recipient(dot.mail, dot.job.recipient)
        guard answer == .accepted else {
            refusals[recipient, default: 0] += 1
            return
        }
        // Invariant 8: what arrives is what was accepted.
        if let known = mail[dot.mail.id]?.first, known.digest != dot.mail.digest {
            fail("invariant 8: \(dot.mail.id.low) altered")
        }
        let arrival = Arrival(dot: dot, host: index, incarnation: run.hosts[index].incarnation, at: run.now)
        let before = arrivals[recipient] ?? []
        arrivals[recipient, default: []].append(arrival)
        unfinal.remove(recipient)
        openReports.remove(recipient)
        guard !before.isEmpty else { return }
        duplicates += 1
        judge(recipient, before, arrival, run)
    }

    /// Every duplicate has an explanation that was counted or bounded before it happened.
    func judge(_ recipient: Recipient, _ before: [Arrival], _ arrival: Arrival, _ run: Simulation) {
        if before.contains(where: \.answerLost) { return }
        let same = before.filter { root($0.dot) == root(arrival.dot) }
        guard !same.isEmpty else {
            if arrival.dot.mail.isReport { return }
            return pendingDuplicates.append((recipient, describe(before, arrival)))
        }
        // A stale last copy counts all that it delivers (P2).
        if lastCopies.contains(where: { $0.segment == arrival.dot.segment && $0.epoch <= arrival.dot.epoch }),
            !same.contains(where: { $0.dot.segment == arrival.dot.segment && $0.dot.epoch == arrival.dot.epoch })
        {
            return pendingDuplicates.append((recipient, describe(before, arrival)))
        }
        if same.contains(where: { $0.dot.segment == arrival.dot.segment && $0.dot.epoch == arrival.dot.epoch }) {
            return fail("duplicate: \(recipient.mail.low) twice in one epoch: \(describe(before, arrival))")
        }
        let name = Entry(segment: arrival.dot.segment, job: arrival.dot.job)
        for earlier in same where earlier.settled && earlier.dot.segment != arrival.dot.segment {
            // Moved since: whoever moved it had lost the outcome with its power (P5).
            let name = Entry(segment: earlier.dot.segment, job: earlier.dot.job)
            guard !lostOutcomes.values.contains(where: { $0.contains(name) }) else { return }
            // Its disk burned, and a stale member was the last copy: it counts what it delivers (P2).
            if lostHosts.contains(earlier.host) {
                return pendingDuplicates.append((recipient, describe(before, arrival)))
            }
            return fail(
                "duplicate: settled outcome of \(recipient.mail.low) moved and sent again: \(describe(before, arrival))"
            )
        }
        if same.contains(where: \.settled) {
            // The stated exception (P5): the sender had it and lost it with its power before the sync, or the holders burned.
            if lostOutcomes[arrival.host]?.contains(name) == true { return takeBack(recipient) }
            let holders = run.hosts.indices.filter { host in
                run.hosts[host].disk.files[arrival.dot.segment]?.log.contains {
                    $0.record.outcome.isFinal && $0.record.job == arrival.dot.job
                }
                    == true
            }
            // Or a drainer in between had lost it so, went on while those that have it were away, and the members since have what it had
            // (seed 41689).
            let fallen = drainers.contains { drained, host in
                drained.segment == arrival.dot.segment && drained.epoch <= arrival.dot.epoch
                    && same.contains { $0.settled && $0.dot.epoch < drained.epoch }
                    && lostOutcomes[host]?.contains(name) == true
            }
            let members = run.controlPlane.keys[arrival.dot.segment].map { key in
                key.ensemble.filter { !key.stale.contains($0) }.map { run.index($0.node) }
            }
            if fallen, holders.allSatisfy({ members?.contains($0) == false }) { return takeBack(recipient) }
            if holders.isEmpty, !lostHosts.isEmpty || lostOutcomes.values.contains(where: { $0.contains(name) }) {
                return takeBack(recipient)
            }
            // Its file was lost, and what the stale members know may be less (seed 115933): it counts.
            if lostFiles.contains(Scanned(host: arrival.host, segment: arrival.dot.segment)) {
                return pendingDuplicates.append((recipient, describe(before, arrival)))
            }
            return fail("duplicate: settled outcome of \(recipient.mail.low) sent again: \(describe(before, arrival))")
        }
        guard let last = same.last else { return }
        // Outcomes were lost where they stood; a cleaning may have moved the message since (seed 89045).
        let once = Entry(segment: last.dot.segment, job: last.dot.job)
        // The same for an outcome that its own drainer lost while it was settled through a backup that is down now.
        if same.contains(where: \.onceSettled), lostOutcomes[arrival.host]?.contains(once) == true { return }
        // P5's exception before it was in doubt: a backup had it and lost it, and the drainer fell before it could send it again.
        if lostOutcomes.contains(where: { $0.key != last.host && $0.value.contains(once) }) { return }
        // Of one segment, at most the dots in doubt at one moment; of all, a drainer may be taken over in two steps.
        let doubled = Doubled(
            host: last.host, incarnation: last.incarnation, log: log(last.dot.segment, last.dot.epoch))
        takeoverDuplicates[doubled, default: 0] += 1
    }

    /// What was settled is lost by P5's exception, and has been sent again: a further repetition is judged by the outcome of that, which
    /// may be in doubt like any other (seeds 7415, 9480).
    private func takeBack(_ recipient: Recipient) {
        for place in arrivals[recipient]?.indices ?? 0..<0 { arrivals[recipient]?[place].settled = false }
    }

    /// The first place of a message that cleaning may have moved.
    func root(_ dot: Dot) -> Place {
        var place = Place(segment: dot.segment, index: dot.job.index)
        while let earlier = lineage[place] { place = earlier }
        return place
    }

    func describe(_ before: [Arrival], _ arrival: Arrival) -> String {
        (before + [arrival]).map {
            "node \($0.host + 1) \(log($0.dot.segment, $0.dot.epoch)) job \($0.dot.job.index).\($0.dot.job.recipient) \($0.dot.mail.hold.map { "\($0)" } ?? "")"
        }.joined(separator: ", then ")
    }
}
