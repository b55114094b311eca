// The JSON of `/api/v1/cluster`: one Codable value for each shape in docs/HTTP.md.
import BatonCore

/// `GET /api/v1/cluster`.
package struct ClusterStatusReport: Codable, Sendable {
    package struct Member: Codable, Sendable {
        package var id: String
        package var state: ClusterNodeState
        /// 16 hexadecimal digits; nil for a node on its own, or one that is not registered.
        @Nullable package var incarnation: String?
        /// `peer_address`; nil for a node on its own.
        @Nullable package var address: String?
        @Nullable package var version: String?
        /// Queued messages; nil where the node did not answer.
        @Nullable package var messages: Int?
        /// Of the data directory's file system, 0 to 1; nil where the node did not answer.
        @Nullable package var diskUsedFraction: Double?

        package init(
            id: String, state: ClusterNodeState, incarnation: UInt64? = nil, address: String? = nil,
            version: String? = nil, messages: Int? = nil, diskUsedFraction: Double? = nil
        ) {
            self.id = id
            self.state = state
            self.incarnation = incarnation.map(Self.digits)
            self.address = address
            self.version = version
            self.messages = messages
            self.diskUsedFraction = diskUsedFraction
        }

        /// A number of 64 bits would lose digits in many a JSON reader.
        package static func digits(_ value: UInt64) -> String {
            let text = String(value, radix: 16)
            return String(repeating: "0", count: 16 - text.count) + text
        }
    }

    package struct Segments: Codable, Sendable, Hashable {
        package var open: Int
        package var sealed: Int
        /// With fewer copies than `min_copies`, or a stale one.
        package var underReplicated: Int

        package init(open: Int = 0, sealed: Int = 0, underReplicated: Int = 0) {
            self.open = open
            self.sealed = sealed
            self.underReplicated = underReplicated
        }
    }

    /// Segments of one node that another one takes over.
    package struct Takeover: Codable, Sendable, Hashable {
        /// Whose mail it is.
        package var node: String
        package var incarnation: String
        /// Who takes it.
        package var by: String
        package var segments: Int
        /// Of these, the segments whose mail moves already.
        package var done: Int
        /// RFC 3339.
        package var since: String

        package init(node: String, incarnation: UInt64, by: String, segments: Int, done: Int, since: Instant) {
            self.node = node
            self.incarnation = Member.digits(incarnation)
            self.by = by
            self.segments = segments
            self.done = done
            self.since = TimeText.rfc3339(since)
        }
    }

    /// A node's part of a limit that holds for the cluster.
    package struct Limit: Codable, Sendable, Hashable {
        package var site: String
        /// connections, or rate (messages an hour).
        package var kind: String
        package var node: String
        /// Who hands out the parts; nil where that is not known: then each node keeps to its fixed part.
        @Nullable package var home: String?
        package var limit: Int
        package var share: Int
        package var used: Int

        package init(site: String, kind: String, node: String, home: String?, limit: Int, share: Int, used: Int) {
            self.site = site
            self.kind = kind
            self.node = node
            self.home = home
            self.limit = limit
            self.share = share
            self.used = used
        }
    }

    /// `cluster.name`; nil for a node on its own.
    @Nullable package var name: String?
    package var copies: Int
    package var nodes: [Member]
    package var segments: Segments
    package var takeovers: [Takeover]
    package var limits: [Limit]
    /// Nodes that did not answer.
    package var incomplete: [String]

    package init(
        name: String?, copies: Int, nodes: [Member], segments: Segments = Segments(), takeovers: [Takeover] = [],
        limits: [Limit] = [], incomplete: [String] = []
    ) {
        self.name = name
        self.copies = copies
        self.nodes = nodes
        self.segments = segments
        self.takeovers = takeovers
        self.limits = limits
        self.incomplete = incomplete
    }
}

package enum ClusterNodeState: String, Codable, Sendable {
    case joining
    case serving
    case draining
    case drained
    case dead
}

/// `POST` and `GET /api/v1/cluster/drain`.
package struct ClusterDrainReport: Codable, Sendable {
    package var node: String
    /// draining, drained, or what the node is where it could not be drained.
    package var state: ClusterNodeState
    /// Messages that the node still has.
    package var messages: Int
    /// Messages that other nodes have taken from it.
    package var handedOver: Int
    /// RFC 3339: when what is left is handed over.
    @Nullable package var deadline: String?
    package var exit: Bool
    /// Nothing is left, or it has failed.
    package var done: Bool
    /// Why it cannot end; nil while all is well.
    @Nullable package var problem: String?

    package init(
        node: String, state: ClusterNodeState, messages: Int, handedOver: Int, deadline: Instant?, exit: Bool,
        done: Bool, problem: String? = nil
    ) {
        self.node = node
        self.state = state
        self.messages = messages
        self.handedOver = handedOver
        self.deadline = deadline.map { TimeText.rfc3339($0) }
        self.exit = exit
        self.done = done
        self.problem = problem
    }
}

/// `POST /api/v1/cluster/forget`.
package struct ClusterForgetReport: Codable, Sendable {
    package var node: String
    /// Segments of which a copy was declared lost.
    package var segments: Int
    /// Of these, the segments that no other disk holds: their mail is lost.
    package var lost: Int

    package init(node: String, segments: Int, lost: Int) {
        self.node = node
        self.segments = segments
        self.lost = lost
    }
}

/// `POST /api/v1/cluster/recover-registry`.
package struct ClusterRecoveryReport: Codable, Sendable {
    /// Segments found on the disks, and the keys written.
    package var segments: Int
    package var written: Int
    /// A disk has seen more than the registry says: all keys were written anew, and the nodes go by them.
    package var setBack: Bool
    /// Keys of segments that no disk holds, removed.
    package var removed = 0
    /// What could not be done, one line each: it has to be run again.
    package var problems: [String]
    /// Nodes whose disks could not be asked.
    package var incomplete: [String]

    package init(
        segments: Int, written: Int, problems: [String] = [], incomplete: [String] = [], setBack: Bool = false
    ) {
        self.segments = segments
        self.written = written
        self.problems = problems
        self.incomplete = incomplete
        self.setBack = setBack
    }
}
