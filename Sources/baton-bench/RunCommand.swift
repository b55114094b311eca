// baton-bench run and reconcile: filled in next.
import ArgumentParser

struct RunCommand: ParsableCommand { static let configuration = CommandConfiguration(commandName: "run") }
struct ReconcileCommand: ParsableCommand { static let configuration = CommandConfiguration(commandName: "reconcile") }
