// Short names in traces.
import BatonCore
import BatonModel
import BatonSpool

@testable import BatonCluster

extension NodeID: CustomStringConvertible {
    public var description: String { "n\(value)" }
}

extension SegmentID: CustomStringConvertible {
    public var description: String { "s\(writer.value).\(incarnation.value % 1000).\(index)" }
}

extension Drainer: CustomStringConvertible {
    public var description: String { "\(node.value).\(incarnation.value % 1000)" }
}

extension EnsembleMember: CustomStringConvertible {
    public var description: String { "m\(node.value)" }
}

extension TimeSpan: CustomStringConvertible {
    public var description: String { "\(seconds)s" }
}

extension MailRecord: CustomStringConvertible {
    public var description: String {
        "mail\(id.low)x\(recipients)" + (firstNumber > 0 ? "from\(firstNumber)" : "") + (hold.map { " \($0)" } ?? "")
    }
}

extension Chunk: CustomStringConvertible {
    public var description: String { "\(segment)[\(start)..<\(end)] \(records)" }
}

extension JobID: CustomStringConvertible {
    public var description: String { "\(index).\(recipient)" }
}

extension JobOutcome: CustomStringConvertible {
    public var description: String { "\(job)=\(outcome)" }
}

extension Dot: CustomStringConvertible {
    public var description: String { "dot \(segment)@\(epoch) \(job) \(mail)" }
}

extension SubmitKey: CustomStringConvertible {
    public var description: String { "submit\(ingress)#\(counter)" }
}

extension ClusterKey: CustomStringConvertible {
    public var description: String {
        "key(\(id) \(ensemble) \(state) drainer \(drainer)@\(drainEpoch) stale \(stale) joining \(joining.map { "\($0)" } ?? "-") target \(target.map { "\($0)" } ?? "-") former \(former) r\(revision))"
    }
}

extension CopyScan: CustomStringConvertible {
    public var description: String {
        "scan(\(end) bad \(tailInvalid) seal \(sealEpoch) log \(logEpoch):\(logCount) \(outcomes))"
    }
}

extension Listing: CustomStringConvertible {
    public var description: String { "listing r\(revision) \(keys.count) keys, \(nodes.map(\.drainer))" }
}
