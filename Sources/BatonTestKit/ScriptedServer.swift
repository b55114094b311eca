// A TCP server on loopback that does to its connections what a test says.
import BatonRuntime
import Glibc
import Synchronization

/// One accepted connection, used by its script's thread.
package final class ServerConnection: Sendable {
    package let descriptor: Int32

    package init(_ descriptor: Int32) { self.descriptor = descriptor }

    /// Reads one request with a Content-Length body, or nil at the end of the connection.
    package func readRequest() -> String? {
        var bytes: [UInt8] = []
        var wanted: Int?
        while true {
            if wanted == nil, let text = String(validating: bytes, as: UTF8.self),
                let end = text.range(of: "\r\n\r\n")
            {
                var length = 0
                for line in text[..<end.lowerBound].split(separator: "\r\n")
                where line.lowercased().hasPrefix("content-length:") {
                    length = Int(line.split(separator: " ").last ?? "0") ?? 0
                }
                wanted = text[..<end.upperBound].utf8.count + length
            }
            if let wanted, bytes.count >= wanted { return String(decoding: bytes, as: UTF8.self) }
            guard let more = readSome() else { return nil }
            bytes += more
        }
    }

    package func readSome() -> [UInt8]? {
        var space = [UInt8](repeating: 0, count: 65536)
        let count = read(descriptor, &space, space.count)
        return count > 0 ? Array(space.prefix(count)) : nil
    }

    package func write(_ text: String) {
        let bytes = Array(text.utf8)
        var done = 0
        while done < bytes.count {
            let sent = bytes.withUnsafeBytes { all in
                send(
                    descriptor, all.baseAddress.map { $0 + done }, all.count - done,
                    Int32(truncatingIfNeeded: MSG_NOSIGNAL))
            }
            guard sent > 0 else { return }
            done += sent
        }
    }

    package func answer(_ body: String, status: String = "200 OK", headers: String = "") {
        write("HTTP/1.1 \(status)\r\nContent-Length: \(body.utf8.count)\r\n\(headers)\r\n\(body)")
    }
}

extension StringProtocol {
    /// Foundation's `range(of:)` without Foundation.
    func range(of needle: String) -> Range<Index>? {
        var start = startIndex
        while start < endIndex {
            if self[start...].hasPrefix(needle) { return start..<index(start, offsetBy: needle.count) }
            start = index(after: start)
        }
        return nil
    }
}

/// Accepts until `stop`; each connection's script runs on a thread of its own, with the connection's number from 0.
package final class ScriptedServer: Sendable {
    package let port: UInt16
    private let listener: Int32
    private final class Accepted: Sendable {
        let state = Mutex((open: [Int32](), threads: [DedicatedThread]()))
    }
    private let accepted = Accepted()
    private let accepting = Mutex<DedicatedThread?>(nil)

    package init(_ script: @escaping @Sendable (Int, ServerConnection) -> Void) {
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, length) == 0 && listen(listener, 16) == 0
                    && getsockname(listener, $0, &length) == 0
            }
        }
        precondition(bound, "no loopback port: errno \(errno)")
        self.listener = listener
        self.port = UInt16(bigEndian: address.sin_port)
        let thread = DedicatedThread(name: "scripted") { [accepted] in
            var number = 0
            while true {
                let descriptor = accept(listener, nil, nil)
                guard descriptor >= 0 else { return }
                let mine = number
                let worker = DedicatedThread(name: "script") {
                    script(mine, ServerConnection(descriptor))
                    shutdown(descriptor, Int32(SHUT_RDWR))
                }
                accepted.state.withLock {
                    $0.open.append(descriptor)
                    $0.threads.append(worker)
                }
                number += 1
            }
        }
        accepting.withLock { $0 = thread }
    }

    package var url: String { "http://127.0.0.1:\(port)/" }

    package func stop() {
        shutdown(listener, Int32(SHUT_RDWR))
        let thread = accepting.withLock { thread in
            defer { thread = nil }
            return thread
        }
        thread?.join()
        let (open, threads) = accepted.state.withLock { ($0.open, $0.threads) }
        for descriptor in open { shutdown(descriptor, Int32(SHUT_RDWR)) }
        for thread in threads { thread.join() }
        for descriptor in open { close(descriptor) }
        close(listener)
    }
}
