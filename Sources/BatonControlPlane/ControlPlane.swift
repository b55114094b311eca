// The port to the cluster's consensus store, whatever it is.
import BatonCore

/// Linearizable reads, compare-and-set, leases and watches over small keys (docs/CONTROL_PLANE.md).
///
/// Each `answer` is called exactly once, on a thread of the plane or at once on the caller's; it must not block, and the caller holds
/// no lock that it needs. What has been committed survives every crash of the caller.
package protocol ControlPlane: Sendable {
    typealias Answer<Value> = @Sendable (Result<Value, ControlFailure>) -> Void

    /// Every entry whose key begins with `prefix`, which is not empty, at one revision: the newest, or the one given
    /// (`compacted` where it is no longer kept). Of the newest it is linearizable.
    func list(_ prefix: ControlKey, at revision: ControlRevision?, answer: @escaping Answer<ControlListing>)

    /// A listing of the one key: no entry or one. Linearizable.
    func get(_ key: ControlKey, answer: @escaping Answer<ControlListing>)

    func commit(_ transaction: ControlTransaction, answer: @escaping Answer<ControlCommit>)

    /// The store may grant more than is asked for. An unknown outcome leaves at most a lease without keys, which ends by itself.
    func grantLease(_ ttl: TimeSpan, answer: @escaping Answer<ControlLease>)

    /// Renews a lease: its TTL from now, or nil where it is gone. One try, answered within `limit`; a failure says nothing
    /// about the lease. Not delayed by other operations.
    func keepAlive(_ lease: ControlLeaseID, within limit: TimeSpan, answer: @escaping Answer<TimeSpan?>)

    /// Ends a lease and deletes its keys. Success too where it is gone already.
    func revoke(_ lease: ControlLeaseID, answer: @escaping Answer<Void>)

    /// Tells of everything under `prefix` after revision `after`, or of all there is and then on (nil), until cancelled.
    ///
    /// - Parameter resync: a snapshot at least so often.
    /// - Parameter receive: called in order on a thread of the plane; must not block.
    /// - Returns: nil where `ControlLimits.watches` are open or the plane is stopped.
    func watch(
        _ prefix: ControlKey, after: ControlRevision?, resync: TimeSpan,
        receive: @escaping @Sendable (ControlWatchEvent) -> Void
    ) -> (any ControlWatch)?

    /// Answers what is open (unknown, where it may have an effect) and ends threads and connections. Idempotent. Not from an
    /// answer.
    func stop()
}

/// An open watch.
package protocol ControlWatch: Sendable {
    /// Nothing is received after the call under way, if any. Idempotent.
    func cancel()
}
