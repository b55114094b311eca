// The disk as the spool and the event log see it, so that tests can drop, tear, flip and refuse.

/// What the system said, with its errno and the call's name.
package struct DiskError: Error, Hashable, Sendable {
    package let errno: Int32
    package let call: String

    package init(errno: Int32, call: String) {
        self.errno = errno
        self.call = call
    }
}

/// An open file of a `Disk`.
package struct DiskFile: Hashable, Sendable {
    package let descriptor: Int32

    package init(descriptor: Int32) {
        self.descriptor = descriptor
    }
}

package struct DiskSpace: Sendable {
    package let free: UInt64
    package let total: UInt64
    package let freeInodes: UInt64

    package init(free: UInt64, total: UInt64, freeInodes: UInt64) {
        self.free = free
        self.total = total
        self.freeInodes = freeInodes
    }
}

package enum OpenMode: Sendable {
    case read
    case readWrite
    /// Fails with EEXIST where the file exists.
    case create
}

/// Blocking file operations on paths relative to nothing (absolute or to the working directory). Never on an event loop.
///
/// A name is durable only after `syncDirectory`; contents only after `sync`. A failed `sync` is never retried by a caller:
/// the kernel may have dropped the pages (DESIGN section 4).
package protocol Disk: Sendable {
    func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> DiskFile
    func close(_ file: DiskFile) throws(DiskError)
    /// Writes all bytes or throws; a short write is completed or ends in an error.
    func write(_ file: DiskFile, _ bytes: UnsafeRawBufferPointer, at offset: Int64) throws(DiskError)
    /// Reads up to the buffer's size; fewer only at the end of the file. Returns the count.
    func read(_ file: DiskFile, into buffer: UnsafeMutableRawBufferPointer, at offset: Int64) throws(DiskError) -> Int
    /// fdatasync.
    func sync(_ file: DiskFile) throws(DiskError)
    /// One syncfs for the file system that holds `file`.
    func syncFileSystem(_ file: DiskFile) throws(DiskError)
    func allocate(_ file: DiskFile, length: Int64) throws(DiskError)
    func truncate(_ file: DiskFile, length: Int64) throws(DiskError)
    func size(_ file: DiskFile) throws(DiskError) -> Int64
    func syncDirectory(_ path: String) throws(DiskError)
    func unlink(_ path: String) throws(DiskError)
    func rename(_ from: String, to: String) throws(DiskError)
    func makeDirectory(_ path: String) throws(DiskError)
    /// Names in a directory, unordered, without `.` and `..`.
    func list(_ path: String) throws(DiskError) -> [String]
    func space(_ path: String) throws(DiskError) -> DiskSpace
    /// An exclusive lock without waiting; throws EWOULDBLOCK where another process has it.
    func lock(_ file: DiskFile) throws(DiskError)
}
