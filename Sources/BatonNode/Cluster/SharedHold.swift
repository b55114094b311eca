// Operators' suspensions and bounces for the whole cluster: what stands in the control plane, and how a node follows it.
import BatonCore
import BatonModel

/// A suspension or a bounce that every node applies, one that was away or takes mail over as well.
package struct SharedHold: Codable, Hashable, Sendable {
    package enum Kind: String, Codable, Sendable {
        case suspend
        case bounce
    }

    /// 32 hexadecimal digits, drawn by the node that was asked; never used again.
    package let id: String
    package let kind: Kind
    /// The selector in two words, as `AdminSelector.text` has it.
    let what: String
    let value: String
    /// Nanoseconds since the epoch, by the clock of the node that was asked.
    let madeAt: Int64
    /// End of a suspension; nil: until `resume`.
    let untilAt: Int64?
    /// Of a `bounce`.
    package let reason: String
    package let report: Bool

    init(
        id: String, kind: Kind, selector: AdminSelector, made: Instant, until: Instant? = nil, reason: String = "",
        report: Bool = false
    ) {
        self.id = id
        self.kind = kind
        (self.what, self.value) = selector.text
        self.madeAt = made.nanoseconds
        self.untilAt = until?.nanoseconds
        self.reason = reason
        self.report = report
    }

    /// Nil where a later version wrote what this one does not know.
    var selector: AdminSelector? { AdminSelector(what, value) }
    package var until: Instant? { untilAt.map { Instant(nanoseconds: $0) } }

    /// Mail that arrived later is not bounced, however late the bounce reaches it.
    package var cutoff: Instant { Instant(nanoseconds: madeAt) }

    /// Below `/baton/<cluster>/holds/`: one for each selector's suspension, one for each bounce. At most 40 octets.
    package var key: String {
        switch kind {
        case .suspend: Self.suspensionKey(what, value)
        case .bounce: "bounce/\(id)"
        }
    }

    static func suspensionKey(_ selector: AdminSelector) -> String {
        let (what, value) = selector.text
        return suspensionKey(what, value)
    }

    private static func suspensionKey(_ what: String, _ value: String) -> String {
        "suspend/" + ClusterStatusReport.Member.digits(StableHash.of(Array("\(what):\(value)".utf8)))
    }

    /// Nothing holds by it any more: the key may go. A bounce is kept while mail from before it may still turn up on a disk
    /// that was away.
    package func isOver(at now: Instant) -> Bool {
        switch kind {
        case .suspend: until.map { $0 <= now } ?? false
        case .bounce: cutoff + SharedHoldLimits.bounceKept <= now
        }
    }
}

/// All of them as the control plane has them, read linearizably.
package struct SharedHolds: Sendable {
    package var revision: UInt64
    package var holds: [SharedHold]

    package init(revision: UInt64, holds: [SharedHold]) {
        self.revision = revision
        self.holds = holds
    }
}

/// The control plane's keys below `/baton/<cluster>/holds/`. Each call ends within some seconds; throws where the control plane
/// did not answer or refused (the outcome may be unknown). Values that cannot be read are left out of `all`, with a log line.
package protocol HoldSharing: Sendable {
    /// Writes `hold` as JSON under `hold.key`, whatever stands there; answers the revision of that change.
    func put(_ hold: SharedHold) async throws -> UInt64
    /// Removes those of the keys that are there; answers a revision at which none of them was there.
    func remove(_ keys: [String]) async throws -> UInt64
    func all() async throws -> SharedHolds
    /// Removes those of the holds that still stand there as they are given: another one under the same key stays.
    func removeOver(_ holds: [SharedHold]) async throws
}

package enum SharedHoldLimits {
    /// In the control plane; a further one is refused. As many as a node keeps (`QueueLimits.holds`).
    package static let holds = 1_000
    /// How long a bounce stays in the control plane.
    package static let bounceKept = TimeSpan.days(7)
}

/// Which of the suspensions in force here are the cluster's, and what has to be done to follow the control plane. Pure.
///
/// A suspension without a mark is this node's own (`scope=node`, or made while the control plane did not answer): only the
/// operator ends it. A snapshot older than a change that was already applied is ignored, so that a slow read neither ends a
/// suspension that came meanwhile nor brings one back.
struct HoldBook: Sendable {
    enum Step: Hashable, Sendable {
        case suspend(SharedHold)
        /// Exactly this one, not what else is suspended under `all`.
        case resume(AdminSelector)
        case bounce(SharedHold)
    }

    /// By selector: the id of the cluster's suspension.
    private(set) var marks: [AdminSelector: String] = [:]
    /// The latest change of the control plane that was applied by this process.
    private(set) var revision: UInt64 = 0
    /// Bounces that were applied by this process.
    private(set) var bounced: Set<String> = []

    /// From the node's file, at its start.
    init(marks: [AdminSelector: String] = [:]) {
        self.marks = marks
    }

    /// `hold` is applied here. `revision`: of its key.
    mutating func applied(_ hold: SharedHold, at revision: UInt64?) {
        self.revision = max(self.revision, revision ?? 0)
        switch hold.kind {
        case .suspend: if let selector = hold.selector { marks[selector] = hold.id }
        case .bounce: bounced.insert(hold.id)
        }
    }

    /// The operator suspended or resumed here without the control plane (revision nil), or resumed everywhere.
    mutating func forgotten(_ selector: AdminSelector, at revision: UInt64? = nil, everything: Bool = false) {
        self.revision = max(self.revision, revision ?? 0)
        if everything { marks = [:] } else { marks[selector] = nil }
    }

    /// What to do so that this node follows `shared`. Resumptions come last, so that mail which a new suspension holds does not
    /// slip out between the two. `again`: mail has come that earlier bounces have not
    /// met (a start, a take-over), so all of them are due.
    func steps(toward shared: SharedHolds, at now: Instant, again: Bool) -> [Step] {
        guard shared.revision >= revision else { return [] }
        var steps: [Step] = []
        var wanted: Set<AdminSelector> = []
        for hold in shared.holds.sorted(by: { ($0.madeAt, $0.id) < ($1.madeAt, $1.id) }) where !hold.isOver(at: now) {
            guard let selector = hold.selector else { continue }
            switch hold.kind {
            case .suspend:
                wanted.insert(selector)
                if marks[selector] != hold.id { steps.append(.suspend(hold)) }
            case .bounce: if again || !bounced.contains(hold.id) { steps.append(.bounce(hold)) }
            }
        }
        let ended = marks.filter { !wanted.contains($0.key) }.sorted { $0.value < $1.value }
        return steps + ended.map { .resume($0.key) }
    }

    /// A snapshot that was followed.
    mutating func followed(_ shared: SharedHolds) {
        revision = max(revision, shared.revision)
        let there = Set(shared.holds.lazy.filter { $0.kind == .bounce }.map(\.id))
        bounced.formIntersection(there)
    }
}

extension AdminSelector {
    /// Two words that stand for it on disk and in the control plane.
    var text: (what: String, value: String) {
        switch self {
        case .message(let id): ("message", id.description)
        case .domain(let domain): ("domain", domain.description)
        case .site(let name): ("site", name)
        case .sender(let address): ("sender", address.description)
        case .nullSender: ("sender", "")
        case .senderDomain(let domain): ("sender_domain", domain.description)
        case .all: ("all", "")
        }
    }

    /// Nil for anything but what `text` makes.
    init?(_ what: String, _ value: String) {
        switch what {
        case "message":
            guard let id = MessageID(text: Array(value.utf8)) else { return nil }
            self = .message(id)
        case "domain": self = .domain(Domain(value))
        case "site": self = .site(value)
        case "sender":
            if value.isEmpty {
                self = .nullSender
                return
            }
            guard let address = MailAddress(value) else { return nil }
            self = .sender(address)
        case "sender_domain": self = .senderDomain(Domain(value))
        case "all" where value.isEmpty: self = .all
        default: return nil
        }
    }
}
