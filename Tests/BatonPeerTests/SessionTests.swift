// An open session: messages, credit, heartbeat and farewell.
import BatonCore
import NIOCore
import Testing

@testable import BatonPeer

@Test func messagesArriveChangedOrOutOfOrder() {
    for pieceMax in [1, 13, 5000] {
        var pair = Pair.open()
        pair.pieceMax = pieceMax
        let sent = (1...20).map { append($0 * 37, epoch: UInt64($0)) }
        for message in sent { pair.dialer.feed(.send(message), at: pair.now) }
        pair.move()
        #expect(pair.acceptor.delivered == sent)
        #expect(pair.dialer.refusals.isEmpty)
    }
}

@Test func bodyIsCopiedOnItsWayOut() throws {
    var pair = Pair.open()
    let message = append(100_000)
    guard case .append(let sent) = message else { return }
    var buffer = ActionBuffer<PeerAction>()
    pair.dialer.session.receive(.send(message), at: pair.now, into: &buffer)
    let writes = buffer.drain().compactMap { if case .write(let octets) = $0 { octets } else { nil } }
    #expect(writes.count == 2)
    let source = sent.octets.withUnsafeReadableBytes { $0.baseAddress }
    #expect(writes.last?.withUnsafeReadableBytes { $0.baseAddress } == source)
}

// MARK: Credit

@Test func senderGoesOnWithoutCredit() {
    var pair = Pair.open()
    let window = PeerLimits.bulkWindow
    let size = ByteCount.mebi
    for _ in 0..<12 { pair.dialer.feed(.send(append(size)), at: pair.now) }
    pair.move()
    #expect(pair.acceptor.delivered.count == window.octets / appendCost(size).octets)
    #expect(pair.acceptor.session.heldCost.octets <= window.octets)
    #expect(pair.dialer.session.queued.frames == 12 - pair.acceptor.delivered.count)
    #expect(pair.dialer.refusals.isEmpty)
    // What is let go comes back as credit, and the rest follows.
    for _ in 0..<6 {
        pair.acceptor.release(at: pair.now)
        pair.move()
    }
    #expect(pair.acceptor.delivered.count == 12)
    #expect(pair.dialer.session.queued == .zero)
}

@Test func smallFramesRunTheWindowOutOfFrames() {
    var pair = Pair.open()
    for _ in 0..<(PeerLimits.bulkWindow.frames + 50) { pair.dialer.feed(.send(append(1)), at: pair.now) }
    pair.move()
    #expect(pair.acceptor.delivered.count == PeerLimits.bulkWindow.frames)
    pair.acceptor.release(at: pair.now)
    pair.move()
    #expect(pair.acceptor.delivered.count == PeerLimits.bulkWindow.frames + 50)
}

@Test func smallFrameOvertakesALargeOne() {
    var pair = Pair.open()
    for _ in 0..<4 { pair.dialer.feed(.send(append(PeerLimits.partOctets)), at: pair.now) }
    pair.dialer.feed(.send(append(1, epoch: 9)), at: pair.now)
    pair.move()
    #expect(pair.acceptor.delivered.count == 3)
    #expect(pair.dialer.session.queued.frames == 2)
    pair.acceptor.release(at: pair.now)
    pair.move()
    #expect(pair.acceptor.delivered.last == append(1, epoch: 9))
}

@Test func queueGrowsWithoutBound() {
    var byOctets = Pair.open()
    for _ in 0..<40 { byOctets.dialer.feed(.send(append(ByteCount.mebi)), at: byOctets.now) }
    #expect(byOctets.dialer.session.queued.octets <= PeerLimits.queue.octets)
    #expect(byOctets.dialer.session.queued.octets > PeerLimits.queue.octets - 2 * ByteCount.mebi)
    #expect(byOctets.dialer.refusals == [SendRefusal](repeating: .full, count: 40 - 7 - 7))
    var byFrames = Pair.open()
    let room = PeerLimits.bulkWindow.frames + PeerLimits.queue.frames
    for _ in 0..<(room + 3) { byFrames.dialer.feed(.send(append(1)), at: byFrames.now) }
    #expect(byFrames.dialer.session.queued.frames == PeerLimits.queue.frames)
    #expect(byFrames.dialer.refusals == [.full, .full, .full])
}

/// The acceptor of an open pair, to which a hostile dialer speaks by hand.
private func victim(channel: PeerChannel = .bulk) -> End { Pair.open(channel: channel).acceptor }

@Test func peerSendsMoreThanItsCredit() throws {
    var end = victim()
    let now = rigStart
    let size = ByteCount.mebi
    let octets = ByteBuffer(bytes: try encoded(append(size)))
    for _ in 0..<(PeerLimits.bulkWindow.octets / appendCost(size).octets) { end.feed(.received(octets), at: now) }
    #expect(end.closes.isEmpty)
    // The header alone is enough: the overrun is not waited for.
    end.feed(.received(ByteBuffer(octets.readableBytesView.prefix(FrameHeader.octets))), at: now)
    #expect(end.closes == [.violation(.creditOverrun)])
    var other = victim()
    let small = ByteBuffer(bytes: try encoded(append(1)))
    for _ in 0..<PeerLimits.bulkWindow.frames { other.feed(.received(small), at: now) }
    #expect(other.closes.isEmpty)
    other.feed(.received(small), at: now)
    #expect(other.closes == [.violation(.creditOverrun)])
}

@Test func peerGivesCreditForWhatWasNotUsed() throws {
    let used = appendCost(10)
    for (octets, frames, isRight) in [
        (used.octets, 1, true), (used.octets + 1, 1, false), (used.octets, 2, false),
        (PeerLimits.windowOctetsMax, PeerLimits.windowFramesMax, false),
    ] {
        var end = victim()
        end.feed(.send(append(10, by: Pair.settings("n2"))), at: rigStart)
        try end.give(.credit(Credit(FrameCost(octets: octets, frames: frames))), at: rigStart)
        #expect(end.closes == (isRight ? [] : [.violation(.creditOverflow)]), "\(octets), \(frames)")
    }
}

@Test func creditLeaksOrIsGivenTwice() throws {
    let seed: UInt64 = 20_261_125
    var random = SplitMix64(seed: seed)
    var sender = SendWindow(size: PeerLimits.bulkWindow)
    var receiver = ReceiveWindow(size: PeerLimits.bulkWindow)
    var held: [FrameCost] = []
    var onItsWay: [FrameCost] = []
    for step in 0..<20_000 {
        let cost = FrameCost(octets: Int.random(in: 12...300_000, using: &random), frames: 1)
        switch Int.random(in: 0..<3, using: &random) {
        case 0:
            guard sender.take(cost) else { continue }
            #expect(throws: Never.self, "seed \(seed), step \(step)") { try receiver.use(cost) }
            held.append(cost)
        case 1:
            guard !held.isEmpty else { continue }
            if let given = receiver.release(held.remove(at: Int.random(in: 0..<held.count, using: &random))) {
                onItsWay.append(given)
            }
        default:
            guard !onItsWay.isEmpty else { continue }
            let given = onItsWay.removeFirst()
            #expect(throws: Never.self, "seed \(seed), step \(step)") { try sender.grant(given) }
        }
        let sum = held.reduce(0) { $0 + $1.octets }
        guard receiver.held.octets == sum, receiver.held.frames == held.count else {
            Issue.record("seed \(seed), step \(step): \(receiver) holds \(sum)")
            return
        }
    }
    for cost in held { if let given = receiver.release(cost) { onItsWay.append(given) } }
    for given in onItsWay { try sender.grant(given) }
    #expect(receiver.held == .zero)
    // What the receiver may owe is less than a portion, so the largest frame can always come.
    let portion = PeerLimits.bulkWindow.octets / PeerLimits.creditPortions
    #expect(sender.available.octets > PeerLimits.bulkWindow.octets - portion)
    #expect(sender.available.octets + receiver.owed.octets == PeerLimits.bulkWindow.octets)
    #expect(sender.available.frames + receiver.owed.frames == PeerLimits.bulkWindow.frames)
}

@Test func everySmallMessageCostsACredit() {
    var window = ReceiveWindow(size: PeerLimits.bulkWindow)
    var credits = 0
    for _ in 0..<1000 {
        try? window.use(FrameCost(octets: 100, frames: 1))
        if window.release(FrameCost(octets: 100, frames: 1)) != nil { credits += 1 }
    }
    #expect(credits == 1)
}

// MARK: Heartbeat

@Test func deadPeerIsNoticedLateOrNever() {
    var pair = Pair.open()
    pair.pass(.seconds(30))
    #expect(pair.dialer.session.isOpen && pair.acceptor.session.isOpen)
    pair.isCut = true
    let cutAt = pair.now
    pair.pass(.milliseconds(1200))
    #expect(pair.dialer.closes.isEmpty && pair.acceptor.closes.isEmpty)
    while pair.dialer.closes.isEmpty, pair.now < cutAt + .seconds(60) { pair.pass(.milliseconds(10)) }
    #expect(pair.dialer.closes == [.violation(.silent)])
    #expect(pair.now <= cutAt + PeerLimits.deathAfter + .milliseconds(20))
    pair.pass(.seconds(1))
    #expect(pair.acceptor.closes == [.violation(.silent)])
    #expect(!pair.acceptor.actedAfterClose)
}

@Test func busyPeerIsCalledDead() throws {
    // It answers no PING, but octets of one large frame keep coming.
    var end = victim()
    let now = rigStart
    let octets = try encoded(append(20_000))
    var at = now
    for octet in octets.prefix(2000) {
        at = at + .milliseconds(100)
        while let timer = end.timer, timer <= at {
            end.timer = nil
            end.feed(.timer, at: timer)
        }
        end.feed(.received(ByteBuffer(bytes: [octet])), at: at)
    }
    #expect(end.closes.isEmpty)
    // And so many PINGs stay without answer that no more go out.
    let pings = end.outbox.count / (FrameHeader.octets + Beat.length)
    #expect(pings == PeerLimits.pingsUnanswered)
}

@Test func stoppedProcessCallsItsPeerDead() {
    var pair = Pair.open()
    pair.pass(.seconds(3))
    // Both processes are stopped for ten seconds; on waking, the timer fires before the socket is read.
    pair.now = pair.now + .seconds(10)
    pair.dialer.feed(.timer, at: pair.now)
    #expect(pair.dialer.closes.isEmpty)
    pair.acceptor.feed(.timer, at: pair.now)
    pair.move()
    pair.pass(.seconds(3))
    #expect(pair.dialer.session.isOpen && pair.acceptor.session.isOpen)
}

@Test func processThatIsAlwaysLateNeverNoticesDeath() {
    var pair = Pair.open()
    pair.isCut = true
    for _ in 0..<3 where pair.dialer.closes.isEmpty {
        pair.now = pair.now + .seconds(10)
        pair.dialer.feed(.timer, at: pair.now)
    }
    #expect(pair.dialer.closes == [.violation(.silent)])
}

@Test func pongAnswersTheWrongPing() throws {
    var end = victim()
    var now = rigStart
    try end.give(.pong(Pong(Beat(number: 1, at: now))), at: now)
    #expect(end.closes == [.violation(.unaskedPong)])
    var other = victim()
    now = now + PeerLimits.pingInterval
    other.feed(.timer, at: now)
    try other.give(.pong(Pong(Beat(number: 1, at: now + .seconds(1)))), at: now)
    #expect(other.closes == [.violation(.unaskedPong)])
    var third = victim()
    third.feed(.timer, at: now)
    try third.give(.pong(Pong(Beat(number: 1, at: now))), at: now + .milliseconds(3))
    #expect(third.closes.isEmpty && third.session.roundTrip == .milliseconds(3))
}

@Test func peerFloodsWithPings() throws {
    var end = victim()
    var now = rigStart
    let ping = PeerMessage.ping(Ping(Beat(number: 1, at: .epoch)))
    for _ in 0..<PeerLimits.pingsPerInterval { try end.give(ping, at: now) }
    #expect(end.closes.isEmpty)
    now = now + PeerLimits.pingInterval
    for _ in 0..<PeerLimits.pingsPerInterval { try end.give(ping, at: now) }
    #expect(end.closes.isEmpty)
    try end.give(ping, at: now)
    #expect(end.closes == [.violation(.tooManyPings)])
}

// MARK: Wrong frames

@Test func messageOfTheOtherChannelIsTaken() throws {
    for message in sampleMessages {
        guard let channel = message.type.channel else { continue }
        var end = victim(channel: channel == .bulk ? .control : .bulk)
        let now = rigStart
        try end.give(message, at: now)
        #expect(end.closes == [.violation(.wrongChannel)], "\(message.type)")
        var own = Pair.open(channel: channel == .bulk ? .control : .bulk)
        own.dialer.feed(.send(message), at: own.now)
        #expect(own.dialer.refusals == [.invalid], "\(message.type)")
    }
}

@Test func handshakeIsRepeated() throws {
    for message in sampleMessages where message.type == .hello || message.type == .ready {
        var end = victim()
        let now = rigStart
        try end.give(message, at: now)
        #expect(end.closes == [.violation(.unexpected)])
    }
}

/// The samples are in the name of other runs than the dialer's.
@Test func messageInAnotherNodesNameIsTaken() throws {
    let expected: [FrameType: PeerViolation] = [
        .create: .foreignSegment, .append: .foreignSegment, .submit: .foreignKey, .created: .staleIncarnation,
        .durable: .staleIncarnation, .recorded: .staleIncarnation, .sealed: .staleIncarnation,
    ]
    for message in sampleMessages {
        guard let channel = message.type.channel else { continue }
        var end = victim(channel: channel)
        let now = rigStart
        try end.give(message, at: now)
        var own = Pair.open(channel: channel)
        own.dialer.feed(.send(message), at: own.now)
        if let violation = expected[message.type] {
            #expect(end.closes == [.violation(violation)], "\(message.type)")
            #expect(own.dialer.refusals == [.invalid], "\(message.type)")
        } else {
            #expect(end.delivered == [message], "\(message.type)")
            #expect(own.dialer.refusals.isEmpty, "\(message.type)")
        }
    }
}

@Test func formerRunsSegmentIsAppendedTo() throws {
    var former = Pair.settings("n1")
    former.run = NodeRun(node: former.run.node, incarnation: Incarnation(value: 77))
    var end = victim()
    let now = rigStart
    try end.give(append(5, by: former), at: now)
    #expect(end.closes == [.violation(.foreignSegment)])
}

@Test func compressedBodyIsTakenUnasked() throws {
    func submit(_ settings: PeerSettings) -> PeerMessage {
        .submit(
            Submit(
                key: MessageKey(ingress: settings.run, counter: 1), receiver: Incarnation(value: 1),
                envelope: bytes("e"), body: bytes("lz4"), bodyOctets: 900, isCompressed: true))
    }
    var able = Pair.settings("n1")
    able.features = .lz4
    var ableToo = Pair.settings("n2")
    ableToo.features = .lz4
    var end = victim()
    let now = rigStart
    try end.give(submit(able), at: now)
    #expect(end.closes == [.violation(.reservedBits)])
    var half = Pair.open(able)
    half.dialer.feed(.send(submit(able)), at: half.now)
    #expect(half.dialer.refusals == [.invalid])
    var both = Pair.open(able, ableToo)
    both.dialer.feed(.send(submit(able)), at: both.now)
    both.move()
    #expect(both.acceptor.delivered == [submit(able)])
}

/// It would end the connection of a peer that does not know this part.
@Test func singleChunkIsAskedOfAPeerThatGivesNone() {
    let fetch = PeerMessage.fetch(
        Fetch(request: 1, segment: sampleSegment, epoch: 2, from: 4096, atMost: 1 << 20, part: .chunk))
    var able = Pair.settings("n1")
    able.features = .chunks
    var ableToo = Pair.settings("n2")
    ableToo.features = [.lz4, .chunks]
    var half = Pair.open(able)
    half.dialer.feed(.send(fetch), at: half.now)
    #expect(half.dialer.refusals == [.invalid])
    var both = Pair.open(able, ableToo)
    both.dialer.feed(.send(fetch), at: both.now)
    both.move()
    #expect(both.acceptor.delivered == [fetch])
}

@Test func callerSendsAFrameOfTheConnection() {
    for message in sampleMessages where message.type.channel == nil {
        var pair = Pair.open()
        pair.dialer.feed(.send(message), at: pair.now)
        #expect(pair.dialer.refusals == [.invalid] && pair.dialer.outbox.isEmpty)
    }
    var pair = Pair.open()
    pair.dialer.feed(.send(append(PeerLimits.partOctets + 1)), at: pair.now)
    #expect(pair.dialer.refusals == [.invalid] && pair.dialer.closes.isEmpty)
}

// MARK: The end

@Test func goodbyeLosesWhatIsQueued() {
    var pair = Pair.open()
    for _ in 0..<10 { pair.dialer.feed(.send(append(ByteCount.mebi)), at: pair.now) }
    pair.acceptor.feed(.send(append(5, by: Pair.settings("n2"))), at: pair.now)
    pair.dialer.feed(.leave(.stopping), at: pair.now)
    pair.dialer.feed(.send(append(1)), at: pair.now)
    #expect(pair.dialer.refusals == [.leaving])
    pair.move()
    #expect(pair.acceptor.peerLeaves == nil, "said before the queue was empty")
    pair.acceptor.release(at: pair.now)
    pair.move()
    #expect(pair.acceptor.delivered.count == 10 && pair.dialer.delivered.count == 1)
    #expect(pair.acceptor.peerLeaves == .stopping)
    #expect(pair.dialer.peerLeaves == .stopping)
    #expect(pair.dialer.closes == [.left])
    #expect(pair.acceptor.closes.isEmpty, "closed before its GOODBYE was read")
    pair.acceptor.feed(.closed, at: pair.now)
    #expect(pair.acceptor.closes == [.left])
}

@Test func crossedGoodbyesWaitForEachOther() {
    var pair = Pair.open()
    pair.dialer.feed(.leave(.drained), at: pair.now)
    pair.acceptor.feed(.leave(.reconfigured), at: pair.now)
    pair.move()
    #expect(pair.dialer.closes == [.left] && pair.acceptor.closes == [.left])
    #expect(pair.dialer.peerLeaves == .reconfigured && pair.acceptor.peerLeaves == .drained)
}

@Test func goodbyeWithoutAnswerHangs() throws {
    var end = victim()
    var now = rigStart
    end.feed(.leave(.stopping), at: now)
    let due = now + PeerLimits.goodbyeTimeout
    while let timer = end.timer, timer < due {
        end.timer = nil
        now = timer
        try end.give(.ping(Ping(Beat(number: 1, at: now))), at: now)
        end.feed(.timer, at: now)
    }
    #expect(end.closes.isEmpty)
    #expect(end.timer == due)
    end.feed(.timer, at: due)
    #expect(end.closes == [.leftAlone])
}

@Test func peerSpeaksBehindItsGoodbye() throws {
    var end = victim()
    let now = rigStart
    for _ in 0..<5 { end.feed(.send(append(PeerLimits.partOctets, by: Pair.settings("n2"))), at: now) }
    #expect(end.session.queued.frames == 2)
    try end.give(.goodbye(Goodbye(.stopping)), at: now)
    #expect(end.peerLeaves == .stopping && end.closes.isEmpty)
    var other = end
    try end.give(append(1), at: now)
    #expect(end.closes == [.violation(.afterGoodbye)])
    try other.give(.goodbye(Goodbye(.stopping)), at: now)
    #expect(other.closes == [.violation(.unexpected)])
}

@Test func errorOfThePeerIsAnswered() throws {
    var end = victim()
    let now = rigStart
    end.outbox = []
    try end.give(.error(ErrorReport(code: 9999, text: Array("later".utf8))), at: now)
    #expect(end.closes == [.error(code: 9999, text: Array("later".utf8))])
    #expect(end.outbox.isEmpty)
}

@Test func lostTransportEndsTwiceOrNotAtAll() throws {
    var end = victim()
    let now = rigStart
    var half = end
    end.feed(.closed, at: now)
    #expect(end.closes == [.lost(midFrame: false)])
    end.feed(.send(append(1)), at: now)
    end.feed(.closed, at: now)
    end.feed(.timer, at: now)
    end.feed(.received(bytes("x")), at: now)
    end.feed(.released(FrameCost(octets: 1, frames: 1)), at: now)
    #expect(end.closes.count == 1 && end.refusals == [.notOpen] && !end.actedAfterClose)
    half.feed(.received(ByteBuffer(bytes: try encoded(append(10)).dropLast())), at: now)
    half.feed(.closed, at: now)
    #expect(half.closes == [.lost(midFrame: true)] && half.delivered.isEmpty)
}

@Test func replacedSessionStays() throws {
    var end = victim()
    let now = rigStart
    end.outbox = []
    end.feed(.replaced, at: now)
    #expect(end.closes == [.replaced])
    #expect(end.outbox == (try encoded(.error(ErrorReport(.duplicateSession)))))
    var idle = End(Pair.settings("n2"), .acceptor, nonce: 1)
    idle.feed(.leave(.stopping), at: now)
    #expect(idle.closes == [.leftAlone])
}
