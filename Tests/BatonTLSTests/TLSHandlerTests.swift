// The channel handler: order of events, octets that wait, closes with and without a farewell, bounds of certificates.
import BatonTestKit
import Foundation
import NIOCore
import NIOEmbedded
import Testing

@testable import BatonTLS

/// Remembers what the TLS handler fires.
private final class Witness: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    var plain = ByteBuffer()
    var log: [String] = []

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        plain.writeImmutableBuffer(Self.unwrapInboundIn(data))
        if log.last != "octets" { log.append("octets") }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if let event = event as? TLSEvent, case .established(let names) = event {
            log.append("established " + names.map { String(decoding: $0, as: UTF8.self) }.joined(separator: ","))
        } else if let event = event as? ChannelEvent, event == .inputClosed {
            log.append("closed")
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { log.append("\(error)") }
}

private struct Ends {
    let client = EmbeddedChannel()
    let server = EmbeddedChannel()
    let clientWitness = Witness()
    let serverWitness = Witness()

    init(client clientName: String = "n1", server serverName: String = "n2") throws {
        let clientTLS = try #require(
            TLSConnection(try TLSContext(files(clientName)), .client(name: Array("n2".utf8))))
        let serverTLS = try #require(TLSConnection(try TLSContext(files(serverName)), .server))
        try client.pipeline.syncOperations.addHandlers([TLSHandler(clientTLS), clientWitness])
        try server.pipeline.syncOperations.addHandlers([TLSHandler(serverTLS), serverWitness])
    }

    func connect() throws {
        let address = try SocketAddress(ipAddress: "127.0.0.1", port: 1)
        try client.connect(to: address).wait()
        try server.connect(to: address).wait()
        move()
    }

    func move() {
        for _ in 0..<1000 {
            let toServer = (try? client.readOutbound(as: ByteBuffer.self)).flatMap { $0 }
            let toClient = (try? server.readOutbound(as: ByteBuffer.self)).flatMap { $0 }
            if toServer == nil, toClient == nil { return }
            if let toServer { _ = try? server.writeInbound(toServer) }
            if let toClient { _ = try? client.writeInbound(toClient) }
        }
    }
}

@Test func octetsComeBeforeThePeerIsKnown() throws {
    let ends = try Ends()
    // Written before there is a connection at all.
    let early = ends.client.writeAndFlush(ByteBuffer(string: "early"))
    try ends.connect()
    try early.wait()
    #expect(ends.serverWitness.log == ["established n1", "octets"])
    #expect(ends.clientWitness.log == ["established n2"])
    #expect(String(buffer: ends.serverWitness.plain) == "early")
    let large = ByteBuffer(repeating: 7, count: 1_000_000)
    ends.server.writeAndFlush(large, promise: nil)
    ends.move()
    #expect(ends.clientWitness.plain == large)
}

@Test func octetsThatWaitForTheHandshakeGrowWithoutBound() throws {
    let ends = try Ends()
    let piece = ByteBuffer(repeating: 1, count: TLSLimits.pendingOctets / 4)
    for write in (0..<5).map({ _ in ends.client.write(piece) }) {
        #expect(throws: TLSFailure.overflow) { try write.wait() }
    }
    #expect(ends.clientWitness.log == ["overflow"])
}

@Test func endWithoutFarewellIsTakenForAClose() throws {
    let cut = try Ends()
    try cut.connect()
    cut.server.pipeline.fireUserInboundEventTriggered(ChannelEvent.inputClosed)
    #expect(cut.serverWitness.log == ["established n1", "truncated", "closed"])

    let closed = try Ends()
    try closed.connect()
    closed.client.close(mode: .all, promise: nil)
    closed.move()
    #expect(closed.serverWitness.log == ["established n1", "closed"])
    closed.server.pipeline.fireUserInboundEventTriggered(ChannelEvent.inputClosed)
    closed.server.pipeline.fireChannelInactive()
    #expect(closed.serverWitness.log == ["established n1", "closed"])
}

@Test func refusedPeerIsNotToldOrIsTakenFurther() throws {
    let ends = try Ends(server: "expired")
    try ends.connect()
    #expect(ends.clientWitness.log == ["expired"])
    #expect(ends.serverWitness.log == ["refusedByPeer"])
    ends.server.writeAndFlush(ByteBuffer(string: "x"), promise: nil)
    ends.move()
    #expect(ends.clientWitness.log == ["expired"])
}

@Test func certificateOfManyNamesOrOctetsGrowsWithoutBound() throws {
    let many = try TLSContext(files("many-names"))
    #expect(many.ownNames.count == TLSLimits.names)
    // A chain of more octets than a peer may show.
    let own = try String(contentsOfFile: certificates.path("n2.pem"), encoding: .utf8)
    let long = certificates.path("long.pem")
    try String(repeating: own, count: 200).write(toFile: long, atomically: true, encoding: .utf8)
    let server = try TLSContext(
        TLSFiles(
            authority: certificates.path("ca.pem"), certificate: long, privateKey: certificates.path("n2.key")))
    let client = try #require(TLSConnection(try TLSContext(files("n1")), .client(name: Array("n2".utf8))))
    let other = try #require(TLSConnection(server, .server))
    _ = try client.handshake()
    try other.feed(try #require(client.takeOutput()))
    _ = try other.handshake()
    try client.feed(try #require(other.takeOutput()))
    #expect(throws: TLSFailure.corrupted) { try client.handshake() }
}
