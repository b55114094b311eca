// The settings of the resolver and what may be wrong with them.
import BatonCore
import Glibc

/// `dns:` of the configuration.
package struct ResolverConfiguration: Sendable {
    /// Servers that look-ups are forwarded to; empty: those of `/etc/resolv.conf`.
    package var servers: [ResolverServer]
    /// Path of a file with DS or DNSKEY records; nil: no DNSSEC validation.
    package var trustAnchor: String?
    /// How long one look-up may take, retries and CNAMEs included.
    package var timeout: TimeSpan
    /// Look-ups that libunbound works on at once (`DNSLimits.lookupsAtOnce`), and that wait for it.
    package var lookupsAtOnce: Int
    package var lookupsWaiting: Int

    package init(
        servers: [ResolverServer] = [], trustAnchor: String? = nil, timeout: TimeSpan = .seconds(5),
        lookupsAtOnce: Int = DNSLimits.lookupsAtOnce, lookupsWaiting: Int = DNSLimits.lookupsWaiting
    ) {
        self.servers = servers
        self.trustAnchor = trustAnchor
        self.timeout = timeout
        self.lookupsAtOnce = lookupsAtOnce
        self.lookupsWaiting = lookupsWaiting
    }
}

/// What keeps a resolver from being made; `text` is for the operator.
package struct ResolverError: Error, Hashable, Sendable {
    package let text: String

    package init(text: String) {
        self.text = text
    }
}

/// An address and port to forward look-ups to.
package struct ResolverServer: Hashable, Sendable {
    package let address: IPAddress
    package let port: UInt16

    package init(address: IPAddress, port: UInt16 = 53) {
        self.address = address
        self.port = port
    }

    /// Reads `127.0.0.1`, `127.0.0.1:5353`, `2001:db8::1` or `[2001:db8::1]:5353`; nil for anything else.
    package init?(_ text: String) {
        if let address = IPAddress(text) {
            self.init(address: address)
            return
        }
        guard text.utf8.count <= 64 else { return nil }
        let host: Substring
        let rest: Substring
        if text.hasPrefix("[") {
            guard let end = text.firstIndex(of: "]") else { return nil }
            host = text[text.index(after: text.startIndex)..<end]
            rest = text[text.index(after: end)...]
            if rest.isEmpty {
                guard let address = IPAddress(String(host)), !address.isIPv4 else { return nil }
                self.init(address: address)
                return
            }
        } else {
            guard let colon = text.lastIndex(of: ":") else { return nil }
            host = text[..<colon]
            rest = text[colon...]
        }
        let digits = rest.dropFirst()
        guard rest.first == ":", !digits.isEmpty, digits.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }),
            let port = UInt16(digits), port > 0, let address = IPAddress(String(host)),
            address.isIPv4 != text.hasPrefix("[")
        else { return nil }
        self.init(address: address, port: port)
    }

    /// The servers of a resolv.conf, at most `DNSLimits.servers`; the local one where it names none (resolv.conf(5)).
    package static func inResolvConf(_ text: String) -> [ResolverServer] {
        var found: [ResolverServer] = []
        for line in text.split(separator: "\n") {
            let words = line.split(whereSeparator: { $0 == " " || $0 == "\t" })
            guard words.count >= 2, words[0] == "nameserver", let address = IPAddress(String(words[1])) else {
                continue
            }
            found.append(ResolverServer(address: address))
        }
        if found.isEmpty, let local = IPAddress("127.0.0.1") { found = [ResolverServer(address: local)] }
        return Array(found.prefix(DNSLimits.servers))
    }

    /// The servers of this machine's resolv.conf.
    static func ofSystem() -> [ResolverServer] {
        let descriptor = open("/etc/resolv.conf", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return inResolvConf("") }
        defer { _ = close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 16 * 1024)
        let count = bytes.withUnsafeMutableBytes { read(descriptor, $0.baseAddress, $0.count) }
        return inResolvConf(String(decoding: bytes.prefix(max(0, count)), as: UTF8.self))
    }

    /// As libunbound reads it.
    var unboundText: String { "\(address)@\(port)" }
}

extension ResolverServer: CustomStringConvertible {
    package var description: String { address.isIPv4 ? "\(address):\(port)" : "[\(address)]:\(port)" }
}

/// Whether answers are validated (DESIGN: a resolver that strips DNSSEC is noticed, and defers nothing).
package enum DNSSECStatus: Hashable, Sendable {
    /// No trust anchor configured.
    case off
    /// The resolver could not be asked yet; answers are not validated until it could.
    case unknown
    case validating
    /// The resolver does not pass on what validation needs: off, with the reason.
    case stripped(String)
}

/// What `/health`, the banner and the log say about the resolver.
package struct ResolverStatus: Hashable, Sendable {
    package var dnssec: DNSSECStatus
    /// No server answers at all; found by asking each of them, not by failed look-ups.
    package var isDown: Bool
    package let servers: [ResolverServer]
}
