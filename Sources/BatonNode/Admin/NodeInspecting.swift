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
    /// `scope=node`: this node alone.
    package var nodeOnly = false
    /// What a `suspend` or `bounce` for the cluster put into the control plane: its instants are in force, not `duration`.
    package var shared: SharedHold?
    /// Revision of the control plane at which `shared` was put, or what a `resume` ends was removed; nil for this node alone.
    package var revision: UInt64?
}

/// `POST /api/v1/cluster/drain`.
package struct ClusterDrainCommand: Sendable, Hashable {
    /// Nil: the node addressed.
    package var node: String?
    package var deadline: TimeSpan
    package var exit: Bool

    package init(node: String? = nil, deadline: TimeSpan = ClusterAdminLimits.drainDeadline, exit: Bool = false) {
        self.node = node
        self.deadline = deadline
        self.exit = exit
    }

    /// `0s` to `24h` in the configuration's grammar; nil for anything else.
    package static func deadline(_ text: String) -> TimeSpan? {
        guard let span = try? ConfigurationGrammar.duration(text), span <= ClusterAdminLimits.drainDeadlineMax else {
            return nil
        }
        return span
    }
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
    /// Messages that are not final.
    func storedMessages() async -> Int
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

    func cluster(nodeOnly: Bool) async throws -> ClusterStatusReport
    func drain(_ command: ClusterDrainCommand) async throws -> ClusterDrainReport
    /// Nil node: the node addressed. Nil where no drain of it is known.
    func drainProgress(_ node: String?) async throws -> ClusterDrainReport?
    func forget(_ node: String) async throws -> ClusterForgetReport
    func recoverRegistry() async throws -> ClusterRecoveryReport
}

/// A node on its own.
extension NodeInspecting {
    package func cluster(nodeOnly: Bool) async throws -> ClusterStatusReport {
        let health = await health()
        return ClusterStatusReport(name: nil, copies: health.copies, nodes: [await member(health)])
    }

    package func drain(_ command: ClusterDrainCommand) async throws -> ClusterDrainReport { throw alone }
    package func drainProgress(_ node: String?) async throws -> ClusterDrainReport? { throw alone }
    package func forget(_ node: String) async throws -> ClusterForgetReport { throw alone }
    package func recoverRegistry() async throws -> ClusterRecoveryReport { throw alone }

    private var alone: ProblemReport { ProblemReport(409, "Conflict", "this node is in no cluster") }

    /// This node's row as it knows itself.
    func member(_ health: HealthReport) async -> ClusterStatusReport.Member {
        let state: ClusterNodeState =
            switch health.state {
            case .starting: .joining
            case .serving, .degraded, .failed, .cutOff: .serving
            case .draining: .draining
            }
        return ClusterStatusReport.Member(
            id: health.node, state: state, version: health.version, messages: await storedMessages(),
            diskUsedFraction: health.disk.usedFraction)
    }
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
