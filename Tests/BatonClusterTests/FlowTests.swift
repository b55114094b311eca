// Credit, bounded queues, LZ4 bodies, new runs, farewell, and what start refuses.
import BatonCore
import BatonModel
import BatonPeer
import NIOCore
import Synchronization
import Testing

@testable import BatonCluster

private func append(_ octets: Int, by run: NodeRun, offset: Int = 0) -> PeerMessage {
    .append(
        Append(
            segment: SegmentID(writer: run.node, incarnation: run.incarnation, index: 1), epoch: 1,
            offset: Int64(offset), chunkOctets: octets, position: 0, octets: ByteBuffer(repeating: 7, count: octets)))
}

@Test func consumerThatReleasesNothingFillsItsMemory() async throws {
    let (one, two) = try await connectedPair()
    two.recorder.state.withLock { $0.releases = false }
    var sent = 0
    // Window and queue hold 8 MiB each.
    while sent < 1000, one.transport.send([append(65_536, by: one.run, offset: sent)], to: two.node) {
        sent += 1
        // So that the loop has its turn: what is refused is the queue's bound, not the mailbox's.
        if sent % 16 == 0 { try await Task.sleep(for: .milliseconds(1)) }
    }
    #expect(sent < 300)
    let window = PeerLimits.bulkWindow.octets
    let fitting = window / (65_536 + 60)
    #expect(await eventually { two.recorder.messages.count == fitting })
    #expect(!one.transport.send([append(65_536, by: one.run)], to: two.node))
    // All or none, and the control channel is not held up.
    #expect(
        !one.transport.send(
            [
                .seal(Seal(segment: SegmentID(writer: one.node, incarnation: one.run.incarnation, index: 1), epoch: 1)),
                append(65_536, by: one.run),
            ], to: two.node))
    #expect(one.transport.send([.query(Query(request: 1, name: [97], json: ByteBuffer()))], to: two.node))
    #expect(await eventually { two.recorder.messages.count == fitting + 1 })
    two.recorder.release()
    #expect(await eventually { two.recorder.messages.count == sent + 1 })
    let offsets = two.recorder.messages.compactMap { message -> Int64? in
        if case .append(let append) = message { append.offset } else { nil }
    }
    let isInOrder = offsets == Array(0..<Int64(sent))
    #expect(isInOrder)
    // Nothing of the queue's room was lost on the way.
    let room = PeerLimits.queue.octets / (1_048_576 + 80)
    for _ in 0..<20 {
        #expect(
            await eventually {
                one.transport.send((0..<room).map { _ in append(1_048_576, by: one.run) }, to: two.node)
            })
        sent += room
        #expect(await eventually { two.recorder.messages.count == sent + 1 })
    }
    await one.stop()
    await two.stop()
}

@Test func peerThatReadsNothingFillsThisNodesMemory() async throws {
    // 16 MiB of window; what lies here beyond 6 MiB, which the kernel does not take, ends the connection.
    let settings = TestNode.settings("n2")
    var configuration = PeerTransportConfiguration(
        address: try #require(PeerAddress("127.0.0.1:0")), settings: settings, security: .plaintext)
    configuration.unread = -10 * ByteCount.mebi
    let node = try await TestNode(configuration)
    let deaf = try RawPeer(
        node.address,
        settings: TestNode.settings("n1") { $0.bulkWindow = FrameCost(octets: 16 * ByteCount.mebi, frames: 4096) },
        receiveBuffer: 4096)
    #expect(try deaf.run { $0.opened != nil })
    #expect(await eventually { node.transport.isConnected(to: NodeID(name: "n1"), .bulk) })
    var sent = 0
    while sent < 15,
        await eventually(2, { node.transport.send([append(1_048_576, by: node.run)], to: NodeID(name: "n1")) })
    {
        sent += 1
    }
    #expect(await eventually { node.transport.rejections[.unread] == 1 })
    #expect(await eventually { node.recorder.state.withLock { $0.reasons } == [.lost(midFrame: false)] })
    await node.stop()
}

@Test func sendToANodeWithoutSessionIsTaken() async throws {
    let (one, two) = try await connectedPair()
    #expect(!one.transport.send([.query(Query(request: 1, name: [97], json: ByteBuffer()))], to: NodeID(name: "n9")))
    // The session's own frames are not for callers, nor another node's segments.
    #expect(!one.transport.send([.ping(Ping(Beat(number: 1, at: Instant(nanoseconds: 1))))], to: two.node))
    #expect(one.transport.send([append(10, by: two.run)], to: two.node))
    #expect(await eventually { one.recorder.state.withLock { $0.unsent.map(\.1) } == [.invalid] })
    await two.stop()
    #expect(await eventually { !one.transport.isConnected(to: two.node, .bulk) })
    #expect(!one.transport.send([append(10, by: one.run)], to: two.node))
    await one.stop()
}

@Test func bodyIsChangedByItsCompression() async throws {
    let (one, two) = try await connectedPair()
    let text = ByteBuffer(string: String(repeating: "all work and no play makes mail a dull boy\r\n", count: 2000))
    var random = SplitMix64(seed: 5)
    let noise = ByteBuffer(bytes: (0..<65_536).map { _ in UInt8(truncatingIfNeeded: random.next()) })
    let small = ByteBuffer(string: "hello")
    for (number, body) in [text, text, noise, small, ByteBuffer()].enumerated() {
        let submit = Submit(
            key: MessageKey(ingress: one.run, counter: UInt64(number + 1)), receiver: two.run.incarnation,
            envelope: ByteBuffer(string: "env"), body: body, bodyOctets: body.readableBytes, isCompressed: false)
        #expect(one.transport.send([.submit(submit)], to: two.node))
        #expect(await eventually { two.recorder.messages.count == number + 1 })
        guard case .submit(let arrived) = two.recorder.messages.last else {
            Issue.record("no SUBMIT")
            continue
        }
        #expect(arrived.isCompressed == (body == text))
        #expect(arrived.openedBody() == body)
        #expect(arrived.body.readableBytes <= body.readableBytes)
    }
    // What a body shrinks by does not stay counted in the queue: 26 MB of bodies pass through its 8 MiB one after the other.
    for number in 6..<306 {
        let submit = Submit(
            key: MessageKey(ingress: one.run, counter: UInt64(number)), receiver: two.run.incarnation,
            envelope: ByteBuffer(string: "env"), body: text, bodyOctets: text.readableBytes, isCompressed: false)
        try #require(one.transport.send([.submit(submit)], to: two.node))
        try #require(await eventually { two.recorder.messages.count == number })
    }
    await one.stop()
    await two.stop()
}

@Test func compressedBodyThatLiesIsOpened() {
    let raw = ByteBuffer(repeating: 0x61, count: 10_000)
    let honest = Submit(
        key: MessageKey(ingress: NodeRun(node: NodeID(value: 1), incarnation: Incarnation(value: 1)), counter: 1),
        receiver: Incarnation(value: 2), envelope: ByteBuffer(string: "e"), body: raw, bodyOctets: 10_000,
        isCompressed: false
    ).compressed()
    guard let honest else {
        Issue.record("did not shrink")
        return
    }
    #expect(honest.openedBody() == raw)
    // A block that is longer or shorter than it says, one that says more than any body has, one that is no block.
    for octets in [9_999, 10_001, 0, -1, Limits.fragmentThreshold + 1, .max] {
        var liar = honest
        liar.bodyOctets = octets
        #expect(liar.openedBody() == nil)
    }
    var damaged = honest
    damaged.body = ByteBuffer(repeating: 0xff, count: 50)
    #expect(damaged.openedBody() == nil)
}

@Test func partsOfAChunkAreJoinedInAWrongOrder() {
    let segment = SegmentID(writer: NodeID(value: 1), incarnation: Incarnation(value: 2), index: 3)
    let chunk = ByteBuffer(bytes: (0..<(2 * PeerLimits.partOctets + 5)).map { UInt8(truncatingIfNeeded: $0) })
    let parts = PeerMessage.appends(of: chunk, segment: segment, epoch: 1, offset: 4096).compactMap {
        if case .append(let part) = $0 { part } else { nil }
    }
    #expect(parts.count == 3)
    var joiner = ChunkJoiner(limit: chunk.readableBytes)
    #expect(joiner.add(parts[0]) == .more)
    #expect(joiner.add(parts[1]) == .more)
    #expect(joiner.add(parts[2]) == .chunk(chunk, offset: 4096))
    #expect(joiner.heldOctets == 0)
    for order in [[1], [0, 2], [0, 0], [0, 1, 1], [2]] {
        var joiner = ChunkJoiner(limit: chunk.readableBytes)
        let steps = order.map { joiner.add(parts[$0]) }
        #expect(steps.last == .refused)
        #expect(joiner.heldOctets == 0)
    }
    var other = parts[1]
    other.epoch = 2
    var mixed = ChunkJoiner(limit: chunk.readableBytes)
    #expect(mixed.add(parts[0]) == .more)
    #expect(mixed.add(other) == .refused)
    var bounded = ChunkJoiner(limit: chunk.readableBytes - 1)
    #expect(bounded.add(parts[0]) == .refused)
    #expect(bounded.heldOctets == 0)
}

@Test func nodeThatComesBackIsNotDialedOrHeardTwice() async throws {
    let (one, two) = try await connectedPair()
    let port = two.address.description
    await two.stop()
    #expect(await eventually { !one.isConnected(to: two) })
    // The same place, another run, which the control plane names a little later.
    let again = try await TestNode(TestNode.settings("n2", incarnation: 77), address: port)
    #expect(await eventually { one.isConnected(to: again) })
    one.transport.peers([again.endpoint(revision: 5)])
    #expect(one.transport.send(everyMessage(by: one.run, to: again.run), to: again.node))
    #expect(await eventually { again.recorder.messages.count == FrameType.allCases.count(where: \.usesCredit) })
    #expect(one.transport.incarnation(of: again.node) == Incarnation(value: 77))
    // Its former run does not come back.
    let ghost = try RawPeer(one.address, settings: two.settings, expecting: one.node)
    #expect(try ghost.run { $0.closed != nil })
    #expect(ghost.errorCode == .staleIncarnation)
    // The control plane names a third run: the sessions of the second one end, though it lives.
    var third = again.endpoint(revision: 6)
    third.incarnation = Incarnation(value: 78)
    one.transport.peers([third])
    #expect(
        await eventually {
            PeerChannel.allCases.allSatisfy { one.recorder.count(.disconnected(again.run, $0)) == 1 }
        })
    await one.stop()
    await again.stop()
    for channel in PeerChannel.allCases {
        #expect(one.recorder.count(.connected(two.run, channel)) == one.recorder.count(.disconnected(two.run, channel)))
        #expect(one.recorder.count(.connected(again.run, channel)) == 1)
        #expect(one.recorder.count(.disconnected(again.run, channel)) == 1)
    }
}

@Test func nodeThatWentFromTheListStaysConnected() async throws {
    let (one, two) = try await connectedPair()
    two.transport.peers([])
    one.transport.peers([])
    #expect(await eventually { !one.isConnected(to: two) && !two.isConnected(to: one) })
    #expect(one.recorder.state.withLock { $0.reasons }.allSatisfy { $0 == .left })
    one.transport.peers([two.endpoint()])
    #expect(await eventually { one.isConnected(to: two) })
    one.transport.forget(two.node)
    #expect(await eventually { !one.isConnected(to: two) })
    await one.stop()
    await two.stop()
}

@Test func silentPeerKeepsTheTransportFromStopping() async throws {
    let node = try await TestNode(TestNode.settings("n2") { $0.timing.goodbye = .milliseconds(100) })
    // It never answers GOODBYE, since nobody reads it; another has not even said HELLO.
    let settings = TestNode.settings("n1")
    let peer = try RawPeer(node.address, settings: settings)
    #expect(try peer.run { $0.opened != nil })
    #expect(await eventually { node.transport.isConnected(to: settings.run.node, .bulk) })
    let mute = try RawPeer(node.address)
    let began = ContinuousClock.now
    await node.stop()
    #expect(ContinuousClock.now - began < .seconds(8))
    #expect(await eventually { node.recorder.events.count == 2 })
    // No more connections.
    #expect(throws: (any Error).self) { _ = try RawPeer(node.address) }
    withExtendedLifetime((peer, mute)) {}
}

@Test func addressThatCannotBeUsedIsFoundLater() async throws {
    let one = try await TestNode(TestNode.settings("n1"))
    await #expect(
        throws: PeerTransportError.cannotBind(address: one.address.description, reason: "Address already in use")
    ) { _ = try await TestNode(TestNode.settings("n2"), address: one.address.description) }
    for address in ["0.0.0.0:0", "192.0.2.1:7025", "[::]:7025", "localhost:7025"] {
        await #expect(throws: PeerTransportError.plaintextBeyondLoopback(address: address)) {
            _ = try await TestNode(TestNode.settings("n2"), address: address)
        }
    }
    await #expect(throws: PeerTransportError.alreadyStarted) { try await one.transport.start(delegate: Recorder()) }
    await one.stop()
    for text in ["", ":1", "a", "a:", "a:x", "a:-1", "a:65536", "::1:7025", "[10.0.0.1]:5", "a b:1", "a/b:1", "a:1\n"] {
        #expect(PeerAddress(text) == nil, "\(text)")
    }
    #expect(PeerAddress("[::1]:7025")?.isLoopback == true)
    #expect(PeerAddress("n1.internal:7025")?.isLoopback == false)
}

@Test func registrationThatContradictsItselfIsDialed() async throws {
    let one = try await TestNode(TestNode.settings("n1"))
    func endpoint(_ name: String, _ address: String) throws -> PeerEndpoint {
        PeerEndpoint(
            name: name, incarnation: Incarnation(value: 1), address: try #require(PeerAddress(address)), revision: 1)
    }
    var foreign = try endpoint("n3", "127.0.0.1:1")
    foreign.node = NodeID(name: "n4")
    // In clear beyond loopback, without a port, another's id, without a name.
    one.transport.peers([
        try endpoint("n5", "192.0.2.1:7025"), try endpoint("n6", "127.0.0.1:0"), foreign,
        try endpoint("", "127.0.0.1:1"),
        one.endpoint(),
    ])
    #expect(one.transport.rejections == [.endpoint: 4])
    await one.stop()
}

@Test func registrationsWithoutBound() async throws {
    let one = try await TestNode(TestNode.settings("n1"))
    let address = try #require(PeerAddress("127.0.0.1:1"))
    one.transport.peers(
        (0..<PeerLimits.nodes + 3).map {
            PeerEndpoint(name: "m\($0)", incarnation: Incarnation(value: 1), address: address, revision: 1)
        })
    #expect(one.transport.rejections[.endpoint] == 3)
    await one.stop()
}
