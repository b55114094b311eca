// `baton serve` and `baton check-config`.
import ArgumentParser
import BatonModel
import BatonNode
import Logging

struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Run a node.",
        discussion:
            "Without --config it listens on 127.0.0.1:2525 for loopback clients and keeps its mail in ./baton-data.")

    @Option(name: .long, help: ArgumentHelp("The configuration file.", valueName: "file"))
    var config: String?

    @Option(
        name: .long, help: ArgumentHelp("trace, debug, info, notice, warning, error or critical.", valueName: "level"))
    var logLevel = Logger.Level.notice

    @Option(
        name: .long, help: ArgumentHelp("text or json; default: text on a terminal, else json.", valueName: "format"))
    var logFormat: LogFormat?

    func run() async throws {
        let configuration = try config.map(ConfigurationFile.load) ?? ConfigurationLoader.embeddedDefaults()
        let style = logFormat?.style ?? LogOutput.styleOfStandardError
        let level = logLevel
        LoggingSystem.bootstrap { LogOutput(label: $0, level: level, style: style) }
        let logger = Logger(label: "baton")
        for warning in configuration.warnings { logger.warning("\(warning)") }
        let code = await Wiring.serve(configuration)
        if code != 0 { throw ExitCode(code) }
    }
}

extension Logger.Level: @retroactive ExpressibleByArgument {}

enum LogFormat: String, ExpressibleByArgument {
    case text
    case json

    var style: LogOutput.Style {
        switch self {
        case .text: .text
        case .json: .json
        }
    }
}

/// Loading with the exit codes of the contract: 66 unreadable, 78 wrong.
enum ConfigurationFile {
    static func load(_ path: String) throws -> NodeConfiguration {
        do {
            return try ConfigurationLoader.load(path: path)
        } catch {
            // Problems are lines of their own, `file:line:column: message`, so that editors find them.
            Output.error(error.description)
            throw ExitCode(error.exitCode)
        }
    }
}

struct CheckConfig: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check-config", abstract: "Check a configuration file: `ok`, or every problem with its line.")

    @Argument(help: ArgumentHelp("The configuration file.", valueName: "file"))
    var file: String

    @Option(
        name: .long,
        help: ArgumentHelp("Show the route, the site and every value in force for a domain.", valueName: "domain"))
    var explain: String?

    func run() throws {
        let configuration = try ConfigurationFile.load(file)
        for warning in configuration.warnings { Output.error(warning) }
        guard let explain else {
            Output.line("ok")
            return
        }
        guard let domain = DomainPattern.readDomain(explain) else {
            throw CommandFailure(code: 64, text: "--explain takes a domain name")
        }
        Output.line(configuration.explanation(for: domain))
    }
}
