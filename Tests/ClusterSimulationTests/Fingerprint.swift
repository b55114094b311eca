// A state of the model as a number: what a node may still do depends on nothing else. Times are taken relative to the clock.
import BatonCore
import BatonSpool

@testable import BatonCluster

/// Two states with one fingerprint behave alike. Ages beyond every timeout of the explored plan are one age.
struct Fingerprint {
    var hasher = Hasher()
    let now: Instant
    /// Longer than every timeout.
    static let eternity: Int64 = 12_000_000_000

    init(at now: Instant) { self.now = now }

    mutating func add(_ value: some Hashable) { hasher.combine(value) }

    mutating func add(_ instant: Instant) {
        let age = (now - instant).nanoseconds
        hasher.combine(max(-Self.eternity, min(age, Self.eternity)))
    }

    mutating func add(_ instant: Instant?) {
        hasher.combine(instant == nil)
        if let instant { add(instant) }
    }

    mutating func add<Key: Comparable & Hashable, Value>(
        _ table: Table<Key, Value>, _ each: (inout Fingerprint, Value) -> Void
    ) {
        hasher.combine(table.count)
        for key in table.keys {
            hasher.combine(key)
            if let value = table[key] { each(&self, value) }
        }
    }

    mutating func add(_ frame: Frame) {
        switch frame {
        case .askPromise(let items, let at):
            add("ask")
            add(items)
            add(at)
        case .promise(let items, let at):
            add("promise")
            add(items)
            add(at)
        default: hasher.combine(frame)
        }
    }

    // MARK: A node

    mutating func add(_ state: ClusterState) {
        add(state.me)
        add(state.copies) { $0.add($1) }
        add(state.append)
        add(state.drains) { $0.add($1) }
        add(state.registry)
        add(state.submits)
        add(state.promises.until) { $0.add($1) }
        add(state.promises.quietUntil)
        add(state.finishing) { print, value in
            print.add(value.selfGone)
            print.add(value.confirmed)
            print.add(value.askedAt)
        }
        add(state.incarnations) { $0.add($1) }
        add(state.reporting) { print, value in
            print.add(value.to)
            print.add(value.epoch)
        }
        add(state.late) { $0.add($1) }
        add(state.orphanedSince) { $0.add($1) }
        add(state.confirming) { $0.add($1) }
        add(state.unlinking) { $0.add($1) }
        add([state.registered, state.stopped, state.listUnderWay, state.listSoon])
        add(state.keepAliveAt)
        add(state.listSentAt)
        add(state.promiseAskedAt)
    }

    private mutating func add(_ copy: Copy) {
        add([copy.created, copy.tailInvalid, copy.rebuilt, copy.syncUnderWay])
        add(copy.chunks)
        add([copy.synced, Int64(copy.logCount), Int64(copy.logSynced)])
        add([copy.sealEpoch, copy.sealing, copy.logEpoch])
        add(copy.finals)
        add(copy.released)
        add(copy.dirtySince)
    }

    private mutating func add(_ append: AppendRole) {
        // Its dictionary may print in another order: such a state is looked at twice, and none is passed over.
        add(String(describing: append.lane))
        add(append.segments) { print, segment in
            print.add(segment.ensemble)
            switch segment.phase {
            case .creating(let missing): print.add(missing)
            case .registering: print.add(1)
            case .open: print.add(2)
            }
            print.add(segment.begunAt)
            print.add(segment.askedAt)
            print.add(segment.chunks)
            for submission in segment.unacked { print.add(submission) }
            print.add([segment.end, segment.acked, segment.sealAt ?? -1])
            print.add(segment.waitingSince)
            print.add(segment.sentAt)
            print.add([segment.sealSent, segment.rolled])
        }
        for submission in append.waiting { add(submission) }
        add(append.registrations)
        add(append.nextIndex)
        add(append.fullUntil)
        add(append.dead)
    }

    private mutating func add(_ submission: Submission) {
        add(submission.mail)
        add(submission.origin)
        add(submission.since)
        add(submission.touched)
    }

    private mutating func add(_ drain: Drain) {
        add(drain.epoch)
        add(String(describing: drain.phase))
        add(drain.notBefore)
        for record in drain.records {
            add(record.mail)
            add(record.held)
            for job in record.jobs {
                switch job {
                case .waiting(let at): add(at)
                case .inFlight: add(-1)
                case .reporting: add(-2)
                case .unreported(let at):
                    add(-3)
                    add(at)
                case .done: add(-4)
                }
            }
        }
        add([drain.tailInvalid, drain.mayRepeat, drain.raise])
        add(drain.log)
        add(drain.dotted)
        add([drain.inFlight, drain.settledHigh, drain.settledSaid])
        add(drain.peers) { print, peer in
            print.add([peer.memory, peer.synced])
            print.add(peer.incarnation)
            print.add(peer.probing)
            print.add(peer.sentAt)
            print.add(peer.promiseUntil)
            print.add(peer.silentSince)
            print.add(peer.reported)
            print.add(peer.reportAskedAt)
        }
        add(drain.repairFrom)
        add(drain.fetchedAt)
        add(drain.copiedAt)
        if let cleaning = drain.cleaning {
            add(cleaning.target)
            add([cleaning.moved, cleaning.landed])
            add(cleaning.begunAt)
        }
    }

    private mutating func add(_ registry: RegistryView) {
        add(registry.keys)
        add(registry.nodes)
        add(registry.forgotten)
        add(registry.listedAt)
        add(registry.listedRevision)
        add(registry.changes) { print, change in
            print.add(change.key)
            print.add(change.unknown)
        }
        add(registry.possible)
    }

    private mutating func add(_ submits: SubmitBook) {
        add(submits.counter)
        add(submits.incoming) { print, incoming in
            switch incoming {
            case .pending: print.add(0)
            case .have(let at):
                print.add(1)
                print.add(at)
            case .refused(let at):
                print.add(2)
                print.add(at)
            case .unknown(let at):
                print.add(3)
                print.add(at)
            }
        }
        add(submits.outgoing) { print, out in
            print.add(out.mail)
            print.add(out.receiver)
            print.add(out.since)
            print.add(out.repeated)
        }
        add(submits.questions) { print, question in
            print.add(question.since)
            print.add(question.askedAt)
            print.add(question.saidNo)
            print.add(question.witnesses)
        }
        add(submits.clients) { print, client in
            print.add([client.left, client.isRefused ? 1 : 0])
            print.add(client.durable)
        }
        add(submits.pruneAt)
        add(submits.forgotten) { print, key in print.add(key) }
    }

    // MARK: A disk and the control plane

    mutating func add(_ disk: SimulatedDisk) {
        add(disk.files) { print, file in
            for stored in file.chunks {
                print.add(stored.chunk)
                print.add([stored.synced, stored.intact])
            }
            print.add(file.sealEpoch)
            print.add(file.rebuilt)
            for logged in file.log {
                print.add(logged.epoch)
                print.add(logged.position)
                print.add(logged.record)
                print.add(logged.synced)
            }
        }
    }

    mutating func add(_ control: SimulatedControlPlane) {
        add(control.revision)
        add(control.keys)
        add(control.nodes) { print, node in
            print.add(node.record)
            print.add(node.until)
        }
        add(control.ended)
    }
}
