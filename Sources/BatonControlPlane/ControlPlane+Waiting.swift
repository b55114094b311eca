// The control plane for tasks and for threads that may block.
import BatonCore
import BatonRuntime

extension ControlPlane {
    private func awaiting<Value: Sendable>(
        _ begin: (@escaping Answer<Value>) -> Void
    ) async throws(ControlFailure) -> Value {
        let result = await withCheckedContinuation { continuation in
            begin { continuation.resume(returning: $0) }
        }
        return try result.get()
    }

    package func list(
        _ prefix: ControlKey, at revision: ControlRevision? = nil
    ) async throws(ControlFailure) -> ControlListing {
        try await awaiting { list(prefix, at: revision, answer: $0) }
    }

    package func get(_ key: ControlKey) async throws(ControlFailure) -> ControlListing {
        try await awaiting { get(key, answer: $0) }
    }

    package func commit(_ transaction: ControlTransaction) async throws(ControlFailure) -> ControlCommit {
        try await awaiting { commit(transaction, answer: $0) }
    }

    package func grantLease(_ ttl: TimeSpan) async throws(ControlFailure) -> ControlLease {
        try await awaiting { grantLease(ttl, answer: $0) }
    }

    package func keepAlive(
        _ lease: ControlLeaseID, within limit: TimeSpan
    ) async throws(ControlFailure) -> TimeSpan? {
        try await awaiting { keepAlive(lease, within: limit, answer: $0) }
    }

    package func revoke(_ lease: ControlLeaseID) async throws(ControlFailure) {
        try await awaiting { revoke(lease, answer: $0) }
    }

    /// Waits on the calling thread: for threads of one's own (the spool's keeper), never on a loop, on the default executor or
    /// on a thread of the plane. Every operation is bounded in time by the plane.
    package func blocking<Value: Sendable>(
        _ begin: (Self, @escaping Answer<Value>) -> Void
    ) -> Result<Value, ControlFailure> {
        let mailbox = ThreadMailbox<Result<Value, ControlFailure>>(capacity: 1)
        begin(self) { mailbox.deliver(CollectionOfOne($0)) }
        return mailbox.take(limit: 1)?.first ?? .failure(.unknown("no answer"))
    }
}
