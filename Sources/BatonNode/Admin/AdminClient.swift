// A small blocking HTTP/1.1 client for the admin API, used by the command line alone.
import BatonCore
import CBatonSystem
import Foundation
import Glibc

/// Talks to one node. Blocking; one connection for each request, closed after it; 35 s at most for each wait.
package struct AdminClient: Sendable {
    package enum Failure: Error, CustomStringConvertible {
        case url(String)
        case connect(String, reason: String)
        case exchange(String)
        /// The node refused.
        case problem(ProblemReport)

        package var description: String {
            switch self {
            case .url(let text): "\(LogEscape.plain(text)): expected http://host:port"
            case .connect(let place, let reason): "cannot reach the node at \(place): \(reason)"
            case .exchange(let reason): "no answer from the node: \(reason)"
            case .problem(let problem): "\(problem.title): \(LogEscape.plain(problem.detail))"
            }
        }
    }

    private let host: String
    private let port: Int
    private let token: AdminToken?

    /// `url` is `http://host[:port]`, port 8025 unless written; a path is not taken.
    package init(url: String, token: AdminToken?) throws(Failure) {
        guard url.hasPrefix("http://") else { throw .url(url) }
        var rest = String(url.dropFirst("http://".count))
        if rest.hasSuffix("/") { rest.removeLast() }
        guard !rest.isEmpty, !rest.utf8.contains(where: { $0 <= 0x20 || $0 >= 0x7f || $0 == 0x2f || $0 == 0x40 }) else {
            throw .url(url)
        }
        var host = rest
        var port = 8025
        let colon = rest.lastIndex(of: ":")
        if let colon, rest.hasPrefix("[") ? rest.hasSuffix("]") == false : true {
            guard let number = Int(rest[rest.index(after: colon)...]), (1...65535).contains(number) else {
                throw .url(url)
            }
            port = number
            host = String(rest[..<colon])
        }
        if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        guard !host.isEmpty else { throw .url(url) }
        self.host = host
        self.port = port
        self.token = token
    }

    // MARK: Requests

    /// The JSON of a GET. `query` values are encoded here.
    package func get(_ path: String, query: [(String, String)] = []) throws(Failure) -> Data {
        let pairs = query.map { "\(Self.encoded($0.0))=\(Self.encoded($0.1))" }.joined(separator: "&")
        return try request("GET", pairs.isEmpty ? path : "\(path)?\(pairs)", body: nil)
    }

    package func post(_ path: String, json: Data) throws(Failure) -> Data { try request("POST", path, body: json) }

    /// Decodes a shape of `AdminReports`.
    package static func decode<Value: Decodable>(_ type: Value.Type, from data: Data) throws(Failure) -> Value {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        do {
            return try decoder.decode(type, from: data)
        } catch { throw .exchange("an answer of another shape (\(data.count) bytes); is this a Baton node?") }
    }

    /// Percent-encodes all but RFC 3986's unreserved characters.
    package static func encoded(_ text: String) -> String {
        text.utf8.map { byte in
            let plain =
                (byte >= 0x30 && byte <= 0x39) || (byte >= 0x41 && byte <= 0x5a) || (byte >= 0x61 && byte <= 0x7a)
                || [0x2d, 0x2e, 0x5f, 0x7e].contains(byte)
            if plain { return String(UnicodeScalar(byte)) }
            let digits = String(byte, radix: 16, uppercase: true)
            return digits.count == 1 ? "%0" + digits : "%" + digits
        }.joined()
    }

    private func request(_ method: String, _ target: String, body: Data?) throws(Failure) -> Data {
        let descriptor = try connected()
        defer { close(descriptor) }
        let place = host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
        var head = "\(method) \(target) HTTP/1.1\r\nHost: \(place)\r\nConnection: close\r\nAccept: application/json\r\n"
        if let token { head += "Authorization: Bearer \(token.header)\r\n" }
        if let body { head += "Content-Type: application/json\r\nContent-Length: \(body.count)\r\n" }
        try send(descriptor, Array((head + "\r\n").utf8) + Array(body ?? Data()))
        let (status, answer) = try Self.parse(try receive(descriptor))
        guard (200..<300).contains(status) || (status == 503 && target.hasPrefix("/health")) else {
            let problem = try? Self.decode(ProblemReport.self, from: answer)
            throw .problem(problem ?? ProblemReport(status, "HTTP \(status)", ""))
        }
        return answer
    }

    // MARK: The socket

    private func connected() throws(Failure) -> Int32 {
        let place = "\(host):\(port)"
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        let result = getaddrinfo(host, "\(port)", &hints, &list)
        guard result == 0 else { throw .connect(place, reason: String(cString: gai_strerror(result))) }
        defer { freeaddrinfo(list) }
        var reason = "no address"
        var next = list
        while let entry = next?.pointee {
            let descriptor = socket(entry.ai_family, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            if descriptor >= 0 {
                var wait = timeval(tv_sec: 35, tv_usec: 0)
                let size = socklen_t(MemoryLayout<timeval>.size)
                setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &wait, size)
                setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &wait, size)
                if connect(descriptor, entry.ai_addr, entry.ai_addrlen) == 0 { return descriptor }
                reason = SystemText.error(errno)
                close(descriptor)
            } else {
                reason = SystemText.error(errno)
            }
            next = entry.ai_next
        }
        throw .connect(place, reason: reason)
    }

    private func send(_ descriptor: Int32, _ bytes: [UInt8]) throws(Failure) {
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw .exchange(SystemText.error(errno)) }
            done += count
        }
    }

    private func receive(_ descriptor: Int32) throws(Failure) -> [UInt8] {
        var all: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 64 * 1024)
        while true {
            let count = chunk.withUnsafeMutableBytes { recv(descriptor, $0.baseAddress, $0.count, 0) }
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else {
                throw .exchange(errno == EAGAIN ? "nothing for 35 s" : SystemText.error(errno))
            }
            if count == 0 { return all }
            all.append(contentsOf: chunk[..<count])
            guard all.count <= AdminLimits.answerOctets else { throw .exchange("an answer over 64 MiB") }
        }
    }

    // MARK: The answer

    /// Status and body of a whole answer (RFC 9112): by length, chunked, or until the end.
    static func parse(_ bytes: [UInt8]) throws(Failure) -> (status: Int, body: Data) {
        let separator = Array("\r\n\r\n".utf8)
        guard let end = index(of: separator, in: bytes, from: 0) else { throw .exchange("the connection closed early") }
        let lines = String(decoding: bytes[..<end], as: UTF8.self).components(separatedBy: "\r\n")
        let words = (lines.first ?? "").split(separator: " ")
        guard words.count >= 2, words[0].hasPrefix("HTTP/1."), let status = Int(words[1]), (100...599).contains(status)
        else { throw .exchange("not HTTP") }
        var fields: [String: String] = [:]
        for line in lines.dropFirst() {
            guard let colon = line.firstIndex(of: ":") else { continue }
            fields[line[..<colon].lowercased()] = line[line.index(after: colon)...].trimmingCharacters(in: .whitespaces)
        }
        let body = Array(bytes[(end + 4)...])
        if fields["transfer-encoding"]?.lowercased() == "chunked" { return (status, try dechunked(body)) }
        guard let text = fields["content-length"] else { return (status, Data(body)) }
        guard let length = Int(text), length >= 0, length <= body.count else { throw .exchange("a cut answer") }
        return (status, Data(body.prefix(length)))
    }

    private static func dechunked(_ body: [UInt8]) throws(Failure) -> Data {
        var result = Data()
        var position = 0
        while true {
            guard let end = index(of: [0x0d, 0x0a], in: body, from: position) else { throw .exchange("a cut answer") }
            let size = String(decoding: body[position..<end].prefix { $0 != UInt8(ascii: ";") }, as: UTF8.self)
            guard size.utf8.count <= 8, let length = Int(size, radix: 16), length >= 0 else {
                throw .exchange("a broken chunk")
            }
            if length == 0 { return result }
            let start = end + 2
            guard length <= body.count - start else { throw .exchange("a cut answer") }
            result.append(contentsOf: body[start..<(start + length)])
            position = min(start + length + 2, body.count)
        }
    }

    private static func index(of pattern: [UInt8], in bytes: [UInt8], from start: Int) -> Int? {
        guard bytes.count - start >= pattern.count else { return nil }
        return (start...(bytes.count - pattern.count)).first { bytes[$0..<($0 + pattern.count)].elementsEqual(pattern) }
    }
}
