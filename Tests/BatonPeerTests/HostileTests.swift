// Hostile input of every kind into a session: it never traps, ends at most once, and stays within its bounds.
import BatonCore
import NIOCore
import Testing

@testable import BatonPeer

/// What must hold after every event, whatever came.
private func broken(_ end: End, _ settings: PeerSettings) -> String? {
    let held = end.session.heldCost
    let window = settings.bulkWindow
    if end.actedAfterClose { return "acted after its end" }
    if end.closes.count > 1 { return "ended twice: \(end.closes)" }
    if held.octets > window.octets || held.frames > window.frames { return "holds \(held)" }
    let queued = end.session.queued
    if queued.octets > settings.queue.octets || queued.frames > settings.queue.frames { return "queues \(queued)" }
    if end.opened == nil, !end.delivered.isEmpty { return "delivered before it was open" }
    return nil
}

private let openBulk = Pair.open().acceptor
private let openControl = Pair.open(channel: .control).acceptor

/// A session in some state, and an outsider that may know the nonce.
private func victim(_ random: inout SplitMix64) -> End {
    let settings = Pair.settings("n2")
    switch Int.random(in: 0..<5, using: &random) {
    case 0: return End(settings, .acceptor, nonce: 0xacce)
    case 1:
        var end = End(settings, .acceptor, nonce: 0xacce)
        end.feed(.connected(certified: nil), at: rigStart)
        return end
    case 2:
        var end = End(settings, .dialer(.bulk, expecting: NodeID(name: "n1")), nonce: 0xacce)
        end.feed(.connected(certified: nil), at: rigStart)
        return end
    case 3: return openControl
    default: return openBulk
    }
}

@Test(arguments: [UInt64(1), 2, 3, 4])
func randomOctetsTrapTheSession(_ seed: UInt64) {
    var random = SplitMix64(seed: seed)
    var messages = RandomMessages(seed: seed)
    for round in 0..<250 {
        var end = victim(&random)
        var now = rigStart
        for _ in 0..<Int.random(in: 1...40, using: &random) {
            switch Int.random(in: 0..<10, using: &random) {
            case 0: end.feed(.received(messages.octets(0...200)), at: now)
            case 1, 2, 3, 4:
                // A valid frame, often damaged, sometimes with its checksum set right.
                guard
                    var octets = EncodedFrame(messages.message(messages.pick(FrameType.allCases))).map({
                        Array($0.joined.readableBytesView)
                    })
                else { continue }
                for _ in 0..<Int.random(in: 0...2, using: &random) {
                    octets[Int.random(in: 0..<octets.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
                }
                if Bool.random(using: &random) { octets = resealed(octets) }
                let cut = Int.random(in: 0...octets.count, using: &random)
                end.feed(.received(ByteBuffer(bytes: octets[..<cut])), at: now)
                if Bool.random(using: &random) { end.feed(.received(ByteBuffer(bytes: octets[cut...])), at: now) }
            case 5:
                // Frames that an open session takes.
                let message = append(Int.random(in: 1...5000, using: &random))
                end.feed(.received(ByteBuffer(bytes: (try? encoded(message)) ?? [])), at: now)
            case 6:
                now = now + .milliseconds(Int64.random(in: 0...900, using: &random))
                end.feed(.timer, at: now)
            case 7: end.feed(.send(messages.message(messages.pick(FrameType.allCases))), at: now)
            case 8: end.release(at: now)
            default:
                switch Int.random(in: 0..<8, using: &random) {
                case 0: end.feed(.closed, at: now)
                case 1: end.feed(.leave(.stopping), at: now)
                case 2: end.feed(.replaced, at: now)
                case 3: end.feed(.admitted, at: now)
                case 4: end.feed(.refused(.duplicateSession), at: now)
                default: end.feed(.connected(certified: [NodeID(value: 4)]), at: now)
                }
            }
            if let what = broken(end, Pair.settings("n2")) {
                Issue.record("seed \(seed), round \(round): \(what)")
                return
            }
        }
        end.feed(.closed, at: now)
        #expect(end.closes.count == 1, "seed \(seed), round \(round)")
    }
}

@Test(arguments: [UInt64(11), 12, 13])
func streamWithAFewOctetsChangedIsDeliveredAsItWas(_ seed: UInt64) throws {
    var random = SplitMix64(seed: seed)
    let sent = (1...8).map { append($0 * 11, epoch: UInt64($0)) }
    let stream = try sent.flatMap { try encoded($0) }
    // Where the octets of chunks lie, which check themselves.
    var unchecked = IndexSetOfOctets()
    var start = 0
    for message in sent {
        let length = try encoded(message).count
        unchecked.add(start + FrameHeader.octets + Append.fixedLength..<start + length)
        start += length
    }
    for round in 0..<400 {
        var changed = stream
        let index = Int.random(in: 0..<stream.count, using: &random)
        changed[index] ^= UInt8.random(in: 1...255, using: &random)
        var end = openBulk
        end.feed(.received(ByteBuffer(bytes: changed)), at: rigStart)
        if unchecked.contains(index) {
            #expect(end.delivered.count == sent.count)
        } else {
            // What lies before the damage arrives, nothing behind it does.
            let isPrefix = zip(end.delivered, sent).allSatisfy { $0 == $1 } && end.delivered.count < sent.count
            #expect(isPrefix, "seed \(seed), round \(round), octet \(index)")
        }
    }
}

private struct IndexSetOfOctets {
    private var ranges: [Range<Int>] = []

    mutating func add(_ range: Range<Int>) { ranges.append(range) }

    func contains(_ index: Int) -> Bool { ranges.contains { $0.contains(index) } }
}

/// Two honest ends under random traffic, slow consumers and any cutting: all arrives in order, and nobody is accused.
@Test(arguments: [UInt64(21), 22])
func honestPeersAccuseEachOther(_ seed: UInt64) {
    var random = SplitMix64(seed: seed)
    var small = Pair.settings("n1")
    small.bulkWindow = FrameCost(octets: PeerLimits.windowOctetsMin, frames: PeerLimits.windowFramesMin)
    var other = Pair.settings("n2")
    other.bulkWindow = small.bulkWindow
    var pair = Pair.open(small, other)
    pair.random = SplitMix64(seed: seed)
    pair.pieceMax = 400_000
    var sent: [[PeerMessage]] = [[], []]
    var accepted: [[PeerMessage]] = [[], []]
    for step in 0..<250 {
        let size = Int.random(in: 0..<20, using: &random) == 0 ? PeerLimits.partOctets : 3000
        let octets = Int.random(in: 1...size, using: &random)
        switch Int.random(in: 0..<6, using: &random) {
        case 0, 1:
            let message = append(octets, epoch: UInt64(step), by: small)
            let before = pair.dialer.refusals.count
            pair.dialer.feed(.send(message), at: pair.now)
            sent[0].append(message)
            if pair.dialer.refusals.count == before { accepted[0].append(message) }
        case 2, 3:
            let message = append(octets, epoch: UInt64(step), by: other)
            let before = pair.acceptor.refusals.count
            pair.acceptor.feed(.send(message), at: pair.now)
            sent[1].append(message)
            if pair.acceptor.refusals.count == before { accepted[1].append(message) }
        case 4: pair.dialer.release(at: pair.now)
        default: pair.acceptor.release(at: pair.now)
        }
        pair.move()
        if Bool.random(using: &random) { pair.pass(.milliseconds(Int64.random(in: 1...300, using: &random))) }
    }
    for _ in 0..<40 {
        pair.dialer.release(at: pair.now)
        pair.acceptor.release(at: pair.now)
        pair.move()
    }
    #expect(pair.dialer.closes.isEmpty && pair.acceptor.closes.isEmpty, "seed \(seed)")
    #expect(Set(pair.dialer.refusals + pair.acceptor.refusals).isSubset(of: [.full]), "seed \(seed)")
    let isWhole = pair.acceptor.delivered == accepted[0] && pair.dialer.delivered == accepted[1]
    #expect(isWhole, "seed \(seed): \(accepted.map(\.count)) of \(sent.map(\.count))")
}
