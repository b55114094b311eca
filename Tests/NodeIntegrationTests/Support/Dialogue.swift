// A plain blocking SMTP client that sends exactly the octets it is told to, and messages with every awkward line.
import Foundation
import NIOCore
import Testing

@testable import baton_bench

final class Dialogue {
    private let descriptor: Int32
    private var pending: [UInt8] = []

    /// Connects to loopback; reads wait 20 s at most. With `greet` it reads the greeting and says EHLO.
    init(port: Int, greet: Bool = true) throws {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var wait = timeval(tv_sec: 20, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &wait, socklen_t(MemoryLayout<timeval>.size))
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(UInt16(clamping: port)).bigEndian
        address.sin_addr.s_addr = in_addr_t(0x7f00_0001).bigEndian
        let connected = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
            }
        }
        guard connected else { throw Waited(description: "cannot connect to \(port)") }
        if greet {
            guard try reply().hasPrefix("220") else { throw Waited(description: "no 220") }
            guard try say("EHLO client.example").hasPrefix("250") else { throw Waited(description: "no 250 to EHLO") }
        }
    }

    deinit { close(descriptor) }

    func write(_ bytes: [UInt8]) throws {
        var at = 0
        while at < bytes.count {
            let sent = bytes.withUnsafeBytes {
                send(descriptor, $0.baseAddress! + at, bytes.count - at, Int32(MSG_NOSIGNAL))
            }
            guard sent > 0 else { throw Waited(description: "the connection is gone") }
            at += sent
        }
    }

    /// A whole reply, its lines joined by newlines; empty when the connection ended.
    func reply() throws -> String {
        var lines: [String] = []
        while true {
            if let end = pending.firstIndex(of: 0x0a) {
                let line = String(decoding: pending[..<end], as: UTF8.self).trimmingCharacters(
                    in: .whitespacesAndNewlines)
                pending.removeSubrange(...end)
                lines.append(line)
                if line.count < 4 || line.dropFirst(3).first != "-" { return lines.joined(separator: "\n") }
                continue
            }
            var block = [UInt8](repeating: 0, count: 4096)
            let got = recv(descriptor, &block, block.count, 0)
            if got == 0 || (got < 0 && errno == ECONNRESET) { return "" }
            guard got > 0 else { throw Waited(description: "no reply within 20 s") }
            pending += block.prefix(got)
        }
    }

    /// True once an octet came, false at the end of the connection.
    func first() throws -> Bool {
        var octet: UInt8 = 0
        return recv(descriptor, &octet, 1, 0) == 1
    }

    func say(_ line: String) throws -> String {
        try write(Array((line + "\r\n").utf8))
        return try reply()
    }

    /// Sends a message by DATA, stuffed; returns the reply to the dot, or the first refusal.
    func deliver(from sender: String, to recipients: [String], _ message: [UInt8]) throws -> String {
        var answer = try say("MAIL FROM:<\(sender)>")
        guard answer.hasPrefix("250") else { return answer }
        for recipient in recipients {
            answer = try say("RCPT TO:<\(recipient)>")
            guard answer.hasPrefix("250") else { return answer }
        }
        answer = try say("DATA")
        guard answer.hasPrefix("354") else { return answer }
        try write(Array(PooledBody(plain: message).wire.readableBytesView))
        return try reply()
    }
}

enum Samples {
    /// Dots, blanks at line ends, 8-bit text, a long line, empty lines at the end: everything that has been broken somewhere.
    static func awkward(_ subject: String) -> [UInt8] {
        let lines = [
            "From: Sender <sender@client.example>", "To: joe@example.test", "Subject: \(subject)",
            "Date: Tue, 24 Nov 2026 00:00:00 +0000", "Message-ID: <\(subject)@client.example>", "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit", "", ".", "..", ".leading dot",
            "...three", ". dot and blank", "ends in a dot.", "trailing blanks  ", "tab\t", "\tindented",
            "gr\u{fc}\u{df} \u{20ac}", String(repeating: "x", count: 990), "From the start of a line", "", "QUIT", "",
            "",
        ]
        return Array((lines.joined(separator: "\r\n") + "\r\n").utf8)
    }

    /// `octets` of text in lines of 70, dots at their beginnings now and then.
    static func large(_ subject: String, octets: Int) -> [UInt8] {
        let header = [
            "From: s@client.example", "Date: Tue, 24 Nov 2026 00:00:00 +0000",
            "Message-ID: <\(subject)@client.example>", "Subject: \(subject)", "", "",
        ]
        var message = Array(header.joined(separator: "\r\n").utf8)
        var line = 0
        while message.count < octets {
            let text = "\(line % 7 == 0 ? "." : "")line \(line) "
            message += Array(text.utf8) + [UInt8](repeating: 0x2e, count: 68 - text.utf8.count) + [0x0d, 0x0a]
            line += 1
        }
        return message
    }

    /// The last five are what smtp-sink writes of the envelope.
    private static let traceFields: Set<String> = [
        "received", "return-path", "delivered-to", "x-original-to", "envelope-to", "delivery-date",
        "x-client-addr", "x-client-proto", "x-helo-args", "x-mail-args", "x-rcpt-args",
    ]

    /// Whether `received` is `sent` with nothing but trace fields before it, line ends apart where the store has its own.
    static func differsOnlyByTrace(_ received: [UInt8], _ sent: [UInt8], unixLines: Bool = false) -> Bool {
        let wanted = unixLines ? withoutReturns(sent) : sent
        let got = unixLines ? withoutReturns(received) : received
        guard got.count > wanted.count, got.suffix(wanted.count).elementsEqual(wanted) else { return false }
        let trace = String(decoding: got.dropLast(wanted.count), as: UTF8.self)
        let fields = trace.replacingOccurrences(of: "\r\n", with: "\n").split(separator: "\n")
        return fields.allSatisfy { line in
            if line.first == " " || line.first == "\t" { return true }
            return traceFields.contains(line.prefix { $0 != ":" }.lowercased())
        }
    }

    private static func withoutReturns(_ bytes: [UInt8]) -> [UInt8] {
        var result: [UInt8] = []
        for (index, byte) in bytes.enumerated() {
            if byte == 0x0d, index + 1 < bytes.count, bytes[index + 1] == 0x0a { continue }
            result.append(byte)
        }
        return result
    }
}
