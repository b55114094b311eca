// A whole node in this process: its banner, what a reload changes, what keeps it from starting.
import BatonCore
import BatonRuntime
import Foundation
import Glibc
import Logging
import Testing

@testable import BatonNode

private let quiet = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }

/// A folder with a configuration that listens on free ports; `text` is added to it.
private func withFolder(_ text: String = "", _ body: (String, String) async throws -> Void) async throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("node-\(UInt64.random(in: 0 ... .max))")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    let file = folder.path + "/b.yaml"
    try write(text, to: file)
    try await body(folder.path, file)
}

private func write(_ text: String, to file: String) throws {
    let common = """
        node: { id: n3, hostname: relay.test, data_dir: data, shutdown_grace: 1s }
        spool: { min_free: 0B, segment_size: 1MiB }
        admin: { address: "127.0.0.1:0" }
        """
    try Data((common + "\n" + text).utf8).write(to: URL(fileURLWithPath: file))
}

@Suite(.serialized) struct RelayNodeTests {
    @Test func bannerThatHidesWhatRuns() async throws {
        try await withFolder("listeners: [{ address: '127.0.0.1:0' }, { address: '[::1]:0' }]") { _, file in
            let node = try await RelayNode.start(try ConfigurationLoader.load(path: file), logger: quiet)
            try await node.listen()
            let banner = node.banner(adminPort: 8125)
            #expect(banner.hasPrefix("baton \(BatonVersion.current) serving: node=n3 copies=1 smtp=127.0.0.1:"))
            #expect(banner.contains(",[::1]:"))
            #expect(!banner.contains(":0"), "ports in use, not those asked for")
            #expect(banner.contains(" admin=127.0.0.1:8125 "))
            #expect(banner.hasSuffix(" dnssec=off"))
            await node.stop()
        }
    }

    /// A trust anchor, and a server that nobody answers at: the banner waits, and not for long.
    @Test func bannerSpeaksBeforeTheResolver() async throws {
        let anchor = ". IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D\n"
        try await withFolder("dns: { servers: ['127.0.0.1:9'], trust_anchor: root.key }") { folder, file in
            try Data(anchor.utf8).write(to: URL(fileURLWithPath: folder + "/root.key"))
            let node = try await RelayNode.start(try ConfigurationLoader.load(path: file), logger: quiet)
            let began = node.time.now()
            await node.waitForDNSSEC()
            #expect(node.time.now() - began < RelayNode.dnssecWait + .seconds(5))
            #expect(node.banner(adminPort: 1).contains(" dnssec=off ("))
            await node.stop()
        }
    }

    @Test func reloadThatHalfHappens() async throws {
        try await withFolder("limits: { hops: 30 }") { _, file in
            let node = try await RelayNode.start(try ConfigurationLoader.load(path: file), logger: quiet)
            try write("limits: { hopps: 9 }\ndelivery: { connections: 7 }", to: file)
            await node.reload()
            #expect(node.current.get().limits.hops == 30)
            #expect(node.current.get().delivery.connections == 5000, "a bad file changes nothing")
            try write("limits: { hops: 9, memory: 64MiB }\ndelivery: { connections: 7 }", to: file)
            await node.reload()
            #expect(node.current.get().limits.hops == 9)
            #expect(node.current.get().limits.memory == 1 << 30, "needs a restart")
            #expect(node.current.get().delivery.connections == 7)
            await node.stop()
        }
    }

    /// `relay_from` is what a client meets after SIGHUP, on the listener that was there before.
    @Test func reloadedNetworksStayOnPaper() async throws {
        try await withFolder("listeners: [{ address: '127.0.0.1:0' }]") { _, file in
            let node = try await RelayNode.start(try ConfigurationLoader.load(path: file), logger: quiet)
            try await node.listen()
            let port = try #require(node.listenerAddresses.first?.split(separator: ":").last.flatMap { UInt16($0) })
            #expect(try await answer(toRecipientAt: port).hasPrefix("250 "))
            try write("listeners: [{ address: '127.0.0.1:0', relay_from: 10.0.0.0/8 }]", to: file)
            await node.reload()
            #expect(try await answer(toRecipientAt: port).hasPrefix("554 5.7.1"))
            await node.stop()
        }
    }

    @Test func portInUseWithoutItsName() async throws {
        try await withFolder { _, file in
            let first = try await RelayNode.start(try free(file), logger: quiet)
            try await first.listen()
            let address = try #require(first.listenerAddresses.first)
            try await withFolder("listeners: [{ address: '\(address)' }]") { _, other in
                let configuration = try ConfigurationLoader.load(path: other)
                let node = try await RelayNode.start(configuration, logger: quiet)
                let error = await #expect(throws: NodeError.self) { try await node.listen() }
                await node.stop()
                #expect(error?.description == "\(address): cannot listen: Address already in use")
                #expect(error?.exitCode == 1)
            }
            let second = try free(file)
            let locked = await #expect(throws: NodeError.self) {
                _ = try await RelayNode.start(second, logger: quiet)
            }
            #expect(locked?.description.contains("in use by another process") == true)
            await first.stop()
        }
    }

    /// The reply to RCPT of a session of its own; blocking calls on a thread of their own.
    private func answer(toRecipientAt port: UInt16) async throws -> String {
        try await RelayNode.blocking {
            let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            defer { close(descriptor) }
            var wait = timeval(tv_sec: 20, tv_usec: 0)
            setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &wait, socklen_t(MemoryLayout<timeval>.size))
            var place = sockaddr_in()
            place.sin_family = sa_family_t(AF_INET)
            place.sin_port = port.bigEndian
            place.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
            let connected = withUnsafePointer(to: &place) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            guard connected == 0 else { return "no connection" }
            func ask(_ line: String) -> String {
                let octets = Array(line.utf8)
                if !octets.isEmpty { _ = write(descriptor, octets, octets.count) }
                var buffer = [UInt8](repeating: 0, count: 4096)
                let count = read(descriptor, &buffer, buffer.count)
                return String(decoding: buffer.prefix(max(0, count)), as: UTF8.self)
            }
            _ = ask("")
            _ = ask("HELO client.test\r\n")
            _ = ask("MAIL FROM:<a@b.test>\r\n")
            return ask("RCPT TO:<c@d.test>\r\n")
        }
    }

    private func free(_ file: String) throws -> NodeConfiguration {
        try write("listeners: [{ address: '127.0.0.1:0' }]", to: file)
        return try ConfigurationLoader.load(path: file)
    }
}
