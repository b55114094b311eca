// A new incarnation in place of this one: the process runs itself anew (PROTOCOL T2).
import Foundation
import Glibc
import Logging

/// A node that lost its lease is somebody else from then on. Crash-only: what a kill leaves is what the new
/// incarnation begins with, and the process keeps its number for whoever supervises it.
enum Reincarnation {
    static func begin(_ reason: String, logger: Logger) {
        logger.critical("cluster: this node starts anew as a new incarnation", metadata: ["reason": "\(reason)"])
        var arguments: [UnsafeMutablePointer<CChar>?] = CommandLine.arguments.map { strdup($0) }
        arguments.append(nil)
        // Not every socket of a library is close-on-exec; a listener that lives on would hold its port against its successor. The
        // lock of the data directory goes with its descriptor.
        for name in (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd")) ?? [] {
            guard let descriptor = Int32(name), descriptor > 2 else { continue }
            let flags = fcntl(descriptor, F_GETFD)
            if flags >= 0 { _ = fcntl(descriptor, F_SETFD, flags | FD_CLOEXEC) }
        }
        // This thread may block signals that its successor has to hear.
        var none = sigset_t()
        sigemptyset(&none)
        pthread_sigmask(SIG_SETMASK, &none, nil)
        execv("/proc/self/exe", &arguments)
        logger.critical("cluster: the program cannot be run anew; it ends", metadata: ["errno": "\(errno)"])
        exit(1)
    }
}
