// The small values of the configuration's grammar, with their reading and printing.
import BatonCore
import BatonModel
import Foundation

/// What is wrong with a value, in words that follow `key: `.
struct ValueProblem: Error {
    let text: String

    init(_ text: String) {
        self.text = text
    }
}

/// What the machine is called.
package enum SystemNames {
    /// gethostname(2), lower case; `localhost` where there is none or it is no domain name.
    package static let hostname: String = {
        var bytes = [CChar](repeating: 0, count: 256)
        let result = gethostname(&bytes, bytes.count - 1)
        let name = String(decoding: bytes.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self).lowercased()
        return result == 0 && ConfigurationGrammar.isDomainName(name) ? name : "localhost"
    }()
}

/// An IP address and a port.
package struct SocketEndpoint: Hashable, Sendable, CustomStringConvertible {
    package var address: IPAddress
    /// 0 lets the system choose (listeners only).
    package var port: Int

    /// For literals of the defaults; an address that is none becomes 127.0.0.1, which the tests would see.
    package init(address: IPAddress?, port: Int) {
        self.address = address ?? IPAddress(octets: [127, 0, 0, 1]) ?? IPAddress.unspecified
        self.port = port
    }

    package var description: String { address.isIPv4 ? "\(address):\(port)" : "[\(address)]:\(port)" }
}

extension IPAddress {
    /// Four zero octets always make an address; the loop only satisfies the optional.
    fileprivate static var unspecified: IPAddress {
        guard let zero = IPAddress(octets: [0, 0, 0, 0]) else { preconditionFailure("four octets are an address") }
        return zero
    }
}

/// `*`, `*.example.test` (names below, not the name itself) or a name.
package enum DomainPattern: Hashable, Sendable, CustomStringConvertible {
    case any
    case below(Domain)
    case exactly(Domain)

    package func matches(_ domain: Domain) -> Bool {
        switch self {
        case .any: return true
        case .exactly(let name): return name == domain
        case .below(let name):
            let mine = name.bytes
            let other = domain.bytes
            return other.count > mine.count + 1 && other.suffix(mine.count) == mine[...]
                && other[other.count - mine.count - 1] == UInt8(ascii: ".")
        }
    }

    /// A domain name as an operator types it; nil for anything else.
    package static func readDomain(_ text: String) -> Domain? { try? ConfigurationGrammar.domain(text) }

    package var description: String {
        switch self {
        case .any: "*"
        case .below(let name): "*.\(name)"
        case .exactly(let name): name.description
        }
    }
}

/// Where a route leads: `smtp://host[:port]`, `lmtp://host[:port]`, `lmtp+unix:/path`.
package struct NextHop: Hashable, Sendable, CustomStringConvertible {
    package enum Kind: String, Sendable {
        case smtp
        case lmtp
        /// LMTP over the Unix socket `host`.
        case lmtpUnix = "lmtp+unix"
    }

    package let kind: Kind
    /// A host name, an IP address without brackets, or a socket's absolute path.
    package let host: String
    /// 0 for a Unix socket.
    package let port: Int

    package init(kind: Kind, host: String, port: Int) {
        self.kind = kind
        self.host = host
        self.port = port
    }

    package var description: String {
        switch kind {
        case .lmtpUnix: "lmtp+unix:\(host)"
        case .smtp, .lmtp:
            host.contains(":") ? "\(kind.rawValue)://[\(host)]:\(port)" : "\(kind.rawValue)://\(host):\(port)"
        }
    }
}

/// `100/m`: messages in a second, minute, hour or day.
package struct MessageRate: Hashable, Sendable, CustomStringConvertible {
    package let count: Int
    /// Seconds.
    package let per: Int

    package var perSecond: Double { Double(count) / Double(per) }

    package var description: String {
        let unit =
            switch per {
            case 1: "s"
            case 60: "m"
            case 3600: "h"
            default: "d"
            }
        return "\(count)/\(unit)"
    }
}
