// The baton-bench command: load generator, recording sink, and scenarios that reconcile both.
import ArgumentParser

@main
struct BatonBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "baton-bench",
        abstract: "Load, sink and reconciliation for SMTP relays.",
        subcommands: [SendCommand.self, SinkCommand.self, RunCommand.self, ReconcileCommand.self])
}
