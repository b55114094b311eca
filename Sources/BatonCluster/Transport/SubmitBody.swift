// Bodies of SUBMIT as LZ4 blocks: made before the session takes the message, opened when its consumer writes it.
import BatonCore
import BatonPeer
import BatonSpool
import NIOCore

extension Submit {
    /// The body as it is stored, or nil for a block that is damaged or not of the length that it declares: the answer to that is
    /// `SubmitRefusal` "unreadable". On any thread.
    ///
    /// The declared length is bounded before anything is allocated. A consumer opens a body when it writes it and not before: the
    /// window counts octets as sent, and 2,048 small blocks could grow to 512 MiB.
    package func openedBody() -> ByteBuffer? {
        guard (0...Limits.fragmentThreshold).contains(bodyOctets) else { return nil }
        guard isCompressed else { return body.readableBytes == bodyOctets ? body : nil }
        return LZ4.decompress(body, rawLength: bodyOctets)
    }

    /// With its body as an LZ4 block, if that is smaller. About 2.5 µs per KiB.
    func compressed() -> Submit? {
        guard !isCompressed, (1...Limits.fragmentThreshold).contains(body.readableBytes) else { return nil }
        var block = ByteBuffer()
        guard LZ4.compress(body, into: &block) != nil else { return nil }
        var smaller = self
        smaller.body = block
        smaller.isCompressed = true
        return smaller
    }
}

extension PeerMessage {
    /// What its frame takes of a queue at most.
    var weight: FrameCost {
        let tail =
            switch self {
            case .submit(let submit): submit.envelope.readableBytes + submit.body.readableBytes
            case .append(let append): append.octets.readableBytes
            case .outcome(let outcome): outcome.records.readableBytes
            case .chunk(let part): part.octets.readableBytes
            case .query(let query): query.name.count + query.json.readableBytes
            case .answer(let answer): answer.json.readableBytes
            case .promiseAsked(let asked): asked.items.count * Self.itemOctets
            case .promise(let promise): promise.items.count * Self.itemOctets
            case .quota(let quota): quota.site.count
            case .hello, .ready, .ping, .pong, .credit, .goodbye, .error, .submitted, .ask, .create, .created, .durable,
                .recorded, .fetch, .seal, .sealed, .finished, .unlinked:
                0
            }
        return FrameCost(octets: Self.fixedOctets + tail, frames: 1)
    }

    /// Header and fixed part of the longest type, rounded up.
    static let fixedOctets = 80
    private static let itemOctets = 32
}
