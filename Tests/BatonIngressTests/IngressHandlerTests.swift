// The handler on an embedded loop: batching, back-pressure, memory, timers, stop; and what is put in front of a message.
import BatonCore
import BatonModel
import BatonSMTP
import NIOCore
import NIOEmbedded
import Synchronization
import Testing

@testable import BatonIngress

private let message = "Subject: x\r\n\r\nHello\r\n.\r\n"

@Test func messageReachesTheSpoolWithItsTraceField() throws {
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1)
    try session.openData()
    let reply = try session.send(message)
    let submission = try #require(ingress.spool.submissions.first)
    #expect(reply == "250 2.0.0 Ok: queued as \(submission.envelope.id)\r\n")
    let bytes = body(of: submission)
    let text = String(buffer: bytes)
    #expect(
        text.hasPrefix(
            "Received: from client.test ([127.0.0.1])\r\n\tby relay.test with ESMTP id \(submission.envelope.id)"))
    #expect(text.contains("for <c@d.test>;") && text.hasSuffix("\r\nSubject: x\r\n\r\nHello\r\n"))
    let traits = submission.envelope.traits
    #expect(traits.length == bytes.readableBytes)
    #expect(traits.crc32c == CRC32C.of(Array(bytes.readableBytesView)))
    #expect(traits.headerLength == bytes.readableBytes - 7)
    let lines = text.split(separator: "\r\n", omittingEmptySubsequences: false)
    #expect(traits.longestLine == lines.map(\.utf8.count).max())
    #expect(submission.envelope.client == Array("127.0.0.1".utf8) && submission.envelope.sessionID == 1)
}

@Test func submissionAddsDateAndMessageIDWhereMissing() throws {
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1, service: .submission)
    try session.openData()
    _ = try session.send("Subject: x\r\n\r\nHello\r\n.\r\n")
    try session.openData()
    _ = try session.send("Message-ID: <mine@x>\r\nDate: now\r\n\r\nHello\r\n.\r\n")
    let relay = try ingress.connect(2)
    try relay.openData()
    _ = try relay.send("Subject: x\r\n\r\nHello\r\n.\r\n")
    let all = ingress.spool.submissions
    let added = String(buffer: body(of: all[0]))
    #expect(
        added.contains("\r\nDate: ")
            && added.contains("\r\nMessage-ID: <\(all[0].envelope.id)@relay.test>\r\nSubject: x"))
    #expect(all[0].envelope.messageIDField == Array("<\(all[0].envelope.id)@relay.test>".utf8))
    #expect(all[0].envelope.flags.contains(.submission))
    #expect(all[0].envelope.traits.crc32c == CRC32C.of(Array(body(of: all[0]).readableBytesView)))
    let kept = String(buffer: body(of: all[1]))
    #expect(kept.components("Date: ") == 1 && kept.components("Message-ID: ") == 1)
    #expect(all[1].envelope.messageIDField == Array("<mine@x>".utf8))
    let plain = String(buffer: body(of: all[2]))
    #expect(!plain.contains("Date: ") && !plain.contains("Message-ID"))
}

extension String {
    fileprivate func components(_ part: String) -> Int {
        var count = 0
        var rest = self[...]
        while let range = rest.firstRange(of: part) {
            count += 1
            rest = rest[range.upperBound...]
        }
        return count
    }
}

@Test func longPrefixDoesNotFitTheHeadroom() throws {
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1)
    let helo = String(repeating: "h", count: 255)
    let recipient =
        String(repeating: "l", count: 60) + "@"
        + Array(repeating: String(repeating: "d", count: 60), count: 3).joined(separator: ".")
    ingress.configuration.hostname = "relay.test"
    _ = try session.send("EHLO \(helo)\r\n")
    _ = try session.send("MAIL FROM:<>\r\nRCPT TO:<\(recipient)>\r\n")
    _ = try session.send("DATA\r\n")
    #expect(try session.send(message).hasPrefix("250"))
    let submission = ingress.spool.submissions[0]
    #expect(submission.envelope.traits.crc32c == CRC32C.of(Array(body(of: submission).readableBytesView)))
    #expect(String(buffer: body(of: submission)).hasSuffix("Hello\r\n"))
}

@Test func submissionsOfATickAreOneBatchAndResultsOneCrossing() throws {
    let ingress = EmbeddedIngress(answersAtOnce: false)
    let sessions = try (1...10).map { try ingress.connect(UInt64($0)) }
    for session in sessions { try session.openData() }
    for session in sessions { try session.channel.writeInbound(ByteBuffer(string: message)) }
    ingress.loop.run()
    #expect(ingress.spool.state.withLock { $0.batches } == [10])
    for session in sessions { #expect(try session.replies().isEmpty) }
    ingress.home.submissionsFinished(
        ingress.spool.submissions.map {
            SubmissionResult(token: $0.token, outcome: .durable(StoredMessageRef(segment: 0, record: 0)))
        })
    ingress.loop.run()
    for session in sessions { #expect(try session.replies().hasPrefix("250 2.0.0 Ok: queued as")) }
}

@Test func pipelinedRepliesLeaveInOneWrite() throws {
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1)
    _ = try session.send("EHLO x.test\r\n")
    try session.channel.writeInbound(
        ByteBuffer(string: "MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nRCPT TO:<e@f.test>\r\nDATA\r\n"))
    let first = try #require(try session.channel.readOutbound(as: ByteBuffer.self))
    #expect(
        String(buffer: first).hasPrefix("250 2.1.0 Ok\r\n250 2.1.5") && String(buffer: first).hasSuffix("<CR><LF>\r\n"))
    #expect(try session.channel.readOutbound(as: ByteBuffer.self) == nil)
}

@Test func commandsBehindTheFinalDotWaitForTheSpool() throws {
    let ingress = EmbeddedIngress(answersAtOnce: false)
    let session = try ingress.connect(1)
    try session.openData()
    #expect(try session.send(message + "MAIL FROM:<>\r\nRCPT TO:<g@h.test>\r\nDATA\r\n").isEmpty)
    ingress.spool.answer(ingress.spool.submissions[0], .durable(StoredMessageRef(segment: 0, record: 0)))
    ingress.loop.run()
    let replies = try session.replies()
    #expect(replies.split(separator: "\r\n").map { $0.prefix(3) } == ["250", "250", "250", "354"])
}

@Test func streamStopsReadingAtTheUnwrittenBound() throws {
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1)
    try session.openData()
    _ = try session.send("Subject: x\r\n\r\n")
    let block = String(repeating: String(repeating: "s", count: 998) + "\r\n", count: 60)
    var sent = "Subject: x\r\n\r\n".utf8.count
    var before = session.reads.reads
    while session.reads.reads > before || sent < 100_000 {
        before = session.reads.reads
        _ = try session.send(block)
        sent += block.utf8.count
        guard sent < 4_000_000 else { break }
        if session.reads.reads == before { break }
    }
    #expect(
        sent >= Limits.unwrittenPerSession && sent <= Limits.unwrittenPerSession + 4 * Limits.fragmentSize,
        "stopped at \(sent)")
    // The client's clocks stand still while our disk is slow.
    ingress.advance(.minutes(20))
    #expect(try session.replies().isEmpty && session.channel.isActive)
    // The spool has written what it has: reading goes on.
    let appended = ingress.spool.state.withLock { $0.streams.values.first?.readableBytes ?? 0 }
    ingress.home.fragmentsWritten([FragmentResult(stream: FragmentStreamID(value: 1), written: appended, refusal: nil)])
    ingress.loop.run()
    #expect(session.reads.reads > before)
    #expect(try session.send(".\r\n").hasPrefix("250"))
    let submission = ingress.spool.submissions[0]
    let stored = try #require(ingress.spool.state.withLock { $0.streams[FragmentStreamID(value: 1)] })
    #expect(submission.envelope.traits.length == stored.readableBytes)
    #expect(submission.envelope.traits.crc32c == CRC32C.of(Array(stored.readableBytesView)))
    #expect(String(buffer: stored).hasPrefix("Received: from client.test"))
    #expect(ingress.spool.state.withLock { $0.largestAppend } <= Limits.fragmentSize)
}

@Test func fragmentRefusalIsAnsweredAtTheEnd() throws {
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1)
    try session.openData()
    let block = String(repeating: String(repeating: "s", count: 998) + "\r\n", count: 300)
    _ = try session.send("Subject: x\r\n\r\n" + block)
    ingress.home.fragmentsWritten([FragmentResult(stream: FragmentStreamID(value: 1), written: 0, refusal: .diskFull)])
    ingress.loop.run()
    #expect(try session.send("more\r\n.\r\n").hasPrefix("452 4.3.1"))
    #expect(ingress.spool.submissions.isEmpty)
    #expect(ingress.spool.state.withLock { $0.abandoned.count } == 1)
}

@Test func memoryBudgetRefusesMailAndGivesUpBodies() throws {
    var limits = IngressLimits()
    limits.memory = 64 * 1024
    let ingress = EmbeddedIngress(limits: limits)
    let greedy = try ingress.connect(1)
    let waiting = try ingress.connect(2)
    try greedy.openData()
    _ = try greedy.send(
        "Subject: x\r\n\r\n" + String(repeating: String(repeating: "m", count: 998) + "\r\n", count: 58))
    _ = try waiting.send("EHLO x.test\r\n")
    #expect(try waiting.send("MAIL FROM:<a@b.test>\r\n").hasPrefix("452 4.3.1"))
    _ = try greedy.send(String(repeating: String(repeating: "m", count: 998) + "\r\n", count: 60))
    #expect(ingress.admission.memoryInUse < 16 * 1024)
    #expect(try greedy.send(".\r\n").hasPrefix("452 4.3.1"))
    #expect(try waiting.send("MAIL FROM:<a@b.test>\r\n").hasPrefix("250"))
    #expect(ingress.admission.memoryInUse == 0)
}

@Test func memoryIsBookedUntilTheSpoolAnswers() throws {
    let ingress = EmbeddedIngress(answersAtOnce: false)
    let session = try ingress.connect(1)
    try session.openData()
    _ = try session.send(message)
    #expect(ingress.admission.memoryInUse > 0)
    ingress.spool.answer(ingress.spool.submissions[0], .durable(StoredMessageRef(segment: 0, record: 0)))
    ingress.loop.run()
    #expect(ingress.admission.memoryInUse == 0)
    // A session that goes away gives its memory back; its message stays with the spool.
    let gone = try ingress.connect(2)
    try gone.openData()
    _ = try gone.send("half a message\r\n")
    #expect(ingress.admission.memoryInUse > 0)
    try gone.channel.close().wait()
    #expect(ingress.admission.memoryInUse == 0)
}

@Test func storageAndEventLogCloseTheGate() throws {
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1)
    _ = try session.send("EHLO x.test\r\n")
    ingress.spool.state.withLock { $0.admission = .refused(.diskFull) }
    #expect(try session.send("MAIL FROM:<a@b.test>\r\n").hasPrefix("452 4.3.1"))
    ingress.spool.state.withLock { $0.admission = .refused(.storageFailed) }
    #expect(try session.send("MAIL FROM:<a@b.test>\r\n").hasPrefix("451 4.3.0"))
    ingress.spool.state.withLock { $0.admission = .open }
    ingress.events.full.withLock { $0 = true }
    #expect(try session.send("MAIL FROM:<a@b.test>\r\n").hasPrefix("452 4.3.1"))
    ingress.events.full.withLock { $0 = false }
    #expect(try session.send("MAIL FROM:<a@b.test>\r\n").hasPrefix("250"))
    #expect(ingress.events.rejections.withLock { $0.count } == 3)
    // It closes while a transaction is open, and the next MAIL stands behind RSET in one write.
    ingress.spool.state.withLock { $0.admission = .refused(.diskFull) }
    #expect(try session.send("RSET\r\nMAIL FROM:<a@b.test>\r\n").contains("452 4.3.1"))
}

@Test func idleConnectionTimesOutAndIsCutAfterTheLinger() throws {
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1)
    _ = try session.send("EHLO x.test\r\n")
    ingress.advance(.seconds(299))
    #expect(try session.replies().isEmpty)
    ingress.advance(.seconds(2))
    #expect(try session.replies().hasPrefix("421 4.4.2"))
    #expect(session.reads.outputClosed && session.channel.isActive)
    // What the client still sends is read and dropped, and does not lengthen the linger.
    #expect(try session.send("MAIL FROM:<a@b.test>\r\n").isEmpty)
    ingress.advance(.seconds(3))
    #expect(!session.channel.isActive)
    #expect(ingress.admission.connections == 0)
}

@Test func shutdownEndsIdleSessionsAndWaitsForData() throws {
    let ingress = EmbeddedIngress(answersAtOnce: false)
    let idle = try ingress.connect(1)
    let busy = try ingress.connect(2)
    try busy.openData()
    let done = ingress.home.shutdown()
    #expect(try idle.replies().hasPrefix("421 4.3.2"))
    _ = try busy.send(message)
    ingress.spool.answer(ingress.spool.submissions[0], .durable(StoredMessageRef(segment: 0, record: 0)))
    ingress.loop.run()
    let replies = try busy.replies()
    #expect(replies.hasPrefix("250 2.0.0") && replies.contains("\r\n421 4.3.2"))
    ingress.advance(.seconds(3))
    try done.wait()
    #expect(!idle.channel.isActive && !busy.channel.isActive)
}

@Test func terminateNamesTheUnansweredIDs() throws {
    let ingress = EmbeddedIngress(answersAtOnce: false)
    let session = try ingress.connect(1)
    try session.openData()
    _ = try session.send(message)
    let done = ingress.home.shutdown()
    #expect(ingress.home.terminate() == [ingress.spool.submissions[0].envelope.id])
    #expect(try session.replies().hasPrefix("421"))
    ingress.loop.run()
    try done.wait()
    // The late answer finds nobody and does no harm.
    ingress.spool.answer(ingress.spool.submissions[0], .durable(StoredMessageRef(segment: 0, record: 0)))
    ingress.loop.run()
}

@Test func commandsBehindTheFinalDotOverTheirBound() throws {
    let ingress = EmbeddedIngress(answersAtOnce: false)
    let session = try ingress.connect(1)
    try session.openData()
    _ = try session.send(message + "MAIL FROM:<a@b.test>\r\n")
    let many = String(repeating: "RCPT TO:<c@d.test>\r\n", count: 300)
    var waiting = 0
    var before = -1
    while session.reads.reads > before, waiting < 1_000_000 {
        before = session.reads.reads
        _ = try session.send(many)
        waiting += many.utf8.count
    }
    #expect(waiting >= IngressHandler.inputMax && waiting <= IngressHandler.inputMax + 6_000, "\(waiting)")
    ingress.spool.answer(ingress.spool.submissions[0], .durable(StoredMessageRef(segment: 0, record: 0)))
    ingress.loop.run()
    #expect(session.reads.reads > before)
    #expect(try session.replies().split(separator: "\r\n").count == 2 + waiting / 20)
}

/// Octets that wait behind a final dot are in the budget; half a command does not keep the buffer it came in, nor a session
/// the one of its longest reply.
@Test func buffersOfIdleSessionsPileUp() throws {
    let ingress = EmbeddedIngress(answersAtOnce: false)
    let session = try ingress.connect(1)
    try session.openData()
    _ = try session.send(message)
    let before = ingress.admission.memoryInUse
    _ = try session.send("MAIL FROM:<a@b.test>\r\n" + String(repeating: "RCPT TO:<c@d.test>\r\n", count: 1_500) + "RC")
    #expect(ingress.admission.memoryInUse >= before + 30_000)
    ingress.spool.answer(ingress.spool.submissions[0], .durable(StoredMessageRef(segment: 0, record: 0)))
    ingress.loop.run()
    #expect(try session.replies().split(separator: "\r\n").count == 1_502)
    #expect(ingress.admission.memoryInUse == 0)
    #expect(session.handler.bufferedMemory <= 2 * IngressHandler.keptMax)
    // The half command is still there.
    #expect(try session.send("PT TO:<e@f.test>\r\n").hasPrefix("250"))
    #expect(session.handler.bufferedMemory <= 2 * IngressHandler.keptMax)
}

@Test func clientThatReadsNoRepliesIsNotReadEither() throws {
    let ingress = EmbeddedIngress()
    let session = try ingress.connect(1)
    _ = try session.send("EHLO x.test\r\n")
    session.channel.isWritable = false
    let before = session.reads.reads
    _ = try session.send("RSET\r\n")
    #expect(session.reads.reads == before)
    session.channel.isWritable = true
    session.channel.pipeline.fireChannelWritabilityChanged()
    ingress.loop.run()
    #expect(session.reads.reads == before + 1)
    // Time runs on meanwhile: the client holds itself up.
    session.channel.isWritable = false
    ingress.advance(.minutes(6))
    #expect(try session.replies().hasPrefix("421 4.4.2"))
}
