// `Disk` by Linux system calls.
import CBatonSystem
import Glibc

package struct LinuxDisk: Disk {
    package init() {}

    package func open(_ path: String, _ mode: OpenMode) throws(DiskError) -> DiskFile {
        let flags: Int32 =
            switch mode {
            case .read: O_RDONLY
            case .readWrite: O_RDWR
            case .create: O_RDWR | O_CREAT | O_EXCL
            }
        let descriptor = baton_open(path, flags, 0o600)
        guard descriptor >= 0 else { throw DiskError(errno: -descriptor, call: "open") }
        return DiskFile(descriptor: descriptor)
    }

    package func close(_ file: DiskFile) throws(DiskError) {
        if Glibc.close(file.descriptor) != 0 { throw DiskError(errno: errno, call: "close") }
    }

    package func write(_ file: DiskFile, _ bytes: UnsafeRawBufferPointer, at offset: Int64) throws(DiskError) {
        var done = 0
        while done < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
            let written = pwrite(file.descriptor, rest.baseAddress, rest.count, off_t(offset) + off_t(done))
            if written < 0 {
                if errno == EINTR { continue }
                throw DiskError(errno: errno, call: "pwrite")
            }
            if written == 0 { throw DiskError(errno: EIO, call: "pwrite") }
            done += written
        }
    }

    package func read(
        _ file: DiskFile, into buffer: UnsafeMutableRawBufferPointer, at offset: Int64
    ) throws(DiskError) -> Int {
        var done = 0
        while done < buffer.count {
            let rest = UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
            let got = pread(file.descriptor, rest.baseAddress, rest.count, off_t(offset) + off_t(done))
            if got < 0 {
                if errno == EINTR { continue }
                throw DiskError(errno: errno, call: "pread")
            }
            if got == 0 { break }
            done += got
        }
        return done
    }

    package func sync(_ file: DiskFile) throws(DiskError) {
        if fdatasync(file.descriptor) != 0 { throw DiskError(errno: errno, call: "fdatasync") }
    }

    package func syncFileSystem(_ file: DiskFile) throws(DiskError) {
        let result = baton_syncfs(file.descriptor)
        if result != 0 { throw DiskError(errno: result, call: "syncfs") }
    }

    package func allocate(_ file: DiskFile, length: Int64) throws(DiskError) {
        let result = baton_fallocate(file.descriptor, 0, length)
        // A file system without fallocate still stores what is written.
        if result != 0, result != EOPNOTSUPP { throw DiskError(errno: result, call: "fallocate") }
    }

    package func truncate(_ file: DiskFile, length: Int64) throws(DiskError) {
        if ftruncate(file.descriptor, off_t(length)) != 0 { throw DiskError(errno: errno, call: "ftruncate") }
    }

    package func size(_ file: DiskFile) throws(DiskError) -> Int64 {
        let end = lseek(file.descriptor, 0, SEEK_END)
        guard end >= 0 else { throw DiskError(errno: errno, call: "lseek") }
        return Int64(end)
    }

    package func syncDirectory(_ path: String) throws(DiskError) {
        let descriptor = baton_open(path, O_RDONLY | O_DIRECTORY, 0)
        guard descriptor >= 0 else { throw DiskError(errno: -descriptor, call: "open") }
        let result = fsync(descriptor)
        let reason = errno
        _ = Glibc.close(descriptor)
        if result != 0 { throw DiskError(errno: reason, call: "fsync") }
    }

    package func unlink(_ path: String) throws(DiskError) {
        if Glibc.unlink(path) != 0 { throw DiskError(errno: errno, call: "unlink") }
    }

    package func rename(_ from: String, to: String) throws(DiskError) {
        if Glibc.rename(from, to) != 0 { throw DiskError(errno: errno, call: "rename") }
    }

    package func makeDirectory(_ path: String) throws(DiskError) {
        if mkdir(path, 0o700) != 0 { throw DiskError(errno: errno, call: "mkdir") }
    }

    package func list(_ path: String) throws(DiskError) -> [String] {
        guard let directory = opendir(path) else { throw DiskError(errno: errno, call: "opendir") }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }

    package func space(_ path: String) throws(DiskError) -> DiskSpace {
        var free: UInt64 = 0
        var total: UInt64 = 0
        var inodes: UInt64 = 0
        let result = baton_disk_space(path, &free, &total, &inodes)
        if result != 0 { throw DiskError(errno: result, call: "statvfs") }
        return DiskSpace(free: free, total: total, freeInodes: inodes)
    }

    package func lock(_ file: DiskFile) throws(DiskError) {
        let result = baton_flock_exclusive(file.descriptor)
        if result != 0 { throw DiskError(errno: result, call: "flock") }
    }
}
