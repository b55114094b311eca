// The process's resolver: libunbound's contexts, owned by one thread.
import BatonCore
import BatonRuntime
import Glibc
import Logging
import Metrics
import Synchronization

/// Looks up names through libunbound on a thread of its own, for all loops.
///
/// Bounds: `lookupsAtOnce`, `lookupsWaiting`, a time-out for each look-up. With a trust anchor, the resolver is first asked
/// whether it passes DNSSEC on (the anchor's own SOA has to validate); until that is certain, and if it does not, look-ups
/// are not validated and nothing is deferred for it. Nothing survives a crash.
package final class UnboundThread: Resolving {
    private struct Inbox {
        var requests: [(questions: [DNSQuestion], receiver: any AnswerReceiving)] = []
        var wakePending = false
        var stopping = false
    }

    private let inbox = Mutex(Inbox())
    private let shared: Mutex<ResolverStatus>
    private let wakeRead: Int32
    private let wakeWrite: Int32
    private let thread: Mutex<DedicatedThread?>

    /// Starts the thread. Throws where a server or the trust anchor is unusable.
    ///
    /// - Parameter statusChanged: called on the resolver's thread whenever `status` has changed.
    package init(
        _ configuration: ResolverConfiguration, time: any TimeSource, logger: Logger,
        statusChanged: @escaping @Sendable (ResolverStatus) -> Void = { _ in }
    ) throws(ResolverError) {
        let given = configuration.servers.isEmpty ? ResolverServer.ofSystem() : configuration.servers
        let servers = Array(given.prefix(DNSLimits.servers))
        let plain = try UnboundContext(servers: servers, trustAnchor: nil)
        var candidate: (context: UnboundContext, owner: [UInt8])?
        if let anchor = configuration.trustAnchor {
            let owner = try TrustAnchor.owner(inFile: anchor)
            candidate = (try UnboundContext(servers: servers, trustAnchor: anchor), owner)
        }
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw ResolverError(text: "pipe: errno \(errno)") }
        for end in ends {
            _ = fcntl(end, F_SETFL, O_NONBLOCK)
            _ = fcntl(end, F_SETFD, FD_CLOEXEC)
        }
        let first = ResolverStatus(dnssec: candidate == nil ? .off : .unknown, isDown: false, servers: servers)
        self.shared = Mutex(first)
        self.wakeRead = ends[0]
        self.wakeWrite = ends[1]
        self.thread = Mutex(nil)
        let worker = ResolverWorker(
            configuration, servers: servers, plain: plain, candidate: candidate, wakeRead: ends[0], status: first,
            time: time, logger: logger)
        let started = DedicatedThread(name: "resolver") { [self] in
            worker.run(
                take: { self.take() },
                publish: { status in
                    self.shared.withLock { $0 = status }
                    statusChanged(status)
                })
        }
        thread.withLock { $0 = started }
    }

    package var status: ResolverStatus { shared.withLock { $0 } }

    package func resolve(_ questions: [DNSQuestion], for receiver: any AnswerReceiving) {
        guard !questions.isEmpty else { return }
        let (taken, wake) = inbox.withLock { inbox in
            guard !inbox.stopping else { return (false, false) }
            inbox.requests.append((questions, receiver))
            let wake = !inbox.wakePending
            inbox.wakePending = true
            return (true, wake)
        }
        if !taken {
            receiver.answered(questions.map { DNSReply(question: $0, answer: DNSAnswer(.failed(.resolverDown))) })
        } else if wake {
            wakeThread()
        }
    }

    /// Answers what is open as `resolverDown` and ends the thread. Idempotent; not from an event loop.
    package func stop() {
        inbox.withLock { $0.stopping = true }
        wakeThread()
        let running = thread.withLock { thread in
            defer { thread = nil }
            return thread
        }
        running?.join()
    }

    deinit {
        // Only now, since a late `resolve` may still write: nobody is left to do so.
        _ = close(wakeRead)
        _ = close(wakeWrite)
    }

    private func wakeThread() {
        var byte: UInt8 = 1
        // A full pipe wakes just as well.
        _ = write(wakeWrite, &byte, 1)
    }

    /// Nil when the thread is to end.
    private func take() -> [(questions: [DNSQuestion], receiver: any AnswerReceiving)]? {
        inbox.withLock { inbox in
            inbox.wakePending = false
            guard !inbox.stopping || !inbox.requests.isEmpty else { return nil }
            var requests: [(questions: [DNSQuestion], receiver: any AnswerReceiving)] = []
            swap(&requests, &inbox.requests)
            return requests
        }
    }
}

/// The file with DS or DNSKEY records that validation starts from.
enum TrustAnchor {
    /// The name that the first record belongs to, lower case, without the trailing dot; empty is the root.
    static func owner(inFile path: String) throws(ResolverError) -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw ResolverError(text: "trust anchor \(path): cannot be read (errno \(errno))")
        }
        defer { _ = close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 64 * 1024)
        let count = bytes.withUnsafeMutableBytes { read(descriptor, $0.baseAddress, $0.count) }
        guard let owner = owner(in: String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)) else {
            throw ResolverError(text: "trust anchor \(path): no DS or DNSKEY record in it")
        }
        return owner
    }

    static func owner(in text: String) -> [UInt8]? {
        for line in text.split(separator: "\n") {
            let words = line.split(whereSeparator: { $0 == " " || $0 == "\t" })
            guard let first = words.first, !first.hasPrefix(";"),
                words.contains(where: { $0 == "DS" || $0 == "DNSKEY" })
            else { continue }
            if first == "." { return [] }
            return DomainName.host(Array(first.utf8))
        }
        return nil
    }
}
