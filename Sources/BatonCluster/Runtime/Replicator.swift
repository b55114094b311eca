// The writer's side of replication: chooses backups, sends chunks, gives up who is slow (PROTOCOL A1, A4).
import BatonCore
import BatonModel
import BatonPeer
import BatonSpool
import Logging
import Metrics
import NIOCore
import Synchronization

/// What the cluster needs of the peer transport. Any thread; never blocks.
package protocol PeerSending: Sendable {
    /// False when nothing was taken: no session, or its bounded queue is full.
    func send(_ messages: [PeerMessage], to node: NodeID) -> Bool
}

/// A node that may hold copies.
package struct BackupCandidate: Hashable, Sendable {
    package let member: EnsembleMember
    package let failureDomain: String

    package init(member: EnsembleMember, failureDomain: String) {
        self.member = member
        self.failureDomain = failureDomain
    }
}

/// Bounds of the writer's side (docs/LIMITS.md, "Cluster").
package enum ReplicationLimits {
    /// A chunk without DURABLE for so long: its backup is replaced.
    package static let appendDeadline = TimeSpan.milliseconds(800)
    /// A backup has so long to create its file.
    package static let createDeadline = TimeSpan.milliseconds(1000)
    /// Sets of backups that are tried for one segment.
    package static let createTries = 3
}

/// `ChunkReplicating` over the peer transport. The lane's writer calls `send`, its keeper `prepare`, the peer loop reports answers.
package final class Replicator: ChunkReplicating {
    private struct Written: Sendable {
        let backups: [EnsembleMember]
        var sent: Int64 = 0
        var durable: [Int64]
        /// Since when something sent is not durable everywhere.
        var waitingSince: Instant?
    }

    private struct Creation: Sendable {
        var missing: Set<NodeID>
        let mailbox: ThreadMailboxOfOne<Bool>
    }

    private struct State: Sendable {
        var candidates: [BackupCandidate] = []
        var connected: Set<NodeID> = []
        var written: [SegmentID: Written] = [:]
        var creations: [SegmentID: Creation] = [:]
        var turn = 0
    }

    private let state = Mutex(State())
    private let peers: any PeerSending
    private let copies: Int
    private let failureDomain: String
    private let segmentSize: Int64
    private let time: any TimeSource
    private let logger: Logger
    /// Told that a backup is given up; never on the writer's thread.
    private let onLost: @Sendable (SegmentID, EnsembleMember) -> Void
    private let replaced = Counter(label: "baton_cluster_backups_replaced_total")

    /// - Parameter copies: `cluster.min_copies`, this node's own included.
    package init(
        peers: any PeerSending, copies: Int, failureDomain: String, segmentSize: Int64, time: any TimeSource,
        logger: Logger, onLost: @escaping @Sendable (SegmentID, EnsembleMember) -> Void
    ) {
        self.peers = peers
        self.copies = copies
        self.failureDomain = failureDomain
        self.segmentSize = segmentSize
        self.time = time
        self.logger = logger
        self.onLost = onLost
    }

    // MARK: Who is there

    package func update(candidates: [BackupCandidate]) { state.withLock { $0.candidates = candidates } }

    package func connected(_ node: NodeID) { _ = state.withLock { $0.connected.insert(node) } }

    /// What was sent to it and not answered is unknown: it is replaced everywhere.
    package func disconnected(_ node: NodeID) {
        let lost = state.withLock { state in
            state.connected.remove(node)
            for (id, creation) in state.creations where creation.missing.contains(node) {
                creation.mailbox.put(false)
                state.creations[id] = nil
            }
            return Self.takeLost(&state) { _, backup in backup.node == node }
        }
        giveUp(lost)
    }

    /// How many more nodes could hold a copy now.
    package var reachable: Int {
        state.withLock { state in state.candidates.count { state.connected.contains($0.member.node) } }
    }

    private static func takeLost(
        _ state: inout State, where isLost: (Written, EnsembleMember) -> Bool
    ) -> [(SegmentID, EnsembleMember)] {
        var lost: [(SegmentID, EnsembleMember)] = []
        for (id, written) in state.written {
            guard let backup = written.backups.first(where: { isLost(written, $0) }) else { continue }
            state.written[id] = nil
            lost.append((id, backup))
        }
        return lost
    }

    private func giveUp(_ lost: [(SegmentID, EnsembleMember)]) {
        for (id, backup) in lost {
            replaced.increment()
            logger.warning(
                "cluster: a backup is replaced",
                metadata: ["segment": "\(SegmentName(id))", "node": "\(backup.node.value)"])
            onLost(id, backup)
        }
    }

    // MARK: ChunkReplicating

    package func prepare(_ segment: SegmentID) -> [EnsembleMember]? {
        guard copies > 1 else { return [] }
        for _ in 0..<ReplicationLimits.createTries {
            guard let chosen = choose() else { return nil }
            if create(segment, on: chosen) {
                state.withLock { $0.written[segment] = Written(backups: chosen, durable: chosen.map { _ in 0 }) }
                return chosen
            }
        }
        return nil
    }

    /// In turn, so that the segment registered ahead has another backup than the open one; other failure domains first.
    private func choose() -> [EnsembleMember]? {
        state.withLock { state in
            let there = state.candidates.filter { state.connected.contains($0.member.node) }
            guard there.count >= copies - 1 else { return nil }
            let first = state.turn % there.count
            state.turn &+= 1
            let rotated = Array(there[first...] + there[..<first])
            let elsewhere = rotated.filter { $0.failureDomain != failureDomain || failureDomain.isEmpty }
            let here = rotated.filter { $0.failureDomain == failureDomain && !failureDomain.isEmpty }
            return Array((elsewhere + here).prefix(copies - 1)).map(\.member)
        }
    }

    private func create(_ segment: SegmentID, on backups: [EnsembleMember]) -> Bool {
        let mailbox = ThreadMailboxOfOne<Bool>()
        state.withLock { $0.creations[segment] = Creation(missing: Set(backups.map(\.node)), mailbox: mailbox) }
        defer { state.withLock { $0.creations[segment] = nil } }
        let message = PeerMessage.create(Create(segment: segment, epoch: 1, reserve: segmentSize))
        for backup in backups where !peers.send([message], to: backup.node) { return false }
        return mailbox.take(within: ReplicationLimits.createDeadline) ?? false
    }

    package func send(_ chunk: ByteBuffer, of segment: SegmentID, at offset: Int64, acked: Int64) {
        let end = offset + Int64(chunk.readableBytes)
        let now = time.now()
        let backups = state.withLock { state in
            guard var written = state.written[segment] else { return [EnsembleMember]() }
            written.sent = end
            if written.waitingSince == nil { written.waitingSince = now }
            state.written[segment] = written
            return written.backups
        }
        guard !backups.isEmpty else { return }
        let messages = Append.parts(of: chunk, segment: segment, epoch: 1, offset: offset).map {
            PeerMessage.append($0)
        }
        for backup in backups where !peers.send(messages, to: backup.node) {
            // Not sent, so never durable there: found at the next tick, off this thread.
            state.withLock { $0.written[segment]?.waitingSince = .epoch }
        }
    }

    // MARK: Answers of backups

    package func created(_ answer: Created, from node: NodeID) {
        state.withLock { state in
            guard var creation = state.creations[answer.segment], creation.missing.contains(node) else { return }
            guard answer.status == .created else {
                creation.mailbox.put(false)
                state.creations[answer.segment] = nil
                return
            }
            creation.missing.remove(node)
            state.creations[answer.segment] = creation.missing.isEmpty ? nil : creation
            if creation.missing.isEmpty { creation.mailbox.put(true) }
        }
    }

    /// The member that is durable, if the answer is of use; what is refused is given up.
    package func durable(_ answer: Durable, from node: NodeID) -> EnsembleMember? {
        let now = time.now()
        var lost: [(SegmentID, EnsembleMember)] = []
        let member = state.withLock { state -> EnsembleMember? in
            guard var written = state.written[answer.segment],
                let index = written.backups.firstIndex(where: { $0.node == node })
            else { return nil }
            let backup = written.backups[index]
            guard answer.status == .durable else {
                state.written[answer.segment] = nil
                lost = [(answer.segment, backup)]
                return nil
            }
            if answer.upTo > written.durable[index] {
                written.durable[index] = answer.upTo
                written.waitingSince = written.durable.allSatisfy { $0 >= written.sent } ? nil : now
            }
            state.written[answer.segment] = written
            return backup
        }
        giveUp(lost)
        return member
    }

    /// A member obeys a higher epoch, or the segment is sealed: it is written no more.
    package func ended(_ segment: SegmentID) { state.withLock { $0.written[segment] = nil } }

    /// Every 100 ms: who has been silent too long is replaced.
    package func tick(at now: Instant) {
        let lost = state.withLock { state in
            Self.takeLost(&state) { written, backup in
                guard let since = written.waitingSince, now - since >= ReplicationLimits.appendDeadline,
                    let index = written.backups.firstIndex(of: backup)
                else { return false }
                return written.durable[index] < written.sent
            }
        }
        giveUp(lost)
    }
}
