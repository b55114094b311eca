// A disk in memory that keeps a journal of every write, sync and name, and refuses, tears or crashes on request.
import BatonCore
import BatonRuntime
import Glibc
import Synchronization

/// One thing done to a disk, for replay (`DiskImage`).
package enum DiskOperation: Sendable {
    case create(path: String, inode: Int)
    case write(inode: Int, offset: Int, bytes: [UInt8])
    case truncate(inode: Int, length: Int)
    case allocate(inode: Int, length: Int)
    case sync(inode: Int)
    case syncAll
    case syncDirectory(path: String)
    case unlink(path: String)
    case rename(from: String, to: String)
    case makeDirectory(path: String)
    /// A note of the test's own, for example "message 7 was acknowledged".
    case mark(Int)
}

/// A fault at the `after`-th next call named `call`; `sticky` makes all later ones fail too.
package struct DiskFault: Sendable {
    package let call: String
    package let errno: Int32
    package var after: Int
    package let sticky: Bool

    package init(call: String, errno: Int32, after: Int = 0, sticky: Bool = false) {
        self.call = call
        self.errno = errno
        self.after = after
        self.sticky = sticky
    }
}

package final class MemoryDisk: Disk {
    struct Inode: Sendable {
        var bytes: [UInt8] = []
    }

    struct State: Sendable {
        var inodes: [Int: Inode] = [:]
        var names: [String: Int] = [:]
        var directories: Set<String> = ["", "."]
        var descriptors: [Int32: Int] = [:]
        var nextDescriptor: Int32 = 100
        var nextInode = 1
        var locks: Set<Int> = []
        var lockOwner: [Int32: Int] = [:]
        var journal: [DiskOperation] = []
        var faults: [DiskFault] = []
        var calls = 0
        var crashAt: Int?
        var crashed = false
        var free: UInt64 = 1 << 40
        var bad: [Int: Range<Int>] = [:]
    }

    let state: Mutex<State>
    private let keepsJournal: Bool

    package init(keepsJournal: Bool = true) {
        self.state = Mutex(State())
        self.keepsJournal = keepsJournal
    }

    init(state: State, keepsJournal: Bool = true) {
        self.state = Mutex(state)
        self.keepsJournal = keepsJournal
    }

    // MARK: What tests do

    package func fail(_ fault: DiskFault) { state.withLock { $0.faults.append(fault) } }
    package func clearFaults() { state.withLock { $0.faults.removeAll() } }
    /// From the `calls`-th call from now on nothing takes effect and everything fails with EIO.
    package func crash(afterCalls calls: Int) { state.withLock { $0.crashAt = $0.calls + calls } }
    package var calls: Int { state.withLock { $0.calls } }
    package var crashed: Bool { state.withLock { $0.crashed } }
    package var journal: [DiskOperation] { state.withLock { $0.journal } }
    package func mark(_ value: Int) { state.withLock { if !$0.crashed { $0.journal.append(.mark(value)) } } }
    package func setFree(_ bytes: UInt64) { state.withLock { $0.free = bytes } }
    package var paths: [String] { state.withLock { $0.names.keys.sorted() } }
    /// Paths of all open files, one for each descriptor.
    package var openPaths: [String] {
        state.withLock { state in
            let names = Dictionary(state.names.map { ($0.value, $0.key) }, uniquingKeysWith: { first, _ in first })
            return state.descriptors.values.map { names[$0] ?? "(unlinked)" }
        }
    }
    package func contents(_ path: String) -> [UInt8]? {
        state.withLock { state in state.names[path].flatMap { state.inodes[$0]?.bytes } }
    }
    /// Sum of all files' lengths under a prefix.
    package func bytes(under prefix: String) -> Int {
        state.withLock { state in
            state.names.filter { $0.key.hasPrefix(prefix) }.reduce(0) {
                $0 + (state.inodes[$1.value]?.bytes.count ?? 0)
            }
        }
    }
    package func flip(_ path: String, at offset: Int, mask: UInt8 = 0x40) {
        state.withLock { state in
            guard let inode = state.names[path], let count = state.inodes[inode]?.bytes.count, offset < count else {
                return
            }
            state.inodes[inode]?.bytes[offset] ^= mask
        }
    }
    package func overwrite(_ path: String, from offset: Int, with bytes: [UInt8]) {
        state.withLock { state in
            guard let inode = state.names[path] else { return }
            for (index, byte) in bytes.enumerated() where offset + index < state.inodes[inode]?.bytes.count ?? 0 {
                state.inodes[inode]?.bytes[offset + index] = byte
            }
        }
    }
    /// Every read that touches the range fails with EIO, as on a bad sector.
    package func spoil(_ path: String, _ range: Range<Int>) {
        state.withLock { state in
            if let inode = state.names[path] { state.bad[inode] = range }
        }
    }
    package func remove(_ path: String) { state.withLock { $0.names[path] = nil } }

    /// The same contents as another process would find them: nothing open, nothing locked, no faults, a new journal.
    package func reopened() -> MemoryDisk {
        var copy = state.withLock { $0 }
        copy.descriptors = [:]
        copy.locks = []
        copy.lockOwner = [:]
        copy.journal = []
        copy.faults = []
        copy.crashAt = nil
        copy.crashed = false
        return MemoryDisk(state: copy, keepsJournal: keepsJournal)
    }

    // MARK: Disk

    private func perform<T: Sendable>(
        _ call: String, _ body: (inout State) -> Result<T, DiskError>
    ) throws(DiskError) -> T {
        let result: Result<T, DiskError> = state.withLock { state in
            state.calls += 1
            if let at = state.crashAt, state.calls > at { state.crashed = true }
            if state.crashed { return .failure(DiskError(errno: EIO, call: call)) }
            for index in state.faults.indices where state.faults[index].call == call {
                if state.faults[index].after > 0 {
                    state.faults[index].after -= 1
                } else {
                    let fault = state.faults[index]
                    if !fault.sticky { state.faults.remove(at: index) }
                    return .failure(DiskError(errno: fault.errno, call: call))
                }
            }
            return body(&state)
        }
        return try result.get()
    }

    private func log(_ operation: @autoclosure () -> DiskOperation, _ state: inout State) {
        if keepsJournal { state.journal.append(operation()) }
    }

    private static func parent(_ path: String) -> String {
        path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
    }

    package func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> DiskFile {
        try perform("open") { state -> Result<DiskFile, DiskError> in
            var found = state.names[path]
            if case .create = mode {
                if found != nil { return .failure(DiskError(errno: EEXIST, call: "open")) }
                guard state.directories.contains(Self.parent(path)) else {
                    return .failure(DiskError(errno: ENOENT, call: "open"))
                }
                let inode = state.nextInode
                state.nextInode += 1
                state.inodes[inode] = Inode()
                state.names[path] = inode
                log(.create(path: path, inode: inode), &state)
                found = inode
            }
            guard let inode = found else { return .failure(DiskError(errno: ENOENT, call: "open")) }
            let descriptor = state.nextDescriptor
            state.nextDescriptor += 1
            state.descriptors[descriptor] = inode
            return .success(DiskFile(descriptor: descriptor))
        }
    }

    package func close(_ file: DiskFile) throws(DiskError) {
        try perform("close") { state -> Result<Void, DiskError> in
            if let inode = state.lockOwner.removeValue(forKey: file.descriptor) { state.locks.remove(inode) }
            guard state.descriptors.removeValue(forKey: file.descriptor) != nil else {
                return .failure(DiskError(errno: EBADF, call: "close"))
            }
            return .success(())
        }
    }

    private func onInode<T: Sendable>(
        _ call: String, _ file: DiskFile, _ body: (inout State, Int) -> Result<T, DiskError>
    ) throws(DiskError) -> T {
        try perform(call) { state in
            guard let inode = state.descriptors[file.descriptor] else {
                return .failure(DiskError(errno: EBADF, call: call))
            }
            return body(&state, inode)
        }
    }

    package func write(_ file: DiskFile, _ bytes: UnsafeRawBufferPointer, at offset: Int64) throws(DiskError) {
        let copy = Array(bytes)
        try onInode("write", file) { state, inode -> Result<Void, DiskError> in
            state.inodes[inode]?.write(copy, at: Int(offset))
            log(.write(inode: inode, offset: Int(offset), bytes: copy), &state)
            return .success(())
        }
    }

    package func read(
        _ file: DiskFile, into buffer: UnsafeMutableRawBufferPointer, at offset: Int64
    ) throws(DiskError) -> Int {
        let wanted = buffer.count
        let bytes: [UInt8] = try onInode("read", file) { state, inode -> Result<[UInt8], DiskError> in
            guard let all = state.inodes[inode]?.bytes, Int(offset) < all.count else { return .success([]) }
            if let bad = state.bad[inode], bad.overlaps(Int(offset)..<Int(offset) + wanted) {
                return .failure(DiskError(errno: EIO, call: "read"))
            }
            return .success(Array(all[Int(offset)..<min(all.count, Int(offset) + wanted)]))
        }
        buffer.copyBytes(from: bytes)
        return bytes.count
    }

    package func sync(_ file: DiskFile) throws(DiskError) {
        try onInode("sync", file) { state, inode -> Result<Void, DiskError> in
            log(.sync(inode: inode), &state)
            return .success(())
        }
    }

    package func syncFileSystem(_ file: DiskFile) throws(DiskError) {
        try onInode("syncFileSystem", file) { state, _ -> Result<Void, DiskError> in
            log(.syncAll, &state)
            return .success(())
        }
    }

    package func allocate(_ file: DiskFile, length: Int64) throws(DiskError) {
        try onInode("allocate", file) { state, inode -> Result<Void, DiskError> in
            state.inodes[inode]?.extend(to: Int(length))
            log(.allocate(inode: inode, length: Int(length)), &state)
            return .success(())
        }
    }

    package func truncate(_ file: DiskFile, length: Int64) throws(DiskError) {
        try onInode("truncate", file) { state, inode -> Result<Void, DiskError> in
            state.inodes[inode]?.truncate(to: Int(length))
            log(.truncate(inode: inode, length: Int(length)), &state)
            return .success(())
        }
    }

    package func size(_ file: DiskFile) throws(DiskError) -> Int64 {
        try onInode("size", file) { state, inode -> Result<Int64, DiskError> in
            .success(Int64(state.inodes[inode]?.bytes.count ?? 0))
        }
    }

    package func syncDirectory(_ path: String) throws(DiskError) {
        try perform("syncDirectory") { state -> Result<Void, DiskError> in
            log(.syncDirectory(path: path), &state)
            return .success(())
        }
    }

    package func unlink(_ path: String) throws(DiskError) {
        try perform("unlink") { state -> Result<Void, DiskError> in
            guard state.names.removeValue(forKey: path) != nil else {
                return .failure(DiskError(errno: ENOENT, call: "unlink"))
            }
            log(.unlink(path: path), &state)
            return .success(())
        }
    }

    package func rename(_ from: String, to: String) throws(DiskError) {
        try perform("rename") { state -> Result<Void, DiskError> in
            guard let inode = state.names.removeValue(forKey: from) else {
                return .failure(DiskError(errno: ENOENT, call: "rename"))
            }
            state.names[to] = inode
            log(.rename(from: from, to: to), &state)
            return .success(())
        }
    }

    package func makeDirectory(_ path: String) throws(DiskError) {
        try perform("makeDirectory") { state -> Result<Void, DiskError> in
            guard state.directories.insert(path).inserted else {
                return .failure(DiskError(errno: EEXIST, call: "makeDirectory"))
            }
            log(.makeDirectory(path: path), &state)
            return .success(())
        }
    }

    package func list(_ path: String) throws(DiskError) -> [String] {
        try perform("list") { state -> Result<[String], DiskError> in
            guard state.directories.contains(path) else { return .failure(DiskError(errno: ENOENT, call: "list")) }
            let prefix = path + "/"
            let all = Array(state.names.keys) + Array(state.directories)
            let names = all.filter { $0.hasPrefix(prefix) }.map { String($0.dropFirst(prefix.count)) }
            return .success(names.filter { !$0.contains("/") })
        }
    }

    package func space(_ path: String) throws(DiskError) -> DiskSpace {
        try perform("space") { state -> Result<DiskSpace, DiskError> in
            .success(DiskSpace(free: state.free, total: 1 << 41, freeInodes: 1 << 20))
        }
    }

    package func lock(_ file: DiskFile) throws(DiskError) {
        try onInode("lock", file) { state, inode -> Result<Void, DiskError> in
            guard state.locks.insert(inode).inserted else {
                return .failure(DiskError(errno: EWOULDBLOCK, call: "lock"))
            }
            state.lockOwner[file.descriptor] = inode
            return .success(())
        }
    }
}

extension MemoryDisk.Inode {
    mutating func extend(to length: Int) {
        let missing = length - bytes.count
        guard missing > 0 else { return }
        // By memset: a debug build would append the reserve's 16 MiB octet by octet.
        bytes += [UInt8](unsafeUninitializedCapacity: missing) { buffer, count in
            if let base = buffer.baseAddress { memset(base, 0, missing) }
            count = missing
        }
    }

    mutating func truncate(to length: Int) {
        if bytes.count > length { bytes.removeLast(bytes.count - length) } else { extend(to: length) }
    }

    mutating func write(_ new: [UInt8], at offset: Int) {
        extend(to: offset + new.count)
        bytes.replaceSubrange(offset..<(offset + new.count), with: new)
    }
}
