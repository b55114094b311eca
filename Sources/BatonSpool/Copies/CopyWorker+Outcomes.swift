// The copies' outcome logs: taken as their drainer sends them, synced by the tick.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import NIOCore

extension CopyWorker {
    mutating func record(
        _ id: SegmentID, _ epoch: UInt64, _ offset: Int64, _ bytes: ByteBuffer, at now: Instant
    ) -> CopyLog {
        do throws(DiskError) {
            guard let copy = try open(id, at: now) else { return .missing }
            switch copy.state.decide(record: epoch, from: offset, count: bytes.readableBytes) {
            case .sealed(let higher): return .sealed(epoch: higher)
            case .failed: return .failed
            case .gap: return .gap(memory: copy.state.log(epoch).memory, synced: copy.state.log(epoch).synced)
            case .write(let skip):
                var fresh = bytes
                fresh.moveReaderIndex(forwardBy: skip)
                if fresh.readableBytes > 0 {
                    let log = try openLog(id, epoch)
                    let at = copy.state.log(epoch).memory
                    try fresh.writeAll(to: log, at: at, on: disk)
                    copies[id]?.state.recorded(epoch, to: at + Int64(fresh.readableBytes))
                    if copies[id]?.dirty[epoch] == nil { copies[id]?.dirty[epoch] = now }
                }
                let log = copies[id]?.state.log(epoch) ?? CopyState.Log()
                return .recorded(memory: log.memory, synced: log.synced)
            }
        } catch {
            if error.errno != DiskError.noSpace, error.errno != DiskError.quota { fail(id, error) }
            return .failed
        }
    }

    private mutating func openLog(_ id: SegmentID, _ epoch: UInt64) throws(DiskError) -> DiskFile {
        if let file = copies[id]?.logs[epoch] { return file }
        let path = files(id).logPath(epoch: epoch)
        let file: DiskFile
        do throws(DiskError) {
            file = try disk.open(path, .create)
            copies[id]?.namesDirty = true
        } catch {
            guard error.errno == EEXIST else { throw error }
            file = try disk.open(path, .readWrite)
        }
        copies[id]?.logs[epoch] = file
        return file
    }

    /// Outcome logs are synced; nobody waits for it.
    mutating func tick(at now: Instant) {
        let dirty = copies.filter { !$0.value.dirty.isEmpty && !$0.value.state.failed }
        guard !dirty.isEmpty else { return }
        do throws(DiskError) {
            if dirty.contains(where: { $0.value.namesDirty }) { try disk.syncDirectory(directory) }
            let count = dirty.reduce(0) { $0 + $1.value.dirty.count }
            if count > SpoolLimits.dirtyOutcomeFiles, let file = dirty.first?.value.logs.values.first {
                try disk.syncFileSystem(file)
            } else {
                for copy in dirty.values {
                    for epoch in copy.dirty.keys { if let file = copy.logs[epoch] { try disk.sync(file) } }
                }
            }
        } catch {
            for id in dirty.keys { fail(id, error) }
            return
        }
        for (id, copy) in dirty {
            copies[id]?.namesDirty = false
            copies[id]?.dirty = [:]
            for epoch in copy.dirty.keys {
                let end = copy.state.log(epoch).memory
                copies[id]?.state.recordsSynced(epoch, to: end)
                news.logSynced(id, epoch: epoch, memory: end, synced: end)
            }
        }
    }
}
