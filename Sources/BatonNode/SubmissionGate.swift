// What stands between the ingress and the spool: the node-wide reasons to refuse new mail.
import BatonCore
import BatonModel
import BatonQueue
import NIOCore
import Synchronization

/// `MessageSubmitting` for the ingress: passes everything on to the spool, and refuses MAIL where the event disk or the
/// queue is full or the node is stopping. Any thread.
final class SubmissionGate: MessageSubmitting {
    private let spool: any MessageSubmitting
    private let events: any EventRecording
    private let partitions: [QueuePartition]
    private let stopping = Atomic<Bool>(false)

    init(spool: any MessageSubmitting, events: any EventRecording, partitions: [QueuePartition]) {
        self.spool = spool
        self.events = events
        self.partitions = partitions
    }

    func stopAccepting() { stopping.store(true, ordering: .releasing) }

    var admission: StorageAdmission {
        if stopping.load(ordering: .acquiring) { return .refused(.stopping) }
        if events.isFull { return .refused(.diskFull) }
        if partitions.contains(where: \.isFull) { return .refused(.overloaded) }
        return spool.admission
    }

    func submit(_ batch: [Submission]) { spool.submit(batch) }
    func openStream(sink: any SubmissionResultReceiving) -> FragmentStreamID { spool.openStream(sink: sink) }
    func append(_ bytes: ByteBuffer, to stream: FragmentStreamID) { spool.append(bytes, to: stream) }
    func abandon(_ stream: FragmentStreamID) { spool.abandon(stream) }
}
