// Power, disks, the control plane, and what has to be so in the end.
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

extension Checker {
    // MARK: Power and disks

    func losingPower(_ index: Int, _ run: Simulation) {
        powerLosses[index, default: []].append(run.now)
        beforePowerLoss[index] = outcomes(on: index, run, process: true)
    }

    func lostPower(_ index: Int, _ run: Simulation) {
        let after = outcomes(on: index, run, process: false)
        let lost = (beforePowerLoss[index] ?? []).subtracting(after)
        if !lost.isEmpty { lostOutcomes[index, default: []].formUnion(lost) }
    }

    func lostDisk(_ index: Int) { lostHosts.insert(index) }

    func outcomes(on index: Int, _ run: Simulation, process: Bool) -> Set<Entry> {
        var found: Set<Entry> = []
        let files = run.hosts[index].disk.files
        for id in files.keys {
            for logged in files[id]?.log ?? [] where logged.record.outcome.isFinal {
                found.insert(Entry(segment: id, job: logged.record.job))
            }
            // What the process had taken and the disk had not seen yet goes with the power as well.
            for job in process ? run.hosts[index].state?.copies[id]?.finals.keys ?? [] : [] {
                found.insert(Entry(segment: id, job: job))
            }
        }
        return found
    }

    func performed(_ operation: DiskOperation, _ result: DiskResult, _ index: Int, _ run: Simulation) {
        if case .repair(_, let chunks) = operation {
            for chunk in chunks {
                for record in chunk.records { written[record.id, default: []].insert(chunk.segment) }
            }
        }
        if case .write(let chunk) = operation {
            for (place, record) in chunk.records.enumerated() {
                written[record.id, default: []].insert(chunk.segment)
                guard case .moved(let source, _, let index)? = record.hold else { continue }
                lineage[Place(segment: chunk.segment, index: chunk.start + Int64(place))] = Place(
                    segment: source, index: index)
            }
        }
        guard case .cut(let id, let length) = operation else { return }
        // Invariant 6: cut to the registry's n and to nothing else.
        if let key = run.controlPlane.keys[id], key.sealedAt != length, key.state != .finished {
            fail("invariant 6: node \(index + 1) cuts \(id.index) at \(length), the key says \(key.state)")
        }
    }

    // MARK: Control plane

    func committed(_ request: ControlRequest, _ before: SimulatedControlPlane, _ run: Simulation) {
        guard case .store(let wanted, _) = request, let new = run.controlPlane.keys[wanted.id] else {
            if case .remove(let key) = request { removed(key, run) }
            return
        }
        guard let old = before.keys[wanted.id] else { return registered(new, run) }
        drainers[log(new.id, new.drainEpoch)] = run.index(new.drainer.node)
        if new.drainEpoch < old.drainEpoch { fail("drain epoch of \(new.id.index) fell") }
        switch (old.state, new.state) {
        case (.open, .open), (.open, .sealed), (.sealed, .finished), (.finished, .finished): break
        case (.sealed(let was), .sealed(let length)):
            if was != length { fail("sealed length of \(new.id.index) changed from \(was) to \(length)") }
        default: fail("state of \(new.id.index) went from \(old.state) to \(new.state)")
        }
        if new.drainer != old.drainer, new.stale.contains(where: { $0.node == new.drainer.node }) {
            lastCopies.insert(log(new.id, new.drainEpoch))
        }
        if let length = new.sealedAt { sealedLengths[new.id] = length }
        if case .open = old.state, let length = new.sealedAt, length < ackedEnd[new.id] ?? 0 {
            fail("invariant 5: \(new.id.index) sealed at \(length), acknowledged up to \(ackedEnd[new.id] ?? 0)")
        }
        if case .open = old.state, Set(old.ensemble) != Set(new.ensemble) {
            fail("A1: ensemble of open \(new.id.index) changed")
        }
        for joined in new.ensemble where !old.ensemble.contains(joined) { checkJoined(joined, new, run) }
        if new.state == .finished, old.state != .finished { checkFinished(new, run) }
    }

    /// A4: the key of a new segment comes after everybody's file, so that a missing one is damage.
    func registered(_ key: ClusterKey, _ run: Simulation) {
        for member in key.ensemble {
            let host = run.index(member.node)
            if !run.hosts[host].disk.lost, run.hosts[host].disk.files[key.id] == nil {
                fail("A4: key of \(key.id.index) written while node \(host + 1) has no file of it")
            }
        }
    }

    /// C1: whoever enters the ensemble has data and outcomes on its disk.
    func checkJoined(_ member: EnsembleMember, _ key: ClusterKey, _ run: Simulation) {
        guard let host = run.hosts.first(where: { $0.id == member.node }), let length = key.sealedAt,
            !rotten.contains(key.id), !host.disk.lost
        else { return }
        let file = host.disk.files[key.id]
        let end = file?.chunks.filter { $0.synced && $0.intact }.last?.chunk.end ?? 0
        if end < length || file?.sealEpoch ?? 0 < key.drainEpoch {
            fail(
                "C1: node \(member.node.value) joined \(key.id.index) with \(end) of \(length), sealed \(file?.sealEpoch ?? 0)"
            )
        }
    }

    /// Invariant 7: a body goes only after a final outcome is durable on the ensemble.
    func checkFinished(_ key: ClusterKey, _ run: Simulation) {
        guard let length = sealedLengths[key.id], key.target == nil else { return }
        for member in key.ensemble where !key.stale.contains(member) {
            guard let host = run.hosts.first(where: { $0.id == member.node }), let file = host.disk.files[key.id] else {
                continue
            }
            let final = Set(file.log.filter { $0.synced && $0.record.outcome.isFinal }.map(\.record.job))
            for stored in file.chunks where stored.intact && !rotten.contains(key.id) {
                for (place, record) in stored.chunk.records.enumerated()
                where stored.chunk.start + Int64(place) < length {
                    for recipient in 0..<record.recipients where !record.settledBefore.contains(recipient) {
                        let job = JobID(index: stored.chunk.start + Int64(place), recipient: recipient)
                        if !final.contains(job) {
                            fail(
                                "invariant 7: \(key.id.index) finished, node \(member.node.value) lacks the outcome of \(job)"
                            )
                        }
                    }
                }
            }
        }
    }

    func removed(_ key: ClusterKey, _ run: Simulation) {
        for host in run.hosts where !host.gone && host.disk.files[key.id] != nil {
            let member = EnsembleMember(node: host.id, diskID: host.disk.id)
            if key.ensemble.contains(member) || key.former.contains(member) || key.joining == member {
                fail("C3: key of \(key.id.index) removed while node \(host.id.value) has its file")
            }
        }
    }

    // MARK: The end

    func conclude(_ run: Simulation) {
        if let lost = unfinal.min(by: { $0.mail < $1.mail }) {
            let left = run.controlPlane.keys.values.filter { $0.state != .open }.count
            return fail(
                "invariant 1: \(unfinal.count) recipients have no final outcome, \(lost.mail.low).\(lost.recipient) among them; \(left) segments sealed or finished"
            )
        }
        for (recipient, report, isReport) in bounced where !isReport {
            if openReports.contains(Recipient(mail: report, recipient: 0)) {
                return fail("NDR: \(recipient.mail.low).\(recipient.recipient) bounced, its report never arrived")
            }
        }
        for (recipient, text) in pendingDuplicates where !counted.contains(recipient) {
            return fail("duplicate: \(recipient.mail.low) arrived twice, not counted: \(text)")
        }
        // The client sends it again.
        if let (recipient, _) = arrivals.filter({ refused.contains($0.key.mail) && !counted.contains($0.key) })
            .min(by: { ($0.key.mail, $0.key.recipient) < ($1.key.mail, $1.key.recipient) })
        {
            return fail(
                "duplicate: 451 for \(recipient.mail.low), and \(recipient.recipient) of it arrived, not counted")
        }
        for (drainer, count) in takeoverDuplicates where count > run.plan.timing.window {
            return fail("invariant 10: \(count) duplicates of node \(drainer.host + 1) in \(drainer.log)")
        }
        if !run.quiet {
            let left = run.controlPlane.keys.values.filter { $0.state != .open }.map { "\($0)" }
            return fail("invariant 12: not quiet in the end: \(left.prefix(2))")
        }
        for host in run.hosts where !host.gone {
            for id in host.disk.files.keys {
                let member = EnsembleMember(node: host.id, diskID: host.disk.id)
                if let key = run.controlPlane.keys[id] {
                    if !key.ensemble.contains(member) {
                        return fail("node \(host.id.value) keeps a file that is not its own")
                    }
                } else if host.disk.files[id]?.chunks.isEmpty == false {
                    return fail("invariant 12: node \(host.id.value) keeps \(id) without a key")
                }
            }
        }
    }
}
