// Bounds of the control plane (docs/LIMITS.md).
import BatonCore

package enum ControlLimits {
    /// Comparisons, and writes, of a transaction: etcd's `--max-txn-ops`.
    package static let operations = 128
    package static let keyBytes = 512
    package static let valueBytes = 16 * 1024
    /// Keys and values of a transaction; etcd takes 1.5 MiB as a request.
    package static let transactionBytes = 1024 * 1024
    /// Entries that a listing may have; a longer one is refused as `invalid`.
    package static let listing = 200_000
    /// Entries asked for at once; fewer where a page is over `answerBytes`.
    package static let page = 500
    /// Octets of one answer of etcd, and of one line of a watch.
    package static let answerBytes = 16 * 1024 * 1024
    /// Depth of a JSON value.
    package static let depth = 32
    /// Times that a listing begins anew because its revision was compacted meanwhile.
    package static let listingAttempts = 3
    /// Changes that the local and in-memory stores remember for watches and past revisions.
    package static let history = 10_000
    /// Leases of the local and in-memory stores.
    package static let leases = 1_000
    /// Operations that wait for the local store's thread.
    package static let waiting = 1_024
    /// Watches of a plane.
    package static let watches = 64
    /// Leases live at least and at most so long.
    package static let leaseMin = TimeSpan.seconds(1)
    package static let leaseMax = TimeSpan.hours(24)
    /// From the sending of a renewal that failed to the next one, at least.
    package static let leaseRetry = TimeSpan.milliseconds(100)
    /// A repeated commit gives up after its deadline; between two tries it waits this long, doubling.
    package static let repeatFirst = TimeSpan.milliseconds(50)
    package static let repeatMax = TimeSpan.seconds(1)

    /// Members of etcd that may be named.
    package static let endpoints = 16
    /// After a round through all members.
    package static let roundPause = TimeSpan.milliseconds(100)
    /// Before a broken watch is opened again, doubling.
    package static let watchRetryFirst = TimeSpan.milliseconds(100)
    package static let watchRetryMax = TimeSpan.seconds(2)
    /// From the request to etcd's word that the watch is open.
    package static let watchOpening = TimeSpan.seconds(5)
    /// A stream that does not bring what a listing has shown is opened again elsewhere.
    package static let watchGrace = TimeSpan.seconds(2)
    /// Shortest and longest `resync` of a watch.
    package static let resyncMin = TimeSpan.milliseconds(500)
    package static let resyncMax = TimeSpan.hours(1)
    /// All pages of a listing together.
    package static let listingTime = TimeSpan.seconds(30)

    static func allows(_ key: ControlKey) -> Bool { !key.bytes.isEmpty && key.bytes.count <= keyBytes }
}
