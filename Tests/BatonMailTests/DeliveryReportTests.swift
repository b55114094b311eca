// Delivery reports, read back by Python's email package.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonMail

private let original = ByteBuffer(
    string: "Received: from x\r\nFrom: sender@example.org\r\nSubject: Hello\r\n\r\nBody text\r\n")

@Test func failureReportLosesAField() throws {
    let recipient = EnvelopeRecipient(
        address: address("user@example.com"), originalRecipient: Array("rfc822;User+2Bx@example.com".utf8))
    let envelope = envelope(envid: "QQ+2B314", recipients: [recipient], body: original)
    let composed = report(envelope, [failed(recipient)], returned: .full(original)).compose(reportHost)
    let read = try #require(try readByPython([composed]).first)
    #expect(read.defects.isEmpty)
    #expect(read.field("From") == ["Mail Delivery System <MAILER-DAEMON@relay1.example.net>"])
    #expect(read.field("To") == ["<sender@example.org>"])
    #expect(read.field("Auto-Submitted") == ["auto-replied"])
    #expect(read.field("In-Reply-To") == ["<orig@example.org>"])
    #expect(read.field("Date").count == 1 && read.field("Message-ID").count == 1)
    #expect(read.reportType == "delivery-status")
    #expect(read.parts.map(\.type) == ["text/plain", "message/delivery-status", "message/rfc822"])
    #expect(read.parts[0].text.contains("The address does not exist at its domain"))
    #expect(
        read.parts[0].text.split(whereSeparator: \.isWhitespace).joined(separator: " ")
            .contains("mx1.example.com [192.0.2.9] said: 550 5.1.1 User unknown (in reply to RCPT TO)"))
    #expect(read.parts[0].text.contains("postmaster@example.net"))
    let status = read.parts[1]
    #expect(status.field("Reporting-MTA", block: 0) == ["dns; relay1.example.net"])
    #expect(status.field("Original-Envelope-Id", block: 0) == ["QQ+314"])
    #expect(status.field("Arrival-Date", block: 0) == ["Mon, 29 Dec 2025 09:20:00 +0000"])
    #expect(status.field("Original-Recipient", block: 1) == ["rfc822; User+x@example.com"])
    #expect(status.field("Final-Recipient", block: 1) == ["rfc822; user@example.com"])
    #expect(status.field("Action", block: 1) == ["failed"])
    #expect(status.field("Status", block: 1) == ["5.1.1"])
    #expect(status.field("Remote-MTA", block: 1) == ["dns; mx1.example.com"])
    #expect(status.field("Diagnostic-Code", block: 1) == ["smtp; 550 5.1.1 User unknown"])
    #expect(status.field("Last-Attempt-Date", block: 1) == ["Mon, 29 Dec 2025 10:20:00 +0000"])
    #expect(status.field("Will-Retry-Until", block: 1).isEmpty)
    #expect(read.parts[2].text.contains("Body text"))
}

@Test func headersOnlyReportGivesTheBodyAway() throws {
    let recipient = EnvelopeRecipient(address: address("user@example.com"))
    let envelope = envelope(recipients: [recipient], body: original)
    let composed = report(envelope, [failed(recipient)], returned: .headers(original)).compose(reportHost)
    let read = try #require(try readByPython([composed]).first)
    #expect(read.parts.map(\.type) == ["text/plain", "message/delivery-status", "text/rfc822-headers"])
    #expect(read.parts[2].text.contains("Subject: Hello"))
    #expect(!read.parts[2].text.contains("Body text"))
    let without = report(envelope, [failed(recipient)]).compose(reportHost)
    #expect(try readByPython([without]).first?.parts.count == 2)
}

@Test func delayAndSuccessReportsSayTheWrongAction() throws {
    let recipient = EnvelopeRecipient(address: address("user@example.com"))
    let envelope = envelope(recipients: [recipient], body: original)
    let until = Instant(secondsSinceEpoch: 1_767_100_000)
    let delayed = DeliveryReport.Recipient(
        recipient: recipient, action: .delayed, status: EnhancedStatus(4, 4, 1),
        reply: SMTPReply(code: 0, status: nil, text: Array("Connection timed out".utf8), stage: .connect), remote: nil,
        lastAttempt: nil, willRetryUntil: until)
    let relayed = DeliveryReport.Recipient(
        recipient: recipient, action: .relayed, status: EnhancedStatus(2, 0, 0),
        reply: SMTPReply(code: 250, status: nil, text: Array("ok".utf8), stage: .finalDot), remote: nil,
        lastAttempt: until)
    let read = try readByPython([
        report(envelope, [delayed], kind: .delay).compose(reportHost),
        report(envelope, [relayed], kind: .success).compose(reportHost),
    ])
    #expect(read[0].parts[1].field("Action", block: 1) == ["delayed"])
    #expect(read[0].parts[1].field("Will-Retry-Until", block: 1) == ["Tue, 30 Dec 2025 13:06:40 +0000"])
    #expect(read[0].parts[1].field("Diagnostic-Code", block: 1) == ["X-Baton; Connection timed out"])
    #expect(read[0].field("Subject").first?.contains("Delayed") == true)
    #expect(read[1].parts[1].field("Action", block: 1) == ["relayed"])
    #expect(read[1].parts[1].field("Status", block: 1) == ["2.0.0"])
}

@Test func internationalReportInTheWrongTypes() throws {
    let body = ByteBuffer(string: "Subject: Gr\u{fc}\u{df}e\r\n\r\n\u{fc}\r\n")
    let recipient = EnvelopeRecipient(
        address: address("j\u{f6}rg@example.com"), originalRecipient: Array("utf-8;j\\x{F6}rg@example.com".utf8))
    let wide = envelope(sender: "\u{fc}@example.org", flags: .smtpUTF8, recipients: [recipient], body: body)
    let narrow = envelope(recipients: [recipient], body: body)
    let read = try readByPython([
        report(wide, [failed(recipient)], returned: .headers(body)).compose(reportHost),
        report(wide, [failed(recipient)], returned: .full(body)).compose(reportHost),
        report(narrow, [failed(recipient)], returned: .headers(body)).compose(reportHost),
    ])
    #expect(read[0].parts.map(\.type) == ["text/plain", "message/global-delivery-status", "message/global-headers"])
    #expect(read[0].reportType == "global-delivery-status")
    #expect(read[0].parts[1].text.contains("Final-Recipient: utf-8; j\u{f6}rg@example.com"))
    #expect(read[0].parts[2].text.contains("Gr\u{fc}\u{df}e"))
    #expect(read[1].parts[2].type == "message/global")
    // Without SMTPUTF8 all is ASCII: the address escaped, the headers quoted-printable.
    let plain = report(narrow, [failed(recipient)], returned: .headers(body)).compose(reportHost)
    #expect(plain.readableBytesView.allSatisfy { $0 < 0x80 })
    #expect(read[2].parts[1].field("Final-Recipient", block: 1) == ["utf-8; j\\x{F6}rg@example.com"])
    #expect(read[2].parts[2].type == "text/rfc822-headers")
    #expect(read[2].parts[2].text.contains("Subject: Gr\u{fc}\u{df}e"))
}

@Test func fullReturnBeyondTheCap() throws {
    let body = ByteBuffer(
        string: "Subject: big\r\n\r\n" + String(repeating: String(repeating: "x", count: 98) + "\r\n", count: 2700))
    let recipient = EnvelopeRecipient(address: address("user@example.com"))
    let composed = report(envelope(recipients: [recipient], body: body), [failed(recipient)], returned: .full(body))
        .compose(reportHost)
    #expect(composed.readableBytes < 16 * 1024)
    #expect(try readByPython([composed]).first?.parts.last?.type == "text/rfc822-headers")
}

@Test func returnedHeadersBeyondTheirCap() throws {
    let section = String(repeating: "X-Field: " + String(repeating: "y", count: 89) + "\r\n", count: 2000)
    let body = ByteBuffer(string: section + "\r\nbody\r\n")
    let recipient = EnvelopeRecipient(address: address("user@example.com"))
    let composed = report(envelope(recipients: [recipient], body: body), [failed(recipient)], returned: .headers(body))
        .compose(reportHost)
    let read = try #require(try readByPython([composed]).first?.parts.last)
    #expect(read.text.utf8.count <= 64 * 1024)
    #expect(read.text.utf8.count > 60 * 1024)
    #expect(read.text.split(separator: "\r\n").allSatisfy { $0.utf8.count == 98 })
}

@Test func reportLargerThanASubmissionMayBe() throws {
    // Every recipient at his longest, in both alphabets.
    for letter in ["x", "\u{f6}"] {
        let local = String(repeating: letter, count: 64 / letter.utf8.count)
        let domain = String(repeating: "d", count: 190)
        let recipient = EnvelopeRecipient(
            address: address("\(local)@\(domain)"),
            originalRecipient: Array(("rfc822;" + String(repeating: "o", count: 493)).utf8))
        let items = (0..<60).map { _ in
            failed(
                recipient, text: Array(repeating: UInt8(ascii: "t"), count: 5000),
                remote: String(repeating: "m", count: 255))
        }
        let huge = ByteBuffer(string: String(repeating: "X: \u{f6}\r\n", count: 30_000) + "\r\n")
        let original = envelope(recipients: [recipient], body: huge)
        let composed = report(original, items, returned: .headers(huge)).compose(reportHost)
        #expect(composed.readableBytes <= Limits.fragmentThreshold)
        let read = try #require(try readByPython([composed]).first)
        #expect(read.parts[1].blocks.count == DeliveryReport.recipientsMax + 1)
        #expect(BodyTraits.measured(composed).longestLine <= 998)
    }
}

@Test func boundaryInsideTheReturnedMessage() throws {
    let recipient = EnvelopeRecipient(address: address("user@example.com"))
    let first = report(
        envelope(recipients: [recipient], body: original), [failed(recipient)], returned: .full(original)
    )
    .compose(reportHost)
    let boundary = try #require(try readByPython([first]).first?.boundaryParameter)
    // A boundary known beforehand does not come again once the message holds it.
    let hostile = ByteBuffer(
        string: "Subject: x\r\n\r\n--\(boundary)\r\nContent-Type: text/html\r\n\r\nevil\r\n--\(boundary)--\r\n")
    let second = report(envelope(recipients: [recipient], body: hostile), [failed(recipient)], returned: .full(hostile))
        .compose(reportHost)
    let read = try #require(try readByPython([second]).first)
    #expect(read.parts.count == 3)
    #expect(read.boundaryParameter != boundary)
    let parts = [ByteBuffer(string: "none"), hostile]
    let made = ReportBoundary.make(id: MessageID(high: 1, low: 2), avoiding: parts)
    #expect(made != ReportBoundary.make(id: MessageID(high: 1, low: 2), avoiding: [ByteBuffer(bytes: made)]))
    #expect(ReportBoundary.contains(hostile, Array(boundary.utf8)))
    #expect(!ReportBoundary.contains(hostile, Array("=_baton_x".utf8)))
}

@Test func hostileReplyBreaksTheReport() throws {
    let seed: UInt64 = 0x5eed_0007
    var random = SplitMix64(seed: seed)
    let pieces: [[UInt8]] = [
        [0x0d, 0x0a], [0x0a], [0x0d], [0], [0x09], [0xff, 0xfe], [0xe2, 0x80, 0xae], [0x20], Array("--".utf8),
        Array("\r\n\r\n".utf8), Array("\r\nBcc: victim@example.com\r\n".utf8), Array("Action: delivered".utf8),
        Array("=_baton_".utf8), Array("Content-Type: text/html\r\n".utf8), Array("\u{2028}".utf8), Array("\u{fc}".utf8),
        Array(repeating: UInt8(ascii: "w"), count: 1500), Array("word".utf8), [0x85], [0xc2, 0x85],
    ]
    func hostile() -> [UInt8] {
        var out: [UInt8] = []
        for _ in 0..<Int.random(in: 1...12, using: &random) { out += pieces.randomElement(using: &random) ?? [] }
        return out
    }
    var composed: [ByteBuffer] = []
    for round in 0..<300 {
        let recipient = EnvelopeRecipient(
            address: address(round % 2 == 0 ? "user@example.com" : "\u{fc}@example.com"), originalRecipient: hostile())
        let original = envelope(
            flags: round % 4 == 1 ? .smtpUTF8 : [], envid: String(decoding: hostile(), as: UTF8.self),
            recipients: [recipient])
        let item = failed(recipient, text: hostile(), remote: String(decoding: hostile(), as: UTF8.self))
        composed.append(report(original, [item]).compose(reportHost))
    }
    let read = try readByPython(composed)
    for (message, result) in zip(composed, read) {
        let context: Comment = "seed \(seed): \(String(buffer: message))"
        #expect(result.parts.count == 2, context)
        #expect(result.defects.isEmpty, context)
        #expect(result.field("Bcc").isEmpty, context)
        #expect(result.headers.count == (result.reportType == "delivery-status" ? 10 : 11), context)
        let status = result.parts[1]
        #expect(status.blocks.count == 2, context)
        #expect(status.field("Action", block: 1) == ["failed"], context)
        #expect(status.field("Bcc", block: 0).isEmpty && status.field("Bcc", block: 1).isEmpty, context)
        #expect(BodyTraits.measured(message).longestLine <= 998, context)
        let octets = Array(message.readableBytesView)
        for (index, octet) in octets.enumerated() where octet == 0x0a || octet == 0x0d || octet == 0 {
            let paired =
                octet == 0x0a
                ? index > 0 && octets[index - 1] == 0x0d
                : octet == 0x0d && index + 1 < octets.count && octets[index + 1] == 0x0a
            #expect(paired, context)
        }
    }
}

@Test func xtextMisread() {
    #expect(HostileText.fromXtext(Array("a+2Bb+3D".utf8)) == Array("a+b=".utf8))
    #expect(HostileText.fromXtext(Array("a+2".utf8)) == nil)
    #expect(HostileText.fromXtext(Array("a+ZZ".utf8)) == nil)
}

@Test func measuredTraitsOfABody() {
    let traits = BodyTraits.measured(ByteBuffer(string: "A: \u{fc}\r\n\r\n.dot\r\n..two\r\nlonger line\r\n\u{fc}"))
    #expect(traits.headerLength == 9)
    #expect(traits.leadingDots == 2)
    #expect(traits.longestLine == 11)
    #expect(traits.hasEightBitBody && traits.hasEightBitHeader && !traits.endsWithCRLF)
    #expect(BodyTraits.measured(ByteBuffer()).endsWithCRLF)
}
