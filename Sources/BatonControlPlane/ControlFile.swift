// The local control plane's file and lock.
import BatonCore
import BatonRuntime
import Glibc

/// `control`, its replacement `control.tmp`, and `control.lock` in one folder.
struct ControlFile: Sendable {
    let folder: String
    let disk: any Disk
    let bytesMax: Int

    private var path: String { "\(folder)/control" }

    func lock() throws(ControlFailure) -> DiskFile {
        do throws(DiskError) {
            do throws(DiskError) {
                try disk.makeDirectory(folder)
            } catch {
                guard error.errno == EEXIST else { throw error }
            }
            let file = try openOrCreate("\(folder)/control.lock")
            do throws(DiskError) {
                try disk.lock(file)
            } catch {
                try? disk.close(file)
                throw error
            }
            return file
        } catch {
            let inUse = error.errno == EWOULDBLOCK
            throw .refused(
                inUse ? .unavailable : .damaged, "\(folder): \(inUse ? "in use by another process" : "\(error)")")
        }
    }

    /// Closing gives the lock back.
    func unlock(_ file: DiskFile) { try? disk.close(file) }

    private func openOrCreate(_ path: String) throws(DiskError) -> DiskFile {
        do throws(DiskError) {
            return try disk.open(path, .create)
        } catch {
            guard error.errno == EEXIST else { throw error }
            return try disk.open(path, .readWrite)
        }
    }

    /// Nil where there is no file, or where it was put aside.
    func read(
        ifDamaged policy: LocalControlPlane.DamagePolicy
    ) throws(ControlFailure) -> (content: ControlStoreFormat.Content?, damaged: Bool) {
        do throws(DiskError) {
            guard let bytes = try contents() else { return (nil, false) }
            if let content = ControlStoreFormat.decode(bytes) { return (content, false) }
        } catch {
            throw .refused(.damaged, "\(path) cannot be read: \(error)")
        }
        guard case .putAside = policy else { throw .refused(.damaged, "\(path) fails its checksum") }
        do throws(DiskError) {
            try disk.rename(path, to: "\(folder)/control.damaged")
            try disk.syncDirectory(folder)
        } catch {
            throw .refused(.damaged, "\(path) cannot be put aside: \(error)")
        }
        return (nil, true)
    }

    /// Nil where there is none; too long a file is returned empty, which no checksum fits.
    private func contents() throws(DiskError) -> [UInt8]? {
        let file: DiskFile
        do throws(DiskError) {
            file = try disk.open(path, .read)
        } catch {
            if error.errno == ENOENT { return nil }
            throw error
        }
        defer { try? disk.close(file) }
        let size = try disk.size(file)
        guard size > 0, size <= Int64(ControlStoreFormat.fileBytes) else { return [] }
        var bytes = [UInt8](repeating: 0, count: Int(size))
        var failure: DiskError?
        var count = 0
        bytes.withUnsafeMutableBytes { space in
            do throws(DiskError) {
                count = try disk.read(file, into: space, at: 0)
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
        return Array(bytes.prefix(count))
    }

    /// Thrown as refused while nothing has changed, as unknown from the rename on.
    func replace(_ bytes: [UInt8]) throws(ControlFailure) {
        guard bytes.count <= bytesMax else { throw .refused(.noSpace, "the store is full") }
        do throws(DiskError) {
            try writeTemporary(bytes)
        } catch {
            let full = error.errno == ENOSPC || error.errno == EDQUOT
            throw .refused(full ? .noSpace : .damaged, "\(path) cannot be written: \(error)")
        }
        do throws(DiskError) {
            try disk.rename("\(path).tmp", to: path)
            try disk.syncDirectory(folder)
        } catch {
            throw .unknown("\(path) may or may not be replaced: \(error)")
        }
    }

    private func writeTemporary(_ bytes: [UInt8]) throws(DiskError) {
        do throws(DiskError) {
            try disk.unlink("\(path).tmp")
        } catch {
            guard error.errno == ENOENT else { throw error }
        }
        let file = try disk.open("\(path).tmp", .create)
        do throws(DiskError) {
            var failure: DiskError?
            bytes.withUnsafeBytes { all in
                do throws(DiskError) {
                    try disk.write(file, all, at: 0)
                } catch {
                    failure = error
                }
            }
            if let failure { throw failure }
            try disk.sync(file)
        } catch {
            try? disk.close(file)
            throw error
        }
        try disk.close(file)
    }
}
