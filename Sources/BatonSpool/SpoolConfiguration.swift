// What an operator sets about the spool, and the spool's own named bounds.
import BatonCore
import BatonRuntime

/// `spool:` of the configuration, validated by BatonNode, with its defaults.
package struct SpoolConfiguration: Sendable {
    package enum Compression: String, Sendable {
        /// Never.
        case off
        /// Sampled, used where it pays (`CompressionPolicy`).
        case auto
        /// Every body of at least `SpoolLimits.compressionFloor`.
        case on
    }

    /// Bytes at which a segment is rolled (`spool.segment_size`).
    package var segmentSize = 64 * ByteCount.mebi
    /// False skips every fdatasync of mail: for benchmarks only, said in the banner and in metrics (`spool.sync`).
    package var sync = true
    package var compression = Compression.auto
    /// Free bytes below which new mail is refused with 452 (`spool.min_free`).
    package var minFree: UInt64 = 2 * UInt64(ByteCount.gibi)
    /// A non-empty segment is rolled at this age.
    package var segmentAge = TimeSpan.minutes(5)
    /// Outcomes are fdatasync'ed within this time of being written.
    package var outcomeSyncInterval = TimeSpan.seconds(1)
    /// A segment is cleaned only when it is older than this, or when the spool holds more than `cleaningBudget`.
    package var cleaningAge = TimeSpan.hours(4)
    package var cleaningBudget = Int64(16) * Int64(ByteCount.gibi)
    /// Whether reclaimed segment files are kept, pre-written, for the next segments.
    package var recycle = true
    /// Threads that read bodies back.
    package var readerThreads = 1

    package init() {}
}

/// The spool's bounds (docs/LIMITS.md, "Spool").
package enum SpoolLimits {
    /// Submissions and fragments waiting for the writer; past it `.overloaded`.
    package static let waitingItems = 16_384
    /// Bytes of bodies waiting for the writer; past it `.overloaded`.
    package static let waitingBytes = 64 * ByteCount.mebi
    /// Rolled segments kept open for unfinished fragment streams; past it the oldest one's streams are refused.
    package static let lingeringSegments = 32
    /// An open segment without a successor may outgrow its size up to this; past it mail is refused.
    package static let segmentBytesMax = Int64(4) * Int64(ByteCount.gibi)
    /// Pre-written segment files kept for reuse.
    package static let spareSegments = 4
    /// Reads waiting for a reader thread; past it `.failed(errno: EAGAIN)`.
    package static let waitingReads = 8_192
    /// Segment files that a reader keeps open.
    package static let openReadFiles = 64
    /// Outcomes are written once so many wait, or so long after the first: what came in that time is repeated after a crash.
    /// Half the dots that a cluster allows a site unsettled, so that a window that is full never waits for the time to pass.
    package static let outcomeGathering = Gathering(count: 16, span: .milliseconds(10))
    /// Outcome logs kept open; clean ones past it are closed.
    package static let openOutcomeFiles = 128
    /// Dirty outcome logs above which one syncfs replaces their fdatasyncs.
    package static let dirtyOutcomeFiles = 8
    /// Bytes of outcomes that wait in memory while the disk refuses them; past it the oldest are dropped, loudly, and their
    /// segment is never reclaimed by this process.
    package static let refusedOutcomeBytes = 64 * ByteCount.mebi
    /// Bytes kept aside so that outcomes can be written to a full disk.
    package static let reserveBytes = Int64(16) * Int64(ByteCount.mebi)
    /// Bodies below this are never compressed (bytes).
    package static let compressionFloor = 16 * ByteCount.kibi
    /// Messages that recovery hands over in one call.
    package static let recoveryBatch = 256
    /// Live bytes of a segment, in percent of what it holds, below which it is worth cleaning.
    package static let cleaningLivePercent = 25
    /// Messages that one cleaning moves: half of `waitingItems`, so that mail goes on meanwhile.
    package static let cleaningMessages = 8_192
    /// Cleanings of a segment that may come to nothing; then it is left alone until the next start.
    package static let cleaningAttempts = 3
    /// Between two cleanings while the spool is within its budget, and after one that came to nothing.
    package static let cleaningPause = TimeSpan.seconds(60)
    /// No segment is cleaned before this age, whatever the budget.
    package static let cleaningAgeMin = TimeSpan.seconds(60)
    /// Segments that a keeper offers to the cluster for a cleaning at a time.
    package static let cleaningOffers = 16
    /// Reads of a source's key by a taker whose change of it found another one, before the takeover is tried again.
    package static let moveReads = 4
    /// Largest envelope block of a chunk (bytes): one envelope of `Limits.envelopeBytes` with its moved progress.
    package static let envelopeBlockBytes = 2 * Limits.envelopeBytes
    /// Largest body block of a chunk (bytes).
    package static let bodyBlockBytes = 16 * ByteCount.mebi
    /// Fragments of one message: 4 GiB of body.
    package static let fragmentsPerMessage = 16_384
    /// Messages of which reports were found in adopted segments; the oldest are forgotten.
    package static let adoptedSubjects = 100_000
    /// Repairs of one chunk that may not last; then its messages are quarantined until the next start.
    package static let chunkRepairs = 3
    /// Segments that a registry file may name.
    package static let registrySegments = 1_000_000
}
