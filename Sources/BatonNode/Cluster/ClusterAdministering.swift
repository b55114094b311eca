// What the admin side asks of the cluster runtime, as values: the seam that the composition root binds.
import BatonCore

/// One node's answer to a question.
package struct PeerAnswer: Sendable {
    /// `node.id` of who answers.
    package var node: String
    /// As in HTTP.
    package var status: Int
    package var json: [UInt8]

    package init(node: String, status: Int, json: [UInt8]) {
        self.node = node
        self.status = status
        self.json = json
    }
}

/// What became of a question to several nodes.
package struct PeerAnswers: Sendable {
    /// In any order; at most one of a node.
    package var answers: [PeerAnswer]
    /// Nodes that were asked and did not answer in time, or could not be reached.
    package var missing: [String]

    package init(answers: [PeerAnswer] = [], missing: [String] = []) {
        self.answers = answers
        self.missing = missing
    }
}

/// The cluster as operators act on it. Called on the admin server's tasks. Throws `ProblemReport` for what the client is to
/// be told (409 for what the node's state forbids, 404 for an unknown node, 503 without the control plane).
package protocol ClusterAdministering: ClusterHealth {
    /// `node.id` of this node.
    var node: String { get }

    /// What this node knows by itself, at once: all nodes of the registry with their states, the segments as the registry has
    /// them, the take-overs and limits that this node has a part in. `messages` and `disk_used_fraction` of the other nodes may
    /// be nil: the admin side asks them.
    func status() async -> ClusterStatusReport

    /// Takes a node out of the cluster in order. The request is durable before this returns; the same request again changes
    /// deadline and `exit`. `node` may be any node: the runtime passes it on. It keeps answering in state `drained` for
    /// `ClusterAdminLimits.drainedLinger` before it exits, so that whoever follows the drain sees its end.
    func drain(node: String, deadline: TimeSpan, exit: Bool) async throws -> ClusterDrainReport

    /// How far it has come; nil where no drain of this node is known.
    func drainProgress(node: String) async throws -> ClusterDrainReport?

    /// Declares all copies on a node lost. Refused while the node holds its lease.
    func forget(node: String) async throws -> ClusterForgetReport

    /// Rebuilds the control plane's segment keys from the disks of all nodes.
    func recoverRegistry() async throws -> ClusterRecoveryReport

    /// Asks other nodes (nil: every other live one) what `PeerQueries.answer` answers there. Returns once all have answered or
    /// `within` is over. A name is at most `ClusterAdminLimits.nameOctets`, the JSON `queryOctets`, an answer `answerOctets`.
    func ask(_ name: String, _ json: [UInt8], nodes: [String]?, within: TimeSpan) async -> PeerAnswers
}

/// What `/health` needs of the runtime. Cheap, from any thread.
package protocol ClusterHealth: Sendable {
    /// Disks that hold a message when its 250 is sent.
    var copies: Int { get }
    /// False with neither copies nor control plane, or draining: 451 for mail, 503 for `/health`.
    var acceptsMail: Bool { get }
    /// Whether this node is being drained, or is.
    var isDraining: Bool { get }
    /// Why `degraded`; empty when all is well.
    func reasons() -> [String]
    /// What this node takes over, and its part of each limit, as it knows them at once.
    func parts() -> (takeovers: [ClusterStatusReport.Takeover], limits: [ClusterStatusReport.Limit])
}

/// The cluster admin side's bounds (docs/LIMITS.md).
package enum ClusterAdminLimits {
    /// Wait for the other nodes' answers.
    package static let answerWait = TimeSpan.seconds(2)
    /// The same for a search of the event log, which reads files.
    package static let searchWait = TimeSpan.seconds(10)
    /// Time after which a listing over several nodes ends its page.
    package static let listingWait = TimeSpan.seconds(20)
    /// Octets of a question's name, of its JSON, and of an answer; the frames of the peer protocol hold a little more.
    package static let nameOctets = 200
    package static let queryOctets = 62 * ByteCount.kibi
    package static let answerOctets = ByteCount.mebi - 64
    /// Answers of one question that are tried with fewer rows each until they fit.
    package static let fittingTries = 12
    /// Questions for one page of a listing.
    package static let pageQuestions = 64
    /// Default of `drain --deadline`, and the longest one.
    package static let drainDeadline = TimeSpan.minutes(10)
    package static let drainDeadlineMax = TimeSpan.hours(24)
    /// How long a drained node tries to say so before it leaves anyway.
    package static let announceWait = TimeSpan.seconds(5)
    /// How long a drained node goes on answering before it exits.
    package static let drainedLinger = TimeSpan.seconds(3)
    /// Rows of `takeovers` and `limits` in a report; the rest is left out.
    package static let reportRows = 1_000
}
