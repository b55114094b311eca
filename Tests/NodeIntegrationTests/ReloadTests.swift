// SIGHUP at the real binary: what follows the file, what is refused by name, and a file that is wrong.
import Foundation
import Testing

@testable import baton_bench

@Suite(.serialized) struct ReloadTests {
    @Test func routeThatDoesNotFollowTheFile() throws {
        let folder = try TestFolder()
        let old = try SinkProcess(folder, name: "old")
        let new = try SinkProcess(folder, name: "new")
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(old.port)])
        try baton.accept(to: ["a@before.test"], Samples.awkward("before"))
        #expect(try old.wait(for: 1).count == 1)
        let client = try baton.client()
        try baton.reload(["routes": BatonProcess.route(new.port)], until: "configuration read again")
        // A session that was there goes on.
        #expect(
            try client.deliver(from: "s@a.example", to: ["a@after.test"], Samples.awkward("after")).hasPrefix("250"))
        #expect(try new.wait(for: 1)[0].recipients == ["a@after.test"])
        #expect(old.messages.count == 1)
    }

    @Test func listenerChangedWithoutARestart() throws {
        let folder = try TestFolder()
        let sink = try SinkProcess(folder)
        let baton = try BatonProcess(folder)
        let other = try Ports.free()
        // What can be reloaded is, beside what cannot.
        let said = try baton.reload(
            [
                "listeners": "[{ address: \"127.0.0.1:\(other)\", service: relay }]",
                "routes": BatonProcess.route(sink.port),
            ], until: "configuration read again")
        #expect(said.contains("listeners") && said.contains("not changed while running"), "\(said)")
        #expect(!Ports.greets(other))
        try baton.accept(to: ["a@after.test"], Samples.awkward("listener"))
        #expect(try sink.wait(for: 1).count == 1)
    }

    @Test func badFileChangesSomething() throws {
        let folder = try TestFolder()
        let sink = try SinkProcess(folder)
        let baton = try BatonProcess(folder, sections: ["routes": BatonProcess.route(sink.port)])
        // The route to nowhere would hold if half of the file were taken.
        let said = try baton.reload(
            ["routes": BatonProcess.route(9), "limits": "{ mesage_size: 1MiB }"], until: "nothing changed")
        #expect(said.contains("mesage_size"), "\(said)")
        try baton.accept(to: ["a@after.test"], Samples.awkward("bad"))
        #expect(try sink.wait(for: 1).count == 1)
        #expect(try baton.get("/health").contains("status 200"))
    }
}
