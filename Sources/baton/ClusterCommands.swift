// `baton cluster …`: the cluster as one node sees it, and the operator's acts on it.
import ArgumentParser
import BatonNode
import Foundation

struct Cluster: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Look at the cluster and act on it, through any of its nodes.",
        subcommands: [Status.self, Drain.self, Forget.self, RecoverRegistry.self])

    struct Status: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Show the nodes, segments, take-overs and limits of the cluster.")
        @OptionGroup var options: AdminOptions

        func run() throws {
            let data = try options.asking { try $0.get("/api/v1/cluster") }
            if options.json { return Output.line(String(decoding: data, as: UTF8.self)) }
            try options.asking { _ in
                Output.line(ClusterText.status(try AdminClient.decode(ClusterStatusReport.self, from: data)))
            }
        }
    }

    struct Drain: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Take a node out in order: no new mail, deliver until the deadline, hand over the rest.",
            discussion: "Shows progress until the node is drained. The drain goes on when this command is interrupted.")

        @Argument(help: "The node's id; default: the node addressed.") var node: String?
        @Option(name: .long, help: "When what is left is handed over, such as 0s or 10m; default: 10m.")
        var deadline: String?
        @Flag(name: .long, help: "The node exits, with 0, once it is drained.") var exit = false
        @OptionGroup var options: AdminOptions

        /// Polls that may fail one after the other.
        static let patience = 10

        func validate() throws {
            guard let deadline else { return }
            guard ClusterText.isDeadline(deadline) else {
                throw ValidationError("--deadline is a duration such as 0s or 10m, at most 24h")
            }
        }

        func run() throws {
            var members: [String: Any] = [:]
            if let node { members["node"] = node }
            if let deadline { members["deadline"] = deadline }
            if exit { members["exit"] = true }
            let body = try JSONSerialization.data(withJSONObject: members, options: [.sortedKeys])
            try options.asking { client in
                var data = try client.post("/api/v1/cluster/drain", json: body)
                var report = try AdminClient.decode(ClusterDrainReport.self, from: data)
                var shown = ""
                var failures = 0
                while !report.done {
                    let line = ClusterText.drain(report)
                    if line != shown { Output.error(line) }
                    shown = line
                    usleep(500_000)
                    do throws(AdminClient.Failure) {
                        data = try client.get("/api/v1/cluster/drain", query: [("node", report.node)])
                        report = try AdminClient.decode(ClusterDrainReport.self, from: data)
                        failures = 0
                    } catch {
                        failures += 1
                        if failures < Self.patience { continue }
                        throw CommandFailure(
                            code: 1,
                            text: "lost sight of the drain of \(LogEscape.plain(report.node)), which goes on: \(error)")
                    }
                }
                if report.problem != nil || report.state != .drained {
                    throw CommandFailure(code: 1, text: ClusterText.drain(report))
                }
                Output.line(options.json ? String(decoding: data, as: UTF8.self) : ClusterText.drain(report))
            }
        }
    }

    struct Forget: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Declare all copies on a dead node lost.",
            discussion: "For a node whose disk will not come back. Mail of which no other copy exists is lost with it.")
        @Argument(help: "The node's id.") var node: String
        @OptionGroup var options: AdminOptions

        func run() throws {
            let body = try JSONSerialization.data(withJSONObject: ["node": node])
            try options.asking { client in
                let data = try client.post("/api/v1/cluster/forget", json: body)
                let report = try AdminClient.decode(ClusterForgetReport.self, from: data)
                Output.line(options.json ? String(decoding: data, as: UTF8.self) : ClusterText.forget(report))
            }
        }
    }

    struct RecoverRegistry: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "recover-registry",
            abstract: "Rebuild the control plane's segment keys from the disks, after etcd was restored or lost.")
        @OptionGroup var options: AdminOptions

        func run() throws {
            try options.asking { client in
                let data = try client.post("/api/v1/cluster/recover-registry", json: Data("{}".utf8))
                let report = try AdminClient.decode(ClusterRecoveryReport.self, from: data)
                Output.line(options.json ? String(decoding: data, as: UTF8.self) : ClusterText.recovery(report))
                if !report.problems.isEmpty || !report.incomplete.isEmpty {
                    throw CommandFailure(code: 1, text: "the registry is not complete")
                }
            }
        }
    }
}

/// The cluster's reports as text for a terminal.
enum ClusterText {
    static func status(_ report: ClusterStatusReport) -> String {
        let name = report.name.map { "cluster \(LogEscape.plain($0))" } ?? "no cluster"
        var text = "\(name), \(report.nodes.count) node\(report.nodes.count == 1 ? "" : "s"), copies \(report.copies)"
        let head = ["NODE", "STATE", "MESSAGES", "DISK", "ADDRESS", "VERSION", "INCARNATION"]
        let rows = report.nodes.map { node in
            [
                LogEscape.plain(node.id), node.state.rawValue, node.messages.map { "\($0)" } ?? "?",
                node.diskUsedFraction.map { "\(Int(($0 * 100).rounded()))%" } ?? "?",
                LogEscape.plain(node.address ?? "-"), LogEscape.plain(node.version ?? "?"),
                LogEscape.plain(node.incarnation ?? "-"),
            ]
        }
        text += "\n\n" + AdminText.table([head] + rows)
        let segments = report.segments
        text += "\n\nsegments: \(segments.open) open, \(segments.sealed) sealed, "
        text += "\(segments.underReplicated) under-replicated"
        if !report.takeovers.isEmpty {
            let rows = report.takeovers.map { take in
                [
                    LogEscape.plain(take.node), LogEscape.plain(take.by), "\(take.done) of \(take.segments)",
                    LogEscape.plain(take.since),
                ]
            }
            text += "\n\n" + AdminText.table([["TAKE-OVER OF", "BY", "SEGMENTS", "SINCE"]] + rows)
        }
        if !report.limits.isEmpty {
            let rows = report.limits.map { limit in
                [
                    LogEscape.plain(limit.site), LogEscape.plain(limit.kind), "\(limit.limit)",
                    LogEscape.plain(limit.node), "\(limit.share)", "\(limit.used)", LogEscape.plain(limit.home ?? "-"),
                ]
            }
            text += "\n\n" + AdminText.table([["SITE", "LIMIT", "OF", "NODE", "SHARE", "USED", "HOME"]] + rows)
        }
        return text + AdminText.incomplete(report.incomplete)
    }

    static func drain(_ report: ClusterDrainReport) -> String {
        var text = "\(LogEscape.plain(report.node)): \(report.state.rawValue), \(report.messages) messages left"
        if report.handedOver > 0 { text += ", \(report.handedOver) handed over" }
        if !report.done, let deadline = report.deadline {
            text += ", hands over the rest at \(LogEscape.plain(deadline))"
        }
        if let problem = report.problem { text += ": \(LogEscape.plain(problem))" }
        return text
    }

    static func forget(_ report: ClusterForgetReport) -> String {
        "\(LogEscape.plain(report.node)) forgotten: a copy of \(report.segments) segments, "
            + "the last one of \(report.lost) of them"
    }

    static func recovery(_ report: ClusterRecoveryReport) -> String {
        var lines = ["\(report.segments) segments on the disks, \(report.written) keys written"]
        if report.setBack {
            lines[0] += ", \(report.removed) of segments that no disk holds removed"
            lines.append(
                "the registry had been set back"
                    + (report.problems.isEmpty && report.incomplete.isEmpty ? ": all nodes go by it again" : ""))
        }
        lines += report.problems.map { "problem: \(LogEscape.plain($0))" }
        return lines.joined(separator: "\n") + AdminText.incomplete(report.incomplete)
    }

    static func isDeadline(_ text: String) -> Bool { ClusterDrainCommand.deadline(text) != nil }
}
