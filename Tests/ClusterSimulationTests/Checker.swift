// Watches a run from outside: what clients were told, what receivers got, what the disks and the control plane hold.
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

/// The invariants of DESIGN section 6, each named in its message. The first violation ends the run.
final class Checker {
    var violation: String?

    struct Recipient: Hashable {
        let mail: MessageID
        let recipient: Int
    }

    /// A dot that a receiver took.
    struct Arrival {
        let dot: Dot
        let host: Int
        let incarnation: Incarnation
        let at: Instant
        var answerLost = false
        /// Its place in the outcome log of its epoch, once its drainer recorded it.
        var position: Int?
        /// The drainer said that it is settled, and did not take it back.
        var settled = false
    }

    struct Scanned: Hashable {
        let host: Int
        let segment: SegmentID
    }

    struct Place: Hashable {
        let segment: SegmentID
        let index: Int64
    }

    private var scanned: Set<Scanned> = []
    /// Where a record was moved from (C2).
    private var lineage: [Place: Place] = [:]
    private var mail: [MessageID: MailRecord] = [:]
    private(set) var accepted: Set<MessageID> = []
    private var arrivals: [Recipient: [Arrival]] = [:]
    private var refusals: [Recipient: Int] = [:]
    private var counted: Set<MessageID> = []
    /// Bounced on record.
    private var finished: Set<Recipient> = []
    /// Reports of recorded bounces that have not arrived.
    private var openReports: Set<Recipient> = []
    private var unfinal: Set<Recipient> = []
    private var pendingDuplicates: [(Recipient, String)] = []
    private var ackedEnd: [SegmentID: Int64] = [:]
    private var sealedLengths: [SegmentID: Int64] = [:]
    private var highestDot: [SegmentID: UInt64] = [:]
    private var settledCounts: [String: Int] = [:]
    private var recorded: [String: [Int: Recipient]] = [:]
    private var powerLosses: [Int: [Instant]] = [:]
    /// Outcomes that a host had and lost with its power, unsynced.
    private var lostOutcomes: [Int: Set<String>] = [:]
    private var beforePowerLoss: [Int: Set<String>] = [:]
    private var lateKnown: Set<String> = []
    var rotten: Set<SegmentID> = []
    private var lostHosts: Set<Int> = []
    private(set) var duplicates = 0
    private(set) var dots = 0
    private(set) var takeoverDuplicates: [String: Int] = [:]

    func fail(_ text: String) {
        if violation == nil { violation = text }
    }

    // MARK: Clients

    func offered(_ record: MailRecord) { mail[record.id] = record }

    var allFinal: Bool { unfinal.isEmpty && openReports.isEmpty }

    var acceptedCount: Int { accepted.count }

    func observe(_ action: ClusterState.Action, _ index: Int, _ run: Simulation) {
        switch action {
        case .reply(let id, let yes): if yes { acknowledged(id, run) }
        case .maybeDuplicate(let id): counted.insert(id)
        case .final(let segment, let epoch, let position, let record, let mail):
            final(segment, epoch, position, record, mail)
        case .settled(let segment, let epoch, let count): settled(segment, epoch, count, index, run)
        case .send(.durable(let id, _), _): durable(id, index, run)
        case .disk(.scan(let id)):
            if run.controlPlane.keys[id]?.drainer == run.hosts[index].record.drainer {
                scanned.insert(Scanned(host: index, segment: id))
            }
        case .disk(.seal(let id, let epoch)):
            // F1: no seal carries an epoch that nobody won.
            if let key = run.controlPlane.keys[id], key.drainEpoch < epoch {
                fail("claim before seal: \(id.index) sealed at \(epoch) while the key is at \(key.drainEpoch)")
            }
        default: break
        }
    }

    private func acknowledged(_ id: MessageID, _ run: Simulation) {
        guard accepted.insert(id).inserted else { return }
        for recipient in 0..<(mail[id]?.recipients ?? 0) {
            let job = Recipient(mail: id, recipient: recipient)
            if arrivals[job] == nil, !finished.contains(job) { unfinal.insert(job) }
        }
        // Invariant 2: at 250 it is fdatasync'ed on as many disks as promised.
        var best = 0
        var everyThere = false
        for key in run.controlPlane.keys.values {
            let holders = run.hosts.filter { $0.disk.files[key.id]?.holds(id) == true }
            let lost = key.ensemble.filter { member in
                run.hosts.contains { $0.id == member.node && ($0.disk.lost || rotten.contains(key.id)) }
            }
            if !holders.isEmpty {
                best = max(best, holders.count + lost.count)
                if holders.count >= key.ensemble.count { everyThere = true }
                note(id, in: key, run)
            }
        }
        let gone = unfinal.allSatisfy { $0.mail != id }
        if best < run.plan.timing.copies, !everyThere, !gone, !isSettledAnywhere(id) {
            fail("invariant 2: 250 for \(id.low) with \(best) synced copies")
        }
    }

    private func isSettledAnywhere(_ id: MessageID) -> Bool {
        (0..<(mail[id]?.recipients ?? 0)).allSatisfy {
            arrivals[Recipient(mail: id, recipient: $0)] != nil
                || refusals[Recipient(mail: id, recipient: $0)] != nil
        }
    }

    /// Remembers how far a segment is acknowledged, and that this is before its seal (invariants 5, A2).
    private func note(_ id: MessageID, in key: ClusterKey, _ run: Simulation) {
        for host in run.hosts {
            for stored in host.disk.files[key.id]?.chunks ?? [] {
                guard let place = stored.chunk.records.firstIndex(where: { $0.id == id && $0.hold == nil }) else {
                    continue
                }
                let end = stored.chunk.start + Int64(place) + 1
                // Only the writer acknowledges here; a copy elsewhere may be an older, unacknowledged one.
                guard let state = run.hosts.first(where: { $0.id == key.id.writer })?.state,
                    state.me.incarnation == key.id.incarnation, state.append.lane.acked(key.id) >= end
                else { continue }
                ackedEnd[key.id] = max(ackedEnd[key.id] ?? 0, end)
                if let length = key.sealedAt, end > length {
                    fail("A2: \(id.low) acknowledged at \(end) behind the seal at \(length)")
                }
                return
            }
        }
    }

    private func durable(_ id: SegmentID, _ index: Int, _ run: Simulation) {
        // Invariant 4: whoever sealed a copy never helps an older epoch again, restarts included.
        guard scanned.contains(Scanned(host: index, segment: id)) else { return }
        fail("invariant 4: node \(index + 1) scanned \(id) as its taker, and sent DURABLE to its writer later")
    }

    // MARK: Outcomes

    private func log(_ segment: SegmentID, _ epoch: UInt64) -> String {
        "\(segment.writer.value).\(segment.incarnation.value).\(segment.index)@\(epoch)"
    }

    private func entry(_ segment: SegmentID, _ record: JobOutcome) -> String {
        "\(segment.writer.value).\(segment.incarnation.value).\(segment.index)#\(record.job.index).\(record.job.recipient)"
    }

    private func final(
        _ segment: SegmentID, _ epoch: UInt64, _ position: Int, _ record: JobOutcome, _ mail: MailRecord
    ) {
        let recipient = Recipient(mail: mail.id, recipient: record.job.recipient)
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
            let report = Recipient(mail: ClusterState.report(about: mail, record.job.recipient).id, recipient: 0)
            if !mail.isReport, arrivals[report] == nil { openReports.insert(report) }
            bounced.append((recipient, ClusterState.report(about: mail, record.job.recipient).id, mail.isReport))
            unfinal.remove(recipient)
            finished.insert(recipient)
        case .withdrawn, .released: break
        }
    }

    private var bounced: [(Recipient, MessageID, Bool)] = []

    private func settled(_ segment: SegmentID, _ epoch: UInt64, _ count: Int, _ index: Int, _ run: Simulation) {
        let log = log(segment, epoch)
        settledCounts[log] = count
        for (position, recipient) in recorded[log] ?? [:] {
            for place in arrivals[recipient]?.indices ?? 0..<0
            where arrivals[recipient]?[place].position == position && arrivals[recipient]?[place].dot.segment == segment
                && arrivals[recipient]?[place].dot.epoch == epoch
            {
                arrivals[recipient]?[place].settled = position < count
            }
        }
        checkSettled(segment, epoch, count, index, run)
    }

    /// P3 against the truth: a taker is sure to see it.
    private func checkSettled(
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
            guard let host = run.hosts.first(where: { $0.id == partner.node }), let copy = host.state?.copies[segment],
                run.now - host.lastStart > .seconds(3)
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
        if lateKnown.contains(log(dot.segment, dot.epoch) + "\(dot.job)") {
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
        let recipient = Recipient(mail: dot.mail.id, recipient: dot.job.recipient)
        guard answer == .unknown, let last = arrivals[recipient]?.indices.last else { return }
        if arrivals[recipient]?[last].dot == dot { arrivals[recipient]?[last].answerLost = true }
    }

    /// A late outcome reached the drainer before it sent the message.
    func heardLate(_ segment: SegmentID, _ epoch: UInt64, _ job: JobID) {
        lateKnown.insert(log(segment, epoch) + "\(job)")
    }

    func arrived(_ dot: Dot, _ answer: ReceiverAnswer, _ index: Int, _ run: Simulation) {
        let recipient = Recipient(mail: dot.mail.id, recipient: dot.job.recipient)
        guard answer == .accepted else {
            refusals[recipient, default: 0] += 1
            return
        }
        // Invariant 8: what arrives is what was accepted.
        if let known = mail[dot.mail.id], known.digest != dot.mail.digest {
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
    private func judge(_ recipient: Recipient, _ before: [Arrival], _ arrival: Arrival, _ run: Simulation) {
        if before.contains(where: \.answerLost) { return }
        let same = before.filter { root($0.dot) == root(arrival.dot) }
        guard !same.isEmpty else {
            if arrival.dot.mail.isReport { return }
            return pendingDuplicates.append((recipient, describe(before, arrival)))
        }
        if same.contains(where: { $0.dot.segment == arrival.dot.segment && $0.dot.epoch == arrival.dot.epoch }) {
            return fail("duplicate: \(recipient.mail.low) twice in one epoch: \(describe(before, arrival))")
        }
        let name = entry(arrival.dot.segment, JobOutcome(job: arrival.dot.job, outcome: .delivered))
        for earlier in same where earlier.settled && earlier.dot.segment != arrival.dot.segment {
            // Moved since: whoever moved it had lost the outcome with its power (P5).
            let name = entry(earlier.dot.segment, JobOutcome(job: earlier.dot.job, outcome: .delivered))
            guard !lostOutcomes.values.contains(where: { $0.contains(name) }) else { return }
            return fail(
                "duplicate: settled outcome of \(recipient.mail.low) moved and sent again: \(describe(before, arrival))"
            )
        }
        if same.contains(where: \.settled) {
            // The stated exception (P5): the sender had it and lost it with its power before the sync, or the holders burned.
            if lostOutcomes[arrival.host]?.contains(name) == true { return }
            if run.controlPlane.keys[arrival.dot.segment]?.stale.contains(where: {
                $0.node == run.hosts[arrival.host].id
            }) == true {
                return pendingDuplicates.append((recipient, describe(before, arrival)))
            }
            let holders = run.hosts.indices.filter { host in
                run.hosts[host].disk.files[arrival.dot.segment]?.log.contains { $0.record.job == arrival.dot.job }
                    == true
            }
            if holders.isEmpty, !lostHosts.isEmpty || lostOutcomes.values.contains(where: { $0.contains(name) }) {
                return
            }
            return fail("duplicate: settled outcome of \(recipient.mail.low) sent again: \(describe(before, arrival))")
        }
        guard let last = same.last else { return }
        // Of one segment, at most the dots in doubt at one moment; of all, a drainer may be taken over in two steps.
        takeoverDuplicates[
            "\(last.host).\(last.incarnation.value) in \(log(last.dot.segment, last.dot.epoch))", default: 0] += 1
    }

    /// The first place of a message that cleaning may have moved.
    private func root(_ dot: Dot) -> Place {
        var place = Place(segment: dot.segment, index: dot.job.index)
        while let earlier = lineage[place] { place = earlier }
        return place
    }

    private func describe(_ before: [Arrival], _ arrival: Arrival) -> String {
        (before + [arrival]).map {
            "node \($0.host + 1) \(log($0.dot.segment, $0.dot.epoch)) job \($0.dot.job.index).\($0.dot.job.recipient) \($0.dot.mail.hold.map { "\($0)" } ?? "")"
        }.joined(separator: ", then ")
    }

    // MARK: Power and disks

    func losingPower(_ index: Int, _ run: Simulation) {
        powerLosses[index, default: []].append(run.now)
        beforePowerLoss[index] = outcomes(on: index, run, process: true)
    }

    func lostPower(_ index: Int, _ run: Simulation) {
        let after = outcomes(on: index, run, process: false)
        lostOutcomes[index, default: []].formUnion((beforePowerLoss[index] ?? []).subtracting(after))
    }

    func lostDisk(_ index: Int) { lostHosts.insert(index) }

    private func outcomes(on index: Int, _ run: Simulation, process: Bool) -> Set<String> {
        var found: Set<String> = []
        let files = run.hosts[index].disk.files
        for id in files.keys {
            for logged in files[id]?.log ?? [] where logged.record.outcome.isFinal {
                found.insert(entry(id, logged.record))
            }
            // What the process had taken and the disk had not seen yet goes with the power as well.
            for job in process ? run.hosts[index].state?.copies[id]?.finals.keys ?? [] : [] {
                found.insert(entry(id, JobOutcome(job: job, outcome: .delivered)))
            }
        }
        return found
    }

    func performed(_ operation: DiskOperation, _ result: DiskResult, _ index: Int, _ run: Simulation) {
        if case .write(let chunk) = operation {
            for (place, record) in chunk.records.enumerated() {
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
        guard let old = before.keys[wanted.id] else { return }
        if new.drainEpoch < old.drainEpoch { fail("drain epoch of \(new.id.index) fell") }
        switch (old.state, new.state) {
        case (.open, .open), (.open, .sealed), (.sealed, .finished), (.finished, .finished): break
        case (.sealed(let was), .sealed(let length)):
            if was != length { fail("sealed length of \(new.id.index) changed from \(was) to \(length)") }
        default: fail("state of \(new.id.index) went from \(old.state) to \(new.state)")
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

    /// C1: whoever enters the ensemble has data and outcomes on its disk.
    private func checkJoined(_ member: EnsembleMember, _ key: ClusterKey, _ run: Simulation) {
        guard let host = run.hosts.first(where: { $0.id == member.node }), let length = key.sealedAt,
            !rotten.contains(key.id)
        else { return }
        let file = host.disk.files[key.id]
        let end = file?.chunks.filter { $0.synced && $0.intact }.last?.chunk.end ?? 0
        if end < length || file?.sealEpoch ?? 0 < key.drainEpoch {
            fail(
                "C1: node \(member.node.value) joined \(key.id.index) with \(end) of \(length), sealed \(file?.sealEpoch ?? 0)"
            )
        }
        let drainer = run.hosts.first { $0.id == key.drainer.node }
        let needed = drainer?.disk.files[key.id]?.log.filter(\.synced).map(\.record.job) ?? []
        let have = Set(file?.log.filter(\.synced).map(\.record.job) ?? [])
        if !Set(needed).isSubset(of: have) {
            fail("C1: node \(member.node.value) joined \(key.id.index) without outcomes")
        }
    }

    /// Invariant 7: a body goes only after a final outcome is durable on the ensemble.
    private func checkFinished(_ key: ClusterKey, _ run: Simulation) {
        guard let length = sealedLengths[key.id], key.target == nil else { return }
        for member in key.ensemble where !key.stale.contains(member) {
            guard let host = run.hosts.first(where: { $0.id == member.node }), let file = host.disk.files[key.id] else {
                continue
            }
            let final = Set(file.log.filter { $0.synced && $0.record.outcome.isFinal }.map(\.record.job))
            for stored in file.chunks where !rotten.contains(key.id) {
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

    private func removed(_ key: ClusterKey, _ run: Simulation) {
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
        for (recipient, text) in pendingDuplicates where !counted.contains(recipient.mail) {
            return fail("duplicate: \(recipient.mail.low) arrived twice, not counted: \(text)")
        }
        for (drainer, count) in takeoverDuplicates where count > run.plan.timing.window {
            return fail("invariant 10: \(count) duplicates of drainer \(drainer)")
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
