// A reply as it came from a peer, or as Baton makes one for its own verdicts.
import BatonCore

/// Which command a reply answered. Its name goes into events and diagnostics.
package enum ReplyStage: UInt8, Sendable {
    case connect = 0
    case banner = 1
    case ehlo = 2
    case starttls = 3
    case auth = 4
    case mail = 5
    case rcpt = 6
    case data = 7
    case finalDot = 8
    case bdat = 9
    case rset = 10
    case quit = 11
    /// No remote said it: a DNS result, expiry, an operator, or our own refusal.
    case local = 12

    package var name: String {
        switch self {
        case .connect: "connect"
        case .banner: "banner"
        case .ehlo: "EHLO"
        case .starttls: "STARTTLS"
        case .auth: "AUTH"
        case .mail: "MAIL FROM"
        case .rcpt: "RCPT TO"
        case .data: "DATA"
        case .finalDot: "end of data"
        case .bdat: "BDAT"
        case .rset: "RSET"
        case .quit: "QUIT"
        case .local: ""
        }
    }
}

/// A reply's code, enhanced status and text. The text is untrusted: escape it where it is printed (RFC 5321 4.2).
package struct SMTPReply: Hashable, Sendable {
    /// Three digits; 0 where no reply came (connection lost, time-out).
    package let code: UInt16
    package let status: EnhancedStatus?
    /// Lines joined by LF, without codes and enhanced codes, cut at `Limits.keptReplyOctets` when kept.
    package let text: [UInt8]
    package let stage: ReplyStage

    package init(code: UInt16, status: EnhancedStatus?, text: [UInt8], stage: ReplyStage) {
        self.code = code
        self.status = status
        self.text = text
        self.stage = stage
    }

    /// A verdict of our own.
    package init(local code: UInt16, _ status: EnhancedStatus, _ text: String, stage: ReplyStage = .local) {
        self.init(code: code, status: status, text: Array(text.utf8), stage: stage)
    }

    /// The status that the peer gave, else one invented from the class of its code (RFC 3463: x.0.0).
    package var effectiveStatus: EnhancedStatus {
        if let status { return status }
        switch code / 100 {
        case 2: return EnhancedStatus(2, 0, 0)
        case 5: return EnhancedStatus(5, 0, 0)
        default: return EnhancedStatus(4, 0, 0)
        }
    }

    /// The same reply with at most `Limits.keptReplyOctets` of text.
    package var kept: SMTPReply {
        guard text.count > Limits.keptReplyOctets else { return self }
        return SMTPReply(code: code, status: status, text: Array(text.prefix(Limits.keptReplyOctets)), stage: stage)
    }
}

/// The other end of a delivery, for events and reports.
package struct PeerName: Hashable, Sendable {
    /// Host name as looked up (the MX name), or the route's host.
    package let name: [UInt8]
    /// Address connected to, in text (`192.0.2.1`, `2001:db8::1`, a socket's path).
    package let address: [UInt8]

    package init(name: [UInt8], address: [UInt8]) {
        self.name = name
        self.address = address
    }
}
