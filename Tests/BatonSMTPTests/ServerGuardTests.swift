// What keeps a server session from being held, doubled or turned against others.
import BatonCore
import BatonModel
import Foundation
import NIOCore
import Testing

@testable import BatonSMTP

/// A client that sends all it has and closes its side: whole commands behind the dot are answered, half ones are not waited for.
@Test(arguments: [
    ("QUIT\r\n", ["250", "221"], 1), ("MAIL FROM:<>\r\nRCPT TO:<c@d.test>\r\nRS", ["250", "250", "250"], 1),
    ("MAIL FROM:<>\r\nRCPT TO:<c@d.test>\r\nBDAT 9 LAST\r\na: b\r\nQ", ["250", "250", "250"], 1),
    ("MAIL FROM:<>\r\nRCPT TO:<c@d.test>\r\nBDAT 6 LAST\r\na: b\r\nQUIT\r\n", ["250", "250", "250", "250", "221"], 2),
])
func endOfFileBehindPipelinedCommands(behind: String, answers: [String], messages: Int) {
    var dialogue = ServerDialogue()
    dialogue.spool = nil
    dialogue.openData()
    var replies = dialogue.send(plainMessage + ".\r\n" + behind)
    dialogue.session.inputEnded(into: &dialogue.output)
    while dialogue.session.awaitsVerdict {
        dialogue.session.submissionFinished(
            .durable(StoredMessageRef(segment: 0, record: 0)), at: dialogue.now, into: &dialogue.output)
        dialogue.run()
    }
    replies += dialogue.takeReplies()
    #expect(codes(replies) == answers && dialogue.isClosed && dialogue.messages.count == messages)
}

/// RFC 2034 4, RFC 3463: the first digit of the enhanced code is that of the basic one; and nothing of our own is 5xx.
@Test func serverReplyWhoseStatusContradictsItsCode() throws {
    let source = try String(contentsOf: repliesFile, encoding: .utf8)
    let replies = source.matches(of: /ServerReply\("([^"]+)"\)/).map { String($0.output.1) }
    #expect(replies.count > 40)
    for line in replies where !line.hasPrefix("354") {
        let words = line.split(separator: " ")
        let status = words[1].split(separator: ".").compactMap { UInt16($0) }
        #expect(words[0].count == 3 && status.count == 3, "\(line)")
        #expect(words[0].prefix(1) == words[1].prefix(1), "\(line)")
        #expect(line.utf8.count <= 510 && line.utf8.allSatisfy { $0 >= 0x20 && $0 < 0x7f })
    }
}

/// Where the replies stand, from here.
private let repliesFile = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent().appendingPathComponent("Sources/BatonSMTP/Server/ServerReply.swift")

@Test func connectionThatOnlyHoldsItsPlace() {
    for idle in ["NOOP", "RSET", "VRFY a", "HELP", "EHLO x.test", "HELO x.test"] {
        var dialogue = ServerDialogue()
        dialogue.greet()
        var answered = 1
        while answered < 3 * ServerSettings.idleCommandsMax, !dialogue.isClosed {
            let reply = dialogue.send(idle + "\r\n")
            if dialogue.isClosed { #expect(reply.hasPrefix("421 4.7.0")) } else { answered += 1 }
        }
        #expect(answered == ServerSettings.idleCommandsMax, "\(idle)")
    }
    // Small chunks for ever; and an accepted message starts the count anew.
    var chunks = ServerDialogue()
    chunks.greet()
    _ = chunks.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n")
    var octets = 0
    while !chunks.isClosed, octets < 10_000 { octets += codes(chunks.send("BDAT 1\r\nx")) == ["250"] ? 1 : 0 }
    #expect(chunks.isClosed && octets == ServerSettings.idleCommandsMax - 1)
    var busy = ServerDialogue()
    busy.greet()
    for _ in 0..<5 {
        for _ in 0..<(ServerSettings.idleCommandsMax / 2) { _ = busy.send("RSET\r\n") }
        _ = busy.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nBDAT 6 LAST\r\na: b\r\n")
    }
    #expect(!busy.isClosed && busy.messages.count == 5)
}

@Test func recipientNamedTwiceGetsTwoCopies() {
    var limits = ServerLimits()
    limits.recipients = 40
    var dialogue = ServerDialogue(limits: limits)
    dialogue.greet()
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\n")
    var replies = ""
    for _ in 0..<3 {
        for index in 0..<36 { replies += dialogue.send("RCPT TO:<r\(index)@d.test>\r\n") }
    }
    // Another case, other DSN parameters: not the same.
    replies += dialogue.send("RCPT TO:<R0@d.test>\r\nRCPT TO:<r0@d.test> NOTIFY=NEVER\r\n")
    replies += dialogue.send("RCPT TO:<r0@d.test> ORCPT=rfc822;x\r\nRCPT TO:<r0@D.test>\r\n")
    #expect(codes(replies).allSatisfy { $0 == "250" })
    // The transaction is full: one that is in it is fine, another is not.
    #expect(codes(dialogue.send("RCPT TO:<r35@d.test>\r\nRCPT TO:<new@d.test>\r\n")) == ["250", "452"])
    _ = dialogue.send("DATA\r\n")
    _ = dialogue.send(plainMessage + ".\r\n")
    let recipients = dialogue.messages[0].message.recipients
    #expect(recipients.count == 40 && Set(recipients).count == 40)
    // The next transaction knows nothing of it.
    _ = dialogue.send("MAIL FROM:<a@b.test>\r\nRCPT TO:<r0@d.test>\r\nRCPT TO:<r0@d.test>\r\n")
    _ = dialogue.send("DATA\r\n")
    _ = dialogue.send(plainMessage + ".\r\n")
    #expect(dialogue.messages[1].message.recipients.map(\.address.description) == ["r0@d.test"])
}

@Test func strangersMailToThePostmasterSendsReportsToAForgedSender() {
    for (mayRelay, notify) in [(false, NotifyFlags.never), (true, .success)] {
        var dialogue = ServerDialogue(mayRelay: mayRelay)
        dialogue.greet()
        _ = dialogue.send("MAIL FROM:<forged@b.test>\r\nRCPT TO:<postmaster> NOTIFY=SUCCESS\r\n")
        _ = dialogue.send("DATA\r\n")
        _ = dialogue.send(plainMessage + ".\r\n")
        #expect(dialogue.messages.first?.message.recipients.map(\.notify) == [notify])
    }
}
