// Mail by real clients through the relay to a sink: swaks, smtp-source, Python's smtplib, curl; bytes compared.
import Foundation
import Testing

@testable import baton_bench

@Suite(.serialized) struct ClientTests {
    private func relay(_ folder: TestFolder) throws -> (BatonProcess, SinkProcess) {
        let sink = try SinkProcess(folder)
        return (try BatonProcess(folder, sections: ["routes": BatonProcess.route(sink.port)]), sink)
    }

    @Test func awkwardBytesChangedOnTheWay() throws {
        let folder = try TestFolder()
        let (baton, sink) = try relay(folder)
        let message = Samples.awkward("bytes")
        let client = try baton.client()
        #expect(try client.deliver(from: "", to: ["a@example.test", "b@other.test"], message).hasPrefix("250"))
        let got = try sink.wait(for: 2)
        for one in got { #expect(Samples.differsOnlyByTrace(one.bytes, message)) }
        #expect(Set(got.flatMap(\.recipients)) == ["a@example.test", "b@other.test"])
    }

    @Test(.enabled(if: Places.runs("swaks"), "needs swaks")) func swaksRefused() throws {
        let folder = try TestFolder()
        let (baton, sink) = try relay(folder)
        let run = try Program.run(
            [
                "swaks", "--server", "127.0.0.1", "--port", "\(baton.port)", "--from", "me@a.example", "--to",
                "x@example.test,y@example.test", "--header", "Subject: by swaks", "--body", ".\n.dot\n\nend",
            ],
            in: folder)
        #expect(run.code == 0, "\(run.output)")
        let got = try sink.wait(for: 1)
        #expect(got.count == 1 && got[0].sender == "me@a.example")
        #expect(got[0].recipients.sorted() == ["x@example.test", "y@example.test"])
        let text = String(decoding: got[0].bytes, as: UTF8.self)
        #expect(
            text.contains("\r\nSubject: by swaks\r\n") && text.contains("\r\n\r\n.\r\n.dot\r\n\r\nend\r\n"), "\(text)")
    }

    @Test(.enabled(if: Places.runs("smtp-source"), "needs smtp-source")) func smtpSourceNotRelayedWhole() throws {
        let folder = try TestFolder()
        let (baton, sink) = try relay(folder)
        let run = try Program.run(
            [
                "smtp-source", "-s", "5", "-m", "100", "-l", "2000", "-f", "a@b.example", "-t", "c@example.test",
                "127.0.0.1:\(baton.port)",
            ],
            in: folder)
        #expect(run.code == 0, "\(run.output)")
        let got = try sink.wait(for: 100)
        #expect(got.count == 100 && got.allSatisfy { $0.recipients == ["c@example.test"] && $0.bytes.count > 2000 })
    }

    @Test(.enabled(if: Places.runs("python3"), "needs python3")) func smtplibMessageChanged() throws {
        let folder = try TestFolder()
        let (baton, sink) = try relay(folder)
        for (number, message) in [Samples.awkward("smtplib"), Samples.large("smtplib", octets: 2_000_000)].enumerated()
        {
            try smtplib(message, folder, baton)
            #expect(Samples.differsOnlyByTrace(try sink.wait(for: number + 1)[number].bytes, message))
        }
    }

    private func smtplib(_ message: [UInt8], _ folder: TestFolder, _ baton: BatonProcess) throws {
        try Data(message).write(to: URL(fileURLWithPath: "\(folder.path)/message"))
        let script = try folder.write(
            "send.py",
            """
            import smtplib, sys
            with smtplib.SMTP('127.0.0.1', int(sys.argv[1])) as s:
                data = open(sys.argv[2], 'rb').read()
                refused = s.sendmail('a@b.example', ['c@example.test'], data, mail_options=['BODY=8BITMIME'])
                assert refused == {}, refused
            """)
        let run = try Program.run(["python3", script, "\(baton.port)", "\(folder.path)/message"], in: folder)
        #expect(run.code == 0, "\(run.output)")
    }

    @Test(.enabled(if: Places.runs("curl"), "needs curl")) func curlMessageChanged() throws {
        let folder = try TestFolder()
        let (baton, sink) = try relay(folder)
        let message = Samples.awkward("curl")
        try Data(message).write(to: URL(fileURLWithPath: "\(folder.path)/message"))
        let run = try Program.run(
            [
                "curl", "-sS", "--url", "smtp://127.0.0.1:\(baton.port)", "--mail-from", "a@b.example", "--mail-rcpt",
                "c@example.test",
                "--upload-file", "\(folder.path)/message",
            ], in: folder)
        #expect(run.code == 0, "\(run.output)")
        #expect(Samples.differsOnlyByTrace(try sink.wait(for: 1)[0].bytes, message))
    }

    @Test func mixedLoadLosesOrAltersSomething() throws {
        let folder = try TestFolder()
        let scenario = try folder.write(
            "mixed.yaml",
            """
            name: mixed-short
            relay:
              command: ["{bin}/baton", serve, --config, "{dir}/relay.yaml"]
              config: |
                node: { id: bench, hostname: relay.example, data_dir: "{dir}/data" }
                listeners: [{ address: "127.0.0.1:{relay_port}" }]
                admin: { address: "127.0.0.1:{admin_port}" }
                spool: { min_free: 16MiB }
                queue: { retry: { first: 1s, factor: 1.2, max: 2s, jitter: 0.2 } }
                routes: [{ domain: "*", next_hop: "smtp://127.0.0.1:{sink_port}" }]
            sink: { temp-fail: [rcpt=0.03, dot=0.01], perm-fail: [rcpt=0.02], drop: [body=0.005, rcpt=0.005], messages-per-connection: 50 }
            send: { messages: 1000, sessions: 10, size: 1KiB-20KiB, recipients: 1-4, domains: 100 }
            settle: 90s
            expect: { lost: 0, altered: 0, duplicated: 0, delivered_and_bounced: 0 }
            """)
        let run = try Program.run(
            [Places.bench, "run", scenario, "--dir", folder.make("run"), "--bin", Places.folder], in: folder,
            seconds: 200)
        #expect(run.code == 0, "\(run.output)")
    }
}
