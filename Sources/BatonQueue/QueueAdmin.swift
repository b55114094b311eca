// The queue as operators see it: selectors, rows and progress.
import BatonCore
import BatonModel

/// Which mail an operator's verb means. Nothing is implied: `.all` has to be said.
package enum QueueSelector: Hashable, Sendable {
    case message(MessageID)
    case domain(Domain)
    /// A site by the name that the delivery side gave it.
    case site([UInt8])
    /// An envelope sender, domain compared without case, local part with case. Nil is the null reverse-path.
    case sender(MailAddress?)
    case senderDomain(Domain)
    case all
}

/// A recipient that another node has brought to its end (PROTOCOL T5).
package struct EndedElsewhere: Hashable, Sendable {
    package let id: MessageID
    package let job: JobRef

    package init(id: MessageID, job: JobRef) {
        self.id = id
        self.job = job
    }
}

/// A recipient's state in words of the contract.
package enum QueueJobState: UInt8, Sendable {
    case ready
    case deferred
    case suspended
    case inFlight
    /// Its stored body is damaged: never sent, waits for an operator.
    case damaged

    package var name: String {
        switch self {
        case .ready: "ready"
        case .deferred: "deferred"
        case .suspended: "suspended"
        case .inFlight: "in_flight"
        case .damaged: "damaged"
        }
    }
}

/// Jobs by state.
package struct QueueTotals: Hashable, Sendable {
    package var ready = 0
    package var deferred = 0
    package var suspended = 0
    /// Being attempted, or ended and not yet settled.
    package var inFlight = 0
    package var damaged = 0

    package init() {}

    package var all: Int { ready + deferred + suspended + inFlight + damaged }

    package static func += (left: inout QueueTotals, right: QueueTotals) {
        left.ready += right.ready
        left.deferred += right.deferred
        left.suspended += right.suspended
        left.inFlight += right.inFlight
        left.damaged += right.damaged
    }
}

/// One site, or one destination that has none yet (then `name` is its domain).
package struct QueueSiteRow: Sendable {
    package let name: [UInt8]
    package let domains: Int
    package let totals: QueueTotals
    package let oldestArrival: Instant
    package let lastReply: SMTPReply?
}

package struct QueueSummary: Sendable {
    package let totals: QueueTotals
    package let rows: [QueueSiteRow]
    /// Give it back for the next page; nil at the end.
    package let next: UInt64?
}

/// What `list` shows; nil fields do not restrict.
package struct QueueFilter: Sendable {
    package var domain: Domain?
    package var site: [UInt8]?
    package var sender: MailAddress?
    /// Mail with the null reverse-path alone; `sender` is nil then.
    package var nullSender: Bool
    package var senderDomain: Domain?
    package var state: QueueJobState?

    package init(
        domain: Domain? = nil, site: [UInt8]? = nil, sender: MailAddress? = nil, nullSender: Bool = false,
        senderDomain: Domain? = nil, state: QueueJobState? = nil
    ) {
        self.domain = domain
        self.site = site
        self.sender = sender
        self.nullSender = nullSender
        self.senderDomain = senderDomain
        self.state = state
    }
}

/// One queued recipient. Its address is in the envelope: here while resident, else read back by `ref`.
package struct QueueRow: Sendable {
    package let message: MessageID
    package let ref: StoredMessageRef
    /// Index in `Envelope.recipients`.
    package let recipient: UInt32
    package let envelope: Envelope?
    package let domain: Domain
    /// Empty without a site.
    package let site: [UInt8]
    package let state: QueueJobState
    package let attempts: UInt16
    package let arrival: Instant
    /// When it is tried next; nil while ready, in flight or damaged. Of a suspended one: when it expires.
    package let due: Instant?
    package let lastReply: SMTPReply?
}

package struct QueuePage: Sendable {
    package let rows: [QueueRow]
    /// Give it back for the next page, which may follow an empty one; nil at the end.
    package let next: UInt64?
}

/// A suspension in force.
package struct QueueHold: Sendable {
    package let selector: QueueSelector
    /// Nil: until `resume`.
    package let until: Instant?

    package init(selector: QueueSelector, until: Instant?) {
        self.selector = selector
        self.until = until
    }
}

package enum OperatorVerb: UInt8, Sendable {
    case retry
    case bounce
    case suspend
    case resume
}

/// How far an operator's verb has come. Those over many jobs go on in slices after the call returned.
package struct OperationProgress: Sendable {
    package let id: UInt64
    package let verb: OperatorVerb
    /// Recipients changed so far.
    package let count: Int
    /// Recipients left alone because an attempt is under way.
    package let inFlight: Int
    package let done: Bool
}

/// Why a verb was not begun.
package enum OperationRefusal: Error, Sendable {
    /// `QueueLimits.holds` suspensions are in force.
    case tooManyHolds
    /// `QueueLimits.operations` operations are running.
    case tooManyOperations
}
