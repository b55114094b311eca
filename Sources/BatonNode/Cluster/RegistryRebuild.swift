// Which keys a recovery writes, and what nodes say of the registry before it does (docs/decisions/0010). Pure.
import BatonCluster
import BatonCore
import BatonModel
import BatonSpool

/// The answer to `question`: how a node stands to the registry that is there. Numbers of 64 bits are 16 hexadecimal digits.
struct RegistryStanding: Codable, Sendable, Hashable {
    /// No HTTP resource has this name. Its JSON is empty, or a `RegistryEntry`: the number of a registry that another disk distrusts.
    static let question = "registry"

    /// It distrusts what is there.
    var isSetBack: Bool
    /// It has accepted what is there, and works by it.
    var isTrusted: Bool
    /// The recovery number that its disk knows.
    var recovery: String

    init(_ trust: RegistryTrust) {
        self.isSetBack = trust.setBack != nil
        self.isTrusted = trust.isTrusted
        self.recovery = SegmentName.hex(trust.mark?.recovery ?? 0)
    }
}

/// All nodes' standings.
struct RegistryStandings {
    /// The highest number that a disk or the registry knows.
    private(set) var recovery: UInt64
    /// A disk distrusts the registry.
    private(set) var isSetBack = false
    private var believers: Set<String> = []

    init(recovery: UInt64) { self.recovery = recovery }

    mutating func add(_ standing: RegistryStanding, of node: String) {
        recovery = max(recovery, UInt64(standing.recovery, radix: 16) ?? 0)
        if standing.isSetBack { isSetBack = true }
        if standing.isTrusted { believers.insert(node) }
    }

    /// Of the nodes that hold copies, those that go by a registry which others distrust: they have not noticed yet, or cannot.
    func unaware(_ holders: Set<String>) -> [String] { isSetBack ? believers.intersection(holders).sorted() : [] }

    /// Puts the others' answers together; who has not told.
    mutating func gather(_ answers: PeerAnswers, of roster: [String]) -> [String] {
        var missing = Set(roster).union(answers.missing)
        for answer in answers.answers {
            guard answer.status == 200, let standing: RegistryStanding = ClusterCodec.decode(answer.json) else {
                missing.insert(answer.node)
                continue
            }
            missing.remove(answer.node)
            add(standing, of: answer.node)
        }
        return missing.sorted()
    }
}

/// A key to be written.
struct RegistryStep: Hashable {
    var key: SegmentKey
    /// The revision of the key that stands there; 0: none does.
    var replaces: UInt64
    /// Nodes whose copies are left out.
    var leftOut: [String] = []
}

enum RegistryRebuild {
    /// In the order of their segments.
    static func steps(_ merge: RegistryMerge, _ view: ClusterView, isSetBack: Bool) -> [RegistryStep] {
        var known: [SegmentID: SegmentKey] = [:]
        for key in view.listing.keys { known[key.id] = key }
        let live = Set(view.nodes.compactMap(\.run))
        var steps: [RegistryStep] = []
        for id in merge.segments {
            // Its writer lives: it is being registered at this moment.
            if live.contains(Drainer(node: id.writer, incarnation: id.incarnation)) { continue }
            let there = known[id]
            // Finished is final: no older registry says it of what lives.
            if let there, !isSetBack || there.state == .finished { continue }
            guard let (key, leftOut) = merge.key(of: id) else { continue }
            steps.append(RegistryStep(key: key, replaces: there?.revision ?? 0, leftOut: leftOut))
        }
        guard isSetBack else { return steps }
        let found = Set(merge.segments)
        for key in view.listing.keys where key.state != .finished && !found.contains(key.id) {
            if live.contains(Drainer(node: key.id.writer, incarnation: key.id.incarnation)) { continue }
            steps.append(RegistryStep(key: finished(key), replaces: key.revision))
        }
        return steps
    }

    /// Of a segment without a copy on any disk.
    private static func finished(_ key: SegmentKey) -> SegmentKey {
        var gone = key
        if case .sealed(let length) = key.state { gone.finishedLength = length }
        gone.state = .finished
        gone.finishedEpoch = key.drainEpoch
        gone.revision = 0
        return gone
    }
}
