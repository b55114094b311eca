// The spool's facade: what ingress, queue, delivery and the composition root hold.
import BatonCore
import BatonModel
import BatonRuntime
import Logging
import NIOCore

package final class Spool: MessageSubmitting, OutcomeRecording, BodyReading, Sendable {
    /// Locks nothing itself: `directory` holds the lock. Reads identity and registry, takes the old incarnations' segments
    /// over, scans them, decides cleanings. Blocking; not on a loop. Throws only where the directory cannot be written.
    package static func open(
        directory: DataDirectory, configuration: SpoolConfiguration, events: any EventRecording, time: any TimeSource,
        logger: Logger, onFailure: @escaping @Sendable (SpoolFailure) -> Void
    ) throws(SpoolError) -> Spool {
        Spool()
    }

    /// What `open` found.
    package var recovery: RecoverySummary { RecoverySummary() }

    /// Hands over what survived (messages to `jobs`, missing events to `unreported`, in batches on the calling thread), then
    /// opens the lane and starts the threads. Once. Blocking; not on a loop. Submissions before it are refused.
    package func start(jobs: any JobReceiving, unreported: any UnreportedReceiving) throws(SpoolError) {}

    /// New submissions and streams get `.stopping`; what is queued is still written.
    package func stopAccepting() {}

    /// Writes what is queued, seals, syncs outcomes, ends the threads. Blocking; not on a loop. Idempotent.
    package func stop() {}

    /// Any thread; a few microseconds.
    package var stats: SpoolStats { SpoolStats() }

    /// Outcomes on record of a live or final message of a segment that still exists, oldest first; nil if unknown.
    package func history(of message: StoredMessageRef) async -> [Outcome]? { nil }

    // MARK: MessageSubmitting

    package func submit(_ batch: [Submission]) {}
    package func openStream(sink: any SubmissionResultReceiving) -> FragmentStreamID { FragmentStreamID(value: 0) }
    package func append(_ bytes: ByteBuffer, to stream: FragmentStreamID) {}
    package func abandon(_ stream: FragmentStreamID) {}
    package var admission: StorageAdmission { .refused(.stopping) }

    // MARK: OutcomeRecording

    package func record(_ outcomes: [Outcome]) {}

    // MARK: BodyReading

    package func read(_ requests: [BodyRead], for receiver: any BodyReadReceiving) {}
}
