// `baton cluster recover-registry`: keys of segments made anew from what lies on the disks (CONTRACT "Cluster").
import BatonCluster
import BatonControlPlane
import BatonCore
import BatonModel
import BatonRuntime
import BatonSpool
import Foundation

/// What one disk says of one segment. Nothing is sealed or changed by asking.
struct CopyClaim: Codable, Sendable, Hashable {
    var writer: String
    var incarnation: String
    var index: String
    var disk: String
    /// The highest epoch of a seal or an outcome log here.
    var epoch: UInt64

    var id: SegmentID? {
        guard let writer = UInt64(writer, radix: 16), let run = UInt64(incarnation, radix: 16),
            let index = UInt64(index, radix: 16)
        else { return nil }
        return SegmentID(writer: NodeID(value: writer), incarnation: Incarnation(value: run), index: index)
    }
}

enum RegistryRecovery {
    /// The name of the question, which no HTTP resource has.
    static let question = "copies"

    static func inventory(of relay: RelayNode) async -> [UInt8] { ClusterCodec.json(await claims(of: relay)) }

    private static func claims(of relay: RelayNode) async -> [CopyClaim] {
        let found = try? await RelayNode.blocking { try relay.spool.copiesOnDisk() }
        return (found ?? []).map { copy in
            CopyClaim(
                writer: SegmentName.hex(copy.id.writer.value), incarnation: SegmentName.hex(copy.id.incarnation.value),
                index: SegmentName.hex(copy.id.index), disk: SegmentName.hex(relay.directory.identity.diskID),
                epoch: copy.epoch)
        }
    }

    /// A key for each segment that lies on a disk and has none: open, drained by its writer's old run, at the highest epoch that
    /// any disk knows. A member then takes it over by the ordinary steps, which fix its length and gather its outcomes.
    static func run(
        _ administration: ClusterAdministration, relay: RelayNode, agent: ControlAgent
    ) async throws -> ClusterRecoveryReport {
        let view: ClusterView
        do {
            view = ClusterView(try await agent.plane.list(agent.paths.all), in: agent.paths)
        } catch {
            throw ProblemReport(503, "Service Unavailable", "the control plane does not answer")
        }
        var copies: [SegmentID: (members: [EnsembleMember], epoch: UInt64)] = [:]
        func add(_ claims: [CopyClaim], of node: String) {
            for claim in claims {
                guard let id = claim.id, let disk = UInt64(claim.disk, radix: 16) else { continue }
                var entry = copies[id] ?? ([], 1)
                entry.members.append(EnsembleMember(node: NodeID(name: node), diskID: disk))
                entry.epoch = max(entry.epoch, claim.epoch)
                copies[id] = entry
            }
        }
        add(await claims(of: relay), of: administration.node)
        let answers = await administration.ask(question, [], nodes: nil, within: .seconds(10))
        for answer in answers.answers where answer.status == 200 {
            add(ClusterCodec.decode(answer.json) ?? [], of: answer.node)
        }
        let known = Set(view.listing.keys.map(\.id))
        let live = Set(view.nodes.compactMap(\.run))
        var report = ClusterRecoveryReport(segments: copies.count, written: 0, incomplete: answers.missing)
        for (id, copy) in copies where !known.contains(id) {
            let writer = Drainer(node: id.writer, incarnation: id.incarnation)
            // Its writer lives: it is being registered at this moment.
            if live.contains(writer) { continue }
            var key = SegmentKey(
                id: id, ensemble: copy.members.sorted { $0.node.value < $1.node.value }, drainer: writer)
            key.drainEpoch = copy.epoch
            let path = agent.paths.segment(id)
            do {
                let commit = try await agent.plane.commit(
                    ControlTransaction(if: [.absent(path)], [.put(path, ClusterCodec.encode(key))]))
                if case .committed = commit { report.written += 1 }
            } catch {
                report.problems.append("\(SegmentName(id)): \(error)")
            }
        }
        return report
    }
}
