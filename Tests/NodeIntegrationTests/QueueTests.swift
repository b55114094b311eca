// Queued mail across restarts of the real binary, and the operator's verbs: retry, suspend, resume, trace.
import Foundation
import Testing

@testable import baton_bench

@Suite(.serialized) struct QueueTests {
    /// The next hop is dead: it was tried once, and its site rests.
    private func waitUntilDeferred(_ baton: BatonProcess, _ count: Int) throws {
        try eventually("\(count) deferred recipients") {
            try baton.get("/api/v1/queue").contains("\"total\":{\"damaged\":0,\"deferred\":\(count),")
        }
    }

    @Test(arguments: [SIGTERM, SIGKILL]) func messageThatDoesNotOutliveARestart(_ signal: Int32) throws {
        let folder = try TestFolder("restart\(signal)")
        let port = try Ports.free()
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(port)])
        let message = Samples.awkward("restart")
        let id = try baton.accept(from: "s@a.example", to: ["joe@example.test", "ann@other.test"], message)
        try waitUntilDeferred(baton, 2)
        if signal == SIGKILL { baton.kill9() } else { #expect(try baton.program.terminate() == 0) }
        try baton.start()
        #expect(try baton.command("queue", "show", id).contains("joe@example.test"))
        // Its first attempt fails again before there is a next hop; the operator need not wait for the site's pause.
        try waitUntilDeferred(baton, 2)
        let sink = try SinkProcess(folder, port: port)
        try baton.command("queue", "retry", "--all")
        let got = try sink.wait(for: 2)
        #expect(got.allSatisfy { $0.sender == "s@a.example" && Samples.differsOnlyByTrace($0.bytes, message) })
        #expect(Set(got.flatMap(\.recipients)) == ["joe@example.test", "ann@other.test"])
        // Nothing is sent again after another restart.
        try eventually("the outcomes") { try baton.events("Delivery").count == 2 }
        #expect(try baton.program.terminate() == 0)
        try baton.start()
        try eventually("an empty queue") { try baton.get("/api/v1/queue").contains("\"ready\":0") }
        let last = try baton.accept(to: ["end@example.test"], message)
        _ = try sink.wait(for: 3)
        #expect(sink.messages.count == 3)
        // What became of it is known for as long as events are kept.
        let trace = try baton.command("trace", id)
        for part in [id, "Reception", "Delivery #", "joe@example.test: delivered", "ann@other.test: delivered"] {
            #expect(trace.contains(part), "\(part) in:\n\(trace)")
        }
        // Its Delivery may still be on the way to the event log.
        try eventually("the trace by recipient") {
            try baton.events("Delivery").contains { $0["id"] as? String == last }
        }
        #expect(try baton.command("trace", "--recipient", "end@example.test").contains(last))
    }

    @Test func traceThatHidesAFailedAttempt() throws {
        let folder = try TestFolder()
        let port = try Ports.free()
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(port)])
        do {
            let refusing = try SinkProcess(folder, name: "refusing", port: port, options: ["--temp-fail", "rcpt=1"])
            let id = try baton.accept(to: ["joe@example.test"], Samples.awkward("trace"))
            try waitUntilDeferred(baton, 1)
            let shown = try baton.command("queue", "show", id)
            #expect(shown.contains("deferred") && shown.contains("joe@example.test"), "\(shown)")
            let list = try baton.command("queue", "list", "--state", "deferred")
            #expect(list.contains(id), "\(list)")
            withExtendedLifetime(refusing) {}
        }
        let sink = try SinkProcess(folder, port: port)
        try baton.command("queue", "retry", "--domain", "example.test")
        _ = try sink.wait(for: 1)
        try eventually("the event") { try !baton.events("Delivery").isEmpty }
        let trace = try baton.command("trace", "--sender", "s@client.example")
        let kinds = ["Reception", "TransientFailure #1", "Delivery #2"].map { trace.range(of: $0)?.lowerBound }
        #expect(!kinds.contains(nil) && kinds.compactMap(\.self).sorted() == kinds.compactMap(\.self), "\(trace)")
    }

    @Test(arguments: [SIGTERM, SIGKILL]) func suspensionThatARestartForgets(_ signal: Int32) throws {
        let folder = try TestFolder("suspend\(signal)")
        let sink = try SinkProcess(folder)
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(sink.port)])
        try baton.command("queue", "suspend", "--domain", "held.test")
        let message = Samples.awkward("held")
        try baton.accept(to: ["a@held.test"], message)
        if signal == SIGKILL { baton.kill9() } else { #expect(try baton.program.terminate() == 0) }
        try baton.start()
        try baton.accept(to: ["b@held.test"], message)
        // Mail that came later and is not held goes through: the held one had its chance.
        try baton.accept(to: ["c@free.test"], message)
        #expect(try sink.wait(for: 1).flatMap(\.recipients) == ["c@free.test"])
        try eventually("two suspended recipients") {
            try baton.get("/api/v1/queue").contains("\"suspended\":2}")
        }
        #expect(sink.messages.count == 1)
        try baton.command("queue", "resume", "--domain", "held.test")
        let got = try sink.wait(for: 3)
        #expect(Set(got.flatMap(\.recipients)) == ["a@held.test", "b@held.test", "c@free.test"])
        // And it is gone for good.
        #expect(try baton.program.terminate() == 0)
        try baton.start()
        try baton.accept(to: ["d@held.test"], message)
        #expect(try sink.wait(for: 4).count == 4)
    }
}
