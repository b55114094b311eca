// The `baton` command: its root, its exit codes and where help goes.
import ArgumentParser
import BatonNode
import Glibc

@main
struct Baton: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "baton",
        abstract: "A durable SMTP relay: what it answers 250 to is on disk.",
        discussion: "`baton serve` runs a node; the other commands look at one or at its files. See docs/CLI.md.",
        subcommands: [
            Serve.self, CheckConfig.self, Queue.self, Trace.self, Cluster.self, Top.self, SpoolCommand.self,
            Version.self,
        ])

    static func main() async {
        Glibc.exit(await run(arguments: Array(CommandLine.arguments.dropFirst())))
    }

    /// Parses and runs; the process's exit code. Without words: help and 0. Words that are no command: help on standard
    /// error and 64.
    static func run(arguments: [String]) async -> Int32 {
        do {
            var command = try parseAsRoot(arguments)
            if var command = command as? any AsyncParsableCommand {
                try await command.run()
            } else {
                try command.run()
            }
            return 0
        } catch let failure as CommandFailure {
            Output.error("baton: \(failure.text)")
            return failure.code
        } catch {
            let code = exitCode(for: error).rawValue
            let text = fullMessage(for: error)
            if code == 0 {
                Output.line(text)
            } else {
                if !text.isEmpty { Output.error(text) }
                if code == EX_USAGE, !text.contains("SUBCOMMANDS:") { Output.error("\n" + helpMessage()) }
            }
            return code
        }
    }
}

/// An end that is told in one line.
struct CommandFailure: Error {
    let code: Int32
    let text: String
}

/// Whole lines to the standard streams.
enum Output {
    static func line(_ text: String) { write(1, text) }
    static func error(_ text: String) { write(2, text) }

    private static func write(_ descriptor: Int32, _ text: String) {
        let bytes = Array((text.hasSuffix("\n") ? text : text + "\n").utf8)
        var done = 0
        while done < bytes.count {
            let count = bytes[done...].withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            // A reader that is gone (`| head`) needs no more.
            if count <= 0 { return }
            done += count
        }
    }
}

struct Version: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Print the version.")

    func run() { Output.line("baton \(Wiring.version)") }
}
