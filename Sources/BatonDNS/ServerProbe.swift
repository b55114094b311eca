// Asks the configured servers whether they are there at all: what tells a dead resolver from a broken domain.
import BatonCore
import Glibc

/// One round of questions for the root's name servers, over UDP. Any answer at all, an error included, means "there".
///
/// Used by the resolver's thread alone.
struct ServerProbe: ~Copyable {
    private var sockets: [Int32] = []

    /// Sends to every server. Empty where no server can even be sent to; then nothing will ever be readable.
    init(_ servers: [ResolverServer], id: UInt16) {
        for server in servers {
            let family = server.address.isIPv4 ? AF_INET : AF_INET6
            let descriptor = socket(
                family, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
            guard descriptor >= 0 else { continue }
            // Connected, so that only the server's own packets are received.
            if Self.connect(descriptor, server), Self.send(descriptor, id: id) {
                sockets.append(descriptor)
            } else {
                _ = close(descriptor)
            }
        }
    }

    deinit {
        for descriptor in sockets { _ = close(descriptor) }
    }

    var descriptors: [Int32] { sockets }

    /// Whether any server has answered by now. A refused port (ICMP) is no answer.
    func answered() -> Bool {
        var packet = [UInt8](repeating: 0, count: 512)
        for descriptor in sockets {
            let count = packet.withUnsafeMutableBytes { recv(descriptor, $0.baseAddress, $0.count, 0) }
            if count >= 12, packet[2] & 0x80 != 0 { return true }
        }
        return false
    }

    private static func send(_ descriptor: Int32, id: UInt16) -> Bool {
        // Header with RD and one question: `. NS IN`.
        let packet: [UInt8] = [
            UInt8(id >> 8), UInt8(id & 0xff), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1,
        ]
        return packet.withUnsafeBytes { Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) } > 0
    }

    private static func connect(_ descriptor: Int32, _ server: ResolverServer) -> Bool {
        if server.address.isIPv4 {
            var target = sockaddr_in()
            target.sin_family = sa_family_t(AF_INET)
            target.sin_port = server.port.bigEndian
            withUnsafeMutableBytes(of: &target.sin_addr) { $0.copyBytes(from: server.address.octets) }
            return withUnsafePointer(to: &target) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
                }
            }
        }
        var target = sockaddr_in6()
        target.sin6_family = sa_family_t(AF_INET6)
        target.sin6_port = server.port.bigEndian
        withUnsafeMutableBytes(of: &target.sin6_addr) { $0.copyBytes(from: server.address.octets) }
        return withUnsafePointer(to: &target) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in6>.size)) == 0
            }
        }
    }
}
