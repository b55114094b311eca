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
        send: { duration: 10s, rate: 150, sessions: 10, size: 1KiB-20KiB, recipients: 1-3, domains: 50, give-up: 60s }
        settle: 90s
        expect: { lost: 0, altered: 0, unexpected: 0\(duplicated) }
        """
    }

    @Test func killsUnderLoadLoseMail() throws {
        let folder = try TestFolder()
        let file = try folder.write("kill.yaml", scenario(kills: 8, signal: "KILL", duplicated: ", unexplained: 0"))
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

    @Test(.enabled(if: Places.canMount, "needs mount namespaces")) func fullDiskLosesMailOrStaysFull() throws {
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
        let tokenFile = "/proc/\(baton.program.pid)/root\(data)/data/admin.token"
        var accepted = 0
        var refused = ""
        let message = Samples.large("big", octets: 200_000)
        for _ in 0..<400 {
            let answer = try baton.client().deliver(from: "s@a.example", to: ["joe@example.test"], message)
            if !answer.hasPrefix("250") {
                refused = answer
                break
            }
            accepted += 1
        }
        #expect(refused.hasPrefix("452 4.3.1"), "\(refused) after \(accepted)")
        #expect(accepted > 20)
        let health = try baton.get("/health")
        #expect(
            health.contains("degraded") && health.contains("min_free") && health.contains("status 200"), "\(health)")
        let sink = try SinkProcess(folder, port: port)
        try baton.command("queue", "retry", "--all", "--token-file", tokenFile)
        let got = try sink.wait(for: accepted, within: 60)
        #expect(got.count == accepted)
        #expect(got.allSatisfy { Samples.differsOnlyByTrace($0.bytes, message) })
        try eventually("room for new mail") {
            try baton.client().deliver(from: "s@a.example", to: ["joe@example.test"], message).hasPrefix("250")
        }
    }

    /// strace attaches to the lane's writer alone and makes its fdatasync fail, as a dying disk does.
    @Test(.enabled(if: Places.canTrace, "needs strace, and the right to trace")) func failedSyncAnswered250() throws {
        let folder = try TestFolder()
        let port = try Ports.free()
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(port)])
        let message = Samples.awkward("sync")
        for number in 0..<3 { try baton.accept(to: ["r\(number)@example.test"], message) }
        let writer = try #require(try baton.thread(named: "spool-writer"))
        let strace = try Program(
            [
                "strace", "-p", "\(writer)", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO", "-o",
                "\(folder.path)/trace",
            ], log: "\(folder.path)/strace.log")
        try eventually("strace: \(strace.output)") { strace.output.contains("attached") }
        let client = try baton.client()
        let answer = try client.deliver(from: "s@a.example", to: ["lost@example.test"], message)
        #expect(answer.hasPrefix("451 4.3.0"), "\(answer)")
        #expect(folder.read("trace").contains("EIO"), "the fault was injected")
        let log = baton.program.output.split(separator: "\n").filter { $0.contains("critical") }
        #expect(!log.isEmpty, "\(baton.program.output)")
        let health = try baton.get("/health")
        #expect(health.contains("status 503"), "\(health)")
        // It is never tried again: strace gone, the lane stays dead until a restart.
        #expect(try strace.terminate() >= 0)
        #expect(try baton.client().say("MAIL FROM:<s@a.example>").hasPrefix("451"))
        #expect(try baton.program.terminate() == 0)
        try baton.start()
        #expect(try baton.get("/health").contains("status 200"))
        let sink = try SinkProcess(folder, port: port)
        try baton.command("queue", "retry", "--all")
        // The refused message may be among them, since its octets were written; what was answered 250 must be.
        let wanted = Set((0..<3).map { "r\($0)@example.test" })
        try eventually("all that was accepted") { wanted.isSubset(of: sink.messages.flatMap(\.recipients)) }
        let counts = Dictionary(grouping: sink.messages.flatMap(\.recipients)) { $0 }.mapValues(\.count)
        #expect(counts.values.allSatisfy { $0 == 1 }, "\(counts)")
        try baton.accept(to: ["after@example.test"], message)
    }

    @Test(.enabled(if: Places.canTrace, "needs strace, and the right to trace")) func answerBeforeTheSync() throws {
        let folder = try TestFolder()
        let sink = try SinkProcess(folder)
        let trace = "\(folder.path)/trace"
        let baton = try BatonProcess(
            folder, sections: ["routes": BatonProcess.route(sink.port)],
            wrap: ["strace", "-f", "-qq", "-s", "64", "-e", "trace=fdatasync,write,writev,sendto", "-o", trace],
            ready: 60)
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
        let dataReply = try #require(lines.firstIndex { $0.contains("354 ") })
        let answer = try #require(lines.firstIndex { $0.contains("250 2.0.0 Ok: queued as") })
        #expect(answer > dataReply)
        func ended(_ line: String) -> Bool { line.contains("fdatasync") && line.contains("= 0") }
        let sync = try #require(
            lines[dataReply..<answer].first(where: ended), "no fdatasync between 354 and 250")
        // The thread that made it is the lane's writer; the other threads' syncs are outcomes and events.
        let writer = sync.prefix { $0 != " " }
        let syncs = lines.filter { ended($0) && $0.hasPrefix(writer + " ") }.count
        #expect(syncs * 2 <= 401, "\(syncs) syncs of the lane for 401 messages")
        print("strace: \(syncs) fdatasync of the lane for 401 messages")
    }
}
