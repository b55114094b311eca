// What moves between nodes besides new mail: outcomes and chunks fetched for a takeover, and copies for joining members (C1).
import BatonCore
import BatonModel
import BatonPeer
import BatonRuntime
import BatonSpool
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
        let request = nextFetch
        nextFetch += 1
        var most = DriverLimits.pieceOctets
        if case .repair(let upTo) = run.purpose { most = Int(min(Int64(most), max(1, upTo - run.offset))) }
        let question = Fetch(
            request: request, segment: run.segment, epoch: run.epoch, from: run.offset, atMost: most,
            part: { if case .outcomes = run.purpose { .outcomes } else { .segment } }())
        fetches[request] = asked
        if !runtime.transport.send([.fetch(question)], to: run.member.node) {
            fetches[request] = nil
            end(run, complete: false)
        }
    }

    /// CHUNK: an answer to a FETCH, or a piece for a joining member.
    mutating func received(_ piece: BatonPeer.CopyPart, from peer: Drainer) {
        guard piece.request != 0 else { return restore(piece, from: peer) }
        guard var run = fetches.removeValue(forKey: piece.request), run.member.node == peer.node,
            piece.segment == run.segment, piece.offset == run.offset
        else { return }
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
            let (next, mailbox) = (run, runtime.mailbox)
            parts?.copies.restore(run.segment, .repair, at: piece.offset, piece.octets) { done in
                mailbox.deliver(
                    CollectionOfOne(
                        .run { driver in
                            if !done {
                                driver.end(next, complete: false)
                            } else if next.offset >= upTo {
                                driver.end(next, complete: true)
                            } else {
                                driver.ask(next)
                            }
                        }))
            }
        }
    }

    mutating func end(_ run: FetchRun, complete: Bool) {
        switch run.purpose {
        case .outcomes:
            if complete { gathered.add(run.collected, of: run.member, run.segment, epoch: run.epoch) }
            receive(.outcomesFetched(run.segment, epoch: run.epoch, run.member, complete: complete))
        case .repair: receive(.repaired(run.segment, epoch: run.epoch, complete: complete))
        }
    }

    // MARK: Copies for joining members (C1)

    mutating func advanceCopy(_ id: SegmentID) {
        guard let run = copies[id], let parts else { return }
        guard let key = state.registry.keys[id], key.joining == run.joiner, key.drainEpoch == run.key.drainEpoch else {
            copies[id] = nil
            return receive(.copied(id, epoch: run.key.drainEpoch, run.joiner, complete: false))
        }
        sendPieces(id)
        guard let run = copies[id], run.reading == 0, run.waiting.isEmpty else { return }
        guard run.offset < run.length else {
            copies[id] = nil
            return receive(.copied(id, epoch: key.drainEpoch, run.joiner, complete: true))
        }
        let mailbox = runtime.mailbox
        var offset = run.offset
        for _ in 0..<DriverLimits.piecesPerTick where offset < run.length {
            let (start, count) = (offset, Int(min(run.length - offset, Int64(DriverLimits.pieceOctets))))
            offset += Int64(count)
            copies[id]?.reading += 1
            parts.copies.read(id, .chunks, from: start, atMost: count) { read in
                mailbox.deliver(CollectionOfOne(.run { $0.readPiece(id, at: start, read) }))
            }
        }
        copies[id]?.offset = offset
    }

    mutating func readPiece(_ id: SegmentID, at offset: Int64, _ read: CopyRead) {
        guard var run = copies[id] else { return }
        run.reading -= 1
        guard case .octets(let octets, _) = read, octets.readableBytes > 0 else {
            copies[id] = nil
            return receive(.copied(id, epoch: run.key.drainEpoch, run.joiner, complete: false))
        }
        run.waiting.append((offset, octets))
        copies[id] = run
        sendPieces(id)
    }

    mutating func sendPieces(_ id: SegmentID) {
        guard var run = copies[id] else { return }
        while let piece = run.waiting.first {
            let part = BatonPeer.CopyPart(
                request: 0, segment: id, epoch: run.key.drainEpoch, offset: piece.offset, part: .segment,
                status: .octets, isLast: piece.offset + Int64(piece.octets.readableBytes) >= run.length,
                octets: piece.octets)
            guard runtime.transport.send([.chunk(part)], to: run.joiner.node) else { break }
            run.waiting.removeFirst()
        }
        copies[id] = run
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
