// A spool, a network and receivers for the randomized model of the delivery side: everything lies, fails and is late by seed.
import BatonCore
import BatonModel
import BatonTestKit
import Glibc
import NIOCore
import NIOEmbedded
import Synchronization

@testable import BatonDelivery

/// The spool as the settler and the pools see it. Answers wait until `answer` lets some out; refusals and failed reads by seed.
/// Checks the order: report before outcome, event before outcome, one final outcome for each recipient.
final class ModelSpool: MessageSubmitting, BodyReading, EventRecording, OutcomeRecording, @unchecked Sendable {
    // @unchecked: the model runs on one thread.
    var stored: [StoredMessageRef: (envelope: Envelope, body: ByteBuffer, fragments: UInt32)] = [:]
    var nextRecord: UInt32 = 0
    var finals: [JobRef: OutcomeVerdict] = [:]
    var violations: [String] = []
    /// Hands a new message to the queue.
    var accept: (AcceptedMessage) -> Void = { _ in }
    private var submissions: [Submission] = []
    private var reads: [(BodyRead, any BodyReadReceiving)] = []
    private var finalEvents: [String: Int] = [:]
    private var reported: Set<String> = []

    var pending: Int { submissions.count + reads.count }

    func store(_ envelope: Envelope, _ body: ByteBuffer, fragments: UInt32, resident: Bool) {
        let ref = StoredMessageRef(segment: 1, record: nextRecord)
        nextRecord += 1
        stored[ref] = (envelope, body, fragments)
        let kept = resident && fragments == 0 ? MessageBody(bytes: body, traits: envelope.traits) : nil
        accept(AcceptedMessage(ref: ref, envelope: envelope, body: kept, progress: nil, receptionRecorded: true))
    }

    /// Answers some of what waits, in any order.
    func answer(_ random: inout SplitMix64, healthy: Bool) {
        while !submissions.isEmpty, healthy || random.next() % 2 == 0 {
            let one = submissions.remove(at: Int(random.next() % UInt64(submissions.count)))
            guard healthy || random.next() % 4 != 0, case .whole(let body) = one.body else {
                one.sink.submissionsFinished([SubmissionResult(token: one.token, outcome: .refused(.diskFull))])
                continue
            }
            for subject in one.envelope.subjects where subject.kind == .failure {
                reported.insert("\(subject.message.low).\(subject.recipient)")
            }
            let ref = StoredMessageRef(segment: 1, record: nextRecord)
            store(one.envelope, body, fragments: 0, resident: true)
            one.sink.submissionsFinished([SubmissionResult(token: one.token, outcome: .durable(ref))])
        }
        while !reads.isEmpty, healthy || random.next() % 2 == 0 {
            let (read, receiver) = reads.remove(at: Int(random.next() % UInt64(reads.count)))
            receiver.bodiesRead([BodyReadResult(token: read.token, outcome: outcome(read, &random, healthy: healthy))])
        }
    }

    private func outcome(_ read: BodyRead, _ random: inout SplitMix64, healthy: Bool) -> BodyReadOutcome {
        guard let (envelope, body, fragments) = stored[read.ref] else { return .damaged }
        if !healthy, random.next() % 8 == 0 { return .failed(errno: random.next() % 2 == 0 ? EAGAIN : EIO) }
        switch read.part {
        case .message:
            if fragments > 0 { return .message(envelope, .fragmented(traits: envelope.traits, count: fragments)) }
            return .message(envelope, .whole(MessageBody(bytes: body, traits: envelope.traits)))
        case .fragment(let index):
            let size = (body.readableBytes + Int(fragments) - 1) / Int(max(1, fragments))
            let from = min(body.readableBytes, Int(index) * size)
            let count = min(size, body.readableBytes - from)
            return .fragment(body.getSlice(at: body.readerIndex + from, length: count) ?? ByteBuffer())
        }
    }

    func submit(_ batch: [Submission]) { submissions += batch }
    func openStream(sink: any SubmissionResultReceiving) -> FragmentStreamID { FragmentStreamID(value: 0) }
    func append(_ bytes: ByteBuffer, to stream: FragmentStreamID) {}
    func abandon(_ stream: FragmentStreamID) {}
    var admission: StorageAdmission { .open }

    func read(_ requests: [BodyRead], for receiver: any BodyReadReceiving) {
        reads += requests.map { ($0, receiver) }
    }

    func record(_ events: [MailEvent]) {
        for event in events where event.type.isFinal {
            finalEvents[key(event.envelope, event.recipient), default: 0] += 1
        }
    }
    func record(rejections: [RejectionEvent]) {}
    var recorded: UInt64 { 0 }
    var synced: UInt64 { 0 }
    var isFull: Bool { false }

    func record(_ outcomes: [Outcome]) {
        for outcome in outcomes where outcome.verdict.isFinal {
            guard let envelope = stored[outcome.job.message]?.envelope else {
                violations.append("outcome of a message that was never stored")
                continue
            }
            let name = key(envelope, outcome.job.recipient)
            if finals.updateValue(outcome.verdict, forKey: outcome.job) != nil {
                violations.append("\(name) ended twice")
            }
            if finalEvents[name] != 1 { violations.append("\(name): \(finalEvents[name] ?? 0) final events before it") }
            switch outcome.verdict {
            case .bounced, .expired:
                if envelope.sender != nil, !reported.contains(name) { violations.append("\(name) without its report") }
            case .delivered, .deferred, .inDoubt, .adminBounced, .delayNoticeSent, .withdrawn: break
            }
        }
    }

    private func key(_ envelope: Envelope, _ recipient: UInt32) -> String { "\(envelope.id.low).\(recipient)" }
}

/// Passes everything on to the partition and keeps the books: what is pulled is decided exactly once.
final class CheckedSource: WorkSource, @unchecked Sendable {
    // @unchecked: the model runs on one thread.
    let partition: any WorkSource
    var out: Set<JobHandle> = []
    var pulled = 0
    var violations: [String] = []

    init(_ partition: any WorkSource) { self.partition = partition }

    func assign(_ destination: DestinationID, to site: SiteID, until: Instant) {
        partition.assign(destination, to: site, until: until)
    }
    func deferDestination(_ destination: DestinationID, reply: SMTPReply) {
        partition.deferDestination(destination, reply: reply)
    }
    func deferSite(_ site: SiteID, reply: SMTPReply) { partition.deferSite(site, reply: reply) }
    func failDestination(_ destination: DestinationID, reply: SMTPReply) {
        partition.failDestination(destination, reply: reply)
    }
    func holdDestination(_ destination: DestinationID, until: Instant) {
        partition.holdDestination(destination, until: until)
    }
    func pull(_ site: SiteID, transactions: Int, recipients: Int) -> [Transaction] {
        let found = partition.pull(site, transactions: transactions, recipients: recipients)
        for recipient in found.flatMap(\.recipients) {
            pulled += 1
            if !out.insert(recipient.handle).inserted { violations.append("\(recipient.handle) pulled twice") }
        }
        return found
    }
    func decide(
        _ results: [(JobHandle, AttemptResult)], envelope: Envelope, at now: Instant
    ) -> [RecipientDecision] {
        for (handle, _) in results where out.remove(handle) == nil {
            violations.append("\(handle) decided without being out")
        }
        return partition.decide(results, envelope: envelope, at: now)
    }
    func settle(_ handles: [JobHandle]) { partition.settle(handles) }
    func ready(_ site: SiteID) -> Int { partition.ready(site) }
}

/// A network of embedded channels: connections that are made late or never, and a receiver of every mood at each.
final class ModelNetwork: Connecting, @unchecked Sendable {
    // @unchecked: the model runs on one thread.
    final class Line: @unchecked Sendable {
        // @unchecked: the model runs on one thread.
        let channel: EmbeddedChannel
        let address: SocketAddress
        let promise: EventLoopPromise<Void>
        var isUp = false
        var isClosed = false
        var peer = ModelPeer()
        /// Bytes said and not yet heard.
        var said: [UInt8] = []
        init(_ channel: EmbeddedChannel, _ address: SocketAddress, _ promise: EventLoopPromise<Void>) {
            self.channel = channel
            self.address = address
            self.promise = promise
            channel.closeFuture.whenComplete { _ in self.isClosed = true }
        }
    }

    let loop: EmbeddedEventLoop
    var lines: [Line] = []
    var made = 0
    init(_ loop: EmbeddedEventLoop) { self.loop = loop }

    func connect(
        to address: SocketAddress, on loop: any EventLoop, timeout: TimeSpan, handler: NIOLoopBound<DeliveryHandler>
    ) -> EventLoopFuture<Void> {
        let promise = loop.makePromise(of: Void.self)
        let channel = EmbeddedChannel(loop: self.loop)
        try? channel.pipeline.syncOperations.addHandler(handler.value)
        lines.append(Line(channel, address, promise))
        made += 1
        return promise.futureResult
    }

    /// One thing happens to one connection.
    func step(_ random: inout SplitMix64, healthy: Bool) {
        sweep()
        guard !lines.isEmpty else { return }
        let line = lines[Int(random.next() % UInt64(lines.count))]
        if !line.isUp { return bring(line, &random, healthy: healthy) }
        while let bytes = try? line.channel.readOutbound(as: ByteBuffer.self) {
            line.peer.inbound += Array(bytes.readableBytesView)
        }
        if line.said.isEmpty { line.said = line.peer.speak(&random, healthy: healthy) }
        if !line.said.isEmpty {
            // Replies come in pieces of any size.
            let count = healthy ? line.said.count : 1 + Int(random.next() % UInt64(line.said.count))
            let piece = line.said.prefix(count)
            line.said.removeFirst(count)
            _ = try? line.channel.writeInbound(ByteBuffer(bytes: piece))
        }
        if line.said.isEmpty, line.peer.isGone { line.channel.close(promise: nil) }
    }

    private func bring(_ line: Line, _ random: inout SplitMix64, healthy: Bool) {
        let luck = healthy ? 9 : random.next() % 10
        switch luck {
        case 0: lose(line, IOError(errnoCode: ECONNREFUSED, reason: "connect"))
        case 1: lose(line, IOError(errnoCode: EMFILE, reason: "socket"))
        case 2: lose(line, ChannelError.connectTimeout(.seconds(30)))
        default:
            line.isUp = true
            line.channel.connect(to: line.address, promise: nil)
            line.promise.succeed()
        }
    }

    private func lose(_ line: Line, _ error: any Error) {
        lines.removeAll { $0 === line }
        line.promise.fail(error)
    }

    /// Forgets what the pool closed; one that never came up fails as it does in earnest.
    private func sweep() {
        for line in lines where line.isClosed {
            line.peer.isGone = true
            if !line.isUp { line.promise.fail(ChannelError.ioOnClosedChannel) }
        }
        lines.removeAll { $0.isClosed }
    }

    var open: Int {
        sweep()
        return lines.count
    }
}

/// A receiver: pipelining, and by seed refusals, 421, closes and silence at every point.
struct ModelPeer {
    var inbound: [UInt8] = []
    var isGone = false
    private var greeted = false
    private var silent = false
    private var hasMail = false
    private var accepted = 0
    private var inData = false

    /// The replies to what has come, at most a few.
    mutating func speak(_ random: inout SplitMix64, healthy: Bool) -> [UInt8] {
        if healthy { silent = false }
        guard !isGone, !silent else { return [] }
        var out = ""
        if !greeted {
            greeted = true
            out += answer("220 model\r\n", &random, healthy: healthy, rate: 20)
        }
        var budget = 4
        while budget > 0, !isGone, !silent, let line = takeLine() {
            budget -= 1
            if inData {
                budget += 1
                guard line == ".\r\n" else { continue }
                inData = false
                hasMail = false
                accepted = 0
                out += answer("250 2.0.0 taken\r\n", &random, healthy: healthy, rate: 12)
                continue
            }
            switch line.prefix(4).uppercased() {
            case "EHLO": out += answer("250-model\r\n250 PIPELINING\r\n", &random, healthy: healthy, rate: 20)
            case "HELO", "RSET": out += "250 ok\r\n"
            case "MAIL":
                let said = answer("250 ok\r\n", &random, healthy: healthy, rate: 10)
                hasMail = said.hasPrefix("250")
                accepted = 0
                out += said
            case "RCPT":
                let said = hasMail ? answer("250 ok\r\n", &random, healthy: healthy, rate: 10) : "503 no mail\r\n"
                if said.hasPrefix("250") { accepted += 1 }
                out += said
            case "DATA":
                let said =
                    accepted > 0 ? answer("354 go\r\n", &random, healthy: healthy, rate: 20) : "554 nobody\r\n"
                inData = said.hasPrefix("354")
                out += said
            case "QUIT":
                out += "221 bye\r\n"
                isGone = true
            default: out += "500 what\r\n"
            }
        }
        return Array(out.utf8)
    }

    private mutating func takeLine() -> String? {
        guard let end = inbound.firstIndex(of: 0x0a) else { return nil }
        defer { inbound.removeSubrange(...end) }
        return String(decoding: inbound[...end], as: UTF8.self)
    }

    /// The usual answer, or once in `rate` another.
    private mutating func answer(_ usual: String, _ random: inout SplitMix64, healthy: Bool, rate: UInt64) -> String {
        guard !healthy, random.next() % rate == 0 else { return usual }
        switch random.next() % 7 {
        case 0:
            isGone = true
            return "421 4.3.2 closing\r\n"
        case 1:
            isGone = true
            return ""
        case 2:
            silent = true
            return ""
        case 3: return "451 4.7.1 slow down\r\n"
        case 4: return "450 4.2.0 later\r\n"
        case 5: return "550 5.1.1 no\r\n"
        default: return usual
        }
    }
}
