// What a connection counts, and the messages that it has to give back.
import BatonPeer
import Metrics
import NIOCore

extension PeerHandler {
    func count(_ metrics: PeerMetrics.Channel) {
        if sentOctets > 0 { metrics.sent.octets.increment(by: sentOctets) }
        if receivedOctets > 0 { metrics.received.octets.increment(by: receivedOctets) }
        let frames = session.frames
        if frames.sent > counted.sent { metrics.sent.frames.increment(by: frames.sent - counted.sent) }
        if frames.received > counted.received {
            metrics.received.frames.increment(by: frames.received - counted.received)
        }
        sentOctets = 0
        receivedOctets = 0
        counted = frames
    }

    func report(_ link: PeerLink) {
        guard !unsent.isEmpty else { return }
        var refused: [(PeerMessage, SendRefusal)] = []
        swap(&refused, &unsent)
        transport.metrics.of(link.identity.channel).refusedSends.increment(by: refused.count)
        for refusal in [SendRefusal.notOpen, .leaving, .full, .invalid] {
            let messages = refused.filter { $0.1 == refusal }.map(\.0)
            if !messages.isEmpty { transport.delegate?.notSent(messages, to: link.identity, refusal) }
        }
    }
}
