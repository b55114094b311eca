// Fuzz entry for what another node sends: frames, messages, and whole sessions.
import BatonCore
import BatonModel
import NIOCore

@testable import BatonPeer

/// The first octet chooses, the second cuts: raw frames; frames whose checksums are set right; or a stream into a session that is
/// in its handshake or open, its checksums set right.
@Sendable func fuzzPeer(_ input: [UInt8]) throws {
    guard input.count >= 2 else { return }
    let stream = Array(input.dropFirst(2))
    switch input[0] % 5 {
    case 0: try fuzzFrames(stream, seed: input[1])
    case 1: try fuzzFrames(resealed(stream), seed: input[1])
    case 2: try fuzzPeerSession(resealed(stream), seed: input[1], open: nil)
    case 3: try fuzzPeerSession(resealed(stream), seed: input[1], open: .bulk)
    default: try fuzzPeerSession(resealed(stream), seed: input[1], open: .control)
    }
}

/// Sets the checksum of every frame right that is wholly there.
private func resealed(_ stream: [UInt8]) -> [UInt8] {
    var buffer = ByteBuffer(bytes: stream)
    var start = 0
    while let length: UInt32 = buffer.getInteger(at: start, endianness: .little),
        let type = buffer.getInteger(at: start + 4, as: UInt8.self).flatMap({ FrameType(rawValue: $0) }),
        start + FrameHeader.octets + Int(length) <= buffer.writerIndex
    {
        let covered = min(type.coveredOctets ?? Int(length), Int(length))
        guard let first = buffer.crc32c(at: start, length: FrameHeader.covered, seed: 0),
            let crc = buffer.crc32c(at: start + FrameHeader.octets, length: covered, seed: first)
        else { break }
        buffer.setInteger(crc, at: start + FrameHeader.covered, endianness: .little)
        start += FrameHeader.octets + Int(length)
    }
    return buffer.octets
}

private struct ReadFrames: Equatable {
    var frames: [Frame] = []
    var messages: [PeerMessage] = []
    var violation: PeerViolation?
}

private func read(_ pieces: [[UInt8]]) throws -> ReadFrames {
    var decoder = FrameDecoder()
    var read = ReadFrames()
    for piece in pieces {
        decoder.feed(ByteBuffer(bytes: piece))
        do throws(PeerViolation) {
            var waits = false
            while !waits {
                switch try decoder.next() {
                case .needMore: waits = true
                case .header: break
                case .frame(let frame):
                    read.messages.append(try PeerMessage(reading: frame))
                    read.frames.append(frame)
                }
            }
        } catch {
            read.violation = error
            return read
        }
    }
    return read
}

private func fuzzFrames(_ stream: [UInt8], seed: UInt8) throws {
    let whole = try read([stream])
    let split = try read(cut(stream, seed: seed))
    try hold(whole == split, "cut otherwise, the frames differ: \(whole) // \(split)")
    for (frame, message) in zip(whole.frames, whole.messages) {
        guard let again = EncodedFrame(message) else {
            throw Finding(description: "read, but not to be sent: \(message)")
        }
        let flags: UInt8? = again.head.getInteger(at: again.head.readerIndex + 5)
        try hold(again.type == frame.type && flags == frame.flags.rawValue, "another frame: \(message)")
        let payload = again.joined.octets.dropFirst(FrameHeader.octets)
        // A HELLO may carry what a later version knows.
        let isSame =
            frame.type == .hello
            ? frame.payload.octets.starts(with: payload) : Array(payload) == frame.payload.octets
        try hold(isSame, "written again, the message differs: \(message)")
    }
}

/// What a session did, in the order of its actions.
private struct Session {
    var session: PeerSession
    var deliveries: [PeerMessage] = []
    var held = FrameCost.zero
    var written: [UInt8] = []
    var opened = false
    var closes: [CloseReason] = []

    mutating func feed(_ event: PeerEvent, at now: Instant) throws {
        var events = [event]
        while !events.isEmpty {
            var actions = ActionBuffer<PeerAction>()
            session.receive(events.removeFirst(), at: now, into: &actions)
            for action in actions.drain() {
                try hold(closes.isEmpty, "\(action) after the end")
                switch action {
                case .write(let octets): written += octets.octets
                case .deliver(let message, let cost):
                    try hold(opened, "delivered before it was open")
                    deliveries.append(message)
                    held.octets += cost.octets
                    held.frames += cost.frames
                case .identify: events.append(.admitted)
                case .opened: opened = true
                case .sendRefused(let message, _): throw Finding(description: "refused \(message)")
                case .peerLeaves, .setTimer: break
                case .close(let reason): closes.append(reason)
                }
            }
        }
    }
}

/// The peer "a" dials the node "b" whose nonce is 7.
private func settings(_ name: String) -> PeerSettings {
    PeerSettings(name: Array(name.utf8), cluster: Array("c".utf8), incarnation: Incarnation(value: 1))
}

private func fuzzPeerSession(_ stream: [UInt8], seed: UInt8, open channel: PeerChannel?) throws {
    let whole = try run([stream], open: channel)
    let split = try run(cut(stream, seed: seed), open: channel)
    try hold(whole.deliveries == split.deliveries, "cut otherwise, other messages are delivered")
    try hold(whole.written == split.written, "cut otherwise, other octets are written")
    // Whether a frame was half read is all that may differ, and does not.
    try hold(whole.closes == split.closes, "\(whole.closes) or \(split.closes)")
}

private func run(_ pieces: [[UInt8]], open channel: PeerChannel?) throws -> Session {
    let now = Instant(secondsSinceEpoch: 1000)
    let own = settings("b")
    var end = Session(session: PeerSession(settings: own, role: .acceptor, nonce: 7))
    try end.feed(.connected(certified: nil), at: now)
    if let channel {
        let peer = settings("a")
        let hello = Hello(
            versions: .current, run: peer.run, nonce: 5, echo: 0, features: [], channel: channel,
            window: peer.window(of: channel), cluster: peer.cluster, name: peer.name)
        for message in [PeerMessage.hello(hello), .ready(Ready(echo: 7, version: 1))] {
            guard let frame = EncodedFrame(message) else { throw Finding(description: "\(message)") }
            try end.feed(.received(frame.joined), at: now)
        }
        try hold(end.opened, "not open")
    }
    for piece in pieces {
        try end.feed(.received(ByteBuffer(bytes: piece)), at: now)
        let held = end.session.heldCost
        let window = own.bulkWindow
        try hold(held.octets <= window.octets && held.frames <= window.frames, "holds \(held)")
        let isAccounted = held.octets >= end.held.octets && held.frames >= end.held.frames
        try hold(isAccounted || !end.closes.isEmpty, "delivered \(end.held), held \(held)")
    }
    try end.feed(.closed, at: now)
    try hold(end.closes.count == 1, "\(end.closes.count) ends")
    return end
}
