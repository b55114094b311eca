// `baton spool inspect`: what a data directory holds, without a node.
import ArgumentParser
import BatonNode

struct SpoolCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "spool", abstract: "Look into a data directory without a node.", subcommands: [Inspect.self])

    struct Inspect: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Tell what a data directory holds. Changes nothing; works beside a running node and on damage.",
            discussion:
                "Reads every byte once. Exits with 0 when all can be read, 65 when something is damaged or missing, 66 "
                + "when there is no directory to read.")

        @Argument(help: ArgumentHelp("The data directory.", valueName: "dir"))
        var directory: String

        @Flag(name: .long, help: "Print JSON.")
        var json = false

        func run() throws {
            let (text, code) = try Wiring.inspectSpool(directory, json: json)
            Output.line(text)
            if code != 0 { throw ExitCode(code) }
        }
    }
}
