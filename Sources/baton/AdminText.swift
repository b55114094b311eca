// The admin API's reports as text for a terminal. What peers wrote is escaped.
import BatonNode

enum AdminText {
    /// Columns padded to their widest cell; the last one as it is.
    static func table(_ rows: [[String]]) -> String {
        let columns = rows.map(\.count).max() ?? 0
        let widths = (0..<columns).map { column in rows.map { column < $0.count ? $0[column].count : 0 }.max() ?? 0 }
        return rows.map { row in
            row.enumerated().map { column, cell in
                column == row.count - 1
                    ? cell : cell + String(repeating: " ", count: max(0, widths[column] - cell.count))
            }.joined(separator: "  ")
        }.joined(separator: "\n")
    }

    static func queue(_ report: QueueReport) -> String {
        let total = report.total
        var text = "ready \(total.ready), deferred \(total.deferred), suspended \(total.suspended)"
        text += ", in flight \(total.inFlight)"
        if total.damaged > 0 { text += ", damaged \(total.damaged)" }
        if !report.sites.isEmpty {
            let head = ["SITE", "DOMAINS", "READY", "DEFERRED", "OLDEST", "CONNECTIONS", "LAST ERROR"]
            text +=
                "\n\n"
                + table(
                    [head]
                        + report.sites.map { site in
                            [
                                LogEscape.plain(site.site), "\(site.domains)", "\(site.ready)", "\(site.deferred)",
                                age(site.oldestSeconds), "\(site.connections)", LogEscape.plain(site.lastError ?? ""),
                            ]
                        })
        }
        if report.next != nil { text += "\n(more sites)" }
        return text + incomplete(report.incomplete)
    }

    static func list(_ report: QueueListReport) -> String {
        let head = ["ID", "SENDER", "RECIPIENT", "STATE", "ATTEMPTS", "DUE", "LAST REPLY"]
        let rows = report.messages.map { row in
            [
                LogEscape.plain(row.id), row.sender.isEmpty ? "<>" : LogEscape.plain(row.sender),
                LogEscape.plain(row.recipient), row.state, "\(row.attempts)", row.due ?? "",
                LogEscape.plain(row.lastReply ?? ""),
            ]
        }
        return table([head] + rows) + (report.next == nil ? "" : "\n(more; raise --limit)")
            + incomplete(report.incomplete)
    }

    static func message(_ report: MessageReport) -> String {
        var text = envelope(report)
        for recipient in report.recipients {
            text += "\n\n\(LogEscape.plain(recipient.recipient))  \(recipient.state)"
            text += "  attempts \(recipient.attemptsMade)"
            if !recipient.site.isEmpty { text += "  site \(LogEscape.plain(recipient.site))" }
            if let due = recipient.nextDue { text += "  next \(due)" }
            for attempt in recipient.attempts { text += "\n  " + line(attempt) }
        }
        return text + incomplete(report.incomplete)
    }

    /// All recipients' attempts in the order of time.
    static func timeline(_ report: MessageReport) -> String {
        var lines: [(String, String)] = []
        for recipient in report.recipients {
            for attempt in recipient.attempts {
                lines.append((attempt.time, "\(line(attempt))  to \(LogEscape.plain(recipient.recipient))"))
            }
        }
        let states = report.recipients.map { recipient in
            "\(LogEscape.plain(recipient.recipient)): \(recipient.state)"
                + (recipient.nextDue.map { ", next \($0)" } ?? "")
        }
        let sorted = lines.enumerated().sorted { ($0.element.0, $0.offset) < ($1.element.0, $1.offset) }
            .map(\.element.1)
        return ([envelope(report)] + sorted + states).joined(separator: "\n") + incomplete(report.incomplete)
    }

    private static func envelope(_ report: MessageReport) -> String {
        var rows = [["id", report.id], ["from", report.sender.isEmpty ? "<>" : LogEscape.plain(report.sender)]]
        rows.append(["arrived", report.arrived])
        if report.size > 0 { rows.append(["size", "\(report.size)"]) }
        if !report.messageId.isEmpty { rows.append(["message-id", LogEscape.plain(report.messageId)]) }
        if !report.client.isEmpty { rows.append(["client", LogEscape.plain(report.client)]) }
        if !report.user.isEmpty { rows.append(["user", LogEscape.plain(report.user)]) }
        if !report.envid.isEmpty { rows.append(["envid", LogEscape.plain(report.envid)]) }
        rows.append(["node", LogEscape.plain(report.node)])
        return table(rows)
    }

    private static func line(_ attempt: AttemptReport) -> String {
        var text = "\(attempt.time)  \(attempt.type)"
        if attempt.attempt > 0 { text += " #\(attempt.attempt)" }
        if attempt.code > 0 { text += "  \(attempt.code)" }
        if let status = attempt.enhancedCode { text += " \(status)" }
        if !attempt.reply.isEmpty { text += " \(LogEscape.plain(attempt.reply))" }
        if !attempt.command.isEmpty { text += "  (\(LogEscape.plain(attempt.command)))" }
        if let name = attempt.peerName, !name.isEmpty {
            let address = attempt.peerAddress.map { " [\(LogEscape.plain($0))]" } ?? ""
            text += "  at \(LogEscape.plain(name))\(address)"
        }
        return text
    }

    static func operation(_ report: OperationReport) -> String {
        let word =
            switch report.verb {
            case "retry": "made due"
            case "bounce": "bounced"
            case "suspend": "suspended"
            case "resume": "resumed"
            default: LogEscape.plain(report.verb)
            }
        let busy = report.inFlight > 0 ? ", \(report.inFlight) left alone: an attempt is under way" : ""
        let recipients = report.count == 1 ? "recipient" : "recipients"
        return "\(report.count) \(recipients) \(word)\(busy)" + incomplete(report.incomplete)
    }

    /// `3d`, `2h`, `5m`, `7s`.
    static func age(_ seconds: Int) -> String {
        for (unit, size) in [("d", 86400), ("h", 3600), ("m", 60)] where seconds >= 2 * size {
            return "\(seconds / size)\(unit)"
        }
        return "\(seconds)s"
    }

    static func incomplete(_ nodes: [String]) -> String {
        nodes.isEmpty ? "" : "\n(no answer from: \(nodes.map(LogEscape.plain).joined(separator: ", ")))"
    }
}
