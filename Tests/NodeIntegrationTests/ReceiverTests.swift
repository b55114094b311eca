// Other mail servers as receivers, found through a real name server's MX records: bytes arrive as they were sent.
import Foundation
import Testing

@testable import baton_bench

@Suite(.serialized) struct ReceiverTests {
    /// Sends an awkward and a large message to `joe@example.test`, whose MX is the receiver's port, and compares what it stored.
    /// `addsLine`: its store ends a message with an empty line of its own; shown on a message sent to it directly.
    private func deliver(_ folder: TestFolder, to receiver: Receiver, addsLine: Bool = false) throws {
        let names = try NameServer(folder, zone: "@ IN MX 10 mx1\nmx1 IN A 127.0.0.1")
        let baton = try BatonProcess(
            folder,
            sections: [
                "dns": "{ servers: [\"127.0.0.1:\(names.port)\"], timeout: 3s }",
                "delivery": "{ port: \(receiver.port), allow_private_addresses: true }",
            ])
        try check(baton, receiver, addsLine: addsLine)
        withExtendedLifetime(names) {}
    }

    private func check(_ baton: BatonProcess, _ receiver: Receiver, addsLine: Bool = false) throws {
        var wanted = [Samples.awkward("peer"), Samples.large("large", octets: 1_300_000)]
        for message in wanted { try baton.accept(to: ["joe@example.test"], message) }
        if addsLine {
            let direct = Samples.awkward("direct")
            let answer = try Dialogue(port: receiver.port).deliver(
                from: "s@client.example", to: ["joe@example.test"], direct)
            #expect(answer.hasPrefix("250"))
            wanted = (wanted + [direct]).map { $0 + [0x0d, 0x0a] }
        }
        var got = try receiver.wait(for: wanted.count)
        // A receiver that writes straight to the file may not be done with it.
        let octets = wanted.reduce(0) { $0 + $1.count { $0 != 0x0d } }
        try eventually("\(octets) octets stored") {
            got = receiver.messages
            return got.reduce(0) { $0 + $1.count { $0 != 0x0d } } > octets
        }
        #expect(got.count == wanted.count)
        for message in wanted {
            let matches = got.filter { Samples.differsOnlyByTrace($0, message, unixLines: true) }
            #expect(matches.count == 1, "\(got.map { String(decoding: $0.prefix(4000), as: UTF8.self) })")
        }
    }

    @Test(.enabled(if: Places.runs("smtp-sink"), "needs smtp-sink")) func smtpSinkGetsOtherBytes() throws {
        let folder = try TestFolder()
        try deliver(folder, to: .smtpSink(folder), addsLine: true)
    }

    @Test(.enabled(if: Places.runsPostfix, "needs Postfix, and root")) func postfixGetsOtherBytes() throws {
        let folder = try TestFolder()
        try deliver(folder, to: .postfix(folder))
    }

    @Test(.enabled(if: Places.runsPeer("exim4"), "needs .ci/peers and mount namespaces")) func eximGetsOtherBytes()
        throws
    {
        let folder = try TestFolder()
        try deliver(folder, to: .exim(folder))
    }

    @Test(.enabled(if: Places.runsPeer("smtpd"), "needs .ci/peers and mount namespaces"))
    func openSMTPDGetsOtherBytes() throws {
        let folder = try TestFolder()
        try deliver(folder, to: .openSMTPD(folder))
    }

    @Test(.enabled(if: Places.runsPeer("dovecot"), "needs .ci/peers and mount namespaces"), arguments: [false, true])
    func dovecotGetsOtherBytesByLMTP(_ overSocket: Bool) throws {
        let folder = try TestFolder("lmtp\(overSocket)")
        let receiver = try Receiver.dovecot(folder)
        let socket = try #require(receiver.socket)
        let hop = overSocket ? "lmtp+unix:\(socket)" : "lmtp://127.0.0.1:\(receiver.port)"
        let baton = try BatonProcess(folder, sections: ["routes": "[{ domain: \"*\", next_hop: \"\(hop)\" }]"])
        try check(baton, receiver)
    }
}
