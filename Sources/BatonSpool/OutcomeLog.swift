// One segment's outcome log as its writer holds it.
import BatonCore
import BatonModel
import BatonRuntime
import Glibc
import NIOCore

/// The sidecar file of a segment. Entries collect in `buffer`, `flush` writes them behind the last, a later fdatasync makes
/// them durable. Owned by `OutcomeWriter`.
struct OutcomeLog: Sendable {
    let path: String
    let id: SegmentID
    private let seed: UInt32
    private(set) var file: DiskFile?
    private var exists: Bool
    /// End of what is written.
    private(set) var offset: Int64
    private var buffer = ByteBuffer()
    /// Everything before it is fdatasync'ed.
    private(set) var syncedOffset: Int64 = 0
    /// End of the last outcome, written or buffered; marks behind it do not count.
    private(set) var lastOutcomeEnd: Int64
    /// Since when written bytes are not fdatasync'ed.
    private(set) var dirtySince: Instant?
    /// Segments whose reports rest on outcomes that are not synced here yet.
    var pins: [UInt32] = []
    /// Events known to be synced, and the snapshot that will be once the event log has synced so far.
    var marks: OutcomeMarks
    var awaited: (recorded: UInt64, receptions: UInt32, outcomeOffset: Int64)?
    var writtenMarks: OutcomeMarks
    /// A write or fdatasync failed: never retried, its segment stays.
    private(set) var failed = false
    /// The drainer entry of this process stands in it.
    private var introduced = false

    init(
        path: String, id: SegmentID, validEnd: Int64 = 0, lastOutcomeEnd: Int64 = 0,
        marks: OutcomeMarks = OutcomeMarks()
    ) {
        self.path = path
        self.id = id
        self.seed = OutcomeFormat.header(id).seed
        self.exists = validEnd > 0
        self.offset = validEnd
        // Of use in a cluster only, where what is opened was fdatasync'ed a moment ago (`adopt`).
        self.syncedOffset = validEnd
        self.lastOutcomeEnd = lastOutcomeEnd
        self.marks = marks
        self.writtenMarks = marks
    }

    var waitingBytes: Int { buffer.readableBytes }
    /// Everything recorded is fdatasync'ed.
    var isClean: Bool { buffer.readableBytes == 0 && dirtySince == nil && !failed }

    mutating func append(_ entry: OutcomeEntry, drainer: Drainer, epoch: UInt64) {
        if offset == 0, buffer.readableBytes == 0 {
            var header = OutcomeFormat.header(id).bytes
            buffer.writeBuffer(&header)
        }
        if !introduced {
            introduced = true
            OutcomeFormat.write(.drainer(drainer, epoch: epoch), seed: seed, into: &buffer)
        }
        OutcomeFormat.write(entry, seed: seed, into: &buffer)
        if case .outcome = entry { lastOutcomeEnd = offset + Int64(buffer.readableBytes) }
    }

    /// Writes what is buffered. True if it made the file: its directory is to be synced. After ENOSPC the bytes stay.
    mutating func flush(on disk: any Disk, at now: Instant) throws(DiskError) -> Bool {
        guard buffer.readableBytes > 0, !failed else { return false }
        var made = false
        do throws(DiskError) {
            made = try openIfNeeded(on: disk)
            if let file { try buffer.writeAll(to: file, at: offset, on: disk) }
        } catch {
            if error.errno != DiskError.noSpace, error.errno != DiskError.quota { fail() }
            throw error
        }
        offset += Int64(buffer.readableBytes)
        buffer.clear()
        if dirtySince == nil { dirtySince = now }
        return made
    }

    mutating func sync(on disk: any Disk) throws(DiskError) {
        guard dirtySince != nil, !failed else { return }
        do throws(DiskError) {
            if let file { try disk.sync(file) }
        } catch {
            fail()
            throw error
        }
        dirtySince = nil
        syncedOffset = offset
    }

    /// A syncfs that covered the file has succeeded.
    mutating func syncedByFileSystem() {
        guard !failed else { return }
        dirtySince = nil
        syncedOffset = offset
    }

    /// The events of everything in it are recorded anew.
    mutating func forgetEvents() {
        marks.receptions = 0
        marks.outcomeOffset = 0
        writtenMarks = marks
    }

    mutating func fail() {
        failed = true
        buffer = ByteBuffer()
    }

    /// Its segment stays for good in this process, since outcomes of it are missing on disk.
    mutating func dropWaiting() { fail() }

    mutating func close(on disk: any Disk) {
        if let file { try? disk.close(file) }
        file = nil
    }

    private mutating func openIfNeeded(on disk: any Disk) throws(DiskError) -> Bool {
        guard file == nil else { return false }
        if exists {
            let opened = try disk.open(path, .readWrite)
            file = opened
            // What an unfinished write left behind must not be read as ours later.
            if try disk.size(opened) > offset { try disk.truncate(opened, length: offset) }
            return false
        }
        do throws(DiskError) {
            file = try disk.open(path, .create)
        } catch {
            guard error.errno == EEXIST else { throw error }
            let opened = try disk.open(path, .readWrite)
            try disk.truncate(opened, length: 0)
            file = opened
        }
        exists = true
        return true
    }

    // MARK: Reading

    /// Every valid entry, in order, with the offset behind it. `absent` where there is no file.
    static func read(
        _ path: String, segment: SegmentID, from disk: any Disk, _ receive: (OutcomeEntry, Int64) -> Void
    ) throws(DiskError) -> (validEnd: Int64, damaged: Int, size: Int64) {
        let file: DiskFile
        do throws(DiskError) {
            file = try disk.open(path, .read)
        } catch {
            if error.errno == ENOENT { return (0, 0, 0) }
            throw error
        }
        defer { try? disk.close(file) }
        let size = try disk.size(file)
        guard size <= Int64(UInt32.max) / 2 else { return (0, Int(clamping: size), size) }
        let buffer = try DiskRead.upTo(Int(size), of: file, at: 0, from: disk)
        let (valid, damaged) = OutcomeFormat.scan(buffer, segment: segment) { entry, end in
            receive(entry, Int64(end))
        }
        return (Int64(valid), damaged, size)
    }
}
