// Two TLS ends over memory: who is refused and by which name, cuts at every octet, closes.
import BatonTestKit
import NIOCore
import Testing

@testable import BatonTLS

/// Both ends, and what each of them said at last.
private struct TLSPair {
    let client: TLSConnection
    let server: TLSConnection
    var clientFailure: TLSFailure?
    var serverFailure: TLSFailure?
    var clientPlain = ByteBuffer()
    var serverPlain = ByteBuffer()

    init(client: TLSContext, name: String = "n2", server: TLSContext) throws {
        self.client = try #require(TLSConnection(client, .client(name: Array(name.utf8))))
        self.server = try #require(TLSConnection(server, .server))
    }

    /// Moves octets both ways, `piece` at a time, until nothing moves.
    mutating func move(piece: Int = .max) {
        step(client, &clientFailure, &clientPlain, nil)
        for _ in 0..<100_000 {
            let toServer = client.takeOutput()
            let toClient = server.takeOutput()
            if toServer == nil, toClient == nil { return }
            for var octets in [toServer].compactMap({ $0 }) {
                while let part = octets.readSlice(length: min(piece, octets.readableBytes)), part.readableBytes > 0 {
                    step(server, &serverFailure, &serverPlain, part)
                }
            }
            for var octets in [toClient].compactMap({ $0 }) {
                while let part = octets.readSlice(length: min(piece, octets.readableBytes)), part.readableBytes > 0 {
                    step(client, &clientFailure, &clientPlain, part)
                }
            }
        }
    }

    private func step(
        _ end: TLSConnection, _ failure: inout TLSFailure?, _ plain: inout ByteBuffer, _ octets: ByteBuffer?
    ) {
        guard failure == nil else { return }
        do throws(TLSFailure) {
            if let octets { try end.feed(octets) }
            if try end.handshake() { try end.read(into: &plain) }
        } catch {
            failure = error
        }
    }
}

private func context(_ name: String, authority: String = "") throws -> TLSContext {
    try TLSContext(files(name, authority: authority))
}

@Test func handshakeCutAtEveryOctetLosesOctets() throws {
    for piece in [1, 2, 7, 1000, Int.max] {
        var pair = try TLSPair(client: context("n1"), server: context("n2"))
        pair.move(piece: piece)
        #expect(pair.client.isEstablished && pair.server.isEstablished)
        #expect(pair.client.peerNames == [Array("n2".utf8)] && pair.server.peerNames == [Array("n1".utf8)])
        var sent = ByteBuffer(repeating: 0x61, count: 300_000)
        while sent.readableBytes > 0 {
            try pair.client.write(&sent)
            pair.move(piece: max(piece, 100))
        }
        #expect(pair.serverPlain.readableBytes == 300_000)
        #expect(pair.clientFailure == nil && pair.serverFailure == nil)
    }
}

@Test func serverOfAnotherNameOrCAIsTakenForTheNode() throws {
    let cases: [(String, String, TLSFailure)] = [
        ("n3", "", .wrongName), ("expired", "", .expired), ("cn-only", "", .wrongName), ("wildcard", "", .wrongName),
        ("bare-wildcard", "", .wrongName), ("large-letters", "", .wrongName), ("address-only", "", .wrongName),
        ("client-only", "", .badCertificate), ("self-signed", "", .untrusted), ("n2", "other/", .untrusted),
    ]
    for (name, folder, failure) in cases {
        var pair = try TLSPair(client: context("n1"), server: context(folder + name, authority: folder))
        pair.move()
        #expect(pair.clientFailure == failure, "\(folder)\(name)")
        // Only the size of letters is seen after the handshake; then the client goes without having said anything.
        if name != "large-letters" { #expect(pair.serverFailure == .refusedByPeer, "\(folder)\(name)") }
        #expect(pair.serverPlain.readableBytes == 0)
    }
    var wildcard = try TLSPair(client: context("n1"), name: "n2.example", server: context("wildcard"))
    wildcard.move()
    #expect(wildcard.clientFailure == .wrongName)
    for name in ["n2", "n2.example", "two-names"] {
        var pair = try TLSPair(
            client: context("n1"), name: name == "n2.example" ? name : "n2", server: context(name))
        pair.move()
        #expect(pair.clientFailure == nil && pair.client.isEstablished, "\(name)")
    }
    // An empty name would switch the check off, and a leading dot stands for every name below in OpenSSL.
    #expect(TLSConnection(try context("n1"), .client(name: [])) == nil)
    var dot = try TLSPair(client: context("n1"), name: ".example", server: context("n2.example"))
    dot.move()
    #expect(dot.clientFailure == .wrongName)
}

@Test func clientOfAnotherCAGetsIn() throws {
    let cases: [(String, String, TLSFailure)] = [
        ("expired", "", .expired), ("server-only", "", .badCertificate), ("self-signed", "", .untrusted),
        ("n1", "other/", .untrusted),
    ]
    for (name, folder, failure) in cases {
        // Its own check passes: it knows this CA.
        var pair = try TLSPair(
            client: TLSContext(
                TLSFiles(
                    authority: certificates.path("ca.pem"), certificate: certificates.path(folder + name + ".pem"),
                    privateKey: certificates.path(folder + name + ".key"))), server: context("n2"))
        pair.move()
        #expect(pair.serverFailure == failure, "\(folder)\(name)")
        #expect(pair.clientFailure == .refusedByPeer, "\(folder)\(name)")
    }
    // Names are for the session to judge, wildcards never match a node's.
    var pair = try TLSPair(client: context("cn-only"), server: context("n2"))
    pair.move()
    #expect(pair.server.isEstablished && pair.server.peerNames.isEmpty)
}

@Test func octetsThatAreNoTLSAreTakenForSome() throws {
    for text in ["BTNPxxxxxxxxxxxxxxxxxxxx", "GET / HTTP/1.1\r\n\r\n", String(repeating: "\u{0}", count: 64)] {
        let server = try #require(TLSConnection(try context("n2"), .server))
        try server.feed(ByteBuffer(string: text))
        #expect(throws: TLSFailure.notTLS) { try server.handshake() }
    }
    // A changed record of an open connection.
    var pair = try TLSPair(client: context("n1"), server: context("n2"))
    pair.move()
    var plain = ByteBuffer(string: "hello")
    try pair.client.write(&plain)
    var record = try #require(pair.client.takeOutput())
    let last = record.writerIndex - 1
    record.setInteger(record.getInteger(at: last, as: UInt8.self)! ^ 1, at: last)
    try pair.server.feed(record)
    var read = ByteBuffer()
    #expect(throws: TLSFailure.corrupted) { try pair.server.read(into: &read) }
    #expect(read.readableBytes == 0)
}

@Test func closeOfAPeerIsMissed() throws {
    var pair = try TLSPair(client: context("n1"), server: context("n2"))
    pair.move()
    pair.client.close()
    pair.move()
    #expect(pair.server.isClosedByPeer && pair.serverFailure == nil)
    var more = ByteBuffer(string: "more")
    #expect(throws: TLSFailure.internalError) { try pair.client.write(&more) }
}
