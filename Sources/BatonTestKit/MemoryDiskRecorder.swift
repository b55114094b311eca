// A real disk that keeps the same journal as `MemoryDisk`, so that the power loss of a real run can be replayed.
import BatonCore
import BatonRuntime
import Synchronization

/// Passes every call on and, when it has succeeded, writes it down. Paths under another disk's root keep their names.
package final class RecordingDisk: Disk {
    private struct State {
        var journal: [DiskOperation] = []
        var inodes: [Int32: Int] = [:]
        var names: [String: Int] = [:]
        var next = 1
    }

    private let base: any Disk
    private let state = Mutex(State())

    package init(_ base: any Disk) {
        self.base = base
    }

    package var journal: [DiskOperation] { state.withLock { $0.journal } }

    /// A note between the operations, for example "message 7 was acknowledged".
    package func mark(_ value: Int) { state.withLock { $0.journal.append(.mark(value)) } }

    private func log(_ file: DiskFile, _ make: (Int) -> DiskOperation) {
        state.withLock { state in
            if let inode = state.inodes[file.descriptor] { state.journal.append(make(inode)) }
        }
    }

    private func log(_ operation: DiskOperation) { state.withLock { $0.journal.append(operation) } }

    package func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> DiskFile {
        let file = try base.open(path, mode)
        state.withLock { state in
            if case .create = mode {
                state.names[path] = state.next
                state.journal.append(.create(path: path, inode: state.next))
                state.next += 1
            }
            if let inode = state.names[path] { state.inodes[file.descriptor] = inode }
        }
        return file
    }

    package func close(_ file: DiskFile) throws(DiskError) {
        state.withLock { $0.inodes[file.descriptor] = nil }
        try base.close(file)
    }

    package func write(_ file: DiskFile, _ bytes: UnsafeRawBufferPointer, at offset: Int64) throws(DiskError) {
        // Before the call: the cut may fall into it.
        let copy = Array(bytes)
        log(file) { .write(inode: $0, offset: Int(offset), bytes: copy) }
        try base.write(file, bytes, at: offset)
    }

    package func read(
        _ file: DiskFile, into buffer: UnsafeMutableRawBufferPointer, at offset: Int64
    ) throws(DiskError) -> Int { try base.read(file, into: buffer, at: offset) }

    package func sync(_ file: DiskFile) throws(DiskError) {
        try base.sync(file)
        log(file) { .sync(inode: $0) }
    }

    package func syncFileSystem(_ file: DiskFile) throws(DiskError) {
        try base.syncFileSystem(file)
        log(.syncAll)
    }

    package func allocate(_ file: DiskFile, length: Int64) throws(DiskError) {
        log(file) { .allocate(inode: $0, length: Int(length)) }
        try base.allocate(file, length: length)
    }

    package func truncate(_ file: DiskFile, length: Int64) throws(DiskError) {
        log(file) { .truncate(inode: $0, length: Int(length)) }
        try base.truncate(file, length: length)
    }

    package func size(_ file: DiskFile) throws(DiskError) -> Int64 { try base.size(file) }

    package func syncDirectory(_ path: String) throws(DiskError) {
        try base.syncDirectory(path)
        log(.syncDirectory(path: path))
    }

    package func unlink(_ path: String) throws(DiskError) {
        try base.unlink(path)
        state.withLock { state in
            state.names[path] = nil
            state.journal.append(.unlink(path: path))
        }
    }

    package func rename(_ from: String, to: String) throws(DiskError) {
        try base.rename(from, to: to)
        state.withLock { state in
            state.names[to] = state.names.removeValue(forKey: from)
            state.journal.append(.rename(from: from, to: to))
        }
    }

    package func makeDirectory(_ path: String) throws(DiskError) {
        try base.makeDirectory(path)
        log(.makeDirectory(path: path))
    }

    package func list(_ path: String) throws(DiskError) -> [String] { try base.list(path) }
    package func space(_ path: String) throws(DiskError) -> DiskSpace { try base.space(path) }
    package func lock(_ file: DiskFile) throws(DiskError) { try base.lock(file) }
}
