// A real name server on loopback with the zones that a test writes, and servers that misbehave.
import BatonCore
import BatonDNS
import BatonRuntime
import Foundation
import Glibc
import Testing

private let nsdPath = "/usr/sbin/nsd"

/// nsd on a free port; it ends with `stop`, or when the test process ends.
final class Nsd {
    let server: ResolverServer
    private let folder: URL
    private let process = Process()
    private let input = Pipe()

    /// - Parameter zones: contents of zone files by origin, without the final dot.
    init(_ zones: [String: String]) throws {
        guard FileManager.default.isExecutableFile(atPath: nsdPath) else {
            throw ResolverError(text: "nsd is missing: apt-get install nsd")
        }
        guard let loopback = IPAddress("127.0.0.1") else { throw ResolverError(text: "no loopback") }
        let port = try Self.freePort()
        server = ResolverServer(address: loopback, port: port)
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("baton-nsd-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        var text = """
            server:
                server-count: 1
                ip-address: 127.0.0.1@\(port)
                username: ""
                database: ""
                zonesdir: "\(folder.path)"
                pidfile: "\(folder.path)/nsd.pid"
                xfrdfile: "\(folder.path)/xfrd.state"
                xfrdir: "\(folder.path)"
                zonelistfile: "\(folder.path)/zone.list"
                cookie-secret-file: ""
                verbosity: 0
            remote-control:
                control-enable: no

            """
        for (origin, zone) in zones {
            try zone.write(to: folder.appendingPathComponent("\(origin).zone"), atomically: true, encoding: .utf8)
            text += "zone:\n    name: \(origin)\n    zonefile: \(origin).zone\n"
        }
        try text.write(to: folder.appendingPathComponent("nsd.conf"), atomically: true, encoding: .utf8)
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        // The shell waits for the end of its input, which also comes when this process dies, and ends nsd.
        let script = "\"$0\" -d -c \"$1\" </dev/null >\"$2\" 2>&1 & child=$!; cat >/dev/null; kill $child; wait $child"
        process.arguments = ["-c", script, nsdPath, folder.path + "/nsd.conf", folder.path + "/nsd.log"]
        process.standardInput = input
        try Self.withoutBlockedSignals { try process.run() }
        try waitUntilItAnswers()
    }

    func stop() {
        try? input.fileHandleForWriting.close()
        process.waitUntilExit()
        try? FileManager.default.removeItem(at: folder)
    }

    /// Threads of the test runner block SIGTERM; a child would inherit that and never end.
    private static func withoutBlockedSignals(_ body: () throws -> Void) rethrows {
        var none = sigset_t()
        var before = sigset_t()
        sigemptyset(&none)
        pthread_sigmask(SIG_SETMASK, &none, &before)
        defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
        try body()
    }

    private func waitUntilItAnswers() throws {
        let began = DispatchTime.now().uptimeNanoseconds
        while DispatchTime.now().uptimeNanoseconds - began < 10_000_000_000 {
            if LoopbackSocket.asks(server.port) { return }
            usleep(20_000)
        }
        let log = (try? String(contentsOf: folder.appendingPathComponent("nsd.log"), encoding: .utf8)) ?? ""
        stop()
        throw ResolverError(text: "nsd does not answer: \(log)")
    }

    private static func freePort() throws -> UInt16 {
        let socket = try LoopbackSocket()
        return socket.port
    }
}

/// A bound UDP socket of the test's own.
final class LoopbackSocket: Sendable {
    let descriptor: Int32
    let port: UInt16

    init() throws {
        descriptor = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
        var address = Self.loopback(port: 0)
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let descriptor = descriptor
        let bound = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, length) == 0 && getsockname(descriptor, $0, &length) == 0
            }
        }
        guard bound else { throw ResolverError(text: "bind: errno \(errno)") }
        port = UInt16(bigEndian: address.sin_port)
    }

    deinit {
        _ = close(descriptor)
    }

    static func loopback(port: UInt16) -> sockaddr_in {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        return address
    }

    /// Whether a server on this port answers a question for the root within 50 ms.
    static func asks(_ port: UInt16) -> Bool {
        guard let socket = try? LoopbackSocket() else { return false }
        var target = loopback(port: port)
        let question: [UInt8] = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1]
        _ = withUnsafePointer(to: &target) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                sendto(socket.descriptor, question, question.count, 0, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        var waiting = pollfd(fd: socket.descriptor, events: Int16(POLLIN), revents: 0)
        return poll(&waiting, 1, 50) == 1
    }
}

/// A server that refuses questions for the root and is silent about everything else.
final class AlmostSilentServer: Sendable {
    private let socket: LoopbackSocket
    private let thread: DedicatedThread

    init() throws {
        let socket = try LoopbackSocket()
        self.socket = socket
        thread = DedicatedThread(name: "almost-silent") {
            var packet = [UInt8](repeating: 0, count: 1024)
            while true {
                var peer = sockaddr_in()
                var length = socklen_t(MemoryLayout<sockaddr_in>.size)
                let answered: Bool? = withUnsafeMutablePointer(to: &peer) { pointer in
                    pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                        let count = recvfrom(socket.descriptor, &packet, packet.count, 0, address, &length)
                        // An empty packet ends the thread.
                        guard count > 0 else { return nil }
                        guard count >= 13, packet[12] == 0 else { return false }
                        packet[2] |= 0x80
                        packet[3] = 5
                        return sendto(socket.descriptor, packet, count, 0, address, length) > 0
                    }
                }
                if answered == nil { return }
            }
        }
    }

    var port: UInt16 { socket.port }

    func stop() {
        guard let sender = try? LoopbackSocket() else { return }
        var target = LoopbackSocket.loopback(port: port)
        _ = withUnsafePointer(to: &target) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                sendto(sender.descriptor, nil, 0, 0, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        thread.join()
    }
}
