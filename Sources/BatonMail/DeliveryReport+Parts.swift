// The first two parts of a report: for people, and for machines (RFC 3464).
import BatonCore
import BatonModel
import NIOCore

extension DeliveryReport {
    // MARK: For people

    func writeHumanPart(into out: inout ByteBuffer, _ configuration: ReportConfiguration, utf8: Bool) {
        out.writeStaticString("This is the mail system at host ")
        out.writeBytes(configuration.hostname)
        out.writeStaticString(".\r\n\r\n")
        switch kind {
        case .failure:
            out.writeStaticString(
                """
                Your message could not be delivered to one or more recipients.\r
                It will not be tried again for them. What went wrong is said below.\r\n
                """)
        case .delay:
            out.writeStaticString(
                """
                THIS IS A WARNING ONLY. YOU DO NOT NEED TO SEND YOUR MESSAGE AGAIN.\r
                \r
                Your message could not be delivered yet to one or more recipients.\r
                It stays queued and is tried again.\r\n
                """)
        case .success:
            out.writeStaticString(
                """
                Your message was handed over for the recipients below. Where it was\r
                relayed, the next mail server does not send delivery notifications,\r
                so you will get no further one.\r\n
                """)
        }
        if !configuration.postmaster.isEmpty {
            WrappedText.write(
                prefix: "\r\nFor help, write to ",
                HostileText.line(configuration.postmaster, limit: MailAddress.octetsMax)
                    + Array(" and attach this report.".utf8),
                indent: "", into: &out)
        }
        for recipient in recipients.prefix(Self.recipientsMax) { writeHuman(recipient, into: &out, utf8: utf8) }
    }

    private func writeHuman(_ item: Recipient, into out: inout ByteBuffer, utf8: Bool) {
        out.writeStaticString("\r\n")
        var who = HostileText.address(item.recipient.address.bytes, utf8: utf8)
        who.append(contentsOf: Array(">:".utf8))
        WrappedText.write(prefix: "<", who, indent: "    ", into: &out)
        WrappedText.write(prefix: "    ", Self.explanation(item), indent: "    ", into: &out)
        var said: [UInt8] = []
        if item.isRemoteReply, let remote = item.remote {
            said.append(contentsOf: HostileText.line(remote.name, limit: 255))
            said.append(contentsOf: Array(" [".utf8))
            said.append(contentsOf: HostileText.line(remote.address, limit: 128))
            said.append(contentsOf: Array("] said: ".utf8))
        }
        said.append(contentsOf: Self.diagnostic(item.reply, utf8: utf8))
        if item.isRemoteReply, !item.reply.stage.name.isEmpty {
            said.append(contentsOf: Array(" (in reply to \(item.reply.stage.name))".utf8))
        }
        if !said.isEmpty { WrappedText.write(prefix: "    ", said, indent: "    ", into: &out) }
        if let until = item.willRetryUntil {
            WrappedText.write(
                prefix: "    It is tried until ", MailDate.bytes(until) + [UInt8(ascii: ".")], indent: "    ",
                into: &out)
        }
    }

    /// One sentence of plain English for the status (RFC 3463).
    private static func explanation(_ item: Recipient) -> [UInt8] {
        switch item.action {
        case .delivered: return Array("The message was delivered.".utf8)
        case .relayed: return Array("The message was relayed to the next mail server.".utf8)
        case .failed, .delayed: break
        }
        let text: String
        switch (item.status.subject, item.status.detail) {
        case (1, 1), (1, 6), (1, 0): text = "The address does not exist at its domain, or takes no mail."
        case (1, 2): text = "The domain of the address does not exist."
        case (1, 3): text = "The receiving server does not accept the form of the address."
        case (1, 10): text = "The domain of the address declares that it takes no mail."
        case (2, 1): text = "The mailbox is disabled and takes no mail."
        case (2, 2): text = "The mailbox is full."
        case (2, 3), (3, 4): text = "The message is larger than the receiving server takes."
        case (4, 1): text = "The receiving server did not answer."
        case (4, 2): text = "The connection to the receiving server was lost."
        case (4, 3), (4, 4): text = "No usable mail server was found for the domain."
        case (4, 6): text = "The message went in a circle between mail servers."
        case (4, 7): text = "Delivery kept failing until the message was too old. The last answer was:"
        case (6, 7): text = "The receiving server does not support internationalised addresses."
        case (6, _): text = "The receiving server cannot handle the form of the message's content."
        case (7, 30): text = "The message asks for encrypted transport, which the receiving server does not offer."
        case (7, _): text = "The receiving server refused the message by its policy."
        default:
            text =
                item.action == .delayed
                ? "The receiving server could not take the message yet." : "The receiving server refused the message."
        }
        return Array(text.utf8)
    }

    /// `550 5.1.1 User unknown` as one harmless line.
    private static func diagnostic(_ reply: SMTPReply, utf8: Bool) -> [UInt8] {
        var text: [UInt8] = []
        if reply.code != 0 {
            text.append(contentsOf: Array("\(reply.code) ".utf8))
            if let status = reply.status { text.append(contentsOf: Array("\(status) ".utf8)) }
        }
        text.append(contentsOf: HostileText.line(reply.text, utf8: utf8, limit: replyOctetsMax))
        return text
    }

    // MARK: For machines

    func writeStatusPart(into out: inout ByteBuffer, _ configuration: ReportConfiguration, utf8: Bool) {
        out.writeStaticString("Reporting-MTA: dns; ")
        out.writeBytes(configuration.hostname)
        out.writeStaticString("\r\n")
        if !original.envid.isEmpty {
            // RFC 3461 6.3: decoded. What would not be a plain line stays as the sender encoded it.
            let decoded = HostileText.fromXtext(original.envid) ?? original.envid
            let plain = decoded.allSatisfy { $0 >= 0x20 && $0 < 0x7f }
            WrappedText.write(
                prefix: "Original-Envelope-Id: ", HostileText.line(plain ? decoded : original.envid), indent: " ",
                into: &out)
        }
        out.writeStaticString("X-Baton-Queue-ID: ")
        ReceivedField.writeID(original.id, into: &out)
        out.writeStaticString("\r\nArrival-Date: ")
        MailDate.write(original.arrival, into: &out)
        out.writeStaticString("\r\n")
        for recipient in recipients.prefix(Self.recipientsMax) { writeStatus(recipient, into: &out, utf8: utf8) }
    }

    private func writeStatus(_ item: Recipient, into out: inout ByteBuffer, utf8: Bool) {
        out.writeStaticString("\r\n")
        if !item.recipient.originalRecipient.isEmpty {
            WrappedText.write(
                prefix: "Original-Recipient: ", Self.originalRecipient(item.recipient.originalRecipient, utf8: utf8),
                indent: " ", into: &out)
        }
        let address = item.recipient.address
        WrappedText.write(
            prefix: address.isInternational ? "Final-Recipient: utf-8; " : "Final-Recipient: rfc822; ",
            HostileText.address(address.bytes, utf8: utf8), indent: " ", into: &out)
        out.writeStaticString("Action: ")
        out.writeStaticString(item.action.word)
        out.writeStaticString("\r\nStatus: ")
        out.writeString(item.status.description)
        out.writeStaticString("\r\n")
        if let remote = item.remote, !remote.name.isEmpty {
            WrappedText.write(
                prefix: "Remote-MTA: dns; ", HostileText.line(remote.name, limit: 255), indent: " ", into: &out)
        }
        let diagnostic = Self.diagnostic(item.reply, utf8: utf8)
        if !diagnostic.isEmpty {
            WrappedText.write(
                prefix: item.isRemoteReply ? "Diagnostic-Code: smtp; " : "Diagnostic-Code: X-Baton; ", diagnostic,
                indent: " ", into: &out)
        }
        if let last = item.lastAttempt {
            out.writeStaticString("Last-Attempt-Date: ")
            MailDate.write(last, into: &out)
            out.writeStaticString("\r\n")
        }
        if let until = item.willRetryUntil {
            out.writeStaticString("Will-Retry-Until: ")
            MailDate.write(until, into: &out)
            out.writeStaticString("\r\n")
        }
    }

    /// `rfc822;xtext` as `rfc822; address` (RFC 3464 2.3.1); a form that cannot be decoded stays as it came.
    private static func originalRecipient(_ orcpt: [UInt8], utf8: Bool) -> [UInt8] {
        guard let semicolon = orcpt.firstIndex(of: UInt8(ascii: ";")) else {
            return HostileText.line(orcpt, limit: Limits.orcptOctets)
        }
        let type = HostileText.line(orcpt[..<semicolon], limit: 64)
        let raw = orcpt[(semicolon + 1)...].prefix(Limits.orcptOctets)
        let decoded = HostileText.fromXtext(raw) ?? Array(raw)
        return type + Array("; ".utf8) + HostileText.address(decoded, utf8: utf8)
    }
}
