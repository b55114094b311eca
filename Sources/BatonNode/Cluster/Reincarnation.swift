// A new incarnation in place of this one: the process runs itself anew (PROTOCOL T2).
import Glibc
import Logging

/// A node that lost its lease, or a disk under a copy, is somebody else from then on. Crash-only: what a kill leaves is what the new
/// incarnation begins with, and the process keeps its number for whoever supervises it.
enum Reincarnation {
    static func begin(_ reason: String, logger: Logger) {
        logger.critical("cluster: this node starts anew as a new incarnation", metadata: ["reason": "\(reason)"])
        var arguments: [UnsafeMutablePointer<CChar>?] = CommandLine.arguments.map { strdup($0) }
        arguments.append(nil)
        // Files and sockets are opened close-on-exec; the lock of the data directory goes with its descriptor.
        execv("/proc/self/exe", &arguments)
        logger.critical("cluster: the program cannot be run anew; it ends", metadata: ["errno": "\(errno)"])
        exit(1)
    }
}
