// What replies and losses mean: for the recipient, for the connection, for the site. The only place that decides it.
import BatonCore
import BatonModel
import BatonSMTP
import Glibc

/// What a pool does about one recipient when its transaction ended.
package enum RecipientStep: Sendable {
    case result(AttemptResult)
    /// Sent again at once on a fresh connection to any host; no attempt counts yet.
    case resendFresh
    /// Sent again at once on another host of the site, in the same attempt.
    case resendElsewhere
}

/// What is known about a transaction besides its end.
package struct AttemptContext: Sendable {
    /// The connection had carried a transaction before.
    package var connectionReused: Bool
    /// It was sent again on a fresh connection already.
    package var resent: Bool
    /// Greeted sessions it was tried on in this attempt, this one included, fresh resends apart.
    package var sessions: Int
    /// Hosts that were asked and lacked what the message needs, this one included.
    package var hostsWithout: Int
    /// A host of the site that this attempt has not met.
    package var otherHosts: Bool

    package init(connectionReused: Bool, resent: Bool, sessions: Int, hostsWithout: Int, otherHosts: Bool) {
        self.connectionReused = connectionReused
        self.resent = resent
        self.sessions = sessions
        self.hostsWithout = hostsWithout
        self.otherHosts = otherHosts
    }
}

/// CONTRACT "Delivery behaviour", as pure functions.
package enum ReplyClassifier {
    package static func step(for end: RecipientEnd, _ context: AttemptContext) -> RecipientStep {
        switch end {
        case .reply(let reply): return .result(result(of: reply))
        case .again: return .result(.returned)
        case .inDoubt(let reply): return .result(.inDoubt(reply))
        case .damaged: return .result(.damaged)
        case .lost(let reply):
            if context.connectionReused, !context.resent { return .resendFresh }
            // A throttled site is not asked at its next door.
            if reply.code != 421, context.otherHosts, context.sessions < DeliveryLimits.sessionsPerAttempt {
                return .resendElsewhere
            }
            return .result(.temporary(reply))
        case .incapable(let lack):
            if mayLackElsewhere(lack), context.otherHosts, context.hostsWithout < DeliveryLimits.hostsPerCapability {
                return .resendElsewhere
            }
            return .result(.permanent(refusal(of: lack)))
        }
    }

    /// A peer's final answer about a recipient. Judged by the first digit (RFC 5321 4.2.1), with these exceptions: 421 never
    /// bounces (the channel closes), nor does 552 at RCPT that says "too many" (RFC 5321 4.5.3.1.10). Anything but 2, 4 and 5
    /// is no answer and defers.
    package static func result(of reply: SMTPReply) -> AttemptResult {
        switch reply.code / 100 {
        case 2: .delivered(reply)
        case 5 where reply.stage == .rcpt && ClientSession.saysTooMany(reply): .temporary(reply)
        case 5: .permanent(reply)
        default: .temporary(reply)
        }
    }

    private static func mayLackElsewhere(_ lack: Incapability) -> Bool {
        switch lack {
        case .eightBitMIME, .smtpUTF8: true
        case .size, .requireTLS: false
        }
    }

    package static func refusal(of lack: Incapability) -> SMTPReply {
        switch lack {
        case .eightBitMIME:
            SMTPReply(local: 554, EnhancedStatus(5, 6, 3), "8-bit content, and the next hop does not offer 8BITMIME")
        case .smtpUTF8:
            SMTPReply(local: 553, EnhancedStatus(5, 6, 7), "UTF-8 addresses, and the next hop does not offer SMTPUTF8")
        case .size(let limit):
            SMTPReply(local: 552, EnhancedStatus(5, 3, 4), "larger than the \(limit) octets that the next hop takes")
        case .requireTLS:
            SMTPReply(local: 550, EnhancedStatus(5, 7, 30), "REQUIRETLS cannot be met by the next hop")
        }
    }

    /// Whether the reply tells the site as a whole to slow down: 421 or 4.7.x at connect, EHLO or MAIL.
    package static func isThrottling(_ reply: SMTPReply) -> Bool {
        switch reply.stage {
        case .connect, .banner, .ehlo, .mail: break
        case .starttls, .auth, .rcpt, .data, .finalDot, .bdat, .rset, .quit, .local: return false
        }
        if reply.code == 421 { return true }
        guard reply.code / 100 == 4, let status = reply.status else { return false }
        return status.classDigit == 4 && status.subject == 7
    }

    /// Whether a failed connect is ours and not the peer's: out of descriptors, buffers or ports, no route, source address
    /// gone, forbidden by a local filter.
    package static func isOwnFault(errno code: Int32) -> Bool {
        switch code {
        case EMFILE, ENFILE, ENOBUFS, ENOMEM, ENETUNREACH, ENETDOWN, EADDRNOTAVAIL, EADDRINUSE, EAFNOSUPPORT, EACCES,
            EPERM:
            true
        default: false
        }
    }

    /// What stands for the reply when no connection came about (RFC 3463: 4.4.1 no answer from host).
    package static func connectFailure(_ reason: String) -> SMTPReply {
        SMTPReply(local: 0, EnhancedStatus(4, 4, 1), reason, stage: .connect)
    }

    /// The reply that defers a whole site.
    package static func siteDeferral(_ reply: SMTPReply) -> SMTPReply {
        guard reply.code / 100 == 5 else { return reply }
        // The peer's words stay, its verdict does not: a refusal at the door says nothing about these recipients.
        return SMTPReply(code: reply.code, status: EnhancedStatus(4, 3, 2), text: reply.text, stage: reply.stage)
    }
}
