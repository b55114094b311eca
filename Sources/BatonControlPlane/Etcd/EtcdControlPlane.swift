// The control plane of a cluster: etcd's JSON gateway.
import BatonCore
import BatonHTTPClient
import BatonRuntime
import Synchronization

/// etcd 3.4 and newer (docs/CONTROL_PLANE.md). Two curl threads: one for keepalives and grants of leases, one for the rest, so that
/// bulk delays no lease. Answers and watch events come on them. Every operation ends within its time-outs; nothing survives a crash but
/// what etcd has committed.
package final class EtcdControlPlane: ControlPlane {
    private let channel: EtcdChannel
    private let leaseChannel: EtcdChannel
    private let settings: EtcdSettings
    private let time: any TimeSource
    private let watches = Mutex<[EtcdWatch]>([])
    private let stopped = Atomic<Bool>(false)

    /// Starts the threads; etcd is not asked yet. Throws `invalid` for unusable settings.
    package init(_ settings: EtcdSettings, time: any TimeSource = SystemTimeSource()) throws(ControlFailure) {
        if let problem = settings.problem { throw .refused(.invalid, problem) }
        self.settings = settings
        self.time = time
        let first = SystemRandom.uint64()
        channel = EtcdChannel(settings, name: "etcd", time: time, first: first)
        leaseChannel = EtcdChannel(settings, name: "etcd-lease", time: time, first: first)
    }

    package func stop() {
        stopped.store(true, ordering: .releasing)
        for watch in watches.withLock({ $0 }) { watch.cancel() }
        channel.stop()
        leaseChannel.stop()
    }

    /// Turns an outcome into an answer. An answer that cannot be read is unknown for what changes the store.
    private static func read<Value>(
        _ outcome: EtcdOutcome, _ kind: EtcdCallState.Kind, _ value: (JSONValue) -> Value?
    ) -> Result<Value, ControlFailure> {
        switch outcome {
        case .answer(let json):
            if let value = value(json) { return .success(value) }
            return .failure(kind == .read ? .refused(.unavailable, "unreadable answer") : .unknown("unreadable answer"))
        case .refused(let refusal, let error): return .failure(.refused(refusal, error.text))
        case .tooLarge: return .failure(.refused(.invalid, "the answer is too long"))
        case .failure(let failure): return .failure(failure)
        }
    }

    // MARK: Reading

    /// A listing under way, page by page.
    private struct Paging: Sendable {
        let prefix: ControlKey
        let end: ControlKey
        let asked: ControlRevision?
        let deadline: Instant
        let answer: Answer<ControlListing>
        var limit = ControlLimits.page
        var attempts = 1
        var header: ControlHeader?
        var entries: [ControlEntry] = []

        /// The key after the last one seen.
        var from: ControlKey { entries.last.map { ControlKey(bytes: $0.key.bytes + [0]) } ?? prefix }
    }

    package func list(
        _ prefix: ControlKey, at revision: ControlRevision?, answer: @escaping Answer<ControlListing>
    ) {
        guard let end = prefix.endOfPrefix, revision ?? 1 > 0, ControlLimits.allows(prefix) else {
            return answer(.failure(.refused(.invalid, "not a prefix, or not a revision")))
        }
        let deadline = time.now() + ControlLimits.listingTime
        page(Paging(prefix: prefix, end: end, asked: revision, deadline: deadline, answer: answer))
    }

    private func page(_ paging: Paging) {
        let left = paging.deadline - time.now()
        guard left > .zero else { return paging.answer(.failure(.refused(.unavailable, "the listing takes too long"))) }
        // All pages are of the first one's revision.
        let body = EtcdRequest.page(
            from: paging.from, end: paging.end, at: paging.asked ?? paging.header?.revision, limit: paging.limit)
        channel.perform(
            EtcdChannel.Call(path: .range, body: body, kind: .read, limit: min(left, settings.operationLimit)) {
                self.received($0, paging)
            })
    }

    private func received(_ outcome: EtcdOutcome, _ before: Paging) {
        var paging = before
        if case .tooLarge = outcome, paging.limit > 1 {
            paging.limit = max(1, paging.limit / 8)
            return page(paging)
        }
        switch Self.read(outcome, .read, EtcdAnswer.range) {
        case .failure(let failure):
            // Compacted between two pages: from the beginning, of the newest revision.
            guard failure.refusal == .compacted, paging.asked == nil, paging.attempts < ControlLimits.listingAttempts
            else { return paging.answer(.failure(failure)) }
            paging.attempts += 1
            paging.header = nil
            paging.entries.removeAll()
            page(paging)
        case .success(let (header, entries, more)):
            if paging.header == nil { paging.header = header }
            paging.entries += entries
            guard paging.entries.count <= ControlLimits.listing else {
                return paging.answer(.failure(.refused(.invalid, "too many entries")))
            }
            if more, !entries.isEmpty { return page(paging) }
            let first = paging.header ?? header
            paging.answer(.success(ControlListing(header: first, entries: paging.entries)))
        }
    }

    package func get(_ key: ControlKey, answer: @escaping Answer<ControlListing>) {
        guard ControlLimits.allows(key) else { return answer(.failure(.refused(.invalid, "not a key"))) }
        channel.perform(
            EtcdChannel.Call(path: .range, body: EtcdRequest.key(key), kind: .read, limit: settings.operationLimit) {
                answer(
                    Self.read($0, .read) { json in
                        EtcdAnswer.range(json).map { ControlListing(header: $0.header, entries: $0.entries) }
                    })
            })
    }

    // MARK: Changing

    package func commit(_ transaction: ControlTransaction, answer: @escaping Answer<ControlCommit>) {
        if let problem = transaction.problem { return answer(.failure(.refused(.invalid, problem))) }
        let body = EtcdRequest.transaction(transaction)
        channel.perform(
            EtcdChannel.Call(path: .transaction, body: body, kind: .change, limit: settings.operationLimit) {
                answer(Self.read($0, .change, EtcdAnswer.transaction))
            })
    }

    /// The id is drawn here, so that a repeated request finds the lease of the first.
    package func grantLease(_ ttl: TimeSpan, answer: @escaping Answer<ControlLease>) {
        guard ttl > .zero, ttl <= ControlLimits.leaseMax else {
            return answer(.failure(.refused(.invalid, "a lease of \(ttl.seconds) s")))
        }
        // Positive and not 0; etcd's own are of 63 bits too.
        let id = ControlLeaseID(value: Int64(SystemRandom.uint64() >> 2) + 1)
        let seconds = (ttl.nanoseconds + 999_999_999) / 1_000_000_000
        let body = EtcdRequest.grant(id, seconds: seconds)
        leaseChannel.perform(
            EtcdChannel.Call(path: .grant, body: body, kind: .idempotent, limit: settings.operationLimit) { outcome in
                // Granted by an earlier try: its renewal says for how long.
                if case .refused(_, let error) = outcome, error.isExistingLease { return self.adopt(id, answer) }
                answer(Self.read(outcome, .idempotent) { EtcdAnswer.grant($0) })
            })
    }

    private func adopt(_ id: ControlLeaseID, _ answer: @escaping Answer<ControlLease>) {
        keepAlive(id, within: settings.operationLimit) { result in
            if case .success(let ttl?) = result { return answer(.success(ControlLease(id: id, ttl: ttl))) }
            answer(.failure(.unknown("the lease was granted, and cannot be renewed")))
        }
    }

    package func keepAlive(_ lease: ControlLeaseID, within limit: TimeSpan, answer: @escaping Answer<TimeSpan?>) {
        leaseChannel.perform(
            EtcdChannel.Call(
                path: .keepAlive, body: EtcdRequest.lease(lease), kind: .read, limit: limit, isOnlyOneTry: true
            ) { outcome in
                answer(Self.read(outcome, .read) { EtcdAnswer.keepAlive($0, lease) })
            })
    }

    package func revoke(_ lease: ControlLeaseID, answer: @escaping Answer<Void>) {
        channel.perform(
            EtcdChannel.Call(
                path: .revoke, body: EtcdRequest.lease(lease), kind: .idempotent, limit: settings.operationLimit
            ) { outcome in
                if case .refused(.leaseGone, _) = outcome { return answer(.success(())) }
                answer(Self.read(outcome, .idempotent) { EtcdAnswer.header($0) }.map { _ in })
            })
    }

    // MARK: Watching

    package func watch(
        _ prefix: ControlKey, after: ControlRevision?, resync: TimeSpan,
        receive: @escaping @Sendable (ControlWatchEvent) -> Void
    ) -> (any ControlWatch)? {
        guard !stopped.load(ordering: .acquiring), let end = prefix.endOfPrefix, ControlLimits.allows(prefix) else {
            return nil
        }
        let watch = EtcdWatch(
            prefix, end: end, machine: EtcdWatchState(after: after, resync: resync), channel: channel, time: time,
            list: { [weak self] answer in
                guard let self else { return answer(.failure(.refused(.stopped, "stopped"))) }
                self.list(prefix, at: nil, answer: answer)
            }, tell: receive)
        let isTaken = watches.withLock { watches in
            watches.removeAll { $0.isCancelled }
            guard watches.count < ControlLimits.watches else { return false }
            watches.append(watch)
            return true
        }
        guard isTaken else { return nil }
        watch.begin()
        return watch
    }
}
