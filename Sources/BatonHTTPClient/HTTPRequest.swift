// What is asked of an HTTP server and what it answered, as values.
import BatonCore

package enum HTTPMethod: String, Sendable {
    case get = "GET"
    case post = "POST"
    case put = "PUT"
    case delete = "DELETE"
}

package struct HTTPHeader: Hashable, Sendable {
    package let name: String
    package let value: String

    package init(_ name: String, _ value: String) {
        self.name = name
        self.value = value
    }
}

/// User and password; prints as asterisks.
package struct HTTPCredentials: Sendable, CustomStringConvertible, CustomReflectable {
    package let user: String
    package let password: String

    package init(user: String, password: String) {
        self.user = user
        self.password = password
    }

    package var description: String { "***" }
    package var customMirror: Mirror { Mirror(self, children: []) }
}

/// Files in PEM. The peer and its host name are always verified. Nil: the system's trust store, no client certificate.
package struct HTTPTLSSettings: Hashable, Sendable {
    package var caFile: String?
    package var certificateFile: String?
    package var privateKeyFile: String?

    package init(caFile: String? = nil, certificateFile: String? = nil, privateKeyFile: String? = nil) {
        self.caFile = caFile
        self.certificateFile = certificateFile
        self.privateKeyFile = privateKeyFile
    }
}

/// How long each phase may take; zero: no limit. They run side by side from the start of the request.
package struct HTTPTimeouts: Hashable, Sendable {
    /// Name, TCP and TLS.
    package var connect: TimeSpan
    /// From the start to the first octet of the answer.
    package var firstOctet: TimeSpan
    /// Between two pieces of the answer.
    package var stall: TimeSpan
    /// All of it.
    package var total: TimeSpan

    package init(
        connect: TimeSpan = .seconds(10), firstOctet: TimeSpan = .seconds(30), stall: TimeSpan = .seconds(30),
        total: TimeSpan = .seconds(60)
    ) {
        self.connect = connect
        self.firstOctet = firstOctet
        self.stall = stall
        self.total = total
    }
}

package struct HTTPRequest: Sendable {
    package var method: HTTPMethod
    /// http or https; nothing else is accepted. Redirects are not followed, proxies of the environment not used.
    package var url: String
    package var headers: [HTTPHeader]
    package var body: [UInt8]
    /// A longer answer ends in `tooLarge`. For a stream it bounds the octets of the whole stream.
    package var responseBytesMax: Int
    package var timeouts: HTTPTimeouts
    package var tls: HTTPTLSSettings
    package var credentials: HTTPCredentials?
    /// Whether curl may send it again by itself where a reused connection turns out closed. False: it is sent at most once.
    /// By default only a GET may be.
    package var isRepeatable: Bool

    package init(
        _ method: HTTPMethod, _ url: String, headers: [HTTPHeader] = [], body: [UInt8] = [],
        responseBytesMax: Int = HTTPClientLimits.responseBytes, timeouts: HTTPTimeouts = HTTPTimeouts(),
        tls: HTTPTLSSettings = HTTPTLSSettings(), credentials: HTTPCredentials? = nil, isRepeatable: Bool? = nil
    ) {
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.responseBytesMax = responseBytesMax
        self.timeouts = timeouts
        self.tls = tls
        self.credentials = credentials
        self.isRepeatable = isRepeatable ?? (method == .get)
    }
}

/// A complete answer, whatever its status.
package struct HTTPResponse: Sendable {
    package let status: Int
    /// In the order received, values trimmed; at most `HTTPClientLimits.headerBytes`.
    package let headers: [HTTPHeader]
    package let body: [UInt8]

    /// The first value of a header, by name without regard to case.
    package func header(_ name: String) -> String? {
        headers.first { $0.name.lowercased() == name.lowercased() }?.value
    }
}

/// What a streamed answer consists of: one head, pieces, one end.
package enum HTTPStreamEvent: Sendable {
    case head(status: Int)
    case bytes([UInt8])
    /// Nil: the server ended the answer properly. Nothing follows.
    case end(HTTPError?)
}

/// Why there is no complete answer.
package struct HTTPError: Error, Sendable, CustomStringConvertible {
    package enum Kind: String, Sendable {
        /// The request itself: not an http URL, a header with a line break, a file that cannot be read.
        case invalidRequest
        /// The client's own bound of transfers is reached.
        case overloaded
        case resolve
        case connect
        /// The handshake failed or the peer could not be verified.
        case tls
        case timeout
        /// The connection ended before the answer did.
        case interrupted
        /// The answer is longer than `responseBytesMax` or its headers than the client's bound.
        case tooLarge
        case cancelled
        /// The client was stopped.
        case stopped
    }

    package let kind: Kind
    /// Whether any part of the request may have reached the server; if not, it certainly had no effect.
    package let mayHaveArrived: Bool
    package let text: String

    package init(_ kind: Kind, mayHaveArrived: Bool, _ text: String) {
        self.kind = kind
        self.mayHaveArrived = mayHaveArrived
        self.text = text
    }

    package var description: String { "\(kind.rawValue): \(text)" }
}

/// Names a transfer of one `CurlThread`.
package struct HTTPTransferID: Hashable, Sendable {
    let value: UInt64
}

/// Bounds of the client (docs/LIMITS.md).
package enum HTTPClientLimits {
    /// Transfers of one thread, waiting and under way; one more is `overloaded`.
    package static let transfers = 256
    /// Connections of one thread; further transfers wait for one, their time-outs running.
    package static let connections = 64
    /// Default of `HTTPRequest.responseBytesMax`.
    package static let responseBytes = 1024 * 1024
    /// Octets of all headers of an answer.
    package static let headerBytes = 64 * 1024
    /// Timers waiting on one thread; one more is not taken.
    package static let timers = 1024
}
