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

    /// This node's standing, for another's recovery. With the number of a registry that another disk distrusts, a node that goes by it
    /// begins anew and distrusts it, too: what one disk has seen counts for all.
    static func standing(_ json: [UInt8], agent: ControlAgent) -> (status: Int, json: [UInt8]) {
        let standing = RegistryStanding(agent.trust)
        if let told: RegistryEntry = ClusterCodec.decode(json), let number = told.number {
            agent.refuse(recovery: number)
        }
        return (200, ClusterCodec.json(standing))
    }

    /// A key for each segment that lies on a disk and has none; where the registry was set back, for each that lies on a disk, and
    /// then the number that makes all nodes go by it (docs/decisions/0010).
    ///
    /// First how the nodes stand to it, then what they hold, then what it says: a node that distrusted it when it was asked has
    /// nothing of its own that is not on its disk by then, whatever it does meanwhile.
    static func run(
        _ administration: ClusterAdministration, relay: RelayNode, agent: ControlAgent
    ) async throws -> ClusterRecoveryReport {
        let before = try await view(agent)
        let others = before.roster.map(\.id).filter { $0 != administration.node }
        let wait = ClusterAdminLimits.searchWait
        var standings = RegistryStandings(recovery: before.recovery)
        standings.add(RegistryStanding(agent.trust), of: administration.node)
        let told = await administration.ask(RegistryStanding.question, [], nodes: nil, within: wait)
        var missing = Set(standings.gather(told, of: others))
        var merge = RegistryMerge()
        merge.add(try await claims(of: relay), of: administration.node)
        let answers = await administration.ask(question, [], nodes: nil, within: wait)
        missing.formUnion(gather(answers, of: others, into: &merge))
        var report = ClusterRecoveryReport(
            segments: merge.segments.count, written: 0, incomplete: missing.sorted(), setBack: standings.isSetBack)
        guard missing.isEmpty else { return report }
        let unaware = standings.unaware(merge.nodes)
        guard unaware.isEmpty else {
            await tell(unaware, standings, administration, agent)
            for node in unaware {
                report.problems.append("\(node) went by the registry as it is, and starts anew: ask again in 15 s")
            }
            return report
        }
        let view = try await view(agent)
        let unasked = Set(view.roster.map(\.id)).subtracting(others).subtracting([administration.node])
        guard unasked.isEmpty else {
            report.incomplete = unasked.sorted()
            return report
        }
        let steps = RegistryRebuild.steps(
            merge, over: view.listing.keys, live: Set(view.nodes.compactMap(\.run)), isSetBack: standings.isSetBack)
        await perform(steps, agent, &report)
        if standings.isSetBack, report.problems.isEmpty { await finish(view, standings.recovery, agent, &report) }
        return report
    }

    private static func view(_ agent: ControlAgent) async throws -> ClusterView {
        do {
            return ClusterView(try await agent.plane.list(agent.paths.all), in: agent.paths)
        } catch {
            throw ProblemReport(503, "Service Unavailable", "the control plane does not answer")
        }
    }

    private static func tell(
        _ unaware: [String], _ standings: RegistryStandings, _ administration: ClusterAdministration,
        _ agent: ControlAgent
    ) async {
        let nodes = unaware.filter { $0 != administration.node }
        if !nodes.isEmpty {
            let json = ClusterCodec.json(RegistryEntry(recovery: standings.recovery))
            _ = await administration.ask(
                RegistryStanding.question, json, nodes: nodes, within: ClusterAdminLimits.searchWait)
        }
        if nodes.count < unaware.count { agent.refuse(recovery: standings.recovery) }
    }

    private static func perform(
        _ steps: [RegistryStep], _ agent: ControlAgent, _ report: inout ClusterRecoveryReport
    ) async {
        for step in steps {
            let path = agent.paths.segment(step.id)
            let asRead: ControlComparison =
                step.replaces == 0 ? .absent(path) : .modified(path, at: ControlRevision(clamping: step.replaces))
            let write: ControlWrite =
                switch step {
                case .write(let key, _): .put(path, ClusterCodec.encode(key))
                case .remove: .delete(path)
                }
            do {
                let commit = try await agent.plane.commit(ControlTransaction(if: [asRead], [write]))
                guard case .committed = commit else {
                    // Somebody else has written it meanwhile; where all of them halt, that was another recovery.
                    if report.setBack { report.problems.append("\(SegmentName(step.id)): its key changes") }
                    continue
                }
                switch step {
                case .write: report.written += 1
                case .remove: report.removed += 1
                }
            } catch {
                report.problems.append("\(SegmentName(step.id)): \(error)")
            }
        }
    }

    /// Last of all: whoever reads it goes by what was written.
    private static func finish(
        _ view: ClusterView, _ recovery: UInt64, _ agent: ControlAgent, _ report: inout ClusterRecoveryReport
    ) async {
        let path = agent.paths.registry
        let asRead: ControlComparison =
            view.recoveryRevision == 0 ? .absent(path) : .modified(path, at: view.recoveryRevision)
        do {
            let entry = ClusterCodec.json(RegistryEntry(recovery: recovery &+ 1))
            let commit = try await agent.plane.commit(ControlTransaction(if: [asRead], [.put(path, entry)]))
            guard case .committed = commit else {
                return report.problems.append("another recovery has ended at the same time")
            }
        } catch {
            report.problems.append("the nodes were not told that the registry is whole: \(error)")
        }
    }
}
