// Reports as others read them: bounce detectors, strict MIME, and the fields that each kind must have or must not.
import BatonCore
import BatonModel
import NIOCore
import Testing

@testable import BatonMail

private let plain = ByteBuffer(string: "From: sender@example.org\r\nSubject: Hello\r\n\r\nBody text\r\n")

private func item(
    _ recipient: EnvelopeRecipient, _ action: DeliveryReport.Action, _ status: EnhancedStatus, code: UInt16 = 451,
    stage: ReplyStage = .rcpt
) -> DeliveryReport.Recipient {
    DeliveryReport.Recipient(
        recipient: recipient, action: action, status: status,
        reply: SMTPReply(code: code, status: nil, text: Array("what was said".utf8), stage: stage),
        remote: PeerName(name: Array("mx1.example.com".utf8), address: Array("192.0.2.9".utf8)),
        lastAttempt: Instant(secondsSinceEpoch: 1_767_003_600),
        willRetryUntil: action == .delayed ? Instant(secondsSinceEpoch: 1_767_432_000) : nil)
}

@Suite(.enabled(if: hasPython)) struct ReportReaderTests {
    @Test func reportThatBounceDetectorsOverlook() throws {
        let people = ["one@example.com", "Two.Words+tag@example.com", "\"quoted name\"@example.com"].map {
            EnvelopeRecipient(address: address($0), originalRecipient: Array("rfc822;\($0.filter { $0 != " " })".utf8))
        }
        let original = envelope(recipients: people, body: plain)
        let messages = [
            report(original, [failed(people[0]), failed(people[1])], returned: .headers(plain)),
            report(original, [failed(people[0])], returned: .full(plain)),
            report(original, [item(people[0], .delayed, EnhancedStatus(4, 2, 2))], kind: .delay),
            report(original, [item(people[1], .relayed, EnhancedStatus(2, 0, 0), code: 250)], kind: .success),
            report(original, [item(people[0], .failed, EnhancedStatus(4, 4, 7))]),
            report(original, [failed(people[2])]),
        ].map { $0.compose(reportHost) }
        // Without flufl.bounce there is nobody to ask; Python alone reads the fields in the other tests.
        guard let found = try failuresByFlufl(messages) else { return }
        #expect(found[0].permanent == ["Two.Words+tag@example.com", "one@example.com"] && found[0].temporary.isEmpty)
        #expect(found[1].permanent == ["one@example.com"])
        #expect(found[2].temporary == ["one@example.com"] && found[2].permanent.isEmpty)
        #expect(found[3] == Failures(permanent: [], temporary: []))
        #expect(found[4].permanent == ["one@example.com"])
        #expect(found[5].permanent.count == 1)
    }

    /// RFC 2045 6.4: a multipart that says 7bit, or nothing, has no 8-bit part in it.
    @Test func eightBitReturnInASevenBitReport() throws {
        let body = ByteBuffer(string: "Subject: x\r\n\r\nGr\u{fc}\u{df}e\r\n")
        let recipient = EnvelopeRecipient(address: address("user@example.com"))
        let narrow = envelope(recipients: [recipient], body: body)
        let wide = envelope(sender: "\u{fc}@example.org", flags: .smtpUTF8, recipients: [recipient], body: body)
        let messages = [
            report(narrow, [failed(recipient)], returned: .full(body)),
            report(narrow, [failed(recipient)], returned: .headers(body)),
            report(narrow, [failed(recipient)], returned: .full(plain)),
            report(wide, [failed(recipient)], returned: .full(body)),
        ].map { $0.compose(reportHost) }
        let read = try readByPython(messages)
        #expect(read.map { $0.field("Content-Transfer-Encoding") } == [["8bit"], [], [], ["8bit"]])
        for (message, result) in zip(messages, read) {
            let isEightBit = message.readableBytesView.contains { $0 >= 0x80 }
            #expect(isEightBit == (result.field("Content-Transfer-Encoding") == ["8bit"]))
            #expect(result.defects.isEmpty && result.parts.allSatisfy { $0.defects.isEmpty })
        }
        #expect(read[0].parts.last?.text.contains("Gr\u{fc}\u{df}e") == true)
    }

    @Test func fieldThatAKindOfReportMustHaveOrMustNot() throws {
        let recipient = EnvelopeRecipient(
            address: address("user@example.com"), originalRecipient: Array("rfc822;u@example.com".utf8))
        let original = envelope(envid: "E1", recipients: [recipient], body: plain)
        let kinds: [(ReportSubject.Kind, DeliveryReport.Action, EnhancedStatus, String)] = [
            (.failure, .failed, EnhancedStatus(5, 1, 1), "failed"),
            (.delay, .delayed, EnhancedStatus(4, 4, 1), "delayed"),
            (.success, .relayed, EnhancedStatus(2, 0, 0), "relayed"),
            (.success, .delivered, EnhancedStatus(2, 0, 0), "delivered"),
        ]
        let read = try readByPython(
            kinds.map { kind, action, status, _ in
                report(original, [item(recipient, action, status)], kind: kind).compose(reportHost)
            })
        for ((kind, _, status, word), result) in zip(kinds, read) {
            let part = result.parts[1]
            #expect(part.blocks.count == 2)
            for name in ["Reporting-MTA", "Original-Envelope-Id", "Arrival-Date"] {
                #expect(part.field(name, block: 0).count == 1, "\(word) \(name)")
            }
            for name in [
                "Original-Recipient", "Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code",
                "Last-Attempt-Date",
            ] { #expect(part.field(name, block: 1).count == 1, "\(word) \(name)") }
            #expect(part.field("Action", block: 1) == [word])
            #expect(part.field("Status", block: 1) == [status.description])
            #expect(
                part.field("Will-Retry-Until", block: 1) == (kind == .delay ? ["Sat, 03 Jan 2026 09:20:00 +0000"] : []))
            #expect(result.field("Auto-Submitted") == ["auto-replied"])
            #expect(result.field("MIME-Version") == ["1.0"] && result.field("Message-ID").count == 1)
        }
    }

    @Test func backslashOfAnInternationalAddressReadAsAnEscape() {
        #expect(
            HostileText.escapedAddress(Array("\"a\\b\u{fc}\"@x".utf8)) == Array("\"a\\x{5C}b\\x{FC}\"@x".utf8))
        #expect(HostileText.escapedAddress(Array("j\\x{F6}rg@x".utf8)) == Array("j\\x{F6}rg@x".utf8))
    }
}
