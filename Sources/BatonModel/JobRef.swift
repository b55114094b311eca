// Where a message and a recipient's job stand in the spool.

/// A stored message: a segment of this node's ledger and the how many-th envelope in it.
package struct StoredMessageRef: Hashable, Sendable, BitwiseCopyable {
    /// The ledger's handle of a live segment; valid in this process only, never written to disk.
    package let segment: UInt32
    /// Index of the envelope in its segment, from 0.
    package let record: UInt32

    package init(segment: UInt32, record: UInt32) {
        self.segment = segment
        self.record = record
    }

    /// A message that is durable on other nodes and not here.
    package static let elsewhere = StoredMessageRef(segment: .max, record: .max)
}

/// One recipient of a stored message: the unit of scheduling and of outcomes.
package struct JobRef: Hashable, Sendable {
    package let message: StoredMessageRef
    /// Index in `Envelope.recipients`.
    package let recipient: UInt32

    package init(message: StoredMessageRef, recipient: UInt32) {
        self.message = message
        self.recipient = recipient
    }
}
