// What the commands call beneath: one line for each, so that the composition root stays in BatonNode.
import BatonNode

enum Wiring {
    #if BATON_NODE_ALONE
        static let version = "alone"
        static func serve(_ configuration: NodeConfiguration) async -> Int32 { 70 }
        static func inspectSpool(_ directory: String, json: Bool) throws -> (String, Int32) { ("", 70) }
    #else
        static let version = BatonVersion.current

        /// Runs a node until it is told to stop; the exit code.
        static func serve(_ configuration: NodeConfiguration) async -> Int32 {
            await NodeRunner.run(configuration: configuration)
        }

        /// What `baton spool inspect` prints, and its exit code. Read-only; blocking.
        static func inspectSpool(_ directory: String, json: Bool) throws -> (String, Int32) {
            do {
                let answer = try SpoolInspection.inspect(directory, json: json)
                return (answer.text, answer.code)
            } catch let error as NodeError {
                throw CommandFailure(code: error.exitCode, text: error.description)
            }
        }
    #endif
}
