// Who and what is refused on the listener, by which name, and that it goes on serving.
import BatonCore
import BatonModel
import BatonPeer
import NIOCore
import Synchronization
import Testing

@testable import BatonCluster

/// A good peer still gets in and is heard.
private func stillServes(_ node: TestNode, as name: String = "good") throws {
    let settings = TestNode.settings(name)
    let peer = try RawPeer(node.address, settings: settings, channel: .control)
    #expect(try peer.run { $0.opened != nil })
    let before = node.recorder.messages.count
    peer.send(.query(Query(request: 1, name: [97], json: ByteBuffer(string: "{}"))))
    #expect(try peer.run { _ in node.recorder.messages.count > before })
}

private func append(_ octets: Int, by settings: PeerSettings) -> PeerMessage {
    .append(
        Append(
            segment: SegmentID(writer: settings.run.node, incarnation: settings.run.incarnation, index: 1), epoch: 1,
            offset: 0, chunkOctets: octets, position: 0, octets: ByteBuffer(repeating: 7, count: octets)))
}

@Test func octetsThatComeOneByOneMakeNoFrame() async throws {
    try await withNode { node in
        for channel in PeerChannel.allCases {
            let settings = TestNode.settings("n1")
            let peer = try RawPeer(node.address, settings: settings, channel: channel)
            peer.piece = 1
            #expect(try peer.run { $0.opened != nil })
            let messages = everyMessage(by: settings.run, to: node.run).filter { $0.type.channel == channel }
            for message in messages { peer.send(message) }
            #expect(try peer.run { _ in node.recorder.messages.count >= messages.count })
            #expect(node.recorder.messages == messages)
            node.recorder.state.withLock { $0.messages = [] }
        }
        #expect(node.transport.rejections.isEmpty)
    }
}

@Test func garbageOrAnotherProtocolStopsTheListener() async throws {
    try await withNode { node in
        let clientHello: [UInt8] = [0x16, 3, 1, 0, 0x7a, 1, 0, 0, 0x76, 3, 3] + [UInt8](repeating: 9, count: 116)
        var random = SplitMix64(seed: 0xba70)
        let noise = (0..<4096).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        for octets in [
            Array("GET / HTTP/1.1\r\nHost: x\r\n\r\n".utf8), clientHello, noise, [UInt8](repeating: 0, count: 99),
        ] {
            let peer = try RawPeer(node.address)
            peer.write(raw: octets)
            #expect(try peer.run { $0.isAtEnd })
            #expect(peer.errorCode != nil)
        }
        #expect(node.transport.rejections.values.reduce(0, +) == 4)
        #expect(node.recorder.events.isEmpty)
        try stillServes(node)
    }
}

@Test func replayedHelloClosesOrOpensASession() async throws {
    try await withNode { node in
        let settings = TestNode.settings("n1")
        let honest = try RawPeer(node.address, settings: settings, channel: .bulk)
        #expect(try honest.run { $0.opened != nil })
        honest.send(append(100, by: settings))
        #expect(try honest.run { _ in node.recorder.messages.count == 1 })
        let replay = try RawPeer(node.address)
        replay.write(raw: honest.written)
        #expect(try replay.run { $0.isAtEnd })
        #expect(replay.errorCode == .staleEcho)
        #expect(node.transport.rejections == [.violation(.staleEcho): 1])
        // The session that was recorded goes on.
        honest.send(append(100, by: settings))
        #expect(try honest.run { _ in node.recorder.messages.count == 2 })
        #expect(node.recorder.events == [.connected(settings.run, .bulk)])
    }
}

@Test func strangerOfWrongClusterNameOrRunGetsIn() async throws {
    try await withNode { node in
        var liar = TestNode.settings("n1")
        liar.run = NodeRun(node: NodeID(name: "n3"), incarnation: Incarnation(value: 1))
        let cases: [(PeerSettings, PeerViolation)] = [
            (TestNode.settings("n1", cluster: "staging"), .wrongCluster), (liar, .unexpectedNode),
            (TestNode.settings("n2", incarnation: 9), .ownNode),
            (TestNode.settings("n1") { $0.versions = VersionRange(lowest: 2, highest: 3) }, .versionMismatch),
        ]
        for (settings, violation) in cases {
            for channel in PeerChannel.allCases {
                let peer = try RawPeer(node.address, settings: settings, channel: channel)
                #expect(try peer.run { $0.isAtEnd })
                #expect(peer.errorCode == violation)
                #expect(peer.opened == nil)
            }
            #expect(node.transport.rejections[.violation(violation)] == 2)
        }
        // A run that the control plane has replaced.
        let present = PeerEndpoint(
            name: "n1", incarnation: Incarnation(value: 1),
            address: try #require(PeerAddress("127.0.0.1:1")), revision: 1)
        node.transport.peers([present])
        var next = present
        next.incarnation = Incarnation(value: 2)
        next.revision = 2
        node.transport.peers([next])
        let stale = try RawPeer(node.address, settings: TestNode.settings("n1", incarnation: 1))
        #expect(try stale.run { $0.closed != nil })
        #expect(stale.errorCode == .staleIncarnation)
        #expect(node.recorder.events.isEmpty)
        try stillServes(node)
    }
}

@Test func oversizedOrBrokenFrameOfAnOpenSessionStopsTheListener() async throws {
    try await withNode { node in
        func frame(_ length: UInt32, _ type: FrameType, crc: UInt32 = 0) -> ByteBuffer {
            var buffer = ByteBuffer()
            buffer.writeMultipleIntegers(length, type.rawValue, UInt8(0), UInt16(0), crc, endianness: .little)
            return buffer
        }
        var sealed = frame(32, .seal)
        sealed.writeRepeatingByte(0, count: 32)
        let cases: [(ByteBuffer, PeerViolation)] = [
            (frame(.max, .append), .oversized), (frame(1, .append), .undersized), (frame(62, .hello), .unexpected),
            (sealed, .wrongChannel), (frame(16, .ping), .badChecksum),
        ]
        for (number, (octets, violation)) in cases.enumerated() {
            let settings = TestNode.settings("n1", incarnation: UInt64(number + 1))
            let peer = try RawPeer(node.address, settings: settings)
            #expect(try peer.run { $0.opened != nil })
            var octets = octets
            if violation == .badChecksum { octets.writeRepeatingByte(1, count: 16) }
            peer.write(frame: octets)
            #expect(try peer.run { $0.isAtEnd })
            #expect(peer.errorCode == violation)
            #expect(node.transport.rejections[.violation(violation)] == 1)
        }
        // One that stops in the middle of a frame.
        let settings = TestNode.settings("n1", incarnation: 99)
        let peer = try RawPeer(node.address, settings: settings)
        #expect(try peer.run { $0.opened != nil })
        let whole = try #require(EncodedFrame(append(1000, by: settings))).joined
        peer.write(frame: try #require(whole.getSlice(at: 0, length: 500)))
        peer.end()
        #expect(try peer.run { $0.isAtEnd })
        #expect(node.recorder.state.withLock { $0.reasons.last } == .lost(midFrame: true))
        #expect(node.recorder.messages.isEmpty)
        try stillServes(node)
    }
}

private func isOpen(_ peer: RawPeer) -> Bool { peer.opened != nil }

@Test func strangersTakeAllHandshakes() async throws {
    try await withNode { node in
        var idle: [RawPeer] = []
        for _ in 0..<TransportLimits.handshakesPerAddress {
            idle.append(try RawPeer(node.address))
        }
        // Accepted in the order in which they came.
        let last = try RawPeer(node.address)
        #expect(try last.run { $0.isAtEnd })
        #expect(node.transport.rejections == [.handshakes: 1])
        idle = []
        let end = ContinuousClock.now.advanced(by: .seconds(10))
        while ContinuousClock.now < end {
            let peer = try RawPeer(node.address, settings: TestNode.settings("n1"))
            // By name: as a closure it shares its symbol with the one in the `#expect` above, and that one is called.
            if try peer.run(until: isOpen) { return }
        }
        Issue.record("nobody is let in any more")
    }
}

@Test func connectionThatSaysNothingStays() async throws {
    try await withNode({ $0.timing.handshake = .milliseconds(100) }) { node in
        let peer = try RawPeer(node.address)
        #expect(try peer.run { $0.isAtEnd })
        #expect(peer.errorCode == .handshakeTimeout)
        #expect(node.transport.rejections == [.violation(.handshakeTimeout): 1])
    }
}
