// HELLO and READY: who is let in, and every reason for which a peer is not.
import BatonCore
import NIOCore
import Testing

@testable import BatonPeer

@Test(arguments: PeerChannel.allCases)
func wantedPeerIsRefused(_ channel: PeerChannel) throws {
    for pieceMax in [1, 7, 100_000] {
        var pair = Pair(channel: channel)
        pair.pieceMax = pieceMax
        pair.connect()
        let seen = try #require(pair.acceptor.opened)
        #expect(pair.acceptor.session.isOpen && pair.dialer.session.isOpen)
        #expect(seen.run == Pair.settings("n1").run && seen.name == Array("n1".utf8) && seen.channel == channel)
        #expect(seen.dialer == NodeID(name: "n1") && seen.nonce == 0xd1a1 && seen.version == 1)
        #expect(pair.dialer.opened?.run == Pair.settings("n2").run)
        #expect(pair.dialer.opened?.dialer == NodeID(name: "n1"))
        #expect(pair.dialer.closes.isEmpty && pair.acceptor.closes.isEmpty)
    }
}

/// One end refuses with a violation; the other is told by ERROR.
private func expectRefusal(_ pair: Pair, by refusing: End, _ violation: PeerViolation, told: End) {
    #expect(refusing.closes == [.violation(violation)])
    #expect(refusing.opened == nil && refusing.delivered.isEmpty)
    guard told.closes.count == 1, case .error(let code, let text)? = told.closes.first else {
        Issue.record("not told: \(told.closes)")
        return
    }
    #expect(code == violation.rawValue && text == Array("\(violation)".utf8))
}

@Test func unwantedPeerIsLetIn() {
    var later = Pair.settings("n1")
    later.versions = VersionRange(lowest: 2, highest: 3)
    let strangers: [(PeerSettings, PeerViolation)] = [
        (later, .versionMismatch), (Pair.settings("n1", cluster: "test"), .wrongCluster),
        (Pair.settings("n2", incarnation: 9), .ownNode),
    ]
    for (settings, violation) in strangers {
        var pair = Pair(dialer: settings)
        pair.connect()
        expectRefusal(pair, by: pair.acceptor, violation, told: pair.dialer)
        #expect(pair.dialer.closes.first?.isMisconfiguration == true)
    }
}

@Test func dialerTakesWhoeverAnswers() {
    var pair = Pair(expecting: NodeID(name: "n3"))
    pair.connect()
    expectRefusal(pair, by: pair.dialer, .unexpectedNode, told: pair.acceptor)
}

@Test func versionInForceIsNotTheHighestCommonOne() {
    #expect(VersionRange(lowest: 1, highest: 4).common(with: VersionRange(lowest: 2, highest: 3)) == 3)
    #expect(VersionRange(lowest: 1, highest: 4).common(with: VersionRange(lowest: 4, highest: 9)) == 4)
    #expect(VersionRange(lowest: 1, highest: 2).common(with: VersionRange(lowest: 3, highest: 4)) == nil)
    #expect(VersionRange(lowest: 3, highest: 4).common(with: VersionRange(lowest: 1, highest: 2)) == nil)
    var newer = Pair.settings("n2")
    newer.versions = VersionRange(lowest: 1, highest: 7)
    let pair = Pair.open(Pair.settings("n1"), newer)
    #expect(pair.dialer.opened?.version == 1 && pair.acceptor.opened?.version == 1)
}

@Test func certificateOfAnotherNodeIsTaken() {
    let now = Instant(secondsSinceEpoch: 1)
    for (certified, isWanted) in [([NodeID(name: "n3")], false), ([NodeID(name: "n3"), NodeID(name: "n1")], true)] {
        var pair = Pair()
        pair.acceptor.feed(.connected(certified: certified), at: now)
        pair.dialer.feed(.connected(certified: nil), at: now)
        pair.move()
        #expect(pair.acceptor.session.isOpen == isWanted)
        if !isWanted { expectRefusal(pair, by: pair.acceptor, .unexpectedNode, told: pair.dialer) }
    }
}

/// An acceptor in its handshake, to which frames are given by hand.
private func acceptor(_ settings: PeerSettings = Pair.settings("n2")) -> End {
    var end = End(settings, .acceptor, nonce: 0xacce)
    end.feed(.connected(certified: nil), at: .epoch)
    return end
}

private func helloOf(_ settings: PeerSettings, nonce: UInt64 = 5, echo: UInt64 = 0) -> Hello {
    Hello(
        versions: settings.versions, run: settings.run, nonce: nonce, echo: echo, features: settings.features,
        channel: .bulk, window: settings.bulkWindow, cluster: settings.cluster, name: settings.name)
}

extension End {
    mutating func give(_ message: PeerMessage, at now: Instant = .epoch) throws {
        feed(.received(ByteBuffer(bytes: try encoded(message))), at: now)
    }
}

@Test func nameThatIsNotTheIdsIsTaken() throws {
    var hello = helloOf(Pair.settings("n1"))
    hello.name = Array("n7".utf8)
    var end = acceptor()
    try end.give(.hello(hello))
    #expect(end.closes == [.violation(.unexpectedNode)])
}

@Test func strangersProtocolIsAnsweredWithPatience() throws {
    for text in ["GET / HTTP/1.1\r\nHost: n2\r\n\r\n", "EHLO client.example\r\n"] {
        var end = acceptor()
        end.feed(.received(ByteBuffer(string: text)), at: .epoch)
        #expect(end.closes.count == 1)
    }
    var octets = try encoded(.hello(helloOf(Pair.settings("n1"))))
    octets[12] = 0
    var end = acceptor()
    end.feed(.received(ByteBuffer(bytes: resealed(octets))), at: .epoch)
    #expect(end.closes == [.violation(.notBaton)])
}

@Test func frameBeforeTheHandshakeIsOverIsTaken() throws {
    for message in sampleMessages where message.type != .error {
        if message.type != .hello {
            var fresh = acceptor()
            try fresh.give(message)
            #expect(fresh.closes == [.violation(.unexpected)], "\(message.type) for HELLO")
        }
        if message.type != .ready {
            var greeted = acceptor()
            try greeted.give(.hello(helloOf(Pair.settings("n1"))))
            try greeted.give(message)
            #expect(greeted.closes == [.violation(.unexpected)], "\(message.type) for READY")
        }
    }
}

/// Only the header is there: nothing waits for 2 MiB of a stranger.
@Test func strangerMakesThisNodeWaitForALargeFrame() {
    var end = acceptor()
    var head = ByteBuffer()
    head.writeMultipleIntegers(
        UInt32(PeerLimits.partOctets), FrameType.append.rawValue, UInt8(0), UInt16(0), UInt32(0), endianness: .little)
    end.feed(.received(head), at: .epoch)
    #expect(end.closes == [.violation(.unexpected)])
}

@Test func recordedDialerIsLetInAgain() throws {
    var pair = Pair()
    pair.acceptor.feed(.connected(certified: nil), at: pair.now)
    pair.dialer.feed(.connected(certified: nil), at: pair.now)
    var recorded = pair.dialer.outbox
    pair.move()
    pair.dialer.feed(.send(append(10)), at: pair.now)
    recorded += try encoded(.ready(Ready(echo: 0xacce, version: 1))) + pair.dialer.outbox
    // The same octets to another connection of the same node, which drew another nonce.
    var again = End(Pair.settings("n2"), .acceptor, nonce: 0xacce + 1, roster: pair.acceptor.roster)
    again.feed(.connected(certified: nil), at: pair.now)
    again.feed(.received(ByteBuffer(bytes: recorded)), at: pair.now)
    #expect(again.closes == [.violation(.staleEcho)])
    #expect(again.asked == nil, "the roster was asked about a replay")
    #expect(again.delivered.isEmpty)
}

@Test func recordedAcceptorIsBelieved() throws {
    var pair = Pair()
    pair.acceptor.feed(.connected(certified: nil), at: pair.now)
    pair.dialer.feed(.connected(certified: nil), at: pair.now)
    let hello = pair.dialer.outbox
    pair.acceptor.feed(.received(ByteBuffer(bytes: hello)), at: pair.now)
    var again = End(Pair.settings("n1"), .dialer(.bulk, expecting: NodeID(name: "n2")), nonce: 77)
    again.feed(.connected(certified: nil), at: pair.now)
    again.feed(.received(ByteBuffer(bytes: pair.acceptor.outbox)), at: pair.now)
    #expect(again.closes == [.violation(.staleEcho)])
}

@Test func dialerWithAnEchoOrAcceptorOfAnotherChannelIsTaken() throws {
    var end = acceptor()
    try end.give(.hello(helloOf(Pair.settings("n1"), echo: 3)))
    #expect(end.closes == [.violation(.staleEcho)])
    var dialer = End(Pair.settings("n1"), .dialer(.control, expecting: NodeID(name: "n2")), nonce: 8)
    dialer.feed(.connected(certified: nil), at: .epoch)
    try dialer.give(.hello(helloOf(Pair.settings("n2"), echo: 8)))
    #expect(dialer.closes == [.violation(.wrongChannel)])
}

@Test func readyOfAnotherVersionIsTaken() throws {
    var end = acceptor()
    try end.give(.hello(helloOf(Pair.settings("n1"))))
    try end.give(.ready(Ready(echo: 0xacce, version: 2)))
    #expect(end.closes == [.violation(.versionMismatch)])
}

@Test func acceptorThatSpeaksBeforeReadyIsHeard() throws {
    var dialer = End(Pair.settings("n1"), .dialer(.bulk, expecting: NodeID(name: "n2")), nonce: 8)
    dialer.feed(.connected(certified: nil), at: .epoch)
    let early =
        try encoded(.hello(helloOf(Pair.settings("n2"), echo: 8))) + encoded(.ping(Ping(Beat(number: 1, at: .epoch))))
    dialer.feed(.received(ByteBuffer(bytes: early)), at: .epoch)
    #expect(dialer.closes == [.violation(.unexpected)])
}

@Test func framesBehindReadyAreLostWhileTheRosterIsAsked() throws {
    var end = acceptor()
    end.answersRoster = false
    try end.give(.hello(helloOf(Pair.settings("n1"))))
    let sent = append(1000)
    end.feed(
        .received(ByteBuffer(bytes: try encoded(.ready(Ready(echo: 0xacce, version: 1))) + encoded(sent))), at: .epoch)
    #expect(end.asked != nil && end.opened == nil && end.delivered.isEmpty)
    end.feed(.send(append(1, by: Pair.settings("n2"))), at: .epoch)
    #expect(end.refusals == [.notOpen])
    end.feed(.admitted, at: .epoch)
    #expect(end.opened != nil && end.delivered == [sent])
}

@Test func dialerFloodsWhileTheRosterIsAsked() throws {
    var end = acceptor()
    end.answersRoster = false
    try end.give(.hello(helloOf(Pair.settings("n1"))))
    try end.give(.ready(Ready(echo: 0xacce, version: 1)))
    let piece = ByteBuffer(repeating: 0, count: ByteCount.mebi)
    for _ in 0..<8 { end.feed(.received(piece), at: .epoch) }
    #expect(end.closes.isEmpty)
    end.feed(.received(piece), at: .epoch)
    #expect(end.closes == [.violation(.creditOverrun)])
}

@Test func refusalOfTheRosterIsNotTold() throws {
    for violation in [PeerViolation.staleIncarnation, .duplicateSession, .tooManySessions] {
        var end = acceptor()
        end.answersRoster = false
        try end.give(.hello(helloOf(Pair.settings("n1"))))
        end.outbox = []
        try end.give(.ready(Ready(echo: 0xacce, version: 1)))
        end.feed(.refused(violation), at: .epoch)
        #expect(end.closes == [.violation(violation)])
        #expect(end.outbox == (try encoded(.error(ErrorReport(violation)))))
        end.feed(.admitted, at: .epoch)
        #expect(end.opened == nil && !end.actedAfterClose)
    }
}

@Test func handshakeWithoutEndHoldsAConnection() throws {
    // Nothing said; HELLO alone; the roster silent; and a dialer that is not answered.
    var silent = acceptor()
    var greeted = acceptor()
    try greeted.give(.hello(helloOf(Pair.settings("n1"))))
    var asked = acceptor()
    asked.answersRoster = false
    try asked.give(.hello(helloOf(Pair.settings("n1"))))
    try asked.give(.ready(Ready(echo: 0xacce, version: 1)))
    var dialer = End(Pair.settings("n1"), .dialer(.bulk, expecting: NodeID(name: "n2")), nonce: 8)
    dialer.feed(.connected(certified: nil), at: .epoch)
    for var end in [silent, greeted, asked, dialer] {
        #expect(end.timer == .epoch + PeerLimits.handshakeTimeout)
        end.feed(.timer, at: .epoch + PeerLimits.handshakeTimeout - TimeSpan(nanoseconds: 1))
        #expect(end.closes.isEmpty)
        end.feed(.timer, at: .epoch + PeerLimits.handshakeTimeout)
        #expect(end.closes == [.violation(.handshakeTimeout)])
    }
    silent.feed(.closed, at: .epoch)
    #expect(silent.closes == [.lost(midFrame: false)])
}

@Test func dripOfOctetsOutlivesTheHandshake() throws {
    var end = acceptor()
    var now = Instant.epoch
    for octet in try encoded(.hello(helloOf(Pair.settings("n1")))).dropLast() where end.closes.isEmpty {
        now = now + .milliseconds(500)
        if let timer = end.timer, timer <= now { end.feed(.timer, at: now) }
        end.feed(.received(ByteBuffer(bytes: [octet])), at: now)
    }
    #expect(end.closes == [.violation(.handshakeTimeout)])
}
