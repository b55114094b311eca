// What drainers record and call settled, against what receivers got and partners hold.
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

extension Checker {
    // MARK: Outcomes

    func log(_ segment: SegmentID, _ epoch: UInt64) -> Log { Log(segment: segment, epoch: epoch) }

    func final(
        _ segment: SegmentID, _ epoch: UInt64, _ position: Int, _ record: JobOutcome, _ mail: MailRecord,
        _ run: Simulation
    ) {
        let recipient = Recipient(mail, record.job.recipient)
        let log = log(segment, epoch)
        recorded[log, default: [:]][position] = recipient
        let isSettled = position < settledCounts[log] ?? 0
        for place in arrivals[recipient]?.indices ?? 0..<0
        where arrivals[recipient]?[place].dot.segment == segment && arrivals[recipient]?[place].dot.epoch == epoch {
            arrivals[recipient]?[place].position = position
            arrivals[recipient]?[place].settled = isSettled
        }
        switch record.outcome {
        case .delivered:
            if arrivals[recipient] == nil {
                fail("invariant 1: \(mail.id.low) delivered on record, but it never arrived")
            }
            unfinal.remove(recipient)
        case .bounced:
            let id = ClusterState.report(about: mail.id, number: recipient.recipient).id
            let report = Recipient(mail: id, recipient: 0)
            if !mail.isReport, arrivals[report] == nil { openReports.insert(report) }
            bounced.append((recipient, id, mail.isReport))
            unfinal.remove(recipient)
            finished.insert(recipient)
        case .withdrawn:
            // S5: the copy that counts instead is as safe as this one.
            guard case .submit? = mail.hold, accepted.contains(mail.id), !isSettledAnywhere(mail) else { break }
            let others = copies(of: mail, besides: segment, run)
            // Cleaning may have moved the other one into this very segment.
            let twice = run.hosts.count { $0.disk.files[segment]?.holdsTwice(mail) == true }
            if others < run.plan.timing.copies, twice < run.plan.timing.copies {
                fail("invariant 1: \(mail.id.low) withdrawn, and \(others) disks have it elsewhere")
            }
        case .released: break
        }
    }

    func settled(_ segment: SegmentID, _ epoch: UInt64, _ count: Int, _ index: Int, _ run: Simulation) {
        let log = log(segment, epoch)
        let said = settledCounts[log] ?? 0
        settledCounts[log] = count
        for position in min(said, count)..<max(said, count) {
            guard let recipient = recorded[log]?[position] else { continue }
            for place in arrivals[recipient]?.indices ?? 0..<0
            where arrivals[recipient]?[place].position == position && arrivals[recipient]?[place].dot.segment == segment
                && arrivals[recipient]?[place].dot.epoch == epoch
            {
                arrivals[recipient]?[place].settled = position < count
            }
        }
        // After a pause it may still believe an incarnation that has ended; only with fresh promises does it act on that.
        if let state = run.hosts[index].state, let drain = state.drains[segment], state.mayDot(segment, drain) {
            checkSettled(segment, epoch, count, index, run)
        }
    }

    /// P3 against the truth: a taker is sure to see it.
    func checkSettled(
        _ segment: SegmentID, _ epoch: UInt64, _ count: Int, _ index: Int, _ run: Simulation
    ) {
        guard count > 0, let key = run.controlPlane.keys[segment], key.drainEpoch == epoch,
            key.drainer.node == run.hosts[index].id
        else { return }
        let own = EnsembleMember(node: run.hosts[index].id, diskID: run.hosts[index].disk.id)
        let partners = key.partners(of: own)
        if partners.isEmpty {
            let entries = run.hosts[index].disk.files[segment]?.log.filter {
                $0.epoch == epoch && $0.synced && $0.position < count
            }
            if let entries, entries.count < count {
                fail("P3: \(count) outcomes of \(log(segment, epoch)) settled alone, \(entries.count) synced")
            }
        }
        for partner in partners {
            let host = run.index(partner.node)
            guard run.now - run.hosts[host].lastStart > .seconds(3), let copy = run.hosts[host].state?.copies[segment]
            else { continue }
            if copy.logEpoch == epoch, copy.logCount < count {
                fail(
                    "P3: \(count) outcomes of \(log(segment, epoch)) settled, node \(partner.node.value) has \(copy.logCount)"
                )
            } else if copy.logEpoch < epoch {
                fail(
                    "P3: \(count) outcomes of \(log(segment, epoch)) settled, node \(partner.node.value) has an older log"
                )
            }
        }
    }
}
