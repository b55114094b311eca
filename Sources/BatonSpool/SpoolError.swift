// The one error type of the spool's start and maintenance; mail-path failures are `SubmissionRefusal` values instead.
import BatonRuntime
import Glibc

package struct SpoolError: Error, Sendable {
    package enum Code: Sendable {
        /// Another process has the data directory.
        case locked
        /// The directory cannot be written.
        case notWritable
        /// The directory belongs to another node or cluster.
        case foreignDirectory
        /// The registry did not take a change, or its answer is unknown.
        case registryFailed
        /// No other disk takes the copies that a segment has to have.
        case noBackup
    }

    package let code: Code
    package let message: String
    package let underlying: DiskError?

    package init(_ code: Code, _ message: String, _ underlying: DiskError? = nil) {
        self.code = code
        self.message = message
        self.underlying = underlying
    }
}

extension SpoolError: CustomStringConvertible {
    package var description: String {
        guard let underlying else { return message }
        return "\(message) (\(underlying.call): \(String(cString: strerror(underlying.errno))))"
    }
}

/// Something broke while the spool ran. Given to `onFailure` once each; the spool has logged it already.
package enum SpoolFailure: Sendable {
    /// A chunk's write or fdatasync failed: the lane is dead until the process is restarted; no mail is accepted.
    case laneDead(DiskError)
    /// An outcome log's write or fdatasync failed: its segment is never reclaimed by this process.
    case outcomeLogFailed(SegmentName, DiskError)
}

extension DiskError {
    static let noSpace = ENOSPC
    static let quota = EDQUOT
}
