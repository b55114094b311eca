// Reads an outcome log that grows, for streaming it to other members.
import BatonCore
import BatonRuntime
import NIOCore
import Synchronization

/// Opened when it is first read; closed with its last owner. Used on the cluster's thread.
final class OutcomeFile: Sendable {
    private let path: String
    private let disk: any Disk
    private let file = Mutex<DiskFile?>(nil)

    init(path: String, disk: any Disk) {
        self.path = path
        self.disk = disk
    }

    deinit { if let file = file.withLock({ $0 }) { try? disk.close(file) } }

    /// Exactly so many octets, or nil.
    func read(from offset: Int64, count: Int) -> ByteBuffer? {
        guard count > 0 else { return ByteBuffer() }
        let opened = file.withLock { file -> DiskFile? in
            if file == nil { file = try? disk.open(path, .read) }
            return file
        }
        guard let opened else { return nil }
        var buffer = ByteBufferAllocator().buffer(capacity: count)
        var done = 0
        while done < count {
            let (start, left) = (offset + Int64(done), count - done)
            var failed = false
            let got = buffer.writeWithUnsafeMutableBytes(minimumWritableBytes: left) { space in
                let room = UnsafeMutableRawBufferPointer(rebasing: space[..<left])
                do throws(DiskError) {
                    return try disk.read(opened, into: room, at: start)
                } catch {
                    failed = true
                    return 0
                }
            }
            guard !failed, got > 0 else { return nil }
            done += got
        }
        return buffer
    }
}
