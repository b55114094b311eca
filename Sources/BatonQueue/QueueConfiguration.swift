// The queue's settings, its retry schedule and its named bounds.
import BatonCore
import Glibc

/// How long a recipient or a whole destination waits after its n-th failed attempt (CONTRACT `queue.retry`).
///
/// The wait is `first * factor^(n-1)`, capped by `max`, then moved by up to `jitter` of itself either way, so that mail that
/// failed together does not come back together. RFC 5321 4.5.4.1 asks for at least 30 minutes on average, 4-5 days in all.
package struct RetrySchedule: Hashable, Sendable {
    package var first: TimeSpan
    package var factor: Double
    /// Caps the wait before jitter.
    package var max: TimeSpan
    /// A fraction either way, 0 to 1.
    package var jitter: Double

    package init(
        first: TimeSpan = .minutes(5), factor: Double = 2, max: TimeSpan = .hours(4), jitter: Double = 0.2
    ) {
        self.first = first
        self.factor = factor
        self.max = max
        self.jitter = jitter
    }

    /// No wait is shorter, whatever the settings, so that a failing attempt cannot spin.
    package static let waitMin = TimeSpan.milliseconds(10)

    /// The wait after `failures` failed attempts (at least 1), without jitter.
    package func wait(after failures: Int) -> TimeSpan {
        // Powers above this only overflow to infinity, which the cap catches; the bound keeps the argument sane.
        let exponent = Double(Swift.min(Swift.max(failures, 1) - 1, 10_000))
        let scale = pow(factor >= 1 ? factor : 1, exponent)
        let grown = scale.isFinite ? first.multiplied(by: scale) : max
        return Swift.max(Swift.min(grown, max), Self.waitMin)
    }

    /// The same with jitter drawn from `random`.
    package func jittered(after failures: Int, random: inout SplitMix64) -> TimeSpan {
        spread(wait(after: failures), random: &random)
    }

    /// `max` with jitter: the wait after repeated doubt.
    package func longest(random: inout SplitMix64) -> TimeSpan {
        spread(Swift.max(max, Self.waitMin), random: &random)
    }

    private func spread(_ wait: TimeSpan, random: inout SplitMix64) -> TimeSpan {
        let share = jitter.isFinite ? Swift.min(Swift.max(jitter, 0), 1) : 0
        return Swift.max(wait.multiplied(by: 1 + share * (2 * random.unit() - 1)), Self.waitMin)
    }
}

/// What a partition is configured with. `QueuePartition.update` replaces all but `seed` at run time.
package struct QueueConfiguration: Sendable {
    package var retry: RetrySchedule
    /// Age past which a failed attempt is the last (`queue.expire_after`).
    package var expireAfter: TimeSpan
    /// The same for messages that Baton made (`queue.ndr_expire_after`).
    package var reportExpireAfter: TimeSpan
    /// Age at which a recipient without NOTIFY gets a delay notice; nil: never. NOTIFY=DELAY asks for one after this, else
    /// after `QueueLimits.delayNoticeOnRequest`.
    package var delayNoticeAfter: TimeSpan?
    /// Bytes of bodies and envelopes that may stay in memory until their first attempt: this partition's part of
    /// `limits.memory`.
    package var residentBytes: Int
    /// Jobs past which `isFull` tells admission to refuse mail; a destination with mail counts as
    /// `QueueLimits.jobsPerDestination` of them.
    package var jobsMax: Int
    /// Seed of the jitter.
    package var seed: UInt64

    package init(
        retry: RetrySchedule = RetrySchedule(), expireAfter: TimeSpan = .days(5),
        reportExpireAfter: TimeSpan = .days(2), delayNoticeAfter: TimeSpan? = nil,
        residentBytes: Int = 256 * ByteCount.mebi, jobsMax: Int = QueueLimits.jobsMax, seed: UInt64
    ) {
        self.retry = retry
        self.expireAfter = expireAfter
        self.reportExpireAfter = reportExpireAfter
        self.delayNoticeAfter = delayNoticeAfter
        self.residentBytes = residentBytes
        self.jobsMax = jobsMax
        self.seed = seed
    }
}

/// The queue's bounds that are no settings; docs/LIMITS.md says what happens at each.
package enum QueueLimits {
    /// Default of `QueueConfiguration.jobsMax`.
    package static let jobsMax = 10_000_000
    /// Octets of memory that a recipient costs at most, alone in its message: slot 64, message 96, index 8, and the spool's
    /// ledger 12 to 24.
    package static let jobOctets = 192
    /// What a destination with mail costs, in jobs: its record, name, timer, queue of the ready board, and its entries on the
    /// delivery side.
    package static let jobsPerDestination = 4
    /// Messages waiting in the mailbox into the loop before `offer` refuses.
    package static let mailboxMessages = 65_536
    /// Different last replies kept in memory; further ones keep code and status without text.
    package static let replies = 16_384
    /// Destinations without jobs that keep their site and back-off; the longest idle is forgotten beyond it.
    package static let idleDestinations = 10_000
    /// Sites without destinations that keep their name.
    package static let idleSites = 10_000
    /// Holds in force at once; a further `suspend` is refused.
    package static let holds = 1_000
    /// Operations of operators still running, or finished and remembered; a further one is refused, the oldest finished
    /// one forgotten.
    package static let operations = 64
    /// Bounces that are remembered for held copies, which come into the queue later; the oldest is forgotten.
    package static let lateBounces = 64
    /// Longer than a held copy waits for the answer about it (PROTOCOL S6).
    package static let lateBounceKept = TimeSpan.seconds(20)
    /// Wheel entries, list elements or slots that one loop turn works through before it yields.
    package static let slice = 2_048
    /// Recipients handed out by `finalWithoutAttempt` and not settled yet; sweeps and expiries wait beyond it.
    package static let finalsOutstanding = 4_096
    /// Recipients in one `finalWithoutAttempt` or `delayNoticesDue` call.
    package static let finalsPerCall = 256
    /// Slots that one page of `list` looks at.
    package static let listScan = 65_536
    /// Rows of one page of `list` or `summary`.
    package static let pageRows = 1_000
    /// Suspended jobs that one `pull` may set aside before it returns what it has.
    package static let heldPerPull = 1_024
    /// Before a job is offered again whose segment has no permission to send (PROTOCOL P1).
    package static let permissionPause = TimeSpan.milliseconds(200)
    /// Before a job is offered again whose body another node is asked for.
    package static let repairPause = TimeSpan.seconds(1)
    /// In-doubt attempts after which a recipient waits `retry.max` (CONTRACT "Delivery behaviour").
    package static let doubtsBeforeLongWait = 3
    /// When NOTIFY=DELAY gets its notice if `delay_notice_after` is `never`.
    package static let delayNoticeOnRequest = TimeSpan.hours(4)
    /// A destination that got no answer to `routeNeeded` is asked for again.
    package static let routeTimeout = TimeSpan.minutes(2)
    /// What `retry` and `resume` release is spread by this much per job, up to `retry.first`.
    package static let releaseSpreadPerJob = TimeSpan.milliseconds(2)
}
