// Two sessions with a wire between them and a simulated clock.
import BatonCore
import NIOCore

@testable import BatonPeer

/// When every rig's clock begins.
let rigStart = Instant(secondsSinceEpoch: 1_700_000_000)

/// One end: a session, what it did, and a roster that answers at once unless told not to.
struct End {
    var session: PeerSession
    var roster: PeerRoster
    var id: PeerSessionID?
    var answersRoster = true

    /// Written and not yet taken by the wire.
    var wire = ByteBuffer()
    var outbox: [UInt8] {
        get { Array(wire.readableBytesView) }
        set { wire = ByteBuffer(bytes: newValue) }
    }
    var delivered: [PeerMessage] = []
    var heldCost = FrameCost.zero
    var opened: PeerIdentity?
    var asked: PeerIdentity?
    var refusals: [SendRefusal] = []
    var peerLeaves: GoodbyeReason?
    var closes: [CloseReason] = []
    var actedAfterClose = false
    var timer: Instant?

    init(_ settings: PeerSettings, _ role: PeerRole, nonce: UInt64, roster: PeerRoster? = nil) {
        self.session = PeerSession(settings: settings, role: role, nonce: nonce)
        self.roster = roster ?? PeerRoster(me: settings.run.node)
        self.id = self.roster.begin()
    }

    mutating func feed(_ event: PeerEvent, at now: Instant) {
        var events = [event]
        while !events.isEmpty {
            var buffer = ActionBuffer<PeerAction>()
            session.receive(events.removeFirst(), at: now, into: &buffer)
            for action in buffer.drain() {
                if !closes.isEmpty {
                    if case .sendRefused(_, .notOpen) = action {} else { actedAfterClose = true }
                }
                switch action {
                case .write(let octets): wire.writeImmutableBuffer(octets)
                case .deliver(let message, let cost):
                    delivered.append(message)
                    heldCost.octets += cost.octets
                    heldCost.frames += cost.frames
                case .identify(let identity):
                    asked = identity
                    guard answersRoster, let id else { continue }
                    switch roster.admit(id, identity) {
                    case .admitted: events.append(.admitted)
                    case .refused(let violation): events.append(.refused(violation))
                    }
                case .opened(let identity): opened = identity
                case .sendRefused(_, let refusal): refusals.append(refusal)
                case .peerLeaves(let reason): peerLeaves = reason
                case .setTimer(let due): timer = due
                case .close(let reason): closes.append(reason)
                }
            }
        }
    }

    /// The next octets that the wire carries, 1 to `most`.
    mutating func take(_ most: Int, _ random: inout SplitMix64) -> ByteBuffer {
        guard wire.readableBytes > 0 else { return ByteBuffer() }
        let piece = wire.readSlice(length: min(wire.readableBytes, Int.random(in: 1...most, using: &random)))
        if wire.readableBytes == 0 { wire = ByteBuffer() }
        return piece ?? ByteBuffer()
    }

    /// Gives back all that was delivered.
    mutating func release(at now: Instant) {
        let cost = heldCost
        heldCost = .zero
        feed(.released(cost), at: now)
    }
}

struct Pair {
    var dialer: End
    var acceptor: End
    var now = rigStart
    var random = SplitMix64(seed: 4711)
    /// Octets move in pieces of at most this.
    var pieceMax = 100_000
    /// A wire that is cut silently: what is written is lost.
    var isCut = false

    static func settings(_ name: String, cluster: String = "prod", incarnation: UInt64 = 1) -> PeerSettings {
        PeerSettings(
            name: Array(name.utf8), cluster: Array(cluster.utf8), incarnation: Incarnation(value: incarnation))
    }

    init(
        dialer: PeerSettings = Pair.settings("n1"), acceptor: PeerSettings = Pair.settings("n2"),
        channel: PeerChannel = .bulk, expecting: NodeID? = nil
    ) {
        self.dialer = End(dialer, .dialer(channel, expecting: expecting ?? acceptor.run.node), nonce: 0xd1a1)
        self.acceptor = End(acceptor, .acceptor, nonce: 0xacce)
    }

    /// A pair whose handshake is over.
    static func open(
        _ dialer: PeerSettings = settings("n1"), _ acceptor: PeerSettings = settings("n2"), channel: PeerChannel = .bulk
    ) -> Pair {
        var pair = Pair(dialer: dialer, acceptor: acceptor, channel: channel)
        pair.connect()
        return pair
    }

    mutating func connect() {
        acceptor.feed(.connected(certified: nil), at: now)
        dialer.feed(.connected(certified: nil), at: now)
        move()
    }

    /// Moves octets both ways until nothing moves any more. Bounded.
    mutating func move() {
        for _ in 0..<100_000 where dialer.wire.readableBytes + acceptor.wire.readableBytes > 0 {
            let toAcceptor = dialer.take(pieceMax, &random)
            if !isCut, toAcceptor.readableBytes > 0 { acceptor.feed(.received(toAcceptor), at: now) }
            let toDialer = acceptor.take(pieceMax, &random)
            if !isCut, toDialer.readableBytes > 0 { dialer.feed(.received(toDialer), at: now) }
        }
    }

    /// Lets time go on to `span` from now, firing each timer when it is due.
    mutating func pass(_ span: TimeSpan) {
        let end = now + span
        while true {
            let due = min(dialer.timer ?? .distantFuture, acceptor.timer ?? .distantFuture)
            guard due <= end else { break }
            now = max(now, due)
            if let timer = dialer.timer, timer <= now {
                dialer.timer = nil
                dialer.feed(.timer, at: now)
            }
            if let timer = acceptor.timer, timer <= now {
                acceptor.timer = nil
                acceptor.feed(.timer, at: now)
            }
            move()
        }
        now = end
    }
}

/// A message of the dialer ("n1", incarnation 1) that its session may send, of about `octets`.
func append(_ octets: Int, epoch: UInt64 = 1, by settings: PeerSettings = Pair.settings("n1")) -> PeerMessage {
    .append(
        Append(
            segment: SegmentID(writer: settings.run.node, incarnation: settings.run.incarnation, index: 1),
            epoch: epoch, offset: 0, chunkOctets: octets, position: 0, octets: ByteBuffer(repeating: 7, count: octets)))
}

func appendCost(_ octets: Int) -> FrameCost {
    FrameCost(octets: FrameHeader.octets + Append.fixedLength + octets, frames: 1)
}

let question = PeerMessage.query(Query(request: 1, name: [97], json: ByteBuffer()))
