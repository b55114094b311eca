// What the commands call beneath: one line for each, so that the composition root stays in BatonNode.
import BatonNode

enum Wiring {
    #if BATON_NODE_ALONE
        static let version = "alone"
        static func serve(_ configuration: NodeConfiguration) async -> Int32 { 70 }
        static func inspectSpool(_ directory: String, json: Bool) throws -> String { "" }
    #else
        static let version = BatonVersion.current

        /// Runs a node until it is told to stop; the exit code.
        static func serve(_ configuration: NodeConfiguration) async -> Int32 {
            await NodeRunner.run(configuration: configuration)
        }

        /// What `baton spool inspect` prints. Read-only; blocking.
        static func inspectSpool(_ directory: String, json: Bool) throws -> String {
            throw CommandFailure(code: 70, text: "spool inspect is not in this build yet")
        }
    #endif
}
