// Damaged chunks of drained segments: asks the other members for them, and has the copies' thread write what they give.
import BatonCore
import BatonModel
import BatonPeer
import BatonRuntime
import BatonSpool
import NIOCore

extension ClusterDriver {
    /// The spool met damage. Every member of the segment may have the chunk, a stale one too: octets prove themselves.
    mutating func damaged(_ chunk: DamagedChunk) {
        guard let key = state.registry.keys[chunk.segment] else {
            // Not listed yet: the next read asks again.
            parts?.spool.ended(.unanswered, of: chunk)
            return
        }
        let others = key.ensemble.filter { $0 != state.member && !state.registry.isDeclaredLost($0) }
        let members = others.filter { state.registry.isAlive($0) }
        mend(.damaged(chunk, members: members, away: members.count < others.count))
    }

    /// A takeover met damage that no member's report covers.
    mutating func mend(
        _ id: SegmentID, _ epoch: UInt64, at offset: Int64, upTo end: Int64, of members: [EnsembleMember]
    ) {
        let chunk = DamagedChunk(segment: id, offset: offset, end: nil, acked: end)
        takeoverMends[chunk] = epoch
        mend(.damaged(chunk, members: members, away: false))
    }

    mutating func mend(_ event: RepairEvent) {
        var actions = ActionBuffer<RepairAction>()
        repairs.receive(event, at: runtime.time.now(), into: &actions)
        for action in actions.drain() { perform(action) }
    }

    private mutating func perform(_ action: RepairAction) {
        switch action {
        case .ask(let request, let chunk, let member):
            let epoch = state.registry.keys[chunk.segment]?.drainEpoch ?? 0
            let question = Fetch(
                request: request, segment: chunk.segment, epoch: epoch, from: chunk.offset,
                atMost: DamagedChunk.octetsMax, part: .chunk)
            if !runtime.transport.send([.fetch(question)], to: member.node) { mend(.unsent(request: request)) }
        case .write(let chunk, let octets):
            let mailbox = runtime.mailbox
            parts?.copies.mend(chunk, octets) { mend in
                mailbox.deliver(CollectionOfOne(.run { $0.mend(.written(chunk, mend)) }))
            }
        case .end(let chunk, let repair):
            parts?.spool.ended(repair, of: chunk)
            guard let epoch = takeoverMends.removeValue(forKey: chunk) else { return }
            receive(.mended(chunk.segment, epoch: epoch, repair))
        }
    }

    /// CHUNK of part `chunk`.
    mutating func repairAnswered(_ piece: BatonPeer.CopyPart, from peer: Drainer) {
        let answer: RepairAnswer =
            switch piece.status {
            case .octets: .octets(piece.segment, offset: piece.offset, piece.octets)
            case .missing, .damaged: .none
            case .failed: .failed
            }
        mend(.answered(request: piece.request, from: peer.node, answer))
    }
}
