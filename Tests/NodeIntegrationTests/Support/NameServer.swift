// nsd as the name server of a test: one zone, on a port of its own.
import Foundation
import Testing

@testable import baton_bench

/// nsd with one zone on a port of its own.
final class NameServer {
    let port: Int
    private let program: Program

    /// `records` are lines of the zone `example.test`; origin, SOA and NS are there already.
    init(_ folder: TestFolder, zone records: String) throws {
        port = try Ports.free()
        try folder.write(
            "example.test.zone",
            """
            $ORIGIN example.test.
            $TTL 60
            @ IN SOA ns.example.test. hostmaster.example.test. 1 3600 600 86400 60
            @ IN NS ns.example.test.
            ns IN A 127.0.0.1
            \(records)

            """)
        let file = try folder.write(
            "nsd.conf",
            """
            server:
                ip-address: 127.0.0.1
                port: \(port)
                username: ""
                chroot: ""
                zonesdir: "\(folder.path)"
                database: ""
                pidfile: "\(folder.path)/nsd.pid"
                zonelistfile: "\(folder.path)/zone.list"
                xfrdfile: "\(folder.path)/xfrd.state"
                cookie-secret-file: "\(folder.path)/cookies"
                hide-version: yes
                server-count: 1
            remote-control:
                control-enable: no
            zone:
                name: "example.test"
                zonefile: "example.test.zone"

            """)
        // Whoever asks keeps it alive: the zone lasts as long as this object.
        program = try Program([Places.tool("nsd") ?? "nsd", "-d", "-c", file], log: "\(folder.path)/nsd.log")
        let port = port
        let program = program
        try eventually("nsd; its output:\n\(program.output)") {
            if program.hasEnded() { throw Waited(description: "nsd ended: \(program.output)") }
            return Self.answers(port)
        }
    }

    /// Asks for the zone's SOA over TCP.
    private static func answers(_ port: Int) -> Bool {
        guard let dialogue = try? Dialogue(port: port, greet: false) else { return false }
        let query: [UInt8] =
            [0, 30, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7] + Array("example".utf8) + [4] + Array("test".utf8) + [
                0, 0, 6, 0, 1,
            ]
        return (try? dialogue.write(query)) != nil && dialogue.readsAnything()
    }
}

extension Dialogue {
    /// Whether the other side sends at least one octet.
    func readsAnything() -> Bool { (try? first()) ?? false }
}
