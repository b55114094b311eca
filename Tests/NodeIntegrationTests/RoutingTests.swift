// Routing by a real name server's zone, and what senders are told when there is no way.
import Foundation
import Testing

@testable import baton_bench

@Suite(.serialized, .enabled(if: Places.runs("nsd"), "needs nsd")) struct RoutingTests {
    /// A node that finds its way by the zone `records` alone; MX hosts are on `port`. Reports to sender.example go to `back`.
    private func node(_ folder: TestFolder, _ records: String, port: Int, back: Int) throws -> BatonProcess {
        let names = try NameServer(folder, zone: records)
        nameServers.append(names)
        return try BatonProcess(
            folder,
            sections: [
                "dns": "{ servers: [\"127.0.0.1:\(names.port)\"], timeout: 3s }",
                "delivery": "{ port: \(port), allow_private_addresses: true }",
                "routes": "[{ domain: \"sender.example\", next_hop: \"smtp://127.0.0.1:\(back)\" }]",
            ])
    }

    private final class Held {
        var all: [NameServer] = []
        func append(_ one: NameServer) { all.append(one) }
    }
    private let nameServers = Held()

    @Test func mailGoesToAnotherThanTheBestMX() throws {
        let folder = try TestFolder()
        let port = try Ports.free()
        let worse = try SinkProcess(folder, name: "worse", host: "127.0.0.3", port: port)
        var best: SinkProcess? = try SinkProcess(folder, name: "best", host: "127.0.0.2", port: port)
        let baton = try node(
            folder, "@ IN MX 20 mx2\n@ IN MX 10 mx1\nmx1 IN A 127.0.0.2\nmx2 IN A 127.0.0.3", port: port, back: 9)
        let message = Samples.awkward("mx")
        for number in 0..<5 { try baton.accept(to: ["x\(number)@example.test"], message) }
        let got = try #require(try best?.wait(for: 5))
        #expect(got.count == 5 && worse.messages.isEmpty)
        #expect(got.allSatisfy { Samples.differsOnlyByTrace($0.bytes, message) })
        // The best one gone, the next takes its mail.
        best = nil
        try baton.accept(to: ["later@example.test"], message)
        let later = try worse.wait(for: 1)
        #expect(later.map(\.recipients) == [["later@example.test"]])
        #expect(Samples.differsOnlyByTrace(later[0].bytes, message))
    }

    @Test func domainWithAnAddressAndNoMXGetsNothing() throws {
        let folder = try TestFolder()
        let sink = try SinkProcess(folder)
        let baton = try node(folder, "plain IN A 127.0.0.1", port: sink.port, back: 9)
        let message = Samples.awkward("implicit")
        try baton.accept(to: ["y@plain.example.test"], message)
        let got = try sink.wait(for: 1)
        #expect(got[0].recipients == ["y@plain.example.test"] && Samples.differsOnlyByTrace(got[0].bytes, message))
    }

    /// NXDOMAIN, a null MX, and an MX without an address, which must not lead to the domain's own address.
    @Test(arguments: [("none", "5.1.2"), ("null", "5.1.10"), ("lost", "5.4.4")]) func domainWithoutMailNotReported(
        _ name: String, _ status: String
    ) throws {
        let folder = try TestFolder("reported\(name)")
        let sink = try SinkProcess(folder)
        let baton = try node(
            folder, "null IN MX 0 .\nlost IN MX 10 nowhere\nlost IN A 127.0.0.1", port: sink.port, back: sink.port)
        try baton.accept(from: "a@sender.example", to: ["x@\(name).example.test"], Samples.awkward("ndr"))
        let got = try sink.wait(for: 1)
        #expect(got.count == 1)
        let report = try Report(got[0].bytes, folder)
        #expect(got[0].sender.isEmpty && got[0].recipients == ["a@sender.example"])
        #expect(report.recipient["Final-Recipient"] == "rfc822; x@\(name).example.test", "\(report)")
        #expect(report.recipient["Action"] == "failed" && report.recipient["Status"] == status, "\(report)")
    }

    /// The refusing sink stands for the recipient's server, the other for the sender's: both are reached through the one relay.
    @Test func refusedRecipientNotReported() throws {
        let folder = try TestFolder()
        let refusing = try SinkProcess(folder, name: "refusing", options: ["--perm-fail", "rcpt=1"])
        let back = try SinkProcess(folder, name: "back")
        let baton = try node(folder, "@ IN MX 10 mx1\nmx1 IN A 127.0.0.1", port: refusing.port, back: back.port)
        let id = try baton.accept(from: "a@sender.example", to: ["x@example.test"], Samples.awkward("ndr"))
        let got = try back.wait(for: 1)
        #expect(got[0].sender.isEmpty && got[0].recipients == ["a@sender.example"])
        let report = try Report(got[0].bytes, folder)
        #expect(report.parts == ["text/plain", "message/delivery-status", "text/rfc822-headers"], "\(report)")
        #expect(report.message["Reporting-MTA"] == "dns; relay.example", "\(report)")
        #expect(report.recipient["Action"] == "failed" && report.recipient["Status"] == "5.1.1", "\(report)")
        #expect(report.recipient["Diagnostic-Code"]?.contains("550 5.1.1 nobody here") == true, "\(report)")
        #expect(report.original["Message-ID"] == "<ndr@client.example>", "headers of the original")
        try eventually("the event") { try !baton.events("Bounce").isEmpty }
        let bounces = try baton.events("Bounce")
        #expect(bounces.count == 1 && bounces.first?["id"] as? String == id, "\(bounces)")
    }

    @Test(.enabled(if: Places.runs("smtp-sink"), "needs smtp-sink")) func reportThatCannotBeDeliveredIsReportedAgain()
        throws
    {
        let folder = try TestFolder()
        // Sender's and recipient's server alike: every RCPT gets a 5xx.
        let port = try Ports.free()
        let user = Places.isRoot ? ["-u", "nobody"] : []
        let refusing = try Program(
            ["smtp-sink"] + user + ["-f", "rcpt", "127.0.0.1:\(port)", "100"], log: "\(folder.path)/refusing.log")
        try eventually("smtp-sink") { Ports.greets(port) }
        let baton = try node(folder, "@ IN MX 10 mx1\nmx1 IN A 127.0.0.1", port: port, back: port)
        let id = try baton.accept(from: "a@sender.example", to: ["x@example.test"], Samples.awkward("double"))
        try eventually("two bounces in:\n\(baton.program.output)") { try baton.events("Bounce").count >= 2 }
        let bounces = try baton.events("Bounce")
        #expect(bounces.first?["id"] as? String == id)
        #expect(bounces.last?["sender"] as? String == "" && bounces.last?["recipient"] as? String == "a@sender.example")
        // Receptions are the message and its one report: the double bounce made none, and nothing is left.
        #expect(try baton.program.terminate() == 0)
        try baton.start()
        let queue = try baton.get("/api/v1/queue")
        #expect(queue.contains("\"deferred\":0,\"in_flight\":0,\"ready\":0,"), "\(queue)")
        // An event may stand twice after a restart, under one id.
        #expect(Set(try baton.events("Bounce").compactMap { $0["event_id"] as? String }).count == 2)
        #expect(Set(try baton.events("Reception").compactMap { $0["id"] as? String }).count == 2)
        withExtendedLifetime(refusing) {}
    }
}

/// A delivery report as Python's email package reads it.
struct Report: CustomStringConvertible {
    let parts: [String]
    /// The per-message fields, those of the first recipient, and the header section of the original.
    let message: [String: String]
    let recipient: [String: String]
    let original: [String: String]
    let description: String

    init(_ bytes: [UInt8], _ folder: TestFolder) throws {
        let file = "\(folder.path)/report.eml"
        try Data(bytes).write(to: URL(fileURLWithPath: file))
        let script = try folder.write(
            "report.py",
            """
            import email, email.policy, json, sys
            report = email.message_from_bytes(open(sys.argv[1], 'rb').read(), policy=email.policy.default)
            assert report.get_content_type() == 'multipart/report', report.get_content_type()
            assert report.get_param('report-type') == 'delivery-status'
            assert not report.defects and report['From'] and report['Date'] and report['Message-ID'], report.items()
            parts = list(report.iter_parts())
            status = parts[1].get_payload()
            fields = lambda part: {name: str(value) for name, value in part.items()}
            last = parts[2].get_content()
            if isinstance(last, bytes): last = last.decode()
            original = email.message_from_string(str(last))
            print(json.dumps({'parts': [part.get_content_type() for part in parts], 'message': fields(status[0]),
                'recipient': fields(status[1]), 'original': fields(original)}))
            """)
        let run = try Program.run(["python3", script, file], in: folder)
        guard run.code == 0,
            let read = try JSONSerialization.jsonObject(with: Data(run.output.utf8)) as? [String: Any],
            let parts = read["parts"] as? [String], let message = read["message"] as? [String: String],
            let recipient = read["recipient"] as? [String: String], let original = read["original"] as? [String: String]
        else { throw Waited(description: "no report: \(run.output)\n\(String(decoding: bytes, as: UTF8.self))") }
        self.parts = parts
        self.message = message
        self.recipient = recipient
        self.original = original
        self.description = run.output
    }
}
