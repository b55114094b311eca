// What moves between nodes besides new mail: outcomes and chunks fetched for a takeover, and copies for joining members (C1).
import BatonCore
import BatonModel
import BatonPeer
import BatonRuntime
import BatonSpool
import Logging
import NIOCore

extension ClusterDriver {
    // MARK: Fetching

    mutating func begin(_ run: FetchRun) {
        if case .outcomes = run.purpose { gathered.begin(run.segment, epoch: run.epoch) }
        ask(run)
    }

    mutating func ask(_ run: FetchRun) {
        var asked = run
        asked.askedAt = runtime.time.now()
        let request = fetches.begin(asked)
        var most = DriverLimits.pieceOctets
        if case .repair(let upTo) = run.purpose { most = Int(min(Int64(most), max(1, upTo - run.offset))) }
        let question = Fetch(
            request: request, segment: run.segment, epoch: run.epoch, from: run.offset, atMost: most,
            part: run.part)
        if !runtime.transport.send([.fetch(question)], to: run.member.node) {
            fetches.withdraw(request)
            end(run, complete: false)
        }
    }

    /// CHUNK: an answer to a FETCH, or a piece for a joining member.
    mutating func received(_ piece: BatonPeer.CopyPart, from peer: Drainer) {
        guard piece.part != .chunk else { return repairAnswered(piece, from: peer) }
        guard piece.request != 0 else { return restore(piece, from: peer) }
        guard var run = fetches.answered(by: piece, from: peer.node) else { return }
        guard piece.status == .octets else { return end(run, complete: false) }
        let count = piece.octets.readableBytes
        run.offset += Int64(count)
        switch run.purpose {
        case .outcomes:
            run.collected.writeImmutableBuffer(piece.octets)
            guard run.collected.readableBytes <= DriverLimits.outcomeOctets else { return end(run, complete: false) }
            if count < DriverLimits.pieceOctets { return end(run, complete: true) }
            ask(run)
        case .repair(let upTo):
            guard count > 0 else { return end(run, complete: false) }
            let write = run.written(piece.octets, at: piece.offset)
            repair(run, at: write.offset, write.octets) { driver, run in
                if run.offset < upTo { return driver.ask(run) }
                guard let head = run.head else { return driver.end(run, complete: false) }
                driver.repair(run, at: head.offset, head.octets) { $0.end($1, complete: true) }
            }
        }
    }

    /// Writes and fdatasyncs octets of a repair, then goes on on this thread; ends the run where they cannot be written.
    private mutating func repair(
        _ run: FetchRun, at offset: Int64, _ octets: ByteBuffer,
        then next: @escaping @Sendable (inout ClusterDriver, FetchRun) -> Void
    ) {
        let mailbox = runtime.mailbox
        parts?.copies.restore(run.segment, .repair, at: offset, octets) { done in
            mailbox.deliver(
                CollectionOfOne(.run { driver in done ? next(&driver, run) : driver.end(run, complete: false) }))
        }
    }

    mutating func end(_ run: FetchRun, complete: Bool) {
        switch run.purpose {
        case .outcomes:
            if complete, state.drains[run.segment]?.phase == .ready {
                takeLate(run.collected, of: run.segment, counted: false)
            } else if complete {
                gathered.add(run.collected, of: run.member, run.segment, epoch: run.epoch)
            }
            receive(.outcomesFetched(run.segment, epoch: run.epoch, run.member, complete: complete))
        case .repair:
            if complete {
                runtime.logger.notice(
                    "cluster: what a copy lacked, or had damaged, was fetched from another one",
                    metadata: ["segment": "\(SegmentName(run.segment))", "to": "\(run.offset)"])
            }
            receive(.repaired(run.segment, epoch: run.epoch, complete: complete))
        }
    }

    // MARK: Copies for joining members (C1)

    mutating func advanceCopy(_ id: SegmentID) {
        guard let run = copies[id], let parts else { return }
        guard let key = state.registry.keys[id], key.joining == run.joiner, key.drainEpoch == run.key.drainEpoch else {
            copies.end(id)
            return receive(.copied(id, epoch: run.key.drainEpoch, run.joiner, complete: false))
        }
        sendPieces(id)
        guard let run = copies[id], run.isIdle else { return }
        guard run.offset < run.length else {
            copies.end(id)
            return receive(.copied(id, epoch: key.drainEpoch, run.joiner, complete: true))
        }
        let (mailbox, number) = (runtime.mailbox, run.number)
        for piece in copies.reads(id) {
            parts.copies.read(id, .chunks, from: piece.offset, atMost: piece.count) { read in
                mailbox.deliver(CollectionOfOne(.run { $0.readPiece(id, run: number, at: piece.offset, read) }))
            }
        }
    }

    private mutating func readPiece(_ id: SegmentID, run number: UInt64, at offset: Int64, _ read: CopyRead) {
        let octets: ByteBuffer? = if case .octets(let octets, _) = read { octets } else { nil }
        switch copies.read(id, run: number, at: offset, octets) {
        case .late: break
        case .taken: sendPieces(id)
        case .failed(let run):
            receive(.copied(id, epoch: run.key.drainEpoch, run.joiner, complete: false))
        }
    }

    private mutating func sendPieces(_ id: SegmentID) {
        let transport = runtime.transport
        copies.send(id) { run, offset, octets in
            let part = BatonPeer.CopyPart(
                request: 0, segment: id, epoch: run.key.drainEpoch, offset: offset, part: .segment, status: .octets,
                isLast: offset + Int64(octets.readableBytes) >= run.length, octets: octets)
            return transport.send([.chunk(part)], to: run.joiner.node)
        }
    }

    /// Only who is named as joining takes a copy, from the drainer at the key's epoch.
    mutating func restore(_ piece: BatonPeer.CopyPart, from peer: Drainer) {
        let id = piece.segment
        guard piece.part == .segment, let key = state.registry.keys[id], key.drainer == peer,
            key.drainEpoch == piece.epoch, key.joining == state.member || key.ensemble.contains(state.member),
            key.state != .finished
        else {
            // Its key was changed a moment ago, perhaps: the drainer tries again.
            return receive(.hint)
        }
        receive(.copyCreated(id))
        parts?.copies.restore(id, .newCopy, at: piece.offset, piece.octets) { _ in }
    }
}
