// Outcomes of a former drainer on their way to the present one (PROTOCOL T5).
import BatonCore
import BatonModel
import BatonPeer
import BatonRuntime
import BatonSpool
import NIOCore
import Synchronization

/// Reads all outcomes of a copy, page by page, and sends the next few pieces of the final ones. On the copies' thread.
struct LateTelling: Sendable {
    let segment: SegmentID
    let epoch: UInt64
    /// Pieces that the drainer has.
    let sent: Int
    let read: @Sendable (_ offset: Int64, _ done: @escaping @Sendable (CopyRead) -> Void) -> Void
    let send: @Sendable (OutcomeRecords) -> Bool
    /// Once: the pieces that it has then, and whether those are all.
    let answer: @Sendable (_ pieces: Int, _ all: Bool) -> Void

    func begin() { page(after: ByteBuffer()) }

    private func page(after octets: ByteBuffer) {
        read(Int64(octets.readableBytes)) { found in
            switch found {
            case .octets(let more, let isLast):
                var all = octets
                all.writeImmutableBuffer(more)
                guard !isLast, more.readableBytes > 0, all.readableBytes < DriverLimits.outcomeOctets else {
                    return send(all)
                }
                page(after: all)
            // There is nothing to tell.
            case .missing, .damaged: answer(sent, true)
            case .failed: answer(sent, false)
            }
        }
    }

    private func send(_ entries: ByteBuffer) {
        let pieces = LateOutcomes.pieces(of: entries, segment: segment, most: PeerLimits.outcomeOctets)
        let taken = pieces.dropFirst(sent).prefix(DriverLimits.piecesPerTick).prefix { piece in
            send(
                OutcomeRecords(
                    segment: segment, epoch: epoch, from: 0, count: piece.count, records: piece.octets, isLate: true))
        }
        answer(sent + taken.count, sent + taken.count >= pieces.count)
    }
}

extension ClusterDriver {
    // MARK: The member that was replaced

    func sendLateOutcomes(_ id: SegmentID, _ epoch: UInt64, to node: NodeID, after sent: Int) {
        let runtime = runtime
        guard let copies = parts?.copies, runtime.transport.isConnected(to: node, .bulk) else {
            return runtime.tell(.lateOutcomesSent(id, pieces: sent, all: false))
        }
        let telling = LateTelling(segment: id, epoch: epoch, sent: sent) { offset, done in
            copies.read(id, .outcomeEntries, from: offset, atMost: DriverLimits.pieceOctets, done: done)
        } send: { records in
            runtime.transport.send([.outcome(records)], to: node)
        } answer: { pieces, all in
            runtime.tell(.lateOutcomesSent(id, pieces: pieces, all: all))
        }
        telling.begin()
    }

    // MARK: The drainer

    /// OUTCOME with the late flag. Whoever had a copy may have drained it once, in whatever run.
    mutating func lateOutcomes(_ records: OutcomeRecords, from peer: Drainer) {
        let id = records.segment
        guard let key = state.registry.keys[id], key.drainer == state.me, let drain = state.drains[id],
            (key.ensemble + key.former).contains(where: { $0.node == peer.node })
        else { return runtime.lateDone(records.records.readableBytes) }
        if drain.phase == .ready { takeLate(records.records, of: id, counted: true) } else { early.append(records) }
    }

    /// What came while the segment was being read.
    mutating func takeEarly() {
        guard !early.isEmpty else { return }
        var waiting: [OutcomeRecords] = []
        for records in early {
            switch state.drains[records.segment]?.phase {
            case .ready: takeLate(records.records, of: records.segment, counted: true)
            case nil: runtime.lateDone(records.records.readableBytes)
            case .sealing, .asking, .repairing, .fixing, .adopting: waiting.append(records)
            }
        }
        early = waiting
    }

    /// `counted`: its octets hold room of `DriverLimits.lateOctets`.
    func takeLate(_ entries: ByteBuffer, of id: SegmentID, counted: Bool) {
        runtime.takeovers.deliver(
            CollectionOfOne(.late(id, entries, counted: counted ? entries.readableBytes : 0)))
    }
}

/// Room for late outcomes until the spool has looked at them; beyond it they are passed over, and their messages repeated.
struct LateRoom: Sendable {
    private var octets = 0

    mutating func take(_ count: Int) -> Bool {
        guard count <= DriverLimits.lateOctets - octets else { return false }
        octets += count
        return true
    }

    mutating func free(_ count: Int) { octets -= count }
}

extension ClusterRuntime {
    func takesLate(_ records: OutcomeRecords) -> Bool {
        late.withLock { $0.take(records.records.readableBytes) }
    }

    func lateDone(_ octets: Int) { late.withLock { $0.free(octets) } }
}
