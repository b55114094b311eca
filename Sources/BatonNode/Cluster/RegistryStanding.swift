// What nodes say of the registry before a recovery writes it anew (docs/decisions/0010). Pure.
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
    /// The recovery number that its disk knows.
    var recovery: String

    init(_ trust: RegistryTrust) {
        self.isSetBack = trust.setBack != nil
        self.recovery = SegmentName.hex(trust.mark?.recovery ?? 0)
    }
}

/// All nodes' standings.
struct RegistryStandings {
    /// The highest number that a disk or the registry knows.
    private(set) var recovery: UInt64
    /// A disk distrusts the registry.
    private(set) var isSetBack = false
    private var distrusting: Set<String> = []

    init(recovery: UInt64) { self.recovery = recovery }

    mutating func add(_ standing: RegistryStanding, of node: String) {
        recovery = max(recovery, UInt64(standing.recovery, radix: 16) ?? 0)
        if standing.isSetBack {
            isSetBack = true
            distrusting.insert(node)
        }
    }

    /// Of the nodes that hold copies, those that go by a registry which others distrust, or have not looked at it yet.
    func unaware(_ holders: Set<String>) -> [String] { isSetBack ? holders.subtracting(distrusting).sorted() : [] }

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
