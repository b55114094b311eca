// What ends a start, for the command line.

/// What keeps a node from starting, in one line for the operator.
package struct NodeError: Error, CustomStringConvertible {
    package let description: String
    /// 1, or 78 where the configuration is at fault.
    package let exitCode: Int32

    package init(_ description: String, exitCode: Int32 = 1) {
        self.description = description
        self.exitCode = exitCode
    }
}
