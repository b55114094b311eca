// What `baton spool inspect` prints: the spool's report of a data directory as text or JSON, and the exit code.
import BatonRuntime
import BatonSpool
import Foundation

/// Offline and read-only. Blocking.
package enum SpoolInspection {
    /// What to print, and the exit code: 0 all readable, 65 something is damaged or missing.
    package struct Answer: Sendable {
        package let text: String
        package let code: Int32
    }

    /// Throws `NodeError` with code 66 where there is no directory to look into.
    package static func inspect(_ path: String, json: Bool) throws -> Answer {
        let report: SpoolReport
        do throws(DiskError) {
            report = try SpoolInspector.inspect(path, disk: LinuxDisk())
        } catch {
            throw NodeError(
                "\(path) cannot be read: \(String(cString: strerror(error.errno)))", exitCode: 66)
        }
        return Answer(text: json ? try encode(report) : text(report), code: report.healthy ? 0 : 65)
    }

    static func encode(_ report: SpoolReport) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        encoder.keyEncodingStrategy = .convertToSnakeCase
        return String(decoding: try encoder.encode(report), as: UTF8.self)
    }

    // MARK: Text

    static func text(_ report: SpoolReport) -> String {
        var lines = ["data directory \(LogEscape.plain(report.directory))"]
        if let identity = report.identity {
            let cluster = identity.cluster.isEmpty ? "" : " of cluster \(LogEscape.plain(identity.cluster))"
            lines.append("node \(LogEscape.plain(identity.node))\(cluster), disk \(identity.diskID)")
        }
        if let incarnation = report.incarnation { lines.append("incarnation \(incarnation)") }
        if let registry = report.registry {
            lines.append("registry \(registry.id), revision \(registry.revision), \(registry.keys) segments")
        }
        for segment in report.segments { lines += [""] + text(segment) }
        let totals = report.totals
        lines.append("")
        lines.append(
            "total: \(totals.segments) segments, \(totals.messages) messages, \(totals.live) live "
                + "(\(totals.liveRecipients) recipients), \(totals.final) final, \(totals.bytes) bytes in "
                + "\(totals.fileBytes), outcome logs \(totals.logBytes), spare files \(totals.spares) "
                + "(\(totals.spareBytes)), reserve \(totals.reserveBytes)")
        if totals.tornBytes > 0 { lines.append("unfinished at the end of segments: \(totals.tornBytes) bytes") }
        if totals.damagedBytes > 0 { lines.append("damaged: \(totals.damagedBytes) bytes") }
        for problem in report.problems { lines.append("problem: \(LogEscape.plain(problem))") }
        lines.append(report.healthy ? "all readable" : "NOT all readable")
        return lines.joined(separator: "\n")
    }

    private static func text(_ segment: SpoolReport.Segment) -> [String] {
        var head = "segment \(segment.name)  \(segment.state)"
        if let end = segment.sealedAt { head += " at \(end)" }
        if let append = segment.appendEpoch, let drain = segment.drainEpoch {
            head += "  append epoch \(append), drain epoch \(drain)"
        }
        var lines = [
            head,
            "  chunks \(segment.chunks)  messages \(segment.messages)  live \(segment.live) "
                + "(\(segment.liveRecipients) recipients)  final \(segment.final)  bytes \(segment.bytes) of "
                + "\(segment.fileBytes)  outcomes \(segment.outcomes) (\(segment.logBytes) bytes)",
        ]
        if segment.held + segment.void > 0 {
            lines.append("  copies of cleanings: held \(segment.held), void \(segment.void)")
        }
        if let target = segment.target { lines.append("  being cleaned into \(target)") }
        if let at = segment.tornAt { lines.append("  unfinished chunk at \(at), \(segment.tornBytes) bytes") }
        for damage in segment.damage { lines.append("  DAMAGE at \(damage.from)..<\(damage.to): \(damage.what)") }
        for problem in segment.problems { lines.append("  problem: \(problem)") }
        return lines
    }
}
