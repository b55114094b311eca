// Sessions over TLS: the same frames, and every certificate that is not the node's is refused by its name.
import BatonCore
import BatonPeer
import BatonTLS
import BatonTestKit
import NIOCore
import Synchronization
import Testing

@testable import BatonCluster

private let certificates = TestCertificates.shared

private func tls(_ name: String, folder: String = "", authority: String? = nil) throws -> TLSContext {
    try TLSContext(
        TLSFiles(
            authority: certificates.path((authority ?? folder) + "ca.pem"),
            certificate: certificates.path(folder + name + ".pem"),
            privateKey: certificates.path(folder + name + ".key")))
}

@Test func frameTypeIsLostOrChangedOverTLS() async throws {
    let (one, two) = try await connectedPair(security: (.tls(tls("n1")), .tls(tls("n2"))))
    for (from, to) in [(one, two), (two, one)] {
        let messages = everyMessage(by: from.run, to: to.run)
        #expect(from.transport.send(messages, to: to.node))
        #expect(await eventually { to.recorder.messages.count == messages.count })
        for channel in PeerChannel.allCases {
            #expect(
                to.recorder.messages.filter { $0.type.channel == channel }
                    == messages.filter { $0.type.channel == channel })
        }
    }
    // Many octets, through the loop that bulk has moved to.
    let segment = SegmentID(writer: one.node, incarnation: one.run.incarnation, index: 1)
    let chunk = ByteBuffer(bytes: (0..<5_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31) })
    let parts = PeerMessage.appends(of: chunk, segment: segment, epoch: 1, offset: 0)
    #expect(one.transport.send(parts, to: two.node))
    let whole = everyMessage(by: one.run, to: two.run).count + parts.count
    #expect(await eventually { two.recorder.messages.count == whole })
    var joiner = ChunkJoiner(limit: chunk.readableBytes)
    var joined: ByteBuffer?
    for case .append(let part) in two.recorder.messages.suffix(parts.count) {
        if case .chunk(let whole, offset: 0) = joiner.add(part) { joined = whole }
    }
    #expect(joined == chunk)
    #expect(one.transport.rejections.isEmpty && two.transport.rejections.isEmpty)
    await one.stop()
    await two.stop()
    #expect(two.recorder.state.withLock { $0.reasons }.allSatisfy { $0 == .left })
}

@Test func handshakeOverTLSThatComesOctetByOctetFails() async throws {
    try await withNode(security: .tls(tls("n2"))) { node in
        let settings = TestNode.settings("n1")
        for channel in PeerChannel.allCases {
            let peer = try RawPeer(node.address, settings: settings, channel: channel, tls: (tls("n1"), name: "n2"))
            peer.piece = 1
            #expect(try peer.run { $0.opened != nil })
            let messages = everyMessage(by: settings.run, to: node.run).filter { $0.type.channel == channel }
            for message in messages { peer.send(message) }
            #expect(try peer.run { _ in node.recorder.messages.count >= messages.count })
            #expect(node.recorder.messages == messages)
            node.recorder.state.withLock { $0.messages = [] }
        }
    }
}

@Test func acceptorTakesACertificateThatIsNotTheNodes() async throws {
    try await withNode(security: .tls(tls("n2"))) { node in
        // (certificate, who HELLO says it is, why not)
        let cases: [(String, String, String, PeerRejection)] = [
            ("", "n3", "n1", .violation(.unexpectedNode)),
            ("", "wildcard", "n1.example", .violation(.unexpectedNode)),
            ("", "bare-wildcard", "n1", .violation(.unexpectedNode)),
            ("", "large-letters", "n9", .violation(.unexpectedNode)),
            ("", "cn-only", "n1", .tls(.noName)), ("", "address-only", "n1", .tls(.noName)),
            ("", "expired", "n1", .tls(.expired)), ("", "self-signed", "n1", .tls(.untrusted)),
            ("", "server-only", "n1", .tls(.badCertificate)), ("other/", "n1", "n1", .tls(.untrusted)),
        ]
        for (folder, certificate, name, rejection) in cases {
            let before = node.transport.rejections[rejection, default: 0]
            let peer = try RawPeer(
                node.address, settings: TestNode.settings(name),
                tls: (tls(certificate, folder: folder, authority: ""), name: "n2"))
            #expect(try peer.run { $0.isAtEnd || $0.tlsFailure != nil || $0.closed != nil }, "\(certificate)")
            #expect(peer.opened == nil, "\(certificate)")
            // The other end may hear of it first.
            let end = ContinuousClock.now.advanced(by: .seconds(10))
            while node.transport.rejections[rejection, default: 0] == before, ContinuousClock.now < end {}
            #expect(node.transport.rejections[rejection, default: 0] == before + 1, "\(certificate)")
        }
        #expect(node.recorder.events.isEmpty)
        let good = try RawPeer(node.address, settings: TestNode.settings("n1"), tls: (tls("n1"), name: "n2"))
        #expect(try good.run { $0.opened != nil })
    }
}

@Test func plaintextReachesASessionBehindTLS() async throws {
    try await withNode(security: .tls(tls("n2"))) { node in
        let peer = try RawPeer(node.address, settings: TestNode.settings("n1"))
        #expect(try peer.run { $0.isAtEnd })
        #expect(peer.opened == nil)
        #expect(node.transport.rejections == [.tls(.notTLS): 1])
    }
    // And TLS on a port in clear.
    try await withNode { node in
        let peer = try RawPeer(node.address, settings: TestNode.settings("n1"), tls: (tls("n1"), name: "n2"))
        #expect(try peer.run { $0.isAtEnd || $0.tlsFailure != nil })
        #expect(peer.opened == nil)
        #expect(node.recorder.events.isEmpty)
    }
}

@Test func connectionThatEndsOrIsSilentInTheTLSHandshakeStays() async throws {
    try await withNode({ $0.timing.handshake = .milliseconds(100) }, security: .tls(tls("n2"))) { node in
        let silent = try RawPeer(node.address)
        #expect(try silent.run { $0.isAtEnd })
        #expect(node.transport.rejections == [.violation(.handshakeTimeout): 1])
        let short = try RawPeer(node.address)
        short.write(raw: [0x16, 3, 1, 0, 100, 1])
        short.end()
        #expect(try short.run { $0.isAtEnd })
        #expect(node.transport.rejections[.tls(.truncated)] == 1)
    }
}

@Test func dialerTakesAnotherNodeForTheOneItDialed() async throws {
    let one = try await TestNode(TestNode.settings("n1"), security: .tls(tls("n1")))
    // n3 at the address that the control plane gives for n2: a registration that was tampered with.
    let three = try await TestNode(TestNode.settings("n3"), security: .tls(tls("n3")))
    var endpoint = three.endpoint()
    endpoint.name = "n2"
    endpoint.node = NodeID(name: "n2")
    one.transport.peers([endpoint])
    #expect(await eventually { one.transport.rejections[.tls(.wrongName), default: 0] >= 2 })
    #expect(one.recorder.events.isEmpty && three.recorder.events.isEmpty)
    // The right name, of another CA.
    let foreign = try await TestNode(TestNode.settings("n2"), security: .tls(tls("n2", folder: "other/")))
    one.transport.peers([foreign.endpoint()])
    #expect(await eventually { one.transport.rejections[.tls(.untrusted), default: 0] >= 1 })
    // In clear: never taken up instead.
    let clear = try await TestNode(TestNode.settings("n2", incarnation: 2))
    one.transport.peers([clear.endpoint(revision: 2)])
    #expect(await eventually { one.transport.rejections[.tls(.notTLS), default: 0] >= 1 })
    // The listener that refused nobody so far still serves, and so does the dialer.
    one.transport.peers([three.endpoint()])
    #expect(await eventually { one.isConnected(to: three) })
    for node in [one, three, foreign, clear] { await node.stop() }
}

@Test func ownCertificateWithoutTheNodesNameIsFoundByPeersOnly() async throws {
    await #expect(throws: PeerTransportError.certificateWithoutOwnName(node: "n2")) {
        _ = try await TestNode(TestNode.settings("n2"), security: .tls(tls("n3")))
    }
    await #expect(throws: PeerTransportError.certificateWithoutOwnName(node: "n2")) {
        _ = try await TestNode(TestNode.settings("n2"), security: .tls(tls("cn-only")))
    }
}
