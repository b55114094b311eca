// `baton queue …`: listing and the operator's verbs.
import ArgumentParser
import BatonCore
import BatonModel
import BatonNode
import Foundation

struct Queue: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Look at queued mail and act on it.",
        subcommands: [List.self, Show.self, Retry.self, Bounce.self, Suspend.self, Resume.self])

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List sites and queued recipients.")

        @Option(name: .long, help: "Recipients of this domain.") var domain: String?
        @Option(name: .long, help: "Recipients of this site.") var site: String?
        @Option(name: .long, help: "Mail of this sender: an address, @domain, or <>.") var sender: String?
        @Option(name: .long, help: "ready, deferred or suspended (also in_flight, damaged).") var state: String?
        @Option(name: .long, help: "Rows of each table, 1 to 1000.") var limit = 100
        @OptionGroup var options: AdminOptions

        func validate() throws {
            guard (1...1000).contains(limit) else { throw ValidationError("--limit is a number from 1 to 1000") }
        }

        /// The query that both listings take.
        var query: [(String, String)] {
            let all = [("domain", domain), ("site", site), ("sender", sender), ("state", state), ("limit", "\(limit)")]
            return all.compactMap { name, value in value.map { (name, $0) } }
        }

        /// Sites are listed for all mail or for one of them: what else restricts recipients says nothing about sites.
        var showsSites: Bool { domain == nil && sender == nil && state == nil }

        func run() throws {
            let (queue, list) = try options.asking { client in
                (
                    try client.get("/api/v1/queue", query: query.filter { ["site", "limit"].contains($0.0) }),
                    try client.get("/api/v1/queue/messages", query: query)
                )
            }
            if options.json {
                Output.line(try Self.merged(queue, list))
                return
            }
            try options.asking { _ in
                var queue = try AdminClient.decode(QueueReport.self, from: queue)
                if !showsSites { queue.sites = [] }
                let list = try AdminClient.decode(QueueListReport.self, from: list)
                Output.line(AdminText.queue(queue))
                if !list.messages.isEmpty { Output.line("\n" + AdminText.list(list)) }
            }
        }

        /// One object with both listings; `next` is that of the recipients.
        static func merged(_ queue: Data, _ list: Data) throws -> String {
            var object = try JSONSerialization.jsonObject(with: queue) as? [String: Any] ?? [:]
            let other = try JSONSerialization.jsonObject(with: list) as? [String: Any] ?? [:]
            for key in ["messages", "next"] { object[key] = other[key] }
            let nodes = [object["incomplete"], other["incomplete"]].flatMap { $0 as? [String] ?? [] }
            object["incomplete"] = Array(Set(nodes)).sorted()
            let data = try JSONSerialization.data(
                withJSONObject: object, options: [.sortedKeys, .withoutEscapingSlashes])
            return String(decoding: data, as: UTF8.self)
        }
    }

    struct Show: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show a message: envelope, recipients, attempts.")

        @Argument(help: "The message's id.") var id: String
        @OptionGroup var options: AdminOptions

        func run() throws {
            let data = try options.asking { try $0.get("/api/v1/messages/\(AdminClient.encoded(id))") }
            if options.json {
                Output.line(String(decoding: data, as: UTF8.self))
                return
            }
            try options.asking { _ in
                Output.line(AdminText.message(try AdminClient.decode(MessageReport.self, from: data)))
            }
        }
    }

    struct Retry: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Make deferred mail due now, spread by jitter.")
        @OptionGroup var target: QueueTarget
        @OptionGroup var options: AdminOptions
        func run() throws { try target.perform("retry", options) }
    }

    struct Bounce: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Give mail up. Senders are told only with --report.")
        @OptionGroup var target: QueueTarget
        @Option(name: .long, help: "What the event (and a report) says.") var reason: String?
        @Flag(name: .long, help: "Send non-delivery reports.") var report = false
        @OptionGroup var options: AdminOptions

        func run() throws {
            var members: [String: Any] = [:]
            if let reason { members["reason"] = reason }
            if report { members["report"] = true }
            try target.perform("bounce", options, members)
        }
    }

    struct Suspend: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Hold mail back, new mail too, until resume or for a time. It still expires.")
        @OptionGroup var target: QueueTarget
        @Option(name: .customLong("for"), help: "How long, such as 1h.") var duration: String?
        @OptionGroup var options: AdminOptions
        func run() throws { try target.perform("suspend", options, duration.map { ["for": $0] } ?? [:]) }
    }

    struct Resume: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Let suspended mail go.")
        @OptionGroup var target: QueueTarget
        @OptionGroup var options: AdminOptions
        func run() throws { try target.perform("resume", options) }
    }
}

/// What a verb is about: exactly one of them, nothing implied.
struct QueueTarget: ParsableArguments {
    @Argument(help: "A message's id.") var id: String?
    @Option(name: .long, help: "Mail to this domain.") var domain: String?
    @Option(name: .long, help: "Mail to this site.") var site: String?
    @Option(name: .long, help: "Mail of this sender: an address, @domain, or <>.") var sender: String?
    @Flag(name: .long, help: "All queued mail.") var all = false

    func validate() throws {
        let given = [id != nil, domain != nil, site != nil, sender != nil, all].filter { $0 }.count
        guard given == 1 else { throw ValidationError("Give one of ID, --domain, --site, --sender and --all.") }
    }

    /// The request's body.
    func body(_ more: [String: Any] = [:]) throws -> Data {
        var object = more
        if let id { object["id"] = id }
        if let domain { object["domain"] = domain }
        if let site { object["site"] = site }
        if let sender { object["sender"] = sender }
        if all { object["all"] = true }
        return try JSONSerialization.data(withJSONObject: object, options: [.sortedKeys])
    }

    /// Sends the verb, follows a long one, prints the count.
    func perform(_ verb: String, _ options: AdminOptions, _ more: [String: Any] = [:]) throws {
        let body = try body(more)
        try options.asking { client in
            var data = try client.post("/api/v1/queue/\(verb)", json: body)
            var report = try AdminClient.decode(OperationReport.self, from: data)
            // The node goes on without us: interrupting this loses nothing.
            while !report.done {
                Output.error("\(verb): operation \(report.operation), \(report.count) so far")
                usleep(500_000)
                data = try client.get("/api/v1/operations/\(AdminClient.encoded(report.operation))")
                report = try AdminClient.decode(OperationReport.self, from: data)
            }
            Output.line(options.json ? String(decoding: data, as: UTF8.self) : AdminText.operation(report))
        }
    }
}

struct Trace: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Tell what happened to a message, or to the mail of a recipient, sender or Message-ID.")

    @Argument(help: "A message's id.") var id: String?
    @Option(name: .long, help: "Mail to this address.") var recipient: String?
    @Option(name: .long, help: "Mail of this sender: an address, @domain, or <>.") var sender: String?
    @Option(name: .long, help: "Mail with this Message-ID.") var messageID: String?
    @Option(name: .long, help: "Messages, 1 to 100.") var limit = 20
    @OptionGroup var options: AdminOptions

    func validate() throws {
        let given = [id, recipient, sender, messageID].compactMap { $0 }.count
        guard given == 1 else { throw ValidationError("Give one of ID, --recipient, --sender and --message-id.") }
        guard (1...100).contains(limit) else { throw ValidationError("--limit is a number from 1 to 100") }
    }

    func run() throws {
        try options.asking { client in
            var found: [Data] = []
            if let id {
                found.append(try client.get("/api/v1/messages/\(AdminClient.encoded(id))"))
            } else {
                let search = [("recipient", recipient), ("sender", sender), ("message_id", messageID)]
                    .compactMap { name, value in value.map { (name, $0) } }
                let list = try AdminClient.decode(
                    MessageListReport.self,
                    from: try client.get("/api/v1/messages", query: search + [("limit", "\(limit)")]))
                for message in list.messages.prefix(limit) {
                    found.append(try client.get("/api/v1/messages/\(AdminClient.encoded(message.id))"))
                }
                if !list.incomplete.isEmpty {
                    Output.error("no answer from: \(list.incomplete.map(LogEscape.plain).joined(separator: ", "))")
                }
            }
            if found.isEmpty { throw CommandFailure(code: 1, text: "nothing found") }
            if options.json {
                let bodies = found.map { String(decoding: $0, as: UTF8.self).trimmingCharacters(in: .newlines) }
                // One message is an object, a search is a list.
                Output.line(id != nil ? bodies.joined() : "[" + bodies.joined(separator: ",") + "]")
                return
            }
            let texts = try found.map { AdminText.timeline(try AdminClient.decode(MessageReport.self, from: $0)) }
            Output.line(texts.joined(separator: "\n\n"))
        }
    }
}
