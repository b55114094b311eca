// Fakes for ingress tests: a spool that records and answers when told, an event log, a client with blocking sockets.
import BatonCore
import BatonModel
import BatonRuntime
import BatonSMTP
import BatonTestKit
import Glibc
import Logging
import NIOCore
import NIOEmbedded
import Synchronization
import Testing

@testable import BatonIngress

/// Records what is submitted. With `answersAtOnce` each batch is durable as soon as it comes.
final class FakeSpool: MessageSubmitting {
    struct State {
        var batches: [Int] = []
        var submissions: [Submission] = []
        var admission = StorageAdmission.open
        var streams: [FragmentStreamID: ByteBuffer] = [:]
        var largestAppend = 0
        var abandoned: [FragmentStreamID] = []
        var nextStream: UInt64 = 1
    }

    let state = Mutex(State())
    let answersAtOnce: Bool

    init(answersAtOnce: Bool = true) {
        self.answersAtOnce = answersAtOnce
    }

    func submit(_ batch: [Submission]) {
        state.withLock {
            $0.batches.append(batch.count)
            $0.submissions += batch
        }
        guard answersAtOnce else { return }
        for submission in batch { answer(submission, .durable(StoredMessageRef(segment: 0, record: 0))) }
    }

    func answer(_ submission: Submission, _ outcome: SubmissionOutcome) {
        submission.sink.submissionsFinished([SubmissionResult(token: submission.token, outcome: outcome)])
    }

    func openStream(sink: any SubmissionResultReceiving) -> FragmentStreamID {
        state.withLock { state in
            let id = FragmentStreamID(value: state.nextStream)
            state.nextStream += 1
            state.streams[id] = ByteBuffer()
            return id
        }
    }

    func append(_ bytes: ByteBuffer, to stream: FragmentStreamID) {
        state.withLock { state in
            state.largestAppend = max(state.largestAppend, bytes.readableBytes)
            state.streams[stream]?.writeImmutableBuffer(bytes)
        }
    }

    func abandon(_ stream: FragmentStreamID) { state.withLock { $0.abandoned.append(stream) } }

    var admission: StorageAdmission { state.withLock { $0.admission } }
    var submissions: [Submission] { state.withLock { $0.submissions } }
}

final class FakeEvents: EventRecording {
    let rejections = Mutex<[RejectionEvent]>([])
    let full = Mutex(false)

    func record(_ events: [MailEvent]) {}
    func record(rejections: [RejectionEvent]) { self.rejections.withLock { $0 += rejections } }
    var recorded: UInt64 { 0 }
    var synced: UInt64 { 0 }
    var isFull: Bool { full.withLock { $0 } }
}

func body(of submission: Submission) -> ByteBuffer {
    if case .whole(let bytes) = submission.body { return bytes }
    return ByteBuffer()
}

/// One loop under the test's hand, with any number of sessions on it.
final class EmbeddedIngress {
    let loop = EmbeddedEventLoop()
    let time = SimulatedTime()
    let spool: FakeSpool
    let events = FakeEvents()
    let admission: Admission
    let home: IngressLoop
    var configuration = IngressConfiguration(hostname: "relay.test")

    init(answersAtOnce: Bool = true, limits: IngressLimits = IngressLimits()) {
        spool = FakeSpool(answersAtOnce: answersAtOnce)
        admission = Admission(limits: limits)
        configuration.limits = limits
        home = IngressLoop(
            loop: loop, submitter: spool, events: events, admission: admission, time: time, seed: 1,
            logger: Logger(label: "test"))
    }

    /// A connected session whose greeting has been read.
    func connect(
        _ session: UInt64, from address: String = "127.0.0.1", service: ListenerService = .relay,
        relayFrom: [String]? = nil
    ) throws -> EmbeddedSession {
        let client = IPAddress(address)
        _ = admission.admit(client?.clientNetwork ?? [])
        let handler = IngressHandler(
            home: home, settings: configuration.settings(for: ListenerConfiguration(service: service)),
            policy: RelayPolicy(relayFrom: relayFrom?.compactMap { AddressBlock($0) }), address: client,
            sessionID: session, refusal: nil)
        let reads = ReadCounter()
        let channel = EmbeddedChannel(loop: loop)
        try channel.pipeline.syncOperations.addHandlers([reads, handler])
        try channel.connect(to: SocketAddress(ipAddress: "127.0.0.1", port: 2525)).wait()
        advance(.milliseconds(1))
        let embedded = EmbeddedSession(channel: channel, reads: reads, handler: handler)
        #expect(try embedded.replies().hasPrefix("220 relay.test"))
        return embedded
    }

    func advance(_ span: TimeSpan) {
        time.advance(by: span)
        loop.advanceTime(by: .nanoseconds(span.nanoseconds))
    }
}

/// Counts the reads that the handler asks for, and keeps a channel open whose output alone is closed, as a socket would.
final class ReadCounter: ChannelOutboundHandler {
    typealias OutboundIn = ByteBuffer
    var reads = 0
    var outputClosed = false

    func close(context: ChannelHandlerContext, mode: CloseMode, promise: EventLoopPromise<Void>?) {
        guard mode == .output else { return context.close(mode: mode, promise: promise) }
        outputClosed = true
        promise?.succeed()
    }

    func read(context: ChannelHandlerContext) {
        reads += 1
        context.read()
    }
}

struct EmbeddedSession {
    let channel: EmbeddedChannel
    let reads: ReadCounter
    let handler: IngressHandler

    /// Sends in one read, runs the tick, gives the replies back.
    func send(_ text: String) throws -> String {
        try channel.writeInbound(ByteBuffer(string: text))
        channel.embeddedEventLoop.run()
        return try replies()
    }

    func replies() throws -> String {
        var text = ""
        while let buffer = try channel.readOutbound(as: ByteBuffer.self) { text += String(buffer: buffer) }
        return text
    }

    func openData(from sender: String = "a@b.test") throws {
        _ = try send("EHLO client.test\r\n")
        _ = try send("MAIL FROM:<\(sender)>\r\nRCPT TO:<c@d.test>\r\n")
        let reply = try send("DATA\r\n")
        #expect(reply.hasPrefix("354"), "\(reply)")
    }
}

/// Runs blocking work on a thread of its own: the threads of the default executor are few, and a stop under test needs one.
func offPool<Value: Sendable>(_ work: @escaping @Sendable () throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        _ = DedicatedThread(name: "test-client") { continuation.resume(with: Result { try work() }) }
    }
}

/// A client over real sockets that waits at most five seconds for anything.
///
/// @unchecked: it holds a descriptor that never changes; a test uses it from one thread at a time.
final class BlockingClient: @unchecked Sendable {
    private let descriptor: Int32

    init(port: Int) throws {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var timeout = timeval(tv_sec: 5, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
        setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
        // A sockaddr_in of 127.0.0.1: family (host order), port and address (network order), eight zeros.
        var address: [UInt8] = [UInt8(AF_INET), 0, UInt8(port >> 8), UInt8(port & 0xff), 127, 0, 0, 1]
        address += [UInt8](repeating: 0, count: 8)
        let connected = address.withUnsafeBytes { raw in
            raw.baseAddress.map {
                Glibc.connect(descriptor, $0.assumingMemoryBound(to: sockaddr.self), socklen_t(raw.count))
            }
        }
        try #require(connected == 0)
    }

    deinit { close(descriptor) }

    func send(_ text: String) {
        let octets = Array(text.utf8)
        var sent = 0
        while sent < octets.count {
            let count = octets[sent...].withUnsafeBytes {
                Glibc.send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { return }
            sent += count
        }
    }

    func endOutput() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// Reads until `replies` final reply lines have come, or the end of the connection, or the time-out.
    func receive(replies: Int = 1) -> String {
        var text = ""
        func finals() -> Int {
            text.split(separator: "\r\n").filter { $0.count >= 4 && $0[$0.index($0.startIndex, offsetBy: 3)] == " " }
                .count
        }
        var buffer = [UInt8](repeating: 0, count: 4096)
        while finals() < replies || !text.hasSuffix("\r\n") {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            guard count > 0 else { return text }
            text += String(decoding: buffer[..<count], as: UTF8.self)
        }
        return text
    }

    /// Whether the server has closed (everything left is read and dropped).
    func isClosedByServer() -> Bool {
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            if count == 0 { return true }
            if count < 0 { return errno == ECONNRESET }
        }
    }

    /// A client that has its 354.
    static func inData(port: Int) throws -> BlockingClient {
        let client = try BlockingClient(port: port)
        _ = client.receive()
        _ = client.ask("EHLO c.test\r\n")
        _ = client.ask("MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n", replies: 3)
        return client
    }

    func ask(_ text: String, replies: Int = 1) -> String {
        send(text)
        return receive(replies: replies)
    }
}
