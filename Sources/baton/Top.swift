// `baton top`: a view of totals and the busiest sites that refreshes.
import ArgumentParser
import BatonNode
import Foundation
import Glibc

struct Top: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show totals and the busiest sites, again and again; through any node of a cluster, for all of it.",
        discussion: "Ends with Ctrl-C. --once prints one view for scripts, --json one view as JSON.")

    @Flag(name: .long, help: "Print once, without control characters.") var once = false
    @Option(name: .long, help: "Seconds between two views, 1 to 3600.") var interval = 2
    @Option(name: .long, help: "Sites shown, 1 to 1000; default: as many as the terminal has room for, else 20.")
    var limit: Int?
    @OptionGroup var options: AdminOptions

    /// Pages of `AdminLimits.pageRows` sites that one view reads.
    static let pages = 10

    func validate() throws {
        guard (1...3600).contains(interval) else { throw ValidationError("--interval is a number from 1 to 3600") }
        guard limit.map({ (1...1000).contains($0) }) ?? true else {
            throw ValidationError("--limit is a number from 1 to 1000")
        }
    }

    func run() throws {
        if once || options.json {
            let report = try options.asking(Self.read)
            let shown = Self.busiest(report, limit: limit ?? 20)
            return Output.line(options.json ? try Self.json(shown) : AdminText.queue(shown))
        }
        while true {
            var text: String
            do {
                let report = try options.asking(Self.read)
                text = AdminText.queue(Self.busiest(report, limit: limit ?? Self.room(rows: Self.terminalRows)))
            } catch let failure as CommandFailure where failure.code == EX_UNAVAILABLE {
                // The node may be restarting: the next view tells.
                text = failure.text
            }
            let clock = Date().formatted(.iso8601.time(includingFractionalSeconds: false))
            // Home, then clear to the end behind each line and below: no flicker, as clearing first would make.
            let lines = ["baton top  \(clock)Z", ""] + text.components(separatedBy: "\n")
            Output.line("\u{1b}[H" + lines.map { $0 + "\u{1b}[K" }.joined(separator: "\n") + "\n\u{1b}[J")
            sleep(UInt32(interval))
        }
    }

    /// All sites of up to `pages` pages; one that comes again, from another node, is added up.
    static func read(_ client: AdminClient) throws -> QueueReport {
        var all: QueueReport?
        var cursor: String?
        for _ in 0..<pages {
            let query = [("limit", "1000")] + (cursor.map { [("cursor", $0)] } ?? [])
            let page = try AdminClient.decode(QueueReport.self, from: try client.get("/api/v1/queue", query: query))
            all = all.map { QueueReport.joined($0, page) } ?? page
            cursor = page.next
            if cursor == nil { break }
        }
        return all ?? QueueReport(total: QueueTotalReport(), sites: [], next: nil)
    }

    /// What is being sent first, then what waits, then the name, so that views do not jump about.
    static func busiest(_ report: QueueReport, limit: Int) -> QueueReport {
        var shown = report
        shown.sites.sort { left, right in
            let (mine, other) = (weight(left), weight(right))
            return mine == other ? left.site < right.site : mine > other
        }
        if shown.sites.count > limit {
            shown.sites.removeLast(shown.sites.count - limit)
            shown.next = shown.next ?? ""
        }
        return shown
    }

    private static func weight(_ site: QueueReport.Site) -> (Int, Int) {
        (site.inFlight + site.connections, site.ready + site.deferred)
    }

    /// Sites that fit beneath the head of the view and above its last lines.
    static func room(rows: Int) -> Int { max(1, min(1000, rows - 8)) }

    private static var terminalRows: Int {
        var size = winsize()
        guard ioctl(1, UInt(TIOCGWINSZ), &size) == 0, size.ws_row > 0 else { return 28 }
        return Int(size.ws_row)
    }

    private static func json(_ report: QueueReport) throws -> String {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return String(decoding: try encoder.encode(report), as: UTF8.self)
    }
}
