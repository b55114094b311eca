// Starting and stopping the real binary: exit codes, the banner, SIGTERM.
import Foundation
import Testing

@testable import baton_bench

@Suite(.serialized) struct StartStopTests {
    @Test func bannerThatDoesNotNameWhatItServes() throws {
        let folder = try TestFolder()
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(9)])
        let banner = baton.program.output.split(separator: "\n").first.map(String.init) ?? ""
        for part in ["127.0.0.1:\(baton.port)", "test", "copies=1"] { #expect(banner.contains(part), "\(banner)") }
        #expect(try baton.get("/health").contains("\"copies\""))
        #expect(try baton.get("/metrics").contains("baton_"))
        #expect(try baton.program.terminate() == 0)
    }

    @Test func startOnAPortInUse() throws {
        let folder = try TestFolder()
        let baton = try BatonProcess(folder)
        let file = try folder.write(
            "second.yaml",
            """
            node: { data_dir: "\(folder.path)/second" }
            listeners: [{ address: "127.0.0.1:\(baton.port)" }]
            admin: { address: "127.0.0.1:0" }
            """)
        let run = try Program.run([Places.baton, "serve", "--config", file], in: folder)
        #expect(run.code == 1, "\(run.output)")
        #expect(run.output.contains("\(baton.port)"), "\(run.output)")
    }

    @Test func startOnALockedDataDirectory() throws {
        let folder = try TestFolder()
        let baton = try BatonProcess(folder)
        let file = try folder.write(
            "second.yaml",
            """
            node: { data_dir: "\(baton.data)" }
            listeners: [{ address: "127.0.0.1:\(try Ports.free())" }]
            admin: { address: "127.0.0.1:0" }
            """)
        let run = try Program.run([Places.baton, "serve", "--config", file], in: folder)
        #expect(run.code == 1, "\(run.output)")
    }

    @Test func configurationWithAnUnknownKeyServed() throws {
        let folder = try TestFolder()
        let file = try folder.write("bad.yaml", "limits: { mesage_size: 1MiB }\n")
        let run = try Program.run([Places.baton, "serve", "--config", file], in: folder)
        #expect(run.code == 78, "\(run.output)")
        #expect(run.output.contains("message_size"), "\(run.output)")
        #expect(try Program.run([Places.baton, "check-config", "\(folder.path)/none.yaml"], in: folder).code == 66)
    }

    @Test func wordThatIsNoCommand() throws {
        let folder = try TestFolder()
        #expect(try Program.run([Places.baton], in: folder).code == 0)
        #expect(try Program.run([Places.baton, "srve"], in: folder).code == 64)
        #expect(try Program.run([Places.baton, "version"], in: folder).code == 0)
    }

    @Test func messageThatDoesNotOutliveARestart() throws {
        let folder = try TestFolder()
        let port = try Ports.free()
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(port)])
        let message = Samples.awkward("restart")
        #expect(try baton.client().deliver(from: "s@a.example", to: ["joe@example.test"], message).hasPrefix("250"))
        #expect(try baton.program.terminate() == 0)
        try baton.start()
        let sink = try SinkProcess(folder, port: port)
        let got = try sink.wait(for: 1)
        #expect(Samples.differsOnlyByTrace(got[0].bytes, message))
        #expect(got[0].sender == "s@a.example" && got[0].recipients == ["joe@example.test"])
    }

    @Test func stopThatCutsASessionInData() throws {
        let folder = try TestFolder()
        let sink = try SinkProcess(folder)
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(sink.port)])
        let client = try baton.client()
        for line in ["MAIL FROM:<a@b.example>", "RCPT TO:<c@example.test>"] {
            #expect(try client.say(line).hasPrefix("250"))
        }
        #expect(try client.say("DATA").hasPrefix("354"))
        try client.write(Array("Subject: x\r\n\r\nhalf".utf8))
        baton.program.signal(SIGTERM)
        try eventually("the listener to close") { (try? Dialogue(port: baton.port)) == nil }
        try client.write(Array(" and half\r\n.\r\n".utf8))
        #expect(try client.reply().hasPrefix("250"))
        #expect(try baton.program.wait() == 0)
    }
}
