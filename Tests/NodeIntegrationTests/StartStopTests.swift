// Starting and stopping the real binary: exit codes, the banner, what a start that fails says, SIGTERM.
import Foundation
import Testing

@testable import baton_bench

@Suite(.serialized) struct StartStopTests {
    @Test func bannerThatDoesNotNameWhatItServes() throws {
        let folder = try TestFolder()
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(9)])
        #expect(baton.program.output.hasPrefix("baton "), "the first line is the banner: \(baton.program.output)")
        for part in ["127.0.0.1:\(baton.port)", "127.0.0.1:\(baton.admin)", "node=test", "copies=1"] {
            #expect(baton.banner.contains(part), "\(baton.banner)")
        }
        let health = try baton.get("/health")
        #expect(health.contains("\"state\":\"serving\"") && health.contains("status 200"), "\(health)")
        #expect(try baton.get("/metrics").contains("\nbaton_"))
        #expect(try baton.program.terminate() == 0)
    }

    /// Runs a second node that cannot start; returns the one line that it says.
    private func failedStart(_ folder: TestFolder, data: String, listen: Int, admin: Int) throws -> String {
        let file = try folder.write(
            "second.yaml",
            """
            node: { data_dir: "\(data)" }
            listeners: [{ address: "127.0.0.1:\(listen)" }]
            admin: { address: "127.0.0.1:\(admin)" }
            """)
        let run = try Program.run([Places.baton, "serve", "--config", file], in: folder)
        #expect(run.code == 1, "\(run.output)")
        let lines = run.output.split(separator: "\n").map(String.init)
        #expect(lines.count == 1 && lines.first?.hasPrefix("baton: ") == true, "one clear line: \(run.output)")
        return lines.first ?? ""
    }

    @Test func startOnAPortInUse() throws {
        let folder = try TestFolder()
        let baton = try BatonProcess(folder)
        let line = try failedStart(folder, data: "\(folder.path)/2", listen: baton.port, admin: try Ports.free())
        #expect(line.contains("127.0.0.1:\(baton.port)") && line.contains("in use"), "\(line)")
    }

    @Test func startWithTheAdminPortInUse() throws {
        let folder = try TestFolder()
        let baton = try BatonProcess(folder)
        let port = try Ports.free()
        let line = try failedStart(folder, data: "\(folder.path)/2", listen: port, admin: baton.admin)
        #expect(line.contains("127.0.0.1:\(baton.admin)") && line.contains("in use"), "\(line)")
    }

    @Test func startOnALockedDataDirectory() throws {
        let folder = try TestFolder()
        let baton = try BatonProcess(folder)
        let line = try failedStart(folder, data: baton.data, listen: try Ports.free(), admin: try Ports.free())
        #expect(line.contains(baton.data) && line.contains("in use"), "\(line)")
    }

    @Test func startOnADirectoryThatCannotBeWritten() throws {
        let folder = try TestFolder()
        // No user can make a folder below a file, nor below /proc.
        try folder.write("file", "")
        for data in ["\(folder.path)/file/data", "/proc/baton-data"] {
            let line = try failedStart(folder, data: data, listen: try Ports.free(), admin: try Ports.free())
            #expect(line.contains(data), "\(line)")
        }
    }

    @Test func configurationWithAnUnknownKeyServed() throws {
        let folder = try TestFolder()
        let file = try folder.write("bad.yaml", "limits: { mesage_size: 1MiB }\n")
        for words in [["serve", "--config", file], ["check-config", file]] {
            let run = try Program.run([Places.baton] + words, in: folder)
            #expect(run.code == 78, "\(run.output)")
            #expect(run.output.contains("bad.yaml:1:") && run.output.contains("message_size"), "\(run.output)")
        }
    }

    @Test func unreadableConfigurationServed() throws {
        let folder = try TestFolder()
        for words in [["serve", "--config", "\(folder.path)/none.yaml"], ["check-config", folder.path]] {
            let run = try Program.run([Places.baton] + words, in: folder)
            #expect(run.code == 66, "\(run.output)")
            #expect(run.output.split(separator: "\n").count == 1, "\(run.output)")
        }
    }

    @Test func wordThatIsNoCommand() throws {
        let folder = try TestFolder()
        #expect(try Program.run([Places.baton], in: folder).code == 0)
        #expect(try Program.run([Places.baton, "srve"], in: folder).code == 64)
        #expect(try Program.run([Places.baton, "version"], in: folder).code == 0)
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
        try baton.start()
        let got = try sink.wait(for: 1)
        #expect(String(decoding: got[0].bytes, as: UTF8.self).hasSuffix("\r\n\r\nhalf and half\r\n"))
    }

    /// A session in DATA that says nothing more does not keep the node: after the grace it is cut, and the exit is 0.
    @Test func silentSessionOutlivesTheGrace() throws {
        let folder = try TestFolder()
        let baton = try BatonProcess(
            folder,
            sections: [
                "node": "{ id: test, hostname: relay.example, data_dir: \"\(folder.path)/data\", shutdown_grace: 1s }"
            ])
        let client = try baton.client()
        for line in ["MAIL FROM:<a@b.example>", "RCPT TO:<c@example.test>"] { _ = try client.say(line) }
        #expect(try client.say("DATA").hasPrefix("354"))
        let start = Date()
        #expect(try baton.program.terminate() == 0)
        let seconds = Date().timeIntervalSince(start)
        #expect(seconds > 0.9 && seconds < 8, "\(seconds) s")
        #expect(try client.reply().hasPrefix("421"))
    }
}
