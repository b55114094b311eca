// `baton cluster recover-registry`: keys of segments made anew from what lies on the disks (CONTRACT "Cluster").
import BatonCluster
import BatonControlPlane
import BatonCore
import BatonModel
import BatonRuntime
import BatonSpool

enum RegistryRecovery {
    /// The name of the question, which no HTTP resource has.
    static let question = "copies"

    /// This disk's part. Throws where it cannot be listed: a registry that lacks a copy is worse than none.
    static func claims(
        of disk: UInt64, _ list: @escaping @Sendable () throws -> [CopyOnDisk]
    ) async throws(ProblemReport) -> [CopyClaim] {
        do {
            return try await RelayNode.blocking(list).map { CopyClaim($0, disk: disk) }
        } catch {
            throw ProblemReport(500, "Internal Server Error", "the copies on this disk cannot be listed: \(error)")
        }
    }

    private static func claims(of relay: RelayNode) async throws(ProblemReport) -> [CopyClaim] {
        let spool = relay.spool
        return try await claims(of: relay.directory.identity.diskID) { try spool.copiesOnDisk() }
    }

    /// The answer to another node's question.
    static func inventory(
        of disk: UInt64, _ list: @escaping @Sendable () throws -> [CopyOnDisk]
    ) async -> (status: Int, json: [UInt8]) {
        do throws(ProblemReport) {
            return (200, ClusterCodec.json(try await claims(of: disk, list)))
        } catch {
            return (error.status, [])
        }
    }

    static func inventory(of relay: RelayNode) async -> (status: Int, json: [UInt8]) {
        let spool = relay.spool
        return await inventory(of: relay.directory.identity.diskID) { try spool.copiesOnDisk() }
    }

    /// Puts the others' answers together.
    ///
    /// - Returns: the nodes of the roster whose disks have not told of themselves. While there is one, no key may be written: a
    ///   segment would be taken over without the copy that is whole, and its key, once there, gets no further members.
    static func gather(_ answers: PeerAnswers, of roster: [String], into merge: inout RegistryMerge) -> [String] {
        var missing = Set(roster).union(answers.missing)
        for answer in answers.answers {
            guard answer.status == 200, let claims: [CopyClaim] = ClusterCodec.decode(answer.json) else {
                missing.insert(answer.node)
                continue
            }
            missing.remove(answer.node)
            merge.add(claims, of: answer.node)
        }
        return missing.sorted()
    }

    /// A key for each segment that lies on a disk and has none.
    static func run(
        _ administration: ClusterAdministration, relay: RelayNode, agent: ControlAgent
    ) async throws -> ClusterRecoveryReport {
        let view: ClusterView
        do {
            view = ClusterView(try await agent.plane.list(agent.paths.all), in: agent.paths)
        } catch {
            throw ProblemReport(503, "Service Unavailable", "the control plane does not answer")
        }
        var merge = RegistryMerge()
        merge.add(try await claims(of: relay), of: administration.node)
        let answers = await administration.ask(
            question, [], nodes: nil, within: ClusterAdminLimits.searchWait)
        let others = view.roster.map(\.id).filter { $0 != administration.node }
        let missing = gather(answers, of: others, into: &merge)
        let known = Set(view.listing.keys.map(\.id))
        let live = Set(view.nodes.compactMap(\.run))
        var report = ClusterRecoveryReport(segments: merge.segments.count, written: 0, incomplete: missing)
        guard missing.isEmpty else { return report }
        for id in merge.segments where !known.contains(id) {
            // Its writer lives: it is being registered at this moment.
            if live.contains(Drainer(node: id.writer, incarnation: id.incarnation)) { continue }
            guard let (key, leftOut) = merge.key(of: id) else { continue }
            let path = agent.paths.segment(id)
            do {
                let commit = try await agent.plane.commit(
                    ControlTransaction(if: [.absent(path)], [.put(path, ClusterCodec.encode(key))]))
                guard case .committed = commit else { continue }
                report.written += 1
                for node in leftOut {
                    report.problems.append("\(SegmentName(id)): the copy on \(node) is shorter and was left out")
                }
            } catch {
                report.problems.append("\(SegmentName(id)): \(error)")
            }
        }
        return report
    }
}
