// Non-delivery reports, delay notices and success reports as messages (RFC 3461, 3464, 6522, 6533).
import BatonCore
import BatonModel
import NIOCore

/// What every report of this node says about itself.
package struct ReportConfiguration: Sendable {
    /// `node.hostname`: Reporting-MTA, the domain of MAILER-DAEMON and of Message-ID.
    package let hostname: [UInt8]
    /// Whom the human part names for help; empty names nobody.
    package let postmaster: [UInt8]
    /// Octets of a whole report. RET=FULL that does not fit becomes headers; headers that do not fit are cut between fields.
    package let octetsMax: Int
    /// Octets of returned header section at most.
    package let returnedHeaderOctetsMax: Int
    /// `queue.expire_after`: until when delayed mail is tried. Nil leaves Will-Retry-Until out.
    package let expireAfter: TimeSpan?

    package init(
        hostname: [UInt8], postmaster: [UInt8] = [], octetsMax: Int = Limits.fragmentThreshold,
        returnedHeaderOctetsMax: Int = 64 * 1024, expireAfter: TimeSpan? = nil
    ) {
        self.hostname = hostname
        self.postmaster = postmaster
        // A report is submitted whole, and the floor leaves room for one recipient at his longest.
        self.octetsMax = min(max(octetsMax, 16 * 1024), Limits.fragmentThreshold)
        self.returnedHeaderOctetsMax = max(0, returnedHeaderOctetsMax)
        self.expireAfter = expireAfter
    }
}

/// One report, before it is text. Pure: the same values give the same octets.
///
/// Everything in it that came from outside is untrusted; `compose` lets none of it end a line, a field or a MIME part.
package struct DeliveryReport: Sendable {
    /// Recipients that one report tells of at most; so many at their longest fit `Limits.fragmentThreshold`.
    package static let recipientsMax = 50
    /// Octets of one remote reply that a report quotes.
    package static let replyOctetsMax = Limits.keptReplyOctets

    /// `Action` of a recipient (RFC 3464 2.3.3).
    package enum Action: Sendable {
        case failed
        case delayed
        case delivered
        /// Handed to a host that speaks no DSN (RFC 3461 5.2.2).
        case relayed

        var word: StaticString {
            switch self {
            case .failed: "failed"
            case .delayed: "delayed"
            case .delivered: "delivered"
            case .relayed: "relayed"
            }
        }
    }

    package struct Recipient: Sendable {
        package let recipient: EnvelopeRecipient
        package let action: Action
        package let status: EnhancedStatus
        /// The last reply: the remote's, or a verdict of our own (`stage` local or code 0).
        package let reply: SMTPReply
        package let remote: PeerName?
        package let lastAttempt: Instant?
        /// Only for `delayed`: when it is given up (RFC 3464 2.3.9), not when it is tried next.
        package let willRetryUntil: Instant?

        package init(
            recipient: EnvelopeRecipient, action: Action, status: EnhancedStatus, reply: SMTPReply,
            remote: PeerName?, lastAttempt: Instant?, willRetryUntil: Instant? = nil
        ) {
            self.recipient = recipient
            self.action = action
            self.status = status
            self.reply = reply
            self.remote = remote
            self.lastAttempt = lastAttempt
            self.willRetryUntil = willRetryUntil
        }

        /// Whether a remote host said it, as opposed to a verdict of our own.
        var isRemoteReply: Bool { reply.code != 0 && reply.stage != .local }
    }

    /// What is at hand of the reported message.
    package enum Returned: Sendable {
        case nothing
        /// Octets from its beginning: at least the header section, or as much of it as there is.
        case headers(ByteBuffer)
        /// All octets.
        case full(ByteBuffer)
    }

    package let id: MessageID
    package let kind: ReportSubject.Kind
    package let at: Instant
    package let original: Envelope
    /// 1 to `recipientsMax`; what is beyond it is not told of, so the caller splits.
    package let recipients: [Recipient]
    package let returned: Returned

    package init(
        id: MessageID, kind: ReportSubject.Kind, at: Instant, original: Envelope, recipients: [Recipient],
        returned: Returned
    ) {
        self.id = id
        self.kind = kind
        self.at = at
        self.original = original
        self.recipients = recipients
        self.returned = returned
    }

    /// Whether addresses or headers need the `message/global…` types (RFC 6533) and SMTPUTF8 on the way back. Only where the
    /// original came by SMTPUTF8, so that its sender's side is known to take it; otherwise all is written in ASCII.
    package var needsUTF8: Bool {
        guard original.flags.contains(.smtpUTF8) else { return false }
        return original.traits.hasEightBitHeader || original.sender?.isInternational == true
            || recipients.contains { $0.recipient.address.isInternational }
    }

    /// The whole message: CRLF lines, header section first. At most `configuration.octetsMax` octets as long as there are at
    /// most `recipientsMax` recipients and the cap is the default.
    package func compose(_ configuration: ReportConfiguration) -> ByteBuffer {
        let utf8 = needsUTF8
        var core = ByteBuffer()
        writeHumanPart(into: &core, configuration, utf8: utf8)
        let human = core
        core = ByteBuffer()
        writeStatusPart(into: &core, configuration, utf8: utf8)
        let status = core
        // Headers of the report and of its parts and the boundaries take less than this.
        let room = configuration.octetsMax - human.readableBytes - status.readableBytes - 4 * 1024
        let third = ReturnedPart.make(
            returned, traits: original.traits, utf8: utf8, room: room,
            headerMax: configuration.returnedHeaderOctetsMax)
        let boundary = ReportBoundary.make(id: id, avoiding: [human, status, third.content])
        var out = ByteBuffer()
        out.reserveCapacity(human.readableBytes + status.readableBytes + third.content.readableBytes + 2048)
        writeHeader(
            into: &out, configuration, boundary: boundary, utf8: utf8, isEightBit: utf8 || third.isEightBit)
        writePart(
            human, type: utf8 ? "text/plain; charset=utf-8" : "text/plain; charset=us-ascii",
            encoding: utf8 ? "8bit" : "7bit", description: "Notification", boundary, into: &out)
        writePart(
            status, type: utf8 ? "message/global-delivery-status" : "message/delivery-status",
            encoding: utf8 ? "8bit" : "7bit", description: "Delivery report", boundary, into: &out)
        if let type = third.type {
            writePart(
                third.content, type: type, encoding: third.encoding, description: third.description, boundary,
                into: &out)
        }
        out.writeStaticString("\r\n--")
        out.writeBytes(boundary)
        out.writeStaticString("--\r\n")
        return out
    }

    private func writePart(
        _ content: ByteBuffer, type: StaticString, encoding: StaticString, description: StaticString,
        _ boundary: [UInt8], into out: inout ByteBuffer
    ) {
        out.writeStaticString("\r\n--")
        out.writeBytes(boundary)
        out.writeStaticString("\r\nContent-Description: ")
        out.writeStaticString(description)
        out.writeStaticString("\r\nContent-Type: ")
        out.writeStaticString(type)
        out.writeStaticString("\r\nContent-Transfer-Encoding: ")
        out.writeStaticString(encoding)
        out.writeStaticString("\r\n\r\n")
        out.writeImmutableBuffer(content)
    }

    private func writeHeader(
        into out: inout ByteBuffer, _ configuration: ReportConfiguration, boundary: [UInt8], utf8: Bool,
        isEightBit: Bool
    ) {
        DateField.write(at, into: &out)
        out.writeStaticString("From: Mail Delivery System <MAILER-DAEMON@")
        out.writeBytes(configuration.hostname)
        out.writeStaticString(">\r\nTo: ")
        if let sender = original.sender {
            WrappedText.write(
                prefix: "<", HostileText.address(sender.bytes, utf8: utf8) + [UInt8(ascii: ">")], indent: " ",
                into: &out)
        } else {
            out.writeStaticString("undisclosed-recipients:;\r\n")
        }
        out.writeStaticString("Subject: ")
        switch kind {
        case .failure: out.writeStaticString("Undelivered Mail Returned to Sender")
        case .delay: out.writeStaticString("Delayed Mail (still being retried)")
        case .success: out.writeStaticString("Successful Mail Delivery Report")
        }
        out.writeStaticString("\r\n")
        MessageIDField.write(id, hostname: configuration.hostname, into: &out)
        let reference = original.messageIDField
        let plain = reference.allSatisfy { $0 > 0x20 && $0 < 0x7f } && reference.count <= 200
        if plain, reference.first == UInt8(ascii: "<"), reference.last == UInt8(ascii: ">") {
            out.writeStaticString("In-Reply-To: ")
            out.writeBytes(reference)
            out.writeStaticString("\r\nReferences: ")
            out.writeBytes(reference)
            out.writeStaticString("\r\n")
        }
        out.writeStaticString("Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; ")
        // RFC 6522 3: the subtype of the second part.
        out.writeStaticString(utf8 ? "report-type=global-delivery-status" : "report-type=delivery-status")
        out.writeStaticString(";\r\n\tboundary=\"")
        out.writeBytes(boundary)
        out.writeStaticString("\"\r\n")
        if isEightBit { out.writeStaticString("Content-Transfer-Encoding: 8bit\r\n") }
        out.writeStaticString("\r\nThis is a MIME-encapsulated message.\r\n")
    }
}

extension HostileText {
    /// An address for a report: UTF-8 as it is where allowed, else `\x{…}`; no controls.
    static func address(_ bytes: some Collection<UInt8>, utf8: Bool) -> [UInt8] {
        utf8 ? line(bytes, utf8: true, limit: MailAddress.octetsMax) : escapedAddress(bytes)
    }
}
