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
        /// Its number in the whole message.
        let recipient: Int

        init(mail: MessageID, recipient: Int) {
            self.mail = mail
            self.recipient = recipient
        }

        /// By its place in a part.
        init(_ part: MailRecord, _ place: Int) { self.init(mail: part.id, recipient: part.firstNumber + place) }
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
        var settled = false {
            didSet { if settled { onceSettled = true } }
        }
        /// It was in doubt again only because a backup left or restarted (P3).
        var onceSettled = false
    }

    struct Scanned: Hashable {
        let host: Int
        let segment: SegmentID
    }

    struct Place: Hashable {
        let segment: SegmentID
        let index: Int64
    }

    struct Log: Hashable, CustomStringConvertible {
        let segment: SegmentID
        let epoch: UInt64

        var description: String {
            "\(segment.writer.value).\(segment.incarnation.value).\(segment.index)@\(epoch)"
        }
    }

    struct Entry: Hashable {
        let segment: SegmentID
        let job: JobID
    }

    struct Late: Hashable {
        let log: Log
        let job: JobID
    }

    /// How often a dot of a drainer in one epoch of one segment arrived twice because of a takeover.
    struct Doubled: Hashable {
        let host: Int
        let incarnation: Incarnation
        let log: Log
    }

    var scanned: Set<Scanned> = []
    /// Segments that a message was ever written to.
    var written: [MessageID: Set<SegmentID>] = [:]
    /// Where a record was moved from (C2).
    var lineage: [Place: Place] = [:]
    /// Its parts, in the order of their recipients.
    var mail: [MessageID: [MailRecord]] = [:]
    /// Answered with 451.
    var refused: Set<MessageID> = []
    var accepted: Set<MessageID> = []
    var arrivals: [Recipient: [Arrival]] = [:]
    var refusals: [Recipient: Int] = [:]
    var counted: Set<Recipient> = []
    /// Bounced on record.
    var finished: Set<Recipient> = []
    /// Reports of recorded bounces that have not arrived.
    var openReports: Set<Recipient> = []
    var bounced: [(Recipient, MessageID, Bool)] = []
    var unfinal: Set<Recipient> = []
    var pendingDuplicates: [(Recipient, String)] = []
    var ackedEnd: [SegmentID: Int64] = [:]
    var sealedLengths: [SegmentID: Int64] = [:]
    var highestDot: [SegmentID: UInt64] = [:]
    var settledCounts: [Log: Int] = [:]
    /// Takeovers by a stale member that was the last copy (P2): it counts what it delivers.
    var lastCopies: Set<Log> = []
    /// How much of a log was handed to a disk.
    var logged: [Log: Int] = [:]
    var recorded: [Log: [Int: Recipient]] = [:]
    /// Who drained a segment in which epoch.
    var drainers: [Log: Int] = [:]
    var powerLosses: [Int: [Instant]] = [:]
    /// Outcomes that a host had and lost with its power, unsynced.
    var lostOutcomes: [Int: Set<Entry>] = [:]
    var beforePowerLoss: [Int: Set<Entry>] = [:]
    var lateKnown: Set<Late> = []
    var rotten: Set<SegmentID> = []
    /// Hosts that lost their file of a segment.
    var lostFiles: Set<Scanned> = []
    var lostHosts: Set<Int> = []
    var duplicates = 0
    var dots = 0
    var takeoverDuplicates: [Doubled: Int] = [:]

    func fail(_ text: String) {
        if violation == nil { violation = text }
    }

    // MARK: Clients

    func offered(_ parts: [MailRecord]) { if let first = parts.first { mail[first.id] = parts } }

    var allFinal: Bool { unfinal.isEmpty && openReports.isEmpty }

    var acceptedCount: Int { accepted.count }

    func observe(_ action: ClusterState.Action, _ index: Int, _ run: Simulation) {
        switch action {
        case .reply(let id, let yes): if yes { acknowledged(id, run) } else { refused.insert(id) }
        case .maybeDuplicate(let mail):
            for place in 0..<mail.recipients { counted.insert(Recipient(mail, place)) }
        case .final(let segment, let epoch, let position, let record, let mail):
            final(segment, epoch, position, record, mail, run)
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
        case .control(.store(let key, .gone(let old))): claimed(key, old, index, run)
        case .control(.store(let key, .none)): returned(key, index, run)
        case .disk(.outcomes(let id, let epoch, let from, let records)):
            logged[log(id, epoch)] = max(logged[log(id, epoch)] ?? 0, from + records.count)
        default: break
        }
    }

    /// T6: a started node leaves a segment to its old owner, whom it sees back, for a while.
    func claimed(_ key: ClusterKey, _ old: Drainer, _ index: Int, _ run: Simulation) {
        let host = run.hosts[index]
        guard key.drainer.node == host.id, old.node != host.id, let nodes = host.state?.registry.nodes else { return }
        // Clocks run up to 7 % fast.
        let waited = (run.now - host.lastStart).nanoseconds
        guard waited < run.plan.timing.ownerFirst.nanoseconds / 10 * 9 else { return }
        if nodes.contains(where: {
            $0.node == old.node && key.ensemble.contains($0.member) && !key.stale.contains($0.member)
        }) {
            fail("T6: node \(index + 1) claims \(key.id), whose owner is back")
        }
    }

    /// P2 and C1: whoever leaves `stale`, or enters the ensemble, has every outcome of this drainer on its disk.
    func returned(_ key: ClusterKey, _ index: Int, _ run: Simulation) {
        guard let old = run.hosts[index].state?.registry.keys[key.id],
            let drain = run.hosts[index].state?.drains[key.id], !rotten.contains(key.id),
            // Else it was overtaken, by a takeover perhaps, and cannot land (seed 17317).
            run.controlPlane.keys[key.id]?.revision == key.revision
        else { return }
        let back = old.stale.filter { key.ensemble.contains($0) && !key.stale.contains($0) }
        let joined = key.ensemble.filter { !old.ensemble.contains($0) }
        guard !back.isEmpty || !joined.isEmpty else { return }
        // What was recorded in the same step came after the decision.
        let known = drain.log.prefix(logged[log(key.id, drain.epoch)] ?? 0)
        for member in back + joined {
            let host = run.index(member.node)
            guard !run.hosts[host].disk.lost else { continue }
            let synced = Set((run.hosts[host].disk.files[key.id]?.log ?? []).filter(\.synced).map(\.record))
            if !synced.isSuperset(of: known) {
                fail("P2, C1: node \(host + 1) becomes a member of \(key.id) without all outcomes")
            }
        }
    }

    func acknowledged(_ id: MessageID, _ run: Simulation) {
        guard accepted.insert(id).inserted else { return }
        for part in mail[id] ?? [] {
            for place in 0..<part.recipients {
                let job = Recipient(part, place)
                if arrivals[job] == nil, !finished.contains(job) { unfinal.insert(job) }
            }
            // Invariant 2: at 250 it is fdatasync'ed on as many disks as promised.
            let best = copies(of: part, besides: nil, run)
            let waits = (0..<part.recipients).contains { unfinal.contains(Recipient(part, $0)) }
            if best < run.plan.timing.copies, waits, !isSettledAnywhere(part) {
                fail("invariant 2: 250 for \(id.low).\(part.firstNumber) with \(best) synced copies")
            }
        }
    }

    /// The largest number of disks that have the part in one segment, burned and rotten ones included.
    func copies(of part: MailRecord, besides: SegmentID?, _ run: Simulation) -> Int {
        var best = 0
        for segment in (written[part.id] ?? []).sorted() where segment != besides {
            guard let key = run.controlPlane.keys[segment] else { continue }
            let holders = run.hosts.indices.count { run.hosts[$0].disk.files[segment]?.holds(part) == true }
            let lost = key.ensemble.count { member in
                run.hosts.indices.contains {
                    run.hosts[$0].id == member.node && (run.hosts[$0].disk.lost || rotten.contains(segment))
                }
            }
            if holders > 0 {
                best = max(best, holders >= key.ensemble.count ? run.plan.timing.copies : holders + lost)
                if besides == nil { note(part, in: key, run) }
            }
        }
        return best
    }

    func isSettledAnywhere(_ part: MailRecord) -> Bool {
        (0..<part.recipients).allSatisfy {
            arrivals[Recipient(part, $0)] != nil || refusals[Recipient(part, $0)] != nil
        }
    }

    /// Remembers how far a segment is acknowledged, and that this is before its seal (invariants 5, A2).
    func note(_ part: MailRecord, in key: ClusterKey, _ run: Simulation) {
        for host in run.hosts.indices {
            for stored in run.hosts[host].disk.files[key.id]?.chunks ?? [] {
                guard let place = stored.chunk.records.firstIndex(where: { $0.isSame(part) && $0.hold == nil }) else {
                    continue
                }
                let end = stored.chunk.start + Int64(place) + 1
                // Only the writer acknowledges here; a copy elsewhere may be an older, unacknowledged one.
                let writer = run.index(key.id.writer)
                guard run.hosts[writer].state?.me.incarnation == key.id.incarnation,
                    run.hosts[writer].state?.append.lane.acked(key.id) ?? 0 >= end
                else { continue }
                ackedEnd[key.id] = max(ackedEnd[key.id] ?? 0, end)
                if let length = key.sealedAt, end > length {
                    fail("A2: \(part.id.low) acknowledged at \(end) behind the seal at \(length)")
                }
                return
            }
        }
    }

    func durable(_ id: SegmentID, _ index: Int, _ run: Simulation) {
        // Invariant 4: whoever sealed a copy never helps an older epoch again, restarts included.
        guard scanned.contains(Scanned(host: index, segment: id)) else { return }
        fail("invariant 4: node \(index + 1) scanned \(id) as its taker, and sent DURABLE to its writer later")
    }
}
