// What a listener's sessions rest on, prepared once so that sessions only copy octets.
import BatonCore
import BatonModel
import NIOCore

/// The `limits` that the protocol machine itself enforces (CONTRACT "Configuration").
package struct ServerLimits: Equatable, Sendable {
    /// Octets of a message as received, un-stuffed, without the fields added here.
    package var messageSize = 50 * ByteCount.mebi
    /// Recipients of a transaction.
    package var recipients = 1000
    /// Transactions of a connection; 0 is unlimited.
    package var messagesPerConnection = 0
    /// 5xx replies since the last accepted message; the last of them is 421 and ends the connection.
    package var errorsPerConnection = 20
    /// Received fields that a message may bring.
    package var hops = 100
    /// Octets of a text line without CRLF.
    package var lineLength = 64 * ByteCount.kibi
    /// Between commands, for a command to arrive whole.
    package var commandTimeout = TimeSpan.minutes(5)
    /// Without any octet in DATA or BDAT.
    package var dataTimeout = TimeSpan.minutes(3)

    package init() {}
}

/// Which of a client's rights hold and what kind of listener this is.
package enum ListenerService: Equatable, Sendable {
    case relay
    /// Adds Date and Message-ID where a message lacks them (RFC 6409 8).
    case submission
}

/// Immutable; shared by all sessions of a listener. A reload makes a new one for connections to come.
package final class ServerSettings: Sendable {
    /// Least octets per second over the whole of DATA or BDAT, once `rateGrace` is over.
    package static let bytesPerSecondMin = 1024
    package static let rateGrace = TimeSpan.minutes(1)
    /// EHLO, HELO, RSET, NOOP, VRFY, HELP and BDATs of less than `bytesPerSecondMin` octets since the last accepted message;
    /// the next one is 421, so that a connection that only holds its place comes to an end.
    package static let idleCommandsMax = 1000
    /// A refused message is read to its end up to this many times the size limit (and 1 MiB); then the connection closes.
    package static let drainFactor = 4

    package let hostname: [UInt8]
    package let service: ListenerService
    package let normalizesBareLF: Bool
    package let limits: ServerLimits
    /// Where a bare `<postmaster>` goes.
    package let postmaster: MailAddress
    /// Time in which a client must not speak; what it sends before is an offence.
    package let greetingDelay: TimeSpan
    let greeting: [UInt8]
    let ehlo: [UInt8]
    let helo: [UInt8]

    package init(
        hostname: String, service: ListenerService = .relay, normalizesBareLF: Bool = false, limits: ServerLimits,
        postmaster: MailAddress, greetingDelay: TimeSpan = .milliseconds(1)
    ) {
        self.hostname = Array(hostname.utf8)
        self.service = service
        self.normalizesBareLF = normalizesBareLF
        self.limits = limits
        self.postmaster = postmaster
        self.greetingDelay = greetingDelay
        self.greeting = Array("220 \(hostname) ESMTP Baton\r\n".utf8)
        self.helo = Array("250 \(hostname)\r\n".utf8)
        var lines = [
            hostname, "PIPELINING", "SIZE \(limits.messageSize)", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES",
        ]
        // STARTTLS, AUTH and REQUIRETLS take their place here once they are served.
        lines += ["CHUNKING", "DSN"]
        let mails = limits.messagesPerConnection > 0 ? " MAILMAX=\(limits.messagesPerConnection)" : ""
        lines.append("LIMITS RCPTMAX=\(limits.recipients)\(mails)")
        var text = ""
        for (index, line) in lines.enumerated() { text += (index == lines.count - 1 ? "250 " : "250-") + line + "\r\n" }
        self.ehlo = Array(text.utf8)
    }

    /// Octets of a refused message that are read before the connection closes.
    var drainMax: Int {
        let (product, overflow) = limits.messageSize.multipliedReportingOverflow(by: Self.drainFactor)
        return overflow ? .max : max(product, ByteCount.mebi)
    }
}
