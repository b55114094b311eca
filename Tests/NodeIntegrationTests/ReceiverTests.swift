// Other mail servers as receivers, and a real name server: routing by MX, and bytes that arrive as they were sent.
import Foundation
import Testing

@testable import baton_bench

@Suite(.serialized) struct ReceiverTests {
    private func deliver(_ folder: TestFolder, to receiver: Receiver, protocol name: String = "smtp") throws {
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(receiver.port, protocol: name)])
        let message = Samples.awkward("peer")
        let client = try baton.client()
        #expect(try client.deliver(from: "s@client.example", to: ["joe@example.test"], message).hasPrefix("250"))
        let got = try receiver.wait(for: 1)
        #expect(got.count == 1)
        #expect(
            Samples.differsOnlyByTrace(got[0], message, unixLines: true), "\(String(decoding: got[0], as: UTF8.self))")
    }

    @Test(.enabled(if: Places.hasPostfix)) func postfixGetsOtherBytes() throws {
        let folder = try TestFolder()
        try deliver(folder, to: .postfix(folder))
    }

    @Test(.enabled(if: Places.hasPeer("exim4"))) func eximGetsOtherBytes() throws {
        let folder = try TestFolder()
        try deliver(folder, to: .exim(folder))
    }

    @Test(.enabled(if: Places.hasPeer("smtpd"))) func openSMTPDGetsOtherBytes() throws {
        let folder = try TestFolder()
        try deliver(folder, to: .openSMTPD(folder))
    }

    @Test(.enabled(if: Places.hasPeer("dovecot"))) func dovecotGetsOtherBytesByLMTP() throws {
        let folder = try TestFolder()
        try deliver(folder, to: .dovecot(folder), protocol: "lmtp")
    }
}

@Suite(.serialized, .enabled(if: Places.hasNsd)) struct RoutingTests {
    /// A node that finds its way by the zone `records` alone; MX hosts are on the sink's port.
    private func node(_ folder: TestFolder, _ records: String, port: Int) throws -> BatonProcess {
        let names = try NameServer(folder, zone: records)
        nameServers.append(names)
        return try BatonProcess(
            folder,
            sections: [
                "dns": "{ servers: [\"127.0.0.1:\(names.port)\"], timeout: 3s }",
                "delivery": "{ port: \(port), allow_private_addresses: true }",
                "routes": "[{ domain: \"sender.example\", next_hop: \"smtp://127.0.0.1:\(port)\" }]",
            ])
    }

    private final class Held {
        var all: [NameServer] = []
        func append(_ one: NameServer) { all.append(one) }
    }
    private let nameServers = Held()

    @Test func messageThatDoesNotFollowTheMX() throws {
        let folder = try TestFolder()
        let sink = try SinkProcess(folder)
        let baton = try node(
            folder, "@ IN MX 10 mx1\n@ IN MX 20 ns\nmx1 IN A 127.0.0.1\nplain IN A 127.0.0.1", port: sink.port)
        let message = Samples.awkward("mx")
        let client = try baton.client()
        #expect(
            try client.deliver(from: "a@sender.example", to: ["x@example.test", "y@plain.example.test"], message)
                .hasPrefix("250"))
        let got = try sink.wait(for: 2)
        #expect(Set(got.flatMap(\.recipients)) == ["x@example.test", "y@plain.example.test"])
        for one in got { #expect(Samples.differsOnlyByTrace(one.bytes, message)) }
    }

    @Test(arguments: [("none", "5.1.2"), ("null", "5.1.10")]) func domainWithoutMailNotReported(
        _ name: String, _ status: String
    ) throws {
        let folder = try TestFolder("reported\(name)")
        let sink = try SinkProcess(folder)
        let baton = try node(folder, "null IN MX 0 .", port: sink.port)
        let client = try baton.client()
        #expect(
            try client.deliver(from: "a@sender.example", to: ["x@\(name).example.test"], Samples.awkward("ndr"))
                .hasPrefix("250"))
        let got = try sink.wait(for: 1)
        let text = String(decoding: got[0].bytes, as: UTF8.self)
        #expect(got[0].sender.isEmpty && got[0].recipients == ["a@sender.example"])
        #expect(text.contains("Status: \(status)") && text.contains("x@\(name).example.test"), "\(text)")
    }

    @Test func refusedRecipientNotReported() throws {
        let folder = try TestFolder()
        // The refusing sink stands for the recipient's server, the other for the sender's.
        let back = try SinkProcess(folder, name: "back")
        let refusing = try SinkProcess(folder, name: "refusing", options: ["--perm-fail", "rcpt=1"])
        let baton = try BatonProcess(
            folder,
            sections: [
                "routes":
                    "[{ domain: sender.example, next_hop: \"smtp://127.0.0.1:\(back.port)\" }, { domain: \"*\", next_hop: \"smtp://127.0.0.1:\(refusing.port)\" }]"
            ])
        let client = try baton.client()
        #expect(
            try client.deliver(from: "a@sender.example", to: ["x@example.test"], Samples.awkward("ndr")).hasPrefix(
                "250"))
        let text = String(decoding: try back.wait(for: 1)[0].bytes, as: UTF8.self)
        for part in ["Status: 5.1.1", "Action: failed", "550 5.1.1 nobody here", "multipart/report"] {
            #expect(text.contains(part), "\(part) in:\n\(text)")
        }
    }
}
