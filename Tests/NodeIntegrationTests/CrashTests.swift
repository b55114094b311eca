// kill -9 under load, a full disk, and the order of system calls before a 250.
import Foundation
import Testing

@testable import baton_bench

@Suite(.serialized) struct CrashTests {
    private func scenario(kills: Int, signal: String, duplicated: String) -> String {
        """
        name: kills-in-tests
        relay:
          command: ["{bin}/baton", serve, --config, "{dir}/relay.yaml"]
          ready: 60s
          kill: { every: 400ms-1500ms, times: \(kills), signal: \(signal) }
          config: |
            node: { id: bench, hostname: relay.example, data_dir: "{dir}/data" }
            listeners: [{ address: "127.0.0.1:{relay_port}" }]
            admin: { address: "127.0.0.1:{admin_port}" }
            spool: { min_free: 16MiB, segment_size: 2MiB }
            queue: { retry: { first: 1s, factor: 1.2, max: 2s, jitter: 0.2 } }
            routes: [{ domain: "*", next_hop: "smtp://127.0.0.1:{sink_port}" }]
        sink: { temp-fail: [rcpt=0.02], dot-latency: 2ms }
        send: { duration: 12s, rate: 150, sessions: 10, size: 1KiB-20KiB, recipients: 1-3, domains: 50, give-up: 60s }
        settle: 90s
        expect: { lost: 0, altered: 0, unexpected: 0\(duplicated) }
        """
    }

    @Test func killsUnderLoadLoseMail() throws {
        let folder = try TestFolder()
        let file = try folder.write("kill.yaml", scenario(kills: 8, signal: "KILL", duplicated: ""))
        let run = try Program.run(
            [Places.bench, "run", file, "--dir", folder.make("run"), "--bin", Places.folder], in: folder, seconds: 240)
        #expect(run.code == 0, "\(run.output)")
        #expect(run.output.contains("kills "), "\(run.output)")
    }

    @Test func plannedRestartsLoseOrRepeatMail() throws {
        let folder = try TestFolder()
        let file = try folder.write("term.yaml", scenario(kills: 4, signal: "TERM", duplicated: ", duplicated: 0"))
        let run = try Program.run(
            [Places.bench, "run", file, "--dir", folder.make("run"), "--bin", Places.folder], in: folder, seconds: 240)
        #expect(run.code == 0, "\(run.output)")
    }

    @Test(.enabled(if: Places.isRoot)) func fullDiskLosesMailOrStaysFull() throws {
        let folder = try TestFolder()
        let data = try folder.make("small")
        let port = try Ports.free()
        // A file system of 48 MiB that only the node sees; it ends with it.
        let baton = try BatonProcess(
            folder,
            sections: [
                "routes": BatonProcess.route(port),
                "spool": "{ min_free: 16MiB, segment_size: 4MiB, compression: off }",
                "node": "{ id: test, hostname: relay.example, data_dir: \"\(data)/data\" }",
            ],
            wrap: ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=48m tmpfs \(data) && exec \"$@\"", "sh"])
        var accepted = 0
        var refused = ""
        let body = [UInt8](repeating: 0x78, count: 70)
        let message = Array("Subject: big\r\n\r\n".utf8) + (0..<2800).flatMap { _ in body + [0x0d, 0x0a] }
        for _ in 0..<400 {
            let client = try baton.client()
            let answer = try client.deliver(from: "s@a.example", to: ["joe@example.test"], message)
            if !answer.hasPrefix("250") {
                refused = answer
                break
            }
            accepted += 1
        }
        #expect(refused.hasPrefix("452 4.3.1"), "\(refused) after \(accepted)")
        #expect(accepted > 20)
        let sink = try SinkProcess(folder, port: port)
        let got = try sink.wait(for: accepted, within: 60)
        #expect(got.count == accepted)
        #expect(got.allSatisfy { Samples.differsOnlyByTrace($0.bytes, message) })
        try eventually("room for new mail") {
            try baton.client().deliver(from: "s@a.example", to: ["joe@example.test"], message).hasPrefix("250")
        }
    }

    @Test(.enabled(if: Places.tool("strace") != nil)) func answerBeforeTheSync() throws {
        let folder = try TestFolder()
        let sink = try SinkProcess(folder)
        let trace = "\(folder.path)/trace"
        let baton: BatonProcess
        do {
            baton = try BatonProcess(
                folder, sections: ["routes": BatonProcess.route(sink.port)],
                wrap: ["strace", "-f", "-qq", "-s", "64", "-e", "trace=fdatasync,write,writev,sendto", "-o", trace],
                ready: 60)
        } catch {
            // Containers may forbid ptrace; then there is nothing to see here.
            if folder.read("baton.log").contains("Operation not permitted") { return }
            throw error
        }
        let client = try baton.client()
        #expect(
            try client.deliver(from: "s@a.example", to: ["joe@example.test"], Samples.awkward("one")).hasPrefix("250"))
        _ = try sink.wait(for: 1)
        let load = try Program.run(
            [Places.bench, "send", "--to", "127.0.0.1:\(baton.port)", "--messages", "400", "--sessions", "40"],
            in: folder)
        #expect(load.code == 0, "\(load.output)")
        _ = try baton.program.terminate()
        let lines = folder.read("trace").split(separator: "\n").map(String.init)
        let dataReply = lines.firstIndex { $0.contains("354 ") } ?? 0
        let answer = lines.firstIndex { $0.contains("250 2.0.0 Ok: queued as") } ?? 0
        #expect(answer > dataReply)
        func ended(_ line: String) -> Bool { line.contains("fdatasync") && line.contains("= 0") }
        #expect(lines[dataReply..<answer].contains(where: ended), "no fdatasync between 354 and 250")
        let syncs = lines.filter(ended).count
        #expect(syncs < 400, "\(syncs) syncs for 401 messages")
    }
}
