// Received, Date and Message-ID fields, and the calendar under them.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonMail

private func text(_ write: (inout ByteBuffer) -> Void) -> String {
    var buffer = ByteBuffer()
    write(&buffer)
    return String(buffer: buffer)
}

@Test(arguments: [
    (0 as Int64, "Thu, 01 Jan 1970 00:00:00 +0000"),
    (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000"),
    (1_767_225_599, "Wed, 31 Dec 2025 23:59:59 +0000"),
    (1_709_210_096, "Thu, 29 Feb 2024 12:34:56 +0000"),
    (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 +0000"),
    (-1, "Wed, 31 Dec 1969 23:59:59 +0000"),
    (-2_203_891_200, "Thu, 01 Mar 1900 00:00:00 +0000"),
])
func dateOffByADay(seconds: Int64, expected: String) {
    #expect(text { MailDate.write(Instant(secondsSinceEpoch: seconds), into: &$0) } == expected)
    #expect(expected.utf8.count == MailDate.length)
}

@Test func extremeInstantTrapsTheCalendar() {
    #expect(MailDate.bytes(Instant(nanoseconds: .min)).count == MailDate.length)
    #expect(MailDate.bytes(.distantFuture).count == MailDate.length)
}

private let id = MessageID(high: 0x0123_4567_89ab_cdef, low: 0xfedc_ba98_7654_3210)

private func received(
    helo: String, client: IPAddress? = IPAddress("192.0.2.1"),
    proto: ReceivedProtocol = ReceivedProtocol(.esmtp), for recipient: MailAddress? = nil
) -> String {
    text {
        ReceivedField.write(
            into: &$0, helo: Array(helo.utf8), client: client, hostname: Array("relay1.example.net".utf8),
            proto: proto, id: id, forRecipient: recipient, at: Instant(secondsSinceEpoch: 1_767_225_599))
    }
}

@Test func receivedFieldLosesItsShape() {
    #expect(
        received(helo: "mail.example.org", for: MailAddress("user@example.net"))
            == "Received: from mail.example.org ([192.0.2.1])\r\n\tby relay1.example.net with ESMTP id \(id)\r\n"
            + "\tfor <user@example.net>;\r\n\tWed, 31 Dec 2025 23:59:59 +0000\r\n")
    #expect(received(helo: "", client: nil).hasPrefix("Received: from unknown (local)\r\n"))
    #expect(received(helo: "x", client: IPAddress("2001:db8::1")).contains("([IPv6:2001:db8::1])"))
}

@Test func heloInjectsAHeaderField() {
    let hostile = "a\r\nBcc: victim@example.com\r\n\r\nbody) (by\0 \u{e9};"
    let field = received(helo: hostile)
    #expect(field.split(separator: "\r\n").count == 3)
    #expect(!field.contains("Bcc: "))
    #expect(field.utf8.allSatisfy { $0 < 0x7f && ($0 >= 0x20 || $0 == 0x0d || $0 == 0x0a || $0 == 0x09) })
    let lines = received(helo: String(repeating: "x", count: 60_000)).split(separator: "\r\n")
    #expect(lines.allSatisfy { $0.utf8.count <= 998 })
}

@Test(arguments: [
    (ReceivedProtocol(.smtp), "SMTP"), (ReceivedProtocol(.esmtp), "ESMTP"), (ReceivedProtocol(.lmtp), "LMTP"),
    (ReceivedProtocol(.esmtp, isEncrypted: true), "ESMTPS"),
    (ReceivedProtocol(.esmtp, isEncrypted: true, isAuthenticated: true), "ESMTPSA"),
    (ReceivedProtocol(.esmtp, isAuthenticated: true, isUTF8: true), "UTF8SMTPA"),
    (ReceivedProtocol(.lmtp, isUTF8: true), "UTF8LMTP"),
])
func wrongProtocolWord(proto: ReceivedProtocol, word: String) {
    #expect(received(helo: "h", proto: proto).contains(" with \(word) id "))
}

@Test func recipientThatNeedsUTF8InAnASCIIField() {
    let recipient = MailAddress("j\u{f6}rg@example.net")
    #expect(!received(helo: "h", for: recipient).contains("for <"))
    #expect(
        received(helo: "h", proto: ReceivedProtocol(.esmtp, isUTF8: true), for: recipient).contains("for <j\u{f6}rg@"))
    #expect(!received(helo: "h", for: MailAddress("\"a\u{1b}b\"@example.net")).contains("for <"))
}

@Test func submittedMessageWithoutItsFields() {
    #expect(
        text { MessageIDField.write(id, hostname: Array("h.example".utf8), into: &$0) }
            == "Message-ID: <\(id)@h.example>\r\n")
    #expect(MessageIDField.value(id, hostname: Array("h.example".utf8)) == Array("<\(id)@h.example>".utf8))
    #expect(text { DateField.write(.epoch, into: &$0) } == "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n")
}
