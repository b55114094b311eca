// What the admin HTTP asks of the node, as values: the seam that the composition root binds.
import BatonCore
import BatonModel

/// Which mail an operator means. Nothing is implied: `all` has to be said.
package enum AdminSelector: Hashable, Sendable {
    case message(MessageID)
    case domain(Domain)
    case site(String)
    case sender(MailAddress)
    case nullSender
    case senderDomain(Domain)
    case all
}

package enum AdminVerb: String, Sendable, CaseIterable {
    case retry
    case bounce
    case suspend
    case resume
}

package struct AdminCommand: Sendable {
    package let verb: AdminVerb
    package let selector: AdminSelector
    /// `bounce`: what the event and a report say; at most `AdminLimits.reasonOctets`.
    package let reason: String
    /// `bounce`: whether senders get a report.
    package let report: Bool
    /// `suspend`: nil holds until `resume`.
    package let duration: TimeSpan?
}

/// What a listing is restricted to; nil restricts nothing.
package struct AdminFilter: Sendable {
    package var domain: Domain?
    package var site: String?
    package var sender: AdminSender?
    /// ready, deferred or suspended (also in_flight, damaged).
    package var state: String?
    /// Rows of the page, 1 to `AdminLimits.pageRows`.
    package var limit = 100
    /// From the page before; its meaning is the node's.
    package var cursor: String?
    /// `scope=node`: this node alone.
    package var nodeOnly = false
}

package enum AdminSender: Hashable, Sendable {
    case address(MailAddress)
    case domain(Domain)
    case null
}

/// What `GET /api/v1/messages` searches by; exactly one.
package enum MessageSearch: Sendable {
    case recipient(MailAddress)
    case sender(AdminSender)
    /// With or without brackets, as the header has it.
    case messageID(String)
}

/// Answers for the whole node. Called on the admin server's tasks; every method may cross to loops and threads, and has
/// `AdminLimits.requestTimeout` until the client gets 503. Throws `ProblemReport` for what the client is to be told.
package protocol NodeInspecting: Sendable {
    func health() async -> HealthReport
    /// Sites of the queue. `state` is ignored.
    func queue(_ filter: AdminFilter) async throws -> QueueReport
    /// Queued recipients.
    func queuedMessages(_ filter: AdminFilter) async throws -> QueueListReport
    /// Nil for an unknown id. Final messages are known for `events.retention`.
    func message(_ id: MessageID, nodeOnly: Bool) async throws -> MessageReport?
    func messages(_ search: MessageSearch, limit: Int, cursor: String?, nodeOnly: Bool) async throws
        -> MessageListReport
    func perform(_ command: AdminCommand) async throws -> OperationReport
    /// Nil for an id that is unknown or forgotten.
    func operation(_ id: String) async throws -> OperationReport?
}

/// The admin HTTP's bounds (docs/LIMITS.md).
package enum AdminLimits {
    /// Connections at a time; further ones wait in the backlog.
    package static let connections = 64
    /// Octets of one header field, and of all; over it the connection closes with 431.
    package static let headerOctets = 16 * 1024
    package static let headerFields = 100
    /// Octets of a request's body; over it 413.
    package static let bodyOctets = 64 * 1024
    /// Octets of a request's target; over it 414.
    package static let targetOctets = 4096
    /// Rows of a page; more are refused with 400.
    package static let pageRows = 1_000
    /// Octets of `reason`.
    package static let reasonOctets = 512
    /// An idle connection is closed.
    package static let idleTimeout = TimeSpan.seconds(30)
    /// An answer that takes longer becomes 503.
    package static let requestTimeout = TimeSpan.seconds(30)
    /// Octets of an answer that the client reads.
    package static let answerOctets = 64 * 1024 * 1024
}
